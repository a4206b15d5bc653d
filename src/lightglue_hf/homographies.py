"""Procedural images, warped and multi-plane pairs, and their exact ground truth.

Every pair shows a *planar layered world*: each visible pixel belongs to one plane, and a plane maps from view 0 to
view 1 by one homography. A pure homography pair is the case of one layer; a multi-plane world has a tilted background
and tilted cut-outs in front of it under two cameras, where layer k moves by `H_k = K (R + t n_k^T / d_k) K^-1`, so
that parallax and occlusion are exact. No photo is involved anywhere.

Conventions: points are (x, y) in pixels, the centre of the first pixel is (0, 0); an image shape is (height, width).
Every random choice comes from a generator seeded per item, never from global state: item i of a batch is the same
picture whatever the rest of the batch is.

Sources: dead leaves with a power law of radii, Lee, Mumford and Huang, "Occlusion models for natural images" (2001);
homographic training pairs, DeTone et al., "SuperPoint" (2018); ground truth of matches, Lindenberger et al.,
"LightGlue" (2023), section 3.3.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "OUTSIDE",
    "PlanarPairs",
    "ground_truth_matches",
    "project_points",
    "render_textures",
    "sample_homography",
    "sample_pairs",
    "warp_images",
]

OUTSIDE = 255
"""Layer id of a pixel that shows nothing known: it lies outside the canvas of its plane."""


# ----------------------------------------------------------------------------------------------------------------
# Canvases: a bank of textures, dead leaves painted with them, then lines, illumination and a slight blur
# ----------------------------------------------------------------------------------------------------------------


def _fractal_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Periodic 1/f^a noise, `(size, size)` float32 in [0, 1]; anisotropic and thresholded at times."""
    fy: np.ndarray = np.fft.fftfreq(size).astype(np.float32)[:, None]
    fx: np.ndarray = np.fft.rfftfreq(size).astype(np.float32)[None, :]
    if rng.random() < 0.5:
        angle, stretch = rng.uniform(0, math.pi), math.exp(rng.uniform(0.3, 2.2))
        cos, sin = math.cos(angle), math.sin(angle)
        fx, fy = fx * cos + fy * sin, (fy * cos - fx * sin) * stretch
    radius = np.sqrt(fx * fx + fy * fy)
    radius[0, 0] = 1.0
    white = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    field: np.ndarray = np.fft.irfft2(white * radius ** -rng.uniform(0.7, 1.9), s=(size, size)).astype(np.float32)
    field -= field.mean()
    field /= field.std() + 1e-6
    kind = rng.random()
    if kind < 0.2:
        field = np.clip(field * rng.uniform(3, 20) + rng.uniform(-1, 1), -2.2, 2.2)
    elif kind < 0.3:
        field = np.abs(field) * 2 - 1.5
    return np.clip(field * 0.22 + 0.5, 0, 1)


