"""The arithmetic of a row and how fast this machine does such arithmetic: what a row could reach at best."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lightglue_hf import LightGlueConfig, LightGlueKeypointMatchingOutput, SuperPointConfig


@dataclass(frozen=True)
class Work:
    """Floating-point operations, a multiplication and an addition being two."""

    convolutions: float = 0.0
    matmuls: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.convolutions + other.convolutions, self.matmuls + other.matmuls)

    def __mul__(self, times: float) -> "Work":
        return Work(self.convolutions * times, self.matmuls * times)

    def seconds(self, rates: "Work") -> float:
        """At so many operations of each kind per second."""
        return self.convolutions / rates.convolutions + self.matmuls / rates.matmuls


def detector_work(config: SuperPointConfig, height: int, width: int) -> Work:
    """Of SuperPoint's convolutions for one image of at least a cell."""
    widths = [1, *config.encoder_hidden_sizes]
    macs = 0
    for i, (before, after) in enumerate(pairwise(widths)):
        pixels = (height >> i) * (width >> i)
        macs += pixels * 9 * after * (before + after)
    cells = (height // 8) * (width // 8)
    for outputs in (config.keypoint_decoder_dim, config.descriptor_decoder_dim):
        macs += cells * config.decoder_hidden_size * (9 * widths[-1] + outputs)
    return Work(convolutions=2.0 * macs)


def layer_work(config: LightGlueConfig, n0: int, n1: int) -> Work:
    """Of one layer for a pair with so many points: linear layers, and attention each way within and between images.

    Queries and keys of cross-attention count once: in published weights one projection makes both.
    """
    d, key_values = config.descriptor_dim, config.num_key_value_heads / config.num_attention_heads
    mlp = (2 * d) ** 2 + 2 * d * d
    self_projections = d * d * (2 + 2 * key_values)
    cross_projections = d * d * (2 + key_values)
    attention = d * 2 * (n0 * n0 + n1 * n1 + 2 * n0 * n1)
    return Work(matmuls=2.0 * ((n0 + n1) * (self_projections + cross_projections + 2 * mlp) + attention))


def assignment_work(config: LightGlueConfig, n0: int, n1: int) -> Work:
    return Work(matmuls=2.0 * ((n0 + n1) * config.descriptor_dim**2 + n0 * n1 * config.descriptor_dim))


def matcher_work(config: LightGlueConfig, layers: Iterable[tuple[int, int]]) -> Work:
    """Of a pair whose images have `(n0, n1)` points in each layer that runs; then they are assigned."""
    total = Work()
    if config.num_input_features != config.descriptor_dim:
        raise ValueError("an input projection is not counted")
    for n0, n1 in layers:
        total += layer_work(config, n0, n1)
        last = n0, n1
    return total + assignment_work(config, *last)


def layers_run(outputs: LightGlueKeypointMatchingOutput) -> list[list[tuple[int, int]]]:
    """For every pair, the points of both images in each layer that really ran."""
    stops, prune = (x.cpu() for x in (outputs.stop, outputs.prune))
    return [
        [tuple(int(n) for n in (prune[pair] > i).sum(-1)) for i in range(int(stop))]  # type: ignore[misc]
        for pair, stop in enumerate(stops)
    ]


def measured_rates(dtype: torch.dtype, device: str, repeats: int = 12) -> Work:
    """Operations per second: the best of several runs of a linear layer and of a convolution as the models have them.

    The linear layer is (2048, 512) by (512, 512), the convolution 3 x 3 with 64 channels on 96 x 640 pixels, channels
    last: as much as the caches hold. On whole photos it is the memory's rate that is measured.
    """
    weight = torch.randn(512, 512, dtype=dtype, device=device)
    points = torch.randn(2048, 512, dtype=dtype, device=device)
    convolution = nn.Conv2d(64, 64, 3, padding=1, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    maps = torch.randn(1, 64, 96, 640, dtype=dtype, device=device).to(memory_format=torch.channels_last)

    def best(run: Callable[[], Any], count: int) -> float:
        times = []
        for _ in range(count):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.no_grad():
        linear = best(lambda: [F.linear(points, weight) for _ in range(10)], repeats) / 10
        convolved = best(lambda: [convolution(maps) for _ in range(10)], repeats) / 10
    return Work(convolutions=2.0 * 96 * 640 * 64 * 64 * 9 / convolved, matmuls=2.0 * 2048 * 512 * 512 / linear)


def synchronize(device: str) -> None:
    """Wait for what was started on the device: calls return before an accelerator is done."""
    if device != "cpu":
        torch.accelerator.synchronize()
