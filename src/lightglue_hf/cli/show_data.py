"""`lightglue-hf show-data`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import count, from_zero, picture, progress, remark, save_picture, share, side

HELP = "draw pairs of procedural images with their true matches and layers, as the training sees them"
EPILOG = None


def configure(parser: argparse.ArgumentParser) -> None:
    help_output = "picture to write (default: grid.png)"
    parser.add_argument("-o", "--output", type=picture, default=Path("grid.png"), metavar="PNG", help=help_output)
    parser.add_argument("--pairs", type=count, default=6, metavar="N", help="rows (default: 6)")
    parser.add_argument("--seed", type=from_zero, default=0, metavar="N", help="of the first pair (default: 0)")
    help_planes = "share of pairs of several planes (default: 0.5)"
    parser.add_argument("--multi-plane", type=share, default=0.5, metavar="P", help=help_planes)
    parser.add_argument("--height", type=side, default=192, metavar="N", help="of a view, in pixels (default: 192)")
    parser.add_argument("--width", type=side, default=256, metavar="N", help="of a view, in pixels (default: 256)")
    parser.add_argument("--legend", action=argparse.BooleanOptionalAction, default=True, help="below (default: yes)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw pairs as the training sees them: the strongest corners and their true matches."""
    from ..data.homographies import ground_truth_matches, sample_pairs
    from ..data.textures import render_textures
    from ..training import strongest_corners
    from ..visualization import draw_pairs

    progress(args, f"rendering {args.pairs} pairs ...")
    canvases = render_textures(2 * args.pairs, 2 * args.height, 2 * args.width, args.seed)
    seeds = range(args.seed, args.seed + args.pairs)
    pairs = sample_pairs(canvases, seeds, args.height, args.width, multi_plane=args.multi_plane)
    points, responses = (found.unflatten(0, (-1, 2)) for found in strongest_corners(pairs.clean.flatten(0, 1), 64))
    matches = ground_truth_matches(points, responses > 0, pairs.homographies, pairs.layers)
    save_picture(draw_pairs(pairs, points, matches, legend=args.legend), args.output)
    remark(args, f"wrote {args.output}")
