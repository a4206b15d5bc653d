"""Small trainings from end to end."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from lightglue_hf import (
    LightGlueForKeypointMatching,
    SuperPointForKeypointDetection,
    bundled_checkpoint,
)
from lightglue_hf.data.textures import render_textures
from lightglue_hf.training import (
    DetectorCollator,
    DetectorRecipe,
    MatcherRecipe,
    PosedCollator,
    RecipeError,
    feature_extractor,
    fold_batch_norm,
    insert_batch_norm,
    read_scenes,
    train_detector,
    train_matcher,
)

from .small import MATCHER, NARROW, SMALL, losses

pytest.importorskip("accelerate")


def test_a_seed_always_gives_its_pair():
    recipe = DetectorRecipe("run", **SMALL)
    collate = DetectorCollator(torch.from_numpy(render_textures(4, 128, 192, 0)), recipe)
    first, again = collate([5, 6]), collate([5, 6])
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(collate([6])["pixel_values"], first["pixel_values"][2:])
    for name, value in first["labels"].items():
        torch.testing.assert_close(again["labels"][name], value, equal_nan=True, atol=0, rtol=0)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A hundred steps of the detector."""
    directory = tmp_path_factory.mktemp("detector")
    recipe = DetectorRecipe(str(directory), pairs=400, learning_rate=5e-3, save_steps=1000, **SMALL, **NARROW)
    train_detector(recipe)
    return directory


