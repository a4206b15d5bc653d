"""The table of faults, as far as the model and its loading go: what each is meant to get, from end to end.

Faults of photos are tested with the image processor, those of the converter with the conversion.
"""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForKeypointDetection, AutoModelForKeypointMatching

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint
from lightglue_hf.modeling_lightglue import LightGlueKeypointMatchingOutput

from .tiny import LAYERS, SETTINGS, different_pairs, whole_model

AUTO = {"lightglue": AutoModelForKeypointMatching, "superpoint": AutoModelForKeypointDetection}


@pytest.fixture(scope="module", params=AUTO)
def checkpoint(request, tmp_path_factory):
    """A saved matcher with its detector, then a saved detector; and their Auto class."""
    directory = tmp_path_factory.mktemp(request.param)
    model = whole_model()
    (model if request.param == "lightglue" else model.keypoint_detector).save_pretrained(directory)
    return directory, AUTO[request.param]


@pytest.fixture
def copy(checkpoint, tmp_path):
    directory, auto_class = checkpoint
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path, auto_class


# -- 1, 3, 4, 6: loading


def test_01_pickles_are_refused_at_run_time_and_the_converter_named(copy):
    directory, auto_class = copy
    weights = directory / "model.safetensors"
    torch.save(load_file(weights), directory / "pytorch_model.bin")
    auto_class.from_pretrained(directory)  # with the same weights as safetensors beside it
    weights.unlink()
    for load in (auto_class.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match="lightglue-hf convert") as error:
            load(directory)
        assert str(directory) in str(error.value)
    with pytest.raises(ValueError, match=r"use_safetensors=False.*lightglue-hf convert"):
        auto_class.from_pretrained(directory, use_safetensors=False)


@pytest.mark.parametrize("fault", ["truncated data", "truncated header", "empty", "huge header", "no safetensors"])
def test_03_broken_safetensors_are_an_error_with_the_path(copy, fault):
    directory, auto_class = copy
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    broken = {
        "truncated data": content[:-100],
        "truncated header": content[:50],
        "empty": b"",
        "huge header": b"\xff" * 7 + b"\x7f" + content[8:],
        "no safetensors": b"not at all safetensors",
    }
    weights.write_bytes(broken[fault])
    with pytest.raises(OSError, match="broken safetensors") as error:
        auto_class.from_pretrained(directory)
    assert str(directory) in str(error.value)


def test_04_missing_and_unexpected_weights_are_an_error_that_lists_them(copy):
    directory, auto_class = copy
    path = directory / "model.safetensors"
    weights = load_file(path)
    lost = next(name for name in sorted(weights) if name.endswith("conv_score_a.bias"))

    def save(tensors):
        save_file(tensors, path, metadata={"format": "pt"})

    without = {name: tensor for name, tensor in weights.items() if name != lost}
    save(without)
    with pytest.raises(ValueError, match=f"missing weights: {lost}$") as error:
        auto_class.from_pretrained(directory)
    assert str(directory) in str(error.value)
    save({**weights, "stranger": torch.ones(1), "another": torch.ones(1)})
    with pytest.raises(ValueError, match=r"unexpected weights: another, stranger$"):
        auto_class.from_pretrained(directory)
    save({**without, "stranger": torch.ones(1)})
    with pytest.raises(ValueError, match=f"missing weights: {lost}; unexpected weights: stranger$"):
        auto_class.from_pretrained(directory)
    # whoever asks for the lists is left to judge them
    _, info = auto_class.from_pretrained(directory, output_loading_info=True)
    assert (list(info["missing_keys"]), list(info["unexpected_keys"])) == ([lost], ["stranger"])
    save({**weights, lost: torch.ones(3)})
    with pytest.raises(RuntimeError):
        auto_class.from_pretrained(directory)


@pytest.mark.parametrize("options", [{}, {"revision": "0123456789012345678901234567890123456789"}])
def test_06_offline_an_unknown_model_or_revision_is_an_error(options):
    for auto_class in AUTO.values():
        with pytest.raises(OSError, match=r"nobody/nothing|couldn't connect|offline"):
            auto_class.from_pretrained("nobody/nothing", **options)


