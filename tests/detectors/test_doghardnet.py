"""DoGHardNet: kornia's figures, patches that move with the photo, and SIFT's keypoints in any batch."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from lightglue_hf import (
    DoGHardNetConfig,
    DoGHardNetForKeypointDetection,
    LightGlueConfig,
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
    SIFTConfig,
    SIFTForKeypointDetection,
)
from lightglue_hf.data.textures import render_textures
from lightglue_hf.detectors import doghardnet as doghardnet_module
from lightglue_hf.detectors.doghardnet import HardNet, cut_patches

from ..reference import load

pytest.importorskip("cv2")

FIELDS = ("keypoints", "scores", "scales", "orientations", "descriptors", "mask")
SIZES = [(120, 160), (97, 131), (120, 64), (9, 15), (1, 1)]


@functools.cache
def random_hardnet():
    """Weights of the seed that the figures of hardnet__kornia.npz were made with, in the order of the state dict."""
    network = HardNet().eval()
    random = np.random.RandomState(5)  # the same numbers in every version of NumPy
    for name, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        if name.endswith("weight"):
            values = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith("running_mean"):
            values = random.standard_normal(shape) * 0.1
        elif name.endswith("running_var"):
            values = random.uniform(0.5, 2, shape)
        else:
            continue
        tensor.copy_(torch.from_numpy(values))
    return network


def model(**overrides):
    with torch.device("meta"):  # without the time that a new model's weights take
        detector = DoGHardNetForKeypointDetection(DoGHardNetConfig(**{"max_keypoints": 50, **overrides})).eval()
    detector.to_empty(device="cpu")
    detector.hardnet.load_state_dict(random_hardnet().state_dict())
    return detector


def photos(count=2, height=120, width=160, seed=0):
    """`(count, 1, height, width)`, rendered."""
    return torch.from_numpy(render_textures(count, height, width, seed))[:, None] / 255


# -- kornia


@torch.no_grad()
def test_kornias_patches_and_descriptors():
    """Of `extract_patches_from_pyramid` and `LAFDescriptor(HardNet())` in kornia 0.8.1, with scales of every level."""
    case = {name: torch.from_numpy(value) for name, value in load("hardnet__kornia").items()}
    frames = case["keypoints"], case["scales"], case["orientations"]
    patches = cut_patches(case["image"][None, None] / 255, *frames, 6.0, clockwise=False)
    torch.testing.assert_close(patches, case["patches"], atol=5e-5, rtol=0)
    assert patches.flatten(1).std(1).min() > 0.05
    descriptors = random_hardnet()(patches)
    torch.testing.assert_close(descriptors, case["descriptors"], atol=1e-5, rtol=0)
    assert (descriptors @ descriptors.T - torch.eye(12)).max() < 0.9


@torch.no_grad()
def test_patches_by_hand():
    """A pixel at a time, out of the image itself: where each lies, and bilinear between its four neighbours."""
    image = photos(1, 40, 50)
    keypoints = torch.tensor([[20.5, 13.25], [0.0, 39.0]])
    scales, orientations = torch.tensor([1.5, 2.0]), torch.tensor([0.4, 5.0])
    patches = cut_patches(image, keypoints, scales, orientations, 5.0, clockwise=True)
    for index in ((0, 3, 7), (0, 16, 16), (0, 31, 0), (1, 2, 30)):
        k, row, column = index
        u, v = (column - 15.5) / 16, (row - 15.5) / 16
        cos, sin = orientations[k].cos().item(), orientations[k].sin().item()
        radius = 5 * scales[k].item()
        x = (keypoints[k, 0].item() + radius * (cos * u - sin * v)) * 50 / 49 - 0.5
        y = (keypoints[k, 1].item() + radius * (sin * u + cos * v)) * 40 / 39 - 0.5
        x, y = min(max(x, 0), 49), min(max(y, 0), 39)
        left, top = min(int(x), 48), min(int(y), 38)
        (a, b), (c, d) = image[0, 0, top : top + 2, left : left + 2].tolist()
        dx, dy = x - left, y - top
        expected = (a * (1 - dx) + b * dx) * (1 - dy) + (c * (1 - dx) + d * dx) * dy
        assert patches[k, 0, row, column].item() == pytest.approx(expected, abs=1e-4)


def test_patches_too_large_for_a_level_come_from_the_smallest():
    """A flat image gives flat patches, of any size; kornia's black ones would not be those."""
    scales = torch.tensor([1.0, 30.0, 1e3, 1e6])
    for shape in ((16, 90), (33, 40), (64, 64), (95, 200), (250, 240)):
        image = torch.full((1, 1, *shape), 0.75)
        patches = cut_patches(image, torch.full((4, 2), 12.0), scales, torch.zeros(4), 6.0, clockwise=False)
        torch.testing.assert_close(patches, torch.full_like(patches, 0.75))


