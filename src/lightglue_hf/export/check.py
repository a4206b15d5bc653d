"""An exported graph against PyTorch, on procedural images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.textures import render_textures
from ..image_processing_lightglue import SIZE_DIVISOR
from ..modeling_lightglue import LightGlueForKeypointMatching
from .graphs import Arrays, Graph, Run

# What each weight format may do: the share of keypoints and of matches that must be common to the graph and PyTorch,
# and how far the scores of those may differ. The bundled checkpoint's, whole and on OpenVINO: fp32 100% and 8e-6, fp16
# 98.7% and 0.04, int8 69% and 0.30; with activations in int8 71% and 0.35.
TOLERANCES = {"fp32": (0.98, 1e-4), "fp16": (0.95, 0.05), "int8": (0.5, 0.5), "calibrated": (0.5, 0.5)}


class Check(NamedTuple):
    """How a graph compares with PyTorch on procedural images, or on random points for the matcher alone.

    Args:
        part: the graph.
        keypoints: share of the keypoints, as a set of coordinates, that both found; `None` for the matcher.
        matches: share of the matches that both found; `None` for the detector.
        compared: keypoints of the detector, otherwise matches, that both found.
        difference: largest difference of the scores of those; for the detector of their descriptors too.
    """

    part: str
    keypoints: float | None
    matches: float | None
    compared: int
    difference: float

    def __str__(self) -> str:
        shares = {"keypoints": self.keypoints, "matches": self.matches}
        common = ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items() if share is not None)
        return f"{self.part}: {common} in common with PyTorch, scores of {self.compared} within {self.difference:.1e}"


class ExportError(RuntimeError):
    """An exported graph does not do what the model does."""


def check(model: LightGlueForKeypointMatching, graph: Graph, run: Run, weights: str) -> Check:
    """Compare a graph with PyTorch.

    Args:
        model: computes what the graph is to compute.
        graph: what was exported.
        run: the exported file.
        weights: of `TOLERANCES`, how they are stored.

    Raises:
        ExportError: they differ by more than noise.
    """
    part = graph.part
    shared: list[set] = [set(), set()]
    union: list[set] = [set(), set()]
    differences = [0.0]
    for number, inputs in enumerate(_examples(model, graph)):
        theirs, ours = run(inputs), _reference(model, part, inputs)
        for kind, (first, second) in enumerate(
            zip(_found(part, inputs, theirs, number), _found(part, inputs, ours, number))
        ):
            common = first.keys() & second.keys()
            shared[kind] |= common
            union[kind] |= first.keys() | second.keys()
            differences += [float(np.abs(first[key] - second[key]).max()) for key in common]
    keypoints, matches = (len(both) / len(either) if either else 1.0 for both, either in zip(shared, union))
    result = Check(
        part,
        None if part == "matcher" else keypoints,
        None if part == "detector" else matches,
        len(shared[0 if part == "detector" else 1]),
        max(differences),
    )
    least, most = TOLERANCES[weights]
    if min(keypoints, matches) < least or not result.difference <= most:
        raise ExportError(f"the graph differs from PyTorch ({result})")
    return result


def _examples(model: LightGlueForKeypointMatching, graph: Graph) -> Iterator[Arrays]:
    """Inputs of a graph: in dynamic ones two shapes, and an image with nothing to see."""
    for seed, (height, width) in enumerate(((120, 160), (160, 136))):
        shapes = graph.shapes(
            batch=seed + 1, images=2 * seed + 2, height=height, width=width, keypoints=100 + 20 * seed
        )
        if graph.part == "matcher":
            pairs, _, n = shapes["mask"]
            yield random_features(model, pairs, n, height, width, seed)
            continue
        shape = shapes["pixel_values"]
        height, width = shape[-2:]
        pairs = shape[0] if graph.part == "pipeline" else -(-shape[0] // 2)
        canvases = render_textures(pairs, height + 16, width + 16, seed)
        images = np.stack([canvases[:, 8:-8, 8:-8], canvases[:, 12:-4, 5:-11]], 1).astype(np.float32) / 255
        images[-1, seed:] = 0 if seed else images[-1, seed:]
        sizes = np.tile([height, width], (pairs, 2, 1))
        sizes[0, 0] -= SIZE_DIVISOR + 3
        inputs = {
            "pixel_values": np.repeat(images[:, :, None], 3, 2),
            "image_sizes": np.maximum(sizes, SIZE_DIVISOR),
        }
        if graph.part == "detector":
            inputs = {name: value.reshape(-1, *value.shape[2:])[: shape[0]] for name, value in inputs.items()}
        yield {name: inputs[name] for name in graph.inputs}


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
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        run = model.extract_features if part == "detector" else model
        outputs: Any = run(**tensors)
    return {name: value.numpy() for name, value in outputs.items() if isinstance(value, Tensor)}


def _found(part: str, inputs: Arrays, outputs: Arrays, number: int) -> tuple[dict, dict]:
    """Keypoints, as (example, image, x, y), and matches, as the keypoints of both, each with its scores."""
    keypoints = outputs["keypoints"] if part != "matcher" else inputs["keypoints"]
    mask = outputs["mask"] if part != "matcher" else inputs["mask"]
    if part == "pipeline":
        sizes = inputs.get("image_sizes", np.array(inputs["pixel_values"].shape[-2:]))
        keypoints = keypoints * np.broadcast_to(sizes, (*keypoints.shape[:2], 2))[:, :, None, ::-1]
    names = np.round(keypoints, 1)
    points: dict = {}
    for at in zip(*np.nonzero(mask)):
        scores = np.zeros(1) if part != "detector" else np.append(outputs["descriptors"][at], outputs["scores"][at])
        points[(number, *at[:-1], *names[at])] = scores
    matched: dict = {}
    if part != "detector":
        for pair, i in zip(*np.nonzero(outputs["matches"][:, 0] >= 0)):
            j = outputs["matches"][pair, 0, i]
            matched[(number, pair, *names[pair, 0, i], *names[pair, 1, j])] = outputs["matching_scores"][pair, 0, i]
    return points, matched
