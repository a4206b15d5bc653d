"""Values of configurations, checked: each function returns its value, or raises a ValueError that names the field."""

import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any

import torch


def whole_number(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """An integer from `low` to `high`; integers of NumPy too, `True` and 3.0 not."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r:.100}")
    return int(value)


MOST_RADIUS = 1024  # pixels; score maps are padded by as many


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`."""
    real = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(real) and low <= real <= high):
        bounds = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a number{bounds}, got {value!r:.100}")
    return real


def flag(name: str, value: Any) -> bool:
    """`True` or `False`."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r:.100}")
    return value


def choice(name: str, value: Any, choices: Collection[str]) -> str:
    """One of several words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r:.100}")
    return value


def whole_numbers(name: str, values: Any, low: int, high: int = 2**31 - 1) -> list[int]:
    """A list of integers from `low` to `high`."""
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list of whole numbers, got {values!r:.100}")
    return [whole_number(f"{name}[{i}]", value, low, high) for i, value in enumerate(values)]


NUMBERS = (
    "max_keypoints keypoint_threshold depth_confidence width_confidence rejection_threshold filter_threshold"
).split()


def never_none(name: str, value: Any) -> Any:
    """The value of a field that may be set at any time; a ValueError of `None` where a number is wanted."""
    if value is None and name in NUMBERS:
        raise ValueError(f"{name} must be a number, got None")
    return value


FLAGS = ("output_hidden_states", "output_attentions", "return_dict", "torchscript", "tie_word_embeddings")
ABSENT = ("is_encoder_decoder", "is_decoder", "add_cross_attention", "tie_encoder_decoder")
TABLES = ("id2label", "label2id", "pruned_heads", "task_specific_params", "quantization_config", "auto_map")
WORDS = ("architectures", "model_type")
DTYPES = ("dtype", "torch_dtype")


def inherited_fields(config_class: type, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a saved configuration that are left for transformers, which uses them unseen; returned as they are.

    Raises:
        ValueError: one that transformers knows is of another type, or one would hide a method; it is named.
    """
    for name, value in fields.items():
        declared = getattr(config_class, name, None)
        if callable(declared) or (isinstance(declared, property) and declared.fset is None):
            raise ValueError(f"{name} is no field of a configuration")
        if value is None:
            continue
        if name in FLAGS:
            flag(name, value)
        elif name in ABSENT and value:
            raise ValueError(f"{name} must be false, got {value!r:.100}")
        elif name in TABLES and not isinstance(value, dict):
            raise ValueError(f"{name} must be a dictionary, got {value!r:.100}")
        elif name in WORDS and not all(
            isinstance(word, str) for word in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"{name} must be text, got {value!r:.100}")
        elif name in DTYPES and not isinstance(value, torch.dtype):
            if not isinstance(getattr(torch, value, None) if isinstance(value, str) else None, torch.dtype):
                raise ValueError(f"{name} must be the name of a type, such as float32, got {value!r:.100}")
    return fields
