"""Export to ONNX and OpenVINO IR: the whole pipeline, the detector alone or the matcher alone, as one graph each.

The graphs are traced from the PyTorch model itself. Fixed-depth graphs take any batch; adaptive graphs, one pair: a
layer is then the branch of an `If`, skipped once the pair has stopped, and pruned points leave the tensors. Every
graph is run against PyTorch before its files appear. docs/export.md has the inputs and outputs in a table.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor

from .image_processing_lightglue import PAD_MULTIPLE, LightGlueImageProcessor
from .modeling_lightglue import (
    Assignment,
    AttentionMask,
    KeypointFeatures,
    LightGlueAttention,
    LightGlueForKeypointMatching,
    LightGlueKeypointMatchingOutput,
    LightGlueMLP,
    LightGlueTransformerLayer,
    Points,
    Record,
    swap_images,
)
from .textures import render_textures

FILES = {
    "onnx": {"pipeline": "model.onnx", "detector": "detector.onnx", "matcher": "matcher.onnx"},
    "openvino": {
        "pipeline": "openvino_model.xml",
        "detector": "openvino_detector.xml",
        "matcher": "openvino_matcher.xml",
    },
}
PARTS = tuple(FILES["onnx"])
OPSET = 18

# What each weight format may do: the share of keypoints and of matches that must be common to the graph and PyTorch,
# and how far the scores of those may differ. The bundled checkpoint's worst, on small procedural images: fp32 100% and
# 6e-6, fp16 98.9% and 0.02, int8 69% and 0.30; with activations in int8 67% and 0.35.
TOLERANCES = {"fp32": (0.98, 1e-4), "fp16": (0.95, 0.05), "int8": (0.5, 0.5), "calibrated": (0.5, 0.5)}
WEIGHT_FORMATS = ("fp32", "fp16", "int8")

# What stays in floating point when weights and activations are quantised: positions, and what decides on matches.
SENSITIVE = [".*positional_encoder.*", ".*match_assignment_layers.*", ".*token_confidence.*", ".*conv_score_b.*"]


@dataclass(frozen=True)
class ExportOptions:
    """What graphs to make.

    Args:
        parts: of "pipeline", "detector" and "matcher".
        batch_size: pairs, for the detector images; 0 for any number. Adaptive graphs take one pair.
        height, width: of the images; 0 for any of at least 8 pixels. Both or neither.
        num_keypoints: the columns of every image, those without a keypoint masked; by default the detector's
            `max_keypoints`, 1024 where it has none. For the matcher alone any number by default.
        adaptive: stop early and prune points as the model's configuration says; otherwise all layers run.
        weight_format: "fp32", "fp16" or "int8", how the weights are stored.
        calibration: folder of photos to quantise weights and activations by (OpenVINO alone).
        num_samples: pairs of photos that are used of it.
        opset: of ONNX.
        validate: run every graph against PyTorch, and fail where it differs.

    Raises:
        ValueError: a number or name out of its range, or options that exclude each other, named.
    """

    parts: tuple[str, ...] = ("pipeline",)
    batch_size: int = 0
    height: int = 0
    width: int = 0
    num_keypoints: int | None = None
    adaptive: bool = False
    weight_format: str = "fp32"
    calibration: str | os.PathLike[str] | None = None
    num_samples: int = 100
    opset: int = OPSET
    validate: bool = True

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown or not self.parts:
            raise ValueError(f"parts must be of {', '.join(PARTS)}, got {self.parts}")
        if self.weight_format not in WEIGHT_FORMATS:
            raise ValueError(f"weight_format must be of {', '.join(WEIGHT_FORMATS)}, got {self.weight_format!r}")
        if self.batch_size < 0:
            raise ValueError(f"batch_size must be at least 0, got {self.batch_size}")
        if self.num_keypoints is not None and self.num_keypoints < 1:
            raise ValueError(f"num_keypoints must be at least 1, got {self.num_keypoints}")
        sides = (self.height, self.width)
        if sides != (0, 0) and min(sides) < PAD_MULTIPLE:
            raise ValueError(f"height and width must both be 0 or at least {PAD_MULTIPLE}, got {sides}")
        if self.adaptive and self.batch_size > 1:
            raise ValueError(
                "an adaptive graph takes one pair: batch_size must be 1 or 0 (a runtime loops over pairs)"
            )
        if self.adaptive and (self.weight_format == "int8" or self.calibration is not None):
            raise ValueError("adaptive graphs are not quantised yet: choose fp32 or fp16, or leave adaptive out")


# ---------------------------------------------------------------------------------------------------------------------
# Graphs


class Detector(nn.Module):
    """Keypoints of images, in pixels."""

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self.model.extract_features(pixel_values, image_sizes)
        return _known(found.keypoints, found.scores, found.descriptors, found.mask)


class Matcher(nn.Module):
    """Matches of keypoints in pixels, after all layers."""

    outputs = ("matches", "matching_scores", "prune", "stop")

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Keypoints, descriptors, mask, image sizes and, for models that take them, scales and orientations."""
        result = self.model.match_features(*features)  # type: ignore[arg-type]
        return _known(result.matches, result.matching_scores, result.prune, result.stop)


