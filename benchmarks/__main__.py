"""`python -m benchmarks`: lightglue_hf and its exported graphs beside transformers and kornia."""

import argparse
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

from transformers.utils import logging

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, bundled_checkpoint

from . import inputs
from .cases import ON_GPU, QUICK, TABLES, Plan, Workbench
from .competitors import DTYPES
from .limits import Work, measured_rates
from .measure import Pace, Row, measure
from .report import PAGES, as_dict, machine, markdown, table_row, write, write_docs

TABLES_HELP = f"tables to measure, of {', '.join(TABLES)}, such as a,c; by default those of docs/performance.md"
DOCS = Path(__file__).parent.parent / "docs"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--only", default="", help=TABLES_HELP)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark-results"), help="directory to write to")
    parser.add_argument("--write-docs", action="store_true", help="also renew the tables in docs/ and the plot")
    options = parser.parse_args(arguments)
    keys = [key for key in options.only.split(",") if key] or list(PAGES["performance.md"])
    if unknown := set(keys) - set(TABLES):
        parser.error(f"there is no table {', '.join(sorted(unknown))}, only {', '.join(TABLES)}")
    pages = [page for page, of_page in PAGES.items() if set(of_page) <= set(keys)]
    if options.write_docs and not pages:
        whole = " or ".join(",".join(of_page) for of_page in PAGES.values())
        parser.error(f"--write-docs renews whole pages: measure {whole}")

    plan = QUICK if options.quick else ON_GPU if options.device == "cuda" else Plan()
    pace = Pace(seconds=1, fewest=1, most=5) if options.quick else Pace(seconds=8)
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        rates = {name: measured_rates(DTYPES[name], options.device) for name in ("float32", *plan.reduced)}
        print("Making the inputs ...", flush=True)
        bench = workbench(plan, options.device, Path(scratch))
        rows = run(bench, keys, pace, rates)
        minutes = (time.perf_counter() - started) / 60
    about = machine(options.device)
    text = markdown(rows, keys, rates, about, plan, minutes)
    results = {"machine": about, "minutes": minutes, "rates": rates, "plan": plan, "rows": as_dict(rows)}
    write(options.output, text, results)
    print(text)
    print(f"Written to {options.output}: performance.md, performance.json, performance.png")
    if options.write_docs:
        for page in pages:
            write_docs(DOCS / page, markdown(rows, PAGES[page], rates, about, plan, minutes))
        if "performance.md" in pages:
            (DOCS / "performance.png").write_bytes((options.output / "performance.png").read_bytes())
    return 0


def workbench(
    plan: Plan,
    device: str,
    scratch: Path,
    config: LightGlueConfig | None = None,
    height: int = inputs.HEIGHT,
    width: int = inputs.WIDTH,
) -> Workbench:
    """The photos, and both checkpoints in directories; of full size unless given another configuration."""
    images = inputs.photos()
    pixels = inputs.pixel_values(images, height, width)
    seeded, trained, bundled = (scratch / name for name in ("seeded", "trained", "bundled"))
    inputs.save(inputs.seeded_model(config or inputs.full_size_config(), pixels), seeded, height, width)
    inputs.save(LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny")), trained, height, width)
    shutil.copytree(bundled_checkpoint("tiny"), bundled)
    pairs = inputs.pairs(max(*plan.batches, plan.trained))
    return Workbench(plan, seeded, trained, bundled, images, pixels, pairs, device, scratch)


def run(bench: Workbench, keys: list[str], pace: Pace, rates: dict[str, Work]) -> list[Row]:
    """Measure the tables, printing each row when it is done."""
    rows = []
    for key in keys:
        title, cases = TABLES[key]
        print(f"({key}) {title}", flush=True)
        for case in cases(bench):
            for row in [case] if isinstance(case, Row) else measure(case, pace, rates, bench.device):
                print(table_row(row, row.setting), flush=True)
                rows.append(row)
    return rows


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


if __name__ == "__main__":
    raise SystemExit(main())
