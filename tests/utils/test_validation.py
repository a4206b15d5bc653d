"""Values of configurations."""

import math

import numpy as np
import pytest

from lightglue_hf.utils.validation import choice, flag, number, whole_number, whole_numbers


def test_good_values_come_back_as_plain_ones():
    assert type(whole_number("n", np.int64(3), 1)) is int
    assert type(number("x", np.float32(0.5))) is float
    assert number("x", -1) == -1.0
    assert flag("f", False) is False
    assert choice("c", "a", ("a", "b")) == "a"
    assert whole_numbers("n", (1, np.int32(2)), 0) == [1, 2]


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (lambda value: whole_number("field", value, 1, 9), [0, 10, 2.0, True, "3", None, [1], math.nan]),
        (lambda value: number("field", value, 0, 1), [-0.1, 1.1, math.nan, math.inf, True, "0.5", None, [0.5]]),
        (lambda value: number("field", value), [math.nan, -math.inf, "a"]),
        (lambda value: flag("field", value), [0, 1, "true", None]),
        (lambda value: choice("field", value, ("a",)), ["b", 1, None, ["a"]]),
        (lambda value: whole_numbers("field", value, 1), ["12", 3, None, [1, 0], [1, "2"], {1: 2}]),
    ],
)
def test_others_are_refused_by_name(check, values):
    for value in values:
        with pytest.raises(ValueError, match=r"^field"):
            check(value)