def _voronoi(rng: np.random.Generator, size: int) -> np.ndarray:
    """Periodic-looking cells of one grey each with dark or light borders, `(size, size)` float32 in [0, 1]."""
    count = int(rng.integers(12, 70))
    points = rng.uniform(0, size, (count, 2)).astype(np.float32)
    half = size // 2
    axis = np.arange(half, dtype=np.float32) * 2 + 0.5
    squared = (points[:, 0, None, None] - axis[:, None]) ** 2 + (points[:, 1, None, None] - axis) ** 2
    distances, nearest = torch.topk(torch.from_numpy(squared), 2, dim=0, largest=False)
    cells = nearest[0].numpy()
    border = (distances[1].sqrt() - distances[0].sqrt()).numpy()
    greys = rng.uniform(0.5 - 0.5 * rng.random(), 1, count).astype(np.float32)
    field = greys[cells]
    if rng.random() < 0.7:
        field = np.where(border < rng.uniform(1, 5), np.float32(rng.choice([0.0, 0.1, 1.0])), field)
    if rng.random() < 0.3:
        field = field * np.clip(border / 12, 0.2, 1)
    image = Image.fromarray((field * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32) / 255


def _drawn(size: int, background: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A drawing surface of twice the size, reduced by `_reduced` (which removes the staircase)."""
    image = Image.new("L", (2 * size, 2 * size), int(background * 255))
    return image, ImageDraw.Draw(image)


def _reduced(image: Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(2), dtype=np.float32) / 255


def _grid(rng: np.random.Generator, size: int) -> np.ndarray:
    """Lines in one or two directions with jittered spacing."""
    background = rng.random()
    image, draw = _drawn(size, background)
    ink = int(255 * ((background + rng.uniform(0.35, 0.65)) % 1))
    for vertical in (True, False):
        if not vertical and rng.random() < 0.3:
            continue
        step, width, jitter = rng.uniform(10, 70), int(rng.integers(1, 9)), rng.uniform(0, 0.25)
        for position in np.arange(0, 2 * size, step):
            p = position + jitter * step * rng.standard_normal()
            draw.line([(p, 0), (p, 2 * size)] if vertical else [(0, p), (2 * size, p)], fill=ink, width=width)
    return _reduced(image)


def _bricks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Rows of bricks or tiles, each with its own grey, between lines of mortar."""
    mortar, base, spread = rng.random(), rng.random(), rng.uniform(0.02, 0.2)
    image, draw = _drawn(size, mortar)
    tall, gap = rng.uniform(14, 60), rng.uniform(1, 5)
    wide = tall * rng.uniform(1, 3.5)
    for row, top in enumerate(np.arange(-tall, 2 * size, tall)):
        shift = (row % 2) * wide / 2 + rng.uniform(-1, 1)
        for left in np.arange(-wide + shift, 2 * size, wide):
            grey = int(255 * np.clip(base + spread * rng.standard_normal(), 0, 1))
            draw.rectangle([left + gap, top + gap, left + wide - gap, top + tall - gap], fill=grey)
    return _reduced(image)


def _windows(rng: np.random.Generator, size: int) -> np.ndarray:
    """A facade: rows of framed panes, some of them lit."""
    wall = rng.uniform(0.2, 0.9)
    image, draw = _drawn(size, wall)
    tall, wide = rng.uniform(40, 120), rng.uniform(30, 110)
    margin_y, margin_x = rng.uniform(0.12, 0.3) * tall, rng.uniform(0.1, 0.3) * wide
    frame, bars = int(rng.integers(1, 5)), int(rng.integers(0, 3))
    frame_grey = int(255 * rng.random())
    dark = rng.uniform(0, 0.5)
    for top in np.arange(0, 2 * size, tall):
        for left in np.arange(0, 2 * size, wide):
            box = [left + margin_x, top + margin_y, left + wide - margin_x, top + tall - margin_y]
            pane = int(255 * np.clip(dark + 0.12 * rng.standard_normal() + (rng.random() < 0.15) * 0.4, 0, 1))
            draw.rectangle(box, fill=pane, outline=frame_grey, width=frame)
            for bar in range(1, bars + 1):
                x = box[0] + (box[2] - box[0]) * bar / (bars + 1)
                draw.line([(x, box[1]), (x, box[3])], fill=frame_grey, width=frame)
    return _reduced(image)


def _checkers(rng: np.random.Generator, size: int) -> np.ndarray:
    """A checkerboard with uneven greys."""
    first, second = rng.random(2)
    image, draw = _drawn(size, first)
    step = rng.uniform(14, 80)
    for row in range(int(2 * size / step) + 1):
        for column in range(row % 2, int(2 * size / step) + 1, 2):
            grey = int(255 * np.clip(second + 0.08 * rng.standard_normal(), 0, 1))
            draw.rectangle([column * step, row * step, (column + 1) * step - 1, (row + 1) * step - 1], fill=grey)
    return _reduced(image)


def _glyphs(rng: np.random.Generator, size: int) -> np.ndarray:
    """Lines of writing made of random strokes."""
    paper = rng.choice([rng.uniform(0.7, 1), rng.uniform(0, 0.3)])
    image, draw = _drawn(size, paper)
    ink = int(255 * np.clip(1 - paper + 0.15 * rng.standard_normal(), 0, 1))
    tall = rng.uniform(14, 70)
    width = max(1, int(tall * rng.uniform(0.08, 0.22)))
    top = 0.0
    while top < 2 * size:
        left = rng.uniform(0, tall)
        while left < 2 * size:
            wide = tall * rng.uniform(0.3, 0.65)
            for _ in range(int(rng.integers(1, 4))):
                xs = left + wide * rng.choice([0, 0.5, 1], 3)
                ys = top + tall * rng.choice([0.1, 0.45, 0.8], 3)
                if rng.random() < 0.3:
                    draw.arc(
                        [left, top + 0.1 * tall, left + wide, top + 0.8 * tall], rng.uniform(0, 360), 540, ink, width
                    )
                else:
                    draw.line(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=ink, width=width)
            left += wide * (1.35 if rng.random() < 0.85 else 2.2)
        top += tall * 1.3
    return _reduced(image)


def _small_leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Foliage, gravel or grass: hundreds of small overlapping shapes."""
    image, draw = _drawn(size, rng.random())
    low, high = rng.uniform(3, 8), rng.uniform(10, 40)
    count = int(min(900, 5 * size * size / (low * high)))
    elongation, spread = rng.uniform(0.15, 1), rng.uniform(0.1, 0.3)
    main, fan = rng.uniform(0, math.pi), rng.uniform(0.2, 2)
    corners = int(rng.integers(3, 8))
    radii = low * (high / low) ** rng.random(count)
    centres = rng.uniform(0, 2 * size, (count, 2))
    angles = main + fan * rng.standard_normal(count)
    turns = np.sort(rng.uniform(0, 2 * math.pi, (count, corners)), axis=1)
    along, across = np.cos(turns) * radii[:, None], np.sin(turns) * radii[:, None] * elongation
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    xs = centres[:, :1] + along * cos - across * sin
    ys = centres[:, 1:] + along * sin + across * cos
    greys = np.clip(rng.uniform(0.2, 0.8) + spread * rng.standard_normal(count), 0, 1)
    outlines = np.stack([xs, ys], -1).reshape(count, -1).tolist()
    for outline, grey in zip(outlines, (greys * 255).astype(int).tolist(), strict=True):
        draw.polygon(outline, fill=grey)
    return _reduced(image)


def _scribbles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Wandering lines and arcs of several widths: branches, cracks, cables."""
    background = rng.random()
    image, draw = _drawn(size, background)
    for _ in range(int(rng.integers(8, 50))):
        steps = int(rng.integers(4, 14))
        heading = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.standard_normal(steps) * rng.uniform(0.1, 0.9))
        stride = rng.uniform(5, 40)
        xs = rng.uniform(0, 2 * size) + np.cumsum(np.cos(heading)) * stride
        ys = rng.uniform(0, 2 * size) + np.cumsum(np.sin(heading)) * stride
        grey = int(255 * np.clip(background + rng.choice([-1, 1]) * rng.uniform(0.1, 0.7), 0, 1))
        draw.line(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=grey, width=int(rng.integers(1, 8)))
    return _reduced(image)


_BANK: tuple[tuple[Callable[[np.random.Generator, int], np.ndarray], float], ...] = (
    (_fractal_noise, 0.34),
    (_voronoi, 0.08),
    (_grid, 0.07),
    (_bricks, 0.09),
    (_windows, 0.09),
    (_checkers, 0.04),
    (_glyphs, 0.08),
    (_small_leaves, 0.14),
    (_scribbles, 0.07),
)
_BANK_WEIGHTS = np.array([weight for _, weight in _BANK])
_TILE = 192


def _texture(rng: np.random.Generator, height: int, width: int, bank: list[np.ndarray]) -> np.ndarray:
    """One tile of the bank, repeated, turned and zoomed to `(height, width)` float32, about zero mean."""
    tile = bank[int(rng.integers(len(bank)))]
    zoom = math.exp(rng.uniform(-0.3, 0.7))
    angle = 0.0 if rng.random() < 0.4 else rng.uniform(0, 2 * math.pi)
    a, b = zoom * math.cos(angle), zoom * math.sin(angle)
    reach = int(zoom * math.hypot(height, width)) + 2
    repeats = -(-reach // _TILE) + 1
    source = Image.fromarray(np.tile(tile, (repeats, repeats)))
    middle = repeats * _TILE / 2
    x0, y0 = middle - (a * width + b * height) / 2, middle - (a * height - b * width) / 2
    x0, y0 = x0 + rng.uniform(-_TILE, _TILE) / 3, y0 + rng.uniform(-_TILE, _TILE) / 3
    turned = source.transform(
        (width, height), Image.Transform.AFFINE, (a, b, x0, -b, a, y0), Image.Resampling.BILINEAR
    )
    return np.asarray(turned, dtype=np.float32) * (1 / 255)


def _outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """The outline of a polygon, ellipse, blob, star, bar or box around (0, 0), `(n, 2)` in pixels."""
    kind = rng.random()
    angle = rng.uniform(0, 2 * math.pi)
    aspect = math.exp(-abs(rng.standard_normal()) * 0.5)
    if kind < 0.26:  # box or parallelogram
        shear = rng.uniform(-0.5, 0.5) if rng.random() < 0.4 else 0.0
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [0.8, 0.8 * aspect]
        points[:, 0] += shear * points[:, 1]
        angle = angle if rng.random() < 0.4 else 0.12 * rng.standard_normal() + rng.integers(4) * math.pi / 2
    elif kind < 0.5:  # polygon
        turns = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 9))))
        reach = rng.uniform(0.55, 1, len(turns))
        points = np.stack([np.cos(turns) * reach, np.sin(turns) * reach * aspect], 1)
    elif kind < 0.66:  # ellipse
        turns = np.linspace(0, 2 * math.pi, 12 + int(min(48, radius / 2)), endpoint=False)
        points = np.stack([np.cos(turns), np.sin(turns) * aspect], 1)
    elif kind < 0.82:  # blob
        turns = np.linspace(0, 2 * math.pi, 16 + int(min(64, radius / 2)), endpoint=False)
        reach = np.full_like(turns, 0.75)
        for wave in range(2, 7):
            reach += 0.3 / wave * rng.standard_normal() * np.cos(wave * turns + rng.uniform(0, 6.28))
        reach = np.clip(reach, 0.2, 1.2)
        points = np.stack([np.cos(turns) * reach, np.sin(turns) * reach * aspect], 1)
    elif kind < 0.9:  # star
        spikes = int(rng.integers(4, 9))
        turns = np.arange(2 * spikes) * math.pi / spikes
        reach = np.where(np.arange(2 * spikes) % 2 == 0, 1.0, rng.uniform(0.3, 0.75))
        points = np.stack([np.cos(turns) * reach, np.sin(turns) * reach * aspect], 1)
    else:  # bar
        thin = rng.uniform(0.04, 0.16)
        points = np.array([[-1, -thin], [1, -thin], [1, thin], [-1, thin]]) * 1.2
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) * radius


