"""Exported graphs in the place of the PyTorch model: `OVModelForKeypointMatching` and `ORTModelForKeypointMatching`.

Either is imported when it is first asked for, because what it is built on is optional.
"""

from importlib import import_module
from typing import Any

from ..utils.optional import how_to_install

_CLASSES = {
    "OVModelForKeypointMatching": ("openvino", "Optimum Intel"),
    "ORTModelForKeypointMatching": ("onnxruntime", "ONNX Runtime and Optimum"),
}
_EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx"}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, needs = _CLASSES[name]
    try:
        return getattr(import_module(f".{module}", __name__), name)
    except ImportError as error:
        raise ImportError(f"{name} needs {needs}: {how_to_install(_EXTRAS[module])}") from error
