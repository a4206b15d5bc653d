"""What is traced for ONNX and OpenVINO: modules that compute what the model does, in the form that runtimes like.

Fixed-depth graphs take any batch; adaptive graphs, one pair: a layer is then the branch of an `If`, skipped once the
pair has stopped, and pruned points leave the tensors.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import KeypointFeatures
from ..modeling_lightglue import (
    Assignment,
    AttentionMask,
    LightGlueAttention,
    LightGlueForKeypointMatching,
    LightGlueMLP,
    LightGlueTransformerLayer,
    Points,
    Record,
    swap_images,
)

# All that may differ does, so that a graph that takes one for the other fails.
EXAMPLE_LENGTHS = {"batch": 2, "images": 2, "height": 96, "width": 128, "keypoints": 64}
EXAMPLE_LENGTHS |= {"height0": 96, "width0": 128, "keypoints0": 64, "height1": 128, "width1": 64, "keypoints1": 48}

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


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
        metadata: what is to be written into the file.
        float32_modules: names of modules that compute in float32 where all else is in half precision.
        finish: what makes of the graph's `onnx.ModelProto` the one that is written.
    """

    part: str
    module: nn.Module
    inputs: dict[str, Axes]
    outputs: dict[str, Axes]
    metadata: dict[str, str]
    float32_modules: tuple[str, ...] = ()
    finish: Callable[[Any], Any] = lambda proto: proto

    def shapes(self, **lengths: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs, with lengths for the axes where any number goes."""
        return {
            name: tuple(axis if isinstance(axis, int) else lengths[axis] for axis in axes)
            for name, (_, axes) in self.inputs.items()
        }

    def example(self) -> tuple[Tensor, ...]:
        """Some inputs that it can be traced with."""
        shapes = self.shapes(**EXAMPLE_LENGTHS)
        return tuple(
            torch.full(shape, 64 if name == "image_sizes" else 1, dtype=self.inputs[name].dtype)
            for name, shape in shapes.items()
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Tracing and without gradients; without the tracer's warnings, whose subject the tests settle."""
    level = logging.root.manager.disable
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


# ---------------------------------------------------------------------------------------------------------------------
# Detector, matcher and both


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
        result = self.model.match_features(_features(features))
        return _known(result.matches, result.matching_scores, result.prune, result.stop)


class PairMatcher(nn.Module):
    """Matches of one pair after all layers, its images apart: neither padding nor masks.

    Args:
        model: [`fused`].
    """

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, sizes: Tensor, *features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Match.

        Args:
            sizes: `(2, 2)`, (height, width) of both images.
            features: keypoints in pixels, descriptors and, for models that take them, scales and orientations, each
                `(1, n0, ...)` and `(1, n1, ...)`.

        Returns:
            For each point of image 0 its partner in image 1, `(n0,)` int64, -1 for none, and its score, `(n0,)`.
        """
        layers: Any = self.model.transformer_layers
        hidden, rotary = [], []
        for i, (keypoints, descriptors, *turned) in enumerate(zip(*features)):
            tensors = (x[:, None] for x in (keypoints, descriptors, *turned))
            names = ("keypoints", "descriptors", "scales", "orientations")
            points = self.model._points(
                KeypointFeatures(**dict(zip(names, tensors)), image_sizes=sizes[None, i : i + 1])
            )
            hidden.append(points.descriptors[:, 0])
            rotary.append((points.cos[:, 0], points.sin[:, 0]))
        for layer in layers:
            hidden = layer.of_two(hidden, rotary)
        # as `Assignment`, whose points are as many in both images
        assignment: Any = self.model.match_assignment_layers[-1]
        first, second = (assignment.final_projection(own)[0] for own in hidden)
        certainty = [F.logsigmoid(assignment.matchability(own)[0, :, 0]) for own in hidden]
        similarity = first @ second.T / first.shape[-1] ** 0.5
        rows = (certainty[0] - _logsumexp(similarity, 1))[:, None]
        log_p = 2 * similarity + rows + (certainty[1] - _logsumexp(similarity, 0))
        best, matches = log_p.max(1)
        scores = best.exp()
        mutual = log_p.argmax(0)[matches] == torch.arange(log_p.shape[0], device=log_p.device)
        valid = mutual & (scores > self.model.config.filter_threshold)
        return torch.where(valid, matches, torch.full_like(matches, -1)), scores * mutual


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """In steps: OpenCV 5.0 computes ONNX's operator without taking the maximum away, and overflows."""
    most = x.amax(dim, keepdim=True)
    return (x - most).exp().sum(dim).log() + most.squeeze(dim)


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
        features = _known(*(found.get(name) for name in FEATURES))
        keypoints, descriptors, mask, sizes = features[:4]
        return *self.matcher(*features), keypoints / sizes.flip(-1)[:, :, None], mask, descriptors


FEATURES = ("keypoints", "descriptors", "mask", "image_sizes", "scales", "orientations")
"""What the graph of a matcher takes, in this order; the last two where the model takes them."""


def _features(tensors: tuple[Tensor, ...]) -> KeypointFeatures:
    return KeypointFeatures(**dict(zip(FEATURES, tensors)))


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
        if cross and attention.shares_query_key():
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
        query, key, value = self.project(hidden, rotary)
        if self.cross:
            key, value = swap_images(key), swap_images(value)
        return self.attend(hidden, query, key, value, visible)

    def project(self, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `(images, heads, n, head_dim)`."""
        projected = self.projections(hidden).chunk(self.count, -1)
        heads = [x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projected]
        query, key, value = heads[0], heads[-2], heads[-1]  # queries and keys are one where they are the same
        if rotary is not None:
            query, key = _rotate_halves(query, *rotary), _rotate_halves(key, *rotary)
        return query, key, value

    def attend(
        self, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """What follows of them."""
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


def _of_halves(rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    cos, sin = (torch.cat([angles, angles], -1)[:, None] for angles in rotary)
    return cos, sin


class FusedLayer(nn.Module):
    """A transformer layer of the model, in two [`FusedBlock`]s."""

    def __init__(self, layer: LightGlueTransformerLayer) -> None:
        super().__init__()
        self.self_block = FusedBlock(layer.self_attention, layer.self_mlp, cross=False)
        self.cross_block = FusedBlock(layer.cross_attention, layer.cross_mlp, cross=True)

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, *outputs: bool
    ) -> tuple[Tensor, tuple, tuple]:
        """As the model's own layer, without the states and attentions on the way."""
        visible = swapped = None
        if mask is not None:
            visible = AttentionMask(keys=mask, queries=mask).visible()
            swapped = swap_images(visible)
        return self.cross_block(self.self_block(hidden, visible, _of_halves(rotary)), swapped), (), ()

    def of_two(self, hidden: list[Tensor], rotary: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The same of one pair, `(1, n, width)` of each image, whose numbers of points differ."""
        hidden = [self.self_block(own, None, _of_halves(angles)) for own, angles in zip(hidden, rotary)]
        first, second = (self.cross_block.project(own) for own in hidden)
        return [
            self.cross_block.attend(own, query, *others[1:])
            for own, (query, *_), others in zip(hidden, (first, second), (second, first))
        ]


@torch.no_grad()
def fused(model: LightGlueForKeypointMatching) -> LightGlueForKeypointMatching:
    """A copy that computes the same in the form that runtimes are quickest with."""
    model = copy.deepcopy(model)
    model.transformer_layers = nn.ModuleList(FusedLayer(layer) for layer in model.transformer_layers)  # type: ignore[arg-type]
    return model


# What an adaptive graph carries from layer to layer, of one pair: see `Points`; `(1, 2, n)` prune and `(1,)` stop, as
# they come out; and, without axes, whether another layer runs.
STATE = ("index", "mask", "descriptors", "cos", "sin", "prune", "stop", "running")
State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class InitState(nn.Module):
    """The state before the first layer."""

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> State:
        config = self.model.config
        features = _features(tensors)
        assert features.mask is not None
        features.mask = mask = features.mask > 0
        points = self.model._points(features)
        running = mask.any(-1).all(-1)
        stop = torch.where(running, config.num_hidden_layers, 1)
        # not a product: its cast, by which ONNX Runtime would replace the mask that branches refer to, makes it warn
        rounds = torch.full_like(
            mask, config.num_hidden_layers if config.width_confidence <= 0 else 1, dtype=torch.int64
        )
        prune = torch.where(mask, rounds, torch.zeros_like(rounds))
        return points.index, mask, points.descriptors, points.cos, points.sin, prune, stop, running[0]


class Layer(nn.Module):
    """A layer and, unless it is the last, what it says of the pair and its points."""

    def __init__(self, model: LightGlueForKeypointMatching, i: int) -> None:
        super().__init__()
        self.model = model
        self.i = i

    def forward(self, state: State) -> State:
        index, mask, descriptors, cos, sin, prune, stop, running = state
        points = Points(stop, index, mask, descriptors, cos, sin)
        self.model._run_layer(self.i, points, Record(False, False))
        layers = self.model.config.num_hidden_layers
        if self.i == layers - 1:
            return index, mask, points.descriptors, cos, sin, prune, stop, running
        initial = (prune > 0).sum(2)
        stopped, rejected, kept, counted = self.model.stopping_and_pruning(points.descriptors, mask, initial, self.i)
        prune = prune.scatter_add(2, index, counted.to(prune.dtype))
        keep = mask & (kept | stopped[:, None, None]) & ~rejected[:, None, None]
        counts = keep.sum(-1)
        empty = (counts == 0).any(-1)
        stop = torch.where(stopped | rejected, self.i + 1, torch.where(empty, self.i + 2, layers))
        # one column at least, of padding, where nothing is left: an empty axis has no maximum
        points = points.kept(keep, counts.max().clamp(min=1), padded=True)  # type: ignore[arg-type] # not a number here
        assert points.mask is not None
        running = ~(stopped | empty)[0]
        return points.index, points.mask, points.descriptors, points.cos, points.sin, prune, stop, running


class MatchRemaining(nn.Module):
    """Matches of what is left, by the assignment of the layer that the pair stopped after."""

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index, mask, descriptors, cos, sin, prune, stop, _ = state
        layers: Any = self.model.match_assignment_layers
        projected, matchability = (
            F.linear(
                descriptors,
                torch.stack([getattr(layer, name).weight for layer in layers])[stop[0] - 1],
                torch.stack([getattr(layer, name).bias for layer in layers])[stop[0] - 1],
            )
            for name in ("final_projection", "matchability")
        )
        assignment = Assignment.from_projections(projected, matchability, mask)
        matches, scores = assignment.matches(self.model.config.filter_threshold)
        points = Points(stop, index, mask, descriptors, cos, sin)
        return *points.in_columns(matches, scores, prune.shape[2]), prune, stop


class NoMatches(nn.Module):
    """No matches, of a pair without points."""

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *_, prune, stop, _ = state
        return torch.full_like(prune, -1), torch.zeros_like(prune, dtype=torch.float32), prune, stop


class Gate(nn.Module):
    """The branch that a layer runs in, or does not.

    For TorchScript, which keeps it as a branch, and OpenVINO, which knows tuples at the borders of a graph alone:
    hence the names.
    """

    def __init__(self, layer: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, state: State) -> State:
        index, mask, descriptors, cos, sin, prune, stop, running = state
        if bool(running):
            index, mask, descriptors, cos, sin, prune, stop, running = self.layer(state)
        return index, mask, descriptors, cos, sin, prune, stop, running


class MatchRemainingGate(nn.Module):
    """The branch that points are matched in, if there are any.

    Not to save work: behind the branches of the layers and outside of one, OpenVINO 2026.4 finds wrong matches in its
    first inference in bfloat16, always for some widths and numbers of points, and did so at times in float32. Which
    operation it computes wrong is not known; projecting with constant weights alone does not help.
    """

    def __init__(self, match_remaining: torch.jit.ScriptModule, no_matches: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.match_remaining = match_remaining
        self.no_matches = no_matches

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, _, _, _, _, rounds, _, _ = state
        if bool((rounds > 0).any()):
            matches, scores, prune, stop = self.match_remaining(state)
        else:
            matches, scores, prune, stop = self.no_matches(state)
        return matches, scores, prune, stop


class AdaptiveMatcher(nn.Module):
    """Matches of the keypoints of one pair, which stops early and whose points are pruned."""

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.init_state, self.match_remaining, self.no_matches = InitState(model), MatchRemaining(model), NoMatches()
        self.layers = [Layer(model, i) for i in range(model.config.num_hidden_layers)]
        with quiet():
            state = example_state(model)
            traced = [torch.jit.trace(layer, (state,), check_trace=False) for layer in self.layers]
            self.gates = nn.ModuleList(torch.jit.script(Gate(layer)) for layer in traced)
            ends = [
                torch.jit.trace(end, (state,), check_trace=False) for end in (self.match_remaining, self.no_matches)
            ]
            self.end = torch.jit.script(MatchRemainingGate(*ends))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        state = self.init_state(*features)
        if torch.onnx.is_in_onnx_export():  # to whose exporter branches are too much: formats.py adds them
            return state
        for gate in self.gates:
            state = gate(state)
        return self.end(state)


def example_state(model: LightGlueForKeypointMatching, n: int = 16) -> State:
    """Some state that layers can be traced with."""
    config = model.config
    keypoints = 100 * torch.rand(1, 2, n, 2)
    others = [torch.full((1, 2, 2), 100)]
    if config.add_scale_ori:
        others += [torch.ones(1, 2, n), torch.zeros(1, 2, n)]
    descriptors = torch.randn(1, 2, n, config.num_input_features)
    return InitState(model)(keypoints, descriptors, torch.ones(1, 2, n, dtype=torch.int32), *others)
