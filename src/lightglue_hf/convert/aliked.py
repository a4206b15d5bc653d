"""Checkpoints of ALIKED (Shiaoming/ALIKED, also as cvg/LightGlue and kornia load them), to ours and back.

Our names are theirs. Left out are the counters of the batch norms, which nothing reads.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..detectors.aliked import ALIKEDConfig, ALIKEDForKeypointDetection
from .state_dicts import check_numbers, check_tensors

COUNTER = "num_batches_tracked"
# of the tensors that the sizes are read from
SIZES = (*(f"conv{i}.weight" for i in range(1, 5)), "desc_head.agg_weights", "desc_head.offset_conv.0.weight")


def convert_aliked_state_dict(
    state_dict: dict[str, Tensor], **config_overrides: Any
) -> tuple[ALIKEDConfig, dict[str, Tensor]]:
    """An ALIKED as a configuration and state dict of [`ALIKEDForKeypointDetection`].

    Widths, the size of the patch and the number of sample positions are read from the tensors.

    Args:
        state_dict: in the names of the published files, which are ours.
        config_overrides: fields of the configuration.

    Raises:
        ValueError: tensors unexpected, missing, of another shape or type, or with NaN or Inf, listed.
    """
    check_numbers(state_dict)
    converted = {name: tensor.clone() for name, tensor in state_dict.items() if not name.endswith(f".{COUNTER}")}
    if missing := [name for name in SIZES if converted.get(name, torch.empty(0)).ndim < 3]:
        raise ValueError(f"not an ALIKED checkpoint: missing, or of another shape: {', '.join(missing)}")
    settings = {
        "hidden_sizes": [converted[f"conv{i}.weight"].shape[1] for i in range(1, 5)],
        "kernel_size": converted["desc_head.offset_conv.0.weight"].shape[-1],
        "num_sample_positions": converted["desc_head.agg_weights"].shape[0],
    }
    config = ALIKEDConfig(**{**settings, **config_overrides})
    check_tensors(ALIKEDForKeypointDetection, config, converted)
    return config, converted


def aliked_to_published(config: ALIKEDConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the tensors, bit for bit, and the counters of the batch norms, which the published code wants.

    Raises:
        ValueError: tensors that are not the configuration's, listed.
    """
    check_tensors(ALIKEDForKeypointDetection, config, tensors)
    converted = {name: tensor.clone() for name, tensor in tensors.items()}
    norms = [name.removesuffix("running_var") for name in tensors if name.endswith(".running_var")]
    return converted | {f"{norm}{COUNTER}": torch.tensor(0) for norm in norms}


def is_aliked(names: Iterable[str]) -> bool:
    """Do these names of tensors belong to an ALIKED?"""
    return "desc_head.agg_weights" in set(names)
