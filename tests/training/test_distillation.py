"""What a detector learns from a teacher."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightglue_hf import SuperPointConfig, SuperPointForKeypointDetection
from lightglue_hf.data.homographies import Changes, sample_pairs
from lightglue_hf.data.textures import render_textures
from lightglue_hf.detectors.superpoint import distillation_loss
from lightglue_hf.training import (
    DetectorCollator,
    DetectorRecipe,
    RecipeError,
    canvas_features,
    detector_labels,
    distilled_labels,
    train_detector,
)

from .corners import Corners, CornersConfig
from .small import NARROW, SMALL

NONE = torch.zeros(2, 12, 12, dtype=torch.bool)


def unit_vectors(width, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(2, 12, width, generator=generator), dim=-1)


def test_a_teacher_distilled_into_itself_costs_nothing():
    teacher = unit_vectors(8, 0)
    turned = teacher @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    assert distillation_loss(teacher, teacher, teacher, NONE).abs() < 1e-6
    assert distillation_loss(turned, turned, teacher, NONE).abs() < 1e-5, "similarities are all that counts"
    wider = F.pad(teacher, (0, 5))
    assert distillation_loss(wider, wider, teacher, NONE).abs() < 1e-6


def test_another_descriptor_costs_and_its_gradient_leads_to_the_teacher():
    teacher, descriptors = unit_vectors(8, 0), unit_vectors(5, 1)
    descriptors.requires_grad_(True)
    optimizer = torch.optim.Adam([descriptors], 0.05)
    losses = []
    for _ in range(60):
        unit = F.normalize(descriptors, dim=-1)
        loss = distillation_loss(unit, unit, teacher, NONE)
        optimizer.zero_grad()
        loss.backward()
        assert descriptors.grad.shape == descriptors.shape
        assert descriptors.grad.isfinite().all()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) >= 0
    assert losses[-1] < 0.5 * losses[0]


def test_points_that_the_teacher_does_not_know_and_excluded_pairs_count_for_nothing():
    teacher, descriptors = unit_vectors(8, 0), unit_vectors(8, 1)
    assert distillation_loss(descriptors, descriptors, torch.zeros_like(teacher), NONE) == 0
    known = torch.arange(12) < 7
    part = distillation_loss(descriptors, descriptors, teacher * known[:, None], NONE)
    alone = distillation_loss(descriptors[:, :7], descriptors[:, :7], teacher[:, :7], NONE[:, :7, :7])
    assert torch.allclose(part, alone, atol=1e-5)
    others = ~torch.eye(12, dtype=torch.bool).expand(2, -1, -1)
    assert distillation_loss(descriptors, descriptors, teacher, others).abs() < 1e-6, "each has its own match alone"


# -- labels


@pytest.fixture(scope="module")
def canvases():
    return torch.from_numpy(render_textures(4, 192, 256, 0))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Corners(CornersConfig())


def test_labels_are_the_teachers_keypoints_on_the_canvases(canvases, teacher, tmp_path):
    features = canvas_features(teacher, canvases, tmp_path / "teacher.safetensors")
    pairs = sample_pairs(canvases, range(6), 96, 128, multi_plane=0.5, changes=Changes(1.5, 0.0))
    labels = distilled_labels(pairs, features, torch.Generator().manual_seed(0))
    assert labels["objectness"].shape == (12, 12, 16)
    assert torch.equal(labels["objectness"] == 1, ~labels["location"].isnan().any(-1))

    points, mask = labels["correspondences"].double(), labels["correspondence_mask"]
    assert 20 < mask.sum(1).min()
    start = F.pad(points[:, :, 0], (0, 1), value=1.0)
    landed = torch.einsum("blij,bnj->blni", pairs.homographies.double(), start)
    error = (landed[..., :2] / landed[..., 2:] - points[:, None, :, 1]).norm(dim=-1).amin(1)
    assert error[mask].max() < 1e-2, "the same point of a layer in both views"

    described = labels["teacher_descriptors"]
    of_teacher = described.abs().amax(-1) > 0
    assert not (of_teacher & ~mask).any()
    for row in range(6):
        back = torch.linalg.inv(pairs.placements[row, 0].double())
        start = F.pad(points[row, :, 0], (0, 1), value=1.0)
        on_canvas = torch.einsum("lij,nj->lni", back, start)
        on_canvas = on_canvas[..., :2] / on_canvas[..., 2:]
        for point in of_teacher[row].nonzero()[:, 0].tolist():
            found = [
                (on_canvas[layer, point] - features.keypoints[canvas].double()).norm(dim=-1).argmin()
                for layer, canvas in enumerate(pairs.canvases[row].tolist())
            ]
            candidates = [
                features.descriptors[canvas, index].float()
                for index, canvas in zip(found, pairs.canvases[row].tolist())
                if canvas >= 0
            ]
            assert any(torch.equal(described[row, point], candidate) for candidate in candidates)


def test_corners_say_where_points_lie_and_the_teacher_which(canvases, teacher, tmp_path):
    features = canvas_features(teacher, canvases, tmp_path / "teacher.safetensors")
    pairs = sample_pairs(canvases, range(6), 96, 128, multi_plane=0.5)
    alone = detector_labels(pairs, torch.Generator().manual_seed(0))
    taught = distilled_labels(pairs, features, torch.Generator().manual_seed(0))
    points = taught["objectness"] == 1
    assert 20 < points.sum() < (alone["objectness"] == 1).sum()
    assert torch.equal(points | (alone["objectness"] == 1), alone["objectness"] == 1)
    same_cell = points & (taught["location"] == alone["location"]).all(-1)
    assert same_cell.sum() > 0.9 * points.sum(), "unless the strongest corner of a cell is none of the teacher's"
    assert ((taught["objectness"] == 0) <= (alone["objectness"] == 0)).all(), "what both leave out is background"

    nothing = replace(features, mask=torch.zeros_like(features.mask))
    untaught = distilled_labels(pairs, nothing, torch.Generator().manual_seed(0))
    assert not (untaught["objectness"] == 1).any()
    assert not untaught["teacher_descriptors"].any()
    assert untaught["correspondence_mask"].any(), "corners"


def test_a_seed_always_gives_its_pair_and_labels(canvases, teacher, tmp_path):
    features = canvas_features(teacher, canvases, tmp_path / "teacher.safetensors")
    recipe = DetectorRecipe("unused", teacher="corners", **{**SMALL, "height": 96, "width": 128})
    collator = DetectorCollator(canvases, recipe, features)
    first, again = collator([5, 6]), collator([5, 6])
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    for name, label in first["labels"].items():
        assert torch.equal(label.nan_to_num(-9), again["labels"][name].nan_to_num(-9)), name


def test_features_of_canvases_are_kept_and_broken_ones_found_anew(canvases, teacher, tmp_path):
    path = tmp_path / "teacher.safetensors"
    features = canvas_features(teacher, canvases, path)
    assert features.shape == (4,)
    assert features.descriptors.dtype == torch.float16

    class Gone:
        """A teacher that must not be asked."""

    kept = canvas_features(Gone(), canvases, path)
    assert all(torch.equal(features[name], kept[name]) for name in features)
    path.write_bytes(path.read_bytes()[:100])
    anew = canvas_features(teacher, canvases, path)
    assert all(torch.equal(features[name], anew[name]) for name in features)


# -- runs


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A detector that was not trained."""
    torch.manual_seed(3)
    directory = tmp_path_factory.mktemp("narrow")
    config = SuperPointConfig(initializer_range=0.2, **NARROW)
    SuperPointForKeypointDetection(config).save_pretrained(directory)
    return directory


