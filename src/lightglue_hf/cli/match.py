"""`lightglue-hf match`."""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import __version__
from .arguments import add_model_options, picture, table
from .models import load_configured

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

HELP = "match two photos"
EPILOG = "Points are (x, y) in pixels of the upright photo; the centre of the first pixel is (0, 0)."


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("images", nargs=2, metavar="PHOTO", help="path or URL; EXIF orientation is applied")
    parser.add_argument("-o", "--output", type=picture, metavar="PNG", help="draw the matches")
    parser.add_argument("--save", type=table, metavar="FILE", help="write the matches to a .json or .npz file")
    parser.set_defaults(run=run)


class Matches(NamedTuple):
    """What a model says of a pair: points in pixels of the photos, and how it got there."""

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    matching_scores: np.ndarray
    found: list[int]  # keypoints in each image
    stop: int | None  # the layer after which the model stopped
    layers: int | None
    seconds: float
    engine: str


def run(args: argparse.Namespace) -> None:
    """Match two photos, print the counts, draw and save the matches."""
    from ..images import load_image

    images = [load_image(path) for path in args.images]
    result = match_pair(images, args)
    for path, image, count in zip(args.images, images, result.found):
        print(f"{path}: {image.width} x {image.height}, {count} keypoints")
    report(result, args)
    inliers = report_inliers(result)
    if args.output:
        draw(images, result, args.output)
    if args.save:
        save(images, result, inliers, args)


def match_pair(images: list[Image], args: argparse.Namespace) -> Matches:
    """Load the model, set what the options set, and match one pair."""
    import torch

    processor, model = load_configured(args)
    start = time.perf_counter()
    options = {"size": {"longest_edge": args.size}} if args.size else {}
    inputs = processor([images], return_tensors="pt", **options).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        outputs = model(**inputs)
    sizes = [[(image.height, image.width) for image in images]]
    (pair,) = processor.post_process_keypoint_matching(outputs, sizes, threshold=args.threshold or 0.0)
    arrays = {name: value.float().cpu().numpy() for name, value in pair.items()}
    seconds = time.perf_counter() - start
    stop = getattr(outputs, "stop", None)
    return Matches(
        **arrays,
        found=(outputs.mask[0] > 0).sum(dim=-1).tolist(),
        stop=None if stop is None else int(stop[0]),
        layers=getattr(model.config, "num_hidden_layers", None),
        seconds=seconds,
        engine=getattr(model, "engine", f"PyTorch {torch.__version__} on {model.device}"),
    )


def report(result: Matches, args: argparse.Namespace) -> None:
    layers = f", stopped after layer {result.stop} of {result.layers}" if result.stop is not None else ""
    print(f"{len(result.keypoints0)} matches{layers}, in {result.seconds:.2f} s without loading the model")
    print(f"computed by {result.engine}")


def report_inliers(result: Matches) -> np.ndarray | None:
    """Print how many matches agree with a fundamental matrix, and return which; None without PoseLib."""
    from ..evaluation import estimate_fundamental

    try:
        matrix, inliers = estimate_fundamental(result.keypoints0, result.keypoints1)
    except ImportError as error:
        print(f"Inliers are not counted: {error}")
        return None
    if matrix is None:
        print("no fundamental matrix found")
    else:
        print(f"{inliers.sum()} inliers of a fundamental matrix (1.5 px), {inliers.mean():.0%} of the matches")
    return inliers


def draw(images: list[Image], result: Matches, path: Path) -> None:
    from ..visualization import draw_matches

    left, right = images
    draw_matches(left, right, result.keypoints0, result.keypoints1, result.matching_scores).save(path)
    print(f"wrote {path}")


def save(images: list[Image], result: Matches, inliers: np.ndarray | None, args: argparse.Namespace) -> None:
    """Write the matches and what they are of, as JSON or as NumPy arrays with the rest in `metadata`."""
    import numpy as np

    arrays = {name: getattr(result, name) for name in ("keypoints0", "keypoints1", "matching_scores")}
    if inliers is not None:
        arrays["inliers"] = inliers
    metadata = {
        "images": args.images,
        "image_sizes": [[image.height, image.width] for image in images],  # (height, width)
        "model": args.model,
        "dtype": args.dtype,
        "engine": result.engine,
        "stop": result.stop,
        "seconds": round(result.seconds, 4),
        "version": __version__,
    }
    if args.save.suffix.lower() == ".json":
        lists = {name: values.tolist() for name, values in arrays.items()}
        args.save.write_text(json.dumps(metadata | lists) + "\n")
    else:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays, metadata=np.array(json.dumps(metadata)))
        args.save.write_bytes(buffer.getvalue())
    print(f"wrote {args.save}")
