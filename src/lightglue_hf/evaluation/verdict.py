"""Whether matches say that two photos show the same, or no more than chance would give.

Of a few matches, most agree with some fundamental matrix whatever they are: seven fix one, and the best of all sevens
takes others along. So inliers are held against what is expected if the matches were paired at random.

Source: the number of false alarms of Moisan and Stival, "A probabilistic criterion to detect rigid point matches
between two images and estimate the fundamental matrix" (IJCV 2004), with a fixed threshold, and with the chance of an
agreement measured on the points themselves.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .metrics import estimate_fundamental

SAMPLE = 7
"""Matches that fix a fundamental matrix, up to three of them."""

LARGEST_FALSE_ALARMS = 1e-6
"""Expected fundamental matrices that as many random matches agree with, below which matches are no chance.

Wrong matches of a network are less random than that: they lie together, and in order. Of 204 pairs of unrelated photos
the lowest was 8e-5 with a published SuperPoint and LightGlue (512 keypoints), and 0.7 with the checkpoint in this
package (1024 keypoints).
"""

MOST_POINTS = 256
"""That are paired with each other to measure the chance of an agreement."""

YES, NO, TOO_FEW = "yes", "no", "too few"


class Verdict(NamedTuple):
    """What matches say of two photos.

    Args:
        answer: "yes": they show the same, as far as geometry can say; "no": random matches would agree as well; "too
            few": even if all agreed, it could be chance.
        inliers: `(m,)` bool, the matches that agree with the fundamental matrix.
        fundamental: `(3, 3)` with `x1^T F x0 = 0`, or `None` where none was found.
        log10_false_alarms: logarithm of the number of fundamental matrices, of all that random matches allow, that
            are expected to have as many inliers; infinite where none was found.
    """

    answer: str
    inliers: np.ndarray
    fundamental: np.ndarray | None
    log10_false_alarms: float


def judge_against_chance(
    keypoints0: Any, keypoints1: Any, image_sizes: Any, threshold: float = 1.5, estimator: str = "poselib"
) -> Verdict:
    """Fit a fundamental matrix to matches, and judge its inliers by what chance would give.

    Args:
        keypoints0: `(m, 2)`, pixels of the first image, (x, y), centre of the first pixel = (0, 0).
        keypoints1: `(m, 2)`, pixels of the second image, in the order of `keypoints0`.
        image_sizes: (height, width) of each image.
        threshold: largest epipolar distance of an inlier, in pixels.
        estimator: see `estimate_fundamental`.

    Raises:
        ImportError: the package of the estimator is not installed; the message says how to install it.
        ValueError: an unknown estimator, or lists of different lengths.
    """
    fundamental, inliers = estimate_fundamental(keypoints0, keypoints1, threshold, estimator)
    points0, points1 = (np.asarray(points, dtype=float).reshape(-1, 2) for points in (keypoints0, keypoints1))
    limit = math.log10(LARGEST_FALSE_ALARMS)
    uniform = max(_band_share(height, width, threshold) for height, width in image_sizes)
    false_alarms = math.inf
    if fundamental is not None:
        chance = max(uniform, chance_of_agreement(fundamental, points0, points1, threshold))
        false_alarms = log10_false_alarms(len(points0), int(inliers.sum()), chance)
    if false_alarms < limit:
        answer = YES
    else:
        answer = NO if log10_false_alarms(len(points0), len(points0), uniform) < limit else TOO_FEW
    return Verdict(answer, inliers, fundamental, false_alarms)


def log10_false_alarms(matches: int, inliers: int, chance: float) -> float:
    """How many fundamental matrices with so many inliers are expected among random matches, as a logarithm.

    Each seven of the matches fix up to three matrices; with one of them, each of the others agrees by chance:
    `3 * C(m, 7) * P(Binomial(m - 7, chance) >= k - 7)`.

    Args:
        matches: m.
        inliers: k.
        chance: that a random match agrees with a given matrix.

    Returns:
        Infinity for fewer than eight matches or inliers, of which nothing can be said.
    """
    if min(matches, inliers) <= SAMPLE:
        return math.inf
    chance = min(max(chance, 1e-12), 1 - 1e-12)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, matches + 1)))])

    def log_choose(n: int, k: Any) -> Any:
        return log_factorial[n] - log_factorial[k] - log_factorial[n - k]

    rest = matches - SAMPLE
    agreeing = np.arange(inliers - SAMPLE, rest + 1)
    log_terms = log_choose(rest, agreeing) + agreeing * math.log(chance) + (rest - agreeing) * math.log1p(-chance)
    log_tail = log_terms.max() + math.log(np.exp(log_terms - log_terms.max()).sum())
    return float((math.log(3) + log_choose(matches, SAMPLE) + log_tail) / math.log(10))


def chance_of_agreement(fundamental: Any, keypoints0: Any, keypoints1: Any, threshold: float = 1.5) -> float:
    """The share of all other pairings of matched points that agree with a fundamental matrix.

    Points crowd on what has corners, and epipolar lines at the epipole; so this is often more than the share of an
    image that lies along a line.

    Args:
        fundamental: `(3, 3)`.
        keypoints0: `(m, 2)`.
        keypoints1: `(m, 2)`, in the order of `keypoints0`.
        threshold: largest Sampson distance of an agreement, in pixels.
    """
    if len(keypoints0) < 2:
        return 0.0
    chosen = np.unique(np.linspace(0, len(keypoints0) - 1, MOST_POINTS).round().astype(int))
    points0, points1 = keypoints0[chosen], keypoints1[chosen]
    agree = sampson_distance(fundamental, points0[:, None], points1[None]) < threshold
    np.fill_diagonal(agree, False)
    return float(agree.sum() / (len(chosen) * (len(chosen) - 1)))


def sampson_distance(fundamental: Any, keypoints0: Any, keypoints1: Any) -> np.ndarray:
    """How far, to first order, points `(..., 2)` of both images have to move to agree with a fundamental matrix.

    Source: Hartley and Zisserman, Multiple View Geometry, equation 11.9, its square root.
    """
    points0, points1 = (np.concatenate([p, np.ones((*p.shape[:-1], 1))], axis=-1) for p in (keypoints0, keypoints1))
    lines1, lines0 = points0 @ np.asarray(fundamental).T, points1 @ np.asarray(fundamental)
    squared = (lines1[..., :2] ** 2).sum(-1) + (lines0[..., :2] ** 2).sum(-1)
    return np.abs((points1 * lines1).sum(-1)) / np.sqrt(np.maximum(squared, 1e-300))


def _band_share(height: int, width: int, threshold: float) -> float:
    """An upper bound of the share of an image that is no farther than `threshold` from a line."""
    return 2 * threshold * math.hypot(height, width) / (height * width)
