"""Training of the detector, then of the matcher in two stages."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForKeypointDetection, PretrainedConfig

from .. import located
from ..configuration_lightglue import LightGlueConfig
from ..data.posed_pairs import DepthPair, read_features
from ..detectors.configuration_superpoint import SuperPointConfig
from ..detectors.superpoint import SuperPointForKeypointDetection
from ..modeling_lightglue import LightGlueForKeypointMatching
from .batch_norm import fold_batch_norm, insert_batch_norm
from .card import write_card
from .collators import (
    DetectorCollator,
    MatcherCollator,
    PosedCollator,
    feature_extractor,
    image_processor,
    read_scenes,
)
from .fitting import fit, training_arguments
from .labels import canvas_features
from .recipes import DetectorRecipe, MatcherRecipe, Recipe, RecipeError
from .runs import digest_of_files, digest_of_model, digest_of_photos, keep_recipe, locked


def train_detector(recipe: DetectorRecipe) -> SuperPointForKeypointDetection:
    """Train a SuperPoint and save it, plain (batch norm folded), in `recipe.output_dir`.

    Raises:
        ImportError: accelerate is not installed.
        RecipeError: the directory is in use or holds the run of another recipe, or the initial model is no SuperPoint.
    """
    start = time.monotonic()
    arguments = training_arguments(recipe)
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
        if not isinstance(model, SuperPointForKeypointDetection):
            raise RecipeError(
                f"initial_model: {recipe.initial_model} is a {model.config.model_type}, and only SuperPoint has a "
                "training here; others are used as they are (MatcherRecipe's detector)"
            )
    trained = recipe.initial_model is not None
    inputs: dict[str, nn.Module] = {"initial_model": model} if trained else {}
    if recipe.teacher is not None:
        inputs["teacher"] = load_detector(recipe.teacher)
    with running(recipe, arguments, inputs):
        features = None
        with arguments.main_process_first():
            canvases = recipe.canvases().to(recipe.data_device())
            if recipe.teacher is not None:
                features = canvas_features(inputs["teacher"], canvases, Path(recipe.output_dir, "teacher.safetensors"))
        collator = DetectorCollator(canvases, recipe, features)
        if recipe.batch_norm:
            insert_batch_norm(model, collator(range(recipe.batch_size))["pixel_values"].cpu() if trained else None)
        fit(DetectorWithScale(model), collator, arguments, recipe, start)
        if recipe.batch_norm:
            fold_batch_norm(model)
        if arguments.should_save:
            model.eval().save_pretrained(recipe.output_dir)
            write_card(recipe, model)
    return model


class DetectorWithScale(nn.Module):
    """A SuperPoint and the learned factor of its cosine similarities, which only the loss needs."""

    def __init__(self, model: SuperPointForKeypointDetection) -> None:
        super().__init__()
        self.model = model
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    def forward(self, pixel_values: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        scale = self.log_scale.exp().clamp(max=40)
        return {"loss": self.model(pixel_values, labels={**labels, "descriptor_scale": scale}).loss}


def train_matcher(recipe: MatcherRecipe) -> LightGlueForKeypointMatching:
    """Train a matcher, and save it together with its detector in `recipe.output_dir`.

    Any detector of `AutoModelForKeypointDetection` will do; it gets grey pictures, in as many channels as it declares.
    Stage 2 changes nothing but how soon pairs stop and points are pruned: without adaptivity all matches stay.

    Raises:
        ImportError: accelerate is not installed.
        RecipeError: the directory is in use or holds the run of another recipe, the recipe has no source of features,
            or its detector is not for its initial model.
    """
    if (recipe.detector is None) == (recipe.features is None):
        raise RecipeError("a matcher is trained on either a detector or a file of features")
    if recipe.features is not None and not recipe.scenes:
        raise RecipeError("features need scenes: of warped photos no file can know them")
    start = time.monotonic()
    arguments = training_arguments(recipe)
    pairs = read_scenes(recipe) if recipe.scenes else []
    detector = None if recipe.detector is None else load_detector(recipe.detector)
    torch.manual_seed(recipe.seed)
    model = initial_matcher(recipe, detector, pairs)
    inputs = {} if detector is None else {"detector": detector}
    if recipe.initial_model is not None:
        inputs["initial_model"] = model
    for name, parameter in model.named_parameters():
        trained = "token_confidence." in name if recipe.stage == 2 else not name.startswith("keypoint_detector.")
        parameter.requires_grad_(trained)
    extractor = None if detector is None else feature_extractor(model, recipe.keypoints)
    with running(recipe, arguments, inputs):
        collator: Any
        if pairs:
            collator = PosedCollator(pairs, extractor, recipe)
        else:
            assert extractor is not None
            with arguments.main_process_first():
                canvases = recipe.canvases()
            collator = MatcherCollator(canvases, extractor, recipe)
        fit(model, collator, arguments, recipe, start)
        if arguments.should_save:
            model.eval().save_pretrained(recipe.output_dir)
            if detector is not None:
                image_processor(detector.config, recipe.longest_edge).save_pretrained(recipe.output_dir)
            write_card(recipe, model)
    return model


@contextmanager
def running(recipe: Recipe, arguments: Any, inputs: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within the directory of a run: nobody else trains there, and its recipe and what it names are the same."""
    digests = {name: digest_of_model(model) for name, model in inputs.items()}
    if recipe.photos is not None:
        digests["photos"] = digest_of_photos(recipe.photos)
    if scenes := getattr(recipe, "scenes", []):
        digests["scenes"] = digest_of_files([Path(scene) for scene in scenes])
    with ExitStack() as stack:
        if arguments.should_save:
            stack.enter_context(locked(Path(recipe.output_dir)))
        with arguments.main_process_first():
            keep_recipe(recipe, digests, write=arguments.should_save)
        yield


