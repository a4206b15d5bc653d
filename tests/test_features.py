"""Features as one object, and the contract of what finds them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForKeypointDetection, PretrainedConfig, PreTrainedModel

from lightglue_hf import (
    KeypointDetector,
    KeypointDetectorConfig,
    KeypointFeatures,
    LightGlueConfig,
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
)
from lightglue_hf.features import features_of_detector

from .small_detectors import DETECTORS, small_matcher
from .tiny import whole_model

SIZES = [(40, 56), (33, 60), (48, 41), (40, 56)]


def some(images: int = 3, n: int = 5, turned: bool = False) -> KeypointFeatures:
    generator = torch.Generator().manual_seed(images)
    counts = torch.arange(images) % n + 1
    features = KeypointFeatures(
        keypoints=torch.rand(images, n, 2, generator=generator) * 30,
        descriptors=torch.randn(images, n, 16, generator=generator),
        mask=(torch.arange(n) < counts[:, None]).int(),
        image_sizes=torch.tensor([[40, 50]] * images),
        scores=torch.rand(images, n, generator=generator),
    )
    if turned:
        features.scales, features.orientations = features.scores + 1, features.scores - 1
    return features


# -- an object


def test_it_is_a_mapping_of_the_fields_that_are_there():
    features = some()
    assert list(features) == ["keypoints", "descriptors", "mask", "image_sizes", "scores"]
    assert dict(**features)["scores"] is features.scores is features["scores"]
    assert "scales" not in features
    assert features.get("scales") is None
    with pytest.raises(KeyError):
        features["scales"]
    features.scales = features.scores  # set later, it is there
    assert "scales" in features
    assert features[0].scales.shape == (5,)


@pytest.mark.parametrize("turned", [False, True])
def test_images_are_chosen_by_number_slice_list_and_tensor(turned):
    features = some(turned=turned)
    assert features.shape == (3,)
    assert features[1].shape == ()
    assert features[1:].shape == (2,)
    assert features[[2, 0]].shape == (2,)
    for name, value in features[[2, 0]].items():
        assert torch.equal(value, features[name][[2, 0]])
    pairs = features.pairs([[0, 1], [2, 1]])
    assert pairs.shape == (2, 2)
    for name, value in pairs.items():
        assert torch.equal(value, features[name][torch.tensor([[0, 1], [2, 1]])])


@pytest.mark.parametrize(
    "index",
    [
        (1, 0),
        (2,),
        (slice(1, None), 0),
        (..., 1),
        (0, ...),
        (None, 2, slice(None)),
        ([2, 0], 1),
        ([True, False, True], 1),
        [True, False, True],
        torch.tensor([[True, False], [False, False], [True, True]]),
        (np.array([[True, False], [False, False], [True, True]]),),
        [],
        (),
    ],
)
def test_pairs_are_indexed_as_a_tensor_of_their_shape_is(index):
    features = some(6, turned=True)[torch.arange(6).reshape(3, 2)]
    expected = torch.arange(6).reshape(3, 2)[torch.tensor(index, dtype=torch.int64) if index == [] else index]
    found = features[index]
    assert found.shape == expected.shape
    for name, value in found.items():
        assert torch.equal(value, some(6, turned=True)[name][expected])


@pytest.mark.parametrize("index", [(1, 0), (..., [0], 1), (torch.ones(3, 1, dtype=torch.bool),)])
def test_an_index_into_more_axes_than_images_have_is_refused(index):
    with pytest.raises(IndexError, match=r"too many axes: an index into 2 of shape \(3,\)"):
        some()[index]


@pytest.mark.parametrize("index", [0, -1, [0], slice(3), (0,)])
def test_a_single_image_has_no_axis_to_index(index):
    with pytest.raises(IndexError, match=r"too many axes: an index into 1 of shape \(\)"):
        some()[1][index]


@pytest.mark.parametrize("index", [[0, 1], [[0, 3]], [[-1, 0]], [[0, 1, 2]]])
def test_pairs_of_what_is_not_there_are_refused(index):
    with pytest.raises(ValueError, match="pairs of images"):
        some().pairs(index)


def test_concatenated_features_are_padded_and_match_as_before():
    model = whole_model()
    images = torch.rand(3, 3, 40, 56)
    apart = [model.extract_features(images[i : i + 1] * (1 - 0.45 * i)) for i in range(3)]
    counts = [part.keypoints.shape[1] for part in apart]
    assert len(set(counts)) > 1
    together = KeypointFeatures.cat(apart)
    assert together.shape == (3,)
    assert together.mask.sum(1).tolist() == [int(part.mask.sum()) for part in apart]
    whole = model.match_features(together.pairs([[0, 1]]))
    for i, part in enumerate(apart):
        assert torch.equal(together[i].keypoints[: counts[i]], part.keypoints[0])
        assert not together[i].mask[counts[i] :].any()
    both = KeypointFeatures.cat(apart[:2])
    alone = model.match_features(both.pairs([[0, 1]]))
    n = both.keypoints.shape[1]
    assert torch.equal(whole.matches[..., :n], alone.matches)
    with pytest.raises(ValueError, match="orientations, scales"):
        KeypointFeatures.cat([some(), some(turned=True)])
    with pytest.raises(ValueError, match="no features"):
        KeypointFeatures.cat([])


def test_numpy_and_back_is_the_same_without_padding():
    features = some(turned=True)
    arrays = features.numpy()
    assert [len(one["keypoints"]) for one in arrays] == features.mask.sum(1).tolist()
    assert all("mask" not in one for one in arrays)
    back = KeypointFeatures.from_numpy(arrays)
    for name, value in back.items():
        kept = value if name == "image_sizes" else value[back.mask.bool()]
        expected = features[name] if name == "image_sizes" else features[name][features.mask.bool()]
        assert torch.equal(kept, expected)
    half = features.to(dtype=torch.bfloat16)
    assert half.descriptors.dtype == torch.bfloat16
    assert half.keypoints.dtype == torch.float32
    assert half.numpy()[0]["descriptors"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("keypoints", None, "keypoints must be"),
        ("keypoints", torch.zeros(3, 5, 3), "keypoints must be"),
        ("descriptors", None, r"descriptors \(3, 5, None\) is required"),
        ("descriptors", torch.zeros(3, 4, 16), r"descriptors must have shape \(3, 5, 16\)"),
        ("descriptors", torch.full((3, 5, 16), 1e19), "descriptors contains numbers beyond"),
        ("mask", torch.zeros(3, 4), "mask must have shape"),
        ("image_sizes", torch.zeros(3, 2), "image_sizes .* must be positive"),
        ("image_sizes", torch.tensor([[40, 50], [40, -1], [1, 1]]), "image_sizes .* must be positive"),
        ("scores", torch.zeros(2, 5), "scores must have shape"),
        ("scores", torch.full((3, 5), torch.nan), "scores contains NaN or Inf"),
        ("keypoints", torch.full((3, 5, 2), torch.inf), "keypoints contains NaN or Inf"),
        ("orientations", torch.zeros(3), "orientations must have shape"),
    ],
)
def test_what_is_wrong_is_named(name, value, message):
    features = some()
    features.check()
    setattr(features, name, value)
    with pytest.raises(ValueError, match=message):
        features.check()


@pytest.mark.parametrize("mask", [torch.tensor(0.5), torch.tensor(-1), torch.tensor(2**32)])
def test_a_mask_is_whatever_is_not_zero(mask):
    model, features = whole_model(), some(2, 5).pairs([[0, 1]])
    expected = model.match_features(features)
    features.mask = torch.where(features.mask > 0, mask, 0)
    outputs = model.match_features(features)
    assert torch.equal(outputs.mask, expected.mask)
    assert outputs.mask.unique().tolist() == [0, 1]
    assert torch.equal(outputs.matches, expected.matches)


def test_features_and_separate_arguments_are_the_same():
    model, features = whole_model(), some(4, 5).pairs([[0, 1], [2, 3]])
    expected = model.match_features(features)
    separate = model.match_features(features.keypoints, features.descriptors, features.mask, features.image_sizes)
    assert torch.equal(separate.matching_scores, expected.matching_scores)
    with pytest.raises(ValueError, match="not both"):
        model.match_features(features, features.descriptors)
    with pytest.raises(ValueError, match="labels must have shape"):
        model.match_features(features, labels=torch.zeros(2, 2, 4, dtype=torch.int64))


# -- features once, as README has it


@pytest.mark.parametrize("max_keypoints", [-1, 40])
def test_photos_of_unlike_shape_are_extracted_once_and_matched_as_in_pairs(max_keypoints):
    model = whole_model(max_keypoints)
    processor = LightGlueImageProcessor(size={"longest_edge": 64})
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((60, 90), (90, 60), (75, 80))]
    inputs = processor(photos, pairs=False, return_tensors="pt")
    assert inputs["pixel_values"].shape == (3, 3, 64, 64)
    assert inputs["image_sizes"].tolist() == [[43, 64], [64, 43], [60, 64]]
    features = model.extract_features(**inputs)
    assert (features.keypoints < features.image_sizes.flip(-1)[:, None]).all()
    pairs = [[0, 1], [0, 2], [1, 2]]
    once = model.match_features(features.pairs(pairs))
    for row, (i, j) in enumerate(pairs):
        paired = model(**processor([photos[i], photos[j]], return_tensors="pt"))
        n = min(paired.mask.shape[-1], once.mask.shape[-1])
        assert torch.equal(once.mask[row].sum(-1), paired.mask[0].sum(-1))
        assert torch.equal(once.matches[row, :, :n], paired.matches[0, :, :n])
        torch.testing.assert_close(once.keypoints[row, :, :n], paired.keypoints[0, :, :n])
    single = model.extract_features(**processor(photos[1], pairs=False, return_tensors="pt"))
    assert int(single.mask.sum()) == int(features.mask[1].sum())


# -- what every detector takes


@pytest.mark.parametrize("name", DETECTORS)
@torch.no_grad()
def test_grey_images_are_those_of_three_equal_channels(name):
    detector = small_matcher(name).keypoint_detector
    grey = torch.randint(0, 256, (2, 1, 64, 96)) / 256  # of which the mean of three is exact
    found, expected = (detector.extract_features(images) for images in (grey, grey.repeat(1, 3, 1, 1)))
    assert found.mask.sum() > 20
    assert torch.equal(found.keypoints, expected.keypoints)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("pixel_values", torch.rand(1, 4, 32, 40), "1 channel, grey, or 3"),
        ("pixel_values", torch.full((1, 3, 32, 40), torch.nan), "NaN"),
        ("pixel_values", np.zeros((1, 3, 32, 40)), 'pass return_tensors="pt"'),
        ("pixel_values", torch.rand(1, 2, 3, 32, 40), r"\(batch, channels"),
        ("image_sizes", torch.tensor([[33, 40]]), r"between \(1, 1\) and \(32, 40\)"),
        ("image_sizes", torch.tensor([[0, 40]]), r"between \(1, 1\) and \(32, 40\)"),
        ("image_sizes", torch.tensor([[32.0, 40.0]]), "must be integers"),
        ("image_sizes", torch.tensor([[32, 40]] * 2), "shape"),
        ("region", torch.ones(1, 32, 41, dtype=torch.bool), "shape"),
    ],
)
def test_wrong_arguments_of_a_detector_are_named(name, argument, value, message):
    detector = small_matcher(name).keypoint_detector
    for call in (detector.extract_features, detector):
        with pytest.raises(ValueError, match=f"{argument} .*{message}"):
            call(**{"pixel_values": torch.rand(1, 3, 32, 40), argument: value})


# -- a detector of the contract: the brightest pixels, with a scale and an orientation


class BrightConfig(KeypointDetectorConfig, PretrainedConfig):
    model_type = "bright"
    stride, channels, has_scale_ori, longest_edge = 4, 3, True, 64
    descriptor_dim = 6

    def __init__(self, max_keypoints: int = 20, keypoint_threshold: float = 0.0, **kwargs: Any) -> None:
        self.max_keypoints, self.keypoint_threshold = max_keypoints, keypoint_threshold
        super().__init__(**kwargs)


class Bright(KeypointDetector, PreTrainedModel):
    config_class = BrightConfig

    def __init__(self, config: BrightConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(()))
        self.asked: list[tuple[int, ...]] = []
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def detect(self, pixel_values: Tensor, region: Tensor | None = None, fixed_shapes: bool = False):
        self.asked.append(tuple(pixel_values.shape))
        height, width = pixel_values.shape[-2:]
        scores = pixel_values.mean(1) if region is None else pixel_values.mean(1) * region
        values, index = scores.flatten(1).topk(min(self.config.max_keypoints, height * width))
        mask = values > self.config.keypoint_threshold
        colours = pixel_values.flatten(2).gather(2, index[:, None].expand(-1, 3, -1)).transpose(1, 2)
        return KeypointFeatures(
            keypoints=torch.stack([index % width, index // width], -1) * mask[..., None].float(),
            descriptors=torch.cat([colours, 1 - colours], -1) * mask[..., None],
            mask=mask.int(),
            scores=values * mask,
            scales=(1 + values) * mask,
            orientations=values * mask,
        )


@pytest.fixture
def bright():
    """A matcher on it, registered for the time of the test."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_KEYPOINT_DETECTION_MAPPING

    AutoConfig.register("bright", BrightConfig)
    AutoModelForKeypointDetection.register(BrightConfig, Bright)
    config = LightGlueConfig(
        BrightConfig(), descriptor_dim=16, num_hidden_layers=2, num_attention_heads=2, add_scale_ori=True
    )
    yield LightGlueForKeypointMatching(config).eval()
    CONFIG_MAPPING._extra_content.pop("bright")
    MODEL_FOR_KEYPOINT_DETECTION_MAPPING._extra_content.pop(BrightConfig)


