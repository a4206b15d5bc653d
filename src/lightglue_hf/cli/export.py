"""`lightglue-hf export`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..utils.errors import InputError
from .arguments import BUNDLED, add_max_keypoints, add_revision, count, progress, remark
from .errors import reading
from .models import find_checkpoint, quiet_libraries

HELP = "write graphs for ONNX Runtime or OpenVINO"
EPILOG = "docs/export.md describes the graphs."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=("onnx", "openvino"))
    parser.add_argument("model", metavar="MODEL", help=f'"{BUNDLED}", a directory or a name on the Hub')
    parser.add_argument("output", type=Path, metavar="OUT", help="directory")
    help_for = "in the layout of a program that runs it: docs/export.md says how (onnx)"
    parser.add_argument("--for", dest="consumer", choices=("opencv", "colmap", "web"), help=help_for)
    add_revision(parser)
    parser.add_argument("-b", "--batch-size", type=int, default=0, metavar="N", help="pairs; 0: any (default)")
    parser.add_argument("--height", type=int, default=0, metavar="N", help="of the images; 0: any (default)")
    parser.add_argument("--width", type=int, default=0, metavar="N", help="of the images; 0: any (default)")
    help_keypoints = "keypoints of an image, fewer are padded; default: the model's maximum, or 1024"
    add_max_keypoints(parser, help_keypoints)
    help_matcher = "columns of the matcher's own graph, if others, as for video.Tracker; default: as above"
    parser.add_argument("--matcher-keypoints", type=count, metavar="N", help=help_matcher)
    help_part = "one or several; default: pipeline, or what the program of --for takes"
    parts = ("pipeline", "detector", "matcher")
    parser.add_argument("--part", nargs="+", choices=parts, default=(), help=help_part)
    parser.add_argument("--adaptive", action="store_true", help="stop early and prune points; one pair a run")
    parser.add_argument("--weight-format", choices=("fp32", "fp16", "int8"), default="fp32", help="default: fp32")
    help_calibration = "quantise activations too, by the photos in this folder (openvino)"
    parser.add_argument("--calibration", metavar="PHOTOS", help=help_calibration)
    parser.add_argument(
        "--num-samples", type=count, default=100, metavar="N", help="pairs of those photos (default: 100)"
    )
    parser.add_argument("--opset", type=count, default=18, metavar="N", help="of ONNX, from 16 (default: 18)")
    help_validate = "compare every graph with PyTorch, and fail where they differ (default)"
    parser.add_argument("--validate", action=argparse.BooleanOptionalAction, default=True, help=help_validate)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write graphs for ONNX Runtime or OpenVINO, and print how they compare with PyTorch."""
    from ..export import ExportError, ExportOptions, export

    quiet_libraries(args)
    with reading():
        options = ExportOptions(
            parts=tuple(args.part),
            consumer=args.consumer,
            batch_size=args.batch_size,
            height=args.height,
            width=args.width,
            num_keypoints=args.max_keypoints,
            matcher_keypoints=args.matcher_keypoints,
            adaptive=args.adaptive,
            weight_format=args.weight_format,
            calibration=args.calibration,
            num_samples=args.num_samples,
            opset=args.opset,
            validate=args.validate,
        )
    model = find_checkpoint(args.model)
    hub_options = {} if isinstance(model, Path) else {"revision": args.revision or "main"}
    parts = ", ".join(args.part) or "graphs"
    progress(args, f"writing {parts} of {args.model}{' and comparing with PyTorch' if args.validate else ''} ...")
    start = time.perf_counter()
    try:
        results = export(model, args.output, args.format, options, **hub_options)
    except ExportError as error:
        raise InputError(str(error)) from error
    for result in results:
        print(result)
    remark(args, f"wrote {args.output} in {time.perf_counter() - start:.1f} s")
