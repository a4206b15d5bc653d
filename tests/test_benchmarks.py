"""The benchmark counts, compares and reports rightly. How fast anything is, is not tested."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import main, run, workbench
from benchmarks.cases import (
    ALL_DATA,
    EAGER,
    EXPORT,
    QUICK,
    STOCK,
    TABLES,
    matching_entry,
    precision_rows,
    runtimes,
)
from benchmarks.competitors import (
    KORNIA,
    ONNXRUNTIME,
    OPENVINO,
    OURS,
    TRANSFORMERS,
    Contestant,
    Settings,
    kept,
    load,
    matches_of,
    our_model,
)
from benchmarks.limits import Work, detector_work, layers_run, matcher_work, measured_rates
from benchmarks.measure import Case, Entry, Pace, Row, measure, memory_job, peak_memory
from benchmarks.plain import PlainGraph
from benchmarks.report import BEGIN, END, goals, machine, markdown, plot, table_row, write_docs
from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, SuperPointConfig

pytest.importorskip("skimage")

HEIGHT, WIDTH, KEYPOINTS = 96, 128, 64
BF16, INT8 = Contestant(OPENVINO, dtype="bfloat16"), Contestant(OPENVINO, dtype="bfloat16", weights="int8")
ONCE = Pace(seconds=0, fewest=1, most=1)
RATES = {"float32": Work(1e9, 1e9), "bfloat16": Work(1e9, 1e9)}
PLAN = replace(
    QUICK,
    keypoints=(KEYPOINTS,),
    batches=(1, 3),
    batch_keypoints=KEYPOINTS,
    photos=4,
    collection_keypoints=KEYPOINTS,
    graph_keypoints=KEYPOINTS,
)


def tiny_config():
    detector = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8],
        decoder_hidden_size=16,
        descriptor_decoder_dim=32,
        keypoint_threshold=0.0,
        max_keypoints=KEYPOINTS,
        nms_radius=2,
        remove_far_borders=False,
    )
    return LightGlueConfig(detector, descriptor_dim=32, num_attention_heads=2, num_hidden_layers=5)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return workbench(PLAN, "cpu", tmp_path_factory.mktemp("bench"), tiny_config(), HEIGHT, WIDTH)


# -- arithmetic


def test_arithmetic_is_what_torch_counts():
    torch.manual_seed(0)
    model = LightGlueForKeypointMatching(tiny_config()).eval()
    model.set_attn_implementation("eager")
    model.config.depth_confidence = model.config.width_confidence = -1
    for layer in model.transformer_layers:  # one projection of queries and keys, as in published weights
        layer.cross_attention.k_proj = layer.cross_attention.q_proj
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            features = model.extract_features(torch.rand(1, 2, 3, HEIGHT, WIDTH))
        counted = detector_work(model.config.keypoint_detector_config, HEIGHT, WIDTH) * 2
        assert counter.get_total_flops() == counted.convolutions
        n0, n1 = (int(n) for n in features.mask.sum(-1)[0])
        with FlopCounterMode(display=False) as counter:
            outputs = model.match_features(features.keypoints, features.descriptors)
    counted = matcher_work(model.config, layers_run(outputs)[0])
    small = 2 * 5 * (n0 + n1) * (2 * 8) + 2 * (n0 + n1) * 32  # positions' projection and matchability, not counted
    assert counted.matmuls <= counter.get_total_flops() <= counted.matmuls + small


def test_layers_run_follow_stop_and_prune():
    prune = torch.tensor([[[1, 2, 3, 0], [1, 1, 2, 3]], [[1, 1, 1, 1], [1, 1, 0, 0]]])
    outputs = SimpleNamespace(stop=torch.tensor([3, 1]), prune=prune)
    assert layers_run(outputs) == [[(3, 4), (2, 2), (1, 1)], [(4, 2)]]


def test_rates_are_positive():
    rates = measured_rates(torch.float32, "cpu", repeats=1)
    assert rates.matmuls > 0
    assert rates.convolutions > 0
    assert Work(2.0, 3.0).seconds(Work(4.0, 2.0)) == 2.0


# -- comparison


def test_kept_is_of_the_larger_set():
    a, b, c = ((i, i, i, i) for i in range(3))
    assert kept([frozenset([a, b])], [frozenset([a, b])]) == 1
    assert kept([frozenset([a, b, c])], [frozenset([a, b])]) == 2 / 3
    assert kept([frozenset([a])], [frozenset([a, b])]) == 1 / 2
    assert kept([frozenset()], [frozenset()]) == 0  # nothing was compared
    assert kept([], [frozenset([a])]) == 0


def test_matches_are_compared_as_coordinates():
    keypoints = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]]])
    outputs = SimpleNamespace(keypoints=keypoints, matches=torch.tensor([[[1, -1], [-1, 0]]]))
    other = SimpleNamespace(keypoints=keypoints.flip(2), matches=torch.tensor([[[-1, 0], [1, -1]]]))
    assert matches_of(outputs) == matches_of(other) == [frozenset([(10000, 20000, 70000, 80000)])]


def test_a_last_bit_of_a_coordinate_makes_no_other_match():
    pixels = torch.stack(torch.meshgrid(torch.arange(640.0), torch.arange(480.0), indexing="xy"), -1).flatten(0, 1)
    keypoints = (pixels / torch.tensor([640.0, 480.0])).expand(1, 2, -1, 2)
    matches = torch.arange(len(pixels)).expand(1, 2, -1)
    (exact,) = matches_of(SimpleNamespace(keypoints=keypoints, matches=matches))
    (multiplied,) = matches_of(
        SimpleNamespace(keypoints=pixels * torch.tensor([1 / 640, 1 / 480]) + 0 * keypoints, matches=matches)
    )
    assert not torch.equal(pixels * torch.tensor([1 / 640, 1 / 480]), keypoints[0, 0])
    assert exact == multiplied
    assert len(exact) == len(pixels)


def test_a_wrong_contestant_is_measured_and_marked(bench):
    right = matching_entry(EAGER, bench.settings(KEYPOINTS), [bench.batch([(0, 1)])])
    wrong = replace(
        right,
        name="wrong",
        load=lambda: matching_entry(EAGER, bench.settings(KEYPOINTS), [bench.batch([(2, 3)])]).load(),
    )
    broken = Entry("broken", lambda: [(1.0, lambda: 1 / 0)])
    absent = replace(right, name="absent", missing=["nowhere"])
    rows = measure(Case("a", "x", [right, wrong, broken, absent]), ONCE, RATES, "cpu")
    assert [row.contestant for row in rows] == [OURS, "wrong", "broken", "absent"]
    assert rows[0].status == "ok"
    assert rows[1].status.startswith("failed: ")
    assert rows[1].kept < 0.5
    assert rows[1].seconds is not None
    assert rows[2].status == "failed: ZeroDivisionError: division by zero"
    assert rows[3].status == "not measured: nowhere not installed"


def test_transformers_is_its_own(bench):
    model = load(STOCK, bench.settings(KEYPOINTS)).model
    assert {type(m).__module__.split(".")[0] for m in (model, model.keypoint_detector)} == {"transformers"}
    assert model.config.keypoint_detector_config.max_keypoints == KEYPOINTS


def test_a_precise_contestant_has_the_keypoints_of_float32(bench):
    pixels, settings = bench.batch([(0, 1)]), bench.settings(KEYPOINTS)
    half = replace(EAGER, dtype="bfloat16")
    whole, precise, rounded = (load(c, settings).match(pixels) for c in (EAGER, replace(half, precise=True), half))
    assert torch.equal(precise.keypoints, whole.keypoints)
    assert not torch.equal(rounded.keypoints, whole.keypoints)
    assert not torch.equal(precise.matching_scores, whole.matching_scores)  # the matcher is not in float32


def test_weights_match_stop_and_prune(bench):
    """What the seeded weights are made for: without matches, stops and pruning the guards would guard little."""
    outputs = load(EAGER, bench.settings(KEYPOINTS, adaptive=True)).match(bench.batch(bench.pairs[:3]))
    assert min(len(matches) for matches in matches_of(outputs)) > 5
    assert len(set(outputs.stop.tolist())) > 1
    assert (outputs.prune.amin(-1) < outputs.stop[:, None]).any()


def test_memory_of_a_call_is_measured(bench):
    file = bench.scratch / "pixels.pt"
    torch.save(bench.batch([(0, 1)] * 8), file)
    peak = peak_memory(memory_job(EAGER, bench.settings(KEYPOINTS), file))
    assert peak is not None
    assert peak > 8 * 2 * 8 * HEIGHT * WIDTH * 4  # one map of the first layer


# -- all of it


def test_every_table_but_the_slow_ones(bench, tmp_path):
    rows = run(bench, ["a", "b", "c", "d", "e"], ONCE, RATES)
    assert {row.key for row in rows} == set("abcde")
    ours = [row for row in rows if row.contestant == OURS]
    assert len(ours) == 10
    assert [row.status for row in ours] == ["ok"] * 10
    assert all(row.share_of_limit for row in ours if row.key != "e")
    assert {row.contestant for row in rows if row.key == "a"} >= {TRANSFORMERS, KORNIA, f"{OURS}, bfloat16"}
    text = markdown(rows, "abcde", RATES, machine("cpu"), PLAN, 1.0)
    assert text.count("| lightglue_hf |") == 10
    assert all((TABLES[key][0] in text) == (key in "abcde") for key in TABLES)
    pytest.importorskip("matplotlib")
    assert plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_plain_graph_finds_the_same(bench):
    settings = bench.settings(KEYPOINTS)
    pair = bench.batch(bench.pairs[:1])
    with torch.no_grad():
        keypoints, matches = PlainGraph(our_model(settings))(pair)
    found = matches_of(SimpleNamespace(keypoints=keypoints, matches=matches))
    assert found == matches_of(load(EAGER, settings).match(pair))
    assert len(found[0]) > 5


def test_goals_of_exported_graphs():
    setting, alone = "1024 keypoints, all layers", "1024 keypoints, matcher alone"
    rows = [
        Row("g", setting, "OpenVINO", ratio=3.2),
        Row("g", setting, "OpenVINO, plain graph", ratio=2.0),
        Row("g", alone, "OpenVINO, all layers", seconds=0.2),
        Row("g", alone, "OpenVINO, adaptive, 3 of 9 layers", seconds=0.11),
        Row("g", "a graph of 1024 keypoints", EXPORT, seconds=12.0),
        *precision_rows(
            ALL_DATA, [Contestant("OpenVINO"), BF16, INT8], Counter({"OpenVINO": 100, BF16.name: 98, INT8.name: 92})
        ),
    ]
    text = "\n".join(goals(rows))
    assert "OpenVINO float32: at least 3 x transformers | 3.20 x | met |" in text
    assert "OpenVINO: at least 1.3 x the plain graph | 1.60 x | met |" in text
    assert "a third of the layers takes at most half of the matcher's time | 55% | **missed** |" in text
    assert f"{EXPORT}: less than 60 s | 12.0 s | met |" in text
    assert "bfloat16 keeps at least 97% of the correct matches | 98.0% | met |" in text
    assert "int8 keeps at least 93% of the correct matches | 92.0% | **missed** |" in text
    assert rows[-1].status.startswith("failed: 92.0%")
    assert len(goals(rows)) == 6


def test_every_contestant_of_the_exported_graphs(bench):
    """What make benchmark-export would measure, with tiny weights; in the environment of the exports alone."""
    if Contestant(OPENVINO).missing() or Contestant(ONNXRUNTIME).missing():
        pytest.skip("OpenVINO, Optimum Intel or ONNX Runtime is not installed")
    cases = list(runtimes(bench))
    assert [len(case.entries) for case in cases] == [8, 5, 3, 4, 3]
    rows = [row for case in cases[3:] for row in measure(case, ONCE, RATES, "cpu")]
    assert [row.status for row in rows] == ["ok"] * 7


def test_a_missing_package_is_said():
    assert Contestant(KORNIA).missing() in ([], ["kornia"])
    entry = matching_entry(Contestant(KORNIA), Settings("nowhere", 1), [])
    rows = measure(Case("a", "x", [replace(entry, missing=["kornia"])]), ONCE, RATES, "cpu")
    assert rows[0].status == "not measured: kornia not installed"


def test_rows_and_goals():
    row = Row("a", "1024 keypoints, all layers", OURS, rounds=3, seconds=0.5, seconds_spread=(0.4, 0.6), ratio=1.9)
    row = replace(row, ratio_spread=(1.7, 2.0), share_of_limit=0.25, kept=0.995, peak_bytes=3 * 2**20)
    assert table_row(row, "s") == (
        "| s | lightglue_hf | 500.0 ms | 400.0 ms - 600.0 ms (3) | 1.90 (1.70 - 2.00) | 25% | 99.5% | 3 MiB |  |"
    )
    assert "| float32, 1024 keypoints: at least 1.8 x transformers | 1.90 x | met |" in goals([row])
    assert any("**missed**" in line for line in goals([replace(row, ratio=1.7)]))
    assert not any("1.8 x" in line and "met" in line for line in goals([replace(row, status="failed: x")]))


def test_docs_are_renewed_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_docs(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n{END}\nafter\n"


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__main__.workbench", lambda plan, device, scratch: SimpleNamespace(device=device))
    monkeypatch.setattr("benchmarks.__main__.measured_rates", lambda dtype, device: Work(1.0, 1.0))
    monkeypatch.setitem(TABLES, "e", ("Nothing", lambda bench: [Case("e", "x", [Entry("one", lambda: [(2.0, int)])])]))
    assert main(["--quick", "--only", "e", "-o", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "performance.json").read_text())
    assert [row["contestant"] for row in results["rows"]] == ["one"]
    assert "| x | one |" in (tmp_path / "performance.md").read_text()
    with pytest.raises(SystemExit):
        main(["--only", "z"])
    assert "there is no table z" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--only", "g", "--write-docs"])  # would lose table (i) of the page
    assert "measure a,b,c,d,e,f,h or g,i" in capsys.readouterr().err
