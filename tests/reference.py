"""The reference figures in tests/fixtures, which tests/make_fixtures.py makes: cvg/LightGlue on random weights.

Scores of the reference, in float32 on CPU, agree with float64 to 2e-5; they are compared at 5e-5.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightglue_hf.convert.state_dicts import convert_lightglue_state_dict, convert_superpoint_state_dict
from lightglue_hf.detectors.superpoint import SuperPointForKeypointDetection
from lightglue_hf.modeling_lightglue import LightGlueForKeypointMatching

from .random_weights import MATCHERS, random_weights

FIXTURES = Path(__file__).parent / "fixtures"
KINDS = tuple(MATCHERS)
CASES = [p.stem for kind in KINDS for p in sorted(FIXTURES.glob(f"{kind}_small__*.npz")) if "loss" not in p.stem]


def load(case: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{case}.npz") as arrays:
        return dict(arrays)


def released_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the released files: self_attn.i for transformers.i.self_attn, and no confidence_thresholds."""

    def rename(name: str) -> str:
        parts = name.split(".")
        return ".".join([parts[2], parts[1], *parts[3:]]) if parts[0] == "transformers" else name

    return {rename(name): tensor for name, tensor in state_dict.items() if name != "confidence_thresholds"}


def matcher(kind: str, released: bool = False, **overrides: Any) -> LightGlueForKeypointMatching:
    state_dict = random_weights(kind)
    config, weights = convert_lightglue_state_dict(released_names(state_dict) if released else state_dict, **overrides)
    model = LightGlueForKeypointMatching(config).eval()
    model.load_state_dict(weights)
    return model


def matcher_of_case(case: str, released: bool = False, **overrides: Any) -> LightGlueForKeypointMatching:
    """The matcher with the settings that the case was run with."""
    settings = json.loads(str(load(case)["conf_json"]))
    names = ("depth_confidence", "width_confidence", "filter_threshold")
    model = matcher(case.split("_")[0], released, **{name: settings[name] for name in names}, **overrides)
    if settings["matchability_bias"] is not None:
        for layer in model.match_assignment_layers:
            layer.matchability.bias.data.fill_(settings["matchability_bias"])
    return model


def features_of_case(case: str) -> dict[str, Tensor]:
    """The arguments of match_features: both images padded to the same number of points."""
    arrays = load(case)
    names = {
        "keypoints": "keypoints",
        "descriptors": "descriptors",
        "scales": "scales",
        "orientations": "oris",
        "image_sizes": "image_size",
    }
    features = {}
    for name, original in names.items():
        if f"in_{original}0" in arrays:
            values = [torch.from_numpy(arrays[f"in_{original}{image}"]) for image in (0, 1)]
            features[name] = torch.stack(values, 1).flip(-1) if name == "image_sizes" else padded(values)
    counts = [arrays[f"in_keypoints{image}"].shape[1] for image in (0, 1)]
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    features["mask"] = mask.expand(len(features["keypoints"]), -1, -1)
    return features


def padded(values: list[Tensor]) -> Tensor:
    """Two `(batch, n, ...)` of different n as one `(batch, 2, n, ...)`."""
    n = max(value.shape[1] for value in values)
    return torch.stack([F.pad(v, (0, 0) * (v.ndim - 2) + (0, n - v.shape[1])) for v in values], 1)


def superpoint(**overrides: Any) -> SuperPointForKeypointDetection:
    config, weights = convert_superpoint_state_dict(random_weights("superpoint"), **overrides)
    model = SuperPointForKeypointDetection(config).eval()
    model.load_state_dict(weights)
    return model
