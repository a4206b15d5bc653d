"""Checkpoints of every project: by name, as files of any layout, and back; each is imported when it is used."""

from importlib import import_module
from typing import Any

_MODULES = {
    "checkpoint": "published",
    "convert": "directories",
    "convert_back": "directories",
    "convert_lightglue_state_dict": "state_dicts",
    "convert_superpoint_state_dict": "state_dicts",
    "fetch": "published",
    "lightglue_to_cvg": "state_dicts",
    "list_checkpoints": "published",
    "located": "published",
    "superpoint_to_magic_leap": "state_dicts",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
