"""Pixels in, keypoints back to the photo: photos to one batch of pixels, by pairs or singly, and the way back.

Sizes are `(height, width)`, points are `(x, y)` in pixels with the centre of the first pixel at `(0, 0)`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from numbers import Integral
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .geometry import finest_float, resized_shape, scale_keypoints
from .images import is_channels_last, load_image, resize_pixels, to_pixels
from .utils.validation import CheckedFields, Checks, flag, number, whole_number
from .visualization import draw_matches

SIZE_DIVISOR = 8
GREY = (0.2989, 0.5870, 0.1140)  # of red, green and blue
MOST_RESCALED = 1e6  # beyond which networks overflow
STOCK_SIZE = {"height": 480, "width": 640}  # transformers' default
PAIRS_MESSAGE = (
    "`images` must be a pair of images or a list of pairs of images; an image is a PIL image, a 2-D or 3-D array or "
    "tensor, a path or a URL. Single images and lists of any length go with pairs=False."
)


# Keywords that every processor of transformers takes. These steps are not done here; asking for one is an error.
NOT_DONE = ("do_normalize", "do_pad", "do_center_crop")
# These change nothing: pictures are made RGB in any case, one after another; the rest belongs to the steps above.
WITHOUT_EFFECT = (
    "do_convert_rgb",
    "disable_grouping",
    "default_to_square",
    "image_mean",
    "image_std",
    "pad_size",
    "crop_size",
    "image_seq_length",
)


class LightGlueImageProcessorKwargs(TypedDict, total=False):
    """The settings of `LightGlueImageProcessor`, as stored in preprocessor_config.json."""

    do_resize: bool
    size: dict[str, int]
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_grayscale: bool
    size_divisor: int


def _flatten_pairs(images: Any) -> list[Any]:
    """Check that `images` is a pair or a list of pairs and return the images in one list, pair after pair."""

    def is_pair(pair: Any) -> bool:
        return isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_image, pair))

    if is_pair(images):
        return list(images)
    if isinstance(images, (list, tuple)) and images and all(map(is_pair, images)):
        return [image for pair in images for image in pair]
    raise ValueError(PAIRS_MESSAGE)


def _is_image(image: Any) -> bool:
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return image.ndim in (2, 3)
    return isinstance(image, (Image.Image, str, os.PathLike))


def _flatten_singles(images: Any) -> list[Any]:
    """Check that `images` is an image or a list of images and return them in a list."""
    if _is_image(images):
        return [images]
    if isinstance(images, (list, tuple)) and images and all(map(_is_image, images)):
        return list(images)
    raise ValueError(
        "with pairs=False `images` must be an image or a list of images; an image is a PIL image, a 2-D or 3-D array "
        "or tensor, a path or a URL."
    )


def _flatten_regions(regions: Any, images: Any) -> list[Any]:
    """The regions in one list, which lie among lists and tuples as the images do."""

    def flatten(given: Any, like: Any) -> list[Any]:
        if _is_image(like):
            return [given]
        if given is None:
            given = [None] * len(like)
        if len(given) != len(like):
            raise ValueError(f"regions must be arranged as images are: {len(given)} of them for {len(like)}")
        return [region for part in zip(given, like) for region in flatten(*part)]

    return flatten(regions, images)


def _resized_region(region: Any, image_shape: tuple[int, int], shape: tuple[int, int], name: str) -> np.ndarray:
    """A mask over an image as `(h, w)` bool over the image resized: what the nearest pixel says."""
    mask = region.detach().cpu().numpy() if isinstance(region, torch.Tensor) else np.asarray(region)
    if mask.shape != image_shape:
        raise ValueError(f"the region of {name} must have its (height, width) {image_shape}, got {mask.shape}")
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1) for old, new in zip(image_shape, shape)
    )
    return mask[rows][:, columns] != 0


def resize_to(pixels: np.ndarray, size: Any, resample: int, name: str = "the image") -> np.ndarray:
    """What `to_pixels` gives, `(channels, h, w)`, in the size that a processor's `size` says.

    Raises:
        ValueError: `size` is none, or makes more pixels than twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    height, width = resized_shape(pixels.shape[1], pixels.shape[2], _to_size_dict(size))
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > 2 * most:
        raise ValueError(f"`size` would make {name} {width} x {height} pixels, more than {2 * most}.")
    return resize_pixels(pixels, height, width, resample)


