"""Tests of the procedural pairs: what is seen in both views, how pairs are spread, batches and devices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightglue_hf.data import ground_truth, homographies
from lightglue_hf.data.homographies import (
    OUTSIDE,
    Changes,
    PlanarPairs,
    ground_truth_matches,
    project_points,
    sample_pairs,
)
from lightglue_hf.data.photometry import gaussian_blur
from lightglue_hf.data.warps import project

from .planar import HEIGHT, WIDTH, lattice, sampled

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_shapes_ranges_and_types(pairs: PlanarPairs) -> None:
    assert pairs.images.shape == pairs.clean.shape == pairs.layers.shape == (16, 2, HEIGHT, WIDTH)
    for views in (pairs.images, pairs.clean):
        assert views.dtype == torch.float32
        assert torch.isfinite(views).all()
        assert views.min() >= 0
        assert views.max() <= 1
        assert views.flatten(2).std(-1).min() > 0.004
    assert pairs.homographies.dtype == torch.float32
    assert torch.isfinite(pairs.homographies).all()
    used = set(pairs.layers.unique().tolist()) - {OUTSIDE}
    assert used == set(range(pairs.homographies.shape[1]))
    assert (pairs.layers == OUTSIDE).float().mean() < 0.1
    eye = torch.eye(3)
    for item in range(16):  # a layer that is seen has a homography of its own
        for layer in set(pairs.layers[item].unique().tolist()) - {OUTSIDE}:
            assert not torch.equal(pairs.homographies[item, layer], eye)


@pytest.mark.parametrize("multi_plane", [0.0, 0.5, 1.0])
def test_batch_equals_singles_and_repeats(textures: np.ndarray, multi_plane: float) -> None:
    seeds = [11, 4, 2**40, 7, 4]
    batch = sample_pairs(textures, seeds, 60, 81, multi_plane=multi_plane, unrelated=0.2)
    again = sample_pairs(torch.from_numpy(textures), seeds, 60, 81, multi_plane=multi_plane, unrelated=0.2)
    for name in ("images", "clean", "homographies", "layers"):
        whole = getattr(batch, name)
        assert torch.equal(whole, getattr(again, name))
        assert torch.equal(whole[1], whole[4])
        for index, seed in enumerate(seeds):
            single = sample_pairs(textures, [seed], 60, 81, multi_plane=multi_plane, unrelated=0.2)
            assert torch.equal(whole[index], getattr(single, name)[0])
    assert not torch.equal(batch.clean[0], batch.clean[1])


def test_global_random_state_is_untouched(textures: np.ndarray) -> None:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
    first = sample_pairs(textures, [1], 60, 80, multi_plane=1.0).images
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, sample_pairs(textures, [1], 60, 80, multi_plane=1.0).images)


def test_views_agree_wherever_a_point_is_visible(pairs: PlanarPairs) -> None:
    """Brute force: clean grey values are the same at both ends of a projection, and not so a pixel beside it."""
    points = lattice(16, 1.0)
    projected, visible = project_points(points, pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1])
    assert visible.float().mean() > 0.35
    errors, beside = [], []
    for item in range(16):
        seen = visible[item]
        here = sampled(pairs.clean[item, 0].double(), points[item][seen])
        there = sampled(pairs.clean[item, 1].double(), projected[item][seen])
        off = sampled(pairs.clean[item, 1].double(), projected[item][seen] + torch.tensor([0.7, -0.7]))
        errors.append((here - there).abs().mean())
        beside.append((here - off).abs().mean())
    assert torch.stack(errors).mean() < 0.6 * torch.stack(beside).mean()
    assert torch.stack(errors).median() < 0.02


@pytest.mark.parametrize("multi_plane", [0.0, 1.0])
def test_canvases_lie_in_the_views_where_it_is_said(multi_plane: float) -> None:
    """A bright dot on an even canvas is bright there, and placements and homographies say the same."""
    rng = np.random.default_rng(0)
    canvas = np.full((2 * HEIGHT, 2 * WIDTH), 40, dtype=np.uint8)
    dots = rng.uniform([8, 8], [2 * WIDTH - 9, 2 * HEIGHT - 9], (40, 2)).round().astype(int)
    for dx, dy in np.ndindex(5, 5):
        canvas[dots[:, 1] + dy - 2, dots[:, 0] + dx - 2] = 255
    pairs = sample_pairs(canvas[None], range(12), HEIGHT, WIDTH, multi_plane=multi_plane, changes=Changes(1.0, 0.0))
    seen = 0
    for row in range(12):
        for layer in (pairs.canvases[row] == 0).nonzero()[:, 0].tolist():
            first, second = pairs.placements[row, :, layer].double()
            across = second @ torch.linalg.inv(first)
            expected = pairs.homographies[row, layer].double()
            assert torch.allclose(across / across[2, 2], expected / expected[2, 2], atol=1e-3, rtol=1e-3)
            for side, placement in enumerate((first, second)):
                placed, weight = project(placement.numpy(), dots.astype(float))
                for x, y in placed[weight > 0].round().astype(int):
                    if 1 <= x < WIDTH - 1 and 1 <= y < HEIGHT - 1:
                        around = slice(y - 1, y + 2), slice(x - 1, x + 2)
                        if (pairs.layers[row, side][around] == layer).all():
                            clean = pairs.clean[row, side]
                            assert clean[around].max() > clean[pairs.layers[row, side] == layer].median() + 0.02
                            seen += 1
    assert seen > 200


@pytest.mark.parametrize("multi_plane", [0.0, 1.0])
def test_dots_are_found_where_they_are_projected(multi_plane: float) -> None:
    """Bright dots on canvases: the centroid found in each view agrees with the projection."""
    ys, xs = np.mgrid[0:240, 0:320]
    u, v = (xs + 13) % 26 - 13, (ys + 13) % 26 - 13
    canvas = (70 + 150 * np.exp(-(u**2 + v**2) / (2 * 1.7**2))).astype(np.uint8)
    pairs = sample_pairs(canvas[None], range(30, 70), HEIGHT, WIDTH, multi_plane=multi_plane)
    points = lattice(40, 1.0)
    _, visible = project_points(points, pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1])
    radius, errors, on_cut_outs = 4, [], 0

    def centroid(image: Tensor, x: float, y: float) -> tuple[float, float] | None:
        column, row = round(x), round(y)
        if not (radius <= column < WIDTH - radius and radius <= row < HEIGHT - radius):
            return None
        patch = image[row - radius : row + radius + 1, column - radius : column + radius + 1].double()
        rim = torch.cat([patch[0], patch[-1], patch[:, 0], patch[:, -1]])
        if rim.max() - rim.min() > 0.04:  # another dot or a silhouette is near
            return None
        weight = (patch - rim.median()).abs()
        weight = torch.where(weight > 0.25 * weight.max(), weight, 0.0)
        if weight.max() < 0.1:
            return None
        offset = torch.arange(-radius, radius + 1.0, dtype=torch.float64)
        return (
            column + ((weight * offset).sum() / weight.sum()).item(),
            row + ((weight * offset[:, None]).sum() / weight.sum()).item(),
        )

    def alone(item: int, view: int, layer: int, x: float, y: float) -> bool:
        rows = slice(round(y) - radius, round(y) + radius + 1)
        columns = slice(round(x) - radius, round(x) + radius + 1)
        return bool((pairs.layers[item, view, rows, columns] == layer).all())

    for item in range(40):
        image = pairs.clean[item, 0]
        strength = (image - gaussian_blur(image, 5)).abs()
        peaks = F.max_pool2d(strength[None, None], 7, 1, 3)[0, 0] == strength
        peaks &= strength > 0.1
        candidates = visible[item] & peaks[points[item, :, 1].long(), points[item, :, 0].long()]
        for index in torch.nonzero(candidates).flatten().tolist():
            x, y = points[item, index].tolist()
            layer = int(pairs.layers[item, 0, int(y), int(x)])
            found = centroid(pairs.clean[item, 0], x, y)
            if found is None or math.hypot(found[0] - x, found[1] - y) > 1 or not alone(item, 0, layer, x, y):
                continue
            exact = pairs.homographies[item, layer].double() @ torch.tensor([*found, 1.0], dtype=torch.float64)
            target = (exact[:2] / exact[2]).tolist()
            other = centroid(pairs.clean[item, 1], *target)
            if other is None or not alone(item, 1, layer, *target):
                continue
            errors.append(math.hypot(other[0] - target[0], other[1] - target[1]))
            on_cut_outs += layer > 0
    assert len(errors) > 40
    assert on_cut_outs > 8 or multi_plane == 0
    assert max(errors) < 0.5
    assert np.median(errors) < 0.1


def test_multi_plane_worlds_have_parallax_and_occlusion(textures: np.ndarray) -> None:
    pairs = sample_pairs(textures, range(16), HEIGHT, WIDTH, multi_plane=1.0)
    points = lattice(16)
    swapped = pairs.homographies[:, :1].expand(-1, 5, -1, -1).double()
    own, _ = project_points(points, pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1])
    flat, _ = project_points(points, swapped, pairs.layers[:, 0], pairs.layers[:, 1])
    layer = ground_truth.layer_at(points, pairs.layers[:, 0])[0]
    front = (layer > 0) & (layer != OUTSIDE)
    assert front.float().mean() > 0.1
    assert (own - flat).norm(dim=-1)[front].median() > 2
    _, inside = ground_truth.layer_at(own, pairs.layers[:, 1])
    _, visible = project_points(points, pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1])
    assert (inside & ~visible & (layer != OUTSIDE)).float().mean() > 0.01


def test_unrelated_pairs_have_nothing_in_common(textures: np.ndarray) -> None:
    for multi_plane in (0.0, 1.0):
        pairs = sample_pairs(textures, range(6), HEIGHT, WIDTH, multi_plane=multi_plane, unrelated=1.0)
        points = lattice(6)
        _, forth = project_points(points, pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1])
        _, back = project_points(points, pairs.homographies.double(), pairs.layers[:, 1], pairs.layers[:, 0])
        assert not forth.any()
        assert not back.any()
        keypoints = lattice(6, 7.0)[:, None].expand(-1, 2, -1, -1)
        labels = ground_truth_matches(
            keypoints, torch.ones(keypoints.shape[:3], dtype=torch.bool), pairs.homographies, pairs.layers
        )
        assert (labels < 0).all()
        assert (labels == -1).float().mean() > 0.9


def test_bad_arguments_are_named(textures: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        sample_pairs(textures.astype(np.float32), [0], 60, 80)
    with pytest.raises(ValueError, match="max_layers"):
        sample_pairs(textures, [0], 60, 80, max_layers=9)
    with pytest.raises(ValueError, match="seeds"):
        sample_pairs(textures, [], 60, 80)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[needs_cuda, pytest.mark.gpu])])
def test_everything_is_made_on_the_device(textures: np.ndarray, device: str) -> None:
    """Whatever is made without naming its device lands on `meta` here, and cannot be used with the rest."""
    settings: dict[str, Any] = {"multi_plane": 0.5, "unrelated": 0.2}
    expected = sample_pairs(textures, range(12), 60, 81, **settings)
    with torch.device("meta"):
        pairs = sample_pairs(textures, range(12), 60, 81, device=device, **settings)
        keypoints = torch.stack([lattice(12, 9.0, device)] * 2, 1)
        mask = torch.ones(keypoints.shape[:3], dtype=torch.bool, device=device)
        labels = ground_truth_matches(keypoints, mask, pairs.homographies, pairs.layers)
    assert labels.device.type == device
    for name in ("images", "clean", "homographies", "layers"):
        assert getattr(pairs, name).device.type == device
    assert torch.equal(pairs.homographies.cpu(), expected.homographies)
    assert (pairs.layers.cpu() != expected.layers).float().mean() < 1e-3
    assert (pairs.clean.cpu() - expected.clean).abs().mean() < 1e-4
    if device == "cpu":
        assert torch.equal(pairs.images, expected.images)
    else:
        moved = sample_pairs(torch.from_numpy(textures).to(device), range(12), 60, 81, **settings)
        assert moved.images.device.type == device
        torch.testing.assert_close(moved.clean, pairs.clean)


def test_together_is_one_by_one(textures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups in which a GPU paints give what a CPU paints plane by plane."""
    expected = sample_pairs(textures, range(12), 60, 81, multi_plane=0.6, unrelated=0.1)
    render, augment = homographies.render, homographies.augment
    monkeypatch.setattr(homographies, "render", lambda *arguments: render(*arguments[:-1], True))
    monkeypatch.setattr(homographies, "augment", lambda *arguments: augment(*arguments[:-1], True))
    pairs = sample_pairs(textures, range(12), 60, 81, multi_plane=0.6, unrelated=0.1)
    assert (pairs.layers != expected.layers).float().mean() < 1e-4
    torch.testing.assert_close(pairs.clean, expected.clean, atol=2e-3, rtol=0)
    assert (pairs.clean - expected.clean).abs().mean() < 1e-5
    assert (pairs.images - expected.images).abs().mean() < 1e-4


