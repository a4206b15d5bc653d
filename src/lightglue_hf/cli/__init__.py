"""The command `lightglue-hf`: match two photos or a folder, evaluate, train, show the training data, convert, export.

    lightglue-hf match left.jpg right.jpg -o matches.png --save matches.json
    lightglue-hf demo
    lightglue-hf app
    lightglue-hf checkpoints
    lightglue-hf reconstruct PHOTOS OUT
    lightglue-hf features PHOTOS -o features.h5
    lightglue-hf pairs PHOTOS -o pairs.txt --by retrieval --features features.h5
    lightglue-hf match-pairs features.h5 pairs.txt -o matches.h5
    lightglue-hf colmap PHOTOS features.h5 matches.h5 -o database.db
    lightglue-hf track walk.mp4 -o tracks.mp4 --save tracks.h5
    lightglue-hf evaluate --data stereo --markdown figures.md
    lightglue-hf train detector --output_dir runs/detector
    lightglue-hf show-data -o grid.png
    lightglue-hf convert superpoint_lightglue.pth superpoint_lightglue --detector superpoint_v1.pth
    lightglue-hf export openvino tiny exported

A command is a file with `HELP`, `EPILOG`, `configure(parser)` and `run(args)`, which returns the exit status or `None`
for 0. Errors of input are one line on the standard error stream, and the exit status 2; see errors.py. Whatever takes
long to import (torch, transformers, NumPy) is imported by `run`, so that help is there at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import Any

from .. import __version__
from ..utils.errors import MissingPackageError
from ..utils.optional import import_optional
from . import (
    app,
    checkpoints,
    colmap,
    convert,
    demo,
    evaluate,
    export,
    features,
    match,
    match_pairs,
    pairs,
    reconstruct,
    show_data,
    track,
    train,
)
from .arguments import Parser
from .errors import is_of_input, one_line

COMMANDS = (
    *(match, demo, app, checkpoints),
    *(reconstruct, features, pairs, match_pairs, colmap),
    track,
    *(evaluate, train, show_data, convert, export),
)

__all__ = ["main", "parser"]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):  # file names may be of bytes that are no text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def run(argv: list[str]) -> int:
    """Parse the arguments and run the command; errors of input are printed."""
    root = parser()
    if not argv:
        root.print_help()
        return 0
    args = root.parse_args(argv)
    try:
        return args.run(args) or 0
    except BrokenPipeError:
        raise
    except Exception as error:
        if not is_of_input(error):
            raise
        if args.verbose:
            traceback.print_exc()
        print(f"lightglue-hf: error: {one_line(error)}", file=sys.stderr)
        return 2


def parser() -> Parser:
    """The parser of all commands."""
    root = Parser(prog="lightglue-hf", description="LightGlue keypoint matching.")
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    help_completion = "print a completion script"
    root.add_argument("--print-completion", action=PrintCompletion, choices=("bash", "zsh"), help=help_completion)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        subparser = commands.add_parser(name, help=command.HELP, description=command.HELP, epilog=command.EPILOG)
        command.configure(subparser)
        subparser.add_argument("-q", "--quiet", action="store_true", help="print results only, no remarks")
        subparser.add_argument("-v", "--verbose", action="store_true", help="also what libraries log, and tracebacks")
    return root


class PrintCompletion(argparse.Action):
    """Prints what a shell needs to complete the options, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, _namespace: Any, shell: Any, _option: Any = None) -> None:
        try:
            print(import_optional("shtab", "completion").complete(parser, shell))
        except MissingPackageError as error:
            parser.error(str(error))
        parser.exit()
