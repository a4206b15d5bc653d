"""The command `lightglue-hf`: match two photos, evaluate, train, look at the training data, convert, export.

    lightglue-hf match left.jpg right.jpg -o matches.png --save matches.json
    lightglue-hf demo
    lightglue-hf evaluate --data stereo --markdown figures.md
    lightglue-hf train detector --output_dir runs/detector
    lightglue-hf show-data -o grid.png
    lightglue-hf convert superpoint_lightglue.pth superpoint_lightglue --superpoint superpoint_v1.pth
    lightglue-hf export openvino tiny exported

Errors are one line on the standard error stream, and the exit status 2.
"""

from __future__ import annotations

import sys

from .. import __version__
from . import convert, demo, evaluate, export, match, show_data, train
from .arguments import Parser
from .errors import is_the_users, one_line

COMMANDS = (match, demo, evaluate, train, show_data, convert, export)

__all__ = ["main", "parser"]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not is_the_users(error):
            raise
        print(f"lightglue-hf: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def parser() -> Parser:
    """The parser of all commands."""
    root = Parser(prog="lightglue-hf", description="LightGlue keypoint matching.")
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        command.configure(commands.add_parser(name, help=command.HELP, epilog=command.EPILOG))
    return root