# -- turned photos


@pytest.mark.parametrize("rotation", ["clockwise", "counterclockwise"])
def test_patches_turn_with_the_photo(rotation):
    """In the sense of OpenCV's orientations; in cvg's only those that a half turn takes to themselves."""
    clockwise = rotation == "clockwise"
    side = 101  # the shift of the borders is the same on both axes
    image = photos(1, side, side, seed=1)
    keypoints = torch.tensor([[40.0, 60.0], [55.0, 45.5], [50.0, 50.0]])
    scales, orientations = torch.tensor([2.0, 1.5, 3.0]), torch.tensor([0.3, 1.9, 4.0])
    patches = cut_patches(image, keypoints, scales, orientations, 6.0, clockwise)
    x, y = keypoints.unbind(1)
    moved = torch.stack([side - 1 - y, x], 1)
    turned = cut_patches(image.rot90(-1, (2, 3)), moved, scales, orientations + torch.pi / 2, 6.0, clockwise)
    if clockwise:
        torch.testing.assert_close(turned, patches, atol=1e-3, rtol=0)
    else:
        torch.testing.assert_close(turned, patches.rot90(2, (2, 3)), atol=1e-3, rtol=0)
        assert (turned - patches).abs().amax((1, 2, 3)).min() > 0.1


def test_the_rotation_is_the_configurations():
    image = photos(1)
    found = {name: model(patch_rotation=name).extract_features(image) for name in ("clockwise", "counterclockwise")}
    assert torch.equal(found["clockwise"].keypoints, found["counterclockwise"].keypoints)
    cosines = (found["clockwise"].descriptors * found["counterclockwise"].descriptors).sum(-1)
    assert cosines.median() < 0.95
    assert DoGHardNetConfig().patch_rotation == "counterclockwise"
    larger = model(patch_extent=12.0).extract_features(image).descriptors
    assert (larger - found["counterclockwise"].descriptors).abs().max() > 0.1


# -- the contract


@pytest.mark.parametrize("max_keypoints", [-1, 12])
@torch.no_grad()
def test_photos_of_different_sizes_give_in_a_batch_what_they_give_alone(max_keypoints):
    detector = model(max_keypoints=max_keypoints)
    canvas = photos(len(SIZES))
    for i, (height, width) in enumerate(SIZES):  # what lies in the padding is not seen
        canvas[i, :, height:] = 1
        canvas[i, :, :, width:] = torch.rand(160 - width)
    features = detector.extract_features(canvas, torch.tensor(SIZES))
    for i, (height, width) in enumerate(SIZES):
        alone = detector.extract_features(canvas[i : i + 1, :, :height, :width])
        valid = features.mask[i].bool()
        for name in FIELDS:
            torch.testing.assert_close(features[name][i][valid], alone[name][0], atol=1e-6, rtol=0)
            assert not features[name][i][~valid].any()
    assert len(features.mask.sum(-1).unique()) > (2 if max_keypoints < 0 else 1)


