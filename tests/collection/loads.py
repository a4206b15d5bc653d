"""What a Ray worker of `test_distributed` loads; a module, so that a worker can import it."""

import os
import signal
from pathlib import Path

from lightglue_hf import LightGlueImageProcessor
from tests.tiny import whole_model


def load():
    return LightGlueImageProcessor(size={"longest_edge": 96}), whole_model(max_keypoints=32)


class KilledOnce:
    """Work of another's, under which the process is killed the first time that somebody has done a shard.

    Args:
        work: of a model and its processor makes the work.
        mark: file that is made at the kill.
    """

    def __init__(self, work, mark):
        self.work, self.mark = work, Path(mark)

    def __call__(self, model, processor):
        inner = self.work(model, processor)

        def work(shards):
            for part in inner(shards):
                yield part  # it is written, and nobody has heard of it
                try:
                    self.mark.touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)

        return work
