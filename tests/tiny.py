"""A whole model small enough for any test, and pairs of images that it treats differently."""

from typing import Any

import torch
from torch import Tensor

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, SuperPointConfig

# depth_confidence, width_confidence, rejection_threshold
SETTINGS = [(0.9, 0.5, 0), (0.9, -1, 0), (-1, 0.9, 0), (-1, -1, 0), (0.9, 0.5, 0.04), (-1, -1, 0.04)]
LAYERS = 4


def whole_model(max_keypoints: int = -1, seed: int = 13, **overrides: Any) -> LightGlueForKeypointMatching:
    """Random, but such that pairs stop and points are pruned at different layers; a black image has no keypoints."""
    detector = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8],
        decoder_hidden_size=16,
        descriptor_decoder_dim=16,
        keypoint_threshold=0.02,
        nms_radius=2,
        max_keypoints=max_keypoints,
    )
    settings = {
        "descriptor_dim": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "depth_confidence": 0.9,
        "width_confidence": 0.5,
        "filter_threshold": 1e-4,
        **overrides,
    }
    model = LightGlueForKeypointMatching(LightGlueConfig(detector, **settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if name.startswith("positional_encoder"):
            parameter.data.normal_(std=0.5, generator=generator)
        elif parameter.ndim > 1:
            std = 0.2 if name.startswith("keypoint_detector") else 0.3
            parameter.data.normal_(std=std, generator=generator)
    for layer in model.token_confidence:
        layer.token.bias.data.fill_(1.0)
    return model


def different_pairs() -> Tensor:
    """`(6, 2, 3, 48, 64)`: the same moved, others, darker ones, and three with one or two black images."""
    noise = torch.rand(6, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    black = torch.zeros(3, 48, 64)
    fading = noise[3] * torch.linspace(0, 1, 64)
    return torch.stack(
        [
            torch.stack([noise[0], noise[0].roll(8, -1)]),
            torch.stack([black, noise[0]]),
            torch.stack([noise[4] * torch.linspace(1, 0, 48)[:, None], noise[5]]),
            torch.stack([fading, fading]),
            torch.stack([noise[1], noise[2] * 0.6]),
            torch.stack([black, black]),
        ]
    )
