"""`lightglue-hf demo`."""

import re
import sys

import pytest
from PIL import Image

from lightglue_hf import cli


def test_demo_judges_by_the_ground_truth(checkpoint, capsys, tmp_path):
    pytest.importorskip("skimage")
    path = tmp_path / "demo.png"
    arguments = ["--model", str(checkpoint), "--device", "cpu", "--max-keypoints", "50", "-o", str(path)]
    assert cli.main(["demo", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "50 and 50 keypoints" in printed
    assert re.search(r"\d+ matches are correct: .*\(precision [01]\.\d{3}\)", printed)
    assert Image.open(path).size == (2 * 741, 500)
    assert cli.main(["demo", *arguments, "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"\d+ matches", line) is not None for line in lines] == [True, True], "the results alone"


def test_demo_without_scikit_image_says_what_to_install(error, monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    assert "install lightglue-hf[demo]" in error("demo", "--model", checkpoint)
