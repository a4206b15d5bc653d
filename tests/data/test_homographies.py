"""Tests of the procedural pairs: pixel-exact warps, and ground truth against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightglue_hf.data import homographies as worlds
from lightglue_hf.data.homographies import (
    OUTSIDE,
    PlanarPairs,
    ground_truth_matches,
    project_points,
    sample_homography,
    sample_pairs,
    warp_images,
)
from lightglue_hf.data.photometry import gaussian_blur
from lightglue_hf.data.textures import render_textures

HEIGHT, WIDTH = 96, 128
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def textures() -> np.ndarray:
    return render_textures(6, 240, 320, seed=3)


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["homography", "multi-plane"])
def pairs(request: pytest.FixtureRequest, textures: np.ndarray) -> PlanarPairs:
    return sample_pairs(textures, range(16), HEIGHT, WIDTH, multi_plane=request.param)


def lattice(batch: int, step: float = 3.0, device: str = "cpu") -> Tensor:
    rows, columns = (torch.arange(2, length - 2, step, device=device) for length in (HEIGHT, WIDTH))
    ys, xs = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([xs.flatten(), ys.flatten()], -1).double().expand(batch, -1, -1)


def sampled(image: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of `(h, w)` at `(n, 2)`, written out by hand."""
    points = points.clamp(min=torch.zeros(2), max=torch.tensor([image.shape[1] - 1.001, image.shape[0] - 1.001]))
    x, y = points.unbind(-1)
    left, top = x.floor().long(), y.floor().long()
    u, v = x - left, y - top
    upper = image[top, left] * (1 - u) + image[top, left + 1] * u
    lower = image[top + 1, left] * (1 - u) + image[top + 1, left + 1] * u
    return upper * (1 - v) + lower * v


# Warps


@pytest.mark.parametrize("shift", [(3, 0), (0, 4), (4, 3), (-3, -4)])
def test_integer_shifts_are_pixel_exact(shift: tuple[int, int]) -> None:
    image = torch.rand(1, 2, 40, 50, generator=torch.Generator().manual_seed(0))
    dx, dy = shift
    matrix = torch.tensor([[[1.0, 0, dx], [0, 1, dy], [0, 0, 1]]])
    warped, valid = warp_images(image, matrix, 40, 50)
    expected = torch.roll(image, (dy, dx), dims=(2, 3))
    inside = torch.zeros(40, 50, dtype=torch.bool)
    inside[max(dy, 0) : 40 + min(dy, 0), max(dx, 0) : 50 + min(dx, 0)] = True
    assert torch.equal(valid[0], inside)
    assert torch.allclose(warped[0][:, inside], expected[0][:, inside], atol=2e-5)
    assert (warped[0][:, ~inside] == 0).all()


def test_warp_agrees_with_bilinear_by_hand() -> None:
    rng = np.random.default_rng(1)
    image = torch.rand(3, 1, 50, 60, generator=torch.Generator().manual_seed(1))
    matrices = torch.from_numpy(np.stack([sample_homography(rng, 50, 60) for _ in range(3)]))
    warped, valid = warp_images(image, matrices, 44, 48)
    for item in range(3):
        inverse = torch.linalg.inv(matrices[item])
        for y in range(0, 44, 5):
            for x in range(0, 48, 5):
                source = inverse @ torch.tensor([x, y, 1.0], dtype=torch.float64)
                source = source[:2] / source[2]
                inside = bool((source >= 0).all() and source[0] <= 59 and source[1] <= 49)
                assert bool(valid[item, y, x]) == inside
                if inside:
                    value = sampled(image[item, 0].double(), source[None])
                    assert warped[item, 0, y, x].item() == pytest.approx(value.item(), abs=2e-3)


def test_pixels_behind_the_camera_are_not_valid() -> None:
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-1 / 20, 0, 1]]]).double()
    warped, valid = warp_images(torch.ones(1, 1, 40, 40), matrix, 40, 40)
    assert torch.isfinite(warped).all()
    assert not valid[0, :, 0].all() or valid.any()
    target = torch.tensor([30.0, 10, 1], dtype=torch.float64)
    source = torch.linalg.inv(matrix[0]) @ target
    assert valid[0, 10, 30].item() == bool(source[2] > 0 and (source[:2] / source[2] <= 39).all())


