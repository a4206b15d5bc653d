"""Make tests/fixtures: figures of the reference implementation on random weights and inputs, float32, CPU.

    pip install torch==2.13.0 transformers==4.57.6 kornia==0.9.0 opencv-python-headless
    pip install --no-deps scm-lightglue==0.2.9
    python -m tests.make_fixtures

The weights come from tests/random_weights.py, the inputs from the seeds below. What computes the figures:

- matchers: LightGlue of scm-lightglue 0.2.9, a packaging of cvg/LightGlue@1fd587b. On figures that were made with
  cvg's own code, with other weights, it gave the same matches, stops and prune counts in 36 of 36 cases, and scores
  within 3.3e-7.
- SuperPoint, for which that package has no code: the dense scores and the descriptors of transformers 4.57.6; the
  selection of keypoints (threshold, border, top k) is restated below as cvg/LightGlue has it, since transformers
  keeps the right and the bottom border. On figures made with cvg's own code it gave the same keypoints in 9 of 9
  cases, scores within 1.2e-6 and descriptors within 1.7e-7.
- the resize before extraction: ImagePreprocessor of scm-lightglue (kornia, antialiased).
- the training loss: restated below from cvg/glue-factory@2d17e3b (gluefactory/models/matchers/lightglue.py and
  models/utils/losses.py); on a figure of that code it was the same to 1e-6.

Every figure whose discrete part (matches, stop, prune counts, keypoints) changes in float64, or when all weights are
moved by 1e-6 of themselves, is refused: a test must not depend on the processor's rounding.
"""

import importlib.util
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.superpoint.configuration_superpoint import SuperPointConfig
from transformers.models.superpoint.modeling_superpoint import SuperPointForKeypointDetection

from .random_weights import MATCHERS, WIDTH, random_weights

FIXTURES = Path(__file__).parent / "fixtures"
Arrays = dict[str, np.ndarray]

# The package's own face imports torchvision, for another detector; its modules are imported without it.
package = types.ModuleType("scm_lightglue")
package.__path__ = list(importlib.util.find_spec("scm_lightglue").submodule_search_locations)
sys.modules["scm_lightglue"] = package
from scm_lightglue.lightglue import LightGlue  # noqa: E402
from scm_lightglue.utils import ImagePreprocessor  # noqa: E402

POINTS = {"sp": (60, 75), "disk": (50, 61), "sift": (50, 61)}
SIZES = ((640, 480), (800, 600))  # (width, height); the second image is the first, enlarged
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "none_b2": {},
    "none_same": {},
    "nosize": {},
    "masked": {"static_lengths": [64, 128, 512]},
    "depth": {"depth_confidence": 0.95},
    "width": {"width_confidence": 0.97},
    "both": {"depth_confidence": 0.95, "width_confidence": 0.99},
    "both_w50": {"depth_confidence": 0.95, "width_confidence": 0.5},
    "both_same": {"depth_confidence": 0.95, "width_confidence": 0.99},
    "allpruned": {"width_confidence": 0.99, "matchability_bias": -60.0},
    "empty0": {"depth_confidence": 0.95, "width_confidence": 0.99},
}
DETECTION = {"max_num_keypoints": None, "detection_threshold": 0.0005, "remove_borders": 4, "nms_radius": 4}
DETECTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {  # the shape of the image and the settings
    "default": ((1, 3, 120, 160), {}),
    "gray_odd": ((1, 1, 117, 163), {}),
    "noborder": ((1, 3, 120, 160), {"max_num_keypoints": 80, "remove_borders": 0, "nms_radius": 2}),
    "th0_b2_top50": ((2, 3, 120, 160), {"max_num_keypoints": 50, "detection_threshold": 0.0, "nms_radius": 3}),
    "top64": ((1, 3, 120, 160), {"max_num_keypoints": 64}),
}
EXTRACTIONS = {  # the shape of the photo, the long side it is resized to
    "down": ((1, 1, 234, 331), 160),
    "none": ((1, 3, 120, 160), None),
    "portrait": ((1, 1, 331, 234), 160),
    "up": ((1, 3, 90, 71), 128),
}


# -- inputs


