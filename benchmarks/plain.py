"""The graph that exporters made before, such as LightGlue-ONNX: what fusing ours is measured against.

Queries, keys and values are one product, but neighbours are rotated, attention is a matrix product, a softmax and
another product, output projections and concatenations stand as they are, rows and columns of the assignment have a
log-softmax each, and local maxima are those of a max-pooling in windows.
"""

import tempfile
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightglue_hf import LightGlueForKeypointMatching
from lightglue_hf.utils.optional import import_openvino, without_telemetry


class PlainGraph(nn.Module):
    """One pair `(1, 2, 3, height, width)`, all layers -> relative keypoints `(1, 2, n, 2)` and matches `(1, 2, n)`.

    Args:
        model: whose cross-attention projects queries and keys alike, as published weights do, with as many heads of
            keys as of queries, and whose detector finds as many keypoints as it may.
    """

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        if not all(layer.cross_attention.shares_query_key() for layer in model.transformer_layers):
            raise ValueError("the plain graph has one projection of queries and keys in cross-attention")
        self.model = model
        self.merged = nn.ModuleList()  # queries, keys and values of self-attention in one product
        for layer in model.transformer_layers:
            three = [getattr(layer.self_attention, f"{name}_proj") for name in "qkv"]
            linear = nn.Linear(three[0].in_features, 3 * three[0].out_features)
            linear.weight = nn.Parameter(torch.cat([x.weight for x in three]))
            linear.bias = nn.Parameter(torch.cat([x.bias for x in three]))
            self.merged.append(linear)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        size = torch.tensor(pixel_values.shape[-1:-3:-1])
        keypoints, descriptors = self.detect(pixel_values[0, :, :1])
        return (keypoints / size)[None], self.match(keypoints, descriptors, size)

    def match(self, keypoints: Tensor, descriptors: Tensor, size: Tensor) -> Tensor:
        """Keypoints `(2, n, 2)` in pixels of images of one size (width, height), and `(2, n, d)` -> `(1, 2, n)`."""
        positions = (keypoints - size / 2) / (size.max() / 2)
        angles = self.model.positional_encoder.projector(positions)
        angles = torch.stack([angles, angles], -1).flatten(-2)[:, None]
        hidden = descriptors
        for i in range(len(self.merged)):
            hidden = self.layer(i, hidden, angles.cos(), angles.sin())
        return self.assign(hidden)

    def detect(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints `(2, n, 2)` in pixels and their descriptors `(2, n, d)`."""
        detector: Any = self.model.keypoint_detector
        config = self.model.config.keypoint_detector_config
        features = grey
        for block in detector.encoder.conv_blocks:
            features = block.conv_b(block.conv_a(features).relu()).relu()
            features = F.max_pool2d(features, 2) if block.pool else features
        score, describe = detector.keypoint_decoder, detector.descriptor_decoder
        logits = score.conv_score_b(score.conv_score_a(features).relu())
        maps = F.normalize(describe.conv_descriptor_b(describe.conv_descriptor_a(features).relu()), dim=1)
        rows, columns = features.shape[-2:]
        cells = logits.softmax(1)[:, :-1].permute(0, 2, 3, 1).reshape(2, rows, columns, 8, 8)
        scores = local_maxima(cells.transpose(2, 3).reshape(2, 1, 8 * rows, 8 * columns), config.nms_radius)
        border = config.border_removal_distance
        scores = F.pad(scores[:, :, border:, border:], (border, 0, border, 0))
        indices = scores.flatten(1).topk(config.max_keypoints, 1).indices
        keypoints = torch.stack([indices % (8 * columns), indices // (8 * columns)], -1).float()
        cells_between = 8 * torch.tensor([columns, rows]) - 4.5
        grid = 2 * (keypoints - 3.5) / cells_between - 1
        sampled = F.grid_sample(maps, grid[:, None], mode="bilinear", align_corners=True)[:, :, 0]
        return keypoints, F.normalize(sampled, dim=1).transpose(1, 2)

    def layer(self, i: int, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        layer: Any = self.model.transformer_layers[i]
        attention = layer.self_attention
        query, key, value = (attention.split_heads(x) for x in self.merged[i](hidden).chunk(3, -1))
        query, key = (x * cos + rotate_neighbours(x) * sin for x in (query, key))
        similarity = query @ key.transpose(2, 3) * attention.scaling
        hidden = feed_forward(layer.self_mlp, hidden, attention, similarity.softmax(-1) @ value)
        attention = layer.cross_attention
        points, value = (attention.split_heads(x(hidden)) for x in (attention.q_proj, attention.v_proj))
        points = points * attention.scaling**0.5
        similarity = points[:1] @ points[1:].transpose(2, 3)
        messages = similarity.softmax(-1) @ value[1:], similarity.transpose(2, 3).softmax(-1) @ value[:1]
        return feed_forward(layer.cross_mlp, hidden, attention, torch.cat(messages))

    def assign(self, hidden: Tensor) -> Tensor:
        last: Any = self.model.match_assignment_layers[-1]
        projected = last.final_projection(hidden) / hidden.shape[-1] ** 0.25
        certainty = F.logsigmoid(last.matchability(hidden))
        similarity = projected[:1] @ projected[1:].transpose(1, 2)
        log_p = similarity.log_softmax(2) + similarity.log_softmax(1) + certainty[:1] + certainty[1:].transpose(1, 2)
        (best0, partner0), (_, partner1) = log_p.max(2), log_p.max(1)
        indices = torch.arange(hidden.shape[1])
        mutual0, mutual1 = partner1.gather(1, partner0) == indices, partner0.gather(1, partner1) == indices
        scores0 = best0.exp() * mutual0
        scores1 = scores0.gather(1, partner1) * mutual1
        partners, scores = torch.stack([partner0, partner1], 1), torch.stack([scores0, scores1], 1)
        return torch.where(scores > self.model.config.filter_threshold, partners, -1)


def rotate_neighbours(x: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-odd, even], -1).flatten(-2)


def feed_forward(mlp: Any, hidden: Tensor, attention: Any, attended: Tensor) -> Tensor:
    message = attention.o_proj(attended.transpose(1, 2).flatten(2))
    return hidden + mlp(torch.cat([hidden, message], -1))


def local_maxima(scores: Tensor, radius: int) -> Tensor:
    def pooled(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2 * radius + 1, stride=1, padding=radius)

    zeros = torch.zeros_like(scores)
    maxima = scores == pooled(scores)
    for _ in range(2):
        suppressed = pooled(maxima.float()) > 0
        others = torch.where(suppressed, zeros, scores)
        maxima = maxima | ((others == pooled(others)) & ~suppressed)
    return torch.where(maxima, scores, zeros)


class PlainMatcher(nn.Module):
    """The plain graph's matcher: keypoints `(2, n, 2)` in pixels, descriptors `(2, n, d)` -> `(1, 2, n)`."""

    def __init__(self, model: LightGlueForKeypointMatching, height: int, width: int) -> None:
        super().__init__()
        self.plain, self.size = PlainGraph(model), torch.tensor([width, height])

    def forward(self, keypoints: Tensor, descriptors: Tensor) -> Tensor:
        return self.plain.match(keypoints, descriptors, self.size)


# ---------------------------------------------------------------------------------------------------------------------
# On a runtime


def plain_pipeline(engine: str, precision: str, model: Any, task: Any) -> Callable[[Tensor], SimpleNamespace]:
    """Pixels `(1, 2, 3, height, width)` -> keypoints and matches, by OpenVINO or ONNX Runtime."""
    run = on_runtime(engine, precision, PlainGraph(model), (torch.rand(1, 2, 3, task.height, task.width),))
    return lambda pixels: SimpleNamespace(**dict(zip(("keypoints", "matches"), run(pixels))))


def plain_matcher(engine: str, precision: str, model: Any, features: Any) -> Callable[[Any], Tensor]:
    """Features of a pair, as many as were given here -> matches `(1, 2, n)`."""

    def arguments(features: Any) -> tuple[Tensor, Tensor]:
        return features.keypoints[0], features.descriptors[0]

    height, width = features.image_sizes[0, 0].tolist()
    run = on_runtime(engine, precision, PlainMatcher(model, height, width), arguments(features))
    return lambda features: run(*arguments(features))[0]


@torch.no_grad()
def on_runtime(
    engine: str, precision: str, module: nn.Module, example: tuple[Tensor, ...]
) -> Callable[..., list[Tensor]]:
    """A module traced for inputs of the example's shapes, as a function on "OpenVINO" or "ONNX Runtime"."""
    from .contestants import ONNXRUNTIME, openvino_config

    if engine == ONNXRUNTIME:
        return on_onnxruntime(module.eval(), example)
    openvino = import_openvino()
    traced = torch.jit.trace(module.eval(), example, check_trace=False)
    with without_telemetry():  # which would go on while the next thing is timed
        graph = openvino.convert_model(traced, example_input=example)
    graph.reshape({port: openvino.PartialShape(list(x.shape)) for port, x in zip(graph.inputs, example)})
    compiled = openvino.compile_model(graph, "CPU", openvino_config(precision))
    return lambda *inputs: [torch.from_numpy(np.array(x)) for x in compiled([x.numpy() for x in inputs]).to_tuple()]


def on_onnxruntime(module: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., list[Tensor]]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = f"{directory}/model.onnx"
        names = [f"input{i}" for i in range(len(example))]
        torch.onnx.export(module, example, file, dynamo=False, opset_version=18, input_names=names)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda *inputs: [
        torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})
    ]
