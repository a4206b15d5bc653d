"""Every test runs offline, on few threads and from a fixed seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads the variable once
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


@pytest.fixture(autouse=True)
def seed() -> int:
    """The seed that torch's and numpy's global generators were set to before the test."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - transformers and skimage draw from the global generator
    return 0
