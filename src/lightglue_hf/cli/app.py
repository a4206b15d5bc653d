"""`lightglue-hf app`."""

from __future__ import annotations

import argparse
import threading
from functools import partial

from .arguments import add_model_options, count, log, number
from .models import load_matcher

HELP = "open a page in the browser: two photos, sliders for the settings, and the matches"
EPILOG = (
    "It listens on this machine alone unless --host says otherwise, and sends nothing anywhere; only a published "
    "checkpoint is fetched when it is first used. Ctrl-C ends it."
)


def port(text: str) -> int:
    return number(text, int, lambda value: 0 < value < 65536, "a port, from 1 to 65535")


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, photos=False, threshold=False)
    help_host = "address to listen at; 0.0.0.0 lets everybody in who can reach this machine (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=help_host)
    parser.add_argument("--port", type=port, default=7860, metavar="N", help="port to listen at (default: 7860)")
    help_megabytes = "largest file of a photo, in MB (default: 25)"
    parser.add_argument("--max-megabytes", type=count, default=25, metavar="N", help=help_megabytes)
    help_megapixels = "largest photo, in millions of pixels (default: 50)"
    parser.add_argument("--max-megapixels", type=count, default=50, metavar="N", help=help_megapixels)
    help_tiled = "most that is searched in tiles for a pair, turned photos again, in millions of pixels (default: 100)"
    parser.add_argument("--max-tiled-megapixels", type=count, default=100, metavar="N", help=help_tiled)
    help_waiting = "clicks that may wait; one is worked at (default: 16)"
    parser.add_argument("--max-waiting", type=count, default=16, metavar="N", help=help_waiting)
    parser.set_defaults(run=run, max_keypoints=None, threshold=None)


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    from ..app import Limits, build, serve
    from ..images import allow_pixels

    allow_pixels(args.max_megapixels * 1_000_000)
    limits = Limits(args.max_megabytes, args.max_megapixels, args.max_waiting, args.max_tiled_megapixels)
    page = build(partial(load_matcher, args=args), args.model, limits)
    try:
        print(f"open {serve(page, args.host, args.port, limits)}", flush=True)
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            log(args, f"everybody who can reach {args.host} can use it")
        threading.Event().wait()
    finally:
        page.close(verbose=False)