def test_a_run_with_a_teacher_resumes_with_the_same_pairs_and_refuses_another_one(narrow, tmp_path):
    pytest.importorskip("accelerate")
    recipe = DetectorRecipe(tmp_path / "run", teacher=narrow, pairs=24, save_steps=2, **SMALL, **NARROW)
    whole = train_detector(recipe).state_dict()
    shutil.rmtree(Path(recipe.output_dir, "checkpoint-6"))
    Path(recipe.output_dir, "teacher.safetensors").unlink()
    again = train_detector(recipe).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert f"keypoints and similarities of `{narrow}`" in Path(recipe.output_dir, "README.md").read_text()

    without = train_detector(DetectorRecipe(tmp_path / "without", pairs=24, **SMALL, **NARROW)).state_dict()
    assert any(not torch.equal(whole[name], without[name]) for name in whole), "the teacher says something"

    shutil.copytree(narrow, tmp_path / "teacher")
    other = DetectorRecipe(tmp_path / "other", teacher=tmp_path / "teacher", pairs=4, **SMALL, **NARROW)
    train_detector(other)
    model = SuperPointForKeypointDetection.from_pretrained(tmp_path / "teacher")
    model.keypoint_decoder.conv_score_b.bias.data[3] += 1e-3
    model.save_pretrained(tmp_path / "teacher")
    with pytest.raises(RecipeError, match="another content of teacher"):
        train_detector(other)


def test_how_much_views_differ():
    """Twice the changes of scale; and no plane is inverted where none shall be."""
    from lightglue_hf.data.worlds import flat_world, layered_world

    def spread(changes):
        ratios = []
        for seed in range(200):
            (plane,) = flat_world(np.random.default_rng(seed), (4, 192, 256), 96, 128, changes)
            areas = [np.linalg.det(inverse[:2, :2]) for inverse in plane.inverses / plane.inverses[:, 2:, 2:]]
            ratios.append(abs(np.log(abs(areas[0] / areas[1]))))
        return np.mean(ratios)

    assert spread(Changes(2.0)) > 1.4 * spread(Changes(1.0))
    for inverted, signs in ((0.0, {1.0}), (1.0, {-1.0}), (0.5, {1.0, -1.0})):
        planes = [
            plane
            for seed in range(20)
            for plane in layered_world(np.random.default_rng(seed), (4, 192, 256), 96, 128, 4, Changes(1.0, inverted))
        ]
        assert {float(np.sign(plane.gain)) for plane in planes} == signs
