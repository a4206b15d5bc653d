"""A plane is found where it is, and not where it is not."""

import numpy as np
import pytest
import torch

from lightglue_hf.evaluation.metrics import project
from lightglue_hf.video import PlaneFinder
from lightglue_hf.video.planes import shows_front

from .conftest import HEIGHT, WIDTH, ByDescriptor, Wall

pytest.importorskip("poselib")


def seen(wall, homography, visible=None, noise=0.0):
    """The features of a frame that shows the wall by a homography."""
    places = project(homography, wall.places) + noise * wall.rng.normal(size=wall.places.shape)
    features, _ = wall.features(visible=visible)
    features, numbers = wall.features(visible=visible)
    features.keypoints = torch.from_numpy(places[numbers].astype(np.float32))
    return features


HOMOGRAPHY = np.array([[0.6, -0.2, 150.0], [0.15, 0.55, 60.0], [1e-4, 2e-4, 1.0]])


def test_it_is_where_the_points_are(wall):
    finder = PlaneFinder(ByDescriptor(), wall.features()[0])
    sighting = finder.find(seen(wall, HOMOGRAPHY, noise=0.3))
    assert sighting.answer == "yes"
    assert sighting.matches == len(wall.places)
    assert sighting.inliers > 0.9 * sighting.matches
    corners = np.array([(-0.5, -0.5), (WIDTH - 0.5, -0.5), (WIDTH - 0.5, HEIGHT - 0.5), (-0.5, HEIGHT - 0.5)])
    np.testing.assert_allclose(sighting.outline, project(HOMOGRAPHY, corners), atol=3)
    np.testing.assert_allclose(project(sighting.homography, corners), sighting.outline, atol=1e-6)


def test_half_of_it_is_enough(wall):
    finder = PlaneFinder(ByDescriptor(), wall.features()[0])
    sighting = finder.find(seen(wall, HOMOGRAPHY, visible=wall.places[:, 0] < WIDTH / 2))
    assert sighting.answer == "yes"


def test_a_few_points_are_too_few(wall):
    finder = PlaneFinder(ByDescriptor(), wall.features()[0])
    sighting = finder.find(seen(wall, HOMOGRAPHY, visible=np.arange(len(wall.places)) < 7))
    assert (sighting.answer, sighting.outline, sighting.homography) == ("too few", None, None)
    assert sighting.matches == 7
    nothing = finder.find(seen(wall, HOMOGRAPHY, visible=np.zeros(len(wall.places), bool)))
    assert (nothing.answer, nothing.matches) == ("too few", 0)


def test_points_at_random_are_no_plane(wall):
    finder = PlaneFinder(ByDescriptor(), wall.features()[0])
    other = Wall(seed=5)  # the same descriptions elsewhere
    sighting = finder.find(other.features()[0])
    assert sighting.answer != "yes"
    assert sighting.outline is None


def test_its_mirror_image_is_none(wall):
    finder = PlaneFinder(ByDescriptor(), wall.features()[0])
    sighting = finder.find(seen(wall, np.array([[-1.0, 0, WIDTH], [0, 1, 0], [0, 0, 1]])))
    assert (sighting.answer, sighting.outline) == ("no", None)


def test_fronts():
    square = np.array([(0.0, 0), (100, 0), (100, 80), (0, 80)])

    def front(matrix):
        matrix = np.array(matrix, float)
        return shows_front(matrix, square, project(matrix, square))

    assert front(np.eye(3))
    assert front(-np.eye(3))
    assert front(HOMOGRAPHY)
    assert not front(np.diag([-1, 1, 1]))  # mirrored
    assert not front(np.diag([0.01, 1, 1]))  # seen from its edge
    assert not front([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1]])  # behind the camera in part


def test_a_template_without_keypoints_is_refused(wall):
    with pytest.raises(ValueError, match="no keypoints"):
        PlaneFinder(ByDescriptor(), wall.features(visible=np.zeros(len(wall.places), bool))[0])
