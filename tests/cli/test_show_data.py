"""`lightglue-hf show-data`."""

import numpy as np
import pytest
from PIL import Image

from lightglue_hf import cli


def test_show_data_draws_each_pair_in_a_row(tmp_path, capsys):
    options = ["--height", "48", "--width", "64", "--seed", "3", "--multi-plane", "1", "--no-legend", "-q"]
    assert cli.main(["show-data", "-o", str(tmp_path / "grid.png"), "--pairs", "2", *options]) == 0
    assert capsys.readouterr().out == "", "what was written is a remark"
    picture = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert picture.shape == (2 * 2 * 48, 4 * 2 * 64, 3)
    assert not np.array_equal(picture[:96], picture[96:])
    colours = np.abs(picture - picture.mean(-1, keepdims=True)).max(-1) > 20
    assert 0.005 < colours[:, :256].mean() < 0.5, "matches and keypoints on the views"
    assert colours[:, 256:].mean() > 0.05, "layers of several planes"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--pairs", "0"), ("--multi-plane", "1.5"), ("--height", "20"), ("--seed", "-1"), ("--output", "grid.txt")],
)
def test_show_data_names_a_bad_option(error, option, value):
    message = error("show-data", option, value)
    assert option in message
    assert value in message


def test_show_data_has_a_legend_below(tmp_path):
    options = ["--height", "48", "--width", "64", "--pairs", "1", "-q", "-o"]
    assert cli.main(["show-data", *options, str(tmp_path / "with.png")]) == 0
    assert cli.main(["show-data", *options, str(tmp_path / "without.png"), "--no-legend"]) == 0
    with_legend, without = (np.asarray(Image.open(tmp_path / name)) for name in ("with.png", "without.png"))
    assert np.array_equal(with_legend[: len(without)], without)
    below = with_legend[len(without) :]
    for half in (below[:, :256], below[:, 256:]):
        assert 0.01 < (half < 128).mean() < 0.5, "text on white"
