"""The true matches of keypoints in views of planes.

Points are (x, y) in pixels, the centre of the first pixel is (0, 0).

Source: Lindenberger et al., "LightGlue" (2023), section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import mutual_nearest, points_inside
from .worlds import OUTSIDE


def project_points(points: Tensor, homographies: Tensor, layers0: Tensor, layers1: Tensor) -> tuple[Tensor, Tensor]:
    """Project points of image 0 into image 1 by the layer that each of them lies on.

    The reverse direction is the same call with inverted homographies and the layers swapped.

    Args:
        points: `(batch, n, 2)`, pixels of image 0, (x, y), centre of the first pixel = (0, 0).
        homographies: `(batch, layers, 3, 3)`, image 0 -> image 1.
        layers0, layers1: `(batch, height, width)`, layer ids, `OUTSIDE` where nothing is known.

    Returns:
        projected `(batch, n, 2)`, finite (meaningless where not visible), and visible `(batch, n)` bool: the point
        has a layer, lands inside image 1, and its layer is the one seen at the pixel where it lands.
    """
    layer, _ = layer_at(points, layers0)
    projected, front = project_on(points, homographies.to(points.dtype), layer)
    landed, inside = layer_at(projected, layers1)
    return projected, front & inside & (layer != OUTSIDE) & (landed == layer)


def layer_at(points: Tensor, layers: Tensor) -> tuple[Tensor, Tensor]:
    """The layer at the pixel nearest to each point: ids `(batch, n)` int64 (`OUTSIDE` off the image), and inside."""
    height, width = layers.shape[-2:]
    x, y = (points + 0.5).floor().unbind(-1)
    inside = points_inside(points, (height, width))
    position = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
    seen = layers.flatten(1).gather(1, position).long()
    return torch.where(inside, seen, OUTSIDE), inside


def project_on(points: Tensor, homographies: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
    """Project points `(batch, n, 2)` by the homography of their layer `(batch, n)`; also whether it is in front."""
    known = layer < homographies.shape[1]
    chosen = torch.where(known, layer, 0)[..., None, None].expand(-1, -1, 3, 3)
    matrices = homographies.gather(1, chosen)
    moved = (matrices[..., :2] * points[..., None, :]).sum(-1) + matrices[..., 2]
    weight = moved[..., 2:]
    front = weight[..., 0] > 1e-6
    return moved[..., :2] / torch.where(front[..., None], weight, torch.ones_like(weight)), front & known


def ground_truth_matches(
    keypoints: Tensor,
    mask: Tensor,
    pairs_homographies: Tensor,
    layers: Tensor,
    positive_threshold: float = 3.0,
    negative_threshold: float = 5.0,
) -> Tensor:
    """Label keypoints with their true match.

    With `d_ij = max(|pi01(x_i) - y_j|, |x_i - pi10(y_j)|)` over visible projections, i and j match if each is the
    other's nearest and `d_ij` is below `positive_threshold`. A keypoint has no match if it is hidden or out of frame
    in the other image, or if its projection is farther than `negative_threshold` from every keypoint there. The rest
    is ignored, and so is a keypoint off the canvas, where the truth is not known.

    On a silhouette the layer of a keypoint is a matter of one pixel, and the corner of a cut-out must not be called
    unmatched because it rounds to the background: a keypoint is unmatched only if it is so on its own layer and on the
    least and the greatest of those within its 3x3 pixels, and hidden only if that layer is not within the 3x3 pixels
    where it lands.

    Args:
        keypoints: `(batch, 2, n, 2)`, pixels, (x, y), centre of the first pixel = (0, 0).
        mask: `(batch, 2, n)` bool, False for padding.
        pairs_homographies: `(batch, layers, 3, 3)`, image 0 -> image 1.
        layers: `(batch, 2, height, width)`, layer ids.
        positive_threshold, negative_threshold: pixels.

    Returns:
        `(batch, 2, n)` int64: index of the match in the other image, -1 unmatched, -2 ignored or padding.

    Source: LightGlue (2023), section 3.3 and appendix.
    """
    homographies = pairs_homographies.double()
    inverses = torch.linalg.inv(homographies)
    points = keypoints.double().masked_fill(~mask[..., None], 0)  # padding may hold anything, NaN included
    there, seen0 = project_points(points[:, 0], homographies, layers[:, 0], layers[:, 1])
    back, seen1 = project_points(points[:, 1], inverses, layers[:, 1], layers[:, 0])
    labels = torch.full(mask.shape, -2, dtype=torch.int64, device=mask.device)
    if points.shape[2] == 0:
        return labels
    start = torch.where(mask[..., None], points, _FAR)
    forth = _distances(torch.where((seen0 & mask[:, 0])[..., None], there, -_FAR), start[:, 1])
    along = _distances(start[:, 0], torch.where((seen1 & mask[:, 1])[..., None], back, -_FAR))
    both = torch.maximum(forth, along)
    nearest0, mutual0, nearest1, mutual1 = mutual_nearest(both)
    matched0 = mutual0 & (both.amin(2) < positive_threshold)
    matched1 = mutual1 & (both.amin(1) < positive_threshold)
    for view, (matrices, nearest, matched, distance) in enumerate(
        ((homographies, nearest0, matched0, forth.amin(2)), (inverses, nearest1, matched1, along.amin(1)))
    ):
        here, other = layers[:, view], layers[:, 1 - view]
        known = layer_at(points[:, view], here)[0] != OUTSIDE
        doubtful = _matchable_elsewhere(points[:, view], start[:, 1 - view], matrices, here, other, negative_threshold)
        label = torch.where(known & ~doubtful & (distance > negative_threshold), -1, -2)
        label = torch.where(matched, nearest, label)
        labels[:, view] = torch.where(mask[:, view], label, -2)
    return labels


def _matchable_elsewhere(
    points: Tensor, others: Tensor, homographies: Tensor, layers: Tensor, other_layers: Tensor, threshold: float
) -> Tensor:
    """Whether another reading of a silhouette brings a point near a keypoint of the other image, `(batch, n)` bool.

    The readings: the point lies on the least or the greatest of the layers around it instead of its own, and its
    layer is seen somewhere in the 3x3 pixels where it lands. `others` has its padding at `_FAR`.
    """
    own, _ = layer_at(points, layers)
    around = _layers_around(points, layers)
    known = around != OUTSIDE
    possible = torch.zeros_like(own, dtype=torch.bool)
    for layer in (own, torch.where(known, around, OUTSIDE).amin(-1), torch.where(known, around, -1).amax(-1)):
        projected, front = project_on(points, homographies, layer.clamp_min(0))
        landed, inside = layer_at(projected, other_layers)
        seen = front & inside & known.any(-1) & (_layers_around(projected, other_layers) == layer[..., None]).any(-1)
        item, index = torch.nonzero(seen & ((landed != layer) | (layer != own)), as_tuple=True)
        distances = _distances(projected[item, index][:, None], others[item]).flatten(1)
        possible[item, index] |= distances.amin(1) <= threshold
    return possible


def _layers_around(points: Tensor, layers: Tensor) -> Tensor:
    """The layer ids of the 3x3 pixels around each point, `(batch, n, 9)` int64; the rim of the image is repeated."""
    height, width = layers.shape[-2:]
    x, y = (points + 0.5).floor().clamp(-2, max(height, width) + 2).long().unbind(-1)
    offset = torch.arange(-1, 2, device=points.device)
    rows = (y[..., None] + offset).clamp(0, height - 1)
    columns = (x[..., None] + offset).clamp(0, width - 1)
    positions = (rows[..., :, None] * width + columns[..., None, :]).flatten(1)
    return layers.flatten(1).gather(1, positions).long().unflatten(1, (-1, 9))


_FAR = 1e6
"""A coordinate in pixels that is near to nothing: +_FAR for padding, -_FAR for a projection that is not seen."""


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """All distances between `(batch, n, 2)` and `(batch, m, 2)`, `(batch, n, m)` float32, without cancellation."""
    return torch.cdist(first.float(), second.float(), compute_mode="donot_use_mm_for_euclid_dist")
