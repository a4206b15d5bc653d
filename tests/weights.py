"""Published weight files, for the tests marked `weights`."""

import os
from pathlib import Path

import pytest


def weights_file(name: str) -> Path:
    """A published file by its name, from the folder that LIGHTGLUE_HF_WEIGHTS names."""
    path = Path(os.environ.get("LIGHTGLUE_HF_WEIGHTS", "")) / name
    if "LIGHTGLUE_HF_WEIGHTS" not in os.environ or not path.is_file():
        pytest.skip(f"{name} is not in the folder that LIGHTGLUE_HF_WEIGHTS names")
    return path
