"""Canvases, and pairs of one plane and of several."""

from __future__ import annotations

import numpy as np
import pytest

from lightglue_hf.data.homographies import PlanarPairs, sample_pairs
from lightglue_hf.data.textures import render_textures

from .planar import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def textures() -> np.ndarray:
    return render_textures(6, 240, 320, seed=3)


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["homography", "multi-plane"])
def pairs(request: pytest.FixtureRequest, textures: np.ndarray) -> PlanarPairs:
    return sample_pairs(textures, range(16), HEIGHT, WIDTH, multi_plane=request.param)
