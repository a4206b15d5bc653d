"""Warped and multi-plane pairs of procedural canvases, and their exact ground truth.

Every pair shows a *planar layered world*: each visible pixel belongs to one plane, and a plane maps from view 0 to
view 1 by one homography. A pure homography pair is the case of one layer; a multi-plane world has a tilted background
and tilted cut-outs in front of it under two cameras, where layer k moves by `H_k = K (R + t n_k^T / d_k) K^-1`, so
that parallax and occlusion are exact.

A world is *sampled* in NumPy, as a few numbers per plane and view, and *rendered* with torch on any device.

Conventions: points are (x, y) in pixels, the centre of the first pixel is (0, 0); an image shape is (height, width).
Every random choice comes from a generator seeded per item, never from global state: item i of a batch is the same
picture whatever the rest of the batch is. Devices differ by rounding, and in the noise that they draw from a seed.

Sources: homographic training pairs, DeTone et al., "SuperPoint" (2018); ground truth of matches, Lindenberger et al.,
"LightGlue" (2023), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .photometry import photograph, sample_exposure
from .textures import cut_out_coverage

__all__ = [
    "OUTSIDE",
    "PlanarPairs",
    "ground_truth_matches",
    "project_points",
    "sample_homography",
    "sample_pairs",
    "warp_images",
]

OUTSIDE = 255
"""Layer id of a pixel that shows nothing known: it lies outside the canvas of its plane."""

TRIES = 12
"""Poses drawn for each pair; the first that has the wanted overlap is taken, or the best."""


# ----------------------------------------------------------------------------------------------------------------
# Homographies: NumPy, any number at once in the leading dimensions
# ----------------------------------------------------------------------------------------------------------------


def _matrix(rows: Sequence[Sequence[np.ndarray | float]]) -> np.ndarray:
    """Matrices `(..., 3, 3)` from their entries, which broadcast."""
    matrix = np.empty((*np.broadcast(*rows[0], *rows[1], *rows[2]).shape, 3, 3))
    for i, row in enumerate(rows):
        for j, entry in enumerate(row):
            matrix[..., i, j] = entry
    return matrix


def _similarity(
    angle: np.ndarray | float, scale: np.ndarray | float, x: np.ndarray | float, y: np.ndarray | float
) -> np.ndarray:
    """Rotate by radians and scale about (0, 0), then move to (x, y)."""
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    return _matrix([[cos, -sin, x], [sin, cos, y], [0.0, 0.0, 1.0]])


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
    turned = _similarity(angle, factor, x + shift[..., 0], y + shift[..., 1])
    matrices = turned @ perspective @ _similarity(0, 1, -x, -y)
    return matrices / matrices[..., 2:, 2:]


def _project(matrices: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points `(..., n, 2)`; returns the images `(..., n, 2)` and their third coordinates `(..., n)`."""
    moved = points @ matrices[..., :2].swapaxes(-1, -2) + matrices[..., None, :, 2]
    weight = moved[..., 2]
    return moved[..., :2] / np.where(np.abs(weight) < 1e-9, 1e-9, weight)[..., None], weight


# ----------------------------------------------------------------------------------------------------------------
# Sampling: worlds of planes under two views
# ----------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Plane:
    """A plane, and where two views see it.

    Attributes:
        inverses: `(2, 3, 3)`, pixel of view 0 and 1 -> pixel of the plane, with a positive third coordinate in front
            of the camera.
        canvas: which canvas it is painted with.
        gain, offset: of its tones: grey 0 to 255 of the canvas becomes `gain * grey + offset` in [0, 1].
        corner: row and column of the canvas where the plane begins.
        coverage: `(height, width)` uint8 of a cut-out; None for the whole canvas.
        shading: relative change of brightness down and across a cut-out.
    """

    inverses: np.ndarray
    canvas: int
    gain: float
    offset: float
    corner: tuple[int, int] = (0, 0)
    coverage: np.ndarray | None = None
    shading: tuple[float, float] = (0.0, 0.0)


def _tones(rng: np.random.Generator) -> tuple[float, float]:
    """A random contrast and polarity: `gain` and `offset` of a `_Plane`."""
    middle, gain = rng.uniform(0.38, 0.62), rng.uniform(0.6, 1.7) * (1 if rng.random() < 0.5 else -1)
    return gain / 255, middle - gain / 2


