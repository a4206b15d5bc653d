"""A pair of photos that may not stand alike, or are too large to be seen at once.

Matchers learned from upright photos: of one on its side they find less, and of one upside down little. So the second
photo is also searched turned by quarters, all turns are matched with the first photo together, and what matches best
is kept: the largest sum of matching scores, which is the number of true matches that the matcher expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .features import KeypointFeatures
from .geometry import turn_keypoints
from .image_processing_lightglue import resize_options, resize_to
from .images import load_image, to_pixels
from .tiles import SIDE, features_of_tiles
from .utils.errors import InputError

TURNS = (1, 2, 4)


@torch.inference_mode()
def match_turned(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    turns: int = 1,
    tiles: bool | int = False,
    longest_edge: int | None = None,
) -> tuple[Any, int]:
    """Match two photos, with turns and tiles if they are asked for.

    Args:
        model: `LightGlueForKeypointMatching`, or a runtime of exported graphs; for turns and tiles with those of its
            two halves.
        processor: its image processor.
        images: two: PIL images, or arrays or tensors `(h, w)`, `(h, w, c)` or `(c, h, w)`, or paths or URLs.
        turns: 1: as they are; 2: also the second upside down; 4: by all quarter turns.
        tiles: search them in tiles of `True`: 1024 pixels, or so many, at full resolution or `longest_edge`.
        longest_edge: pixels that the longer side of each is resized to; as the processor is configured by default.

    Returns:
        The output of the model for this one pair, its keypoints in the photos as they were given; and the
        counter-clockwise quarter turns of the second photo, 0 to 3, with which it was found.

    Raises:
        ValueError: other turns; tiles of a size that leaves no core; a `longest_edge` that is no number; no image;
            a graph that was made for images of one size, for tiles or quarter turns.
    """
    if turns not in TURNS:
        raise ValueError(f"turns must be 1, 2 or 4, got {turns!r}")
    if turns == 1 and not tiles:
        options = resize_options(longest_edge)
        return model(**processor(list(images), return_tensors="pt", device=model.device, **options)), 0
    height, width = _fixed_size(model)
    if height and (tiles or (turns == 4 and height != width)):
        raise InputError(
            f"this graph takes images of {height} x {width} alone, and no tiles or quarter turns of them: export it "
            "without height and width"
        )
    side = SIDE if tiles is True else int(tiles)
    first, second = (_pixels(image, processor, bool(tiles), longest_edge) for image in images)
    tried = range(0, 4, 4 // turns)
    found = _features(model, processor, [first], side)
    turned = _features(model, processor, [np.rot90(second, turn, (1, 2)) for turn in tried], side)
    outputs = model.match_features(KeypointFeatures.cat([found, turned]).pairs([[0, 1 + i] for i in range(turns)]))
    scores = outputs.matching_scores[:, 0].float().masked_fill(outputs.matches[:, 0] < 0, 0).sum(-1)
    best = int(np.argmax(scores.cpu().numpy()))  # of equals the least turned
    outputs = type(outputs)(**{name: value[best : best + 1] for name, value in outputs.items()})
    return _turned_back(outputs, turned[best], tried[best]), tried[best]


def _fixed_size(model: Any) -> tuple[int, int]:
    """(height, width) of the images that a graph was made for; 0 for any."""
    axes = model.axes("detector") if hasattr(model, "engine") else None
    height, width = axes["pixel_values"][-2:] if axes else (0, 0)
    return (height, width) if height and width else (0, 0)


def _pixels(image: Any, processor: Any, full: bool, longest_edge: int | None) -> np.ndarray:
    """An image as the model is to see it, but for what the processor does beside resizing.

    It is resized before it is turned, so that all turns have the very same pixels.

    Returns:
        `(channels, height, width)`, uint8, or float32 in [0, 1].
    """
    if not isinstance(image, (Image.Image, np.ndarray, torch.Tensor)):
        image = load_image(image)
    pixels, white = to_pixels(image)
    options = resize_options(longest_edge)
    if options or (processor.do_resize and not full):
        pixels = resize_to(pixels, options.get("size", processor.size), processor.resample)
    return pixels if white == 255 else np.clip(pixels / np.float32(white), 0, 1)


def _features(model: Any, processor: Any, photos: list[np.ndarray], side: int) -> KeypointFeatures:
    """The features of photos, `shape` = `(photos,)`; of tiles of so many pixels, if any."""
    if side:
        return KeypointFeatures.cat(features_of_tiles(model, processor, photo, side) for photo in photos)
    inputs = processor(
        photos,
        pairs=False,
        do_resize=False,
        return_tensors="pt",
        input_data_format="channels_first",
        device=model.device,
    )
    return model.extract_features(**inputs)


def _turned_back(outputs: Any, features: KeypointFeatures, turns: int) -> Any:
    """The output for a pair whose second photo, of these features, was turned, as if it had not been."""
    size = features["image_sizes"].tolist()
    keypoints, sizes = outputs.keypoints.clone(), outputs.image_sizes.clone()
    sizes[0, 1] = features["image_sizes"] if turns % 2 == 0 else features["image_sizes"].flip(-1)
    points = turn_keypoints(features["keypoints"], size, -turns) / sizes[0, 1].flip(-1)  # pixels are exact, still
    n = len(points)
    keypoints[0, 1, :n] = torch.where(outputs.mask[0, 1, :n, None] > 0, points, 0)
    outputs.keypoints, outputs.image_sizes = keypoints, sizes
    return outputs


__all__ = ["TURNS", "match_turned"]
