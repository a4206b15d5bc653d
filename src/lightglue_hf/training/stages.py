"""Training of the detector, then of the matcher in two stages."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForKeypointDetection, PretrainedConfig

from .. import bundled_checkpoint
from ..configuration_lightglue import LightGlueConfig
from ..data.posed_pairs import DepthPair, read_features
from ..detectors.configuration_superpoint import SuperPointConfig
from ..detectors.superpoint import SuperPointForKeypointDetection
from ..image_processing_lightglue import LightGlueImageProcessor
from ..modeling_lightglue import LightGlueForKeypointMatching
from .batch_norm import fold_batch_norm, insert_batch_norm
from .collators import DetectorCollator, MatcherCollator, PosedCollator, feature_extractor, read_scenes
from .fitting import fit, keep_recipe, training_arguments
from .recipes import DetectorRecipe, MatcherRecipe


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


def load_detector(checkpoint: str) -> Any:
    """Read a detector, or the one within a matcher's checkpoint; a bundled one by its name."""
    where = located(checkpoint)
    if PretrainedConfig.get_config_dict(where)[0].get("model_type") == LightGlueConfig.model_type:
        return LightGlueForKeypointMatching.from_pretrained(where).keypoint_detector
    return AutoModelForKeypointDetection.from_pretrained(where)


def located(checkpoint: str) -> str:
    """The directory of a bundled checkpoint from its name; any other as it is."""
    return str(bundled_checkpoint(checkpoint)) if checkpoint == "tiny" else checkpoint
