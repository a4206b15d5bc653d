"""Photos that look alike, from the local descriptors that are there anyway.

The descriptors of a photo are summed up as a VLAD: which words of a small vocabulary, learned from the collection
itself, they fall on, and in which direction they miss them. It is the same every time: k-means begins with a fixed
seed, and runs on one type of numbers.

Source: Jégou et al., "Aggregating local descriptors into a compact image representation" (CVPR 2010); with the
normalisation of each word, Arandjelović and Zisserman, "All about VLAD" (CVPR 2013); square roots, Jégou et al.,
"Aggregating local image descriptors into compact codes" (TPAMI 2012).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .storage import open_hdf5

WORDS = 64
DIMENSIONS = 512
"""Numbers that a photo is described by, at most."""
PHOTOS_FOR_WORDS, DESCRIPTORS_FOR_WORDS = 1000, 256
"""Photos, and descriptors of each, that the vocabulary is learned from."""
ITERATIONS = 20
AT_ONCE = 512  # photos that are compared with all


def global_descriptors(features: str | os.PathLike[str], names: Sequence[str]) -> Tensor:
    """One descriptor for each photo, the product of two of which says how alike they look.

    Args:
        features: features.h5.
        names: of photos in it.

    Returns:
        `(photos, d)` float32, unit length; zeros for photos without keypoints.
    """
    with open_hdf5(features) as file:
        some = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), PHOTOS_FOR_WORDS)).astype(int)]
        samples = [_descriptors(file, name) for name in some]
        samples = [x[:: max(1, -(-len(x) // DESCRIPTORS_FOR_WORDS))] for x in samples]
        words = vocabulary(torch.cat(samples))
        basis = principal_axes(torch.stack([vlad(_descriptors(file, name), words) for name in some]))
        rows = (vlad(_descriptors(file, name), words) @ basis for name in names)
        compact = torch.stack([row.half() for row in rows])
    return F.normalize(compact.float(), dim=1)


def _descriptors(file: Any, name: str) -> Tensor:
    """`(n, d)` float32, unit length."""
    return F.normalize(torch.from_numpy(file[name]["descriptors"][()].astype(np.float32).T.copy()), dim=1)


def vocabulary(descriptors: Tensor, words: int = WORDS) -> Tensor:
    """Centres of k-means, `(words, d)`, of descriptors `(n, d)`; fewer if there are few."""
    words = max(1, min(words, len(descriptors) // 8))
    if len(descriptors) == 0:
        return descriptors.new_zeros(1, descriptors.shape[1])
    generator = torch.Generator().manual_seed(0)
    centres = descriptors[torch.randperm(len(descriptors), generator=generator)[:words]]
    for _ in range(ITERATIONS):
        word = (descriptors @ centres.T - 0.5 * centres.square().sum(1)).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, word, descriptors)
        counts = torch.bincount(word, minlength=words)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def vlad(descriptors: Tensor, words: Tensor) -> Tensor:
    """`(words * d,)`, unit length, of the descriptors of one photo `(n, d)`; zeros of none."""
    word = (descriptors @ words.T - 0.5 * words.square().sum(1)).argmax(1)
    sums = torch.zeros_like(words).index_add_(0, word, descriptors - words[word])
    sums = F.normalize(sums.sign() * sums.abs().sqrt(), dim=1)
    return F.normalize(sums.flatten(), dim=0)


def principal_axes(samples: Tensor, dimensions: int = DIMENSIONS) -> Tensor:
    """`(d, k)`, the directions that most of samples `(n, d)` lies in, about the origin; k at most n."""
    _, values, axes = torch.linalg.svd(samples, full_matrices=False)
    keep = min(dimensions, int((values > 1e-4 * values.max().clamp(min=1e-12)).sum()) or 1)
    return axes[:keep].T.contiguous()


def most_alike(descriptors: Tensor, count: int, rows: Sequence[int] | None = None) -> Iterator[tuple[int, list[int]]]:
    """For each photo, or for those of some rows, the others that look most alike, the best first.

    Args:
        descriptors: what [`global_descriptors`] gives.
        count: how many others.
        rows: numbers of photos.
    """
    wanted = list(range(len(descriptors))) if rows is None else list(rows)
    count = min(count, len(descriptors) - 1)
    for start in range(0, len(wanted), AT_ONCE):
        part = wanted[start : start + AT_ONCE]
        alike = descriptors[part] @ descriptors.T
        alike[torch.arange(len(part)), torch.tensor(part)] = -torch.inf
        if count < 1:
            yield from ((i, []) for i in part)
            continue
        worst = alike.topk(count, dim=1).values[:, -1:]
        for i, row, enough in zip(part, alike, alike >= worst):
            (candidates,) = torch.nonzero(enough, as_tuple=True)
            # equal ones in the order of their numbers, whatever the processor
            order = torch.sort(row[candidates], descending=True, stable=True).indices[:count]
            yield i, candidates[order].tolist()
