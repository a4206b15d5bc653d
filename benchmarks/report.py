"""The results as Markdown, JSON and a picture."""

import json
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .contestants import KORNIA, ONNXRUNTIME, OPENVINO, PLAIN, PUBLISHED, PYTORCH, TRANSFORMERS
from .limits import Work
from .measure import Goal, Row
from .tables import NAMES, TABLES

BEGIN, END = "<!-- written by python -m benchmarks --write-docs -->", "<!-- end of what the benchmark wrote -->"
PACKAGES = ("torch", "transformers", "kornia", "openvino", "onnxruntime", "numpy")


def machine(device: str) -> dict[str, str]:
    """What was measured on."""
    supported = {True: "yes", False: "no"}
    found = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "AMX": supported[torch.cpu._is_amx_tile_supported()],
        "AVX-512 bfloat16": supported[torch.cpu._is_avx512_bf16_supported()],
        "system": f"{platform.system()}, Python {platform.python_version()}",
    }
    if device == "cuda":
        found["accelerator"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def processor() -> str:
    """The model as Linux has it, with its numbers where the name says little."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    return "{model name}, family {cpu family} model {model}".format(
        **{"model name": "?", "cpu family": "?", "model": "?"} | fields
    )


def markdown(
    rows: list[Row], keys: Iterable[str], rates: dict[str, Work], about: dict[str, str], minutes: float, quick: bool
) -> str:
    """The tables `keys`."""
    lines = [", ".join(f"{name}: {value}" for name, value in about.items()) + "."]
    lines += [f"The run took {minutes:.1f} minutes{' (--quick)' if quick else ''}."]
    lines += ["", "| measured at its start | linear layer, GFLOP/s | convolution, GFLOP/s |", "|---|---:|---:|"]
    lines += [
        f"| {dtype} | {rate.matmuls / 1e9:.0f} | {rate.convolutions / 1e9:.0f} |" for dtype, rate in rates.items()
    ]
    for key in dict.fromkeys(row.table for row in rows if row.table in keys):
        lines += ["", f"### {TABLES[key].title}", "", *([TABLES[key].note, ""] if TABLES[key].note else [])]
        lines += table([row for row in rows if row.table == key], TABLES[key].columns)
    return "\n".join(lines) + "\n"


def table(rows: list[Row], columns: Iterable[str]) -> list[str]:
    """The lines of a table, without columns that no row fills."""
    shown = [name for name in columns if any(figure_of(name) in row.figures for row in rows)]
    goals = any(row.goals for row in rows)
    heads = ["", "", *(HEADS.get(name, name) for name in shown), *(["goal"] if goals else [])]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * len(shown) + "---|" * goals]
    setting = None
    for row in rows:
        cells = ["" if row.setting == setting else row.setting, row.contestant]
        if row.status != "ok":
            cells[1] += f" (**{row.status.replace('|', '/')}**)"
        cells += [cell(row, name) for name in shown]
        cells += ["; ".join(filter(None, (verdict(row, goal) for goal in row.goals)))] if goals else []
        lines.append(f"| {' | '.join(cells)} |")
        setting = row.setting
    return lines


def figure_of(column: str) -> str:
    return "seconds" if column == "time" else column


def cell(row: Row, column: str) -> str:
    value = row.figures.get(figure_of(column))
    if value is None:
        return ""
    if column == "time":
        low, high = (milliseconds(row.figures[name]) for name in ("lowest", "highest"))
        return f"{milliseconds(value)} ({low} - {high}, {row.rounds})"
    return form(column)(value)


def form(figure: str) -> Callable[[float], str]:
    """How a figure is written."""
    if figure.startswith("times "):
        return "{:.2f}".format
    if figure in ("correct", "inliers", "keypoints", "pairs a second"):
        return "{:.0f}".format
    if figure in ("peak", "growth", "later growth"):
        return lambda value: f"{value / 2**20:.0f} MiB"
    if figure == "seconds":
        return "{:.1f} s".format
    return "{:.1%}".format if figure.startswith("kept") else "{:.0%}".format


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.1f}"


HEADS = {
    "time": "ms (lowest - highest, rounds)",
    "correct": "correct, stereo",
    "inliers": "correct, warped",
    "kept correct": "kept, stereo",
    "kept inliers": "kept, warped",
    "limit": "of the limit",
}


def verdict(row: Row, goal: Goal) -> str | None:
    """A goal, and whether the row meets it; `None` where it has no such figure though it was measured."""
    what = HEADS.get(goal.figure, goal.figure).removeprefix("times ")
    bound = f"{goal.bound:g} x" if goal.figure.startswith("times ") else form(goal.figure)(goal.bound)
    text = f"{'at most' if goal.at_most else 'at least'} {bound} {'' if what == 'seconds' else what}".strip()
    if goal.figure not in row.figures:
        return None if row.status == "ok" else f"{text}: not measured"
    return f"{text}: {'met' if goal.is_met(row.figures[goal.figure]) else '**missed**'}"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def write(directory: Path, text: str, results: dict[str, Any], rows: list[Row]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance.md").write_text(text)
    results = {**results, "rows": [asdict(row) for row in rows]}
    (directory / "performance.json").write_text(json.dumps(results, indent=1, default=asdict) + "\n")
    picture(rows, directory / "performance.png")


def write_docs(file: Path, text: str) -> None:
    """Put the tables between the marks of a page."""
    before, rest = file.read_text().split(BEGIN)
    _, after = rest.split(END)
    file.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


MARKERS = {PYTORCH: "o", OPENVINO: "s", ONNXRUNTIME: "D", KORNIA: "^", PUBLISHED: "v", TRANSFORMERS: "*"}
"""Of the engines; the filled ones are ours."""
OUR_ENGINES = (PYTORCH, OPENVINO, ONNXRUNTIME)
PRECISIONS = {"float32": "32", "bfloat16": "16", "int8": "8"}


def picture(rows: list[Row], file: Path) -> bool:
    """Correct matches against milliseconds, every checkpoint and engine a point; `False` without any."""
    points = [row for row in rows if row.table == "pairs" and {"seconds", "correct"} <= row.figures.keys()]
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError:
        return False
    if not points:
        return False
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    colours = {name: f"C{i}" for i, name in enumerate(NAMES.values())}
    stock = [row for row in points if row.contestant.startswith(TRANSFORMERS)]
    for row in points:
        if row in stock:
            continue
        engine, *details = row.contestant.split(", ")
        colour, own = colours[row.setting], is_ours(row)
        x, y = 1e3 * row.figures["seconds"], row.figures["correct"]
        face = colour if own else "none"
        axes.plot(x, y, MARKERS[engine], color=colour, markerfacecolor=face, markersize=8, alpha=0.8)
        if own:
            bits = next((bits for name, bits in PRECISIONS.items() if name in details), PRECISIONS["float32"])
            axes.annotate(bits, (x, y), color="white", fontsize=5, ha="center", va="center")
    if stock:
        seconds = sorted(row.figures["seconds"] for row in stock)[len(stock) // 2]
        x, y = 1e3 * seconds, stock[0].figures["correct"]
        axes.plot(x, y, "*", color="black", markersize=16)
        axes.annotate(
            "transformers:\nSuperPoint + LightGlue",
            (x, y),
            (8, -12),
            textcoords="offset points",
            ha="right",
            va="top",
        )
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = [t for t in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if within(t, axes.get_xlim())]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    counts = [row.figures["correct"] for row in points]
    axes.set_ylim(0.8 * min(counts), 1.05 * max(counts))
    axes.set_xlabel("milliseconds for a pair, detector included")
    axes.set_ylabel("correct matches of a stereo pair")
    axes.grid(alpha=0.3)
    used = dict.fromkeys(row.setting for row in points)
    kinds = dict.fromkeys((row.contestant.split(", ")[0], is_ours(row)) for row in points if row not in stock)
    handles = [Line2D([], [], color=colours[name], marker="o", linestyle="", label=name) for name in used]
    handles += [
        Line2D(
            *([], []),
            color="grey",
            marker=MARKERS[engine],
            linestyle="",
            label=f"{engine}, plain graph" if engine in OUR_ENGINES and not own else engine,
            markerfacecolor="grey" if own else "none",
        )
        for engine, own in kinds
    ]
    figure.legend(handles=handles, fontsize=8, loc="outside right upper", title="32, 16, 8: bits", title_fontsize=8)
    figure.savefig(file, dpi=120)
    return True


def is_ours(row: Row) -> bool:
    engine, *details = row.contestant.split(", ")
    return engine in OUR_ENGINES and PLAIN not in details


def within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