def test_sampled_homography_without_spread_is_the_identity() -> None:
    matrix = sample_homography(np.random.default_rng(0), 30, 40, rotation=0, scale=0, corners=0, translation=0)
    assert np.allclose(matrix, np.eye(3), atol=1e-12)


def test_sampled_homography_turns_about_the_centre() -> None:
    matrix = sample_homography(np.random.default_rng(2), 31, 41, rotation=30, scale=0.3, corners=0, translation=0)
    centre = matrix @ [20, 15, 1]
    assert np.allclose(centre / centre[2], [20, 15, 1])
    assert np.linalg.norm(matrix[:2, :2] - np.eye(2)) > 0.05


def stroke(inverses: np.ndarray, view: int, order: int = 0, **settings: Any) -> worlds._Stroke:
    plane = worlds._Plane(inverses, canvas=0, gain=1 / 255, offset=0.0, **settings)
    return worlds._Stroke(plane, side=view, view=view, order=order, layer=order)


def test_planes_are_painted_pixel_exactly() -> None:
    """A canvas seen from 3 and 4 pixels further on, and a cut-out in front that moves by other whole pixels."""
    canvas = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 50, 60), dtype=np.uint8))
    behind = np.stack([np.eye(3), worlds._similarity(0, 1, 3, 4)])
    front = np.stack([worlds._similarity(0, 1, -7, -5), worlds._similarity(0, 1, 4 - 7, -3 - 5)])
    cut_out = {"coverage": np.full((9, 11), 255, dtype=np.uint8), "corner": (20, 30)}
    strokes = [stroke(behind, 0), stroke(front, 0, 1, **cut_out), stroke(behind, 1), stroke(front, 1, 1, **cut_out)]
    for together in (False, True):
        grey, layers = worlds._render(strokes, canvas, (2, 40, 44), torch.device("cpu"), together)
        for view, (dx, dy, left, top) in enumerate([(0, 0, 7, 5), (3, 4, 3, 8)]):
            expected, ids = canvas[0, dy : dy + 40, dx : dx + 44] / 255, torch.zeros(40, 44)
            expected[top : top + 9, left : left + 11] = canvas[0, 20:29, 30:41] / 255
            ids[top : top + 9, left : left + 11] = 1
            torch.testing.assert_close(grey[view], expected, atol=2e-5, rtol=0)
            assert torch.equal(layers[view], ids.byte())


@pytest.mark.parametrize("padding", ["reflection", "zeros"])
def test_antialiased_sampling_keeps_the_place(padding: str) -> None:
    """A halved or a third-sized dot stays where the geometry says, however many pixels are averaged."""
    ys, xs = torch.meshgrid(torch.arange(121.0), torch.arange(161.0), indexing="ij")
    dot = torch.exp(-((xs - 71) ** 2 + (ys - 53) ** 2) / (2 * 5.0**2))[None, None]
    folds = []
    for factor in (1.0, 1.6, 2.0, 3.0):
        inverse, height, width = np.diag([factor, factor, 1.0])[None], int(120 / factor), int(160 / factor)
        boxes, fold = worlds._footprints(inverse, np.array([[121, 161]]), height, width)
        assert boxes.tolist() == [[0, 0, width, height]]
        view = worlds._sample_planes(dot, inverse, (0, 0, width, height), int(fold[0]), padding)[0][0, 0]
        grid_y, grid_x = torch.meshgrid(torch.arange(view.shape[0]), torch.arange(view.shape[1]), indexing="ij")
        assert ((view * grid_x).sum() / view.sum()).item() == pytest.approx(71 / factor, abs=0.02)
        assert ((view * grid_y).sum() / view.sum()).item() == pytest.approx(53 / factor, abs=0.02)
        folds.append(int(fold[0]))
    assert folds == [1, 2, 2, 3]


