"""`lightglue-hf demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_model_options, picture
from .match import draw, match_pair, report

HELP = "match a stereo pair whose truth is known, with 1024 keypoints unless told otherwise"
EPILOG = "Without options: 1024 keypoints."


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("-o", "--output", type=picture, default=Path("demo.png"), metavar="PNG")
    parser.set_defaults(run=run, max_keypoints=1024)


def run(args: argparse.Namespace) -> None:
    """Match a stereo pair whose truth is known, and count what is right."""
    from PIL import Image

    from ..evaluation import match_precision

    try:
        from skimage.data import stereo_motorcycle
    except ImportError as error:
        raise ImportError("The demonstration needs scikit-image: install lightglue-hf[demo].") from error
    left, right, disparity = stereo_motorcycle()
    images = [Image.fromarray(pixels) for pixels in (left, right)]
    print("A motorcycle, twice: real photos with known disparity (Middlebury 2014, in scikit-image)")
    result = match_pair(images, args)
    print(f"{left.shape[1]} x {left.shape[0]} pixels, {result.found[0]} and {result.found[1]} keypoints")
    report(result, args)
    judged = match_precision(result.keypoints0, result.keypoints1, disparity)
    print(
        f"{judged.correct} matches are correct: within 3 px of the truth, of {judged.judged} whose truth is known "
        f"(precision {judged.precision:.3f})"
    )
    draw(images, result, args.output)
