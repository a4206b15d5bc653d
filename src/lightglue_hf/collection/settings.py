"""What features and matches depend on: a file made with one set of settings is not continued with another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..utils.digests import digest_of_weights, settings_of
from .storage import Settings

FORMAT = 1
"""Of the files: another number, and files of before are refused."""

# What configurations say that changes no number once a model is trained.
TRAINING = ("attention_dropout", "initializer_range", "trust_remote_code", "shared_query_key")


def feature_settings(model: Any, processor: Any, name: str = "") -> Settings:
    """All that the features of a photo depend on.

    Args:
        model: a LightGlue model with its detector, or a runtime of exported graphs.
        processor: its image processor, as it is used.
        name: what the model is called, for people and for `match-pairs`; it is not compared.
    """
    config = model.config.keypoint_detector_config
    return {
        "format": FORMAT,
        "engine": engine(model),
        "detector": {"type": config.model_type, **settings_of(config, TRAINING)},
        "weights": weights_digest(model, "detector"),
        "size": dict(processor.size) if processor.do_resize else "as stored",
        "resample": int(processor.resample),
        "grayscale": processor.do_grayscale,
        "rescale": processor.rescale_factor if processor.do_rescale else 1,
        "orientation": "as stored",
        "about": {"model": name},
    }


def match_settings(model: Any, features: Settings | None, name: str = "") -> Settings:
    """All that the matches of a pair depend on: of the features, and of the matcher."""
    config = model.config
    return {
        "format": FORMAT,
        "engine": engine(model),
        "matcher": {
            field: value
            for field, value in settings_of(config, TRAINING).items()
            if field not in ("keypoint_detector_config", "use_keypoint_detector")
        }
        | {"filter_threshold": max(config.filter_threshold, getattr(model, "minimum_score", 0.0))},
        "weights": weights_digest(model, "matcher"),
        "features": {k: v for k, v in (features or {"made by": "another program"}).items() if k != "about"},
        "about": {"model": name},
    }


def engine(model: Any) -> str:
    """What computes: "torch" with its type of numbers, or the runtime of exported graphs."""
    if hasattr(model, "engine"):
        return str(model.backend)
    return f"torch {str(model.dtype).removeprefix('torch.')}"


def weights_digest(model: Any, part: str) -> str:
    """Digest of the weights of the "detector" or the "matcher", in their order by name."""
    if hasattr(model, "engine"):
        digest = hashlib.sha256()
        exported = getattr(model, "_export_directory", None)  # of a model that was exported on the way
        for file in sorted(Path(exported.name if exported else model.model_save_dir).glob("*")):
            if file.suffix in (".bin", ".onnx", ".data"):
                digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()[:16]
    inside = "keypoint_detector."
    weights = {n: w for n, w in model.state_dict().items() if n.startswith(inside) == (part == "detector")}
    return digest_of_weights(weights)[:16]
