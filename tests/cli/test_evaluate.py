"""`lightglue-hf evaluate`."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import lightglue_hf
from lightglue_hf import cli


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
        cli.main(
            ["evaluate", *benchmark, "--model", str(checkpoint), "--device", "cpu", "--longest-edge", "96", *files]
        )
        == 0
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
    size = (checkpoint / "model.safetensors").stat().st_size / 1e6
    assert figures["weights (MB)"] == [f"{size:.1f}", "", "", ""]
    assert [bool(cell) for cell in figures["ms a pair (median)"]] == [True, False, True, True]
    assert set(figures["pairs above chance (poselib)"]) <= {"0", "1"}
    for expected in ("pose AUC (poselib) @5 degrees", "pose AUC (magsac) @20 degrees", "inliers (magsac, 1.5 px)"):
        assert expected in figures

    saved = json.loads((tmp_path / "figures.json").read_text())
    assert saved["settings"] == {
        "version": lightglue_hf.__version__,
        "model": [str(checkpoint)],
        "revision": None,
        "max_keypoints": 1024,
        "longest_edge": 96,
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
        model = ("--model", str(checkpoint), "--longest-edge", "96")
        assert cli.main(["evaluate", *benchmark, *model, *cache, *options]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "ms a pair" not in line]

    first = evaluate()
    run = []
    extract_features = LightGlueForKeypointMatching.extract_features

    def counted(*args, **kwargs):
        run.append(args)
        return extract_features(*args, **kwargs)

    monkeypatch.setattr(LightGlueForKeypointMatching, "extract_features", counted)
    assert evaluate() == first
    assert run == []
    for changed in (("--longest-edge", "104"), ("--max-keypoints", "20"), ("--threshold", "0.9")):
        run.clear()
        evaluate(*changed)
        assert run


def test_evaluate_without_opencv_leaves_its_methods_out(benchmark, checkpoint, capsys, error, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    arguments = ["evaluate", *benchmark[-3:], "--model", str(checkpoint), "--longest-edge", "96"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("RootSIFT is left out, OpenCV is not installed: install lightglue-hf[eval]")
    assert printed.err.count("\n") == 1
    assert "inliers (poselib, 1.5 px)" in printed.out
    assert "magsac" not in printed.out
    assert "install lightglue-hf[eval]" in error(*arguments, "--methods", "rootsift")


def test_evaluate_without_any_data_takes_what_scikit_image_has():
    from lightglue_hf.evaluation.datasets import BUILT_IN

    pytest.importorskip("skimage")
    parse = cli.parser().parse_args
    assert [dataset.name for dataset in cli.evaluate._datasets(parse(["evaluate"]))] == list(BUILT_IN)
    chosen = parse(["evaluate", "--data", "shift", "--data", "stereo"])
    assert [dataset.name for dataset in cli.evaluate._datasets(chosen)] == ["shift", "stereo"]
    assert (chosen.max_keypoints, chosen.longest_edge) == (1024, 640)


def test_the_commands_of_its_page_exist():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    lines = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("lightglue-hf ")]
    assert len(lines) >= 5
    for _, *arguments in lines:
        assert cli.parser().parse_args(arguments).run is cli.evaluate.run


def test_errors_of_evaluate(error, benchmark, checkpoint, photos, tmp_path):
    def failure(*arguments):
        return error("evaluate", "--model", checkpoint, *arguments)

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


def test_evaluate_needs_a_detector(error, tmp_path, photos):
    from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor

    config = LightGlueConfig(
        descriptor_dim=16, num_hidden_layers=1, num_attention_heads=2, use_keypoint_detector=False
    )
    LightGlueForKeypointMatching(config).save_pretrained(tmp_path)
    LightGlueImageProcessor().save_pretrained(tmp_path)
    line = error("evaluate", "--model", tmp_path, "--pair", *photos)
    assert "no LightGlue model with a keypoint detector" in line


def test_models_stand_side_by_side(photos, checkpoint, capsys, tmp_path, monkeypatch):
    """And of each the detector runs once for a pair, whatever the methods."""
    from lightglue_hf.modeling_lightglue import LightGlueForKeypointMatching

    pytest.importorskip("poselib")
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    (other / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n\n# other\n")
    run = []
    extract_features = LightGlueForKeypointMatching.extract_features
    monkeypatch.setattr(
        LightGlueForKeypointMatching,
        "extract_features",
        lambda self, *args, **kwargs: run.append(self) or extract_features(self, *args, **kwargs),
    )
    models = ("--model", str(checkpoint), "--model", str(other), "--methods", "model", "nearest")
    arguments = ["evaluate", *models, "--pair", *photos, "--longest-edge", "96"]
    assert cli.main([*arguments, "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [pair["method"] for pair in printed["pairs"]] == [
        checkpoint.name,
        f"{checkpoint.name}'s detector, mutual nearest",
        "other",
        "other's detector, mutual nearest",
    ]
    assert printed["pairs"][0]["scores"] == printed["pairs"][2]["scores"]
    assert len(run) == len(set(map(id, run))) == 2
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    assert "|  | licence |  |  | mine |  |" in table
    status = cli.main(["evaluate", *models[:4], "--adaptivity", "--pair", *photos])
    assert status == 2
    assert "one model alone" in capsys.readouterr().err


def test_a_broken_photo_is_an_error_of_input_and_a_fault_in_a_method_is_none(
    error, photos, checkpoint, monkeypatch, tmp_path
):
    pytest.importorskip("poselib")
    broken = tmp_path / "broken.jpg"
    broken.write_text("no photo")
    arguments = ("evaluate", "--model", str(checkpoint), "--methods", "model", "--pair", photos[0])
    assert "broken.jpg" in error(*arguments, broken)

    def fault(*_):
        raise ValueError("a fault")

    monkeypatch.setattr("lightglue_hf.evaluation.methods.extract", fault)
    with pytest.raises(ValueError, match="a fault"):
        cli.main([*arguments, photos[1]])


def test_the_names_of_datasets_are_those_that_there_are():
    from lightglue_hf.evaluation.datasets import BUILT_IN

    assert tuple(BUILT_IN) == cli.evaluate.DATA
