"""`lightglue-hf train`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .arguments import Parser, remark

HELP = "train the detector, or the matcher on a trained detector, from procedural images, photos, or photos with depth"
EPILOG = "docs/training.md says how and with what result."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", choices=("detector", "matcher"))
    help_options = "the recipe: its fields as options, --config FILE.yaml for those not given; --help lists them"
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTIONS", help=help_options)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train as a recipe says, from its options, from a YAML file, or both."""
    from .. import training

    recipes: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "detector": (training.DetectorRecipe, training.train_detector),
        "matcher": (training.MatcherRecipe, training.train_matcher),
    }
    recipe_class, train = recipes[args.network]
    recipe = read_recipe(recipe_class, f"lightglue-hf train {args.network}", args.options)
    try:
        train(recipe)
    except training.OutOfTime as error:
        remark(args, str(error))
    except KeyboardInterrupt:
        remark(args, f"{recipe.output_dir}: interrupted; started again it goes on from its last checkpoint")
        raise
    else:
        remark(args, f"wrote {recipe.output_dir}")


def read_recipe(recipe_class: Any, prog: str, options: list[str]) -> Any:
    """A recipe from options, and from the YAML file that `--config` names for those that are not given.

    Raises:
        ValueError: the file is none, or a field is unknown or out of its range; file and field are named.
    """
    from transformers import HfArgumentParser

    from .. import training

    class RecipeParser(Parser, HfArgumentParser):
        """With errors in one line."""

    parser = RecipeParser(recipe_class, prog=prog)
    parser.add_argument("--config", help="YAML file with fields of the recipe, for those that are not given")
    for action in parser._actions:  # what is not given may stand in the file
        action.required, action.default = False, argparse.SUPPRESS
    given = vars(parser.parse_args(options))
    return training.read_recipe(recipe_class, given.pop("config", None), given)
