"""What the options of several commands have in common: their parser, and what their values may be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUNDLED = "tiny"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_model_options(options: argparse.ArgumentParser) -> None:
    """The options of a model."""
    options.add_argument(
        "--model",
        default=BUNDLED,
        metavar="DIR_OR_HUB_ID",
        help=f'"{BUNDLED}", the checkpoint in this package (default), a directory or a name on the Hub',
    )
    options.add_argument("--max-keypoints", type=count, metavar="N", help="the best N of each photo")
    options.add_argument("--size", type=count, metavar="N", help="resize the longer side of each photo to N pixels")
    options.add_argument("--threshold", type=score, metavar="T", help="keep matches that score above T")
    options.add_argument("--device", metavar="DEVICE", help="cpu, cuda, mps, ... (default: cuda where there is one)")
    options.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))


def number(text: str, convert: Callable[[str], float], valid: Callable[[float], bool], what: str) -> Any:
    try:
        value = convert(text)
    except ValueError:
        value = math.nan
    if not valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def count(text: str) -> int:
    return number(text, int, lambda value: value > 0, "a whole number above 0")


def side(text: str) -> int:
    return number(text, int, lambda value: value >= 32, "a whole number of at least 32")


def score(text: str) -> float:
    return number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def share(text: str) -> float:
    return number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def picture(text: str) -> Path:
    from PIL import Image

    readable = Image.registered_extensions()
    return target(text, {suffix for suffix, kind in readable.items() if kind in Image.SAVE}, ".png or .jpg")


def table(text: str) -> Path:
    return target(text, {".json", ".npz"}, ".json or .npz")


def markdown(text: str) -> Path:
    return target(text, {".md"}, ".md")


def json_file(text: str) -> Path:
    return target(text, {".json"}, ".json")


def target(text: str, suffixes: set[str], examples: str) -> Path:
    """Return the path of a file to write, and refuse before the work is done what cannot be written after it."""
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"cannot tell how to write {text!r}: the name must end in {examples}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the directory of {text!r} does not exist")
    return path
