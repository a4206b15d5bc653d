import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_28_killed_and_resumed_equals_uninterrupted(tmp_path, photos, kills):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "tests.collection.kills", str(photos), str(tmp_path), str(kills), "0"]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    hit = int(re.search(r"(\d+) of \d+ were killed", done.stdout)[1])
    assert hit >= kills // 2  # the others were done before
