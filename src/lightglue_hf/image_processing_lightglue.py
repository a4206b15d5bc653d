"""Pixels in, keypoints back to the photo: reading, resizing and padding image pairs, and the way back.

This file alone knows about colour modes, resizing and half-pixel conventions. It needs NumPy, Pillow and PyTorch.

Conventions:
- sizes are `(height, width)`, points are `(x, y)` in pixels with the centre of the first pixel at `(0, 0)`;
- resizing keeps the borders of the image in place, so a point moves by `x' = (x + 0.5) * w' / w - 0.5`.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import huggingface_hub.constants
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

if TYPE_CHECKING:
    from transformers import PretrainedConfig


PAD_MULTIPLE = 8
URL_PREFIXES = ("http://", "https://", "data:image/")
PAIRS_MESSAGE = (
    "`images` must be a pair of images or a list of pairs of images; an image is a PIL image, a 2-D or 3-D array or "
    "tensor, a path or a URL."
)


class LightGlueImageProcessorKwargs(TypedDict, total=False):
    """The settings of `LightGlueImageProcessor`, as stored in preprocessor_config.json."""

    do_resize: bool
    size: dict[str, int]
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_grayscale: bool


def scale_keypoints(keypoints: torch.Tensor, from_sizes: Any, to_sizes: Any) -> torch.Tensor:
    """Move keypoints along with a resize of their image, by the half-pixel rule.

    Args:
        keypoints: `(..., n, 2)`, pixels, (x, y), centre of the first pixel = (0, 0).
        from_sizes: `(..., 2)`, (height, width) of the image the keypoints lie in.
        to_sizes: `(..., 2)`, (height, width) of the image the result lies in.

    Returns:
        `(..., n, 2)`, pixels; computed in double precision where the device has it, returned as float32 (float64 if
        the keypoints are), so that a round trip stays within 1e-3 pixels on images of up to 8192 pixels.

    Example:
        >>> scale_keypoints(torch.tensor([[639.0, 479.0]]), (480, 640), (2160, 3840))
        tensor([[3836.5000, 2157.2500]])
    """
    precision = torch.float32 if keypoints.device.type == "mps" else torch.float64
    from_wh, to_wh = (
        torch.as_tensor(sizes, dtype=precision, device=keypoints.device).flip(-1).unsqueeze(-2)
        for sizes in (from_sizes, to_sizes)
    )
    scaled = (keypoints.to(precision) + 0.5) * (to_wh / from_wh) - 0.5
    return scaled.to(torch.promote_types(keypoints.dtype, torch.float32))


def load_image(
    source: str | os.PathLike[str] | Image.Image, timeout: float | None = None, max_pixels: int | None = None
) -> Image.Image:
    """Read and decode one image, in its own colour mode.

    A file or URL is turned upright by its EXIF orientation, so the size of the result is the size that keypoints are
    reported in. A PIL image is returned as it is: its orientation is the caller's, and its `size` stays true.

    Args:
        source: a path, an http(s) or data URL, or a PIL image.
        timeout: seconds to wait for a URL; `None` waits for ever.
        max_pixels: refuse images with more pixels before decoding them; `None` leaves Pillow's own limit
            (an error above twice `PIL.Image.MAX_IMAGE_PIXELS`, a warning above it).

    Raises:
        OSError: the data is missing, truncated or no image, or a URL is asked for offline; the source is named.
        PIL.Image.DecompressionBombError: the image has too many pixels.
    """
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", None) or "a PIL image"
    else:
        name = os.fspath(source)
    name = name if len(name) < 300 else f"{name[:300]}..."
    try:
        image = source if isinstance(source, Image.Image) else _open(os.fspath(source), timeout)
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {max_pixels} for batches")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # an MPO is a photo with previews
            warnings.warn(f"{name} has {frames} frames, only frame {image.tell()} is used.", stacklevel=2)
        image.load()
        return image if image is source else ImageOps.exif_transpose(image)
    except (FileNotFoundError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"{name}: {error}") from error
    except Exception as error:  # broken data makes Pillow raise anything: SyntaxError, struct.error, IndexError...
        raise OSError(f"Cannot read the image {name}: {error}") from error


def _open(source: str, timeout: float | None) -> Image.Image:
    if not source.startswith(URL_PREFIXES):
        return Image.open(source)
    if huggingface_hub.constants.HF_HUB_OFFLINE and not source.startswith("data:"):
        raise OSError("offline mode is enabled, URLs are not fetched")
    request = urllib.request.Request(source, headers={"User-Agent": "lightglue-hf"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return Image.open(io.BytesIO(response.read()))


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
        ValueError: NaN, Inf or values outside these ranges; an empty array; an unclear channel axis.
    """
    white = 255
    if isinstance(image, Image.Image):
        if image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode.startswith("I"):
            white = 65535
        elif image.mode == "1":
            image = image.convert("L")
        elif image.mode not in ("L", "F"):
            image = image.convert("RGB")
        pixels, input_data_format = np.asarray(image), "channels_last"
    elif isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        pixels = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    else:
        pixels = image
    if pixels.size == 0:
        raise ValueError(f"{name} is empty: its shape is {pixels.shape}.")
    pixels = pixels[None] if pixels.ndim == 2 else _channels_first(pixels, name, input_data_format)

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


