"""Values of configurations, checked: each function returns its value, or raises a ValueError that names the field."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

import torch


def refuse_none(name: str, value: Any) -> None:
    """Raise a ValueError of a number that is missing, whatever its bounds."""
    if value is None:
        raise ValueError(f"{name} must be a number, got None")


def whole_number(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """An integer from `low` to `high`; integers of NumPy too, `True` and 3.0 not."""
    refuse_none(name, value)
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r:.100}")
    return int(value)


MOST_RADIUS = 1024  # pixels; score maps are padded by as many


def odd_number(name: str, value: Any, low: int, high: int) -> int:
    """An odd integer from `low` to `high`."""
    value = whole_number(name, value, low, high)
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd, got {value}")
    return value


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`."""
    refuse_none(name, value)
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


def whole_numbers(
    name: str, values: Any, low: int, high: int = 2**31 - 1, counts: Collection[int] | None = None
) -> list[int]:
    """A list of integers from `low` to `high`, of which there may be so many."""
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list of whole numbers, got {values!r:.100}")
    numbers = [whole_number(f"{name}[{i}]", value, low, high) for i, value in enumerate(values)]
    if counts is not None and len(numbers) not in counts:
        raise ValueError(f"{name} must have {min(counts)} to {max(counts)} entries, got {numbers!r:.100}")
    return numbers


Check = Callable[[str, Any], Any]
Checks = Mapping[str, Check]


def optional(check: Check) -> Check:
    """The check of a field that may also be `None`."""
    return lambda name, value: None if value is None else check(name, value)


class CheckedFields:
    """Attributes that are checked whenever they are set, by the constructor, by transformers or later."""

    checks: ClassVar[Checks] = {}
    """Of a field's name and a new value: what becomes of the value."""

    def __setattr__(self, name: str, value: Any) -> None:
        check = self.checks.get(getattr(type(self), "attribute_map", {}).get(name, name))
        super().__setattr__(name, check(name, value) if check else value)


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
