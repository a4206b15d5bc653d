"""The original mathematics on the original tensors: what a converted model is held against.

Plain functions of a state dict in its own names, in float64; no model of this package takes part in them.
Restated from cvg/LightGlue@1fd587b, cvg/LightGlue's SuperPoint and rpautrat/SuperPoint@ccf3008.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

OPEN_EPSILON = 1e-3  # of SuperPoint-Open's batch norms


def lightglue_probabilities(
    state_dict: dict[str, Tensor], positions: Tensor, descriptors: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What each layer of a LightGlue says when every point passes through all of them.

    Args:
        state_dict: in cvg's names, of the released files or of today's code, or in glue-factory's with `matcher.`.
        positions: `(2, n, 2)` normalised (x, y) of the points of a pair; with scale and orientation `(2, n, 4)`.
        descriptors: `(2, n, d)`.

    Returns:
        for each layer the assignment `(n, n)`, the matchabilities `(2, n)` and, but for the last, the confidences
        `(2, n)`: probabilities.
    """
    weights = {name.removeprefix("matcher."): tensor.double() for name, tensor in state_dict.items()}
    current = any(name.startswith("transformers.") for name in weights)
    layers = sum(name.endswith(".final_proj.weight") for name in weights)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def feed_forward(name: str, x: Tensor, message: Tensor) -> Tensor:
        hidden = linear(f"{name}.ffn.0", torch.cat([x, message], -1))
        hidden = F.layer_norm(
            hidden, hidden.shape[-1:], weights[f"{name}.ffn.1.weight"], weights[f"{name}.ffn.1.bias"]
        )
        return x + linear(f"{name}.ffn.3", F.gelu(hidden))

    x = descriptors.double()
    x = linear("input_proj", x) if "input_proj.weight" in weights else x
    angles = linear("posenc.Wr", positions.double())[:, None]  # (2, 1, n, head_dim / 2)
    turn = torch.polar(torch.ones_like(angles), angles)
    head_dim = 2 * angles.shape[-1]
    heads = x.shape[-1] // head_dim

    def split(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

    def rotated(projected: Tensor) -> Tensor:
        pairs = torch.view_as_complex(projected.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query @ key.mT / head_dim**0.5).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    outputs = []
    for i in range(layers):
        block, cross = (
            f"transformers.{i}.{kind}" if current else f"{kind}.{i}" for kind in ("self_attn", "cross_attn")
        )
        packed = linear(f"{block}.Wqkv", x).unflatten(-1, (heads, head_dim, 3)).transpose(1, 2)
        query, key, value = packed.unbind(-1)
        message = linear(f"{block}.out_proj", attended(rotated(query), rotated(key), value))
        x = feed_forward(block, x, message)
        both, value = split(linear(f"{cross}.to_qk", x)), split(linear(f"{cross}.to_v", x))
        message = linear(f"{cross}.to_out", attended(both, both.flip(0), value.flip(0)))
        x = feed_forward(cross, x, message)

        matchability = linear(f"log_assignment.{i}.matchability", x)[..., 0].sigmoid()
        first, second = linear(f"log_assignment.{i}.final_proj", x)
        similarity = first @ second.mT / first.shape[-1] ** 0.5
        assignment = similarity.softmax(0) * similarity.softmax(1) * matchability[0][:, None] * matchability[1]
        token = f"token_confidence.{i}.token.0"
        confidence = linear(token, x)[..., 0].sigmoid() if i < layers - 1 else x.new_zeros(2, 0)
        outputs.append((assignment, matchability, confidence))
    return outputs


def superpoint_maps(state_dict: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """The dense outputs of a SuperPoint.

    Args:
        state_dict: in Magic Leap's names, or in SuperPoint-Open's.
        images: `(batch, 1, height, width)` in [0, 1].

    Returns:
        The probabilities of a cell's pixels and of none, `(batch, 65, height / 8, width / 8)`, and the descriptors of
        the cells `(batch, d, height / 8, width / 8)`, of unit length.
    """
    weights = {name: tensor.double() for name, tensor in state_dict.items()}

    def layer(name: str, open_name: str, x: Tensor, relu: bool = True) -> Tensor:
        plain = f"{name}.weight" in weights
        weight, bias = (weights[f"{name}.{k}" if plain else f"{open_name}.conv.{k}"] for k in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        x = x.relu() if relu else x
        if plain:
            return x
        mean, variance, gamma, beta = (
            weights[f"{open_name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, gamma, beta, eps=OPEN_EPSILON)

    x = images.double()
    for i in range(4):
        x = F.max_pool2d(x, 2) if i else x
        x = layer(f"conv{i + 1}a", f"backbone.{i}.0", x)
        x = layer(f"conv{i + 1}b", f"backbone.{i}.1", x)
    scores = layer("convPb", "detector.1", layer("convPa", "detector.0", x), relu=False)
    descriptors = layer("convDb", "descriptor.1", layer("convDa", "descriptor.0", x), relu=False)
    return scores.softmax(1), F.normalize(descriptors, dim=1)


@torch.no_grad()
def lightglue_difference(model: Any, state_dict: dict[str, Tensor], points: int = 128) -> float:
    """The largest difference of any probability of any layer between a model and what it was converted from.

    Args:
        model: a `LightGlueForKeypointMatching`; it computes in float64 and on features drawn from a fixed seed.
        state_dict: as in [`lightglue_probabilities`].
    """
    generator = torch.Generator().manual_seed(0)
    width, height = 640, 480
    keypoints = torch.rand(2, points, 2, generator=generator) * torch.tensor([width, height])
    descriptors = F.normalize(torch.randn(2, points, model.config.num_input_features, generator=generator), dim=-1)
    positions = (keypoints - torch.tensor([width, height]) / 2) / (max(width, height) / 2)
    extras = {}
    if model.config.add_scale_ori:
        scales = 2 ** (5 * torch.rand(2, points, generator=generator))
        orientations = torch.pi * (2 * torch.rand(2, points, generator=generator) - 1)
        extras = {"scales": scales[None], "orientations": orientations[None]}
        positions = torch.cat([positions, scales[..., None], orientations[..., None]], -1)
    expected = lightglue_probabilities(state_dict, positions, descriptors)

    model = model.double().eval()
    sizes = torch.tensor([[[height, width]] * 2])
    outputs = model.with_all_layers().match_features(
        keypoints[None], descriptors[None], image_sizes=sizes, output_hidden_states=True, **extras
    )
    largest = 0.0
    for i, original in enumerate(expected):
        hidden = outputs.hidden_states[7 * i + 4][None]  # the layer's output
        assignment = model.match_assignment_layers[i](hidden, None)
        last = i == len(expected) - 1
        confidence = torch.zeros(2, 0) if last else model.token_confidence[i](hidden)[0].sigmoid()
        ours = assignment.log_p[0].exp(), assignment.matchability[0].sigmoid(), confidence
        largest = max(largest, *(float((a - b).abs().max()) for a, b in zip(ours, original) if b.numel()))
    return largest


@torch.no_grad()
def superpoint_difference(model: Any, state_dict: dict[str, Tensor]) -> float:
    """The largest difference of any probability or descriptor between a model and what it was converted from.

    Args:
        model: a `SuperPointForKeypointDetection`; it computes in float64 and on an image drawn from a fixed seed.
        state_dict: as in [`superpoint_maps`].
    """
    image = torch.rand(1, 1, 96, 128, generator=torch.Generator().manual_seed(0))
    expected = superpoint_maps(state_dict, image)
    model = model.double().eval()
    features = model.encoder(image.double())[-1]
    ours = model.keypoint_decoder(features).softmax(1), F.normalize(model.descriptor_decoder(features), dim=1)
    return max(float((a - b).abs().max()) for a, b in zip(ours, expected))
