"""Recipes: checked by field, from files and from options."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HfArgumentParser

from lightglue_hf.training import DetectorRecipe, MatcherRecipe, RecipeError, read_recipe, recipes


def test_bfloat16_is_the_default_where_it_is_fast(monkeypatch):
    """On the command line, too."""
    for fast in (True, False):
        monkeypatch.setattr(recipes, "fast_bfloat16", lambda fast=fast: fast)
        for recipe in (DetectorRecipe, MatcherRecipe):
            parser = HfArgumentParser(recipe)
            assert parser.parse_args_into_dataclasses(["--output_dir", "run"])[0].bf16 == fast
            assert parser.parse_args_into_dataclasses(["--output_dir", "run", "--bf16", "false"])[0].bf16 is False
            assert parser.parse_args_into_dataclasses(["--output_dir", "run", "--bf16", "true"])[0].bf16 is True


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "sixteen"}, "batch_size must be a whole number, got 'sixteen'"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"batch_size": None}, "batch_size must be a whole number, got None"),
        ({"pairs": 10}, r"pairs \(10\) must be at least batch_size \(16\)"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, got nan"),
        ({"learning_rate": [1]}, r"learning_rate must be a number, got \[1\]"),
        ({"learning_rate": -1}, "learning_rate must be at least 0, got -1.0"),
        ({"multi_plane": 1.5}, "multi_plane must be at most 1, got 1.5"),
        ({"photo_share": 2}, "photo_share must be at most 1, got 2.0"),
        ({"viewpoint": 4}, "viewpoint must be at most 3, got 4.0"),
        ({"inverted": -1}, "inverted must be at least 0, got -1.0"),
        ({"minutes": -1}, "minutes must be at least 0, got -1.0"),
        ({"teacher": 1}, "teacher must be text, got 1"),
        ({"height": 8}, "height must be at least 32, got 8"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"bf16": "perhaps"}, "bf16 must be true or false, got 'perhaps'"),
        ({"photos": 3}, "photos must be text, got 3"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"encoder_hidden_sizes": [8, 0, 8, 8]}, "encoder_hidden_sizes must be at least 1, got 0"),
        ({"encoder_hidden_sizes": [8, 8]}, "encoder_hidden_sizes must be four widths"),
        ({"encoder_hidden_sizes": [8, "x"]}, "encoder_hidden_sizes must be a whole number, got 'x'"),
        ({"batch_norm": False}, "batch_norm: only a trained detector goes on without"),
    ],
)
def test_a_bad_field_is_named(options, problem):
    with pytest.raises(RecipeError, match=problem):
        DetectorRecipe(**{"output_dir": "run", **options})


@pytest.mark.parametrize("name", ["unrelated", "gradient_checkpointing"])
def test_what_changes_nothing_for_a_detector_is_no_field_of_it(name):
    with pytest.raises(RecipeError, match=f"unknown: {name}"):
        read_recipe(DetectorRecipe, None, {"output_dir": "run", name: 0})
    assert read_recipe(MatcherRecipe, None, {"output_dir": "run", name: 0})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"stage": 3}, "stage must be at most 2, got 3"),
        ({"descriptor_dim": 10}, r"descriptor_dim \(10\) must be a multiple of 2 \* num_attention_heads"),
        ({"scenes": [1]}, "scenes must be text, got 1"),
    ],
)
def test_a_bad_field_of_the_matcher_is_named(options, problem):
    with pytest.raises(RecipeError, match=problem):
        MatcherRecipe("run", **options)


def test_numbers_may_be_text_and_a_list_of_one_the_one(tmp_path):
    recipe = MatcherRecipe(tmp_path, pairs="1e5", learning_rate="3e-4", multi_plane=1, bf16="no", scenes="a.npz")
    assert (recipe.output_dir, recipe.pairs, recipe.learning_rate) == (str(tmp_path), 100_000, 3e-4)
    assert type(recipe.pairs) is int
    assert type(recipe.multi_plane) is float
    assert (recipe.bf16, recipe.scenes) == (False, ["a.npz"])


def test_options_win_over_the_file_with_dashes_and_underscores(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("output-dir: from-file\nbatch_size: 4\nlearning-rate: 3e-4\npairs: 1_000\n")
    recipe = read_recipe(DetectorRecipe, path, {"output_dir": "mine", "batch-size": "8", "photos": None})
    assert (recipe.output_dir, recipe.batch_size, recipe.learning_rate) == ("mine", 8, 3e-4)
    assert (recipe.pairs, recipe.photos) == (1000, None)
    assert read_recipe(DetectorRecipe, None, {"output-dir": "a"}) == DetectorRecipe("a")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- pairs\n- batch_size\n", "must have fields with values"),
        ("just words", "must have fields with values"),
        ("3: 4", "must have fields with values"),
        ("pairs: [1, 2", "is no YAML"),
        ("pairs: 1\n batch_size: 2", "is no YAML"),
        ("\x00", "is no YAML"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
        ("output_dir: run\nbatch_size: 0", "batch_size must be at least 1"),
        ("output_dir: run\nlearning_rate: [3]", "learning_rate must be a number"),
        ("output_dir: run\nlearning_rat: 3", "unknown: learning_rat"),
        ("pairs: 100", "output_dir is missing"),
        ("output_dir: 2026-01-01", "output_dir must be text"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, problem):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"recipe\.yaml.*{problem}"):
        read_recipe(DetectorRecipe, path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match=r"none\.yaml"):
        read_recipe(DetectorRecipe, tmp_path / "none.yaml")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], [1], ["a", 2], {}, {"a": 1}, "1e3", "true", 16, 0.5]),
)
FIELDS = [(kind, entry.name) for kind in (DetectorRecipe, MatcherRecipe) for entry in dataclasses.fields(kind)]


@given(st.sampled_from(FIELDS), VALUES)
@settings(deadline=None)
def test_any_value_is_taken_or_refused_by_name(field, value):
    """A recipe that is made has fields of the declared types, and makes the same recipe again."""
    kind, name = field
    refused = made = None
    try:
        made = read_recipe(kind, None, {"output_dir": "run", name: value})
    except RecipeError as error:
        refused = str(error)
    if made is None:
        assert name in refused
    else:
        assert kind(**dataclasses.asdict(made)) == made
        assert [type(number) for number in (made.pairs, made.learning_rate, made.bf16)] == [int, float, bool]


@pytest.mark.parametrize("recipe_class", [DetectorRecipe, MatcherRecipe])
def test_a_recipe_holds_its_fields_alone(recipe_class):
    recipe = recipe_class("run")
    assert vars(recipe) == dataclasses.asdict(recipe) == vars(recipe_class("run"))
