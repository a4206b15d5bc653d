"""What the options of several commands have in common: their parser, and what their values may be."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.errors import InputError

BUNDLED = "tiny"
LARGEST_EDGE = 8192
"""Pixels of the longer side: a detector of this size takes gigabytes, and beyond it keypoints lose their precision."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_model_options(
    parser: argparse.ArgumentParser,
    max_keypoints: int | None = None,
    longest_edge: int | None = None,
    several: bool = False,
    photos: bool = True,
    threshold: bool = True,
) -> None:
    """The options of a model, with a command's own defaults.

    Args:
        max_keypoints, longest_edge: the defaults.
        several: of them may be named.
        photos, threshold: whether the command looks at photos, and at scores of matches.
    """

    def default(value: Any) -> str:
        return f"default: {value or 'as the checkpoint says'}"

    again = ("append", None, "; may be given several times") if several else ("store", BUNDLED, "")
    parser.add_argument(
        "--model",
        action=again[0],
        default=again[1],
        metavar="MODEL",
        help=f'"{BUNDLED}" (default) or another name that `lightglue-hf checkpoints` lists, a directory, or a name on '
        f"the Hub{again[2]}",
    )
    add_revision(parser)
    if photos:
        add_max_keypoints(parser, f"the best N of each photo ({default(max_keypoints)})", max_keypoints)
        help_edge = f"resize the longer side of each photo to N pixels ({default(longest_edge)})"
        parser.add_argument("--longest-edge", type=edge, default=longest_edge, metavar="N", help=help_edge)
        add_former_name(parser, "--size", "longest_edge", edge)
    if threshold:
        help_threshold = f"keep matches that score above T ({default(None)})"
        parser.add_argument("--threshold", type=score, metavar="T", help=help_threshold)
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, mps, ... (default: cuda where there is one)")
    help_dtype = "in which to compute (default: float32)"
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help=help_dtype)


def add_revision(parser: argparse.ArgumentParser) -> None:
    help_revision = "branch, tag or commit of a model on the Hub (default: main)"
    parser.add_argument("--revision", metavar="REV", help=help_revision)


def add_max_keypoints(parser: argparse.ArgumentParser, help: str, default: int | None = None) -> None:
    parser.add_argument("--max-keypoints", type=count, default=default, metavar="N", help=help)
    for former in ("--num-keypoints", "--keypoints"):
        add_former_name(parser, former, "max_keypoints", count)


def add_former_name(parser: argparse.ArgumentParser, option: str, dest: str, type: Callable[[str], Any]) -> None:
    """What an option was called before; it still works."""
    parser.add_argument(option, dest=dest, type=type, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def say(args: argparse.Namespace, text: str) -> None:
    """A result, in words, unless it is asked for as JSON."""
    if not getattr(args, "json", False):
        print(text)


def remark(args: argparse.Namespace, text: str) -> None:
    """What is good to know beside the result, among it."""
    if not args.quiet:
        say(args, text)


def log(args: argparse.Namespace, text: str) -> None:
    """A remark on the standard error stream."""
    if not args.quiet:
        print(text, file=sys.stderr, flush=True)


def progress(args: argparse.Namespace, text: str) -> None:
    """What is being done, for somebody who watches."""
    if sys.stderr.isatty() or args.verbose:
        log(args, text)


# ---------------------------------------------------------------------------------------------------------------------
# Values of options


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


def from_zero(text: str) -> int:
    return number(text, int, lambda value: value >= 0, "a whole number from 0")


def edge(text: str) -> int:
    return number(text, int, lambda value: 0 < value <= LARGEST_EDGE, f"a whole number from 1 to {LARGEST_EDGE}")


def side(text: str) -> int:
    return number(text, int, lambda value: 32 <= value <= LARGEST_EDGE, f"a whole number from 32 to {LARGEST_EDGE}")


def score(text: str) -> float:
    return number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def focal(text: str) -> float:
    return number(text, float, lambda value: 0 < value < math.inf, "a number of pixels above 0")


def share(text: str) -> float:
    return number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def picture(text: str) -> Path:
    path = target(text, None, "")
    try:
        encode_picture(None, path)
    except (KeyError, OSError, ValueError):
        raise argparse.ArgumentTypeError(
            f"cannot tell how to write {text!r}: the name must end in .png or .jpg"
        ) from None
    return path


def table(text: str) -> Path:
    return target(text, {".json", ".npz", ".h5"}, ".json, .npz or .h5")


def markdown(text: str) -> Path:
    return target(text, {".md"}, ".md")


def json_file(text: str) -> Path:
    return Path(text) if text == "-" else target(text, {".json"}, ".json")


def target(text: str, suffixes: set[str] | None, examples: str) -> Path:
    """Return the path of a file to write, and refuse before the work is done what cannot be written after it."""
    path = Path(text)
    if suffixes is not None and path.suffix.lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"cannot tell how to write {text!r}: the name must end in {examples}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the directory of {text!r} does not exist")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a directory")
    return path


def refuse_overwriting(inputs: list[str], *outputs: Path | None) -> None:
    """Raise an InputError if a file to write is one to read, or two to write are one."""
    written: list[Path] = []
    for output in outputs:
        if output is None or output == Path("-"):
            continue
        if any(same_file(Path(name), output) for name in inputs):
            raise InputError(f"{output} is an input: it would be overwritten")
        if any(same_file(other, output) for other in written):
            raise InputError(f"{output} would be written twice")
        written.append(output)


def same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # one is not there yet, or no path at all
        return path.absolute() == other.absolute()


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def encode_picture(image: Any, path: Path) -> bytes:
    """A PIL image as the bytes of a file with the suffix of this path; `None` is a small black one."""
    from PIL import Image

    image = Image.new("RGB", (8, 8)) if image is None else image
    buffer = io.BytesIO()
    image.save(buffer, format=Image.registered_extensions()[path.suffix.lower()])
    return buffer.getvalue()


def save_picture(image: Any, path: Path) -> None:
    """Write a PIL image, whole or not at all; its kind by the suffix."""
    from ..utils.files import write_atomically

    write_atomically(path, encode_picture(image, path))
