"""The directory of a run: one training at a time, its recipe, and the checkpoint that it goes on from."""

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..utils.digests import digest_of_weights, settings_of
from ..utils.files import write_atomically
from .canvases import photos_in
from .recipes import Recipe, RecipeError, to_json

LOCK = ".lock"
MEANINGLESS = ("output_dir", "minutes")  # a directory may be renamed, and a training pause
PATHS = {"detector", "initial_model", "photos", "teacher"}  # that may be elsewhere on another machine

# ---------------------------------------------------------------------------------------------------------------------
# One training at a time


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other trainings out of a directory, which is made if need be.

    The lock is the operating system's and ends with the process, however that ends; workers do not inherit it. There
    is none on Windows.

    Raises:
        RecipeError: another process trains there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(directory / LOCK, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            process = file.read().strip() or "unknown"
            raise RecipeError(
                f"{directory} is in use: process {process} trains there; choose another output_dir"
            ) from None
        except OSError as error:
            warnings.warn(f"{directory} cannot be locked ({error}): start no second training there", stacklevel=2)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


# ---------------------------------------------------------------------------------------------------------------------
# The recipe


def keep_recipe(recipe: Recipe, inputs: Mapping[str, str], write: bool = True) -> None:
    """Write the recipe beside the run, and refuse to go on with a run of another.

    Args:
        inputs: digests of the weights and files that it names, for what stands at a path may change.
        write: whether to write; one of several processes does.

    Raises:
        RecipeError: the directory holds a run of another recipe, or on other weights or photos, or its recipe cannot
            be read; what differs is named.
    """
    path = Path(recipe.output_dir, "recipe.json")
    wanted = asdict(recipe)
    if path.exists():
        kept, kept_inputs = read_kept(path, recipe)
        moved = PATHS & inputs.keys() & kept_inputs.keys()  # what they hold says whether they are the same
        same = {*MEANINGLESS, *moved}
        changed = [f"other {name}" for name in wanted if kept.get(name) != wanted[name] and name not in same]
        changed += [
            f"another content of {name}" for name in inputs if kept_inputs.get(name, inputs[name]) != inputs[name]
        ]
        if changed:
            raise RecipeError(
                f"{recipe.output_dir} holds a run of another recipe ({', '.join(changed)}): choose another output_dir"
            )
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json({**wanted, "inputs": dict(inputs)}))


def read_kept(path: Path, recipe: Recipe) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields and digests of the run in a directory; fields of later versions have their defaults."""
    try:
        kept = json.loads(path.read_text())  # as JSON: YAML takes 3e-05 for text
        inputs = kept.pop("inputs", {})
        if not isinstance(inputs, dict):
            raise ValueError("inputs are no digests")
        return asdict(type(recipe)(recipe.output_dir)) | kept, inputs
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(
            f"{path} is broken ({error}), so it is not known what was trained here: choose another output_dir, or "
            "remove that file if the recipe is the same"
        ) from None


def digest_of_files(paths: Iterator[Path] | list[Path]) -> str:
    """SHA-256 of the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def digest_of_model(model: Any) -> str:
    """SHA-256 of the weights and the settings of a model; a detector such as SIFT has no weights."""
    settings = {"model_type": model.config.model_type, **settings_of(model.config)}
    return hashlib.sha256(f"{digest_of_weights(model.state_dict())} {json.dumps(settings)}".encode()).hexdigest()


def digest_of_photos(directory: str) -> str:
    """SHA-256 of the photos below a directory.

    Raises:
        ValueError: there are none.
    """
    return digest_of_files(photos_in(Path(directory)))


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def last_whole_checkpoint(directory: str | Path) -> str | None:
    """The last checkpoint of `transformers.Trainer` that was written to its end; warns of later ones."""
    checkpoints = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in Path(directory).glob("checkpoint-*")
        if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()
    ]
    for _, path in sorted(checkpoints, reverse=True):
        fault = fault_of_checkpoint(path)
        if fault is None:
            return str(path)
        warnings.warn(f"{path} is left out, because it is not whole: {fault}", stacklevel=2)
    if checkpoints:
        warnings.warn(f"{directory} has no whole checkpoint: the training starts anew", stacklevel=2)
    return None


def fault_of_checkpoint(path: Path) -> str | None:
    """What is missing or broken in a checkpoint, if anything."""
    try:
        with safe_open(path / "model.safetensors", framework="pt") as file:
            file.keys()
        for name in ("optimizer.pt", "scheduler.pt"):  # a ZIP has its table at the end
            if not zipfile.is_zipfile(path / name):
                return f"{name} is broken" if (path / name).exists() else f"there is no {name}"
        if not any(path.glob("rng_state*.pth")):
            return "there is no rng_state.pth"
        for state in path.glob("rng_state*.pth"):
            if not zipfile.is_zipfile(state):
                return f"{state.name} is broken"
        if "global_step" not in json.loads((path / "trainer_state.json").read_text()):
            return "trainer_state.json is broken"
    except FileNotFoundError as error:
        return f"there is no {Path(error.filename).name if error.filename else 'model.safetensors'}"
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        return str(error)
    return None
