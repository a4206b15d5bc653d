"""`lightglue-hf match-pairs`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..utils.errors import InputError
from .arguments import add_model_options, refuse_overwriting
from .collection import (
    EXIT,
    add_engine,
    add_rejection,
    add_summary,
    bars,
    cluster_of,
    hdf5,
    load_for_collection,
    report,
)

HELP = "match pairs of photos from their features, in hloc's HDF5 layout"
EPILOG = (
    "Goes on where it stopped. The model is by default the one that made the features; hloc's own are taken, too, "
    "with a matcher for them." + EXIT
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("features", type=Path, metavar="FEATURES.h5", help="of `lightglue-hf features`, or hloc's")
    parser.add_argument("pairs", type=Path, metavar="PAIRS.txt", help="two names a line")
    parser.add_argument("-o", "--output", type=hdf5, required=True, metavar="MATCHES.h5", help="file to write")
    add_model_options(parser, photos=False)
    add_engine(parser, "pairs")
    add_rejection(parser)
    add_summary(parser)
    parser.set_defaults(run=run, model=None, max_keypoints=None, longest_edge=None)


def run(args: argparse.Namespace) -> int:
    """Write the matches of pairs."""
    from ..collection.matching import match_pairs
    from ..collection.storage import read_settings

    refuse_overwriting([str(args.features), str(args.pairs)], args.output)
    settings = read_settings(args.features)
    if args.model is None:
        args.model = (settings or {}).get("about", {}).get("model")
        if not args.model:
            raise InputError(f"{args.features} does not say which model made it: give --model")
    if settings and args.engine == "openvino":
        args.max_keypoints = settings["detector"].get("max_keypoints")
    cluster = cluster_of(args)
    processor, model = load_for_collection(args)
    done = match_pairs(
        args.features,
        args.pairs,
        args.output,
        model,
        processor,
        args.batch_size,
        args.model,
        cluster,
        progress=bars(args),
    )
    text = f"wrote {args.output}: {done.pairs - len(done.left_out)} of {done.pairs} pairs, {done.made} of them now"
    return report(args, done._asdict(), text, done.left_out)
