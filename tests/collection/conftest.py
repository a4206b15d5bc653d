"""A small random model, pictures with corners in them, and a room that can be reconstructed."""

import numpy as np
import pytest
from PIL import Image

from lightglue_hf import LightGlueImageProcessor

from ..tiny import whole_model
from .room import render_room

pytest.importorskip("h5py")


@pytest.fixture(scope="session")
def model():
    return whole_model(max_keypoints=64)


@pytest.fixture(scope="session")
def processor():
    return LightGlueImageProcessor(size={"longest_edge": 96})


def save_picture(path, size, seed):
    """Cells of random colours, of a (width, height)."""
    cells = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(cells).resize(size, Image.Resampling.NEAREST).save(path)


SIZES = {
    "a.jpg": (160, 120),
    "b.png": (160, 120),
    "c.jpg": (120, 160),
    "d.png": (90, 140),
    "sub/e.jpg": (160, 120),
    "sub/f.jpg": (300, 40),
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of six pictures of four sizes, two of them in a folder below."""
    folder = tmp_path_factory.mktemp("photos")
    for seed, (name, size) in enumerate(SIZES.items()):
        save_picture(folder / name, size, seed)
    return folder


@pytest.fixture(scope="session")
def room(tmp_path_factory):
    """A folder of views of a room, and the (rotation, centre) of each camera by the name of its photo."""
    folder = tmp_path_factory.mktemp("room")
    poses = render_room(folder)
    return folder, poses
