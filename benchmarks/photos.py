"""What is measured on: scikit-image's photos, and how many of a contestant's matches are right on them."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightglue_hf import LightGlueImageProcessor
from lightglue_hf.evaluation.comparison import judge_matches
from lightglue_hf.evaluation.datasets import SKIMAGE_PHOTOS, WARPS_A_PHOTO, Pair, stereo, warped
from lightglue_hf.evaluation.methods import Prediction
from lightglue_hf.geometry import scale_keypoints

HEIGHT, WIDTH = 480, 640
WARPED = len(SKIMAGE_PHOTOS[:9])
Matched = tuple[Tensor, Tensor]
"""The matched points of a pair's images, both `(m, 2)`, (x, y) pixels, centre of the first pixel = (0, 0)."""


def scenes(count: int = 1 + WARPED) -> list[Pair]:
    """Pairs with ground truth: the motorcycle's stereo pair, then photos with a warp of themselves (warped-easy).

    Raises:
        ImportError: scikit-image is not installed.
    """
    easy = warped("warped-easy", rotation=25, scale=1.35, corners=0.08)
    entries = easy.entries[: WARPS_A_PHOTO * WARPED : WARPS_A_PHOTO]
    return [*stereo(), *map(easy.load, entries[: count - 1])]


def pixel_values(
    pairs: list[tuple[Image.Image, Image.Image]], processor: LightGlueImageProcessor, height: int, width: int
) -> Tensor:
    """`(pairs, 2, 3, height, width)` in [0, 1], grey or RGB as the processor of the checkpoint has it."""
    return processor([list(pair) for pair in pairs], size={"height": height, "width": width}, return_tensors="pt")[
        "pixel_values"
    ]


def pairs_of_images(images: int) -> list[tuple[int, int]]:
    """All pairs of so many photos by their numbers; 2k and 2k + 1 show the same scene."""
    return list(combinations(range(images), 2))


def sampled_pairs(images: int, same: int = 2, different: int = 4) -> list[tuple[float, list[tuple[int, int]]]]:
    """How many pairs each of these stands for: some of one scene, which overlap, and some of different ones."""
    everything = pairs_of_images(images)
    sampled = []
    for overlap, count in ((True, same), (False, different)):
        kind = [(i, j) for i, j in everything if (i // 2 == j // 2) == overlap]
        chosen = kind[:: max(1, len(kind) // count)][:count]
        sampled.append((len(kind) / len(chosen), chosen))
    return sampled


def correct_matches(pair: Pair, matched: Matched, height: int, width: int) -> int:
    """Matches of images resized to (height, width) that are right by the ground truth of the pair, within 3 pixels."""
    points = [
        scale_keypoints(points.float().cpu(), (height, width), (image.height, image.width)).numpy()
        for points, image in zip(matched, pair.images)
    ]
    index = np.arange(len(points[0]))
    judged = judge_matches(pair, Prediction(*points, np.stack([index, index], 1), np.ones(len(index), np.float32)))
    assert judged is not None  # these pairs have a truth
    return judged.correct


def quality(
    pairs: list[Pair], match: Callable[[int], Matched], height: int = HEIGHT, width: int = WIDTH
) -> dict[str, float]:
    """Correct matches of the first, the stereo pair, and of the others, inliers of their true homographies."""
    counts = [correct_matches(pair, match(i), height, width) for i, pair in enumerate(pairs)]
    return {"correct": counts[0]} | ({"inliers": sum(counts[1:])} if counts[1:] else {})


def share_of_keypoints(found: list[Tensor], reference: list[Tensor]) -> float:
    """The share of another detector's keypoints `(n, 2)` of each image that are found, within a pixel."""
    near = [
        (torch.cdist(there.float(), here.float()).amin(1) <= 1).sum() if len(here) and len(there) else torch.tensor(0)
        for here, there in zip(found, reference)
    ]
    return int(sum(near)) / max(1, sum(map(len, reference)))
