"""Recipes: what a training run is made of."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .canvases import cached_textures, read_canvases


@dataclass
class Recipe:
    """What a training run is made of; written beside its weights."""

    output_dir: str = field(metadata={"help": "the trained model and its checkpoints; an unfinished run is resumed"})
    pairs: int = field(default=100_000, metadata={"help": "pairs seen in all"})
    batch_size: int = field(default=16, metadata={"help": "pairs a step, of each process"})
    height: int = field(default=192, metadata={"help": "pixels"})
    width: int = field(default=256, metadata={"help": "pixels"})
    photos: str | None = field(
        default=None, metadata={"help": "directory of photos to warp, in place of procedural canvases"}
    )
    textures: int = field(default=1500, metadata={"help": "procedural canvases to draw the pairs from"})
    multi_plane: float = field(default=0.4, metadata={"help": "share of pairs of several planes with parallax"})
    unrelated: float = field(default=0.0, metadata={"help": "share of pairs without overlap"})
    learning_rate: float = field(default=2e-3, metadata={"help": "its peak, after the warm-up; cosine to a hundredth"})
    weight_decay: float = 1e-4
    warmup_steps: int = 60
    max_grad_norm: float = 2.0
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16 autocast; by default where it is fast"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "less memory, more time (the matcher)"})
    seed: int = 0
    save_steps: int = 500
    workers: int = field(
        default_factory=lambda: 0 if torch.cuda.is_available() else 1,
        metadata={
            "help": "processes that make the pairs, on the CPU; 0: the training's own, on the GPU if it has one"
        },
    )
    report_to: str = field(default="none", metadata={"help": "tensorboard, or another log that transformers knows"})

    def __post_init__(self) -> None:
        if self.bf16 is None:  # no default_factory: HfArgumentParser takes it for False
            self.bf16 = fast_bfloat16()

    def data_device(self) -> torch.device:
        """Where the pairs are made: other processes cannot hand over tensors of a GPU."""
        return torch.device("cuda" if self.workers == 0 and torch.cuda.is_available() else "cpu")

    def canvases(self) -> Tensor:
        """`(count, 2 height, 2 width)` uint8: the photos, or procedural ones, rendered once and kept."""
        height, width = 2 * self.height, 2 * self.width
        if self.photos is not None:
            return read_canvases(Path(self.photos), height, width)
        path = Path(self.output_dir, f"textures-{self.textures}-{height}x{width}-{self.seed}.npy")
        return cached_textures(path, self.textures, height, width, self.seed)


@dataclass
class DetectorRecipe(Recipe):
    """The detector and its descriptor, from scratch or from `initial_model`."""

    initial_model: str | None = field(
        default=None, metadata={"help": "SuperPoint, or matcher with one, to go on from"}
    )
    encoder_hidden_sizes: list[int] = field(default_factory=lambda: [16, 32, 64, 96])
    decoder_hidden_size: int = 128
    descriptor_decoder_dim: int = 64
    batch_norm: bool = field(default=True, metadata={"help": "train with batch norms, which are folded at the end"})


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
    descriptor_dim: int = 96
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    learning_rate: float = field(default=1e-3, metadata={"help": "its peak, after the warm-up"})
    warmup_steps: int = 200
    max_grad_norm: float = 1.0
    multi_plane: float = 0.6
    unrelated: float = 0.03


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: on a GPU, or a CPU with matrix units (AMX)."""
    return torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()
