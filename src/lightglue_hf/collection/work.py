"""Work that is cut into shards: a list of batches of photos or pairs, whose results become one part of a file.

Which photos or pairs make a batch is planned before anything is computed, from all that there are. So a run that was
killed and resumed, or that many processes share, computes the same batches as one that was not.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from .storage import Arrays, Store

Item = TypeVar("Item")
Shard = list[list[Any]]


@dataclass
class Part:
    """What became of a shard.

    Args:
        groups: arrays by the name of their group.
        left_out: what could not be done, and why.
    """

    groups: dict[str, Arrays] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class NoProgress:
    """In the place of tqdm's class, from which `progress` of every stage takes `desc`, `total` and `update`."""

    def __init__(self, **options: Any) -> None:
        pass

    def __enter__(self) -> NoProgress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: int) -> None:
        pass


Worker = Callable[[Iterable[Shard]], Iterator[Part]]
"""Parts of shards, in their order."""


def cut(items: Sequence[Item], batch_size: int, kind: Callable[[Item], Any] = lambda item: None) -> Iterator[list]:
    """Batches of neighbours of one kind."""
    for _, alike in itertools.groupby(items, kind):
        group = list(alike)
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def to_shards(batches: Iterable[list], size: int) -> Iterator[Shard]:
    """Batches in shards of at least `size` items, but for the last."""
    shard: Shard = []
    for batch in batches:
        shard.append(batch)
        if sum(map(len, shard)) >= size:
            yield shard
            shard = []
    if shard:
        yield shard


def remaining(shards: Iterable[Shard], done: Callable[[Any], bool]) -> Iterator[Shard]:
    """The shards that are not done, without the items that are."""
    for shard in shards:
        left = [kept for batch in shard if (kept := [item for item in batch if not done(item)])]
        if left:
            yield left


def run_here(work: Worker, shards: Iterable[Shard], store: Store, bar: Any) -> dict[str, str]:
    """Compute shards in this process; what was left out, and why."""
    left_out: dict[str, str] = {}
    with torch.inference_mode():
        for part in work(shards):
            store.add(part.groups)
            left_out |= part.left_out
            bar.update(len(part.groups) + len(part.left_out))
    return left_out


def ahead(
    pool: Executor, function: Callable[[Item], Any], items: Iterable[Item], count: int
) -> Iterator[tuple[Item, Future]]:
    """Call a function in a pool, at most `count` items ahead of those that are taken; in their order."""
    waiting: deque[tuple[Item, Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()
