"""Memory of a contestant, each in a process of its own: `python -m benchmarks.memory JOB`."""

import json
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .contestants import Contestant, Task, load
from .photos import pixel_values, scenes

SIDES = 160, 320  # of the photos of many sizes, in pixels


def measured(contestant: Contestant, task: Task, pairs: int = 0) -> dict[str, float]:
    """What a contestant takes beyond the loaded model and its input, in bytes.

    Args:
        contestant, task: what is run.
        pairs: 0 for `peak`, of one call; or so many pairs of different sizes, for `growth` of resident memory from the
            fifth of them to the last, and `later growth` in the second half.

    Raises:
        RuntimeError: the process failed, or not on Linux.
    """
    job = json.dumps({"contestant": asdict(contestant), "task": task.as_json(), "pairs": pairs})
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", job],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"measuring memory ended with {run.returncode}: {run.stderr[-500:]}")
    return json.loads(run.stdout.splitlines()[-1])


def main(text: str) -> dict[str, float]:
    job = json.loads(text)
    contestant, task = Contestant(**job["contestant"]), Task.from_json(job["task"])
    return growth(contestant, task, job["pairs"]) if job["pairs"] else peak(contestant, task)


def peak(contestant: Contestant, task: Task) -> dict[str, float]:
    implementation = load(contestant, task)
    pixels = pixel_values([scenes(1)[0].images], task.processor(), task.height, task.width)
    if task.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        implementation.match(pixels)
        return {"peak": torch.cuda.max_memory_allocated() - before}
    for parameter in getattr(implementation.model, "parameters", list)():  # mapped files count from their first use
        parameter.sum()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on; on Linux alone
    before = resident("VmRSS")
    implementation.match(pixels)
    return {"peak": resident("VmHWM") - before}


def growth(contestant: Contestant, task: Task, pairs: int) -> dict[str, float]:
    implementation = load(contestant, replace(task, height=0, width=0))
    images, draw = scenes(1)[0].images, random.Random(0)
    taken = []
    for _ in range(pairs):
        height, width = (draw.randint(*SIDES) for _ in range(2))
        processor = task.processor()
        inputs = processor(list(images), size={"height": height, "width": width}, return_tensors="pt")
        sizes = torch.tensor([[[height, width]] * 2])
        implementation.model(inputs["pixel_values"], image_sizes=sizes)
        taken.append(resident("VmRSS"))
    start = taken[min(4, pairs - 1)]
    return {"growth": taken[-1] - start, "later growth": taken[-1] - taken[pairs // 2]}


def resident(name: str) -> int:
    """Bytes that Linux counts under that name for this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
