"""Small trainings from end to end, and the teacher."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lightglue_hf import LightGlueForKeypointMatching, SuperPointConfig, SuperPointForKeypointDetection
from lightglue_hf.detectors.superpoint import CELL
from lightglue_hf.homographies import render_textures, sample_pairs
from lightglue_hf.training import (
    DetectorCollator,
    DetectorRecipe,
    MatcherRecipe,
    corner_response,
    detector_labels,
    fold_batch_norm,
    gaussian_blur,
    insert_batch_norm,
    teacher_keypoints,
    train_detector,
    train_matcher,
)

pytest.importorskip("accelerate")

SMALL = {"height": 64, "width": 96, "textures": 6, "batch_size": 4, "workers": 0, "warmup_steps": 5}
NARROW = {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "descriptor_decoder_dim": 16}


@pytest.fixture(scope="module")
def pairs():
    textures = torch.from_numpy(render_textures(4, 192, 256, 0))
    return sample_pairs(textures, range(4), 96, 128, multi_plane=0.5)


def squares(height=64, width=96):
    """A white rectangle with corners at (20, 16), (59, 16), (20, 43) and (59, 43)."""
    image = torch.zeros(1, height, width)
    image[:, 16:44, 20:60] = 1
    return image


def test_the_blur_is_a_convolution_with_replicated_borders():
    image = torch.rand(1, 1, 20, 30)
    offsets = torch.arange(-4, 5).float()
    kernel = torch.exp(-(offsets**2) / (2 * 1.2**2))
    kernel = kernel / kernel.sum()
    expected = F.conv2d(F.pad(image, (4, 4, 4, 4), mode="replicate"), kernel.outer(kernel)[None, None])
    torch.testing.assert_close(gaussian_blur(image, 1.2), expected)


def test_the_teacher_finds_corners_and_not_edges():
    points, responses = teacher_keypoints(squares(), 8)
    assert (responses > 0).sum() == 4
    corners = torch.tensor([[20.0, 16], [59, 16], [20, 43], [59, 43]])
    assert torch.cdist(points[0, :4], corners).amin(1).max() < 2
    response = corner_response(squares())
    assert response[0, 30, 20] < 1e-3 * response.max(), "the middle of an edge"


def test_labels_are_at_the_same_points_of_both_views(pairs):
    labels = detector_labels(pairs, torch.Generator().manual_seed(0))
    objectness, location = labels["objectness"], labels["location"]
    assert objectness.shape == (8, 12, 16)
    assert set(objectness.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(objectness == 1, ~location.isnan().any(-1))
    inside = location[objectness == 1]
    assert inside.min() >= -0.5
    assert inside.max() < CELL - 0.5
    points, mask = labels["correspondences"], labels["correspondence_mask"]
    assert 20 < mask.sum(1).min()
    homographies = pairs.homographies
    start = torch.cat([points[:, :, 0], torch.ones_like(points[:, :, :1, 0])], -1)
    landed = torch.einsum("blij,bnj->blni", homographies, start)
    landed = landed[..., :2] / landed[..., 2:]
    error = (landed - points[:, None, :, 1]).norm(dim=-1).amin(1)  # on one of the layers
    assert error[mask].max() < 1e-2


def test_batch_norm_folds_away():
    model = SuperPointForKeypointDetection(SuperPointConfig(**NARROW)).train()
    names = set(model.state_dict())
    insert_batch_norm(model)
    for _ in range(3):  # running statistics
        model.encoder(torch.rand(2, 1, 32, 48))
        model.keypoint_decoder(torch.rand(2, 16, 4, 6))
        model.descriptor_decoder(torch.rand(2, 16, 4, 6))
    model.eval()
    image = torch.rand(1, 1, 32, 48)
    features = model.encoder(image)[-1]
    expected = model.keypoint_decoder(features), model.descriptor_decoder(features)
    fold_batch_norm(model)
    features = model.encoder(image)[-1]
    torch.testing.assert_close(model.keypoint_decoder(features), expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.descriptor_decoder(features), expected[1], atol=1e-4, rtol=1e-4)
    assert set(model.state_dict()) == names


def test_a_seed_always_gives_its_pair():
    recipe = DetectorRecipe("", **SMALL)
    collate = DetectorCollator(torch.from_numpy(render_textures(4, 128, 192, 0)), recipe)
    first, again = collate([5, 6]), collate([5, 6])
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(collate([6])["pixel_values"], first["pixel_values"][2:])
    for name, value in first["labels"].items():
        torch.testing.assert_close(again["labels"][name], value, equal_nan=True, atol=0, rtol=0)


def losses(directory):
    return [entry["loss"] for entry in json.loads(Path(directory, "log.json").read_text()) if "loss" in entry]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Two hundred steps of the detector."""
    directory = tmp_path_factory.mktemp("detector")
    recipe = DetectorRecipe(str(directory), pairs=800, learning_rate=5e-3, save_steps=1000, **SMALL, **NARROW)
    train_detector(recipe)
    return directory


def test_training_the_detector_lowers_its_loss(detector):
    first, *_, last = losses(detector)
    assert last < 0.9 * first
    recipe = json.loads((detector / "recipe.json").read_text())
    assert recipe["pairs"] == 800
    model, info = SuperPointForKeypointDetection.from_pretrained(detector, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.remove_far_borders


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tmp_path):
    options = {"pairs": 24, "save_steps": 2, **SMALL, **NARROW}
    whole = train_detector(DetectorRecipe(str(tmp_path / "whole"), **options)).state_dict()
    halves = DetectorRecipe(str(tmp_path / "halves"), **options)
    train_detector(halves)
    for path in (tmp_path / "halves").glob("checkpoint-*"):
        if path.name != "checkpoint-4":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    resumed = train_detector(halves).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_recipe_does_not_go_on_with_a_run(detector):
    recipe = json.loads((detector / "recipe.json").read_text())
    with pytest.raises(ValueError, match="other learning_rate, seed"):
        train_detector(DetectorRecipe(**{**recipe, "seed": 1, "learning_rate": 1.0}))


def test_two_stages_of_the_matcher(detector, tmp_path):
    options = {"detector": str(detector), "keypoints": 48, "save_steps": 1000, **SMALL}
    first = MatcherRecipe(
        str(tmp_path / "first"), pairs=240, descriptor_dim=32, num_hidden_layers=3, num_attention_heads=2, **options
    )
    train_matcher(first)
    initial, *_, last = losses(first.output_dir)
    assert last < initial
    second = MatcherRecipe(
        str(tmp_path / "second"), pairs=16, stage=2, initial_model=first.output_dir, learning_rate=1e-2, **options
    )
    train_matcher(second)
    before, after = (
        LightGlueForKeypointMatching.from_pretrained(recipe.output_dir).state_dict() for recipe in (first, second)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("token_confidence.") for name in changed)
