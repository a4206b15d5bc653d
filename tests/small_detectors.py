"""A small matcher on each detector, random but for SIFT, and pictures in which all of them find keypoints."""

from typing import Any

import numpy as np
import pytest
import torch

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor
from lightglue_hf.data.textures import render_textures

from .detectors import test_aliked, test_disk, test_sift, test_superpoint, test_xfeat

DETECTORS = {
    "superpoint": test_superpoint.model,
    "aliked": test_aliked.model,
    "disk": test_disk.model,
    "xfeat": test_xfeat.model,
    "sift": test_sift.model,
}


def small_matcher(name: str, **overrides: Any) -> LightGlueForKeypointMatching:
    """A matcher with a detector of that name; all layers run, and nothing is filtered."""
    if name == "sift":
        pytest.importorskip("cv2")
    detector = DETECTORS[name](**overrides)
    torch.manual_seed(0)
    config = LightGlueConfig(
        detector.config,
        descriptor_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        add_scale_ori=detector.config.has_scale_ori,
        filter_threshold=0.0,
        depth_confidence=-1,
        width_confidence=-1,
        initializer_range=0.2,
    )
    model = LightGlueForKeypointMatching(config).eval()
    model.keypoint_detector.load_state_dict(detector.state_dict())
    return model


def processor_of(model: LightGlueForKeypointMatching, longest_edge: int = 256) -> LightGlueImageProcessor:
    settings = model.config.keypoint_detector_config.processor_settings
    return LightGlueImageProcessor(**{**settings, "size": {"longest_edge": longest_edge}})


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """`(height, width, 3)` uint8, grey."""
    return np.repeat(render_textures(1, height, width, seed)[0, :, :, None], 3, axis=2)