def test_training_the_detector_lowers_its_loss(detector):
    first, *_, last = losses(detector)
    assert last < 0.9 * first, "seven seeds ended between 0.76 and 0.82 of it"
    recipe = json.loads((detector / "recipe.json").read_text())
    assert recipe["pairs"] == 400
    model, info = SuperPointForKeypointDetection.from_pretrained(detector, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.remove_far_borders


@pytest.fixture(scope="module")
def matcher(detector, tmp_path_factory):
    """Twenty steps of stage 1."""
    recipe = MatcherRecipe(str(tmp_path_factory.mktemp("matcher")), detector=str(detector), pairs=80, **MATCHER)
    train_matcher(recipe)
    return recipe.output_dir


def test_stage_one_changes_the_matcher_and_not_the_detector(detector, matcher):
    """That it learns is shown by test_features_of_a_file, whose pair is always the same."""
    log = json.loads(Path(matcher, "log.json").read_text())
    assert log[-1]["step"] == 20
    assert np.isfinite(losses(matcher)).all()
    trained = LightGlueForKeypointMatching.from_pretrained(matcher)
    kept = SuperPointForKeypointDetection.from_pretrained(detector).state_dict()
    for name, value in trained.keypoint_detector.state_dict().items():
        assert torch.equal(value, kept[name]), name
    for name, value in trained.named_parameters():
        if name.endswith(("token.bias", "v_proj.bias", "o_proj.bias")):  # new ones are zero
            assert value.abs().max() > 0, name


def test_the_second_stage_changes_no_match(detector, matcher, tmp_path):
    options = {**MATCHER, "learning_rate": 1e-2}
    recipe = MatcherRecipe(str(tmp_path), detector=str(detector), initial_model=matcher, stage=2, pairs=16, **options)
    train_matcher(recipe)
    before, after = (LightGlueForKeypointMatching.from_pretrained(path) for path in (matcher, recipe.output_dir))
    weights = before.state_dict()
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed
    assert all(name.startswith("token_confidence.") for name in changed)
    pair = torch.rand(1, 2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    for model in (before, after):
        model.config.depth_confidence = model.config.width_confidence = -1.0
    outputs = [model.eval()(pair) for model in (before, after)]
    assert torch.equal(outputs[0].matches, outputs[1].matches)
    assert torch.equal(outputs[0].matching_scores, outputs[1].matching_scores)


def test_gradient_checkpointing_gives_the_same_loss_and_gradients(matcher):
    model = LightGlueForKeypointMatching.from_pretrained(matcher).train()
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "keypoints": torch.rand(2, 2, 20, 2, generator=generator) * 60,
        "descriptors": torch.randn(2, 2, 20, 16, generator=generator),
        "labels": torch.arange(20).expand(2, 2, 20),
    }
    found = []
    for _ in range(2):
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        found.append((loss.detach(), model.transformer_layers[0].self_attention.q_proj.weight.grad.clone()))
        model.gradient_checkpointing_enable()
    assert model.transformer_layers[0].gradient_checkpointing
    torch.testing.assert_close(found[0], found[1])


def test_ones_own_photos_are_warped(detector, tmp_path):
    photos = tmp_path / "photos"
    (photos / "below").mkdir(parents=True)
    for path, canvas in zip((photos / "a.png", photos / "below" / "b.JPG"), render_textures(2, 90, 70, 0)):
        Image.fromarray(canvas).convert("RGB").save(path)
    recipe = MatcherRecipe(str(tmp_path / "run"), detector=str(detector), photos=str(photos), pairs=8, **MATCHER)
    assert recipe.canvases().shape == (2, 128, 192)
    train_matcher(recipe)
    assert LightGlueForKeypointMatching.from_pretrained(recipe.output_dir)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two photos of a wall, the second from beside the first, with depth, poses and SIFT-like features."""
    root = tmp_path_factory.mktemp("scenes")
    canvas = render_textures(1, 96, 160, 0)[0]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # on its side, of which depth maps and intrinsics know nothing
    shift = 32  # pixels: the wall is 2 away and the focal length 100 pixels
    for name, left in (("a", 0), ("b", shift)):
        Image.fromarray(canvas[:, left : left + 128]).save(root / f"{name}.png", exif=exif)
        np.save(root / f"{name}.npy", np.full((48, 64), 2.0))
    K, T = [100, 0, 63.5, 0, 100, 47.5, 0, 0, 1], np.eye(4)
    T[0, 3] = -shift * 2 / 100
    (root / "pairs.txt").write_text("a.png b.png 0 0 " + " ".join(str(x) for x in [*K, *K, *T.ravel()]))
    rng = np.random.default_rng(0)
    points = rng.uniform([shift, 0], [127, 95], (40, 2))
    descriptors = rng.standard_normal((40, 12))
    with h5py.File(root / "features.h5", "w") as file:
        for name, left, count in (("a.png", 0, 40), ("b.png", shift, 30)):
            group = file.create_group(name)
            group["keypoints"] = points[:count] - [left, 0]
            group["descriptors"] = descriptors[:count].T
            group["scores"] = np.linspace(1, 0.5, count)
            group["scales"] = group["oris"] = np.ones(count)
            group["image_size"] = [128, 96]
    return root


def posed_recipe(scenes, output_dir, **options):
    options = {"scenes": [str(scenes / "pairs.txt")], "root": str(scenes), "depths": ".", **MATCHER, **options}
    return MatcherRecipe(str(output_dir), **options)


def test_photos_with_depth_and_poses(detector, matcher, scenes, tmp_path):
    recipe = posed_recipe(scenes, tmp_path, detector=str(detector), pairs=8, width=64, keypoints=200)
    model = LightGlueForKeypointMatching.from_pretrained(matcher)
    batch = PosedCollator(read_scenes(recipe), feature_extractor(model, 200), recipe)([0])
    assert batch["image_sizes"].tolist() == [[[48, 64]] * 2]
    labels = batch["labels"][0, 0]
    matched = labels >= 0
    assert matched.sum() > 3
    error = batch["keypoints"][0, 0][matched] - batch["keypoints"][0, 1][labels[matched]] - torch.tensor([16, 0])
    assert error.norm(dim=1).max() < 3, "the shift of 32 pixels is one of 16 in photos of half the size"
    train_matcher(recipe)
    assert LightGlueForKeypointMatching.from_pretrained(recipe.output_dir)


def test_features_of_a_file(scenes, tmp_path):
    recipe = posed_recipe(
        scenes, tmp_path, features=str(scenes / "features.h5"), pairs=40, batch_size=2, keypoints=35, warmup_steps=2
    )
    batch = PosedCollator(read_scenes(recipe), None, recipe)([0, 1])
    assert batch["mask"].sum(-1).tolist() == [[35, 30]] * 2
    expected = [*range(30), *[-1] * 5], [*range(30), *[-2] * 5]
    assert batch["labels"].tolist() == [[*map(list, expected)]] * 2
    train_matcher(recipe)
    model = LightGlueForKeypointMatching.from_pretrained(recipe.output_dir)
    assert (model.config.add_scale_ori, model.config.input_dim) == (True, 12)
    assert not model.config.use_keypoint_detector
    first, *_, last = losses(recipe.output_dir)
    assert last < 0.8 * first, "the same pair at every step; ten seeds ended between 0.50 and 0.62 of it"


def test_the_example_trains_both_stages_from_the_bundled_checkpoint(tmp_path):
    (tmp_path / "photos").mkdir()
    for i, canvas in enumerate(render_textures(3, 128, 192, 0)):
        Image.fromarray(canvas).save(tmp_path / "photos" / f"{i}.jpg")
    options = "--pairs 8 --batch-size 4 --height 64 --width 96 --keypoints 32".split()
    script = Path(__file__).parents[2] / "examples" / "train_on_photos.py"
    command = [sys.executable, script, tmp_path / "photos", tmp_path / "runs", *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"lightglue-hf match --model {tmp_path}/runs/stage2" in output
    tiny, trained = (
        LightGlueForKeypointMatching.from_pretrained(path).state_dict()
        for path in (bundled_checkpoint("tiny"), tmp_path / "runs" / "stage2")
    )
    for name, value in trained.items():
        assert torch.equal(value, tiny[name]) == name.startswith("keypoint_detector."), name


def test_a_matcher_needs_one_source_of_features(tmp_path):
    for sources in ({}, {"detector": "d", "features": "f"}):
        with pytest.raises(ValueError, match="either a detector or a file of features"):
            train_matcher(MatcherRecipe(str(tmp_path), **sources))
    with pytest.raises(ValueError, match="features need scenes"):
        train_matcher(MatcherRecipe(str(tmp_path), features="f"))
    assert not list(tmp_path.iterdir())


def test_going_on_from_a_detector_keeps_its_function(detector, tmp_path):
    model = SuperPointForKeypointDetection.from_pretrained(detector)
    image = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = model(image, output_hidden_states=True).hidden_states[-1]
    insert_batch_norm(model, image)
    for trained in (False, True):  # on these images the statistics are those that were inserted
        actual = model.train(trained)(image, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
    fold_batch_norm(model)
    assert set(model.state_dict()) == set(SuperPointForKeypointDetection(model.config).state_dict())
    recipe = DetectorRecipe(str(tmp_path), initial_model=str(detector), pairs=8, save_steps=1000, **SMALL)
    train_detector(recipe)
    assert SuperPointForKeypointDetection.from_pretrained(tmp_path).config.encoder_hidden_sizes == [8, 8, 16, 16]


def test_a_trained_detector_goes_on_without_batch_norms(detector, tmp_path):
    recipe = {"pairs": 8, "save_steps": 1000, "learning_rate": 1e-6, "batch_norm": False, **SMALL}
    with pytest.raises(ValueError, match="give initial_model, or batch_norm"):
        train_detector(DetectorRecipe(str(tmp_path / "new"), **recipe))
    before = SuperPointForKeypointDetection.from_pretrained(detector).state_dict()
    train_detector(DetectorRecipe(str(tmp_path / "run"), initial_model=str(detector), **recipe))
    after = SuperPointForKeypointDetection.from_pretrained(tmp_path / "run").state_dict()
    assert set(before) == set(after)
    changes = [(after[name] - before[name]).abs().max() for name in before]
    assert 0 < max(changes) < 1e-4


@pytest.mark.slow
def test_two_processes_train_together(detector, tmp_path):
    """The processes share the pairs, and one of them writes."""
    options = {"output_dir": tmp_path / "run", "detector": detector, "pairs": 16, **MATCHER}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    subprocess.run([*launcher, "-m", "lightglue_hf.cli", "train", "matcher", *words], check=True)
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log[-1]["step"] == 2, "16 pairs, 4 for each of 2 processes a step"
    assert LightGlueForKeypointMatching.from_pretrained(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_stop_together_when_the_time_of_one_is_over(detector, tmp_path):
    options = {"output_dir": str(tmp_path / "run"), "detector": str(detector), "pairs": 160, "minutes": 60, **MATCHER}
    (tmp_path / "run.py").write_text(
        "import os\n"
        "from lightglue_hf.training import MatcherRecipe, OutOfTime, stages, train_matcher\n"
        "fit = stages.fit\n"
        "stages.fit = lambda *args: fit(*args[:-1], args[-1] - 3600 * int(os.environ['RANK']))\n"
        "try:\n"
        f"    train_matcher(MatcherRecipe(**{options!r}))\n"
        "except OutOfTime as error:\n"
        "    print(error)\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*launcher, str(tmp_path / "run.py")], check=True, capture_output=True, text=True, timeout=300
    )
    assert run.stdout.count("step 1 of 20") == 2
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_with_gradient_checkpointing(detector, tmp_path, checkpointing):
    """On every supported transformers: each calls `gradient_checkpointing_enable` with other keywords."""
    recipe = MatcherRecipe(
        tmp_path, detector=detector, pairs=8, **{**MATCHER, "gradient_checkpointing": checkpointing, "bf16": False}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated")  # the model's, from 5.24
        model = train_matcher(recipe)
    enabled = [layer.gradient_checkpointing for layer in model.transformer_layers]
    assert enabled == [checkpointing] * 3
    assert all(np.isfinite(losses(tmp_path)))


def test_a_card_says_what_was_trained_and_how(detector, matcher):
    for directory, task in ((detector, "keypoint-detection"), (matcher, "keypoint-matching")):
        card = huggingface_hub.ModelCard.load(Path(directory, "README.md"))
        card.data.to_dict()
        assert card.data.pipeline_tag == task
        assert f"from {losses(directory)[0]:.3f} to {losses(directory)[-1]:.3f}" in card.text
        assert '"learning_rate": ' in card.text
        code = card.text.split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
    assert str(detector) in card.text
    assert "warps of procedural canvases" in card.text


def test_the_usage_in_a_card_runs(matcher, tmp_path, monkeypatch):
    code = Path(matcher, "README.md").read_text().split("```python\n")[1].split("```")[0]
    for name in ("left", "right"):
        Image.fromarray(render_textures(1, 64, 96, 0)[0]).save(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code.replace('"..."', repr(str(matcher))), found)
    assert found["outputs"].matches.shape[:2] == (1, 2)


def test_a_matcher_without_a_detector_has_no_detector_to_train_on(scenes, tmp_path):
    recipe = posed_recipe(scenes, tmp_path / "run", features=scenes / "features.h5", pairs=4, warmup_steps=1)
    train_matcher(recipe)
    assert not Path(recipe.output_dir, "preprocessor_config.json").exists()
    with pytest.raises(RecipeError, match="is a matcher without a detector"):
        train_matcher(MatcherRecipe(tmp_path / "next", detector=recipe.output_dir, pairs=4, **MATCHER))
