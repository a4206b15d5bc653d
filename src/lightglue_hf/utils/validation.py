"""Values of configurations, checked: each function returns its value, or raises a ValueError that names the field."""

import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any


def whole_number(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """An integer from `low` to `high`; integers of NumPy too, `True` and 3.0 not."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r:.100}")
    return int(value)


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
