"""Tests of the photometric changes: nothing moves, JPEG is Pillow's, each view is changed by its own settings."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lightglue_hf.data import photometry
from lightglue_hf.data.photometry import augment, gaussian_blur, jpeg, jpeg_table, sample_exposure
from lightglue_hf.data.textures import render_textures


@pytest.fixture(scope="module")
def views() -> Tensor:
    return torch.from_numpy(render_textures(3, 61, 83, seed=2)) / 255


def exposures(count: int = 1, **settings: Any) -> np.ndarray:
    """Settings that leave views as they are, but for those given."""
    array = np.zeros(count, photometry._EXPOSURE)
    for name, value in settings.items():
        array[name] = value
    return array


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.9])
def test_blur_does_not_move_the_centroid(sigma: float) -> None:
    image = torch.zeros(41, 43)
    image[18, 25] = 1.0
    _check_centroid(gaussian_blur(image, sigma), 25, 18)


@pytest.mark.parametrize("length", [1.0, 2.5, 6.0, 8.0])
@pytest.mark.parametrize("angle", [0.0, 0.4, 1.571, 2.5])
def test_motion_blur_is_centred(length: float, angle: float) -> None:
    image = torch.zeros(41, 43)
    image[18, 25] = 1.0
    blurred = photometry._motion_blur(image[None], exposures(motion=(length, angle)))[0]
    _check_centroid(blurred, 25, 18)
    offset = torch.arange(43.0)[None] - 25, torch.arange(41.0)[:, None] - 18
    along = offset[0] * math.cos(angle) + offset[1] * math.sin(angle)
    across = offset[1] * math.cos(angle) - offset[0] * math.sin(angle)
    assert (blurred * along**2).sum() > (blurred * across**2).sum() or length < 2


def _check_centroid(image: Tensor, x: float, y: float) -> None:
    assert image.sum().item() == pytest.approx(1, abs=1e-5)
    assert (image.sum(0) * torch.arange(image.shape[1])).sum().item() == pytest.approx(x, abs=1e-4)
    assert (image.sum(1) * torch.arange(image.shape[0])).sum().item() == pytest.approx(y, abs=1e-4)


def test_the_blur_is_a_convolution_with_replicated_borders() -> None:
    images = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    sigmas = np.array([1.2, 0.4, 2.5])
    for image, blurred, sigma in zip(images, gaussian_blur(images, sigmas), sigmas.tolist(), strict=True):
        radius = math.ceil(3 * sigma)
        offsets = torch.arange(-radius, radius + 1)
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).outer(kernel / kernel.sum())
        expected = F.conv2d(F.pad(image[None, None], [radius] * 4, mode="replicate"), kernel[None, None])[0, 0]
        torch.testing.assert_close(blurred, expected)
        torch.testing.assert_close(gaussian_blur(image, sigma), expected)


@pytest.mark.parametrize("quality", [1, 10, 25, 49, 50, 75, 95, 100])
def test_jpeg_is_that_of_pillow(views: Tensor, quality: int) -> None:
    found = jpeg(views, np.full(3, quality)) * 255
    for view, image in zip(found, views, strict=True):
        stream = io.BytesIO()
        Image.fromarray((image * 255).round().byte().numpy()).save(stream, format="JPEG", quality=quality)
        decoded = Image.open(stream)
        assert jpeg_table(np.array([quality]))[0].tolist() == list(decoded.quantization[0])
        error = view - torch.from_numpy(np.array(decoded, dtype=np.float32))
        # Pillow computes in integers: some waves are rounded to the other side, and pixels to a neighbour.
        assert error.abs().mean() < 0.4
        assert 20 * math.log10(255 / error.square().mean().sqrt()) > 45
    assert found.sub(found.round()).abs().max() < 1e-4


def test_nothing_set_leaves_a_view_but_for_eight_bits(views: Tensor) -> None:
    grey = views * 0.9 + 0.0371
    assert torch.equal(augment(grey, exposures(3), True), grey)
    noisy = augment(grey, exposures(3, noise=(1e-6, 0)), False)
    assert torch.equal(noisy, (grey * 255).round() / 255)


def test_gamma_contrast_and_noise_by_hand(views: Tensor) -> None:
    image = views[:1] * 0.5 + 0.25
    torch.testing.assert_close(augment(image, exposures(gamma=math.log(2)), True), image**2)
    stretched = augment(image, exposures(contrast=(math.log(1.5), 0.1)), True)
    torch.testing.assert_close(stretched, (image - image.mean()) * 1.5 + image.mean() + 0.1)
    for level in (0.2, 0.8):
        flat = torch.full((1, 200, 200), level)
        noisy = augment(flat, exposures(noise=(0.02, 0.05), grain=7), True)
        assert noisy.std().item() == pytest.approx(math.hypot(0.02, 0.05 * math.sqrt(level), 0.29 / 255), rel=0.03)
        assert noisy.mean().item() == pytest.approx(level, abs=1e-3)


def test_light_and_shadow_are_smooth_and_spare_the_other_side() -> None:
    even = torch.full((1, 60, 80), 0.5)
    light = np.zeros((3, 3))
    light[0, 1] = 0.3  # one wave across
    lit = augment(even, exposures(light=light), True)[0]
    torch.testing.assert_close(lit[0], 0.5 * torch.exp(0.3 * torch.cos((torch.arange(80) + 0.5) * math.pi / 80)))
    shaded = augment(even, exposures(shadow=(0.4, 0.0, 0.0, 0.0, 2.0)), True)[0]
    assert (shaded[:, :30] == 0.5).all()
    torch.testing.assert_close(shaded[:, 50:], torch.full((60, 30), 0.3))
    band = augment(even, exposures(shadow=(0.4, 0.0, 0.0, 0.2, 1.0)), True)[0]
    assert band[:, 38:42].min() > 0.49
    assert band[:, [5, 75]].max() < 0.31


def test_together_is_one_by_one() -> None:
    views = torch.from_numpy(render_textures(2, 61, 83, seed=2)).repeat(12, 1, 1) / 255
    settings = np.stack([sample_exposure(np.random.default_rng(seed)) for seed in range(24)])
    assert all(setting.any() for setting in (settings[name] for name in photometry._EXPOSURE.names))
    difference = (augment(views, settings, True) - augment(views, settings, False)).abs() * 255
    assert (difference > 0.5).float().mean() < 1e-3  # a rounding, which JPEG spreads over a block
    for name in photometry._EXPOSURE.names:  # a change concerns those views alone that have it
        only = exposures(24)
        only[name] = settings[name]
        off = ~only[name].reshape(24, -1).any(1)
        assert torch.equal(augment(views, only, True)[off], views[off])
