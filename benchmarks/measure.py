"""Contestants side by side: in turns, in one process, each judged by what it finds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .limits import Work, synchronize

WARM_UP = 3  # steps: where there are many they are alike
Step = tuple[float, Callable[[], Any]]
"""How often a call is made in the whole that the row stands for, and the call."""


class Goal(NamedTuple):
    """A bound on one of a row's figures.

    Args:
        figure: its name.
        bound: that it is to reach; or, `at_most`, not to exceed.
    """

    figure: str
    bound: float
    at_most: bool = False

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass
class Entry:
    """A contestant of a case.

    Args:
        name: in the table.
        load: makes what is timed (none for what is only judged), and what gives more figures of it.
        pairs: (or images) of a round: times are per each.
        work: the arithmetic of a round; `None` where no limit is to be known.
        dtype: whose measured rates limit it.
        kept_of: the entry whose correct matches are to be kept.
        goals: of the row.
        missing: packages that it needs and that are not installed.
    """

    name: str
    load: Callable[[], "Loaded"]
    pairs: float = 1
    work: Work | None = None
    dtype: str | None = None
    kept_of: str | None = None
    goals: tuple[Goal, ...] = ()
    missing: list[str] = field(default_factory=list)


class Loaded(NamedTuple):
    """What is timed, and what judges it afterwards: figures by name."""

    steps: list[Step]
    judge: Callable[[], dict[str, float]] = dict


@dataclass
class Case:
    """What is compared under one setting.

    Args:
        table: key of the table it belongs to.
        setting: in words.
        entries: in the order of the rows.
        baselines: the name of the figure that says how many times as fast as another entry each is (per pair), and
            that entry's name.
        derive: more figures of the rows, once all of them are measured; by name.
    """

    table: str
    setting: str
    entries: list[Entry]
    baselines: dict[str, str] = field(default_factory=dict)
    derive: Callable[[dict[str, "Row"]], None] | None = None


@dataclass
class Row:
    """A line of a table: figures by name (times in seconds, the others counts and ratios), and goals."""

    table: str
    setting: str
    contestant: str
    status: str = "ok"
    rounds: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Pace:
    """How long to measure: at least `fewest` rounds, then until `seconds` are over or `most` rounds made."""

    seconds: float
    fewest: int = 3
    most: int = 9


def measure(case: Case, pace: Pace, rates: dict[str, Work], device: str = "cpu") -> list[Row]:
    """Every entry has its row, also one that is missing or raises."""
    rows = {entry.name: Row(case.table, case.setting, entry.name, goals=entry.goals) for entry in case.entries}
    steps: dict[str, list[Step]] = {}
    for entry in case.entries:
        row = rows[entry.name]
        if entry.missing:
            row.status = f"not measured: {', '.join(entry.missing)} not installed"
            continue
        try:
            loaded = entry.load()
            for _, call in loaded.steps[:WARM_UP]:
                call()
            row.figures |= loaded.judge()
        except ImportError as error:
            row.status = f"not measured: {error}"
            continue
        except Exception as error:  # another project's failure is a line of the table, not the end of it
            lines = str(error).splitlines()
            row.status = f"failed: {type(error).__name__}: {lines[0] if lines else ''}"
            continue
        if loaded.steps:
            steps[entry.name] = loaded.steps
    times = rounds(steps, pace, device)
    pairs = {entry.name: entry.pairs for entry in case.entries}
    for entry in case.entries:
        row, taken = rows[entry.name], times.get(entry.name)
        if taken:
            row.rounds = len(taken)
            spread = statistics.median(taken), min(taken), max(taken)
            row.figures |= {name: x / entry.pairs for name, x in zip(("seconds", "lowest", "highest"), spread)}
            for figure, baseline in case.baselines.items():
                if baseline in times:
                    each = pairs[baseline] / entry.pairs
                    row.figures[figure] = statistics.median(a / b for a, b in zip(times[baseline], taken)) / each
            if entry.work is not None and entry.dtype in rates:
                row.figures["limit"] = entry.work.seconds(rates[entry.dtype]) / spread[0]
        if entry.kept_of is not None:
            keep(row, rows[entry.kept_of])
    if case.derive is not None:
        case.derive(rows)
    return list(rows.values())


def keep(row: Row, reference: Row) -> None:
    """The share of another row's correct matches, as `kept ...` beside each count."""
    for name in ("correct", "inliers"):
        if name in row.figures and reference.figures.get(name):
            row.figures[f"kept {name}"] = row.figures[name] / reference.figures[name]


def rounds(steps: dict[str, list[Step]], pace: Pace, device: str) -> dict[str, list[float]]:
    """The seconds of each contestant in each round; within a round each has its turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    start = time.perf_counter()
    while steps:
        done = min(map(len, times.values()))
        if done >= pace.most or (done >= pace.fewest and time.perf_counter() - start > pace.seconds):
            break
        for name, calls in steps.items():
            times[name].append(sum(often * timed(call, device) for often, call in calls))
    return times


def timed(call: Callable[[], Any], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start
