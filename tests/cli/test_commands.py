"""The command, in this process and as a program; a tiny random model stands in for a trained one."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import lightglue_hf
from lightglue_hf import cli


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A directory with a small untrained model that finds keypoints, and a processor."""
    from lightglue_hf.configuration_lightglue import LightGlueConfig
    from lightglue_hf.detectors.superpoint import SuperPointConfig
    from lightglue_hf.image_processing_lightglue import LightGlueImageProcessor
    from lightglue_hf.modeling_lightglue import LightGlueForKeypointMatching

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    detector = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8],
        decoder_hidden_size=16,
        descriptor_decoder_dim=16,
        keypoint_threshold=0.0,
        max_keypoints=64,
        initializer_range=0.2,
    )
    config = LightGlueConfig(
        keypoint_detector_config=detector,
        descriptor_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        filter_threshold=0.0,
        depth_confidence=-1,
        width_confidence=-1,
        initializer_range=0.2,
    )
    LightGlueForKeypointMatching(config).save_pretrained(directory)
    LightGlueImageProcessor(size={"height": 96, "width": 128}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two pictures with corners in them, of different sizes."""
    directory = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    paths = []
    for name, size in (("a.png", (160, 120)), ("b.jpg", (90, 140))):
        cells = Image.fromarray(generator.integers(0, 255, (9, 12, 3), np.uint8))
        paths.append(str(directory / name))
        cells.resize(size, Image.Resampling.NEAREST).save(paths[-1])
    return paths


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


def error(capsys, *arguments):
    """Run the command, which must fail as a user's error, and return the line it printed."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")
    assert "error: " in printed.err
    return printed.err


# -- match ------------------------------------------------------------------------------------------------------------


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


# -- demo -------------------------------------------------------------------------------------------------------------


def test_demo_judges_by_the_ground_truth(checkpoint, capsys, tmp_path):
    pytest.importorskip("skimage")
    path = tmp_path / "demo.png"
    arguments = ["--model", str(checkpoint), "--device", "cpu", "--max-keypoints", "50", "-o", str(path)]
    assert cli.main(["demo", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "50 and 50 keypoints" in printed
    assert re.search(r"\d+ matches are correct: .*\(precision [01]\.\d{3}\)", printed)
    assert Image.open(path).size == (2 * 741, 500)


def test_demo_without_scikit_image_says_what_to_install(capsys, monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    assert "install lightglue-hf[demo]" in error(capsys, "demo", "--model", checkpoint)


def test_demo_and_match_use_the_bundled_checkpoint_by_name(monkeypatch, photos, checkpoint, capsys):
    asked = []
    monkeypatch.setattr(cli.models, "bundled_checkpoint", lambda name: asked.append(name) or checkpoint)
    assert cli.main(["match", *photos]) == 0
    assert cli.main(["match", *photos, "--model", str(checkpoint)]) == 0
    assert asked == ["tiny"]


def test_only_demo_has_a_number_of_keypoints_of_its_own():
    parse = cli.parser().parse_args
    assert parse(["match", "a", "b"]).max_keypoints is None
    assert parse(["match", "a", "b"]).size is None
    assert parse(["demo"]).max_keypoints == 1024


# -- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(photos, tmp_path):
    """Options for one small dataset of each kind of reader."""
    pytest.importorskip("poselib")
    sequence = tmp_path / "hpatches" / "v_wall"
    sequence.mkdir(parents=True)
    for number in range(1, 7):
        Image.open(photos[0]).save(sequence / f"{number}.ppm")
        (sequence / f"H_1_{number}").write_text("1 0 0\n0 1 0\n0 0 1\n")
    K, T = "200 0 80 0 200 60 0 0 1", "1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1"
    (tmp_path / "pairs.txt").write_text(f"a.png b.jpg 0 3 {K} {K} {T}\n")
    return [
        *("--hpatches", str(sequence.parent)),
        *("--posed", str(tmp_path / "pairs.txt"), str(Path(photos[0]).parent)),
        *("--pair", *photos),
    ]


def test_evaluate_writes_what_it_prints(benchmark, checkpoint, capsys, tmp_path):
    pytest.importorskip("cv2")
    files = ("--json", str(tmp_path / "figures.json"), "--markdown", str(tmp_path / "figures.md"))
    assert (
        cli.main(["evaluate", *benchmark, "--model", str(checkpoint), "--device", "cpu", "--size", "96", *files]) == 0
    )
    table = capsys.readouterr().out
    assert (tmp_path / "figures.md").read_text() == table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    columns = [checkpoint.name, f"{checkpoint.name}'s detector, mutual nearest"]
    assert rows[0] == ["data", "figure", *columns, "RootSIFT, mutual nearest", "RootSIFT, ratio 0.8"]
    labels = [row[0] for row in rows[2:] if row[0]]
    assert labels == [
        "HPatches (pairs: 5)",
        "HPatches, viewpoint (pairs: 5)",
        "pairs.txt (pairs: 1)",
        "a.png, b.jpg (pairs: 1)",
    ]
    figures = {row[1]: row[2:] for row in reversed(rows)}  # the first of each name: of HPatches as a whole
    assert figures["repeatability (3 px)"] == ["1.000"] * 4  # each image beside itself
    assert figures["homography accuracy @1 px"][1:3] == ["1.000"] * 2
    for expected in ("pose AUC (poselib) @5 degrees", "pose AUC (magsac) @20 degrees", "inliers (magsac, 1.5 px)"):
        assert expected in figures

    saved = json.loads((tmp_path / "figures.json").read_text())
    assert saved["settings"] == {
        "version": lightglue_hf.__version__,
        "model": str(checkpoint),
        "max_keypoints": 1024,
        "size": 96,
        "threshold": None,
        "device": "cpu",
        "dtype": "float32",
    }
    assert len(saved["pairs"]) == (5 + 1 + 1) * 4
    whole = saved["summaries"][0]
    assert (whole["data"], whole["pairs"]) == ("HPatches", 5)
    assert list(whole["figures"]) == rows[0][2:]
    assert f"{whole['figures'][columns[0]]['precision (3 px)']:.3f}" == figures["precision (3 px)"][0]


def test_evaluate_does_not_run_the_model_twice(benchmark, checkpoint, capsys, tmp_path, monkeypatch):
    from lightglue_hf.modeling_lightglue import LightGlueForKeypointMatching

    def evaluate(*options):
        cache = ("--cache", str(tmp_path / "cache"), "--methods", "model", "nearest")
        status = cli.main(["evaluate", *benchmark, "--model", str(checkpoint), "--size", "96", *cache, *options])
        assert status == 0
        return capsys.readouterr().out

    first = evaluate()
    run = []
    extract_features = LightGlueForKeypointMatching.extract_features

    def counted(*args, **kwargs):
        run.append(args)
        return extract_features(*args, **kwargs)

    monkeypatch.setattr(LightGlueForKeypointMatching, "extract_features", counted)
    assert evaluate() == first
    assert run == []
    for changed in (("--size", "104"), ("--max-keypoints", "20"), ("--threshold", "0.9")):
        run.clear()
        evaluate(*changed)
        assert run


def test_evaluate_without_opencv_leaves_its_methods_out(benchmark, checkpoint, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    arguments = ["evaluate", *benchmark[-3:], "--model", str(checkpoint), "--size", "96"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == "RootSIFT is left out, for want of OpenCV: install lightglue-hf[eval]\n"
    assert "inliers (poselib, 1.5 px)" in printed.out
    assert "magsac" not in printed.out
    assert "install lightglue-hf[eval]" in error(capsys, *arguments, "--methods", "rootsift")


def test_evaluate_without_any_data_takes_what_scikit_image_has():
    from lightglue_hf.evaluation.datasets import BUILT_IN

    pytest.importorskip("skimage")
    parse = cli.parser().parse_args
    assert [dataset.name for dataset in cli.evaluate._datasets(parse(["evaluate"]))] == list(BUILT_IN)
    chosen = parse(["evaluate", "--data", "shift", "--data", "stereo"])
    assert [dataset.name for dataset in cli.evaluate._datasets(chosen)] == ["shift", "stereo"]
    assert (chosen.max_keypoints, chosen.size) == (1024, 640)


def test_the_commands_of_its_page_exist():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    lines = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("lightglue-hf ")]
    assert len(lines) >= 5
    for _, *arguments in lines:
        assert cli.parser().parse_args(arguments).run is cli.evaluate.run


def test_errors_of_evaluate(capsys, benchmark, checkpoint, photos, tmp_path):
    def failure(*arguments):
        return error(capsys, "evaluate", "--model", checkpoint, *arguments)

    assert "'nothing'" in failure("--data", "nothing")
    assert "'magic'" in failure("--methods", "magic")
    assert "must end in .json" in failure("--json", "figures.md")
    assert "must end in .md" in failure("--markdown", "figures.json")
    assert "nowhere: No such file" in failure("--hpatches", tmp_path / "nowhere")
    assert "no sequences of HPatches" in failure("--hpatches", tmp_path)
    assert "nowhere.jpg: No such file" in failure("--pair", photos[0], tmp_path / "nowhere.jpg")
    assert "nowhere.txt: No such file" in failure("--posed", tmp_path / "nowhere.txt", tmp_path)
    assert "a.png: No such file" in failure("--posed", tmp_path / "pairs.txt", tmp_path)
    (tmp_path / "wrong.txt").write_text("a.png b.jpg\n")
    assert "wrong.txt, line 1: 2 fields instead of 38" in failure("--posed", tmp_path / "wrong.txt", tmp_path)
    (tmp_path / "hpatches" / "v_wall" / "H_1_2").write_text("1 0")
    assert "H_1_2 is no homography: 2 numbers" in failure("--hpatches", tmp_path / "hpatches")
    assert "two datasets are called a.png, b.jpg" in failure("--pair", *photos, "--pair", *photos)


def test_evaluate_needs_a_detector(capsys, tmp_path, photos):
    from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor

    config = LightGlueConfig(
        descriptor_dim=16, num_hidden_layers=1, num_attention_heads=2, use_keypoint_detector=False
    )
    LightGlueForKeypointMatching(config).save_pretrained(tmp_path)
    LightGlueImageProcessor().save_pretrained(tmp_path)
    line = error(capsys, "evaluate", "--model", tmp_path, "--pair", *photos)
    assert "no LightGlue model with a keypoint detector" in line


# -- version and help -------------------------------------------------------------------------------------------------


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


# -- errors: one line, exit status 2 ----------------------------------------------------------------------------------


def test_errors_of_photos(capsys, photos, checkpoint, tmp_path):
    model = ("--model", checkpoint)
    assert "nowhere.jpg: No such file" in error(capsys, "match", "nowhere.jpg", photos[1], *model)
    assert str(tmp_path) in error(capsys, "match", tmp_path, photos[1], *model)
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    assert str(text) in error(capsys, "match", photos[0], text, *model)
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(Path(photos[1]).read_bytes()[:-500])
    assert str(truncated) in error(capsys, "match", photos[0], truncated, *model)


def test_errors_of_models(capsys, photos, checkpoint, tmp_path):
    def copy(name):
        directory = tmp_path / name
        directory.mkdir()
        for file in checkpoint.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        return directory, directory / "model.safetensors"

    assert "no directory with a model" in error(capsys, "match", *photos, "--model", tmp_path / "nowhere")
    assert "no directory with a model" in error(capsys, "match", *photos, "--model", photos[0])
    assert "there is no config.json" in error(capsys, "match", *photos, "--model", tmp_path)
    assert "some/model from the Hub" in error(capsys, "match", *photos, "--model", "some/model")  # offline

    directory, weights = copy("truncated")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"cannot load the model {directory}" in error(capsys, "match", *photos, "--model", directory)

    directory, weights = copy("pickled")
    weights.rename(directory / "pytorch_model.bin")
    assert "safetensors" in error(capsys, "match", *photos, "--model", directory)

    directory, weights = copy("missing")
    state = load_file(weights)
    del state["positional_encoder.projector.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    line = error(capsys, "match", *photos, "--model", directory)
    assert "1 missing keys, positional_encoder.projector.weight first" in line

    directory, weights = copy("unexpected")
    state = load_file(weights)
    state["stranger"] = state["positional_encoder.projector.weight"].clone()
    save_file(state, weights, metadata={"format": "pt"})
    assert "1 unexpected keys, stranger first" in error(capsys, "match", *photos, "--model", directory)

    directory, _ = copy("broken")
    (directory / "config.json").write_text("{")
    assert f"cannot load the model {directory}" in error(capsys, "match", *photos, "--model", directory)


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
def test_errors_of_options(capsys, photos, checkpoint, arguments, expected):
    assert expected in error(capsys, "match", *photos, "--model", checkpoint, *arguments)


def test_errors_of_commands(capsys, photos):
    assert "COMMAND" in error(capsys)
    assert "dance" in error(capsys, "dance")
    assert "PHOTO" in error(capsys, "match", photos[0])


def test_a_fault_of_the_program_is_not_hidden(monkeypatch, photos, checkpoint):
    def fault(*_):
        raise TypeError("a fault")

    monkeypatch.setattr(cli.match, "match_pair", fault)
    with pytest.raises(TypeError, match="a fault"):
        cli.main(["match", *photos, "--model", str(checkpoint)])


# -- as a program -----------------------------------------------------------------------------------------------------


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


def test_show_data_draws_each_pair_in_a_row(tmp_path, capsys):
    options = ["--height", "48", "--width", "64", "--seed", "3", "--multi-plane", "1"]
    assert cli.main(["show-data", "-o", str(tmp_path / "grid.png"), "--pairs", "2", *options]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'grid.png'}\n"
    picture = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert picture.shape == (2 * 2 * 48, 4 * 2 * 64, 3)
    assert not np.array_equal(picture[:96], picture[96:])
    colours = np.abs(picture - picture.mean(-1, keepdims=True)).max(-1) > 20
    assert 0.005 < colours[:, :256].mean() < 0.5, "matches and keypoints on the views"
    assert colours[:, 256:].mean() > 0.05, "layers of several planes"


@pytest.mark.parametrize(
    ("option", "value"), [("--pairs", "0"), ("--multi-plane", "1.5"), ("--height", "20"), ("--output", "grid.txt")]
)
def test_show_data_names_a_bad_option(capsys, option, value):
    message = error(capsys, "show-data", option, value)
    assert option in message
    assert value in message
