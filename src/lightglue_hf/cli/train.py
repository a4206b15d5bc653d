"""`lightglue-hf train`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

HELP = "train the detector, or the matcher on a trained detector, from procedural images"
EPILOG = "docs/training.md says how and with what result."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", choices=("detector", "matcher"))
    help_options = "the recipe: --config FILE.yaml, or its fields as options; --help lists them"
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTIONS", help=help_options)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train as a recipe says, from its options or from a YAML file."""
    from transformers import HfArgumentParser

    from .. import training

    recipes: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "detector": (training.DetectorRecipe, training.train_detector),
        "matcher": (training.MatcherRecipe, training.train_matcher),
    }
    recipe_class, run = recipes[args.network]
    parser = HfArgumentParser(recipe_class, prog=f"lightglue-hf train {args.network}")
    if args.options[:1] == ["--config"] and len(args.options) == 2:
        (recipe,) = parser.parse_yaml_file(args.options[1])
    else:
        (recipe,) = parser.parse_args_into_dataclasses(args.options)
    run(recipe)
    print(f"wrote {recipe.output_dir}")
