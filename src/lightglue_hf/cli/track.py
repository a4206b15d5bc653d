"""`lightglue-hf track`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError
from .arguments import add_model_options, count, number, refuse_overwriting, remark, target
from .collection import hdf5, load_openvino, natural
from .errors import reading
from .models import load_matcher

if TYPE_CHECKING:
    import numpy as np

    from ..video import FrameFeatures, Frames, Sighting, Tracks

HELP = "follow points through a video, or find a plane in every frame"
EPILOG = (
    "A camera is its number or device; Control-C, or q in the window, ends it. A folder is a video of its pictures, "
    "in the order of their names. docs/tracking.md describes what is written."
)
RECENT = 20
"""Frames whose time says how many there are a second."""

LONGEST_EDGE = 640


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="VIDEO|CAMERA|FOLDER", help="what to track in")
    parser.add_argument("-o", "--output", type=video_file, metavar="MP4", help="video to write, with the tracks drawn")
    parser.add_argument("--save", type=hdf5, metavar="H5", help="write where every point was in every frame")
    parser.add_argument("--show", action="store_true", help="show the frames in a window as they are done")
    help_template = "find this plane (a page, a poster, the front of a box) in every frame, instead of points"
    parser.add_argument("--template", metavar="PHOTO", help=help_template)
    add_model_options(parser, max_keypoints=512, longest_edge=LONGEST_EDGE, threshold=False)
    help_engine = "compute by PyTorch (default) or by OpenVINO"
    parser.add_argument("--engine", choices=("torch", "openvino"), default="torch", help=help_engine)
    help_every = "look for new and lost points in every N-th frame (default: 5); between, points go by optical flow"
    parser.add_argument("--every", type=count, default=5, metavar="N", help=help_every)
    help_window = "re-find a lost point within N frames, or never (default: 60)"
    parser.add_argument("--window", type=natural, default=60, metavar="N", help=help_window)
    parser.add_argument("--trail", type=count, default=15, metavar="N", help="frames of a drawn trail (default: 15)")
    parser.add_argument("--max-frames", type=count, metavar="N", help="stop after N frames")
    parser.add_argument("--rate", type=rate, default=25.0, metavar="R", help="of a folder, a second (default: 25)")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON, instead of words")
    parser.set_defaults(run=run, threshold=None, longest_edge=None)


def video_file(text: str) -> Path:
    return target(text, {".mp4", ".mkv", ".mov"}, ".mp4, .mkv or .mov")


def rate(text: str) -> float:
    return number(text, float, lambda value: 0.01 <= value <= 1000, "a number from 0.01 to 1000")


def run(args: argparse.Namespace) -> None:
    """Track, and print what was found."""
    from ..video import FrameFeatures, open_frames

    refuse_overwriting([args.source, *([args.template] if args.template else [])], args.output, args.save)
    with open_frames(args.source, args.rate) as frames:
        processor, model = load_for_frames(args, frames.size)
        features = FrameFeatures(model, processor)
        mode = FindPlane(args, features) if args.template else FollowPoints(args, features)
        frames_done, seconds = go_through(frames, mode, features, args)
    summary = {"frames": frames_done, "frames_per_second": round(frames_done / seconds, 2)} | mode.summary()
    print(json.dumps(summary) if args.json else f"{summary['frames_per_second']} frames per second: {mode.text()}")
    for path in filter(None, (args.output, args.save)):
        remark(args, f"wrote {path}")


def load_for_frames(args: argparse.Namespace, size: tuple[int, int]) -> tuple[Any, Any]:
    """The processor and the model that the options ask for; on OpenVINO, graphs of the very size of the frames."""
    from ..geometry import resized_shape

    height, width = resized_shape(*size, {"longest_edge": args.longest_edge or LONGEST_EDGE})
    if args.engine == "openvino":
        processor, model = load_openvino(args, adaptive=True, batch_size=1, height=height, width=width)
    else:
        processor, model = load_matcher(args.model, args)
    given = hasattr(model, "engine") and getattr(model, "_export_directory", None) is None
    if given and "height" in processor.size:  # made before, for images of one size
        if args.longest_edge:
            made = "{height} x {width}".format(**processor.size)
            raise InputError(f"{args.model} was exported for {made} pixels: export it again")
        return processor, model
    processor.do_resize, processor.size = True, {"height": height, "width": width}
    return processor, model


def settings_of(args: argparse.Namespace, features: FrameFeatures) -> dict[str, Any]:
    """What makes tracks.h5."""
    from ..collection.settings import feature_settings, match_settings

    own = feature_settings(features.model, features.processor, args.model) | {"orientation": "upright"}
    tracking = {} if args.template else {"window": args.window, "every": args.every}
    return match_settings(features.model, own, args.model) | tracking


def go_through(frames: Frames, mode: Any, features: FrameFeatures, args: argparse.Namespace) -> tuple[int, float]:
    """Do what the options ask for with every frame; how many there were, and the seconds it took."""
    from ..video import draw_text, writing_tracks, writing_video
    from ..video.window import showing

    done, now = 0, time.perf_counter()
    start, times = now, deque([now], maxlen=RECENT + 1)
    with ExitStack() as stack:
        save = write = show = None
        if args.save:
            settings = settings_of(args, features)
            save = stack.enter_context(writing_tracks(args.save, frames.size, settings, mode.template_size))
        if args.output:
            write = stack.enter_context(writing_video(args.output, frames.size, frames.rate))
        if args.show:
            show = stack.enter_context(showing(f"lightglue-hf track {args.source}"))
        stopped = stack.enter_context(control_c_stops(frames.live))
        for frame in islice(frames, args.max_frames):
            seen = mode.look(frame.image)
            done += 1
            times.append(time.perf_counter())
            speed = f"{(len(times) - 1) / (times[-1] - times[0]):.1f} frames per second"
            if save:
                save(frame.time, **mode.columns(seen))
            picture = frame.image
            if write or show:
                picture = draw_text(mode.draw(frame.image, seen), f"{speed}, {mode.said(seen)}")
            if write:
                write(picture, frame.time)
            tell(args, f"frame {done}{f' of {frames.count}' if frames.count else ''}, {speed}, {mode.said(seen)}")
            if (show and not show(picture)) or stopped():
                break
    if sys.stderr.isatty() and not args.quiet:
        print(file=sys.stderr)
    return done, max(time.perf_counter() - start, 1e-9)


def tell(args: argparse.Namespace, text: str) -> None:
    """What is being done, on one line, for somebody who watches."""
    if sys.stderr.isatty() and not args.quiet:
        print(f"\r{text:<78}", end="", file=sys.stderr, flush=True)


@contextmanager
def control_c_stops(live: bool) -> Iterator[Callable[[], bool]]:
    """Whether Control-C was pressed: a camera has no other end. A second one interrupts, as it does with a video."""
    pressed = False
    if not live or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def press(*_: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------------------------------------------------
# What is looked for in a frame, and what is said, drawn and saved of it


class FollowPoints:
    """Points, each on its track."""

    template_size = None

    def __init__(self, args: argparse.Namespace, features: FrameFeatures) -> None:
        from ..video import FlowTracker, Trails

        self.tracker, self.trails = FlowTracker(features, args.window, args.every), Trails(args.trail)
        self.tracks = self.points = self.keyframes = 0  # tracks of two frames or more, and points on those

    def look(self, image: np.ndarray) -> Tracks:
        tracks = self.tracker.update(image)
        second = int((tracks.ages == 2).sum())
        self.tracks += second
        self.points += int((tracks.ages > 1).sum()) + second
        self.keyframes += tracks.keyframe
        return tracks

    def columns(self, seen: Tracks) -> dict[str, Any]:
        return {"tracks": seen}

    def draw(self, image: np.ndarray, seen: Tracks) -> np.ndarray:
        return self.trails.draw(image, seen)

    def said(self, seen: Tracks) -> str:
        return f"{int((seen.ages > 1).sum())} points"

    def summary(self) -> dict[str, Any]:
        mean = round(self.points / self.tracks, 2) if self.tracks else 0.0
        return {"tracks": self.tracks, "mean_track_length": mean, "keyframes": self.keyframes}

    def text(self) -> str:
        found = self.summary()
        return f"{self.tracks} tracks of two frames or more, {found['mean_track_length']} frames each on average"


class FindPlane:
    """The plane of a picture."""

    def __init__(self, args: argparse.Namespace, features: FrameFeatures) -> None:
        from ..images import load_image
        from ..video import PlaneFinder

        with reading():
            template = load_image(args.template)
        found = features.undistorted(template)
        if found.mask is not None and not found.mask.any():
            raise InputError(f"{args.template}: nothing stands out in it, by which it could be found")
        self.features, self.finder = features, PlaneFinder(features.model, found)
        self.template_size = template.height, template.width
        self.frames = self.found = 0

    def look(self, image: np.ndarray) -> Sighting:
        from ..video import in_picture

        sighting = self.finder.find(in_picture(self.features(image), image.shape[:2]))
        self.frames += 1
        self.found += sighting.outline is not None
        return sighting

    def columns(self, seen: Sighting) -> dict[str, Any]:
        return {"homography": seen.homography}

    def draw(self, image: np.ndarray, seen: Sighting) -> np.ndarray:
        from ..video import draw_outline

        return draw_outline(image, seen.outline)

    def said(self, seen: Sighting) -> str:
        return "not found" if seen.outline is None else f"found, {seen.inliers} points"

    def summary(self) -> dict[str, Any]:
        return {"found": self.found}

    def text(self) -> str:
        return f"found in {self.found} of {self.frames} frames"
