"""`python -m benchmarks.tracking`: points followed through made videos, beside Lucas-Kanade and frame-to-frame SIFT.

The videos are views of a wall of scikit-image's photos, by a camera that moves smoothly; so where each point of a
frame is in every other one is known. Contestants take turns, video by video, and their time is that of the whole way
from a frame in memory to its tracks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from lightglue_hf.evaluation.methods import match_nearest, rootsift
from lightglue_hf.evaluation.metrics import project
from lightglue_hf.geometry import points_inside
from lightglue_hf.utils.optional import import_optional
from lightglue_hf.video import FlowTracker, FrameFeatures, Tracker

from .__main__ import DOCS, quiet
from .contestants import OPENVINO, PYTORCH, TRANSFORMERS, Contestant, Task, exported, load, our_model
from .photos import HEIGHT, WIDTH
from .report import machine, write_docs

POINTS = 512
FRAMES = 111
STARTS, LATER = (0, 10), (30, 100)
NEAR = 2.0  # pixels
GOAL = 15.0  # frames a second, of xfeat on OpenVINO
PAIRS = 3  # of transformers, which take a second each

Followed = list[tuple[np.ndarray, np.ndarray]]
"""Of each frame the ids `(n,)` and positions `(n, 2)` of its points."""


# ---------------------------------------------------------------------------------------------------------------------
# Made videos


class Made(NamedTuple):
    """A video whose truth is known.

    Args:
        frames: `(height, width, 3)` uint8 RGB each.
        views: `(frames, 3, 3)`, take pixels of a frame to those of the wall.
        hidden: of each frame `(height, width)` bool, where something stands before the wall.
    """

    frames: list[np.ndarray]
    views: np.ndarray
    hidden: list[np.ndarray]


TILES = (
    *("astronaut", "coffee", "chelsea"),
    *("rocket", "stereo_motorcycle", "camera"),
    *("immunohistochemistry", "coins", "hubble_deep_field"),
)


def wall() -> np.ndarray:
    """Nine photos of 640 x 480 pixels side by side, `(1440, 1920, 3)` uint8.

    Raises:
        ImportError: scikit-image is not installed.
    """
    data = import_optional("skimage.data", "eval")
    tiles = []
    for name in TILES:
        pixels = getattr(data, name)()
        photo = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")
        shape = max(WIDTH / photo.width, HEIGHT / photo.height)
        photo = photo.resize((round(photo.width * shape), round(photo.height * shape)), Image.Resampling.LANCZOS)
        left, top = (photo.width - WIDTH) // 2, (photo.height - HEIGHT) // 2
        tiles.append(np.asarray(photo.crop((left, top, left + WIDTH, top + HEIGHT))))
    return np.concatenate([np.concatenate(tiles[row : row + 3], 1) for row in (0, 3, 6)])


def view(t: float, phases: np.ndarray, pace: float) -> np.ndarray:
    """`(3, 3)`, from pixels of the frame at a time to those of the wall: a smooth walk about its middle."""
    waves = np.sin(pace * t * np.array([0.022, 0.031, 0.019, 0.027, 0.023, 0.016]) + phases)
    x, y = 960 + 330 * waves[0], 720 + 210 * waves[1]
    angle, zoom = np.radians(14) * waves[2], 1.12 ** waves[3]
    centre = np.array([[1, 0, -(WIDTH - 1) / 2], [0, 1, -(HEIGHT - 1) / 2], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [2.2e-4 * waves[4], 2.2e-4 * waves[5], 1]])
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]]) @ tilt @ centre


def look(canvas: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The frame that a view gives, `(height, width, 3)` float32."""
    cv2 = import_optional("cv2", "eval")
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(canvas, matrix, (WIDTH, HEIGHT), flags=flags).astype(np.float32)


def motion(canvas: np.ndarray, t: int, phases: np.ndarray, rng: np.random.Generator) -> Any:
    return look(canvas, view(t, phases, 1.0)), None


def blur(canvas: np.ndarray, t: int, phases: np.ndarray, rng: np.random.Generator) -> Any:
    """The shutter is open for half of the time from frame to frame, and the camera twice as fast."""
    return np.mean([look(canvas, view(t + share, phases, 2.0)) for share in np.linspace(-0.25, 0.25, 5)], 0), None


