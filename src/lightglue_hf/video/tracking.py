"""Points followed through a video by their features: features of each frame in, tracks with ids out.

Each frame is matched once, with the *reference*: the points of the frame before, and those that were seen a few frames
ago and not since, moved along with their neighbours. A detector does not find each point in every frame, and without
these a track ends where a point was not found once.

Points that are gone for longer, behind something or out of the picture, are re-found by *keyframes*: frames that are
kept whole, one whenever too few of the points of the last one are left. From time to time the one that most points
are lost of is matched with the frame; if geometry says that both show the same, these points get their ids back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..features import KeypointFeatures
from .points import (
    FEWEST_LOST,
    TOLERANCE,
    Points,
    Register,
    Tracks,
    agreeing,
    columns_of,
    match_points,
    matches_of_one_scene,
    moved_along,
    points_of,
)

MOST_KEYFRAMES = 4
FEWEST_AT_MOST = 1024
"""Points that are matched with a frame at most, where it has few of its own."""


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
        self.register = Register(window)
        self.memory, self.every, self.survivors = min(memory, window), every, survivors
        self.capacity = capacity or columns_of(model)
        self.reset()

    def reset(self) -> None:
        """Forget all that was seen; ids go on."""
        self.register = Register(self.register.window, next_id=self.register.next_id)
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
        self.register.frame += 1
        points = points_of(features)
        scores = np.zeros(len(points), np.float32)
        lost = self._follow(points, scores)
        self._look_back(points, scores)
        gaps, ages = self.register.see(points)
        keyframe = self._choose_keyframe(points)
        self.reference = self._refer(points, lost)
        return Tracks(points.ids.copy(), points.positions.copy(), ages, gaps, scores, keyframe)

    # -- from frame to frame

    def _follow(self, points: Points, scores: np.ndarray) -> Points | None:
        """Give points the ids of the reference's that they match; the others of the reference, moved along."""
        reference = self.reference
        if reference is None:
            return None
        links = match_points(self.model, reference, points)
        before, now = reference.positions, points.positions
        links = links.those(agreeing(before[links.first], now[links.second], TOLERANCE * points.longer_side))
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
            points = points + lost.at(
                np.array([id not in seen and self._is_near(id) for id in lost.ids.tolist()], bool)
            )
        return points if len(points) <= most else points.at(self.register.oldest(points.ids, most))

    # -- to keyframes

    def _look_back(self, points: Points, scores: np.ndarray) -> None:
        """Give points their ids back that were lost and are seen in a keyframe."""
        wait = self.register.frame - self.looked
        if not self.keyframes or not len(points) or wait < 1:
            return
        if wait < self.every and (points.ids >= 0).any():
            return
        missing = [self.register.missing(keyframe.ids, points.ids, self.memory) for keyframe in self.keyframes]
        best = int(np.argmax([m.sum() for m in missing]))
        if missing[best].sum() < FEWEST_LOST:
            return
        self.looked = self.register.frame
        keyframe, lost = self.keyframes[best], missing[best]
        links = matches_of_one_scene(self.model, keyframe, points)
        if links is None:
            return
        for i, j, score in zip(*links.those(lost[links.first])):
            old, young = int(keyframe.ids[i]), int(points.ids[j])
            if young >= 0:
                if not self.register.began_after(young, old):
                    continue  # both were seen at once, and are two points
                del self.register.lives[young]  # what was taken for a new point is this one
            points.ids[j], scores[j] = old, score

    def _is_near(self, id: int) -> bool:
        """Whether a point was seen in the last frames, so that the reference has it."""
        lives = self.register.lives
        return id in lives and self.register.frame - lives[id].last <= self.memory

    def _choose_keyframe(self, points: Points) -> bool:
        """Keep the frame, if too few are left of the last one that was kept."""
        lives = self.register.lives
        self.keyframes = [k for k in self.keyframes if any(id in lives for id in k.ids.tolist())]
        if not len(points):
            return False
        if self.keyframes:
            followed = [id for id in self.keyframes[-1].ids.tolist() if id in lives and lives[id].age > 1]
            if followed and sum(map(self._is_near, followed)) >= self.survivors * len(followed):
                return False
        self.keyframes = [*self.keyframes, points][-MOST_KEYFRAMES:]
        return True
