"""The directory of a run: locked, with its recipe, gone on with from the last whole checkpoint."""

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightglue_hf import SIFTConfig, SIFTForKeypointDetection
from lightglue_hf.data.textures import render_textures
from lightglue_hf.detectors.superpoint import SuperPointForKeypointDetection
from lightglue_hf.training import DetectorRecipe, MatcherRecipe, OutOfTime, RecipeError, train_detector, train_matcher
from lightglue_hf.training.runs import digest_of_model, keep_recipe, last_whole_checkpoint, locked
from lightglue_hf.utils.digests import digest_of_weights

from .small import MATCHER, NARROW, SMALL

pytest.importorskip("accelerate")
OPTIONS = {"pairs": 24, "save_steps": 2, **SMALL, **NARROW}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps, with its last two checkpoints, and the weights it ended with."""
    directory = tmp_path_factory.mktemp("whole")
    model = train_detector(DetectorRecipe(directory, **OPTIONS))
    assert sorted(path.name for path in directory.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    return directory, model.state_dict()


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, under another name, and the weights."""
    shutil.copytree(finished[0], tmp_path / "renamed")
    return DetectorRecipe(tmp_path / "renamed", **OPTIONS), finished[1]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_training_ends_like_an_uninterrupted_one(run):
    recipe, whole = run
    shutil.rmtree(Path(recipe.output_dir, "checkpoint-6"))
    assert same(train_detector(recipe).state_dict(), whole)


def test_killed_while_it_saved_a_training_goes_on_from_the_checkpoint_before(run):
    recipe, whole = run
    optimizer = Path(recipe.output_dir, "checkpoint-6", "optimizer.pt")
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"checkpoint-6 is left out, because .*: optimizer\.pt is broken"):
        model = train_detector(recipe)
    assert same(model.state_dict(), whole)


def test_out_of_time_a_training_stops_with_a_checkpoint_and_goes_on(finished, tmp_path):
    for step in (1, 2):
        with pytest.raises(OutOfTime, match=f"step {step} of 6"):
            train_detector(DetectorRecipe(tmp_path / "run", minutes=0, **OPTIONS))
    model = train_detector(DetectorRecipe(tmp_path / "run", minutes=10, **OPTIONS))
    assert same(model.state_dict(), finished[1])


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [None, 0, 0.5, -1])
def test_a_checkpoint_that_is_not_whole_is_left_out(run, name, kept):
    directory = Path(run[0].output_dir)
    assert last_whole_checkpoint(directory) == str(directory / "checkpoint-6")
    path = directory / "checkpoint-6" / name
    content = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(content[: int(kept * len(content)) if kept >= 0 else kept - 1])
    with pytest.warns(UserWarning, match="checkpoint-6 is left out"):
        assert last_whole_checkpoint(directory) == str(directory / "checkpoint-4")


def test_without_a_whole_checkpoint_a_training_starts_anew(run):
    recipe, whole = run
    for path in Path(recipe.output_dir).glob("checkpoint-*"):
        (path / "optimizer.pt").unlink()
    with pytest.warns(UserWarning, match=r"there is no optimizer\.pt") as warned:
        model = train_detector(recipe)
    assert any("no whole checkpoint: the training starts anew" in str(warning.message) for warning in warned)
    assert same(model.state_dict(), whole)


def test_there_is_no_checkpoint_in_a_new_directory(tmp_path):
    assert last_whole_checkpoint(tmp_path / "new") is None


@pytest.mark.slow
def test_killed_at_any_moment_a_training_ends_like_an_uninterrupted_one(tmp_path):
    pytest.importorskip("fcntl")
    options = {**OPTIONS, "save_steps": 1}
    recipe, lock = DetectorRecipe(tmp_path / "run", **options), tmp_path / "run" / ".lock"
    code = (
        "import torch; from lightglue_hf.training import DetectorRecipe, train_detector\n"
        f"torch.set_num_threads({torch.get_num_threads()}); train_detector({recipe!r})"
    )
    moments, kills, status = random.Random(0), 0, -9
    while status == -9:
        lock.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code])
        try:
            deadline = time.monotonic() + 120  # of one start; a whole training takes seconds
            while process.poll() is None and not lock.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            if kills < 5:
                time.sleep(moments.uniform(0, 4))
                process.kill()
                kills += 1
            status = process.wait(timeout=120)
        finally:
            process.kill()
    assert status == 0
    assert kills >= 2
    found = SuperPointForKeypointDetection.from_pretrained(recipe.output_dir).state_dict()
    assert same(found, train_detector(DetectorRecipe(tmp_path / "again", **options)).state_dict())


# The recipe


def test_another_recipe_does_not_go_on_with_a_run(run):
    with pytest.raises(RecipeError, match=r"another recipe \(other learning_rate, other seed\)"):
        train_detector(replace(run[0], seed=1, learning_rate=1.0))


