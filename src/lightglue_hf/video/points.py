"""What trackers have in common: points and their tracks, and matches of two frames that can be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..evaluation.verdict import SAMPLE, YES, judge_against_chance
from ..features import KeypointFeatures

NEIGHBOURS, SUPPORTERS = 8, 3
"""A match stays if so many of so many neighbours move as it does."""

TOLERANCE, STRETCH = 0.006, 0.35
"""How far two neighbours may move apart: a share of the longer side of the image, and one of their distance, which
allows 20 degrees of rotation, or a third larger or smaller."""

EPIPOLAR_THRESHOLD = 0.004
"""Of the longer side: largest distance of a re-found point to its epipolar line."""

FEWEST_LOST = 16
"""Points that a frame of before is not matched for less than."""

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

    @property
    def longer_side(self) -> float:
        """Of the image, in pixels."""
        return float(self.features["image_sizes"].max())

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


@dataclass
class Register:
    """All tracks that are seen, or may be seen again.

    Args:
        window: a point that is lost is re-found within so many frames, or never.
    """

    window: int
    frame: int = -1
    next_id: int = 0
    lives: dict[int, Life] = field(default_factory=dict)

    def see(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Begin tracks where there are none, and note who was seen in this frame; gaps and ages."""
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

    def missing(self, ids: np.ndarray, here: np.ndarray, memory: int = -1) -> np.ndarray:
        """`(n,)` bool, which tracks are not here, have gaps of more than `memory` frames, and may be re-found."""
        present = set(here.tolist())
        last = [self.lives[id].last if id in self.lives and id not in present else -math.inf for id in ids.tolist()]
        gaps = self.frame - np.array(last) - 1
        return (gaps > memory) & (gaps <= self.window)

    def began_after(self, young: int, old: int) -> bool:
        """Whether a track began after the other was lost, so that both may be of one point."""
        return self.lives[young].first > self.lives[old].last

    def oldest(self, ids: np.ndarray, count: int) -> np.ndarray:
        """`(count,)`, indices of those that were seen most often."""
        ages = np.array([self.lives[id].age if id in self.lives else 0 for id in ids.tolist()])
        return np.argsort(-ages, kind="stable")[:count]


def of_one_image(features: KeypointFeatures) -> KeypointFeatures:
    """Features of `shape` `()`, out of `()` or `(1,)`, with `image_sizes`.

    Raises:
        ValueError: features of several images, or without what they need.
    """
    features.check(values=False)
    if features.shape == (1,):
        features = features[0]
    if features.shape != () or features.image_sizes is None:
        raise ValueError(f"features of one image with image_sizes are needed, got shape {tuple(features.shape)}")
    return features


def points_of(features: KeypointFeatures) -> Points:
    """The keypoints of a single image, without padding, on no track yet."""
    features = of_one_image(features)
    n = features["keypoints"].shape[0]
    keep = np.ones(n, bool) if features.mask is None else features.mask.bool().cpu().numpy()
    return Points(features, np.full(n, -1, np.int64)).at(keep)


def columns_of(model: Any) -> int | None:
    """The number of points that an exported graph was made for, if it is one."""
    axes = model.axes("matcher") if hasattr(model, "axes") else None
    return axes["mask"][2] if axes else None


# ---------------------------------------------------------------------------------------------------------------------
# Matches


def match_points(model: Any, first: Points, second: Points) -> Links:
    """The matches of two images, whose features are on the model's device."""
    if not len(first) or not len(second):
        return Links(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    images = [
        KeypointFeatures(**{name: value[None] for name, value in points.features.items()})
        for points in (first, second)
    ]
    with torch.inference_mode():
        outputs = model.match_features(KeypointFeatures.cat(images)[[[0, 1]]])
    partners = outputs.matches[0, 0, : len(first)].cpu().numpy()
    matched = np.flatnonzero(partners >= 0)
    scores = outputs.matching_scores[0, 0, : len(first)].float().cpu().numpy()
    return Links(matched, partners[matched], scores[matched])


def matches_of_one_scene(model: Any, first: Points, second: Points) -> Links | None:
    """The matches that agree with the geometry of two images and with their neighbours; `None` if both may show
    different things."""
    links = match_points(model, first, second)
    before, now = first.positions[links.first], second.positions[links.second]
    sizes = [tuple(map(int, points.features["image_sizes"])) for points in (first, second)]
    verdict = judge_against_chance(before, now, sizes, EPIPOLAR_THRESHOLD * second.longer_side)
    if verdict.answer != YES:
        return None
    agree = verdict.inliers.copy()
    agree[agree] = agreeing(before[agree], now[agree], TOLERANCE * second.longer_side)
    return links.those(agree) if agree.sum() > SAMPLE else None  # of fewer, geometry would not have said it


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
