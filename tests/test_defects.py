"""Nineteen defects of transformers' own LightGlue, one test each: ours does not have it."""

import collections
import json

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForKeypointMatching, pipeline
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.lightglue.configuration_lightglue import LightGlueConfig as StockConfig

from lightglue_hf import (
    LightGlueConfig,
    LightGlueImageProcessor,
    modeling_lightglue,
)
from lightglue_hf import features as features_module
from lightglue_hf.modeling_lightglue import LightGlueAttention, LightGlueKeypointMatchingOutput

from .tiny import LAYERS, SETTINGS, different_pairs, whole_model


def mutual(matches):
    """Whether every match of `(batch, 2, n)` is also that of its partner."""
    columns = torch.arange(matches.shape[-1]).expand_as(matches)
    there = matches.flip(1).gather(2, matches.clamp(min=0))
    return torch.equal(there[matches >= 0], columns[matches >= 0])


def photo(height, width, seed=0, mode="RGB"):
    noise = torch.randint(0, 256, (height, width, 4), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.byte().numpy(), "RGBA").convert(mode)


@torch.no_grad()
def test_01_rows_stay_in_order():
    model, pairs = whole_model(), different_pairs()
    outputs = model(pairs)
    backwards = model(pairs.flip(0))
    assert sorted(outputs.stop.tolist()) != outputs.stop.tolist()
    for name in ("matches", "matching_scores", "prune", "stop"):
        torch.testing.assert_close(backwards[name].flip(0), outputs[name])


@torch.no_grad()
def test_02_one_pair_may_stop_early_and_another_reach_the_end():
    model, pairs = whole_model(), different_pairs()
    for order in ([0, 2], [2, 0], [2, 0, 1]):
        stop = model(pairs[order]).stop
        assert stop.min() < LAYERS
        assert stop.max() == LAYERS


@torch.no_grad()
def test_03_each_of_stopping_and_pruning_can_be_off():
    pairs = different_pairs()
    n = whole_model()(pairs).mask.shape[-1]
    for depth, width, rejection in SETTINGS:
        outputs = whole_model(depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)(pairs)
        assert outputs.matches.shape == outputs.matching_scores.shape == outputs.prune.shape == (6, 2, n)
        assert (outputs.stop[0] == LAYERS) or depth > 0 or rejection > 0


@torch.no_grad()
def test_04_the_last_keypoint_keeps_its_match():
    model = whole_model()
    features = model.extract_features(different_pairs()[:1])
    arguments = {name: features[name] for name in ("keypoints", "descriptors", "mask", "image_sizes")}
    expected = model.match_features(**arguments)
    kept = (expected.prune == expected.prune.max()).sum(-1)[0]
    assert kept[0] != kept[1], "the images are meant to be pruned unequally"
    matched = (expected.matches[0, 0] >= 0).nonzero()[:, 0].tolist()
    assert matched
    for column in matched:  # each in turn as the last
        n = int(arguments["mask"][0, 0].sum())
        order = torch.tensor([*(i for i in range(n) if i != column), column])
        moved = {
            name: value if name == "image_sizes" else torch.stack([value[:, 0, order], value[:, 1, :n]], 1)
            for name, value in arguments.items()
        }
        outputs = model.match_features(**moved)
        assert outputs.matches[0, 0, -1] == expected.matches[0, 0, column]
        assert mutual(outputs.matches)


@pytest.mark.parametrize("depth", [1, -1])
@torch.no_grad()
def test_05_all_keypoints_may_be_pruned(depth):
    model = whole_model(depth_confidence=depth)
    for matchability, confidence in zip(model.match_assignment_layers, model.token_confidence, strict=False):
        matchability.matchability.bias.fill_(-100)
        confidence.token.weight.zero_()
        confidence.token.bias.fill_(100)
    outputs = model(different_pairs())
    assert (outputs.matches == -1).all()
    assert outputs.prune.max() == 1


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_06_padding_does_not_match_padding(depth, width, rejection):
    model = whole_model(
        max_keypoints=200,
        depth_confidence=depth,
        width_confidence=width,
        rejection_threshold=rejection,
        filter_threshold=-1,
    )
    outputs = model(different_pairs())
    padding = outputs.mask == 0
    assert padding[3].sum(-1).min() > 20
    assert (outputs.matches[padding] == -1).all()
    assert (outputs.matching_scores[padding] == 0).all()
    assert mutual(outputs.matches)
    assert (outputs.matches >= 0).any()


