"""The command as a whole: help, errors, faults, and as a program."""

import subprocess
import sys

import pytest

import lightglue_hf
from lightglue_hf import cli


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lightglue-hf {lightglue_hf.__version__}\n"


def test_help_names_the_default_model(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["match", "--help"])
    assert stop.value.code == 0
    assert '"tiny", the checkpoint in this package (default)' in " ".join(capsys.readouterr().out.split())


def test_errors_of_commands(error, photos):
    assert "COMMAND" in error()
    assert "dance" in error("dance")
    assert "PHOTO" in error("match", photos[0])


def test_a_fault_of_the_program_is_not_hidden(monkeypatch, photos, checkpoint):
    def fault(*_):
        raise TypeError("a fault")

    monkeypatch.setattr(cli.match, "match_pair", fault)
    with pytest.raises(TypeError, match="a fault"):
        cli.main(["match", *photos, "--model", str(checkpoint)])


def program(*arguments):
    return subprocess.run([sys.executable, "-m", "lightglue_hf.cli", *arguments], capture_output=True, text=True)


def test_the_program_fails_with_one_line(photos):
    result = program("match", photos[0], "nowhere.jpg")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "lightglue-hf: error: nowhere.jpg: No such file or directory\n"


def test_the_program_succeeds_quietly(photos, checkpoint):
    result = program("match", *photos, "--model", str(checkpoint))
    assert (result.returncode, result.stderr) == (0, "")
    assert "matches" in result.stdout
