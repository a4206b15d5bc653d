"""`lightglue-hf reconstruct`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import add_model_options, log
from .collection import (
    EXIT,
    add_camera_options,
    add_engine,
    add_pair_options,
    add_rejection,
    add_summary,
    bars,
    cluster_of,
    count,
    load_for_collection,
    pair_options,
    report,
)

HELP = "find the cameras and points of a folder of photos: all stages in one, by COLMAP"
EPILOG = (
    "Goes on where it stopped. OUT gets features.h5, pairs.txt, matches.h5, database.db, sparse/ (the model), "
    "points.ply, model.png, photos.png and summary.json; docs/collections.md." + EXIT + " It is 1 if no two photos "
    "fit together."
)
NO_MODEL = 1


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder, with those below it")
    parser.add_argument("output", type=Path, metavar="OUT", help="directory to write")
    add_model_options(parser, max_keypoints=2048, longest_edge=1024)
    ways = ("auto", "exhaustive", "sequential", "retrieval", "gps")
    help_by = "which pairs (default: auto, exhaustive for up to 60 photos and else retrieval)"
    parser.add_argument("--by", choices=ways, default="auto", help=help_by)
    add_pair_options(parser)
    add_camera_options(parser)
    add_engine(parser, "photos of one size, and pairs")
    add_rejection(parser)
    help_threads = "of COLMAP's mapping (default: 1, with which the same matches give the same model again)"
    parser.add_argument("--threads", type=count, default=1, metavar="N", help=help_threads)
    add_summary(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reconstruct a folder of photos, and print what was found."""
    from ..collection.reconstruction import reconstruct

    cluster = cluster_of(args)
    processor, model = load_for_collection(args)
    summary = reconstruct(
        args.photos,
        args.output,
        model,
        processor,
        by=args.by,
        pair_options=pair_options(args),
        batch_size=args.batch_size,
        camera_model=args.camera_model,
        single_camera=args.single_camera,
        threads=args.threads,
        name=args.model,
        cluster=cluster,
        progress=bars(args),
        log=lambda text: log(args, text),
    )
    left_out = summary["features"]["left_out"] | summary["database"]["left_out"] | summary["matches"]["left_out"]
    left_out |= dict.fromkeys(summary["without_position"], "no GPS position")
    status = report(args, summary, describe(summary, args.output), left_out)
    return NO_MODEL if summary["mapping"] is None else status


def describe(summary: dict[str, Any], out: Path) -> str:
    """What was found, in a few lines."""
    database, mapping = summary["database"], summary["mapping"]
    lines = [
        f"{database['matches']} matches of {database['pairs']} pairs, {database['inliers']} of them in "
        f"{database['verified']} pairs with a geometry"
    ]
    if mapping is None:
        return "\n".join([*lines, "no two photos fit together: photos nearer to each other may help"])
    lines += [
        f"{len(mapping['registered'])} of {mapping['photos']} photos registered"
        + f", in the largest of {mapping['models']} models" * (mapping["models"] > 1),
        f"{mapping['points']} points, seen by {mapping['track_length']:.2f} photos each",
        f"mean reprojection error {mapping['reprojection_error']:.2f} px",
        f"wrote {out}: sparse/, points.ply, model.png, photos.png",
    ]
    return "\n".join(lines)