def resize_options(longest_edge: int | None) -> dict[str, Any]:
    """The settings of a processor that resizes to a longest edge, whatever its own are; of `None` there are none."""
    return {} if longest_edge is None else {"do_resize": True, "size": {"longest_edge": longest_edge}}


def _to_size_dict(size: Any) -> dict[str, int]:
    """Normalise `size`: an int is the longest edge, two ints are (height, width), a mapping has one of the two forms.

    Raises:
        ValueError: other keys, or sides that are no whole numbers of at least one pixel.
    """
    if isinstance(size, Integral):
        size = {"longest_edge": size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, Mapping) or set(size) not in ({"height", "width"}, {"longest_edge"}):
        raise ValueError(f'`size` must be {{"height": h, "width": w}} or {{"longest_edge": n}}, not {size!r:.100}.')
    return {key: whole_number(f"size: {key}", value, 1) for key, value in size.items()}


class LightGlueImageProcessor(CheckedFields, BaseImageProcessor):
    """Prepares image pairs for LightGlue and carries its matches back to the photos.

    Takes the settings of the class of this name in transformers, and gives the same pixels; without torchvision.
    `size` may also be `{"longest_edge": n}`: the aspect ratio is kept, the longer side becomes `n` (small images
    grow), and images are padded with zeros at the bottom and right to a common multiple of `size_divisor`.

    Files and URLs are turned upright by their EXIF orientation, PIL images are taken as they are (see `load_image`);
    colour modes and value ranges are described at `to_pixels`.

    Args:
        do_resize: whether to resize; if not, images of different sizes are padded to a common one.
        size: `{"height": h, "width": w}` (default 480 x 640), `{"longest_edge": n}`, or an int for the latter.
        resample: a `PIL.Image.Resampling` filter.
        do_rescale: whether to multiply 8-bit values by `rescale_factor`, and others as if they had 8 bits: with
            the default factor white is 1, whatever the type. Otherwise values stay as they are.
        rescale_factor: the factor for 8-bit values. A 16-bit file that holds 12 bits is dark, and loses matches: with
            `rescale_factor=16 / 255` (to be exact 65535 / 4095 / 255) its white, 4095, is 1.
        do_grayscale: whether to make the three channels equal (weights .2989, .5870, .1140).
        size_divisor: images of different sizes are padded to a multiple of so many pixels; a detector's stride.

    Example:
        >>> processor = LightGlueImageProcessor(size={"longest_edge": 1024})
        >>> inputs = processor(["left.jpg", "right.jpg"], return_tensors="pt")  # pixel_values and image_sizes
        >>> outputs = model(**inputs)
        >>> matches = processor.post_process_keypoint_matching(outputs, [((1080, 1920), (1080, 1920))])
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    valid_kwargs = LightGlueImageProcessorKwargs
    checks: ClassVar[Checks] = {
        "do_resize": flag,
        "size": lambda name, value: _to_size_dict(value),
        "resample": partial(whole_number, low=0, high=5),
        "do_rescale": flag,
        "rescale_factor": partial(number, low=0, high=MOST_RESCALED),
        "do_grayscale": flag,
        "size_divisor": partial(whole_number, low=1),
    }

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | int | None = None,
        resample: int = Image.Resampling.BILINEAR,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_grayscale: bool = True,
        size_divisor: int = SIZE_DIVISOR,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size: dict[str, int] = STOCK_SIZE if size is None else size  # type: ignore[assignment]
        self.resample = resample
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_grayscale = do_grayscale
        self.size_divisor = size_divisor

    def to_dict(self) -> dict[str, Any]:
        """As saved: a longest edge is a field of its own, and `size` what transformers' own class can use."""
        values = super().to_dict()
        if "longest_edge" in self.size:
            values |= {"size": dict(STOCK_SIZE), "longest_edge": self.size["longest_edge"]}
        return values

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From stored settings, and others in their place; those without effect are kept and saved, too."""
        kept = {name: kwargs.pop(name) for name in NOT_DONE + WITHOUT_EFFECT if name in kwargs}
        values = {**image_processor_dict, **kept}
        if longest_edge := values.pop("longest_edge", None):
            values["size"] = {"longest_edge": longest_edge}
        return super().from_dict(values, **kwargs)

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
        data_format: str | None = None,
        input_data_format: str | None = None,
        timeout: float | None = None,
        pairs: bool = True,
        regions: Any | None = None,
        device: str | torch.device | None = None,
        **others: Any,
    ) -> BatchFeature:
        """Prepare a pair, or a list of pairs, of images, or images singly; this is what calling the processor does.

        Args:
            images: two images, or a list or tuple of such pairs; with `pairs=False` one image or a list of any
                length. An image is a PIL image, an array or tensor `(h, w)`, `(h, w, c)` or `(c, h, w)`, a path or
                a URL.
            do_resize, size, resample, do_rescale, rescale_factor, do_grayscale: override the settings of the class.
            return_tensors: "pt" for tensors, else NumPy arrays.
            data_format: "channels_first" or "channels_last", of the result; the former by default.
            input_data_format: the same for arrays whose channel axis is unclear.
            timeout: seconds to wait for a URL.
            pairs: whether `images` are pairs, as in transformers. `False` gives arrays for `extract_features`.
            regions: for each image, arranged as `images` are, where keypoints may lie: `(h, w)` bool, of the photo's
                own size (upright by its EXIF orientation), or `None` for anywhere.
            device: where the tensors are put; with `return_tensors="pt"` only. They are computed on the CPU.
            others: transformers' other keywords, so that a call written for its processor works: `do_convert_rgb`,
                `disable_grouping` and the like change nothing; `do_normalize`, `do_pad`, `do_center_crop` must be
                false.

        Returns:
            `pixel_values`: `(b, 2, 3, h, w)` float32; and, if sizes may differ within the batch (a longest edge, or
            no resize), `image_sizes`: `(b, 2, 2)` int64, the (height, width) of each image before padding. With
            `pairs=False` always both, `(images, 3, h, w)` and `(images, 2)`. With `regions` also `region`,
            `(b, 2, h, w)` or `(images, h, w)` bool.

        Raises:
            ValueError: not a pair or pairs; an unclear channel axis, NaN, Inf or values out of range; a region of
                another size; a step that is not done here; a device for NumPy arrays; a channel axis of another name.
            TypeError: a keyword that no processor has.
            OSError: an unreadable file or URL, which is named.
            PIL.Image.DecompressionBombError: an image beyond Pillow's limit; with several pairs already in the band
                where Pillow only warns.
        """
        _check_keywords(others)
        if device is not None and return_tensors != "pt":
            raise ValueError(f'device={device!r} goes with return_tensors="pt", not {return_tensors!r}.')
        do_resize = self.do_resize if do_resize is None else do_resize
        size = _to_size_dict(self.size if size is None else size)
        resample = self.resample if resample is None else resample
        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        rescale_factor = self.rescale_factor if rescale_factor is None else rescale_factor
        do_grayscale = self.do_grayscale if do_grayscale is None else do_grayscale
        channels_last = data_format is not None and is_channels_last("data_format", data_format)

        flat_images = _flatten_pairs(images) if pairs else _flatten_singles(images)
        flat_regions = [None] * len(flat_images) if regions is None else _flatten_regions(regions, images)
        max_pixels = Image.MAX_IMAGE_PIXELS if len(flat_images) > 2 else None
        processed, resized_regions = [], []
        for index, (image, region) in enumerate(zip(flat_images, flat_regions)):
            name = f"image {index % 2} of pair {index // 2}" if pairs else f"image {index}"
            if isinstance(image, (str, os.PathLike)):
                name = f"{name} ({os.fspath(image)[:300]})"
            if not isinstance(image, (np.ndarray, torch.Tensor)):
                image = load_image(image, timeout, max_pixels)
            pixels, white = to_pixels(image, name, input_data_format)
            original = pixels.shape[1], pixels.shape[2]
            if do_resize:
                pixels = resize_to(pixels, size, resample, name)
            if do_rescale:
                pixels = (pixels * np.float64(rescale_factor * (255 / white))).astype(np.float32)
            if do_grayscale and not (pixels == pixels[:1]).all():
                red, green, blue = GREY
                pixels = (pixels[0] * red + pixels[1] * green + pixels[2] * blue)[None]
            processed.append(pixels)
            if regions is not None:
                whole = np.ones(original, dtype=bool) if region is None else region
                resized_regions.append(_resized_region(whole, original, (pixels.shape[1], pixels.shape[2]), name))

        sizes = np.array([pixels.shape[1:] for pixels in processed])
        height, width = sizes.max(axis=0)
        padded = (do_resize and "longest_edge" in size) or bool((sizes != sizes[0]).any())
        if padded:
            divisor = self.size_divisor
            height, width = (-(-side // divisor) * divisor for side in (height, width))
        shape = (-1, 2) if pairs else (-1,)
        pixel_values = np.zeros((len(processed), 3, height, width), dtype=np.float32)
        for canvas, pixels in zip(pixel_values, processed):
            canvas[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        if channels_last:
            pixel_values = np.ascontiguousarray(np.moveaxis(pixel_values, 1, -1))

        data = {"pixel_values": pixel_values.reshape(*shape, *pixel_values.shape[1:])}
        if padded or not pairs:
            data["image_sizes"] = sizes.astype(np.int64).reshape(*shape, 2)
        if regions is not None:
            region = np.zeros((len(processed), height, width), dtype=bool)
            for canvas, mask in zip(region, resized_regions):
                canvas[: mask.shape[0], : mask.shape[1]] = mask
            data["region"] = region.reshape(*shape, height, width)
        features = BatchFeature(data=data, tensor_type=return_tensors)
        if device is not None:
            features.to(device)  # in place
        return features

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
            ValueError: target sizes of another shape; outputs without keypoints, as those of precomputed features
                may be, or without matches, as those of labels are; no number for `threshold`.
        """
        if threshold is None:
            raise ValueError("`threshold` must be a number; 0 keeps every match.")
        keypoints = outputs.keypoints
        if keypoints is None:
            raise ValueError("The outputs have no keypoints, or none relative to an image's size.")
        if outputs.matches is None:
            raise ValueError("The outputs have no matches: a call of the model with labels gives the loss alone.")
        sizes = _to_target_sizes(target_sizes, len(keypoints)).to(keypoints.device)
        image_sizes = getattr(outputs, "image_sizes", None)
        if image_sizes is None:
            points = keypoints.float() * sizes.flip(-1).unsqueeze(-2)
        else:
            image_sizes = image_sizes.to(keypoints.device)
            points = keypoints.to(finest_float(keypoints.device)) * image_sizes.flip(-1).unsqueeze(-2)
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
        flat_images = _flatten_pairs(images)
        if len(flat_images) != 2 * len(keypoint_matching_output):
            raise ValueError(f"{len(flat_images) // 2} pairs, but {len(keypoint_matching_output)} results.")
        return [
            draw_matches(image0, image1, result["keypoints0"], result["keypoints1"], result["matching_scores"])
            for image0, image1, result in zip(flat_images[::2], flat_images[1::2], keypoint_matching_output)
        ]


def _check_keywords(keywords: Mapping[str, Any]) -> None:
    for name, value in keywords.items():
        if name not in NOT_DONE + WITHOUT_EFFECT:
            raise TypeError(f"LightGlueImageProcessor got an unexpected keyword argument {name!r}")
        if name in NOT_DONE and value:
            raise ValueError(f"{name}={value!r}: LightGlueImageProcessor does not do this.")


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
