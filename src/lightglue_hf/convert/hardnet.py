"""HardNet's checkpoints as DoGHardNet's: the names are the same in DagnyT/hardnet, in kornia 0.8.1 and here."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..detectors.doghardnet import DoGHardNetConfig, DoGHardNetForKeypointDetection
from .state_dicts import check_numbers, check_tensors

NAMES = "features."  # every name begins with, behind whatever held the network
COUNTER = "num_batches_tracked"


def convert_hardnet_state_dict(
    state_dict: dict[str, Any], **config_overrides: Any
) -> tuple[DoGHardNetConfig, dict[str, Tensor]]:
    """A HardNet as a configuration and state dict of [`DoGHardNetForKeypointDetection`].

    Args:
        state_dict: kornia's or the original, also within a training checkpoint's "state_dict", and also as part of
            another module (kornia's `LAFDescriptor`).
        config_overrides: fields of the configuration.

    Raises:
        ValueError: tensors unexpected, missing, of another shape or type, or with NaN or Inf, listed.
    """
    tensors = state_dict.get("state_dict", state_dict)
    check_numbers(tensors)
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = f"hardnet.{name[max(name.find(NAMES), 0) :]}"
        if own in converted:
            raise ValueError(f"given twice, by two names: {own}")
        converted[own] = tensor.clone()
    for name in [*converted]:
        if name.endswith("running_mean"):  # files from before PyTorch 0.4 have not counted
            converted.setdefault(name.replace("running_mean", COUNTER), torch.tensor(0))
    config = DoGHardNetConfig(**config_overrides)
    check_tensors(DoGHardNetForKeypointDetection, config, converted)
    return config, converted


def hardnet_to_published(config: DoGHardNetConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: kornia's names, without the counters that old files lack and nothing reads.

    Raises:
        ValueError: tensors that are not the configuration's, listed.
    """
    check_tensors(DoGHardNetForKeypointDetection, config, tensors)
    return {
        name.removeprefix("hardnet."): tensor.clone() for name, tensor in tensors.items() if not name.endswith(COUNTER)
    }


def is_hardnet(names: Iterable[str]) -> bool:
    """Do these names of tensors belong to a HardNet? Its last convolution is the twentieth module."""
    names = list(names)
    return all(NAMES in name for name in names) and any(name.endswith(f"{NAMES}19.weight") for name in names)
