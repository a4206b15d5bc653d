"""Training of the detector, then of the matcher in two stages, on `transformers.Trainer`.

The pairs are warped canvases (procedural, or one's own photos) or photos with depth and poses. The bundled checkpoint
learned from canvases of both kinds. docs/training.md holds the recipe and its figures.
"""

from .batch_norm import fold_batch_norm, insert_batch_norm
from .collators import DetectorCollator, MatcherCollator, PosedCollator, feature_extractor, read_scenes
from .labels import canvas_features, corner_response, detector_labels, distilled_labels, strongest_corners
from .recipes import DetectorRecipe, MatcherRecipe, OutOfTime, Recipe, RecipeError, read_recipe
from .stages import load_detector, train_detector, train_matcher

__all__ = [
    "DetectorCollator",
    "DetectorRecipe",
    "MatcherCollator",
    "MatcherRecipe",
    "OutOfTime",
    "PosedCollator",
    "Recipe",
    "RecipeError",
    "canvas_features",
    "corner_response",
    "detector_labels",
    "distilled_labels",
    "feature_extractor",
    "fold_batch_norm",
    "insert_batch_norm",
    "load_detector",
    "read_recipe",
    "read_scenes",
    "strongest_corners",
    "train_detector",
    "train_matcher",
]
