"""Checkpoint names of every project, to ours and back: one table each for LightGlue and SuperPoint, read both ways.

Sources: cvg/LightGlue@1fd587b, cvg/glue-factory@344dfae, rpautrat/SuperPoint@ccf3008, transformers 4.57 to 5.23. Our
own names are those of transformers.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..configuration_lightglue import LightGlueConfig
from ..detectors.superpoint import SuperPointConfig, SuperPointForKeypointDetection
from ..modeling_lightglue import LightGlueForKeypointMatching, confidence_threshold

# cvg's name: ours, each with a .weight and most with a .bias. {qkv} and {qk} stand for several tensors of ours: the
# rows of Wqkv are interleaved (q0, k0, v0, q1, ...), and to_qk projects queries and keys alike.
LIGHTGLUE_NAMES = {
    "input_proj": "input_projection",
    "posenc.Wr": "positional_encoder.projector",
    "self_attn.{i}.Wqkv": "transformer_layers.{i}.self_attention.{qkv}_proj",
    "self_attn.{i}.out_proj": "transformer_layers.{i}.self_attention.o_proj",
    "self_attn.{i}.ffn.0": "transformer_layers.{i}.self_mlp.fc1",
    "self_attn.{i}.ffn.1": "transformer_layers.{i}.self_mlp.layer_norm",
    "self_attn.{i}.ffn.3": "transformer_layers.{i}.self_mlp.fc2",
    "cross_attn.{i}.to_qk": "transformer_layers.{i}.cross_attention.{qk}_proj",
    "cross_attn.{i}.to_v": "transformer_layers.{i}.cross_attention.v_proj",
    "cross_attn.{i}.to_out": "transformer_layers.{i}.cross_attention.o_proj",
    "cross_attn.{i}.ffn.0": "transformer_layers.{i}.cross_mlp.fc1",
    "cross_attn.{i}.ffn.1": "transformer_layers.{i}.cross_mlp.layer_norm",
    "cross_attn.{i}.ffn.3": "transformer_layers.{i}.cross_mlp.fc2",
    "log_assignment.{i}.matchability": "match_assignment_layers.{i}.matchability",
    "log_assignment.{i}.final_proj": "match_assignment_layers.{i}.final_projection",
    "token_confidence.{i}.token.0": "token_confidence.{i}.token",
}
# Those are the names of the released files. Today's code says transformers.i.self_attn, and also saves the buffer
# confidence_thresholds, which follows from the number of layers; glue-factory puts matcher. before either.
CURRENT_NAME = re.compile(r"transformers\.(\d+)\.((?:self|cross)_attn)\.")
# LighterGlue's file also has an XFeat, which is not quite the one that is published: see xfeat.py.
DROPPED = re.compile(r"confidence_thresholds|log_assignment\.\d+\.r|extractor\.model\.net\..*")

# LighterGlue, the matcher of XFeat, is known by its sizes, and comes with settings of its own.
# Source: verlab/accelerated_features, `LighterGlue.default_conf_xfeat`
LIGHTERGLUE_SIZES = {"input_dim": 64, "descriptor_dim": 96, "num_hidden_layers": 6, "num_attention_heads": 1}
LIGHTERGLUE_SETTINGS = {"depth_confidence": -1.0, "width_confidence": 0.95, "filter_threshold": 0.1}

# Magic Leap's name: SuperPoint-Open's, ours
SUPERPOINT_NAMES = {
    "conv1a": ("backbone.0.0", "encoder.conv_blocks.0.conv_a"),
    "conv1b": ("backbone.0.1", "encoder.conv_blocks.0.conv_b"),
    "conv2a": ("backbone.1.0", "encoder.conv_blocks.1.conv_a"),
    "conv2b": ("backbone.1.1", "encoder.conv_blocks.1.conv_b"),
    "conv3a": ("backbone.2.0", "encoder.conv_blocks.2.conv_a"),
    "conv3b": ("backbone.2.1", "encoder.conv_blocks.2.conv_b"),
    "conv4a": ("backbone.3.0", "encoder.conv_blocks.3.conv_a"),
    "conv4b": ("backbone.3.1", "encoder.conv_blocks.3.conv_b"),
    "convPa": ("detector.0", "keypoint_decoder.conv_score_a"),
    "convPb": ("detector.1", "keypoint_decoder.conv_score_b"),
    "convDa": ("descriptor.0", "descriptor_decoder.conv_descriptor_a"),
    "convDb": ("descriptor.1", "descriptor_decoder.conv_descriptor_b"),
}
PLAIN_SUPERPOINT = {"descriptor_grid": "stretched", "min_pooled_channels": [0, 0, 0]}  # Magic Leap's, transformers'
OPEN_EPSILON = 1e-3  # of SuperPoint-Open's batch norms


# ---------------------------------------------------------------------------------------------------------------------
# LightGlue


def convert_lightglue_state_dict(
    state_dict: dict[str, Tensor], **config_overrides: Any
) -> tuple[LightGlueConfig, dict[str, Tensor]]:
    """A matcher of any project as a configuration and state dict of [`LightGlueForKeypointMatching`].

    Depth, widths, heads and the kind of positional encoding are read from the tensors. The model is the matcher alone
    (`use_keypoint_detector=False`) unless overridden. A matcher of LighterGlue's sizes gets LighterGlue's settings;
    the XFeat beside it in the published file is left out.

    Args:
        state_dict: in the names of cvg's released files, of its present code, of glue-factory, which are also
            LighterGlue's, or of transformers.
        config_overrides: fields of the configuration.

    Raises:
        ValueError: tensors unexpected, missing, of another shape or type, or with NaN or Inf, listed.
    """
    check_types(state_dict)
    if not is_lightglue(state_dict):
        raise ValueError(f"not a LightGlue checkpoint: {what_is(state_dict)}")
    originals = {released_name(name): name for name in state_dict}
    if len(originals) < len(state_dict):
        raise ValueError(f"given twice, by two names: {', '.join(sorted(set(state_dict) - set(originals.values())))}")
    remaining = {name: state_dict[original] for name, original in originals.items()}

    layers = number_of_layers(remaining)
    known = {name for theirs, ours in lightglue_names(layers) for name in (theirs, *ours)}
    unexpected = sorted(originals[n] for n in remaining if n not in known and not DROPPED.fullmatch(n))
    if unexpected:
        raise ValueError(f"unexpected tensors in a LightGlue checkpoint: {', '.join(unexpected)}")
    check_numbers(state_dict)
    converted: dict[str, Tensor] = {}
    for theirs, ours in lightglue_names(layers):
        if theirs in remaining:
            converted.update(zip(ours, unpacked(remaining.pop(theirs), len(ours))))
        else:
            converted |= {name: remaining.pop(name).clone() for name in ours if name in remaining}

    sizes = lightglue_sizes(converted, layers)
    settings = LIGHTERGLUE_SETTINGS if sizes.items() >= LIGHTERGLUE_SIZES.items() else {}
    config = LightGlueConfig(**{**sizes, **settings, **config_overrides})
    check_tensors(LightGlueForKeypointMatching, config, converted)
    return config, converted


def lightglue_to_cvg(
    config: LightGlueConfig, tensors: dict[str, Tensor], current_names: bool = False
) -> dict[str, Tensor]:
    """The way back: the tensors, bit for bit, that [`convert_lightglue_state_dict`] read; a detector is left out.

    Args:
        current_names: of cvg's present code, with the buffer `confidence_thresholds`, and not of the released files.

    Raises:
        ValueError: what cvg's LightGlue cannot hold, or tensors that are not the configuration's, listed.
    """
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("keypoint_detector.")}
    check_tensors(LightGlueForKeypointMatching, config, own)
    common = {"attention_bias": True, "hidden_act": "gelu", "num_key_value_heads": config.num_attention_heads}
    if faults := settings_other_than(config, common):
        raise ValueError(f"cvg's LightGlue cannot hold {', '.join(faults)}")
    converted = {}
    layers = config.num_hidden_layers
    if current_names:
        converted["confidence_thresholds"] = torch.tensor([confidence_threshold(i, layers) for i in range(layers)])
    for theirs, ours in lightglue_names(layers):
        parts = [own[name] for name in ours if name in own]
        if not parts:  # there is no such bias, projection or confidence
            continue
        if len(ours) == 2 and not torch.equal(*parts):
            raise ValueError(f"cvg's LightGlue cannot hold {ours[0]} and {ours[1]}, which differ")
        if current_names:
            theirs = re.sub(r"^((?:self|cross)_attn)\.(\d+)", r"transformers.\2.\1", theirs)
        converted[theirs] = packed(parts)
    return converted


def lightglue_names(layers: int) -> Iterator[tuple[str, list[str]]]:
    """(cvg's released name, ours) of every tensor that a matcher of so many layers may have."""
    for theirs, ours in LIGHTGLUE_NAMES.items():
        several = re.search(r"\{(q\w+)\}", ours)
        for i in range(layers if "{i}" in theirs else 1):
            names = [ours.format(i=i, **{several[1]: part}) for part in several[1]] if several else [ours.format(i=i)]
            for kind in ("weight", "bias"):
                yield f"{theirs.format(i=i)}.{kind}", [f"{name}.{kind}" for name in names]


def is_lightglue(names: Iterable[str]) -> bool:
    """Do these names of tensors belong to a LightGlue, whatever its layout?"""
    return any(re.match(r"(matcher\.)?(log_assignment|match_assignment_layers)\.", name) for name in names)


def released_name(name: str) -> str:
    return CURRENT_NAME.sub(r"\2.\1.", name.removeprefix("matcher."), count=1)


def unpacked(tensor: Tensor, parts: int) -> list[Tensor]:
    if parts == 3:
        return [torch.atleast_1d(tensor)[part::3].clone() for part in range(3)]
    return [tensor.clone() for _ in range(parts)]


def packed(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts, 1).flatten(0, 1) if len(parts) == 3 else parts[0].clone()


def number_of_layers(state_dict: dict[str, Tensor]) -> int:
    found = [re.match(r"(?:log_assignment|match_assignment_layers)\.(\d{1,9})\.", name) for name in state_dict]
    numbers = [int(match[1]) for match in found if match]
    return max((number + 1 for number in numbers if number < len(state_dict)), default=0)


def lightglue_sizes(tensors: dict[str, Tensor], layers: int) -> dict[str, Any]:
    """The fields of the configuration that show in the tensors' shapes."""
    encoding = tensors.get("positional_encoder.projector.weight")
    final = tensors.get("match_assignment_layers.0.final_projection.weight")
    if encoding is None or final is None:
        raise ValueError(
            "not a LightGlue checkpoint: posenc.Wr.weight or log_assignment.0.final_proj.weight is missing"
        )
    width, head_dim = final.shape[:1].numel(), 2 * encoding.shape[:1].numel()
    if encoding.ndim != 2 or final.ndim != 2 or head_dim == 0 or width == 0 or width % head_dim:
        raise ValueError(
            f"not a LightGlue checkpoint: posenc.Wr.weight is {tuple(encoding.shape)} and "
            f"log_assignment.0.final_proj.weight {tuple(final.shape)}"
        )
    key_width = tensors.get("transformer_layers.0.self_attention.k_proj.weight", final).shape[:1].numel()
    projection = tensors.get("input_projection.weight", final)
    return {
        "descriptor_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_dim,
        "num_key_value_heads": None if key_width == width else key_width // head_dim,
        "attention_bias": any(name.endswith("_proj.bias") for name in tensors),
        "add_scale_ori": encoding.shape[1] == 4,
        "shared_query_key": all(
            name in tensors and torch.equal(tensor, tensors[name])
            for key, tensor in tensors.items()
            if (name := key.replace("cross_attention.q_proj", "cross_attention.k_proj")) != key
        ),
        "input_dim": projection.shape[-1:].numel(),
        "use_keypoint_detector": False,
    }


# ---------------------------------------------------------------------------------------------------------------------
# SuperPoint


def convert_superpoint_state_dict(
    state_dict: dict[str, Tensor], **config_overrides: Any
) -> tuple[SuperPointConfig, dict[str, Tensor]]:
    """A SuperPoint of any project as a configuration and state dict of [`SuperPointForKeypointDetection`].

    Args:
        state_dict: in Magic Leap's names, in SuperPoint-Open's (its batch norms are folded, see
            [`without_batch_norm`], and `descriptor_grid` is "centred") or in transformers'.
        config_overrides: fields of the configuration.

    Raises:
        ValueError: tensors unexpected, missing, of another shape or type, or with NaN or Inf, listed.
    """
    check_types(state_dict)
    if not is_superpoint(state_dict):
        raise ValueError(f"not a SuperPoint checkpoint: {what_is(state_dict)}")
    check_numbers(state_dict)
    settings: dict[str, Any] = {}
    if is_superpoint_open(state_dict):
        state_dict, minima = without_batch_norm(state_dict)
        check_numbers(state_dict)
        settings = {"descriptor_grid": "centred", "min_pooled_channels": minima}
    names = {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, (_, ours) in SUPERPOINT_NAMES.items()
        for kind in ("weight", "bias")
    }
    converted = {names.get(name, name): tensor.clone() for name, tensor in state_dict.items()}
    unexpected = sorted(set(converted) - set(names.values()))
    missing = sorted(set(names.values()) - set(converted))
    if unexpected or missing:
        raise ValueError(f"not a SuperPoint checkpoint: unexpected {unexpected}, missing {missing}")
    settings |= {
        "encoder_hidden_sizes": [
            converted[f"encoder.conv_blocks.{i}.conv_b.weight"].shape[:1].numel() for i in range(4)
        ],
        "decoder_hidden_size": converted["keypoint_decoder.conv_score_a.weight"].shape[:1].numel(),
        "descriptor_decoder_dim": converted["descriptor_decoder.conv_descriptor_b.weight"].shape[:1].numel(),
    }
    config = SuperPointConfig(**{**settings, **config_overrides})
    check_tensors(SuperPointForKeypointDetection, config, converted)
    return config, converted


def superpoint_to_magic_leap(config: SuperPointConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the tensors of a SuperPoint, bit for bit, in Magic Leap's names.

    Raises:
        ValueError: what Magic Leap's SuperPoint cannot hold, or tensors that are not the configuration's, listed.
    """
    check_tensors(SuperPointForKeypointDetection, config, tensors)
    if faults := settings_other_than(config, PLAIN_SUPERPOINT):
        raise ValueError(f"Magic Leap's SuperPoint cannot hold {', '.join(faults)}")
    return {
        f"{theirs}.{kind}": tensors[f"{ours}.{kind}"].clone()
        for theirs, (_, ours) in SUPERPOINT_NAMES.items()
        for kind in ("weight", "bias")
    }


def is_superpoint(names: Iterable[str]) -> bool:
    """Do these names of tensors belong to a SuperPoint, whatever its layout?"""
    return any(name.startswith(("conv1a.", "encoder.conv_blocks.")) for name in names) or is_superpoint_open(names)


def is_superpoint_open(names: Iterable[str]) -> bool:
    return any(name.startswith("backbone.0.0.") for name in names)


def without_batch_norm(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
    """SuperPoint-Open's convolution - ReLU - batch norm as convolution - ReLU, in Magic Leap's names.

    After a ReLU, y = scale x + shift can only be folded into the next convolution, and that pads y, not x, with zeros:
    each encoder layer gets one more channel, its first, that is 1 within the image and 0 beyond, and carries the shift
    of all others, also at the borders. Channels of negative scale become the last of their layer, because the maximum
    that is pooled of y is the minimum of x.

    Returns:
        The state dict and, for each of the first three blocks, the number of channels to be pooled to their minimum.

    Raises:
        ValueError: tensors unexpected, missing or of another shape, listed.
    """
    tensors = {name: t for name, t in state_dict.items() if not name.endswith(".bn.num_batches_tracked")}
    check_shapes("SuperPoint-Open", open_shapes(tensors), tensors)

    def layer(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the convolution, scale and shift of the batch norm after it."""
        prefix = SUPERPOINT_NAMES[name][0]
        kinds = ("conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        weight, bias, gamma, beta, mean, variance = (tensors[f"{prefix}.{kind}"].double() for kind in kinds)
        scale = gamma / (variance + OPEN_EPSILON).sqrt()
        return weight, bias, scale, beta - mean * scale

    folded: dict[str, Tensor] = {}
    minima = []
    # of the layer's input: its channels in their order, but for that of ones, which the image does not have
    order, scale, shift = torch.zeros(1, dtype=torch.int64), torch.ones(1), None
    encoder = [name for name in SUPERPOINT_NAMES if name[4].isdigit()]
    for name in [*encoder, "convPa", "convDa"]:
        weight, bias, next_scale, next_shift = layer(name)
        weight = weight[:, order]
        of_ones = weight[:, :0] if shift is None else torch.einsum("oihw,i->ohw", weight, shift)[:, None]
        weight = torch.cat([of_ones, weight * scale[:, None, None]], 1)
        if name not in encoder:  # a 1x1 convolution follows, which pads nothing, and then a batch norm without ReLU
            last = name.replace("a", "b")
            last_weight, last_bias, last_scale, last_shift = layer(last)
            folded[f"{last}.weight"] = last_weight * next_scale[:, None, None] * last_scale[:, None, None, None]
            last_bias = last_bias + last_weight[:, :, 0, 0] @ next_shift
            folded[f"{last}.bias"] = last_bias * last_scale + last_shift
        else:
            order = (next_scale < 0).to(torch.uint8).argsort(stable=True)
            weight = torch.cat([torch.zeros_like(weight[:1]), weight[order]])
            bias = torch.cat([torch.ones(1), bias[order]])
            scale, shift = next_scale[order], next_shift[order]
            if name in ("conv1b", "conv2b", "conv3b"):
                minima.append(int((scale < 0).sum()))
        folded |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return {name: tensor.float() for name, tensor in folded.items()}, minima


def open_shapes(state_dict: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of SuperPoint-Open, given the number of channels of its convolutions."""
    shapes: dict[str, tuple[int, ...]] = {}
    before = ""
    for name, (prefix, _) in SUPERPOINT_NAMES.items():
        before = "backbone.3.1" if name in ("convPa", "convDa") else before
        kernel = 1 if name in ("convPb", "convDb") else 3
        weight = state_dict.get(f"{prefix}.conv.weight", torch.empty(0))
        width, inputs = weight.shape[0] if weight.ndim else 0, shapes.get(f"{before}.conv.bias", (1,))[0]
        shapes[f"{prefix}.conv.weight"] = (width, inputs, kernel, kernel)
        for kind in ("conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            shapes[f"{prefix}.{kind}"] = (width,)
        before = prefix
    return shapes


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def what_is(names: Iterable[str]) -> str:
    """What has tensors of these names, for messages about what is something else."""
    from .detectors import DETECTOR_KINDS, kind_of  # which are converted by functions of this module and its likes

    names = list(names)
    kind = kind_of(names)
    if kind is not None:
        name = DETECTOR_KINDS[kind].name
        return f"this is a{'n' * (name[0] in 'AEIOU')} {name} detector"
    return "this is a LightGlue matcher" if is_lightglue(names) else f"unknown tensors, {', '.join(sorted(names)[:5])}"


def settings_other_than(config: Any, values: dict[str, Any]) -> list[str]:
    return [f"{name} = {getattr(config, name)!r}" for name, value in values.items() if getattr(config, name) != value]


def check_tensors(model_class: type, config: Any, tensors: dict[str, Tensor]) -> None:
    """Raise a ValueError that lists where the tensors differ from the model's, its detector apart."""
    with torch.device("meta"):
        state_dict = model_class(config).state_dict()
    shapes = {name: tuple(t.shape) for name, t in state_dict.items() if not name.startswith("keypoint_detector.")}
    check_shapes(model_class.__name__, shapes, tensors)


def check_shapes(what: str, shapes: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> None:
    faults = {
        "missing": sorted(shapes.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - shapes.keys()),
        "of another shape": sorted(
            f"{name} {tuple(tensor.shape)} instead of {shapes[name]}"
            for name, tensor in tensors.items()
            if name in shapes and tuple(tensor.shape) != shapes[name]
        ),
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"no checkpoint of a {what}: {listed}")


def check_types(state_dict: dict[str, Tensor]) -> None:
    """Raise a ValueError that lists what is no tensor with a name."""
    not_tensors = sorted(
        str(name)
        for name, tensor in state_dict.items()
        if not (isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided)
    )
    if not_tensors:
        raise ValueError(f"no tensors: {', '.join(not_tensors)}")


def check_numbers(state_dict: dict[str, Tensor]) -> None:
    """Raise a ValueError that lists what is no tensor of floating-point numbers, all of them finite."""
    check_types(state_dict)
    names = sorted(name for name, tensor in state_dict.items() if not tensor.isfinite().all())
    if names:
        raise ValueError(f"NaN or Inf in {', '.join(names)}")
    integers = sorted(
        name
        for name, tensor in state_dict.items()
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked")
    )
    if integers:
        raise ValueError(f"no floating-point numbers in {', '.join(integers)}")
