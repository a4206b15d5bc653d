"""The teacher, and what the detector learns from it."""

import pytest
import torch

from lightglue_hf.data.homographies import sample_pairs
from lightglue_hf.data.textures import render_textures
from lightglue_hf.detectors.configuration_superpoint import CELL
from lightglue_hf.training import corner_response, detector_labels, strongest_corners
from lightglue_hf.training.labels import cell_labels


@pytest.fixture(scope="module")
def pairs():
    textures = torch.from_numpy(render_textures(4, 192, 256, 0))
    return sample_pairs(textures, range(4), 96, 128, multi_plane=0.5)


def squares(height=64, width=96):
    """A white rectangle with corners at (20, 16), (59, 16), (20, 43) and (59, 43)."""
    image = torch.zeros(1, height, width)
    image[:, 16:44, 20:60] = 1
    return image


def test_corners_are_found_and_edges_are_not():
    points, responses = strongest_corners(squares(), 8)
    assert (responses > 0).sum() == 4
    corners = torch.tensor([[20.0, 16], [59, 16], [20, 43], [59, 43]])
    assert torch.cdist(points[0, :4], corners).amin(1).max() < 2
    response = corner_response(squares())
    assert response[0, 30, 20] < 1e-3 * response.max(), "the middle of an edge"


def test_beyond_the_last_whole_cell_there_are_no_labels():
    """Of 21 x 19 pixels two rows and two columns of cells are whole: 16 x 16."""
    positions = torch.tensor([[[3.0, 15.4], [3.0, 15.6], [18.0, 3.0], [15.0, 3.0]]])
    strength = torch.tensor([0.1, 0.9, 0.9, 0.1])
    some, none = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    objectness, location = cell_labels(positions, some, some, strength, 21, 19)
    assert objectness.tolist() == [[[0, 1], [1, 0]]]
    torch.testing.assert_close(location[objectness == 1], torch.tensor([[7.0, 3.0], [3.0, 7.4]]))
    objectness, _ = cell_labels(positions[:, 1:3], none[:2], some[:2], strength[:2], 21, 19)
    assert not objectness.any()


def test_labels_are_at_the_same_points_of_both_views(pairs):
    labels = detector_labels(pairs, torch.Generator().manual_seed(0))
    objectness, location = labels["objectness"], labels["location"]
    assert objectness.shape == (8, 12, 16)
    assert set(objectness.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(objectness == 1, ~location.isnan().any(-1))
    inside = location[objectness == 1]
    assert inside.min() >= -0.5
    assert inside.max() < CELL - 0.5
    points, mask = labels["correspondences"], labels["correspondence_mask"]
    assert 20 < mask.sum(1).min()
    homographies = pairs.homographies
    start = torch.cat([points[:, :, 0], torch.ones_like(points[:, :, :1, 0])], -1)
    landed = torch.einsum("blij,bnj->blni", homographies, start)
    landed = landed[..., :2] / landed[..., 2:]
    error = (landed - points[:, None, :, 1]).norm(dim=-1).amin(1)  # on one of the layers
    assert error[mask].max() < 1e-2
