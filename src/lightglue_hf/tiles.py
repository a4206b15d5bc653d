"""Features of huge photos at full resolution: tile by tile, and merged into those of one photo.

The pixels of a photo are shared out among cores. A tile is a core and a border of what lies around it, so that at the
seams a detector sees what it sees in the whole photo; keypoints are looked for in the core alone, where the whole
budget of `max_keypoints` is spent. So no keypoint is found twice, and the best of all cores are the best of the photo.

Of SuperPoint (CNN of local reach) keypoints and scores are those of the whole photo at once; its descriptors are
sampled on a grid that is stretched by a photo's size (see `SuperPointConfig.descriptor_grid`), and differ a little.
Detectors that look at a picture as a whole see each tile as a picture: DISK and XFeat normalise it by its mean and
variance, ALIKED upsamples with aligned corners and may take the mean score for a threshold, and SIFT's largest
neighbourhoods are cut off at a border.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .features import KeypointFeatures

SIDE = 1024
"""Pixels a side of a tile, with its borders."""
BORDER = 96
"""Pixels of what lies around a core. SuperPoint's scores see 65; a multiple of the detectors' strides."""
ALIGNMENT = 32
"""Pixels: tiles begin at multiples of it, so that the cells of the detectors are those of the whole photo."""
TILES_AT_ONCE = 4
"""That are in memory together."""


class Span(NamedTuple):
    """Along one side of a photo: a tile, and its core within the photo; pixels, from the first to before the last."""

    start: int
    stop: int
    core_start: int
    core_stop: int


def cut_side(length: int, side: int = SIDE) -> list[Span]:
    """The tiles along a side of a photo, of `side` pixels each but the last, which may be smaller.

    Raises:
        ValueError: `side` is no multiple of 32 that leaves a core.
    """
    step = side - 2 * BORDER
    if side % ALIGNMENT or step <= 0:
        raise ValueError(f"tiles must be a multiple of {ALIGNMENT} pixels above {2 * BORDER} a side, got {side}")
    count = max(1, math.ceil((length - 2 * BORDER) / step))
    return [
        Span(
            start=i * step,
            stop=min(i * step + side, length),
            core_start=i * step + BORDER if i > 0 else 0,
            core_stop=(i + 1) * step + BORDER if i < count - 1 else length,
        )
        for i in range(count)
    ]


def features_of_tiles(model: Any, processor: Any, pixels: np.ndarray, side: int = SIDE) -> KeypointFeatures:
    """Detect and describe the keypoints of a photo of any size; no more than a few tiles are computed at once.

    Args:
        model: with a detector: `LightGlueForKeypointMatching`, or a runtime of exported graphs, which take no region
            and spend a part of their keypoints on the borders.
        processor: its image processor; it does not resize here.
        pixels: `(channels, height, width)`, as `to_pixels` gives them for white = 255, or in [0, 1].
        side: of a tile with its borders, pixels; a multiple of 32.

    Returns:
        Features of `shape` `(1,)` without padding, the best `max_keypoints` of the photo, best first; keypoints in
        pixels of the whole photo.

    Raises:
        ValueError: see [`cut_side`].
    """
    height, width = pixels.shape[1:]
    detector: Any = getattr(model, "keypoint_detector", None)  # exported graphs have none
    config = model.config.keypoint_detector_config if detector is None else detector.config
    tiles = [(rows, columns) for rows in cut_side(height, side) for columns in cut_side(width, side)]
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(tiles), TILES_AT_ONCE):
        several = tiles[start : start + TILES_AT_ONCE]
        for index, features in enumerate(_search(model, processor, pixels, several), start):
            features["tile"] = np.full(len(features["scores"]), index)
            found = {name: np.concatenate([found.get(name, value[:0]), value]) for name, value in features.items()}
        best = np.argsort(-found["scores"], kind="stable")
        found = {name: value[best] for name, value in found.items()}
        keep = _without_doubles(found, tiles, _radius(config))
        if config.max_keypoints >= 0:
            keep = keep[: config.max_keypoints]
        found = {name: value[keep] for name, value in found.items()}
    del found["tile"]
    return KeypointFeatures.from_numpy([{**found, "image_sizes": np.array([height, width])}]).to(model.device)


def _search(model: Any, processor: Any, pixels: np.ndarray, tiles: list[tuple[Span, Span]]) -> Iterator[Any]:
    """The features of tiles as arrays, keypoints in pixels of the photo and of the core alone."""
    takes_region = not hasattr(model, "engine")
    cut = [pixels[:, rows.start : rows.stop, columns.start : columns.stop] for rows, columns in tiles]
    regions = [_core(rows)[:, None] & _core(columns) for rows, columns in tiles] if takes_region else None
    inputs = processor(
        cut,
        pairs=False,
        regions=regions,
        do_resize=False,
        return_tensors="pt",
        input_data_format="channels_first",
        device=model.device,
    )
    for (rows, columns), features in zip(tiles, model.extract_features(**inputs).numpy()):
        del features["image_sizes"]
        features["keypoints"] = features["keypoints"] + np.array([columns.start, rows.start], np.float32)
        if not takes_region:
            low = np.array([columns.core_start, rows.core_start]) - 0.5
            high = np.array([columns.core_stop, rows.core_stop]) - 0.5
            inside = ((features["keypoints"] >= low) & (features["keypoints"] < high)).all(-1)
            features = {name: value[inside] for name, value in features.items()}
        yield features


def _core(span: Span) -> np.ndarray:
    """Which pixels of a tile are its core, along one side."""
    pixels = np.arange(span.start, span.stop)
    return (pixels >= span.core_start) & (pixels < span.core_stop)


def _radius(config: Any) -> int:
    """Pixels along both axes within which a detector leaves one keypoint of several; at least one."""
    return max(1, getattr(config, "nms_radius", getattr(config, "window", 1) // 2))


def _without_doubles(found: dict[str, np.ndarray], tiles: list[tuple[Span, Span]], radius: int) -> np.ndarray:
    """The numbers of keypoints, best first, but for those too near to a better one across a seam.

    Where a detector sees slightly different scores in two tiles, each may have its own maximum at the seam.
    """
    points, tile = found["keypoints"], found["tile"]
    near = np.zeros(len(points), bool)
    for axis, side in ((1, 0), (0, 1)):  # points are (x, y), tiles (rows, columns)
        seams = np.unique([spans[side].core_start for spans in tiles])[1:] - 0.5
        near |= (np.abs(points[:, axis, None] - seams) <= radius + 1).any(1)
    candidates = np.flatnonzero(near)
    gaps = np.abs(points[candidates, None] - points[candidates]).max(-1)
    doubles = (gaps <= radius) & (tile[candidates, None] != tile[candidates])
    dropped = candidates[np.tril(doubles, -1).any(1)]  # a better one comes before
    return np.setdiff1d(np.arange(len(points)), dropped)


__all__ = ["features_of_tiles"]