def light(canvas: np.ndarray, t: int, phases: np.ndarray, rng: np.random.Generator) -> Any:
    """Exposure goes up and down by a factor of 3, and a lamp wanders."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    lamp = np.exp(-((x - WIDTH * (0.5 + 0.5 * np.sin(0.09 * t))) ** 2 + (y - HEIGHT / 2) ** 2) / (2 * 170**2))
    exposure = 0.75 * 1.75 ** np.sin(0.13 * t)
    return look(canvas, view(t, phases, 1.0)) * exposure * (0.7 + 0.6 * lamp)[..., None], None


def occlusion(canvas: np.ndarray, t: int, phases: np.ndarray, rng: np.random.Generator) -> Any:
    """A disc of 400 pixels of gravel passes from the left to the right in 22 frames, each 40 frames."""
    image = look(canvas, view(t, phases, 1.0))
    place = t % 40 / 22
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    middle = -200 + place * (WIDTH + 400)
    hidden = (x - middle) ** 2 + (y - HEIGHT / 2) ** 2 < 200**2
    gravel = import_optional("skimage.data", "eval").gravel()[:HEIGHT]
    across = np.arange(round(-middle), round(-middle) + WIDTH) % gravel.shape[1]  # moves with the disc
    image[hidden] = gravel[:, across][hidden][:, None]
    return image, hidden


VIDEOS: dict[str, tuple[Callable[..., Any], float]] = {
    "motion": (motion, 1.0),
    "blur": (blur, 2.0),
    "light": (light, 1.0),
    "occlusion": (occlusion, 1.0),
}
"""What makes a frame, and the pace of its views."""


def make(name: str, count: int = FRAMES, seed: int = 0) -> Made:
    """A video, the same each time; with a little noise. Another seed is another walk."""
    canvas = wall()
    render, pace = VIDEOS[name]
    number = list(VIDEOS).index(name)
    rng = np.random.default_rng(number + seed)
    phases = rng.uniform(0, 2 * np.pi, 6)
    frames, hidden = [], []
    for t in range(count):
        image, covered = render(canvas, t, phases, rng)
        noisy = image + 2.5 * rng.standard_normal(image.shape, np.float32)
        frames.append(np.clip(np.round(noisy), 0, 255).astype(np.uint8))
        hidden.append(np.zeros((HEIGHT, WIDTH), bool) if covered is None else covered)
    return Made(frames, np.array([view(t, phases, pace) for t in range(count)]), hidden)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def track_lengths(followed: Followed) -> np.ndarray:
    """In how many frames each track of two or more is seen."""
    _, counts = np.unique(np.concatenate([ids for ids, _ in followed]), return_counts=True)
    return counts[counts > 1]


def kept(made: Made, followed: Followed, later: int, starts: tuple[int, ...] = STARTS) -> tuple[int, int]:
    """Of the points of some frames, how many are near their true place so many frames later.

    Returns:
        How many are, and how many could be: those that are in view and not hidden, then as at the start.
    """
    right = possible = 0
    for start in starts:
        if start + later >= len(followed):
            continue
        ids, points = followed[start]
        there = project(np.linalg.inv(made.views[start + later]) @ made.views[start], points)
        counts = ~covered(made.hidden[start], points) & points_inside(there, (HEIGHT, WIDTH))
        counts[counts] &= ~covered(made.hidden[start + later], there[counts])
        found = dict(zip(followed[start + later][0].tolist(), followed[start + later][1]))
        possible += int(counts.sum())
        for id, place in zip(ids[counts].tolist(), there[counts]):
            right += id in found and float(np.linalg.norm(found[id] - place)) <= NEAR
    return right, possible


def covered(hidden: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points `(n, 2)` of a frame lie on what stands before the wall."""
    x, y = np.clip(np.rint(points), 0, (WIDTH - 1, HEIGHT - 1)).astype(int).T
    return hidden[y, x]


# ---------------------------------------------------------------------------------------------------------------------
# Contestants: a function that makes what takes the frames of one video in turn