class Pipeline(nn.Module):
    """Detector and matcher; keypoints relative to the image sizes, as in the PyTorch model's output.

    The descriptors are an output, too: OpenVINO, where it computes in bfloat16, leaves in float32 what is between the
    last convolution and an output, and descriptors sampled in bfloat16 cost 5% of the correct matches.
    """

    def __init__(self, model: LightGlueForKeypointMatching, matcher: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.matcher = matcher

    def forward(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self.model.extract_features(pixel_values, image_sizes)
        keypoints, descriptors, mask, sizes = _known(found.keypoints, found.descriptors, found.mask, found.image_sizes)
        matched = self.matcher(keypoints, descriptors, mask, sizes)
        return *matched, keypoints / sizes.flip(-1)[:, :, None], mask, descriptors


def _known(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)


class FusedBlock(nn.Module):
    """Attention and the feed-forward network behind it, computing what the model's do in fewer, larger steps.

    Queries, keys and values are one product, and the output projection is multiplied into the network's first layer.
    Rotations are of halves of a head, as runtimes know them, not of neighbours: the weights are put in that order.
    """

    def __init__(self, attention: LightGlueAttention, mlp: LightGlueMLP, cross: bool) -> None:
        super().__init__()
        self.cross = cross
        self.head_dim = d = attention.head_dim
        order = torch.arange(d) if cross else torch.arange(d).view(-1, 2).T.flatten()
        groups = attention.num_key_value_groups

        def heads(
            linear: nn.Linear, factor: float = 1.0, groups: int = 1, rows: Tensor | slice = slice(None)
        ) -> Tensor:
            """Weights and biases `(heads * head_dim, width + 1)`."""
            both = torch.cat([linear.weight, _bias(linear)[:, None]], 1).unflatten(0, (-1, d))
            return factor * both.repeat_interleave(groups, 0)[:, rows].flatten(0, 1)

        value = heads(attention.v_proj, groups=groups)
        if cross and attention.shares_projection():
            projections = [heads(attention.q_proj, attention.scaling**0.5), value]
        else:
            query = heads(attention.q_proj, attention.scaling, rows=order)
            projections = [query, heads(attention.k_proj, groups=groups, rows=order), value]
        self.count = len(projections)
        merged = torch.cat(projections)
        self.projections = _linear(merged[:, :-1], merged[:, -1])
        width = attention.o_proj.out_features
        own, message = mlp.fc1.weight.split([width, mlp.fc1.in_features - width], 1)
        self.fc1 = _linear(
            torch.cat([own, message @ attention.o_proj.weight], 1),
            _bias(mlp.fc1) + message @ _bias(attention.o_proj),
        )
        self.layer_norm, self.activation_fn, self.fc2 = mlp.layer_norm, mlp.activation_fn, mlp.fc2

    def forward(self, hidden: Tensor, visible: Tensor | None, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Attend and go on.

        Args:
            hidden: `(2 * pairs, n, width)`.
            visible: `(2 * pairs, 1, 1, n)` bool, the keys that exist; `None` for all.
            rotary: of self-attention, cosines and sines `(2 * pairs, 1, n, head_dim)`.
        """
        projected = self.projections(hidden).chunk(self.count, -1)
        heads = [x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projected]
        query, key, value = heads[0], heads[-2], heads[-1]  # queries and keys are one where they are the same
        if rotary is not None:
            query, key = _rotate_halves(query, *rotary), _rotate_halves(key, *rotary)
        if self.cross:
            key, value = swap_images(key), swap_images(value)
        message = F.scaled_dot_product_attention(query, key, value, visible, scale=1.0)
        inputs = torch.cat([hidden, message.transpose(1, 2).flatten(2)], -1)
        return hidden + self.fc2(self.activation_fn(self.layer_norm(self.fc1(inputs))))


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    return linear


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class FusedLayer(nn.Module):
    """A transformer layer of the model, in two [`FusedBlock`]s."""

    def __init__(self, layer: LightGlueTransformerLayer) -> None:
        super().__init__()
        self.self_block = FusedBlock(layer.self_attention, layer.self_mlp, cross=False)
        self.cross_block = FusedBlock(layer.cross_attention, layer.cross_mlp, cross=True)

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, tuple, tuple]:
        """As the model's own layer, without the states and attentions on the way."""
        visible = swapped = None
        if mask is not None:
            visible = AttentionMask(keys=mask, queries=mask).visible()
            swapped = swap_images(visible)
        cos, sin = (torch.cat([angles, angles], -1)[:, None] for angles in rotary)
        return self.cross_block(self.self_block(hidden, visible, (cos, sin)), swapped), (), ()


@torch.no_grad()
def fused(model: LightGlueForKeypointMatching) -> LightGlueForKeypointMatching:
    """A copy that computes the same in the form that runtimes are quickest with."""
    model = copy.deepcopy(model)
    model.transformer_layers = nn.ModuleList(FusedLayer(layer) for layer in model.transformer_layers)  # type: ignore[arg-type]
    return model


# What an adaptive graph carries from layer to layer, of one pair: see `Points`; `(1, 2, n)` prune; and, without axes,
# stop, whether another layer runs, and the number of points at the beginning `(1,)`.
STATE = ("index", "mask", "descriptors", "cos", "sin", "prune", "stop", "running", "initial")


class Begin(nn.Module):
    """The state before the first layer."""

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, keypoints: Tensor, descriptors: Tensor, mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        config = self.model.config
        mask = mask > 0
        points = self.model._points(keypoints, descriptors, mask, *others)
        running = mask.any(-1).all()
        stop = torch.where(running, config.num_hidden_layers, 1)
        prune = mask.to(torch.int64) * (config.num_hidden_layers if config.width_confidence <= 0 else 1)
        return *_tensors(points), prune, stop, running, mask.sum((1, 2))


class Layer(nn.Module):
    """A layer and, unless it is the last, what it says of the pair and its points: state to state."""

    def __init__(self, model: LightGlueForKeypointMatching, i: int) -> None:
        super().__init__()
        self.model = model
        self.i = i

    def forward(self, *state: Tensor) -> tuple[Tensor, ...]:
        points, prune, stop, _, initial = _points(state)
        assert points.mask is not None
        self.model._run_layer(self.i, points, Record(False, False))
        layers = self.model.config.num_hidden_layers
        if self.i == layers - 1:
            return *_tensors(points), prune, stop, torch.zeros_like(stop, dtype=torch.bool), initial
        stopped, important, survived = self.model._judge(points.descriptors, points.mask, initial, self.i)
        prune = prune.scatter_add(2, points.index, survived.to(prune.dtype))
        keep = points.mask & (important | stopped[:, None, None])
        counts = keep.sum(-1)
        empty = (counts == 0).any(-1)
        stop = torch.where(stopped, self.i + 1, torch.where(empty, self.i + 2, layers))[0]
        # one column at least, of padding, where nothing is left: there is no maximum of nothing
        points = points.kept(keep, counts.max().clamp(min=1), padded=True)  # type: ignore[arg-type] # not a number here
        return *_tensors(points), prune, stop, ~(stopped | empty)[0], initial


class Finish(nn.Module):
    """Matches of what is left, by the assignment of the layer that the pair stopped after."""

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, *state: Tensor) -> tuple[Tensor, ...]:
        points, prune, stop, _, _ = _points(state)
        layers: Any = self.model.match_assignment_layers
        projected, matchability = (
            F.linear(
                points.descriptors,
                torch.stack([getattr(layer, name).weight for layer in layers])[stop - 1],
                torch.stack([getattr(layer, name).bias for layer in layers])[stop - 1],
            )
            for name in ("final_projection", "matchability")
        )
        assignment = Assignment.of(projected, matchability, points.mask)
        matches, scores = assignment.matches(self.model.config.filter_threshold)
        return *points.in_columns(matches, scores, prune.shape[2]), prune, stop[None]


class Nothing(nn.Module):
    """No matches, of a pair without keypoints."""

    def forward(self, *state: Tensor) -> tuple[Tensor, ...]:
        _, prune, stop, _, _ = _points(state)
        return torch.full_like(prune, -1), torch.zeros_like(prune, dtype=torch.float32), prune, stop[None]


def _tensors(points: Points) -> tuple[Tensor, ...]:
    assert points.mask is not None
    return points.index, points.mask, points.descriptors, points.cos, points.sin


def _points(state: tuple[Tensor, ...]) -> tuple[Points, Tensor, Tensor, Tensor, Tensor]:
    """The points of a state, and the rest of it."""
    index, mask, descriptors, cos, sin, prune, stop, running, initial = state
    return Points(initial, index, mask, descriptors, cos, sin), prune, stop, running, initial


class Gate(nn.Module):
    """The branch that a layer runs in, or does not. For TorchScript, which keeps it as a branch."""

    def __init__(self, layer: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self,
        index: Tensor,
        mask: Tensor,
        descriptors: Tensor,
        cos: Tensor,
        sin: Tensor,
        prune: Tensor,
        stop: Tensor,
        running: Tensor,
        initial: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        if bool(running):
            index, mask, descriptors, cos, sin, prune, stop, running, initial = self.layer(
                index, mask, descriptors, cos, sin, prune, stop, running, initial
            )
        return index, mask, descriptors, cos, sin, prune, stop, running, initial


class FinishGate(nn.Module):
    """The branch that the points of a pair are matched in, if there are any.

    It is there because without it the first inference of OpenVINO 2026.4 on a CPU was wrong at times; with it, none of
    300 was, of a small model in float32. Why is not known.
    """

    def __init__(self, finish: torch.jit.ScriptModule, nothing: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.finish = finish
        self.nothing = nothing

    def forward(
        self,
        index: Tensor,
        mask: Tensor,
        descriptors: Tensor,
        cos: Tensor,
        sin: Tensor,
        prune: Tensor,
        stop: Tensor,
        running: Tensor,
        initial: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if bool(initial > 0):
            matches, scores, prunes, stops = self.finish(
                index, mask, descriptors, cos, sin, prune, stop, running, initial
            )
        else:
            matches, scores, prunes, stops = self.nothing(
                index, mask, descriptors, cos, sin, prune, stop, running, initial
            )
        return matches, scores, prunes, stops


class AdaptiveMatcher(nn.Module):
    """Matches of the keypoints of one pair, which stops early and whose points are pruned."""

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.begin = Begin(model)
        state = example_state(model)
        layers = [
            torch.jit.trace(Layer(model, i), state, check_trace=False) for i in range(model.config.num_hidden_layers)
        ]
        self.layers = nn.ModuleList(torch.jit.script(Gate(layer)) for layer in layers)
        ends = [torch.jit.trace(end, state, check_trace=False) for end in (Finish(model), Nothing())]
        self.finish = torch.jit.script(FinishGate(*ends))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        state = self.begin(*features)
        for layer in self.layers:
            state = layer(*state)
        return self.finish(*state)


def example_state(model: LightGlueForKeypointMatching, n: int = 16) -> tuple[Tensor, ...]:
    """Some state that layers can be traced with."""
    config = model.config
    keypoints = 100 * torch.rand(1, 2, n, 2)
    others = [torch.full((1, 2, 2), 100)]
    if config.add_scale_ori:
        others += [torch.ones(1, 2, n), torch.zeros(1, 2, n)]
    descriptors = torch.randn(1, 2, n, config.num_input_features)
    return Begin(model)(keypoints, descriptors, torch.ones(1, 2, n, dtype=torch.int32), *others)


# ---------------------------------------------------------------------------------------------------------------------
# What is exported


class Source:
    """A model that does what its graphs are to do, itself and `fused`, the processor that feeds them, and the options.

    Args:
        model: not changed, but copied.
        processor: `None` for the matcher alone.
        options: what graphs to make.

    Raises:
        ValueError: the model or the processor cannot do what the options ask for.
    """

    def __init__(
        self, model: LightGlueForKeypointMatching, processor: LightGlueImageProcessor | None, options: ExportOptions
    ) -> None:
        self.options = options
        self.model = model = copy.deepcopy(model).float().cpu().eval()
        model.set_attn_implementation("sdpa")
        config = model.config
        if not options.adaptive:
            config.depth_confidence = config.width_confidence = -1.0
        elif config.depth_confidence <= 0 and config.width_confidence <= 0:
            raise ValueError("nothing is adaptive: depth_confidence and width_confidence of the model are <= 0")
        if config.use_keypoint_detector:
            detector = config.keypoint_detector_config
            if options.num_keypoints:
                detector.max_keypoints = options.num_keypoints
            elif detector.max_keypoints < 1:
                detector.max_keypoints = 1024
        elif set(options.parts) != {"matcher"}:
            raise ValueError('this model has no keypoint detector: its "matcher" can be exported, and nothing else')
        self.fused = fused(model)
        self.processor = processor = copy.deepcopy(processor)
        if processor is None and set(options.parts) != {"matcher"}:
            raise ValueError("there is no image processor, which a graph that takes images needs")
        if processor is not None and options.height:
            processor.size = {"height": options.height, "width": options.width}
            processor.do_resize = True
        # photos of different sizes then share a batch, and the graphs are told those sizes
        self.sized = processor is not None and (not processor.do_resize or "longest_edge" in processor.size)

        self.photos: list[Path] = []
        if options.calibration is not None:
            files = Path(options.calibration).rglob("*")
            self.photos = sorted(file for file in files if file.suffix.lower() in PHOTOS)
            if processor is None or len(self.photos) < 2:
                raise ValueError(
                    "quantisation needs an image processor and two photos at least; "
                    f"in {options.calibration} there are {len(self.photos)} ({', '.join(PHOTOS)})"
                )

    def metadata(self, part: str) -> dict[str, str]:
        """What is written into a graph of the part."""
        config = self.model.config
        said = {
            "producer": f"lightglue-hf {_version()}",
            "part": part,
            "adaptive": self.options.adaptive and part != "detector",
            "weight_format": self.options.weight_format,
            "calibrated": self.options.calibration is not None,
        }
        if part != "matcher":
            said["max_keypoints"] = config.keypoint_detector_config.max_keypoints
            said["keypoint_threshold"] = getattr(config.keypoint_detector_config, "keypoint_threshold", "")
        if part != "detector":
            said |= {name: getattr(config, name) for name in ("filter_threshold", *CONFIDENCES)}
        return {name: str(value) for name, value in said.items()}

    def calibration(self, part: str) -> Iterator[dict[str, np.ndarray]]:
        """Inputs of the part, from pairs of neighbouring photos in the folder of the options."""
        assert self.processor is not None
        for pair in list(pairwise(self.photos))[: self.options.num_samples]:
            inputs = dict(self.processor([pair], return_tensors="pt"))
            if part == "detector":
                inputs = {name: tensor[0] for name, tensor in inputs.items()}
            elif part == "matcher":
                with torch.no_grad():
                    found = self.model.extract_features(**inputs)
                inputs = {name: found[name] for name in ("keypoints", "descriptors", "mask", "image_sizes")}
            yield {name: tensor.numpy() for name, tensor in inputs.items()}


CONFIDENCES = ("depth_confidence", "width_confidence")
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


def _version() -> str:
    from . import __version__

    return __version__


# ---------------------------------------------------------------------------------------------------------------------
# Inputs and outputs


class Axes(NamedTuple):
    """Type and axes of an input or output: numbers, or names where any number goes."""

    dtype: torch.dtype
    axes: tuple[int | str, ...]


@dataclass
class Graph:
    """A graph to export.

    Args:
        part: "pipeline", "detector" or "matcher".
        module: takes tensors named `inputs` and returns `outputs`, both in this order.
        inputs, outputs: by name.
    """

    part: str
    module: nn.Module
    inputs: dict[str, Axes]
    outputs: dict[str, Axes]

    def example(self) -> tuple[Tensor, ...]:
        """Some inputs that it can be traced with."""
        sizes = {"batch": 2, "images": 2, "height": 96, "width": 128, "keypoints": 64}
        tensors = []
        for name, (dtype, axes) in self.inputs.items():
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in axes]
            tensors.append(
                torch.full(shape, 64, dtype=dtype) if name == "image_sizes" else torch.ones(shape).to(dtype)
            )
        return tuple(tensors)


def make_graph(source: Source, part: str, as_layers: bool = False) -> Graph:
    """The graph of a part of the model.

    Args:
        source: what to make it of.
        part: "pipeline", "detector" or "matcher".
        as_layers: of an adaptive graph the beginning alone, for the caller to add the layers.
    """
    model, options = source.fused, source.options
    config = model.config
    batch: int | str = 1 if options.adaptive else options.batch_size or "batch"
    height, width = options.height or "height", options.width or "width"
    n: int | str = options.num_keypoints or "keypoints"
    if part != "matcher":
        n = config.keypoint_detector_config.max_keypoints
    pair: tuple[int | str, ...] = (batch, 2)
    if part == "detector":
        pair = (options.batch_size or "images",)
    images = {"pixel_values": Axes(torch.float32, (*pair, 3, height, width))}
    sizes = {"image_sizes": Axes(torch.int64, (*pair, 2))}
    features = {
        "keypoints": Axes(torch.float32, (*pair, n, 2)),
        "descriptors": Axes(torch.float32, (*pair, n, config.num_input_features)),
        "mask": Axes(torch.int32, (*pair, n)),
    }
    per_point = Axes(torch.float32, (*pair, n))
    matched = {
        "matches": Axes(torch.int64, (*pair, n)),
        "matching_scores": per_point,
        "prune": Axes(torch.int64, (*pair, n)),
        "stop": Axes(torch.int64, (batch,)),
    }
    if part == "detector":
        found = {"keypoints": features["keypoints"], "scores": per_point, **features}
        return Graph(part, Detector(model), images | (sizes if source.sized else {}), found)
    matcher: nn.Module = Matcher(model)
    if options.adaptive:
        matcher = Begin(model) if as_layers else AdaptiveMatcher(model)
    if part == "matcher":
        extra = {"scales": per_point, "orientations": per_point} if config.add_scale_ori else {}
        return Graph(part, matcher, features | sizes | extra, matched)
    found = {name: features[name] for name in ("keypoints", "mask", "descriptors")}
    return Graph(part, Pipeline(model, matcher), images | (sizes if source.sized else {}), matched | found)


# ---------------------------------------------------------------------------------------------------------------------
# ONNX


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing and without gradients; without the tracer's warnings, whose subject the tests settle."""
    level = logging.root.manager.disable
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def _onnx(module: nn.Module, example: tuple[Tensor, ...], inputs: Any, outputs: Any, axes: Any, opset: int) -> Any:
    import onnx

    with tempfile.TemporaryDirectory() as directory, _quiet():
        file = os.path.join(directory, "model.onnx")
        torch.onnx.export(
            module.eval(),
            example,
            file,
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
        model = onnx.load(file)
    del model.graph.value_info[:]  # shapes seen in tracing, which some runtimes take for true
    return model


def _dynamic(values: dict[str, Axes]) -> dict[str, dict[int, str]]:
    named = {n: {i: a for i, a in enumerate(v.axes) if isinstance(a, str)} for n, v in values.items()}
    return {name: axes for name, axes in named.items() if axes}


def onnx_graph(source: Source, part: str) -> Any:
    """The part as an `onnx.ModelProto`."""
    from onnx import helper

    options = source.options
    adaptive = options.adaptive and part != "detector"
    graph = make_graph(source, part, as_layers=adaptive)
    outputs = list(graph.outputs)
    if adaptive:
        outputs = [f"begin/{name}" for name in STATE] + outputs[len(Matcher.outputs) :]
    proto = _onnx(graph.module, graph.example(), graph.inputs, outputs, _dynamic(graph.inputs), options.opset)
    if adaptive:
        _add_layers(proto.graph, source.fused, options.opset)
    _declare(proto.graph, graph)
    if options.weight_format == "fp16":
        _store_half(proto.graph)
    helper.set_model_props(proto, source.metadata(part))
    return proto


def _add_layers(graph: Any, model: LightGlueForKeypointMatching, opset: int) -> None:
    """Put the layers, each in an `If`, and the end of an adaptive graph behind its beginning."""
    from onnx import TensorProto, compose, helper

    state = example_state(model)
    points = {f"{field}_": {2: "keypoints"} for field in STATE[: STATE.index("prune") + 1]}
    current = [f"begin/{name}" for name in STATE]

    def part(module: nn.Module, name: str, outputs: Any) -> Any:
        """A graph without inputs: as branches do, it takes the values of the graph around it by name."""
        exported = _onnx(module, state, [f"{field}_" for field in STATE], outputs, points, opset)
        exported = compose.add_prefix(exported, f"{name}/").graph
        names = {f"{name}/{field}_": value for field, value in zip(STATE, current)}
        for node in exported.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        del exported.input[:]
        return exported

    def branch(name: str, condition: str, then: Any, otherwise: Any, results: list[str]) -> None:
        for value in (*then.output, *otherwise.output):  # the shapes of the two differ
            value.type.tensor_type.ClearField("shape")
        branches = {"then_branch": then, "else_branch": otherwise}
        graph.node.append(helper.make_node("If", [condition], results, name, **branches))

    for i in range(model.config.num_hidden_layers):
        then = part(Layer(model, i), f"layer{i}", [f"{name}_after" for name in STATE])
        kept = [f"layer{i}/{name}_before" for name in STATE]
        otherwise = helper.make_graph(
            [helper.make_node("Identity", [old], [new]) for old, new in zip(current, kept)],
            f"layer{i}/skipped",
            [],
            [helper.make_value_info(new, old.type) for new, old in zip(kept, then.output)],
        )
        following = [f"layer{i}/{name}" for name in STATE]
        branch(f"layer{i}", current[STATE.index("running")], then, otherwise, following)
        current = following
    graph.node.append(helper.make_node("Cast", ["begin/initial"], ["any_points"], "any_points", to=TensorProto.BOOL))
    then, otherwise = part(Finish(model), "finish", Matcher.outputs), part(Nothing(), "nothing", Matcher.outputs)
    branch("finish", "any_points", then, otherwise, list(Matcher.outputs))


def _declare(proto: Any, graph: Graph) -> None:
    """Write down the types and axes of inputs and outputs."""
    from onnx import helper

    for values, wanted in ((proto.input, graph.inputs), (proto.output, graph.outputs)):
        del values[:]
        for name, (dtype, axes) in wanted.items():
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))
            values.append(helper.make_tensor_value_info(name, kind, axes))


def _store_half(graph: Any) -> None:
    """Store the weights in half precision, and compute in float32 as before."""
    from onnx import AttributeProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= 256:
            name = tensor.name
            half = np.clip(values, *(getattr(np.finfo(np.float16), end) for end in ("min", "max"))).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=1))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _store_half(attribute.g)


def _save_onnx(source: Source, part: str, file: Path) -> None:
    import onnx

    proto = onnx_graph(source, part)
    onnx.checker.check_model(proto)
    onnx.save(proto, file)
    if source.options.weight_format == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(file, file, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)


def _run_onnx(file: Path) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs)))


