"""Homographies: sampled ones, and images warped pixel-exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightglue_hf.data.warps import sample_homography, warp_images

from .planar import sampled


@pytest.mark.parametrize("shift", [(3, 0), (0, 4), (4, 3), (-3, -4)])
def test_integer_shifts_are_pixel_exact(shift: tuple[int, int]) -> None:
    image = torch.rand(1, 2, 40, 50, generator=torch.Generator().manual_seed(0))
    dx, dy = shift
    matrix = torch.tensor([[[1.0, 0, dx], [0, 1, dy], [0, 0, 1]]])
    warped, valid = warp_images(image, matrix, 40, 50)
    expected = torch.roll(image, (dy, dx), dims=(2, 3))
    inside = torch.zeros(40, 50, dtype=torch.bool)
    inside[max(dy, 0) : 40 + min(dy, 0), max(dx, 0) : 50 + min(dx, 0)] = True
    assert torch.equal(valid[0], inside)
    assert torch.allclose(warped[0][:, inside], expected[0][:, inside], atol=2e-5)
    assert (warped[0][:, ~inside] == 0).all()


def test_warp_agrees_with_bilinear_by_hand() -> None:
    rng = np.random.default_rng(1)
    image = torch.rand(3, 1, 50, 60, generator=torch.Generator().manual_seed(1))
    matrices = torch.from_numpy(np.stack([sample_homography(rng, 50, 60) for _ in range(3)]))
    warped, valid = warp_images(image, matrices, 44, 48)
    for item in range(3):
        inverse = torch.linalg.inv(matrices[item])
        for y in range(0, 44, 5):
            for x in range(0, 48, 5):
                source = inverse @ torch.tensor([x, y, 1.0], dtype=torch.float64)
                source = source[:2] / source[2]
                inside = bool((source >= 0).all() and source[0] <= 59 and source[1] <= 49)
                assert bool(valid[item, y, x]) == inside
                if inside:
                    value = sampled(image[item, 0].double(), source[None])
                    assert warped[item, 0, y, x].item() == pytest.approx(value.item(), abs=2e-3)


def test_pixels_behind_the_camera_are_not_valid() -> None:
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-1 / 20, 0, 1]]]).double()
    warped, valid = warp_images(torch.ones(1, 1, 40, 40), matrix, 40, 40)
    assert torch.isfinite(warped).all()
    assert not valid[0, :, 0].all() or valid.any()
    target = torch.tensor([30.0, 10, 1], dtype=torch.float64)
    source = torch.linalg.inv(matrix[0]) @ target
    assert valid[0, 10, 30].item() == bool(source[2] > 0 and (source[:2] / source[2] <= 39).all())


def test_sampled_homography_without_spread_is_the_identity() -> None:
    matrix = sample_homography(np.random.default_rng(0), 30, 40, rotation=0, scale=0, corners=0, translation=0)
    assert np.allclose(matrix, np.eye(3), atol=1e-12)


def test_sampled_homography_turns_about_the_centre() -> None:
    matrix = sample_homography(np.random.default_rng(2), 31, 41, rotation=30, scale=0.3, corners=0, translation=0)
    centre = matrix @ [20, 15, 1]
    assert np.allclose(centre / centre[2], [20, 15, 1])
    assert np.linalg.norm(matrix[:2, :2] - np.eye(2)) > 0.05