@torch.no_grad()
def test_keypoints_are_those_of_sift():
    image = photos()
    region = torch.zeros(2, 120, 160, dtype=torch.bool)
    region[:, 30:80, 20:90] = True
    for arguments in ({}, {"region": region}, {"fixed_shapes": True}):
        settings = {"max_keypoints": 20, "nms_radius": 2}
        ours = model(**settings).extract_features(image, **arguments)
        sift = SIFTForKeypointDetection(SIFTConfig(**settings)).extract_features(image, **arguments)
        for name in set(FIELDS) - {"descriptors"}:
            assert torch.equal(ours[name], sift[name])
        assert ours.descriptors.shape == sift.descriptors.shape
        torch.testing.assert_close(ours.descriptors.norm(dim=-1), ours.mask.float())


@torch.no_grad()
def test_a_part_of_the_patches_at_once(monkeypatch):
    image = photos(1)
    expected = model().extract_features(image).descriptors
    monkeypatch.setattr(doghardnet_module, "AT_ONCE", 7)
    assert expected.shape[1] > 14
    torch.testing.assert_close(model().extract_features(image).descriptors, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "batch"), [((1, 1), 2), ((3, 200), 1), ((64, 64), 0)])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_images_of_nothing_have_no_keypoints(shape, batch, fixed_shapes):
    outputs = model(max_keypoints=6)(torch.rand(batch, 3, *shape), fixed_shapes=fixed_shapes)
    n = 6 if fixed_shapes else 0
    assert outputs.descriptors.shape == (batch, n, 128)
    assert outputs.orientations.shape == (batch, n)
    assert not outputs.mask.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_changes_descriptors_alone(dtype):
    image = photos(2)
    image[1] = 0  # nothing found here, in the same type
    expected = model().extract_features(image)
    features = model().to(dtype).extract_features(image)
    for name in set(FIELDS) - {"descriptors"}:
        assert torch.equal(features[name], expected[name])
        assert features[name].dtype in (torch.float32, torch.int32)
    assert features.descriptors.dtype == dtype
    cosines = (features.descriptors.float() * expected.descriptors).sum(-1)
    assert cosines[0].min() > 0.99
    assert not features.mask[1].any()
    from_half = model().half().extract_features(image.half())  # 8-bit pixels survive
    assert torch.equal(from_half.keypoints, expected.keypoints)


def test_a_new_model_and_its_settings(tmp_path):
    detector = DoGHardNetForKeypointDetection(DoGHardNetConfig(max_keypoints=5, patch_extent=3.0)).eval()
    convolutions = [module for module in detector.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 7
    rows = convolutions[2].weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, 0.36 * torch.eye(64), atol=1e-5, rtol=0)
    detector.save_pretrained(tmp_path)
    loaded = DoGHardNetForKeypointDetection.from_pretrained(tmp_path)
    assert loaded.config.patch_extent == 3.0
    image = photos(1)
    assert torch.equal(loaded.extract_features(image).descriptors, detector.extract_features(image).descriptors)
    for name, value in (("patch_extent", 0), ("patch_rotation", "left"), ("num_octave_layers", 0)):
        with pytest.raises(ValueError, match=name):
            DoGHardNetConfig(**{name: value})


@torch.no_grad()
def test_with_a_matcher(tmp_path):
    config = LightGlueConfig(
        DoGHardNetConfig(max_keypoints=30),
        descriptor_dim=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        add_scale_ori=True,
        filter_threshold=0.0,
        initializer_range=0.3,
    )
    whole = LightGlueForKeypointMatching(config).eval()
    processor = LightGlueImageProcessor(size={"longest_edge": 160})
    images = [(255 * image[0]).byte().numpy() for image in photos(2)]
    inputs = processor([images[0], images[1][:, :90]], pairs=False, return_tensors="pt")
    features = whole.extract_features(**inputs)
    outputs = whole.match_features(features.pairs([[0, 1]]))
    assert (outputs.matches >= 0).any()
    whole.save_pretrained(tmp_path)
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    again = loaded.match_features(loaded.extract_features(**inputs).pairs([[0, 1]]))
    assert torch.equal(again.matching_scores, outputs.matching_scores)
