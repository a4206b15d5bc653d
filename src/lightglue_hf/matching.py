"""One pair of photos: what a model finds in it, which geometry agrees, and the words and files that say so.

Points are (x, y) in pixels of the photos, with the centre of the first pixel at (0, 0).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from . import __version__
from .evaluation import estimate_homography, estimate_relative_pose, judge_against_chance
from .evaluation.methods import Prediction, extract, seconds, to_prediction
from .evaluation.verdict import Verdict
from .turns import match_turned
from .utils.optional import import_optional


class Matches(NamedTuple):
    """What a model says of a pair, in pixels of the photos, and how it got there.

    Args:
        prediction: keypoints, matches and scores.
        sizes: (height, width) of the photos as the model saw them.
        stop: the layer after which the model stopped; `None` where a graph does not say.
        layers: that the model has.
        prune: of each photo `(n,)`, in the order of its keypoints, as in the model's output; `None` as above.
        times: seconds of each part.
        engine: what computed it.
        turns: counter-clockwise quarter turns of the second photo, with which it was found.
    """

    prediction: Prediction
    sizes: list[tuple[int, int]]
    stop: int | None
    layers: int
    prune: tuple[np.ndarray, np.ndarray] | None
    times: dict[str, float]
    engine: str
    turns: int = 0

    @property
    def seconds(self) -> float:
        return sum(self.times.values())


class Geometry(NamedTuple):
    """What agrees with the matches."""

    verdict: Verdict
    homography: np.ndarray | None
    homography_inliers: np.ndarray
    pose: np.ndarray | None  # (4, 4), from the first camera's coordinates to the second's; of calibrated cameras
    pose_inliers: np.ndarray | None


# ---------------------------------------------------------------------------------------------------------------------
# Matches and geometry


def match_photos(
    processor: Any,
    model: Any,
    images: Sequence[Image.Image],
    longest_edge: int | None = None,
    turns: int = 1,
    tiles: bool = False,
) -> Matches:
    """Match two photos.

    Args:
        processor: of the model.
        model: `LightGlueForKeypointMatching`, or a runtime of exported graphs.
        images: two.
        longest_edge: pixels that the longer side of each is resized to; as the processor is configured, by default.
        turns, tiles: as in `match_turned`.
    """
    pair = (images[0], images[1])
    start = seconds(model)
    times = {}
    turned = 0
    with torch.inference_mode():
        if hasattr(model, "engine") or turns > 1 or tiles:  # one graph does it all, or several searches
            outputs, turned = match_turned(model, processor, pair, turns, tiles, longest_edge)
        else:
            features = extract(model, processor, pair, longest_edge)
            times["keypoints"] = seconds(model) - start
            outputs = model.match_features(features)
    prediction = to_prediction(outputs, pair)
    times["matching"] = seconds(model) - start - sum(times.values())
    stop, prune = getattr(outputs, "stop", None), getattr(outputs, "prune", None)
    if prune is not None:
        first, second = (prune[0, i][outputs.mask[0, i].bool()].cpu().numpy() for i in range(2))
    return Matches(
        prediction,
        sizes=[(int(height), int(width)) for height, width in outputs.image_sizes[0].tolist()],
        stop=None if stop is None else int(stop[0]),
        layers=model.config.num_hidden_layers,
        prune=None if prune is None else (first, second),
        times=times,
        engine=getattr(model, "engine", f"PyTorch {torch.__version__} on {model.device}"),
        turns=turned,
    )


def find_geometry(
    matches: Matches, images: Sequence[Image.Image], focal_lengths: Sequence[float] | None = None
) -> Geometry:
    """Fit a fundamental matrix, a homography, and a pose where the cameras are known, and judge by the first.

    Args:
        matches: of the images.
        images: two.
        focal_lengths: of each camera, in pixels of its photo.

    Raises:
        MissingPackageError: PoseLib is not installed.
    """
    matched = matches.prediction.matched
    pose = pose_inliers = None
    verdict = judge_against_chance(*matched, [(image.height, image.width) for image in images])
    if focal_lengths:
        first, second = (intrinsics(image, length) for image, length in zip(images, focal_lengths))
        pose, pose_inliers = estimate_relative_pose(*matched, first, second)
    return Geometry(verdict, *estimate_homography(*matched), pose, pose_inliers)


def intrinsics(image: Image.Image, focal_length: float) -> np.ndarray:
    """The matrix `(3, 3)` of a camera whose axis passes through the middle of its photo."""
    centre = (image.width - 1) / 2, (image.height - 1) / 2
    return np.array([[focal_length, 0, centre[0]], [0, focal_length, centre[1]], [0, 0, 1]])


def essential_matrix(pose: np.ndarray) -> np.ndarray:
    """`(3, 3)` with `r1^T E r0 = 0` for rays in the coordinates of either camera."""
    return np.cross(pose[:3, 3], pose[:3, :3], axisb=0, axisc=0)


# ---------------------------------------------------------------------------------------------------------------------
# In words


def describe_matches(matches: Matches) -> str:
    """How many there are, and the layer that found them."""
    layers = f", stopped after layer {matches.stop} of {matches.layers}" if matches.stop is not None else ""
    return f"{len(matches.prediction.matches)} matches{layers}"


def describe_turn(matches: Matches) -> str:
    """How the second photo was turned to be matched best, where turns were tried."""
    how = f"turned by {90 * matches.turns} degrees counter-clockwise" if matches.turns else "as it is"
    return f"the second photo matches best {how}"


def describe(verdict: Verdict) -> str:
    """One line: the inliers, and what they are worth."""
    worth = {
        "yes": "more than chance would give",
        "no": "no more than chance would give",
        "too few": "too few matches to tell it from chance",
    }[verdict.answer]
    if verdict.fundamental is None:
        return f"no fundamental matrix found: {worth}"
    share = f"{verdict.inliers.mean():.0%} of the matches"
    return f"{verdict.inliers.sum()} inliers of a fundamental matrix (1.5 px), {share}: {worth}"


# ---------------------------------------------------------------------------------------------------------------------
# In files


def to_metadata(
    matches: Matches, geometry: Geometry | None, images: Sequence[Image.Image], names: Sequence[str], **settings: Any
) -> dict[str, Any]:
    """What the arrays are of, as JSON has it.

    Args:
        names: of the photos.
        settings: that they were matched with.
    """
    return {
        "images": list(names),
        "image_sizes": [[image.height, image.width] for image in images],  # (height, width)
        **settings,
        "engine": matches.engine,
        "stop": matches.stop,
        "turned": 90 * matches.turns,  # degrees, the second photo, counter-clockwise
        "seconds": round(matches.seconds, 4),
        "version": __version__,
        "verdict": None if geometry is None else to_json(geometry.verdict),
    }


def to_arrays(prediction: Prediction, geometry: Geometry | None) -> dict[str, np.ndarray]:
    """What is saved: matched points, all points and which of them match, inliers and the matrices that were found."""
    matched0, matched1 = prediction.matched
    arrays = {
        "keypoints0": matched0,  # (m, 2), of the matches
        "keypoints1": matched1,
        "matching_scores": prediction.matching_scores,
        "matches": prediction.matches,  # (m, 2), indices into the next two
        "all_keypoints0": prediction.keypoints0,
        "all_keypoints1": prediction.keypoints1,
        "unmatched0": np.setdiff1d(np.arange(len(prediction.keypoints0)), prediction.matches[:, 0]),
        "unmatched1": np.setdiff1d(np.arange(len(prediction.keypoints1)), prediction.matches[:, 1]),
    }
    if geometry is not None:
        arrays |= {"inliers": geometry.verdict.inliers, "homography_inliers": geometry.homography_inliers}
        matrices = {"fundamental": geometry.verdict.fundamental, "homography": geometry.homography}
        if geometry.pose is not None:
            matrices |= {"pose": geometry.pose, "essential": essential_matrix(geometry.pose)}
        if geometry.pose_inliers is not None:
            arrays["pose_inliers"] = geometry.pose_inliers
        arrays |= {name: matrix for name, matrix in matrices.items() if matrix is not None}
    return arrays


def to_json(verdict: Verdict) -> dict[str, Any]:
    false_alarms = verdict.log10_false_alarms
    return {
        "answer": verdict.answer,
        "inliers": int(verdict.inliers.sum()),
        "log10_false_alarms": round(false_alarms, 3) if math.isfinite(false_alarms) else None,
    }


def encode(metadata: dict[str, Any], arrays: dict[str, np.ndarray], suffix: str) -> bytes:
    """The bytes of a `.json` file, or of a `.npz` or `.h5` with arrays and the rest as JSON in `metadata`.

    Raises:
        MissingPackageError: h5py is not installed, for `.h5`.
    """
    if suffix == ".json":
        fields = metadata | {name: values.tolist() for name, values in arrays.items()}
        return f"{json.dumps(fields)}\n".encode()
    buffer = io.BytesIO()
    if suffix == ".h5":
        h5py = import_optional("h5py", "train")
        with h5py.File(buffer, "w") as file:
            for name, values in arrays.items():
                file[name] = values
            file.attrs["metadata"] = json.dumps(metadata)
    else:
        contents: dict[str, Any] = {**arrays, "metadata": np.array(json.dumps(metadata))}
        np.savez_compressed(buffer, **contents)
    return buffer.getvalue()
