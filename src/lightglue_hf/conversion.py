"""Other projects' checkpoint names to ours."""

import re
from typing import Any

import torch
from torch import Tensor

from .configuration_lightglue import LightGlueConfig
from .detectors.superpoint import SuperPointConfig, SuperPointForKeypointDetection
from .modeling_lightglue import LightGlueForKeypointMatching

# cvg/LightGlue@1fd587b -> ours. Released files say self_attn.i, later code transformers.i.self_attn; glue-factory
# puts matcher. before.
LIGHTGLUE_NAMES = [
    (r"^matcher\.", r""),
    (r"^transformers\.(\d+)\.(self|cross)_attn\.", r"\2_attn.\1."),
    (r"^posenc\.Wr\.", r"positional_encoder.projector."),
    (r"^input_proj\.", r"input_projection."),
    (r"^(self|cross)_attn\.(\d+)\.ffn\.0\.", r"transformer_layers.\2.\1_mlp.fc1."),
    (r"^(self|cross)_attn\.(\d+)\.ffn\.1\.", r"transformer_layers.\2.\1_mlp.layer_norm."),
    (r"^(self|cross)_attn\.(\d+)\.ffn\.3\.", r"transformer_layers.\2.\1_mlp.fc2."),
    (r"^(self|cross)_attn\.(\d+)\.(out_proj|to_out)\.", r"transformer_layers.\2.\1_attention.o_proj."),
    (r"^cross_attn\.(\d+)\.to_v\.", r"transformer_layers.\1.cross_attention.v_proj."),
    (r"^log_assignment\.(\d+)\.final_proj\.", r"match_assignment_layers.\1.final_projection."),
    (r"^log_assignment\.(\d+)\.matchability\.", r"match_assignment_layers.\1.matchability."),
    (r"^token_confidence\.(\d+)\.token\.0\.", r"token_confidence.\1.token."),
]
# one tensor there, several here: the rows of Wqkv are interleaved, to_qk projects queries and keys alike
SELF_QKV = re.compile(r"^self_attn\.(\d+)\.Wqkv\.(weight|bias)$")
CROSS_QK = re.compile(r"^cross_attn\.(\d+)\.to_qk\.(weight|bias)$")
DROPPED = re.compile(r"^(confidence_thresholds|log_assignment\.\d+\.r)$")
OURS = re.compile(
    r"^(positional_encoder|input_projection|transformer_layers|match_assignment_layers|token_confidence)\."
)

SUPERPOINT_NAMES = [
    (r"^conv([1-4])([ab])\.", lambda m: f"encoder.conv_blocks.{int(m[1]) - 1}.conv_{m[2]}."),
    (r"^convP([ab])\.", r"keypoint_decoder.conv_score_\1."),
    (r"^convD([ab])\.", r"descriptor_decoder.conv_descriptor_\1."),
]


