"""Kill a process that extracts and matches, again and again, and let a last one finish: `test_kills` runs this.

    python -m tests.collection.kills PHOTOS OUT KILLS SEED

Everything is imported once; a child is forked for each kill.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lightglue_hf import LightGlueImageProcessor
from lightglue_hf.collection import extraction, matching
from lightglue_hf.collection.pairing import exhaustive_pairs
from lightglue_hf.collection.photos import photo_names
from lightglue_hf.collection.storage import write_pairs
from tests.tiny import whole_model


def work(photos: Path, out: Path) -> None:
    torch.set_num_threads(1)
    extraction.PHOTOS_IN_A_SHARD, matching.PAIRS_IN_A_SHARD = 1, 4
    model, processor = whole_model(max_keypoints=32), LightGlueImageProcessor(size={"longest_edge": 96})
    out.mkdir(exist_ok=True)
    extraction.extract_features(photos, out / "features.h5", model, processor, batch_size=1)
    write_pairs(out / "pairs.txt", exhaustive_pairs(photo_names(photos)))
    matching.match_pairs(out / "features.h5", out / "pairs.txt", out / "matches.h5", model, batch_size=2)


def fork(photos: Path, out: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            work(photos, out)
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return child


def main(photos: Path, out: Path, kills: int, seed: int) -> None:
    work(photos, out / "first")  # what is imported late is there for the children
    start = time.monotonic()
    assert os.waitpid(fork(photos, out / "whole"), 0)[1] == 0
    longest = time.monotonic() - start
    chance, hit, states = random.Random(seed), 0, set()
    for i in range(0, kills, 2):  # two on the way to each
        one = out / f"killed{i}"
        for share in (0.9, 0.6):
            child = fork(photos, one)
            time.sleep(chance.uniform(0, share * longest))
            os.kill(child, signal.SIGKILL)
            hit += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            states.add(tuple(sorted(path.name for path in one.rglob("*"))) if one.exists() else ())
        assert os.waitpid(fork(photos, one), 0)[1] == 0
        for file in ("features.h5", "pairs.txt", "matches.h5"):
            assert (one / file).read_bytes() == (out / "whole" / file).read_bytes(), f"{one}: {file} is another"
        left = sorted(path.name for path in one.iterdir())
        assert left == ["features.h5", "matches.h5", "pairs.txt"], left
    print(f"{hit} of {kills} were killed under way, in {len(states)} states")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
