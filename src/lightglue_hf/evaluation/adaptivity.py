"""What adaptive depth and width cost and save: token confidences as classifiers, matches kept, time of the matcher.

Source: Lindenberger et al., "LightGlue" (2023), sections 3.3 and 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .comparison import judge_matches
from .datasets import Dataset
from .methods import extract, seconds, to_prediction

ROUNDS = 3
"""How often a pair is matched either way, in turns; the fastest counts."""


@dataclass
class Adaptivity:
    """A model with its adaptivity beside itself without, over the pairs of a dataset.

    Args:
        data: name of the dataset.
        pairs: whose truth is known.
        auc: of each layer but the last, the area under the ROC curve of its token confidences, of all points of all
            pairs together, as a classifier of the points assigned as by the last layer; NaN if all or none are.
        layers: run with adaptivity, of all pairs together.
        correct: correct matches of all pairs, with and without adaptivity.
        seconds: that the matcher took for all pairs, with and without.
    """

    data: str
    pairs: int = 0
    auc: list[float] = field(default_factory=list)
    layers: int = 0
    correct: np.ndarray = field(default_factory=lambda: np.zeros(2, dtype=int))
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(2))


def roc_auc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative; ties count half.

    Args:
        scores: `(n,)`.
        labels: `(n,)` bool.

    Returns:
        NaN where all labels are alike.
    """
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    positive, negative = scores[labels], np.sort(scores[~labels])
    if not len(positive) or not len(negative):
        return float("nan")
    below, not_above = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negative)))


@torch.inference_mode()
def measure_adaptivity(model: Any, processor: Any, dataset: Dataset, longest_edge: int | None = None) -> Adaptivity:
    """Match every pair of which the truth is known, with the model as it is configured, and with all its layers.

    Args:
        model: `LightGlueForKeypointMatching`, with its detector.
        processor: its `LightGlueImageProcessor`.
        dataset: of pairs.
        longest_edge: resize images to so many pixels; as the processor is configured, by default.
    """
    whole = model.with_all_layers()
    result = Adaptivity(dataset.name)
    confidences, settled = [], []
    for pair in dataset:
        features = extract(model, processor, pair.images, longest_edge)
        outputs = model.match_features(features), whole.match_features(features, output_hidden_states=True)
        judged = [judge_matches(pair, to_prediction(output, pair.images)) for output in outputs]
        if judged[0] is None or judged[1] is None:
            continue
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for one, spent in zip((model, whole), times):
                start = seconds(model)
                one.match_features(features)
                spent.append(seconds(model) - start)
        result.pairs += 1
        result.layers += int(outputs[0].stop[0])
        result.correct += np.array([judged[0].correct, judged[1].correct])
        result.seconds += np.min(times, axis=1)
        scores, labels = judge_confidences(whole, features["mask"].bool(), outputs[1].hidden_states)
        confidences.append(scores)
        settled.append(labels)
    if confidences:
        pooled = (torch.cat(values, dim=1).cpu().numpy() for values in (confidences, settled))
        result.auc = [roc_auc(scores, labels) for scores, labels in zip(*pooled)]
    return result


def judge_confidences(model: Any, mask: Tensor, hidden_states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The token confidences of all layers but the last, and whether they are right.

    Args:
        model: of the states.
        mask: `(pairs, 2, n)` bool, False for padding.
        hidden_states: as the model returns them.

    Returns:
        Logits `(layers - 1, points)`, and whether each point is assigned as by the last layer, bool of that shape.
    """
    states = [state.unflatten(0, (-1, 2)) for state in hidden_states[4::7]]  # what comes out of each layer
    assigned = [layer(state, mask).assigned() for layer, state in zip(model.match_assignment_layers, states)]
    logits = [layer(state) for layer, state in zip(model.token_confidence, states)]
    right = [chosen == assigned[-1] for chosen in assigned[:-1]]
    return torch.stack(logits)[:, mask], torch.stack(right)[:, mask]


def to_markdown(results: Sequence[Adaptivity]) -> str:
    """A table, a row for each dataset."""
    rows = [
        ["data", "AUC of each layer's confidences", "layers run", "correct matches kept", "matcher's time"],
        ["---"] + ["---:"] * 4,
    ]
    for result in results:
        auc = ", ".join(f"{area:.3f}" for area in result.auc)
        kept = f"{result.correct[0]} of {result.correct[1]} ({_share(result.correct):.1%})"
        time = f"{_share(result.seconds):.2f} of {1e3 * result.seconds[1] / max(result.pairs, 1):.1f} ms"
        layers = f"{result.layers / max(result.pairs, 1):.2f}"
        rows.append([f"{result.data} (pairs: {result.pairs})", auc, layers, kept, time])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _share(both: np.ndarray) -> float:
    return float(both[0] / both[1]) if both[1] else float("nan")
