"""Worlds of planes: the geometry of their layers, and how they are spread."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightglue_hf.data import worlds
from lightglue_hf.data.warps import project
from lightglue_hf.data.worlds import Plane, flat_world, plane_homography

from .planar import HEIGHT, WIDTH


def test_layers_move_by_the_plane_induced_homography() -> None:
    """H = K (R + t n^T / d) K^-1 with the plane n^T X = d in the frame of camera 0."""
    rng = np.random.default_rng(4)
    cameras, focals = worlds._cameras(rng, HEIGHT, WIDTH, 0.5)
    tilts = worlds._tilted(rng, worlds.TRIES, 20, 50, np.ones(worlds.TRIES, dtype=bool))
    origin = np.array([0.1, -0.05, 0.9])
    for both, focal, axes in zip(cameras, focals, tilts, strict=True):
        intrinsic = np.array([[focal, 0, (WIDTH - 1) / 2], [0, focal, (HEIGHT - 1) / 2], [0, 0, 1]])
        pose0, pose1 = np.linalg.inv(intrinsic) @ both
        for pose in (pose0, pose1):
            assert np.allclose(pose[:, :3] @ pose[:, :3].T, np.eye(3), atol=1e-9)
            assert np.linalg.det(pose[:, :3]) == pytest.approx(1)
        settings = axes[None], origin[None], np.array([0.01]), np.array([[10.0, 20.0]])
        found = plane_homography(Plane(*worlds._plane_inverses(both, *settings), 0, 1.0, 0.0), HEIGHT, WIDTH)
        rotation = pose1[:, :3] @ pose0[:, :3].T
        translation = pose1[:, 3] - rotation @ pose0[:, 3]
        normal = pose0[:, :3] @ np.cross(axes[:, 0], axes[:, 1])
        distance = normal @ (pose0[:, :3] @ origin + pose0[:, 3])
        expected = intrinsic @ (rotation + np.outer(translation, normal) / distance) @ np.linalg.inv(intrinsic)
        assert np.allclose(found / found[2, 2], expected / expected[2, 2], atol=1e-8)
        centre = both[0] @ [*origin, 1]
        assert (found @ (centre / centre[2]))[2] > 0


def test_scales_of_flat_pairs_are_spread() -> None:
    """Between the centres of two views: most are alike, and ratios about 2 occur."""
    centre, ratios = np.array([[(WIDTH - 1) / 2, (HEIGHT - 1) / 2]]), []
    for seed in range(600):
        (plane,) = flat_world(np.random.default_rng(seed), (4, 2 * HEIGHT, 2 * WIDTH), HEIGHT, WIDTH)
        near = centre + np.array([[0, 0], [1e-3, 0], [0, 1e-3]])
        moved, _ = project(plane_homography(plane, HEIGHT, WIDTH), near)
        area = abs(np.linalg.det((moved[1:] - moved[0]) / 1e-3))
        ratios.append(math.exp(abs(math.log(area) / 2)))
    assert 1.1 < np.median(ratios) < 1.4
    assert 0.03 < np.mean(np.array(ratios) > 1.9) < 0.1
    assert max(ratios) < 3.5
