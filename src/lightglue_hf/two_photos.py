"""Two photos in, the points that match out, in one call."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForKeypointMatching

from .convert.published import located, names
from .evaluation.methods import to_prediction
from .image_processing_lightglue import LightGlueImageProcessor
from .images import load_image, to_pixels
from .turns import match_turned
from .utils.validation import whole_number

IMAGES = (Image.Image, np.ndarray, torch.Tensor)


class _Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int

    @classmethod
    def of(cls, image: Any) -> _Size:
        if isinstance(image, Image.Image):
            return cls(image.height, image.width)
        return cls(*to_pixels(image)[0].shape[1:])


class PhotoMatches(NamedTuple):
    """What matches in two photos; points in pixels of each photo, (x, y), centre of the first pixel = (0, 0).

    Args:
        keypoints0: `(m, 2)` float32, the matched points of the first photo.
        keypoints1: `(m, 2)` float32, those of the second, in the same order; in the photo as it was given, whatever
            `turns`.
        matching_scores: `(m,)` float32 in [0, 1].
        matches: `(m, 2)` int64, where the matched points stand among all.
        all_keypoints0: `(n0, 2)` float32, every keypoint of the first photo.
        all_keypoints1: `(n1, 2)` float32, likewise.
        turns: counter-clockwise quarter turns of the second photo, 0 to 3, with which this was found.
    """

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    matching_scores: np.ndarray
    matches: np.ndarray
    all_keypoints0: np.ndarray
    all_keypoints1: np.ndarray
    turns: int

    def __repr__(self) -> str:
        counts = f"{len(self.all_keypoints0)} and {len(self.all_keypoints1)} keypoints"
        return f"PhotoMatches({len(self.matches)} matches of {counts}, turns={self.turns})"


def match(
    image0: Any,
    image1: Any,
    model: Any = "tiny",
    *,
    processor: Any | None = None,
    turns: int = 1,
    tiles: bool | int = False,
    max_keypoints: int | None = None,
    longest_edge: int | None = None,
    threshold: float = 0.0,
    device: str | torch.device | None = None,
) -> PhotoMatches:
    """Match two photos.

    Args:
        image0, image1: each a path or URL (turned upright by its EXIF orientation), a PIL image, or an array or
            tensor `(h, w)`, `(h, w, c)` or `(c, h, w)`; of any sizes.
        model: the name of a checkpoint ("tiny", "aliked", "disk", "xfeat", "superpoint", ...), a directory, a name on
            the Hub, or a model that was loaded before, with its `processor`. The last two checkpoints with a name
            stay loaded; anything else is read at every call.
        processor: the image processor of a model that was loaded before.
        turns: 4: also match the second photo turned by quarters, and keep what matches best, by the sum of the
            matching scores; 2: upside down alone. One search of the first photo, and `turns` of the second.
        tiles: find keypoints at full resolution (or at `longest_edge`) in tiles of 1024 pixels, or of so many; for
            photos that are too large to be seen at once. tiles.py says what that changes.
        max_keypoints: the best so many of each photo, with tiles too; by default as the checkpoint says.
        longest_edge: pixels that the longer side of each photo is resized to; by default as the checkpoint says, and
            with `tiles` not at all.
        threshold: matches are kept if their score is greater; beside the model's own threshold.
        device: by default "cuda" where there is one, else "cpu"; for a model by name.

    Raises:
        ValueError: a number out of its range; a model that was loaded before without its processor, or with
            settings that are its own; no such checkpoint; an array that is no image.
        OSError: a photo or checkpoint cannot be read.

    Example:

    ```python
    >>> import numpy as np
    >>> from lightglue_hf import match
    >>> cells = np.random.default_rng(0).integers(0, 255, (12, 16), np.uint8)
    >>> photo = np.kron(cells, np.ones((20, 20), np.uint8))
    >>> found = match(photo, np.rot90(photo), turns=4)
    >>> found.turns  # three more quarters make the second photo upright
    3

    ```
    """
    if isinstance(model, (str, os.PathLike)):
        if processor is not None:
            raise ValueError("processor goes with a model that was loaded before; by its name both are loaded")
        name = os.fspath(model)
        device = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        processor, model = (_load_once if name in names() else _load)(name, max_keypoints, device)
    elif processor is None:
        raise ValueError("give the processor of the model, too")
    elif max_keypoints is not None or device is not None:
        raise ValueError("max_keypoints and device of a model that was loaded before are its own: set them there")
    images = [image if isinstance(image, IMAGES) else load_image(image) for image in (image0, image1)]
    outputs, turned = match_turned(model, processor, images, turns, tiles, longest_edge)
    found = to_prediction(outputs, tuple(_Size.of(image) for image in images))  # type: ignore[arg-type] # all it reads
    keep = found.matching_scores > threshold
    matches, scores = found.matches[keep], found.matching_scores[keep]
    keypoints0, keypoints1 = found.keypoints0, found.keypoints1
    return PhotoMatches(
        keypoints0[matches[:, 0]], keypoints1[matches[:, 1]], scores, matches, keypoints0, keypoints1, turned
    )


def _load(name: str, max_keypoints: int | None, device: str) -> tuple[Any, Any]:
    """The processor and the model of a checkpoint."""
    where = located(name)
    processor = LightGlueImageProcessor.from_pretrained(where)
    model = AutoModelForKeypointMatching.from_pretrained(where, trust_remote_code=False).eval().to(device)
    if not model.config.use_keypoint_detector:
        raise ValueError(f"{name} is a matcher without a detector")
    if max_keypoints is not None:
        whole_number("max_keypoints", max_keypoints, -1)
        model.config.keypoint_detector_config.max_keypoints = max_keypoints
    return processor, model


_load_once = lru_cache(maxsize=2)(_load)

__all__ = ["PhotoMatches", "match"]
