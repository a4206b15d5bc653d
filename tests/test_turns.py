"""Turned photos: points come back exactly, and all turns are matched together."""

import numpy as np
import pytest
import torch

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint
from lightglue_hf.geometry import scale_keypoints, turn_keypoints
from lightglue_hf.turns import match_turned
from lightglue_hf.utils.errors import InputError

from .small_detectors import DETECTORS, picture, processor_of, small_matcher

SIZES = [(197, 251), (251, 197), (200, 250), (128, 128), (128, 129)]


def turned_points(outputs, turns):
    """The second photo's keypoints in pixels, when the photo is turned."""
    size = outputs.image_sizes[0, 1]
    return turn_keypoints(outputs.keypoints[0, 1].double() * size.flip(-1), size.tolist(), turns)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("turned", [1, 2, 3])
def test_a_turned_photo_has_the_very_points_of_the_upright_one(size, turned):
    """Without a resize the pixels are the same when the photo is turned back, and so is all that is found."""
    model = small_matcher("superpoint", max_keypoints=100)
    processor = processor_of(model, max(size))
    first, second = picture(*size), picture(*size, seed=1)
    upright, turns = match_turned(model, processor, (first, second), 4)
    found, more_turns = match_turned(model, processor, (first, np.rot90(second, turned)), 4)
    assert more_turns == (turns - turned) % 4
    assert found.image_sizes[0, 1].tolist() == list(np.rot90(second, turned).shape[:2])
    points = turned_points(found, -turned)
    torch.testing.assert_close(points, turned_points(upright, 0), atol=1e-3, rtol=0)
    torch.testing.assert_close(points, points.round(), atol=1e-3, rtol=0)  # SuperPoint finds pixels
    for name in ("matches", "mask", "stop"):
        assert torch.equal(found[name], upright[name]), name
    torch.testing.assert_close(found.matching_scores, upright.matching_scores)
    assert (found.matches >= 0).any()
    assert found.mask.all()


@pytest.mark.parametrize("turned", [0, 1, 2, 3])
def test_the_bundled_checkpoint_finds_how_a_photo_is_turned(turned):
    checkpoint = bundled_checkpoint("tiny")
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    model.config.keypoint_detector_config.max_keypoints = 256
    processor = LightGlueImageProcessor.from_pretrained(checkpoint, size={"longest_edge": 240})
    canvas = picture(220, 280)
    first, second = canvas[:197, :251], canvas[4:194, 9:220]
    outputs, turns = match_turned(model, processor, (first, np.rot90(second, turned)), 4)
    assert turns == -turned % 4
    sizes = outputs.image_sizes[0].tolist()
    upright = sizes[1] if turned % 2 == 0 else sizes[1][::-1]
    points0 = scale_keypoints(outputs.keypoints[0, 0] * torch.tensor(sizes[0][::-1]), sizes[0], first.shape[:2])
    points1 = scale_keypoints(turned_points(outputs, -turned), upright, second.shape[:2])
    partners = outputs.matches[0, 0]
    moved = points0[partners >= 0] - points1[partners[partners >= 0]]
    assert len(moved) > 50
    assert ((moved - torch.tensor([9, 4])).abs().amax(1) < 2).float().mean() > 0.9