def convert_lightglue_state_dict(
    state_dict: dict[str, Tensor], **config_overrides: Any
) -> tuple[LightGlueConfig, dict[str, Tensor]]:
    """A cvg/LightGlue matcher as a configuration and state dict of [`LightGlueForKeypointMatching`].

    Depth, widths, heads and the kind of positional encoding are read from the tensors. The model is the matcher alone
    (`use_keypoint_detector=False`) unless overridden.

    Args:
        state_dict: in the released files' names, in the present code's, or in glue-factory's.
        config_overrides: fields of the configuration.

    Raises:
        ValueError: tensors unexpected, missing, of another shape, or with NaN or Inf, listed.
    """
    refuse_non_finite(state_dict)
    converted: dict[str, Tensor] = {}
    unexpected = []
    for original, tensor in state_dict.items():
        name = renamed(original, LIGHTGLUE_NAMES)
        if DROPPED.match(name):
            continue
        if match := SELF_QKV.match(name):
            layer, kind = match.groups()
            for part, projection in enumerate("qkv"):
                target = f"transformer_layers.{layer}.self_attention.{projection}_proj.{kind}"
                converted[target] = tensor[part::3].clone()
        elif match := CROSS_QK.match(name):
            layer, kind = match.groups()
            for projection in "qk":
                converted[f"transformer_layers.{layer}.cross_attention.{projection}_proj.{kind}"] = tensor.clone()
        elif OURS.match(name):
            converted[name] = tensor.clone()
        else:
            unexpected.append(original)
    if unexpected:
        raise ValueError(f"unexpected tensors in a LightGlue checkpoint: {', '.join(sorted(unexpected))}")

    encoding = converted.get("positional_encoder.projector.weight")
    final = converted.get("match_assignment_layers.0.final_projection.weight")
    if encoding is None or final is None:
        raise ValueError(
            "not a LightGlue checkpoint: posenc.Wr.weight or log_assignment.0.final_proj.weight is missing"
        )
    width = final.shape[0]
    input_projection = converted.get("input_projection.weight")
    config = LightGlueConfig(
        **{
            "descriptor_dim": width,
            "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in converted if name.startswith("match_")),
            "num_attention_heads": width // (2 * encoding.shape[0]),
            "add_scale_ori": encoding.shape[1] == 4,
            "input_dim": width if input_projection is None else input_projection.shape[1],
            "use_keypoint_detector": False,
            **config_overrides,
        }
    )
    check_tensors(LightGlueForKeypointMatching, config, converted)
    return config, converted


def convert_superpoint_state_dict(
    state_dict: dict[str, Tensor], **config_overrides: Any
) -> tuple[SuperPointConfig, dict[str, Tensor]]:
    """Magic Leap's `superpoint_v1` layout as a configuration and state dict of [`SuperPointForKeypointDetection`].

    Raises:
        ValueError: tensors unexpected, missing, of another shape, or with NaN or Inf, listed.
    """
    refuse_non_finite(state_dict)
    converted = {renamed(name, SUPERPOINT_NAMES): tensor.clone() for name, tensor in state_dict.items()}
    ours = ("encoder.", "keypoint_decoder.", "descriptor_decoder.")
    unexpected = sorted(name for name in converted if not name.startswith(ours))
    blocks = [f"encoder.conv_blocks.{i}.conv_b.weight" for i in range(4)]
    heads = ["keypoint_decoder.conv_score_a.weight", "descriptor_decoder.conv_descriptor_b.weight"]
    missing = [name for name in (*blocks, *heads) if name not in converted]
    if unexpected or missing:
        raise ValueError(f"not a SuperPoint checkpoint: unexpected {unexpected}, missing {missing}")
    widths = {
        "encoder_hidden_sizes": [converted[name].shape[0] for name in blocks],
        "decoder_hidden_size": converted[heads[0]].shape[0],
        "descriptor_decoder_dim": converted[heads[1]].shape[0],
    }
    config = SuperPointConfig(**{**widths, **config_overrides})
    check_tensors(SuperPointForKeypointDetection, config, converted)
    return config, converted


def check_tensors(model_class: type, config: Any, tensors: dict[str, Tensor]) -> None:
    """Raise a ValueError that lists where the tensors differ from the model's, its detector apart."""
    with torch.device("meta"):
        state_dict = model_class(config).state_dict()
    expected = {name: t.shape for name, t in state_dict.items() if not name.startswith("keypoint_detector.")}
    faults = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": sorted(n for n, t in tensors.items() if n in expected and t.shape != expected[n]),
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"no checkpoint of a {model_class.__name__}: {listed}")


def refuse_non_finite(state_dict: dict[str, Tensor]) -> None:
    names = sorted(name for name, tensor in state_dict.items() if not tensor.isfinite().all())
    if names:
        raise ValueError(f"NaN or Inf in {', '.join(names)}")


def renamed(name: str, table: list[tuple[str, Any]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def load_pickle(path: str) -> dict[str, Tensor]:
    """The tensors of another project's pickled checkpoint; code in it is refused, never run."""
    return torch.load(path, map_location="cpu", weights_only=True)