@torch.no_grad()
def test_a_detector_of_ones_own_works_by_the_contract_alone(bright, tmp_path):
    assert bright.config.num_input_features == 6
    photos = [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(SIZES)]
    processor = LightGlueImageProcessor(**bright.config.keypoint_detector_config.processor_settings)
    assert not processor.do_grayscale
    inputs = processor([photos[:2], photos[2:]], return_tensors="pt")
    assert inputs["pixel_values"].shape[-2] % 4 == 0
    features = bright.extract_features(**inputs)
    assert features.scales.shape == features.orientations.shape == (2, 2, 20)
    outputs = bright(**inputs)
    assert torch.equal(outputs.matches, bright.match_features(features).matches)
    bright.save_pretrained(tmp_path)
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).matching_scores, outputs.matching_scores)


@torch.no_grad()
def test_each_image_is_detected_at_its_own_size_and_once(bright):
    detector = bright.keypoint_detector
    canvas = torch.rand(4, 3, 48, 60)
    sizes = torch.tensor(SIZES)
    features = detector.extract_features(canvas, sizes)
    assert sorted(detector.asked) == [(1, 3, 33, 60), (1, 3, 48, 41), (2, 3, 40, 56)]
    for i, (height, width) in enumerate(SIZES):
        alone = detector.extract_features(canvas[i : i + 1, :, :height, :width])
        for name, value in alone.items():
            assert torch.equal(features[name][i], value[0]), name
    relative = detector(canvas, sizes)
    torch.testing.assert_close(relative.keypoints * torch.tensor([60, 48]), features.keypoints)
    assert torch.equal(relative.scales, features.scales)


