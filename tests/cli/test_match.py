"""`lightglue-hf match`, in this process."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lightglue_hf.visualization
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
    assert Image.open(path).size == (160 * 140 // 120 + 90, 140), "at one height"


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


def test_what_a_processor_asks_too_much_is_said_in_one_line(error, checkpoint, photos, tmp_path):
    directory = tmp_path / "greedy"
    shutil.copytree(checkpoint, directory)
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    settings["size"] = {"longest_edge": 16384}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    message = error("match", *photos, "--model", directory)
    assert "`size` would make image 0 of pair 0" in message
    assert "16384 x 12288 pixels" in message


def test_the_saved_points_are_those_of_the_library(run, photos, tmp_path, checkpoint):
    from transformers import AutoImageProcessor, AutoModelForKeypointMatching

    path = tmp_path / "matches.npz"
    run(*photos, "--save", path, "--longest-edge", 160, "--max-keypoints", 50)
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
    printed = run(*paths, "-o", tmp_path / "m.png", "--save", tmp_path / "m.json", "--longest-edge", 8)  # all border
    assert f"{paths[1]}: 3 x 3, 0 keypoints" in printed
    assert "no keypoints at 8 x 8 pixels: that is too small to find any; choose a larger --longest-edge" in printed
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
        (["--save", "matches.csv"], ".json, .npz or .h5"),
        (["--focal", "500", "0"], "a number of pixels above 0"),
        (["--save", "nowhere/matches.json"], "does not exist"),
        (["--max-keypoints", "0"], "'0' is not a whole number above 0"),
        (["--longest-edge", "-5"], "--longest-edge"),
        (["--longest-edge", "big"], "'big' is not a whole number from 1 to 8192"),
        (["--longest-edge", "100000"], "'100000' is not a whole number from 1 to 8192"),
        (["-o", "matches.hdf"], ".png or .jpg"),  # Pillow knows of it, and cannot write it
        (["-o", "."], "'.' is a directory"),
        (["--best", "0"], "--best"),
        (["--threshold", "1"], "'1' is not a number from 0 to below 1"),
        (["--threshold", "nan"], "'nan'"),
        (["--dtype", "int8"], "int8"),
        (["--device", "abacus"], "--device abacus: "),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--colour", "red"], "--colour"),
    ],
)
def test_errors_of_options(error, photos, checkpoint, arguments, expected):
    assert expected in error("match", *photos, "--model", checkpoint, *arguments)


# -- what is printed --------------------------------------------------------------------------------------------------


def test_json_is_what_is_saved_and_nothing_else_is_printed(run, photos, tmp_path):
    printed = run(*photos, "--json", "--save", tmp_path / "matches.json", "-o", tmp_path / "matches.png")
    assert printed == (tmp_path / "matches.json").read_text()
    saved = json.loads(printed)
    assert saved["verdict"]["answer"] in ("yes", "no", "too few")


def test_everything_a_match_belongs_to_is_saved(run, photos, tmp_path):
    saved = json.loads(run(*photos, "--json", "--max-keypoints", 50))
    matches, points0, points1 = (np.array(saved[name]) for name in ("matches", "all_keypoints0", "all_keypoints1"))
    assert len(points0) == len(points1) == 50
    np.testing.assert_allclose(points0[matches[:, 0]], saved["keypoints0"])
    np.testing.assert_allclose(points1[matches[:, 1]], saved["keypoints1"])
    assert sorted([*matches[:, 0], *saved["unmatched0"]]) == list(range(50))
    assert sorted([*matches[:, 1], *saved["unmatched1"]]) == list(range(50))
    assert len(saved["inliers"]) == len(saved["homography_inliers"]) == len(matches)


def test_a_photo_matches_itself_and_noise_matches_nothing(run, tmp_path, checkpoint, capsys):
    """The descriptors of random weights tell places apart, so a photo's points match their own; not noise's."""
    pytest.importorskip("poselib")
    generator = np.random.default_rng(1)
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for path in paths:
        Image.fromarray(generator.integers(0, 255, (96, 128), np.uint8)).save(path)
    own = json.loads(run(paths[0], paths[0], "--json", "--require-match"))
    assert own["verdict"]["answer"] == "yes"
    assert own["verdict"]["log10_false_alarms"] < -6
    np.testing.assert_allclose(own["homography"] / np.array(own["homography"])[2, 2], np.eye(3), atol=1e-2)
    assert "more than chance would give" in run(paths[0], paths[0])
    arguments = ["match", *paths, "--model", str(checkpoint), "--device", "cpu", "--json", "--require-match"]
    assert cli.main(arguments) == 1
    assert json.loads(capsys.readouterr().out)["verdict"]["answer"] != "yes"


def test_the_small_checkpoint_says_that_others_find_more(checkpoint, photos, capsys, monkeypatch):
    pytest.importorskip("poselib")
    monkeypatch.setattr(cli.models, "find_checkpoint", lambda name: checkpoint)
    assert cli.main(["match", *photos]) == 0
    assert "--model aliked, disk, xfeat or superpoint find more" in capsys.readouterr().out
    assert cli.main(["match", *photos, "--model", str(checkpoint)]) == 0
    assert "find more" not in capsys.readouterr().out


def test_former_names_of_options_still_work(run, photos):
    now = json.loads(run(*photos, "--json", "--longest-edge", 96, "--max-keypoints", 30))
    for size, keypoints in (("--size", "--num-keypoints"), ("--size", "--keypoints")):
        before = json.loads(run(*photos, "--json", size, 96, keypoints, 30))
        assert before["all_keypoints0"] == now["all_keypoints0"]


# -- drawings ---------------------------------------------------------------------------------------------------------


def test_inliers_or_the_best_alone_are_drawn(run, photos, tmp_path, monkeypatch):
    pytest.importorskip("poselib")
    drawn = []
    real = lightglue_hf.visualization.draw_matches

    def counted(image0, image1, keypoints0, keypoints1, scores, max_width):
        drawn.append(scores)
        return real(image0, image1, keypoints0, keypoints1, scores, max_width)

    monkeypatch.setattr(lightglue_hf.visualization, "draw_matches", counted)
    saved = json.loads(run(photos[0], photos[0], "--json", "-o", tmp_path / "m.png"))
    run(photos[0], photos[0], "-o", tmp_path / "m.png", "--inliers")
    run(photos[0], photos[0], "-o", tmp_path / "m.png", "--best", 3)
    assert [len(scores) for scores in drawn] == [len(saved["matches"]), sum(saved["inliers"]), 3]
    assert min(drawn[2]) >= np.sort(saved["matching_scores"])[-3] - 1e-6


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_photo_may_come_from_the_standard_input_or_a_file_url(run, photos, monkeypatch, error, checkpoint):
    expected = json.loads(run(*photos, "--json"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(photos[0]).read_bytes())))
    found = json.loads(run("-", Path(photos[1]).as_uri(), "--json"))
    assert found["matches"] == expected["matches"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no photo")))
    assert "the standard input is no photo" in error("match", "-", photos[1], "--model", checkpoint)
    assert "only one photo" in error("match", "-", "-", "--model", checkpoint)
    assert "nowhere.jpg: No such file" in error("match", "file:///nowhere.jpg", photos[1], "--model", checkpoint)


def test_an_input_is_not_overwritten(photos, error, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.match, "load_matcher", lambda *_: pytest.fail("work was done"))
    before = Path(photos[0]).read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(photos[0])
    for output in (photos[0], link):
        assert "is an input" in error("match", *photos, "-o", output, "--model", checkpoint)
    assert Path(photos[0]).read_bytes() == before


def test_a_failed_write_leaves_what_was_there(photos, error, checkpoint, tmp_path, monkeypatch):
    names = ("matches.png", "matches.json", "matches.npz")
    for name in names:
        (tmp_path / name).write_text("before")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for option, name in zip(("-o", "--save", "--save"), names):
        line = error("match", *photos, option, tmp_path / name, "--model", checkpoint, "-q")
        assert f"{tmp_path / name} cannot be written: " in line
        assert "No space left" in line
        assert (tmp_path / name).read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_names_that_are_no_text(photos, checkpoint, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    with open(name, "wb") as file:
        file.write(Path(photos[0]).read_bytes())
    arguments = [name, photos[1], "--model", checkpoint, "-o", os.fsencode(tmp_path) + b"/\xfe.png"]
    command = [sys.executable, "-m", "lightglue_hf", "match", *arguments, "--save", tmp_path / "m.json"]
    result = subprocess.run(command, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert b"160 x 120" in result.stdout
    assert os.fsencode(json.loads((tmp_path / "m.json").read_text())["images"][0]) == name
    assert b"\xfe.png" in os.listdir(os.fsencode(tmp_path))


def test_values_out_of_range_are_errors_of_the_photo(photos, error, checkpoint, tmp_path):
    Image.fromarray(np.full((40, 50), np.nan, np.float32)).save(tmp_path / "nan.tif")
    assert "nan.tif contains NaN" in error("match", photos[0], tmp_path / "nan.tif", "--model", checkpoint)


def test_match_saves_the_same_as_hdf5(run, photos, tmp_path):
    h5py = pytest.importorskip("h5py")
    run(*photos, "--save", tmp_path / "matches.npz")
    run(*photos, "--save", tmp_path / "matches.h5")
    arrays = np.load(tmp_path / "matches.npz")
    with h5py.File(tmp_path / "matches.h5") as file:
        assert set(file) == set(arrays) - {"metadata"}
        for name in file:
            np.testing.assert_array_equal(file[name][()], arrays[name])
        assert json.loads(file.attrs["metadata"]).keys() == json.loads(str(arrays["metadata"])).keys()


def test_calibrated_cameras_give_an_essential_matrix(run, photos, tmp_path):
    pytest.importorskip("poselib")
    printed = run(*photos, "--focal", "150", "140", "--save", tmp_path / "matches.npz")
    assert "inliers of an essential matrix (2 px)" in printed
    arrays = np.load(tmp_path / "matches.npz")
    assert arrays["pose_inliers"].shape == arrays["matching_scores"].shape
    assert arrays["pose_inliers"].sum() >= 5
    rays = []
    for points, focal, size in (("keypoints0", 150, (160, 120)), ("keypoints1", 140, (90, 140))):
        centred = (arrays[points] - (np.array(size) - 1) / 2) / focal
        rays.append(np.concatenate([centred, np.ones((len(centred), 1))], axis=1))
    lines = rays[0] @ arrays["essential"].T
    distances = np.abs((rays[1] * lines).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)
    assert distances[arrays["pose_inliers"]].max() < 0.1
    assert np.median(distances[arrays["pose_inliers"]]) < np.median(distances)
    singular = np.linalg.svd(arrays["essential"])[1]
    np.testing.assert_allclose(singular, [1, 1, 0], atol=1e-9)


def test_a_pose_in_words():
    from lightglue_hf.cli.match import describe_pose

    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # 90 degrees about the axis that points down
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, -turn @ [0.6, 0, 0.8]  # the second camera is right of and ahead of the first
    said = ": turned by 90.0 degrees, moved right, down and ahead as 0.60, 0.00, 0.80"
    assert describe_pose(pose).replace("-0.00", "0.00") == said
    assert describe_pose(None) == ""


def test_a_turned_photo_and_tiles(photos, tmp_path, capsys):
    """The bundled checkpoint on a picture and itself, turned; in the saved points it is as it was given."""
    from ..small_detectors import picture

    upright = Image.fromarray(picture(200, 300))
    paths = [str(tmp_path / name) for name in ("upright.png", "turned.png")]
    upright.save(paths[0])
    upright.transpose(Image.Transpose.ROTATE_90).save(paths[1])
    options = ["--device", "cpu", "--max-keypoints", "128", "--turns", "4"]
    for more in ([], ["--tiles"]):
        assert cli.main(["match", *paths, *options, *more, "--save", str(tmp_path / "m.json")]) == 0
        assert "the second photo matches best turned by 270 degrees counter-clockwise" in capsys.readouterr().out
        saved = json.loads((tmp_path / "m.json").read_text())
        assert saved["turned"] == 270
        x, y = np.array(saved["keypoints0"]).T
        back = np.stack([y, 299 - x], 1)
        assert len(x) > 50
        assert (np.abs(back - saved["keypoints1"]).max(1) < 1).mean() > 0.9
    assert cli.main(["match", *paths, "--device", "cpu", "--max-keypoints", "128", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["turned"] == 0


def test_quiet_prints_the_result_and_nothing_else(run, photos, tmp_path):
    pytest.importorskip("poselib")
    lines = run(*photos, "--quiet", "-o", tmp_path / "m.png", "--save", tmp_path / "m.json", "--turns", 2).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("the second photo matches best ")
    assert re.match(r"\d+ matches", lines[1])
    assert "fundamental matrix" in lines[2]
    assert json.loads(run(*photos, "--quiet", "--json"))["images"] == photos


def test_huge_photos_are_named_with_the_limit_and_what_to_do(error, run, photos, tmp_path, monkeypatch):
    huge = tmp_path / "huge.png"
    Image.new("L", (1200, 1000)).save(huge)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)  # of which twice as many are an error, with Pillow's words
    advice = "--max-megapixels N allows more, and --tiles searches them"
    assert f"{huge} has more than 1 megapixels: {advice}" in error("match", photos[0], huge)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(huge.read_bytes())))
    assert "error: - has more than 1 megapixels" in error("match", photos[0], "-")
    assert "has more than 1 megapixels" in error("match", photos[0], huge, "--max-megapixels", 1)
    printed = run(photos[0], huge, "--max-megapixels", 2, "--tiles")
    assert f"{huge}: 1200 x 1000" in printed
