"""What stopping and pruning cost and save, measured on a small random model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import LightGlueImageProcessor
from lightglue_hf.evaluation.adaptivity import Adaptivity, judge_confidences, measure_adaptivity, roc_auc, to_markdown
from lightglue_hf.evaluation.datasets import Dataset, Homography, Pair
from lightglue_hf.evaluation.methods import seconds

from ..tiny import LAYERS, whole_model


def test_area_is_the_chance_that_a_positive_scores_higher():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, 60), rng.random(60) < 0.4
    difference = scores[labels][:, None] - scores[~labels]
    assert roc_auc(scores, labels) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())
    assert roc_auc(scores, scores > 2) == 1
    assert roc_auc(-scores, scores > 2) == 0
    assert np.isnan(roc_auc(scores, np.ones(60)))


def pairs(count: int) -> Dataset:
    noise = np.random.default_rng(0).integers(0, 256, (48, 72 + count), dtype=np.uint8)
    matrix = np.array([[1.0, 0, -4], [0, 1, 0], [0, 0, 1]])

    def load(index: int) -> Pair:
        left, right = (Image.fromarray(noise[:, start : start + 64]) for start in (index, index + 4))
        return Pair(str(index), (left, right), Homography(matrix))

    return Dataset("noise", range(count), load)


@pytest.mark.parametrize("confidences", [(0.9, 0.5), (-1, -1)])
def test_a_model_beside_itself_with_all_layers(confidences):
    model = whole_model(depth_confidence=confidences[0], width_confidence=confidences[1]).eval()
    with torch.no_grad():
        for layer in model.token_confidence:
            layer.token.bias.fill_(4.0)
    result = measure_adaptivity(model, LightGlueImageProcessor(), pairs(3), longest_edge=64)
    assert (model.config.depth_confidence, model.config.width_confidence) == confidences
    assert result.pairs == 3
    assert len(result.auc) == LAYERS - 1
    assert (result.seconds > 0).all()
    if confidences == (-1, -1):
        assert result.layers == 3 * LAYERS
        assert result.correct[0] == result.correct[1]
    else:
        assert 3 <= result.layers < 3 * LAYERS


def test_confidences_are_judged_by_the_last_layer():
    """Against the outputs of models cut off after each layer; padding is left out."""
    model = whole_model(depth_confidence=-1, width_confidence=-1).eval()
    generator = torch.Generator().manual_seed(0)
    points, mask = torch.rand(2, 2, 9, 2, generator=generator) * 50, torch.ones(2, 2, 9, dtype=torch.bool)
    mask[1, 0, 5:] = False
    descriptors = torch.randn(2, 2, 9, 16, generator=generator)
    with torch.no_grad():
        outputs = model.match_features(points, descriptors, mask, output_hidden_states=True)
        logits, right = judge_confidences(model, mask, outputs.hidden_states)
        assert logits.shape == right.shape == (LAYERS - 1, int(mask.sum()))
        assigned, confidences = [], []
        for i in range(LAYERS):
            state = outputs.hidden_states[7 * i + 4].unflatten(0, (-1, 2))
            if i + 1 < LAYERS:  # what leaves a layer enters the next
                assert torch.equal(state.flatten(0, 1), outputs.hidden_states[7 * (i + 1)])
                confidences.append(model.token_confidence[i](state)[mask])
            log_p = model.match_assignment_layers[i](state, mask)
            assigned.append(log_p.assigned()[mask])
    assert torch.equal(logits, torch.stack(confidences))
    assert torch.equal(right, torch.stack([a == assigned[-1] for a in assigned[:-1]]))
    assert right.any()
    assert not right.all()


def test_the_table_has_a_row_for_each_dataset():
    result = Adaptivity("easy", 2, [0.8, 0.75], 5, np.array([97, 100]), np.array([0.05, 0.1]))
    row = "| easy (pairs: 2) | 0.800, 0.750 | 2.50 | 97 of 100 (97.0%) | 0.50 of 50.0 ms |"
    assert to_markdown([result]).splitlines()[2] == row
    assert "nan" in to_markdown([Adaptivity("nothing")])


@pytest.mark.parametrize(("device", "waits"), [("cuda", 1), ("cpu", 0)])
def test_the_clock_waits_for_a_gpu(monkeypatch, device, waits):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    model = SimpleNamespace(device=torch.device(device))
    assert seconds(model) <= seconds(model)
    assert waited == [model.device] * 2 * waits
