"""The modules that graphs are traced from compute what the model does: in PyTorch, before any export."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightglue_hf.export.check import random_features
from lightglue_hf.export.graphs import AdaptiveMatcher, Matcher, fused

from ..tiny import whole_model

# `(2, n)` bool: the points of both images that are no padding.
points = st.builds(
    lambda n, share, seed: np.random.default_rng(seed).random((2, n)) < share,
    st.integers(1, 40),
    st.sampled_from([0, 0.05, 0.5, 0.95, 1]),
    st.integers(0, 99),
)


def some_features(model, pairs, mask):
    """Pairs that share a mask."""
    features = random_features(model, pairs, mask.shape[1], 48, 64, seed=mask.shape[1])
    features["mask"] = np.broadcast_to(mask, (pairs, *mask.shape)).astype(np.int32)
    return {name: torch.from_numpy(array) for name, array in features.items()}


@torch.no_grad()
def matched(model, features):
    return model.match_features(**features)


def assert_same(found, wanted):
    expected = {name: wanted[name] for name in Matcher.outputs}
    torch.testing.assert_close(dict(zip(Matcher.outputs, found, strict=True)), expected, rtol=0, atol=1e-4)


def pruning_whole_images():
    """A model that prunes all points of images with more than ten: after its second layer, as unmatchable."""
    model = whole_model(depth_confidence=-1, pruning_min_keypoints=10)
    for layer, matchability in zip(model.match_assignment_layers, (100, -100, 100)):
        layer.matchability.bias.data.fill_(matchability)
    return model


PRUNED_IMAGES = [((20, 20), 3), ((20, 5), 3), ((5, 20), 3), ((5, 5), 4)]  # points of both images, and where it stops


@torch.no_grad()
def test_images_whose_points_are_all_pruned():
    model = pruning_whole_images()
    matcher = AdaptiveMatcher(fused(model))
    for counts, stop in PRUNED_IMAGES:
        features = some_features(model, 1, np.arange(20) < np.array(counts)[:, None])
        wanted = matched(model, features)
        assert wanted.stop == stop
        assert_same(matcher(*features.values()), wanted)


@pytest.mark.parametrize(("depth", "width", "rejection"), [(0.6, 0.4, 0), (0.7, -1, 0), (-1, 0.9, 0), (0.6, 0.4, 0.2)])
def test_adaptive_matchers_stop_and_prune_as_the_model(depth, width, rejection):
    model = whole_model(depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    for i, layer in enumerate(model.match_assignment_layers):  # so that none stands for another
        layer.final_projection.bias.data.normal_(std=0.3)
        layer.matchability.bias.data.fill_(0.5 * i - 0.5)
    matcher = AdaptiveMatcher(fused(model))
    stops, matches = set(), 0

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(points)
    @torch.no_grad()
    def same(mask):
        nonlocal matches
        features = some_features(model, 1, mask)
        wanted = matched(model, features)
        assert_same(matcher(*features.values()), wanted)
        stops.add(int(wanted.stop))
        matches += int((wanted.matches >= 0).sum())

    same()
    assert len(stops) > 1
    assert matches > 20


@torch.no_grad()
def test_adaptive_matchers_give_pairs_up_as_the_model():
    model = whole_model(rejection_threshold=0.3, depth_confidence=-1)
    matcher, stops = AdaptiveMatcher(fused(model)), set()
    for n in (2, 3, 5, 8, 13, 40):
        features = some_features(model, 1, np.ones((2, n), bool))
        wanted = matched(model, features)
        assert_same(matcher(*features.values()), wanted)
        stops.add(int(wanted.stop))
    assert {2, 4} <= stops, "some are meant to be given up, and some not"


def test_fused_layers_are_the_models():
    """Shared projections, projections of their own, grouped heads, no biases: all that the weights can be."""
    for overrides in ({}, {"num_key_value_heads": 1}, {"attention_bias": False}):
        model = whole_model(depth_confidence=-1, width_confidence=-1, **overrides)
        for shared in (False, True):
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.data.normal_(std=0.3)
            if shared and "num_key_value_heads" not in overrides:
                for layer in model.transformer_layers:
                    layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
            hidden, angles = torch.randn(4, 9, 16), torch.randn(4, 9, 4)
            mask = torch.rand(4, 9) < 0.7
            mask[2] = False  # an image of nothing but padding
            inputs = (hidden, (angles.cos(), angles.sin()), mask, False)
            with torch.no_grad():
                for ours, theirs in zip(fused(model).transformer_layers, model.transformer_layers):
                    torch.testing.assert_close(ours(*inputs)[0], theirs(*inputs)[0], rtol=1e-4, atol=1e-4)
