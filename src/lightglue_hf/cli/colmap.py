"""`lightglue-hf colmap`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import refuse_overwriting
from .collection import EXIT, add_camera_options, add_summary, bars, database, report

HELP = "write a COLMAP database of photos, features and matches, and verify it"
EPILOG = "What the database has already is not added again." + EXIT


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder, with those below it")
    parser.add_argument("features", type=Path, metavar="FEATURES.h5", help="of `lightglue-hf features`, or hloc's")
    parser.add_argument("matches", type=Path, metavar="MATCHES.h5", help="of `lightglue-hf match-pairs`, or hloc's")
    parser.add_argument("-o", "--output", type=database, required=True, metavar="DATABASE.db", help="file to write")
    add_camera_options(parser)
    help_verify = "look for the geometry of every pair (default: yes)"
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help=help_verify)
    add_summary(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write a COLMAP database."""
    from ..collection.colmap import write_database

    refuse_overwriting([str(args.features), str(args.matches)], args.output)
    done = write_database(
        args.photos,
        args.features,
        args.matches,
        args.output,
        args.camera_model,
        args.single_camera,
        args.verify,
        progress=bars(args),
    )
    text = (
        f"wrote {args.output}: {done.photos} photos, {done.matches} matches of {done.pairs} pairs"
        + f"; {done.inliers} of them agree with the geometry of {done.verified} pairs" * args.verify
    )
    return report(args, done._asdict(), text, done.left_out)
