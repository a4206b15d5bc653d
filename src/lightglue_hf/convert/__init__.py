"""Checkpoints of every project: their names, their files, and whether a converted one computes the same."""

from .directories import convert, convert_back
from .hardnet import convert_hardnet_state_dict
from .state_dicts import (
    convert_lightglue_state_dict,
    convert_superpoint_state_dict,
    lightglue_to_cvg,
    superpoint_to_magic_leap,
)

__all__ = [
    "convert",
    "convert_back",
    "convert_hardnet_state_dict",
    "convert_lightglue_state_dict",
    "convert_superpoint_state_dict",
    "lightglue_to_cvg",
    "superpoint_to_magic_leap",
]
