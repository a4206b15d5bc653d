"""What a camera makes of a view: light, blur, tones, noise, JPEG; any number of views at once, on any device.

Settings are *sampled* in NumPy and *applied* with torch, each change to those views alone that it concerns.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["augment", "gaussian_blur", "jpeg", "sample_exposure"]

_EXPOSURE = np.dtype(
    [
        ("light", np.float32, (3, 3)),  # logarithm of the illumination as a series of cosines, down and across
        ("shadow", np.float32, 5),  # darkness, direction, place, half the width of a band or 0, softness in pixels
        ("blur", np.float32),  # sigma in pixels
        ("motion", np.float32, 2),  # pixels, direction
        ("gamma", np.float32),  # logarithm
        ("contrast", np.float32, 2),  # about the mean: logarithm, and brightness added
        ("noise", np.float32, 2),  # deviation of read noise, and of shot noise at white
        ("grain", np.int64),  # seed of the noise
        ("quality", np.int64),  # of the JPEG, 1 to 100; 0 for none
    ]
)
"""What happens to a view; a zero leaves it as it is."""


def sample_exposure(rng: np.random.Generator) -> np.ndarray:
    """What a camera may make of a view, `()` `_EXPOSURE`: nothing but a little noise for a quarter of them."""
    exposure = np.zeros((), _EXPOSURE)
    strength = 0.0 if rng.random() < 0.25 else float(rng.beta(1.3, 1.6))
    chances = rng.random(8)
    if chances[0] < strength:
        waves = np.add.outer(np.arange(3), np.arange(3))
        exposure["light"] = 0.5 * strength * rng.random() * rng.standard_normal((3, 3)) / (1 + waves)
    if chances[1] < 0.6 * strength:
        band = rng.uniform(0.05, 0.3) * (rng.random() < 0.5)
        direction, place = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4)
        exposure["shadow"] = rng.uniform(0.2, 0.65), direction, place, band, math.exp(rng.uniform(0, 3.5))
    if chances[2] < 0.9 * strength:
        exposure["blur"] = 0.3 + 1.2 * strength * rng.random() ** 1.5
    if chances[3] < 0.35 * strength:
        exposure["motion"] = rng.uniform(1, 2 + 6 * strength), rng.uniform(0, math.pi)
    if chances[4] < 0.9 * strength:
        exposure["gamma"] = 0.45 * strength * np.clip(rng.standard_normal(), -2, 2)
    if chances[5] < 0.9 * strength:
        gain, brightness = rng.standard_normal(2)
        exposure["contrast"] = min(0.5 * strength * gain - 0.25 * strength, math.log(1.8)), 0.2 * strength * brightness
    shot = 0.06 * strength * rng.random() ** 2 * (chances[6] < 0.5)
    exposure["noise"] = 0.004 + 0.06 * strength * rng.random() ** 2, shot
    exposure["grain"] = rng.integers(2**63)
    if chances[7] < 0.5 * strength:
        exposure["quality"] = rng.integers(25, 96)
    return exposure


def augment(images: Tensor, exposures: np.ndarray, together: bool) -> Tensor:
    """What cameras make of views.

    Args:
        images: `(n, height, width)` float32 in [0, 1].
        exposures: `(n,)` of what `sample_exposure` gives.
        together: change all at once, instead of one by one. That is few calls, but on a CPU slower, for one view stays
            in its cache; and by rounding each view depends on the others.

    Returns:
        `(n, height, width)` float32 in [0, 1], of 8 bits.
    """
    if not together and len(images) > 1:
        return torch.cat([augment(images[i : i + 1], exposures[i : i + 1], True) for i in range(len(images))])
    for name, change in _CHANGES.items():
        active = exposures[name].reshape(len(images), -1).any(1)
        if active.all():
            images = change(images, exposures)
        elif active.any():
            index = torch.from_numpy(np.flatnonzero(active)).to(images.device)
            images = images.index_copy(0, index, change(images[index], exposures[active]))
    return images


def _each(values: np.ndarray, images: Tensor) -> tuple[Tensor, ...]:
    """The columns of `(n, k)` numbers as tensors `(n, 1, 1)` that broadcast over images."""
    return torch.from_numpy(values).to(images.device, images.dtype)[:, :, None, None].unbind(1)


def _illuminate(images: Tensor, exposures: np.ndarray) -> Tensor:
    def waves(length: int) -> Tensor:
        return torch.from_numpy(np.cos(np.outer(np.arange(length) + 0.5, np.arange(3)) * math.pi / length)).to(images)

    light = torch.from_numpy(exposures["light"]).to(images)
    return images * (waves(images.shape[1]) @ light @ waves(images.shape[2]).T).exp_()


def _shade(images: Tensor, exposures: np.ndarray) -> Tensor:
    height, width = images.shape[1:]
    darkness, direction, place, band, softness = _each(exposures["shadow"], images)
    x = torch.arange(width, device=images.device) - width * (0.5 + place)
    y = torch.arange(height, device=images.device)[:, None] - height * 0.5
    ramp = x * direction.cos() + y * direction.sin()
    ramp = torch.where(band > 0, ramp.abs() - band * width, ramp)
    step = (0.5 + ramp / (6 * softness)).clamp_(0, 1)
    return images * (1 - darkness * step * step * (3 - 2 * step))


def gaussian_blur(images: Tensor, sigma: float | np.ndarray) -> Tensor:
    """Blur images with a Gaussian cut at three sigma; borders are replicated.

    As two products with banded matrices, because convolutions of single channels are several times slower.

    Args:
        images: `(..., height, width)`.
        sigma: pixels, above 0; one, or for images `(n, height, width)` one each, `(n,)`.
    """
    sigmas = np.asarray(sigma, dtype=np.float64)[..., None]
    radius = np.ceil(3 * sigmas)
    offset = np.arange(-radius.max(), radius.max() + 1)
    kernel = np.exp(-0.5 * (offset / sigmas) ** 2) * (np.abs(offset) <= radius)
    weight = torch.from_numpy(kernel / kernel.sum(-1, keepdims=True)).to(images)

    def band(length: int) -> Tensor:
        source = np.clip(np.arange(length)[:, None] + offset, 0, length - 1).astype(np.int64)
        shape = *weight.shape[:-1], length
        indices = torch.from_numpy(source).to(images.device).expand(*shape, -1)
        return images.new_zeros(*shape, length).scatter_add_(-1, indices, weight[..., None, :].expand(*shape, -1))

    height, width = images.shape[-2:]
    return band(height) @ (images @ band(width).mT)


def _blur(images: Tensor, exposures: np.ndarray) -> Tensor:
    return gaussian_blur(images, exposures["blur"])


def _motion_kernel(length: float, angle: float) -> np.ndarray:
    """An odd, centred, point-symmetric line kernel of a length in pixels and an angle in radians."""
    radius = math.ceil(length / 2) + 1
    steps = np.linspace(-length / 2, length / 2, 4 * radius + 1)
    xs, ys = radius + steps * math.cos(angle), radius + steps * math.sin(angle)
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = np.floor(xs).astype(int) + dx, np.floor(ys).astype(int) + dy
            np.add.at(kernel, (y, x), np.maximum(1 - np.abs(xs - x), 0) * np.maximum(1 - np.abs(ys - y), 0))
    kernel += kernel[::-1, ::-1]
    return kernel / kernel.sum()


def _motion_blur(images: Tensor, exposures: np.ndarray) -> Tensor:
    blurred = torch.zeros_like(images)
    height, width = images.shape[1:]
    for image, target, (length, angle) in zip(images, blurred, exposures["motion"].tolist(), strict=True):
        kernel = _motion_kernel(length, angle)
        padded = F.pad(image[None], [len(kernel) // 2] * 4, mode="reflect")[0]
        for y, x in np.argwhere(kernel > 1e-6).tolist():  # a few tens: much faster than a convolution
            target.add_(padded[y : y + height, x : x + width], alpha=kernel[y, x])
    return blurred


def _gamma(images: Tensor, exposures: np.ndarray) -> Tensor:
    (gamma,) = _each(np.exp(exposures["gamma"])[:, None], images)
    return images.clamp(1e-4, 1.5) ** gamma


def _stretch(images: Tensor, exposures: np.ndarray) -> Tensor:
    contrast, brightness = _each(exposures["contrast"], images)
    middle = images.mean((1, 2), keepdim=True, dtype=torch.float64).float()
    return (images - middle) * contrast.exp() + middle + brightness


def _add_noise(images: Tensor, exposures: np.ndarray) -> Tensor:
    read, shot = _each(exposures["noise"] ** 2, images)
    noise, generator = torch.empty_like(images), torch.Generator(images.device)
    for grain, seed in zip(noise, exposures["grain"].tolist(), strict=True):
        grain.normal_(generator=generator.manual_seed(seed))
    images = images.clamp(0, 1)
    deviation = torch.addcmul(read, images, shot).sqrt_()
    return torch.addcmul(images, noise, deviation).clamp_(0, 1).mul_(255).round_().div_(255)


_LUMINANCE = np.array(
    """
    16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
    """.split(),
    dtype=np.int64,
)


def jpeg_table(quality: np.ndarray) -> np.ndarray:
    """Quantisation of the luminance at qualities `(n,)`, 1 to 100: `(n, 64)` by rows.

    Source: ITU T.81, table K.1; scaled as in the Independent JPEG Group's library.
    """
    quality = quality[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((_LUMINANCE * scale + 50) // 100, 1, 255)


def jpeg(images: Tensor, quality: np.ndarray) -> Tensor:
    """What JPEG compression leaves of grey images.

    Args:
        images: `(n, height, width)` in [0, 1], of 8 bits.
        quality: `(n,)` integers, 1 to 100.

    Returns:
        `(n, height, width)`, of 8 bits.
    """
    height, width = images.shape[1:]
    padded = F.pad(images[:, None], (0, -width % 8, 0, -height % 8), mode="replicate")[:, 0]
    rows, columns = padded.shape[1] // 8, padded.shape[2] // 8
    transform = _cosine_transform().to(images)
    table = torch.from_numpy(jpeg_table(quality)).to(images)[:, None]
    blocks = padded.mul(255).sub_(128).view(-1, rows, 8, columns, 8).transpose(2, 3).reshape(-1, rows * columns, 64)
    waves = (blocks @ transform.T).div_(table).round_().mul_(table)
    blocks = (waves @ transform).add_(128).round_().clamp_(0, 255).div_(255)
    return blocks.view(-1, rows, columns, 8, 8).transpose(2, 3).reshape(padded.shape)[:, :height, :width]


@lru_cache
def _cosine_transform() -> Tensor:
    """The orthonormal discrete cosine transform of 8x8 pixels, by rows: `(64, 64)` float64."""
    wave, position = np.arange(8)[:, None], np.arange(8)
    cosines = np.cos((2 * position + 1) * wave * math.pi / 16) * np.where(wave == 0, math.sqrt(1 / 8), 1 / 2)
    return torch.from_numpy(np.kron(cosines, cosines))


def _compress(images: Tensor, exposures: np.ndarray) -> Tensor:
    return jpeg(images, exposures["quality"])


_CHANGES = {
    "light": _illuminate,
    "shadow": _shade,
    "blur": _blur,
    "motion": _motion_blur,
    "gamma": _gamma,
    "contrast": _stretch,
    "noise": _add_noise,
    "quality": _compress,
}
