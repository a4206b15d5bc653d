"""The check of exported graphs: six kinds of error are refused, and so is nothing to compare; rounding is not.

Graphs are run in PyTorch, as they are traced: what is tested is the judgement.
"""

import numpy as np
import pytest
import torch
from torch import nn

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint, modeling_lightglue
from lightglue_hf.export import ExportError, ExportOptions
from lightglue_hf.export.check import LIMITS, check, examples_of
from lightglue_hf.export.exporter import Exportable

from ..tiny import whole_model


@pytest.fixture(scope="module")
def tiny():
    """The bundled checkpoint as it is exported, and the examples of each part."""
    model = LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny"))
    processor = LightGlueImageProcessor.from_pretrained(bundled_checkpoint("tiny"))
    source = Exportable(model, processor, ExportOptions(num_keypoints=512))
    parts = ("pipeline", "detector")
    return source, {part: examples_of(source.model, source.graph(part)) for part in parts}


def run(graph):
    @torch.no_grad()
    def in_pytorch(inputs):
        # as a graph, and in eval mode on a CPU detectors go image by image
        outputs = graph.module(*(torch.from_numpy(inputs[name]) for name in graph.inputs))
        return {name: value.numpy() for name, value in zip(graph.outputs, outputs)}

    return in_pytorch


def judged(tiny, change=lambda source: None, outputs=lambda found: found, part="pipeline"):
    """The check of a changed graph; `Exportable` makes a new one every time."""
    source, examples = tiny
    graph = source.graph(part)
    change(graph.module)
    inner = run(graph)
    return check(part, lambda inputs: outputs(inner(inputs)), examples[part], "fp32", LIMITS["fp32"])


@pytest.mark.parametrize("part", ["pipeline", "detector"])
def test_a_graph_that_is_right_passes(tiny, part):
    result = judged(tiny, part=part)
    assert result.compared > 200
    assert min(x for x in (result.keypoints, result.matches) if x is not None) > 0.99
    assert f"{part}, fp32: " in str(result)


def test_rows_exchanged(tiny):
    def exchange(found):
        return {**found, "descriptors": found["descriptors"][..., ::-1, :]}

    with pytest.raises(ExportError, match="descriptors"):
        judged(tiny, outputs=exchange, part="detector")

    def other_points(found):
        return {**found, "keypoints": np.roll(found["keypoints"], 1, 2)}

    with pytest.raises(ExportError, match="differs from PyTorch"):
        judged(tiny, outputs=other_points)


@pytest.mark.parametrize("part", ["pipeline", "detector"])
def test_axes_exchanged(tiny, part):
    with pytest.raises(ExportError):
        judged(tiny, outputs=lambda found: {**found, "keypoints": found["keypoints"][..., ::-1]}, part=part)


def test_normalisation_per_axis(tiny, monkeypatch):
    def per_axis(keypoints, mask, image_sizes):
        extent = image_sizes.flip(-1)[..., None, :].float()
        return 2 * keypoints / extent - 1

    monkeypatch.setattr(modeling_lightglue, "normalize_keypoints", per_axis)
    with pytest.raises(ExportError, match=r"median|tail|matches"):
        judged(tiny)


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_left_out(tiny, layer):
    source, _ = tiny

    class Nothing(nn.Module):
        def forward(self, hidden, *others):
            return hidden, (), ()

    layers = source.fused.transformer_layers
    kept = layers[layer]
    layers[layer] = Nothing()
    try:
        with pytest.raises(ExportError, match=r"differs from PyTorch|no match in common"):
            judged(tiny)
    finally:
        layers[layer] = kept


@pytest.mark.parametrize(("part", "name", "factor"), [("pipeline", "filter", 2), ("detector", "keypoint", 2)])
def test_a_threshold_off(tiny, monkeypatch, part, name, factor):
    config = tiny[0].fused.config
    if name == "keypoint":
        config = tiny[0].fused.keypoint_detector.config
    name = f"{name}_threshold"
    monkeypatch.setattr(config, name, factor * getattr(config, name))
    with pytest.raises(ExportError, match="limit"):
        judged(tiny, part=part)


def test_nan(tiny):
    def spoiled(found):
        scores = found["matching_scores"].copy()
        scores[0, 0, 0] = np.nan
        return {**found, "matching_scores": scores}

    with pytest.raises(ExportError, match="NaN or Inf: matching_scores"):
        judged(tiny, outputs=spoiled)


def test_nothing_to_compare_is_no_pass():
    model = whole_model(filter_threshold=2.0)
    source = Exportable(model, None, ExportOptions(parts=("matcher",)))
    graph = source.graph("matcher")
    with pytest.raises(ExportError, match="neither found any match"):
        check("matcher", run(graph), examples_of(source.model, graph), "fp32", LIMITS["fp32"])
