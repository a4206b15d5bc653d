"""Scores, figures and tables of predictions made up here; no model runs."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from lightglue_hf.evaluation.comparison import Judgement, compare, judge, summarize, to_json, to_markdown
from lightglue_hf.evaluation.datasets import Dataset, Disparity, Homography, Pair, Pose, Shift
from lightglue_hf.evaluation.methods import Method, Prediction

pytest.importorskip("poselib")

GRID = np.stack(np.meshgrid(np.arange(5, 95, 10), np.arange(5, 55, 10)), axis=-1).reshape(-1, 2).astype(np.float32)
IMAGES = Image.new("L", (100, 60)), Image.new("L", (100, 60))


def prediction(points0, points1):
    """Keypoints that are matched in their order, and one in each image that is not."""
    alone = np.float32([[50, 30]])
    count = len(points0)
    return Prediction(
        np.float32(np.r_[points0, alone]),
        np.float32(np.r_[points1, alone]),
        np.stack([np.arange(count), np.arange(count)], axis=1),
        np.ones(count, np.float32),
    )


NOTHING = Prediction(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2), int), np.zeros(0))


# -- scores of a pair -------------------------------------------------------------------------------------------------


def test_judge_by_homography():
    matrix = np.array([[1.0, 0, 4], [0, 1, -2], [0, 0, 1]])
    there = GRID + np.array([4, -2])
    there[:9] += 30  # wrong
    scores = judge(Pair("", IMAGES, Homography(matrix)), prediction(GRID, there))
    assert scores["matches"] == 45
    assert scores["precision (3 px)"] == 36 / 45
    assert scores["homography error"] < 1e-3
    assert 0 < scores["matching score (3 px)"] < scores["repeatability (3 px)"] < 1
    wrong = judge(Pair("", IMAGES, Homography(np.eye(3))), prediction(GRID, GRID + np.array([4, -2])))
    assert wrong["homography error"] == pytest.approx(20**0.5, abs=1e-3)
    assert judge(Pair("", IMAGES, Homography(matrix)), NOTHING) == {
        "matches": 0,
        "precision (3 px)": 0,
        "repeatability (3 px)": 0,
        "matching score (3 px)": 0,
        "homography error": float("inf"),
    }


@pytest.mark.parametrize(("error", "share"), [(0, 1), (1.4, 1), (1.6, 0)])
def test_judge_by_shift_says_what_is_detected_again(error, share):
    here = GRID[GRID[:, 0] > 10]
    found = Prediction(here, here - np.array([3 - error, 0]), *NOTHING[2:])
    assert judge(Pair("", IMAGES, Shift(3)), found) == {"repeatability (1.5 px)": share}


def test_judge_by_disparity():
    values = np.full((60, 100), 7.0)
    values[:, 90:] = np.nan
    there = GRID - (7, 0)
    there[0] += 10
    scores = judge(Pair("", IMAGES, Disparity(values)), prediction(GRID, there))
    assert scores == {"matches": 45, "correct (3 px)": 44, "precision (3 px)": 44 / 45}


def test_judge_by_pose(monkeypatch):
    generator = np.random.default_rng(0)
    K = np.array([[100.0, 0, 50], [0, 100, 30], [0, 0, 1]])
    T = np.array([[0.96, 0, 0.28, -1], [0, 1, 0, 0.2], [-0.28, 0, 0.96, 0.1], [0, 0, 0, 1]])
    cloud = generator.uniform((-2, -1, 4), (2, 1, 8), (60, 3))
    first, second = cloud @ K.T, (cloud @ T[:3, :3].T + T[:3, 3]) @ K.T
    found = prediction(first[:, :2] / first[:, 2:], second[:, :2] / second[:, 2:])
    scores = judge(Pair("", IMAGES, Pose(K, K, T)), found)
    assert scores["matches"] == scores["correct (5e-4)"] == 60
    assert scores["epipolar precision (5e-4)"] == 1
    assert scores["pose error (poselib)"] < 0.1
    back = judge(Pair("", IMAGES, Pose(K, K, np.linalg.inv(T))), found)
    assert back["pose error (poselib)"] > 20
    assert back["correct (5e-4)"] < 60
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pose error (magsac)" not in judge(Pair("", IMAGES, Pose(K, K, T)), NOTHING)
    assert judge(Pair("", IMAGES, Pose(K, K, T)), NOTHING)["pose error (poselib)"] == float("inf")


def test_judge_without_truth_counts_inliers():
    generator = np.random.default_rng(0)
    first = generator.uniform(0, 100, (60, 2))
    second = first + np.c_[generator.uniform(1, 30, 60), np.zeros(60)]  # rows stay rows
    second[:20] = generator.uniform(0, 100, (20, 2))
    scores = judge(Pair("", IMAGES, None), prediction(first, second))
    assert scores["matches"] == 60
    assert all(38 <= score <= 46 for name, score in scores.items() if name.startswith("inliers"))
    assert {type(score) for score in scores.values()} == {int}
    assert set(judge(Pair("", IMAGES, None), NOTHING).values()) == {0}


# -- figures of a dataset ---------------------------------------------------------------------------------------------


def record(method="m", data="d", group="", **scores):
    return Judgement(data, group, "p", method, {name.replace("_", " "): score for name, score in scores.items()})


def test_counts_are_summed_shares_averaged_and_errors_cut_at_thresholds():
    (summary,) = summarize(
        [
            record(matches=3, precision=0.5, homography_error=0.5),
            record(matches=4, precision=1.0, homography_error=2.0),
            record(matches=0, precision=0.0, homography_error=float("inf")),
        ]
    )
    assert (summary.data, summary.group, summary.pairs) == ("d", "", 3)
    figures = summary.figures["m"]
    assert figures["matches"] == 7
    assert figures["precision"] == 0.5
    assert [figures[f"homography accuracy @{at} px"] for at in (1, 3, 5)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    # From (0, 0) straight to (0.5, 1/3) and (2, 2/3), then level.
    area = 0.5 / 6 + 1.5 / 2
    expected = [(0.5 / 6 + 0.5 / 3) / 1, (area + 2 / 3) / 3, (area + 2) / 5]
    assert [figures[f"homography AUC @{at} px"] for at in (1, 3, 5)] == pytest.approx(expected)
    assert len(figures) == 8


def test_pose_errors_are_cut_at_degrees():
    name = {"pose error (poselib)": 10.0}
    (summary,) = summarize([Judgement("d", "", "p", "m", name)])
    assert summary.figures["m"] == {
        "pose AUC (poselib) @5 degrees": 0,
        "pose AUC (poselib) @10 degrees": 0,
        "pose AUC (poselib) @20 degrees": pytest.approx(0.75),
    }


def test_groups_come_after_the_whole():
    summaries = summarize(
        [
            record(group="a", matches=1),
            record(group="b", matches=2),
            record(group="a", matches=4),
            record(data="other", matches=9),
        ]
    )
    found = [(s.data, s.group, s.pairs, s.figures["m"]["matches"]) for s in summaries]
    assert found == [("d", "", 3, 7), ("d", "a", 2, 5), ("d", "b", 1, 2), ("other", "", 1, 9)]


def test_markdown():
    records = [
        record(matches=3, precision=0.5),
        record("n|o", matches=12, precision=0.12345),
        record(data="e", group="g", share=1.0),
        record("n|o", data="e", group="g", share=0.0),
    ]
    assert to_markdown(summarize(records)) == (
        "| data | figure | m | n&#124;o |\n"
        "| --- | --- | ---: | ---: |\n"
        "| d (pairs: 1) | matches | 3 | 12 |\n"
        "|  | precision | 0.500 | 0.123 |\n"
        "| e (pairs: 1) | share | 1.000 | 0.000 |\n"
        "| e, g (pairs: 1) | share | 1.000 | 0.000 |\n"
    )


def test_json_has_everything_and_no_infinity():
    records = [record(matches=3, pose_error=float("inf"))]
    read = json.loads(to_json(records, {"size": 640}), parse_constant=pytest.fail)
    assert read["settings"] == {"size": 640}
    assert read["pairs"] == [
        {
            "data": "d",
            "group": "",
            "pair": "p",
            "method": "m",
            "scores": {"matches": 3, "pose error": None},
            "seconds": None,
        }
    ]
    (summary,) = read["summaries"]
    assert summary["pairs"] == 1
    assert summary["figures"]["m"]["matches"] == 3
    assert summary["figures"]["m"]["pose AUC @20 degrees"] == 0


# -- everything together ----------------------------------------------------------------------------------------------


def dataset(name="d", shifts=(3, 4)):
    return Dataset(name, shifts, lambda shift: Pair(f"by {shift}", IMAGES, Shift(shift), f"{shift} px"))


def method(name, error):
    inner = GRID[GRID[:, 0] > 10]
    return Method(name, name, lambda *_: Prediction(inner, inner - (3 + error, 0), *NOTHING[2:]))


def test_compare():
    records = compare([dataset(), dataset("e", (3,))], [method("good", 0), method("bad", 5)])
    assert [record[:4] for record in records] == [
        (data, f"{shift} px", f"by {shift}", name)
        for data, shift in (("d", 3), ("d", 4), ("e", 3))
        for name in ("good", "bad")
    ]
    assert [record.scores["repeatability (1.5 px)"] for record in records] == [1, 0, 1, 0, 1, 0]


def test_compare_reads_predictions_and_computes_scores_anew(tmp_path):
    first = compare([dataset()], [method("m", 0)], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # both pairs show the same images
    other = Method("m", "m", pytest.fail)
    assert first[0].seconds > 0
    assert compare([dataset()], [other], tmp_path) == [record._replace(seconds=None) for record in first]
    (changed,) = compare([dataset(shifts=(9,))], [other], tmp_path)  # another truth of the same prediction
    assert changed.scores["repeatability (1.5 px)"] < 0.5


def test_compare_refuses_what_would_be_mixed_up(monkeypatch):
    with pytest.raises(ValueError, match="two datasets are called d"):
        compare([dataset(), dataset()], [])
    with pytest.raises(ValueError, match="two methods are called m"):
        compare([dataset()], [method("m", 0), method("m", 1)])
    monkeypatch.setitem(sys.modules, "poselib", None)
    with pytest.raises(ImportError, match=r"install lightglue-hf\[eval\]"):
        compare([dataset()], [method("m", 0)])
