"""Recipes: what a training run is made of, checked field by field."""

import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from ..data.worlds import Changes
from .canvases import cached_textures, cut_canvases, read_canvases


class RecipeError(ValueError):
    """What was asked for cannot be trained: a field of the recipe, its file or its directory; it is named."""


class OutOfTime(RuntimeError):
    """A training has run for as many minutes as its recipe has: started again it goes on."""


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: on a GPU, or a CPU with matrix units (AMX)."""
    return torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()


# The smallest and largest number of a field, or of each in its list
LEAST = {
    "photo_share": 0,
    "multi_plane": 0,
    "viewpoint": 0,
    "inverted": 0,
    "unrelated": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "seed": 0,
    "workers": 0,
    "pairs": 1,
    "batch_size": 1,
    "textures": 1,
    "save_steps": 1,
    "minutes": 0,
    "encoder_hidden_sizes": 1,
    "decoder_hidden_size": 1,
    "descriptor_decoder_dim": 1,
    "stage": 1,
    "keypoints": 1,
    "descriptor_dim": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "longest_edge": 1,
    "height": 32,
    "width": 32,
}
MOST = {"photo_share": 1, "multi_plane": 1, "viewpoint": 3, "inverted": 1, "unrelated": 1, "stage": 2}


@dataclass
class Recipe:
    """What a training run is made of; written beside its weights.

    Numbers may be text, as YAML has `3e-4`.

    Raises:
        RecipeError: a field of another type or out of its range, named.
    """

    output_dir: str = field(metadata={"help": "the trained model and its checkpoints; an unfinished run is resumed"})
    pairs: int = field(default=100_000, metadata={"help": "pairs seen in all"})
    batch_size: int = field(default=16, metadata={"help": "pairs a step, of each process"})
    height: int = field(default=192, metadata={"help": "pixels"})
    width: int = field(default=256, metadata={"help": "pixels"})
    photos: str | None = field(
        default=None, metadata={"help": "directory of photos to warp, in place of procedural canvases"}
    )
    photo_share: float = field(
        default=1.0,
        metadata={"help": "with photos: below 1 so many of the canvases are pieces of photos, the others procedural"},
    )
    textures: int = field(default=1500, metadata={"help": "canvases to draw the pairs from, of photos all as a whole"})
    multi_plane: float = field(default=0.4, metadata={"help": "share of pairs of several planes with parallax"})
    viewpoint: float = field(
        default=1.0, metadata={"help": "what the pairs' changes of scale and viewpoint are multiplied by, up to 3"}
    )
    inverted: float = field(default=0.5, metadata={"help": "share of planes with inverted tones, as on negatives"})
    learning_rate: float = field(default=2e-3, metadata={"help": "its peak, after the warm-up; cosine to a hundredth"})
    weight_decay: float = field(default=1e-4, metadata={"help": "of AdamW"})
    warmup_steps: int = field(default=60, metadata={"help": "in which the learning rate rises"})
    max_grad_norm: float = field(default=2.0, metadata={"help": "longer gradients are shortened to it"})
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16 autocast; by default where it is fast"})
    seed: int = field(default=0, metadata={"help": "of the weights and of the pairs"})
    save_steps: int = field(default=500, metadata={"help": "steps from one checkpoint to the next"})
    minutes: float | None = field(
        default=None, metadata={"help": "stop training after so many, with a checkpoint; started again it goes on"}
    )
    workers: int = field(
        default_factory=lambda: 0 if torch.cuda.is_available() else 1,
        metadata={
            "help": "processes that make the pairs, on the CPU; 0: the training's own, on the GPU if it has one"
        },
    )
    report_to: str = field(default="none", metadata={"help": "tensorboard, or another log that transformers knows"})

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in fields(self):
            value = converted(entry.name, getattr(self, entry.name), hints[entry.name])
            check_range(entry.name, value)
            setattr(self, entry.name, value)
        if not self.output_dir:
            raise RecipeError("output_dir is empty: name a directory")
        if self.pairs < self.batch_size:
            raise RecipeError(f"pairs ({self.pairs}) must be at least batch_size ({self.batch_size}): one step")
        if self.bf16 is None:  # no default_factory: HfArgumentParser takes it for False
            self.bf16 = fast_bfloat16()

    def data_device(self) -> torch.device:
        """Where the pairs are made: other processes cannot hand over tensors of a GPU."""
        return torch.device("cuda" if self.workers == 0 and torch.cuda.is_available() else "cpu")

    def changes(self) -> Changes:
        """How much the two views of a pair differ."""
        return Changes(self.viewpoint, self.inverted)

    def canvases(self) -> Tensor:
        """`(count, 2 height, 2 width)` uint8: photos, procedural ones, rendered once and kept, or both."""
        height, width = 2 * self.height, 2 * self.width
        if self.photos is not None and self.photo_share == 1:
            return read_canvases(Path(self.photos), height, width)
        of_photos = 0 if self.photos is None else round(self.photo_share * self.textures)
        parts = []
        if of_photos:
            parts.append(cut_canvases(Path(str(self.photos)), of_photos, height, width, self.seed))
        if rendered := self.textures - of_photos:
            path = Path(self.output_dir, f"textures-{rendered}-{height}x{width}-{self.seed}.npy")
            parts.append(cached_textures(path, rendered, height, width, self.seed))
        return torch.cat(parts)


@dataclass
class DetectorRecipe(Recipe):
    """SuperPoint and its descriptor, from scratch or from `initial_model`."""

    initial_model: str | None = field(
        default=None, metadata={"help": "SuperPoint, or matcher with one, to go on from"}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "detector, or matcher with one, to learn keypoints and similarities from"}
    )
    encoder_hidden_sizes: list[int] = field(
        default_factory=lambda: [16, 32, 64, 96], metadata={"help": "widths of the four blocks of a new one"}
    )
    decoder_hidden_size: int = field(default=128, metadata={"help": "width of the decoders of a new one"})
    descriptor_decoder_dim: int = field(default=64, metadata={"help": "width of the descriptors of a new one"})
    batch_norm: bool = field(default=True, metadata={"help": "train with batch norms, which are folded at the end"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.encoder_hidden_sizes) != 4:
            raise RecipeError(f"encoder_hidden_sizes must be four widths, got {self.encoder_hidden_sizes}")
        if self.initial_model is None and not self.batch_norm:
            raise RecipeError(
                "batch_norm: only a trained detector goes on without batch norms: give initial_model, or batch_norm"
            )


@dataclass
class MatcherRecipe(Recipe):
    """The matcher, on a frozen detector. Stage 1 trains it; stage 2 its token confidences, with the rest frozen."""

    detector: str | None = field(default=None, metadata={"help": "detector, or matcher with one, to train on"})
    features: str | None = field(
        default=None, metadata={"help": "HDF5 file with the features of the scenes' photos, in place of a detector"}
    )
    scenes: list[str] = field(
        default_factory=list,
        metadata={"help": "photos with depth and poses, in place of warps: MegaDepth's scenes, or lists of pairs"},
    )
    root: str = field(default=".", metadata={"help": "directory that paths in the scenes start from"})
    depths: str = field(default="depths", metadata={"help": "directory in root of the depth maps of lists of pairs"})
    initial_model: str | None = field(default=None, metadata={"help": "directory of a matcher to go on from"})
    stage: int = field(default=1, metadata={"help": "1 or 2", "choices": [1, 2]})
    keypoints: int = field(default=256, metadata={"help": "in each image"})
    descriptor_dim: int = field(default=96, metadata={"help": "width of a new matcher"})
    num_hidden_layers: int = field(default=4, metadata={"help": "of a new matcher"})
    num_attention_heads: int = field(default=4, metadata={"help": "of a new matcher"})
    longest_edge: int = field(default=640, metadata={"help": "pixels that the saved processor resizes photos to"})
    learning_rate: float = field(default=1e-3, metadata={"help": "its peak, after the warm-up"})
    warmup_steps: int = field(default=200, metadata={"help": "in which the learning rate rises"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "longer gradients are shortened to it"})
    multi_plane: float = field(default=0.6, metadata={"help": "share of pairs of several planes with parallax"})
    unrelated: float = field(default=0.03, metadata={"help": "share of pairs without overlap"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "less memory, more time"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.descriptor_dim % (2 * self.num_attention_heads):
            raise RecipeError(
                f"descriptor_dim ({self.descriptor_dim}) must be a multiple of 2 * num_attention_heads "
                f"({self.num_attention_heads})"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def converted(name: str, value: Any, hint: Any) -> Any:
    """A value in the type of its field: numbers may be text, paths any `os.PathLike`, a list of one the one.

    Raises:
        RecipeError: it is of another type.
    """
    options = get_args(hint)
    if type(None) in options:
        if value is None:
            return None
        (hint,) = (option for option in options if option is not type(None))
        options = ()
    if options:  # list[...]
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return [converted(name, each, options[0]) for each in values]
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if hint is bool and (isinstance(value, bool) or str(value).lower() in words):
        return value if isinstance(value, bool) else words[str(value).lower()]
    if hint is str and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if hint in (int, float) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
            if math.isfinite(number) and (hint is float or number.is_integer()):
                return hint(number)
        except (ValueError, OverflowError):
            pass
    kind = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[hint]
    raise RecipeError(f"{name} must be {kind}, got {reprlib.repr(value)}")  # YAML can say much in few words


def check_range(name: str, value: Any) -> None:
    """Raise a RecipeError that names a field with a number that is too small or too large."""
    for number in value if isinstance(value, list) else [] if value is None else [value]:
        if name in LEAST and number < LEAST[name]:
            raise RecipeError(f"{name} must be at least {LEAST[name]}, got {number}")
        if name in MOST and number > MOST[name]:
            raise RecipeError(f"{name} must be at most {MOST[name]}, got {number}")


# ---------------------------------------------------------------------------------------------------------------------
# From files and options


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def read_recipe(
    recipe_class: type[AnyRecipe],
    path: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> AnyRecipe:
    """A recipe from a file, from options, or from both, in which case options win.

    Args:
        recipe_class: [`DetectorRecipe`] or [`MatcherRecipe`].
        path: of a YAML or JSON file with fields of the recipe, such as the `recipe.json` of a run.
        options: further fields; those that are not given are left out, or `None`.

    Names of fields may have dashes in place of underscores, in both.

    Raises:
        RecipeError: the file is no YAML or JSON of fields and values, or a field is unknown, missing, of another
            type or out of its range; file and field are named.
        OSError: the file cannot be read.
    """
    given = {} if path is None else read_fields(Path(path))
    given |= {name: value for name, value in (options or {}).items() if value is not None}
    values: dict[str, Any] = {}
    for name, value in given.items():
        values[name.replace("-", "_")] = value
    known = [entry.name for entry in fields(recipe_class)]
    unknown = sorted(values.keys() - known)
    try:
        if unknown:
            raise RecipeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        if "output_dir" not in values:
            raise RecipeError("output_dir is missing: where the trained model goes")
        return recipe_class(**values)
    except RecipeError as error:
        raise error if path is None else RecipeError(f"{path}: {error}") from None


def read_fields(path: Path) -> dict[str, Any]:
    """The fields and values of a YAML or JSON file.

    Raises:
        RecipeError: it is something else; the file is named.
        OSError: it cannot be read.
    """
    import yaml  # transformers needs it

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if values is None:
        raise RecipeError(f"{path} is empty")
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise RecipeError(f"{path} must have fields with values, such as `pairs: 1000`, not {type(values).__name__}")
    values.pop("inputs", None)  # digests, in the recipe.json of a run
    return {name.replace("-", "_"): value for name, value in values.items()}


def to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