# ---------------------------------------------------------------------------------------------------------------------
# OpenVINO


def openvino_graph(source: Source, part: str) -> Any:
    """The part as an `openvino.Model`, its weights in float32."""
    import openvino

    graph = make_graph(source, part)
    with _quiet():
        example = graph.example()
        converted = openvino.convert_model(
            torch.jit.trace(graph.module.eval(), example, check_trace=False), example_input=example
        )
    shapes = {}
    for port, (name, (_, axes)) in zip(converted.inputs, graph.inputs.items(), strict=True):
        port.get_tensor().set_names({name})
        port.node.set_friendly_name(name)
        shapes[port] = openvino.PartialShape([axis if isinstance(axis, int) else -1 for axis in axes])
    converted.reshape(shapes)
    for port, name in zip(converted.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    for key, value in source.metadata(part).items():
        converted.set_rt_info(value, ["lightglue_hf", key])
    _unround(converted)
    return converted


def _unround(converted: Any) -> None:
    """Mark what OpenVINO leaves in float32 where it computes in bfloat16: what `unrounded` leaves so in PyTorch.

    Those are the first convolution, the one that gives the scores, and what lies between each and the convolution or
    input before it. The mark is OpenVINO's own, and is heeded in a model that was read from a file.
    """
    for op in converted.get_ordered_ops():
        if re.search(r"\.(conv_blocks\.0\.conv_a|conv_score_b)/.*Convolution$", op.friendly_name):
            op.get_rt_info()["precise_0"] = ""
            while (op := op.input_value(0).get_node()).get_type_name() not in ("Convolution", "Parameter"):
                op.get_rt_info()["precise_0"] = ""


def _save_openvino(source: Source, part: str, file: Path) -> None:
    import openvino

    options = source.options
    converted = openvino_graph(source, part)
    if options.calibration is not None or options.weight_format == "int8":
        converted = _quantised(converted, source, part)
    openvino.save_model(converted, file, compress_to_fp16=options.weight_format == "fp16")


def _quantised(converted: Any, source: Source, part: str) -> Any:
    """Weights in int8; with photos to calibrate by, activations too. What decides on matches stays in float."""
    import nncf

    kept = nncf.IgnoredScope(patterns=SENSITIVE, validate=False)
    with _quiet():
        if source.options.calibration is None:
            return nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=kept)
        samples = list(source.calibration(part))
        return nncf.quantize(
            converted,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=kept,
        )