def test_small_stripes_turn_grey_and_not_coarse() -> None:
    stripes = (torch.arange(120) % 2).expand(1, 1, 120, 120).float()
    view = worlds._sample_planes(stripes, np.diag([2.1, 2.1, 1.0])[None], (0, 0, 56, 56), 2, "reflection")[0]
    assert view.sub(0.5).abs().max() < 1e-3


# Pairs


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


def test_layers_move_by_the_plane_induced_homography() -> None:
    """H = K (R + t n^T / d) K^-1 with the plane n^T X = d in the frame of camera 0."""
    rng = np.random.default_rng(4)
    cameras, focals = worlds._cameras(rng, HEIGHT, WIDTH, 0.5)
    tilts = worlds._tilted(rng, worlds.TRIES, 20, 50, np.ones(worlds.TRIES, dtype=bool))
    origin = np.array([0.1, -0.05, 0.9])
    for both, focal, axes in zip(cameras, focals, tilts, strict=True):
        intrinsic = np.array([[focal, 0, (WIDTH - 1) / 2], [0, focal, (HEIGHT - 1) / 2], [0, 0, 1]])
        pose0, pose1 = np.linalg.inv(intrinsic) @ both
        for pose in (pose0, pose1):
            assert np.allclose(pose[:, :3] @ pose[:, :3].T, np.eye(3), atol=1e-9)
            assert np.linalg.det(pose[:, :3]) == pytest.approx(1)
        settings = axes[None], origin[None], np.array([0.01]), np.array([[10.0, 20.0]])
        found = worlds._between(worlds._Plane(*worlds._plane_inverses(both, *settings), 0, 1.0, 0.0), HEIGHT, WIDTH)
        rotation = pose1[:, :3] @ pose0[:, :3].T
        translation = pose1[:, 3] - rotation @ pose0[:, 3]
        normal = pose0[:, :3] @ np.cross(axes[:, 0], axes[:, 1])
        distance = normal @ (pose0[:, :3] @ origin + pose0[:, 3])
        expected = intrinsic @ (rotation + np.outer(translation, normal) / distance) @ np.linalg.inv(intrinsic)
        assert np.allclose(found / found[2, 2], expected / expected[2, 2], atol=1e-8)
        centre = both[0] @ [*origin, 1]
        assert (found @ (centre / centre[2]))[2] > 0


def test_multi_plane_worlds_have_parallax_and_occlusion(textures: np.ndarray) -> None:
    pairs = sample_pairs(textures, range(16), HEIGHT, WIDTH, multi_plane=1.0)
    points = lattice(16)
    swapped = pairs.homographies[:, :1].expand(-1, 5, -1, -1).double()
    own, _ = project_points(points, pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1])
    flat, _ = project_points(points, swapped, pairs.layers[:, 0], pairs.layers[:, 1])
    layer = worlds._layer_at(points, pairs.layers[:, 0])[0]
    front = (layer > 0) & (layer != OUTSIDE)
    assert front.float().mean() > 0.1
    assert (own - flat).norm(dim=-1)[front].median() > 2
    _, inside = worlds._layer_at(own, pairs.layers[:, 1])
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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
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
    render, photograph = worlds._render, worlds.photograph
    monkeypatch.setattr(worlds, "_render", lambda *arguments: render(*arguments[:-1], True))
    monkeypatch.setattr(worlds, "photograph", lambda *arguments: photograph(*arguments[:-1], True))
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


def test_scales_of_flat_pairs_are_spread() -> None:
    """Between the centres of two views: most are alike, and ratios about 2 occur."""
    centre, ratios = np.array([[(WIDTH - 1) / 2, (HEIGHT - 1) / 2]]), []
    for seed in range(600):
        (plane,) = worlds._flat_world(np.random.default_rng(seed), (4, 2 * HEIGHT, 2 * WIDTH), HEIGHT, WIDTH)
        near = centre + np.array([[0, 0], [1e-3, 0], [0, 1e-3]])
        moved, _ = worlds._project(worlds._between(plane, HEIGHT, WIDTH), near)
        area = abs(np.linalg.det((moved[1:] - moved[0]) / 1e-3))
        ratios.append(math.exp(abs(math.log(area) / 2)))
    assert 1.1 < np.median(ratios) < 1.4
    assert 0.03 < np.mean(np.array(ratios) > 1.9) < 0.1
    assert max(ratios) < 3.5


