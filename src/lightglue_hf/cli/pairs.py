"""`lightglue-hf pairs`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..utils.errors import InputError
from .collection import EXIT, add_pair_options, add_summary, hdf5, pair_options, report, text_file

HELP = "choose which photos of a folder are matched with which"
EPILOG = (
    "Exhaustive: all with all. Sequential: each with the next by name. Retrieval: each with those that look most "
    "alike, by the descriptors in --features. GPS: each with the nearest, by EXIF positions." + EXIT
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder, with those below it")
    parser.add_argument("-o", "--output", type=text_file, required=True, metavar="PAIRS.txt", help="file to write")
    ways = ("exhaustive", "sequential", "retrieval", "gps")
    parser.add_argument("--by", choices=ways, default="exhaustive", help="default: exhaustive")
    help_features = "for retrieval and loops; otherwise, photos without features are in no pair"
    parser.add_argument("--features", type=hdf5, metavar="FEATURES.h5", help=help_features)
    add_pair_options(parser)
    add_summary(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write pairs of photos."""
    from ..collection.photos import photo_names
    from ..collection.reconstruction import choose_pairs
    from ..collection.storage import read_names, write_pairs

    names = photo_names(args.photos)
    left_out: dict[str, str] = {}
    if args.features:
        there = set(read_names(args.features))
        left_out = {name: f"not in {args.features}" for name in names if name not in there}
        names = [name for name in names if name in there]
    elif args.by == "retrieval" or (args.by == "sequential" and args.loop_every):
        raise InputError("photos that look alike are found by their features: --features FEATURES.h5 is needed")
    if len(names) < 2:
        raise InputError(f"{len(names)} photo{'s' * (len(names) != 1)} in {args.photos}: pairs need two")
    chosen, without = choose_pairs(args.by, names, args.photos, args.features, **pair_options(args))
    left_out |= dict.fromkeys(without, "no GPS position")
    if not chosen:
        raise InputError("no two photos are near enough to each other: a larger --distance may help")
    write_pairs(args.output, chosen)
    summary = {"photos": len(names), "pairs": len(chosen), "left_out": left_out}
    return report(args, summary, f"wrote {args.output}: {len(chosen)} pairs of {len(names)} photos", left_out)
