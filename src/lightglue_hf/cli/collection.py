"""What the commands of a collection have in common: `features`, `pairs`, `match-pairs`, `colmap`, `reconstruct`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.optional import import_optional
from .arguments import count, log, number, share, target
from .errors import reading
from .models import check_device, find_checkpoint, load_matcher, openvino_config, quiet_libraries

LEFT_OUT = 3
"""Exit status: all is done but for photos or pairs that were left out, with their reasons."""

ENGINES = ("torch", "openvino", "ray")
EXIT = " The exit status is 3 if photos or pairs were left out, which are listed, and 2 for an error."


def hdf5(text: str) -> Path:
    return target(text, {".h5", ".hdf5"}, ".h5")


def text_file(text: str) -> Path:
    return target(text, {".txt"}, ".txt")


def database(text: str) -> Path:
    return target(text, {".db"}, ".db")


def natural(text: str) -> int:
    return number(text, int, lambda value: value >= 0, "a whole number from 0")


def metres(text: str) -> float:
    return number(text, float, lambda value: value > 0, "a number above 0")


def add_summary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a summary as JSON, instead of words")


def add_engine(parser: argparse.ArgumentParser, what: str) -> None:
    """The options of where and how much at once is computed."""
    parser.add_argument("--batch-size", type=count, default=8, metavar="N", help=f"{what} at once (default: 8)")
    help_engine = "compute by PyTorch (default), by OpenVINO, or by PyTorch on a Ray cluster"
    parser.add_argument("--engine", choices=ENGINES, default="torch", help=help_engine)
    help_address = "of a running Ray cluster, or auto; by default Ray starts on this machine"
    parser.add_argument("--address", metavar="HOST:PORT", help=help_address)
    help_workers = "on the cluster (default: its CPUs by the threads of this process)"
    parser.add_argument("--workers", type=count, metavar="N", help=help_workers)


def add_rejection(parser: argparse.ArgumentParser) -> None:
    help_reject = "give up a pair when after the second layer less than this share matches (default: the model's, 0)"
    parser.add_argument("--rejection-threshold", type=share, metavar="T", help=help_reject)


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    help_neighbours = "of each photo, by retrieval or GPS (default: 20)"
    parser.add_argument("--neighbours", type=count, default=20, metavar="N", help=help_neighbours)
    help_window = "sequential: the next N photos by name (default: 10)"
    parser.add_argument("--window", type=count, default=10, metavar="N", help=help_window)
    help_loop = "sequential: look for loops by retrieval at every Nth photo (default: 0, never)"
    parser.add_argument("--loop-every", type=natural, default=0, metavar="N", help=help_loop)
    help_distance = "GPS: metres between photos at most (default: 100)"
    parser.add_argument("--distance", type=metres, default=100.0, metavar="M", help=help_distance)


def pair_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("neighbours", "window", "loop_every", "distance")}


def add_camera_options(parser: argparse.ArgumentParser) -> None:
    help_model = "COLMAP's name (default: SIMPLE_RADIAL); the focal length is taken from EXIF data"
    parser.add_argument("--camera-model", default="SIMPLE_RADIAL", metavar="NAME", help=help_model)
    parser.add_argument("--single-camera", action="store_true", help="one camera and lens took all photos")


def load_for_collection(args: argparse.Namespace) -> tuple[Any, Any]:
    """The processor and the model that the options ask for, as they are used."""
    from ..image_processing_lightglue import resize_options

    if args.engine == "openvino":
        processor, model = load_openvino(args)
    else:
        processor, model = load_matcher(args.model, args)
    if getattr(args, "rejection_threshold", None) is not None:
        if hasattr(model, "engine"):
            raise InputError(f"--rejection-threshold is for PyTorch: a graph of {args.model} has its own")
        model.config.rejection_threshold = args.rejection_threshold
    for name, value in resize_options(args.longest_edge).items():
        setattr(processor, name, value)
    return processor, model


def load_openvino(args: argparse.Namespace, adaptive: bool = False, **shapes: Any) -> tuple[Any, Any]:
    """Graphs of a directory that has some, or else of a checkpoint, exported on the way.

    Args:
        args: see `add_model_options`.
        adaptive: that stop early and prune points, if the model does.
        shapes: `batch_size`, `height` and `width` of what is exported, any by default.
    """
    from ..runtime.fixed import backend_of, set_options

    found = find_checkpoint(args.model)
    if isinstance(found, Path) and backend_of(found) is not None:
        return load_matcher(args.model, args)
    from transformers import AutoImageProcessor

    quiet_libraries(args)
    options: Any = {} if isinstance(found, Path) else {"revision": args.revision or "main"}
    with reading(f"cannot export {args.model} to OpenVINO"):
        from ..configuration_lightglue import LightGlueConfig
        from ..export import ExportOptions
        from ..runtime import OVModelForKeypointMatching

        processor = AutoImageProcessor.from_pretrained(found, **options)
        model = OVModelForKeypointMatching.from_pretrained(
            found,
            export=True,
            export_options=ExportOptions(
                parts=("detector", "matcher"),
                num_keypoints=args.max_keypoints,
                adaptive=adaptive and LightGlueConfig.from_pretrained(found, **options).is_adaptive,
                validate=False,
                **shapes,
            ),
            device=(args.device or "cpu").upper(),
            ov_config=openvino_config(args.dtype),
            **options,
        )
    set_options(args.model, model, args.max_keypoints, args.threshold)
    return processor, model


def cluster_of(args: argparse.Namespace) -> Any | None:
    """The Ray cluster that the options name, if they do."""
    if args.engine != "ray":
        if args.address or args.workers:
            raise InputError("--address and --workers go with --engine ray")
        return None
    from ..collection.distributed import Cluster

    import_optional("ray", "ray")
    if args.device:
        check_device(args.device)
    on_gpu = (args.device or "").startswith("cuda")
    load: Callable[[], tuple[Any, Any]] = partial(load_for_collection, argparse.Namespace(**vars(args)))
    return Cluster(load, args.workers, args.address, gpus=1 if on_gpu else 0)


def bars(args: argparse.Namespace) -> Any:
    """tqdm's class, for somebody who watches."""
    tqdm = import_optional("tqdm", "collections").tqdm
    hidden = args.quiet or not (sys.stderr.isatty() or args.verbose)
    return partial(tqdm, disable=hidden, file=sys.stderr, leave=False, dynamic_ncols=True)


def report(args: argparse.Namespace, summary: dict[str, Any], text: str, left_out: dict[str, str]) -> int:
    """Print what was done and what was left out; the exit status."""
    print(json.dumps(summary) if args.json else text)
    for name, why in list(left_out.items())[:20]:
        log(args, f"left out: {name}: {why}")
    if len(left_out) > 20:
        log(args, f"left out: {len(left_out) - 20} more")
    return LEFT_OUT if left_out else 0
