"""Checkpoints of every project: their names, their files, and whether a converted one computes the same."""

from .directories import convert, convert_back
from .disk import convert_disk_state_dict, disk_to_published
from .state_dicts import (
    convert_lightglue_state_dict,
    convert_superpoint_state_dict,
    lightglue_to_cvg,
    superpoint_to_magic_leap,
)
from .xfeat import convert_xfeat_state_dict, xfeat_to_published

__all__ = [
    "convert",
    "convert_back",
    "convert_disk_state_dict",
    "convert_lightglue_state_dict",
    "convert_superpoint_state_dict",
    "convert_xfeat_state_dict",
    "disk_to_published",
    "lightglue_to_cvg",
    "superpoint_to_magic_leap",
    "xfeat_to_published",
]
