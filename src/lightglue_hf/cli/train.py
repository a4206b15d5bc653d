"""`lightglue-hf train`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from .arguments import Parser
from .errors import reading

HELP = "train the detector, or the matcher on a trained detector, from procedural images"
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
    train(recipe)
    print(f"wrote {recipe.output_dir}")


def read_recipe(recipe_class: Any, prog: str, options: list[str]) -> Any:
    """A recipe from options, and from the YAML file that `--config` names for those that are not given.

    Raises:
        InputError: the file is none, or has fields that a recipe has not; or the recipe refuses a value.
    """
    from transformers import HfArgumentParser

    class RecipeParser(Parser, HfArgumentParser):
        """With errors in one line."""

    files = Parser(prog=prog, add_help=False)
    files.add_argument("--config")
    file, options = files.parse_known_args(options)
    if file.config is not None:
        options = [*read_options(Path(file.config), {field.name for field in fields(recipe_class)}), *options]
    parser = RecipeParser(recipe_class, prog=prog)
    with reading(prog):
        (recipe,) = parser.parse_args_into_dataclasses(options)
    return recipe


def read_options(path: Path, names: set[str]) -> list[str]:
    """The fields in a YAML file as options, so that they are converted and checked as such.

    To PyYAML 3e-4 is text; as an option it is a number.
    """
    import yaml

    with reading(f"{path} is no YAML"):
        content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict):
        raise InputError(f"{path}: a {type(content).__name__}, and not the fields of a recipe")
    if unknown := sorted({str(name) for name in content} - names):
        raise InputError(f"{path}: a recipe has no {', '.join(unknown)}")
    options: list[str] = []
    for name, value in content.items():
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        elif value is not None:
            options.append(f"--{name}={value}")
    return options