def test_a_recipe_of_an_earlier_version_has_the_defaults_of_later_fields(tmp_path):
    recipe = DetectorRecipe(tmp_path)
    keep_recipe(recipe, {})
    kept = json.loads((tmp_path / "recipe.json").read_text())
    for name in ("weight_decay", "inputs"):
        del kept[name]
    (tmp_path / "recipe.json").write_text(json.dumps(kept))
    keep_recipe(recipe, {"photos": "1"})
    (tmp_path / "recipe.json").write_text(json.dumps(kept))
    with pytest.raises(RecipeError, match="other weight_decay"):
        keep_recipe(replace(recipe, weight_decay=1.0), {})


@pytest.mark.parametrize("learning_rate", [1e-5, 3e-5, 1.5e-5, 1e-3, 1])
def test_a_recipe_is_read_as_it_was_written(tmp_path, learning_rate):
    recipe = DetectorRecipe(tmp_path, learning_rate=learning_rate, weight_decay=2e-5)
    keep_recipe(recipe, {})
    keep_recipe(recipe, {})


def test_what_a_run_started_from_may_be_elsewhere_with_the_same_content(tmp_path):
    recipe = MatcherRecipe(tmp_path, detector="a", initial_model="b", photos="c")
    inputs = {"detector": "1", "initial_model": "2", "photos": "3"}
    keep_recipe(recipe, inputs)
    keep_recipe(replace(recipe, detector="x/a", initial_model="x/b", photos="x/c"), inputs)
    with pytest.raises(RecipeError, match=r"\(other root, another content of photos\)"):
        keep_recipe(replace(recipe, photos="x/c", root="x"), {**inputs, "photos": "4"})
    with pytest.raises(RecipeError, match="other photos"):
        keep_recipe(replace(recipe, photos=None), {"detector": "1", "initial_model": "2"})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pairs": 0}', '{"inputs": 3}', '{"strange": 1'])
def test_a_broken_recipe_is_named(tmp_path, content):
    recipe = DetectorRecipe(tmp_path)
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(RecipeError, match=r"recipe\.json is broken|another recipe \(other pairs"):
        keep_recipe(recipe, {})
    assert (tmp_path / "recipe.json").read_text() == content


def test_another_detector_under_the_same_path_is_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "detector")
    recipe = MatcherRecipe(tmp_path / "run", detector=tmp_path / "detector", pairs=4, **MATCHER)
    train_matcher(recipe)
    train_matcher(recipe)
    model = SuperPointForKeypointDetection.from_pretrained(tmp_path / "detector")
    model.keypoint_decoder.conv_score_b.bias.data[3] += 1e-3
    model.save_pretrained(tmp_path / "detector")
    with pytest.raises(RecipeError, match="another content of detector"):
        train_matcher(recipe)


def test_other_photos_under_the_same_path_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    for i, canvas in enumerate(render_textures(2, 64, 96, 0)):
        Image.fromarray(canvas).save(tmp_path / "photos" / f"{i}.png")
    recipe = DetectorRecipe(tmp_path / "run", photos=tmp_path / "photos", **{**OPTIONS, "pairs": 4})
    train_detector(recipe)
    (tmp_path / "photos" / "1.png").rename(tmp_path / "photos" / "2.png")
    with pytest.raises(RecipeError, match="another content of photos"):
        train_detector(recipe)


def test_detectors_without_weights_differ_by_their_settings(tmp_path):
    detectors = [SIFTForKeypointDetection(SIFTConfig(**settings)) for settings in ({}, {"edge_threshold": 20.0}, {})]
    detectors[2].config._name_or_path = "elsewhere"
    digests = [digest_of_model(detector) for detector in detectors]
    assert digests[0] == digests[2]
    recipe = MatcherRecipe(tmp_path, detector="a")
    keep_recipe(recipe, {"detector": digests[0]})
    with pytest.raises(RecipeError, match="another content of detector"):
        keep_recipe(replace(recipe, detector="b"), {"detector": digests[1]})


def test_a_folder_without_photos_leaves_no_recipe(tmp_path):
    recipe = DetectorRecipe(tmp_path / "run", photos=tmp_path / "photos", **OPTIONS)
    with pytest.raises(ValueError, match="no photos in"):
        train_detector(recipe)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_digests_tell_names_types_shapes_and_values_apart():
    base = {"a": torch.arange(4.0), "b": torch.zeros(())}
    others = [
        {"a": torch.arange(4.0), "c": torch.zeros(())},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.zeros(())},
        {"a": torch.arange(4), "b": torch.zeros(())},
        {"a": torch.arange(4.0), "b": torch.zeros(()) - 1e-7},
    ]
    assert len({digest_of_weights(weights) for weights in (base, *others)}) == 5
    assert digest_of_weights(dict(reversed(base.items()))) == digest_of_weights(base)
    assert digest_of_weights({"a": torch.ones(2, dtype=torch.bfloat16)})


# The lock


def test_two_trainings_in_one_directory_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    code = (
        "import sys; from pathlib import Path; from lightglue_hf.training.runs import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RecipeError, match=f"run is in use: process {process.pid} trains there"):
            train_detector(DetectorRecipe(tmp_path / "run", **OPTIONS))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    finally:
        process.kill()
        process.wait()
    with locked(tmp_path / "run"):  # the lock of a process that was killed is none
        pass
