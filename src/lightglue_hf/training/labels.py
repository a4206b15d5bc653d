"""What the detector learns from: corners of clean views, found in both views of a pair; or a teacher's keypoints.

Points are (x, y) in pixels, the centre of the first pixel is (0, 0).
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from ..data.ground_truth import layer_at, project_on
from ..data.homographies import PlanarPairs, project_points
from ..data.photometry import gaussian_blur
from ..detectors.configuration_superpoint import CELL
from ..detectors.selection import max_pool
from ..features import KeypointFeatures
from ..geometry import mutual_nearest, points_inside
from ..utils.files import write_atomically

CORNER_THRESHOLD = 4e-5  # of the structure tensor's smaller eigenvalue, grey levels in [0, 1] per pixel

STRONG_THRESHOLD = 4e-4
MOST_KEYPOINTS = 768  # of a teacher, on a canvas


def corner_response(images: Tensor) -> Tensor:
    """Smaller eigenvalue of the structure tensor, at two scales.

    Args:
        images: `(batch, height, width)` grey in [0, 1].

    Returns:
        `(batch, height, width)` lambda_min(sigma 1.2) + 1/2 lambda_min(sigma 2.4), squared grey levels per pixel.
    """
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    products = torch.stack([dx * dx, dy * dy, dx * dy], dim=1)

    def smaller_eigenvalue(sigma: float) -> Tensor:
        xx, yy, xy = gaussian_blur(products, sigma).unbind(1)
        return (xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy**2).sqrt()

    return smaller_eigenvalue(1.2) + 0.5 * smaller_eigenvalue(2.4)


def strongest_corners(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The strongest corners of each image, at least 4 pixels apart and from the borders.

    Args:
        images: `(batch, height, width)` grey in [0, 1], without noise.
        count: of the corners returned.

    Returns:
        `(batch, count, 2)` (x, y) pixels and `(batch, count)` responses, 0 where padding.
    """
    response = corner_response(images)
    peaks = response.masked_fill((response < max_pool(response, 4)) | (response < CORNER_THRESHOLD), 0)
    peaks = F.pad(peaks[:, 4:-4, 4:-4], (4, 4, 4, 4))
    values, indices = peaks.flatten(1).topk(count, dim=1)
    width = images.shape[-1]
    return torch.stack([indices % width, indices // width], -1).to(images.dtype), values


def consensus_corners(pairs: PlanarPairs, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The strongest corners of both views, and which of them are points.

    A point is a corner found in both views (mutual nearest, less than 2 pixels apart), at the mean of the two
    positions, or a strong corner whose partner is out of frame.

    Args:
        pairs: of `batch` pairs.
        count: of the corners looked for in each view.

    Returns:
        positions `(batch, 2, count, 2)` (x, y) pixels, responses `(batch, 2, count)`, 0 where padding, and which are
        found in both views and which are points, `(batch, 2, count)` bool.
    """
    batch, _, height, width = pairs.clean.shape
    points, responses = strongest_corners(pairs.clean.flatten(0, 1), count)
    points, responses = points.unflatten(0, (batch, 2)), responses.unflatten(0, (batch, 2))
    found = responses > 0
    inverse = torch.linalg.inv(pairs.homographies)
    layers0, layers1 = pairs.layers.unbind(1)
    in1, visible0 = project_points(points[:, 0], pairs.homographies, layers0, layers1)
    in0, visible1 = project_points(points[:, 1], inverse, layers1, layers0)

    distance = torch.maximum(torch.cdist(in1, points[:, 1]), torch.cdist(points[:, 0], in0))
    possible = (found[:, 0] & visible0)[:, :, None] & (found[:, 1] & visible1)[:, None, :]
    distance = distance.masked_fill(~possible, math.inf)
    nearest0, mutual0, nearest1, mutual1 = mutual_nearest(distance)
    agreed = torch.stack([mutual0 & (distance.amin(2) < 2), mutual1 & (distance.amin(1) < 2)], 1)

    partner0 = in0.gather(1, nearest0[..., None].expand(-1, -1, 2))
    partner1 = in1.gather(1, nearest1[..., None].expand(-1, -1, 2))
    mean = (points + torch.stack([partner0, partner1], 1)) / 2
    positions = torch.where(agreed[..., None], mean, points)
    left_frame = ~points_inside(torch.stack([in1, in0], 1), (height, width))
    return positions, responses, agreed, agreed | (left_frame & (responses > STRONG_THRESHOLD))


def detector_labels(
    pairs: PlanarPairs, generator: torch.Generator, count: int = 256, correspondences: int = 192
) -> dict[str, Tensor]:
    """What [`superpoint_loss`] learns from, out of pairs with known geometry: [`consensus_corners`].

    Cells with other corners are ignored.

    Args:
        pairs: of `batch` pairs.
        generator: of the random positions.
        count: of the corners looked for in each view.
        correspondences: per pair, for the descriptors: points, then other corners, and a tenth random positions.
    """
    height, width = pairs.clean.shape[-2:]
    corners, responses, agreed, positive = consensus_corners(pairs, count)
    found = responses > 0
    objectness, location = cell_labels(
        corners.flatten(0, 1), positive.flatten(), found.flatten(), responses.flatten(), height, width
    )
    candidates = torch.cat([corners[:, 0], random_positions(pairs, generator, correspondences // 10)], 1)
    in1, visible = project_points(candidates, pairs.homographies, *pairs.layers.unbind(1))
    priority = agreed[:, 0] + found[:, 0] + responses[:, 0].clamp(max=0.5)
    priority = F.pad(priority, (0, correspondences // 10), value=3) * visible
    value, chosen = priority.topk(correspondences, dim=1)
    chosen = chosen[..., None].expand(-1, -1, 2)
    return {
        "objectness": objectness,
        "location": location,
        "correspondences": torch.stack([candidates.gather(1, chosen), in1.gather(1, chosen)], 2),
        "correspondence_mask": value >= 1,
    }


def random_positions(pairs: PlanarPairs, generator: torch.Generator, count: int) -> Tensor:
    """`(batch, count, 2)` pixels (x, y), anywhere in image 0."""
    batch, _, height, width = pairs.clean.shape
    random = torch.rand(batch, count, 2, generator=generator, device=generator.device).to(pairs.clean)
    return random * pairs.clean.new_tensor([width - 1, height - 1])


@torch.no_grad()
def canvas_features(teacher: Any, canvases: Tensor, path: Path) -> KeypointFeatures:
    """What a teacher finds on canvases, from a file; found and written there if it is missing or broken.

    Args:
        teacher: a detector; its own threshold and at most 768 keypoints.
        canvases: `(count, height, width)` uint8.

    Returns:
        Features of `shape` `(count,)`, on the device of the canvases, descriptors in float16.
    """
    if path.exists():
        try:
            return KeypointFeatures(**load_file(path, str(canvases.device)))
        except (SafetensorError, TypeError):  # it is made anew
            pass
    teacher.eval().to(canvases.device).config.max_keypoints = MOST_KEYPOINTS
    channels = getattr(teacher.config, "channels", 3)
    parts = []
    for batch in canvases.split(8):
        found = teacher.extract_features(batch[:, None].expand(-1, channels, -1, -1) / 255)
        parts.append(
            KeypointFeatures(**{name: found[name] for name in ("keypoints", "descriptors", "mask", "scores")})
        )
    features = KeypointFeatures.cat(part.to(dtype=torch.float16) for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({name: value.cpu().contiguous() for name, value in features.items()}))
    return features


def distilled_labels(
    pairs: PlanarPairs,
    teacher: KeypointFeatures,
    generator: torch.Generator,
    count: int = 256,
    correspondences: int = 192,
) -> dict[str, Tensor]:
    """What [`superpoint_loss`] learns from, out of pairs with known geometry and a teacher's keypoints on canvases.

    Where a point lies corners say, and which of them is one the teacher: points are those of [`consensus_corners`]
    that lie within 3 pixels, along both axes, of a keypoint. Cells with other corners or keypoints are ignored. How
    alike points look the teacher says, of keypoints that both views see.

    Args:
        pairs: of `batch` pairs.
        teacher: see [`canvas_features`].
        generator: of the random positions, and of which keypoints are taken.
        count: of the corners looked for in each view.
        correspondences: per pair, for the descriptors: keypoints, then corners, and a tenth random positions.
    """
    batch, _, height, width = pairs.clean.shape
    assert teacher.keypoints is not None
    assert teacher.mask is not None
    assert teacher.descriptors is not None
    painted = pairs.canvases.clamp(min=0)
    each = teacher.keypoints.shape[1]
    on_canvas = teacher.keypoints[painted].flatten(1, 2)  # (batch, layers * each, 2)
    known = (teacher.mask[painted].bool() & (pairs.canvases >= 0)[..., None]).flatten(1)
    layer = torch.arange(painted.shape[1], device=painted.device).repeat_interleave(each).expand(batch, -1)
    placed, seen = [], []
    for placement, layers in zip(pairs.placements.unbind(1), pairs.layers.unbind(1)):
        points, front = project_on(on_canvas, placement, layer)
        placed.append(points)
        seen.append(known & front & (layer_at(points, layers)[0] == layer))
    keypoints, visible = torch.stack(placed, 1), torch.stack(seen, 1)

    corners, responses, agreed, positive = consensus_corners(pairs, count)
    found = responses > 0
    marked = pairs.clean.new_zeros(2 * batch, height * width)
    marked.scatter_reduce_(1, pixel_numbers(keypoints, height, width), visible.flatten(0, 1).to(marked), "amax")
    near = (
        max_pool(marked.unflatten(1, (height, width)), 3).flatten(1).gather(1, pixel_numbers(corners, height, width))
    )
    positive = positive & (near > 0).unflatten(0, (batch, 2))
    objectness, location = cell_labels(
        torch.cat([corners, keypoints], 2).flatten(0, 1),
        torch.cat([positive, visible & False], 2).flatten(),
        torch.cat([found, visible], 2).flatten(),
        torch.cat([responses, torch.zeros_like(keypoints[..., 0])], 2).flatten(),
        height,
        width,
    )

    others = torch.cat([corners[:, 0], random_positions(pairs, generator, correspondences // 10)], 1)
    in1, others_seen = project_points(others, pairs.homographies, *pairs.layers.unbind(1))
    drawn = torch.rand(known.shape, generator=generator, device=generator.device).to(others)
    priority = torch.cat([2 + drawn, agreed[:, 0] * 0.5 + found[:, 0]], 1)
    priority = F.pad(priority, (0, correspondences // 10), value=4) * torch.cat([visible.all(1), others_seen], 1)
    value, chosen = priority.topk(correspondences, dim=1)
    both = torch.stack([torch.cat([keypoints[:, 0], others], 1), torch.cat([keypoints[:, 1], in1], 1)], 2)
    of_teacher = chosen < known.shape[1]
    canvas = painted.gather(1, torch.where(of_teacher, chosen // each, 0))
    descriptors = teacher.descriptors[canvas, torch.where(of_teacher, chosen % each, 0)].float()
    return {
        "objectness": objectness,
        "location": location,
        "correspondences": both.gather(1, chosen[..., None, None].expand(-1, -1, 2, 2)),
        "correspondence_mask": value >= 1,
        "teacher_descriptors": descriptors * (of_teacher & (value >= 1))[..., None],
    }


def pixel_numbers(points: Tensor, height: int, width: int) -> Tensor:
    """The pixels `(batch * 2, n)` int64 of an image, row by row, that are nearest to points `(batch, 2, n, 2)`."""
    x, y = (points + 0.5).floor().flatten(0, 1).unbind(-1)
    return y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()


def cell_labels(
    positions: Tensor, positive: Tensor, found: Tensor, strength: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Points to the labels of their cells; the strongest point of a cell counts. Beyond the last whole cell none does.

    Args:
        positions: `(images, n, 2)` pixels (x, y).
        positive, found, strength: `(images * n,)`; what is found and not positive makes its cell ignored.

    Returns:
        objectness `(images, rows, columns)` in {1, 0, -1} and location `(images, rows, columns, 2)`, NaN without one.
    """
    images = len(positions)
    rows, columns = height // CELL, width // CELL
    cell = ((positions + 0.5) / CELL).floor().long()
    within = (cell < cell.new_tensor([columns, rows])).all(-1).flatten()
    positive, found = positive & within, found & within
    cell = cell.clamp(min=0).minimum(cell.new_tensor([columns - 1, rows - 1]))
    image = torch.arange(images, device=positions.device)[:, None]
    flat_cell = ((image * rows + cell[..., 1]) * columns + cell[..., 0]).flatten()
    objectness = positions.new_zeros(images * rows * columns)
    objectness[flat_cell[found]] = -1
    objectness[flat_cell[positive]] = 1
    best = positions.new_zeros(images * rows * columns)
    best.scatter_reduce_(0, flat_cell, strength * positive, "amax")
    wins = positive & (strength == best[flat_cell])
    location = positions.new_full((images * rows * columns, 2), math.nan)
    location[flat_cell[wins]] = (positions - CELL * cell).flatten(0, 1)[wins]
    return objectness.view(images, rows, columns), location.view(images, rows, columns, 2)
