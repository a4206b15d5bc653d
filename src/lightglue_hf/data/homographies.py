"""Warped and multi-plane pairs of procedural canvases, and their exact ground truth.

Every pair shows a *planar layered world*: each visible pixel belongs to one plane, and a plane maps from view 0 to
view 1 by one homography, so that parallax and occlusion are exact. A world is sampled as a few numbers per plane and
view (worlds.py), rendered (rendering.py), and changed as a camera would (photometry.py).

Every random choice comes from a generator seeded per item, never from global state: item i of a batch is the same
picture whatever the rest of the batch is, on a GPU, which renders a batch at once, but for rounding. Devices differ by
rounding, too, and in the noise that they draw from a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from .ground_truth import ground_truth_matches, project_points
from .photometry import augment, sample_exposure
from .rendering import Stroke, render
from .warps import sample_homography, warp_images
from .worlds import OUTSIDE, USUAL, Changes, flat_world, layered_world, plane_homography, plane_placements

__all__ = [
    "OUTSIDE",
    "Changes",
    "PlanarPairs",
    "ground_truth_matches",
    "project_points",
    "sample_homography",
    "sample_pairs",
    "warp_images",
]


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
        canvases: `(batch, layers)` int64, which canvas a layer is painted with, -1 where it is not used, and in an
            unrelated pair, where a layer has several.
        placements: `(batch, 2, layers, 3, 3)` float32, pixel (x, y) of the layer's canvas -> pixel of image 0 and 1,
            with a positive third coordinate in front of the camera; identity where a layer is not used.
    """

    images: Tensor
    clean: Tensor
    homographies: Tensor
    layers: Tensor
    canvases: Tensor
    placements: Tensor

    def to(self, device: torch.device | str) -> PlanarPairs:
        """The same pairs on another device."""
        return PlanarPairs(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def sample_pairs(
    textures: np.ndarray | Tensor,
    seeds: Sequence[int],
    height: int,
    width: int,
    *,
    multi_plane: float = 0.0,
    max_layers: int = 5,
    unrelated: float = 0.0,
    changes: Changes = USUAL,
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
        changes: how much the two views differ.
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
    placements = np.tile(np.eye(3, dtype=np.float32), (len(seeds), 2, slots, 1, 1))
    painted = np.full((len(seeds), slots), -1)
    strokes: list[Stroke] = []
    exposures: list[np.ndarray] = []
    for index, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 0])
        strange, layered = rng.random(2) < (unrelated, multi_plane)
        worlds = [
            layered_world(rng, canvases.shape, height, width, max_layers, changes)
            if layered
            else flat_world(rng, canvases.shape, height, width, changes)
            for _ in range(2 if strange else 1)
        ]
        for number, world in enumerate(worlds):
            for order, plane in enumerate(world):
                for side in (number,) if strange else (0, 1):  # two worlds share no layer
                    strokes.append(Stroke(plane, side, 2 * index + side, order, number if strange else order))
        exposures.extend(sample_exposure(np.random.default_rng([seed, 1 + side])) for side in (0, 1))
        if not strange:
            for layer, plane in enumerate(worlds[0]):
                homographies[index, layer] = plane_homography(plane, height, width)
                placements[index, :, layer] = plane_placements(plane)
                painted[index, layer] = plane.canvas
    shape = len(exposures), height, width
    together = device.type != "cpu"
    clean, layers = render(strokes, canvases, shape, device, together)
    images = augment(clean, np.stack(exposures), together)
    images, clean, layers = (maps.unflatten(0, (-1, 2)) for maps in (images, clean, layers))
    matrices, numbers, places = (torch.from_numpy(array).to(device) for array in (homographies, painted, placements))
    return PlanarPairs(images, clean, matrices, layers, numbers, places)
