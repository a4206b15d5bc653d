"""Weights under the names of cvg/LightGlue@1fd587b, drawn from a seed: the same bits on every processor.

They are such that random pairs are matched, stop and lose points at different layers: descriptors pass through the
layers nearly unchanged, the projections before the assignment are a large multiple of the identity, and the
confidences are spread and biased.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

MATCHERS = {  # descriptor_dim is 64
    "sp": {"input_dim": 64, "num_heads": 4, "n_layers": 4, "add_scale_ori": False},
    "disk": {"input_dim": 32, "num_heads": 2, "n_layers": 3, "add_scale_ori": False},
    "sift": {"input_dim": 32, "num_heads": 4, "n_layers": 3, "add_scale_ori": True},
}
CONFIDENCE_BIASES = {"sp": (10.0, 7.0, 14.0), "disk": (6.0, 15.0), "sift": (7.0, 12.0)}
MATCHABILITY_BIASES = {"sp": 3.0, "disk": 1.5, "sift": 2.0}
WIDTH = 64
SUPERPOINT = {  # out, in, kernel size
    "conv1a": (64, 1, 3),
    "conv1b": (64, 64, 3),
    "conv2a": (64, 64, 3),
    "conv2b": (64, 64, 3),
    "conv3a": (128, 64, 3),
    "conv3b": (128, 128, 3),
    "conv4a": (128, 128, 3),
    "conv4b": (128, 128, 3),
    "convPa": (256, 128, 3),
    "convPb": (65, 256, 1),
    "convDa": (256, 128, 3),
    "convDb": (64, 256, 1),
}


def random_weights(kind: str) -> dict[str, Tensor]:
    """The float32 state dict of a matcher (`sp`, `disk`, `sift`) or of SuperPoint (`superpoint`).

    SuperPoint has its published widths, but descriptors of 64 numbers, as the `sp` matcher takes them.
    """
    return superpoint_weights() if kind == "superpoint" else matcher_weights(kind)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers of mean 0 and variance 1, in float64.

    The seed is the tensor's name. They are made from the generator's raw bits by exact operations: numpy keeps the
    raw stream of a bit generator the same in all versions, and not what its distributions make of it.
    """
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape)).reshape(shape)
    return ((raw >> np.uint64(11)) * 2.0**-52 - 1) * math.sqrt(3)


def matcher_weights(kind: str) -> dict[str, Tensor]:
    sizes = MATCHERS[kind]
    layers = sizes["n_layers"]
    thresholds = [0.8 + 0.1 * math.exp(-4 * layer / layers) for layer in range(layers)]
    linear = {"posenc.Wr": (WIDTH // sizes["num_heads"] // 2, 4 if sizes["add_scale_ori"] else 2)}
    if sizes["input_dim"] != WIDTH:
        linear["input_proj"] = (WIDTH, sizes["input_dim"])
    for i in range(layers):
        for block, projections in {
            "self_attn": {"Wqkv": 3 * WIDTH, "out_proj": WIDTH},
            "cross_attn": {"to_qk": WIDTH, "to_v": WIDTH, "to_out": WIDTH},
        }.items():
            prefix = f"transformers.{i}.{block}"
            linear |= {f"{prefix}.{name}": (rows, WIDTH) for name, rows in projections.items()}
            linear |= {f"{prefix}.ffn.0": (2 * WIDTH, 2 * WIDTH), f"{prefix}.ffn.3": (WIDTH, 2 * WIDTH)}
            linear[f"{prefix}.ffn.1"] = (2 * WIDTH,)
        linear |= {f"log_assignment.{i}.matchability": (1, WIDTH), f"log_assignment.{i}.final_proj": (WIDTH, WIDTH)}
        if i < layers - 1:
            linear[f"token_confidence.{i}.token.0"] = (1, WIDTH)

    weights = {"confidence_thresholds": np.array(thresholds)}
    for name, shape in linear.items():
        weights[f"{name}.weight"] = matcher_weight(name, noise(f"{kind}.{name}.weight", shape))
        if name != "posenc.Wr":
            weights[f"{name}.bias"] = matcher_bias(kind, name, noise(f"{kind}.{name}.bias", shape[:1]))
    return {name: torch.from_numpy(weight.astype(np.float32)) for name, weight in weights.items()}


def matcher_weight(name: str, noise: np.ndarray) -> np.ndarray:
    if name.endswith("final_proj"):
        return 13 * np.eye(WIDTH) + 0.15 * noise
    if name.endswith("ffn.1"):  # the layer norm
        return 1 + 0.1 * noise
    spreads = {
        "posenc.Wr": 0.9,
        "matchability": 2.5,
        "token.0": 6.0,
        "ffn.3": 0.007,
        "ffn.0": 0.05,
        "input_proj": 0.125,
    }
    return next((spread for end, spread in spreads.items() if name.endswith(end)), 0.25) * noise


def matcher_bias(kind: str, name: str, noise: np.ndarray) -> np.ndarray:
    if name.endswith("matchability"):
        return MATCHABILITY_BIASES[kind] + 0 * noise
    if name.endswith("token.0"):
        return CONFIDENCE_BIASES[kind][int(name.split(".")[1])] + 0 * noise
    return 0.03 * noise


def superpoint_weights() -> dict[str, Tensor]:
    weights = {}
    for name, (rows, columns, size) in SUPERPOINT.items():
        spread = math.sqrt(2 / (columns * size**2)) * (6 if name == "convPb" else 1)  # peaked scores
        weights[f"{name}.weight"] = spread * noise(f"{name}.weight", (rows, columns, size, size))
        weights[f"{name}.bias"] = (0.25 if name == "convPb" else 0.02) * noise(f"{name}.bias", (rows,))
    return {name: torch.from_numpy(weight.astype(np.float32)) for name, weight in weights.items()}
