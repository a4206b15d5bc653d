"""Projections and true matches against brute force."""

from __future__ import annotations

import math

import numpy as np
import torch

from lightglue_hf.data.ground_truth import ground_truth_matches, project_points
from lightglue_hf.data.homographies import PlanarPairs
from lightglue_hf.data.worlds import OUTSIDE

from .planar import HEIGHT, WIDTH, lattice


def test_projection_and_back(pairs: PlanarPairs) -> None:
    points = lattice(16).float()
    there, visible = project_points(points, pairs.homographies, pairs.layers[:, 0], pairs.layers[:, 1])
    assert torch.isfinite(there).all()
    inverse = torch.linalg.inv(pairs.homographies.double())
    back, again = project_points(there.double(), inverse, pairs.layers[:, 1], pairs.layers[:, 0])
    assert visible.any()
    assert (back - points).norm(dim=-1)[visible].max() < 1e-3
    assert again[visible].float().mean() > 0.999


def test_visibility_against_brute_force(pairs: PlanarPairs) -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform([-4, -4], [WIDTH + 3, HEIGHT + 3], (16, 60, 2)))
    projected, visible = project_points(points, pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1])
    for item in range(16):
        for index in range(60):
            place, seen = brute_projection(
                points[item, index].numpy(), pairs.homographies[item].double().numpy(), *pairs.layers[item].numpy()
            )
            assert bool(visible[item, index]) == seen
            if seen:
                assert np.allclose(projected[item, index].numpy(), place, atol=1e-6)
    assert 0.1 < visible.float().mean() < 0.9


def brute_projection(
    point: np.ndarray, matrices: np.ndarray, layers0: np.ndarray, layers1: np.ndarray
) -> tuple[np.ndarray | None, bool]:
    column, row = math.floor(point[0] + 0.5), math.floor(point[1] + 0.5)
    if not (0 <= column < layers0.shape[1] and 0 <= row < layers0.shape[0]):
        return None, False
    layer = layers0[row, column]
    if layer == OUTSIDE:
        return None, False
    moved = matrices[layer] @ [*point, 1]
    if moved[2] <= 1e-6:
        return None, False
    place = moved[:2] / moved[2]
    column, row = math.floor(place[0] + 0.5), math.floor(place[1] + 0.5)
    if not (0 <= column < layers1.shape[1] and 0 <= row < layers1.shape[0]):
        return None, False
    return place, bool(layers1[row, column] == layer)


def brute_labels(keypoints: np.ndarray, mask: np.ndarray, matrices: np.ndarray, layers: np.ndarray) -> np.ndarray:
    count = keypoints.shape[1]
    inverses = np.linalg.inv(matrices)
    places = [
        [brute_projection(p, matrices, layers[0], layers[1]) for p in keypoints[0]],
        [brute_projection(p, inverses, layers[1], layers[0]) for p in keypoints[1]],
    ]
    cost = np.full((count, count), np.inf)
    single = [np.full((count, count), np.inf), np.full((count, count), np.inf)]
    for i in range(count):
        for j in range(count):
            if not (mask[0, i] and mask[1, j]):
                continue
            if places[0][i][1]:
                single[0][i, j] = np.linalg.norm(places[0][i][0] - keypoints[1, j])
            if places[1][j][1]:
                single[1][j, i] = np.linalg.norm(places[1][j][0] - keypoints[0, i])
            cost[i, j] = max(single[0][i, j], single[1][j, i])
    labels = np.full((2, count), -2)
    for view in range(2):
        own, other = layers[view], layers[1 - view]
        for i in range(count):
            column, row = math.floor(keypoints[view, i, 0] + 0.5), math.floor(keypoints[view, i, 1] + 0.5)
            if not mask[view, i] or own[row, column] == OUTSIDE:
                continue
            possible = False
            around = set(own[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].ravel().tolist()) - {OUTSIDE}
            for layer in {min(around), max(around), own[row, column]}:
                moved = (matrices, inverses)[view][layer] @ [*keypoints[view, i], 1]
                if moved[2] <= 1e-6:
                    continue
                place = moved[:2] / moved[2]
                x, y = math.floor(place[0] + 0.5), math.floor(place[1] + 0.5)
                if not (0 <= x < other.shape[1] and 0 <= y < other.shape[0]):
                    continue
                if layer not in other[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]:
                    continue
                distances = np.linalg.norm(keypoints[1 - view] - place, axis=1)[mask[1 - view]]
                possible = possible or distances.min() <= 5
            if not possible:
                labels[view, i] = -1
    for i in range(count):
        j = int(cost[i].argmin())
        if cost[i, j] < 3 and int(cost[:, j].argmin()) == i:
            labels[0, i], labels[1, j] = j, i
    return labels