def _run_openvino(file: Path) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    import openvino

    compiled = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.any_name for output in compiled.outputs]
    return lambda inputs: dict(zip(names, compiled(inputs).values()))


BACKENDS: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {
    "onnx": (_save_onnx, _run_onnx),
    "openvino": (_save_openvino, _run_openvino),
}


# ---------------------------------------------------------------------------------------------------------------------
# Check against PyTorch


class Check(NamedTuple):
    """How a graph compares with PyTorch on procedural images, or on random points for the matcher alone.

    Args:
        part: the graph.
        keypoints: share of the keypoints, as a set of coordinates, that both found; `None` for the matcher.
        matches: share of the matches that both found; `None` for the detector.
        compared: keypoints of the detector, otherwise matches, that both found.
        difference: largest difference of the scores of those; for the detector of their descriptors too.
    """

    part: str
    keypoints: float | None
    matches: float | None
    compared: int
    difference: float

    def __str__(self) -> str:
        shares = {"keypoints": self.keypoints, "matches": self.matches}
        common = ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items() if share is not None)
        return f"{self.part}: {common} in common with PyTorch, scores of {self.compared} within {self.difference:.1e}"


Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


def check(source: Source, part: str, run: Run) -> Check:
    """Compare a graph with PyTorch.

    Raises:
        ExportError: they differ by more than noise.
    """
    shared: list[set] = [set(), set()]
    union: list[set] = [set(), set()]
    differences = [0.0]
    for number, inputs in enumerate(_examples(source, part)):
        theirs, ours = run(inputs), _reference(source.model, part, inputs)
        for kind, (first, second) in enumerate(
            zip(_found(part, inputs, theirs, number), _found(part, inputs, ours, number))
        ):
            common = first.keys() & second.keys()
            shared[kind] |= common
            union[kind] |= first.keys() | second.keys()
            differences += [float(np.abs(first[key] - second[key]).max()) for key in common]
    keypoints, matches = (len(both) / len(either) if either else 1.0 for both, either in zip(shared, union))
    result = Check(
        part,
        None if part == "matcher" else keypoints,
        None if part == "detector" else matches,
        len(shared[0 if part == "detector" else 1]),
        max(differences),
    )
    quantised = source.options.calibration is not None
    least, most = TOLERANCES["calibrated" if quantised else source.options.weight_format]
    if min(keypoints, matches) < least or not result.difference <= most:
        raise ExportError(f"the graph differs from PyTorch ({result})")
    return result


