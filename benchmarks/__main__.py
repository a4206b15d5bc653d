"""`python -m benchmarks`: lightglue_hf and its exported graphs beside transformers, kornia and the published code."""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

from transformers.utils import logging

from .contestants import DTYPES
from .limits import measured_rates
from .measure import Pace, Row, measure
from .report import machine, markdown, table, write, write_docs
from .tables import EXPORT, LONG, PERFORMANCE, QUICK, TABLES, Plan, Workbench

DOCS = Path(__file__).parent.parent / "docs"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one checkpoint, few rounds and no long tables")
    parser.add_argument("--only", default="", help=f"tables to measure, of {', '.join(TABLES)}, such as pairs,batches")
    parser.add_argument("--page", choices=(PERFORMANCE, EXPORT), default=PERFORMANCE, help="all tables of a page")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark-results"), help="directory to write to")
    parser.add_argument("--write-docs", action="store_true", help="also renew the tables of the page, and its picture")
    options = parser.parse_args(arguments)
    left_out = LONG if options.quick else ()
    of_page = [key for key, table in TABLES.items() if table.page == options.page and key not in left_out]
    keys = [key for key in options.only.split(",") if key] or of_page
    if unknown := set(keys) - set(TABLES):
        parser.error(f"there is no table {', '.join(sorted(unknown))}, only {', '.join(TABLES)}")
    if options.write_docs and (options.only or options.quick):
        parser.error("--write-docs renews a whole page: leave out --only and --quick")

    quiet()
    started = time.perf_counter()
    rates = {name: measured_rates(DTYPES[name], "cpu") for name in ("float32", "bfloat16")}
    pace = Pace(seconds=1, fewest=1, most=3) if options.quick else Pace(seconds=6, fewest=2)
    with tempfile.TemporaryDirectory() as scratch:
        rows = run(Workbench(QUICK if options.quick else Plan(), Path(scratch)), keys, pace, rates)
    minutes = (time.perf_counter() - started) / 60
    about = machine("cpu")
    text = markdown(rows, keys, rates, about, minutes, options.quick)
    write(options.output, text, {"machine": about, "minutes": minutes, "rates": rates}, rows)
    print(text)
    print(f"Written to {options.output}: performance.md, performance.json, performance.png")
    if options.write_docs:
        write_docs(DOCS / options.page, text)
        if options.page == PERFORMANCE:
            (DOCS / "performance.png").write_bytes((options.output / "performance.png").read_bytes())
    return 0


def run(bench: Workbench, keys: list[str], pace: Pace, rates: dict) -> list[Row]:
    """Measure the tables, printing each case when it is done."""
    rows = []
    for key in keys:
        print(f"\n{TABLES[key].title}", flush=True)
        for case in TABLES[key].cases(bench):
            started = time.perf_counter()
            measured = measure(case, pace, rates, bench.device)
            print("\n".join(table(measured, TABLES[key].columns)), flush=True)
            print(f"({time.perf_counter() - started:.0f} s)", flush=True)
            rows += measured
    return rows


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


if __name__ == "__main__":
    raise SystemExit(main())
