"""The README is true: its Python runs. That its commands exist and its links lead somewhere, test_docs.py says."""

import json
import re
import warnings

import numpy as np
import pytest

from lightglue_hf import cli

from .documents import ROOT, blocks

README = ROOT / "README.md"


def test_python(tmp_path, monkeypatch, capsys):
    """All blocks in order, as one script, beside two photos."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name, pixels in zip(("left.jpg", "right.jpg"), data.stereo_motorcycle()):
        Image.fromarray(pixels).save(name)
    scripts = blocks(README, "python")
    assert len(scripts) == 3
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for script in scripts:
            exec(compile(script.code, "README.md", "exec"), names)
    count = int(re.match(r"(\d+) matches, found by layer \d+\n", capsys.readouterr().out)[1])
    assert cli.main(["match", "left.jpg", "right.jpg", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert len(json.loads(line)["matches"]) == count, "the command finds what the sample finds"
    np.testing.assert_allclose(json.loads(line)["keypoints0"], names["matches"]["keypoints0"].numpy(), atol=1e-3)
    assert Image.open("matches.png").size == (2 * 741, 500)
    assert len(names["matches"]["keypoints0"]) > 100
    assert names["outputs"].matches.shape[0] == 2
    assert set(names["best"][0]) == {"keypoint_image_0", "keypoint_image_1", "score"}


def test_no_figure_is_left_open():
    text = README.read_text()
    assert "FILL" not in text
    assert "…" not in text
