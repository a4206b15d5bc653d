"""The results as Markdown, JSON and a plot."""

import json
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .cases import ALL_DATA, EXPORT, FIRST_INFERENCE, MATCHER_ALONE, QUICK, REQUIRED, TABLES, Plan
from .competitors import KORNIA, OPENVINO, OURS, TRANSFORMERS
from .limits import Work
from .measure import Row

BEGIN, END = "<!-- written by python -m benchmarks --write-docs -->", "<!-- end of what the benchmark wrote -->"
OV_BF16 = f"{OPENVINO}, bfloat16"
# the tables of each page of docs/
PAGES = {"performance.md": "abcdefh", "export.md": "gi"}
PACKAGES = ("torch", "transformers", "kornia", "openvino", "onnxruntime", "numpy")


def machine(device: str) -> dict[str, Any]:
    """What was measured on."""
    found: dict[str, Any] = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "AMX": torch.cpu._is_amx_tile_supported() if device == "cpu" else None,
        "AVX-512 bfloat16": torch.cpu._is_avx512_bf16_supported() if device == "cpu" else None,
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
    rows: list[Row], keys: Iterable[str], rates: dict[str, Work], about: dict[str, Any], plan: Plan, minutes: float
) -> str:
    """The tables `keys`, and which goals of theirs are met."""
    rows = [row for row in rows if row.key in keys]
    lines = [", ".join(f"{name}: {value}" for name, value in about.items() if value is not None) + "."]
    lines += [
        "",
        "Measured at the start of the run:",
        "",
        "| | linear layer, GFLOP/s | convolution, GFLOP/s |",
        "|---|---|---|",
    ]
    lines += [
        f"| {dtype} | {rate.matmuls / 1e9:.0f} | {rate.convolutions / 1e9:.0f} |" for dtype, rate in rates.items()
    ]
    lines += ["", f"The run took {minutes:.1f} minutes{' (--quick)' if plan == QUICK else ''}."]
    for key in keys:
        lines += ["", f"### ({key}) {TABLES[key][0]}", "", HEADER, "|---|---|" + "---:|" * 6 + "---|"]
        previous = None
        for row in rows:
            if row.key == key:
                lines.append(table_row(row, row.setting if row.setting != previous else ""))
                previous = row.setting
    lines += ["", "### Goals", "", "| goal | measured | |", "|---|---|---|", *goals(rows)]
    return "\n".join(lines) + "\n"


HEADER = "| | | time | rounds from - to | times the baseline | of the limit | kept | peak memory | |"


def table_row(row: Row, setting: str) -> str:
    def shown(value: Any, form: Callable[[Any], str]) -> str:
        return "" if value is None else form(value)

    cells = [
        setting,
        row.contestant,
        shown(row.seconds, seconds),
        shown(row.seconds_spread, lambda s: f"{seconds(s[0])} - {seconds(s[1])} ({row.rounds})"),
        shown(row.ratio, lambda r: f"{r:.2f} ({row.ratio_spread[0]:.2f} - {row.ratio_spread[1]:.2f})"),  # type: ignore[index]
        shown(row.share_of_limit, lambda s: f"{s:.0%}"),
        shown(row.kept, lambda k: f"{k:.1%}"),
        shown(row.peak_bytes, lambda b: f"{b / 2**20:.0f} MiB"),
        "" if row.status == "ok" else f"**{row.status}**".replace("|", "/"),
    ]
    return "| " + " | ".join(cells) + " |"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


# ---------------------------------------------------------------------------------------------------------------------
# Goals