def random_pair(kind: str, seed: int, points: tuple[int, int], batch: int) -> tuple[Arrays, np.ndarray]:
    """The inputs of a pair, and how many points of its first image are seen again, in which order, in the second."""
    generator = np.random.default_rng(seed)
    n0, n1 = points
    order = np.stack([generator.permutation(n1)[: n0 * 4 // 5] for _ in range(batch)])

    def moved(first: np.ndarray, others: np.ndarray) -> np.ndarray:
        for values, from_first, places in zip(others, first, order, strict=True):
            values[places] = from_first[: len(places)]
        return others

    dim = MATCHERS[kind]["input_dim"]
    keypoints = generator.random((batch, n0, 2)) * SIZES[0]
    descriptors = generator.standard_normal((batch, n0, dim))
    values = {
        "keypoints0": keypoints,
        "keypoints1": moved(keypoints * 1.25, generator.random((batch, n1, 2)) * SIZES[1])
        + generator.standard_normal((batch, n1, 2)),
        "descriptors0": descriptors,
        "descriptors1": moved(descriptors, generator.standard_normal((batch, n1, dim)))
        + 0.45 * generator.standard_normal((batch, n1, dim)),
    }
    for image in (0, 1):
        values[f"descriptors{image}"] /= np.linalg.norm(values[f"descriptors{image}"], axis=-1, keepdims=True)
        values[f"image_size{image}"] = np.tile(SIZES[image], (batch, 1))
    if MATCHERS[kind]["add_scale_ori"]:
        scales, oris = np.exp2(1 + 3 * generator.random((batch, n0))), math.tau * generator.random((batch, n0))
        values |= {"scales0": scales, "oris0": oris}
        values["scales1"] = moved(1.25 * scales, np.exp2(1 + 3 * generator.random((batch, n1))))
        values["oris1"] = moved(oris, math.tau * generator.random((batch, n1)))
    return {f"in_{name}": value.astype(np.float32) for name, value in values.items()}, order


def inputs_of_case(kind: str, case: str) -> Arrays:
    n0, n1 = POINTS[kind]
    inputs, _ = random_pair(kind, 1, (n0, n0) if case.endswith("same") else (n0, n1), 2 if case == "none_b2" else 1)
    if case == "nosize":
        return {name: value for name, value in inputs.items() if "image_size" not in name}
    if case == "empty0":
        return {n: v[:, :0] if n.endswith("0") and "image_size" not in n else v for n, v in inputs.items()}
    return inputs


def random_image(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Soft blobs under noise, in steps of 1/256."""
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.random((*shape[:2], 8, 10)))
    blobs = F.interpolate(coarse, shape[2:], mode="bilinear", align_corners=False).numpy()
    return (np.floor(256 * (0.6 * blobs + 0.4 * generator.random(shape))) / 256).astype(np.float32)


# -- what must hold of every figure


def variants(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights, the same in float64, and twice with each moved by up to 1e-6 of itself."""
    generator = np.random.default_rng(0)

    def moved(weight: Tensor) -> Tensor:
        return (weight.double() * torch.from_numpy(1 + 1e-6 * generator.uniform(-1, 1, weight.shape))).float()

    doubles = {name: weight.double() for name, weight in weights.items()}
    return [weights, doubles, *({name: moved(weight) for name, weight in weights.items()} for _ in range(2))]


def agreed(runs: list[Arrays], discrete: tuple[str, ...]) -> Arrays:
    """The first run's figures, after the others were seen to agree with them."""
    for run in runs[1:]:
        for name, value in runs[0].items():
            if name in discrete:
                np.testing.assert_array_equal(run[name], value, err_msg=f"{name} depends on rounding")
            else:
                np.testing.assert_allclose(run[name], value, atol=2e-5, rtol=0, err_msg=name)
    return runs[0]


def save(name: str, arrays: Arrays) -> None:
    np.savez_compressed(FIXTURES / f"{name}.npz", **arrays)
    print(f"{name}: {(FIXTURES / f'{name}.npz').stat().st_size / 1e3:.0f} kB")


# -- matchers


def reference_matcher(kind: str, weights: dict[str, Tensor], settings: dict[str, Any]) -> Any:
    names = ("depth_confidence", "width_confidence", "filter_threshold")
    conf = {**MATCHERS[kind], "descriptor_dim": WIDTH, **{name: settings[name] for name in names}}
    model = LightGlue(features=None, flash=False, **conf).eval().to(weights["posenc.Wr.weight"].dtype)
    model.load_state_dict(weights)
    model.static_lengths = settings["static_lengths"]
    if settings["matchability_bias"] is not None:
        for layer in model.log_assignment:
            layer.matchability.bias.data.fill_(settings["matchability_bias"])
    return model


def run_matcher(model: Any, inputs: Arrays) -> dict[str, Any]:
    dtype = next(model.parameters()).dtype
    pair = {
        f"image{i}": {n[3:-1]: torch.from_numpy(v).to(dtype) for n, v in inputs.items() if n.endswith(str(i))}
        for i in (0, 1)
    }
    torch.set_default_dtype(dtype)  # that of the tables which the reference fills in
    try:
        with torch.no_grad():
            return model(pair)
    finally:
        torch.set_default_dtype(torch.float32)


def make_matchers() -> None:
    """The cases of the matchers. Stops and prunings differ between them, or the figures are refused."""
    stops: dict[str, set[int]] = {}
    for kind, sizes in MATCHERS.items():
        versions = variants(random_weights(kind))
        for case, changes in SETTINGS.items():
            settings = {"depth_confidence": -1, "width_confidence": -1, "filter_threshold": 0.1}
            settings |= {"static_lengths": None, "matchability_bias": None, **changes}
            inputs = inputs_of_case(kind, case)
            discrete = ("matches0", "matches1", "stop", "prune0", "prune1")
            names = (*discrete, "matching_scores0", "matching_scores1")
            runs = []
            for weights in versions:
                outputs = run_matcher(reference_matcher(kind, weights, settings), inputs)
                runs.append({name: np.asarray(outputs[name]) for name in names})
            figures = agreed(runs, discrete)

            matches = (figures["matches0"] >= 0).sum()
            pruned = len(np.unique(np.concatenate([figures["prune0"].ravel(), figures["prune1"].ravel()]))) > 1
            print(f"{kind} {case}: {matches} matches, stop {figures['stop']}, pruned {pruned}")
            if case in ("allpruned", "empty0"):
                assert matches == 0
                assert figures["stop"] < sizes["n_layers"]
            else:
                assert matches >= 0.25 * figures["matches0"].size
                assert matches < 0.9 * figures["matches0"].size
            if case in ("width", "both_w50"):
                assert pruned, "no point is pruned"
            if settings["depth_confidence"] < 0 and case != "allpruned":
                assert figures["stop"] == sizes["n_layers"]
            elif case not in ("allpruned", "empty0"):
                stops.setdefault(kind, set()).add(int(figures["stop"]))
            conf = json.dumps({**sizes, "descriptor_dim": WIDTH, **settings})
            save(
                f"{kind}_small__{case}",
                {**inputs, **{f"out_{n}": v for n, v in figures.items()}, "conf_json": np.array(conf)},
            )
    assert all(min(seen) < MATCHERS[kind]["n_layers"] for kind, seen in stops.items()), "no pair stops early"
    assert max(map(len, stops.values())) > 1, "all pairs stop at the same layer"
    assert len(set.union(*stops.values())) > 2, "stops are too few"


# -- the training loss


def make_loss() -> None:
    """The mean over all layers of the assignment's negative log-likelihood, plus the confidences' cross entropy.

    Labels: -1 for a point without match, -2 for one that counts nowhere. gamma is 1, matches and points without match
    weigh the same. A point is called confident where its best column, dustbin included, is already the last layer's.
    """
    n0, n1 = POINTS["sp"]
    inputs, order = random_pair("sp", 1, (n0, n1), 1)
    labels = [np.full((1, n), -1) for n in (n0, n1)]
    labels[0][0, : order.shape[1]] = order[0]
    labels[1][0, order[0]] = np.arange(order.shape[1])
    labels[0][0, 2] = labels[1][0, order[0, 2]] = -2  # one pair that counts nowhere
    labels[1][0, np.flatnonzero(labels[1][0] == -1)[:3]] = -2

    settings = {"depth_confidence": -1, "width_confidence": -1, "filter_threshold": 0.1}
    settings |= {"static_lengths": None, "matchability_bias": None}
    runs = []
    for weights in variants(random_weights("sp")):
        model = reference_matcher("sp", weights, settings)
        states: list[tuple[Tensor, Tensor]] = []
        for layer in model.transformers:
            layer.register_forward_hook(lambda _, __, output, states=states: states.append(output))
        run_matcher(model, inputs)
        with torch.no_grad():
            total, last, confidence = training_loss(model, states, *map(torch.from_numpy, labels))
        runs.append({"total": total.numpy(), "last": last.numpy(), "confidence": confidence.numpy()})
    figures = agreed(runs, ())
    arrays = {f"in_gt_matches{i}": labels[i] for i in (0, 1)} | {f"out_{n}": v[None] for n, v in figures.items()}
    save("sp_small__loss", arrays)


def training_loss(model: Any, states: list[tuple[Tensor, Tensor]], labels0: Tensor, labels1: Tensor) -> list[Tensor]:
    """The total loss, the last layer's likelihood alone, and the confidences' part, of a batch of one."""
    assignments = [layer(*state)[0][0] for layer, state in zip(model.log_assignment, states, strict=True)]

    def likelihood(assignment: Tensor) -> Tensor:
        matched = torch.nonzero(labels0[0] >= 0)[:, 0]
        unmatched = [assignment[:-1, -1][labels0[0] == -1], assignment[-1, :-1][labels1[0] == -1]]
        return -(assignment[matched, labels0[0, matched]].mean() + torch.cat(unmatched).mean()) / 2

    def best(assignment: Tensor, image: int) -> Tensor:
        return assignment[:-1].argmax(1) if image == 0 else assignment[:, :-1].argmax(0)

    entropies = []
    for i, head in enumerate(model.token_confidence):
        for image in (0, 1):
            same = best(assignments[i], image) == best(assignments[-1], image)
            logits = head.token[0](states[i][image])[0, :, 0]
            entropies.append(F.binary_cross_entropy_with_logits(logits, same.to(logits.dtype)))
    likelihoods = torch.stack([likelihood(assignment) for assignment in assignments])
    confidence = torch.stack(entropies).mean()
    return [likelihoods.mean() + confidence, likelihoods[-1], confidence]


# -- SuperPoint


def reference_superpoint(weights: dict[str, Tensor]) -> SuperPointForKeypointDetection:
    names = {f"{i}{half}": f"encoder.conv_blocks.{i - 1}.conv_{half}" for i in (1, 2, 3, 4) for half in "ab"}
    names |= {f"P{half}": f"keypoint_decoder.conv_score_{half}" for half in "ab"}
    names |= {f"D{half}": f"descriptor_decoder.conv_descriptor_{half}" for half in "ab"}
    config = SuperPointConfig(
        encoder_hidden_sizes=[len(weights[f"conv{i}a.bias"]) for i in (1, 2, 3, 4)],
        decoder_hidden_size=len(weights["convPa.bias"]),
        descriptor_decoder_dim=len(weights["convDb.bias"]),
    )
    model = SuperPointForKeypointDetection(config).eval().to(weights["conv1a.bias"].dtype)
    parts = ((*name.removeprefix("conv").split("."), weight) for name, weight in weights.items())
    model.load_state_dict({f"{names[layer]}.{part}": weight for layer, part, weight in parts})
    return model


@torch.no_grad()
def detect(model: SuperPointForKeypointDetection, image: Tensor, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Keypoints (x, y) in pixels, scores and descriptors, in order of their position."""
    image = image.to(next(model.parameters()).dtype)
    if image.shape[1] == 3:
        image = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    encoded = model.encoder(image).last_hidden_state
    model.keypoint_decoder.nms_radius = settings["nms_radius"]
    maps = model.keypoint_decoder._get_pixel_scores(encoded)
    inner = F.pad(torch.ones_like(maps), (-settings["remove_borders"],) * 4)
    maps = torch.where(F.pad(inner, (settings["remove_borders"],) * 4) > 0, maps, -1)
    found = []
    for scores, features in zip(maps, encoded, strict=True):
        y, x = torch.where(scores > settings["detection_threshold"])
        values, limit = scores[y, x], settings["max_num_keypoints"]
        if limit is not None and len(values) > limit:
            best = values.topk(limit).indices.sort().values
            y, x, values = y[best], x[best], values[best]
        keypoints = torch.stack([x, y], -1).to(image.dtype)
        found.append((keypoints, values, model.descriptor_decoder(features[None], keypoints.clone())))
    names = ("keypoints", "keypoint_scores", "descriptors")
    return {name: torch.stack(values) for name, values in zip(names, zip(*found))}


def detections(image: np.ndarray, settings: dict[str, Any]) -> dict[str, Tensor]:
    runs = [
        {name: value.numpy() for name, value in detect(model, torch.from_numpy(image), settings).items()}
        for model in map(reference_superpoint, variants(random_weights("superpoint")))
    ]
    return {name: torch.from_numpy(value) for name, value in agreed(runs, ("keypoints",)).items()}


def make_superpoint() -> None:
    for seed, (case, (shape, changes)) in enumerate(DETECTIONS.items()):
        settings, image = {**DETECTION, **changes}, random_image(seed, shape)
        found = detections(image, settings)
        n = found["keypoints"].shape[1]
        print(f"superpoint {case}: {n} keypoints")
        assert n == settings["max_num_keypoints"] if settings["max_num_keypoints"] else 150 < n < 400
        outputs = {f"out_{name}": value.numpy() for name, value in found.items()}
        save(f"superpoint__{case}", {"in_image": image, **outputs, "conf_json": np.array(json.dumps(settings))})

    for seed, (case, (shape, side)) in enumerate(EXTRACTIONS.items()):
        resized, scales = ImagePreprocessor(resize=side)(torch.from_numpy(random_image(10 + seed, shape)))
        found = detections(resized.numpy(), {**DETECTION, "max_num_keypoints": 64})
        found["keypoints"] = (found["keypoints"] + 0.5) / scales - 0.5
        assert found["keypoints"].shape[1] == 64
        arrays = {"in_size": np.array(shape[-2:]), "mid_resized": resized.numpy()}
        save(f"superpoint_extract__{case}", arrays | {f"out_{name}": value.numpy() for name, value in found.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_matchers()
    make_loss()
    make_superpoint()
