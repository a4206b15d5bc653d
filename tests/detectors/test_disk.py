"""DISK: the contract, its rules of selection, and the published weights' figures."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightglue_hf import DISKConfig, DISKForKeypointDetection
from lightglue_hf.convert import convert_disk_state_dict
from lightglue_hf.convert.reading import load_pickle
from lightglue_hf.detectors import disk
from lightglue_hf.detectors.disk import InstanceNorm, UpsampledNorm, strict_maxima, upsample

from ..weights import weights_file
from .contract import DetectorContract
from .figures import assert_figures, assert_stages, figures


def model(**overrides):
    config = {"encoder_hidden_sizes": [4, 8, 8], "decoder_hidden_sizes": [8], "descriptor_dim": 16}
    torch.manual_seed(3)
    detector = DISKForKeypointDetection(DISKConfig(**{**config, "initializer_range": 0.1, **overrides})).eval()
    for name, parameter in detector.named_parameters():
        if name.endswith("bias"):  # zero in a new model
            parameter.data.normal_(std=0.1)
    return detector


def dense_map(unet, images):
    """Descriptors and scores of every pixel by the last convolution as a whole, of images that fill whole cells."""
    below, skip = unet(images)
    block = unet.path_up[-1].conv
    hidden = block[1](torch.cat([upsample(below), skip], 1))
    return F.conv2d(hidden, block[3].weight, block[3].bias, padding=2)


class TestContract(DetectorContract):
    def model(self, **overrides):
        return model(**overrides)


# -- the rules


@pytest.mark.parametrize("radius", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(9, 12), (3, 20), (1, 1)])
def test_maxima_are_strict_and_their_windows_whole(shape, radius):
    scores = torch.randint(0, 40, (2, *shape)).float()  # with ties
    expected = torch.zeros_like(scores, dtype=torch.bool)
    height, width = shape
    for image in range(2):
        for y in range(radius, height - radius):
            for x in range(radius, width - radius):
                window = scores[image, y - radius : y + radius + 1, x - radius : x + radius + 1]
                expected[image, y, x] = (window >= scores[image, y, x]).sum() == 1
    assert torch.equal(strict_maxima(scores, radius), expected)


@pytest.mark.parametrize("window", [1, 3, 5])
@torch.no_grad()
def test_keypoints_are_maxima_of_the_dense_map_with_its_descriptors(window):
    detector = model(window=window)
    images = torch.rand(2, 3, 41, 54)
    dense = dense_map(detector.unet, F.pad(images, (0, 2, 0, 3)))[..., :41, :54]
    features = detector.detect(images)
    maxima = strict_maxima(dense[:, -1], window // 2) & (dense[:, -1] > 0)
    assert torch.equal(features.mask.sum(1), maxima.sum((1, 2)))
    for image in range(2):
        y, x = maxima[image].nonzero().unbind(1)  # in raster order
        n = len(x)
        assert n > 20
        assert torch.equal(features.keypoints[image, :n], torch.stack([x, y], 1).float())
        torch.testing.assert_close(features.scores[image, :n], dense[image, -1, y, x], atol=1e-5, rtol=1e-4)
        expected = F.normalize(dense[image, :-1, y, x].T, dim=1)
        torch.testing.assert_close(features.descriptors[image, :n], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_best_stand_in_raster_order_too():
    features = model(max_keypoints=10).detect(torch.rand(2, 3, 64, 96))
    assert ((features.keypoints @ torch.tensor([1.0, 96.0])).diff(dim=1) > 0).all()
    assert (features.scores.diff(dim=1) > 0).any()


@torch.no_grad()
def test_the_threshold_is_exceeded_strictly():
    image = torch.rand(1, 3, 64, 96)
    everything = model().detect(image).scores[0].sort().values
    middle = float(everything[len(everything) // 2])
    features = model(keypoint_threshold=middle).detect(image)
    assert torch.equal(features.scores[0].sort().values, everything[everything > middle])


@torch.no_grad()
def test_grey_images_are_taken_for_three_equal_channels():
    grey = torch.rand(2, 1, 32, 48)
    torch.testing.assert_close(model().detect(grey).keypoints, model().detect(grey.expand(-1, 3, -1, -1)).keypoints)


@pytest.mark.parametrize("shape", [(30, 21), (3, 1), (1, 1)])
@torch.no_grad()
def test_the_norm_of_what_is_still_to_be_upsampled_is_that_of_what_is_upsampled(shape):
    x = torch.randn(2, 5, *shape) * torch.tensor([1.0, 2.0, 0.004, 3.0, 1.0])[:, None, None] + 0.5
    expected = torch.instance_norm(upsample(x), None, None, None, None, True, 0.0, 1e-5, False)
    torch.testing.assert_close(upsample(UpsampledNorm(5)(x)), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_strips_are_convolved_as_the_whole_is(monkeypatch):
    image, detector = torch.rand(1, 3, 72, 48), model()
    whole = detector.detect(image)
    monkeypatch.setattr(disk, "STRIP", 100)
    strips = detector.detect(image)
    assert whole.mask.sum() > 20
    for name in whole:
        torch.testing.assert_close(strips[name], whole[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_image_is_normalised_as_several_are():
    x = torch.randn(2, 3, 17, 21) + 2
    norm = InstanceNorm().eval()
    torch.testing.assert_close(norm(x), F.instance_norm(x))
    torch.testing.assert_close(norm(x[:1]), F.instance_norm(x[:1]))
    one_pixel = torch.ones(2, 3, 1, 1)
    assert not norm(one_pixel).any()
    assert not norm(one_pixel[:1]).any()


def test_gradients_reach_every_parameter():
    detector = model().train()
    features = detector.detect(torch.rand(2, 3, 64, 96))
    (features.scores.sum() + (features.descriptors * torch.rand(16)).sum()).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("encoder_hidden_sizes", [16]),
        ("encoder_hidden_sizes", "16"),
        ("encoder_hidden_sizes", [16, 0, 8]),
        ("decoder_hidden_sizes", [64]),
        ("window", 4),
        ("window", -1),
        ("keypoint_threshold", float("nan")),
    ],
)
def test_numbers_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=argument):
        DISKConfig(**{argument: value})


# -- the published weights


def published(**overrides):
    tensors = load_pickle(str(weights_file("disk-depth-save.pth")))
    config, tensors = convert_disk_state_dict(tensors, **overrides)
    detector = DISKForKeypointDetection(config).eval()
    detector.load_state_dict(tensors)
    return detector


@pytest.mark.weights
@pytest.mark.parametrize(
    ("case", "max_keypoints"), [("a", 512), ("b", 512), ("c", 512), ("a_all", -1), ("a_cap128", 128)]
)
@torch.no_grad()
def test_published_figures(case, max_keypoints):
    expected, image = figures("disk", case)
    assert_figures(published(max_keypoints=max_keypoints).detect(image), expected, score=1e-2)


@pytest.mark.weights
@pytest.mark.parametrize("case", ["a", "c"])
@torch.no_grad()
def test_published_maps(case):
    expected, image = figures("disk", case)
    detector = published()
    unet = detector.unet
    modules = {f"path_down_{i}": unet.path_down[i] for i in range(5)}
    modules |= {f"path_up_{i}": unet.path_up[i] for i in range(3)}

    def run():
        return {"path_up_3": dense_map(unet, image)}

    maps = assert_stages(run, modules, expected)
    x, y = torch.tensor(expected["desc_xy"]).long().T
    at = maps["path_up_3"][0, :-1, y, x].T
    torch.testing.assert_close(at, torch.tensor(expected["desc_at_xy"]), atol=1e-3, rtol=1e-4)
    heatmap = maps["path_up_3"][0, -1].numpy()[::4, ::4]
    np.testing.assert_allclose(heatmap, expected["score_map"].astype(np.float32), atol=1e-2, rtol=1e-3)


@pytest.mark.weights
@pytest.mark.parametrize("fixed_shapes", [False, True])
@torch.no_grad()
def test_a_black_image_gives_valid_features(fixed_shapes):
    features = published(max_keypoints=5).extract_features(torch.zeros(2, 3, 48, 64), fixed_shapes=fixed_shapes)
    features.check(128)  # there may be a point or two: its borders make a pattern
    n = features.mask.shape[1]
    assert n == 5 if fixed_shapes else n <= 5
    assert torch.equal(features.keypoints[0], features.keypoints[1])
