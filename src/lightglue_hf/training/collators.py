"""From seeds to batches, so that an interrupted run goes on with the same data.

The views of a pair depend on its seed alone; which of the detector's labels are drawn, on the first seed of its batch.
"""

import copy
from collections.abc import Mapping, Sequence
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
from ..features import KeypointFeatures
from ..image_processing_lightglue import LightGlueImageProcessor, resize_options
from ..images import load_image
from ..modeling_lightglue import LightGlueForKeypointMatching
from .labels import detector_labels, distilled_labels
from .recipes import MatcherRecipe, Recipe, RecipeError


class DetectorCollator:
    """Seeds -> a batch of pairs of images and the labels of [`superpoint_loss`]; each seed always gives its views.

    With `teacher`, what it finds on the canvases, they are its keypoints and not corners.
    """

    def __init__(self, canvases: Tensor, recipe: Recipe, teacher: KeypointFeatures | None = None) -> None:
        self.canvases = canvases.to(recipe.data_device())
        self.recipe = recipe
        self.teacher = teacher

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        recipe = self.recipe
        pairs = sample_pairs(
            self.canvases,
            seeds,
            recipe.height,
            recipe.width,
            multi_plane=recipe.multi_plane,
            changes=recipe.changes(),
        )
        generator = torch.Generator().manual_seed(seeds[0])
        if self.teacher is None:
            labels = detector_labels(pairs, generator)
        else:
            labels = distilled_labels(pairs, self.teacher, generator)
        return {"pixel_values": pairs.images.flatten(0, 1)[:, None], "labels": labels}


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
            changes=recipe.changes(),
        )
        channels = getattr(self.extractor.keypoint_detector.config, "channels", 3)
        pixel_values = pairs.images[:, :, None].expand(-1, -1, channels, -1, -1)
        features = detected_features(self.extractor, {"pixel_values": pixel_values}, bool(recipe.bf16))
        labels = ground_truth_matches(features["keypoints"], features["mask"].bool(), pairs.homographies, pairs.layers)
        return {**features, "labels": labels}


class PosedCollator:
    """Seeds -> features of a batch of photos with depth and poses and their true matches; a seed gives its pair.

    The features are the extractor's, or those of a file. The extractor sees photos as they are stored, with a longer
    side of the recipe's width.
    """

    def __init__(
        self, pairs: Sequence[DepthPair], extractor: LightGlueForKeypointMatching | None, recipe: MatcherRecipe
    ) -> None:
        self.pairs = pairs
        self.recipe = recipe
        self.extractor = extractor
        if extractor is not None:
            self.extractor = extractor.to(recipe.data_device())  # type: ignore[arg-type]
            self.processor = image_processor(extractor.keypoint_detector.config, recipe.width)

    def __call__(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        pairs = [self.pairs[int(np.random.default_rng(seed).integers(len(self.pairs)))] for seed in seeds]
        features, photo_sizes = self.stored(pairs) if self.extractor is None else self.detected(pairs)
        labels = torch.full(features["mask"].shape, -2)
        for row, (pair, photos) in enumerate(zip(pairs, photo_sizes)):
            sizes, valid = features["image_sizes"][row], features["mask"][row].bool()
            intrinsics = [resizing(*both) @ K for K, *both in zip(pair.intrinsics, photos, sizes.tolist())]
            found = matches_from_depth(
                (features["keypoints"][row, 0][valid[0]], features["keypoints"][row, 1][valid[1]]),
                (torch.from_numpy(read_depth(pair.depths[0])), torch.from_numpy(read_depth(pair.depths[1]))),
                sizes,
                torch.from_numpy(np.stack(intrinsics)),
                torch.from_numpy(pair.T_0to1),
            )
            for image in (0, 1):
                labels[row, image, : len(found[image])] = found[image]  # padding is last
        return {**features, "labels": labels}

    def detected(self, pairs: Sequence[DepthPair]) -> tuple[KeypointFeatures, list[Any]]:
        """The extractor's features, and the (height, width) of the photos themselves."""
        assert self.extractor is not None
        photos = [[load_image(path, upright=False) for path in pair.images] for pair in pairs]
        inputs = self.processor(photos, return_tensors="pt").to(self.extractor.device)
        sizes = [[(photo.height, photo.width) for photo in both] for both in photos]
        features = detected_features(self.extractor, inputs, bool(self.recipe.bf16))
        return features.to("cpu"), sizes  # depth maps are read there

    def stored(self, pairs: Sequence[DepthPair]) -> tuple[KeypointFeatures, list[Any]]:
        """The file's features, the best so many of each photo, in pixels of the photos, and their sizes."""
        assert self.recipe.features is not None
        names = [name for pair in pairs for name in pair.names]
        features = KeypointFeatures.from_numpy(
            [best_features(read_features(self.recipe.features, name), self.recipe.keypoints) for name in names]
        )
        features = features.pairs(torch.arange(len(names)).view(-1, 2))
        assert features.image_sizes is not None
        return features, features.image_sizes.tolist()


def best_features(features: Mapping[str, np.ndarray], keypoints: int) -> dict[str, np.ndarray]:
    """The keypoints with the best scores, or the first where there are none, with what the matcher takes of them."""
    if "scores" in features:
        best = np.argsort(-features["scores"], kind="stable")[:keypoints]
    else:
        best = np.arange(min(len(features["keypoints"]), keypoints))
    taken = [name for name in ("keypoints", "descriptors", "scales", "orientations") if name in features]
    return {"image_sizes": features["image_size"], **{name: features[name][best] for name in taken}}


@torch.no_grad()
def detected_features(
    extractor: LightGlueForKeypointMatching, inputs: Mapping[str, Tensor], bf16: bool
) -> KeypointFeatures:
    """What `extract_features` finds, as the matcher takes it."""
    with torch.autocast(extractor.device.type, torch.bfloat16, enabled=bf16):
        features = extractor.extract_features(**inputs)
    wanted = ["keypoints", "descriptors", "mask", "image_sizes"]
    if extractor.config.add_scale_ori:
        wanted += ["scales", "orientations"]
    return KeypointFeatures(
        **{
            name: value.float() if value.is_floating_point() else value
            for name in wanted
            for value in [features[name]]
        }
    )


def feature_extractor(model: LightGlueForKeypointMatching, keypoints: int) -> LightGlueForKeypointMatching:
    """A copy of the model for `extract_features`: always so many keypoints, for at weak ones is something to learn."""
    extractor = copy.deepcopy(model).eval()
    extractor.config.run_all_layers()
    for config in (extractor.config.keypoint_detector_config, extractor.keypoint_detector.config):
        config.max_keypoints = keypoints
        config.keypoint_threshold = 0.0
    return extractor


def image_processor(detector_config: Any, longest_edge: int) -> LightGlueImageProcessor:
    """The processor of photos for a detector, as it declares it, for a longer side of so many pixels."""
    settings = getattr(detector_config, "processor_settings", {})
    return LightGlueImageProcessor(**{**settings, **resize_options(longest_edge)})


def read_scenes(recipe: MatcherRecipe) -> list[DepthPair]:
    """All pairs of the recipe's scenes.

    Raises:
        RecipeError: there are none.
    """
    pairs = []
    for scene in recipe.scenes:
        if Path(scene).suffix == ".npz":
            pairs += read_scene(scene, recipe.root)
        else:
            pairs += read_depth_list(scene, recipe.root, recipe.depths)
    if not pairs:
        raise RecipeError(f"scenes: no pairs in {', '.join(recipe.scenes)}")
    return pairs
