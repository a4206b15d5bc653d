"""The command as a whole: help, errors, faults, and as a program."""

import argparse
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightglue_hf
from lightglue_hf import cli
from lightglue_hf.cli.errors import is_of_input, reading
from lightglue_hf.utils.errors import InputError, MissingPackageError


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lightglue-hf {lightglue_hf.__version__}\n"


def test_help_names_the_default_model(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["match", "--help"])
    assert stop.value.code == 0
    assert '"tiny" (default) or another name' in " ".join(capsys.readouterr().out.split())


def test_errors_of_commands(error, photos):
    assert "dance" in error("dance")
    assert "PHOTO" in error("match", photos[0])


def test_a_bare_command_prints_help(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: lightglue-hf")
    assert "match" in printed.out
    assert printed.err == ""


def test_help_imports_nothing_that_takes_long():
    code = (
        "import sys\n"
        "from lightglue_hf import cli\n"
        "for command in sys.argv[1:]:\n"
        "    try: cli.main([command, '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "print('imported:', {'torch', 'transformers', 'numpy', 'PIL', 'datasets'} & set(sys.modules))"
    )
    commands = ["match", "demo", "app", "evaluate", "train", "show-data", "convert", "export"]
    result = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "imported: set()", result.stderr
    for command in commands:
        assert f"usage: lightglue-hf {command}" in result.stdout


@pytest.mark.parametrize("command", [["match", "a", "b"], ["demo"], ["evaluate"], ["show-data"]])
def test_every_option_with_a_default_says_it(command):
    """Of those that take a value; what is not given by default needs no word."""
    (commands,) = (action for action in cli.parser()._actions if action.dest == "command")
    for action in commands.choices[command[0]]._actions:
        if action.option_strings and action.nargs != 0 and action.default not in (None, [], argparse.SUPPRESS):
            assert "default" in action.help, action.option_strings


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError, KeyError])
def test_a_fault_of_the_program_is_not_hidden(monkeypatch, photos, checkpoint, kind):
    def fault(*_):
        raise kind("a fault")

    monkeypatch.setattr(cli.match, "match_pair", fault)
    with pytest.raises(kind, match="a fault"):
        cli.main(["match", *photos, "--model", str(checkpoint)])


def test_what_the_readers_refuse_is_of_input_and_what_happens_below_them_is_not(tmp_path):
    from transformers import AutoConfig

    from lightglue_hf.convert.state_dicts import convert_superpoint_state_dict
    from lightglue_hf.geometry import scale_keypoints

    (tmp_path / "config.json").write_text('{"model_type": "stranger"}')
    cases = [
        (lambda: convert_superpoint_state_dict({}), True),
        (lambda: convert_superpoint_state_dict(None), False),
        (lambda: scale_keypoints(torch.zeros(2, 2), "a", "b"), False),
        (lambda: Path(tmp_path / "nowhere").read_text(), True),
        (lambda: AutoConfig.from_pretrained(tmp_path), True),  # a ValueError of transformers'
    ]
    for call, expected in cases:
        with pytest.raises(Exception) as error:  # noqa: PT011
            call()
        assert is_of_input(error.value) == expected, error.value


def test_verbose_shows_where_an_error_came_from(capsys, photos):
    assert cli.main(["match", "nowhere.jpg", photos[0], "-v"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("lightglue-hf: error: nowhere.jpg: No such file or directory\n")


def test_reading_makes_one_line_of_anything():
    for raised in (KeyError("a"), RuntimeError("two\nlines"), InputError("mine"), struct.error("short")):
        with pytest.raises(InputError, match=r"^file: ") as error, reading("file"):
            raise raised
        assert "\n" not in str(error.value)
    with pytest.raises(MissingPackageError, match=r"^install"), reading("file"):
        raise MissingPackageError("install lightglue-hf[eval]")


def program(*arguments):
    return subprocess.run([sys.executable, "-m", "lightglue_hf", *arguments], capture_output=True, text=True)


def test_the_program_fails_with_one_line(photos):
    result = program("match", photos[0], "nowhere.jpg")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "lightglue-hf: error: nowhere.jpg: No such file or directory\n"


def test_the_program_succeeds_quietly(photos, checkpoint):
    result = program("match", *photos, "--model", str(checkpoint))
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert "lightglue" not in result.stderr
    assert "matches" in result.stdout


def test_the_reader_may_leave_early():
    command = [sys.executable, "-m", "lightglue_hf", "match", "--help"]
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_script_knows_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stop:
        cli.main(["--print-completion", shell])
    assert not stop.value.code
    script = capsys.readouterr().out
    for word in ("match", "evaluate", "--max-keypoints", "--weight-format"):
        assert word in script


def test_what_completion_needs_is_said(monkeypatch, error):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "install lightglue-hf[completion]" in error("--print-completion", "bash")


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB")])
def test_too_much_is_one_line(monkeypatch, photos, checkpoint, error, raised):
    def fault(*_):
        raise raised

    monkeypatch.setattr(cli.match, "match_pair", fault)
    assert "not enough memory: ask for fewer keypoints" in error("match", *photos, "--model", checkpoint)
