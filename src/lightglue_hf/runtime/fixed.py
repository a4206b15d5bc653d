"""Which graphs a directory holds, and what they were made with: that no option changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.files import json_object

BACKENDS = {"openvino": "openvino_*.xml", "onnx": "*.onnx"}
"""What the files of graphs are called; of both, the first is loaded."""


def backend_of(directory: Path) -> str | None:
    """ "openvino" or "onnx" for a directory with graphs, `None` for one without."""
    return next((backend for backend, pattern in BACKENDS.items() if any(directory.glob(pattern))), None)


def fixed_options(directory: Path) -> frozenset[str]:
    """What cannot be asked of the graphs in a directory: by the names of arguments and fields.

    Turns and tiles search a photo several times and match once, for which detector and matcher have to be graphs of
    their own; and a graph for images of one size knows neither another size nor tiles.
    """
    backend = backend_of(directory)
    if backend is None:
        return frozenset()
    fixed = {"max_keypoints", "depth_confidence", "width_confidence"}
    names = {path.stem.removeprefix("openvino_") for path in directory.glob(BACKENDS[backend])}
    if not {"detector", "matcher"} <= names or (backend == "openvino" and "model" in names):
        fixed |= {"turns", "tiles"}
    processor = directory / "preprocessor_config.json"
    if processor.is_file() and json_object(processor).get("longest_edge") is None:
        fixed |= {"longest_edge", "tiles"}
    return frozenset(fixed)


def set_options(
    name: str,
    model: Any,
    max_keypoints: int | None = None,
    threshold: float | None = None,
    depth_confidence: float | None = None,
    width_confidence: float | None = None,
) -> None:
    """Set what is given; an exported graph keeps what it was made with.

    Args:
        name: of the model, for errors.
        model: `LightGlueForKeypointMatching`, or a runtime of exported graphs, which takes nothing but a higher
            threshold.
        max_keypoints: of the detector, of each photo.
        threshold, depth_confidence, width_confidence: of the matcher.

    Raises:
        InputError: a graph was made with something else.
    """
    config = model.config
    detector: Any = config.keypoint_detector_config
    confidences = {"depth_confidence": depth_confidence, "width_confidence": width_confidence}
    if hasattr(model, "engine"):
        if max_keypoints not in (None, detector.max_keypoints):
            raise InputError(f"{name} was exported for {detector.max_keypoints} keypoints: export it again")
        if threshold is not None:
            if threshold < config.filter_threshold:
                raise InputError(f"{name} was exported with the threshold {config.filter_threshold}: export it again")
            model.minimum_score = threshold
        for field, value in confidences.items():
            made = getattr(config, field)
            if value is not None and _confidence(value) != _confidence(made):
                raise InputError(f"{name} was exported with a {field} of {made}: export it again")
        return
    if max_keypoints is not None:
        detector.max_keypoints = max_keypoints
    for field, value in {"filter_threshold": threshold, **confidences}.items():
        if value is not None:
            setattr(config, field, value)


def _confidence(value: float) -> float:
    """One number for all that turn stopping or pruning off."""
    return value if 0 < value < 1 else -1.0
