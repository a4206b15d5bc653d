"""The bundled checkpoint, stage by stage: `python -m recipes.tiny --plan cpu -o runs/tiny`, hours on two cores.

With `--plan gpu` it takes a GPU and stops after six minutes, with a checkpoint; started again with the same directory
it goes on. No network is needed: `python -m recipes.tiny --pack` first writes photos and the teacher into
build/train-gpu. `--results DIR` gets weights, logs and the last checkpoints, without what is quickly made again; put
into build/train-gpu/runs they are what another machine goes on from. `--plan quick` tries all of it with a few pairs.
"""

import argparse
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightglue_hf.training import (
    DetectorRecipe,
    MatcherRecipe,
    OutOfTime,
    load_detector,
    train_detector,
    train_matcher,
)

from . import photos

PACKED = Path(__file__).parent.parent / "build" / "train-gpu"
TEACHER = "aliked"
MADE_AGAIN = ("textures-*.npy", "teacher.safetensors", ".lock")


@dataclass
class Stage:
    """A training, on what those before it left.

    Args:
        name: of its directory.
        fields: of its recipe.
        after: the stage whose matcher it goes on with; the released one otherwise.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    after: str | None = None


def stages(
    data: dict[str, Any], detector: dict[str, Any], matcher: dict[str, Any], large: dict[str, Any]
) -> list[Stage]:
    """The detector; the matcher on small views; the same on views of the size of photos; its token confidences.

    Args:
        data: fields of all.
        detector, matcher, large: fields of the detector, of the matcher on small views, and on large ones.
    """
    shared = {"photo_share": 0.7, "viewpoint": 1.5, "inverted": 0.1, **data}
    large = {**shared, "photo_share": 0.5, "keypoints": 768, "height": 384, "width": 512, **large}
    few = max(large["pairs"] // 8, large["batch_size"])
    last = {"stage": 2, "pairs": few, "learning_rate": 3e-3, "warmup_steps": 5, "textures": large["textures"] // 5}
    return [
        Stage("detector", {**shared, "multi_plane": 0.5, "batch_norm": False, "seed": 10, **detector}),
        Stage("matcher", {**shared, "keypoints": 256, "seed": 11, **matcher}),
        Stage("larger", {**large, "seed": 12}, "matcher"),
        Stage("stage2", {**large, **last, "seed": 13}, "larger"),
    ]


PLANS = {
    "cpu": stages(
        {"textures": 1000, "save_steps": 100},
        {"pairs": 96_000, "learning_rate": 6e-4},
        {"pairs": 48_000, "learning_rate": 1e-3, "warmup_steps": 100},
        {"pairs": 12_800, "batch_size": 8, "learning_rate": 5e-4, "warmup_steps": 20, "textures": 300},
    ),
    "gpu": stages(
        {"textures": 600, "save_steps": 200, "workers": 0},
        {"pairs": 96_000, "batch_size": 64, "learning_rate": 1e-3},
        {"pairs": 64_000, "batch_size": 64, "learning_rate": 1.5e-3, "warmup_steps": 100},
        {"pairs": 9_600, "batch_size": 32, "learning_rate": 7e-4, "warmup_steps": 20, "textures": 120},
    ),
    "quick": stages(
        {"textures": 10, "save_steps": 10, "workers": 0, "height": 96, "width": 128},
        {"pairs": 80, "batch_size": 4},
        {"pairs": 80, "batch_size": 4, "keypoints": 64, "warmup_steps": 5},
        {"pairs": 80, "batch_size": 4, "keypoints": 64, "warmup_steps": 5, "height": 96, "width": 128},
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m recipes.tiny", description=__doc__)
    parser.add_argument("--pack", action="store_true", help=f"write photos and teacher to {PACKED}, and nothing else")
    parser.add_argument("--plan", choices=PLANS, default="gpu")
    parser.add_argument("--minutes", type=float, help="stop after so many; for --plan gpu six by default")
    parser.add_argument("--until", choices=[stage.name for stage in PLANS["gpu"]], help="the last stage that is run")
    parser.add_argument("-o", "--output", type=Path, default=PACKED / "runs", help="a directory for each stage")
    parser.add_argument("--results", type=Path, help="directory for what is to be kept")
    options = parser.parse_args(arguments)
    if options.pack:
        pack()
        return 0
    minutes = options.minutes if options.minutes or options.plan != "gpu" else 6.0
    try:
        train(PLANS[options.plan], options.output, minutes, options.until)
    except OutOfTime as error:
        print(error)
    finally:
        if options.results is not None:
            keep(options.output, options.results)
    return 0


def pack() -> None:
    """Photos and the teacher anew, in build/train-gpu; runs that are there stay."""
    directories = [PACKED / "photos", PACKED / "teacher"]
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
    photos.main([str(directories[0])])
    load_detector(TEACHER).save_pretrained(directories[1])
    size = sum(path.stat().st_size for directory in directories for path in directory.iterdir())
    print(f"{PACKED}: {size / 2**20:.1f} MiB")


def train(plan: list[Stage], output: Path, minutes: float | None, until: str | None = None) -> None:
    """Run the stages that are not finished.

    Raises:
        OutOfTime: one of them was stopped.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for stage in plan:
        directory = output / stage.name
        if not (directory / "README.md").exists():  # the last thing that a run writes
            shared: dict[str, Any] = {"output_dir": directory, "photos": PACKED / "photos", **stage.fields}
            shared["minutes"] = None if end is None else max(end - time.monotonic(), 0) / 60
            print(f"{stage.name}: {shared['pairs']} pairs", flush=True)
            if stage.name == "detector":
                train_detector(DetectorRecipe(initial_model="tiny", teacher=PACKED / "teacher", **shared))
            else:
                model = "tiny" if stage.after is None else output / stage.after
                train_matcher(MatcherRecipe(initial_model=model, detector=output / "detector", **shared))
        if stage.name == until:
            return


def keep(output: Path, results: Path) -> None:
    """Copy what cannot be made again quickly: of each stage the weights, or its last checkpoint."""
    for directory in output.glob("*"):
        checkpoints = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        left = checkpoints if (directory / "README.md").exists() else checkpoints[:-1]
        ignored = shutil.ignore_patterns(*MADE_AGAIN, *(path.name for path in left))
        shutil.copytree(directory, results / directory.name, ignore=ignored, dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
