"""Procedural canvases: dead leaves painted with a bank of textures; and the shapes of cut-outs. No photo is involved.

Every random choice comes from a generator seeded per canvas, never from global state.

Source: dead leaves with a power law of radii, Lee, Mumford and Huang, "Occlusion models for natural images" (2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["cut_out_coverage", "render_textures"]


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
    _fill(ImageDraw.Draw(mask), outline - [left, top], 255)
    return mask.reduce(2)


def _fill(draw: ImageDraw.ImageDraw, outline: np.ndarray, value: int) -> None:
    """Fill a polygon `(n, 2)` in pixels on a drawing of twice the size."""
    draw.polygon((outline * 2 + 0.5).ravel().tolist(), fill=value)


def cut_out_coverage(rng: np.random.Generator, size: int) -> np.ndarray:
    """The coverage of a random shape, with holes or barred at times: `(size, size)` uint8, 255 where it is opaque.

    The two outermost pixels are clear, so that averages over 3x3 pixels end within.
    """
    kind, middle = rng.random(), (size - 1) / 2
    outline = _outline(rng, size / 2)
    mask = Image.new("L", (2 * size, 2 * size), 0)
    draw = ImageDraw.Draw(mask)
    _fill(draw, outline * ((middle - 2) / np.abs(outline).max()) + middle, 255)
    if kind < 0.15:  # holes: what lies behind shows through
        for _ in range(int(rng.integers(1, 5))):
            _fill(draw, _outline(rng, size * rng.uniform(0.08, 0.2)) + rng.uniform(0.3, 0.7, 2) * size, 0)
    elif kind < 0.25:  # bars: a fence or a lattice
        step = size * rng.uniform(0.1, 0.3)
        draw.rectangle([0, 0, 2 * size, 2 * size], fill=0)
        for start in np.arange(0.1 * size, 0.95 * size, step):
            end = start + step * 0.25
            draw.rectangle([2 * start, 0, 2 * end, 2 * size], fill=255)
            if kind < 0.2:
                draw.rectangle([0, 2 * start, 2 * size, 2 * end], fill=255)
    return np.pad(np.asarray(mask.reduce(2))[2:-2, 2:-2], 2)


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
