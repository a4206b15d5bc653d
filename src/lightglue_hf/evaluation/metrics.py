"""How good matches are: against ground truth, and by robust geometry.

Points are `(x, y)` in pixels with the centre of the first pixel at `(0, 0)`, as arrays or tensors. Metrics are plain
functions of points; none of them knows a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from ..geometry import points_inside
from ..utils.optional import import_optional

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
    correct = _close(truth[judged], points1[judged], threshold)
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


def project(homography: Any, points: Any) -> np.ndarray:
    """Return where a homography `(3, 3)` takes points `(n, 2)`; not a finite number where that is infinitely far."""
    projected = _homogeneous(_numpy(points).reshape(-1, 2)) @ _numpy(homography).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return projected[:, :2] / projected[:, 2:]


def reprojection_precision(keypoints0: Any, keypoints1: Any, homography: Any, threshold: float = 3.0) -> Precision:
    """Count the matches that agree with a homography; all of them are judged.

    Args:
        keypoints0: `(m, 2)`, pixels of the first image.
        keypoints1: `(m, 2)`, pixels of the second image, in the order of `keypoints0`.
        homography: `(3, 3)`, takes points of the first image to the second.
        threshold: a match is correct if the first point is taken less than this far from the second, in pixels.
    """
    points0, points1 = _pair(keypoints0, keypoints1)
    correct = _close(project(homography, points0), points1, threshold)
    return Precision(int(correct.sum()), len(points0), len(points0))


def repeatability(
    keypoints0: Any,
    keypoints1: Any,
    homography: Any,
    image_sizes: Sequence[tuple[int, int]],
    threshold: float = 3.0,
) -> float:
    """Return the share of keypoints that are detected again in the other image, over both images.

    A keypoint counts if the homography takes it into the other image, and is detected again if it is taken no farther
    than `threshold` pixels from a keypoint there.

    Args:
        keypoints0: `(n0, 2)`, pixels of the first image: all that were detected.
        keypoints1: `(n1, 2)`, pixels of the second image.
        homography: `(3, 3)`, takes points of the first image to the second.
        image_sizes: (height, width) of each image.
        threshold: in pixels of the image that a keypoint is taken to.

    Returns:
        A number in [0, 1]; 0 if no keypoint counts.

    Source: SuperPoint (DeTone et al., CVPRW 2018), appendix on repeatability.
    """
    counted = repeated = 0
    for points, others, matrix, image_size in _both_ways(keypoints0, keypoints1, homography, image_sizes):
        projected = project(matrix, points)
        projected = projected[points_inside(projected, image_size)]
        counted += len(projected)
        if len(others) and len(projected):
            distance = torch.cdist(torch.from_numpy(projected), torch.from_numpy(others)).amin(dim=1)
            repeated += int((distance <= threshold).sum())
    return repeated / counted if counted else 0.0


def matching_score(
    keypoints0: Any,
    keypoints1: Any,
    matches: Any,
    homography: Any,
    image_sizes: Sequence[tuple[int, int]],
    threshold: float = 3.0,
) -> float:
    """Return the share of keypoints that end up in a correct match, the mean of both images.

    Arguments are those of `repeatability`, and a keypoint counts under the same condition. A match is correct as in
    `reprojection_precision`.

    Args:
        matches: `(m, 2)`, indices into both lists of keypoints.

    Returns:
        A number in [0, 1]; an image without keypoints that count has 0.

    Source: SuperPoint (DeTone et al., CVPRW 2018), appendix on the matching score.
    """
    indices = np.asarray(matches).reshape(-1, 2)
    points0, points1 = (_numpy(keypoints).reshape(-1, 2) for keypoints in (keypoints0, keypoints1))
    correct = _close(project(homography, points0[indices[:, 0]]), points1[indices[:, 1]], threshold)
    shares = []
    for matched, (points, _, matrix, image_size) in zip(
        indices[correct].T, _both_ways(points0, points1, homography, image_sizes)
    ):
        counts = points_inside(project(matrix, points), image_size)
        shares.append(counts[matched].sum() / max(1, counts.sum()))
    return float(np.mean(shares))


def _both_ways(keypoints0: Any, keypoints1: Any, homography: Any, image_sizes: Sequence[tuple[int, int]]) -> Any:
    """Yield for each image its points, those of the other, the way there, and the (height, width) there."""
    points0, points1 = (_numpy(points).reshape(-1, 2) for points in (keypoints0, keypoints1))
    matrix = _numpy(homography)
    yield points0, points1, matrix, image_sizes[1]
    yield points1, points0, np.linalg.inv(matrix), image_sizes[0]


def _close(points: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    distance: np.ndarray = np.linalg.norm(points - others, axis=1)
    return distance < threshold


# ---------------------------------------------------------------------------------------------------------------------
# Robust geometry


def estimators() -> list[str]:
    """Return the names of the robust estimators that are installed: "poselib" always, and "magsac" with OpenCV.

    Raises:
        ImportError: PoseLib is not installed.
    """
    import_optional("poselib", "eval")
    return ["poselib", "magsac"] if find_spec("cv2") else ["poselib"]


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
        cv2 = import_optional("cv2", "eval")
        return _fit(cv2.findFundamentalMat, 8, points0, points1, cv2.USAC_MAGSAC, threshold, 0.9999, 10_000)
    if estimator == "poselib":
        poselib = import_optional("poselib", "eval")
        return _fit(poselib.estimate_fundamental, 8, points0, points1, {"max_epipolar_error": threshold})
    raise ValueError(f'estimator must be "poselib" or "magsac", but is {estimator!r}.')


def estimate_homography(
    keypoints0: Any, keypoints1: Any, threshold: float = 3.0, estimator: str = "poselib"
) -> tuple[np.ndarray | None, np.ndarray]:
    """Fit a homography to matches with outliers.

    Args:
        keypoints0: `(m, 2)`, pixels of the first image.
        keypoints1: `(m, 2)`, pixels of the second image, in the order of `keypoints0`.
        threshold: largest distance, in pixels, between a point and where the matrix takes its partner, of an inlier.
        estimator: see `estimate_fundamental`.

    Returns:
        The matrix `(3, 3)`, which takes points of the first image to the second, or None where none was found;
        inliers `(m,)`, bool.

    Raises:
        ImportError: the package of the estimator is not installed; the message says how to install it.
        ValueError: an unknown estimator, or lists of different lengths.
    """
    points0, points1 = _pair(keypoints0, keypoints1)
    if estimator == "magsac":
        cv2 = import_optional("cv2", "eval")
        options: Any = {"maxIters": 10_000, "confidence": 0.9999}
        return _fit(cv2.findHomography, 4, points0, points1, cv2.USAC_MAGSAC, threshold, **options)
    if estimator == "poselib":
        poselib = import_optional("poselib", "eval")
        return _fit(poselib.estimate_homography, 4, points0, points1, {"max_reproj_error": threshold})
    raise ValueError(f'estimator must be "poselib" or "magsac", but is {estimator!r}.')


def estimate_relative_pose(
    keypoints0: Any, keypoints1: Any, K0: Any, K1: Any, threshold: float = 2.0, estimator: str = "poselib"
) -> tuple[np.ndarray | None, np.ndarray]:
    """Find how the second camera stands to the first, from matches with outliers.

    Args:
        keypoints0: `(m, 2)`, pixels of the first image.
        keypoints1: `(m, 2)`, pixels of the second image, in the order of `keypoints0`.
        K0: `(3, 3)`, intrinsics of the first camera, for the pixels of `keypoints0`.
        K1: `(3, 3)`, intrinsics of the second camera.
        threshold: largest epipolar distance of an inlier, in pixels at the mean focal length.
        estimator: "poselib" (LO-RANSAC and refinement, PoseLib) or "magsac" (MAGSAC++ essential matrix, OpenCV).

    Returns:
        `(4, 4)`, takes points in the coordinates of the first camera to those of the second, with a translation of
        length 1, or None where no pose was found; inliers `(m,)`, bool.

    Raises:
        ImportError: the package of the estimator is not installed; the message says how to install it.
        ValueError: an unknown estimator, or lists of different lengths.
    """
    points0, points1 = _pair(keypoints0, keypoints1)
    K0, K1 = _numpy(K0), _numpy(K1)
    focal = float(np.mean([K0[0, 0], K0[1, 1], K1[0, 0], K1[1, 1]]))
    rays0, rays1 = (project(np.linalg.inv(K), points) for K, points in ((K0, points0), (K1, points1)))
    if estimator == "magsac":
        return _fit(_opencv_pose, 5, rays0, rays1, threshold / focal, shape=(3, 4))
    if estimator == "poselib":
        return _fit(_poselib_pose, 5, rays0 * focal, rays1 * focal, focal, threshold, shape=(3, 4))
    raise ValueError(f'estimator must be "poselib" or "magsac", but is {estimator!r}.')


def _poselib_pose(points0: np.ndarray, points1: np.ndarray, focal: float, threshold: float) -> Any:
    poselib = import_optional("poselib", "eval")
    camera = {"model": "SIMPLE_PINHOLE", "width": 0, "height": 0, "params": [focal, 0, 0]}
    pose, info = poselib.estimate_relative_pose(points0, points1, camera, camera, {"max_epipolar_error": threshold})
    return (pose.Rt, info) if info["num_inliers"] else (None, None)


def _opencv_pose(rays0: np.ndarray, rays1: np.ndarray, threshold: float) -> Any:
    cv2 = import_optional("cv2", "eval")
    options = {"method": cv2.USAC_MAGSAC, "prob": 0.9999, "threshold": threshold, "maxIters": 10_000}
    essential, inliers = cv2.findEssentialMat(rays0, rays1, np.eye(3), **options)
    if essential is None or essential.shape != (3, 3):
        return None, None
    everywhere = 1e9  # points count however far away they are
    mask = inliers.copy()  # recoverPose also takes out of it what is behind a camera
    _, rotation, translation, *_ = cv2.recoverPose(essential, rays0, rays1, np.eye(3), everywhere, mask=mask)
    return np.hstack([rotation, translation]), inliers


def _fit(
    estimate: Any,
    minimum: int,
    points0: np.ndarray,
    points1: np.ndarray,
    *args: Any,
    shape: tuple[int, int] = (3, 3),
    **kwargs: Any,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Call an estimator of either package, and tell a model from none; a pose `(3, 4)` becomes `(4, 4)`."""
    nothing = None, np.zeros(len(points0), dtype=bool)
    if len(points0) < minimum:
        return nothing
    model, inliers = estimate(points0, points1, *args, **kwargs)
    inliers = inliers["inliers"] if isinstance(inliers, dict) else inliers
    if model is None or inliers is None or model.shape != shape or not np.isfinite(model).all() or not model.any():
        return nothing
    if shape == (3, 4):
        model = np.vstack([model, [0, 0, 0, 1]])
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
    error = float(np.linalg.norm(project(homography, corners) - project(truth, corners), axis=1).mean())
    return error if np.isfinite(error) else float("inf")