Follow = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def lucas_kanade() -> Follow:
    """OpenCV's, with its usual settings, forward and backward; new corners when a fifth of the points is gone."""
    cv2 = import_optional("cv2", "eval")
    settings: dict[str, Any] = {"winSize": (21, 21), "maxLevel": 3}
    before, points, ids, next_id = None, np.zeros((0, 2), np.float32), np.zeros(0, np.int64), 0

    def follow(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal before, points, ids, next_id
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if before is not None and len(points):
            there, found, _ = cv2.calcOpticalFlowPyrLK(before, grey, points, None, **settings)
            back, returned, _ = cv2.calcOpticalFlowPyrLK(grey, before, there, None, **settings)
            keep = (found[:, 0] == 1) & (returned[:, 0] == 1) & (np.linalg.norm(points - back, axis=1) < 1)
            keep &= points_inside(there, (HEIGHT, WIDTH))
            points, ids = there[keep], ids[keep]
        if len(points) < 0.8 * POINTS:
            free = np.full(grey.shape, 255, np.uint8)
            for x, y in np.rint(points).astype(int).tolist():
                cv2.circle(free, (x, y), 8, 0, -1)
            corners = cv2.goodFeaturesToTrack(grey, POINTS - len(points), 0.01, 8, mask=free)
            corners = np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2)
            points = np.concatenate([points, corners])
            ids = np.concatenate([ids, np.arange(next_id, next_id + len(corners))])
            next_id += len(corners)
        before = grey
        return ids, points

    return follow


