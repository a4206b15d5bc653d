"""A plane, such as a poster, a page or the front of a box, found in every frame by a picture of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from ..evaluation.metrics import estimate_homography, project
from ..evaluation.verdict import TOO_FEW, YES, judge_against_chance
from ..features import KeypointFeatures
from .points import of_one_image

THRESHOLD = 0.005
"""Of the longer side of the frame: how far a point of the plane may lie from where the homography puts it."""

FEWEST_INLIERS = 10
SMALLEST_SIDE = 4.0  # pixels


class Sighting(NamedTuple):
    """What a frame shows of the plane.

    Args:
        answer: "yes", "no" or "too few", see `evaluation.verdict`; also "no" where the matches fit no picture of the
            plane.
        homography: `(3, 3)`, takes pixels of the template to pixels of the frame; `None` unless the answer is "yes".
        outline: `(4, 2)`, where the corners of the template are in the frame; `None` likewise.
        matches: how many there are.
        inliers: how many of them agree with the homography.
    """

    answer: str
    homography: np.ndarray | None
    outline: np.ndarray | None
    matches: int
    inliers: int


class PlaneFinder:
    """Finds a plane in frames.

    Args:
        model: whose `match_features` matches.
        template: features of a picture of the plane, from straight ahead and filled by it; `shape` `()`, with
            `image_sizes`.

    Raises:
        ValueError: no keypoints in the template.
    """

    def __init__(self, model: Any, template: KeypointFeatures) -> None:
        self.model, self.template = model, _one(template)
        if not _positions(self.template).size:
            raise ValueError("the template has no keypoints")
        height, width = self.template["image_sizes"].tolist()
        self.corners = np.array([(0, 0), (width, 0), (width, height), (0, height)]) - 0.5

    def find(self, features: KeypointFeatures) -> Sighting:
        """Look for the plane in a frame.

        Args:
            features: of the frame, `shape` `()`, with `image_sizes`; keypoints in pixels of the frame.
        """
        frame = _one(features)
        if not _positions(frame).size:
            return Sighting(TOO_FEW, None, None, 0, 0)
        both = KeypointFeatures.cat(
            [KeypointFeatures(**{name: value[None] for name, value in one.items()}) for one in (self.template, frame)]
        )
        with torch.inference_mode():
            outputs = self.model.match_features(both[[[0, 1]]])
        partners = outputs.matches[0, 0].cpu().numpy()
        matched = np.flatnonzero(partners >= 0)
        points0, points1 = _positions(self.template)[matched], _positions(frame)[partners[matched]]
        sizes = [tuple(one["image_sizes"].tolist()) for one in (self.template, frame)]
        answer = judge_against_chance(points0, points1, sizes, max(1.5, THRESHOLD * max(sizes[1]) / 2)).answer
        if answer != YES:
            return Sighting(answer, None, None, len(matched), 0)
        homography, inliers = estimate_homography(points0, points1, max(2.0, THRESHOLD * max(sizes[1])))
        count = int(inliers.sum())
        if homography is None or count < FEWEST_INLIERS:
            return Sighting("no", None, None, len(matched), count)
        outline = project(homography, self.corners)
        if not shows_front(homography, self.corners, outline):
            return Sighting("no", None, None, len(matched), count)
        return Sighting(YES, homography, outline, len(matched), count)


def shows_front(homography: np.ndarray, corners: np.ndarray, outline: np.ndarray) -> bool:
    """Whether corners `(4, 2)` and their outline in a frame are a plane and a picture of its front.

    All corners lie on one side of the camera, the outline is convex and runs the same way round, and no side of it
    is shorter than four pixels.
    """
    depths = np.concatenate([corners, np.ones((4, 1))], 1) @ homography[2]
    sides = np.roll(outline, -1, 0) - outline
    following = np.roll(sides, -1, 0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    one_side = bool((depths > 0).all() or (depths < 0).all())
    return one_side and bool((turns > 0).all()) and bool((np.linalg.norm(sides, axis=1) >= SMALLEST_SIDE).all())


def _one(features: KeypointFeatures) -> KeypointFeatures:
    """Of a single image, without what a matcher does not take."""
    return KeypointFeatures(**{name: value for name, value in of_one_image(features).items() if name != "scores"})


def _positions(features: KeypointFeatures) -> np.ndarray:
    """`(n, 2)`, with rows for padding, which nothing is matched with; `(0, 2)` if there is nothing else."""
    if features.mask is not None and not features.mask.any():
        return np.zeros((0, 2), np.float32)
    return features["keypoints"].float().cpu().numpy()
