"""A matcher is trained on any detector by the contract, with its channels, scales and orientations."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, SuperPointConfig
from lightglue_hf.data.textures import render_textures
from lightglue_hf.detectors.superpoint import SuperPointForKeypointDetection
from lightglue_hf.training import (
    DetectorRecipe,
    MatcherCollator,
    MatcherRecipe,
    PosedCollator,
    RecipeError,
    feature_extractor,
    train_detector,
    train_matcher,
)
from lightglue_hf.training.stages import initial_matcher

from .corners import Corners, CornersConfig
from .small import MATCHER, NARROW, SMALL

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def corners(tmp_path_factory):
    path = tmp_path_factory.mktemp("corners")
    torch.manual_seed(0)
    Corners(CornersConfig()).save_pretrained(path)
    return path


def recipe(output_dir, detector, **options):
    return MatcherRecipe(output_dir, detector=detector, pairs=8, **{**MATCHER, **options})


def test_scales_and_orientations_reach_the_matcher(corners, tmp_path):
    run = recipe(tmp_path / "run", corners)
    model = train_matcher(run)
    assert model.config.add_scale_ori
    assert model.config.num_input_features == 8
    assert model.positional_encoder.projector.in_features == 4
    saved = LightGlueForKeypointMatching.from_pretrained(run.output_dir)
    assert type(saved.keypoint_detector) is Corners
    collator = MatcherCollator(run.canvases(), feature_extractor(model, 48), run)
    batch = collator([3, 4])
    detected = model.keypoint_detector.config.max_keypoints
    assert (detected, batch["keypoints"].shape) == (-1, (2, 2, 48, 2)), "the model itself keeps its own budget"
    valid = batch["mask"].bool()
    assert (batch["scales"][valid] >= 2).all()
    assert batch["scales"].dtype == batch["descriptors"].dtype == torch.float32
    assert (batch["orientations"][valid] != 0).any()
    assert (batch["labels"][~valid] == -2).all()
    assert (batch["labels"] >= 0).any()
    processor = LightGlueImageProcessor.from_pretrained(run.output_dir)
    assert not processor.do_grayscale
    assert processor.size_divisor == 4
    assert processor.size == {"longest_edge": 640}


def test_the_pictures_are_the_same_grey_in_all_channels(corners, tmp_path):
    run = recipe(tmp_path, corners)
    seen = []

    def see(module, inputs):
        seen.append(inputs[0])

    for detector in (Corners.from_pretrained(corners), SuperPointForKeypointDetection(SuperPointConfig(**NARROW))):
        extractor = feature_extractor(initial_matcher(run, detector, []), 16)
        first = next(m for m in extractor.keypoint_detector.modules() if isinstance(m, torch.nn.Conv2d))
        first.register_forward_pre_hook(see)
        MatcherCollator(torch.from_numpy(render_textures(2, 128, 192, 0)), extractor, run)([0])
    colour, grey = seen[0], torch.cat(seen[1:])
    assert colour.shape[1] == 3
    assert grey.shape[1] == 1
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))


def test_photos_reach_a_detector_in_its_colours(corners, tmp_path):
    Image.fromarray(np.full((48, 64, 3), [200, 100, 50], dtype=np.uint8)).save(tmp_path / "a.png")
    run = recipe(tmp_path, corners, width=64)
    for detector, channels in (
        (Corners.from_pretrained(corners), [200, 100, 50]),
        (SuperPointForKeypointDetection(SuperPointConfig(**NARROW)), [200 * 0.2989 + 100 * 0.587 + 50 * 0.114] * 3),
    ):
        collator = PosedCollator([], feature_extractor(initial_matcher(run, detector, []), 16), run)
        pixels = collator.processor([tmp_path / "a.png"] * 2, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels[0, 0, :, 5, 5] * 255, torch.tensor(channels, dtype=torch.float32))


def test_a_matcher_goes_on_with_another_detector_of_its_kind(corners, tmp_path):
    first = recipe(tmp_path / "first", corners)
    train_matcher(first)
    other = Corners(CornersConfig())
    other.save_pretrained(tmp_path / "other")
    model = train_matcher(recipe(tmp_path / "on", tmp_path / "other", initial_model=first.output_dir))
    assert torch.equal(model.keypoint_detector.describe.weight, other.describe.weight)

    SuperPointForKeypointDetection(SuperPointConfig(**NARROW)).save_pretrained(tmp_path / "superpoint")
    with pytest.raises(RecipeError, match="its descriptors have 16 numbers, and initial_model takes 8"):
        train_matcher(recipe(tmp_path / "no", tmp_path / "superpoint", initial_model=first.output_dir))
    narrow = {**NARROW, "descriptor_decoder_dim": 8}
    SuperPointForKeypointDetection(SuperPointConfig(**narrow)).save_pretrained(tmp_path / "superpoint")
    with pytest.raises(RecipeError, match="no scales and orientations, which initial_model takes"):
        train_matcher(recipe(tmp_path / "no", tmp_path / "superpoint", initial_model=first.output_dir))
    assert not (tmp_path / "no").exists()


def test_the_budget_of_the_initial_model_stays(tmp_path):
    detector = SuperPointForKeypointDetection(SuperPointConfig(**NARROW, max_keypoints=7, keypoint_threshold=0.5))
    run = recipe(tmp_path, "d", initial_model="tiny")
    tiny = initial_matcher(recipe(tmp_path, "d", initial_model="tiny"), None, [])
    detector = SuperPointForKeypointDetection(
        SuperPointConfig(**{**NARROW, "descriptor_decoder_dim": 64}, max_keypoints=7, keypoint_threshold=0.5)
    )
    config = initial_matcher(run, detector, []).config.keypoint_detector_config
    assert config.encoder_hidden_sizes == NARROW["encoder_hidden_sizes"]
    before = tiny.config.keypoint_detector_config
    assert (config.max_keypoints, config.keypoint_threshold) == (before.max_keypoints, before.keypoint_threshold)


def test_only_superpoint_is_trained(corners, tmp_path):
    with pytest.raises(RecipeError, match="lightglue_hf_test_corners, and only SuperPoint has a training"):
        train_detector(DetectorRecipe(tmp_path / "run", initial_model=corners, pairs=8, **SMALL))
    assert not (tmp_path / "run").exists()
