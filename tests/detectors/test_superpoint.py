"""Invariants of the detector: an image in any batch gives what it gives alone, and every rule has its effect."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightglue_hf import (
    LightGlueForKeypointMatching,
    SuperPointConfig,
    SuperPointForKeypointDetection,
    bundled_checkpoint,
)
from lightglue_hf.data.textures import render_textures
from lightglue_hf.detectors import superpoint as superpoint_module
from lightglue_hf.detectors.selection import max_pool, non_maximum_suppression, select_keypoints
from lightglue_hf.detectors.superpoint import sample_descriptors, superpoint_loss


def model(**overrides):
    config = {
        "encoder_hidden_sizes": [8, 8, 8, 8],
        "decoder_hidden_size": 16,
        "descriptor_decoder_dim": 16,
        "keypoint_threshold": 0.02,
        "nms_radius": 2,
        "initializer_range": 0.2,
    }
    torch.manual_seed(3)
    detector = SuperPointForKeypointDetection(SuperPointConfig(**{**config, **overrides})).eval()
    for name, parameter in detector.named_parameters():
        if name.endswith("bias"):  # zero in a new model: what reads padding would not show
            parameter.data.normal_(std=0.1)
    return detector


def pixels(outputs, image, size):
    """The keypoints of one image, in pixels."""
    valid = outputs.mask[image].bool()
    return (outputs.keypoints[image][valid] * torch.tensor([size[1], size[0]])).round().long()


def assert_equal_to_alone(outputs, image, padded_size, alone, size):
    valid = outputs.mask[image].bool()
    assert torch.equal(pixels(outputs, image, padded_size), pixels(alone, 0, size))
    torch.testing.assert_close(outputs.scores[image][valid], alone.scores[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.descriptors[image][valid], alone.descriptors[0], atol=1e-5, rtol=1e-4)


# -- batches

SIZES = [(48, 64), (40, 64), (37, 50), (48, 29), (8, 8), (9, 15), (21, 64), (5, 40)]


@pytest.mark.parametrize("max_keypoints", [-1, 12])
@torch.no_grad()
def test_photos_of_different_sizes_give_in_a_batch_what_they_give_alone(max_keypoints):
    detector = model(max_keypoints=max_keypoints)
    images = [torch.rand(1, height, width) for height, width in SIZES]
    padded = torch.stack([F.pad(x, (0, 64 - x.shape[2], 0, 48 - x.shape[1])) for x in images])
    outputs = detector(padded, image_sizes=torch.tensor(SIZES))
    # alone, a photo sees the zeros that complete its last cells
    for i, (image, (height, width)) in enumerate(zip(images, SIZES, strict=True)):
        whole = math.ceil(height / 8) * 8, math.ceil(width / 8) * 8
        alone = F.pad(image, (0, whole[1] - width, 0, whole[0] - height))[None]
        expected = detector(alone, image_sizes=torch.tensor([[height, width]]))
        assert_equal_to_alone(outputs, i, (48, 64), expected, whole)
        if height % 8 == 0 and width % 8 == 0:
            assert_equal_to_alone(outputs, i, (48, 64), detector(alone), whole)
    assert len(outputs.mask.sum(-1).unique()) > (3 if max_keypoints < 0 else 1)
    assert outputs.mask[0].sum() > 10


@torch.no_grad()
def test_whatever_lies_in_the_padding_is_not_seen():
    detector = model()
    image = torch.zeros(2, 1, 48, 64)
    image[:, :, :37, :50] = torch.rand(1, 37, 50)
    image[1, :, 37:] = 1.0
    image[1, :, :, 50:] = -1.0
    outputs = detector(image, image_sizes=torch.tensor([[37, 50], [37, 50]]))
    assert outputs.mask[0].sum() > 10
    assert torch.equal(outputs.keypoints[0], outputs.keypoints[1])
    assert torch.equal(outputs.descriptors[0], outputs.descriptors[1])


@pytest.mark.parametrize("max_keypoints", [0, 7, 40, 4000])
@torch.no_grad()
def test_fixed_shapes_find_the_same(max_keypoints):
    detector = model(max_keypoints=max_keypoints)
    images, sizes = torch.rand(3, 3, 48, 64), torch.tensor([[48, 64], [24, 33], [4, 4]])
    fixed = detector(images, image_sizes=sizes, fixed_shapes=True)
    dynamic = detector(images, image_sizes=sizes)
    n = dynamic.mask.shape[1]
    assert fixed.keypoints.shape == (3, max_keypoints, 2)
    assert fixed.descriptors.shape == (3, max_keypoints, 16)
    assert n == min(max_keypoints, int(dynamic.mask.sum(-1).max()))
    for name in ("keypoints", "scores", "descriptors", "mask"):
        torch.testing.assert_close(fixed[name][:, :n], dynamic[name])
        assert not fixed[name][:, n:].any()


@torch.no_grad()
def test_fixed_shapes_need_a_number():
    with pytest.raises(ValueError, match="fixed_shapes needs"):
        model()(torch.rand(1, 1, 16, 16), fixed_shapes=True)
    with pytest.raises(ValueError, match="pixel_values must be"):
        model()(torch.rand(1, 16, 16))


@torch.no_grad()
def test_the_first_channel_is_read():
    images = torch.rand(2, 3, 32, 40)
    assert torch.equal(model()(images).keypoints, model()(images[:, :1]).keypoints)


# -- the rules


@pytest.mark.parametrize("radius", [0, 1, 3, 4])
def test_the_separable_maximum_is_that_of_the_square(radius):
    scores = torch.rand(2, 23, 31)
    expected = F.max_pool2d(scores[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0]
    assert torch.equal(max_pool(scores, radius), expected)


@pytest.mark.parametrize("radius", [0, 1, 2, 4])
@torch.no_grad()
def test_no_two_keypoints_within_the_radius(radius):
    detector = model(nms_radius=radius)
    outputs = detector(torch.rand(2, 1, 48, 64))
    for image in range(2):
        points = pixels(outputs, image, (48, 64))
        distance = (points[:, None] - points).abs().amax(-1) + 1000 * torch.eye(len(points))
        assert distance.min() > radius
        assert distance.min() <= radius + 2  # and they are as near as the rule allows


def test_suppression_keeps_what_a_suppressed_point_would_have_suppressed():
    scores = torch.tensor([[[0.9, 0.0, 0.8, 0.0, 0.7, 0.0, 0.6, 0.0, 0.5]]])
    expected = torch.tensor([[[0.9, 0.0, 0.0, 0.0, 0.7, 0.0, 0.0, 0.0, 0.5]]])
    assert torch.equal(non_maximum_suppression(scores, 2), expected)
    assert torch.equal(non_maximum_suppression(scores, 0), scores)


@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize("border", [0, 4, 9])
@torch.no_grad()
def test_keypoints_keep_away_from_the_borders(border, far):
    detector = model(border_removal_distance=border, remove_far_borders=far, nms_radius=0, keypoint_threshold=1e-4)
    sizes = torch.tensor([[48, 64], [37, 50]])
    images = torch.rand(2, 1, 48, 64)
    outputs = detector(images, image_sizes=sizes)
    for image, (height, width) in enumerate(sizes.tolist()):
        points = pixels(outputs, image, (48, 64))
        low, high = points.amin(0), points.amax(0)
        assert low.tolist() == [border, border]  # almost every pixel is above that threshold
        width, height = width // 8 * 8, height // 8 * 8  # what is beyond the last whole cell has no scores
        assert high.tolist() == [width - 1 - border * far, height - 1 - border * far]
    alone = pixels(detector(images[:1]), 0, (48, 64))
    assert torch.equal(alone, pixels(outputs, 0, (48, 64)))


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("size", [(37, 50), (40, 56), (33, 63), (48, 41), (9, 64)])
@torch.no_grad()
def test_a_photo_has_one_answer_however_it_is_padded(size, fixed_shapes):
    """Alone, with its size, padded to a multiple of 8, padded far, and in a batch: what it has alone."""
    detector = model(max_keypoints=60, keypoint_threshold=0.01)
    height, width = size
    photo, other = torch.rand(1, 3, height, width), torch.rand(1, 3, 72, 88)
    alone = detector.extract_features(photo, fixed_shapes=fixed_shapes)
    n = int(alone.mask.sum())
    assert n > 5 or height < 16
    assert (alone.keypoints < torch.tensor([width, height]) // 8 * 8).all()
    for shape in (size, (-(-height // 8) * 8, -(-width // 8) * 8), (72, 88), (61, 90)):
        padded = nn.functional.pad(photo, (0, shape[1] - width, 0, shape[0] - height), value=0.7)
        images, sizes = padded, torch.tensor([size])
        if shape == (72, 88):
            images, sizes = torch.cat([other, padded, other]), torch.tensor([shape, size, (50, 70)])
        found = detector.extract_features(images, sizes, fixed_shapes=fixed_shapes)[len(images) // 2]
        assert int(found.mask.sum()) == n
        assert torch.equal(found.keypoints[:n], alone.keypoints[0, :n])
        torch.testing.assert_close(found.scores[:n], alone.scores[0, :n], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.descriptors[:n], alone.descriptors[0, :n], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_encoders_of_other_depths():
    for blocks in (1, 2, 3, 5):
        detector = model(encoder_hidden_sizes=[8] * blocks)
        assert detector.config.stride == 2 ** (blocks - 1)
        outputs = detector(torch.rand(2, 3, 48, 64), output_hidden_states=True)
        assert len(outputs.hidden_states) == blocks
        assert outputs.hidden_states[-1].shape[-1] == 64 // detector.config.stride


def test_labels_that_are_no_dictionary_are_refused():
    with pytest.raises(ValueError, match="a dictionary of labels"):
        model()(torch.rand(1, 3, 48, 64), labels=torch.zeros(1))


def test_far_borders_of_saved_configurations_are_as_on_the_hub(tmp_path):
    assert SuperPointConfig().remove_far_borders is True
    assert SuperPointConfig.from_dict({}).remove_far_borders is False
    assert SuperPointConfig.from_dict({"remove_far_borders": True}).remove_far_borders is True
    for value in (True, False):
        SuperPointConfig(remove_far_borders=value).save_pretrained(tmp_path)
        assert SuperPointConfig.from_pretrained(tmp_path).remove_far_borders is value


@torch.no_grad()
def test_all_stand_in_raster_order_and_the_best_by_score():
    image = torch.rand(2, 1, 48, 64)
    everything = model()(image)
    raster = pixels(everything, 0, (48, 64)) @ torch.tensor([1, 64])
    assert (raster.diff() > 0).all()
    count = int(everything.mask.sum(-1).min())
    assert count < everything.mask.sum(-1).max()
    # one image's keypoints all fit, the other's do not
    for fixed_shapes in (False, True):
        outputs = model(max_keypoints=count)(image, fixed_shapes=fixed_shapes)
        assert outputs.mask.all()
        small = int(everything.mask.sum(-1).argmin())
        assert torch.equal(outputs.keypoints[small], everything.keypoints[small, :count])
        assert torch.equal(outputs.scores[small], everything.scores[small, :count])
        best = outputs.scores[1 - small]
        assert (best.diff() <= 0).all()
        assert torch.equal(best, everything.scores[1 - small].topk(count).values)


def test_the_threshold_is_exceeded_strictly():
    scores = torch.tensor([[[0.0, 0.25, 0.5], [0.75, 0.25, 0.0]]])
    indices, values = select_keypoints(scores, 0.25, -1, fixed=False)
    assert indices.tolist() == [[2, 3]]
    assert values.tolist() == [[0.5, 0.75]]
    indices, values = select_keypoints(scores, 0.0, 3, fixed=True)
    assert indices.tolist()[0][:2] == [3, 2]
    assert values.tolist() == [[0.75, 0.5, 0.25]]


@pytest.mark.parametrize(("shape", "batch"), [((1, 1), 2), ((7, 5), 1), ((8, 8), 3), ((3, 200), 1)])
@pytest.mark.parametrize("fixed_shapes", [False, True])
@torch.no_grad()
def test_images_of_nothing_but_border_have_no_keypoints(shape, batch, fixed_shapes):
    outputs = model(max_keypoints=6)(torch.rand(batch, 3, *shape), fixed_shapes=fixed_shapes)
    n = 6 if fixed_shapes else 0
    assert outputs.keypoints.shape == (batch, n, 2)
    assert outputs.scores.shape == outputs.mask.shape == (batch, n)
    assert outputs.descriptors.shape == (batch, n, 16)
    assert not outputs.mask.any()
    assert not any(value.isnan().any() for value in outputs.values())


@torch.no_grad()
def test_images_smaller_than_a_cell_have_no_keypoints():
    detector = model(border_removal_distance=0, keypoint_threshold=1e-4)
    assert detector(torch.rand(1, 1, 7, 5)).keypoints.shape == (1, 0, 2)
    assert detector(torch.rand(1, 1, 8, 8)).keypoints.shape[1] > 0


@torch.no_grad()
def test_no_score_above_the_threshold():
    outputs = model(keypoint_threshold=1.0)(torch.rand(2, 1, 32, 32))
    assert outputs.keypoints.shape == (2, 0, 2)
    assert outputs.descriptors.shape == (2, 0, 16)
    assert model(keypoint_threshold=1.0)(torch.rand(0, 1, 32, 32)).mask.shape == (0, 0)


@torch.no_grad()
def test_outputs_as_a_tuple_and_hidden_states():
    outputs = model()(torch.rand(2, 1, 32, 40), output_hidden_states=True)
    shapes = [tuple(state.shape) for state in outputs.hidden_states]
    assert shapes == [(2, 8, 16, 20), (2, 8, 8, 10), (2, 8, 4, 5), (2, 8, 4, 5)]
    norms = outputs.descriptors.norm(dim=-1)
    torch.testing.assert_close(norms, outputs.mask.float())
    names = ("keypoints", "scores", "descriptors", "mask")
    as_tuple = model()(torch.rand(2, 1, 32, 40), return_dict=False)
    assert [value.dtype for value in as_tuple] == [outputs[name].dtype for name in names]
    assert len(as_tuple) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_keeps_whole_pixels(dtype):
    image = torch.rand(1, 1, 32, 640)
    detector = model(keypoint_threshold=1e-3)
    expected = detector(image).descriptors.dtype, detector(image).mask.sum()
    outputs = detector.to(dtype)(image.to(dtype))
    assert outputs.keypoints.dtype == outputs.scores.dtype == torch.float32
    assert outputs.descriptors.dtype == dtype
    assert expected[0] == torch.float32
    points = outputs.keypoints[0] * torch.tensor([640, 32])
    torch.testing.assert_close(points, points.round(), atol=1e-3, rtol=0)
    assert points[:, 0].max() > 600
    assert len(points.unique(dim=0)) == len(points)
    assert abs(len(points) - expected[1]) < 0.1 * expected[1]


# -- training


def labels_of_pairs():
    """One pair of 16 x 24 images: 2 x 3 cells each."""
    objectness = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]]])
    location = torch.full((2, 2, 3, 2), torch.nan)
    location[0, 0, 0] = torch.tensor([3.0, 5.0])
    location[0, 1, 1] = torch.tensor([0.0, 7.0])
    location[1, 0, 1] = torch.tensor([2.5, 6.25])
    location[1, 1, 0] = torch.tensor([7.0, 0.0])
    correspondences = torch.tensor(
        [[[[3.0, 5.0], [11.0, 7.0]], [[8.0, 15.0], [7.0, 8.0]], [[5.0, 6.0], [20.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]]
    )
    return {
        "objectness": objectness,
        "location": location,
        "correspondences": correspondences,
        "correspondence_mask": torch.tensor([[True, True, True, False]]),
    }


def loss_by_hand(logits, descriptors, labels, scale):
    """The three terms, a cell, a point and a bin at a time."""
    batch, _, rows, columns = logits.shape
    objects, places, matches = [], [], []
    for b in range(batch):
        for y in range(rows):
            for x in range(columns):
                cell = [float(value) for value in logits[b, :, y, x]]
                total = sum(math.exp(value) for value in cell[:64])
                known = float(labels["objectness"][b, y, x])
                if known >= 0:
                    probability = total / (total + math.exp(cell[64]))
                    objects.append(-math.log(probability if known else 1 - probability))
                px, py = (float(value) for value in labels["location"][b, y, x])
                if not math.isnan(px):
                    near = [math.exp(-((k % 8 - px) ** 2 + (k // 8 - py) ** 2) / (2 * 0.49)) for k in range(64)]
                    places.append(-sum(w / sum(near) * math.log(math.exp(v) / total) for w, v in zip(near, cell)))

    def described(image, point):
        """Bilinear between the unit descriptors of the cells; their centres as SuperPoint lays them out."""
        grid = descriptors[image] / descriptors[image].norm(dim=0)
        x, y = ((p - 3.5) / (8 * n - 4.5) * (n - 1) for p, n in zip(point.tolist(), (columns, rows)))
        result = torch.zeros(descriptors.shape[1])
        for j in (math.floor(y), math.floor(y) + 1):
            for i in (math.floor(x), math.floor(x) + 1):
                if 0 <= i < columns and 0 <= j < rows:
                    result = result + grid[:, j, i] * (1 - abs(x - i)) * (1 - abs(y - j))
        return result / result.norm()

    for pair in range(batch // 2):
        count = int(labels["correspondence_mask"][pair].sum())
        points = labels["correspondences"][pair, :count]
        ends = [[described(2 * pair + side, point) for point in points[:, side]] for side in (0, 1)]
        similarity = [[scale * float(a @ b) for b in ends[1]] for a in ends[0]]
        for i in range(count):
            others = [
                j
                for j in range(count)
                if j == i or all(float((points[i, side] - points[j, side]).norm()) >= 6 for side in (0, 1))
            ]
            row = math.log(sum(math.exp(similarity[i][j] - similarity[i][i]) for j in others))
            column = math.log(sum(math.exp(similarity[j][i] - similarity[i][i]) for j in others))
            matches.append((row + column) / 2)
    means = [sum(values) / len(values) for values in (objects, places, matches)]
    return means[0] + 2 * means[1] + means[2], means


def test_the_loss_is_that_of_a_computation_by_hand():
    torch.manual_seed(0)
    logits, descriptors = torch.randn(2, 65, 2, 3), torch.randn(2, 5, 2, 3)
    labels = labels_of_pairs()
    expected, terms = loss_by_hand(logits, descriptors, labels, scale=3.0)
    loss = superpoint_loss(logits, descriptors, **labels, descriptor_scale=3.0)
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert min(terms) > 0.1, "every term is meant to matter"
    # each term alone changes with its labels alone
    for name, value in (
        ("objectness", labels["objectness"].roll(1, 0)),
        ("location", 7 - labels["location"]),
        ("correspondence_mask", torch.tensor([[True, True, False, False]])),
    ):
        changed = {**labels, name: value}
        expected = loss_by_hand(logits, descriptors, changed, scale=3.0)[0]
        other = superpoint_loss(logits, descriptors, **changed, descriptor_scale=3.0)
        assert other.item() == pytest.approx(expected, abs=1e-4)
        assert abs(other - loss) > 1e-3


@pytest.mark.parametrize("objectness", [0.0, -1.0])
def test_the_loss_of_cells_without_points_or_all_to_be_ignored_is_finite(objectness):
    labels = labels_of_pairs()
    labels["location"][:] = torch.nan
    labels["objectness"][:] = objectness
    labels["correspondence_mask"][:] = False
    logits, descriptors = torch.randn(2, 65, 2, 3, requires_grad=True), torch.randn(2, 5, 2, 3, requires_grad=True)
    loss = superpoint_loss(logits, descriptors, **labels)
    assert loss.isfinite()
    loss.backward()
    assert logits.grad.isfinite().all()
    assert descriptors.grad.isfinite().all()


def test_training_reaches_every_parameter_and_lowers_the_loss():
    detector = model().train()
    images, labels = torch.rand(2, 1, 16, 24), labels_of_pairs()
    optimizer = torch.optim.Adam(detector.parameters(), 0.01)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        outputs = detector(images, labels=labels)
        assert outputs.keypoints is None
        outputs.loss.backward()
        losses.append(outputs.loss.item())
        assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("encoder_hidden_sizes", []),
        ("encoder_hidden_sizes", 0),
        ("keypoint_decoder_dim", 64),
        ("nms_radius", -1),
        ("border_removal_distance", -1),
    ],
)
def test_numbers_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=argument):
        SuperPointConfig(**{argument: value})


# -- SuperPoint-Open's conventions


def published_centred_grid(descriptors, keypoints):
    """Source: rpautrat/SuperPoint@ccf3008: zeros beyond the outer cells' centres."""
    rows, columns = descriptors.shape[-2:]
    grid = 2 * (keypoints + 0.5) / (8 * torch.tensor([columns, rows])) - 1
    sampled = F.grid_sample(F.normalize(descriptors, dim=1), grid[:, None], mode="bilinear", align_corners=False)
    return F.normalize(sampled[:, :, 0], dim=1).mT


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (1, 3), (1, 1)])
def test_the_centred_grid_is_superpoint_open_s(rows, columns):
    descriptors = torch.randn(2, 6, rows, columns)
    x, y = torch.arange(8.0 * columns), torch.arange(8.0 * rows)
    keypoints = torch.cartesian_prod(x, y).expand(2, -1, 2)
    ours = sample_descriptors(descriptors, keypoints, grid="centred")
    torch.testing.assert_close(ours, published_centred_grid(descriptors, keypoints), atol=1e-5, rtol=0)
    beside = F.pad(descriptors, (0, 2, 0, 1), value=9.0)  # a larger image of the batch
    sizes = torch.tensor([[rows, columns]]).expand(2, 2)
    torch.testing.assert_close(sample_descriptors(beside, keypoints, sizes, "centred"), ours, atol=1e-5, rtol=0)
    if columns > 1:
        assert (sample_descriptors(descriptors, keypoints) - ours).abs().max() > 0.01


