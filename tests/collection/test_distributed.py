"""On a real cluster on this machine, of two workers."""

import json
import os
from pathlib import Path

import pytest
import torch

from lightglue_hf.collection import extraction, matching
from lightglue_hf.collection.distributed import Cluster
from lightglue_hf.collection.extraction import extract_features
from lightglue_hf.collection.matching import match_pairs
from lightglue_hf.collection.pairing import exhaustive_pairs
from lightglue_hf.collection.storage import read_names, write_pairs

from .loads import KilledOnce, load

os.environ["RAY_TQDM_PATCH_PRINT"] = "0"  # print stays print, for the tests after these
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def cluster():
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=10**8
    )
    yield Cluster(load, workers=2)
    ray.shutdown()


@pytest.fixture
def small_shards(monkeypatch):
    """Of one photo and of four pairs, on one thread."""
    monkeypatch.setattr(extraction, "PHOTOS_IN_A_SHARD", 1)
    monkeypatch.setattr(matching, "PAIRS_IN_A_SHARD", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path, photos, small_shards):
    """Features and matches that were made without Ray."""
    processor, model = load()
    folder = tmp_path / "here"
    folder.mkdir()
    extract_features(photos, folder / "features.h5", model, processor, batch_size=2)
    write_pairs(folder / "pairs.txt", exhaustive_pairs(read_names(folder / "features.h5")))
    match_pairs(folder / "features.h5", folder / "pairs.txt", folder / "matches.h5", model, batch_size=2)
    return folder


class Bar:
    """Counts what was reported."""

    def __init__(self, **options):
        self.count = options["initial"]
        self.total = options["total"]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert self.count == self.total  # nothing twice, nothing lost

    def update(self, count):
        self.count += count


@pytest.fixture
def deadly(cluster, monkeypatch, tmp_path):
    """The cluster, on which one worker is killed in each stage, right after it wrote a part."""
    run = Cluster.run

    def with_a_death(self, work, shards, store, bar):
        mark = tmp_path / f"killed-{store.path.name}"
        left_out = run(self, KilledOnce(work, mark), shards, store, bar)
        assert mark.exists()
        return left_out

    monkeypatch.setattr(Cluster, "run", with_a_death)
    return cluster


def test_36_the_same_features_as_here_although_a_worker_dies(tmp_path, photos, here, deadly):
    processor, model = load()
    out = tmp_path / "features.h5"
    done = extract_features(photos, out, model, processor, batch_size=2, cluster=deadly, progress=Bar)
    assert done == (6, 6, {}, 0)
    assert out.read_bytes() == (here / "features.h5").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
def test_36_the_same_matches_as_here_although_a_worker_dies(tmp_path, here, deadly):
    _, model = load()
    out = tmp_path / "matches.h5"
    files = here / "features.h5", here / "pairs.txt", out
    assert match_pairs(*files, model, batch_size=2, cluster=deadly, progress=Bar) == (15, 15, {})
    assert out.read_bytes() == (here / "matches.h5").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
def test_what_is_left_out_comes_back(tmp_path, photos, small_shards, cluster):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.png"):
        (folder / name).write_bytes((photos / name).read_bytes())
    content = (photos / "c.jpg").read_bytes()
    (folder / "c.jpg").write_bytes(content[: len(content) // 2])
    processor, model = load()
    done = extract_features(folder, tmp_path / "f.h5", model, processor, cluster=cluster)
    assert (done.photos, done.made, list(done.left_out)) == (3, 2, ["c.jpg"])
    assert json.loads((tmp_path / "f.h5.left-out.json").read_text()) == done.left_out
