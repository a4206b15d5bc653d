import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from lightglue_hf.collection.pairing import (
    exhaustive_pairs,
    gps_pairs,
    retrieval_pairs,
    sequential_pairs,
)
from lightglue_hf.collection.retrieval import global_descriptors, most_alike, principal_axes, vlad, vocabulary
from lightglue_hf.collection.storage import FEATURES, growing
from lightglue_hf.utils.errors import InputError

PLACES = 5
WORDS = torch.nn.functional.normalize(torch.randn(40 * PLACES, 16, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """20 photos of five places in turns: p0 and p5, p10, p15 see 40 descriptors of one place, with noise."""
    path = tmp_path_factory.mktemp("features") / "f.h5"
    rng = np.random.default_rng(0)
    with growing(path, FEATURES, {}) as store:
        for i in range(4 * PLACES):
            own = WORDS[40 * (i % PLACES) : 40 * (i % PLACES + 1)].numpy()
            seen = rng.permutation(own)[:30] + 0.05 * rng.normal(size=(30, 16))
            store.add({f"p{i}": {"keypoints": np.zeros((30, 2)), "descriptors": seen.T.astype(np.float16)}})
        store.add({"empty": {"keypoints": np.zeros((0, 2)), "descriptors": np.zeros((16, 0), np.float16)}})
    return path


NAMES = [f"p{i}" for i in range(4 * PLACES)]


def test_exhaustive():
    assert list(exhaustive_pairs("abc")) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_sequential():
    names = ["f10", "f9", "f8"]
    assert list(sequential_pairs(names, window=1)) == [("f8", "f9"), ("f9", "f10")]
    assert len(list(sequential_pairs(names, window=5))) == 3


def test_loops_are_closed_where_the_camera_came_by_before(features):
    pairs = list(sequential_pairs(NAMES, window=2, loop_every=5, neighbours=3, features=features))
    loops = [pair for pair in pairs if int(pair[1][1:]) - int(pair[0][1:]) > 2]
    assert len(pairs) == len(set(pairs)) == 37 + len(loops)
    assert set(loops) == {(a, b) for a in NAMES[::5] for b in NAMES[::5] if int(a[1:]) < int(b[1:])}
    with pytest.raises(InputError, match="features"):
        list(sequential_pairs(NAMES, loop_every=5))


def test_retrieval_finds_the_same_place(features):
    pairs = list(retrieval_pairs(NAMES, features, neighbours=3))
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == PLACES * 6
    assert all(int(a[1:]) % PLACES == int(b[1:]) % PLACES for a, b in pairs)


def test_retrieval_is_the_same_every_time_and_takes_photos_without_keypoints(features):
    names = [*NAMES, "empty"]
    first, again = (list(retrieval_pairs(names, features, neighbours=4)) for _ in range(2))
    assert first == again
    found = global_descriptors(features, names)
    assert found.isfinite().all()
    torch.testing.assert_close(found.norm(dim=1)[:-1], torch.ones(len(NAMES)), atol=1e-3, rtol=0)
    assert found[-1].norm() == 0


def test_more_neighbours_than_photos(features):
    assert len(list(retrieval_pairs(NAMES[:3], features, neighbours=20))) == 3
    assert list(retrieval_pairs(NAMES[:1], features, neighbours=20)) == []


def test_nothing_to_learn_words_from():
    words = vocabulary(torch.zeros(0, 16))
    assert vlad(torch.zeros(0, 16), words).norm() == 0
    assert principal_axes(torch.zeros(3, 16)).isfinite().all()


def test_equal_photos_come_in_their_order():
    same = torch.ones(4, 3)
    assert [others for _, others in most_alike(same, 2)] == [[1, 2], [0, 2], [0, 1], [0, 1]]


def placed(folder, name, latitude, longitude):
    exif = Image.Exif()
    if latitude is not None:
        gps = {1: "N", 2: (latitude, 0.0, 0.0), 3: "W" if longitude < 0 else "E", 4: (abs(longitude), 0.0, 0.0)}
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    Image.new("RGB", (8, 8)).save(folder / name, exif=exif)


def test_gps(tmp_path):
    """A degree of latitude is 111 km, and here one of longitude half of that; 180 east is 180 west."""
    places = {"a": (60.0, 179.9995), "b": (60.0, -179.9995), "c": (60.0005, 179.9995), "d": (61.0, 0.0), "e": None}
    names = []
    for name, place in places.items():
        placed(tmp_path, f"{name}.jpg", *(place or (None, None)))
        names.append(f"{name}.jpg")
    pairs, without = gps_pairs(tmp_path, names, distance=60)
    assert without == ["e.jpg"]
    assert sorted(pairs) == [("a.jpg", "b.jpg"), ("a.jpg", "c.jpg")]  # 55.6 m each, b to c 79 m
    assert len(gps_pairs(tmp_path, names, distance=80)[0]) == 3
    assert gps_pairs(tmp_path, names, distance=50)[0] == []
    assert len(gps_pairs(tmp_path, names, neighbours=1, distance=1e9)[0]) == 3
    with pytest.raises(InputError, match="1 of 2 photos have a GPS position"):
        gps_pairs(tmp_path, names[3:])
