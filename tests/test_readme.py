"""The README is true: its Python runs, its commands exist, its links lead somewhere."""

import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest

from lightglue_hf import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_python(tmp_path, monkeypatch, capsys):
    """All blocks in order, as one script, beside two photos."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name, pixels in zip(("left.jpg", "right.jpg"), data.stereo_motorcycle()):
        Image.fromarray(pixels).save(name)
    scripts = blocks("python")
    assert len(scripts) == 3
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for script in scripts:
            exec(compile(script, "README.md", "exec"), names)
    count = int(re.match(r"(\d+) matches, found by layer \d+\n", capsys.readouterr().out)[1])
    assert cli.main(["match", "left.jpg", "right.jpg", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert len(json.loads(line)["matches"]) == count, "the command finds what the sample finds"
    np.testing.assert_allclose(json.loads(line)["keypoints0"], names["matches"]["keypoints0"].numpy(), atol=1e-3)
    assert Image.open("matches.png").size == (2 * 741, 500)
    assert len(names["matches"]["keypoints0"]) > 100
    assert names["outputs"].matches.shape[0] == 2
    assert set(names["best"][0]) == {"keypoint_image_0", "keypoint_image_1", "score"}


def test_commands():
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    makefile = (ROOT / "Makefile").read_text()
    programs = {"make": 0, "lightglue-hf": 0}
    for program, *arguments in filter(None, lines):
        programs[program] += 1
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, flags=re.MULTILINE), arguments
        else:
            cli.parser().parse_args(arguments)
    assert min(programs.values()) >= 2


def test_links():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert links
    assert missing == []


def test_no_figure_is_left_open():
    assert "FILL" not in README
    assert "…" not in README