@torch.no_grad()
def test_the_grid_is_a_setting_that_is_saved_and_moves_descriptors_alone(tmp_path):
    image = torch.rand(1, 1, 48, 64)
    stretched, centred = model(), model(descriptor_grid="centred")
    assert stretched.config.descriptor_grid == "stretched"
    one, other = stretched(image), centred(image)
    assert torch.equal(one.keypoints, other.keypoints)
    assert (one.descriptors - other.descriptors).abs().max() > 1e-3
    centred.save_pretrained(tmp_path)
    again = SuperPointForKeypointDetection.from_pretrained(tmp_path)
    assert again.config.descriptor_grid == "centred"
    assert torch.equal(again(image).descriptors, other.descriptors)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("descriptor_grid", "min_pooled_channels"):  # as saved before there were such fields
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = SuperPointForKeypointDetection.from_pretrained(tmp_path)
    assert torch.equal(old(image).descriptors, one.descriptors)
    assert old.config.min_pooled_channels == [0, 0, 0]


def test_the_grid_is_that_of_the_loss(monkeypatch):
    used = []
    original = superpoint_module.sample_descriptors
    monkeypatch.setattr(
        superpoint_module,
        "sample_descriptors",
        lambda *args, grid="stretched": used.append(grid) or original(*args, grid=grid),
    )
    labels = {
        "objectness": torch.zeros(2, 6, 8),
        "location": torch.full((2, 6, 8, 2), torch.nan),
        "correspondences": torch.rand(1, 5, 2, 2) * 40,
        "correspondence_mask": torch.ones(1, 5, dtype=torch.bool),
    }
    labels["location"][0, 0, 0] = 3.0
    model(descriptor_grid="centred")(torch.rand(2, 1, 48, 64), labels=labels)
    assert used == ["centred", "centred"]


