"""Tiles: no pixel twice, and what is found in them is what the whole photo gives."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightglue_hf import (
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
    SuperPointConfig,
    bundled_checkpoint,
)
from lightglue_hf.tiles import ALIGNMENT, BORDER, SIDE, TILES_AT_ONCE, _without_doubles, cut_side, features_of_tiles

from .small_detectors import DETECTORS, picture, processor_of, small_matcher
from .weights import weights_file

SMALL = 288  # pixels a side of a tile, 96 of its core


def whole(model, processor, pixels):
    """The features of one image that is seen at once, without padding."""
    inputs = processor(pixels, pairs=False, do_resize=False, return_tensors="pt", input_data_format="channels_first")
    with torch.inference_mode():
        return model.extract_features(**inputs).numpy()[0]


def tiled(model, processor, pixels, side=SMALL):
    with torch.inference_mode():
        features = features_of_tiles(model, processor, pixels, side)
    assert features.shape == (1,)
    return features.numpy()[0]


def nearest(points, others):
    """How far the nearest of the others is from each point, along the farther axis."""
    return np.abs(points[:, None] - others).max(-1).min(1)


# -- the cut ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20000), st.sampled_from([224, SMALL, SIDE, 2048]))
def test_cores_share_out_the_pixels_and_have_their_borders(length, side):
    spans = cut_side(length, side)
    assert [span.core_start for span in spans] == [0, *(span.core_stop for span in spans[:-1])]
    assert spans[-1].core_stop == length
    for span in spans:
        assert span.core_start < span.core_stop
        assert span.stop - span.start <= side
        assert span.start % ALIGNMENT == 0
        assert span.core_start - span.start == (BORDER if span.core_start else 0)
        assert span.stop - span.core_stop >= (BORDER if span.core_stop < length else 0)


@pytest.mark.parametrize("side", [0, -32, 100, 192, 1000])
def test_tiles_that_leave_no_core_are_refused(side):
    with pytest.raises(ValueError, match=f"multiple of 32 pixels above 192 a side, got {side}"):
        cut_side(5000, side)


# -- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_keypoints", [-1, 150])
@pytest.mark.parametrize("size", [(500, 611), (300, 96), (120, 1000)])
def test_superpoints_keypoints_are_those_of_the_whole_photo(size, max_keypoints):
    model = small_matcher("superpoint", max_keypoints=max_keypoints, descriptor_grid="centred", nms_radius=4)
    processor, pixels = processor_of(model), picture(*size).transpose(2, 0, 1)
    expected, found = whole(model, processor, pixels), tiled(model, processor, pixels)
    assert found["image_sizes"].tolist() == list(size)
    assert len(found["scores"]) == pytest.approx(len(expected["scores"]), rel=0.01)
    by_place = {tuple(point): i for i, point in enumerate(expected["keypoints"].tolist())}
    common = [(i, by_place[tuple(p)]) for i, p in enumerate(found["keypoints"].tolist()) if tuple(p) in by_place]
    assert len(common) >= 0.99 * len(expected["scores"]) > 50
    ours, theirs = map(list, zip(*common))
    np.testing.assert_allclose(found["scores"][ours], expected["scores"][theirs], atol=1e-4)
    np.testing.assert_allclose(found["descriptors"][ours], expected["descriptors"][theirs], atol=1e-2)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_finds_the_best_of_the_whole_photo_once(name):
    model = small_matcher(name, max_keypoints=-1)
    processor, pixels = processor_of(model), picture(420, 530).transpose(2, 0, 1)
    everything = tiled(model, processor, pixels)
    points, scores = everything["keypoints"], everything["scores"]
    assert len(points) > 100
    assert (points >= -0.5).all()
    assert (points < np.array([530, 420]) - 0.5).all()
    assert (np.diff(scores) <= 0).all()
    core = np.maximum(points.round().astype(int) - BORDER, 0) // 96
    across = (core[:, None] != core).any(-1)
    gaps = np.abs(points[:, None] - points).max(-1)
    assert (across & (gaps < 9)).sum() > 5
    assert gaps[across].min() > 1, "a point at a seam is found once"
    model.config.keypoint_detector_config.max_keypoints = 40
    best = tiled(model, processor, pixels)
    assert len(best["scores"]) == 40
    assert (best["scores"] >= scores[44]).all(), "of all tiles; a few are no keypoints beside a better one"
    assert set(best) == set(everything)


def test_a_photo_of_one_tile_is_seen_at_once():
    model = small_matcher("disk", max_keypoints=100)  # which normalises what it sees
    processor, pixels = processor_of(model), picture(200, 250).transpose(2, 0, 1)
    expected, found = whole(model, processor, pixels), tiled(model, processor, pixels)
    order = np.argsort(-expected["scores"], kind="stable")
    for name in ("keypoints", "scores", "descriptors"):
        np.testing.assert_allclose(found[name], expected[name][order], atol=1e-5)


def test_no_more_than_a_few_tiles_are_computed_at_once(monkeypatch):
    model = small_matcher("superpoint", max_keypoints=100)
    seen = []
    real = type(model).extract_features

    def watched(self, pixel_values, **others):
        seen.append(pixel_values.shape)
        return real(self, pixel_values, **others)

    monkeypatch.setattr(type(model), "extract_features", watched)
    tiled(model, processor_of(model), picture(600, 700).transpose(2, 0, 1))
    assert len(seen) > 3
    assert max(shape[0] for shape in seen) == TILES_AT_ONCE
    assert max(max(shape[2:]) for shape in seen) == SMALL


def test_graphs_without_regions_keep_what_lies_in_the_core():
    model = small_matcher("superpoint", max_keypoints=-1)
    processor, pixels = processor_of(model), picture(400, 500).transpose(2, 0, 1)
    expected = tiled(model, processor, pixels)

    class Graphs:
        engine, config, device = "none", model.config, model.device

        def extract_features(self, pixel_values, image_sizes):
            return model.extract_features(pixel_values, image_sizes)

    found = tiled(Graphs(), processor, pixels)
    for name in ("keypoints", "scores", "descriptors"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_a_model_with_all_layers_has_the_detector_and_its_settings():
    model = small_matcher("superpoint", max_keypoints=-1)
    full = model.with_all_layers()
    full.config.keypoint_detector_config.max_keypoints = 7
    processor, pixels = processor_of(model), picture(200, 250).transpose(2, 0, 1)
    assert [len(find(it, processor, pixels)["scores"]) for it in (full, model) for find in (whole, tiled)] == [7] * 4


def test_the_settings_of_the_detector_count_whatever_the_matcher_says_of_it():
    model = small_matcher("superpoint", max_keypoints=7)
    model.config.keypoint_detector_config = SuperPointConfig()
    assert len(tiled(model, processor_of(model), picture(400, 500).transpose(2, 0, 1))["scores"]) == 7


def test_a_photo_without_keypoints():
    model = small_matcher("superpoint", max_keypoints=100, keypoint_threshold=0.9)
    features = features_of_tiles(model, processor_of(model), np.zeros((1, 400, 500), np.uint8), SMALL)
    assert features.keypoints.shape == (1, 0, 2)
    assert features.descriptors.shape == (1, 0, 16)


def test_of_two_keypoints_at_a_seam_the_better_stays():
    tiles = [(rows, columns) for rows in cut_side(100, SMALL) for columns in cut_side(500, SMALL)]
    seam = tiles[1][1].core_start
    points = [[seam + 1, 50], [seam - 2, 51], [seam - 2, 60], [seam + 9, 51], [seam + 2, 51], [30, 30], [31, 30]]
    found = {"keypoints": np.array(points, np.float32), "tile": np.array([1, 0, 0, 1, 1, 0, 0])}
    assert _without_doubles(found, tiles, 3).tolist() == [0, 2, 3, 4, 5, 6]


# -- published weights, and what is really huge -----------------------------------------------------------------------

SHARES = {  # of the whole photo's keypoints that tiles find within 1 px, and the files
    "superpoint": (0.99, "superpoint_lightglue.pth", "superpoint_v1.pth"),
    "xfeat": (0.9, "xfeat-lighterglue.pt", "xfeat.pt"),
    "aliked": (0.8, "aliked_lightglue.pth", "aliked-n16.pth"),
    "disk": (0.8, "disk_lightglue.pth", "disk-depth-save.pth"),
}


@pytest.mark.weights
@pytest.mark.parametrize("name", SHARES)
def test_published_detectors_find_in_tiles_what_they_find_in_the_whole(name):
    data = pytest.importorskip("skimage.data")
    from lightglue_hf import checkpoint

    share, *files = SHARES[name]
    for file in files:
        weights_file(file)
    directory = checkpoint(name)
    model = LightGlueForKeypointMatching.from_pretrained(directory).eval()
    model.config.keypoint_detector_config.max_keypoints = 1000
    processor = LightGlueImageProcessor.from_pretrained(directory)
    pixels = data.stereo_motorcycle()[0][:480, :736].transpose(2, 0, 1)  # multiples of 32: XFeat resizes others
    expected, found = whole(model, processor, pixels), tiled(model, processor, pixels, 384)
    assert (nearest(expected["keypoints"], found["keypoints"]) < 1).mean() >= share


@pytest.mark.slow
def test_twenty_four_megapixels():
    """Of one plane and its shift by whole pixels, found by the bundled checkpoint."""
    from lightglue_hf import match

    model = LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny")).eval()
    model.config.keypoint_detector_config.max_keypoints = 4096
    processor = LightGlueImageProcessor.from_pretrained(bundled_checkpoint("tiny"))
    canvas = np.block([[picture(1024, 1024, seed=10 * i + j)[..., 0] for j in range(6)] for i in range(4)])
    photo = canvas[:4000, :6000]
    found = match(photo, photo[37:, 51:], model, processor=processor, tiles=True)
    moved = np.abs(found.keypoints0 - found.keypoints1 - (51, 37)).max(1)
    assert len(found.matches) > 500
    assert (moved < 3).mean() > 0.6