@torch.no_grad()
def test_07_attention_can_be_chosen(tmp_path):
    whole_model().save_pretrained(tmp_path)
    outputs = []
    for implementation in ("eager", "sdpa", {"": "sdpa"}):
        model = AutoModelForKeypointMatching.from_pretrained(tmp_path, attn_implementation=implementation)
        expected = implementation if isinstance(implementation, str) else implementation[""]
        assert model.config._attn_implementation == expected
        outputs.append(model(different_pairs()))
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        assert model.transformer_layers[0].self_attention.config._attn_implementation == implementation
        outputs.append(model(different_pairs()))
    for other in outputs[1:]:
        assert torch.equal(other.matches, outputs[0].matches)
        torch.testing.assert_close(other.matching_scores, outputs[0].matching_scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_08_no_attention_is_causal(implementation):
    model = whole_model(attn_implementation=implementation)
    layers = [module for module in model.modules() if isinstance(module, LightGlueAttention)]
    assert len(layers) == 2 * LAYERS
    assert not any(layer.is_causal for layer in layers)
    hidden = torch.rand(2, 9, 16)
    changed = hidden.clone()
    changed[:, -1] += 1  # the first point sees the last
    assert not torch.allclose(layers[0](hidden, None)[0][:, 0], layers[0](changed, None)[0][:, 0])


@torch.no_grad()
def test_08_flash_attention_gets_no_mask(monkeypatch):
    model = whole_model()
    calls = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        calls.append((attention_mask, kwargs.get("cu_seq_lens_q")))
        return torch.zeros_like(query).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", spy)
    model.config._attn_implementation_internal = "flash_attention_2"
    model(different_pairs())
    assert calls
    assert all(mask is None for mask, _ in calls)
    assert any(lengths is not None for _, lengths in calls), "the images are meant to have unequal counts"


@torch.no_grad()
def test_09_the_pipeline_has_heights_and_widths_the_right_way_round_and_batches():
    model, processor = whole_model(), LightGlueImageProcessor(size={"height": 48, "width": 64})
    pairs = [(photo(96, 128), photo(96, 128)), (photo(60, 200, 1), photo(180, 64, 2))]
    matcher = pipeline("keypoint-matching", model=model, image_processor=processor)
    singles = [matcher(list(pair)) for pair in pairs]
    batch = matcher([list(pair) for pair in pairs], batch_size=2)
    assert [len(matches) for matches in singles] == [len(matches) for matches in batch]
    for pair, matches, same in zip(pairs, singles, batch, strict=True):
        assert matches
        sizes = [tuple((image.height, image.width) for image in pair)]
        outputs = model(**processor(pair, return_tensors="pt"))
        expected = processor.post_process_keypoint_matching(outputs, sizes)[0]
        for image in (0, 1):
            points, again = (
                torch.tensor([[match[f"keypoint_image_{image}"][axis] for axis in "xy"] for match in found])
                for found in (matches, same)
            )
            torch.testing.assert_close(points, again)
            order = expected["matching_scores"].argsort(descending=True, stable=True)
            torch.testing.assert_close(points, expected[f"keypoints{image}"][order])
            assert (points < torch.tensor(pair[image].size)).all()


@torch.no_grad()
def test_10_no_keypoint_lies_near_any_border():
    model = whole_model()
    model.config.keypoint_detector_config.nms_radius = 0
    outputs = model(different_pairs())
    points = (outputs.keypoints * torch.tensor([64, 48]))[outputs.mask == 1].round()
    assert points.amin(0).tolist() == [4, 4]
    assert points.amax(0).tolist() == [59, 43]


@torch.no_grad()
def test_11_coordinates_are_exact_in_bfloat16():
    model = whole_model(max_keypoints=200)
    pixel_values = torch.rand(1, 2, 3, 16, 640)
    keypoints = model.to(torch.bfloat16)(pixel_values.bfloat16()).keypoints
    assert keypoints.dtype == torch.float32
    x = keypoints[..., 0] * 640
    torch.testing.assert_close(x, x.round(), atol=1e-3, rtol=0)
    assert ((x.round() % 2 == 1) & (x > 256)).any(), "columns that bfloat16 does not have"


def test_12_points_return_to_the_photo_in_subpixels():
    keypoints = torch.tensor([[[[639 / 640, 479 / 480]], [[0.0, 0.0]]]])
    outputs = LightGlueKeypointMatchingOutput(
        matches=torch.zeros(1, 2, 1, dtype=torch.int64),
        matching_scores=torch.ones(1, 2, 1),
        keypoints=keypoints,
        mask=torch.ones(1, 2, 1, dtype=torch.int32),
        image_sizes=torch.tensor([[[480, 640], [480, 640]]]),
    )
    (result,) = LightGlueImageProcessor().post_process_keypoint_matching(outputs, [((2160, 3840), (2160, 3840))])
    torch.testing.assert_close(result["keypoints0"], torch.tensor([[639.5 * 6 - 0.5, 479.5 * 4.5 - 0.5]]))
    torch.testing.assert_close(result["keypoints1"], torch.tensor([[2.5, 1.75]]))


@torch.no_grad()
def test_13_photos_keep_their_shape_and_differ_in_one_batch():
    processor = LightGlueImageProcessor(size={"longest_edge": 64})
    inputs = processor([(photo(96, 128), photo(128, 64)), (photo(50, 100), photo(64, 64))], return_tensors="pt")
    assert inputs["image_sizes"].tolist() == [[[48, 64], [64, 32]], [[32, 64], [64, 64]]]
    outputs = whole_model()(**inputs)
    points = outputs.keypoints * outputs.image_sizes.flip(-1)[:, :, None]
    inside = (points < outputs.image_sizes.flip(-1)[:, :, None] - 4 + 1e-3).all(-1)
    assert inside[outputs.mask == 1].all()
    assert outputs.mask.sum(-1).min() > 10


@torch.no_grad()
def test_14_any_modes_and_tuples():
    processor = LightGlueImageProcessor(size={"height": 48, "width": 64})
    model = whole_model()
    pairs = (
        (photo(60, 80, 0, "L"), photo(60, 80, 1, "RGBA")),
        (photo(60, 80, 0, "L").convert("RGB"), photo(60, 80, 2, "P")),
    )
    inputs = processor(pairs, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"][0, 0], inputs["pixel_values"][1, 0])
    assert model(**inputs).mask.sum(-1).min() > 10


@pytest.mark.parametrize("off", [-1, 0, -1.0, 0.0])
def test_15_whole_numbers_and_nothing_are_thresholds(tmp_path, off):
    config = LightGlueConfig(depth_confidence=off, width_confidence=off, filter_threshold=off)
    config.save_pretrained(tmp_path)
    for config_class in (AutoConfig, LightGlueConfig, StockConfig):
        read = config_class.from_pretrained(tmp_path)
        assert (read.depth_confidence, read.width_confidence, read.filter_threshold) == (off, off, off)
        assert read.keypoint_detector_config.descriptor_decoder_dim == 256
    saved = json.loads((tmp_path / "config.json").read_text())
    assert isinstance(saved["depth_confidence"], float)
    assert isinstance(saved["keypoint_detector_config"], dict)


@torch.no_grad()
def test_16_thresholds_and_counts_are_read_at_every_call(tmp_path):
    whole_model().save_pretrained(tmp_path)
    model, pairs = AutoModelForKeypointMatching.from_pretrained(tmp_path), different_pairs()
    assert model(pairs).stop.min() < LAYERS
    assert model(pairs).prune[0].unique().numel() > 1
    for threshold in (1.0, 0.0):
        model.config.filter_threshold = threshold
        assert (model(pairs).matches == -1).all() == (threshold == 1)
    model.config.depth_confidence = model.config.width_confidence = -1
    assert model(pairs).stop[0] == LAYERS
    assert (model(pairs).prune[0][model(pairs).mask[0] == 1] == LAYERS).all()
    model.config.filter_threshold = 1.0
    assert (model(pairs).matches == -1).all()
    model.config.keypoint_detector_config.max_keypoints = 9
    assert model(pairs).mask.shape == (6, 2, 9)
    model.config.keypoint_detector_config.keypoint_threshold = 1.0
    assert not model(pairs).mask.any()


@torch.no_grad()
def test_17_one_graph_without_breaks():
    model = whole_model(max_keypoints=20, depth_confidence=-1, width_confidence=-1, num_hidden_layers=2)
    pixel_values = different_pairs()[:2, :, :, :24, :32].contiguous()
    explained = torch._dynamo.explain(model)(pixel_values)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons
    exported = torch.export.export(model, (pixel_values,), strict=True).module()(pixel_values)
    assert torch.equal(exported.matches, model(pixel_values).matches)


class Syncs(TorchDispatchMode):
    """Count the operations whose result the host, or the shape of a tensor, waits for."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount")

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if name in self.WAITING:
            self.counts[name] += 1
        if name in ("index", "index_put", "index_put_"):
            self.counts[name] += sum(i is not None and i.dtype == torch.bool for i in args[1])
        return function(*args, **(kwargs or {}))

    def of(self, model, pixel_values):
        with self:
            outputs = model(pixel_values)
        return outputs, sum(self.counts.values())


@torch.no_grad()
def test_18_nothing_waits_in_static_mode(monkeypatch):
    for module in (features_module, modeling_lightglue):
        monkeypatch.setattr(module, "looks_at_values", lambda *_: False)
    static = whole_model(max_keypoints=40, depth_confidence=-1, width_confidence=-1)
    _, count = (syncs := Syncs()).of(static, different_pairs())
    assert count == 0, syncs.counts


@torch.no_grad()
def test_18_few_things_wait_in_adaptive_mode_whatever_the_batch(monkeypatch):
    for module in (features_module, modeling_lightglue):
        monkeypatch.setattr(module, "looks_at_values", lambda *_: False)
    model, pair = whole_model(max_keypoints=40), different_pairs()[:1]
    counts = []
    for batch in (1, 4, 16):
        outputs, count = (syncs := Syncs()).of(model, pair.repeat(batch, 1, 1, 1, 1))
        assert outputs.stop.unique().tolist() == [3]
        counts.append(count)
        assert 0 < count <= 4 * LAYERS + 15, syncs.counts
    assert len(set(counts)) == 1
    _, count = (syncs := Syncs()).of(model, different_pairs())  # stops at three different layers among them
    assert count <= 20 * LAYERS, syncs.counts


def test_19_features_training_and_the_stopping_layer():
    model, pairs = whole_model(max_keypoints=40), different_pairs()
    features = model.extract_features(pairs.flatten(0, 1))
    rows = torch.tensor([[0, 1], [4, 5]])
    outputs = model(**{name: features[name][rows] for name in ("keypoints", "descriptors", "mask", "image_sizes")})
    expected = model(pairs[[0, 2]])
    assert torch.equal(outputs.matches, expected.matches)
    assert torch.equal(outputs.stop, expected.stop)
    assert outputs.stop.tolist() != [LAYERS, LAYERS]

    labels = torch.full((1, 2, 40), -1)
    labels[:, :, :20] = torch.arange(20)
    loss = model(pairs[:1], labels=labels).loss
    loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained >= {"transformer_layers", "match_assignment_layers", "token_confidence", "positional_encoder"}
