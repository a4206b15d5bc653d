"""From a map of scores to keypoints: local maxima, thresholds and the best of an image."""

import torch
from torch import Tensor
from torch.nn import functional as F


def max_pool(scores: Tensor, radius: int) -> Tensor:
    """Maximum over the `(2 radius + 1)`-pixel square around each pixel of `(batch, height, width)`.

    The maximum over a square is the maximum over rows of the maxima over columns, and a window's is that of two
    windows half as wide: 2 log2(k) comparisons a pixel, not k^2, each of them over whole tensors.
    """
    size = 2 * radius + 1
    scores = F.pad(scores, (radius, radius, radius, radius), value=-torch.inf)
    covered = 1
    while covered < size:
        step = min(covered, size - covered)
        scores = torch.maximum(scores[:, :, :-step], scores[:, :, step:])
        scores = torch.maximum(scores[:, :-step], scores[:, step:])
        covered += step
    return scores


def pixels_at(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The channels of pixels of `(batch, channels, height, width)`.

    Args:
        x, y: `(batch, ...)` int64, of shapes that broadcast, within the map.

    Returns:
        `(batch, ..., channels)`.
    """
    batch, _, height, width = maps.shape
    image = torch.arange(batch, device=x.device).reshape(-1, *(1,) * (max(x.ndim, y.ndim) - 1))
    # of the rows of a table, which channels last already are
    return F.embedding((image * height + y) * width + x, maps.permute(0, 2, 3, 1).flatten(0, 2))


def non_maximum_suppression(scores: Tensor, radius: int) -> Tensor:
    """Zero all but the local maxima of `(batch, height, width)` scores >= 0.

    Two more rounds look for maxima among the points that no maximum suppresses.
    Source: SuperPoint's `simple_nms` as in cvg/LightGlue@1fd587b.
    """
    if radius == 0:
        return scores
    is_max = scores == max_pool(scores, radius)
    for _ in range(2):
        suppressed = max_pool(is_max.to(scores.dtype), radius) > 0
        remaining = scores.masked_fill(suppressed, 0)
        is_max = is_max | ((remaining == max_pool(remaining, radius)) & ~suppressed)
    return scores.masked_fill(~is_max, 0)


def select_keypoints(scores: Tensor, threshold: float, max_keypoints: int, fixed: bool) -> tuple[Tensor, Tensor]:
    """The pixels with a score above the threshold, per image.

    Args:
        scores: `(batch, height, width)` float32.
        threshold: strictly exceeded by a keypoint's score.
        max_keypoints: the best so many are kept, then in descending order of score, and of equal ones in raster order;
            otherwise all, in raster order.
        fixed: return exactly `max_keypoints` columns and never wait for the device. Of more points than these, equal
            ones are in any order: a stable sort takes four times as long.

    Returns:
        indices `(batch, n)` int64 into the flattened image and values `(batch, n)`, 0 where padding.
    """
    batch, height, width = scores.shape
    flat = scores.flatten(1)
    flat = flat.masked_fill(flat <= threshold, 0)
    if fixed:
        flat = F.pad(flat, (0, max_keypoints))  # an image of fewer pixels has that many columns too
        values, indices = flat.topk(max_keypoints, dim=1)
        # Where all fit, raster order as below; padding (value 0) stays behind.
        all_fit = (flat > 0).sum(1, keepdim=True) <= max_keypoints
        column = torch.arange(max_keypoints, device=flat.device)
        order = torch.where(all_fit, indices, column) + (values <= 0) * (height * width + max_keypoints)
        order = order.argsort(dim=1)
        return indices.gather(1, order), values.gather(1, order)
    image, pixel = flat.nonzero(as_tuple=True)
    counts = torch.bincount(image, minlength=batch)
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(image), device=flat.device) - starts[image]
    n = int(counts.max()) if batch else 0
    indices = pixel.new_zeros(batch, n)
    values = flat.new_zeros(batch, n)
    indices[image, column] = pixel
    values[image, column] = flat[image, pixel]
    if 0 <= max_keypoints < n:
        best_values, best = (x[:, :max_keypoints] for x in values.sort(dim=1, descending=True, stable=True))
        all_fit = (counts <= max_keypoints)[:, None]
        values = torch.where(all_fit, values[:, :max_keypoints], best_values)
        indices = torch.where(all_fit, indices[:, :max_keypoints], indices.gather(1, best))
    return indices, values
