"""`lightglue-hf train`: how a recipe is read."""

import pytest

from lightglue_hf import cli
from lightglue_hf.training import DetectorRecipe, MatcherRecipe

read_recipe = cli.train.read_recipe


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return tmp_path / "recipe.yaml"

    return write


def test_options_come_before_the_file(recipe_file):
    path = recipe_file(
        "output_dir: run\nlearning_rate: 3e-4\npairs: 64\nbatch_norm: true\nencoder_hidden_sizes: [8, 8, 8, 8]\n"
        "initial_model: null\n"
    )
    for options in (["--config", str(path), "--pairs", "32"], ["--pairs=32", f"--config={path}"]):
        recipe = read_recipe(DetectorRecipe, "train", options)
        assert (recipe.output_dir, recipe.pairs, recipe.batch_norm) == ("run", 32, True)
        assert recipe.learning_rate == 3e-4, "which is text to PyYAML"
        assert recipe.encoder_hidden_sizes == [8, 8, 8, 8]
        assert recipe.initial_model is None
    plain = read_recipe(DetectorRecipe, "train", ["--output_dir", "run"])
    assert plain == DetectorRecipe(output_dir="run")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recipe.yaml is empty"),
        ("- 1\n- 2", "must have fields with values"),
        ("output_dir: [", "is no YAML"),
        ("output_dir: run\nepochs: 3", "unknown: epochs"),
        ("output_dir: run\npairs: many", "pairs must be a whole number, got 'many'"),
        ("pairs: 3", "output_dir"),
    ],
)
def test_errors_of_recipes_are_one_line(recipe_file, error, text, expected):
    assert expected in error("train", "matcher", "--config", recipe_file(text))


def test_errors_of_options_are_one_line(error, tmp_path):
    assert "nowhere.yaml: No such file" in error("train", "detector", "--config", tmp_path / "nowhere.yaml")
    assert "--learning_rate" in error("train", "detector", "--output_dir", tmp_path, "--learning_rate", "fast")
    assert "--epochs" in error("train", "detector", "--output_dir", tmp_path, "--epochs", "3")
    assert "sculptor" in error("train", "sculptor")


def test_what_is_read_is_what_is_trained(monkeypatch, tmp_path, capsys):
    trained = []
    monkeypatch.setattr("lightglue_hf.training.train_matcher", trained.append)
    assert cli.main(["train", "matcher", "--output_dir", str(tmp_path), "--detector", "tiny", "--pairs", "16"]) == 0
    assert trained == [MatcherRecipe(output_dir=str(tmp_path), detector="tiny", pairs=16)]
    assert capsys.readouterr().out == f"wrote {tmp_path}\n"


def test_who_interrupts_a_training_learns_that_it_goes_on(monkeypatch, tmp_path, capsys):
    def interrupted(recipe):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightglue_hf.training.train_detector", interrupted)
    assert cli.main(["train", "detector", "--output_dir", str(tmp_path)]) == 130
    assert capsys.readouterr().out == f"{tmp_path}: interrupted; started again it goes on from its last checkpoint\n"
