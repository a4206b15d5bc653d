"""Invariants of the matcher: a batch equals its singles, a swap gives the inverse, padding never matches."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForKeypointDetection, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from lightglue_hf import (
    LightGlueConfig,
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
    SuperPointConfig,
    modeling_lightglue,
)
from lightglue_hf.modeling_lightglue import (
    IGNORED,
    UNMATCHED,
    Assignment,
    LightGlueMatchAssignmentLayer,
    LightGlueMLP,
    normalize_keypoints,
)

from .reference import features_of_case, matcher

# depth_confidence, width_confidence, rejection_threshold
SETTINGS = [*itertools.product((0.95, -1), (0.99, 0.5, -1), (0,)), (-1, 0.5, 0.25), (-1, -1, 0.25)]


def pairs_of_different_kinds(kind="sp"):
    """Six pairs of 0 to 60 points: easy ones that stop early, hard ones, and empty ones."""
    features = features_of_case(f"{kind}_small__both")
    n = features["mask"].shape[-1]
    features["mask"] = features["mask"].int()
    rows = []
    generator = torch.Generator().manual_seed(1)
    for row in range(6):
        pair = {name: value[0].clone() for name, value in features.items()}
        if row in (1, 4):  # other descriptors: nothing is easy
            noise = torch.randn(pair["descriptors"].shape, generator=generator)
            pair["descriptors"] = nn.functional.normalize(pair["descriptors"] + (0.1 + 0.2 * row) * noise, dim=-1)
        if row == 2:
            pair["mask"][0] = 0
        if row == 3:
            pair["mask"][:, 20:] = 0
        if row == 5:
            pair["mask"][1, torch.randperm(n, generator=generator)[:40]] = 0
        rows.append(pair)
    return {name: torch.stack([pair[name] for pair in rows]) for name in rows[0]}


def single(features, row):
    """The pair alone, without padding where both images allow."""
    pair = {name: value[row : row + 1] for name, value in features.items()}
    n = int(pair["mask"].nonzero()[:, -1].max()) + 1 if pair["mask"].any() else 0
    return {name: value if name == "image_sizes" else value[:, :, :n] for name, value in pair.items()}, n


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_a_batch_equals_its_singles(depth, width, rejection):
    model = matcher("sp", depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    features = pairs_of_different_kinds()
    batch = model.match_features(**features)
    for row in range(6):
        pair, n = single(features, row)
        alone = model.match_features(**pair)
        valid = pair["mask"][0].bool()
        assert batch.stop[row] == alone.stop[0]
        assert torch.equal(batch.matches[row, :, :n][valid], alone.matches[0][valid])
        assert torch.equal(batch.prune[row, :, :n][valid], alone.prune[0][valid])
        torch.testing.assert_close(batch.matching_scores[row, :, :n], alone.matching_scores[0], atol=1e-5, rtol=1e-4)
    if depth > 0:
        assert len(set(batch.stop.tolist())) >= 3, "the pairs are meant to stop at different layers"
    if width == 0.5:
        assert len(batch.prune.unique()) >= 3, "the points are meant to be pruned at different layers"


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_order_of_pairs_and_position_of_padding_do_not_matter(depth, width, rejection):
    model = matcher("sp", depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    features = pairs_of_different_kinds()
    expected = model.match_features(**features)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = model.match_features(**{name: value[order] for name, value in features.items()})
    assert torch.equal(permuted.matches, expected.matches[order])
    assert torch.equal(permuted.stop, expected.stop[order])
    # the points of both images in another order, padding among them
    n = features["mask"].shape[-1]
    shuffle = torch.randperm(n)
    shuffled = {k: v if k == "image_sizes" else v[:, :, shuffle] for k, v in features.items()}
    outputs = model.match_features(**shuffled)
    back = torch.where(outputs.matches >= 0, shuffle[outputs.matches.clamp(min=0)], -1)
    assert torch.equal(back, expected.matches[:, :, shuffle])
    assert torch.equal(outputs.prune, expected.prune[:, :, shuffle])


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_swapped_images_give_the_inverse(depth, width, rejection):
    model = matcher("sp", depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    features = pairs_of_different_kinds()
    forward = model.match_features(**features)
    swapped = model.match_features(**{name: value.flip(1) for name, value in features.items()})
    assert torch.equal(swapped.matches.flip(1), forward.matches)
    assert torch.equal(swapped.stop, forward.stop)
    matches0, matches1 = forward.matches.unbind(1)
    rows, columns = (matches0 >= 0).nonzero(as_tuple=True)
    assert torch.equal(matches1[rows, matches0[rows, columns]], columns)


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@pytest.mark.parametrize("filter_threshold", [0.1, -1])
@torch.no_grad()
def test_padding_never_matches(depth, width, rejection, filter_threshold):
    model = matcher(
        "sp",
        depth_confidence=depth,
        width_confidence=width,
        rejection_threshold=rejection,
        filter_threshold=filter_threshold,
    )
    features = pairs_of_different_kinds()
    features["keypoints"][features["mask"] == 0] = 1e6  # what lies in the padding is of no interest
    outputs = model.match_features(**features)
    padding = features["mask"] == 0
    assert (outputs.matches[padding] == -1).all()
    assert (outputs.matching_scores[padding] == 0).all()
    assert (outputs.prune[padding] == 0).all()
    partner_mask = features["mask"].flip(1).gather(2, outputs.matches.clamp(min=0))
    assert (partner_mask[outputs.matches >= 0] == 1).all()
    expected = matcher(
        "sp",
        depth_confidence=depth,
        width_confidence=width,
        rejection_threshold=rejection,
        filter_threshold=filter_threshold,
    ).match_features(**pairs_of_different_kinds())
    assert torch.equal(outputs.matches, expected.matches)


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@pytest.mark.parametrize(("batch", "n"), [(1, 7), (3, 5), (2, 0), (0, 4)])
@torch.no_grad()
def test_all_settings_give_the_same_shapes_and_types(depth, width, rejection, batch, n):
    model = matcher("sp", depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    outputs = model.match_features(
        torch.rand(batch, 2, n, 2) * 100,
        torch.rand(batch, 2, n, 64),
        image_sizes=torch.full((batch, 2, 2), 100),
    )
    assert outputs.matches.shape == outputs.prune.shape == outputs.mask.shape == (batch, 2, n)
    assert outputs.matching_scores.shape == (batch, 2, n)
    assert outputs.keypoints.shape == (batch, 2, n, 2)
    assert outputs.stop.shape == (batch,)
    assert outputs.matches.dtype == outputs.prune.dtype == outputs.stop.dtype == torch.int64
    assert outputs.mask.dtype == torch.int32


@torch.no_grad()
def test_pairs_of_which_little_matches_are_given_up():
    features = pairs_of_different_kinds()
    plain = matcher("sp", depth_confidence=-1, width_confidence=-1)
    shares = torch.zeros(6)
    empty = ~features["mask"].any(-1).all(-1)
    for row in range(6):
        pair, _ = single(features, row)
        if pair["mask"].any(-1).all():
            states = plain.match_features(**pair, output_hidden_states=True).hidden_states
            assignment = plain.match_assignment_layers[1](states[7 + 4][None], pair["mask"].bool())
            matches, _ = assignment.matches(plain.config.filter_threshold)
            shares[row] = (matches[0, 0] >= 0).sum() / pair["mask"][0].sum(-1).min()
    expected = plain.match_features(**features)
    for threshold in shares.unique().tolist():
        threshold = min(1.0, threshold + 1e-3)
        outputs = matcher(
            "sp", depth_confidence=-1, width_confidence=-1, rejection_threshold=threshold
        ).match_features(**features)
        rejected = shares < threshold
        assert torch.equal(outputs.stop, torch.where(empty, 1, torch.where(rejected, 2, 4)))
        assert (outputs.matches[rejected] == -1).all()
        assert (outputs.matching_scores[rejected] == 0).all()
        assert torch.equal(outputs.matches[~rejected], expected.matches[~rejected])
    assert len(shares.unique()) >= 4, "of the pairs different shares are meant to match"


@torch.no_grad()
def test_thresholds_are_read_at_call_time():
    model = matcher("sp")
    features = features_of_case("sp_small__both")
    adaptive = model.match_features(**features)
    model.config.depth_confidence = model.config.width_confidence = -1
    full = model.match_features(**features)
    assert adaptive.stop[0] == 2
    assert full.stop[0] == 4
    model.config.filter_threshold = 1.0
    assert (model.match_features(**features).matches == -1).all()


@torch.no_grad()
def test_pruning_can_be_left_out_for_small_counts():
    features = pairs_of_different_kinds()
    counts = features["mask"].sum(-1)
    smallest, largest = counts[counts > 0].min(), counts.max()
    model = matcher("sp", depth_confidence=-1, width_confidence=0.5)
    always = model.match_features(**features)
    model.config.pruning_min_keypoints = int(largest)
    never = model.match_features(**features)
    assert never.prune.max() == 1
    model.config.pruning_min_keypoints = int(smallest)
    some = model.match_features(**features)
    assert (some.prune[counts == smallest] <= 1).all()
    assert some.prune.max() > 1
    assert always.prune[counts == smallest].max() > 1


@given(
    shift=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    factor=st.floats(0.5, 4),
)
@settings(max_examples=20, deadline=None)
def test_normalised_keypoints_do_not_depend_on_resolution(shift, factor):
    keypoints = torch.rand(1, 2, 9, 2) * torch.tensor([640, 480])
    sizes = torch.tensor([[[480, 640], [480, 640]]]).float()
    a = normalize_keypoints(keypoints, None, sizes)
    torch.testing.assert_close(normalize_keypoints(keypoints * factor, None, sizes * factor), a, atol=1e-4, rtol=1e-4)
    moved = normalize_keypoints(keypoints + torch.tensor(shift), None, None)
    extent = normalize_keypoints(keypoints, None, None)
    difference = moved - extent  # the extent rule is blind to nothing but a common shift
    torch.testing.assert_close(difference, difference[:, :, :1].expand_as(difference), atol=1e-4, rtol=0)


@torch.no_grad()
def test_features_are_the_forward_pass_in_two():
    model = LightGlueForKeypointMatching(
        LightGlueConfig(
            keypoint_detector_config=SuperPointConfig(
                encoder_hidden_sizes=[8, 8, 8, 8], descriptor_decoder_dim=16, keypoint_threshold=0.0, max_keypoints=40
            ),
            descriptor_dim=32,
            num_hidden_layers=3,
        )
    ).eval()
    photos = torch.rand(3, 3, 48, 64)
    pairs = torch.tensor([[0, 1], [1, 2], [2, 2]])
    features = model.extract_features(photos)
    two_steps = model.match_features(
        features.keypoints[pairs], features.descriptors[pairs], features.mask[pairs], features.image_sizes[pairs]
    )
    one_step = model(photos[pairs])
    assert torch.equal(one_step.matches, two_steps.matches)
    torch.testing.assert_close(one_step.keypoints, two_steps.keypoints)
    by_keyword = model(
        keypoints=features.keypoints[pairs],
        descriptors=features.descriptors[pairs],
        mask=features.mask[pairs],
        image_sizes=features.image_sizes[pairs],
        return_dict=False,
    )
    assert torch.equal(by_keyword[0], one_step.matches)


class GridConfig(PretrainedConfig):
    model_type = "grid_detector"
    descriptor_decoder_dim = 16


class GridDetector(PreTrainedModel):
    """A detector of nobody's: a point every 8 pixels, described by its surroundings."""

    config_class = GridConfig

    def __init__(self, config):
        super().__init__(config)
        self.describe = nn.Conv2d(3, 16, 8, stride=8)
        self.post_init()

    def forward(self, pixel_values, return_dict=True):
        descriptors = self.describe(pixel_values).flatten(2).transpose(1, 2)
        batch, n = descriptors.shape[:2]
        rows, columns = (length // 8 for length in pixel_values.shape[-2:])
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        keypoints = torch.stack([x / columns, y / rows], -1).view(1, n, 2).expand(batch, -1, -1)
        scores = torch.ones(batch, n)
        outputs = (keypoints, scores, descriptors, scores.int())
        return outputs if not return_dict else ModelOutput(keypoints=keypoints)


@torch.no_grad()
def test_any_registered_detector_serves_and_padding_is_dropped_from_it():
    from transformers import AutoConfig

    AutoConfig.register("grid_detector", GridConfig, exist_ok=True)
    AutoModelForKeypointDetection.register(GridConfig, GridDetector, exist_ok=True)
    config = LightGlueConfig(GridConfig(), descriptor_dim=16, num_hidden_layers=2)
    model = LightGlueForKeypointMatching(config).eval()
    sizes = torch.tensor([[[32, 48], [64, 64]]])
    outputs = model(torch.rand(1, 2, 3, 64, 64), image_sizes=sizes)
    assert outputs.mask.sum(-1).tolist() == [[4 * 6, 64]]
    assert (outputs.keypoints[outputs.mask == 1] < 1).all()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("keypoints", torch.rand(1, 2, 5, 3)),
        ("keypoints", torch.full((1, 2, 5, 2), torch.nan)),
        ("descriptors", torch.rand(1, 2, 5, 63)),
        ("descriptors", torch.full((1, 2, 5, 64), torch.inf)),
        ("mask", torch.ones(1, 2, 4)),
        ("image_sizes", torch.ones(1, 2)),
        ("scales", torch.ones(1, 2, 5)),
        ("orientations", torch.ones(1, 2, 5)),
        ("labels", torch.ones(1, 2, 4)),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    features = {"keypoints": torch.rand(1, 2, 5, 2), "descriptors": torch.rand(1, 2, 5, 64)}
    with pytest.raises(ValueError, match=argument):
        matcher("sp").match_features(**{**features, argument: value})


def test_sift_needs_scales_and_orientations():
    with pytest.raises(ValueError, match="scales"):
        matcher("sift").match_features(torch.rand(1, 2, 5, 2), torch.rand(1, 2, 5, 32))


def test_scales_and_orientations_tell_points_apart_that_nothing_else_does():
    """In float64 the loss falls clearly below what can be had without them.

    All points lie at one place and but the first have one descriptor; they attend to the first by the rotation of
    their scale and orientation. A twin that gets the same of both for all points cannot tell the others apart,
    whatever its weights: each is matched to one of n - 1 at best, and the loss is no less than (n - 1) / n ln(n - 1).
    """
    n = 6
    config = LightGlueConfig(
        descriptor_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        input_dim=8,
        add_scale_ori=True,
        use_keypoint_detector=False,
        initializer_range=0.2,
    )
    descriptors = torch.randn(8).repeat(1, 2, n, 1)
    descriptors[:, :, 0] = torch.randn(8)
    features = {
        "keypoints": torch.full((1, 2, n, 2), 20.0),
        "descriptors": descriptors,
        "image_sizes": torch.tensor([[[40, 40], [40, 40]]]),
        "labels": torch.arange(n).expand(1, 2, n),
    }
    turned = {
        "scales": torch.linspace(0, 2, n).expand(1, 2, n),
        "orientations": torch.linspace(-1, 1, n).expand(1, 2, n),
    }

    def trained(extra):
        model = LightGlueForKeypointMatching(config).double().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(250):
            loss = model(**features, **extra).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return min(losses)

    least = (n - 1) / n * math.log(n - 1)
    assert trained({name: torch.ones(1, 2, n) for name in turned}) >= least - 1e-4
    assert trained(turned) < least / 2
    for missing in turned:
        with pytest.raises(ValueError, match=rf"{missing} .* is required"):
            LightGlueForKeypointMatching(config)(**features, **{k: v for k, v in turned.items() if k != missing})


def test_pixels_are_checked_and_a_matcher_alone_refuses_them():
    model = LightGlueForKeypointMatching(LightGlueConfig(descriptor_dim=32, num_hidden_layers=1)).eval()
    with pytest.raises(ValueError, match="pixel_values contains NaN"):
        model(torch.full((1, 2, 3, 16, 16), torch.nan))
    with pytest.raises(ValueError, match='pixel_values must be a tensor, got ndarray: pass return_tensors="pt"'):
        model(**LightGlueImageProcessor()([np.zeros((16, 16), np.uint8)] * 2))
    with pytest.raises(ValueError, match="image_sizes must be integers"):
        model(torch.rand(1, 2, 3, 16, 16), image_sizes=torch.full((1, 2, 2), 16.0))
    with pytest.raises(ValueError, match=r"image_sizes .* must lie between"):
        model(torch.rand(1, 2, 3, 16, 16), image_sizes=torch.full((1, 2, 2), 17))
    with pytest.raises(ValueError, match=r"pixel_values must be \(batch, 2"):
        model(torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match="either pixel_values, or keypoints"):
        model()
    with pytest.raises(ValueError, match="no keypoint detector"):
        matcher("sp")(torch.rand(1, 2, 3, 16, 16))


OF_FEATURES = {name: torch.ones(1) for name in ("keypoints", "descriptors", "mask", "scales", "orientations")}


@pytest.mark.parametrize("name", OF_FEATURES)
def test_an_argument_of_features_is_not_ignored_beside_pixels(name):
    with pytest.raises(ValueError, match=f"either pixel_values, .*: {name} cannot be given with pixel_values"):
        matcher("sp")(torch.rand(1, 2, 3, 16, 16), **{name: OF_FEATURES[name]})


def test_a_region_is_not_ignored_beside_features():
    given = {name: OF_FEATURES[name] for name in ("keypoints", "descriptors")}
    with pytest.raises(ValueError, match="region cannot be given with keypoints and descriptors"):
        matcher("sp")(**given, region=torch.ones(1))


@torch.no_grad()
def test_hidden_states_and_attentions_keep_the_contract():
    model = matcher("sp", depth_confidence=-1, width_confidence=-1)
    features = features_of_case("sp_small__none_b2")
    n = features["mask"].shape[-1]
    outputs = model.match_features(**features, output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in outputs.hidden_states[:7]] == [(4, n, 64 * wide) for wide in (1, 1, 2, 1, 1, 2, 1)]
    assert len(outputs.hidden_states) == 7 * 4
    assert [a.shape for a in outputs.attentions] == [(4, 4, n, n)] * 8
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(4, 4, n))
    assert torch.equal(outputs.hidden_states[4], outputs.hidden_states[7])
    plain = model.match_features(**features)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert torch.equal(plain.matches, outputs.matches)