def test_labels_against_brute_force(pairs: PlanarPairs) -> None:
    rng = np.random.default_rng(7)
    count = 60
    keypoints = torch.from_numpy(rng.uniform([0, 0], [WIDTH - 1, HEIGHT - 1], (16, 2, count, 2)))
    # Half of the keypoints of image 1 are true projections, some of them a little or much off.
    projected, visible = project_points(
        keypoints[:, 0], pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1]
    )
    noise = torch.from_numpy(rng.standard_normal((16, count, 2)) * rng.choice([0.3, 2.5, 5], (16, count, 1)))
    near = (projected + noise).clamp(min=torch.zeros(2), max=torch.tensor([WIDTH - 1.0, HEIGHT - 1.0]))
    copied = visible & (torch.arange(count) % 2 == 0)
    keypoints[:, 1] = torch.where(copied[..., None], near, keypoints[:, 1])
    keypoints[:, 1] = keypoints[:, 1].flip(1)
    mask = torch.from_numpy(rng.random((16, 2, count)) < 0.85)
    labels = ground_truth_matches(keypoints, mask, pairs.homographies, pairs.layers)
    assert labels.shape == (16, 2, count)
    assert labels.dtype == torch.int64
    for item in range(16):
        expected = brute_labels(
            keypoints[item].numpy(),
            mask[item].numpy(),
            pairs.homographies[item].double().numpy(),
            pairs.layers[item].numpy(),
        )
        assert np.array_equal(labels[item].numpy(), expected)
    for value in (-2, -1):
        assert (labels[mask] == value).sum() > 20
    assert (labels >= 0).sum() > 60
    assert (labels[~mask] == -2).all()


def test_labels_ignore_padding_and_point_both_ways(pairs: PlanarPairs) -> None:
    keypoints = torch.stack([lattice(16, 8.0), lattice(16, 8.0)], 1).float()
    count = keypoints.shape[2]
    mask = torch.ones(16, 2, count, dtype=torch.bool)
    mask[:, 0, 50:] = False
    mask[:, 1, 90:] = False
    labels = ground_truth_matches(keypoints, mask, pairs.homographies, pairs.layers)
    moved = keypoints.clone()
    moved[:, 0, 50:] = 17.0  # what lies under the padding must not matter
    moved[:, 1, 90:] = float("nan")
    assert torch.equal(labels, ground_truth_matches(moved, mask, pairs.homographies, pairs.layers))
    item, i = torch.nonzero(labels[:, 0] >= 0).unbind(1)
    j = labels[item, 0, i]
    assert len(i) > 20
    assert mask[item, 1, j].all()
    assert torch.equal(labels[item, 1, j], i)
    cut = ground_truth_matches(keypoints[:, :, :90], mask[:, :, :90], pairs.homographies, pairs.layers)
    assert torch.equal(cut, labels[:, :, :90])


def test_no_keypoints_give_no_labels(pairs: PlanarPairs) -> None:
    labels = ground_truth_matches(
        torch.zeros(16, 2, 0, 2), torch.zeros(16, 2, 0, dtype=torch.bool), pairs.homographies, pairs.layers
    )
    assert labels.shape == (16, 2, 0)
