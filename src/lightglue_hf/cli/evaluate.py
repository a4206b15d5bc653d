"""`lightglue-hf evaluate`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..utils.errors import InputError
from ..utils.optional import how_to_install
from .arguments import BUNDLED, add_model_options, json_file, log, markdown, refuse_overwriting
from .errors import reading
from .models import find_checkpoint, load_matcher

if TYPE_CHECKING:
    from ..evaluation.datasets import Dataset
    from ..evaluation.methods import Method

HELP = "score models beside RootSIFT on pairs with known truth"
EPILOG = (
    "docs/evaluation.md says what is measured and how to lay out the data. Without --data, --hpatches, --posed and "
    "--pair: all that --data knows."
)

DATA = ("stereo", "shift", "warped-easy", "warped-hard")
METHODS = ("model", "nearest", "rootsift", "rootsift-ratio")
NEAREST = "'s detector, mutual nearest"  # which has the model's features, and no time of its own
SETTINGS = ("model", "revision", "max_keypoints", "longest_edge", "threshold", "device", "dtype")


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, max_keypoints=1024, longest_edge=640, several=True)
    several: Any = {"action": "append", "default": []}
    parser.add_argument("--data", **several, choices=DATA, help="made of scikit-image's photos")
    parser.add_argument("--hpatches", **several, metavar="DIR", help="a folder with the sequences of HPatches")
    help_posed = "a list of pairs with intrinsics and pose, as of MegaDepth-1500 and ScanNet-1500, and its images"
    parser.add_argument("--posed", **several, nargs=2, metavar=("PAIRS.txt", "DIR"), help=help_posed)
    help_pair = "two photos without truth: inliers are counted, and held against chance"
    parser.add_argument("--pair", **several, nargs=2, metavar="PHOTO", help=help_pair)
    help_adaptivity = "what adaptive depth and width cost and save, instead of the comparison"
    parser.add_argument("--adaptivity", action="store_true", help=help_adaptivity)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all")
    help_cache = "keep predictions here, and compute only the figures the next time"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=help_cache)
    parser.add_argument("--markdown", type=markdown, metavar="FILE.md", help="write the table")
    help_json = "write settings, figures and the scores of each pair; - prints them instead of the table"
    parser.add_argument("--json", type=json_file, metavar="FILE.json", help=help_json)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print how models and baselines do on datasets, as a table, and write the figures."""
    from ..evaluation import adaptivity, comparison
    from ..utils.files import write_atomically

    args.model = args.model or [BUNDLED]
    inputs = [path for paths in (*args.posed, *args.pair) for path in paths]
    refuse_overwriting(inputs, args.markdown, args.json)
    if args.adaptivity and (args.json or args.methods or args.cache or len(args.model) > 1):
        raise InputError("--adaptivity is about one model alone, measured now: no --json, --methods or --cache")
    datasets = _datasets(args)
    if args.adaptivity:
        processor, model = load_matcher(args.model[0], args)
        if hasattr(model, "engine"):
            raise InputError(f"--adaptivity needs PyTorch's hidden states: {args.model[0]} is an exported graph")
        results = [adaptivity.measure_adaptivity(model, processor, data, args.longest_edge) for data in datasets]
        table, records = adaptivity.to_markdown(results), []
    else:
        methods, about = _methods(args)
        records = comparison.compare(datasets, methods, args.cache)
        took = comparison.milliseconds(records)
        about["ms a pair (median)"] = {name: took[name] for name in took if not name.endswith(NEAREST)}
        table = comparison.to_markdown(comparison.summarize(records), about)
    to_stdout = args.json == Path("-")
    if not to_stdout:
        print(table, end="")
    if args.markdown:
        write_atomically(args.markdown, table)
    if args.json:
        settings = {"version": __version__} | {name: getattr(args, name) for name in SETTINGS}
        text = comparison.to_json(records, settings)
        if to_stdout:
            print(text, end="")
        else:
            write_atomically(args.json, text)


def _datasets(args: argparse.Namespace) -> list[Dataset]:
    """Make the datasets that the options ask for, or else all that need no files; what is wrong with them is input."""
    from ..evaluation.datasets import BUILT_IN, hpatches, posed, unposed

    asked = bool(args.data or args.hpatches or args.posed or args.pair)
    with reading():
        datasets = [
            *(BUILT_IN[name]() for name in (args.data if asked else BUILT_IN)),
            *(hpatches(directory) for directory in args.hpatches),
            *(posed(*paths) for paths in args.posed),
            *(unposed(*paths) for paths in args.pair),
        ]
    return [replace(dataset, load=reading()(dataset.load)) for dataset in datasets]


def _methods(args: argparse.Namespace) -> tuple[list[Method], dict[str, dict[str, str]]]:
    """Load the models, and make the methods that the options ask for, or else all that are installed.

    Returns:
        The methods, and what is to be said about some of them: its name, and by the name of a method a text.
    """
    from ..evaluation.methods import lightglue, nearest_rootsift, sharing_features

    chosen = args.methods or METHODS
    if args.methods is None and not find_spec("cv2"):
        log(args, f"RootSIFT is left out, OpenCV is not installed: {how_to_install('eval')}")
        chosen = METHODS[:2]
    methods = []
    about: dict[str, dict[str, str]] = {"weights (MB)": {}, "licence": {}}
    for model_name in args.model if {"model", "nearest"} & set(chosen) else ():
        processor, model = load_matcher(model_name, args)
        name = Path(model_name).name
        features = sharing_features(model, processor, args.longest_edge)
        if "model" in chosen:
            methods.append(lightglue(name, model, processor, args.longest_edge, features=features))
            if (size := megabytes(model_name, model)) is not None:
                about["weights (MB)"][name] = f"{size:.1f}"
            if licence := licence_of(model_name):
                about["licence"][name] = licence
        if "nearest" in chosen:
            name += NEAREST
            methods.append(lightglue(name, model, processor, args.longest_edge, nearest=True, features=features))
    if "rootsift" in chosen:
        methods.append(nearest_rootsift("RootSIFT, mutual nearest", args.max_keypoints))
    if "rootsift-ratio" in chosen:
        methods.append(nearest_rootsift("RootSIFT, ratio 0.8", args.max_keypoints, ratio=0.8))
    return methods, about


def megabytes(model_name: str, model: Any) -> float | None:
    """Of a model's weights as they are stored, detector included; of an exported graph, of its files."""
    directory = find_checkpoint(model_name)
    if isinstance(directory, Path):
        suffixes = (".onnx", ".bin", ".data") if hasattr(model, "engine") else (".safetensors",)
        return sum(path.stat().st_size for path in directory.iterdir() if path.suffix in suffixes) / 1e6
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6


def licence_of(model_name: str) -> str | None:
    """The licence that a checkpoint's card names at its head, if it has a card here."""
    directory = find_checkpoint(model_name)
    if not isinstance(directory, Path) or not (directory / "README.md").is_file():
        return None
    from huggingface_hub import metadata_load

    head = metadata_load(directory / "README.md") or {}
    licence = head.get("license_name") or head.get("license")
    return ", ".join(licence) if isinstance(licence, list) else licence
