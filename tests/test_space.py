"""The Space is what the command builds, and it is whole."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPACES = Path(__file__).parent.parent / "spaces"


@pytest.fixture
def builder(monkeypatch):
    if sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    spec = importlib.util.spec_from_file_location("space_build", SPACES / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_lies_here_is_what_the_command_writes(builder):
    assert builder.readme() == (SPACES / "README.md").read_text()
    assert builder.requirements() == (SPACES / "requirements.txt").read_text()


def test_the_front_matter_is_what_a_space_needs(builder):
    _, front, text = builder.readme().split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert fields["sdk"] == "gradio"
    assert (SPACES / fields["app_file"]).is_file()
    assert len(fields["short_description"]) <= 60
    assert "non-commercial" in text


def test_a_built_space_has_the_package_and_runs_by_itself(builder, tmp_path):
    before = {path: path.read_bytes() for path in SPACES.iterdir() if path.is_file()}
    builder.build(tmp_path / "space")
    assert before == {path: path.read_bytes() for path in SPACES.iterdir() if path.is_file()}
    assert {path.name for path in (tmp_path / "space").iterdir()} == {
        *("README.md", "requirements.txt", "app.py", "lightglue_hf", "LICENSE")
    }
    assert (tmp_path / "space" / "lightglue_hf" / "checkpoints" / "tiny" / "model.safetensors").is_file()
    code = (
        "import sys, runpy, lightglue_hf; print(lightglue_hf.__file__);"
        "sys.argv = ['app.py', '--help']; runpy.run_path('app.py', run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "space", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "space")), "its own package, not one that is installed"
    assert "--host" in done.stdout