def initial_matcher(
    recipe: MatcherRecipe, detector: Any | None, pairs: Sequence[DepthPair]
) -> LightGlueForKeypointMatching:
    """The matcher of `recipe.initial_model`, or a new one for these features; in either case with this detector."""
    if recipe.initial_model is not None:
        model = LightGlueForKeypointMatching.from_pretrained(located(recipe.initial_model))
        if detector is not None:
            exchange_detector(model, detector)
        return model
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
        return LightGlueForKeypointMatching(LightGlueConfig(**sizes))
    sizes["add_scale_ori"] = getattr(detector.config, "has_scale_ori", False)
    model = LightGlueForKeypointMatching(LightGlueConfig(detector.config, **sizes))
    model.keypoint_detector.load_state_dict(detector.state_dict())
    return model


def exchange_detector(model: LightGlueForKeypointMatching, detector: Any) -> None:
    """Give a matcher this detector; how many keypoints, and above which score, stays as it was.

    Raises:
        RecipeError: the matcher was not made for features as this detector's.
    """
    config = model.config
    wanted = LightGlueConfig(detector.config).num_input_features
    if config.num_input_features != wanted:
        raise RecipeError(
            f"detector: its descriptors have {wanted} numbers, and initial_model takes {config.num_input_features}"
        )
    if config.add_scale_ori and not getattr(detector.config, "has_scale_ori", False):
        raise RecipeError("detector: it has no scales and orientations, which initial_model takes")
    previous = config.keypoint_detector_config
    if config.use_keypoint_detector and previous.model_type == detector.config.model_type:
        for name in ("max_keypoints", "keypoint_threshold"):
            setattr(detector.config, name, getattr(previous, name))
    config.use_keypoint_detector = True
    config.keypoint_detector_config = detector.config
    model.keypoint_detector = detector


def load_detector(checkpoint: str) -> Any:
    """Read a detector, or the one within a matcher's checkpoint; a bundled one by its name. No remote code runs.

    Raises:
        RecipeError: a matcher without a detector.
    """
    where = located(checkpoint)
    if PretrainedConfig.get_config_dict(where)[0].get("model_type") == LightGlueConfig.model_type:
        model = LightGlueForKeypointMatching.from_pretrained(where)
        if not model.config.use_keypoint_detector:
            raise RecipeError(f"{checkpoint} is a matcher without a detector")
        return model.keypoint_detector
    return AutoModelForKeypointDetection.from_pretrained(where, trust_remote_code=False)