class ExportError(RuntimeError):
    """An exported graph does not do what the model does."""


def _examples(source: Source, part: str) -> Iterator[Arrays]:
    """Inputs of a graph: in dynamic ones two shapes, and an image with nothing to see."""
    options = source.options
    batch = 1 if options.adaptive and part != "detector" else options.batch_size
    for seed, (height, width) in enumerate(((120, 160), (160, 136))):
        height, width = options.height or height, options.width or width
        pairs = batch or seed + 1
        if part == "matcher":
            yield _random_features(source, pairs, height, width, seed)
            continue
        canvases = render_textures(pairs, height + 16, width + 16, seed)
        images = np.stack([canvases[:, 8:-8, 8:-8], canvases[:, 12:-4, 5:-11]], 1).astype(np.float32) / 255
        images[-1, seed:] = 0 if seed else images[-1, seed:]
        inputs = {"pixel_values": np.repeat(images[:, :, None], 3, 2)}
        sizes = np.tile([height, width], (pairs, 2, 1))
        sizes[0, 0] -= PAD_MULTIPLE + 3
        if source.sized:
            inputs["image_sizes"] = np.maximum(sizes, PAD_MULTIPLE)
        if part == "detector":
            count = options.batch_size or 2 * pairs
            inputs = {name: np.concatenate([value[:, 0], value[:, 1]])[:count] for name, value in inputs.items()}
        yield inputs


