"""What is matched, `KeypointFeatures`, and the contract of what finds it, `KeypointDetector`.

The contract has three parts.

- A detector *gets* `pixel_values` in [0, 1], `(images, 1 or 3, height, width)`, and may get `image_sizes` (the rest
  of the canvas, to the right and bottom, is padding) and a `region` (where keypoints may lie).
- It *gives* `KeypointFeatures`: keypoints in float32 pixels, whatever its own precision; keypoints before padding;
  an image's features do not depend on its padding or on the other images of the batch.
- Its configuration *declares* what the matcher, the image processor, export, conversion and training need to know of
  it: see [`KeypointDetectorConfig`].

Any other model of `AutoModelForKeypointDetection` works, too, as far as transformers' own interface goes; see
[`features_of_detector`].
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .utils.tensors import is_traced, vector
from .utils.validation import CheckedFields, Checks, inherited_fields, number, whole_number

LARGEST = 1e6  # of a descriptor's numbers: products of larger ones overflow


@dataclass(eq=False)
class KeypointFeatures(Mapping[str, Tensor]):
    """The keypoints of images, in `shape` = `(images,)`, `(pairs, 2)`, or `()` for a single image.

    `features[index]` takes images and gives their features, as a tensor of `shape` is indexed: by a number, a slice, a
    list or tensor of numbers of any shape, a mask, or a tuple of these for several axes. It is also a mapping of the
    names of the fields that are not `None`: `features["scores"]`, `**features`.

    Args:
        keypoints: `(*shape, n, 2)` float32, (x, y) pixels, centre of the first pixel = (0, 0).
        descriptors: `(*shape, n, d)`.
        mask: `(*shape, n)` int32, 1 for a keypoint and 0 for padding.
        image_sizes: `(*shape, 2)` int64, (height, width) of the image that the keypoints live in.
        scores: `(*shape, n)`, the detector's.
        scales: `(*shape, n)`, diameter of a keypoint's neighbourhood in pixels, of detectors that have it (SIFT).
        orientations: `(*shape, n)`, radians, likewise.
    """

    keypoints: Tensor | None = None
    descriptors: Tensor | None = None
    mask: Tensor | None = None
    image_sizes: Tensor | None = None
    scores: Tensor | None = None
    scales: Tensor | None = None
    orientations: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        assert self.keypoints is not None
        return self.keypoints.shape[:-2]

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            if index not in (*self,):
                raise KeyError(index)
            return getattr(self, index)
        index = self._within_shape(index if isinstance(index, tuple) else (index,))
        return type(self)(**{name: value[index] for name, value in self.items()})

    def _within_shape(self, index: tuple[Any, ...]) -> tuple[Any, ...]:
        """An index into `shape` as one into the fields, which have more axes."""
        index = tuple(map(_as_index, index))
        rest = len(self.shape) - sum(map(_axes, index))
        if rest < 0:
            raise IndexError(f"too many axes: an index into {len(self.shape) - rest} of shape {tuple(self.shape)}")
        parts: list[Any] = []
        for part in index:
            if part is Ellipsis:
                parts += [slice(None)] * rest
                rest = 0
            else:
                parts.append(part)
        return tuple(parts)

    def pairs(self, index: Any) -> "KeypointFeatures":
        """The features of pairs of images, as `match_features` takes them.

        Args:
            index: `(pairs, 2)`, a list or tensor of numbers of images.

        Raises:
            ValueError: another shape, or no such image.
        """
        index = torch.as_tensor(index, dtype=torch.int64)
        if len(self.shape) != 1 or index.ndim != 2 or index.shape[1] != 2:
            raise ValueError(
                f"pairs of images: an index (pairs, 2) into (images,) is needed, got {tuple(index.shape)} into "
                f"{tuple(self.shape)}"
            )
        count = self.shape[0]
        if index.numel() and not (0 <= int(index.min()) and int(index.max()) < count):
            raise ValueError(
                f"pairs of images: there are images 0 to {count - 1}, got {int(index.min())} to {int(index.max())}"
            )
        return self[index]

    @classmethod
    def cat(cls, parts: Iterable["KeypointFeatures"]) -> "KeypointFeatures":
        """One after the other along the first axis, padded to the largest number of keypoints.

        Raises:
            ValueError: none at all, or some have fields that others lack, named.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("no features to concatenate")
        n = max(part.keypoints.shape[-2] for part in parts)  # type: ignore[union-attr]
        parts = [part.padded(n) for part in parts]
        if different := sorted(set().union(*(set(parts[0]) ^ set(part) for part in parts))):
            raise ValueError(f"some features have {', '.join(different)} and others have not")
        return cls(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def padded(self, n: int) -> "KeypointFeatures":
        """With padding behind, up to `n` keypoints.

        Args:
            n: at least as many as there are.
        """

        def pad(name: str, value: Tensor) -> Tensor:
            if name == "image_sizes":
                return value
            axis = -2 if name in ("keypoints", "descriptors") else -1
            return F.pad(value, (*(0, 0) * (-1 - axis), 0, n - value.shape[axis]))

        features = type(self)(**{name: pad(name, value) for name, value in self.items()})
        if self.mask is None and self.keypoints is not None:
            features.mask = pad("mask", torch.ones_like(self.keypoints[..., 0], dtype=torch.int32))
        return features

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "KeypointFeatures":
        """On another device; the descriptors, and nothing else, in another type.

        Args:
            device: where all of them go.
            dtype: of the descriptors.
        """
        return type(self)(
            **{
                name: value.to(device=device, dtype=dtype if name == "descriptors" else None)
                for name, value in self.items()
            }
        )

    def numpy(self) -> Any:
        """Without padding: for each image a dictionary of its arrays (nested lists of them, in `shape`)."""
        if self.shape:
            return [self[i].numpy() for i in range(self.shape[0])]
        keep = slice(None) if self.mask is None else self.mask.bool()
        arrays = {}
        for name, value in self.items():
            if name != "mask":
                value = value if name == "image_sizes" else value[keep]
                arrays[name] = (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
        return arrays

    @classmethod
    def from_numpy(cls, images: Sequence[dict[str, np.ndarray]]) -> "KeypointFeatures":
        """The way back from a list of what [`numpy`] gives for an image, `shape` = `(images,)`.

        Args:
            images: for each a dictionary of `keypoints` `(n, 2)`, `descriptors` `(n, d)`, `image_sizes` `(2,)` and
                what else there is of the fields; all of the same fields.
        """
        parts = []
        for arrays in images:
            part = cls(**{name: torch.as_tensor(value)[None] for name, value in arrays.items()})
            assert part.keypoints is not None
            part.mask = torch.ones_like(part.keypoints[..., 0], dtype=torch.int32)
            parts.append(part)
        return cls.cat(parts)

    def check(self, descriptor_dim: int | None = None, scale_ori: bool | None = None, values: bool = True) -> None:
        """Raise a ValueError that names what is missing, of another shape, or out of its range.

        Args:
            descriptor_dim: width of the descriptors; any by default.
            scale_ori: whether scales and orientations are wanted (`True`), or not taken (`False`).
            values: also look at the numbers, for which the device has to finish.
        """
        if self.keypoints is None or self.keypoints.ndim < 2 or self.keypoints.shape[-1] != 2:
            given = None if self.keypoints is None else tuple(self.keypoints.shape)
            raise ValueError(f"keypoints must be (..., n, 2), got {given}")
        points = tuple(self.keypoints.shape[:-1])
        width = descriptor_dim
        if width is None and self.descriptors is not None:
            width = self.descriptors.shape[-1]
        expected = {
            "descriptors": (*points, width),
            "mask": points,
            "image_sizes": (*points[:-1], 2),
            "scores": points,
            "scales": points,
            "orientations": points,
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            turned = name in ("scales", "orientations")
            if value is None:
                if name == "descriptors" or (turned and scale_ori):
                    raise ValueError(f"{name} {shape} is required")
            elif tuple(value.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
            elif turned and scale_ori is False:
                raise ValueError(f"{name} given, but the model was made without (config.add_scale_ori is False)")
        if values and not is_traced():
            refuse_non_finite(**{name: value for name, value in self.items() if value.is_floating_point()})
            if self.descriptors is not None and (self.descriptors.abs() > LARGEST).any():
                raise ValueError(f"descriptors contains numbers beyond {LARGEST:.0e}")
            if self.image_sizes is not None and (self.image_sizes <= 0).any():
                raise ValueError("image_sizes (height, width) must be positive")


def _as_index(part: Any) -> Any:
    """A list of numbers, or of bools, which are a mask, as a tensor."""
    if not isinstance(part, list):
        return part
    tensor = torch.as_tensor(part)
    return tensor if tensor.dtype == torch.bool else tensor.long()  # an empty list has none


def _axes(part: Any) -> int:
    """Over how many axes a part of an index goes."""
    if part is None or part is Ellipsis:
        return 0
    mask = not isinstance(part, slice) and torch.as_tensor(part).dtype == torch.bool
    return torch.as_tensor(part).ndim if mask else 1


def refuse_non_finite(**tensors: Tensor | None) -> None:
    """Raise a ValueError that names the tensor with NaN or Inf."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            raise ValueError(f"{name} contains NaN or Inf")


def refuse_non_integers(**tensors: Tensor | None) -> None:
    """Raise a ValueError that names the tensor of another type than integers."""
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            raise ValueError(f"{name} must be integers, got {tensor.dtype}")


def looks_at_values(x: Tensor, static: bool) -> bool:
    """Whether arguments are searched for NaN: not where that would end up in a graph.

    Args:
        x: any of them.
        static: nor where that would wait for the device.
    """
    return not (is_traced() or (static and x.device.type != "cpu"))


# ---------------------------------------------------------------------------------------------------------------------
# The contract


class KeypointDetectorConfig(CheckedFields):
    """What a detector declares, for its configuration to inherit beside `PretrainedConfig`.

    Every configuration also has the fields `max_keypoints` (the best so many of each image; -1 for all) and
    `keypoint_threshold`, which are read at every call.
    """

    checks: ClassVar[Checks] = {"max_keypoints": partial(whole_number, low=-1), "keypoint_threshold": number}
    stride: ClassVar[int] = 1
    """Pixels: sides that are a multiple of it waste nothing. The image processor pads to it."""
    channels: ClassVar[int] = 3
    """1 for grey (the first channel is used), 3 for RGB."""
    has_scale_ori: ClassVar[bool] = False
    """Whether features have scales and orientations."""
    exportable: ClassVar[bool] = True
    """Whether it can be traced for ONNX and OpenVINO."""
    float32_modules: ClassVar[tuple[str, ...]] = ()
    """Modules, by their name in the detector, that are computed in float32 where all else is in half precision."""
    longest_edge: ClassVar[int] = 1024
    """Pixels of the longer side that photos are resized to."""

    descriptor_dim: int
    """Width of the descriptors."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**inherited_fields(type(self), kwargs))

    @property
    def processor_settings(self) -> dict[str, Any]:
        """Arguments of `LightGlueImageProcessor`."""
        return {
            "size": {"longest_edge": self.longest_edge},
            "do_grayscale": self.channels == 1,
            "size_divisor": self.stride,
        }


@dataclass
class KeypointDetectionOutput(ModelOutput):
    """Keypoints of a batch of images, padded to the largest count, as transformers' detectors give them.

    Args:
        loss: scalar, only with `labels`.
        keypoints: `(batch, n, 2)` float32, (x, y) pixels (centre of the first pixel = (0, 0)) divided by the
            (width, height) of `pixel_values`; 0 where padding.
        scores: `(batch, n)` float32, 0 where padding.
        descriptors: `(batch, n, d)`, unit length, 0 where padding.
        mask: `(batch, n)` int32, 1 for a keypoint and 0 for padding. Keypoints come before padding.
        hidden_states: of detectors that return them.
        scales, orientations: `(batch, n)`, of detectors that have them; see [`KeypointFeatures`].
    """

    loss: Tensor | None = None
    keypoints: Tensor | None = None
    scores: Tensor | None = None
    descriptors: Tensor | None = None
    mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    scales: Tensor | None = None
    orientations: Tensor | None = None


class KeypointDetector:
    """A detector, for its model to inherit beside `PreTrainedModel`.

    A detector implements `detect`, for images of one size; or, where it can do with padding, `extract_features`.
    """

    config: Any

    def detect(
        self, pixel_values: Tensor, region: Tensor | None = None, fixed_shapes: bool = False
    ) -> KeypointFeatures:
        """Keypoints of images that fill `pixel_values`.

        Args:
            pixel_values: `(images, 1 or 3, height, width)` in [0, 1], any height and width from 1 pixel.
            region: `(images, height, width)` bool, where keypoints may lie: the best of those are kept.
            fixed_shapes: return exactly `config.max_keypoints` columns (>= 0) and never wait for the device.

        Returns:
            Features of `shape` `(images,)`, all of zeros where padding; `image_sizes` may be left out.
        """
        raise NotImplementedError

    def extract_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        region: Tensor | None = None,
        fixed_shapes: bool = False,
    ) -> KeypointFeatures:
        """Keypoints of images, each as it is alone and without padding.

        Args:
            pixel_values: `(images, 1 or 3, height, width)` in [0, 1], grey or RGB.
            image_sizes: `(images, 2)` int, (height, width) of the image within each `pixel_values`, the rest of
                which, to its right and bottom, is padding; all of it by default.
            region, fixed_shapes: see [`detect`].

        Raises:
            ValueError: see [`check_detector_inputs`].
        """
        check_detector_inputs(self.config, pixel_values, image_sizes, region, fixed_shapes)
        height, width = pixel_values.shape[-2:]
        if image_sizes is None:
            features = self.detect(pixel_values, region, fixed_shapes)
            features.image_sizes = vector(height, width, pixel_values.device).expand(pixel_values.shape[0], 2)
            return features
        if torch.jit.is_tracing():  # sizes are not numbers: each image is cut out in the graph, and has its columns
            parts = []
            for row in range(pixel_values.shape[0]):
                sides, this = image_sizes[row].unbind(), slice(row, row + 1)
                inside = tuple(slice(side) for side in sides)
                regions = None if region is None else region[(this, *inside)]
                parts.append(self.detect(pixel_values[(this, slice(None), *inside)], regions, fixed_shapes))
            features = KeypointFeatures(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
            features.image_sizes = image_sizes
            return features
        rows: dict[tuple[int, int], list[int]] = {}
        for row, (h, w) in enumerate(image_sizes.tolist()):
            rows.setdefault((h, w), []).append(row)
        if len(rows) <= 1:
            h, w = next(iter(rows), (height, width))
            regions = None if region is None else region[:, :h, :w]
            features = self.detect(pixel_values[..., :h, :w], regions, fixed_shapes)
        else:
            parts = [
                self.detect(pixel_values[of, :, :h, :w], None if region is None else region[of, :h, :w], fixed_shapes)
                for (h, w), of in rows.items()
            ]
            order = torch.tensor([row for of in rows.values() for row in of])
            features = KeypointFeatures.cat(parts)[order.argsort().to(pixel_values.device)]
        features.image_sizes = image_sizes
        return features

    def forward(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        region: Tensor | None = None,
        fixed_shapes: bool = False,
        return_dict: bool | None = None,
    ) -> KeypointDetectionOutput | tuple:
        """As [`extract_features`], but keypoints relative to `pixel_values`, as transformers' detectors give them."""
        features = self.extract_features(pixel_values, image_sizes, region, fixed_shapes)
        outputs = detection_output(features, *pixel_values.shape[-2:])
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()


def check_detector_inputs(
    config: Any, pixel_values: Tensor, image_sizes: Tensor | None, region: Tensor | None, fixed_shapes: bool
) -> None:
    """Raise a ValueError that names an argument of a detector that [`check_images`] refuses.

    Also pixels of neither 1 nor 3 channels, and `fixed_shapes` without `max_keypoints`.
    """
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values must be (batch, channels, height, width), got shape {tuple(pixel_values.shape)}"
        )
    if fixed_shapes and config.max_keypoints < 0:
        raise ValueError("fixed_shapes needs config.max_keypoints >= 0")
    check_images(pixel_values, image_sizes, region, looks_at_values(pixel_values, fixed_shapes))
    if not is_traced() and pixel_values.shape[1] not in (1, 3):
        raise ValueError(f"pixel_values must have 1 channel, grey, or 3, RGB, got shape {tuple(pixel_values.shape)}")


def check_images(
    pixel_values: Tensor, image_sizes: Tensor | None, region: Tensor | None = None, values: bool = True
) -> None:
    """Raise a ValueError that names what is no tensor, of another shape or type, NaN or out of its range.

    Args:
        pixel_values: `(batch, 2, channels, height, width)` or `(images, channels, height, width)`.
        image_sizes, region: see [`KeypointDetector.extract_features`], with the axes of `pixel_values` in front.
        values: also look at the numbers, for which the device has to finish.
    """
    for name, value in {"pixel_values": pixel_values, "image_sizes": image_sizes, "region": region}.items():
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(
                f'{name} must be a tensor, got {type(value).__name__}: pass return_tensors="pt" to the processor'
            )
    if pixel_values.ndim not in (4, 5) or (pixel_values.ndim == 5 and pixel_values.shape[1] != 2):
        raise ValueError(
            "pixel_values must be (batch, 2, channels, height, width) or (images, channels, height, width), "
            f"got shape {tuple(pixel_values.shape)}"
        )
    height, width = pixel_values.shape[-2:]
    images = pixel_values.shape[:-3]
    expected = {"image_sizes": (image_sizes, (*images, 2)), "region": (region, (*images, height, width))}
    for name, (value, shape) in expected.items():
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    refuse_non_integers(image_sizes=image_sizes)
    if values:
        refuse_non_finite(pixel_values=pixel_values)
        if image_sizes is not None and image_sizes.numel():
            low, high = image_sizes.amin((*range(image_sizes.ndim - 1),)), image_sizes.flatten(0, -2).amax(0)
            if low.min() < 1 or high[0] > height or high[1] > width:
                raise ValueError(
                    f"image_sizes (height, width) must lie between (1, 1) and ({height}, {width}), of pixel_values"
                )


def check_one_mode(pixels: Mapping[str, Any], features: Mapping[str, Any]) -> None:
    """Raise a ValueError that names arguments of pixels and of features that are given together.

    Args:
        pixels: what goes with pixels alone, `pixel_values` among it; `None` where it is not given.
        features: what goes with features alone, `keypoints` and `descriptors` among it.
    """
    wanted = "give either pixel_values, or keypoints and descriptors"
    finds = pixels["pixel_values"] is not None
    if not finds and (features["keypoints"] is None or features["descriptors"] is None):
        raise ValueError(wanted)
    if others := [name for name, value in (features if finds else pixels).items() if value is not None]:
        mode = "pixel_values" if finds else "keypoints and descriptors"
        raise ValueError(f"{wanted}: {', '.join(others)} cannot be given with {mode}")


def features_of_pairs(
    config: Any,
    keypoints: "KeypointFeatures | Tensor",
    descriptors: Tensor | None = None,
    mask: Tensor | None = None,
    image_sizes: Tensor | None = None,
    scales: Tensor | None = None,
    orientations: Tensor | None = None,
    values: bool = True,
) -> KeypointFeatures:
    """The arguments of `match_features` as features, checked against the configuration of the matcher.

    Args:
        values: also look at the numbers, for which the device has to finish.

    Raises:
        ValueError: both features and other arguments, or see [`KeypointFeatures.check`].
    """
    if isinstance(keypoints, KeypointFeatures):
        features = keypoints
        if any(value is not None for value in (descriptors, mask, image_sizes, scales, orientations)):
            raise ValueError("give either features, or keypoints, descriptors and so on, not both")
        if not config.add_scale_ori:  # another matcher may take them
            features = replace(features, scales=None, orientations=None)
    else:
        features = KeypointFeatures(keypoints, descriptors, mask, image_sizes, None, scales, orientations)
    points = features.keypoints
    if points is None or points.ndim != 4 or points.shape[1] != 2 or points.shape[3] != 2:
        shape = None if points is None else tuple(points.shape)
        raise ValueError(f"keypoints must be (batch, 2, n, 2), got shape {shape}")
    features.check(config.num_input_features, config.add_scale_ori, values)
    return features


def detection_output(features: KeypointFeatures, height: int, width: int) -> KeypointDetectionOutput:
    """Features as transformers' detectors give them: relative to a canvas of so many pixels."""
    assert features.keypoints is not None
    return KeypointDetectionOutput(
        keypoints=features.keypoints / vector(width, height, features.keypoints.device),
        scores=features.scores,
        descriptors=features.descriptors,
        mask=features.mask,
        scales=features.scales,
        orientations=features.orientations,
    )


def features_of_detector(
    detector: Any,
    pixel_values: Tensor,
    image_sizes: Tensor | None = None,
    region: Tensor | None = None,
    fixed_shapes: bool = False,
) -> KeypointFeatures:
    """What any model of `AutoModelForKeypointDetection` finds, as [`KeypointDetector.extract_features`] gives it.

    Of a model without this contract keypoints are kept that lie on the image and in the region: it saw the padding,
    and spent its budget on the whole canvas.
    """
    if isinstance(detector, KeypointDetector):
        return detector.extract_features(pixel_values, image_sizes, region, fixed_shapes)
    check_detector_inputs(detector.config, pixel_values, image_sizes, region, fixed_shapes)
    height, width = pixel_values.shape[-2:]
    options: dict[str, Any] = {}
    if "image_sizes" in inspect.signature(detector.forward).parameters and image_sizes is not None:
        options["image_sizes"] = image_sizes
    relative, scores, descriptors, mask = detector(pixel_values, return_dict=False, **options)[:4]
    keypoints = relative.float() * vector(width, height, relative.device)
    if image_sizes is None:
        image_sizes = vector(height, width, pixel_values.device).expand(pixel_values.shape[0], 2)
    else:
        mask = mask * (keypoints < image_sizes[:, None].flip(-1)).all(-1)
    if region is not None:
        x, y = keypoints.round().long().unbind(-1)
        index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
        mask = mask * region.flatten(1).gather(1, index)
    return KeypointFeatures(
        keypoints=keypoints, descriptors=descriptors, mask=mask.int(), image_sizes=image_sizes, scores=scores
    )
