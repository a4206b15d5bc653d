"""Checkpoints of XFeat.

Source: verlab/accelerated_features (`xfeat.pt`), whose names are ours. Its matcher, LighterGlue
(`xfeat-lighterglue.pt`), is a LightGlue, which `convert_lightglue_state_dict` reads. The second XFeat of that file has
other statistics in its batch norms; published descriptors and matches are those of `xfeat.pt`, and it is left out.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..detectors.xfeat import XFeatConfig, XFeatForKeypointDetection
from .state_dicts import check_numbers, check_tensors


def is_xfeat(names: Iterable[str]) -> bool:
    """Do these names of tensors belong to an XFeat?"""
    return any(name.startswith("keypoint_head.0.layer.") for name in names)


def convert_xfeat_state_dict(
    state_dict: dict[str, Tensor], **config_overrides: Any
) -> tuple[XFeatConfig, dict[str, Tensor]]:
    """An XFeat as a configuration and state dict of [`XFeatForKeypointDetection`].

    Args:
        state_dict: what the published file holds.
        config_overrides: fields of the configuration.

    Raises:
        ValueError: tensors unexpected, missing, of another shape or type, or with NaN or Inf, listed.
    """
    check_numbers(state_dict)
    tensors = {name: tensor.clone() for name, tensor in state_dict.items()}
    sizes = {}
    if width := tensors.get("block_fusion.2.bias", torch.empty(0)).numel():
        sizes = {"descriptor_dim": width}
    config = XFeatConfig(**{**sizes, **config_overrides})
    check_tensors(XFeatForKeypointDetection, config, tensors)
    return config, tensors


def xfeat_to_published(config: XFeatConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the published file's tensors, bit for bit.

    Raises:
        ValueError: tensors that are not the configuration's, listed.
    """
    check_tensors(XFeatForKeypointDetection, config, tensors)
    return {name: tensor.clone() for name, tensor in tensors.items()}
