"""Recipes: checked by field, from files and from options."""

from transformers import HfArgumentParser

from lightglue_hf.training import DetectorRecipe, MatcherRecipe, recipes


def test_bfloat16_is_the_default_where_it_is_fast(monkeypatch):
    """On the command line, too."""
    for fast in (True, False):
        monkeypatch.setattr(recipes, "fast_bfloat16", lambda fast=fast: fast)
        for recipe in (DetectorRecipe, MatcherRecipe):
            parser = HfArgumentParser(recipe)
            assert parser.parse_args_into_dataclasses(["--output_dir", "run"])[0].bf16 == fast
            assert parser.parse_args_into_dataclasses(["--output_dir", "run", "--bf16", "false"])[0].bf16 is False
            assert parser.parse_args_into_dataclasses(["--output_dir", "run", "--bf16", "true"])[0].bf16 is True