def _random_features(source: Source, pairs: int, height: int, width: int, seed: int) -> Arrays:
    """Points and the same moved, in another order and with noise; some of them are padding."""
    rng = np.random.default_rng(seed)
    n = source.options.num_keypoints or 100 + 20 * seed
    config = source.model.config
    points = rng.random((pairs, n, 2)) * [width, height]
    descriptors = rng.normal(size=(pairs, n, config.num_input_features))
    order = rng.permutation(n)
    both = np.stack([descriptors, descriptors[:, order] + 0.3 * rng.normal(size=descriptors.shape)], 1)
    inputs = {
        "keypoints": np.stack([points, points[:, order] + 3], 1).astype(np.float32),
        "descriptors": (both / np.linalg.norm(both, axis=-1, keepdims=True)).astype(np.float32),
        "mask": (rng.random((pairs, 2, n)) < 0.9).astype(np.int32),
        "image_sizes": np.tile([height, width], (pairs, 2, 1)),
    }
    if config.add_scale_ori:
        inputs |= {name: rng.random((pairs, 2, n)).astype(np.float32) for name in ("scales", "orientations")}
    return inputs


def _reference(model: LightGlueForKeypointMatching, part: str, inputs: Arrays) -> Arrays:
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        run = model.extract_features if part == "detector" else model
        outputs: KeypointFeatures | LightGlueKeypointMatchingOutput = run(**tensors)
    return {name: value.numpy() for name, value in outputs.items() if isinstance(value, Tensor)}


