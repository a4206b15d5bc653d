"""Shards on many machines, by Ray Data.

An actor loads the model once and computes shards. It writes each as a part, in one move, into the directory in which
the file grows, so that only a line about it comes back; the process that started it merges the parts. A part is called
after what is in it: a shard that is computed again, because a worker died, replaces itself.

Batches are planned in the process that starts the workers, and these use as many threads as it does: on processors of
one kind the result is the same, bit for bit, as without Ray.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..utils.errors import InputError
from ..utils.optional import import_optional
from .storage import Settings, Store, parts_of, write_part
from .work import Shard, Worker


class ShardActor:
    """What runs in a worker: computes a shard, and writes its part.

    Args:
        load: returns the model and its processor, on this machine.
        work: of them makes what computes shards.
        parts: directory that all machines see.
        settings: of the file.
        threads: of PyTorch.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Any, Any]],
        work: Callable[[Any, Any], Worker],
        parts: str,
        settings: Settings,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        processor, model = load()
        self.work, self.parts, self.settings = work(model, processor), Path(parts), settings

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """A row for each shard: what was left out, how many groups there are, and an error of writing."""
        results: dict[str, list[Any]] = {"left_out": [], "groups": [], "error": []}
        for text in rows["shard"]:
            left_out: dict[str, str] = {}
            groups, error = 0, ""
            with torch.inference_mode():
                try:
                    for part in self.work([json.loads(text)]):
                        write_part(self.parts, part.groups, self.settings)
                        left_out, groups = part.left_out, len(part.groups)
                except (OSError, InputError) as problem:  # the same for whoever tries again
                    error = str(problem)
            results["left_out"].append(json.dumps(left_out))
            results["groups"].append(groups)
            results["error"].append(error)
        return results


class Cluster(NamedTuple):
    """Where to compute shards.

    Args:
        load: returns the processor and the model, on any of the machines; it travels there by cloudpickle.
        workers: how many; by default as many as there are CPUs for them, with the threads of this process each.
        address: of a running cluster, "auto" for one that runs on this machine; by default one is started here.
        gpus: that each worker takes.
    """

    load: Callable[[], tuple[Any, Any]]
    workers: int | None = None
    address: str | None = None
    gpus: float = 0

    def run(self, work: Callable[[Any, Any], Worker], shards: list[Shard], store: Store, bar: Any) -> dict[str, str]:
        """Compute shards, whose parts the workers write; what was left out, and why.

        Raises:
            MissingPackageError: Ray is not installed.
            OSError: a worker cannot read what it has to, or write a part.
        """
        if not shards:
            return {}
        data = self.connected()
        threads = torch.get_num_threads()
        workers = self.workers or max(1, int(self._cpus() // threads))
        rows = [{"shard": json.dumps(shard)} for shard in shards]
        results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardActor,
            fn_constructor_args=(self.load, work, str(parts_of(store.path).absolute()), store.settings, threads),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=threads,
            num_gpus=self.gpus or None,
        )
        left_out: dict[str, str] = {}
        for row in results.iter_rows():
            if row["error"]:
                raise OSError(f"a worker: {row['error']}")
            those = json.loads(row["left_out"])
            left_out |= those
            bar.update(row["groups"] + len(those))
        return left_out

    def connected(self) -> Any:
        """`ray.data`, connected to the cluster.

        Raises:
            OSError: there is no cluster at the address.
        """
        os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # or Ray replaces the print of the whole process
        ray = import_optional("ray", "ray")
        data = import_optional("ray.data", "ray")
        if not ray.is_initialized():
            options: dict[str, Any] = {"address": self.address} if self.address else {"include_dashboard": False}
            try:
                ray.init(log_to_driver=False, logging_level="ERROR", **options)
            except ConnectionError as error:
                raise OSError(f"no Ray cluster at {self.address}: {error}") from error
        data.DataContext.get_current().enable_progress_bars = False
        for name in ("ray.data", "ray.data._internal"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return data

    def _cpus(self) -> float:
        return import_optional("ray", "ray").cluster_resources().get("CPU", 1)
