"""Methods side by side on datasets: what each pair scores, the figures of each dataset, and a table of them.

The ground truth turns a prediction into scores of its pair (`judge`). Over the pairs of a dataset, counts are summed,
shares are averaged, and errors become an accuracy and an area under the curve at each threshold (`summarize`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from ..utils.errors import InputError
from .datasets import Dataset, Disparity, Homography, Pair, Pose, Shift
from .methods import Method, Prediction, cached_prediction
from .metrics import (
    Precision,
    accuracy,
    area_under_curve,
    corner_error,
    epipolar_precision,
    estimate_homography,
    estimate_relative_pose,
    estimators,
    match_precision,
    matching_score,
    relative_pose_error,
    repeatability,
    reprojection_precision,
)
from .verdict import YES, judge_against_chance

Scores = dict[str, int | float]

HOMOGRAPHY_ERROR, POSE_ERROR = "homography error", "pose error"
CURVES: dict[str, tuple[tuple[int, ...], str, dict[str, Callable[..., list[float]]]]] = {
    HOMOGRAPHY_ERROR: ((1, 3, 5), "px", {"accuracy": accuracy, "AUC": area_under_curve}),
    POSE_ERROR: ((5, 10, 20), "degrees", {"AUC": area_under_curve}),
}
"""What becomes of an error: figures at thresholds in its unit."""


class Judgement(NamedTuple):
    """What a method scores on a pair of a dataset, and the seconds it took; `None` if that was kept from before."""

    data: str
    group: str
    pair: str
    method: str
    scores: Scores
    seconds: float | None = None


class Summary(NamedTuple):
    """The figures of each method on a dataset, or on a group of its pairs."""

    data: str
    group: str
    pairs: int
    figures: dict[str, Scores]


def compare(datasets: Sequence[Dataset], methods: Sequence[Method], cache: Path | None = None) -> list[Judgement]:
    """Score every method on every pair.

    Args:
        datasets: of different names.
        methods: of different names.
        cache: a directory for predictions; see `cached_prediction`.

    Raises:
        ImportError: PoseLib is not installed.
        InputError: two datasets or methods of one name.
    """
    estimators()
    for what, things in (("datasets", datasets), ("methods", methods)):
        names = [thing.name for thing in things]  # type: ignore[attr-defined]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"two {what} are called {twice}.")
    records = []
    for dataset in datasets:
        for pair in tqdm(dataset, desc=dataset.name, disable=None):
            for method in methods:
                taken: list[float] = []
                prediction = cached_prediction(_timed(method, taken), pair.images, cache)
                scores = judge(pair, prediction)
                seconds = taken[0] if taken else None
                records.append(Judgement(dataset.name, pair.group, pair.name, method.name, scores, seconds))
    return records


def _timed(method: Method, seconds: list[float]) -> Method:
    """The same method, which notes how long it takes."""

    def predict(*images: Image) -> Prediction:
        start = time.perf_counter()
        prediction = method.predict(*images)
        seconds.append(time.perf_counter() - start)
        return prediction

    return replace(method, predict=predict)


def milliseconds(records: Iterable[Judgement]) -> dict[str, str]:
    """The median time that each method took for a pair, detection included, of those not kept from before.

    One that shares its features with a method before it (`sharing_features`) had only the rest to do.
    """
    taken: dict[str, list[float]] = {}
    for record in records:
        if record.seconds is not None:
            taken.setdefault(record.method, []).append(1e3 * record.seconds)
    return {name: f"{np.median(times):.0f}" for name, times in taken.items()}


def judge(pair: Pair, prediction: Prediction) -> Scores:
    """Score a prediction by what is known of its pair.

    Returns:
        Scores by name: whole numbers are counts, "... error" an error in the unit of `CURVES`, infinite for a failure,
        and the rest shares.
    """
    truth = pair.truth
    matched = prediction.matched
    keypoints = prediction.keypoints0, prediction.keypoints1
    sizes = [(image.height, image.width) for image in pair.images]
    if isinstance(truth, Shift):
        matrix = np.array([[1, 0, -truth.x], [0, 1, 0], [0, 0, 1]])
        return {"repeatability (1.5 px)": repeatability(*keypoints, matrix, sizes, threshold=1.5)}

    scores: Scores = {"matches": len(prediction.matches)}
    precision = judge_matches(pair, prediction)
    if isinstance(truth, Homography):
        assert precision is not None
        found, _ = estimate_homography(*matched)
        return scores | {
            "precision (3 px)": precision.precision,
            "repeatability (3 px)": repeatability(*keypoints, truth.matrix, sizes),
            "matching score (3 px)": matching_score(*keypoints, prediction.matches, truth.matrix, sizes),
            HOMOGRAPHY_ERROR: corner_error(found, truth.matrix, sizes[0]),
        }
    if isinstance(truth, Disparity):
        assert precision is not None
        return scores | {"correct (3 px)": precision.correct, "precision (3 px)": precision.precision}
    if isinstance(truth, Pose):
        assert precision is not None
        scores |= {"correct (5e-4)": precision.correct, "epipolar precision (5e-4)": precision.precision}
        for estimator in estimators():
            pose, _ = estimate_relative_pose(*matched, truth.K0, truth.K1, estimator=estimator)
            scores[f"{POSE_ERROR} ({estimator})"] = relative_pose_error(pose, truth.T_0to1)
        return scores
    for estimator in estimators():
        verdict = judge_against_chance(*matched, sizes, estimator=estimator)
        scores[f"inliers ({estimator}, 1.5 px)"] = int(verdict.inliers.sum())
        scores[f"pairs above chance ({estimator})"] = int(verdict.answer == YES)
    return scores


def judge_matches(pair: Pair, prediction: Prediction) -> Precision | None:
    """Count the correct matches of a pair, as `judge` does; None where its truth says nothing of them."""
    truth = pair.truth
    matched = prediction.matched
    if isinstance(truth, Homography):
        return reprojection_precision(*matched, truth.matrix)
    if isinstance(truth, Disparity):
        return match_precision(*matched, truth.values)
    if isinstance(truth, Pose):
        return epipolar_precision(*matched, *truth)
    return None


def summarize(records: Iterable[Judgement]) -> list[Summary]:
    """Make figures of scores, for each dataset and, where it has any, its groups."""
    gathered: dict[tuple[str, str], dict[str, list[Scores]]] = {}
    for record in records:
        for group in {"": None, record.group: None}:
            gathered.setdefault((record.data, group), {}).setdefault(record.method, []).append(record.scores)
    summaries = []
    for (data, group), by_method in gathered.items():
        pairs = len(next(iter(by_method.values())))
        summaries.append(Summary(data, group, pairs, {name: _figures(scores) for name, scores in by_method.items()}))
    return summaries


def _figures(scores: Sequence[Scores]) -> Scores:
    figures: Scores = {}
    for name in scores[0]:
        values = [score[name] for score in scores]
        error = next((error for error in CURVES if name.startswith(error)), None)
        if error is not None:
            thresholds, unit, curves = CURVES[error]
            for what, curve in curves.items():
                title = name.replace("error", what)
                figures |= {f"{title} @{at} {unit}": share for at, share in zip(thresholds, curve(values, thresholds))}
        else:
            figures[name] = sum(values) if isinstance(values[0], int) else sum(values) / len(values)
    return figures


def to_markdown(summaries: Sequence[Summary], about: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """A table: a row for each figure of each dataset, a column for each method.

    Args:
        summaries: of datasets.
        about: more rows, by what they say: for some methods a text.
    """
    methods = list(dict.fromkeys(name for summary in summaries for name in summary.figures))
    rows = [["data", "figure", *methods], ["---"] * 2 + ["---:"] * len(methods)]
    for summary in summaries:
        label = f"{summary.data}{summary.group and ', '}{summary.group} (pairs: {summary.pairs})"
        for figure in next(iter(summary.figures.values())):
            values = (summary.figures[name][figure] for name in methods)
            cells = (str(value) if isinstance(value, int) else f"{value:.3f}" for value in values)
            rows.append([label, figure, *cells])
            label = ""
    for figure, texts in (about or {}).items():
        if texts:
            rows.append(["", figure, *(texts.get(name, "") for name in methods)])
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in rows)


def to_json(records: Sequence[Judgement], settings: dict[str, Any]) -> str:
    """The settings, the figures of each dataset, and the scores of each pair; errors of failures are null."""
    pairs = []
    for record in records:
        scores = {name: value if math.isfinite(value) else None for name, value in record.scores.items()}
        pairs.append(record._asdict() | {"scores": scores})
    summaries = [summary._asdict() for summary in summarize(records)]
    return json.dumps({"settings": settings, "summaries": summaries, "pairs": pairs}, indent=1, allow_nan=False) + "\n"
