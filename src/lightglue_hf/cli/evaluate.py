"""`lightglue-hf evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .arguments import add_model_options, json_file, markdown
from .errors import CommandError
from .models import load_matcher

if TYPE_CHECKING:
    from ..evaluation.datasets import Dataset
    from ..evaluation.methods import Method

DATA = ("stereo", "shift", "warped-easy", "warped-hard")
METHODS = ("model", "nearest", "rootsift", "rootsift-ratio")

HELP = "score the model beside RootSIFT on pairs with known truth"
EPILOG = (
    "docs/evaluation.md says what is measured and how to lay out the data. Without --data, --hpatches, --posed and "
    "--pair: all that --data knows."
)


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    several: Any = {"action": "append", "default": []}
    parser.add_argument("--data", **several, choices=DATA, help="made of scikit-image's photos")
    parser.add_argument("--hpatches", **several, metavar="DIR", help="a folder with the sequences of HPatches")
    help_posed = "a list of pairs with intrinsics and pose, as of MegaDepth-1500 and ScanNet-1500, and its images"
    parser.add_argument("--posed", **several, nargs=2, metavar=("PAIRS.txt", "DIR"), help=help_posed)
    help_pair = "two photos without truth: inliers are counted"
    parser.add_argument("--pair", **several, nargs=2, metavar="PHOTO", help=help_pair)
    help_adaptivity = "what adaptive depth and width cost and save, instead of the comparison"
    parser.add_argument("--adaptivity", action="store_true", help=help_adaptivity)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="all by default")
    help_cache = "keep predictions here, and compute only the figures the next time"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=help_cache)
    parser.add_argument("--markdown", type=markdown, metavar="FILE.md", help="write the table")
    help_json = "write settings, figures and the scores of each pair"
    parser.add_argument("--json", type=json_file, metavar="FILE.json", help=help_json)
    parser.set_defaults(run=run, max_keypoints=1024, size=640)


def run(args: argparse.Namespace) -> None:
    """Print how the model and baselines do on datasets, as a table, and write the figures."""
    from ..evaluation import adaptivity, comparison
    from ..utils.files import write_atomically

    if args.adaptivity and (args.json or args.methods or args.cache):
        raise CommandError("--adaptivity is about the model alone, measured now: no --json, --methods or --cache")
    datasets = _datasets(args)
    if args.adaptivity:
        processor, model = load_matcher(args)
        if hasattr(model, "engine"):
            raise CommandError(f"--adaptivity needs PyTorch's hidden states: {args.model} is an exported graph")
        results = [adaptivity.measure_adaptivity(model, processor, data, args.size) for data in datasets]
        table, records = adaptivity.to_markdown(results), []
    else:
        records = comparison.compare(datasets, _methods(args), args.cache)
        table = comparison.to_markdown(comparison.summarize(records))
    print(table, end="")
    if args.markdown:
        write_atomically(args.markdown, table)
    if args.json:
        names = ("model", "max_keypoints", "size", "threshold", "device", "dtype")
        settings = {"version": __version__} | {name: getattr(args, name) for name in names}
        write_atomically(args.json, comparison.to_json(records, settings))


def _datasets(args: argparse.Namespace) -> list[Dataset]:
    """Make the datasets that the options ask for, or else all that need no files."""
    from ..evaluation.datasets import BUILT_IN, hpatches, posed, unposed

    asked = bool(args.data or args.hpatches or args.posed or args.pair)
    return [
        *(BUILT_IN[name]() for name in (args.data if asked else BUILT_IN)),
        *(hpatches(directory) for directory in args.hpatches),
        *(posed(*paths) for paths in args.posed),
        *(unposed(*paths) for paths in args.pair),
    ]


def _methods(args: argparse.Namespace) -> list[Method]:
    """Load the model, and make the methods that the options ask for, or else all that are installed."""
    from ..evaluation.methods import lightglue, nearest_rootsift

    processor, model = load_matcher(args)
    name = Path(args.model).name
    methods: dict[str, Callable[[], Method]] = {
        "model": lambda: lightglue(name, model, processor, args.size),
        "nearest": lambda: lightglue(f"{name}'s detector, mutual nearest", model, processor, args.size, nearest=True),
        "rootsift": lambda: nearest_rootsift("RootSIFT, mutual nearest", args.max_keypoints),
        "rootsift-ratio": lambda: nearest_rootsift("RootSIFT, ratio 0.8", args.max_keypoints, ratio=0.8),
    }
    if args.methods is None and not find_spec("cv2"):
        print("RootSIFT is left out, for want of OpenCV: install lightglue-hf[eval]", file=sys.stderr)
        args.methods = METHODS[:2]
    return [methods[method]() for method in args.methods or METHODS]
