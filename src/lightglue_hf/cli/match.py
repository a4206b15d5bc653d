"""`lightglue-hf match`."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from .. import __version__
from ..utils.errors import InputError, MissingPackageError
from ..utils.optional import import_optional
from .arguments import BUNDLED, add_model_options, count, focal, picture, refuse_overwriting, save_picture, table
from .errors import reading
from .models import load_matcher

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ..evaluation.methods import Prediction
    from ..evaluation.verdict import Verdict

HELP = "match two photos, and say whether they show the same"
EPILOG = (
    "Points are (x, y) in pixels of the upright photo; the centre of the first pixel is (0, 0). With --require-match "
    "the exit status is 1 unless the matches are more than chance would give; errors are 2."
)

MAX_WIDTH = 3200  # pixels of a drawing
NO_MATCH = 1  # exit status
LITTLE = 30  # inliers, below which a better checkpoint is worth a line


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    help_photo = "path, URL, or - for the standard input; EXIF orientation is applied"
    parser.add_argument("images", nargs=2, metavar="PHOTO", help=help_photo)
    help_turns = "also match the second photo turned by quarters (4) or upside down (2), and keep what matches best"
    parser.add_argument("--turns", type=int, choices=(1, 2, 4), default=1, help=help_turns)
    help_tiles = "search photos tile by tile at full resolution, or at --longest-edge: for 20 megapixels and more"
    parser.add_argument("--tiles", action="store_true", help=help_tiles)
    parser.add_argument("-o", "--output", type=picture, metavar="PNG", help="draw the matches")
    parser.add_argument("--inliers", action="store_true", help="draw only matches that agree with one geometry")
    parser.add_argument("--best", type=count, metavar="N", help="draw only the N matches that score highest")
    parser.add_argument("--save", type=table, metavar="FILE", help="write the matches to a .json, .npz or .h5 file")
    help_focal = "focal length of each camera in pixels of its photo: also find how the cameras stand to each other"
    parser.add_argument("--focal", type=focal, nargs=2, metavar=("F0", "F1"), help=help_focal)
    parser.add_argument("--json", action="store_true", help="print the matches as JSON, instead of a report")
    help_require = "exit with 1 unless the matches are more than chance would give"
    parser.add_argument("--require-match", action="store_true", help=help_require)
    parser.set_defaults(run=run)


class Matches(NamedTuple):
    """What a model says of a pair, in pixels of the photos, and how it got there."""

    prediction: Prediction
    sizes: list[tuple[int, int]]  # (height, width) as the model saw the photos
    stop: int | None  # the layer after which the model stopped
    layers: int
    seconds: float
    engine: str
    turns: int = 0  # counter-clockwise quarter turns of the second photo


class Geometry(NamedTuple):
    """What agrees with the matches."""

    verdict: Verdict
    homography: np.ndarray | None
    homography_inliers: np.ndarray
    pose: np.ndarray | None  # (4, 4), from the first camera's coordinates to the second's; of calibrated cameras
    pose_inliers: np.ndarray | None


def run(args: argparse.Namespace) -> int:
    """Match two photos, print the counts, draw and save the matches."""
    refuse_overwriting(args.images, args.output, args.save)
    if args.save and args.save.suffix.lower() == ".h5":
        import_optional("h5py", "train")  # before the work is done
    images = read_photos(args.images)
    result = match_pair(images, args, args.turns, args.tiles)
    report: Callable[[str], Any] = (lambda text: None) if args.json or args.quiet else print
    for name, image, points, size in zip(args.images, images, result.prediction[:2], result.sizes):
        report(f"{name}: {image.width} x {image.height}, {len(points)} keypoints")
        if not len(points):
            report(f"no keypoints at {size[1]} x {size[0]} pixels: {why_none(size)}")
    report_matches(result, report)
    geometry = find_geometry(images, result, args, report)
    if geometry is not None:
        report(describe(geometry.verdict))
        if geometry.pose_inliers is not None:
            report(
                f"{geometry.pose_inliers.sum()} inliers of an essential matrix (2 px){describe_pose(geometry.pose)}"
            )
        if args.model == BUNDLED and geometry.verdict.inliers.sum() < LITTLE:
            report(f"{BUNDLED} is small and quick: --model aliked, disk, xfeat or superpoint find more")
    if args.output:
        save_picture(draw(images, result, args, geometry), args.output)
        report(f"wrote {args.output}")
    if args.save or args.json:
        save(result, images, geometry, args)
        if args.save:
            report(f"wrote {args.save}")
    return NO_MATCH if args.require_match and (geometry is None or geometry.verdict.answer != "yes") else 0


def read_photos(names: list[str]) -> list[Image]:
    """The photos of paths and URLs, upright.

    Raises:
        InputError: one of them cannot be read.
    """
    from PIL import Image, ImageOps

    from ..images import URL_BYTES, load_image, to_pixels

    if names.count("-") > 1:
        raise InputError("only one photo can be the standard input")
    images = []
    for name in names:
        with reading():
            if name == "-":
                with reading("the standard input is no photo"):
                    image = ImageOps.exif_transpose(
                        load_image(Image.open(io.BytesIO(sys.stdin.buffer.read(URL_BYTES))))
                    )
            else:
                path = url2pathname(urlsplit(name).path) if name.startswith("file://") else name
                image = load_image(path)
            if image.mode.startswith(("I", "F")):
                to_pixels(image, name)  # their values may be out of range
        images.append(image)
    return images


def match_pair(images: list[Image], args: argparse.Namespace, turns: int = 1, tiles: bool = False) -> Matches:
    """Load the model, set what the options set, and match one pair."""
    import torch

    from ..evaluation.methods import to_prediction
    from ..turns import match_turned

    processor, model = load_matcher(args.model, args)
    pair = (images[0], images[1])
    start = time.perf_counter()
    outputs, turned = match_turned(model, processor, pair, turns, tiles, args.longest_edge)
    prediction = to_prediction(outputs, pair)
    keep = prediction.matching_scores > (args.threshold or 0.0)  # exported graphs have a threshold of their own
    prediction = prediction._replace(
        matches=prediction.matches[keep], matching_scores=prediction.matching_scores[keep]
    )
    seconds = time.perf_counter() - start
    stop = getattr(outputs, "stop", None)
    return Matches(
        prediction,
        sizes=[(int(height), int(width)) for height, width in outputs.image_sizes[0].tolist()],
        stop=None if stop is None else int(stop[0]),
        layers=model.config.num_hidden_layers,
        seconds=seconds,
        engine=getattr(model, "engine", f"PyTorch {torch.__version__} on {model.device}"),
        turns=turned,
    )


def find_geometry(
    images: list[Image], result: Matches, args: argparse.Namespace, report: Callable[[str], Any]
) -> Geometry | None:
    """What agrees with the matches; without PoseLib nothing is known of it, which is said."""
    from ..evaluation import estimate_homography, estimate_relative_pose, judge_against_chance

    matched = result.prediction.matched
    pose = pose_inliers = None
    try:
        verdict = judge_against_chance(*matched, [(image.height, image.width) for image in images])
        if args.focal:
            first, second = (intrinsics(image, length) for image, length in zip(images, args.focal))
            pose, pose_inliers = estimate_relative_pose(*matched, first, second)
    except MissingPackageError as error:
        if args.require_match or args.inliers or args.focal:
            raise
        report(f"inliers are not counted: {error}")
        return None
    return Geometry(verdict, *estimate_homography(*matched), pose, pose_inliers)


def intrinsics(image: Image, focal_length: float) -> np.ndarray:
    """The matrix `(3, 3)` of a camera whose axis passes through the middle of its photo."""
    import numpy as np

    centre = (image.width - 1) / 2, (image.height - 1) / 2
    return np.array([[focal_length, 0, centre[0]], [0, focal_length, centre[1]], [0, 0, 1]])


def essential_matrix(pose: np.ndarray) -> np.ndarray:
    """`(3, 3)` with `r1^T E r0 = 0` for rays in the coordinates of either camera."""
    import numpy as np

    return np.cross(pose[:3, 3], pose[:3, :3], axisb=0, axisc=0)


def why_none(size: tuple[int, int]) -> str:
    """What to do about a photo without keypoints."""
    if max(size) < 100:
        return "that is too small to find any; choose a larger --longest-edge"
    return "nothing stands out in it"


def report_matches(result: Matches, report: Callable[[str], Any]) -> None:
    if result.turns:
        report(f"the second photo matches best turned by {90 * result.turns} degrees counter-clockwise")
    layers = f", stopped after layer {result.stop} of {result.layers}" if result.stop is not None else ""
    count = len(result.prediction.matches)
    report(f"{count} matches{layers}, in {result.seconds:.2f} s without loading the model")
    report(f"computed by {result.engine}")


def describe_pose(pose: np.ndarray | None) -> str:
    """By how much the second camera is turned, and where it went, in the axes of the first: right, down, ahead."""
    import numpy as np

    if pose is None:
        return ""
    angle = np.degrees(np.arccos(np.clip((np.trace(pose[:3, :3]) - 1) / 2, -1, 1)))
    right, down, ahead = -pose[:3, :3].T @ pose[:3, 3]
    return f": turned by {angle:.1f} degrees, moved right, down and ahead as {right:.2f}, {down:.2f}, {ahead:.2f}"


def describe(verdict: Verdict) -> str:
    """One line: the inliers, and what they are worth."""
    worth = {
        "yes": "more than chance would give",
        "no": "no more than chance would give",
        "too few": "too few matches to tell it from chance",
    }[verdict.answer]
    if verdict.fundamental is None:
        return f"no fundamental matrix found: {worth}"
    share = f"{verdict.inliers.mean():.0%} of the matches"
    return f"{verdict.inliers.sum()} inliers of a fundamental matrix (1.5 px), {share}: {worth}"


def draw(images: list[Image], result: Matches, args: argparse.Namespace, geometry: Geometry | None = None) -> Image:
    """The photos side by side, with the matches that the options ask for."""
    import numpy as np

    from ..visualization import draw_matches

    points0, points1 = result.prediction.matched
    scores = result.prediction.matching_scores
    shown = np.arange(len(scores))
    if args.inliers and geometry is not None:
        shown = shown[geometry.verdict.inliers]
    if args.best is not None:
        shown = shown[np.argsort(-scores[shown], kind="stable")[: args.best]]
    left, right = images
    return draw_matches(left, right, points0[shown], points1[shown], scores[shown], max_width=MAX_WIDTH)


def save(result: Matches, images: list[Image], geometry: Geometry | None, args: argparse.Namespace) -> None:
    """Write the matches and what they are of: JSON, or arrays in NumPy's format or HDF5, the rest in `metadata`."""
    import numpy as np

    from ..utils.files import write_atomically

    arrays = to_arrays(result.prediction, geometry)
    metadata: dict[str, Any] = {
        "images": args.images,
        "image_sizes": [[image.height, image.width] for image in images],  # (height, width)
        "model": args.model,
        "revision": args.revision,
        "dtype": args.dtype,
        "engine": result.engine,
        "stop": result.stop,
        "turned": 90 * result.turns,  # degrees, the second photo, counter-clockwise
        "seconds": round(result.seconds, 4),
        "version": __version__,
        "verdict": None if geometry is None else to_json(geometry.verdict),
    }
    text = json.dumps(metadata | {name: values.tolist() for name, values in arrays.items()}) + "\n"
    if args.json:
        sys.stdout.write(text)
    if args.save is None:
        return
    if args.save.suffix.lower() == ".json":
        write_atomically(args.save, text)
        return
    buffer = io.BytesIO()
    if args.save.suffix.lower() == ".h5":
        h5py = import_optional("h5py", "train")
        with h5py.File(buffer, "w") as file:
            for name, values in arrays.items():
                file[name] = values
            file.attrs["metadata"] = json.dumps(metadata)
    else:
        contents: dict[str, Any] = {**arrays, "metadata": np.array(json.dumps(metadata))}
        np.savez_compressed(buffer, **contents)
    write_atomically(args.save, buffer.getvalue())