def _channels_first(pixels: np.ndarray, name: str, input_data_format: str | None) -> np.ndarray:
    """Move the channels of a 3-D array to the front, finding them by their number where the caller does not say."""
    first, last = (pixels.ndim == 3 and pixels.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if input_data_format is not None:
        channels_last = str(getattr(input_data_format, "value", input_data_format)) == "channels_last"
        first, last = first and not channels_last, last and channels_last
    if first == last:
        problem = "both ends could be channels: pass `input_data_format`" if first else "it has no 1, 3 or 4 channels"
        raise ValueError(f"Unclear channel axis of {name} with shape {pixels.shape}: {problem}.")
    return pixels if first else np.moveaxis(pixels, -1, 0)


def _flatten_pairs(images: Any) -> list[Any]:
    """Check that `images` is a pair or a list of pairs and return the images in one list, pair after pair."""

    def is_pair(pair: Any) -> bool:
        return isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(is_image, pair))

    def is_image(image: Any) -> bool:
        if isinstance(image, (np.ndarray, torch.Tensor)):
            return image.ndim in (2, 3)
        return isinstance(image, (Image.Image, str, os.PathLike))

    if is_pair(images):
        return list(images)
    if isinstance(images, (list, tuple)) and images and all(map(is_pair, images)):
        return [image for pair in images for image in pair]
    raise ValueError(PAIRS_MESSAGE)


def _to_size_dict(size: Any) -> dict[str, int]:
    """Normalise `size`: an int is the longest edge, two ints are (height, width), a mapping has one of the two forms.

    Raises:
        ValueError: other keys, or sides below one pixel.
    """
    if isinstance(size, int):
        size = {"longest_edge": size}
    elif isinstance(size, Sequence) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    size = dict(size)
    if set(size) not in ({"height", "width"}, {"longest_edge"}) or min(size.values()) < 1:
        raise ValueError(f'`size` must be {{"height": h, "width": w}} or {{"longest_edge": n}}, not {size}.')
    return {key: int(value) for key, value in size.items()}


