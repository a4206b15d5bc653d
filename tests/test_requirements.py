"""The table of requirements is true: each row has a test, and each test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = re.findall(
    r"^\| (\d+) \| (.*) \| (.*) \| (.*) ?\|$", (HERE / "requirements.md").read_text(), flags=re.MULTILINE
)


def test_rows_are_numbered():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 47))


@pytest.mark.parametrize("row", ROWS, ids=[f"row {number}" for number, *_ in ROWS])
def test_the_tests_of_a_row_exist(row):
    *_, tests = row
    names = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
    assert names
    assert len(names) == tests.count("::")
    for file, name in names:
        tree = ast.parse((HERE / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file} has no {name}"
