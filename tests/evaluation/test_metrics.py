"""Metrics on synthetic geometry whose answers are known."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightglue_hf.evaluation import (
    Precision,
    accuracy,
    area_under_curve,
    corner_error,
    epipolar_precision,
    estimate_fundamental,
    estimate_homography,
    estimate_relative_pose,
    estimators,
    match_precision,
    matching_score,
    project,
    relative_pose_error,
    repeatability,
    reprojection_precision,
    symmetric_epipolar_distance,
)

ESTIMATORS = [
    pytest.param("poselib", marks=pytest.mark.skipif(not find_spec("poselib"), reason="no poselib")),
    pytest.param("magsac", marks=pytest.mark.skipif(not find_spec("cv2"), reason="no OpenCV")),
]
K = np.array([[500.0, 0, 320], [0, 510.0, 240], [0, 0, 1]])


def two_views(count, seed=0):
    """Points of a random cloud in two cameras: pixels, pixels, (4, 4) transform from the first to the second."""
    generator = np.random.default_rng(seed)
    angle = 0.2
    transform = np.eye(4)
    transform[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    transform[:3, 3] = (-0.7, 0.1, 0.2)
    cloud = generator.uniform((-2, -1.5, 4), (2, 1.5, 8), (count, 3))
    views = [cloud @ K.T, (cloud @ transform[:3, :3].T + transform[:3, 3]) @ K.T]
    return *(view[:, :2] / view[:, 2:] for view in views), transform


def apply(homography, points):
    projected = np.c_[points, np.ones(len(points))] @ np.asarray(homography).T
    return projected[:, :2] / projected[:, 2:]


# -- precision by disparity -------------------------------------------------------------------------------------------


def test_match_precision_judges_what_is_known():
    disparity = np.full((10, 20), 4.0)
    disparity[0] = np.nan
    disparity[1] = np.inf
    left = np.array([[9, 5], [9, 5], [9, 5], [9, 0], [9, 1]], float)
    right = np.array([[5, 5], [5, 7.9], [13, 5], [5, 0], [5, 1]], float)  # exact, 2.9 px off, wrong sign, two unknown
    result = match_precision(left, right, disparity)
    assert result == Precision(correct=2, judged=3, total=5)
    assert result.precision == 2 / 3


def test_match_precision_threshold_is_strict():
    disparity = np.zeros((4, 4))
    assert match_precision([[1, 1]], [[1, 3]], disparity, threshold=2).correct == 0
    assert match_precision([[1, 1]], [[1, 3]], disparity, threshold=2.001).correct == 1


def test_match_precision_reads_the_nearest_pixel():
    disparity = np.array([[0.0, 8.0]])
    assert match_precision([[0.4, 0], [0.6, 0]], [[0.4, 0], [-7.4, 0]], disparity, threshold=0.1).correct == 2


def test_match_precision_of_points_on_the_rim_and_of_none():
    disparity = np.zeros((4, 6))
    assert match_precision([[5.5, 3.5], [-0.5, -0.5]], [[5.5, 3.5], [-0.5, -0.5]], disparity) == (2, 2, 2)
    assert match_precision(torch.zeros(0, 2), torch.zeros(0, 2), disparity).precision == 0


def test_match_precision_takes_tensors():
    points = torch.tensor([[3.0, 2.0]], requires_grad=True)
    assert match_precision(points, points, torch.zeros(4, 6)) == (1, 1, 1)


def test_match_precision_rejects_other_shapes():
    with pytest.raises(ValueError, match="2 keypoints do not match 1"):
        match_precision(np.zeros((2, 2)), np.zeros((1, 2)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        match_precision(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((4, 4, 1)))


def test_the_stereo_pair_agrees_with_its_disparity():
    """Left points minus disparity show the same grey values in the right image; plus disparity they do not."""
    data = pytest.importorskip("skimage.data")
    left, right, disparity = data.stereo_motorcycle()
    rows, columns = np.nonzero(np.isfinite(disparity))
    keep = np.random.default_rng(0).choice(len(rows), 5000, replace=False)
    points = np.stack([columns[keep], rows[keep]], axis=1).astype(float)
    shift = disparity[rows[keep], columns[keep]]
    truth = points - np.c_[shift, np.zeros_like(shift)]
    assert match_precision(points, truth, disparity) == (5000, 5000, 5000)

    def difference(target):
        x = np.rint(target[:, 0]).astype(int)
        inside = (x >= 0) & (x < right.shape[1])
        y = points[inside, 1].astype(int)
        return np.abs(left.mean(axis=2)[y, points[inside, 0].astype(int)] - right.mean(axis=2)[y, x[inside]]).mean()

    assert difference(truth) < 0.3 * difference(points + np.c_[shift, np.zeros_like(shift)])


# -- precision by epipolar distance -----------------------------------------------------------------------------------


def test_true_matches_lie_on_their_epipolar_lines():
    points0, points1, transform = two_views(50)
    assert symmetric_epipolar_distance(points0, points1, K, K, transform).max() < 1e-20
    assert epipolar_precision(points0, points1, K, K, transform) == (50, 50, 50)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 200), st.sampled_from([-1, 1]))
def test_distance_of_a_sideways_camera_is_the_row_difference(offset, sign):
    """For a camera moved along x the lines are rows, so both distances are |dy| / focal length."""
    transform = np.eye(4)
    transform[0, 3] = -1
    point0 = np.array([[300.0, 200.0]])
    point1 = np.array([[260.0, 200 + sign * offset]])
    distance = symmetric_epipolar_distance(point0, point1, K, K, transform)
    assert distance == pytest.approx(2 * (offset / 510) ** 2, rel=1e-9)
    assert epipolar_precision(point0, point1, K, K, transform).correct == (2 * (offset / 510) ** 2 < 5e-4)


def test_distance_is_symmetric_and_blind_to_the_length_of_the_translation():
    points0, points1, transform = two_views(20)
    points1 = points1 + np.random.default_rng(1).normal(0, 5, points1.shape)
    distance = symmetric_epipolar_distance(points0, points1, K, K, transform)
    back = symmetric_epipolar_distance(points1, points0, K, K, np.linalg.inv(transform))
    farther = transform.copy()
    farther[:3, 3] *= 7
    np.testing.assert_allclose(back, distance)
    np.testing.assert_allclose(symmetric_epipolar_distance(points0, points1, K, K, farther), distance)


def test_epipolar_precision_of_no_matches():
    assert epipolar_precision(np.zeros((0, 2)), np.zeros((0, 2)), K, K, np.eye(4)).precision == 0


# -- precision, repeatability and matching score by homography --------------------------------------------------------


def homographies(size=100.0):
    """Perspective maps of a square of about this size, far from singular."""
    moves = st.lists(st.floats(-0.2, 0.2), min_size=8, max_size=8)

    def through(moves):
        square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size
        target = square + np.reshape(moves, (4, 2)) * size
        rows = [
            row
            for (x, y), (u, v) in zip(square, target)
            for row in ([x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y])
        ]
        return np.append(np.linalg.solve(np.array(rows), target.ravel()), 1).reshape(3, 3)

    return moves.map(through)


def test_project():
    np.testing.assert_allclose(project([[2, 0, 1], [0, 3, 0], [0, 0, 2]], [[1, 2], [3, 4]]), [[1.5, 3], [3.5, 6]])
    assert not np.isfinite(project([[1, 0, 0], [0, 1, 0], [1, 0, 0]], [[0, 1]])).any()
    assert project(np.eye(3), np.zeros((0, 2))).shape == (0, 2)


def test_reprojection_precision():
    shift = np.array([[1, 0, 10], [0, 1, 0], [0, 0, 1.0]])
    points0 = np.zeros((3, 2))
    points1 = np.array([[10, 0], [10, 2.9], [10, 3]])
    result = reprojection_precision(points0, points1, shift)
    assert result == Precision(correct=2, judged=3, total=3)
    assert reprojection_precision(points1, points0, np.linalg.inv(shift)).correct == 2
    assert reprojection_precision(points0[:0], points1[:0], shift).precision == 0


def test_repeatability_by_hand():
    shift = np.array([[1, 0, 10], [0, 1, 0], [0, 0, 1.0]])
    sizes = [(50, 100), (50, 100)]
    # of the first image: found again 1 px off, not found again, and taken out of the second image
    points0 = np.array([[20, 20], [40, 40], [95, 10]])
    # of the second: found, taken out of the first image
    points1 = np.array([[30, 21], [5, 5]])
    assert repeatability(points0, points1, shift, sizes) == (1 + 1) / (2 + 1)
    assert repeatability(points0, points1, shift, sizes, threshold=1) == 2 / 3  # the threshold itself counts
    assert repeatability(points0, points1, shift, sizes, threshold=0.9) == 0
    assert repeatability(points0, points1, shift, [(50, 100), (50, 200)]) == 2 / 4  # more of the second is seen
    assert repeatability(points0[2:], points1[1:], shift, sizes) == 0  # none counts
    assert repeatability(points0[:0], points1[:0], shift, sizes) == 0
    assert repeatability(points0[:2], points1[:0], shift, sizes) == 0


@settings(deadline=None, max_examples=50)
@given(homographies(), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32 - 1), st.floats(0.5, 20))
def test_repeatability_and_matching_score_by_brute_force(matrix, count0, count1, seed, threshold):
    generator = np.random.default_rng(seed)
    sizes = [(100, 90), (80, 110)]
    points0, points1 = generator.uniform(0, 100, (count0, 2)), generator.uniform(0, 100, (count1, 2))
    matches = np.array([[i, i] for i in range(min(count0, count1))], dtype=int).reshape(-1, 2)
    points1[: len(matches) // 2] = apply(matrix, points0[: len(matches) // 2])

    counted = [0, 0]
    repeated = [0, 0]
    correct = [0, 0]
    ways = ((points0, points1, matrix), (points1, points0, np.linalg.inv(matrix)))
    for way, (points, others, there) in enumerate(ways):
        height, width = sizes[1 - way]
        for index, point in enumerate(points):
            x, y = apply(there, point[None])[0]
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                continue
            counted[way] += 1
            repeated[way] += any(np.hypot(*(other - (x, y))) <= threshold for other in others)
            if index < len(matches):
                correct[way] += np.hypot(*(apply(matrix, points0[index][None])[0] - points1[index])) < threshold
    expected = sum(repeated) / sum(counted) if sum(counted) else 0
    assert repeatability(points0, points1, matrix, sizes, threshold) == pytest.approx(expected)
    score = np.mean([share / max(1, count) for share, count in zip(correct, counted)])
    assert matching_score(points0, points1, matches, matrix, sizes, threshold) == pytest.approx(score)


def test_matching_score_by_hand():
    sizes = [(50, 100), (50, 100)]
    shift = np.array([[1, 0, 10], [0, 1, 0], [0, 0, 1.0]])
    points0 = np.array([[20, 20], [40, 40], [60, 10], [95, 10]])  # the last is taken out of the second image
    points1 = np.array([[30, 21], [50, 30]])
    matches = np.array([[0, 0], [1, 1]])  # 1 px off, 10 px off
    assert matching_score(points0, points1, matches, shift, sizes) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert matching_score(points0, points1, matches[:0], shift, sizes) == 0
    assert matching_score(points0, points0, np.c_[range(4), range(4)], np.eye(3), sizes) == 1


# -- robust geometry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimate_fundamental_finds_the_inliers(estimator):
    points0, points1, _ = two_views(200)
    points1[:60] = np.random.default_rng(1).uniform(0, (640, 480), (60, 2))
    matrix, inliers = estimate_fundamental(torch.tensor(points0), torch.tensor(points1), estimator=estimator)
    assert inliers.dtype == bool
    assert inliers.shape == (200,)
    assert inliers[60:].mean() > 0.97
    assert inliers[:60].mean() < 0.15
    lines = np.c_[points0, np.ones(200)] @ matrix.T
    distance = np.abs((np.c_[points1, np.ones(200)] * lines).sum(axis=1)) / np.linalg.norm(lines[:, :2], axis=1)
    assert np.median(distance[60:]) < 0.05


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimate_homography_finds_the_inliers(estimator):
    truth = np.array([[1.1, 0.1, 12], [-0.05, 0.95, 30], [1e-4, -2e-4, 1]])
    points0 = np.random.default_rng(0).uniform(0, (640, 480), (120, 2))
    points1 = apply(truth, points0)
    points1[:50] += 80
    matrix, inliers = estimate_homography(points0, points1, estimator=estimator)
    np.testing.assert_array_equal(inliers, np.arange(120) >= 50)
    assert corner_error(matrix, truth, (480, 640)) < 0.05


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("estimate", [estimate_fundamental, estimate_homography])
def test_estimators_find_nothing_in_too_few_matches(estimate, estimator):
    for count in (0, 1, 3):
        points = np.random.default_rng(0).uniform(0, 100, (count, 2))
        matrix, inliers = estimate(points, points, estimator=estimator)
        assert matrix is None
        assert inliers.shape == (count,)
        assert not inliers.any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("estimate", [estimate_fundamental, estimate_homography])
def test_estimators_survive_one_point_many_times(estimate, estimator):
    points = np.full((20, 2), 7.0)
    _, inliers = estimate(points, points, estimator=estimator)
    assert inliers.shape == (20,)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="'ransac'"):
        estimate_fundamental(np.zeros((9, 2)), np.zeros((9, 2)), estimator="ransac")
    with pytest.raises(ValueError, match="'ransac'"):
        estimate_homography(np.zeros((9, 2)), np.zeros((9, 2)), estimator="ransac")
    with pytest.raises(ValueError, match="'ransac'"):
        estimate_relative_pose(np.zeros((9, 2)), np.zeros((9, 2)), K, K, estimator="ransac")


@pytest.mark.parametrize(("estimator", "module"), [("poselib", "poselib"), ("magsac", "cv2")])
def test_a_missing_package_says_what_to_install(monkeypatch, estimator, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} is not installed: install lightglue-hf\[eval\]"):
        estimate_fundamental(np.zeros((9, 2)), np.zeros((9, 2)), estimator=estimator)
    with pytest.raises(ImportError, match=rf"{module} is not installed: install lightglue-hf\[eval\]"):
        estimate_relative_pose(np.zeros((9, 2)), np.zeros((9, 2)), K, K, estimator=estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("outliers", [0, 60])
def test_estimate_relative_pose_is_exact(estimator, outliers):
    """Intrinsics differ between the cameras and have a skew, which either estimator must undo."""
    points0, points1, transform = two_views(200)
    K1 = np.array([[800.0, 3, 300], [0, 790, 260], [0, 0, 1]])
    points1 = project(K1 @ np.linalg.inv(K), points1)
    points1[:outliers] = np.random.default_rng(1).uniform(0, (640, 480), (outliers, 2))
    pose, inliers = estimate_relative_pose(torch.tensor(points0), points1, K, K1, estimator=estimator)
    assert pose.shape == (4, 4)
    assert inliers.shape == (200,)
    assert inliers[outliers:].mean() > 0.97
    assert inliers[:outliers].sum() <= 0.2 * outliers
    assert relative_pose_error(pose, transform) < (0.001 if outliers == 0 else 0.5)
    np.testing.assert_allclose(pose[:3, 3] @ transform[:3, 3], np.linalg.norm(transform[:3, 3]), rtol=1e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_estimate_relative_pose_finds_nothing_in_too_few_matches(estimator, count):
    points = np.random.default_rng(0).uniform(0, 100, (count, 2))
    pose, inliers = estimate_relative_pose(points, points, K, K, estimator=estimator)
    assert pose is None
    assert inliers.shape == (count,)
    assert not inliers.any()


def test_estimate_relative_pose_without_inliers_finds_nothing():
    pytest.importorskip("poselib")
    points0, points1 = np.random.default_rng(0).uniform(0, 600, (2, 20, 2))
    pose, inliers = estimate_relative_pose(points0, points1, K, K, threshold=0)
    assert pose is None
    assert not inliers.any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimate_relative_pose_survives_one_point_many_times(estimator):
    points = np.full((20, 2), 7.0)
    _, inliers = estimate_relative_pose(points, points, K, K, estimator=estimator)
    assert inliers.shape == (20,)


def test_estimators_are_those_installed(monkeypatch):
    pytest.importorskip("poselib")
    assert estimators() == (["poselib", "magsac"] if find_spec("cv2") else ["poselib"])
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert estimators() == ["poselib"]
    monkeypatch.setitem(sys.modules, "poselib", None)
    with pytest.raises(ImportError, match=r"install lightglue-hf\[eval\]"):
        estimators()


# -- pose error -------------------------------------------------------------------------------------------------------


def rotation(axis, degrees):
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def pose(R, t):
    return np.vstack([np.c_[R, t], [0, 0, 0, 1]])


axes = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 0.1)


@settings(deadline=None)
@given(axes, axes, st.floats(0, 180), st.floats(0, 90), st.floats(0.1, 10), st.sampled_from([-1, 1]))
def test_relative_pose_error_is_the_larger_angle(axis, direction, turn, tilt, length, sign):
    truth = pose(rotation(direction, 33), direction)
    beside = np.cross(direction, (0.3, 0.5, 0.8))
    found = pose(rotation(axis, turn) @ truth[:3, :3], sign * length * rotation(beside, tilt) @ direction)
    if np.linalg.norm(beside) > 1e-2:
        assert relative_pose_error(found, truth) == pytest.approx(max(turn, tilt), abs=1e-5)


def test_relative_pose_error_of_the_truth_of_no_pose_and_of_no_translation():
    truth = pose(rotation((1, 2, 3), 40), (0, 0, 2))
    assert relative_pose_error(truth, truth) == 0
    assert relative_pose_error(None, truth) == float("inf")
    still = pose(np.eye(3), (0, 0, 0))
    assert relative_pose_error(pose(rotation((0, 1, 0), 5), (1, 0, 0)), still) == pytest.approx(5)


# -- homography accuracy and area under the curve ---------------------------------------------------------------------


def test_corner_error():
    shift = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]])
    assert corner_error(np.eye(3), np.eye(3), (480, 640)) == 0
    assert corner_error(-2 * shift, np.eye(3), (480, 640)) == pytest.approx(5)
    # Twice as large about the first pixel: corners of a (height, width) = (4, 7) image move by 0, 6, |(6, 3)| and 3.
    assert corner_error(np.diag([2, 2, 1]), np.eye(3), (4, 7)) == pytest.approx((6 + 45**0.5 + 3) / 4)
    assert corner_error(None, np.eye(3), (4, 7)) == float("inf")
    assert corner_error(np.diag([1.0, 1, 0]), np.eye(3), (4, 7)) == float("inf")


def test_accuracy():
    assert accuracy([0.5, 1, 2, float("inf")], [1, 3]) == [0.5, 0.75]
    assert accuracy([], [1, 3]) == [0, 0]


def test_area_under_curve_by_hand():
    assert area_under_curve([0, 0, 0], [5]) == [1]
    assert area_under_curve([9, float("inf")], [5]) == [0]
    assert area_under_curve([], [5, 10]) == [0, 0]
    # Straight from (0, 0) to (2, 1/2), then level to 4: (1/2 + 1) / 4.
    assert area_under_curve([2, 7], [4]) == [pytest.approx(0.375)]


@settings(deadline=None)
@given(st.lists(st.floats(0, 30), max_size=20), st.lists(st.floats(0, 30), max_size=20))
def test_area_under_curve_is_bounded_ordered_and_falls_with_the_error(errors, offsets):
    first, second = area_under_curve(errors, [5, 10])
    assert 0 <= first <= 1
    worse = [error + offset for error, offset in zip(errors, offsets)]
    kept = errors[: len(worse)]
    assert all(b <= a + 1e-12 for a, b in zip(area_under_curve(kept, [5, 10]), area_under_curve(worse, [5, 10])))
    assert 0 <= second <= 1
    assert area_under_curve(sorted(errors, reverse=True), [5, 10]) == [first, second]
