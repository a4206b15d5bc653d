"""`lightglue-hf match`."""

from __future__ import annotations

import argparse
import io
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..utils.errors import InputError, MissingPackageError, one_line, reading
from ..utils.optional import import_optional
from .arguments import (
    BUNDLED,
    add_model_options,
    count,
    focal,
    picture,
    refuse_overwriting,
    remark,
    save_picture,
    say,
    table,
)
from .models import load_matcher

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ..matching import Geometry, Matches

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
    help_turns = "also match the second photo turned by quarters (4) or upside down (2), keep the best (default: 1)"
    parser.add_argument("--turns", type=int, choices=(1, 2, 4), default=1, help=help_turns)
    help_tiles = "search photos tile by tile at full resolution, or at --longest-edge: for 20 megapixels and more"
    parser.add_argument("--tiles", action="store_true", help=help_tiles)
    help_megapixels = "largest photo, in millions of pixels (default: 178; a broken file may claim to have any number)"
    parser.add_argument("--max-megapixels", type=count, metavar="N", help=help_megapixels)
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


def run(args: argparse.Namespace) -> int:
    """Match two photos, print the counts, draw and save the matches."""
    refuse_overwriting(args.images, args.output, args.save)
    if args.save and args.save.suffix.lower() == ".h5":
        import_optional("h5py", "train")  # before the work is done
    images = read_photos(args.images, args.max_megapixels)
    from ..matching import describe  # which takes seconds: a photo that is not there is said at once

    result = match_pair(images, args, args.turns, args.tiles)
    for name, image, points, size in zip(args.images, images, result.prediction[:2], result.sizes):
        remark(args, f"{name}: {image.width} x {image.height}, {len(points)} keypoints")
        if not len(points):
            remark(args, f"no keypoints at {size[1]} x {size[0]} pixels: {why_none(size)}")
    report_matches(args, result, args.turns)
    geometry = find_geometry(images, result, args)
    if geometry is not None:
        say(args, describe(geometry.verdict))
        if geometry.pose_inliers is not None:
            moved = describe_pose(geometry.pose)
            say(args, f"{geometry.pose_inliers.sum()} inliers of an essential matrix (2 px){moved}")
        if args.model == BUNDLED and geometry.verdict.inliers.sum() < LITTLE:
            remark(args, f"{BUNDLED} is small and quick: --model aliked, disk, xfeat or superpoint find more")
    if args.output:
        save_picture(draw(images, result, args, geometry), args.output)
        remark(args, f"wrote {args.output}")
    if args.save or args.json:
        save(result, images, geometry, args)
        if args.save:
            remark(args, f"wrote {args.save}")
    return NO_MATCH if args.require_match and (geometry is None or geometry.verdict.answer != "yes") else 0


def read_photos(names: list[str], max_megapixels: int | None = None) -> list[Image]:
    """The photos of paths and URLs, upright.

    Args:
        names: of which one may be -, the standard input.
        max_megapixels: of each; by default as many as Pillow opens.

    Raises:
        InputError: one of them cannot be read.
    """
    from PIL import Image

    from ..images import allow_pixels, to_pixels

    if names.count("-") > 1:
        raise InputError("only one photo can be the standard input")
    max_pixels = None if max_megapixels is None else max_megapixels * 1_000_000
    allow_pixels(max_pixels or 0)
    images = []
    for name in names:
        with reading():
            try:
                image = read_photo(name, max_pixels)
            except Image.DecompressionBombError:
                most = max_megapixels or int(2e-6 * (Image.MAX_IMAGE_PIXELS or 0))
                advice = "--max-megapixels N allows more, and --tiles searches them"
                raise InputError(f"{name} has more than {most} megapixels: {advice}") from None
            if image.mode.startswith(("I", "F")):
                to_pixels(image, name)  # their values may be out of range
        images.append(image)
    return images


def read_photo(name: str, max_pixels: int | None) -> Image:
    """The photo of a path, a URL, or the standard input."""
    from PIL import Image, ImageOps

    from ..images import URL_BYTES, load_image

    if name != "-":
        path = url2pathname(urlsplit(name).path) if name.startswith("file://") else name
        return load_image(path, max_pixels=max_pixels)
    try:
        image = Image.open(io.BytesIO(sys.stdin.buffer.read(URL_BYTES)))
        return ImageOps.exif_transpose(load_image(image, max_pixels=max_pixels))
    except Image.DecompressionBombError:
        raise
    except Exception as error:  # broken data makes Pillow raise anything
        raise InputError(f"the standard input is no photo: {one_line(error)}") from error


def match_pair(images: list[Image], args: argparse.Namespace, turns: int = 1, tiles: bool = False) -> Matches:
    """Load the model, set what the options set, and match one pair."""
    from ..matching import match_photos

    processor, model = load_matcher(args.model, args)
    return match_photos(processor, model, images, args.longest_edge, turns, tiles)


def find_geometry(images: list[Image], result: Matches, args: argparse.Namespace) -> Geometry | None:
    """What agrees with the matches; without PoseLib nothing is known of it, which is said."""
    from .. import matching

    try:
        return matching.find_geometry(result, images, args.focal)
    except MissingPackageError as error:
        if args.require_match or args.inliers or args.focal:
            raise
        remark(args, f"inliers are not counted: {error}")
        return None


def why_none(size: tuple[int, int]) -> str:
    """What to do about a photo without keypoints."""
    if max(size) < 100:
        return "that is too small to find any; choose a larger --longest-edge"
    return "nothing stands out in it"


def report_matches(args: argparse.Namespace, result: Matches, turns: int = 1) -> None:
    """Say what was found, and remark on how."""
    from ..matching import describe_matches, describe_turn

    if turns > 1:
        say(args, describe_turn(result))
    say(args, f"{describe_matches(result)}, in {result.seconds:.2f} s without loading the model")
    remark(args, f"computed by {result.engine}")


def describe_pose(pose: np.ndarray | None) -> str:
    """By how much the second camera is turned, and where it went, in the axes of the first: right, down, ahead."""
    import numpy as np

    if pose is None:
        return ""
    angle = np.degrees(np.arccos(np.clip((np.trace(pose[:3, :3]) - 1) / 2, -1, 1)))
    right, down, ahead = -pose[:3, :3].T @ pose[:3, 3]
    return f": turned by {angle:.1f} degrees, moved right, down and ahead as {right:.2f}, {down:.2f}, {ahead:.2f}"


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
    """Print the matches as JSON, and write them to a file, as the options ask for."""
    from ..matching import encode, to_arrays, to_metadata
    from ..utils.files import write_atomically

    settings = {"model": args.model, "revision": args.revision, "dtype": args.dtype}
    metadata = to_metadata(result, geometry, images, args.images, **settings)
    arrays = to_arrays(result.prediction, geometry)
    if args.json:
        sys.stdout.write(encode(metadata, arrays, ".json").decode())
    if args.save is not None:
        write_atomically(args.save, encode(metadata, arrays, args.save.suffix.lower()))
