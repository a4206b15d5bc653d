"""`lightglue-hf features`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_model_options
from .collection import (
    EXIT,
    add_engine,
    add_summary,
    bars,
    cluster_of,
    hdf5,
    load_for_collection,
    report,
)

HELP = "find the features of every photo of a folder, in hloc's HDF5 layout"
EPILOG = "Goes on where it stopped. The EXIF orientation is ignored, as COLMAP ignores it; docs/collections.md." + EXIT


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder, with those below it")
    parser.add_argument("-o", "--output", type=hdf5, required=True, metavar="FEATURES.h5", help="file to write")
    add_model_options(parser, threshold=False)
    add_engine(parser, "photos of one size")
    add_summary(parser)
    parser.set_defaults(run=run, threshold=None)


def run(args: argparse.Namespace) -> int:
    """Write the features of every photo of a folder."""
    from ..collection.extraction import extract_features

    cluster = cluster_of(args)
    processor, model = load_for_collection(args)
    done = extract_features(
        args.photos, args.output, model, processor, args.batch_size, args.model, cluster, progress=bars(args)
    )
    text = f"wrote {args.output}: {done.photos - len(done.left_out)} of {done.photos} photos, {done.made} of them now"
    if done.replaced:
        text += f", {done.replaced} of those because the photo of that name is another one"
    return report(args, done._asdict(), text, done.left_out)
