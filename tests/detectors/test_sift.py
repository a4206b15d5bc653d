"""SIFT: OpenCV's keypoints as the reference keeps them, the same in any batch, and their way through the matcher."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForKeypointDetection, SuperPointConfig

from lightglue_hf import (
    KeypointFeatures,
    LightGlueConfig,
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
    SIFTConfig,
    SIFTForKeypointDetection,
)
from lightglue_hf.data.textures import render_textures
from lightglue_hf.detectors.sift import best_of_pixels, detect_and_describe, to_grey_levels, to_root_sift

from ..reference import load, matcher

pytest.importorskip("cv2")

FIELDS = ("keypoints", "scores", "scales", "orientations", "descriptors", "mask")
SIZES = [(120, 160), (97, 131), (120, 64), (40, 160), (9, 15), (1, 1)]


def model(**overrides):
    return SIFTForKeypointDetection(SIFTConfig(**overrides)).eval()


def photos(count=2, height=120, width=160, seed=0):
    """`(count, 1, height, width)`, rendered."""
    return torch.from_numpy(render_textures(count, height, width, seed))[:, None] / 255


def points(features, image=0):
    return features.keypoints[image][features.mask[image].bool()]


def assert_equal_to_alone(features, image, alone):
    valid = features.mask[image].bool()
    for name in FIELDS:
        assert torch.equal(features[name][image][valid], alone[name][0])
        assert not features[name][image][~valid].any()


# -- the reference


def test_what_the_reference_finds():
    """In the same pixels: the figures are of cvg/LightGlue@1fd587b. Builds of OpenCV may differ in a few keypoints."""
    case = load("sift__opencv")
    found = model().extract_features(torch.from_numpy(case["image"])[None, None] / 255)
    expected = {name: torch.from_numpy(value) for name, value in case.items() if name != "image"}
    distance = (found.keypoints[0][:, None] - expected["keypoints"]).abs().amax(-1)
    assert (distance.amin(0) < 0.05).float().mean() >= 0.98
    assert (distance.amin(1) < 0.05).float().mean() >= 0.98
    nearest = distance.argmin(0)
    differences = {
        "scales": (found.scales[0][nearest] / expected["scales"] - 1).abs(),
        "orientations": ((found.orientations[0][nearest] - expected["orientations"]) / 2).sin().abs(),
        "descriptors": (found.descriptors[0][nearest] - expected["descriptors"]).abs().amax(-1),
        "scores": (found.scores[0][nearest] - expected["scores"]).abs(),
    }
    tolerances = {"scales": 1e-3, "orientations": 1e-3, "descriptors": 1e-4, "scores": 1e-5}
    for name, difference in differences.items():
        assert (difference < tolerances[name]).float().mean() >= 0.98, name


def test_roots_of_shares():
    descriptors = torch.tensor([[4.0, 0.0, 12.0], [0.0, 0.0, 0.0]])
    roots = torch.tensor([[0.25, 1e-6, 0.75], [1.0, 1.0, 1.0]]).sqrt()
    torch.testing.assert_close(to_root_sift(descriptors), roots / roots.norm(dim=1, keepdim=True))
    image = photos(1)
    plain, roots = (model(rootsift=rootsift).extract_features(image).descriptors for rootsift in (False, True))
    torch.testing.assert_close(plain.norm(dim=-1), torch.ones(plain.shape[:2]))
    torch.testing.assert_close(to_root_sift(plain), roots, atol=1e-5, rtol=1e-4)
    assert (plain - roots).abs().max() > 0.1


def test_grey_levels_are_truncated_and_those_of_half_precision_rounded():
    levels = torch.arange(256.0).view(1, 1, 16, 16)
    first = torch.cat([levels / 255, torch.rand(1, 1, 16, 16)], 1)
    assert (to_grey_levels(first)[0].ravel() == np.arange(256)).all()
    assert (to_grey_levels((levels + 0.9) / 255)[0].ravel() == np.arange(256)).all()
    assert (to_grey_levels((levels / 255).half())[0].ravel() == np.arange(256)).all()
    assert to_grey_levels(torch.tensor([[[[-0.5, 1.5]]]])).tolist() == [[[0, 255]]]


def test_a_photo_turned_and_enlarged():
    """Orientations are clockwise, scales in pixels, and with `precise_upscale` keypoints move with the pixels."""
    detector, image = model(precise_upscale=True), photos(1)
    found, turned = (detector.extract_features(x) for x in (image, image.rot90(-1, (2, 3))))
    x, y = found.keypoints[0].unbind(-1)
    distance, nearest = torch.cdist(torch.stack([119 - y, x], -1), turned.keypoints[0]).min(1)
    same = distance < 0.2
    turn = (turned.orientations[0][nearest] - found.orientations[0] - math.pi / 2)[same]
    assert same.float().mean() > 0.85
    assert ((turn / 2).sin().abs() < 0.02).float().mean() > 0.8
    assert found.orientations.min() >= 0
    assert found.orientations.max() < 2 * math.pi

    enlarged = detector.extract_features(F.interpolate(image, scale_factor=2, mode="bicubic").clamp(0, 1))
    distance, nearest = torch.cdist(2 * found.keypoints[0] + 0.5, enlarged.keypoints[0]).min(1)
    same = (distance < 0.4) & (found.scales[0] > 4)
    assert same.sum() > 20
    assert (enlarged.scales[0][nearest] / found.scales[0])[same].median() == pytest.approx(2, rel=0.02)


def test_a_quarter_of_a_pixel():
    image = photos(1)
    plain, precise = (model(precise_upscale=value).extract_features(image).keypoints[0] for value in (False, True))
    distance, nearest = torch.cdist(plain, precise).min(1)
    shift = (plain - precise[nearest])[distance < 0.5].median(0).values
    torch.testing.assert_close(shift, torch.full((2,), 0.25), atol=0.03, rtol=0)


# -- the contract


@pytest.mark.parametrize("max_keypoints", [-1, 12])
def test_photos_of_different_sizes_give_in_a_batch_what_they_give_alone(max_keypoints):
    detector = model(max_keypoints=max_keypoints)
    canvas = photos(len(SIZES))
    for i, (height, width) in enumerate(SIZES):  # what lies in the padding is not seen
        canvas[i, :, height:] = 1
        canvas[i, :, :, width:] = torch.rand(160 - width)
    features = detector.extract_features(canvas, torch.tensor(SIZES))
    for i, (height, width) in enumerate(SIZES):
        assert_equal_to_alone(features, i, detector.extract_features(canvas[i : i + 1, :, :height, :width]))
    assert features.image_sizes.tolist() == [list(size) for size in SIZES]
    assert len(features.mask.sum(-1).unique()) > (3 if max_keypoints < 0 else 1)
    assert features.mask[0].sum() > 10


def test_the_best_are_kept():
    image = photos()
    everything = model(max_keypoints=-1).extract_features(image)
    count = int(everything.mask.sum(-1).min())
    assert 30 < count < everything.mask.sum(-1).max()
    few = model(max_keypoints=count).extract_features(image)
    small = int(everything.mask.sum(-1).argmin())
    assert torch.equal(few.keypoints[small], points(everything, small))  # all in OpenCV's order
    best = few.scores[1 - small]
    assert (best.diff() <= 0).all()
    assert torch.equal(best, everything.scores[1 - small].topk(count).values)


def test_a_region_keeps_the_best_of_those_inside():
    image = photos()
    region = torch.zeros(2, 120, 160, dtype=torch.bool)
    region[0, 30:80, 20:90] = True
    region[1, :, 100:] = True
    everything = model(max_keypoints=-1).extract_features(image)
    for count in (-1, 9):
        features = model(max_keypoints=count).extract_features(image, region=region)
        for i in range(2):
            x, y = points(everything, i).round().long().unbind(-1)
            inside = everything.scores[i][everything.mask[i].bool()][region[i, y, x]]
            assert 9 < len(inside) < everything.mask[i].sum()
            expected = inside if count < 0 else inside.topk(9).values
            assert torch.equal(features.scores[i][features.mask[i].bool()], expected)
            x, y = points(features, i).round().long().unbind(-1)
            assert region[i, y, x].all()
    assert not model().extract_features(image, region=torch.zeros_like(region)).mask.any()


def test_settings_are_read_at_every_call():
    detector, image = model(), photos(1)
    before = detector.extract_features(image)
    detector.config.keypoint_threshold = 0.08
    after = detector.extract_features(image)
    assert 0 < after.mask.sum() < before.mask.sum()
    assert before.scores.min() < 0.02 <= after.scores.min()  # the threshold, over four layers
    detector.config.max_keypoints = 3
    assert detector.extract_features(image).mask.sum() == 3
    detector.config.keypoint_threshold = 1e3
    assert detector.extract_features(image).descriptors.shape == (1, 0, 128)


@pytest.mark.parametrize("max_keypoints", [0, 7, 4000])
def test_fixed_shapes_find_the_same(max_keypoints):
    detector, image = model(max_keypoints=max_keypoints), photos()
    image[1] *= 0.05
    fixed = detector.extract_features(image, fixed_shapes=True)
    dynamic = detector.extract_features(image)
    n = dynamic.mask.shape[1]
    assert fixed.mask.shape == (2, max_keypoints)
    for name in FIELDS:
        assert torch.equal(fixed[name][:, :n], dynamic[name])
        assert not fixed[name][:, n:].any()
    with pytest.raises(ValueError, match="fixed_shapes needs"):
        model(max_keypoints=-1).extract_features(image, fixed_shapes=True)


@pytest.mark.parametrize(("shape", "batch"), [((1, 1), 2), ((7, 5), 1), ((3, 200), 1), ((64, 64), 0)])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_images_of_nothing_have_no_keypoints(shape, batch, fixed_shapes):
    outputs = model(max_keypoints=6)(torch.rand(batch, 3, *shape), fixed_shapes=fixed_shapes)
    n = 6 if fixed_shapes else 0
    assert outputs.keypoints.shape == (batch, n, 2)
    assert outputs.descriptors.shape == (batch, n, 128)
    assert outputs.scales.shape == outputs.orientations.shape == outputs.mask.shape == (batch, n)
    assert not outputs.mask.any()


def test_relative_keypoints_and_unit_descriptors():
    image = photos()
    outputs, features = model()(image), model().extract_features(image)
    torch.testing.assert_close(outputs.keypoints * torch.tensor([160.0, 120.0]), features.keypoints)
    torch.testing.assert_close(outputs.descriptors.norm(dim=-1), outputs.mask.float())
    assert torch.equal(outputs.orientations, features.orientations)
    assert len(model()(image, return_dict=False)) == 6


# -- what is kept of OpenCV's keypoints


def test_one_keypoint_a_pixel_the_best_and_of_the_smallest_orientation():
    found = KeypointFeatures(
        keypoints=torch.tensor([[5.2, 3.9], [5.9, 3.0], [5.5, 3.5], [6.0, 3.0], [5.0, 4.0], [0.0, 0.0]]),
        scores=torch.tensor([0.2, 0.4, 0.4, 0.1, 0.3, 0.3]),
        orientations=torch.tensor([0.1, 3.0, 2.0, 0.0, 0.0, 1.0]),
    )
    assert best_of_pixels(found, 8, 9, 0).tolist() == [2, 3, 4, 5]
    assert best_of_pixels(found, 8, 9, 1).tolist() == [2, 5]
    assert best_of_pixels(found, 8, 9, 5).tolist() == [2]


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_no_two_keypoints_within_the_radius(radius):
    image = photos(1)
    everything = detect_and_describe(to_grey_levels(image)[0], SIFTConfig(), describe=True)
    pixels = everything.keypoints.floor()
    assert len(pixels.unique(dim=0)) < len(pixels)  # several orientations of a place
    kept = points(model(nms_radius=radius).extract_features(image)).floor()
    distance = (kept[:, None] - kept).abs().amax(-1) + 1000 * torch.eye(len(kept))
    assert distance.min() > radius
    assert distance.min() <= radius + 2
    if radius == 0:
        assert len(kept) == len(pixels.unique(dim=0))


# -- a model without weights


def test_it_is_saved_and_loaded_like_any_model(tmp_path):
    detector, image = model(max_keypoints=11), photos(1)
    detector.save_pretrained(tmp_path)
    expected = detector.extract_features(image)
    for loaded in (
        SIFTForKeypointDetection.from_pretrained(tmp_path),
        SIFTForKeypointDetection.from_pretrained(tmp_path, dtype=torch.float16),
        SIFTForKeypointDetection.from_pretrained(tmp_path, dtype="auto", config=SIFTConfig(max_keypoints=11)),
        AutoModelForKeypointDetection.from_pretrained(tmp_path),
    ):
        assert type(loaded) is SIFTForKeypointDetection
        assert loaded.dtype == torch.float32
        assert not loaded.training
        assert_equal_to_alone(expected, 0, loaded.extract_features(image))
    assert SIFTForKeypointDetection.from_pretrained(tmp_path, max_keypoints=5).config.max_keypoints == 5
    _, info = SIFTForKeypointDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    with pytest.raises(OSError, match="nowhere"):
        SIFTForKeypointDetection.from_pretrained(tmp_path / "nowhere")


def test_it_has_a_place_and_one_type():
    detector = model()
    assert not detector.state_dict()
    assert (detector.device.type, detector.dtype) == ("cpu", torch.float32)
    assert detector.half().dtype == torch.float32
    assert detector.to(torch.bfloat16).extract_features(photos(1)).descriptors.dtype == torch.float32
    assert nn.Sequential(detector).to("meta")[0].device.type == "meta"


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"lightglue-hf\[sift\]"):
        model().extract_features(photos(1))


@pytest.mark.parametrize(("name", "value"), [("num_octave_layers", 0), ("nms_radius", -1), ("nms_radius", None)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        SIFTConfig(**{name: value})


# -- with a matcher


def whole_model(**overrides):
    """The reference's matcher of random weights, which takes scales and orientations, behind SIFT."""
    small = matcher("sift", depth_confidence=-1, width_confidence=-1, filter_threshold=0.0)
    settings = small.config.to_dict()
    for name in ("keypoint_detector_config", "use_keypoint_detector", "input_dim"):
        settings.pop(name)
    whole = LightGlueForKeypointMatching(LightGlueConfig(SIFTConfig(max_keypoints=40), **settings | overrides)).eval()
    weights = small.state_dict()
    shorter = torch.randn(32, 128, generator=torch.Generator().manual_seed(4))
    whole.load_state_dict({**weights, "input_projection.weight": weights["input_projection.weight"] @ shorter})
    return whole


