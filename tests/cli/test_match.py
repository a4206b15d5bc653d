"""`lightglue-hf match`, in this process."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import cli


@pytest.fixture
def run(checkpoint, capsys):
    """Run `lightglue-hf match`, which must succeed, and return what it printed."""

    def run(*arguments):
        status = cli.main(["match", "--model", str(checkpoint), "--device", "cpu", *map(str, arguments)])
        printed = capsys.readouterr()
        assert printed.err == ""
        assert status == 0
        return printed.out

    return run


def test_match_prints_counts_layer_and_time(run, photos):
    lines = run(*photos, "--max-keypoints", 40).splitlines()
    assert lines[0] == f"{photos[0]}: 160 x 120, 40 keypoints"
    assert lines[1] == f"{photos[1]}: 90 x 140, 40 keypoints"
    assert re.fullmatch(r"\d+ matches, stopped after layer 2 of 2, in \d+\.\d\d s without loading the model", lines[2])
    assert lines[3] == f"computed by PyTorch {torch.__version__} on cpu"
    assert "fundamental matrix" in lines[4]
    assert len(lines) == 5


def test_match_draws_both_photos(run, photos, tmp_path):
    path = tmp_path / "matches.png"
    assert f"wrote {path}" in run(*photos, "-o", path)
    assert Image.open(path).size == (160 + 90, 140)


def test_match_saves_the_same_as_json_and_npz(run, photos, tmp_path, checkpoint):
    printed = run(*photos, "--save", tmp_path / "matches.json")
    run(*photos, "--save", tmp_path / "matches.npz")
    saved = json.loads((tmp_path / "matches.json").read_text())
    arrays = np.load(tmp_path / "matches.npz")  # allow_pickle=False
    metadata = json.loads(str(arrays["metadata"]))
    count = int(re.search(r"(\d+) matches", printed)[1])
    assert count > 0
    for name, shape in (("keypoints0", (count, 2)), ("keypoints1", (count, 2)), ("matching_scores", (count,))):
        assert arrays[name].shape == shape
        np.testing.assert_allclose(arrays[name], np.array(saved[name]), atol=1e-6)
    for source in (saved, metadata):
        assert source["images"] == photos
        assert source["image_sizes"] == [[120, 160], [140, 90]]
        assert source["model"] == str(checkpoint)
        assert source["stop"] == 2
    inside = np.array(saved["keypoints1"])
    assert inside.min() >= -0.5
    assert (inside.max(axis=0) <= (89.5, 139.5)).all()


def test_the_saved_points_are_those_of_the_library(run, photos, tmp_path, checkpoint):
    from transformers import AutoImageProcessor, AutoModelForKeypointMatching

    path = tmp_path / "matches.npz"
    run(*photos, "--save", path, "--size", 160, "--max-keypoints", 50)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    model = AutoModelForKeypointMatching.from_pretrained(checkpoint)
    model.config.keypoint_detector_config.max_keypoints = 50
    inputs = processor(photos, size={"longest_edge": 160}, return_tensors="pt")
    expected = processor.post_process_keypoint_matching(model(**inputs), [((120, 160), (140, 90))])[0]
    np.testing.assert_allclose(np.load(path)["keypoints1"], expected["keypoints1"].numpy(), atol=1e-4)


def test_threshold_keeps_the_better_matches(run, photos, tmp_path):
    run(*photos, "--save", tmp_path / "all.npz")
    scores = np.load(tmp_path / "all.npz")["matching_scores"]
    threshold = float(np.median(scores))
    run(*photos, "--save", tmp_path / "some.npz", "--threshold", threshold)
    some = np.load(tmp_path / "some.npz")["matching_scores"]
    assert 0 < len(some) < len(scores)
    assert some.min() > threshold


def test_exif_orientation_is_applied(run, photos, tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter
    Image.open(photos[0]).save(path, exif=exif)
    assert f"{path}: 120 x 160" in run(path, photos[1])


def test_match_of_blank_photos_finds_nothing(run, tmp_path):
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in paths:
        Image.new("RGB", (3, 3)).save(path)
    printed = run(*paths, "-o", tmp_path / "m.png", "--save", tmp_path / "m.json", "--size", 8)  # all border
    assert f"{paths[1]}: 3 x 3, 0 keypoints" in printed
    assert "0 matches" in printed
    assert "no fundamental matrix found" in printed
    assert json.loads((tmp_path / "m.json").read_text())["keypoints0"] == []


def test_without_poselib_it_says_what_to_install(run, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "poselib", None)
    assert "install lightglue-hf[eval]" in run(*photos)


def test_half_precision(run, photos):
    assert "40 keypoints" in run(*photos, "--dtype", "bfloat16", "--max-keypoints", 40)


def test_errors_of_photos(error, photos, checkpoint, tmp_path):
    model = ("--model", checkpoint)
    assert "nowhere.jpg: No such file" in error("match", "nowhere.jpg", photos[1], *model)
    assert str(tmp_path) in error("match", tmp_path, photos[1], *model)
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    assert str(text) in error("match", photos[0], text, *model)
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(Path(photos[1]).read_bytes()[:-500])
    assert str(truncated) in error("match", photos[0], truncated, *model)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-o", "matches.xyz"], ".png or .jpg"),
        (["-o", "matches"], ".png or .jpg"),
        (["-o", "nowhere/matches.png"], "does not exist"),
        (["--save", "matches.csv"], ".json or .npz"),
        (["--save", "nowhere/matches.json"], "does not exist"),
        (["--max-keypoints", "0"], "'0' is not a whole number above 0"),
        (["--size", "-5"], "--size"),
        (["--size", "big"], "'big' is not a whole number above 0"),
        (["--threshold", "1"], "'1' is not a number from 0 to below 1"),
        (["--threshold", "nan"], "'nan'"),
        (["--dtype", "int8"], "int8"),
        (["--device", "abacus"], "abacus"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_errors_of_options(error, photos, checkpoint, arguments, expected):
    assert expected in error("match", *photos, "--model", checkpoint, *arguments)