def _polygon_mask(outline: np.ndarray, left: int, top: int, width: int, height: int) -> Image.Image:
    """Coverage of the polygon in a box of the canvas, drawn at twice the size and averaged."""
    mask = Image.new("L", (2 * width, 2 * height), 0)
    ImageDraw.Draw(mask).polygon(((outline - [left, top]) * 2 + 0.5).ravel().tolist(), fill=255)
    return mask.reduce(2)


def _paint_leaf(
    rng: np.random.Generator, canvas: np.ndarray, textures: list[np.ndarray], radius: float, plain: float
) -> None:
    """Paint one leaf with its shadow on the canvas `(height, width)` float32, in place."""
    height, width = canvas.shape
    centre = np.array([rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height])
    outline = _outline(rng, radius) + centre
    shadowed = rng.random() < 0.35 and 6 < radius < 160
    reach = int(min(24, 2 + 0.25 * radius)) if shadowed else 1
    left, top = np.floor(outline.min(0)).astype(int) - reach
    right, bottom = np.ceil(outline.max(0)).astype(int) + reach + 1
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    grey, drawn, contrast = rng.beta(0.8, 0.8), rng.random(), rng.uniform(0.1, 1.1)
    which, dy, dx = int(rng.integers(len(textures))), rng.random(), rng.random()
    slope = rng.uniform(-0.35, 0.35, 2) * (rng.random() < 0.5)
    shift, darkness = rng.uniform(-0.5, 0.5, 2) * reach, rng.uniform(0.15, 0.6)
    if right - left < 2 or bottom - top < 2:
        return
    mask = _polygon_mask(outline, left, top, right - left, bottom - top)
    region = canvas[top:bottom, left:right]
    if shadowed:
        moved = _polygon_mask(outline + shift, left, top, right - left, bottom - top)
        soft = np.asarray(moved.filter(ImageFilter.GaussianBlur(0.3 * reach)), dtype=np.float32)
        region *= 1 - (darkness / 255) * soft
    tall, wide = region.shape
    fill: np.ndarray | float = grey
    if drawn >= plain:
        source = textures[which]
        y, x = int(dy * (source.shape[0] - tall)), int(dx * (source.shape[1] - wide))
        fill = (source[y : y + tall, x : x + wide] - 0.5) * contrast + grey
    if slope[0]:
        ramp_x = np.linspace(-slope[0], slope[0], wide, dtype=np.float32)
        ramp_y = np.linspace(-slope[1], slope[1], tall, dtype=np.float32)
        fill = fill + ramp_x + ramp_y[:, None]
    cover = np.asarray(mask, dtype=np.float32) * np.float32(1 / 255)
    region += cover * (fill - region)