@torch.no_grad()
def test_a_region_gets_the_whole_budget(bright):
    canvas = torch.rand(2, 3, 48, 60)
    region = torch.zeros(2, 48, 60, dtype=torch.bool)
    region[:, 10:20, 30:45] = True
    for model in (bright, whole_model(20, descriptor_dim=16)):
        features = model.extract_features(canvas, region=region)
        everywhere = model.extract_features(canvas)
        x, y = features.keypoints[features.mask.bool()].long().unbind(-1)
        assert region[0, y, x].all()
        inside = (
            everywhere.mask.bool()
            & region[0][everywhere.keypoints[..., 1].long(), everywhere.keypoints[..., 0].long()]
        )
        assert (features.mask.sum(1) > 2 * inside.sum(1)).all()
        with pytest.raises(ValueError, match="region must have shape"):
            model.extract_features(canvas, region=region[:1])


@torch.no_grad()
def test_the_processor_resizes_a_region_with_its_photo():
    processor = LightGlueImageProcessor(size={"longest_edge": 60})
    photos = [np.zeros((60, 120), np.uint8), np.zeros((30, 20), np.uint8)]
    half = np.zeros((60, 120), bool)
    half[:, :60] = True
    region = processor(photos, pairs=False, regions=[half, None], return_tensors="pt")["region"]
    assert region.shape == (2, 64, 64)
    assert region[0].sum() == 30 * 30
    assert region[0, :30, :30].all()
    assert region[1].sum() == 60 * 40
    paired = processor([photos, photos[::-1]], regions=[[half, None], None], return_tensors="pt")["region"]
    assert paired.shape == (2, 2, 64, 64)
    assert torch.equal(paired[0], region)
    assert paired[1].sum() == 30 * 60 + 60 * 40
    with pytest.raises(ValueError, match=r"region of image 1 must have its \(height, width\) \(30, 20\)"):
        processor(photos, pairs=False, regions=[half, half])
    with pytest.raises(ValueError, match="arranged as images"):
        processor(photos, pairs=False, regions=[half])


# -- a detector that knows nothing of the contract


class Foreign(nn.Module):
    config = PretrainedConfig(max_keypoints=-1)
    dtype = torch.float32

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None):
        relative = torch.tensor([[[0.1, 0.1], [0.9, 0.1], [0.5, 0.8]]]).expand(len(pixel_values), -1, -1)
        ones = torch.ones(len(pixel_values), 3)
        return relative, ones, torch.ones(len(pixel_values), 3, 4), ones.int()


def test_a_foreign_detector_loses_what_it_found_in_padding_or_outside_the_region():
    canvas = torch.rand(2, 3, 10, 20)
    found = features_of_detector(Foreign(), canvas)
    assert found.keypoints[0].tolist() == [[2, 1], [18, 1], [10, 8]]
    assert found.image_sizes.tolist() == [[10, 20]] * 2
    found = features_of_detector(Foreign(), canvas, image_sizes=torch.tensor([[10, 15], [5, 20]]))
    assert found.mask.tolist() == [[1, 0, 1], [1, 1, 0]]
    region = torch.zeros(2, 10, 20, dtype=torch.bool)
    region[0, :5] = True
    assert features_of_detector(Foreign(), canvas, region=region).mask.tolist() == [[1, 1, 0], [0, 0, 0]]