def test_to_moves_every_tensor(textures: np.ndarray) -> None:
    moved = sample_pairs(textures, [0], 60, 80).to("meta")
    for name in ("images", "clean", "homographies", "layers"):
        assert getattr(moved, name).device.type == "meta"


def test_photometric_changes_keep_the_geometry(pairs: PlanarPairs) -> None:
    """The best alignment of noisy and clean over shifts of one pixel is no shift, and a quarter is nearly clean."""

    def correlation(first: Tensor, second: Tensor) -> float:
        first, second = first - first.mean(), second - second.mean()
        return ((first * second).sum() / (first.norm() * second.norm())).item()

    def edges(image: Tensor) -> Tensor:
        return image - gaussian_blur(image, 2.5)

    best, changed = 0, []
    for image, clean in zip(pairs.images.flatten(0, 1), pairs.clean.flatten(0, 1), strict=True):
        high, base = edges(image), edges(clean)
        scores = {
            (dy, dx): correlation(high[2:-2, 2:-2], torch.roll(base, (dy, dx), (0, 1))[2:-2, 2:-2])
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        }
        best += max(scores, key=scores.__getitem__) == (0, 0)
        changed.append((image - clean).abs().mean().item())
    assert best >= 31
    assert sum(change < 0.01 for change in changed) >= 3
    assert sum(change > 0.03 for change in changed) >= 6


def test_overlaps_are_spread(textures: np.ndarray) -> None:
    for multi_plane in (0.0, 1.0):
        pairs = sample_pairs(textures, range(40), 48, 64, multi_plane=multi_plane)
        ys, xs = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
        points = torch.stack([xs.flatten(), ys.flatten()], -1).expand(40, -1, -1)
        _, visible = project_points(points, pairs.homographies, pairs.layers[:, 0], pairs.layers[:, 1])
        share = visible.float().mean(1)
        assert share.min() > 0.02
        assert (share < 0.5).float().mean() > 0.1
        assert (share > 0.7).float().mean() > 0.15
