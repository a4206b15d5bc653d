"""Checkpoints of every project: by name, as files of any layout, and back; each is imported when it is used."""

from importlib import import_module
from typing import Any

_MODULES = {
    "aliked_to_published": "aliked",
    "checkpoint": "published",
    "convert": "directories",
    "convert_aliked_state_dict": "aliked",
    "convert_back": "directories",
    "convert_disk_state_dict": "disk",
    "convert_hardnet_state_dict": "hardnet",
    "convert_lightglue_state_dict": "state_dicts",
    "convert_superpoint_state_dict": "state_dicts",
    "convert_xfeat_state_dict": "xfeat",
    "disk_to_published": "disk",
    "fetch": "published",
    "hardnet_to_published": "hardnet",
    "lightglue_to_cvg": "state_dicts",
    "list_checkpoints": "published",
    "located": "published",
    "superpoint_to_magic_leap": "state_dicts",
    "xfeat_to_published": "xfeat",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
