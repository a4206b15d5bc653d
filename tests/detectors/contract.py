"""What every detector of the contract keeps, to be inherited by a test class of each."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForKeypointDetection

from lightglue_hf import KeypointFeatures, LightGlueConfig, LightGlueForKeypointMatching

SIZES = [(64, 96), (48, 96), (37, 50), (64, 33), (64, 96), (32, 32), (40, 70), (5, 40)]


def padded(images):
    """Images on one canvas, and their sizes."""
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = sizes.amax(0).tolist()
    canvas = torch.stack([F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images])
    return canvas, sizes


def assert_same(ours, theirs, atol=1e-4):
    """The features of one image, each possibly with padding behind."""
    ours, theirs = (
        KeypointFeatures(**{name: x[name][x["mask"].bool()] for name in ("keypoints", "scores", "descriptors")})
        for x in (ours, theirs)
    )
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=1e-4)


class Detect(nn.Module):
    """A detector that gives tensors alone, of fixed shapes."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, pixel_values):
        features = self.detector.detect(pixel_values, fixed_shapes=True)
        return features.keypoints, features.scores, features.descriptors, features.mask


class DetectorContract:
    """`model` makes the detector, small and random, that finds dozens of keypoints in noise of 64 x 96 pixels."""

    def model(self, **overrides: Any) -> Any:
        raise NotImplementedError

    @pytest.mark.parametrize("max_keypoints", [-1, 12])
    @torch.no_grad()
    def test_images_of_different_sizes_give_in_a_batch_what_they_give_alone(self, max_keypoints):
        detector = self.model(max_keypoints=max_keypoints)
        images = [torch.rand(3, *size) for size in SIZES]
        canvas, sizes = padded(images)
        features = detector.extract_features(canvas, sizes)
        assert torch.equal(features.image_sizes, sizes)
        for i, image in enumerate(images):
            alone = detector.extract_features(image[None])
            assert_same(features[i], alone[0])
            assert_same(features[i], detector.detect(image[None])[0])
        counts = features.mask.sum(-1)
        assert counts[0] > (30 if max_keypoints < 0 else 11)
        assert len(counts.unique()) > (3 if max_keypoints < 0 else 1)
        assert (features.mask.diff(dim=-1) <= 0).all(), "keypoints come before padding"
        for name in ("keypoints", "scores", "descriptors"):
            assert not features[name][features.mask == 0].any()

    @torch.no_grad()
    def test_whatever_lies_in_the_padding_is_not_seen(self):
        images = torch.rand(1, 3, 64, 96).repeat(2, 1, 1, 1)
        images[1, :, 50:] = 1.0
        images[1, :, :, 77:] = 0.5
        features = self.model().extract_features(images, torch.tensor([[50, 77], [50, 77]]))
        assert features.mask[0].sum() > 10
        assert_same(features[0], features[1], atol=0)

    @pytest.mark.parametrize("max_keypoints", [0, 7, 40, 8000])
    @torch.no_grad()
    def test_fixed_shapes_find_the_same(self, max_keypoints):
        detector = self.model(max_keypoints=max_keypoints)
        images, sizes = padded([torch.rand(3, *size) for size in ((64, 96), (33, 40), (4, 4))])
        fixed = detector.extract_features(images, sizes, fixed_shapes=True)
        dynamic = detector.extract_features(images, sizes)
        n = dynamic.mask.shape[1]
        assert fixed.keypoints.shape == (3, max_keypoints, 2)
        assert fixed.descriptors.shape == (3, max_keypoints, detector.config.descriptor_dim)
        assert n == min(max_keypoints, int(dynamic.mask.sum(-1).max()))
        for name in ("keypoints", "scores", "descriptors", "mask"):
            torch.testing.assert_close(fixed[name][:, :n], dynamic[name])
            assert not fixed[name][:, n:].any()

    @torch.no_grad()
    def test_the_best_of_all_are_kept(self):
        image = torch.rand(1, 3, 64, 96)
        everything, best = (self.model(max_keypoints=n).detect(image) for n in (-1, 15))
        assert best.mask.sum() == 15
        assert torch.equal(best.scores[0].sort().values, everything.scores[0].sort().values[-15:])

    @torch.no_grad()
    def test_keypoints_lie_in_the_region_and_the_number_is_spent_there(self):
        images, sizes = padded([torch.rand(3, 64, 96), torch.rand(3, 50, 77)])
        region = torch.zeros(2, 64, 96, dtype=torch.bool)
        region[0, 20:40, 30:80] = True
        region[1, :, 40:] = True
        everything = self.model().extract_features(images, sizes)
        inside = self.model().extract_features(images, sizes, region)
        for i in (0, 1):
            x, y = everything.keypoints[i].round().long().unbind(-1)
            keep = region[i, y, x] & everything.mask[i].bool()
            assert 10 < keep.sum() < everything.mask[i].sum()
            assert torch.equal(inside.keypoints[i][inside.mask[i].bool()], everything.keypoints[i][keep])
        few = self.model(max_keypoints=8).extract_features(images, sizes, region)
        assert few.mask.all()
        for i in (0, 1):
            assert torch.equal(few.scores[i].sort().values, inside.scores[i].sort().values[-8:])

    @pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 200), (16, 16), (17, 31)])
    @pytest.mark.parametrize("fixed_shapes", [False, True])
    @torch.no_grad()
    def test_tiny_images_give_valid_shapes(self, shape, fixed_shapes):
        detector = self.model(max_keypoints=6)
        for batch, region in itertools.product((0, 1, 3), (None, torch.ones(1, *shape, dtype=torch.bool))):
            region = None if region is None else region.expand(batch, -1, -1)
            images = torch.rand(batch, 3, *shape)
            features = detector.extract_features(images, region=region, fixed_shapes=fixed_shapes)
            features.check(detector.config.descriptor_dim)
            n = features.mask.shape[1]
            assert n == 6 if fixed_shapes else n <= 6
            assert features.descriptors.shape == (batch, n, detector.config.descriptor_dim)
            assert ((features.keypoints < torch.tensor(shape).flip(0)) & (features.keypoints >= 0)).all()

    @pytest.mark.parametrize("fixed_shapes", [False, True])
    @torch.no_grad()
    def test_no_score_above_the_threshold(self, fixed_shapes):
        detector = self.model(max_keypoints=6, keypoint_threshold=1e9)
        features = detector.extract_features(torch.rand(2, 3, 64, 96), fixed_shapes=fixed_shapes)
        assert features.keypoints.shape == (2, 6 if fixed_shapes else 0, 2)
        assert not any(features[name].any() for name in ("keypoints", "scores", "descriptors", "mask"))

    @torch.no_grad()
    def test_the_output_is_relative_to_the_canvas(self):
        detector = self.model()
        images, sizes = padded([torch.rand(3, 64, 96), torch.rand(3, 50, 77)])
        features, outputs = detector.extract_features(images, sizes), detector(images, sizes)
        torch.testing.assert_close(outputs.keypoints * torch.tensor([96, 64]), features.keypoints)
        norms = outputs.descriptors.norm(dim=-1)
        torch.testing.assert_close(norms, outputs.mask.float())
        assert len(detector(images, return_dict=False)) == 4

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @torch.no_grad()
    def test_half_precision_keeps_coordinates(self, dtype):
        image = torch.rand(1, 3, 32, 640)
        detector = self.model()
        expected = detector.detect(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = detector.detect(image)
        for features in (detector.to(dtype).detect(image.to(dtype)), autocast):
            assert features.keypoints.dtype == features.scores.dtype == torch.float32
            assert features.descriptors.dtype in (dtype, torch.bfloat16)
            assert features.keypoints[..., 0].max() > 600
            same = torch.cdist(features.keypoints[0], expected.keypoints[0]).amin(0) == 0
            assert same.float().mean() > 0.8

    def test_save_and_load(self, tmp_path):
        detector = self.model(max_keypoints=9)
        detector.save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == detector.config.to_diff_dict()
        image = torch.rand(1, 3, 64, 96)
        for auto in (AutoModelForKeypointDetection, AutoModel):
            loaded = auto.from_pretrained(tmp_path)
            assert type(loaded) is type(detector)
            for name, tensor in detector.state_dict().items():
                assert torch.equal(loaded.state_dict()[name], tensor), name
            with torch.no_grad():
                assert torch.equal(loaded.eval()(image).keypoints, detector(image).keypoints)

    def test_declared_modules_are_there(self):
        detector = self.model()
        modules = dict(detector.named_modules())
        assert all(name in modules for name in detector.config.float32_modules)

    @torch.no_grad()
    def test_pairs_of_different_sizes_are_matched_as_they_are_alone(self):
        detector = self.model(max_keypoints=50)
        config = LightGlueConfig(
            detector.config, descriptor_dim=16, num_hidden_layers=2, num_attention_heads=2, filter_threshold=0
        )
        matcher = LightGlueForKeypointMatching(config).eval()
        for parameter in matcher.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.5)
        matcher.keypoint_detector.load_state_dict(detector.state_dict())
        images, sizes = padded([torch.rand(3, *size) for size in ((64, 96), (50, 77), (40, 60), (64, 50))])
        both = matcher(images.unflatten(0, (2, 2)), image_sizes=sizes.unflatten(0, (2, 2)))
        assert (both.matches >= 0).sum() > 4
        for i in (0, 1):
            alone = matcher(images[None, 2 * i : 2 * i + 2], image_sizes=sizes[None, 2 * i : 2 * i + 2])
            n = alone.matches.shape[-1]
            assert torch.equal(both.matches[i, :, :n], alone.matches[0])
            torch.testing.assert_close(both.matching_scores[i, :, :n], alone.matching_scores[0], atol=1e-4, rtol=1e-3)

    @torch.no_grad()
    def test_a_trace_serves_other_sizes(self):
        detect = Detect(self.model(max_keypoints=20)).eval()
        traced = torch.jit.trace(detect, torch.rand(2, 3, 64, 96), check_trace=False)
        for shape in ((1, 3, 64, 64), (3, 3, 75, 101)):
            images = torch.rand(shape)
            for ours, theirs in zip(traced(images), detect(images)):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", ["keypoint_threshold", "max_keypoints", "descriptor_dim"])
    def test_numbers_out_of_range_are_named(self, name):
        with pytest.raises(ValueError, match=name):
            self.model(**{name: -2})

    def test_fixed_shapes_need_a_number(self):
        with pytest.raises(ValueError, match="fixed_shapes needs"):
            self.model().extract_features(torch.rand(1, 3, 32, 32), fixed_shapes=True)
