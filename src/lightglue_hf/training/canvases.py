"""What pairs are painted with: procedural canvases, rendered once and kept, or one's own photos."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.textures import render_textures
from ..images import find_photos, load_image, to_pixels

GREY = np.array([0.2989, 0.5870, 0.1140], dtype=np.float32)  # of red, green and blue, as the image processor


def cached_textures(path: Path, count: int, height: int, width: int, seed: int) -> Tensor:
    """`(count, height, width)` uint8 from a file; rendered and written there if it is missing or broken."""
    if path.exists():
        try:
            textures = np.load(path)
            if textures.shape == (count, height, width) and textures.dtype == np.uint8:
                return torch.from_numpy(textures)
        except (ValueError, EOFError, OSError):
            pass
        warnings.warn(f"{path} is broken: the canvases are rendered anew", stacklevel=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    textures = render_textures(count, height, width, seed)
    partial = path.with_suffix(f".{os.getpid()}.npy")
    try:
        np.save(partial, textures)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return torch.from_numpy(textures)


def photos_in(directory: Path) -> list[Path]:
    """As `find_photos`.

    Raises:
        ValueError: there are none.
    """
    paths = find_photos(directory)
    if not paths:
        raise ValueError(f"no photos in {directory}")
    return paths


def read_canvases(directory: Path, height: int, width: int) -> Tensor:
    """The photos of a directory, in grey, resized and cropped to `(count, height, width)` uint8.

    Raises:
        OSError: a photo cannot be read; it is named.
        ValueError: there are none.
    """
    paths = photos_in(directory)
    canvases = np.empty((len(paths), height, width), dtype=np.uint8)
    for canvas, path in zip(canvases, paths):
        canvas[:] = np.asarray(ImageOps.fit(Image.fromarray(grey(path)), (width, height)))
    return torch.from_numpy(canvases)


def cut_canvases(directory: Path, count: int, height: int, width: int, seed: int) -> Tensor:
    """Pieces of the photos of a directory, in grey, `(count, height, width)` uint8.

    The photos take turns. A piece lies anywhere and is as large as fits, or smaller: down to 0.4 of that, as long as
    no pixel has to be made up.

    Raises:
        OSError: a photo cannot be read; it is named.
        ValueError: there are none.
    """
    paths = photos_in(directory)
    canvases = np.empty((count, height, width), dtype=np.uint8)
    for first, path in enumerate(paths[:count]):
        photo = Image.fromarray(grey(path))
        fit = min(photo.width / width, photo.height / height)
        for index in range(first, count, len(paths)):
            draw, x, y = np.random.default_rng([seed, index]).random(3)
            least = min(max(0.4, 1 / fit), 1)
            scale = fit * (least + (1 - least) * draw)
            # what is as wide or high as the photo may be so but for a rounding
            cut_width, cut_height = min(scale * width, photo.width), min(scale * height, photo.height)
            left, top = x * (photo.width - cut_width), y * (photo.height - cut_height)
            box = left, top, min(left + cut_width, photo.width), min(top + cut_height, photo.height)
            canvases[index] = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC, box))
    return torch.from_numpy(canvases)


def grey(path: Path) -> np.ndarray:
    """A photo, `(height, width)` uint8, 255 is white: any colour mode and range, see [`to_pixels`].

    Raises:
        OSError: it cannot be read; it is named.
        ValueError: its values are out of range; it is named.
    """
    pixels, white = to_pixels(load_image(path), str(path))
    if len(pixels) == 3:
        pixels = np.tensordot(GREY / GREY.sum(), pixels, 1)[None]
    return np.round(pixels[0] * np.float32(255 / white)).astype(np.uint8)