def _smooth_field(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """A smooth random field of about unit deviation, `(height, width)` float32."""
    coarse = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _render_canvas(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One canvas, `(height, width)` uint8."""
    kinds = rng.choice(len(_BANK), size=5, p=_BANK_WEIGHTS)
    bank = [(_BANK[kind][0](rng, _TILE) * 255).astype(np.uint8) for kind in kinds]
    textures = [_texture(rng, height, width, bank) for _ in range(5)]
    grain = _fractal_noise(rng, _TILE) - 0.5  # no surface is perfectly even
    canvas = (textures[0] - 0.5) * np.float32(rng.uniform(0.3, 1.0)) + np.float32(rng.uniform(0.25, 0.75))

    unit = min(height, width) / 384
    smallest, largest = rng.uniform(3, 16) * unit, rng.uniform(120, 380) * unit
    power = rng.uniform(1.2, 2.2)
    count = int(rng.integers(25, 260))
    # Inverse of the cumulative distribution of r^-power between the two radii.
    low, high = smallest ** (1 - power), largest ** (1 - power)
    radii = (low + rng.random(count) * (high - low)) ** (1 / (1 - power))
    if rng.random() < 0.7:  # large shapes behind: small ones stay visible, as things do in front of walls
        radii = np.sort(radii)[::-1] * np.exp(0.5 * rng.standard_normal(count)).clip(0.3, 2)
    plain = rng.uniform(0.05, 0.45)
    for radius in radii.tolist():
        _paint_leaf(rng, canvas, textures, radius, plain)

    if rng.random() < 0.5:  # wires, poles, cracks
        layer = Image.new("L", (2 * width, 2 * height), 0)
        draw = ImageDraw.Draw(layer)
        for _ in range(int(rng.integers(1, 9))):
            ends = rng.uniform(-0.1, 1.1, 4) * [2 * width, 2 * height, 2 * width, 2 * height]
            draw.line(ends.tolist(), fill=255, width=int(rng.integers(1, 9)))
        canvas += np.asarray(layer.reduce(2), dtype=np.float32) / 255 * (np.float32(rng.random()) - canvas)
    canvas *= np.exp(np.float32(rng.uniform(0, 0.3)) * _smooth_field(rng, height, width, int(rng.integers(1, 4))))
    repeats = -(-max(height, width) // _TILE)
    canvas += np.tile(grain, (repeats, repeats))[:height, :width] * np.float32(0.25 * rng.random() ** 2)
    low_value, high_value = np.percentile(canvas[::4, ::4], [0.5, 99.5])
    canvas = (canvas - low_value) * np.float32(rng.uniform(0.75, 1) / max(high_value - low_value, 0.05))
    image = Image.fromarray((np.clip(canvas + rng.uniform(0, 0.15), 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7))))


def render_textures(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Render grey procedural canvases: dead leaves filled from a bank of textures.

    Args:
        count: number of canvases.
        height, width: their size in pixels; 384x512 suits views of 192x256 to 240x320.
        seed: canvas i depends only on (seed, i, height, width).

    Returns:
        `(count, height, width)` uint8.
    """
    canvases = np.empty((count, height, width), dtype=np.uint8)
    for index in range(count):
        canvases[index] = _render_canvas(np.random.default_rng([seed, index, height, width]), height, width)
    return canvases


# ----------------------------------------------------------------------------------------------------------------
# Geometry
# ----------------------------------------------------------------------------------------------------------------


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _through_corners(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The homography that takes four points `(4, 2)` onto four others."""
    rows = []
    for (x, y), (u, v) in zip(source.tolist(), target.tolist(), strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.append(np.linalg.solve(np.array(rows), target.ravel()), 1.0).reshape(3, 3)


def sample_homography(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    rotation: float = 18.0,
    scale: float = 0.25,
    corners: float = 0.12,
    translation: float = 0.15,
) -> np.ndarray:
    """Sample a homography of an image onto itself: perspective, then scale, rotation about the centre, and shift.

    Args:
        rng: source of randomness; four draws of fixed shape are made whatever the settings.
        height, width: image size in pixels.
        rotation: standard deviation of the rotation, degrees.
        scale: standard deviation of the natural logarithm of the scale, cut at two deviations.
        corners: largest move of each corner before the rest, as a fraction of the height and width (uniform).
        translation: largest shift as a fraction of the height and width (uniform).

    Returns:
        `(3, 3)` float64, source pixel (x, y) -> target pixel, centre of the first pixel = (0, 0).
    """
    moves = rng.uniform(-1, 1, (4, 2)) * corners
    angle = math.radians(rotation) * rng.standard_normal()
    factor = math.exp(scale * float(np.clip(rng.standard_normal(), -2, 2)))
    shift = rng.uniform(-1, 1, 2) * translation
    extent = np.array([width, height], dtype=np.float64)
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * extent
    perspective = _through_corners(square, square + moves * extent)
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    similarity = np.array([[cos, -sin, shift[0] * width], [sin, cos, shift[1] * height], [0.0, 0.0, 1.0]])
    x, y = (width - 1) / 2, (height - 1) / 2
    matrix = _translation(x, y) @ similarity @ perspective @ _translation(-x, -y)
    return matrix / matrix[2, 2]


def _apply(matrix: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points `(n, 2)`; returns the images and their third homogeneous coordinate `(n,)`."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    w = moved[:, 2]
    return moved[:, :2] / np.where(np.abs(w) < 1e-9, 1e-9, w)[:, None], w


def _source_positions(
    inverse: np.ndarray, left: float, top: float, height: int, width: int, step: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Where each pixel of a box of the target comes from.

    Returns:
        positions `(2, height, width)` float32 (x, then y) and the homogeneous weight, `(height, width)` or one number.
    """
    (a, b, c), (d, e, f), (g, h, i) = inverse.tolist()
    xs = torch.arange(width, dtype=torch.float64) * step + left
    ys = (torch.arange(height, dtype=torch.float64) * step + top)[:, None]
    # Rows and columns in float64, the plane in float32: precise, and four times as fast.
    positions = torch.empty(2, height, width)
    torch.add((a * xs).float(), (b * ys + c).float(), out=positions[0])
    torch.add((d * xs).float(), (e * ys + f).float(), out=positions[1])
    if g == 0 and h == 0:
        return positions.mul_(1 / i), torch.tensor(i)
    weight = (g * xs).float() + (h * ys + i).float()
    return positions.mul_(weight.clamp_min(1e-6).reciprocal_()), weight


def _unit_square(height: int, width: int) -> np.ndarray:
    """Pixel -> the coordinates of `grid_sample`, `(3, 3)`.

    With `align_corners=True`, -1 and 1 are the centres of the outermost pixels: no half-pixel term.
    """
    x, y = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    return np.array([[x, 0.0, -1.0], [0.0, y, -1.0], [0.0, 0.0, 1.0]])


def _bilinear(image: Tensor, grid: Tensor, padding: str) -> Tensor:
    """Sample `(channels, h, w)` at positions `(2, height, width)` in unit-square coordinates."""
    where = grid.permute(1, 2, 0)[None]
    return F.grid_sample(image[None], where, mode="bilinear", padding_mode=padding, align_corners=True)[0]


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
    extent = torch.tensor([images.shape[-1] - 1, images.shape[-2] - 1])[:, None, None]
    scale = 2 / extent.clamp_min(1)
    inverses = torch.linalg.inv(homographies.double()).cpu().numpy()
    warped, valid = [], []
    for image, inverse in zip(images, inverses, strict=True):
        positions, weight = _source_positions(inverse, 0, 0, height, width)
        inside = ((positions >= -1e-3) & (positions <= extent + 1e-3)).all(0) & (weight > 1e-6)
        inside = inside.to(image.device)
        warped.append(_bilinear(image, (positions * scale - 1).to(image), "border") * inside)
        valid.append(inside)
    return torch.stack(warped), torch.stack(valid)


def _sample_plane(image: Tensor, inverse: np.ndarray, box: tuple[int, int, int, int], padding: str) -> Tensor:
    """Render a box (left, top, right, bottom) of a view from a plane's image, without aliasing.

    Where the plane is seen smaller than it is drawn, 2x2 or 3x3 samples per pixel are averaged.

    Args:
        image: `(channels, h, w)` float32.
        inverse: `(3, 3)`, view pixel -> pixel of the image.

    Returns:
        `(channels, bottom - top, right - left)` float32.
    """
    left, top, right, bottom = box
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) - 0.5
    placed, weights = _apply(inverse, corners)
    horizon = bool(weights.min() <= 1e-3 * weights.max())
    if horizon:
        stretch = 3.0
    else:
        sides = np.linalg.norm(np.roll(placed, -1, axis=0) - placed, axis=1)
        lengths = np.array([right - left, bottom - top, right - left, bottom - top])
        stretch = float((sides / lengths).max())
    fold = 1 if stretch < 1.25 else 2 if stretch < 2.5 else 3
    step, start = 1 / fold, -0.5 + 0.5 / fold
    height, width = (bottom - top) * fold, (right - left) * fold
    unit = _unit_square(image.shape[1], image.shape[2]) @ inverse
    grid, weight = _source_positions(unit, left + start, top + start, height, width, step)
    if horizon:  # behind the camera: far off the plane
        grid = torch.where(weight > 1e-6, grid, -20.0).clamp_(-20, 20)
    sampled = _bilinear(image, grid, padding)
    if fold == 2:  # much faster than avg_pool2d
        sampled = sampled[:, ::2] + sampled[:, 1::2]
        sampled = (sampled[..., ::2] + sampled[..., 1::2]) * 0.25
    elif fold > 2:
        sampled = F.avg_pool2d(sampled, fold)
    return sampled


# ----------------------------------------------------------------------------------------------------------------
# Photometric changes
# ----------------------------------------------------------------------------------------------------------------


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `(height, width)`; the kernel is odd and symmetric, so nothing moves."""
    radius = max(1, math.ceil(2.8 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = F.pad(image[None, None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[0, 0]


def _motion_kernel(length: float, angle: float) -> Tensor:
    """An odd, centred, point-symmetric line kernel of a length in pixels and an angle in radians."""
    radius = math.ceil(length / 2) + 1
    steps = np.linspace(-length / 2, length / 2, 4 * radius + 1)
    xs, ys = radius + steps * math.cos(angle), radius + steps * math.sin(angle)
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = np.floor(xs).astype(int) + dx, np.floor(ys).astype(int) + dy
            weight = np.maximum(1 - np.abs(xs - x), 0) * np.maximum(1 - np.abs(ys - y), 0)
            fits = weight > 0
            np.add.at(kernel, (y[fits], x[fits]), weight[fits])
    kernel += kernel[::-1, ::-1]
    return torch.from_numpy(kernel / kernel.sum()).float()


def _motion_blur(image: Tensor, length: float, angle: float) -> Tensor:
    kernel = _motion_kernel(length, angle)
    radius = kernel.shape[0] // 2
    padded = F.pad(image[None, None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(padded, kernel[None, None])[0, 0]


def _jpeg(image: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    Image.fromarray((image.numpy() * 255 + 0.5).astype(np.uint8)).save(stream, format="JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(stream), dtype=np.float32) / 255)


def _photograph(image: Tensor, rng: np.random.Generator) -> Tensor:
    """What a camera makes of a view `(height, width)` in [0, 1]: light, blur, noise, tone curve, JPEG, 8 bits."""
    height, width = image.shape
    strength = 0.0 if rng.random() < 0.25 else float(rng.beta(1.3, 1.6))
    chances = rng.random(8)

    if chances[0] < strength:
        field = _smooth_field(rng, height, width, int(rng.integers(1, 4)))
        image = image * torch.exp(torch.from_numpy(field) * float(0.5 * strength * rng.random()))
    if chances[1] < 0.6 * strength:
        angle, offset, soft = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4), math.exp(rng.uniform(0, 3.5))
        x = torch.arange(width, dtype=torch.float32) - width * (0.5 + offset)
        y = torch.arange(height, dtype=torch.float32)[:, None] - height * 0.5
        ramp = x * math.cos(angle) + y * math.sin(angle)
        if rng.random() < 0.5:  # a band instead of a half plane
            ramp = ramp.abs() - rng.uniform(0.05, 0.3) * width
        image = image * (1 - float(rng.uniform(0.2, 0.65)) * torch.sigmoid(ramp / soft))
    if chances[2] < 0.9 * strength:
        image = _blur(image, 0.3 + 1.2 * strength * float(rng.random()) ** 1.5)
    if chances[3] < 0.35 * strength:
        image = _motion_blur(image, float(rng.uniform(1, 2 + 6 * strength)), float(rng.uniform(0, math.pi)))
    if chances[4] < 0.9 * strength:
        image = image.clamp(1e-4, 1.5) ** math.exp(0.45 * strength * float(np.clip(rng.standard_normal(), -2, 2)))
    if chances[5] < 0.9 * strength:
        contrast = math.exp(0.5 * strength * float(rng.standard_normal()) - 0.25 * strength)
        middle = float(image.mean())
        image = (image - middle) * min(contrast, 1.8) + middle + 0.2 * strength * float(rng.standard_normal())
    image = image.clamp(0, 1)
    noise = 0.004 + 0.06 * strength * float(rng.random()) ** 2
    shot = 0.06 * strength * float(rng.random()) ** 2 if chances[6] < 0.5 else 0.0
    grain = torch.from_numpy(rng.standard_normal((height, width), dtype=np.float32))
    image = (image + grain * ((noise**2 + shot**2 * image).sqrt() if shot else noise)).clamp(0, 1)
    if chances[7] < 0.5 * strength:
        return _jpeg(image, int(rng.integers(25, 96)))
    return (image * 255).round_().div_(255)


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


@dataclass
class _Plane:
    """A painted plane, and view pixel -> plane pixel for both views.

    `paint` is `(1, h, w)` grey, or `(2, h, w)` grey times coverage and coverage for a cut-out.
    """

    paint: Tensor
    inverses: tuple[np.ndarray, np.ndarray]


def _toned(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A canvas `(h, w)` uint8 as float32 in [0, 1] with its own contrast and polarity."""
    middle, gain = rng.uniform(0.38, 0.62), rng.uniform(0.6, 1.7)
    gain = -gain if rng.random() < 0.5 else gain
    table = np.clip((np.arange(256) / 255 - 0.5) * gain + middle, 0, 1).astype(np.float32)
    return table[texture]


def _mirror(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """At random the identity or a left-right flip of an image, `(3, 3)`."""
    return np.array([[-1.0, 0.0, width - 1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) if rng.random() < 0.5 else np.eye(3)


def _roll(rng: np.random.Generator, sigma: float) -> float:
    """A rotation in radians: normal for most pairs, up to 90 degrees for 20%, up to 180 for 3%."""
    kind, normal, uniform = rng.random(), rng.standard_normal(), rng.uniform(-1, 1)
    if kind < 0.03:
        return math.pi * float(uniform)
    if kind < 0.23:
        return math.pi / 2 * float(uniform)
    return math.radians(sigma) * float(normal)


@lru_cache(maxsize=16)
def _lattice(height: int, width: int) -> np.ndarray:
    """A grid of 9x9 points over an image, `(81, 2)`, the centre in the middle of the list."""
    xs, ys = np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9))
    return np.stack([xs.ravel(), ys.ravel()], 1)


def _overlap(first: np.ndarray, second: np.ndarray, height: int, width: int) -> float:
    """How much the views share: the geometric mean of the shares of each that the other one sees.

    A zoom by two about the centre counts 1/2. It is 0 if any of one view lies behind the other camera.
    """
    points = _lattice(height, width)
    shares = []
    for matrix in (np.linalg.inv(second) @ first, np.linalg.inv(first) @ second):
        moved, weight = _apply(matrix, points)
        weight = weight / abs(weight[len(weight) // 2])
        inside = (moved >= 0).all(1) & (moved <= [width - 1, height - 1]).all(1)
        shares.append(float((inside & (weight > 0.05)).mean()) if weight.min() > 0.05 else 0.0)
    return math.sqrt(shares[0] * shares[1])


def _closeness(overlap: float, wanted: float) -> float:
    """1 if the overlap is within 0.15 of the wanted one, less the farther it is."""
    return 1 - max(abs(overlap - wanted) - 0.15, 0)


def _on_canvas(inverse: np.ndarray, shape: tuple[int, int], height: int, width: int) -> float:
    """The share of a view that falls on the canvas."""
    moved, weight = _apply(inverse, _lattice(height, width))
    inside = (moved >= 0).all(1) & (moved <= [shape[1] - 1, shape[0] - 1]).all(1)
    return float((inside & (weight > 0)).mean())


def _flat_views(
    rng: np.random.Generator, shape: tuple[int, int], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two views of one canvas: view pixel -> canvas pixel, `(3, 3)` each, with overlap."""
    canvas_height, canvas_width = shape
    wanted = rng.uniform(0.25, 0.95)
    best, best_score = None, -1.0
    for _ in range(12):
        base = math.exp(rng.uniform(-0.3, 0.5))
        reach = 0.6 * (1.1 - wanted) * rng.random()
        ratio = math.exp(float(np.clip(0.3 * rng.standard_normal(), -0.75, 0.75)) / 2)
        fit = 1.1 * min(canvas_height / height, canvas_width / width)
        twist = _roll(rng, 18)
        middle = rng.uniform(0, 2 * math.pi)
        strong = rng.uniform(0.02, 0.18)
        views = []
        for sign in (1, -1):
            size = min(base * ratio**sign, fit)
            zoom = np.diag([size, size, 1.0])
            angle = (0.15 * rng.standard_normal() if rng.random() < 0.7 else middle) + sign * twist / 2
            cos, sin = math.cos(angle), math.sin(angle)
            turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
            warp = sample_homography(rng, height, width, rotation=0, scale=0, corners=strong, translation=reach)
            centred = _translation(-(width - 1) / 2, -(height - 1) / 2) @ warp
            views.append(turn @ zoom @ centred)
        spare_x = max(0.0, (canvas_width - width * base) / 2)
        spare_y = max(0.0, (canvas_height - height * base) / 2)
        centre = _translation(
            (canvas_width - 1) / 2 + rng.uniform(-0.6, 0.6) * spare_x,
            (canvas_height - 1) / 2 + rng.uniform(-0.6, 0.6) * spare_y,
        )
        flip = _mirror(rng, canvas_height, canvas_width)
        first, second = flip @ centre @ views[0], flip @ centre @ views[1]
        seen = min(_on_canvas(first, shape, height, width), _on_canvas(second, shape, height, width))
        score = _closeness(_overlap(first, second, height, width), wanted) + min(seen / 0.85, 1)
        if score > best_score:
            best, best_score = (first, second), score
        if score >= 2:
            break
    assert best is not None
    return best


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula, `(3, 3)`."""
    x, y, z = axis / (np.linalg.norm(axis) + 1e-12)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def _cameras(rng: np.random.Generator, height: int, width: int, depth: float, spread: float = 0.5) -> list[np.ndarray]:
    """Two cameras `K [R | t]`, `(3, 4)` each, about a scene that lies `depth` ahead along z.

    `spread`, about 0.2 to 1, is how far they look apart.
    """
    focal = width * rng.uniform(0.8, 1.6)
    intrinsic = np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])
    twist = _roll(rng, 12)
    base = 0.1 * rng.standard_normal()
    span = rng.uniform(0.05, 0.5) * depth
    heading = rng.uniform(0, 2 * math.pi)
    step = np.array([math.cos(heading), 0.5 * math.sin(heading), 0.0]) * span
    step[2] = float(np.clip(0.14 * rng.standard_normal(), -0.35, 0.35)) * depth
    field = 0.5 * width / focal * depth
    cameras = []
    for sign in (1, -1):
        place = sign * step / 2
        aim = np.array([rng.uniform(-1, 1) * field * spread, rng.uniform(-0.75, 0.75) * field * spread, depth])
        forward = (aim - place) / np.linalg.norm(aim - place)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        look = np.stack([right, np.cross(forward, right), forward])
        turn = _rotation(np.array([0.0, 0.0, 1.0]), base + sign * twist / 2) @ look
        cameras.append(intrinsic @ np.concatenate([turn, -(turn @ place)[:, None]], axis=1))
    return cameras


def _tilted(rng: np.random.Generator, sigma: float, limit: float, spin: bool) -> np.ndarray:
    """Two orthogonal directions of a tilted plane, `(3, 2)`; angles in degrees."""
    angle = math.radians(float(np.clip(sigma * rng.standard_normal(), -limit, limit)))
    heading = rng.uniform(0, 2 * math.pi)
    tilt = _rotation(np.array([math.cos(heading), math.sin(heading), 0.0]), angle)
    turn = _rotation(np.array([0.0, 0.0, 1.0]), rng.uniform(0, 2 * math.pi) if spin else 0.15 * rng.standard_normal())
    return (tilt @ turn)[:, :2]


def _plane_inverses(
    cameras: Sequence[np.ndarray], axes: np.ndarray, origin: np.ndarray, pixel: float, middle: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """View pixel -> plane pixel for both cameras; a plane pixel is `pixel` wide and `middle` lies at the origin.

    The last row is scaled so that its product with a view pixel is positive in front of the camera.
    """
    u, v = axes[:, 0] * pixel, axes[:, 1] * pixel
    placed = np.stack([u, v, origin - middle[0] * u - middle[1] * v], axis=1)
    placed = np.concatenate([placed, [[0.0, 0.0, 1.0]]])  # plane pixel -> homogeneous world point
    inverses = []
    for camera in cameras:
        inverse = np.linalg.inv(camera @ placed)
        # inv(P) (x, y, 1) = (u, v, 1) / depth: positive weight means in front; only the scale is free.
        inverses.append(inverse / np.abs(inverse[2]).max())
    return inverses[0], inverses[1]


def _cut_out(rng: np.random.Generator, texture: np.ndarray, size: int) -> Tensor:
    """A cut-out of a canvas: `(2, h, w)` float32 grey times coverage, and coverage; at most `size` pixels wide."""
    size = min(size, *texture.shape)
    kind = rng.random()
    y, x = int(rng.integers(texture.shape[0] - size + 1)), int(rng.integers(texture.shape[1] - size + 1))
    paint = _toned(texture[y : y + size, x : x + size], rng)
    middle = (size - 1) / 2
    outline = _outline(rng, 0.5 * size)
    reach = max(float(np.abs(outline).max()), 1.0)
    outline = outline * ((middle - 2) / reach) + middle
    mask = Image.new("L", (2 * size, 2 * size), 0)
    draw = ImageDraw.Draw(mask)
    draw.polygon((outline * 2 + 0.5).ravel().tolist(), fill=255)
    if kind < 0.15:  # holes: what lies behind shows through
        for _ in range(int(rng.integers(1, 5))):
            hole = _outline(rng, size * rng.uniform(0.08, 0.2)) + rng.uniform(0.3, 0.7, 2) * size
            draw.polygon((hole * 2 + 0.5).ravel().tolist(), fill=0)
    elif kind < 0.25:  # bars: a fence or a lattice
        step = size * rng.uniform(0.1, 0.3)
        draw.rectangle([0, 0, 2 * size, 2 * size], fill=0)
        for position in np.arange(0.1 * size, 0.95 * size, step):
            thick = step * 0.25
            draw.rectangle([2 * position, 4, 2 * (position + thick), 2 * size - 4], fill=255)
            if kind < 0.2:
                draw.rectangle([4, 2 * position, 2 * size - 4, 2 * (position + thick)], fill=255)
    cover = np.asarray(mask.reduce(2), dtype=np.float32) / 255
    if rng.random() < 0.5:
        ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
        paint = paint * (1 + rng.uniform(-0.6, 0.6) * ramp).astype(np.float32)
        paint = paint * (1 + rng.uniform(-0.6, 0.6) * ramp[:, None]).astype(np.float32)
    return torch.from_numpy(np.stack([paint.clip(0, 1) * cover, cover]))


def _layered_world(
    rng: np.random.Generator, textures: np.ndarray, height: int, width: int, max_layers: int
) -> list[_Plane]:
    """A background and tilted cut-outs under two cameras, back to front."""
    canvas_height, canvas_width = textures.shape[1:]
    depth = 1.0
    field: float = 0.0
    cameras: list[np.ndarray] = []
    background: tuple[np.ndarray, np.ndarray] = (np.eye(3), np.eye(3))
    best = -1.0
    wanted = rng.uniform(0.25, 0.95)
    for _ in range(12):
        tried = _cameras(rng, height, width, depth, 1.1 - wanted)
        focal = _focal(tried[0])
        pixel = depth / focal * math.exp(-rng.uniform(-0.25, 0.35))
        axes = _tilted(rng, 18, 45, spin=False)
        middle = ((canvas_width - 1) / 2, (canvas_height - 1) / 2)
        inverses = _plane_inverses(tried, axes, np.array([0.0, 0.0, depth]), pixel, middle)
        shape = (canvas_height, canvas_width)
        seen = min(_on_canvas(inverse, shape, height, width) for inverse in inverses)
        score = _closeness(_overlap(*inverses, height, width), wanted) + min(seen / 0.85, 1)
        if score > best:
            best, cameras, background = score, tried, inverses
            field = depth * width / focal
        if score >= 2:
            break
    flip = _mirror(rng, canvas_height, canvas_width)
    paint = torch.from_numpy(_toned(textures[int(rng.integers(len(textures)))], rng))[None]
    planes = [_Plane(paint, (flip @ background[0], flip @ background[1]))]

    count = int(rng.integers(1, max(max_layers - 1, 1) + 1)) if max_layers > 1 else 0
    depths = np.sort(depth * rng.uniform(0.5, 0.93, count))[::-1]
    for distance in depths.tolist():
        share = rng.uniform(0.3, 1.0)  # of the width of the view
        size = int(np.clip(share * width * math.exp(rng.uniform(-0.2, 0.5)), 32, min(canvas_height, canvas_width)))
        local = field * distance / depth
        origin = np.array([rng.uniform(-0.5, 0.5) * local, rng.uniform(-0.5, 0.5) * local * height / width, distance])
        pixel = share * local / size
        axes = _tilted(rng, 25, 60, spin=rng.random() < 0.4)
        cut_out = _cut_out(rng, textures[int(rng.integers(len(textures)))], size)
        middle = ((cut_out.shape[2] - 1) / 2, (cut_out.shape[1] - 1) / 2)
        planes.append(_Plane(cut_out, _plane_inverses(cameras, axes, origin, pixel, middle)))
    return planes


def _focal(camera: np.ndarray) -> float:
    """The focal length of `K [R | t]` in pixels: the last row of K R is the unit viewing direction."""
    ahead = camera[2, :3]
    return float(np.linalg.norm(camera[0, :3] - (camera[0, :3] @ ahead) * ahead))


def _render_view(planes: list[_Plane], view: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Paint the planes back to front: grey `(height, width)` float32 and layer ids `(height, width)` uint8."""
    background, inverse = planes[0].paint, planes[0].inverses[view]
    whole = (0, 0, width, height)
    grey = _sample_plane(background, inverse, whole, "reflection")[0]
    rim = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    extent = [background.shape[2] - 1, background.shape[1] - 1]
    placed, weights = _apply(inverse, rim)
    layers = torch.zeros(height, width, dtype=torch.uint8)
    if weights.min() <= 0 or (placed < 0).any() or (placed > extent).any():
        positions, weight = _source_positions(inverse, 0, 0, height, width)
        limits = torch.tensor(extent)[:, None, None]
        known = ((positions >= 0) & (positions <= limits)).all(0) & (weight > 1e-6)
        layers.masked_fill_(~known, OUTSIDE)
    for index, plane in enumerate(planes[1:], start=1):
        inverse = plane.inverses[view]
        box = _visible_box(inverse, plane.paint.shape[-2:], height, width)
        if box is None:
            continue
        left, top, right, bottom = box
        paint, cover = _sample_plane(plane.paint, inverse, box, "zeros")
        region = grey[top:bottom, left:right]
        grey[top:bottom, left:right] = region * (1 - cover) + paint
        ids = layers[top:bottom, left:right]
        layers[top:bottom, left:right] = torch.where(cover >= 0.5, torch.full_like(ids, index), ids)
    return grey.clamp_(0, 1), layers


def _visible_box(
    inverse: np.ndarray, shape: torch.Size | tuple[int, int], height: int, width: int
) -> tuple[int, int, int, int] | None:
    """The part of a view that a plane image of `shape` may touch, or None."""
    tall, wide = int(shape[0]), int(shape[1])
    rim = np.array([[-1, -1], [wide, -1], [wide, tall], [-1, tall]], dtype=np.float64)
    forward = np.linalg.inv(inverse)
    placed, weight = _apply(forward, rim)
    if weight.max() <= 0:
        return None
    if weight.min() <= 1e-6 * weight.max():
        return 0, 0, width, height
    left, top = np.floor(placed.min(0)).clip(0, [width, height]).astype(int).tolist()
    right, bottom = (np.ceil(placed.max(0)) + 1).clip(0, [width, height]).astype(int).tolist()
    return (left, top, right, bottom) if right - left > 1 and bottom - top > 1 else None


def _between(plane: _Plane, height: int, width: int) -> np.ndarray:
    """View 0 -> view 1 on a plane, `(3, 3)`; the third coordinate is positive in front of both cameras."""
    matrix = np.linalg.inv(plane.inverses[1]) @ plane.inverses[0]
    weight = matrix[2] @ [(width - 1) / 2, (height - 1) / 2, 1.0]
    return matrix / (abs(weight) if abs(weight) > 1e-6 else np.abs(matrix[2]).max())


def _sample_pair(
    textures: np.ndarray, seed: int, height: int, width: int, multi_plane: float, max_layers: int, unrelated: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[np.ndarray]]:
    """One pair: images, clean views and layers of both views, and one homography per layer."""
    rng = np.random.default_rng([seed, 0])
    kind = rng.random(2)
    worlds: list[list[_Plane]] = []
    for _ in range(2 if kind[0] < unrelated else 1):
        if kind[1] < multi_plane:
            worlds.append(_layered_world(rng, textures, height, width, max_layers))
        else:
            canvas = textures[int(rng.integers(len(textures)))]
            views = _flat_views(rng, (canvas.shape[0], canvas.shape[1]), height, width)
            worlds.append([_Plane(torch.from_numpy(_toned(canvas, rng))[None], views)])
    clean, layers, images = [], [], []
    for view in range(2):
        grey, ids = _render_view(worlds[-view], view, height, width)
        if len(worlds) > 1:  # two worlds share no layer: 0 in view 0, 1 in view 1
            ids = torch.where(ids == OUTSIDE, ids, torch.full_like(ids, view))
        clean.append(grey)
        layers.append(ids)
        images.append(_photograph(grey, np.random.default_rng([seed, 1 + view])))
    matrices = [_between(plane, height, width) for plane in worlds[0]] if len(worlds) == 1 else []
    return images, clean, layers, matrices


def sample_pairs(
    textures: np.ndarray | Tensor,
    seeds: Sequence[int],
    height: int,
    width: int,
    *,
    multi_plane: float = 0.0,
    max_layers: int = 5,
    unrelated: float = 0.0,
) -> PlanarPairs:
    """Sample pairs of views of planar worlds painted with canvases.

    Args:
        textures: `(count, h, w)` uint8 canvases, see `render_textures`.
        seeds: one per pair, each at least 0; item i depends only on seeds[i], the canvases and the settings.
        height, width: size of the views in pixels.
        multi_plane: probability of a world of several planes instead of one.
        max_layers: largest number of layers, the background included (2 or more for cut-outs, at most 7).
        unrelated: probability of two views of different worlds; then no point of one is visible in the other.

    Returns:
        `PlanarPairs` with `layers` of size `max_layers` (1 if `multi_plane` is 0) in `homographies`, on the CPU; an
        unrelated pair shows layer 0 in image 0 and layer 1 in image 1.
    """
    canvases = textures.cpu().numpy() if isinstance(textures, Tensor) else textures
    if canvases.ndim != 3 or canvases.dtype != np.uint8:
        raise ValueError(f"textures must be (count, height, width) uint8, got {canvases.shape} {canvases.dtype}")
    if not 1 <= max_layers <= 7:
        raise ValueError(f"max_layers must be from 1 to 7, got {max_layers}")
    slots = max_layers if multi_plane > 0 else 1
    slots = max(slots, 2) if unrelated > 0 else slots
    shape = (len(seeds), 2, height, width)
    images, clean = torch.empty(shape), torch.empty(shape)
    layers = torch.empty(shape, dtype=torch.uint8)
    homographies = torch.eye(3).repeat(len(seeds), slots, 1, 1)
    for index, seed in enumerate(seeds):
        views = _sample_pair(canvases, int(seed), height, width, multi_plane, max_layers, unrelated)
        for view in range(2):
            images[index, view], clean[index, view], layers[index, view] = (
                views[0][view],
                views[1][view],
                views[2][view],
            )
        for layer, matrix in enumerate(views[3]):
            homographies[index, layer] = torch.from_numpy(matrix).float()
    return PlanarPairs(images, clean, homographies, layers)


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
