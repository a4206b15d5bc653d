"""The restated mathematics is the reference's, and a model with a weight in the wrong place fails against it."""

import json

import numpy as np
import pytest
import torch

from lightglue_hf.convert.verification import (
    lightglue_difference,
    lightglue_probabilities,
    superpoint_difference,
    superpoint_maps,
)

from ..random_weights import random_weights
from ..reference import KINDS, load, matcher, released_names, superpoint


def source(kind):
    return random_weights(kind)


def positions(case, image, size):
    """By the rule of the reference, from its inputs."""
    keypoints = torch.from_numpy(case[f"in_keypoints{image}"][0]).double()
    relative = (keypoints - size / 2) / (size.max() / 2)
    extras = [case[f"in_{name}{image}"][0] for name in ("scales", "oris") if f"in_{name}{image}" in case]
    return torch.cat([relative, *(torch.from_numpy(extra).double()[:, None] for extra in extras)], -1)


@pytest.mark.parametrize("names", [dict, released_names])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_reference_s(kind, names):
    case = load(f"{kind}_small__none_same")
    threshold = json.loads(str(case["conf_json"]))["filter_threshold"]
    sizes = [torch.from_numpy(case[f"in_image_size{image}"][0]).double() for image in (0, 1)]
    points = torch.stack([positions(case, image, sizes[image]) for image in (0, 1)])
    descriptors = torch.stack([torch.from_numpy(case[f"in_descriptors{image}"][0]) for image in (0, 1)])
    assignment, _, _ = lightglue_probabilities(names(source(kind)), points, descriptors)[-1]
    best = assignment.max(1)
    expected = case["out_matches0"][0]
    matched = expected >= 0
    assert matched.sum() > 10
    np.testing.assert_array_equal(best.indices[matched], expected[matched])
    np.testing.assert_allclose(best.values[matched], case["out_matching_scores0"][0][matched], atol=5e-5, rtol=0)
    assert best.values[matched].min() > threshold


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_model_passes_and_every_wrong_weight_shows(kind):
    assert lightglue_difference(matcher(kind), source(kind)) < 1e-5
    for part in (
        "positional_encoder.projector.weight",
        "transformer_layers.0.self_attention.v_proj.bias",
        "transformer_layers.1.cross_attention.k_proj.weight",
        "transformer_layers.2.cross_mlp.layer_norm.bias",
        "match_assignment_layers.0.matchability.bias",
        "match_assignment_layers.1.final_projection.weight",
        "token_confidence.1.token.weight",
    ):
        model = matcher(kind)
        weight = model.get_parameter(part)
        weight.data = weight.data.flip(0) * 0.5 + 0.1
        assert lightglue_difference(model, source(kind)) > 1e-4, part


def test_the_settings_of_the_model_are_left_alone():
    model = matcher("sp", depth_confidence=0.8, width_confidence=0.7)
    lightglue_difference(model, source("sp"))
    assert (model.config.depth_confidence, model.config.width_confidence) == (0.8, 0.7)


def test_superpoint_is_the_reference_s_and_wrong_weights_show():
    tensors = random_weights("superpoint")
    case = load("superpoint__noborder")
    settings = json.loads(str(case["conf_json"]))
    image = torch.from_numpy(case["in_image"])
    if image.shape[1] == 3:
        image = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    scores = torch.nn.functional.pixel_shuffle(superpoint_maps(tensors, image)[0][:, :-1], 8)[0, 0]
    x, y = case["out_keypoints"][0].round().astype(int).T
    assert len(x) > 10
    np.testing.assert_allclose(scores[y, x], case["out_keypoint_scores"][0], atol=5e-5, rtol=0)
    assert (scores > settings["detection_threshold"]).sum() >= len(x)

    assert superpoint_difference(superpoint(), tensors) < 1e-5
    for part in ("encoder.conv_blocks.2.conv_b.weight", "descriptor_decoder.conv_descriptor_b.bias"):
        model = superpoint()
        weight = model.get_parameter(part)
        weight.data = weight.data.flip(0)
        assert superpoint_difference(model, tensors) > 1e-4, part
