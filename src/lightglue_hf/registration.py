"""Our classes in place of transformers' own, wherever its Auto classes look them up."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForKeypointDetection,
    AutoModelForKeypointMatching,
)

from .configuration_lightglue import LightGlueConfig
from .detectors.superpoint import SuperPointConfig, SuperPointForKeypointDetection
from .image_processing_lightglue import register_image_processor
from .modeling_lightglue import LightGlueForKeypointMatching
from .pipeline_keypoint_matching import register_pipeline


def register() -> None:
    """Register the configurations, models, image processor and pipeline, also over transformers' own."""
    AutoConfig.register("superpoint", SuperPointConfig, exist_ok=True)
    AutoConfig.register("lightglue", LightGlueConfig, exist_ok=True)
    AutoModel.register(SuperPointConfig, SuperPointForKeypointDetection, exist_ok=True)
    AutoModel.register(LightGlueConfig, LightGlueForKeypointMatching, exist_ok=True)
    AutoModelForKeypointDetection.register(SuperPointConfig, SuperPointForKeypointDetection, exist_ok=True)
    AutoModelForKeypointMatching.register(LightGlueConfig, LightGlueForKeypointMatching, exist_ok=True)
    register_image_processor(LightGlueConfig)
    register_pipeline()
