"""Points followed by optical flow, with features from time to time: faster than features of each frame, and nearer to
the truth.

A detector finds a point not in every frame and not at the same place to a pixel; optical flow does both, until
something stands before the point or the camera moves too fast. So points are followed by flow from frame to frame, and
every few frames, or when flow has lost too many, the picture is *looked at*:

- Points are placed anew by flow from the oldest frame that was looked at and shows at least half of them, so that
  errors do not add up.
- Points that are lost and should be in the picture are looked for where their neighbours are, in several frames that
  were looked at before. How their neighbours went is known from the points that are left; where these are too few, the
  matcher says it, if geometry says that both frames show the same.
- Features far from all points become new ones.

Flow is Lucas and Kanade's, in pyramids (OpenCV's), of pictures without what light does to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..geometry import points_inside
from ..images import to_rgb
from ..utils.optional import import_optional
from .features import FrameFeatures, in_picture
from .points import (
    FEWEST_LOST,
    Links,
    Points,
    Register,
    Tracks,
    columns_of,
    matches_of_one_scene,
    moved_along,
    points_of,
)

WINDOW = 21
"""Pixels of the side of the square that flow compares, on each level of the pyramid."""

COARSEST = 80
"""Pixels of the longer side of the coarsest level."""

SURROUNDINGS, LEAST_CONTRAST, CONTRAST = 31, 5.0, 40.0
"""Pixels of the side of the square whose mean is taken off; the grey levels added to its standard deviation, so that
noise stays noise; and the standard deviation that is made of it."""

RETURN = 1.0
"""Pixels: how far a point may be from its place after flow there and back."""

PATCH, ALIKE = 15, 0.8
"""Pixels of the side of what is compared around a point, and its least correlation."""

STILL_ALIKE = 0.7
"""The same from one frame to the next, between which a blur may begin."""

AWAY = 3.0
"""Pixels: how far a point is placed anew, or may be from the keypoint that it was matched with."""

SPACING = 0.0125
"""Of the longer side: how far new points are from all others."""

LEFT = 0.7
"""Share of the points of the last look; with fewer left, the next frame is looked at."""

LARGER = 16.0
"""How many times larger or smaller a picture of the same may be, in area."""

SHARED = 32
"""Points that say how their neighbours went."""

VIEWS_TRIED = 4
"""Frames of before whose lost points are looked for at a time."""


@dataclass
class View:
    """A frame that was looked at: its points, and its picture `(height, width)` uint8, normalised."""

    points: Points
    picture: np.ndarray
    frame: int
    tried: int


class FlowTracker:
    """Follows points from frame to frame by optical flow, and looks at a frame from time to time.

    Args:
        features: what finds the features of a frame, and whose model matches them.
        window: a point that is lost is re-found within so many frames, or never.
        every: frames from one look to the next.

    Raises:
        ValueError: a number out of its range.
        MissingPackageError: OpenCV or PoseLib is not installed.

    Example:
        >>> tracker = FlowTracker(FrameFeatures(model, processor))
        >>> for image in images:
        ...     tracks = tracker.update(image)
    """

    def __init__(self, features: FrameFeatures, window: int = 60, every: int = 5) -> None:
        if window < 0 or every < 1:
            raise ValueError(f"window must be at least 0 and every at least 1, got {window} and {every}")
        for module in ("cv2", "poselib"):
            import_optional(module, "video")
        self.features = features
        self.register = Register(window)
        self.every = every
        self.capacity = columns_of(features.model)
        self.reset()

    def reset(self) -> None:
        """Forget all that was seen; ids go on."""
        self.register = Register(self.register.window, next_id=self.register.next_id)
        self.views: list[View] = []
        self.live: Points | None = None
        self.picture: np.ndarray | None = None
        self.most = 0  # features of a frame, so far

    def update(self, image: np.ndarray | Image.Image) -> Tracks:
        """The tracks of the next frame, of which there are at most as many as features were ever found in a frame.

        Args:
            image: `(height, width, 3)` uint8 RGB, or a PIL image, of the size of the one before.

        Returns:
            Positions are in pixels of the frame. The score of a point that goes on is 1 less the pixels by which flow
            misses its place there and back; `keyframe` says that the frame was looked at.

        Raises:
            ValueError: an image of another size.
        """
        picture = normalised(to_rgb(image, "the frame", "channels_last"))
        if self.picture is not None and picture.shape != self.picture.shape:
            raise ValueError(f"frames must be of one size, got {picture.shape} after {self.picture.shape}")
        self.register.frame += 1
        if self.live is None or self.picture is None:
            live, look = self._find(image, picture), True
            scores = np.zeros(len(live), np.float32)
        else:
            live, scores = self._flow(self.live, self.picture, picture)
            look = self._is_due(live)
            if look:
                live, scores = self._look(image, picture, live, scores)
        gaps, ages = self.register.see(live)
        if look:
            self._remember(View(live, picture, self.register.frame, self.register.frame))
        self.live, self.picture = live, picture
        return Tracks(live.ids.copy(), live.positions.copy(), ages, gaps, scores, look)

    def _flow(self, live: Points, before: np.ndarray, picture: np.ndarray) -> tuple[Points, np.ndarray]:
        """The points that are followed from the frame before, and their scores."""
        there, missed = flow(before, picture, live.positions)
        missed[correlation(before, picture, live.positions, there) < STILL_ALIKE] = np.inf
        keep = missed < RETURN
        return live.moved(there).at(keep), scores_of(missed[keep])

    def _is_due(self, live: Points) -> bool:
        last = self.views[-1]
        return self.register.frame - last.frame >= self.every or len(live) < LEFT * len(last.points)

    def _remember(self, view: View) -> None:
        oldest = view.frame - max(self.register.window, self.every)
        self.views = [*(before for before in self.views if before.frame >= oldest), view]

    # -- what a look does

    def _find(self, image: Any, picture: np.ndarray) -> Points:
        """The features of a frame, as many as the matcher takes."""
        found = points_of(in_picture(self.features(image), picture.shape))
        if self.capacity and len(found) > self.capacity:
            found = found.at(np.arange(self.capacity))
        self.most = max(self.most, len(found))
        return found

    def _look(self, image: Any, picture: np.ndarray, live: Points, scores: np.ndarray) -> tuple[Points, np.ndarray]:
        found = self._find(image, picture)
        live = self._place(live, picture)
        for again, how in self._refind(live, found, picture):
            live, scores = self._add_again(live, scores, again, how)
        if len(live) > self.most:
            keep = self.register.oldest(live.ids, self.most)
            live, scores = live.at(keep), scores[keep]
        apart = distances(found.positions, live.positions).min(1, initial=np.inf)
        new = found.at(np.flatnonzero(apart > SPACING * live.longer_side)[: self.most - len(live)])
        return live + new, np.concatenate([scores, np.zeros(len(new), np.float32)])

    def _place(self, live: Points, picture: np.ndarray) -> Points:
        """The points where flow from a longer time ago has them."""
        for view in self.views:
            _, before, now = np.intersect1d(view.points.ids, live.ids, return_indices=True)
            if len(now) < max(SHARED, len(live) / 2):
                continue
            places, positions = view.points.positions[before], live.positions.copy()
            step = Step(view.picture, picture, places, positions[now])
            there, missed = step.follow(places, positions[now])
            placed = (missed < RETURN) & (np.linalg.norm(there - positions[now], axis=1) < AWAY)
            positions[now[placed]] = there[placed]
            return live.moved(positions)
        return live

    def _refind(self, live: Points, found: Points, picture: np.ndarray) -> Iterator[tuple[Points, np.ndarray]]:
        """Points of before that are seen again, and their scores, from one view after the other."""
        known, unknown = [], []
        claimed: set[int] = set()
        for view in reversed(self.views):  # each point from the last view that has it
            lost = self.register.missing(view.points.ids, live.ids)
            step = self._step(view, live, picture)
            if step is None:
                unknown.append((view, lost))
                continue
            lost &= np.array([id not in claimed for id in view.points.ids.tolist()], bool)
            claimed.update(view.points.ids[lost].tolist())
            known.append((view, lost & points_inside(step.moved(view.points.positions), picture.shape), step))
        for view, lost, step in self._most_due(known, 1):
            yield seen_again(view, lost, step)
        if not known:
            for view, lost in self._most_due(unknown, FEWEST_LOST):
                links = matches_of_one_scene(self.features.model, view.points, found)
                if links is not None:
                    yield from recognised(view, lost, found, picture, links)
                    break

    def _most_due(self, views: list[Any], fewest: int) -> list[Any]:
        """Those in which many points are lost and that had to wait, if at least `fewest` were."""
        now = self.register.frame
        due = sorted(
            (one for one in views if one[1].sum() >= fewest),
            key=lambda one: one[1].sum() ** 0.5 * (now - one[0].tried),
            reverse=True,
        )[:VIEWS_TRIED]
        for view, *_ in due:
            view.tried = now
        return due

    def _step(self, view: View, live: Points, picture: np.ndarray) -> Step | None:
        """From a view to this frame, if enough of its points are left."""
        _, before, now = np.intersect1d(view.points.ids, live.ids, return_indices=True)
        if len(now) < SHARED:
            return None
        return Step(view.picture, picture, view.points.positions[before], live.positions[now])

    def _add_again(
        self, live: Points, scores: np.ndarray, again: Points, how: np.ndarray
    ) -> tuple[Points, np.ndarray]:
        """With points that are seen again; what was taken for a new point at such a place is this one."""
        close = distances(again.positions, live.positions) < SPACING / 2 * live.longer_side
        keep, replaced = np.ones(len(again), bool), np.zeros(len(live), bool)
        for i, j in zip(*np.nonzero(close)):
            old, young = int(again.ids[i]), int(live.ids[j])
            if self.register.began_after(young, old):
                replaced[j] = True
            else:
                keep[i] = False  # both were seen at once, and are two points
        replaced &= close[keep].any(0)
        for id in live.ids[replaced].tolist():
            del self.register.lives[id]
        return live.at(~replaced) + again.at(keep), np.concatenate([scores[~replaced], how[keep]])


def seen_again(view: View, lost: np.ndarray, step: Step) -> tuple[Points, np.ndarray]:
    """The points of a view that are lost and that flow finds again, and their scores."""
    points = view.points.at(lost)
    there, missed = step.follow(points.positions)
    again = missed < RETURN
    return points.moved(there).at(again), scores_of(missed[again])


def recognised(
    view: View, lost: np.ndarray, found: Points, picture: np.ndarray, links: Links
) -> Iterator[tuple[Points, np.ndarray]]:
    """The points of a view that are lost and seen again: where flow finds them, and else at keypoints that match."""
    before, now = view.points.positions[links.first], found.positions[links.second]
    points, scores = seen_again(view, lost, Step(view.picture, picture, before, now))
    yield points, scores
    others = links.those(lost[links.first] & ~np.isin(view.points.ids[links.first], points.ids))
    yield view.points.at(others.first).moved(found.positions[others.second]), others.scores


def distances(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """`(n, 2)`, `(m, 2)` -> `(n, m)`."""
    return np.linalg.norm(points0[:, None] - points1[None], axis=2)


def scores_of(missed: np.ndarray) -> np.ndarray:
    """`(n,)` float32 from 0 to 1, of the pixels that flow misses there and back."""
    return (1 - missed / RETURN).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Flow


def normalised(image: np.ndarray) -> np.ndarray:
    """`(height, width)` uint8: in each place what differs from the mean of its surroundings, by their contrast.

    Flow takes a point to look the same in both pictures. This takes off what light, exposure and shadows change.

    Args:
        image: `(height, width, 3)` uint8 RGB.
    """
    cv2 = import_optional("cv2", "video")
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    sides = (SURROUNDINGS, SURROUNDINGS)
    grey -= cv2.blur(grey, sides)
    contrast = np.sqrt(np.maximum(cv2.blur(grey * grey, sides), 0)) + LEAST_CONTRAST
    return np.clip(np.rint(grey * (CONTRAST / contrast) + 128), 0, 255).astype(np.uint8)


def flow(
    picture0: np.ndarray,
    picture1: np.ndarray,
    points: np.ndarray,
    guess: np.ndarray | None = None,
    levels: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Where points of a picture are in another one.

    Args:
        picture0, picture1: `(height, width)` uint8.
        points: `(n, 2)` float32, pixels (x, y), centre of the first pixel = (0, 0).
        guess: `(n, 2)`, where to begin; by default where they were.
        levels: of the pyramid, beside the picture itself; by default such that the coarsest has 80 pixels a side.

    Returns:
        `(n, 2)` float32, where they are; and `(n,)`, the pixels by which they miss their place on the way back,
        infinite where they are not found or not in the picture.
    """
    cv2 = import_optional("cv2", "video")
    if not len(points):
        return points, np.zeros(0, np.float32)
    if levels is None:
        levels = max(1, round(np.log2(max(picture0.shape) / COARSEST)))
    settings = {"winSize": (WINDOW, WINDOW), "maxLevel": levels, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    start = np.ascontiguousarray(points, np.float32)
    guess = start if guess is None else np.ascontiguousarray(guess, np.float32)
    there, found, _ = cv2.calcOpticalFlowPyrLK(picture0, picture1, start, guess.copy(), **settings)
    back = start + there - guess  # so that the way back is as long as the way there
    back, returned, _ = cv2.calcOpticalFlowPyrLK(picture1, picture0, there, back, **settings)
    missed = np.linalg.norm(start - back, axis=1)
    missed[(found[:, 0] == 0) | (returned[:, 0] == 0) | ~points_inside(there, picture1.shape)] = np.inf
    return there, missed


class Step:
    """From a picture to one of a longer time later, between which the camera may have turned or come nearer.

    Args:
        picture0, picture1: `(height, width)` uint8.
        before, now: `(m, 2)`, points of both, m >= 3.
    """

    def __init__(self, picture0: np.ndarray, picture1: np.ndarray, before: np.ndarray, now: np.ndarray) -> None:
        self.picture0, self.picture1 = picture0, picture1
        cv2 = import_optional("cv2", "video")
        affine, _ = cv2.estimateAffine2D(before, now, ransacReprojThreshold=0.01 * max(picture1.shape))
        area = 0.0 if affine is None else affine[0, 0] * affine[1, 1] - affine[0, 1] * affine[1, 0]
        if not 1 / LARGER < area < LARGER:  # as of points on one line
            affine = np.column_stack([np.eye(2), np.median(now - before, axis=0)])
        self.affine = affine
        self.before, self.now = self.moved(before), now

    def moved(self, points: np.ndarray) -> np.ndarray:
        """`(n, 2)` float32, where the affine map of the points of both takes points."""
        return (points @ self.affine[:, :2].T + self.affine[:, 2]).astype(np.float32)

    def follow(self, points: np.ndarray, guess: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As [`flow`], of the first picture after the affine map, which looks more like the second one.

        Args:
            points: `(n, 2)`, of the first picture.
            guess: `(n, 2)`, where to begin; by default where their neighbours are.

        Returns:
            As [`flow`]; infinite also where both pictures do not look alike.
        """
        cv2 = import_optional("cv2", "video")
        height, width = self.picture1.shape
        warped = cv2.warpAffine(self.picture0, self.affine, (width, height), borderMode=cv2.BORDER_REPLICATE)
        start = self.moved(points)
        if guess is None:
            guess = moved_along(start, self.before, self.now)
        there, missed = flow(warped, self.picture1, start, guess, levels=1)
        missed[correlation(warped, self.picture1, start, there) < ALIKE] = np.inf
        return there, missed


def correlation(picture0: np.ndarray, picture1: np.ndarray, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """`(n,)` from -1 to 1, of what is around points `(n, 2)` of two pictures."""
    if not len(points0):
        return np.zeros(0, np.float32)
    first, second = patches(picture0, points0), patches(picture1, points1)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.maximum(norms, 1e-6)


def patches(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`(n, PATCH ** 2)` float32, what is around points `(n, 2)`, less its mean."""
    cv2 = import_optional("cv2", "video")
    y, x = np.mgrid[:PATCH, :PATCH].reshape(2, -1).astype(np.float32) - PATCH // 2
    x, y = points[:, :1] + x, points[:, 1:] + y
    values = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    return values - values.mean(1, keepdims=True)