def test_06_a_directory_without_a_model_is_an_error_with_its_path(tmp_path):
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        AutoModelForKeypointMatching.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no bundled checkpoint is called 'huge'"):
        bundled_checkpoint("huge")


def test_an_unknown_detector_is_an_error_and_no_code_is_fetched(copy):
    directory, auto_class = copy
    if auto_class is not AutoModelForKeypointMatching:
        pytest.skip("a detector has no other")
    config = json.loads((directory / "config.json").read_text())
    config["trust_remote_code"] = True
    config["keypoint_detector_config"] = {"model_type": "evil", "_name_or_path": "somebody/evil"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unknown model_type 'evil'.*remote code is never run"):
        auto_class.from_pretrained(directory, trust_remote_code=True)


# -- 15 to 18: nothing, or next to nothing, to match


def assert_valid_shapes(outputs, batch, n):
    assert outputs.matches.shape == outputs.matching_scores.shape == (batch, 2, n)
    assert outputs.prune.shape == outputs.mask.shape == (batch, 2, n)
    assert outputs.keypoints.shape == (batch, 2, n, 2)
    assert outputs.stop.shape == (batch,)
    assert not any(value.isnan().any() for value in outputs.values() if value is not None)


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_15_images_of_a_few_pixels(depth, width, rejection):
    model = whole_model(depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    processor = LightGlueImageProcessor(do_resize=False)
    sizes = [((1, 1), (7, 5)), ((3, 3), (1, 1))]
    images = [[Image.new("RGB", size[::-1], "gray") for size in pair] for pair in sizes]
    outputs = model(**processor(images, return_tensors="pt"))
    assert_valid_shapes(outputs, 2, 0)
    for result in processor.post_process_keypoint_matching(outputs, sizes):
        assert result["keypoints0"].shape == result["keypoints1"].shape == (0, 2)
    alone = model(torch.rand(1, 2, 3, 7, 5))
    assert_valid_shapes(alone, 1, 0)


@torch.no_grad()
def test_16_an_image_of_three_pixels_width():
    model = whole_model()
    processor = LightGlueImageProcessor(size={"longest_edge": 64})
    images = [Image.new("RGB", (3, 20000)), Image.effect_noise((90, 70), 80).convert("RGB")]
    inputs = processor(images, return_tensors="pt")
    assert inputs["image_sizes"].min() >= 1
    outputs = model(**inputs)
    assert outputs.mask[0].sum(-1)[0] == 0
    assert outputs.mask[0].sum(-1)[1] > 10
    assert (outputs.matches == -1).all()
    assert_valid_shapes(outputs, 1, outputs.mask.shape[-1])


@pytest.mark.parametrize("max_keypoints", [-1, 50])
@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_17_no_keypoints_in_one_image(depth, width, rejection, max_keypoints):
    model = whole_model(
        max_keypoints,
        depth_confidence=depth,
        width_confidence=width,
        rejection_threshold=rejection,
        filter_threshold=-1,
    )
    for order in ([0, 1], [1, 0]):
        outputs = model(different_pairs()[1:2, order])
        counts = outputs.mask.sum(-1)[0, order]
        assert counts[0] == 0
        assert counts[1] == 50 or max_keypoints < 0
        assert (outputs.matches == -1).all()
        assert (outputs.matching_scores == 0).all()
        assert outputs.stop.tolist() == [1]
        assert_valid_shapes(outputs, 1, int(counts[1]))


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_18_no_keypoints_in_either_image(depth, width, rejection):
    model = whole_model(depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    black = torch.zeros(3, 2, 3, 48, 64)
    assert_valid_shapes(model(black), 3, 0)
    with torch.enable_grad():
        loss = model(black, labels=torch.zeros(3, 2, 0, dtype=torch.int64)).loss
    loss.backward()
    assert loss == 0


@torch.no_grad()
def test_18_no_keypoints_and_no_sizes():
    keypoints, descriptors = torch.zeros(2, 2, 0, 2), torch.zeros(2, 2, 0, 16)
    for depth, width, rejection in SETTINGS:
        model = whole_model(depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
        assert model(keypoints=keypoints, descriptors=descriptors).matches.shape == (2, 2, 0)


# -- 20: numbers that are none


@pytest.mark.parametrize("part", ["keypoint_detector", "match_assignment_layers"])
def test_weights_that_are_not_numbers_are_named(part, tmp_path):
    model = whole_model()
    name, weight = next((n, p) for n, p in model.named_parameters() if n.startswith(part))
    weight.data.view(-1)[0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"NaN or Inf in {name}"):
        LightGlueForKeypointMatching.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
def test_20_numbers_that_are_none_are_refused_and_named(value, depth, width, rejection):
    model = whole_model(depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    pixel_values = different_pairs()
    pixel_values[4, 1, 0, 47, 63] = value
    for call in (model, model.extract_features):
        with pytest.raises(ValueError, match="pixel_values contains NaN or Inf"):
            call(pixel_values)
    features = {"keypoints": torch.rand(2, 2, 5, 2), "descriptors": torch.rand(2, 2, 5, 16)}
    for name, tensor in features.items():
        broken = tensor.clone()
        broken[1, 0, 4, 1] = value
        with pytest.raises(ValueError, match=f"{name} contains NaN or Inf"):
            model(**{**features, name: broken})


# -- 21 to 25: batches, settings, swaps


def coordinates(outputs, row):
    """The matches of a pair as a set of pairs of pixels."""
    size = outputs.image_sizes[row].flip(-1)
    points = (outputs.keypoints[row] * size[:, None]).round().long()
    matched = (outputs.matches[row, 0] >= 0).nonzero()[:, 0]
    partners = outputs.matches[row, 0, matched]
    return {(*a, *b) for a, b in zip(points[0, matched].tolist(), points[1, partners].tolist(), strict=True)}


def photo_pairs():
    """Photos of unequal sizes and unequal counts of keypoints."""
    sizes = [((90, 120), (90, 120)), ((64, 64), (120, 40)), ((30, 100), (100, 70)), ((8, 9), (57, 64))]
    torch.manual_seed(1)
    pairs = []
    for first, second in sizes:
        noise = (torch.rand(*first, 3) * 255).byte().numpy()
        left = Image.fromarray(noise)
        right = left if first == second else Image.effect_noise(second[::-1], 90).convert("RGB")
        pairs.append((left, right))
    return pairs


@pytest.mark.parametrize("max_keypoints", [-1, 30])
@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_21_photos_of_unequal_sizes_match_in_a_batch_as_alone(depth, width, rejection, max_keypoints):
    model = whole_model(max_keypoints, depth_confidence=depth, width_confidence=width, rejection_threshold=rejection)
    processor = LightGlueImageProcessor(size={"longest_edge": 64})
    pairs = photo_pairs()
    batch = model(**processor(pairs, return_tensors="pt"))
    assert len(batch.image_sizes.flatten(0, 1).unique(dim=0)) > 5
    if max_keypoints < 0:
        assert len(batch.mask.sum(-1).unique()) > 5
    found = 0
    for row, pair in enumerate(pairs):
        alone = model(**processor(pair, return_tensors="pt"))
        assert coordinates(batch, row) == coordinates(alone, 0)
        assert batch.stop[row] == alone.stop[0]
        assert torch.equal(batch.mask[row].sum(-1), alone.mask[0].sum(-1))
        n = min(batch.mask.shape[-1], alone.mask.shape[-1])
        torch.testing.assert_close(
            batch.matching_scores[row, :, :n], alone.matching_scores[0, :, :n], atol=1e-5, rtol=1e-4
        )
        assert not batch.mask[row, :, n:].any()
        found += len(coordinates(alone, 0))
    assert found > 4


@torch.no_grad()
def test_22_pairs_that_stop_out_of_order():
    model, pairs = whole_model(), different_pairs()
    batch = model(pairs)
    assert batch.stop.tolist() == [4, 1, 3, 3, 3, 1]
    for order in (range(6), range(5, -1, -1), (2, 0, 1, 5, 4, 3)):
        batch = model(pairs[list(order)])
        for row, original in enumerate(order):
            alone = model(pairs[original : original + 1])
            assert batch.stop[row] == alone.stop[0]
            assert coordinates(batch, row) == coordinates(alone, 0)
            n = alone.mask.shape[-1]
            assert torch.equal(batch.prune[row, :, :n], alone.prune[0])
            assert not batch.prune[row, :, n:].any()


@torch.no_grad()
def test_23_all_settings_give_the_same_shapes():
    pairs = different_pairs()
    outputs = [
        whole_model(depth_confidence=d, width_confidence=w, rejection_threshold=r)(pairs) for d, w, r in SETTINGS
    ]
    for output in outputs:
        assert_valid_shapes(output, 6, outputs[0].mask.shape[-1])
        assert {name: value.dtype for name, value in output.items()} == {
            name: value.dtype for name, value in outputs[0].items()
        }
    assert (outputs[3].stop == torch.tensor([LAYERS, 1, LAYERS, LAYERS, LAYERS, 1])).all()


@pytest.mark.parametrize("depth", [0.9, -1])
@torch.no_grad()
def test_24_all_points_pruned(depth):
    model = whole_model(depth_confidence=depth, width_confidence=0.9)
    for layer in model.match_assignment_layers:
        layer.matchability.bias.fill_(-100)
    for layer in model.token_confidence:  # at the bound, where a point is neither unsure nor important
        layer.token.weight.zero_()
        layer.token.bias.fill_(100)
    if depth > 0:
        model.config.depth_confidence = 1  # which no share of points exceeds
    outputs = model(different_pairs())
    assert_valid_shapes(outputs, 6, outputs.mask.shape[-1])
    assert (outputs.matches == -1).all()
    assert (outputs.stop < LAYERS).all()


@pytest.mark.parametrize(("depth", "width", "rejection"), SETTINGS)
@torch.no_grad()
def test_25_swapped_images_give_the_inverse(depth, width, rejection):
    model, pairs = (
        whole_model(depth_confidence=depth, width_confidence=width, rejection_threshold=rejection),
        different_pairs(),
    )
    forward, swapped = model(pairs), model(pairs.flip(1))
    assert torch.equal(forward.stop, swapped.stop)
    for row in range(6):
        assert coordinates(forward, row) == {(*m[2:], *m[:2]) for m in coordinates(swapped, row)}
    assert sum(len(coordinates(forward, row)) for row in range(6)) > 5


@torch.no_grad()
def test_26_sizes_of_photos_must_be_those_of_the_batch():
    outputs = whole_model()(different_pairs())
    processor = LightGlueImageProcessor()
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        processor.post_process_keypoint_matching(outputs, torch.tensor([[48, 64]]))
    with pytest.raises(ValueError, match=r"target_sizes|batch"):
        processor.post_process_keypoint_matching(outputs, [((48, 64), (48, 64))])


def test_33_indices_of_many_keypoints_stay():
    """Two of 40,000, beyond what 16 bits count, and with coordinates that tell which."""
    n = 40_000
    keypoints = torch.arange(n).float()[:, None].expand(1, 2, n, 2) / n
    matches = torch.full((1, 2, n), -1)
    matches[0, 0, 39_999], matches[0, 1, 33_000] = 33_000, 39_999
    outputs = LightGlueKeypointMatchingOutput(
        matches=matches,
        matching_scores=(matches >= 0).float(),
        keypoints=keypoints,
        mask=torch.ones(1, 2, n, dtype=torch.int32),
        image_sizes=torch.full((1, 2, 2), n),
    )
    (result,) = LightGlueImageProcessor().post_process_keypoint_matching(outputs, [((n, n), (n, n))])
    assert result["keypoints0"].round().tolist() == [[39_999, 39_999]]
    assert result["keypoints1"].round().tolist() == [[33_000, 33_000]]
