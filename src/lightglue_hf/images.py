"""Bytes to pixels: decoding, orientation, colour modes and value ranges of images."""

from __future__ import annotations

import io
import math
import os
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import torch
from PIL import Image, ImageOps

from .utils.validation import choice

URL_PREFIXES = ("http://", "https://", "data:image/")
URL_TIMEOUT = 60.0  # seconds
URL_BYTES = 256 << 20
PILLOWS_FEAR = ", could be decompression bomb DOS attack"
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


def find_photos(directory: str | os.PathLike[str]) -> list[Path]:
    """The photos in a directory and those below it, by their suffix, in order of their names."""
    return sorted(path for path in Path(directory).rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)


def load_image(
    source: str | os.PathLike[str] | Image.Image,
    timeout: float | None = None,
    max_pixels: int | None = None,
    upright: bool = True,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Read and decode one image, in its own colour mode.

    A file or URL is turned upright by its EXIF orientation, so the size of the result is the size that keypoints are
    reported in. A PIL image is returned as it is: its orientation is the caller's, and its `size` stays true.

    Args:
        source: a path, an http(s) or data URL, or a PIL image.
        timeout: seconds to wait for a URL, by default `URL_TIMEOUT`.
        max_pixels: refuse images with more pixels before decoding them; `None` leaves Pillow's own limit
            (an error above twice `PIL.Image.MAX_IMAGE_PIXELS`, a warning above it).
        upright: turn a file or URL by its EXIF orientation; otherwise its pixels are as they are stored.
        formats: that Pillow may take a file or URL for; all that it knows by default.

    Raises:
        OSError: the data is missing, truncated, no image or no regular file, a URL is asked for offline or gives
            more than `URL_BYTES`; the source is named.
        PIL.Image.DecompressionBombError: the image has too many pixels, and what may be done about it.
    """
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", None) or "a PIL image"
    else:
        name = os.fspath(source)
    name = name if len(name) < 300 else f"{name[:300]}..."
    try:
        image = source if isinstance(source, Image.Image) else _open(os.fspath(source), timeout, formats)
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {max_pixels}")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # an MPO is a photo with previews
            warnings.warn(f"{name} has {frames} frames, only frame {image.tell()} is used.", stacklevel=2)
        image.load()
        return image if image is source or not upright else ImageOps.exif_transpose(image)
    except (FileNotFoundError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        text = str(error).removesuffix(".").replace(PILLOWS_FEAR, ": PIL.Image.MAX_IMAGE_PIXELS is half of that")
        raise Image.DecompressionBombError(f"{name}: {text}") from error
    except Exception as error:  # broken data makes Pillow raise anything: SyntaxError, struct.error, IndexError...
        raise OSError(f"Cannot read the image {name}: {error}") from error


def _open(source: str, timeout: float | None, formats: tuple[str, ...] | None) -> Image.Image:
    if not source.startswith(URL_PREFIXES):
        if os.path.exists(source) and not os.path.isfile(source):  # a device or pipe might never end
            raise OSError("it is no regular file")
        return Image.open(source, formats=formats)
    if huggingface_hub.constants.HF_HUB_OFFLINE and not source.startswith("data:"):
        raise OSError("offline mode is enabled, URLs are not fetched")
    request = urllib.request.Request(source, headers={"User-Agent": "lightglue-hf"})
    with urllib.request.urlopen(request, timeout=URL_TIMEOUT if timeout is None else timeout) as response:
        data = response.read(URL_BYTES + 1)
    if len(data) > URL_BYTES:
        raise OSError(f"it has more than {URL_BYTES >> 20} MiB")
    return Image.open(io.BytesIO(data), formats=formats)


def allow_pixels(count: int) -> None:
    """Have Pillow open images of so many pixels, without a warning: in the whole process, for programs at their start.

    It opens what has up to 178,956,970 pixels as it is, since a small broken file may claim to have any number.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None:  # of which twice as many are an error
        Image.MAX_IMAGE_PIXELS = max(most, math.ceil(count / 2))
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_channels_last(name: str, value: Any) -> bool:
    """What the setting `name`, "channels_first" or "channels_last" or transformers' name of either, says.

    Raises:
        ValueError: it is another.
    """
    word = choice(name, str(getattr(value, "value", value)), ("channels_first", "channels_last"))
    return word == "channels_last"


def to_pixels(
    image: Image.Image | np.ndarray | torch.Tensor, name: str = "the image", input_data_format: str | None = None
) -> tuple[np.ndarray, int]:
    """Turn a decoded image into grey or RGB pixels and the value that stands for white.

    - Alpha (RGBA, LA, transparent palettes, arrays of four channels) is composited over white.
    - Palette, CMYK and 1-bit images are what `image.convert("RGB")` makes of them.
    - 8-bit: white is 255; also integers, and floats that are whole numbers, if they lie in [0, 255].
    - 16-bit (uint16, PIL's "I;16" and "I"): white is 65535. Booleans and floats in [0, 1]: white is 1. These keep
      their precision; transformers rounds fractions to 8 bits, and rescales them a second time unless told not to.

    Args:
        image: a PIL image, or an array or tensor `(h, w)`, `(h, w, c)` or `(c, h, w)` with 1, 3 or 4 channels.
        name: what to call the image in errors.
        input_data_format: "channels_first" or "channels_last" for arrays of which both ends could be channels.

    Returns:
        `(1 or 3, h, w)`, uint8 or float32, and white.

    Raises:
        ValueError: NaN, Inf or values outside these ranges; an empty array; an unclear channel axis; another
            `input_data_format`.
    """
    white = 255
    channels_last = None if input_data_format is None else is_channels_last("input_data_format", input_data_format)
    if isinstance(image, Image.Image):
        transparent = image.info.get("transparency")
        if image.mode.startswith("I"):
            white = 65535
            if isinstance(transparent, int):  # the one grey level that is
                image = np.where(np.asarray(image) == transparent, white, np.asarray(image)).astype(np.uint16)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode == "1":
            image = image.convert("L")
        elif image.mode not in ("L", "F"):
            image = image.convert("RGB")
        pixels, channels_last = np.asarray(image), True
    elif isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        pixels = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    else:
        pixels = image
    if isinstance(pixels, np.ma.MaskedArray) or pixels.dtype.kind not in "buif":
        kind = "a masked array" if isinstance(pixels, np.ma.MaskedArray) else f"an array of {pixels.dtype}"
        raise ValueError(f"{name} is {kind}: pixels must be integers, floats or booleans.")
    if pixels.size == 0:
        raise ValueError(f"{name} is empty: its shape is {pixels.shape}.")
    pixels = pixels[None] if pixels.ndim == 2 else _channels_first(pixels, name, channels_last)

    low, high = pixels.min(), pixels.max()  # either is NaN if any pixel is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} contains NaN or Inf.")
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        white = 65535
    elif pixels.dtype.kind == "b" or (pixels.dtype.kind == "f" and high <= 1):
        white = 1
    elif pixels.dtype.kind == "f" and not np.array_equal(pixels, np.round(pixels)):
        raise ValueError(f"{name} has float values up to {high}; floats must lie in [0, 1] or be whole numbers.")
    if low < 0 or high > white:
        raise ValueError(f"{name} has values in [{low}, {high}], outside [0, {white}].")

    pixels = pixels.astype(np.uint8 if white == 255 else np.float32)
    if len(pixels) == 4:
        alpha = pixels[3:] / np.float32(white)
        opaque = pixels[:3] * alpha + white * (1 - alpha)
        pixels = np.round(opaque).astype(np.uint8) if white == 255 else opaque
    return pixels, white


def to_rgb(
    image: Image.Image | np.ndarray | torch.Tensor, name: str = "the image", input_data_format: str | None = None
) -> np.ndarray:
    """A decoded image as `(h, w, 3)` uint8; see [`to_pixels`]."""
    pixels, white = to_pixels(image, name, input_data_format)
    rgb = pixels if white == 255 else np.round(pixels * (255 / white)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rgb, (3, *rgb.shape[1:])).transpose(1, 2, 0))


def _channels_first(pixels: np.ndarray, name: str, channels_last: bool | None) -> np.ndarray:
    """Move the channels of a 3-D array to the front, finding them by their number where the caller does not say."""
    first, last = (pixels.ndim == 3 and pixels.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if channels_last is not None:
        first, last = first and not channels_last, last and channels_last
    if first == last:
        problem = "both ends could be channels: pass `input_data_format`" if first else "it has no 1, 3 or 4 channels"
        raise ValueError(f"Unclear channel axis of {name} with shape {pixels.shape}: {problem}.")
    return pixels if first else np.moveaxis(pixels, -1, 0)


def resize_pixels(pixels: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """What [`to_pixels`] gives, `(channels, h, w)`, in another size.

    Args:
        resample: a `PIL.Image.Resampling` filter.
    """
    channels = [Image.fromarray(channel).resize((width, height), resample) for channel in pixels]
    return np.stack([np.asarray(channel) for channel in channels])