# Ground truth


def test_projection_and_back(pairs: PlanarPairs) -> None:
    points = lattice(16).float()
    there, visible = project_points(points, pairs.homographies, pairs.layers[:, 0], pairs.layers[:, 1])
    assert torch.isfinite(there).all()
    inverse = torch.linalg.inv(pairs.homographies.double())
    back, again = project_points(there.double(), inverse, pairs.layers[:, 1], pairs.layers[:, 0])
    assert visible.any()
    assert (back - points).norm(dim=-1)[visible].max() < 1e-3
    assert again[visible].float().mean() > 0.999


def test_visibility_against_brute_force(pairs: PlanarPairs) -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform([-4, -4], [WIDTH + 3, HEIGHT + 3], (16, 60, 2)))
    projected, visible = project_points(points, pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1])
    for item in range(16):
        for index in range(60):
            place, seen = brute_projection(
                points[item, index].numpy(), pairs.homographies[item].double().numpy(), *pairs.layers[item].numpy()
            )
            assert bool(visible[item, index]) == seen
            if seen:
                assert np.allclose(projected[item, index].numpy(), place, atol=1e-6)
    assert 0.1 < visible.float().mean() < 0.9


def brute_projection(
    point: np.ndarray, matrices: np.ndarray, layers0: np.ndarray, layers1: np.ndarray
) -> tuple[np.ndarray | None, bool]:
    column, row = math.floor(point[0] + 0.5), math.floor(point[1] + 0.5)
    if not (0 <= column < layers0.shape[1] and 0 <= row < layers0.shape[0]):
        return None, False
    layer = layers0[row, column]
    if layer == OUTSIDE:
        return None, False
    moved = matrices[layer] @ [*point, 1]
    if moved[2] <= 1e-6:
        return None, False
    place = moved[:2] / moved[2]
    column, row = math.floor(place[0] + 0.5), math.floor(place[1] + 0.5)
    if not (0 <= column < layers1.shape[1] and 0 <= row < layers1.shape[0]):
        return None, False
    return place, bool(layers1[row, column] == layer)


def brute_labels(keypoints: np.ndarray, mask: np.ndarray, matrices: np.ndarray, layers: np.ndarray) -> np.ndarray:
    count = keypoints.shape[1]
    inverses = np.linalg.inv(matrices)
    places = [
        [brute_projection(p, matrices, layers[0], layers[1]) for p in keypoints[0]],
        [brute_projection(p, inverses, layers[1], layers[0]) for p in keypoints[1]],
    ]
    cost = np.full((count, count), np.inf)
    single = [np.full((count, count), np.inf), np.full((count, count), np.inf)]
    for i in range(count):
        for j in range(count):
            if not (mask[0, i] and mask[1, j]):
                continue
            if places[0][i][1]:
                single[0][i, j] = np.linalg.norm(places[0][i][0] - keypoints[1, j])
            if places[1][j][1]:
                single[1][j, i] = np.linalg.norm(places[1][j][0] - keypoints[0, i])
            cost[i, j] = max(single[0][i, j], single[1][j, i])
    labels = np.full((2, count), -2)
    for view in range(2):
        own, other = layers[view], layers[1 - view]
        for i in range(count):
            column, row = math.floor(keypoints[view, i, 0] + 0.5), math.floor(keypoints[view, i, 1] + 0.5)
            if not mask[view, i] or own[row, column] == OUTSIDE:
                continue
            possible = False
            around = set(own[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].ravel().tolist()) - {OUTSIDE}
            for layer in {min(around), max(around), own[row, column]}:
                moved = (matrices, inverses)[view][layer] @ [*keypoints[view, i], 1]
                if moved[2] <= 1e-6:
                    continue
                place = moved[:2] / moved[2]
                x, y = math.floor(place[0] + 0.5), math.floor(place[1] + 0.5)
                if not (0 <= x < other.shape[1] and 0 <= y < other.shape[0]):
                    continue
                if layer not in other[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]:
                    continue
                distances = np.linalg.norm(keypoints[1 - view] - place, axis=1)[mask[1 - view]]
                possible = possible or distances.min() <= 5
            if not possible:
                labels[view, i] = -1
    for i in range(count):
        j = int(cost[i].argmin())
        if cost[i, j] < 3 and int(cost[:, j].argmin()) == i:
            labels[0, i], labels[1, j] = j, i
    return labels