# -- static mode


def static_model(n=24):
    detector = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8], descriptor_decoder_dim=16, keypoint_threshold=0.0, max_keypoints=n
    )
    config = LightGlueConfig(
        detector,
        descriptor_dim=32,
        num_hidden_layers=3,
        depth_confidence=-1,
        width_confidence=0,
        initializer_range=0.3,
    )
    return LightGlueForKeypointMatching(config).eval()


@torch.no_grad()
def test_static_shapes_are_fixed_whatever_is_found():
    model = static_model(n=4000)
    outputs = model(torch.rand(1, 2, 3, 32, 48))
    assert outputs.matches.shape == (1, 2, 4000)
    assert 0 < outputs.mask.sum() < 8000


@torch.no_grad()
def test_static_mode_compiles_into_one_graph():
    model = static_model()
    pixel_values = torch.rand(2, 2, 3, 32, 48)
    expected = model(pixel_values)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(pixel_values)
    assert torch.equal(compiled.matches, expected.matches)
    torch.testing.assert_close(compiled.matching_scores, expected.matching_scores)


@torch.no_grad()
def test_static_mode_exports_with_dynamic_batch():
    model = static_model()
    pixel_values = torch.rand(2, 2, 3, 32, 48)
    exported = torch.export.export(
        model, (pixel_values,), dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=16)}}
    )
    for batch in (2, 3):
        pixel_values = torch.rand(batch, 2, 3, 32, 48)
        assert torch.equal(exported.module()(pixel_values).matches, model(pixel_values).matches)


