"""How tensors are computed: for a graph or for now, in parts or at once, in which precision."""

import torch
from torch import Tensor, nn


def is_traced() -> bool:
    """Whether a graph is made, which is to serve other values too."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def low_memory_cpu(module: nn.Module, x: Tensor) -> bool:
    """Whether to compute image by image and strip by strip: what is written is still in the caches when it is read.

    Memory is reused, too, where the operating system would hand out new pages. On accelerators more at once is
    better, batch statistics and gradients need the whole, and a graph is for other sizes, too.
    """
    return x.device.type == "cpu" and not (module.training or torch.is_grad_enabled() or is_traced())


def vector(a: int, b: int, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """`(2,)`, made on the device: `torch.tensor` would copy it there, and wait for that."""
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in (a, b)])


def as_autocast(x: Tensor) -> Tensor:
    """In the type that autocast, if enabled, gives every linear layer: converted once for several."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def full_precision_conv(conv: nn.Module, x: Tensor) -> Tensor:
    """Convolve in the type of the weights, even under autocast.

    Of 8-bit pixels, and of scores whose maxima are looked for, bfloat16 loses enough to move one keypoint in twenty.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return conv(x)
    with torch.autocast(device, enabled=False):
        return conv(x.to(next(conv.parameters()).dtype))


class FullPrecisionConv2d(nn.Conv2d):
    """Computes in float32 whatever the type of its weights, even under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._conv_forward(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