def goals(rows: list[Row]) -> list[str]:
    """A line for each goal whose rows were measured: what was wanted, what was measured, whether it is met."""
    find = {(row.key, row.setting.split(" (")[0], row.contestant): row for row in rows}  # without what was measured

    def ratio(key: str, setting: str, contestant: str) -> float | None:
        row = find.get((key, setting, contestant))
        return None if row is None or row.status != "ok" else row.ratio

    def value(key: str, setting: str, contestant: str, name: str = "seconds") -> float | None:
        row = find.get((key, setting, contestant))
        return None if row is None else getattr(row, name)

    bf16, compiled = f"{OURS}, bfloat16", f"{OURS}, compiled"
    lines = []

    def line(text: str, measured: float | None, met: Callable[[float], bool], form: str = "{:.2f} x") -> None:
        if measured is not None:
            lines.append(f"| {text} | {form.format(measured)} | {'met' if met(measured) else '**missed**'} |")

    def at_least(text: str, wanted: float, measured: float | None) -> None:
        line(f"{text} at least {wanted:g} x transformers", measured, lambda m: m >= wanted)

    at_least("float32, 1024 keypoints:", 1.8, ratio("a", "1024 keypoints, all layers", OURS))
    at_least("float32, 2048 keypoints:", 1.5, ratio("a", "2048 keypoints, all layers", OURS))
    at_least("compiled, 1024 keypoints:", 2.2, ratio("a", "1024 keypoints, all layers", compiled))
    at_least("bfloat16, 1024 keypoints:", 4.0, ratio("a", "1024 keypoints, all layers", bf16))
    precise = f"{bf16}, detector in float32"
    for setting in sorted({row.setting for row in rows if row.key == "h"}):
        for name in (bf16, precise):
            text = f"{name.removeprefix(f'{OURS}, ')} keeps at least 97 % ({setting})"
            line(text, value("h", setting, name, "kept"), lambda m: m >= 0.97, "{:.1%}")
    for row in rows:
        if row.key == "c" and row.contestant in (OURS, bf16, precise):
            at_least(f"collection, {row.contestant}, {row.setting.split(', ')[3].split(' (')[0]}:", 8, row.ratio)
    for words in ("all layers",):
        one, many = (value("b", f"{n} pair{s} of 512 keypoints, {words}", OURS) for n, s in ((1, ""), (16, "s")))
        if one and many:
            text = f"time per pair in a batch of 16 no more than alone, {words} (within 2 %)"
            line(text, many / 16 / one, lambda m: m <= 1.02)
    saving = adaptive_saving(find)
    line("adaptive batch of 16 saves at least 80 % of what its layers promise", saving, lambda m: m >= 0.8, "{:.0%}")
    theirs, mine = (value("a", "4096 keypoints, all layers", name, "peak_bytes") for name in (TRANSFORMERS, OURS))
    if theirs and mine:
        line("memory at 4096 keypoints at most half of transformers'", mine / theirs, lambda m: m <= 0.5)
    shares = [value("a", f"{n} keypoints, all layers", OURS, "share_of_limit") for n in (512, 4096)]
    if all(shares):
        text = "time grows no faster than the arithmetic, 512 to 4096 (time's growth / arithmetic's; within 5 %)"
        line(text, shares[0] / shares[1], lambda m: m <= 1.05)  # type: ignore[operator]
    plain, added = (value("f", "a new process", f"import transformers{more}") for more in ("", ", lightglue_hf"))
    if plain and added:
        line("import adds less than 0.3 s to transformers'", added - plain, lambda m: m < 0.3, "{:.2f} s")
    graph = "1024 keypoints, all layers"
    for words, name, wanted in (("float32", OPENVINO, 3), ("bfloat16", OV_BF16, 5.5), ("int8", f"{OV_BF16}, int8", 8)):
        at_least(f"OpenVINO {words}:", wanted, ratio("g", graph, name))
    at_least("OpenVINO bfloat16, 2048 keypoints:", 4.5, ratio("g", "2048 keypoints, all layers", OV_BF16))
    for name in (OPENVINO, OV_BF16):
        fused, plain = (ratio("g", graph, f"{name}{form}") for form in ("", ", plain graph"))
        if fused and plain:
            line(f"{name}: at least 1.3 x the plain graph", fused / plain, lambda m: m >= 1.3)
        alone = {r.contestant: r for r in rows if r.setting == "1024 keypoints, matcher alone"}
        early = next((r.seconds for n, r in alone.items() if n.startswith(f"{name}, adaptive")), None)
        whole = alone.get(f"{name}, all layers")
        if early and whole and whole.seconds:
            text = f"{name}: a third of the layers takes at most half of the matcher's time"
            line(text, early / whole.seconds, lambda m: m <= 0.5, "{:.0%}")
    for what, most in ((EXPORT, 60), (FIRST_INFERENCE, 5)):
        measured = value("g", "a graph of 1024 keypoints", what)
        line(f"{what}: less than {most} s", measured, lambda m, most=most: m < most, "{:.1f} s")  # type: ignore[misc]
    for row in rows:
        if row.key == "i" and row.setting == ALL_DATA and row.kept and row.required != REQUIRED:
            text = f"{row.contestant.split(':')[0]} keeps at least {row.required:.0%} of the correct matches"
            line(text, row.kept, lambda m, row=row: m >= row.required, "{:.1%}")  # type: ignore[misc]
    return lines


def adaptive_saving(find: dict[tuple[str, str, str], Row]) -> float | None:
    """Of the matcher's time that the arithmetic not done promises, the share that is really saved."""
    settings = [f"16 pairs of 512 keypoints, {words}" for words in ("all layers", "adaptive")]
    times = [find[key].seconds for setting in settings if (key := ("b", setting, MATCHER_ALONE)) in find]
    work = [find[key].work for setting in settings if (key := ("b", setting, OURS)) in find]
    if len(times) < 2 or None in times or len(work) < 2 or None in work:
        return None
    promised = 1 - work[1].matmuls / work[0].matmuls  # type: ignore[union-attr]
    return (1 - times[1] / times[0]) / promised if promised > 0 else None  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def write(directory: Path, text: str, results: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance.md").write_text(text)
    (directory / "performance.json").write_text(json.dumps(results, indent=1, default=str) + "\n")
    rows = [Row(**{**row, "work": None}) for row in results["rows"]]
    plot(rows, directory / "performance.png")


def write_docs(file: Path, text: str) -> None:
    """Put the tables between the marks of a page."""
    before, rest = file.read_text().split(BEGIN)
    _, after = rest.split(END)
    file.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def plot(rows: list[Row], file: Path) -> bool:
    """Time against keypoints of one pair; `False` without matplotlib or with nothing to draw."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = {TRANSFORMERS: "C1", KORNIA: "C2", OURS: "C0", f"{OURS}, bfloat16": "C3"}
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    seen: set[int] = set()
    for name, colour in names.items():
        for words, style in (("all layers", "-"), ("adaptive", "--")):
            found = [
                (int(row.setting.split()[0]), row.seconds)
                for row in rows
                if row.key == "a" and row.contestant == name and row.setting.endswith(words) and row.seconds
            ]
            if found:
                counts, times = zip(*sorted(found))
                seen.update(counts)
                axes.plot(counts, times, style, marker="o", markersize=4, color=colour, label=f"{name}, {words}")
    if not seen:
        return False
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(seen), [str(count) for count in sorted(seen)])
    axes.minorticks_off()
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    low, high = axes.get_ylim()
    axes.set_yticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    axes.set_xlabel("keypoints of each image")
    axes.set_ylabel("seconds for a pair, SuperPoint included")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)
    return True


def as_dict(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