@pytest.fixture
def prepared():
    """Three photos of different sizes as the processor gives them, at the size that the model wants."""
    processor = LightGlueImageProcessor(size={"longest_edge": 160})
    images = [(255 * image[0]).byte().numpy() for image in photos(3, seed=3)]
    images = [images[0], images[1][:80], images[2][:, :70]]
    return processor(images, pairs=False, return_tensors="pt")


@torch.no_grad()
def test_scales_and_orientations_reach_the_matcher(prepared):
    whole = whole_model()
    features = whole.extract_features(**prepared)
    assert features.mask.sum(-1).min() > 5
    pairs = features.pairs([[0, 1], [2, 0]])
    outputs = whole.match_features(pairs)
    assert (outputs.matches >= 0).sum() > 4
    for name in ("scales", "orientations"):
        other = KeypointFeatures(**{**pairs, name: pairs[name].flip(-1)})
        assert (whole.match_features(other).matching_scores - outputs.matching_scores).abs().max() > 1e-3
    by_hand = whole(**{name: value for name, value in pairs.items() if name != "scores"})
    assert torch.equal(by_hand.matches, outputs.matches)
    index = torch.tensor([[0, 1], [2, 0]])
    from_pixels = whole(pixel_values=prepared["pixel_values"][index], image_sizes=prepared["image_sizes"][index])
    torch.testing.assert_close(from_pixels.matching_scores, outputs.matching_scores, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("depth", "width"), [(-1, -1), (0.9, 0.9)])