def to_arrays(prediction: Prediction, geometry: Geometry | None) -> dict[str, np.ndarray]:
    """What is saved: matched points, all points and which of them match, inliers and the matrices that were found."""
    import numpy as np

    matched0, matched1 = prediction.matched
    arrays = {
        "keypoints0": matched0,  # (m, 2), of the matches
        "keypoints1": matched1,
        "matching_scores": prediction.matching_scores,
        "matches": prediction.matches,  # (m, 2), indices into the next two
        "all_keypoints0": prediction.keypoints0,
        "all_keypoints1": prediction.keypoints1,
        "unmatched0": np.setdiff1d(np.arange(len(prediction.keypoints0)), prediction.matches[:, 0]),
        "unmatched1": np.setdiff1d(np.arange(len(prediction.keypoints1)), prediction.matches[:, 1]),
    }
    if geometry is not None:
        arrays |= {"inliers": geometry.verdict.inliers, "homography_inliers": geometry.homography_inliers}
        matrices = {"fundamental": geometry.verdict.fundamental, "homography": geometry.homography}
        if geometry.pose is not None:
            matrices |= {"pose": geometry.pose, "essential": essential_matrix(geometry.pose)}
        if geometry.pose_inliers is not None:
            arrays["pose_inliers"] = geometry.pose_inliers
        arrays |= {name: matrix for name, matrix in matrices.items() if matrix is not None}
    return arrays


def to_json(verdict: Verdict) -> dict[str, Any]:
    false_alarms = verdict.log10_false_alarms
    return {
        "answer": verdict.answer,
        "inliers": int(verdict.inliers.sum()),
        "log10_false_alarms": round(false_alarms, 3) if math.isfinite(false_alarms) else None,
    }
