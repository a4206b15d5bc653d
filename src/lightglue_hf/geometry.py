"""Sizes, resizing, and which points lie on an image or nearest to each other: each rule once.

Sizes are (height, width); points are (x, y) in pixels with the centre of the first pixel at (0, 0), so that an image
spans [-0.5, width - 0.5). Resizing keeps the borders of an image in place: x' + 0.5 = (x + 0.5) * w' / w.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def finest_float(device: torch.device) -> torch.dtype:
    """Double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def scale_keypoints(keypoints: Tensor, from_sizes: Any, to_sizes: Any) -> Tensor:
    """Move keypoints along with a resize of their image, by the half-pixel rule.

    Args:
        keypoints: `(..., n, 2)`, pixels, (x, y), centre of the first pixel = (0, 0).
        from_sizes: `(..., 2)`, (height, width) of the image the keypoints lie in.
        to_sizes: `(..., 2)`, (height, width) of the image the result lies in.

    Returns:
        `(..., n, 2)`, pixels; computed in double precision where the device has it, returned as float32 (float64 if
        the keypoints are), so that a round trip stays within 1e-3 pixels on images of up to 8192 pixels.

    Example:
        >>> scale_keypoints(torch.tensor([[639.0, 479.0]]), (480, 640), (2160, 3840))
        tensor([[3836.5000, 2157.2500]])
    """
    precision = finest_float(keypoints.device)
    from_wh, to_wh = (
        torch.as_tensor(sizes, dtype=precision, device=keypoints.device).flip(-1).unsqueeze(-2)
        for sizes in (from_sizes, to_sizes)
    )
    scaled = (keypoints.to(precision) + 0.5) * (to_wh / from_wh) - 0.5
    return scaled.to(torch.promote_types(keypoints.dtype, torch.float32))


def turn_keypoints(keypoints: Tensor, image_size: Any, turns: int) -> Tensor:
    """Move keypoints along with quarter turns of their image, counter-clockwise as `rot90(turns)` of (height, width).

    Args:
        keypoints: `(..., n, 2)`, pixels, (x, y), centre of the first pixel = (0, 0).
        image_size: (height, width) of the image the keypoints lie in, as numbers.
        turns: any whole number; negative ones turn back.

    Returns:
        `(..., n, 2)`, pixels of the turned image. Pixels go to pixels: half a pixel and any binary fraction that
        float32 holds is exact.

    Example:
        >>> turn_keypoints(torch.tensor([[639.0, 0.0]]), (480, 640), 1)  # the corner at the top right
        tensor([[0., 0.]])
    """
    height, width = image_size
    x, y = keypoints.unbind(-1)
    turned = ((x, y), (y, width - 1 - x), (width - 1 - x, height - 1 - y), (height - 1 - y, x))
    return torch.stack(turned[turns % 4], -1)


def resized_shape(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The (height, width) after a resize to `{"height": h, "width": w}` or `{"longest_edge": n}`, at least 1 pixel."""
    if "height" in size:
        return size["height"], size["width"]
    scale = size["longest_edge"] / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def pixels_inside(image_sizes: Tensor, height: int, width: int, border: int = 0, far_borders: bool = True) -> Tensor:
    """The pixels of a canvas that lie on an image at its top left, and away from the image's edges.

    Args:
        image_sizes: `(batch, 2)` (height, width) of the images.
        height, width: of the canvas.
        border: pixels nearer to an edge than this are left out.
        far_borders: at the right and bottom edges, too.

    Returns:
        `(batch, height, width)` bool.
    """
    y = torch.arange(height, device=image_sizes.device)
    x = torch.arange(width, device=image_sizes.device)
    last = image_sizes - border if far_borders else image_sizes
    in_rows = (y >= border) & (y < last[:, :1])
    in_columns = (x >= border) & (x < last[:, 1:])
    return in_rows[:, :, None] & in_columns[:, None, :]


def points_inside(points: Any, image_size: Any) -> Any:
    """`(..., 2)` points -> `(...)` bool: they lie on a pixel of the image; tensors and NumPy arrays alike.

    Args:
        points: pixels, (x, y), centre of the first pixel = (0, 0).
        image_size: (height, width), or an array or tensor `(..., 2)` of them that broadcasts.
    """
    height, width = (image_size[..., 0], image_size[..., 1]) if hasattr(image_size, "shape") else image_size
    x, y = points[..., 0], points[..., 1]
    return (x >= -0.5) & (y >= -0.5) & (x < width - 0.5) & (y < height - 0.5)


def mutual_nearest(distances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which points are each other's nearest.

    Args:
        distances: `(..., n0, n1)`, both at least 1; infinite where a pair is excluded.

    Returns:
        For each point of image 0 its nearest, `(..., n0)` int64, and whether it is mutual, bool; the same for image 1.
    """
    nearest0, nearest1 = distances.argmin(-1), distances.argmin(-2)
    own0 = torch.arange(distances.shape[-2], device=distances.device).expand_as(nearest0)
    own1 = torch.arange(distances.shape[-1], device=distances.device).expand_as(nearest1)
    return nearest0, nearest1.gather(-1, nearest0) == own0, nearest1, nearest0.gather(-1, nearest1) == own1
