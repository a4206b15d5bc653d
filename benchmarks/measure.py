"""Contestants side by side: in turns, in one process, each checked before it counts."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .competitors import Contestant, Settings, kept
from .limits import Work, synchronize

Step = tuple[float, Callable[[], Any]]


@dataclass
class Entry:
    """A contestant of a case.

    Args:
        name: in the table.
        load: makes what is timed: calls, and how often each would be made in the whole that the row stands for.
        found: what is compared with the reference, of the outputs of the calls; `None` if there is nothing to compare.
        reference: what must be found; by default what the case's first entry finds.
        dtype: whose measured rates limit it; `None` where none is measured.
        required: the share of the reference that must be kept.
        allowed: so many matches of each pair may differ whatever their share.
        missing: packages that it needs and that are not installed.
        memory: what another process has to know to run it alone once; `None` if memory is not measured.
    """

    name: str
    load: Callable[[], list[Step]]
    found: Callable[[list[Any]], list[frozenset]] | None = None
    reference: list[frozenset] | None = None
    dtype: str | None = None
    required: float = 0.99
    allowed: int = 0
    missing: list[str] = field(default_factory=list)
    memory: dict[str, Any] | None = None


@dataclass
class Case:
    """What is compared under one setting.

    Args:
        key: letter of the table it belongs to.
        setting: in words.
        entries: the first is the baseline of the ratios.
        work: the arithmetic of the row, given the outputs of each entry's calls by name.
        slow: so slow that warming up makes no difference: the checked runs are the first round.
    """

    key: str
    setting: str
    entries: list[Entry]
    work: Callable[[dict[str, list[Any]]], Work | None] | None = None
    slow: bool = False


@dataclass
class Row:
    """A line of a table; times in seconds, spreads are the lowest and highest of the rounds."""

    key: str
    setting: str
    contestant: str
    status: str = "ok"
    rounds: int = 0
    seconds: float | None = None
    seconds_spread: tuple[float, float] | None = None
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None
    share_of_limit: float | None = None
    kept: float | None = None
    required: float | None = None
    peak_bytes: int | None = None
    work: Work | None = None


@dataclass(frozen=True)
class Pace:
    """How long to measure: at least `fewest` rounds, then until `seconds` are over or `most` rounds made."""

    seconds: float
    fewest: int = 2
    most: int = 9


def measure(case: Case, pace: Pace, rates: dict[str, Work], device: str) -> list[Row]:
    """Every entry has its row, also one that is missing, raises or finds something else."""
    rows: dict[str, Row] = {}
    calls: dict[str, list[Step]] = {}
    outputs: dict[str, list[Any]] = {}
    first: dict[str, list[float]] = {}
    start = time.perf_counter()
    reference: list[frozenset] | None = None
    for entry in case.entries:
        row = rows[entry.name] = Row(case.key, case.setting, entry.name)
        if entry.missing:
            row.status = f"not measured: {', '.join(entry.missing)} not installed"
            continue
        try:
            steps = entry.load()
            if case.slow and len(steps) > 2:  # enough to warm up where every call is alike
                steps[0][1]()
            runs = [timed(call, device) for _, call in steps]
            outputs[entry.name] = [output for _, output in runs]
            if case.slow:
                first[entry.name] = [sum(often * run[0] for (often, _), run in zip(steps, runs))]
            if entry.found is not None:
                found = entry.found(outputs[entry.name])
                reference = found if reference is None else reference
                check(row, found, reference if entry.reference is None else entry.reference, entry)
        except Exception as error:  # another project's failure is a line of the table, not the end of it
            row.status = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        calls[entry.name] = steps
    work = case.work(outputs) if case.work is not None else None
    outputs.clear()
    start = start if case.slow else time.perf_counter()
    times = rounds(calls, {name: first.get(name, []) for name in calls}, pace, start, device)
    for entry in case.entries:
        row = rows[entry.name]
        if entry.name in calls:
            row.rounds = len(times[entry.name])
            row.seconds, row.seconds_spread = summary(times[entry.name])
            if case.entries[0].name in calls:
                baseline = times[case.entries[0].name]
                row.ratio, row.ratio_spread = summary([a / b for a, b in zip(baseline, times[entry.name])])
            if work is not None and entry.dtype in rates:
                row.work, row.share_of_limit = work, work.seconds(rates[entry.dtype]) / row.seconds
            if entry.memory is not None:
                row.peak_bytes = peak_memory(entry.memory)
    return list(rows.values())


def check(row: Row, found: list[frozenset], reference: list[frozenset], entry: Entry) -> None:
    """A contestant that finds something else is measured all the same, and its row says so."""
    row.kept, row.required = kept(found, reference), entry.required
    tolerated = row.kept > 0 and all(
        max(len(a), len(b)) - len(a & b) <= entry.allowed for a, b in zip(found, reference)
    )
    if row.kept < entry.required and not tolerated:
        row.status = f"failed: {row.kept:.1%} kept of the reference, {entry.required:.0%} required"


def rounds(
    calls: dict[str, list[Step]], times: dict[str, list[float]], pace: Pace, start: float, device: str
) -> dict[str, list[float]]:
    """The seconds of each contestant in each round, after those there are; within a round each has its turn."""
    while calls:
        done = min(map(len, times.values()))
        if done >= pace.most or (done >= pace.fewest and time.perf_counter() - start > pace.seconds):
            break
        for name, steps in calls.items():
            times[name].append(sum(often * timed(call, device)[0] for often, call in steps))
    return times


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    synchronize(device)
    start = time.perf_counter()
    output = call()
    synchronize(device)
    return time.perf_counter() - start, output


def summary(values: list[float]) -> tuple[float, tuple[float, float]]:
    return statistics.median(values), (min(values), max(values))


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def memory_job(contestant: Contestant, settings: Settings, pixels: Path) -> dict[str, Any]:
    return {
        "contestant": asdict(contestant),
        "settings": {**asdict(settings), "checkpoint": str(settings.checkpoint)},
        "pixels": str(pixels),
    }


def peak_memory(job: dict[str, Any]) -> int | None:
    """Bytes that a call takes beyond the loaded model and its input, in a new process; `None` if not on Linux.

    Raises:
        RuntimeError: the process failed.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", json.dumps(job)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"measuring memory ended with {run.returncode}: {run.stderr[-2000:]}")
    return int(run.stdout.split()[-1])


def run_alone(job: dict[str, Any]) -> int:
    """The peak of resident memory (of a GPU's allocated memory) during one call, less what there was before it."""
    from .competitors import load

    settings = Settings(**{**job["settings"], "checkpoint": Path(job["settings"]["checkpoint"])})
    implementation = load(Contestant(**job["contestant"]), settings)
    pixels = torch.load(job["pixels"], weights_only=True)
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        implementation.match(pixels)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on; on Linux alone
    before = resident("VmRSS")
    implementation.match(pixels)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes that Linux counts under that name for this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(run_alone(json.loads(sys.argv[1])))