@pytest.mark.parametrize("turns", [2, 4])
def test_an_upright_photo_gives_what_it_gives_without_turns(turns):
    checkpoint = bundled_checkpoint("tiny")
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    model.config.keypoint_detector_config.max_keypoints = 256
    processor = LightGlueImageProcessor.from_pretrained(checkpoint)
    canvas = picture(220, 280)
    photos = canvas[:197, :251], canvas[4:194, 9:220]
    expected, _ = match_turned(model, processor, photos, longest_edge=251)
    found, turned = match_turned(model, processor, photos, turns, longest_edge=251)
    assert turned == 0
    for name in ("matches", "mask", "stop", "image_sizes"):
        assert torch.equal(found[name], expected[name]), name
    for name in ("keypoints", "matching_scores"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_of_half_turns_the_second_is_found():
    model = small_matcher("superpoint", max_keypoints=100)
    first, second = picture(150, 200), picture(150, 200, seed=1)
    processor = processor_of(model, 200)
    upright, turns = match_turned(model, processor, (first, second), 2)
    found, more_turns = match_turned(model, processor, (first, np.rot90(second, 2)), 2)
    assert {turns, more_turns} == {0, 2}
    torch.testing.assert_close(turned_points(found, 2), turned_points(upright, 0), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("turns", "tiles", "images"), [(4, False, [1, 4]), (2, False, [1, 2]), (4, True, [1] * 5)])
def test_the_first_photo_is_searched_once_and_all_turns_are_matched_together(monkeypatch, turns, tiles, images):
    model = small_matcher("superpoint", max_keypoints=60)
    searched, matched = [], []
    extract, match_features = type(model).extract_features, type(model).match_features

    def watched_extract(self, pixel_values, **others):
        searched.append(len(pixel_values))
        return extract(self, pixel_values, **others)

    def watched_match(self, features):
        matched.append(tuple(features.shape))
        return match_features(self, features)

    monkeypatch.setattr(type(model), "extract_features", watched_extract)
    monkeypatch.setattr(type(model), "match_features", watched_match)
    match_turned(model, processor_of(model), (picture(120, 160), picture(110, 150, seed=1)), turns, tiles)
    assert searched == images
    assert matched == [(turns, 2)]


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_takes_turns_and_tiles(name):
    """What is chosen is one of the four, in a batch as alone."""
    model = small_matcher(name, max_keypoints=80)
    processor = processor_of(model, 224)
    first, second = picture(168, 224), picture(224, 150, seed=3)
    found, turns = match_turned(model, processor, (first, second), 4)
    alone, _ = match_turned(model, processor, (first, np.ascontiguousarray(np.rot90(second, turns))))
    n = alone.mask.shape[-1]
    assert torch.equal(found.matches[..., :n], alone.matches)
    assert not found.mask[..., n:].any()
    assert (alone.matches >= 0).any()
    mask = alone.mask[0, 1].bool()
    expected, points = turned_points(alone, -turns)[mask], turned_points(found, 0)[:n][mask]
    torch.testing.assert_close(points, expected, atol=1e-2, rtol=0)
    tiled, _ = match_turned(model, processor, (first, second), 4, tiles=224)
    assert tiled.image_sizes.tolist() == [[[168, 224], [224, 150]]]
    assert (tiled.matches >= 0).any()
    assert tiled.mask.sum(-1).max() <= 80
    assert (tiled.keypoints * tiled.image_sizes.flip(-1)[:, :, None] > -0.51).all()
    assert (tiled.keypoints < 1).all()


@pytest.mark.parametrize("turns", [1, 2, 4])
@pytest.mark.parametrize("tiles", [False, 224])
def test_nothing_in_either_photo(turns, tiles):
    model = small_matcher("superpoint", max_keypoints=100, keypoint_threshold=0.9)
    black = np.zeros((60, 300), np.uint8)
    outputs, turned = match_turned(model, processor_of(model), (black, black), turns, tiles)
    assert turned == 0
    assert (outputs.matches == -1).all()
    assert not outputs.mask.any()
    assert outputs.image_sizes.tolist() == [[[60, 300] if tiles else [51, 256]] * 2]


@pytest.mark.parametrize("turns", [1, 2])
def test_a_longest_edge_is_for_a_processor_that_does_not_resize_too(turns):
    model = small_matcher("superpoint", max_keypoints=100)
    photos = picture(120, 160), picture(120, 160, seed=1)
    resizing, not_resizing = processor_of(model), processor_of(model)
    not_resizing.do_resize = False
    expected, _ = match_turned(model, resizing, photos, turns, longest_edge=96)
    outputs, _ = match_turned(model, not_resizing, photos, turns, longest_edge=96)
    assert outputs.image_sizes.tolist() == [[[72, 96]] * 2]
    assert torch.equal(outputs.keypoints, expected.keypoints)


class OfOneSize:
    """In place of exported graphs that were made for images of one size."""

    engine = "none"

    def __init__(self, height, width):
        self.size = height, width

    def axes(self, part):
        return {"pixel_values": [None, 3, *self.size]}

    def extract_features(self, **inputs):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("size", "options", "error"),
    [
        ((96, 128), {"turns": 4}, InputError),
        ((96, 128), {"tiles": True}, InputError),
        ((96, 128), {"turns": 2}, NotImplementedError),
        ((96, 96), {"turns": 4}, NotImplementedError),
    ],
)
def test_graphs_of_one_size_say_what_they_cannot_do(size, options, error):
    model = OfOneSize(*size)
    model.device = torch.device("cpu")
    processor = LightGlueImageProcessor(size={"height": size[0], "width": size[1]})
    with pytest.raises(error, match="export it without height" if error is InputError else None):
        match_turned(model, processor, (picture(96, 128), picture(96, 128)), **options)
