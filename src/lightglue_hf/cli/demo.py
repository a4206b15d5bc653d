"""`lightglue-hf demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_model_options, picture, progress, remark, save_picture
from .match import draw, match_pair, report_matches

HELP = "match a stereo pair whose truth is known"
EPILOG = "A motorcycle, twice: real photos with known disparity (Middlebury 2014, in scikit-image)."


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, max_keypoints=1024)
    help_output = "draw the matches (default: demo.png)"
    parser.add_argument("-o", "--output", type=picture, default=Path("demo.png"), metavar="PNG", help=help_output)
    parser.set_defaults(run=run, inliers=False, best=None)


def run(args: argparse.Namespace) -> None:
    """Match a stereo pair whose truth is known, and count what is right."""
    from PIL import Image

    from ..evaluation import match_precision
    from ..utils.optional import import_optional

    left, right, disparity = import_optional("skimage.data", "demo").stereo_motorcycle()
    images = [Image.fromarray(pixels) for pixels in (left, right)]
    remark(args, "A motorcycle, twice: real photos with known disparity (Middlebury 2014, in scikit-image)")
    progress(args, f"loading {args.model}, and matching ...")
    result = match_pair(images, args)
    counts = [len(points) for points in result.prediction[:2]]
    remark(args, f"{left.shape[1]} x {left.shape[0]} pixels, {counts[0]} and {counts[1]} keypoints")
    report_matches(args, result)
    judged = match_precision(*result.prediction.matched, disparity)
    print(
        f"{judged.correct} matches are correct: within 3 px of the truth, of {judged.judged} whose truth is known "
        f"(precision {judged.precision:.3f})"
    )
    save_picture(draw(images, result, args), args.output)
    remark(args, f"wrote {args.output}")
