"""Which photos are matched with which."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..utils.errors import InputError
from .photos import BROKEN, gps_position, natural_order
from .retrieval import global_descriptors, most_alike

WAYS = ("exhaustive", "sequential", "retrieval", "gps")
EARTH = 6_371_008.8  # metres, the mean radius

Pairs = Iterator[tuple[str, str]]


def exhaustive_pairs(names: Sequence[str]) -> Pairs:
    """Every photo with every other: n (n - 1) / 2 pairs.

    Args:
        names: of photos.
    """
    return itertools.combinations(names, 2)


def sequential_pairs(
    names: Sequence[str],
    window: int = 10,
    loop_every: int = 0,
    neighbours: int = 20,
    features: str | os.PathLike[str] | None = None,
) -> Pairs:
    """Each photo with the next ones in the order of the names, and some with photos that look alike.

    Args:
        names: frame2 comes before frame10.
        window: how many of the next.
        loop_every: look for loops at every so manieth photo: where the camera came by before. 0 for none.
        neighbours: photos that look most alike, outside the window, that each of those is matched with.
        features: features.h5, for the loops.
    """
    names = sorted(names, key=natural_order)
    for i, name in enumerate(names):
        yield from ((name, other) for other in names[i + 1 : i + 1 + window])
    if not loop_every:
        return
    if features is None:
        raise InputError("loops are found by the features of the photos: give the file")
    descriptors = global_descriptors(features, names)
    alike = most_alike(descriptors, neighbours + 2 * window, range(0, len(names), loop_every))
    yield from _once(names, ((i, [j for j in others if abs(i - j) > window][:neighbours]) for i, others in alike))


def retrieval_pairs(names: Sequence[str], features: str | os.PathLike[str], neighbours: int = 20) -> Pairs:
    """Each photo with those that look most alike.

    Args:
        names: of photos in features.h5.
        features: the file.
        neighbours: how many of them, for each photo; at most n `neighbours` pairs.
    """
    descriptors = global_descriptors(features, names)
    yield from _once(names, most_alike(descriptors, neighbours))


def _once(names: Sequence[str], found: Iterator[tuple[int, list[int]]]) -> Pairs:
    """Pairs of a photo and those found for it, by their numbers; each once, in the order of the numbers."""
    seen: set[tuple[int, int]] = set()
    for i, others in found:
        for j in others:
            pair = (min(i, j), max(i, j))
            if pair not in seen:
                seen.add(pair)
                yield names[pair[0]], names[pair[1]]


def gps_pairs(
    folder: str | os.PathLike[str], names: Sequence[str], neighbours: int = 20, distance: float = 100.0
) -> tuple[list[tuple[str, str]], list[str]]:
    """Each photo with the nearest by the GPS positions in their EXIF data.

    Args:
        folder: of the photos.
        names: of the photos.
        neighbours: how many of them, for each photo.
        distance: metres, within which they lie; heights are not looked at.

    Returns:
        The pairs, and the photos without a position, which are in none.

    Raises:
        InputError: fewer than two photos have a position.
    """
    places, placed, without = [], [], []
    for name in names:
        try:
            position = gps_position(Path(folder, name))
        except BROKEN:
            position = None
        if position is None:
            without.append(name)
        else:
            placed.append(name)
            places.append(position)
    if len(placed) < 2:
        raise InputError(f"{len(placed)} of {len(names)} photos have a GPS position: pairs need two")
    latitude, longitude = np.radians(places).T
    flat = np.cos(latitude)
    directions = np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], 1)
    chord = 2 * np.sin(min(distance / EARTH, np.pi) / 2)

    def nearest() -> Iterator[tuple[int, list[int]]]:
        for i, here in enumerate(directions):
            away = np.linalg.norm(directions - here, axis=1)
            away[i] = np.inf
            order = np.argsort(away, kind="stable")[:neighbours]
            yield i, order[away[order] <= chord].tolist()

    return list(_once(placed, nearest())), without
