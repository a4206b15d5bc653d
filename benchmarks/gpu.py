"""A GPU, without network: `python -m benchmarks.gpu` runs the tests marked `gpu`, then measures, in six minutes.

`python -m benchmarks.gpu --pack` first writes what it needs into build/gpu, where the published weights can be had:
their tensors in float16, and photos with their ground truth. Beside those it needs PyTorch, transformers, scikit-image
and pytest, and installs nothing. `--device cpu --quick` tries all of it, but for the tests, on one small batch.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import lightglue_hf
from lightglue_hf.evaluation.datasets import Disparity, Homography, Pair

from .__main__ import quiet
from .contestants import ALL_LAYERS, DTYPES, KORNIA, PYTORCH, TRANSFORMERS, Contestant, Task, load, our_model
from .limits import Work, measured_rates, work_of
from .measure import Case, Entry, Goal, Loaded, Pace, Row, measure
from .photos import HEIGHT, WIDTH, pixel_values, quality, scenes
from .report import machine, table

PACKED = Path(__file__).parent.parent / "build" / "gpu"
CHECKPOINTS, SCENES = ("superpoint", "xfeat"), 4
TESTS = ("tests/test_gpu.py", "tests/data/test_homographies.py")
MINUTES, MINUTES_OF_TESTS = 6.0, 2.0
PER_SECOND, X_TRANSFORMERS = "pairs a second", f"times {TRANSFORMERS}"
COLUMNS = ("time", PER_SECOND, X_TRANSFORMERS, "correct", "limit")
BASELINE = f"{TRANSFORMERS}, pair by pair"


@dataclass(frozen=True)
class Plan:
    """What is measured, the most important first: it may be cut short.

    Args:
        batches: pairs at once.
        compiled: those of them for which the model is compiled.
        precisions: of ours, under autocast.
        keypoints: of each image at most.
    """

    batches: tuple[int, ...] = (32, 1, 8, 64)
    compiled: tuple[int, ...] = (32, 1)
    precisions: tuple[str, ...] = ("float16", "bfloat16")
    keypoints: int = 1024
    height: int = HEIGHT
    width: int = WIDTH


QUICK = Plan((2,), (), ("bfloat16",), 256, 240, 320)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--pack", action="store_true", help=f"write what is needed to {PACKED.name}, and nothing else")
    parser.add_argument("--quick", action="store_true", help="one small batch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("-o", "--output", type=Path, default=Path(os.environ.get("OUT", "benchmark-results")))
    options = parser.parse_args(arguments)
    quiet()
    if options.pack:
        pack()
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here: --device cpu --quick tries the script")
    end = time.perf_counter() + 60 * MINUTES
    tests = run_tests() if options.device == "cuda" else "not run on a CPU"
    print(tests, flush=True)
    plan = QUICK if options.quick else Plan()
    rates = {name: measured_rates(DTYPES[name], options.device) for name in ("float32", *plan.precisions)}
    with tempfile.TemporaryDirectory() as scratch:
        rows = run(Bench(plan, Path(scratch), options.device), rates, end)
    about = machine(options.device)
    lines = [", ".join(f"{name}: {value}" for name, value in about.items()) + ".", "", f"Tests: {tests}", ""]
    lines += [f"{name}: linear layer {rate.matmuls / 1e12:.1f} TFLOP/s" for name, rate in rates.items()]
    text = "\n\n".join(["\n".join(lines), "\n".join(table(rows, COLUMNS))]) + "\n"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu.md").write_text(text)
    results = {"machine": about, "tests": tests, "rates": rates, "rows": [asdict(row) for row in rows]}
    (options.output / "gpu.json").write_text(json.dumps(results, indent=1, default=asdict) + "\n")
    print(text)
    return 0


def run_tests() -> str:
    """The last line of pytest's, of the tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *TESTS]
    try:
        done = subprocess.run(
            command, cwd=PACKED.parent.parent, capture_output=True, text=True, timeout=60 * MINUTES_OF_TESTS
        )
    except subprocess.TimeoutExpired:
        return f"not done after {MINUTES_OF_TESTS:g} minutes"
    lines = done.stdout.splitlines() or done.stderr.splitlines() or ["pytest said nothing"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "; ".join([*failed, lines[-1]])


# ---------------------------------------------------------------------------------------------------------------------
# What is carried along


def pack() -> None:
    """Weights in float16 and photos, in build/gpu."""
    shutil.rmtree(PACKED, ignore_errors=True)
    for name in CHECKPOINTS:
        source, directory = lightglue_hf.checkpoint(name), PACKED / name
        directory.mkdir(parents=True)
        for file in ("config.json", "preprocessor_config.json"):
            shutil.copy(source / file, directory)
        tensors = load_file(source / "model.safetensors")
        save_file(
            {key: tensor.half() for key, tensor in tensors.items()}, directory / "model.safetensors", {"format": "pt"}
        )
    arrays = {}
    for i, pair in enumerate(scenes(SCENES)):
        arrays |= {f"{i}-{side}": np.asarray(image) for side, image in enumerate(pair.images)}
        assert isinstance(pair.truth, Disparity | Homography)
        arrays[f"{i}-truth"] = np.asarray(pair.truth[0], np.float32)
    np.savez_compressed(PACKED / "photos.npz", **arrays)
    size = sum(path.stat().st_size for path in PACKED.rglob("*") if path.is_file())
    print(f"{PACKED}: {size / 2**20:.1f} MiB")


def packed_scenes() -> list[Pair]:
    with np.load(PACKED / "photos.npz") as arrays:
        return [
            Pair(
                f"{i}",
                tuple(Image.fromarray(arrays[f"{i}-{side}"]) for side in (0, 1)),  # type: ignore[arg-type]
                (Homography if i else Disparity)(arrays[f"{i}-truth"].astype(float)),
            )
            for i in range(SCENES)
        ]


# ---------------------------------------------------------------------------------------------------------------------
# Rows


class Bench:
    """Tasks and pixels of a device."""

    def __init__(self, plan: Plan, scratch: Path, device: str) -> None:
        self.plan, self.scratch, self.device = plan, scratch, device
        self.scenes = packed_scenes()

    def task(self, checkpoint: str) -> Task:
        plan = self.plan
        source = str(PACKED / checkpoint)
        return Task(source, plan.keypoints, self.scratch, plan.height, plan.width, self.device)

    def pixels(self, checkpoint: str, count: int) -> Tensor:
        """`(count, 2, 3, height, width)` on the device: the scenes, over and over."""
        pairs = [pair.images for pair in self.scenes]
        pixels = pixel_values(pairs, self.task(checkpoint).processor(), self.plan.height, self.plan.width)
        return pixels[torch.arange(count) % len(pairs)].to(self.device)


def run(bench: Bench, rates: dict[str, Work], end: float) -> list[Row]:
    rows = []
    for case in cases(bench):
        if time.perf_counter() > end - 20:
            rows.append(Row(case.table, case.setting, "all", "not measured: the time was over"))
            continue
        measured = measure(case, Pace(2 if bench.device == "cuda" else 0, 1, 9), rates, bench.device)
        for row, entry in zip(measured, case.entries):
            if "seconds" in row.figures:
                row.figures[PER_SECOND] = 1 / row.figures["seconds"]
            assert row.contestant == entry.name
        print("\n".join(table(measured, COLUMNS)), flush=True)
        rows += measured
    return rows


def cases(bench: Bench) -> Iterator[Case]:
    plan = bench.plan
    for checkpoint in CHECKPOINTS:
        for batch in plan.batches:
            entries = [replace(entry(bench, "superpoint", Contestant(TRANSFORMERS), 1), name=BASELINE)]
            entries.append(entry(bench, "superpoint", Contestant(TRANSFORMERS, form=ALL_LAYERS), batch))
            if checkpoint == "superpoint":
                entries.append(entry(bench, checkpoint, Contestant(KORNIA), batch))
            for precision in plan.precisions:
                entries.append(entry(bench, checkpoint, Contestant(PYTORCH, precision), batch))
                entries.append(entry(bench, checkpoint, Contestant(PYTORCH, precision, ALL_LAYERS), batch))
                if batch in plan.compiled:
                    compiled = Contestant(PYTORCH, precision, ALL_LAYERS, compiled=True)
                    entries.append(entry(bench, checkpoint, compiled, batch))
            yield Case("gpu", f"{checkpoint}, {batch} pairs", entries, {X_TRANSFORMERS: BASELINE})
            if batch == plan.batches[0]:
                yield matcher_case(bench, checkpoint, batch)


def entry(bench: Bench, checkpoint: str, contestant: Contestant, batch: int) -> Entry:
    def loaded() -> Loaded:
        implementation = load(contestant, bench.task(checkpoint))
        pixels = bench.pixels(checkpoint, batch)

        def judge() -> dict[str, float]:
            matched = implementation.matched(implementation.match(pixels))
            return quality(bench.scenes[:1], lambda i: matched[i], bench.plan.height, bench.plan.width)

        return Loaded([(1, lambda: implementation.match(pixels))] * 2, judge)

    goals = (Goal(X_TRANSFORMERS, 10),) if contestant.compiled and batch == 32 else ()
    return Entry(contestant.name, loaded, pairs=2 * batch, goals=goals, missing=contestant.missing())


def matcher_case(bench: Bench, checkpoint: str, batch: int) -> Case:
    """The matcher alone through all layers, as a share of what linear layers reach on this device."""
    task = bench.task(checkpoint)
    with torch.no_grad():
        model = our_model(task, ALL_LAYERS)
        features = model.extract_features(bench.pixels(checkpoint, batch))
    work = work_of(partial(model.match_features, features))

    def loaded(precision: str, compiled: bool) -> Loaded:
        runner = load(Contestant(PYTORCH, precision, ALL_LAYERS), task)
        match: Callable[..., Any] = runner.model.match_features
        if compiled:
            match = torch.compile(match, mode="reduce-overhead", dynamic=False)
        return Loaded([(1, lambda: runner.run(match, features))])

    entries = [
        Entry(
            f"{PYTORCH}, {precision}{', compiled' * compiled}",
            partial(loaded, precision, compiled),
            pairs=batch,
            work=work,
            dtype=precision,
            goals=(Goal("limit", 0.4),) if compiled else (),
        )
        for precision in bench.plan.precisions
        for compiled in (False, True)
        if not compiled or batch in bench.plan.compiled
    ]
    return Case("gpu", f"{checkpoint}'s matcher alone, {batch} pairs", entries)


if __name__ == "__main__":
    raise SystemExit(main())