# -- attention


def varlen_attention(module, query, key, value, attention_mask, cu_seq_lens_q=None, cu_seq_lens_k=None, **kwargs):
    """What a flash attention kernel for packed sequences computes, `(1, heads, total, head_dim)`."""
    assert attention_mask is None
    assert not module.is_causal
    if cu_seq_lens_q is None:
        out = nn.functional.scaled_dot_product_attention(query, key, value, scale=kwargs["scaling"])
        return out.transpose(1, 2), None
    assert query.shape[0] == 1
    assert query.shape[2] == cu_seq_lens_q[-1]
    assert kwargs["max_length_q"] == cu_seq_lens_q.diff().max()
    output = torch.zeros_like(query)
    bounds = zip(cu_seq_lens_q.unfold(0, 2, 1).tolist(), cu_seq_lens_k.unfold(0, 2, 1).tolist(), strict=True)
    for (q0, q1), (k0, k1) in bounds:
        if q1 > q0 and k1 > k0:
            output[:, :, q0:q1] = nn.functional.scaled_dot_product_attention(
                query[:, :, q0:q1], key[:, :, k0:k1], value[:, :, k0:k1], scale=kwargs["scaling"]
            )
    return output.transpose(1, 2), None


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_flash_attention_packs_what_is_padded(depth, width, rejection, monkeypatch):
    model = matcher("sp", depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    features = pairs_of_different_kinds()
    expected = model.match_features(**features)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", varlen_attention)
    model.config._attn_implementation_internal = "flash_attention_2"
    outputs = model.match_features(**features)
    assert torch.equal(outputs.matches, expected.matches)
    assert torch.equal(outputs.stop, expected.stop)
    torch.testing.assert_close(outputs.matching_scores, expected.matching_scores, atol=1e-5, rtol=1e-4)


def test_flex_attention_refuses_padding_on_a_cpu():
    model = matcher("sp", attn_implementation="flex_attention")
    with pytest.raises(ValueError, match="flex_attention"):
        model.match_features(**pairs_of_different_kinds())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_grouped_query_attention(implementation):
    config = LightGlueConfig(
        descriptor_dim=32,
        num_key_value_heads=2,
        num_hidden_layers=2,
        input_dim=32,
        use_keypoint_detector=False,
        attn_implementation=implementation,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    grouped = LightGlueForKeypointMatching(config).eval()
    full_config = LightGlueConfig(**{**config.to_dict(), "num_key_value_heads": 4, "keypoint_detector_config": None})
    full = LightGlueForKeypointMatching(full_config).eval()
    weights = grouped.state_dict()
    for name, value in weights.items():
        if "k_proj" in name or "v_proj" in name:  # each group's head for both of its queries
            weights[name] = value.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(weights)
    keypoints, descriptors = torch.rand(2, 2, 9, 2), torch.randn(2, 2, 9, 32)
    a, b = (m.match_features(keypoints, descriptors).matching_scores for m in (grouped, full))
    torch.testing.assert_close(a, b)


# -- precision


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 8e-2)])
@torch.no_grad()
def test_half_precision_keeps_coordinates_and_most_matches(dtype, tolerance):
    model = matcher("sp", depth_confidence=-1, width_confidence=-1)
    features = features_of_case("sp_small__none_b2")
    features["keypoints"] = features["keypoints"] + 1000.3  # beyond what bfloat16 counts
    features["image_sizes"] = torch.full((2, 2, 2), 2000)
    expected = model.match_features(**features)
    outputs = model.to(dtype).match_features(**features)
    assert outputs.keypoints.dtype == torch.float32
    torch.testing.assert_close(outputs.keypoints, expected.keypoints)
    assert outputs.matching_scores.dtype == dtype
    agree = (outputs.matches == expected.matches).float().mean()
    assert agree > 0.9
    error = (outputs.matching_scores.float() - expected.matching_scores).abs()[outputs.matches == expected.matches]
    assert error.mean() < tolerance


