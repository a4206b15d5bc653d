"""`lightglue-hf track --engine openvino`: graphs of the size of the frames."""

import json

import numpy as np
import pytest
from PIL import Image

from lightglue_hf import cli

pytest.importorskip("optimum.intel")
pytest.importorskip("av")
pytest.importorskip("h5py")


@pytest.fixture
def pictures(tmp_path):
    """A folder of a photo that passes by, 2 pixels a frame."""
    data = pytest.importorskip("skimage.data")
    photo = Image.fromarray(data.astronaut()).resize((320, 320), Image.Resampling.LANCZOS)
    (tmp_path / "pictures").mkdir()
    for t in range(5):
        photo.crop((40 + 2 * t, 20, 200 + 2 * t, 140)).save(tmp_path / "pictures" / f"{t}.png")
    return tmp_path / "pictures"


def tracked(pictures, capsys, path, *options):
    from lightglue_hf.video import read_tracks

    arguments = ("track", pictures, "--save", path, "--longest-edge", 160, "--max-keypoints", 64, "--json", *options)
    assert cli.main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out), read_tracks(path)


def test_tracks_are_those_of_pytorch(pictures, tmp_path, capsys):
    summary, ours = tracked(pictures, capsys, tmp_path / "torch.h5")
    other_summary, graphs = tracked(pictures, capsys, tmp_path / "openvino.h5", "--engine", "openvino")
    assert other_summary["frames"] == summary["frames"] == 5
    assert other_summary["tracks"] == pytest.approx(summary["tracks"], rel=0.1)
    _, points = ours.frame(0)
    _, others = graphs.frame(0)
    near = np.linalg.norm(points[:, None] - others[None], axis=2).min(1) < 0.1
    assert near.mean() > 0.9
    assert graphs.settings["engine"] == "openvino"


def test_a_template_of_another_shape(pictures, tmp_path, capsys):
    with Image.open(pictures / "0.png") as first:
        first.crop((30, 5, 110, 115)).save(tmp_path / "template.png")
    arguments = ("--engine", "openvino", "--template", tmp_path / "template.png", "--max-keypoints", 256)
    summary, saved = tracked(pictures, capsys, tmp_path / "t.h5", *arguments)
    assert summary["found"] >= 4
    there = saved.homographies[0] @ (40, 55, 1)
    np.testing.assert_allclose(there[:2] / there[2], (70, 60), atol=3)