def _found(part: str, inputs: Arrays, outputs: Arrays, number: int) -> tuple[dict, dict]:
    """Keypoints, as (example, image, x, y), and matches, as the keypoints of both, each with its scores."""
    keypoints = outputs["keypoints"] if part != "matcher" else inputs["keypoints"]
    mask = outputs["mask"] if part != "matcher" else inputs["mask"]
    if part == "pipeline":
        sizes = inputs.get("image_sizes", np.array(inputs["pixel_values"].shape[-2:]))
        keypoints = keypoints * np.broadcast_to(sizes, (*keypoints.shape[:2], 2))[:, :, None, ::-1]
    names = np.round(keypoints, 1)
    points: dict = {}
    for at in zip(*np.nonzero(mask)):
        scores = np.zeros(1) if part != "detector" else np.append(outputs["descriptors"][at], outputs["scores"][at])
        points[(number, *at[:-1], *names[at])] = scores
    matched: dict = {}
    if part != "detector":
        for pair, i in zip(*np.nonzero(outputs["matches"][:, 0] >= 0)):
            j = outputs["matches"][pair, 0, i]
            matched[(number, pair, *names[pair, 0, i], *names[pair, 1, j])] = outputs["matching_scores"][pair, 0, i]
    return points, matched


# ---------------------------------------------------------------------------------------------------------------------
# Files


