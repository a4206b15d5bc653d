"""Checkpoints of DISK.

Source: cvlab-epfl/disk (`depth-save.pth`, `epipolar-save.pth`), whose names are ours; the network is saved under
`extractor`.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..detectors.disk import DISKConfig, DISKForKeypointDetection
from .state_dicts import check_numbers, check_tensors

PREFIX = "extractor."


def is_disk(names: Iterable[str]) -> bool:
    """Do these names of tensors belong to a DISK?"""
    return any(name.removeprefix(PREFIX).startswith("unet.path_down.") for name in names)


def convert_disk_state_dict(
    state_dict: dict[str, Any], **config_overrides: Any
) -> tuple[DISKConfig, dict[str, Tensor]]:
    """A DISK as a configuration and state dict of [`DISKForKeypointDetection`]; widths are read from the tensors.

    Args:
        state_dict: what the published file holds, `{"extractor": {...}}`, or the tensors alone, with that prefix or
            without.
        config_overrides: fields of the configuration.

    Raises:
        ValueError: tensors unexpected, missing, of another shape or type, or with NaN or Inf, listed.
    """
    nested = state_dict.get("extractor")
    if isinstance(nested, dict):
        if others := sorted(str(name) for name in state_dict if name != "extractor"):
            raise ValueError(f"unexpected beside the extractor of a DISK checkpoint: {', '.join(others)}")
        state_dict = nested
    check_numbers(state_dict)
    tensors = {name.removeprefix(PREFIX): tensor.clone() for name, tensor in state_dict.items()}
    if len(tensors) < len(state_dict):
        raise ValueError(f"given twice, with the prefix {PREFIX} and without")

    def widths(pattern: str) -> list[int]:
        found: list[int] = []
        while (weight := tensors.get(pattern.format(len(found)))) is not None:
            found.append(weight.shape[:1].numel())
        return found

    down, up = widths("unet.path_down.{}.1.3.weight"), widths("unet.path_up.{}.conv.3.weight")
    sizes: dict[str, Any] = {}
    if len(down) >= 2 and len(up) == len(down) - 1 and min(*down, *up, up[-1] - 1) > 0:
        sizes = {"encoder_hidden_sizes": down, "decoder_hidden_sizes": up[:-1], "descriptor_dim": up[-1] - 1}
    config = DISKConfig(**{**sizes, **config_overrides})
    check_tensors(DISKForKeypointDetection, config, tensors)  # the default's, where there are no such sizes
    return config, tensors


def disk_to_published(config: DISKConfig, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The way back: what the published file holds, bit for bit.

    Raises:
        ValueError: tensors that are not the configuration's, listed.
    """
    check_tensors(DISKForKeypointDetection, config, tensors)
    return {"extractor": {name: tensor.clone() for name, tensor in tensors.items()}}