def test_labels_against_brute_force(pairs: PlanarPairs) -> None:
    rng = np.random.default_rng(7)
    count = 60
    keypoints = torch.from_numpy(rng.uniform([0, 0], [WIDTH - 1, HEIGHT - 1], (16, 2, count, 2)))
    # Half of the keypoints of image 1 are true projections, some of them a little or much off.
    projected, visible = project_points(
        keypoints[:, 0], pairs.homographies.double(), pairs.layers[:, 0], pairs.layers[:, 1]
    )
    noise = torch.from_numpy(rng.standard_normal((16, count, 2)) * rng.choice([0.3, 2.5, 5], (16, count, 1)))
    near = (projected + noise).clamp(min=torch.zeros(2), max=torch.tensor([WIDTH - 1.0, HEIGHT - 1.0]))
    copied = visible & (torch.arange(count) % 2 == 0)
    keypoints[:, 1] = torch.where(copied[..., None], near, keypoints[:, 1])
    keypoints[:, 1] = keypoints[:, 1].flip(1)
    mask = torch.from_numpy(rng.random((16, 2, count)) < 0.85)
    labels = ground_truth_matches(keypoints, mask, pairs.homographies, pairs.layers)
    assert labels.shape == (16, 2, count)
    assert labels.dtype == torch.int64
    for item in range(16):
        expected = brute_labels(
            keypoints[item].numpy(),
            mask[item].numpy(),
            pairs.homographies[item].double().numpy(),
            pairs.layers[item].numpy(),
        )
        assert np.array_equal(labels[item].numpy(), expected)
    for value in (-2, -1):
        assert (labels[mask] == value).sum() > 20
    assert (labels >= 0).sum() > 60
    assert (labels[~mask] == -2).all()


def test_labels_ignore_padding_and_point_both_ways(pairs: PlanarPairs) -> None:
    keypoints = torch.stack([lattice(16, 8.0), lattice(16, 8.0)], 1).float()
    count = keypoints.shape[2]
    mask = torch.ones(16, 2, count, dtype=torch.bool)
    mask[:, 0, 50:] = False
    mask[:, 1, 90:] = False
    labels = ground_truth_matches(keypoints, mask, pairs.homographies, pairs.layers)
    moved = keypoints.clone()
    moved[:, 0, 50:] = 17.0  # what lies under the padding must not matter
    moved[:, 1, 90:] = float("nan")
    assert torch.equal(labels, ground_truth_matches(moved, mask, pairs.homographies, pairs.layers))
    item, i = torch.nonzero(labels[:, 0] >= 0).unbind(1)
    j = labels[item, 0, i]
    assert len(i) > 20
    assert mask[item, 1, j].all()
    assert torch.equal(labels[item, 1, j], i)
    cut = ground_truth_matches(keypoints[:, :, :90], mask[:, :, :90], pairs.homographies, pairs.layers)
    assert torch.equal(cut, labels[:, :, :90])


def test_no_keypoints_give_no_labels(pairs: PlanarPairs) -> None:
    labels = ground_truth_matches(
        torch.zeros(16, 2, 0, 2), torch.zeros(16, 2, 0, dtype=torch.bool), pairs.homographies, pairs.layers
    )
    assert labels.shape == (16, 2, 0)