@pytest.mark.parametrize(
    "setting", [{"descriptor_grid": "round"}, {"min_pooled_channels": [1, 2]}, {"min_pooled_channels": [9, 0, 0]}]
)
def test_settings_that_do_not_exist_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        model(**setting)


def test_the_last_channels_are_pooled_to_their_minimum():
    hidden = torch.randn(2, 5, 6, 8)
    pooled = superpoint_module.pool_cells(hidden, 2)
    windows = hidden.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert torch.equal(pooled[:, :3], windows[:, :3].amax(-1))
    assert torch.equal(pooled[:, 3:], windows[:, 3:].amin(-1))


def test_autocast_moves_few_keypoints():
    """As long as pixels and scores are not rounded: with them it moves 6% of these."""
    detector = LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny")).keypoint_detector
    detector.config.max_keypoints, detector.config.keypoint_threshold = 256, 0.0
    images = torch.from_numpy(render_textures(4, 240, 320, 0))[:, None] / 255
    with torch.no_grad():
        exact = detector(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = detector(images)
    found = [[set(map(tuple, pixels(each, i, (240, 320)).tolist())) for i in range(4)] for each in (exact, rounded)]
    assert sum(len(a & b) for a, b in zip(*found)) > 0.97 * 4 * 256
    assert rounded.scores.dtype == rounded.keypoints.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_bundled_detector_finds_nothing_where_there_is_nothing(dtype):
    """Its threshold is above what an even picture gives, black and white ones the most: 0.0022."""
    detector = LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny")).keypoint_detector
    levels = torch.linspace(0, 1, 18)[:, None, None, None]
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        assert not detector(levels.expand(-1, 1, 96, 128)).mask.any()
        assert detector((levels[9] + torch.zeros(1, 1, 96, 128)).index_fill(3, torch.arange(64), 1.0)).mask.any()
