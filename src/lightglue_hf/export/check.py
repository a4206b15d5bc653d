"""An exported graph against PyTorch, on pictures of usual size.

Two things are judged apart. Whether the graph computes what the model does, its weights in float32, as strictly as
float32 allows: rows or axes exchanged, another normalisation, a layer left out or a threshold that is off show there.
And what weights in fewer bits do to it, by what published checkpoints bear.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.textures import render_textures
from ..geometry import mutual_nearest
from ..image_processing_lightglue import SIZE_DIVISOR
from ..modeling_lightglue import LightGlueForKeypointMatching
from .graphs import FEATURES, Arrays, Graph, Run

SAME_POINT = 1.5  # pixels: a keypoint may move to the next pixel, and nothing else is so near


class ExportError(RuntimeError):
    """An exported graph does not do what the model does."""


class Check(NamedTuple):
    """How a graph compares with PyTorch.

    Args:
        part: the graph.
        precision: how its weights are stored, and what it computes in if that is not float32.
        keypoints: share of the keypoints that both found, at most `SAME_POINT` apart; `None` for the matcher.
        matches: share of the matches, pairs of such keypoints, that both found; `None` for the detector.
        compared: matches, for the detector keypoints, that both found.
        distance: pixels between those keypoints, 99% quantile.
        descriptors: the same of 1 - cosine of their descriptors.
        median: of the differences of the scores of what is compared; a detector's are relative to its largest.
        tail: 99% quantile of those.
    """

    part: str
    precision: str
    keypoints: float | None
    matches: float | None
    compared: int
    distance: float
    descriptors: float
    median: float
    tail: float

    def __str__(self) -> str:
        shares = {"keypoints": self.keypoints, "matches": self.matches}
        common = ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items() if share is not None)
        return (
            f"{self.part}, {self.precision}: {common} in common with PyTorch, scores of {self.compared} within "
            f"{self.tail:.1e} (99%), {self.median:.1e} (median)"
        )


class Limits(NamedTuple):
    """What a [`Check`] has to keep: at least these shares, at most these differences."""

    keypoints: float
    matches: float
    distance: float
    descriptors: float
    median: float
    tail: float


# Measured on these pictures, of pipelines of fixed depth computed in float32: least shares of keypoints and matches,
# largest distance, descriptors, median and tail, of tiny, of published SuperPoint (S), ALIKED n16 (A) and DISK
# (D) with LightGlue, and of XFeat with LighterGlue (X). Calibrated by one of the pictures of the check.
#                        keypoints  matches   distance  descriptors  median    tail
#   OpenVINO  fp32       .998 D     1         5e-5      1.2e-7       1.2e-7 X  9.8e-5 X
#             fp16       .995 S     .991 tiny .006 A    4.5e-5 S     4.1e-4 X  .035 S
#             int8       .884 S     .871 S    1.4 S     .018 S       .044 X    .56 X
#             calibrated .886 S     .860 S    1.4 S     .066 D       .069 X    .58 X
#   ONNX      fp32       .998 D     1         6e-5      1.2e-7       6.0e-8    2.7e-5 S
#             fp16       .994 S     .994 X    .004 A    4.8e-5 S     3.5e-4 X  .038 S
#             int8       .998 D     .816 X    6e-5      1.2e-7       .14 X     .71 X
# In bfloat16 on OpenVINO, which is told and not judged, of keypoints and matches are kept: tiny .995, .991,
# S .980, .923, A .934, .909, D .937, .915, X .960, .800.
LIMITS = {
    "fp32": Limits(0.99, 0.99, 0.01, 1e-5, 1e-4, 1e-3),
    "fp16": Limits(0.95, 0.9, 1.5, 1e-3, 5e-3, 0.15),
    "int8": Limits(0.7, 0.6, 1.5, 0.06, 0.25, 0.85),
    "calibrated": Limits(0.5, 0.4, 1.5, 0.2, 0.25, 0.9),
}


def check(part: str, run: Run, examples: list[Example], precision: str, limits: Limits | None) -> Check:
    """Compare a graph with PyTorch.

    Args:
        part: of the model.
        run: the exported file.
        examples: see [`examples_of`].
        precision: a word for the result.
        limits: what is too far; `None` if only NaN and Inf are.

    Raises:
        ExportError: the graph is too far from PyTorch or gives NaN or Inf, or, with limits, nothing was compared.
    """
    shared, union = np.zeros(2), np.zeros(2)  # keypoints and matches
    differences: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in ("distance", "descriptors", "scores")}
    for inputs, wanted in examples:
        found = run(inputs)
        broken = [name for name, value in found.items() if not np.isfinite(value).all()]
        if broken:
            raise ExportError(f"the graph of the {part}, {precision}, gives NaN or Inf: {', '.join(broken)}")
        one = _compare(part, inputs, found, wanted)
        shared += one.shared
        union += one.union
        for name in differences:
            differences[name].append(getattr(one, name))
    kind = 0 if part == "detector" else 1
    if limits is not None and not shared[kind]:
        what = ("keypoint", "match")[kind]
        raise ExportError(
            f"the graph of the {part}, {precision}, and PyTorch have no {what} in common on the pictures of the "
            "check, so there was nothing to compare" + ("" if union[kind] else f": neither found any {what}")
        )
    keypoints, matches = (float(both / either) if either else 1.0 for both, either in zip(shared, union))
    quantiles = {name: _quantile(values, 0.99) for name, values in differences.items()}
    result = Check(
        part,
        precision,
        None if part == "matcher" else keypoints,
        None if part == "detector" else matches,
        int(shared[kind]),
        quantiles["distance"],
        quantiles["descriptors"],
        _quantile(differences["scores"], 0.5),
        quantiles["scores"],
    )
    if limits is not None:
        broken = [f"{name} {got:.2g}, limit {limit:.2g}" for name, got, limit in _beyond(result, limits)]
        if broken:
            raise ExportError(f"the graph differs from PyTorch ({result}): {'; '.join(broken)}")
    return result


def _quantile(values: list[np.ndarray], q: float) -> float:
    joined = np.concatenate(values)
    return float(np.quantile(joined, q)) if len(joined) else 0.0


def _beyond(result: Check, limits: Limits) -> Iterator[tuple[str, float, float]]:
    for name, limit in limits._asdict().items():
        got = getattr(result, name)
        least = name in ("keypoints", "matches")
        if got is not None and not (got >= limit if least else got <= limit):
            yield name, got, limit


# ---------------------------------------------------------------------------------------------------------------------
# What is compared


class Compared(NamedTuple):
    """Of an example: counts of keypoints and matches, common and in all, and differences of the common ones."""

    shared: np.ndarray
    union: np.ndarray
    distance: np.ndarray
    descriptors: np.ndarray
    scores: np.ndarray


def _compare(part: str, inputs: Arrays, found: Arrays, wanted: Arrays) -> Compared:
    points, theirs = _points(part, inputs, found), _points(part, inputs, wanted)
    masks = [(source if part != "matcher" else inputs)["mask"] > 0 for source in (found, wanted)]
    masks = [mask.reshape(-1, mask.shape[-1]) for mask in masks]
    partners = np.stack([_partners(*both) for both in zip(points, theirs, *masks)])  # (images, n) into `wanted`
    image, i = np.nonzero(partners >= 0)
    j = partners[image, i]
    counts = [int(mask.sum()) for mask in masks]
    shared, union = [len(i)], [sum(counts) - len(i)]
    distance = np.linalg.norm(points[image, i] - theirs[image, j], axis=-1)
    descriptors = np.zeros(0)
    if "descriptors" in found:
        d = found["descriptors"].shape[-1]
        first, second = (x["descriptors"].reshape(len(partners), -1, d) for x in (found, wanted))
        descriptors = 1 - _cosine(first[image, i], second[image, j])
    if part == "detector":
        largest = np.abs(wanted["scores"]).max(initial=0) or 1.0
        scores = np.abs(found["scores"][image, i] - wanted["scores"][image, j]) / largest
        return Compared(np.array([*shared, 0]), np.array([*union, 0]), distance, descriptors, scores)

    first, second = found["matches"][:, 0], wanted["matches"][:, 0]
    pair, i = np.nonzero(first >= 0)
    here, there = partners[2 * pair, i], partners[2 * pair + 1, first[pair, i]]
    same = (here >= 0) & (there >= 0) & (second[pair, here] == there)
    shared.append(int(same.sum()))
    union.append(len(i) + int((second >= 0).sum()) - shared[1])
    scores = np.abs(
        found["matching_scores"][pair[same], 0, i[same]] - wanted["matching_scores"][pair[same], 0, here[same]]
    )
    return Compared(np.array(shared), np.array(union), distance, descriptors, scores)


def _points(part: str, inputs: Arrays, outputs: Arrays) -> np.ndarray:
    """`(images, n, 2)`, pixels."""
    points = (outputs if part != "matcher" else inputs)["keypoints"]
    if part == "pipeline":
        sizes = inputs.get("image_sizes", np.array(inputs["pixel_values"].shape[-2:]))
        points = points * np.broadcast_to(sizes, (*points.shape[:2], 2))[:, :, None, ::-1]
    return points.reshape(-1, *points.shape[-2:])


def _partners(found: np.ndarray, wanted: np.ndarray, mask: np.ndarray, their_mask: np.ndarray) -> np.ndarray:
    """For each point the same one in `wanted`, or -1."""
    if not mask.any() or not their_mask.any():
        return np.full(len(found), -1)
    first, second = (torch.from_numpy(np.ascontiguousarray(x)).double() for x in (found, wanted))
    distances = torch.cdist(first, second)
    distances[~torch.from_numpy(mask)] = math.inf
    distances[:, ~torch.from_numpy(their_mask)] = math.inf
    nearest, mutual, _, _ = mutual_nearest(distances)
    near = distances.gather(1, nearest[:, None])[:, 0] <= SAME_POINT
    return torch.where(mutual & near, nearest, -1).numpy()


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(-1) / np.maximum(norms, 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and points


class Example(NamedTuple):
    """Inputs of a graph, and what PyTorch makes of them."""

    inputs: Arrays
    outputs: Arrays


def examples_of(
    model: LightGlueForKeypointMatching,
    graph: Graph,
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((480, 640), (120, 160)),
) -> list[Example]:
    """What a graph is compared on: pictures and the same seen from elsewhere, one pair 640x480, others small.

    In the small ones fewer keypoints are found than there are columns, so that all that pass the threshold count, and
    one picture is black. A matcher gets the keypoints of the model's own detector, and random ones, some of them
    padding; a matcher whose detector cannot be traced, or that has none, random ones only.

    Args:
        model: PyTorch's.
        graph: of a part of it, in the layout of this package.
        sizes: (height, width) of the first pair, and of the others.
    """
    found = []
    for seed, (height, width) in enumerate(sizes):
        shapes = graph.shapes(batch=seed + 1, images=2 * seed + 2, height=height, width=width, keypoints=300)
        if graph.part == "matcher":
            found.append(_matcher_inputs(model, graph, shapes["mask"][0], shapes["mask"][2], height, width, seed))
            continue
        shape = shapes["pixel_values"]
        pairs = shape[0] if graph.part == "pipeline" else -(-shape[0] // 2)
        images = photos(pairs, shape[-2], shape[-1], seed)
        if seed:
            images[-1, 1] = 0
        within = np.tile(shape[-2:], (pairs, 2, 1))
        within[0, 0] -= SIZE_DIVISOR + 3
        inputs = {"pixel_values": images, "image_sizes": np.maximum(within, SIZE_DIVISOR)}
        if graph.part == "detector":
            inputs = {name: value.reshape(-1, *value.shape[2:])[: shape[0]] for name, value in inputs.items()}
        found.append({name: inputs[name] for name in graph.inputs})
    return [Example(inputs, _reference(model, graph.part, inputs)) for inputs in found]


def photos(pairs: int, height: int, width: int, seed: int) -> np.ndarray:
    """`(pairs, 2, 3, height, width)` float32 in [0, 1]: procedural pictures, the second of each by a homography."""
    canvases = render_textures(pairs, height, width, seed)
    # output pixel -> input pixel: turned by 3 degrees, a little larger, seen from the side
    warp = (0.97, 0.05, 0.01 * width, -0.05, 0.97, 0.03 * height, 0.02 / width, 0.03 / height)
    seen = [Image.fromarray(x).transform((width, height), Image.Transform.PERSPECTIVE, warp, 2) for x in canvases]
    images = np.stack([canvases, np.stack([np.asarray(picture) for picture in seen])], 1)
    return np.repeat(images[:, :, None].astype(np.float32) / 255, 3, 2)


def _matcher_inputs(
    model: LightGlueForKeypointMatching, graph: Graph, pairs: int, n: int, height: int, width: int, seed: int
) -> Arrays:
    config = model.config
    if seed or not config.use_keypoint_detector or not getattr(config.keypoint_detector_config, "exportable", True):
        return random_features(model, pairs, n, height, width, seed)
    with torch.no_grad():
        features = model.extract_features(torch.from_numpy(photos(pairs, height, width, seed)))
    columns = graph.inputs["mask"].axes[2]
    if isinstance(columns, int):
        features = features.padded(max(columns, features["keypoints"].shape[2]))
    arrays = {name: features[name] for name in FEATURES if name in graph.inputs}
    if isinstance(columns, int):
        arrays = {name: x if name == "image_sizes" else x[:, :, :columns] for name, x in arrays.items()}
    return {name: x.numpy() for name, x in arrays.items()}


def random_features(
    model: LightGlueForKeypointMatching, pairs: int, n: int, height: int, width: int, seed: int
) -> Arrays:
    """Points and the same moved, in another order and with noise; some of them are padding."""
    rng = np.random.default_rng(seed)
    points = rng.random((pairs, n, 2)) * [width, height]
    descriptors = rng.normal(size=(pairs, n, model.config.num_input_features))
    order = rng.permutation(n)
    both = np.stack([descriptors, descriptors[:, order] + 0.3 * rng.normal(size=descriptors.shape)], 1)
    inputs = {
        "keypoints": np.stack([points, points[:, order] + 3], 1).astype(np.float32),
        "descriptors": (both / np.linalg.norm(both, axis=-1, keepdims=True)).astype(np.float32),
        "mask": (rng.random((pairs, 2, n)) < 0.9).astype(np.int32),
        "image_sizes": np.tile([height, width], (pairs, 2, 1)),
    }
    if model.config.add_scale_ori:
        inputs |= {name: rng.random((pairs, 2, n)).astype(np.float32) for name in ("scales", "orientations")}
    return inputs


def _reference(model: LightGlueForKeypointMatching, part: str, inputs: Arrays) -> Arrays:
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        if part == "matcher":
            outputs: Any = model.match_features(**tensors)
        else:
            features = model.extract_features(tensors["pixel_values"], tensors.get("image_sizes"))
            outputs = dict(features)
            if part == "pipeline":
                outputs |= model.match_features(features)
    return {name: value.numpy() for name, value in outputs.items() if isinstance(value, Tensor)}
