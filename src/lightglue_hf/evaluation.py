"""How good matches are: against ground truth, by robust geometry, and beside a classical baseline.

Points are `(x, y)` in pixels with the centre of the first pixel at `(0, 0)`, as arrays or tensors. Readers of ground
truth and metrics are plain functions of points; none of them knows a model.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

# ---------------------------------------------------------------------------------------------------------------------
# Matches against ground truth


class Precision(NamedTuple):
    """A count of matches; those whose truth is unknown are in `total` but not in `judged`."""

    correct: int
    judged: int
    total: int

    @property
    def precision(self) -> float:
        """Share of the judged matches that are correct; 0 if none is judged."""
        return self.correct / self.judged if self.judged else 0.0


def match_precision(keypoints0: Any, keypoints1: Any, disparity: Any, threshold: float = 3.0) -> Precision:
    """Count the matches of a rectified stereo pair that agree with its ground-truth disparity.

    A point `(x, y)` of the left image lies at `(x - disparity[y, x], y)` in the right one. The disparity is read at
    the nearest pixel: between pixels it would mix foreground and background at every edge. A match is judged if the
    disparity of its left point is known (finite); a left point that is hidden in the right image but has a disparity
    is judged, too, so that a match of such a point is wrong unless it lies on the extended surface.

    Args:
        keypoints0: `(m, 2)`, pixels of the left image.
        keypoints1: `(m, 2)`, pixels of the right image, in the order of `keypoints0`.
        disparity: `(height, width)`, pixels; NaN or infinite where unknown.
        threshold: a match is correct if its right point is less than this far from the true one, in pixels.

    Raises:
        ValueError: lists of different lengths, or a disparity that is no map.
    """
    points0, points1 = _pair(keypoints0, keypoints1)
    disparity = _numpy(disparity)
    if disparity.ndim != 2:
        raise ValueError(f"disparity must be (height, width), but has the shape {disparity.shape}.")
    height, width = disparity.shape
    columns, rows = np.clip(np.rint(points0), 0, (width - 1, height - 1)).astype(int).T
    shift = disparity[rows, columns]
    judged = np.isfinite(shift)
    truth = points0 - np.stack([shift, np.zeros_like(shift)], axis=1)
    correct = np.linalg.norm(truth[judged] - points1[judged], axis=1) < threshold
    return Precision(int(correct.sum()), int(judged.sum()), len(points0))


def symmetric_epipolar_distance(keypoints0: Any, keypoints1: Any, K0: Any, K1: Any, T_0to1: Any) -> np.ndarray:
    """Return the sum of the squared distances of both points to each other's epipolar line, in normalised coordinates.

    Args:
        keypoints0: `(m, 2)`, pixels of the first image.
        keypoints1: `(m, 2)`, pixels of the second image, in the order of `keypoints0`.
        K0: `(3, 3)`, intrinsics of the first camera, for the pixels of `keypoints0`.
        K1: `(3, 3)`, intrinsics of the second camera.
        T_0to1: `(4, 4)`, takes points in the coordinates of the first camera to those of the second.

    Returns:
        `(m,)`; not a number where the point lies at an epipole.

    Source: the evaluation of SuperGlue (Sarlin et al., CVPR 2020).
    """
    points0, points1 = _pair(keypoints0, keypoints1)
    rays0 = _homogeneous(points0) @ np.linalg.inv(_numpy(K0)).T
    rays1 = _homogeneous(points1) @ np.linalg.inv(_numpy(K1)).T
    transform = _numpy(T_0to1)
    x, y, z = transform[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ transform[:3, :3]
    lines1, lines0 = rays0 @ essential.T, rays1 @ essential
    residuals = (rays1 * lines1).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return residuals**2 * (1 / (lines1[:, :2] ** 2).sum(axis=1) + 1 / (lines0[:, :2] ** 2).sum(axis=1))


def epipolar_precision(
    keypoints0: Any, keypoints1: Any, K0: Any, K1: Any, T_0to1: Any, threshold: float = 5e-4
) -> Precision:
    """Count the matches whose symmetric epipolar distance is below a threshold; all of them are judged.

    Arguments are those of `symmetric_epipolar_distance`; the threshold is SuperGlue's for indoor pairs.
    """
    distance = symmetric_epipolar_distance(keypoints0, keypoints1, K0, K1, T_0to1)
    return Precision(int((distance < threshold).sum()), len(distance), len(distance))


class PosedPair(NamedTuple):
    """A pair of images with intrinsics and relative pose; `rot` counts quarter turns to turn each image upright."""

    name0: str
    name1: str
    rot0: int
    rot1: int
    K0: np.ndarray
    K1: np.ndarray
    T_0to1: np.ndarray


def read_posed_pairs(path: str | os.PathLike[str]) -> list[PosedPair]:
    """Read a list of pairs with ground truth, one a line: `name0 name1 rot0 rot1 K0 (9) K1 (9) T_0to1 (16)`.

    Args:
        path: of the text file; empty lines are skipped.

    Raises:
        ValueError: a line of another form; the message has its number.

    Source: the pair lists of SuperGlue.
    """
    pairs = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            if len(fields) != 38:
                raise ValueError(f"{len(fields)} fields instead of 38")
            rot0, rot1 = int(fields[2]), int(fields[3])
            numbers = np.array(fields[4:], dtype=float)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error
        K0, K1, T_0to1 = (part.reshape(n, n) for part, n in zip(np.split(numbers, [9, 18]), (3, 3, 4)))
        pairs.append(PosedPair(fields[0], fields[1], rot0, rot1, K0, K1, T_0to1))
    return pairs


# ---------------------------------------------------------------------------------------------------------------------
# Robust geometry


def estimate_fundamental(
    keypoints0: Any, keypoints1: Any, threshold: float = 1.5, estimator: str = "poselib"
) -> tuple[np.ndarray | None, np.ndarray]:
    """Fit a fundamental matrix to matches with outliers.

    Args:
        keypoints0: `(m, 2)`, pixels of the first image.
        keypoints1: `(m, 2)`, pixels of the second image, in the order of `keypoints0`.
        threshold: largest epipolar distance of an inlier, in pixels.
        estimator: "poselib" (LO-RANSAC, PoseLib) or "magsac" (MAGSAC++, OpenCV).

    Returns:
        The matrix `(3, 3)` with `x1^T F x0 = 0`, or None where none was found; inliers `(m,)`, bool.

    Raises:
        ImportError: the package of the estimator is not installed; the message says how to install it.
        ValueError: an unknown estimator, or lists of different lengths.
    """
    points0, points1 = _pair(keypoints0, keypoints1)
    if estimator == "magsac":
        cv2 = _optional("cv2", "eval")
        return _fit(cv2.findFundamentalMat, 8, points0, points1, cv2.USAC_MAGSAC, threshold, 0.9999, 10_000)
    if estimator == "poselib":
        poselib = _optional("poselib", "eval")
        return _fit(poselib.estimate_fundamental, 8, points0, points1, {"max_epipolar_error": threshold})
    raise ValueError(f'estimator must be "poselib" or "magsac", but is {estimator!r}.')


def estimate_homography(
    keypoints0: Any, keypoints1: Any, threshold: float = 3.0, estimator: str = "poselib"
) -> tuple[np.ndarray | None, np.ndarray]:
    """Fit a homography to matches with outliers.

    Arguments, returns and errors are those of `estimate_fundamental`; an inlier is reprojected less than `threshold`
    pixels away, and the matrix takes points of the first image to the second.
    """
    points0, points1 = _pair(keypoints0, keypoints1)
    if estimator == "magsac":
        cv2 = _optional("cv2", "eval")
        options = {"maxIters": 10_000, "confidence": 0.9999}
        return _fit(cv2.findHomography, 4, points0, points1, cv2.USAC_MAGSAC, threshold, **options)
    if estimator == "poselib":
        poselib = _optional("poselib", "eval")
        return _fit(poselib.estimate_homography, 4, points0, points1, {"max_reproj_error": threshold})
    raise ValueError(f'estimator must be "poselib" or "magsac", but is {estimator!r}.')


def _fit(
    estimate: Any, minimum: int, points0: np.ndarray, points1: np.ndarray, *args: Any, **kwargs: Any
) -> tuple[np.ndarray | None, np.ndarray]:
    """Call an estimator of either package, and tell a model from none."""
    nothing = None, np.zeros(len(points0), dtype=bool)
    if len(points0) < minimum:
        return nothing
    model, inliers = estimate(points0, points1, *args, **kwargs)
    inliers = inliers["inliers"] if isinstance(inliers, dict) else inliers
    if model is None or inliers is None or model.shape != (3, 3) or not np.isfinite(model).all() or not model.any():
        return nothing
    return model, np.asarray(inliers).astype(bool).reshape(-1)


def corner_error(homography: Any, truth: Any, image_size: tuple[int, int]) -> float:
    """Return the mean distance, in pixels, between where two homographies take the corners of an image.

    Args:
        homography: `(3, 3)`, or None where none was found: infinitely far.
        truth: `(3, 3)`.
        image_size: (height, width) of the first image.
    """
    if homography is None:
        return float("inf")
    height, width = image_size
    corners = np.array([(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)], dtype=float)
    estimated, expected = (_homogeneous(corners) @ _numpy(matrix).T for matrix in (homography, truth))
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = estimated[:, :2] / estimated[:, 2:] - expected[:, :2] / expected[:, 2:]
    error = float(np.linalg.norm(difference, axis=1).mean())
    return error if np.isfinite(error) else float("inf")


def accuracy(errors: Sequence[float], thresholds: Sequence[float]) -> list[float]:
    """Return for each threshold the share of errors that do not exceed it; 0 of no errors."""
    values = np.asarray(errors, dtype=float)
    return [float((values <= threshold).mean()) if len(values) else 0.0 for threshold in thresholds]


def area_under_curve(errors: Sequence[float], thresholds: Sequence[float]) -> list[float]:
    """Return for each threshold the area under the curve of recall over error up to it, divided by the threshold.

    Args:
        errors: one a pair, in any unit; infinite for a failure.
        thresholds: where the curve is cut, in the same unit.

    Returns:
        A number in [0, 1] for each threshold; 0 of no errors.

    Source: the pose AUC of SuperGlue: the curve joins its points by straight lines.
    """
    ordered = np.concatenate([[0.0], np.sort(np.asarray(errors, dtype=float))])
    recall = np.arange(len(ordered)) / max(1, len(ordered) - 1)
    areas = []
    for threshold in thresholds:
        last = np.searchsorted(ordered, threshold)
        x = np.append(ordered[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas.append(float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2 / threshold))
    return areas


# ---------------------------------------------------------------------------------------------------------------------
# The baseline: RootSIFT, mutual nearest neighbours, ratio test


def rootsift(image: Any, max_keypoints: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Detect SIFT keypoints and describe them by RootSIFT.

    Args:
        image: `(height, width)` grey or `(height, width, 3)` RGB, uint8.
        max_keypoints: the strongest are kept.

    Returns:
        Keypoints `(n, 2)`, pixels, and descriptors `(n, 128)` of unit length, both float32.

    Raises:
        ImportError: OpenCV is not installed.

    Source: Lowe, IJCV 2004; Arandjelovic and Zisserman, CVPR 2012.
    """
    cv2 = _optional("cv2", "eval")
    pixels = np.asarray(image)
    gray = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    keypoints, descriptors = cv2.SIFT_create(nfeatures=max_keypoints).detectAndCompute(gray, None)
    if not keypoints:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
    return points[:max_keypoints], roots[:max_keypoints]


