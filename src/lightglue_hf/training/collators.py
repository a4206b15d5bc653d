"""From seeds to batches: a pair depends on its seed alone, so that an interrupted run goes on with the very same data."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.homographies import ground_truth_matches, sample_pairs
from ..data.posed_pairs import (
    DepthPair,
    matches_from_depth,
    read_depth,
    read_depth_list,
    read_features,
    read_scene,
    resizing,
)
from ..image_processing_lightglue import LightGlueImageProcessor
from ..images import load_image
from ..modeling_lightglue import LightGlueForKeypointMatching
from .labels import detector_labels
from .recipes import MatcherRecipe, Recipe


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


def feature_extractor(model: LightGlueForKeypointMatching, keypoints: int) -> LightGlueForKeypointMatching:
    """A copy of the model for `extract_features`: always so many keypoints, for at weak ones is something to learn."""
    extractor = copy.deepcopy(model).eval()
    extractor.config.depth_confidence = extractor.config.width_confidence = 0.0
    for config in (extractor.config.keypoint_detector_config, extractor.keypoint_detector.config):
        config.max_keypoints = keypoints
        config.keypoint_threshold = 0.0
    return extractor


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
