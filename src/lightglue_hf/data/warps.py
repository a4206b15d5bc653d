"""Homographies: sampled and applied to points in NumPy, to images with torch.

Points are (x, y) in pixels, the centre of the first pixel is (0, 0); an image shape is (height, width).

Source: homographic training pairs, DeTone et al., "SuperPoint" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def matrix_of(rows: Sequence[Sequence[np.ndarray | float]]) -> np.ndarray:
    """Matrices `(..., 3, 3)` from their entries, which broadcast."""
    matrix = np.empty((*np.broadcast(*rows[0], *rows[1], *rows[2]).shape, 3, 3))
    for i, row in enumerate(rows):
        for j, entry in enumerate(row):
            matrix[..., i, j] = entry
    return matrix


def similarity(
    angle: np.ndarray | float, scale: np.ndarray | float, x: np.ndarray | float, y: np.ndarray | float
) -> np.ndarray:
    """Rotate by radians and scale about (0, 0), then move to (x, y)."""
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    return matrix_of([[cos, -sin, x], [sin, cos, y], [0.0, 0.0, 1.0]])


def _through_corners(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The homographies that take four points `(4, 2)` onto four others `(..., 4, 2)`."""
    one, zero = np.ones(4), np.zeros(4)
    (x, y), (u, v) = source.T, np.moveaxis(target, -1, 0)
    entries = (x, y, one, zero, zero, zero, -u * x, -u * y, zero, zero, zero, x, y, one, -v * x, -v * y)
    equations = np.stack(np.broadcast_arrays(*entries), -1).reshape(*target.shape[:-2], 8, 8)
    solved = np.linalg.solve(equations, target.reshape(*target.shape[:-2], 8, 1))[..., 0]
    return np.concatenate([solved, np.ones_like(solved[..., :1])], -1).reshape(*solved.shape[:-1], 3, 3)


def sample_homography(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    rotation: float = 18.0,
    scale: float = 0.25,
    corners: np.ndarray | float = 0.12,
    translation: np.ndarray | float = 0.15,
    shape: tuple[int, ...] = (),
) -> np.ndarray:
    """Sample homographies of an image onto itself: perspective, then scale, rotation about the centre, and shift.

    Args:
        rng: source of randomness; four draws of fixed shape are made whatever the settings.
        height, width: image size in pixels.
        rotation: standard deviation of the rotation, degrees.
        scale: standard deviation of the natural logarithm of the scale, cut at two deviations.
        corners: largest move of each corner before the rest, as a fraction of the height and width (uniform).
        translation: largest shift as a fraction of the height and width (uniform).
        shape: how many, in which dimensions; `corners` and `translation` may be arrays of this shape.

    Returns:
        `(*shape, 3, 3)` float64, source pixel (x, y) -> target pixel, centre of the first pixel = (0, 0).
    """
    extent = np.array([width, height], dtype=np.float64)
    moves = rng.uniform(-1, 1, (*shape, 4, 2)) * np.asarray(corners)[..., None, None]
    angle = math.radians(rotation) * rng.standard_normal(shape)
    factor = np.exp(scale * np.clip(rng.standard_normal(shape), -2, 2))
    shift = rng.uniform(-1, 1, (*shape, 2)) * np.asarray(translation)[..., None] * extent
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * extent
    perspective = _through_corners(square, square + moves * extent)
    x, y = (width - 1) / 2, (height - 1) / 2
    turned = similarity(angle, factor, x + shift[..., 0], y + shift[..., 1])
    matrices = turned @ perspective @ similarity(0, 1, -x, -y)
    return matrices / matrices[..., 2:, 2:]


def project(matrices: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points `(..., n, 2)`; returns the images `(..., n, 2)` and their third coordinates `(..., n)`."""
    moved = points @ matrices[..., :2].swapaxes(-1, -2) + matrices[..., None, :, 2]
    weight = moved[..., 2]
    return moved[..., :2] / np.where(np.abs(weight) < 1e-9, 1e-9, weight)[..., None], weight


def warp_images(images: Tensor, homographies: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Warp images by homographies with bilinear interpolation.

    Args:
        images: `(batch, channels, h, w)` float.
        homographies: `(batch, 3, 3)`, source pixel (x, y) -> target pixel, centre of the first pixel = (0, 0).
        height, width: size of the target.

    Returns:
        warped `(batch, channels, height, width)`, zero where unknown, and valid `(batch, height, width)` bool: the
        pixel comes from within the source (up to its outermost pixel centres).
    """
    inverses = to_unit(*images.shape[-2:]) @ np.linalg.inv(homographies.double().cpu().numpy())
    positions = source_positions(inverses, np.arange(width), np.arange(height), images.device)
    valid = inside_unit(positions, images.shape[-2], images.shape[-1])
    return bilinear(images, positions.to(images.dtype), "border") * valid[:, None], valid


def to_unit(height: int, width: int, first: float = 0.0) -> np.ndarray:
    """Pixel -> the coordinates of `bilinear`, `(3, 3)`; the first pixel of the image is (`first`, `first`)."""
    x, y = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    return np.array([[x, 0.0, -1.0 - first * x], [0.0, y, -1.0 - first * y], [0.0, 0.0, 1.0]])


def source_positions(inverses: np.ndarray, xs: np.ndarray, ys: np.ndarray, device: torch.device) -> Tensor:
    """Where the pixels of a grid of views come from, by `inverses` `(n, 3, 3)`.

    The terms of the columns and of the rows are computed in float64, their sums in float32.

    Returns:
        `(n, 3, len(ys), len(xs))` float32, homogeneous.
    """
    columns = inverses[..., :1] * xs
    rows = inverses[..., 1:2] * ys + inverses[..., 2:]
    columns, rows = (torch.from_numpy(terms.astype(np.float32)).to(device) for terms in (columns, rows))
    return columns[:, :, None] + rows[..., None]


def bilinear(images: Tensor, positions: Tensor, padding: str) -> Tensor:
    """Sample images `(n, channels, h, w)` at homogeneous positions `(n, 3, height, width)` in [-1, 1].

    -1 and 1 are the centres of the outermost pixels. What is behind the camera lands far off the image.
    """
    grid = positions[:, :2] / positions[:, 2:].clamp_min(1e-6)
    grid = grid.clamp_(-20, 20).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def inside_unit(positions: Tensor, height: int, width: int) -> Tensor:
    """Whether homogeneous positions in [-1, 1] are on an image, to a thousandth of a pixel, and in front."""
    weight = positions[:, 2]
    x, y = (positions[:, :2].abs() - weight[:, None]).unbind(1)
    return (x * (width - 1) <= 2e-3 * weight) & (y * (height - 1) <= 2e-3 * weight) & (weight > 1e-6)
