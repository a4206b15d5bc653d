"""Training of the detector, then of the matcher in two stages, on `transformers.Trainer`.

The pairs are warped canvases (procedural, or one's own photos) or photos with depth and poses. The bundled checkpoint
learned from procedural canvases alone. docs/training.md holds the recipe and its figures.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AutoModelForKeypointDetection, PretrainedConfig

from .. import bundled_checkpoint
from ..configuration_lightglue import LightGlueConfig
from ..data.homographies import PlanarPairs, ground_truth_matches, project_points, sample_pairs
from ..data.photometry import gaussian_blur
from ..data.posed_pairs import (
    DepthPair,
    matches_from_depth,
    read_depth,
    read_depth_list,
    read_features,
    read_scene,
    resizing,
)
from ..data.textures import render_textures
from ..detectors.configuration_superpoint import CELL, SuperPointConfig
from ..detectors.selection import max_pool
from ..detectors.superpoint import SuperPointForKeypointDetection
from ..image_processing_lightglue import LightGlueImageProcessor
from ..images import find_photos, load_image
from ..modeling_lightglue import LightGlueForKeypointMatching
from ..utils.optional import import_optional

TEACHER_THRESHOLD = 4e-5  # of the structure tensor's smaller eigenvalue, grey levels in [0, 1] per pixel
STRONG_THRESHOLD = 4e-4


# ---------------------------------------------------------------------------------------------------------------------
# The detector's teacher


def corner_response(images: Tensor) -> Tensor:
    """Smaller eigenvalue of the structure tensor, at two scales.

    Args:
        images: `(batch, height, width)` grey in [0, 1].

    Returns:
        `(batch, height, width)` lambda_min(sigma 1.2) + 1/2 lambda_min(sigma 2.4), squared grey levels per pixel.
    """
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    products = torch.stack([dx * dx, dy * dy, dx * dy], dim=1)

    def smaller_eigenvalue(sigma: float) -> Tensor:
        xx, yy, xy = gaussian_blur(products, sigma).unbind(1)
        return (xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy**2).sqrt()

    return smaller_eigenvalue(1.2) + 0.5 * smaller_eigenvalue(2.4)


def teacher_keypoints(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The strongest corners of each image, at least 4 pixels apart and from the borders.

    Args:
        images: `(batch, height, width)` grey in [0, 1], without noise.
        count: of the corners returned.

    Returns:
        `(batch, count, 2)` (x, y) pixels and `(batch, count)` responses, 0 where padding.
    """
    response = corner_response(images)
    peaks = response.masked_fill((response < max_pool(response, 4)) | (response < TEACHER_THRESHOLD), 0)
    peaks = F.pad(peaks[:, 4:-4, 4:-4], (4, 4, 4, 4))
    values, indices = peaks.flatten(1).topk(count, dim=1)
    width = images.shape[-1]
    return torch.stack([indices % width, indices // width], -1).to(images.dtype), values


def detector_labels(
    pairs: PlanarPairs, generator: torch.Generator, count: int = 256, correspondences: int = 192
) -> dict[str, Tensor]:
    """What [`superpoint_loss`] learns from, out of pairs with known geometry.

    A point is a corner found in both views (mutual nearest, less than 2 pixels apart), at the mean of the two
    positions, or a strong corner whose partner is out of frame. Cells with other corners are ignored.

    Args:
        pairs: of `batch` pairs.
        generator: of the random positions.
        count: of the corners looked for in each view.
        correspondences: per pair, for the descriptors: points, then other corners, and a tenth random positions.
    """
    batch, _, height, width = pairs.clean.shape
    points, responses = teacher_keypoints(pairs.clean.flatten(0, 1), count)
    points, responses = points.unflatten(0, (batch, 2)), responses.unflatten(0, (batch, 2))
    found = responses > 0
    inverse = torch.linalg.inv(pairs.homographies)
    layers0, layers1 = pairs.layers.unbind(1)
    in1, visible0 = project_points(points[:, 0], pairs.homographies, layers0, layers1)
    in0, visible1 = project_points(points[:, 1], inverse, layers1, layers0)

    distance = torch.maximum(torch.cdist(in1, points[:, 1]), torch.cdist(points[:, 0], in0))
    possible = (found[:, 0] & visible0)[:, :, None] & (found[:, 1] & visible1)[:, None, :]
    distance = distance.masked_fill(~possible, math.inf)
    nearest0, nearest1 = distance.argmin(2), distance.argmin(1)
    indices = torch.arange(count, device=points.device).expand(batch, -1)
    agreed0 = (nearest1.gather(1, nearest0) == indices) & (distance.amin(2) < 2)
    agreed1 = (nearest0.gather(1, nearest1) == indices) & (distance.amin(1) < 2)
    agreed = torch.stack([agreed0, agreed1], 1)

    partner0 = in0.gather(1, nearest0[..., None].expand(-1, -1, 2))
    partner1 = in1.gather(1, nearest1[..., None].expand(-1, -1, 2))
    mean = (points + torch.stack([partner0, partner1], 1)) / 2
    positions = torch.where(agreed[..., None], mean, points)
    left_frame = torch.stack([leaves_frame(in1, height, width), leaves_frame(in0, height, width)], 1)
    positive = agreed | (left_frame & (responses > STRONG_THRESHOLD))

    objectness, location = cell_labels(
        positions.flatten(0, 1), positive.flatten(), found.flatten(), responses.flatten(), height, width
    )
    random = torch.rand(batch, correspondences // 10, 2, generator=generator, device=generator.device).to(points)
    random = random * points.new_tensor([width - 1, height - 1])
    candidates = torch.cat([torch.where(agreed0[..., None], mean[:, 0], points[:, 0]), random], 1)
    in1, visible = project_points(candidates, pairs.homographies, layers0, layers1)
    priority = torch.cat(
        [agreed0 + found[:, 0] + responses[:, 0].clamp(max=0.5), torch.full_like(random[..., 0], 3)], 1
    )
    priority = priority * visible
    value, chosen = priority.topk(correspondences, dim=1)
    chosen = chosen[..., None].expand(-1, -1, 2)
    return {
        "objectness": objectness,
        "location": location,
        "correspondences": torch.stack([candidates.gather(1, chosen), in1.gather(1, chosen)], 2),
        "correspondence_mask": value >= 1,
    }


def leaves_frame(points: Tensor, height: int, width: int) -> Tensor:
    """`(..., 2)` pixels (x, y) -> whether each lies outside the image."""
    x, y = points.unbind(-1)
    return ~((x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5))


def cell_labels(
    positions: Tensor, positive: Tensor, found: Tensor, strength: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Points to the labels of their cells; the strongest point of a cell counts.

    Args:
        positions: `(images, n, 2)` pixels (x, y).
        positive, found, strength: `(images * n,)`; what is found and not positive makes its cell ignored.

    Returns:
        objectness `(images, rows, columns)` in {1, 0, -1} and location `(images, rows, columns, 2)`, NaN without one.
    """
    images = len(positions)
    rows, columns = height // CELL, width // CELL
    cell = ((positions + 0.5) / CELL).floor().long()
    cell = cell.clamp(min=0).minimum(cell.new_tensor([columns - 1, rows - 1]))
    image = torch.arange(images, device=positions.device)[:, None]
    flat_cell = ((image * rows + cell[..., 1]) * columns + cell[..., 0]).flatten()
    objectness = positions.new_zeros(images * rows * columns)
    objectness[flat_cell[found]] = -1
    objectness[flat_cell[positive]] = 1
    best = positions.new_zeros(images * rows * columns)
    best.scatter_reduce_(0, flat_cell, strength * positive, "amax")
    wins = positive & (strength == best[flat_cell])
    location = positions.new_full((images * rows * columns, 2), math.nan)
    location[flat_cell[wins]] = (positions - CELL * cell).flatten(0, 1)[wins]
    return objectness.view(images, rows, columns), location.view(images, rows, columns, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Batch normalisation while training


@torch.no_grad()
def insert_batch_norm(model: SuperPointForKeypointDetection, images: Tensor | None = None) -> None:
    """Give every convolution before a ReLU a batch norm.

    Args:
        images: `(batch, 1, height, width)`; a trained model keeps its function, with batch norms that undo themselves
            given the statistics of these images. Without any, all convolutions get He-initialised weights.
    """
    norms = []
    for parent, name in convolutions_before_relu(model):
        conv = getattr(parent, name)
        norms.append(nn.BatchNorm2d(conv.out_channels))
        if images is None:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        else:
            conv.register_forward_hook(partial(fit_norm, norms[-1]))
    if images is None:
        for conv in (model.keypoint_decoder.conv_score_b, model.descriptor_decoder.conv_descriptor_b):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    else:
        model.train()(images)  # not in training it would go through in parts
    for (parent, name), norm in zip(convolutions_before_relu(model), norms):
        conv = getattr(parent, name)
        conv._forward_hooks.clear()
        setattr(parent, name, nn.Sequential(conv, norm))


def fit_norm(norm: nn.BatchNorm2d, conv: nn.Module, inputs: Any, output: Tensor) -> None:
    """Set `norm` to the identity on channels with the mean and variance of this output of `conv`."""
    variance, mean = torch.var_mean(output.float(), dim=(0, 2, 3), correction=0)
    norm.load_state_dict(
        {
            "running_mean": mean,
            "running_var": variance,
            "weight": (variance + norm.eps).sqrt(),
            "bias": mean,
            "num_batches_tracked": torch.tensor(1),
        }
    )


@torch.no_grad()
def fold_batch_norm(model: SuperPointForKeypointDetection) -> None:
    """Undo [`insert_batch_norm`]: a plain SuperPoint that computes what the model in `eval()` mode computes."""
    model.eval()
    for parent, name in convolutions_before_relu(model):
        conv, norm = getattr(parent, name)
        setattr(parent, name, fuse_conv_bn_eval(conv, norm))


def convolutions_before_relu(model: SuperPointForKeypointDetection) -> list[tuple[nn.Module, str]]:
    blocks = [(block, name) for block in model.encoder.conv_blocks for name in ("conv_a", "conv_b")]
    return [*blocks, (model.keypoint_decoder, "conv_score_a"), (model.descriptor_decoder, "conv_descriptor_a")]


class DetectorWithScale(nn.Module):
    """A SuperPoint and the learned factor of its cosine similarities, which only the loss needs."""

    def __init__(self, model: SuperPointForKeypointDetection) -> None:
        super().__init__()
        self.model = model
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    def forward(self, pixel_values: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        scale = self.log_scale.exp().clamp(max=40)
        return {"loss": self.model(pixel_values, labels={**labels, "descriptor_scale": scale}).loss}


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: on a GPU, or a CPU with matrix units (AMX)."""
    return torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()


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


# ---------------------------------------------------------------------------------------------------------------------
# Data


def cached_textures(path: Path, count: int, height: int, width: int, seed: int) -> Tensor:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        textures = render_textures(count, height, width, seed)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, textures)
        partial.rename(path)
    return torch.from_numpy(np.load(path))


def read_canvases(directory: Path, height: int, width: int) -> Tensor:
    """The photos of a directory, in grey, resized and cropped to `(count, height, width)` uint8.

    Raises:
        OSError: a photo cannot be read; it is named.
        ValueError: there are none.
    """
    paths = find_photos(directory)
    if not paths:
        raise ValueError(f"no photos in {directory}")
    canvases = np.empty((len(paths), height, width), dtype=np.uint8)
    for canvas, path in zip(canvases, paths):
        canvas[:] = np.asarray(ImageOps.fit(load_image(path).convert("L"), (width, height)))
    return torch.from_numpy(canvases)


class DetectorCollator:
    """Seeds -> a batch of pairs of images and the labels of [`superpoint_loss`]; each seed always gives its pair."""

    def __init__(self, canvases: Tensor, recipe: Recipe) -> None:
        self.canvases = canvases.to(recipe.data_device())
        self.recipe = recipe

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        recipe = self.recipe
        pairs = sample_pairs(self.canvases, seeds, recipe.height, recipe.width, multi_plane=recipe.multi_plane)
        generator = torch.Generator().manual_seed(seeds[0])
        return {"pixel_values": pairs.images.flatten(0, 1)[:, None], "labels": detector_labels(pairs, generator)}


class MatcherCollator:
    """Seeds -> features of a batch of warped pairs and their true matches; each seed always gives its pair."""

    def __init__(self, canvases: Tensor, extractor: LightGlueForKeypointMatching, recipe: MatcherRecipe) -> None:
        self.canvases = canvases.to(recipe.data_device())
        self.extractor = extractor.to(recipe.data_device())  # type: ignore[arg-type]
        self.recipe = recipe

    def __call__(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        recipe = self.recipe
        pairs = sample_pairs(
            self.canvases,
            seeds,
            recipe.height,
            recipe.width,
            multi_plane=recipe.multi_plane,
            unrelated=recipe.unrelated,
        )
        batch = detected_features(self.extractor, {"pixel_values": pairs.images[:, :, None]}, bool(recipe.bf16))
        labels = ground_truth_matches(batch["keypoints"], batch["mask"].bool(), pairs.homographies, pairs.layers)
        return {**batch, "labels": labels}


class PosedCollator:
    """Seeds -> features of a batch of photos with depth and poses and their true matches; a seed gives its pair.

    The features are the extractor's, of photos whose longer side is the recipe's width, or those of a file.
    """

    def __init__(
        self, pairs: Sequence[DepthPair], extractor: LightGlueForKeypointMatching | None, recipe: MatcherRecipe
    ) -> None:
        self.pairs = pairs
        self.extractor = extractor and extractor.to(recipe.data_device())  # type: ignore[arg-type]
        self.recipe = recipe
        self.processor = LightGlueImageProcessor(size={"longest_edge": recipe.width})

    def __call__(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        pairs = [self.pairs[int(np.random.default_rng(seed).integers(len(self.pairs)))] for seed in seeds]
        batch, photo_sizes = self.stored(pairs) if self.extractor is None else self.detected(pairs)
        labels = torch.full(batch["mask"].shape, -2)
        for row, (pair, photos) in enumerate(zip(pairs, photo_sizes)):
            sizes, valid = batch["image_sizes"][row], batch["mask"][row].bool()
            intrinsics = [resizing(*both) @ K for K, *both in zip(pair.intrinsics, photos, sizes.tolist())]
            found = matches_from_depth(
                (batch["keypoints"][row, 0][valid[0]], batch["keypoints"][row, 1][valid[1]]),
                (torch.from_numpy(read_depth(pair.depths[0])), torch.from_numpy(read_depth(pair.depths[1]))),
                sizes,
                torch.from_numpy(np.stack(intrinsics)),
                torch.from_numpy(pair.T_0to1),
            )
            for image in (0, 1):
                labels[row, image, : len(found[image])] = found[image]  # padding is last
        return {**batch, "labels": labels}

    def detected(self, pairs: Sequence[DepthPair]) -> tuple[dict[str, Tensor], list[Any]]:
        """The extractor's features, and the (height, width) of the photos themselves."""
        assert self.extractor is not None
        photos = [[load_image(path) for path in pair.images] for pair in pairs]
        inputs = self.processor(photos, return_tensors="pt").to(self.extractor.device)
        sizes = [[(photo.height, photo.width) for photo in both] for both in photos]
        features = detected_features(self.extractor, inputs, bool(self.recipe.bf16))
        return {name: values.cpu() for name, values in features.items()}, sizes  # depth maps are read there

    def stored(self, pairs: Sequence[DepthPair]) -> tuple[dict[str, Tensor], list[Any]]:
        """The file's features, the best so many of each photo, in pixels of the photos, and their sizes."""
        assert self.recipe.features is not None
        images = [read_features(self.recipe.features, name) for pair in pairs for name in pair.names]
        for features in images:
            if "scores" in features:
                best = np.argsort(-features["scores"], kind="stable")[: self.recipe.keypoints]
            else:
                best = np.arange(min(len(features["keypoints"]), self.recipe.keypoints))
            size = features.pop("image_size")
            features.update({name: values[best] for name, values in features.items()})
            features["mask"] = np.ones(len(best), dtype=np.int64)
            features["image_sizes"] = size
        columns = max(len(features["mask"]) for features in images)
        names = ["keypoints", "descriptors", "mask", *(n for n in ("scales", "orientations") if n in images[0])]
        batch = {
            name: torch.stack([padded(torch.from_numpy(features[name]), columns) for features in images])
            for name in names
        }
        batch["image_sizes"] = torch.from_numpy(np.stack([features["image_sizes"] for features in images]))
        batch = {name: values.unflatten(0, (len(pairs), 2)) for name, values in batch.items()}
        return batch, batch["image_sizes"].tolist()


def padded(values: Tensor, length: int) -> Tensor:
    """`(n, ...)` -> `(length, ...)`, with zeros behind."""
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])


@torch.no_grad()
def detected_features(
    extractor: LightGlueForKeypointMatching, inputs: Mapping[str, Tensor], bf16: bool
) -> dict[str, Tensor]:
    """What `extract_features` finds, as arguments of the matcher."""
    with torch.autocast(extractor.device.type, torch.bfloat16, enabled=bf16):
        features = extractor.extract_features(**inputs)
    features = replace(features.to(dtype=torch.float32), scores=None)
    if not extractor.config.add_scale_ori:
        features = replace(features, scales=None, orientations=None)
    return dict(features)


def read_scenes(recipe: MatcherRecipe) -> list[DepthPair]:
    """All pairs of the recipe's scenes.

    Raises:
        ValueError: there are none.
    """
    pairs = []
    for scene in recipe.scenes:
        if Path(scene).suffix == ".npz":
            pairs += read_scene(scene, recipe.root)
        else:
            pairs += read_depth_list(scene, recipe.root, recipe.depths)
    if not pairs:
        raise ValueError(f"no pairs in {', '.join(recipe.scenes)}")
    return pairs


# ---------------------------------------------------------------------------------------------------------------------
# Training


def load_detector(checkpoint: str) -> Any:
    """Read a detector, or the one within a matcher's checkpoint; a bundled one by its name."""
    where = located(checkpoint)
    if PretrainedConfig.get_config_dict(where)[0].get("model_type") == LightGlueConfig.model_type:
        return LightGlueForKeypointMatching.from_pretrained(where).keypoint_detector
    return AutoModelForKeypointDetection.from_pretrained(where)


def located(checkpoint: str) -> str:
    """The directory of a bundled checkpoint from its name; any other as it is."""
    return str(bundled_checkpoint(checkpoint)) if checkpoint == "tiny" else checkpoint


def train_detector(recipe: DetectorRecipe) -> SuperPointForKeypointDetection:
    """Train a SuperPoint and save it, plain (batch norm folded), in `recipe.output_dir`.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: the directory holds the run of another recipe, or a new detector is to do without batch norms.
    """
    if recipe.initial_model is None and not recipe.batch_norm:
        raise ValueError("only a trained detector goes on without batch norms: give initial_model, or batch_norm")
    arguments = training_arguments(recipe)
    with arguments.main_process_first():
        keep_recipe(recipe)
        collator = DetectorCollator(recipe.canvases(), recipe)
    torch.manual_seed(recipe.seed)
    if recipe.initial_model is None:
        config = SuperPointConfig(
            encoder_hidden_sizes=recipe.encoder_hidden_sizes,
            decoder_hidden_size=recipe.decoder_hidden_size,
            descriptor_decoder_dim=recipe.descriptor_decoder_dim,
            max_keypoints=1024,
        )
        model = SuperPointForKeypointDetection(config)
    else:
        model = load_detector(recipe.initial_model)
    if recipe.batch_norm:
        trained = recipe.initial_model is not None
        insert_batch_norm(model, collator(range(recipe.batch_size))["pixel_values"].cpu() if trained else None)
    fit(DetectorWithScale(model), collator, arguments, recipe)
    if recipe.batch_norm:
        fold_batch_norm(model)
    if arguments.should_save:
        model.eval().save_pretrained(recipe.output_dir)
    return model


def train_matcher(recipe: MatcherRecipe) -> LightGlueForKeypointMatching:
    """Train a matcher, and save it together with its detector in `recipe.output_dir`.

    Stage 2 changes nothing but how soon pairs stop and points are pruned: without adaptivity all matches stay.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: the directory holds the run of another recipe, or the recipe has no source of features.
    """
    if (recipe.detector is None) == (recipe.features is None):
        raise ValueError("a matcher is trained on either a detector or a file of features")
    if recipe.features is not None and not recipe.scenes:
        raise ValueError("features need scenes: of warped photos no file can know them")
    arguments = training_arguments(recipe)
    pairs = read_scenes(recipe) if recipe.scenes else []
    with arguments.main_process_first():
        keep_recipe(recipe)
        canvases = None if pairs else recipe.canvases()
    torch.manual_seed(recipe.seed)
    detector = None if recipe.detector is None else load_detector(recipe.detector)
    model = initial_matcher(recipe, detector, pairs)
    for name, parameter in model.named_parameters():
        trained = "token_confidence." in name if recipe.stage == 2 else not name.startswith("keypoint_detector.")
        parameter.requires_grad_(trained)
    extractor = None if detector is None else feature_extractor(model, recipe.keypoints)
    collator: Any
    if canvases is None:
        collator = PosedCollator(pairs, extractor, recipe)
    else:
        assert extractor is not None
        collator = MatcherCollator(canvases, extractor, recipe)
    fit(model, collator, arguments, recipe)
    if arguments.should_save:
        model.eval().save_pretrained(recipe.output_dir)
        LightGlueImageProcessor(size={"longest_edge": 640}).save_pretrained(recipe.output_dir)
    return model


def initial_matcher(
    recipe: MatcherRecipe, detector: Any | None, pairs: Sequence[DepthPair]
) -> LightGlueForKeypointMatching:
    """The matcher of `recipe.initial_model`, or a new one for these features; in either case with this detector."""
    if recipe.initial_model is not None:
        model = LightGlueForKeypointMatching.from_pretrained(located(recipe.initial_model))
    else:
        sizes: dict[str, Any] = {
            "descriptor_dim": recipe.descriptor_dim,
            "num_hidden_layers": recipe.num_hidden_layers,
            "num_attention_heads": recipe.num_attention_heads,
            "initializer_range": recipe.descriptor_dim**-0.5 / math.sqrt(3),
        }
        if detector is None:
            assert recipe.features is not None
            features = read_features(recipe.features, pairs[0].names[0])
            sizes["use_keypoint_detector"] = False
            sizes["input_dim"] = features["descriptors"].shape[1]
            sizes["add_scale_ori"] = {"scales", "orientations"} <= set(features)
        model = LightGlueForKeypointMatching(LightGlueConfig(detector and detector.config, **sizes))
    if detector is not None:
        model.keypoint_detector.load_state_dict(detector.state_dict())
    return model


def feature_extractor(model: LightGlueForKeypointMatching, keypoints: int) -> LightGlueForKeypointMatching:
    """A copy of the model for `extract_features`: always so many keypoints, for at weak ones is something to learn."""
    extractor = copy.deepcopy(model).eval()
    extractor.config.depth_confidence = extractor.config.width_confidence = 0.0
    for config in (extractor.config.keypoint_detector_config, extractor.keypoint_detector.config):
        config.max_keypoints = keypoints
        config.keypoint_threshold = 0.0
    return extractor


def training_arguments(recipe: Recipe) -> Any:
    """The recipe as `transformers.TrainingArguments`.

    Raises:
        ImportError: accelerate is not installed.
    """
    import_optional("accelerate", "train")
    from transformers import TrainingArguments

    steps = recipe.pairs // recipe.batch_size
    return TrainingArguments(
        output_dir=recipe.output_dir,
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=1,
        dataloader_drop_last=True,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.01},
        warmup_steps=recipe.warmup_steps,
        bf16=bool(recipe.bf16),
        gradient_checkpointing=recipe.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        # without a GPU accelerate has to be told; told of it with one process alone, it expects others
        ddp_backend="gloo" if torch.distributed.is_torchelastic_launched() and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=recipe.data_device().type == "cpu",  # what is on a GPU cannot be pinned
        remove_unused_columns=False,
        logging_steps=max(1, min(50, steps // 4)),
        save_steps=recipe.save_steps,
        save_total_limit=2,
        report_to=recipe.report_to,
    )


def fit(model: nn.Module, collator: Any, arguments: Any, recipe: Recipe) -> None:
    """Fit `model` with `transformers.Trainer` on `recipe.pairs` seeds; goes on from the last checkpoint, if any."""
    from transformers import Trainer
    from transformers.trainer_utils import get_last_checkpoint

    first = recipe.seed * 1_000_000_000  # runs with other seeds see other pairs
    seeds = range(first, first + recipe.pairs)
    trainer = Trainer(model=model, args=arguments, train_dataset=seeds, data_collator=collator)  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=get_last_checkpoint(recipe.output_dir))
    if arguments.should_save:
        Path(recipe.output_dir, "log.json").write_text(json.dumps(trainer.state.log_history, indent=1))


def keep_recipe(recipe: Recipe) -> None:
    """Write the recipe beside the run, and refuse to go on with a run of another."""
    path = Path(recipe.output_dir, "recipe.json")
    wanted = asdict(recipe)
    if path.exists():
        kept = json.loads(path.read_text())
        changed = [name for name in wanted if kept.get(name) != wanted[name]]
        if changed:
            raise ValueError(
                f"{recipe.output_dir} holds a run of another recipe (other {', '.join(changed)}): "
                "choose another output_dir"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")
