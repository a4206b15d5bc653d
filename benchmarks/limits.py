"""The arithmetic of a row and how fast this machine does such arithmetic: what a row could reach at best."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Work:
    """Floating-point operations, a multiplication and an addition being two."""

    convolutions: float = 0.0
    matmuls: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.convolutions + other.convolutions, self.matmuls + other.matmuls)

    def __mul__(self, times: float) -> "Work":
        return Work(self.convolutions * times, self.matmuls * times)

    def total(self) -> float:
        return self.convolutions + self.matmuls

    def seconds(self, rates: "Work") -> float:
        """At so many operations of each kind per second."""
        return self.convolutions / rates.convolutions + self.matmuls / rates.matmuls


def work_of(call: Callable[[], Any]) -> Work:
    """The convolutions, linear layers and attention that really run in a call: no pruned points, no stopped pairs.

    With gradients enabled, for then our models compute images whole: without, in strips that overlap.
    """
    counter = FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: attention_flops})
    with torch.enable_grad(), counter:
        call()
    counts = {str(operator): count for operator, count in counter.get_flop_counts().get("Global", {}).items()}
    convolutions = sum(count for operator, count in counts.items() if "convolution" in operator)
    return Work(float(convolutions), float(sum(counts.values()) - convolutions))


def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products, of shapes; torch counts those of attention on accelerators alone."""
    batch, heads, n, width = query
    return 2 * batch * heads * n * key[-2] * (width + value[-1])


def measured_rates(dtype: torch.dtype, device: str, repeats: int = 12) -> Work:
    """Operations per second: the best of several runs of a linear layer and of a convolution as the models have them.

    The linear layer is (2048, 512) by (512, 512), the convolution 3 x 3 with 64 channels on 96 x 640 pixels, channels
    last: as much as the caches hold. On whole photos it is the memory's rate that is measured. On an accelerator,
    which these would not fill, both are sixteen times as large.
    """
    n = 1 if device == "cpu" else 16
    weight = torch.randn(512, 512, dtype=dtype, device=device)
    points = torch.randn(2048 * n, 512, dtype=dtype, device=device)
    convolution = nn.Conv2d(64, 64, 3, padding=1, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    maps = torch.randn(n, 64, 96, 640, dtype=dtype, device=device).to(memory_format=torch.channels_last)

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
    return Work(2.0 * n * 96 * 640 * 64 * 64 * 9 / convolved, 2.0 * n * 2048 * 512 * 512 / linear)


def synchronize(device: str) -> None:
    """Wait for what was started on the device: calls return before an accelerator is done."""
    if device != "cpu":
        torch.accelerator.synchronize()
