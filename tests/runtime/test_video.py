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


@pytest.mark.parametrize("sides", [(), ("--height", 120, "--width", 160)])
def test_graphs_that_were_made_before(pictures, tmp_path, capsys, sides):
    out = tmp_path / "graphs"
    export = ("export", "openvino", "tiny", out, "--part", "detector", "matcher", "--no-validate")
    assert cli.main([str(argument) for argument in (*export, "--num-keypoints", 64, *sides)]) == 0
    capsys.readouterr()
    track = ["track", str(pictures), "--save", str(tmp_path / "t.h5"), "--max-keypoints", "64", "--model", str(out)]
    status = cli.main([*track, "--longest-edge", "160"])
    if sides:
        assert status == 2
        assert "was exported for 120 x 160 pixels: export it again" in capsys.readouterr().err
        assert cli.main(track) == 0
    else:
        assert status == 0
        from lightglue_hf.video import read_tracks

        size = read_tracks(tmp_path / "t.h5").settings["features"]["size"]
        assert size == {"height": 120, "width": 160}


def test_a_template_of_another_shape(pictures, tmp_path, capsys):
    with Image.open(pictures / "0.png") as first:
        first.crop((30, 5, 110, 115)).save(tmp_path / "template.png")
    arguments = ("--engine", "openvino", "--template", tmp_path / "template.png", "--max-keypoints", 256)
    summary, saved = tracked(pictures, capsys, tmp_path / "t.h5", *arguments)
    assert summary["found"] >= 4
    there = saved.homographies[0] @ (40, 55, 1)
    np.testing.assert_allclose(there[:2] / there[2], (70, 60), atol=3)
