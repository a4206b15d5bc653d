"""What pairs are painted with: procedural canvases, rendered once and kept, or one's own photos."""

from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from ..data.textures import render_textures
from ..images import find_photos, load_image


def cached_textures(path: Path, count: int, height: int, width: int, seed: int) -> Tensor:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        textures = render_textures(count, height, width, seed)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, textures)
        partial.rename(path)
    return torch.from_numpy(np.load(path))


def read_canvases(directory: Path, height: int, width: int) -> Tensor:
    """The photos of a directory, in grey, resized and cropped to `(count, height, width)` uint8.

    Raises:
        OSError: a photo cannot be read; it is named.
        ValueError: there are none.
    """
    paths = find_photos(directory)
    if not paths:
        raise ValueError(f"no photos in {directory}")
    canvases = np.empty((len(paths), height, width), dtype=np.uint8)
    for canvas, path in zip(canvases, paths):
        canvas[:] = np.asarray(ImageOps.fit(load_image(path).convert("L"), (width, height)))
    return torch.from_numpy(canvases)
