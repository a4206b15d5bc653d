"""The size of the views in these tests, a grid of points over them, and bilinear sampling written out by hand."""

from __future__ import annotations

import torch
from torch import Tensor

HEIGHT, WIDTH = 96, 128


def lattice(batch: int, step: float = 3.0, device: str = "cpu") -> Tensor:
    rows, columns = (torch.arange(2, length - 2, step, device=device) for length in (HEIGHT, WIDTH))
    ys, xs = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([xs.flatten(), ys.flatten()], -1).double().expand(batch, -1, -1)


def sampled(image: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of `(h, w)` at `(n, 2)`, written out by hand."""
    points = points.clamp(min=torch.zeros(2), max=torch.tensor([image.shape[1] - 1.001, image.shape[0] - 1.001]))
    x, y = points.unbind(-1)
    left, top = x.floor().long(), y.floor().long()
    u, v = x - left, y - top
    upper = image[top, left] * (1 - u) + image[top, left + 1] * u
    lower = image[top + 1, left] * (1 - u) + image[top + 1, left + 1] * u
    return upper * (1 - v) + lower * v