def match_nearest(descriptors0: Any, descriptors1: Any, ratio: float | None = None) -> np.ndarray:
    """Match descriptors of unit length that are each other's nearest.

    Args:
        descriptors0: `(n0, d)`.
        descriptors1: `(n1, d)`.
        ratio: with one, the nearest must also be closer than `ratio` times the second nearest.

    Returns:
        `(m, 2)`, indices into both lists, in the order of the first.
    """
    first, second = _numpy(descriptors0), _numpy(descriptors1)
    if not len(first) or not len(second):
        return np.zeros((0, 2), dtype=int)
    squared = np.maximum(2 - 2 * first @ second.T, 0)
    nearest = squared.argmin(axis=1)
    rows = np.arange(len(first))
    keep = squared.argmin(axis=0)[nearest] == rows
    if ratio is not None and len(second) > 1:
        two = np.partition(squared, 1, axis=1)
        keep &= two[:, 0] < ratio**2 * two[:, 1]
    return np.stack([rows[keep], nearest[keep]], axis=1)


def match_rootsift(
    image0: Any, image1: Any, max_keypoints: int = 2048, ratio: float = 0.8
) -> tuple[np.ndarray, np.ndarray]:
    """Match two images by RootSIFT, mutual nearest neighbours and the ratio test.

    Returns:
        The matched keypoints of each image, `(m, 2)`, in the same order.
    """
    (points0, descriptors0), (points1, descriptors1) = (rootsift(image, max_keypoints) for image in (image0, image1))
    indices = match_nearest(descriptors0, descriptors1, ratio)
    return points0[indices[:, 0]], points1[indices[:, 1]]


# ---------------------------------------------------------------------------------------------------------------------


def _optional(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: install lightglue-hf[{extra}].") from error


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=float)


def _pair(keypoints0: Any, keypoints1: Any) -> tuple[np.ndarray, np.ndarray]:
    points0, points1 = (_numpy(points).reshape(-1, 2) for points in (keypoints0, keypoints1))
    if len(points0) != len(points1):
        raise ValueError(f"{len(points0)} keypoints do not match {len(points1)}.")
    return points0, points1


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)
