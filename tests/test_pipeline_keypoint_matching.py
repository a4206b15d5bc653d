"""The pipeline: sizes the right way round, batches and generators equal to single calls, form as in transformers."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForKeypointMatching, PretrainedConfig, PreTrainedModel, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from lightglue_hf.image_processing_lightglue import LightGlueImageProcessor
from lightglue_hf.modeling_lightglue import LightGlueKeypointMatchingOutput
from lightglue_hf.pipeline_keypoint_matching import KeypointMatchingPipeline
from lightglue_hf.registration import register_pipeline


class BrightestConfig(PretrainedConfig):
    model_type = "brightest"


class BrightestForKeypointMatching(PreTrainedModel):
    """Matches the brightest pixel of one image to that of the other; every other score of the pair is lower."""

    config_class = BrightestConfig
    base_model_prefix = "brightest"
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.batches = []
        self.post_init()

    def forward(self, pixel_values, image_sizes=None):
        batch, _, _, height, width = pixel_values.shape
        self.batches.append(batch)
        sizes = torch.tensor([height, width]).expand(batch, 2, 2) if image_sizes is None else image_sizes
        values, order = pixel_values[:, :, 0].flatten(-2).topk(2)
        points = torch.stack([order % width, order // width], dim=-1).float()
        return LightGlueKeypointMatchingOutput(
            matches=torch.arange(2).expand(batch, 2, 2),
            matching_scores=values.float() * self.scale.float(),
            keypoints=points / sizes.flip(-1).unsqueeze(-2),
            mask=torch.ones(batch, 2, 2, dtype=torch.int32),
            image_sizes=sizes,
        )


def photo(height, width, x, y):
    """A dark photo with a bright dot around (x, y) and, to the right, a less bright one."""
    image = np.zeros((height, width), np.uint8)
    image[y - 4 : y + 5, x - 4 : x + 5] = 100
    image[y, x] = 255
    return Image.fromarray(image).convert("RGB")


PAIRS = [
    [photo(60, 120, 90, 20), photo(100, 40, 11, 77)],
    [photo(48, 48, 30, 9), photo(64, 200, 150, 50)],
    [photo(60, 120, 17, 40), photo(60, 120, 100, 33)],
]


@pytest.fixture
def registered():
    task = PIPELINE_REGISTRY.supported_tasks["keypoint-matching"]
    before = copy.copy(task)
    register_pipeline()
    yield
    task.update(before)


@pytest.fixture
def model():
    return BrightestForKeypointMatching(BrightestConfig()).eval()


@pytest.fixture(params=[{"size": {"height": 120, "width": 240}}, {"size": 200}, {"do_resize": False}], ids=str)
def matcher(request, registered, model):
    return pipeline("keypoint-matching", model=model, image_processor=LightGlueImageProcessor(**request.param))


def xy(match, index):
    return match[f"keypoint_image_{index}"]["x"], match[f"keypoint_image_{index}"]["y"]


def test_points_lie_on_what_they_mark_in_photos_of_any_shape(matcher):
    assert type(matcher) is KeypointMatchingPipeline
    expected = [((90, 20), (11, 77)), ((30, 9), (150, 50)), ((17, 40), (100, 33))]
    for pair, points in zip(PAIRS, expected):
        best = matcher(pair)[0]
        for index, point in enumerate(points):
            assert xy(best, index) == pytest.approx(point, abs=0.6)


def test_the_form_is_that_of_transformers(matcher):
    matches = matcher(PAIRS[0])
    assert isinstance(matches, list)
    assert len(matches) == 2
    for match in matches:
        assert set(match) == {"keypoint_image_0", "keypoint_image_1", "score"}
        assert set(match["keypoint_image_0"]) == set(match["keypoint_image_1"]) == {"x", "y"}
        for value in (*xy(match, 0), *xy(match, 1), match["score"]):
            assert type(value) is float
    scores = [match["score"] for match in matches]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5])
def test_several_pairs_equal_single_calls(matcher, model, batch_size):
    singles = [matcher(pair) for pair in PAIRS]
    model.batches.clear()
    assert matcher(PAIRS, batch_size=batch_size) == singles
    assert sum(model.batches) == 3
    assert max(model.batches) == min(batch_size or 1, 3)
    assert matcher(tuple(tuple(pair) for pair in PAIRS), batch_size=batch_size) == singles
    assert list(matcher((pair for pair in PAIRS), batch_size=batch_size)) == singles
    assert list(matcher(iter(PAIRS), batch_size=batch_size)) == singles
    assert matcher(PAIRS[:1], batch_size=batch_size) == singles[0]
    assert matcher([], batch_size=batch_size) == []


def test_generators_are_read_as_they_are_needed(matcher):
    read = []

    def pairs():
        for index in range(100):
            read.append(index)
            yield PAIRS[0]

    results = iter(matcher(pairs()))
    assert next(results) == matcher(PAIRS[0])
    assert len(read) < 10


def test_only_scores_above_the_threshold_are_given(registered, model):
    processor = LightGlueImageProcessor(do_resize=False)
    matcher = pipeline("keypoint-matching", model=model, image_processor=processor)
    scores = [match["score"] for match in matcher(PAIRS[0])]
    assert scores[0] > scores[1] > 0
    assert [match["score"] for match in matcher(PAIRS[0], threshold=scores[1])] == scores[:1]
    assert matcher(PAIRS[0], threshold=scores[0]) == []
    assert [len(matches) for matches in matcher(PAIRS, threshold=scores[1], batch_size=2)] == [1, 1, 1]
    strict = pipeline("keypoint-matching", model=model, image_processor=processor, threshold=scores[1])
    assert len(strict(PAIRS[0])) == 1
    assert len(strict(PAIRS[0], threshold=0.0)) == 2


def test_files_are_read_and_turned_upright(matcher, tmp_path):
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn to the right
    PAIRS[0][0].transpose(Image.Transpose.ROTATE_90).save(paths[0], exif=exif)
    PAIRS[0][1].save(paths[1])
    expected = matcher(PAIRS[0])
    assert matcher(paths) == expected
    assert matcher([str(path) for path in paths]) == expected
    assert matcher([[str(paths[0]), PAIRS[0][1]], PAIRS[0]], batch_size=2) == [expected] * 2


@pytest.mark.parametrize("inputs", [None, "a.png", PAIRS[0][0], PAIRS[0][:1], [*PAIRS[0], PAIRS[0][0]], [PAIRS[0], 1]])
def test_anything_but_pairs_is_refused(matcher, inputs):
    with pytest.raises(ValueError, match="pair of images"):
        matcher(inputs)


def test_other_processors_get_rgb(registered, model):
    """As do those of other matchers, whose task this is too."""
    try:
        from transformers.models.superglue.image_processing_pil_superglue import SuperGlueImageProcessorPil as Stock
    except ImportError:
        from transformers.models.superglue.image_processing_superglue import SuperGlueImageProcessor as Stock
    matcher = pipeline("keypoint-matching", model=model, image_processor=Stock(size={"height": 120, "width": 240}))
    pairs = [[image.convert("L") for image in pair] for pair in PAIRS]
    results = matcher(pairs, batch_size=2)
    assert results == [matcher(pair) for pair in pairs]
    assert xy(results[0][0], 0) == pytest.approx((90, 20), abs=1)


def test_half_precision_models_get_half_precision_pixels(registered, model):
    matcher = pipeline("keypoint-matching", model=model.bfloat16(), image_processor=LightGlueImageProcessor(size=256))
    assert xy(matcher(PAIRS[0])[0], 0) == pytest.approx((90, 20), abs=0.6)


def test_registering_is_silent_and_keeps_the_rest(capfd):
    task = PIPELINE_REGISTRY.supported_tasks["keypoint-matching"]
    before = copy.copy(task)
    try:
        register_pipeline()
        register_pipeline()
        assert capfd.readouterr() == ("", "")
        assert task["impl"] is KeypointMatchingPipeline
        assert task["pt"] == before["pt"] == (AutoModelForKeypointMatching,)
        assert {**task, "impl": None} == {**before, "impl": None}
    finally:
        task.update(before)


@pytest.mark.parametrize("as_list", [True, False])
def test_several_pairs_have_pillows_own_limit_of_pixels(matcher, monkeypatch, as_list):
    """A warning for a single pair; for several, in which nobody sees it, an error: one after the other, too."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 120 - 1)
    pairs = [PAIRS[0], PAIRS[0]]
    with pytest.raises(Image.DecompressionBombError, match="exceed the limit"):
        list(matcher(pairs if as_list else iter(pairs)))
