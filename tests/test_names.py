"""The names of the package, at run time and for type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightglue_hf


def test_type_checkers_see_the_names_that_are_imported():
    tree = ast.parse(Path(lightglue_hf.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        assert statement.level == 1
        for alias in statement.names:
            assert alias.asname == alias.name, "only a name that is imported as itself is public"
            seen[alias.name] = statement.module
    assert seen == lightglue_hf._MODULES


@pytest.mark.parametrize("name", sorted(set(lightglue_hf.__all__) | {"ExportOptions"}))
def test_every_public_name_can_be_imported(name):
    names = {}
    exec(f"from lightglue_hf import {name}", names)
    assert names[name] is getattr(lightglue_hf, name)


def test_type_checkers_know_what_a_public_name_is(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(
        "from lightglue_hf import ExportOptions, KeypointFeatures, checkpoint\n"
        "reveal_type(checkpoint)\nreveal_type(KeypointFeatures().keypoints)\nExportOptions(opset='a')\n"
    )
    options = ["--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={tmp_path}", "user.py"]
    found = subprocess.run([sys.executable, "-m", "mypy", *options], cwd=tmp_path, capture_output=True, text=True)
    assert "def (name: " in found.stdout, found.stdout
    assert 'is "Any"' not in found.stdout
    assert 'Argument "opset" to "ExportOptions" has incompatible type "str"' in found.stdout
