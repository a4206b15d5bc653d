"""Points followed through a video: features of each frame in, tracks with ids out.

Each frame is matched once, with the *reference*: the points of the frame before, and those that were seen a few frames
ago and not since, moved along with their neighbours. A detector does not find each point in every frame, and without
these a track ends where a point was not found once.

Points that are gone for longer, behind something or out of the picture, are re-found by *keyframes*: frames that are
kept whole, one whenever too few of the points of the last one are left. From time to time the one that most points
are lost of is matched with the frame; if geometry says that both show the same, these points get their ids back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..evaluation.verdict import YES, judge_against_chance
from ..features import KeypointFeatures

NEIGHBOURS, SUPPORTERS = 8, 3
"""A match stays if so many of so many neighbours move as it does."""

TOLERANCE, STRETCH = 0.006, 0.35
"""How far two neighbours may move apart: a share of the longer side of the image, and one of their distance, which
allows 20 degrees of rotation, or a third larger or smaller."""

EPIPOLAR_THRESHOLD = 0.004
"""Of the longer side: largest distance of a re-found point to its epipolar line."""

MOST_KEYFRAMES = 4
FEWEST_LOST = 16
"""Points that a keyframe is not matched for less than."""

FEWEST_AT_MOST = 1024
"""Points that are matched with a frame at most, where it has few of its own."""

CLEARING = 8
"""Every so many frames it is forgotten who was lost for too long."""

PER_POINT = ("keypoints", "descriptors", "scales", "orientations")


class Tracks(NamedTuple):
    """The points of a frame, each on one track, and each track at one of them; in the order of the frame's keypoints.

    Args:
        ids: `(n,)` int64, the track of each keypoint; new tracks count up from 0.
        positions: `(n, 2)` float32, pixels of the image that the features are of, (x, y), centre of the first pixel =
            (0, 0).
        ages: `(n,)` int64, frames in which the track has been seen, this one included: 1 for a new one.
        gaps: `(n,)` int64, frames before this one in which it was not seen; 0 also for a new one.
        scores: `(n,)` float32, of the match by which it goes on; 0 for a new one.
        keyframe: whether the frame became one.
    """

    ids: np.ndarray
    positions: np.ndarray
    ages: np.ndarray
    gaps: np.ndarray
    scores: np.ndarray
    keyframe: bool


class Links(NamedTuple):
    """Matched points of two images: `(m,)` indices into each, and scores."""

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray

    def those(self, keep: np.ndarray) -> Links:
        return Links(*(values[keep] for values in self))


@dataclass
class Points:
    """Points of a frame, or of several: their features without padding, `shape` = `()`, and tracks `(n,)`."""

    features: KeypointFeatures
    ids: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """`(n, 2)` float32."""
        return self.features["keypoints"].float().cpu().numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, index: np.ndarray) -> Points:
        """Those with these indices, or where a mask is true."""
        rows = torch.from_numpy(np.flatnonzero(index) if index.dtype == bool else index)
        rows = rows.to(self.features["keypoints"].device)
        chosen = {name: self.features[name][rows] for name in PER_POINT if name in self.features}
        return Points(KeypointFeatures(**chosen, image_sizes=self.features.image_sizes), self.ids[index])

    def moved(self, positions: np.ndarray) -> Points:
        keypoints = self.features["keypoints"]
        there = torch.from_numpy(positions).to(keypoints.device, keypoints.dtype)
        return Points(replace(self.features, keypoints=there), self.ids)

    def __add__(self, other: Points) -> Points:
        both = {
            name: torch.cat([self.features[name], other.features[name]]) for name in PER_POINT if name in self.features
        }
        features = KeypointFeatures(**both, image_sizes=self.features.image_sizes)
        return Points(features, np.concatenate([self.ids, other.ids]))


@dataclass
class Life:
    """When a track was first and last seen, by the number of the frame, and in how many frames."""

    first: int
    last: int
    age: int


class Tracker:
    """Follows points from frame to frame.

    Args:
        model: whose `match_features` matches: `LightGlueForKeypointMatching`, or a runtime of exported graphs.
        window: a point that is lost is re-found within so many frames, or never.
        memory: frames for which a lost point is looked for in every frame; afterwards by keyframes.
        every: frames between two looks at a keyframe. There is none before, unless all points are lost.
        survivors: a frame becomes a keyframe when it has less than this share of the last one's tracks.
        capacity: points that are matched with a frame at most; as many as an exported graph takes, else twice as many
            as the frame before has, and at least 1024.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> tracker = Tracker(model)
        >>> for image in images:
        ...     features = model.extract_features(**processor(image, pairs=False, return_tensors="pt"))
        ...     tracks = tracker.update(features)
    """

    def __init__(
        self,
        model: Any,
        window: int = 60,
        memory: int = 5,
        every: int = 5,
        survivors: float = 0.5,
        capacity: int | None = None,
    ) -> None:
        if window < 0 or memory < 0 or every < 1 or not 0 <= survivors <= 1 or (capacity is not None and capacity < 1):
            raise ValueError(
                "window and memory must be at least 0, every and capacity at least 1, survivors from 0 to 1, got "
                f"{window}, {memory}, {every}, {capacity} and {survivors}"
            )
        self.model = model
        self.window, self.memory, self.every, self.survivors = window, min(memory, window), every, survivors
        self.capacity = capacity or _columns(model)
        self.reset()

    def reset(self) -> None:
        """Forget all that was seen; ids go on."""
        self.next_id = getattr(self, "next_id", 0)
        self.frame = -1
        self.lives: dict[int, Life] = {}
        self.reference: Points | None = None
        self.keyframes: list[Points] = []
        self.looked = 0  # at a keyframe, in this frame

    def update(self, features: KeypointFeatures) -> Tracks:
        """The tracks of the next frame.

        Args:
            features: of one image, `shape` `()` or `(1,)`, with `image_sizes`; padding counts for nothing.

        Raises:
            ValueError: features of several images, or without what they need.
        """
        self.frame += 1
        points = _points_of(features)
        scores = np.zeros(len(points), np.float32)
        lost = self._follow(points, scores)
        self._look_back(points, scores)
        gaps, ages = self._see(points)
        keyframe = self._choose_keyframe(points)
        self.reference = self._refer(points, lost)
        return Tracks(points.ids.copy(), points.positions.copy(), ages, gaps, scores, keyframe)

    # -- from frame to frame

    def _follow(self, points: Points, scores: np.ndarray) -> Points | None:
        """Give points the ids of the reference's that they match; the others of the reference, moved along."""
        reference = self.reference
        if reference is None:
            return None
        links = self._match(reference, points)
        before, now = reference.positions, points.positions
        links = links.those(agreeing(before[links.first], now[links.second], self._pixels(TOLERANCE, points)))
        points.ids[links.second], scores[links.second] = reference.ids[links.first], links.scores
        unseen = np.ones(len(reference), bool)
        unseen[links.first] = False
        lost = reference.at(unseen)
        return lost.moved(moved_along(lost.positions, before[links.first], now[links.second]))

    def _refer(self, points: Points, lost: Points | None) -> Points:
        """What the next frame is matched with: this one's points and those lost of late, the oldest tracks first."""
        most = self.capacity or max(FEWEST_AT_MOST, 2 * len(points))
        if lost is not None:
            seen = set(points.ids.tolist())
            keep = [
                id not in seen and id in self.lives and self.frame - self.lives[id].last <= self.memory
                for id in lost.ids.tolist()
            ]
            points = points + lost.at(np.array(keep, bool))
        if len(points) <= most:
            return points
        ages = np.array([self.lives[id].age for id in points.ids.tolist()])
        return points.at(np.argsort(-ages, kind="stable")[:most])

    # -- to keyframes

    def _look_back(self, points: Points, scores: np.ndarray) -> None:
        """Give points their ids back that were lost and are seen in a keyframe."""
        wait = self.frame - self.looked
        if not self.keyframes or not len(points) or wait < 1:
            return
        if wait < self.every and (points.ids >= 0).any():
            return
        here = set(points.ids.tolist())
        missing = [self._missing(keyframe, here) for keyframe in self.keyframes]
        best = int(np.argmax([m.sum() for m in missing]))
        if missing[best].sum() < FEWEST_LOST:
            return
        self.looked = self.frame
        keyframe, lost = self.keyframes[best], missing[best]
        links = self._match(keyframe, points)
        before, now = keyframe.positions[links.first], points.positions[links.second]
        sizes = [tuple(map(int, image.features["image_sizes"])) for image in (keyframe, points)]
        verdict = judge_against_chance(before, now, sizes, self._pixels(EPIPOLAR_THRESHOLD, points))
        if verdict.answer != YES:
            return
        agree = verdict.inliers.copy()
        agree[agree] = agreeing(before[agree], now[agree], self._pixels(TOLERANCE, points))
        for i, j, score in zip(*links.those(agree & lost[links.first])):
            old, young = int(keyframe.ids[i]), int(points.ids[j])
            if young >= 0:
                if self.lives[young].first <= self.lives[old].last:
                    continue  # both were seen at once, and are two points
                del self.lives[young]  # what was taken for a new point is this one
            points.ids[j], scores[j] = old, score

    def _missing(self, keyframe: Points, here: set[int]) -> np.ndarray:
        """`(n,)` bool, the points of a keyframe that are not here nor in the reference, and may be re-found."""
        ids = keyframe.ids.tolist()
        last = np.array([self.lives[id].last if id in self.lives and id not in here else -math.inf for id in ids])
        gaps = self.frame - last - 1
        return (gaps > self.memory) & (gaps <= self.window)

    def _is_near(self, id: int) -> bool:
        """Whether a point was seen in the last frames, so that the reference had it."""
        return self.frame - self.lives[id].last - 1 <= self.memory

    def _choose_keyframe(self, points: Points) -> bool:
        """Keep the frame, if too few are left of the last one that was kept."""
        self.keyframes = [k for k in self.keyframes if any(id in self.lives for id in k.ids.tolist())]
        if not len(points):
            return False
        if self.keyframes:
            followed = [id for id in self.keyframes[-1].ids.tolist() if id in self.lives and self.lives[id].age > 1]
            if followed and sum(map(self._is_near, followed)) >= self.survivors * len(followed):
                return False
        self.keyframes = [*self.keyframes, points][-MOST_KEYFRAMES:]
        return True

    # -- both

    def _see(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Begin tracks where there are none, and note who was seen; gaps and ages."""
        new = np.flatnonzero(points.ids < 0)
        points.ids[new] = np.arange(self.next_id, self.next_id + len(new))
        self.next_id += len(new)
        gaps, ages = np.zeros(len(points), np.int64), np.ones(len(points), np.int64)
        for i, id in enumerate(points.ids.tolist()):
            life = self.lives.get(id)
            if life is None:
                self.lives[id] = Life(self.frame, self.frame, 1)
                continue
            gaps[i], ages[i] = self.frame - life.last - 1, life.age + 1
            life.last, life.age = self.frame, life.age + 1
        if self.frame % CLEARING == 0:
            self.lives = {id: life for id, life in self.lives.items() if self.frame - life.last <= self.window}
        return gaps, ages

    def _match(self, first: Points, second: Points) -> Links:
        """The matches of two images, each at least one point."""
        if not len(first) or not len(second):
            return Links(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        images = [
            KeypointFeatures(**{name: value[None] for name, value in points.features.items()})
            for points in (first, second)
        ]
        with torch.inference_mode():
            outputs = self.model.match_features(KeypointFeatures.cat(images)[[[0, 1]]])
        partners = outputs.matches[0, 0, : len(first)].cpu().numpy()
        matched = np.flatnonzero(partners >= 0)
        scores = outputs.matching_scores[0, 0, : len(first)].float().cpu().numpy()
        return Links(matched, partners[matched], scores[matched])

    @staticmethod
    def _pixels(share: float, points: Points) -> float:
        return share * float(points.features["image_sizes"].max())


def _columns(model: Any) -> int | None:
    """The number of points that an exported graph was made for, if it is one."""
    axes = model.axes("matcher") if hasattr(model, "axes") else None
    return axes["mask"][2] if axes else None


def _points_of(features: KeypointFeatures) -> Points:
    """The keypoints of a single image, without padding, on no track yet."""
    features.check(values=False)
    if features.shape == (1,):
        features = features[0]
    if features.shape != () or features.image_sizes is None:
        raise ValueError(f"features of one image with image_sizes are needed, got shape {tuple(features.shape)}")
    n = features["keypoints"].shape[0]
    keep = np.ones(n, bool) if features.mask is None else features.mask.bool().cpu().numpy()
    return Points(features, np.full(n, -1, np.int64)).at(keep)


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours


def agreeing(points0: np.ndarray, points1: np.ndarray, tolerance: float) -> np.ndarray:
    """Which matches move as some of their neighbours do: a point that jumps elsewhere alone does not.

    Unlike a homography or a fundamental matrix this allows for depth and for things that move by themselves.

    Args:
        points0: `(m, 2)`, pixels of the first image.
        points1: `(m, 2)`, pixels of the second image, in the order of `points0`.
        tolerance: pixels that neighbours may move apart, beside `STRETCH` times their distance.

    Returns:
        `(m,)` bool. A single match has no neighbours, and agrees if it does not move.

    Source: the idea is that of GMS (Bian et al., CVPR 2017), that true matches have neighbours that move with them.
    """
    moves = points1 - points0
    if len(moves) < 2:
        return np.linalg.norm(moves, axis=1) <= tolerance
    distances = np.linalg.norm(points0[:, None] - points0[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = _nearest(distances)
    apart = np.linalg.norm(moves[:, None] - moves[nearest], axis=2)
    agree = apart <= tolerance + STRETCH * np.take_along_axis(distances, nearest, 1)
    return agree.sum(1) >= min(SUPPORTERS, nearest.shape[1])


def moved_along(points: np.ndarray, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Where points `(n, 2)` are if they move as the matches next to them, on average."""
    if not len(points) or not len(points0):
        return points
    nearest = _nearest(np.linalg.norm(points[:, None] - points0[None], axis=2))
    return points + (points1 - points0)[nearest].mean(1)


def _nearest(distances: np.ndarray) -> np.ndarray:
    """`(n, m)` -> `(n, k)`, the columns of the nearest, in any order; none at an infinite distance."""
    count = min(NEIGHBOURS, distances.shape[1] - int(np.isinf(distances[0]).any()))
    if count >= distances.shape[1]:
        return np.broadcast_to(np.arange(distances.shape[1]), distances.shape)
    return np.argpartition(distances, count - 1, axis=1)[:, :count]