# -- assignment


@settings(deadline=None, max_examples=60)
@given(
    n=st.sampled_from([0, 1, 2, 7, 60]),
    pairs=st.integers(0, 3),
    padding=st.sampled_from([None, 0.0, 0.3, 1.0]),
    copies=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    threshold=st.sampled_from([-1.0, 0.0, 0.1]),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_an_assignment_is_two_softmaxes_and_two_matchabilities(n, pairs, padding, copies, dtype, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    projected = torch.randn(pairs, 2, n, 16, generator=generator).to(dtype)
    projected[:, 1] = projected[:, 0] + projected[:, 1] / 4  # partners
    matchability = torch.randn(pairs, 2, n, 1, generator=generator).to(dtype)
    if copies and n:
        twins = torch.arange(n) // 2 * 2
        projected, matchability = projected[:, :, twins], matchability[:, :, twins]
    mask = None if padding is None else torch.rand(pairs, 2, n, generator=generator) >= padding
    if mask is not None and pairs > 1:
        mask[0, 1] = False  # an empty image
    inputs = projected.clone(), matchability.clone()
    assignment = Assignment.from_projections(projected, matchability, mask)
    assert torch.equal(projected, inputs[0])
    assert torch.equal(matchability, inputs[1])
    exists = torch.ones(pairs, 2, n, dtype=torch.bool) if mask is None else mask
    for pair in range(pairs):
        rows, columns = exists[pair]
        points0, points1 = projected[pair, 0][rows].double(), projected[pair, 1][columns].double()
        similarity = points0 @ points1.T / 4  # the square root of 16
        z0, z1 = matchability[pair, 0][rows].double(), matchability[pair, 1][columns].double()
        log_p = similarity.log_softmax(0) + similarity.log_softmax(1) + z0.sigmoid().log() + z1.sigmoid().log().T
        tolerance = 0.3 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(
            assignment.log_p[pair][rows][:, columns].double(), log_p, atol=tolerance, rtol=tolerance / 10
        )
        assert (assignment.log_p[pair][~rows] == -math.inf).all()
        assert (assignment.log_p[pair][:, ~columns] == -math.inf).all()
    if n == 0:  # an empty axis has no maximum: the model does not ask
        return
    matches, _ = assignment.matches(threshold)
    assert (matches[~exists] == -1).all()
    for one, other in itertools.permutations(matches.unbind(1)):  # each image's are the other's inverse
        back = other.gather(1, one.clamp(min=0))
        assert torch.equal(back[one >= 0], torch.arange(n).expand_as(one)[one >= 0])


@pytest.mark.parametrize("kept", [0, 1 << 22])
@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("padding", [None, 0.3, 1.0])
def test_matches_by_strips_are_those_of_the_whole_assignment(monkeypatch, padding, rows, kept):
    n, pairs, layer = 50, 3, LightGlueMatchAssignmentLayer(LightGlueConfig(descriptor_dim=32)).eval()
    monkeypatch.setattr(modeling_lightglue, "STRIP", rows * n)
    monkeypatch.setattr(modeling_lightglue, "KEPT", kept)
    generator = torch.Generator().manual_seed(0)
    descriptors = 3 * torch.randn(pairs, 2, n, 32, generator=generator)
    descriptors[:, 1] = descriptors[:, 0] + descriptors[:, 1] / 4
    descriptors[2] = descriptors[2, :, :1]  # of equal points one counts
    mask = None if padding is None else torch.rand(pairs, 2, n, generator=generator) >= padding
    expected = layer(descriptors, mask).matches(0.01)
    with torch.no_grad():
        matches, scores = layer.matches(descriptors, mask, 0.01)
    assert padding == 1 or (expected[0] >= 0).sum() > 60
    assert torch.equal(matches[:2], expected[0][:2])
    torch.testing.assert_close(scores[:2], expected[1][:2])
    first, second = matches[2]
    assert (second[first[first >= 0]] == torch.arange(n)[first >= 0]).all()


@pytest.mark.parametrize("n", [5, 40])
def test_points_of_many_images_go_through_the_network_as_those_of_each(monkeypatch, n):
    monkeypatch.setattr(modeling_lightglue, "LARGE", 20 * 64)
    mlp = LightGlueMLP(LightGlueConfig(descriptor_dim=32)).eval()
    hidden = torch.randn(4, n, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(mlp(hidden), mlp.of_points(hidden))


# -- training


def test_labels_train_every_part_and_the_confidence_changes_nothing_else():
    model = matcher("sp").train()
    features = features_of_case("sp_small__both")
    n = features["mask"].shape[-1]
    labels = torch.full((1, 2, n), UNMATCHED)
    labels[:, :, :30] = torch.arange(30)
    labels[:, :, 50:] = IGNORED
    model.match_features(**features, labels=labels).loss.backward()
    without_gradient = [name for name, p in model.named_parameters() if p.grad is None]
    assert without_gradient == []
    features["descriptors"].requires_grad_()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in model.token_confidence.parameters():
        parameter.requires_grad_(True)
    model.zero_grad()
    model.match_features(**features, labels=labels).loss.backward()
    confidence_only = [name for name, p in model.named_parameters() if p.grad is not None]
    assert all(name.startswith("token_confidence") for name in confidence_only)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (5, "must lie between -2 and 4, the last keypoint, got 5"),
        (-3, "must lie between -2 and 4, the last keypoint, got -3"),
        (0.0, "must be integers, got torch.float32"),
        (True, "must be integers, got torch.bool"),
        (4, "must not name padding"),
    ],
)
@pytest.mark.parametrize("image", [0, 1])
def test_labels_that_name_no_keypoint_are_refused(label, message, image):
    features = {"keypoints": torch.rand(1, 2, 5, 2), "descriptors": torch.rand(1, 2, 5, 64)}
    mask = torch.tensor([1, 1, 1, 1, 0]).expand(1, 2, 5)
    labels = torch.zeros(1, 2, 5, dtype=torch.tensor(label).dtype)
    labels[0, image, 2] = label
    with pytest.raises(ValueError, match=f"labels {message}"):
        matcher("sp").match_features(**features, mask=mask, labels=labels)
    with pytest.raises(ValueError, match="labels must be a tensor, got ndarray"):
        matcher("sp").match_features(**features, mask=mask, labels=labels.numpy())


def test_labels_are_integers_of_any_type_and_those_of_padding_do_not_count():
    features = {"keypoints": torch.rand(1, 2, 5, 2), "descriptors": torch.rand(1, 2, 5, 64)}
    mask = torch.tensor([1, 1, 1, 1, 0]).expand(1, 2, 5)
    labels = torch.tensor([0, -1, -2, 3, -2]).repeat(1, 2, 1)
    expected = matcher("sp").match_features(**features, mask=mask, labels=labels)
    labels[:, :, 4] = -100
    outputs = matcher("sp").match_features(**features, mask=mask, labels=labels.int())
    assert torch.equal(outputs.loss, expected.loss)
    assert outputs.matches is outputs.matching_scores is outputs.prune is outputs.stop is None


@torch.no_grad()
def test_the_loss_of_a_batch_is_the_mean_of_its_pairs_and_padding_is_ignored():
    model = matcher("sp")
    features = pairs_of_different_kinds()
    n = features["mask"].shape[-1]
    labels = torch.arange(n).expand(6, 2, n).clone()
    labels[:, :, ::3] = UNMATCHED
    both = (features["mask"][:, 0] * features["mask"][:, 1]).bool()
    labels = labels.masked_fill(~both[:, None], IGNORED)
    batch = model.match_features(**features, labels=labels).loss
    singles = []
    for row in range(6):
        pair, m = single(features, row)
        singles.append(model.match_features(**pair, labels=labels[row : row + 1, :, :m]).loss)
    torch.testing.assert_close(batch, torch.stack(singles).mean(), atol=1e-5, rtol=1e-4)