def relative_pose_error(pose: Any, truth: Any) -> float:
    """Return the larger of the angles by which rotation and direction of translation are wrong, in degrees.

    Args:
        pose: `(4, 4)`, or None where none was found: infinitely wrong.
        truth: `(4, 4)`. The sign of the translation is not judged, and its direction only if it has one.

    Source: the evaluation of SuperGlue (Sarlin et al., CVPR 2020).
    """
    if pose is None:
        return float("inf")
    pose, truth = _numpy(pose), _numpy(truth)
    chord = np.linalg.norm(pose[:3, :3] - truth[:3, :3]) / np.sqrt(8)
    rotation = 2 * np.arcsin(min(1.0, chord))
    found, expected = pose[:3, 3], truth[:3, 3]
    direction = np.arctan2(np.linalg.norm(np.cross(found, expected)), abs(found @ expected))
    return float(np.degrees(max(rotation, direction)))


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


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=float)


def _pair(keypoints0: Any, keypoints1: Any) -> tuple[np.ndarray, np.ndarray]:
    points0, points1 = (_numpy(points).reshape(-1, 2) for points in (keypoints0, keypoints1))
    if len(points0) != len(points1):
        raise ValueError(f"{len(points0)} keypoints do not match {len(points1)}.")
    return points0, points1


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)