def sift() -> Follow:
    """Each frame's RootSIFT matched with those of the frame before, by the ratio test."""
    points, descriptors = np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    ids, next_id = np.zeros(0, np.int64), 0

    def follow(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal points, descriptors, ids, next_id
        found, described = rootsift(image, POINTS)
        matches = match_nearest(descriptors, described, ratio=0.8)
        now = np.full(len(found), -1, np.int64)
        now[matches[:, 1]] = ids[matches[:, 0]]
        new = np.flatnonzero(now < 0)
        now[new] = np.arange(next_id, next_id + len(new))
        next_id += len(new)
        points, descriptors, ids = found, described, now
        return ids, points

    return follow


def by_features(features: FrameFeatures) -> Follow:
    """Each frame's features, matched with those of the frames before."""
    tracker = Tracker(features.model)

    def follow(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tracks = tracker.update(features(image))
        return tracks.ids, tracks.positions

    return follow


def by_flow(features: FrameFeatures) -> Follow:
    """What `lightglue-hf track` does."""
    tracker = FlowTracker(features)

    def follow(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tracks = tracker.update(image)
        return tracks.ids, tracks.positions

    return follow


class Parts:
    """Graphs of a detector and of a matcher, as one model."""

    def __init__(self, detector: Any, matcher: Any) -> None:
        self.engine, self.axes = detector.engine, matcher.axes
        self.extract_features, self.match_features = detector.extract_features, matcher.match_features


@dataclass
class Entry:
    """A row of the table."""

    name: str
    follow: Callable[[], Follow]
    speeds: list[float] = field(default_factory=list)  # frames a second, of each video
    lengths: list[np.ndarray] = field(default_factory=list)
    kept: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)  # by video and frames later

    def share(self, later: int, video: str | None = None) -> str:
        """Of the points that could be kept, in percent; "-" if there are none."""
        counts = np.array([n for (name, after), n in self.kept.items() if after == later and video in (None, name)])
        right, possible = counts.sum(0)
        return f"{right / possible:.0%}" if possible else "-"


def entries(scratch: Path) -> Iterator[Entry]:
    yield Entry("Lucas-Kanade (OpenCV)", lucas_kanade)
    yield Entry("RootSIFT, frame to frame", sift)
    for checkpoint in ("tiny", "xfeat"):
        task = Task(checkpoint, POINTS, scratch)
        processor = task.processor()
        processor.do_resize, processor.size = True, {"height": HEIGHT, "width": WIDTH}
        for contestant in (Contestant(PYTORCH), Contestant(OPENVINO), Contestant(OPENVINO, "bfloat16")):
            if missing := contestant.missing():
                print(f"{checkpoint}, {contestant.name}: not measured, {', '.join(missing)} not installed")
                continue
            if contestant.engine == PYTORCH:
                model = our_model(task)
            else:
                model = Parts(exported(contestant, task, "detector"), exported(contestant, task, "matcher"))
            features = FrameFeatures(model, processor)
            yield Entry(f"{checkpoint}, {contestant.name}", partial(by_flow, features))
            if contestant.engine == PYTORCH:
                yield Entry(f"{checkpoint}, {contestant.name}, features of each frame", partial(by_features, features))


def measure(rows: list[Entry], videos: list[str], count: int, seed: int = 0) -> None:
    """All contestants on all videos, in turns."""
    for video in videos:
        made = make(video, count, seed)
        for entry in rows:
            follow = entry.follow()
            for frame in made.frames[:3]:  # graphs are compiled
                follow(frame)
            follow = entry.follow()
            start = time.perf_counter()
            followed = [follow(frame) for frame in made.frames]
            entry.speeds.append(count / (time.perf_counter() - start))
            entry.lengths.append(track_lengths(followed))
            for later in LATER:
                entry.kept[video, later] = kept(made, followed, later)
            shares = ", ".join(f"{entry.share(later, video)} after {later}" for later in LATER)
            print(f"{video}: {entry.name}: {entry.speeds[-1]:.1f} frames per second, {shares}", flush=True)


def transformers_pair(scratch: Path) -> float | None:
    """Seconds that a pair of frames takes transformers' SuperPoint + LightGlue, at best of a few."""
    task = Task("superpoint", POINTS, scratch)
    stock = load(Contestant(TRANSFORMERS), task)
    made = make("motion", PAIRS + 1)
    pixels = task.processor()(
        [[Image.fromarray(made.frames[i]), Image.fromarray(made.frames[i + 1])] for i in range(PAIRS)],
        size={"height": HEIGHT, "width": WIDTH},
        return_tensors="pt",
    )["pixel_values"]
    times = []
    for pair in (pixels[:1], *pixels.split(1)):
        start = time.perf_counter()
        stock.match(pair)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def markdown(rows: list[Entry], videos: list[str], pair: float | None, minutes: float) -> str:
    about = ", ".join(f"{name}: {value}" for name, value in machine("cpu").items())
    heads = ["", "frames a second", "times transformers' pair", "mean track length"]
    heads += [f"within {NEAR:g} px after {later}" for later in LATER] + ["goal"]
    lines = [f"{about}.", f"The run took {minutes:.1f} minutes."]
    if pair is not None:
        lines[-1] += f" A pair took transformers' SuperPoint + LightGlue {pair:.2f} s."
    lines += ["", f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 2) + "---|"]
    for entry in rows:
        speed = statistics.median(entry.speeds)
        spread = f"{speed:.1f} ({min(entry.speeds):.1f} - {max(entry.speeds):.1f})"
        times = "" if pair is None else f"{speed * pair:.1f}"
        goal = ""
        if entry.name == f"xfeat, {OPENVINO}":
            goal = f"at least {GOAL:g} frames a second: {'met' if speed >= GOAL else '**missed**'}"
        shares = [entry.share(later) for later in LATER]
        length = f"{np.concatenate(entry.lengths).mean():.1f}"
        lines.append(f"| {' | '.join([entry.name, spread, times, length, *shares, goal])} |")
    lines += ["", f"Within {NEAR:g} px after {' and '.join(map(str, LATER))} frames, video by video:", ""]
    lines += [f"| | {' | '.join(videos)} |", "|---|" + "---:|" * len(videos)]
    for entry in rows:
        cells = [", ".join(f"{entry.share(later, video)}" for later in LATER) for video in videos]
        lines.append(f"| {entry.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one video of 41 frames")
    parser.add_argument("--seed", type=int, default=0, help="another is of other walks than the page's")
    parser.add_argument("--only", default="", help="contestants to measure: those whose name has this in it")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark-results"), help="directory to write to")
    parser.add_argument("--write-docs", action="store_true", help="also renew the tables of docs/tracking.md")
    options = parser.parse_args(arguments)
    if options.write_docs and (options.quick or options.only or options.seed):
        parser.error("--write-docs renews the whole page: leave out --only, --quick and --seed")
    quiet()
    torch.set_grad_enabled(False)
    started = time.perf_counter()
    videos, count = (["motion"], 41) if options.quick else (list(VIDEOS), FRAMES)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [entry for entry in entries(Path(scratch)) if options.only in entry.name]
        pair = None if options.quick or options.only else transformers_pair(Path(scratch))
        measure(rows, videos, count, options.seed)
    text = markdown(rows, videos, pair, (time.perf_counter() - started) / 60)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "tracking.md").write_text(text)
    figures = [{"name": entry.name, "speeds": entry.speeds, "kept": list(entry.kept.items())} for entry in rows]
    (options.output / "tracking.json").write_text(json.dumps({"pair": pair, "rows": figures}, indent=1) + "\n")
    print(f"\n{text}\nWritten to {options.output}: tracking.md, tracking.json")
    if options.write_docs:
        write_docs(DOCS / "tracking.md", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