def _mirror(rng: np.random.Generator, width: int) -> np.ndarray:
    """At random the identity or a left-right flip of an image, `(3, 3)`."""
    return np.array([[-1.0, 0.0, width - 1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) if rng.random() < 0.5 else np.eye(3)


def _rolls(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Rotations `(TRIES,)` in radians: normal for most, up to 90 degrees for 20%, up to 180 for 3%."""
    kind, normal, uniform = rng.random(TRIES), rng.standard_normal(TRIES), rng.uniform(-1, 1, TRIES)
    widest = np.where(kind < 0.03, math.pi, math.pi / 2)
    return np.where(kind < 0.23, widest * uniform, math.radians(sigma) * normal)


@lru_cache(maxsize=16)
def _lattice(height: int, width: int) -> np.ndarray:
    """A grid of 9x9 points over an image, `(81, 2)`, the centre in the middle of the list."""
    xs, ys = np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9))
    return np.stack([xs.ravel(), ys.ravel()], 1)


def _seen(matrices: np.ndarray, view: tuple[int, int], image: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The share of a view that falls on an image, `(...)`, and the third coordinates over the view `(..., 81)`."""
    moved, weight = _project(matrices, _lattice(*view))
    inside = ((moved >= 0) & (moved <= [image[1] - 1, image[0] - 1])).all(-1) & (weight > 0)
    return inside.mean(-1), weight


def _overlap(inverses: np.ndarray, view: tuple[int, int]) -> np.ndarray:
    """How much two views `(..., 2, 3, 3)` share: the geometric mean of the shares of each that the other one sees.

    A zoom by two about the centre counts 1/2. It is 0 if any of one view lies behind the other camera.
    """
    share, weight = _seen(np.linalg.inv(inverses[..., ::-1, :, :]) @ inverses, view, view)
    regular = weight.min(-1) > 0.05 * np.abs(weight[..., weight.shape[-1] // 2])
    return np.sqrt((share * regular).prod(-1))


def _best(inverses: np.ndarray, wanted: float, view: tuple[int, int], canvas: tuple[int, int]) -> int:
    """The first of tries `(tries, 2, 3, 3)` within 0.15 of the wanted overlap and 85% on the canvas, or the best."""
    missed = np.maximum(np.abs(_overlap(inverses, view) - wanted) - 0.15, 0)
    on_canvas = _seen(inverses, view, canvas)[0].min(-1)
    return int(np.argmax(np.minimum(on_canvas / 0.85, 1) - missed))


def _flat_world(rng: np.random.Generator, canvases: tuple[int, ...], height: int, width: int) -> list[_Plane]:
    """One canvas under two homographies."""
    count, canvas_height, canvas_width = canvases
    wanted = rng.uniform(0.25, 0.95)
    zoom = np.exp(rng.uniform(-0.3, 0.5, (TRIES, 1)))
    ratio = np.exp(np.clip(0.36 * rng.standard_normal((TRIES, 1)), -0.85, 0.85))
    fit = 1.1 * min(canvas_height / height, canvas_width / width)
    sizes = np.minimum(zoom * ratio ** [0.5, -0.5], fit)
    turned = np.where(rng.random((TRIES, 1)) < 0.7, 0, rng.uniform(0, 2 * math.pi, (TRIES, 1)))
    angles = turned + 0.15 * rng.standard_normal((TRIES, 2)) + _rolls(rng, 18)[:, None] * [0.5, -0.5]
    spare = np.maximum(0, [canvas_width, canvas_height] - zoom * [width, height]) / 2
    x, y = ((np.array([canvas_width, canvas_height]) - 1) / 2 + rng.uniform(-0.6, 0.6, (TRIES, 2)) * spare).T[
        ..., None
    ]
    warps = sample_homography(
        rng,
        height,
        width,
        rotation=0,
        scale=0,
        corners=rng.uniform(0.02, 0.18, (TRIES, 1)),
        translation=0.6 * (1.1 - wanted) * rng.random((TRIES, 1)),
        shape=(TRIES, 2),
    )
    flip = _mirror(rng, canvas_width)
    inverses = flip @ _similarity(angles, sizes, x, y) @ _similarity(0, 1, (1 - width) / 2, (1 - height) / 2) @ warps
    best = _best(inverses, wanted, (height, width), (canvas_height, canvas_width))
    return [_Plane(inverses[best], int(rng.integers(count)), *_tones(rng))]


def _rotation(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rodrigues' formula for unit axes `(..., 3)` and angles `(...)` in radians, `(..., 3, 3)`."""
    x, y, z = np.moveaxis(axis, -1, 0)
    cross = _matrix([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    sin, cos = np.sin(angle)[..., None, None], np.cos(angle)[..., None, None]
    return np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)


_AHEAD = np.array([0.0, 0.0, 1.0])


def _cameras(rng: np.random.Generator, height: int, width: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of cameras `K [R | t]`, `(TRIES, 2, 3, 4)`, about a scene at z = 1, and focal lengths in pixels.

    `spread`, about 0.2 to 1, is how far they look apart.
    """
    focal = width * rng.uniform(0.8, 1.6, TRIES)
    intrinsic = _matrix([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])
    heading, span = rng.uniform(0, 2 * math.pi, TRIES), rng.uniform(0.05, 0.5, TRIES)
    ahead = np.clip(0.14 * rng.standard_normal(TRIES), -0.35, 0.35)
    step = np.stack([np.cos(heading) * span, 0.5 * np.sin(heading) * span, ahead], -1)
    places = step[:, None] * [[0.5], [-0.5]]
    field = 0.5 * width / focal[:, None, None]
    aims = np.pad(rng.uniform(-1, 1, (TRIES, 2, 2)) * [1, 0.75] * field * spread, [(0, 0), (0, 0), (0, 1)])
    forward = aims + _AHEAD - places
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    look = np.stack([right, np.cross(forward, right), forward], -2)
    rolls = 0.1 * rng.standard_normal((TRIES, 1)) + _rolls(rng, 12)[:, None] * [0.5, -0.5]
    turn = _rotation(_AHEAD, rolls) @ look
    return intrinsic[:, None] @ np.concatenate([turn, -turn @ places[..., None]], -1), focal


def _tilted(rng: np.random.Generator, count: int, sigma: float, limit: float, spun: np.ndarray) -> np.ndarray:
    """Two orthogonal directions of tilted planes, `(count, 3, 2)`; angles in degrees, `spun` ones are not upright."""
    tilt = np.radians(np.clip(sigma * rng.standard_normal(count), -limit, limit))
    heading = rng.uniform(0, 2 * math.pi, count)
    axis = np.stack([np.cos(heading), np.sin(heading), np.zeros(count)], -1)
    spin = np.where(spun, rng.uniform(0, 2 * math.pi, count), 0.15 * rng.standard_normal(count))
    return (_rotation(axis, tilt) @ _rotation(_AHEAD, spin))[..., :2]


def _plane_inverses(
    cameras: np.ndarray, axes: np.ndarray, origin: np.ndarray, pixel: np.ndarray, middle: np.ndarray
) -> np.ndarray:
    """View pixel -> plane pixel, with a positive third coordinate in front of the camera.

    Args:
        cameras: `(..., 2, 3, 4)`.
        axes: `(planes, 3, 2)`, the directions of the columns and rows of the plane.
        origin: `(planes, 3)`, where its middle lies.
        pixel: `(planes,)`, the width of a pixel of the plane.
        middle: `(planes, 2)`, (x, y) of its middle in these pixels.

    Returns:
        `(planes, 2, 3, 3)`.
    """
    across = axes * pixel[:, None, None]
    corner = origin[..., None] - across @ middle[..., None]
    placed = np.concatenate([across, corner], -1)  # plane pixel -> world point
    placed = np.concatenate([placed, np.broadcast_to(_AHEAD, (len(placed), 1, 3))], -2)
    # inv(P) (x, y, 1) = (u, v, 1) / depth: positive in front; only the scale is free.
    inverses = np.linalg.inv(cameras @ placed[:, None])
    return inverses / np.abs(inverses[..., 2:, :]).max(-1, keepdims=True)


def _layered_world(
    rng: np.random.Generator, canvases: tuple[int, ...], height: int, width: int, max_layers: int
) -> list[_Plane]:
    """A background at a distance of 1 and tilted cut-outs under two cameras, back to front."""
    canvas_count, *canvas = canvases
    view, whole = np.array([width, height]), np.array(canvas[::-1])
    wanted = rng.uniform(0.25, 0.95)
    cameras, focal = _cameras(rng, height, width, 1.1 - wanted)
    pixel = np.exp(-rng.uniform(-0.25, 0.35, TRIES)) / focal
    axes = _tilted(rng, TRIES, 18, 45, np.zeros(TRIES, dtype=bool))
    middle = np.broadcast_to((whole - 1) / 2, (TRIES, 2))
    inverses = _plane_inverses(cameras, axes, np.broadcast_to(_AHEAD, (TRIES, 3)), pixel, middle)
    best = _best(inverses, wanted, (height, width), (canvas[0], canvas[1]))
    background = _mirror(rng, canvas[1]) @ inverses[best]
    planes = [_Plane(background, int(rng.integers(canvas_count)), *_tones(rng))]

    count = int(rng.integers(1, max_layers)) if max_layers > 1 else 0
    depth = np.sort(rng.uniform(0.5, 0.93, count))[::-1]
    share = rng.uniform(0.3, 1.0, count)  # of the width of the view
    size = np.clip(share * width * np.exp(rng.uniform(-0.2, 0.5, count)), 32, whole.min()).astype(int)
    size = np.minimum(size, whole.min())
    field = depth * width / focal[best]
    offset = rng.uniform(-0.5, 0.5, (count, 2)) * view / width * field[:, None]
    origin = np.concatenate([offset, depth[:, None]], -1)
    axes = _tilted(rng, count, 25, 60, rng.random(count) < 0.4)
    middle = np.repeat((size[:, None] - 1) / 2, 2, axis=1)
    inverses = _plane_inverses(cameras[best], axes, origin, share * field / size, middle)
    for inverse, pixels in zip(inverses, size.tolist(), strict=True):
        corner = int(rng.integers(canvas[0] - pixels + 1)), int(rng.integers(canvas[1] - pixels + 1))
        down, across = rng.uniform(-0.6, 0.6, 2) * (rng.random() < 0.5)
        painted = int(rng.integers(canvas_count)), *_tones(rng), corner
        planes.append(_Plane(inverse, *painted, cut_out_coverage(rng, pixels), (down, across)))
    return planes


def _between(plane: _Plane, height: int, width: int) -> np.ndarray:
    """View 0 -> view 1 on a plane, `(3, 3)`; the third coordinate is positive in front of both cameras."""
    matrix = np.linalg.inv(plane.inverses[1]) @ plane.inverses[0]
    weight = matrix[2] @ [(width - 1) / 2, (height - 1) / 2, 1.0]
    return matrix / (abs(weight) if abs(weight) > 1e-6 else np.abs(matrix[2]).max())


# ----------------------------------------------------------------------------------------------------------------
# Rendering: torch, on the device of the canvases
# ----------------------------------------------------------------------------------------------------------------


def _source_positions(inverses: np.ndarray, xs: np.ndarray, ys: np.ndarray, device: torch.device) -> Tensor:
    """Where the pixels of a grid of views come from, by `inverses` `(n, 3, 3)`.

    The terms of the columns and of the rows are computed in float64, their sums in float32.

    Returns:
        `(n, 3, len(ys), len(xs))` float32, homogeneous.
    """
    columns = inverses[..., :1] * xs
    rows = inverses[..., 1:2] * ys + inverses[..., 2:]
    columns, rows = (torch.from_numpy(terms.astype(np.float32)).to(device) for terms in (columns, rows))
    return columns[:, :, None] + rows[..., None]


def _bilinear(images: Tensor, positions: Tensor, padding: str) -> Tensor:
    """Sample images `(n, channels, h, w)` at homogeneous positions `(n, 3, height, width)` in [-1, 1].

    -1 and 1 are the centres of the outermost pixels. What is behind the camera lands far off the image.
    """
    grid = positions[:, :2] / positions[:, 2:].clamp_min(1e-6)
    grid = grid.clamp_(-20, 20).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def _to_unit(height: int, width: int, first: float = 0.0) -> np.ndarray:
    """Pixel -> the coordinates of `_bilinear`, `(3, 3)`; the first pixel of the image is (`first`, `first`)."""
    x, y = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    return np.array([[x, 0.0, -1.0 - first * x], [0.0, y, -1.0 - first * y], [0.0, 0.0, 1.0]])


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
    inverses = _to_unit(*images.shape[-2:]) @ np.linalg.inv(homographies.double().cpu().numpy())
    positions = _source_positions(inverses, np.arange(width), np.arange(height), images.device)
    valid = _inside(positions, images.shape[-2], images.shape[-1])
    return _bilinear(images, positions.to(images.dtype), "border") * valid[:, None], valid


def _inside(positions: Tensor, height: int, width: int) -> Tensor:
    """Whether homogeneous positions in [-1, 1] are on an image, to a thousandth of a pixel, and in front."""
    weight = positions[:, 2]
    x, y = (positions[:, :2].abs() - weight[:, None]).unbind(1)
    return (x * (width - 1) <= 2e-3 * weight) & (y * (height - 1) <= 2e-3 * weight) & (weight > 1e-6)


def _sample_planes(
    textures: Tensor, inverses: np.ndarray, box: tuple[int, int, int, int], fold: int, padding: str
) -> tuple[Tensor, Tensor]:
    """Render a box (left, top, right, bottom) of views from the means of `fold` x `fold` pixels of textures.

    Args:
        textures: `(n, channels, h, w)` float32.
        inverses: `(n, 3, 3)`, view pixel -> pixel of the texture.

    Returns:
        `(n, channels, bottom - top, right - left)` float32, and where each pixel comes from: `(n, 3, bottom - top,
        right - left)` float32, homogeneous, with the textures within [-1, 1].
    """
    if fold > 1:
        for axis in (2, 3):  # several times faster than avg_pool2d
            length = textures.shape[axis] - fold + 1
            one, *others = (textures.narrow(axis, start, length) for start in range(fold))
            textures = sum(others, one).mul_(1 / fold)
    left, top, right, bottom = box
    unit = _to_unit(textures.shape[2], textures.shape[3], first=(fold - 1) / 2) @ inverses
    positions = _source_positions(unit, np.arange(left, right), np.arange(top, bottom), textures.device)
    return _bilinear(textures, positions, padding), positions


def _footprints(inverses: np.ndarray, sizes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """What planes need in views: for `inverses` `(n, 3, 3)` and `sizes` `(n, 2)`, height and width of the planes.

    Returns:
        boxes `(n, 4)`, (left, top, right, bottom) of what they may touch; and how many pixels of each fall on the
        side of one of the view, `(n,)`, 1 to 3: so many are averaged against aliasing.
    """
    view = np.array([width, height])
    rim = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    placed, weight = _project(np.linalg.inv(inverses), rim * (sizes[:, None, ::-1] + 1) - 1)
    first, last = np.clip(np.floor(placed.min(1)), 0, view), np.clip(np.ceil(placed.max(1)) + 1, 0, view)
    cut = weight.min(1) <= 1e-6 * weight.max(1)  # it reaches behind the camera
    first[cut], last[cut] = 0, view
    last[weight.max(1) <= 0] = 0

    extent = np.maximum(last - first, 1)
    placed, weight = _project(inverses, first[:, None] + rim * extent[:, None] - 0.5)
    sides = np.linalg.norm(np.roll(placed, -1, axis=1) - placed, axis=-1)
    stretch = (sides / extent[:, [0, 1, 0, 1]]).max(1)
    stretch[weight.min(1) <= 1e-3 * weight.max(1)] = np.inf  # the horizon
    return np.concatenate([first, last], 1).astype(int), np.digitize(stretch, np.sqrt([2, 6])) + 1


@dataclass
class _Stroke:
    """One plane to be painted on one view."""

    plane: _Plane
    side: int  # of the pair: 0 or 1
    view: int  # of the batch
    order: int  # behind those of greater order
    layer: int  # what it is called where it is seen


def _texture(plane: _Plane, canvases: Tensor, device: torch.device) -> Tensor:
    """A plane's grey `(1, h, w)`, or of a cut-out `(2, h, w)` grey times coverage, and coverage; float32 in [0, 1]."""
    canvas, (top, left) = canvases[plane.canvas], plane.corner
    if plane.coverage is not None:
        height, width = plane.coverage.shape
        canvas = canvas[top : top + height, left : left + width]
    paint = canvas.to(device, torch.float32).mul_(plane.gain).add_(plane.offset).clamp_(0, 1)
    if plane.coverage is None:
        return paint[None]
    down, across = (
        1 + slope * torch.linspace(-0.5, 0.5, length, device=device)
        for slope, length in zip(plane.shading, paint.shape, strict=True)
    )
    coverage = torch.from_numpy(plane.coverage).to(device, torch.float32).mul_(1 / 255)
    return torch.stack([(paint * down[:, None] * across).clamp_(0, 1) * coverage, coverage])


def _stacked(textures: list[Tensor]) -> Tensor:
    """Textures `(channels, h, w)` as `(n, channels, h, w)`, padded with nothing at the right and the bottom."""
    if len(textures) == 1:
        return textures[0][None]
    height, width = (max(texture.shape[axis] for texture in textures) for axis in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in textures])


def _render(
    strokes: list[_Stroke], canvases: Tensor, shape: tuple[int, int, int], device: torch.device, together: bool
) -> tuple[Tensor, Tensor]:
    """Paint planes on views, back to front.

    Args:
        strokes: those of each view by their order; the first is the background.
        canvases: `(count, h, w)` uint8, on any device.
        shape: (views, height, width).
        together: paint the planes of one order on all views at once: few calls, but more work than each in its own
            box.

    Returns:
        grey `(views, height, width)` float32 in [0, 1] and layer ids `(views, height, width)` uint8.
    """
    height, width = shape[1:]
    grey, layers = torch.empty(shape, device=device), torch.empty(shape, dtype=torch.uint8, device=device)
    inverses = np.stack([stroke.plane.inverses[stroke.side] for stroke in strokes])
    covers = [stroke.plane.coverage for stroke in strokes]
    sizes = np.array([canvases.shape[1:] if cover is None else cover.shape for cover in covers])
    boxes, folds = _footprints(inverses, sizes, height, width)

    inner = canvases.shape[1] - 2, canvases.shape[2] - 2  # averaging may lose a pixel at the rim
    unknown = _seen(_similarity(0, 1, -1, -1) @ inverses, (height, width), inner)[0] < 1
    texture = lru_cache(maxsize=1)(lambda plane: _texture(plane, canvases, device))

    def alike(index: int) -> tuple[int, int]:
        return strokes[index].order, int(folds[index])

    groups = [[index] for index in range(len(strokes))]
    if together:
        groups = [list(group) for _, group in groupby(sorted(range(len(strokes)), key=alike), alike)]
    for group in groups:
        order, fold = alike(group[0])
        first, last = boxes[group, :2].min(0), boxes[group, 2:].max(0)
        left, top, right, bottom = (*first.tolist(), *last.tolist()) if order else (0, 0, width, height)
        if right <= left or bottom <= top:
            continue
        textures = _stacked([texture(strokes[index].plane) for index in group])
        box, padding = (left, top, right, bottom), "zeros" if order else "reflection"
        painted, positions = _sample_planes(textures, inverses[group], box, fold, padding)
        views = [strokes[index].view for index in group]
        index = torch.tensor(views, device=device) if together else slice(views[0], views[0] + 1)
        region = index, slice(top, bottom), slice(left, right)
        layer = torch.tensor([strokes[index].layer for index in group], dtype=torch.uint8, device=device)[
            :, None, None
        ]
        if order:
            paint, coverage = painted.unbind(1)
            grey[region] = torch.addcmul(paint + grey[region], grey[region], coverage, value=-1)
            layers[region] = torch.where(coverage >= 0.5, layer, layers[region])
        else:
            grey[region] = painted[:, 0]
            layers[region] = layer
            if unknown[group].any():
                layers[region] = torch.where(_inside(positions, *textures.shape[-2:]), layer, OUTSIDE)
    return grey.clamp_(0, 1), layers


# ----------------------------------------------------------------------------------------------------------------
# Pairs
# ----------------------------------------------------------------------------------------------------------------


@dataclass
class PlanarPairs:
    """Pairs of views of planar layered worlds.

    Attributes:
        images: `(batch, 2, height, width)` float32 in [0, 1], after photometric changes.
        clean: same shape, before them, with the same geometry.
        homographies: `(batch, layers, 3, 3)` float32, pixel (x, y) of image 0 on layer k -> pixel of image 1, centre
            of the first pixel = (0, 0); identity where a layer is not used.
        layers: `(batch, 2, height, width)` uint8, the layer seen at each pixel, `OUTSIDE` (255) where it is off the
            canvas.
    """

    images: Tensor
    clean: Tensor
    homographies: Tensor
    layers: Tensor

    def to(self, device: torch.device | str) -> PlanarPairs:
        """The same pairs on another device."""
        return PlanarPairs(
            self.images.to(device), self.clean.to(device), self.homographies.to(device), self.layers.to(device)
        )


def sample_pairs(
    textures: np.ndarray | Tensor,
    seeds: Sequence[int],
    height: int,
    width: int,
    *,
    multi_plane: float = 0.0,
    max_layers: int = 5,
    unrelated: float = 0.0,
    device: torch.device | str | None = None,
) -> PlanarPairs:
    """Sample pairs of views of planar worlds painted with canvases.

    Args:
        textures: `(count, h, w)` uint8 canvases, see `textures.render_textures`.
        seeds: one per pair, each at least 0; item i depends only on seeds[i], the canvases, the settings, and on the
            device by rounding and the noise.
        height, width: size of the views in pixels.
        multi_plane: probability of a world of several planes instead of one.
        max_layers: largest number of layers, the background included (2 or more for cut-outs, at most 7).
        unrelated: probability of two views of different worlds; then no point of one is visible in the other.
        device: where the pairs are rendered; None for where the canvases are.

    Returns:
        `PlanarPairs` with `layers` of size `max_layers` (1 if `multi_plane` is 0) in `homographies`, on the device; an
        unrelated pair shows layer 0 in image 0 and layer 1 in image 1.
    """
    canvases = textures if isinstance(textures, Tensor) else torch.from_numpy(textures)
    if canvases.ndim != 3 or canvases.dtype != torch.uint8:
        raise ValueError(
            f"textures must be (count, height, width) uint8, got {tuple(canvases.shape)} {canvases.dtype}"
        )
    if not len(seeds):
        raise ValueError("seeds are needed, one for each pair")
    if not 1 <= max_layers <= 7:
        raise ValueError(f"max_layers must be from 1 to 7, got {max_layers}")
    device = canvases.device if device is None else torch.device(device)
    slots = max(max_layers if multi_plane > 0 else 1, 2 if unrelated > 0 else 1)
    homographies = np.tile(np.eye(3, dtype=np.float32), (len(seeds), slots, 1, 1))
    strokes: list[_Stroke] = []
    exposures: list[np.ndarray] = []
    for index, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 0])
        strange, layered = rng.random(2) < (unrelated, multi_plane)
        worlds = [
            _layered_world(rng, canvases.shape, height, width, max_layers)
            if layered
            else _flat_world(rng, canvases.shape, height, width)
            for _ in range(2 if strange else 1)
        ]
        for number, world in enumerate(worlds):
            for order, plane in enumerate(world):
                for side in (number,) if strange else (0, 1):  # two worlds share no layer
                    strokes.append(_Stroke(plane, side, 2 * index + side, order, number if strange else order))
        exposures.extend(sample_exposure(np.random.default_rng([seed, 1 + side])) for side in (0, 1))
        if not strange:
            for layer, plane in enumerate(worlds[0]):
                homographies[index, layer] = _between(plane, height, width)
    shape = len(exposures), height, width
    together = device.type != "cpu"
    clean, layers = _render(strokes, canvases, shape, device, together)
    images = photograph(clean, np.stack(exposures), together)
    matrices = torch.from_numpy(homographies).to(device)
    return PlanarPairs(
        images.unflatten(0, (-1, 2)), clean.unflatten(0, (-1, 2)), matrices, layers.unflatten(0, (-1, 2))
    )


# ----------------------------------------------------------------------------------------------------------------
# Ground truth
# ----------------------------------------------------------------------------------------------------------------


def _layer_at(points: Tensor, layers: Tensor) -> tuple[Tensor, Tensor]:
    """The layer at the pixel nearest to each point: ids `(batch, n)` int64 (`OUTSIDE` off the image), and inside."""
    height, width = layers.shape[-2:]
    x, y = (points + 0.5).floor().unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    position = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
    seen = layers.flatten(1).gather(1, position).long()
    return torch.where(inside, seen, OUTSIDE), inside


def _project_on(points: Tensor, homographies: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
    """Project points `(batch, n, 2)` by the homography of their layer `(batch, n)`; also whether it is in front."""
    known = layer < homographies.shape[1]
    chosen = torch.where(known, layer, 0)[..., None, None].expand(-1, -1, 3, 3)
    matrices = homographies.gather(1, chosen)
    moved = (matrices[..., :2] * points[..., None, :]).sum(-1) + matrices[..., 2]
    weight = moved[..., 2:]
    front = weight[..., 0] > 1e-6
    return moved[..., :2] / torch.where(front[..., None], weight, torch.ones_like(weight)), front & known


def project_points(points: Tensor, homographies: Tensor, layers0: Tensor, layers1: Tensor) -> tuple[Tensor, Tensor]:
    """Project points of image 0 into image 1 by the layer that each of them lies on.

    The reverse direction is the same call with inverted homographies and the layers swapped.

    Args:
        points: `(batch, n, 2)`, pixels of image 0, (x, y), centre of the first pixel = (0, 0).
        homographies: `(batch, layers, 3, 3)`, image 0 -> image 1.
        layers0, layers1: `(batch, height, width)`, layer ids, `OUTSIDE` where nothing is known.

    Returns:
        projected `(batch, n, 2)`, finite (meaningless where not visible), and visible `(batch, n)` bool: the point
        has a layer, lands inside image 1, and its layer is the one seen at the pixel where it lands.
    """
    layer, _ = _layer_at(points, layers0)
    projected, front = _project_on(points, homographies.to(points.dtype), layer)
    landed, inside = _layer_at(projected, layers1)
    return projected, front & inside & (layer != OUTSIDE) & (landed == layer)


_FAR = 1e6
"""A coordinate in pixels that is near to nothing: +_FAR for padding, -_FAR for a projection that is not seen."""


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """All distances between `(batch, n, 2)` and `(batch, m, 2)`, `(batch, n, m)` float32, without cancellation."""
    return torch.cdist(first.float(), second.float(), compute_mode="donot_use_mm_for_euclid_dist")


def _layers_around(points: Tensor, layers: Tensor) -> Tensor:
    """The layer ids of the 3x3 pixels around each point, `(batch, n, 9)` int64; the rim of the image is repeated."""
    height, width = layers.shape[-2:]
    x, y = (points + 0.5).floor().clamp(-2, max(height, width) + 2).long().unbind(-1)
    offset = torch.arange(-1, 2, device=points.device)
    rows = (y[..., None] + offset).clamp(0, height - 1)
    columns = (x[..., None] + offset).clamp(0, width - 1)
    positions = (rows[..., :, None] * width + columns[..., None, :]).flatten(1)
    return layers.flatten(1).gather(1, positions).long().unflatten(1, (-1, 9))


def _matchable_elsewhere(
    points: Tensor, others: Tensor, homographies: Tensor, layers: Tensor, other_layers: Tensor, threshold: float
) -> Tensor:
    """Whether another reading of a silhouette brings a point near a keypoint of the other image, `(batch, n)` bool.

    The readings: the point lies on the least or the greatest of the layers around it instead of its own, and its
    layer is seen somewhere in the 3x3 pixels where it lands. `others` has its padding at `_FAR`.
    """
    own, _ = _layer_at(points, layers)
    around = _layers_around(points, layers)
    known = around != OUTSIDE
    possible = torch.zeros_like(own, dtype=torch.bool)
    for layer in (own, torch.where(known, around, OUTSIDE).amin(-1), torch.where(known, around, -1).amax(-1)):
        projected, front = _project_on(points, homographies, layer.clamp_min(0))
        landed, inside = _layer_at(projected, other_layers)
        seen = front & inside & known.any(-1) & (_layers_around(projected, other_layers) == layer[..., None]).any(-1)
        item, index = torch.nonzero(seen & ((landed != layer) | (layer != own)), as_tuple=True)
        distances = _distances(projected[item, index][:, None], others[item]).flatten(1)
        possible[item, index] |= distances.amin(1) <= threshold
    return possible


def ground_truth_matches(
    keypoints: Tensor,
    mask: Tensor,
    pairs_homographies: Tensor,
    layers: Tensor,
    positive_threshold: float = 3.0,
    negative_threshold: float = 5.0,
) -> Tensor:
    """Label keypoints with their true match.

    With `d_ij = max(|pi01(x_i) - y_j|, |x_i - pi10(y_j)|)` over visible projections, i and j match if each is the
    other's nearest and `d_ij` is below `positive_threshold`. A keypoint has no match if it is hidden or out of frame
    in the other image, or if its projection is farther than `negative_threshold` from every keypoint there. The rest
    is ignored, and so is a keypoint off the canvas, where the truth is not known.

    On a silhouette the layer of a keypoint is a matter of one pixel, and the corner of a cut-out must not be called
    unmatched because it rounds to the background: a keypoint is unmatched only if it is so on each of the layers
    within its 3x3 pixels, and hidden only if that layer is not within the 3x3 pixels where it lands.

    Args:
        keypoints: `(batch, 2, n, 2)`, pixels, (x, y), centre of the first pixel = (0, 0).
        mask: `(batch, 2, n)` bool, False for padding.
        pairs_homographies: `(batch, layers, 3, 3)`, image 0 -> image 1.
        layers: `(batch, 2, height, width)`, layer ids.
        positive_threshold, negative_threshold: pixels.

    Returns:
        `(batch, 2, n)` int64: index of the match in the other image, -1 unmatched, -2 ignored or padding.

    Source: LightGlue (2023), section 3.3 and appendix.
    """
    homographies = pairs_homographies.double()
    inverses = torch.linalg.inv(homographies)
    points = keypoints.double().masked_fill(~mask[..., None], 0)  # padding may hold anything, NaN included
    there, seen0 = project_points(points[:, 0], homographies, layers[:, 0], layers[:, 1])
    back, seen1 = project_points(points[:, 1], inverses, layers[:, 1], layers[:, 0])
    labels = torch.full(mask.shape, -2, dtype=torch.int64, device=mask.device)
    if points.shape[2] == 0:
        return labels
    start = torch.where(mask[..., None], points, _FAR)
    forth = _distances(torch.where((seen0 & mask[:, 0])[..., None], there, -_FAR), start[:, 1])
    along = _distances(start[:, 0], torch.where((seen1 & mask[:, 1])[..., None], back, -_FAR))
    both = torch.maximum(forth, along)
    best0, nearest0 = both.min(2)
    best1, nearest1 = both.min(1)
    count = torch.arange(points.shape[2], device=mask.device)
    matched0 = (nearest1.gather(1, nearest0) == count) & (best0 < positive_threshold)
    matched1 = (nearest0.gather(1, nearest1) == count) & (best1 < positive_threshold)
    for view, (matrices, nearest, matched, distance) in enumerate(
        ((homographies, nearest0, matched0, forth.amin(2)), (inverses, nearest1, matched1, along.amin(1)))
    ):
        here, other = layers[:, view], layers[:, 1 - view]
        known = _layer_at(points[:, view], here)[0] != OUTSIDE
        doubtful = _matchable_elsewhere(points[:, view], start[:, 1 - view], matrices, here, other, negative_threshold)
        label = torch.where(known & ~doubtful & (distance > negative_threshold), -1, -2)
        label = torch.where(matched, nearest, label)
        labels[:, view] = torch.where(mask[:, view], label, -2)
    return labels
