"""Painting the planes of worlds on views: torch, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .warps import bilinear, inside_unit, project, similarity, source_positions, to_unit
from .worlds import OUTSIDE, Plane, seen_share


@dataclass
class Stroke:
    """One plane to be painted on one view."""

    plane: Plane
    side: int  # of the pair: 0 or 1
    view: int  # of the batch
    order: int  # behind those of greater order
    layer: int  # what it is called where it is seen


def render(
    strokes: list[Stroke], canvases: Tensor, shape: tuple[int, int, int], device: torch.device, together: bool
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
    unknown = seen_share(similarity(0, 1, -1, -1) @ inverses, (height, width), inner)[0] < 1
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
                layers[region] = torch.where(inside_unit(positions, *textures.shape[-2:]), layer, OUTSIDE)
    return grey.clamp_(0, 1), layers


def _texture(plane: Plane, canvases: Tensor, device: torch.device) -> Tensor:
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
    unit = to_unit(textures.shape[2], textures.shape[3], first=(fold - 1) / 2) @ inverses
    positions = source_positions(unit, np.arange(left, right), np.arange(top, bottom), textures.device)
    return bilinear(textures, positions, padding), positions


def _footprints(inverses: np.ndarray, sizes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """What planes need in views: for `inverses` `(n, 3, 3)` and `sizes` `(n, 2)`, height and width of the planes.

    Returns:
        boxes `(n, 4)`, (left, top, right, bottom) of what they may touch; and how many pixels of each fall on the
        side of one of the view, `(n,)`, 1 to 3: so many are averaged against aliasing.
    """
    view = np.array([width, height])
    rim = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    placed, weight = project(np.linalg.inv(inverses), rim * (sizes[:, None, ::-1] + 1) - 1)
    first, last = np.clip(np.floor(placed.min(1)), 0, view), np.clip(np.ceil(placed.max(1)) + 1, 0, view)
    cut = weight.min(1) <= 1e-6 * weight.max(1)  # it reaches behind the camera
    first[cut], last[cut] = 0, view
    last[weight.max(1) <= 0] = 0

    extent = np.maximum(last - first, 1)
    placed, weight = project(inverses, first[:, None] + rim * extent[:, None] - 0.5)
    sides = np.linalg.norm(np.roll(placed, -1, axis=1) - placed, axis=-1)
    stretch = (sides / extent[:, [0, 1, 0, 1]]).max(1)
    stretch[weight.min(1) <= 1e-3 * weight.max(1)] = np.inf  # the horizon
    return np.concatenate([first, last], 1).astype(int), np.digitize(stretch, np.sqrt([2, 6])) + 1
