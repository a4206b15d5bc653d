"""XFeat: the contract, its rules of resizing and sampling, and the published weights' figures."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightglue_hf import XFeatConfig, XFeatForKeypointDetection
from lightglue_hf.convert import convert_xfeat_state_dict
from lightglue_hf.convert.reading import load_pickle
from lightglue_hf.detectors.xfeat import (
    XFeatLayer,
    cells_as_channels,
    normalize_images,
    sample_descriptors,
    spread,
)

from ..weights import weights_file
from .contract import DetectorContract
from .figures import assert_figures, assert_stages, figures


def model(**overrides):
    torch.manual_seed(3)
    detector = XFeatForKeypointDetection(XFeatConfig(**{"descriptor_dim": 8, **overrides})).eval()
    for parameter in detector.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data.normal_(std=(2 / fan_in) ** 0.5)
        else:
            parameter.data.normal_(std=0.1)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return detector


class TestContract(DetectorContract):
    def model(self, **overrides):
        return model(**overrides)


# -- the rules


def published_sampling(maps, points, mode):
    """Source: verlab/accelerated_features, `InterpolateSparse2d`; points (n, 2) of an image of 8 pixels a cell."""
    height, width = (8 * n for n in maps.shape[-2:]) if mode != "nearest" else maps.shape[-2:]
    grid = 2 * points / torch.tensor([width - 1, height - 1]) - 1
    return F.grid_sample(maps, grid[None, None], mode=mode, align_corners=False)[0, :, 0].T


def published_detection(detector, image):
    """Source: verlab/accelerated_features, `XFeat.detectAndCompute`, of one image and without a limit."""
    height, width = image.shape[-2:]
    size = height // 32 * 32, width // 32 * 32
    resized = F.interpolate(image, size, mode="bilinear", align_corners=False)
    logits, reliability, features = detector._maps(normalize_images(resized.mean(1, keepdim=True)))
    heat = F.pixel_shuffle(logits.softmax(1)[:, :64], 8)
    is_max = (heat == F.max_pool2d(heat, 5, stride=1, padding=2)) & (heat > detector.config.keypoint_threshold)
    points = is_max[0, 0].nonzero().flip(1).float()
    scores = (
        published_sampling(heat, points, "nearest") * published_sampling(reliability[:, None], points, "bilinear")
    )[:, 0]
    scores[(points == 0).all(1)] = -1
    order = scores.argsort(descending=True)
    order = order[scores[order] > 0]
    descriptors = F.normalize(published_sampling(F.normalize(features, dim=1), points[order], "bicubic"), dim=1)
    return points[order] * torch.tensor([width / size[1], height / size[0]]), scores[order], descriptors


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (32, 32)])
@torch.no_grad()
def test_detection_is_the_published_one(size):
    detector = model()
    for _ in range(4):
        image = torch.rand(1, 3, *size)
        points, scores, descriptors = published_detection(detector, image)
        features = detector.detect(image)
        assert len(points) > 10
        assert features.mask.all()
        torch.testing.assert_close(features.scores[0], scores, atol=1e-5, rtol=1e-4)
        row = torch.cdist(points, features.keypoints[0]).argmin(1)  # scores may be as good as equal
        torch.testing.assert_close(features.keypoints[0, row], points, atol=1e-4, rtol=0)
        torch.testing.assert_close(features.descriptors[0, row], descriptors, atol=1e-4, rtol=0)
        assert len(row.unique()) == len(points)


@torch.no_grad()
def test_keypoints_stand_in_the_order_of_their_scores():
    for n in (-1, 10):
        features = model(max_keypoints=n).detect(torch.rand(2, 3, 64, 96))
        assert (features.scores.diff(dim=1) <= 0).all()


@torch.no_grad()
def test_the_last_row_and_column_and_the_first_pixel_are_left_out():
    detector = model(keypoint_threshold=0.0, nms_radius=0)
    for features in (detector.detect(torch.rand(1, 3, 32, 64)), detector.detect(torch.rand(1, 1, 32, 64))):
        points = features.keypoints[0].long().tolist()
        assert len(points) == 31 * 63 - 1
        assert [0, 0] not in points
        assert [0, 1] in points
        assert [62, 30] in points


@torch.no_grad()
def test_images_smaller_than_the_stride_have_no_keypoints():
    detector = model(max_keypoints=5, keypoint_threshold=0.0)
    for size in ((31, 64), (64, 31), (1, 1)):
        assert not detector.extract_features(torch.rand(2, 3, *size), fixed_shapes=True).mask.any()
        assert detector.detect(torch.rand(2, 3, *size)).keypoints.shape == (2, 0, 2)
    assert detector.detect(torch.rand(2, 3, 32, 32)).mask.all()


def test_cells_become_channels_and_back():
    grey = torch.rand(2, 1, 24, 40)
    assert torch.equal(cells_as_channels(grey), F.pixel_unshuffle(grey, 8))


@torch.no_grad()
def test_maps_are_read_as_the_published_code_reads_them():
    reliability, features = torch.rand(1, 4, 7), torch.randn(1, 5, 4, 7)
    points = torch.cartesian_prod(torch.arange(56.0), torch.arange(32.0))
    read = spread(reliability, 32, 56)[0, points[:, 1].long(), points[:, 0].long()]
    torch.testing.assert_close(read, published_sampling(reliability[:, None], points, "bilinear")[:, 0])
    assert read[0] < reliability[0, 0, 0] / 2  # the first pixel's position lies half a cell beyond the map
    expected = F.normalize(published_sampling(F.normalize(features, dim=1), points, "bicubic"), dim=1)
    torch.testing.assert_close(sample_descriptors(features, points[None])[0], expected)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_the_norm_is_part_of_the_convolution(stride):
    layer = XFeatLayer(3, 5, stride=stride).eval()
    norm = layer.layer[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 9, 11)
    torch.testing.assert_close(layer(x), layer.layer(x), atol=1e-5, rtol=1e-4)
    before = norm.running_mean.clone()
    layer.train()(x)
    assert not torch.equal(norm.running_mean, before)


@torch.no_grad()
def test_brightness_and_contrast_do_not_matter():
    image = torch.rand(1, 3, 64, 96)
    features, other = model().detect(image), model().detect(0.5 * image + 0.25)
    torch.testing.assert_close(features.scores, other.scores, atol=1e-3, rtol=0)  # but for the norm's epsilon


def test_gradients_reach_all_but_the_semi_dense_mode():
    detector = model().train()
    features = detector.detect(torch.rand(2, 3, 64, 96))
    (features.scores.sum() + (features.descriptors * torch.rand(8)).sum()).backward()
    without = {name.split(".")[0] for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"fine_matcher"}


def test_numbers_out_of_range_are_named():
    for name, value in (("nms_radius", -1), ("descriptor_dim", 0), ("keypoint_threshold", float("nan"))):
        with pytest.raises(ValueError, match=name):
            XFeatConfig(**{name: value})


# -- the published weights


def published(**overrides):
    config, tensors = convert_xfeat_state_dict(load_pickle(str(weights_file("xfeat.pt"))), **overrides)
    detector = XFeatForKeypointDetection(config).eval()
    detector.load_state_dict(tensors)
    return detector


@pytest.mark.weights
@pytest.mark.parametrize(
    ("case", "max_keypoints"), [("a", 512), ("b", 512), ("c", 512), ("a_all", -1), ("a_cap128", 128)]
)
@torch.no_grad()
def test_published_figures(case, max_keypoints):
    expected, image = figures("xfeat", case)
    assert_figures(published(max_keypoints=max_keypoints).detect(image), expected, score=1e-4)


@pytest.mark.weights
@pytest.mark.parametrize("case", ["a", "c"])
@torch.no_grad()
def test_published_maps(case):
    expected, image = figures("xfeat", case)
    detector = published()
    names = "skip1 block2 block3 block4 block5 block_fusion heatmap_head keypoint_head".split()
    modules = {name: getattr(detector, name) for name in names} | {"block1": detector.block1[-1]}
    height, width = (side // 32 * 32 for side in image.shape[-2:])

    def run():
        grey = F.interpolate(image.mean(1, keepdim=True), (height, width), mode="bilinear")
        norm = normalize_images(grey)
        detector._maps(norm)
        return {"norm": norm}

    maps = assert_stages(run, modules, expected)
    x, y = torch.tensor(expected["desc8_xy"]).long().T
    features = maps["block_fusion"]
    for name, ours in (("desc8", features), ("desc8norm", F.normalize(features, dim=1))):
        torch.testing.assert_close(ours[0, :, y, x].T, torch.tensor(expected[f"{name}_at_xy"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        maps["heatmap_head"][0, 0], torch.tensor(expected["reliability_map"]), atol=1e-5, rtol=1e-4
    )
    logits = maps["keypoint_head"]
    torch.testing.assert_close(logits[0, :, ::7, ::7], torch.tensor(expected["kpt_logits_xy0"]), atol=1e-3, rtol=1e-4)
    heat = F.pixel_shuffle(logits.softmax(1)[:, :64], 8)[0, 0, ::4, ::4].numpy()
    np.testing.assert_allclose(heat, expected["score_map"].astype(np.float32), atol=1e-4, rtol=1e-3)


@pytest.mark.weights
@torch.no_grad()
def test_a_black_image_has_no_keypoints():
    for fixed_shapes in (False, True):
        features = published(max_keypoints=5).extract_features(torch.zeros(2, 3, 64, 64), fixed_shapes=fixed_shapes)
        assert features.keypoints.shape == (2, 5 if fixed_shapes else 0, 2)
        assert not features.mask.any()
