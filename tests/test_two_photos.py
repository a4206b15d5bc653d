"""`match`: two photos in, points of the photos out."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint, match, two_photos

from .small_detectors import picture

EDGE = 251


@pytest.fixture(scope="module")
def tiny():
    checkpoint = bundled_checkpoint("tiny")
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    model.config.keypoint_detector_config.max_keypoints = 256
    return model, LightGlueImageProcessor.from_pretrained(checkpoint, size={"longest_edge": EDGE})


@pytest.fixture(scope="module")
def photos():
    """Two cut-outs of one picture, (197, 251) and (190, 240), nine columns and four rows apart."""
    canvas = picture(220, 280)
    return canvas[:197, :EDGE], canvas[4:194, 9:249]


def share_moved(found, x, y, within=2):
    """The share of matches that lie so far apart."""
    return (np.abs(found.keypoints0 - found.keypoints1 - (x, y)).max(1) < within).mean()


def assert_equal(found, expected, atol=1e-3):
    assert len(found.matches) > 30
    assert found.turns == expected.turns
    for name in ("keypoints0", "keypoints1", "all_keypoints0", "all_keypoints1", "matching_scores"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=atol)
    assert np.array_equal(found.matches, expected.matches)


def test_points_are_those_of_the_processor_and_the_model(tiny, photos):
    model, processor = tiny
    found = match(*photos, model, processor=processor)
    with torch.inference_mode():
        outputs = model(**processor(list(photos), return_tensors="pt"))
    sizes = [[photo.shape[:2] for photo in photos]]
    (expected,) = processor.post_process_keypoint_matching(outputs, sizes)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values.numpy(), atol=1e-4)
        assert getattr(found, name).dtype == np.float32
    assert np.array_equal(found.all_keypoints0[found.matches[:, 0]], found.keypoints0)
    assert np.array_equal(found.all_keypoints1[found.matches[:, 1]], found.keypoints1)
    assert found.matches.dtype == np.int64
    assert found.turns == 0
    assert share_moved(found, 9, 4) > 0.9


def test_what_is_printed_of_a_pair_is_one_line(tiny, photos):
    model, processor = tiny
    found = match(*photos, model, processor=processor)
    n, (n0, n1) = len(found.matches), (len(found.all_keypoints0), len(found.all_keypoints1))
    assert repr(found) == f"PhotoMatches({n} matches of {n0} and {n1} keypoints, turns=0)"
    assert n > 30


def test_a_threshold_leaves_the_better_matches(tiny, photos):
    model, processor = tiny
    everything = match(*photos, model, processor=processor)
    threshold = float(np.median(everything.matching_scores))
    some = match(*photos, model, processor=processor, threshold=threshold)
    assert 0 < len(some.matches) == (everything.matching_scores > threshold).sum() < len(everything.matches)
    assert some.matching_scores.min() > threshold
    assert len(some.all_keypoints0) == len(everything.all_keypoints0)


def test_files_arrays_tensors_and_pictures_are_taken(tiny, photos, tmp_path):
    model, processor = tiny
    expected = match(*photos, model, processor=processor)
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{i}.png")
    others = [
        (tmp_path / "0.png", str(tmp_path / "1.png")),
        tuple(map(Image.fromarray, photos)),
        (torch.from_numpy(photos[0]).permute(2, 0, 1), photos[1][..., 0]),
    ]
    for pair in others:
        for options in ({}, {"turns": 4}):
            assert_equal(match(*pair, model, processor=processor, **options), expected)


def test_the_exif_orientation_is_taken_first(tiny, photos, tmp_path):
    model, processor = tiny
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned counter-clockwise, to be shown turned clockwise
    Image.fromarray(np.rot90(photos[1])).save(tmp_path / "turned.png", exif=exif)
    for options in ({}, {"turns": 4}, {"tiles": True}):
        found = match(photos[0], tmp_path / "turned.png", model, processor=processor, **options)
        assert_equal(found, match(*photos, model, processor=processor, **options))
        assert found.turns == 0


def test_a_checkpoint_by_its_name_is_loaded_once_for_each_number_of_keypoints(photos, monkeypatch):
    two_photos._load_once.cache_clear()
    first = match(*photos, "tiny", max_keypoints=50)
    assert len(first.all_keypoints0) == len(first.all_keypoints1) == 50
    assert len(match(*photos, max_keypoints=60).all_keypoints0) == 60
    monkeypatch.setattr(LightGlueImageProcessor, "from_pretrained", lambda *_: pytest.fail("read again"))
    assert len(match(*photos, "tiny", max_keypoints=50).all_keypoints0) == 50


def test_a_directory_is_read_at_every_call(tiny, photos, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path)
    before = match(*photos, tmp_path)
    assert_equal(before, match(*photos, tiny[0], processor=tiny[1]))
    tiny[0].config.to_json_file(tmp_path / "config.json")
    LightGlueImageProcessor(size={"longest_edge": 128}).save_pretrained(tmp_path)
    after = match(*photos, str(tmp_path))
    assert_equal(after, match(*photos, tiny[0], processor=tiny[1], longest_edge=128))
    assert len(after.all_keypoints0) < len(before.all_keypoints0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": 3}, "turns must be 1, 2 or 4, got 3"),
        ({"turns": 0}, "turns must be 1, 2 or 4, got 0"),
        ({"tiles": 100}, "multiple of 32"),
        ({"tiles": -32}, "multiple of 32"),
        ({"longest_edge": 0}, "whole number"),
        ({"longest_edge": 0, "turns": 2}, "whole number"),
        ({"longest_edge": 2.5, "tiles": True}, "whole number"),
        ({"longest_edge": 10**6, "turns": 2}, "more than"),
        ({"max_keypoints": 5}, "its own"),
        ({"device": "cpu"}, "its own"),
        ({"processor": None}, "give the processor"),
    ],
)
def test_what_cannot_be_is_refused(tiny, photos, options, message):
    with pytest.raises(ValueError, match=message):
        match(*photos, tiny[0], **{"processor": tiny[1], **options})


@pytest.mark.parametrize("max_keypoints", [-2, 2.5, "5"])
def test_numbers_of_keypoints_that_are_none(photos, max_keypoints):
    with pytest.raises(ValueError, match="max_keypoints must be a whole number"):
        match(*photos, max_keypoints=max_keypoints)


def test_names_that_are_none(photos):
    with pytest.raises(ValueError, match="'nothing' is no directory"):
        match(*photos, "nothing")
    with pytest.raises(ValueError, match="processor goes with a model that was loaded"):
        match(*photos, "tiny", processor=LightGlueImageProcessor())
    with pytest.raises(OSError, match=r"nowhere\.jpg"):
        match("nowhere.jpg", photos[1])


def test_tiles_see_the_full_resolution_or_the_one_that_is_asked_for(tiny):
    model, processor = tiny
    canvas = picture(500, 640)
    photos = canvas[:480, :600], canvas[10:490, 20:620]
    whole, found, smaller = (
        match(*photos, model, processor=processor, **options)
        for options in ({}, {"tiles": 416}, {"tiles": 416, "longest_edge": 300})
    )
    assert share_moved(found, 20, 10, within=1.5) > 0.9
    assert share_moved(smaller, 20, 10, within=3) > 0.9
    fractions = [np.abs(result.all_keypoints0 - result.all_keypoints0.round()).max() for result in (whole, found)]
    assert fractions[0] > 0.1, "SuperPoint finds pixels, here of a photo that was resized"
    assert fractions[1] < 1e-3, "and here of the photo itself"
    turned = match(photos[0], np.rot90(photos[1]), model, processor=processor, tiles=416, turns=4)
    assert turned.turns == 3
    moved = turned.keypoints0 - np.stack([599 - turned.keypoints1[:, 1], turned.keypoints1[:, 0]], 1)
    assert (np.abs(moved - (20, 10)).max(1) < 1.5).mean() > 0.9


def test_sixteen_bits_and_floats_are_seen_as_eight_bits_in_dark_tiles_too(tiny):
    """A tile of zeros and ones is nearly black in 8 bits, and would be white of floats."""
    model, processor = tiny
    photo = picture(300, 400)
    photo[:, 150:] //= 200
    expected = match(photo, photo, model, processor=processor, tiles=224)
    for same in (photo.astype(np.uint16) * 257, photo / 255, photo.astype(float)):
        assert_equal(match(same, same, model, processor=processor, tiles=224), expected, atol=1e-2)