def export(
    model_id: str | os.PathLike[str],
    output: str | os.PathLike[str],
    backend: str,
    options: ExportOptions | None = None,
    **hub_options: Any,
) -> list[Check]:
    """Write the graphs of a model, with config.json, preprocessor_config.json and a card, and check them.

    Args:
        model_id: a directory or a name on the Hub.
        output: the directory to write to. What is in it stays unless it has the same name; all appears at the end,
            and nothing if anything fails.
        backend: "onnx" or "openvino".
        options: what graphs to make.
        hub_options: such as `revision` and `token`, for `from_pretrained`.

    Returns:
        How the graphs compare with PyTorch; empty without `options.validate`.

    Raises:
        ExportError: a graph differs from PyTorch by more than noise.
        ImportError: the packages for the backend are missing; which to install is said.
        OSError: the model cannot be read or `output` not be written.
        ValueError: the options do not go with the model or the backend.
    """
    options = options or ExportOptions()
    output = Path(output)
    if backend not in FILES:
        raise ValueError(f"backend must be of {', '.join(FILES)}, got {backend!r}")
    if options.calibration is not None and backend != "openvino":
        raise ValueError("weights and activations are quantised by photos for OpenVINO alone")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is no directory")
    if output.is_dir() and os.path.isdir(model_id) and output.samefile(model_id):
        raise ValueError(f"{output} is the model itself: its configuration would be overwritten")
    _need(backend, options)
    model = LightGlueForKeypointMatching.from_pretrained(model_id, **hub_options)
    processor = None
    if set(options.parts) != {"matcher"} or options.calibration is not None:
        processor = AutoImageProcessor.from_pretrained(model_id, **hub_options)
    source = Source(model, processor, options)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as directory:
        checks = _write(source, Path(directory), backend, str(model_id))
        output.mkdir(exist_ok=True)
        for file in sorted(Path(directory).iterdir()):
            os.replace(file, output / file.name)
    return checks


def _write(source: Source, directory: Path, backend: str, name: str) -> list[Check]:
    save, run = BACKENDS[backend]
    checks = []
    for part in source.options.parts:
        file = directory / FILES[backend][part]
        save(source, part, file)
        if source.options.validate:
            checks.append(check(source, part, run(file)))
    source.model.config.save_pretrained(directory)
    if source.processor is not None:
        source.processor.save_pretrained(directory)
    (directory / "README.md").write_text(_card(source, backend, name, checks))
    return checks


def _need(backend: str, options: ExportOptions) -> None:
    from importlib.util import find_spec

    packages = {"onnx": ["onnx", "onnxruntime"], "openvino": ["openvino"]}[backend]
    if backend == "openvino" and (options.weight_format == "int8" or options.calibration is not None):
        packages.append("nncf")
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} missing: install lightglue-hf[{backend}]")


def _card(source: Source, backend: str, name: str, checks: list[Check]) -> str:
    options = source.options
    kind = "adaptive (early exit and point pruning, one pair)" if options.adaptive else "fixed depth, any batch"
    lines = [
        "---",
        "library_name: optimum",
        "pipeline_tag: keypoint-matching",
        f"tags: [lightglue, keypoint-matching, {backend}]",
        "---",
        "",
        f"# {Path(name).name}, exported to {'ONNX' if backend == 'onnx' else 'OpenVINO IR'}",
        "",
        f"Exported by lightglue-hf {_version()} from `{Path(name).name}`: {kind}, weights in {options.weight_format}"
        + (", activations quantised by photos." if options.calibration is not None else "."),
        "",
        "| file | input | type | axes |",
        "|---|---|---|---|",
    ]
    for part in options.parts:
        graph = make_graph(source, part, as_layers=True)
        for kind, values in (("", graph.inputs), (" (output)", graph.outputs)):
            for value, (dtype, axes) in values.items():
                shape = ", ".join(map(str, axes))
                lines.append(f"| {FILES[backend][part]} | `{value}`{kind} | {str(dtype)[6:]} | ({shape}) |")
    lines += ["", "Compared with PyTorch when it was made:" if checks else "Not compared with PyTorch.", ""]
    lines += [f"- {result}" for result in checks]
    return "\n".join(lines) + "\n"


__all__ = ["Check", "ExportError", "ExportOptions", "export"]