@torch.no_grad()
def test_a_batch_of_pairs_is_its_singles(prepared, depth, width):
    whole = whole_model(depth_confidence=depth, width_confidence=width)
    index = [[0, 1], [2, 0], [1, 2]]
    features = whole.extract_features(**prepared)
    together = whole.match_features(features.pairs(index))
    parts = []
    for i, (height, width) in enumerate(prepared["image_sizes"].tolist()):
        parts.append(whole.extract_features(prepared["pixel_values"][i : i + 1, :, :height, :width]))
        assert_equal_to_alone(features, i, parts[i])
    for row, (first, second) in enumerate(index):
        alone = whole.match_features(KeypointFeatures.cat([parts[first], parts[second]]).pairs([[0, 1]]))
        n = alone.matches.shape[-1]
        assert torch.equal(together.matches[row, :, :n], alone.matches[0])
        scores = together.matching_scores[row, :, :n]
        torch.testing.assert_close(scores, alone.matching_scores[0], atol=5e-5, rtol=0)
        assert (together.matches[row, :, n:] == -1).all()
    assert (together.matches >= 0).any()


@torch.no_grad()
def test_the_whole_is_saved_and_loaded(prepared, tmp_path):
    whole = whole_model()
    whole.save_pretrained(tmp_path)
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert isinstance(loaded.keypoint_detector, SIFTForKeypointDetection)
    assert loaded.config.keypoint_detector_config.max_keypoints == 40
    index = [[0, 1], [1, 2]]
    expected, outputs = (m.match_features(m.extract_features(**prepared).pairs(index)) for m in (whole, loaded))
    assert torch.equal(outputs.matching_scores, expected.matching_scores)
    half = loaded.half()
    assert half.extract_features(**prepared).descriptors.dtype == torch.float32
    assert half.match_features(half.extract_features(**prepared).pairs(index)).matches.shape == expected.matches.shape


def test_a_detector_without_scales_is_refused():
    with pytest.raises(ValueError, match=r"add_scale_ori=True needs .* SuperPointConfig .*has_scale_ori"):
        LightGlueConfig(add_scale_ori=True)
    assert LightGlueConfig(add_scale_ori=True, use_keypoint_detector=False).add_scale_ori
    assert LightGlueConfig({"model_type": "doghardnet"}, add_scale_ori=True).num_input_features == 128
    assert not LightGlueConfig({"model_type": "sift"}).add_scale_ori
    assert LightGlueConfig(SuperPointConfig(), add_scale_ori=True).add_scale_ori  # transformers' declares nothing