def _resized_shape(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Return the (height, width) after a resize to `size`; no side falls below one pixel."""
    if "height" in size:
        return size["height"], size["width"]
    scale = size["longest_edge"] / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


class LightGlueImageProcessor(BaseImageProcessor):
    """Prepares image pairs for LightGlue and carries its matches back to the photos.

    Takes the settings of the class of this name in transformers, and gives the same pixels; without torchvision.
    `size` may also be `{"longest_edge": n}`: the aspect ratio is kept, the longer side becomes `n` (small images
    grow), and images are padded with zeros at the bottom and right to a common multiple of 8.

    Files and URLs are turned upright by their EXIF orientation, PIL images are taken as they are (see `load_image`);
    colour modes and value ranges are described at `to_pixels`.

    Args:
        do_resize: whether to resize; if not, images of different sizes are padded to a common one.
        size: `{"height": h, "width": w}` (default 480 x 640), `{"longest_edge": n}`, or an int for the latter.
        resample: a `PIL.Image.Resampling` filter.
        do_rescale: whether to multiply 8-bit values by `rescale_factor`, and others as if they had 8 bits: with
            the default factor white is 1, whatever the type. Otherwise values stay as they are.
        rescale_factor: the factor for 8-bit values.
        do_grayscale: whether to make the three channels equal (weights .2989, .5870, .1140).

    Example:
        >>> processor = LightGlueImageProcessor(size={"longest_edge": 1024})
        >>> inputs = processor(["left.jpg", "right.jpg"], return_tensors="pt")  # pixel_values and image_sizes
        >>> outputs = model(**inputs)
        >>> matches = processor.post_process_keypoint_matching(outputs, [((1080, 1920), (1080, 1920))])
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    valid_kwargs = LightGlueImageProcessorKwargs

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | int | None = None,
        resample: int = Image.Resampling.BILINEAR,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_grayscale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size = _to_size_dict({"height": 480, "width": 640} if size is None else size)
        self.resample = int(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_grayscale = do_grayscale

    def preprocess(  # type: ignore[override]
        self,
        images: Any,
        do_resize: bool | None = None,
        size: dict[str, int] | int | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_grayscale: bool | None = None,
        return_tensors: str | None = None,
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        timeout: float | None = None,
    ) -> BatchFeature:
        """Prepare a pair, or a list of pairs, of images; this is what calling the processor does.

        Args:
            images: two images, or a list or tuple of such pairs. An image is a PIL image, an array or tensor `(h, w)`,
                `(h, w, c)` or `(c, h, w)`, a path or a URL.
            do_resize, size, resample, do_rescale, rescale_factor, do_grayscale: override the settings of the class.
            return_tensors: "pt" for tensors, else NumPy arrays.
            data_format: "channels_first" or "channels_last", of the result.
            input_data_format: the same for arrays whose channel axis is unclear.
            timeout: seconds to wait for a URL.

        Returns:
            `pixel_values`: `(b, 2, 3, h, w)` float32; and, if sizes may differ within the batch (a longest edge, or
            no resize), `image_sizes`: `(b, 2, 2)` int64, the (height, width) of each image before padding.

        Raises:
            ValueError: not a pair or pairs; an unclear channel axis, NaN, Inf or values out of range.
            OSError: an unreadable file or URL, which is named.
            PIL.Image.DecompressionBombError: an image beyond Pillow's limit; with several pairs already in the band
                where Pillow only warns.
        """
        do_resize = self.do_resize if do_resize is None else do_resize
        size = _to_size_dict(self.size if size is None else size)
        resample = self.resample if resample is None else resample
        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        rescale_factor = self.rescale_factor if rescale_factor is None else rescale_factor
        do_grayscale = self.do_grayscale if do_grayscale is None else do_grayscale

        flat_images = _flatten_pairs(images)
        max_pixels = Image.MAX_IMAGE_PIXELS if len(flat_images) > 2 else None
        processed = []
        for index, image in enumerate(flat_images):
            name = f"image {index % 2} of pair {index // 2}"
            if isinstance(image, (str, os.PathLike)):
                name = f"{name} ({os.fspath(image)[:300]})"
            if not isinstance(image, (np.ndarray, torch.Tensor)):
                image = load_image(image, timeout, max_pixels)
            pixels, white = to_pixels(image, name, input_data_format)
            if do_resize:
                height, width = _resized_shape(pixels.shape[1], pixels.shape[2], size)
                channels = [Image.fromarray(channel).resize((width, height), resample) for channel in pixels]
                pixels = np.stack([np.asarray(channel) for channel in channels])
            if do_rescale:
                pixels = (pixels * np.float64(rescale_factor * (255 / white))).astype(np.float32)
            if do_grayscale and not (pixels == pixels[:1]).all():
                pixels = (pixels[0] * 0.2989 + pixels[1] * 0.5870 + pixels[2] * 0.1140)[None]
            processed.append(pixels)

        sizes = np.array([pixels.shape[1:] for pixels in processed])
        height, width = sizes.max(axis=0)
        padded = (do_resize and "longest_edge" in size) or bool((sizes != sizes[0]).any())
        if padded:
            height, width = (-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in (height, width))
        pixel_values = np.zeros((len(processed), 3, height, width), dtype=np.float32)
        for canvas, pixels in zip(pixel_values, processed):
            canvas[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        pixel_values = pixel_values.reshape(-1, 2, 3, height, width)
        if str(getattr(data_format, "value", data_format)) == "channels_last":
            pixel_values = np.ascontiguousarray(np.moveaxis(pixel_values, 2, -1))

        data = {"pixel_values": pixel_values}
        if padded:
            data["image_sizes"] = sizes.astype(np.int64).reshape(-1, 2, 2)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def post_process_keypoint_matching(
        self, outputs: Any, target_sizes: Any, threshold: float = 0.0
    ) -> list[dict[str, torch.Tensor]]:
        """Select the matches of each pair and carry their keypoints back to the photos.

        Args:
            outputs: the model's output, with `matches` and `matching_scores` `(b, 2, n)`, `keypoints` `(b, 2, n, 2)`
                relative to the size of each image, `mask` `(b, 2, n)` and, from this package's model, `image_sizes`
                `(b, 2, 2)`, the (height, width) the keypoints are relative to. Without it the half-pixel shift of the
                resize is not known, and relative coordinates are only multiplied by the target sizes.
            target_sizes: `(b, 2, 2)` tensor or a list of ((height, width), (height, width)): the sizes of the photos.
            threshold: matches are kept if their score is strictly greater.

        Returns:
            For each pair `keypoints0` and `keypoints1`: `(m, 2)` float32, pixels of the photo, (x, y), centre of the
            first pixel = (0, 0); and `matching_scores`: `(m,)` float32.

        Raises:
            ValueError: target sizes of another shape.
        """
        keypoints = outputs.keypoints
        sizes = _to_target_sizes(target_sizes, len(keypoints)).to(keypoints.device)
        image_sizes = getattr(outputs, "image_sizes", None)
        if image_sizes is None:
            points = keypoints.float() * sizes.flip(-1).unsqueeze(-2)
        else:
            image_sizes = image_sizes.to(keypoints.device)
            precision = torch.float32 if keypoints.device.type == "mps" else torch.float64
            points = keypoints.to(precision) * image_sizes.flip(-1).unsqueeze(-2)
            points = scale_keypoints(points, image_sizes, sizes).float()

        matches, scores = outputs.matches[:, 0].long(), outputs.matching_scores[:, 0].float()
        partners = matches.clamp(min=0)
        mask = outputs.mask > 0
        valid = mask[:, 0] & (matches > -1) & mask[:, 1].gather(1, partners) & (scores > threshold)
        partner_points = points[:, 1].gather(1, partners.unsqueeze(-1).expand(-1, -1, 2))
        return [
            {"keypoints0": points0[keep], "keypoints1": points1[keep], "matching_scores": score[keep]}
            for points0, points1, score, keep in zip(points[:, 0], partner_points, scores, valid)
        ]

    def visualize_keypoint_matching(
        self, images: Any, keypoint_matching_output: list[dict[str, torch.Tensor]]
    ) -> list[Image.Image]:
        """Draw each pair side by side with lines between its matches, from red (low scores) to green.

        Args:
            images: the photos, as given to the processor.
            keypoint_matching_output: the result of `post_process_keypoint_matching` for them.

        Raises:
            ValueError: not a pair or pairs, or as many as there are results.
        """
        from .visualization import draw_matches

        flat_images = _flatten_pairs(images)
        if len(flat_images) != 2 * len(keypoint_matching_output):
            raise ValueError(f"{len(flat_images) // 2} pairs, but {len(keypoint_matching_output)} results.")
        return [
            draw_matches(image0, image1, result["keypoints0"], result["keypoints1"], result["matching_scores"])
            for image0, image1, result in zip(flat_images[::2], flat_images[1::2], keypoint_matching_output)
        ]


def _to_target_sizes(target_sizes: Any, batch_size: int) -> torch.Tensor:
    """Return `(batch_size, 2, 2)` sizes as a tensor, or raise a ValueError that says what they are."""
    try:
        sizes = target_sizes if isinstance(target_sizes, torch.Tensor) else torch.as_tensor(np.array(target_sizes))
        valid = sizes.shape == (batch_size, 2, 2) and bool((sizes > 0).all())
    except (TypeError, ValueError):  # ragged, or no numbers
        valid = False
    if not valid:
        raise ValueError(
            f"`target_sizes` must be the (height, width) of both photos of each pair, of shape ({batch_size}, 2, 2): "
            f"[((height, width), (height, width)), ...], not {target_sizes}."
        )
    return sizes


def register_image_processor(config_class: type[PretrainedConfig]) -> None:
    """Make `AutoImageProcessor` give `LightGlueImageProcessor` for "lightglue", in place of transformers' own.

    It is found by the names that transformers writes: with no suffix, with "Fast", and in transformers 5 with "Pil".

    Args:
        config_class: the configuration to register it for.
    """
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES, AutoImageProcessor

    IMAGE_PROCESSOR_MAPPING_NAMES.pop(config_class.model_type, None)  # searched before registered classes
    kwargs: dict[str, Any] = {"slow_image_processor_class": LightGlueImageProcessor}
    if "image_processor_classes" in inspect.signature(AutoImageProcessor.register).parameters:  # transformers 5
        pil_name = type("LightGlueImageProcessorPil", (LightGlueImageProcessor,), {})
        classes = {"torchvision": LightGlueImageProcessor, "pil": LightGlueImageProcessor, "pil_name": pil_name}
        kwargs = {"image_processor_classes": classes}
    AutoImageProcessor.register(config_class, **kwargs, exist_ok=True)
    transformers: Any = sys.modules["transformers"]
    if getattr(transformers.AutoImageProcessor, "is_dummy", False):
        # transformers 5.5 shows a stand-in that asks for torchvision; the class behind it does without
        transformers.AutoImageProcessor = AutoImageProcessor
