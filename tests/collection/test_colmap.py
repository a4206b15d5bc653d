import numpy as np
import pytest

from lightglue_hf.collection import colmap
from lightglue_hf.collection.colmap import write_database
from lightglue_hf.collection.storage import FEATURES, MATCHES, growing, pair_key
from lightglue_hf.utils.errors import InputError

from .conftest import save_picture

pycolmap = pytest.importorskip("pycolmap")

SIZE = (320, 240)
NAMES = ["a.jpg", "b.jpg", "sub/c.jpg"]


@pytest.fixture
def files(tmp_path):
    """Three photos of one flat scene that moves by 20 pixels, the features and matches of it, and two photos more."""
    rng = np.random.default_rng(0)
    points = rng.uniform((45, 5), (315, 235), (200, 2)).astype(np.float32)
    for i, name in enumerate([*NAMES, "without.jpg"]):
        save_picture(tmp_path / "photos" / name, SIZE, i)
    with growing(tmp_path / "f.h5", FEATURES, {}) as store:
        for i, name in enumerate(NAMES):
            store.add({name: {"keypoints": points - np.float32([20 * i, 0]), "image_size": np.array(SIZE)}})
        store.add({"gone.jpg": {"keypoints": points}})
    with growing(tmp_path / "m.h5", MATCHES, {}) as store:
        found = np.arange(200, dtype=np.int32)
        found[150:] = -1
        group = {"matches0": found, "matching_scores0": np.ones(200, np.float16)}
        for pair in (("a.jpg", "b.jpg"), ("sub/c.jpg", "a.jpg"), ("a.jpg", "gone.jpg")):
            store.add({pair_key(*pair): group})
        store.add({"b.jpg/sub-c.jpg": {"matches0": np.full(200, -1, np.int32), "matching_scores0": np.zeros(200)}})
    return tmp_path, points


def write(folder, out="d.db", **options):
    return write_database(folder / "photos", folder / "f.h5", folder / "m.h5", folder / out, **options)


def test_colmap_reads_keypoints_half_a_pixel_on_and_verified_matches(files):
    folder, points = files
    done = write(folder)
    assert (done.photos, done.pairs, done.matches, done.verified) == (3, 3, 300, 2)
    assert done.inliers > 290
    assert done.left_out == {"gone.jpg": f"it is not in {folder / 'photos'}"}
    with pycolmap.Database.open(folder / "d.db") as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        assert sorted(ids) == NAMES
        for i, name in enumerate(NAMES):
            moved = points - np.float32([20 * i, 0]) + np.float32(0.5)
            assert np.array_equal(db.read_keypoints(ids[name])[:, :2], moved)
        expected = np.stack([np.arange(150)] * 2, 1)
        assert np.array_equal(db.read_matches(ids["a.jpg"], ids["sub/c.jpg"]), expected)
        assert {camera.model.name for camera in db.read_all_cameras()} == {"SIMPLE_RADIAL"}
        assert {(camera.width, camera.height) for camera in db.read_all_cameras()} == {SIZE}


def test_34_twice_is_once(files):
    folder, _ = files
    first = write(folder)
    before = (folder / "d.db").read_bytes()
    assert write(folder) == first
    assert (folder / "d.db").read_bytes() == before
    assert not list(folder.glob("d.db?*"))


def test_what_is_new_is_added(files):
    folder, _ = files
    write(folder, verify=False)
    before = write(folder)
    assert before.verified == 2
    with growing(folder / "f.h5", FEATURES, {}) as store:
        store.add({"without.jpg": {"keypoints": np.zeros((0, 2), np.float32)}})
    after = write(folder)
    assert after.photos == 4
    assert after[1:5] == before[1:5]


def test_the_same_matches_give_the_same_database(files):
    folder, _ = files
    write(folder)
    write(folder, "again.db")
    read = []
    for name in ("d.db", "again.db"):
        with pycolmap.Database.open(folder / name) as db:
            read.append([geometry.inlier_matches.tolist() for _, geometry in zip(*db.read_two_view_geometries())])
    assert read[0] == read[1]
    assert len(read[0]) >= 2


def test_29_a_full_disk_is_seen_before_colmap_ends_the_process(files, monkeypatch):
    folder, _ = files
    usage = colmap.shutil.disk_usage(folder)
    monkeypatch.setattr(colmap.shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(OSError, match="No space left on device"):
        write(folder)
    assert not (folder / "d.db").exists()
    assert not list(folder.glob("*.parts"))


def test_28_what_a_killed_process_left_is_removed(files):
    folder, _ = files
    (folder / "d.db.parts" / "some").mkdir(parents=True)
    (folder / "d.db.parts" / "database.db").write_bytes(b"half")
    assert write(folder).photos == 3
    assert not list(folder.glob("*.parts"))


def test_one_camera(files):
    folder, _ = files
    write(folder, single_camera=True, camera_model="PINHOLE")
    with pycolmap.Database.open(folder / "d.db") as db:
        (camera,) = db.read_all_cameras()
        assert camera.model.name == "PINHOLE"
    for name in ("ROUND", "INVALID"):
        with pytest.raises(InputError, match=f"no camera model {name}; it has .*PINHOLE"):
            write(folder, camera_model=name)


def test_other_keypoints_are_refused_and_nothing_is_changed(files):
    folder, _ = files
    write(folder)
    before = (folder / "d.db").read_bytes()
    (folder / "f.h5").unlink()
    with growing(folder / "f.h5", FEATURES, {}) as store:
        store.add({name: {"keypoints": np.ones((300, 2), np.float32)} for name in NAMES})
    with pytest.raises(InputError, match=r"d.db has other keypoints of a.jpg"):
        write(folder)
    assert (folder / "d.db").read_bytes() == before
    with growing(folder / "few.h5", FEATURES, {}) as store:
        store.add({name: {"keypoints": np.ones((10, 2), np.float32)} for name in NAMES})
    with pytest.raises(InputError, match="of other features"):
        write_database(folder / "photos", folder / "few.h5", folder / "m.h5", folder / "new.db")
    assert not (folder / "new.db").exists()
    assert not list(folder.glob("*.parts"))


def test_features_of_other_photos(files):
    folder, _ = files
    save_picture(folder / "others" / "x.jpg", SIZE, 0)
    with pytest.raises(InputError, match=r"no photo of .*f.h5 is in"):
        write_database(folder / "others", folder / "f.h5", folder / "m.h5", folder / "new.db")


def test_a_photo_that_colmap_cannot_read_is_left_out(files):
    folder, _ = files
    (folder / "photos" / "a.jpg").write_bytes(b"broken since")
    done = write(folder)
    assert list(done.left_out) == ["gone.jpg", "a.jpg"]
    assert (done.photos, done.matches) == (2, 0)


def test_33_more_than_32767_keypoints(files):
    folder, _ = files
    n = 40_000
    points = np.random.default_rng(0).uniform(0, 240, (n, 2)).astype(np.float32)
    with growing(folder / "big.h5", FEATURES, {}) as store:
        store.add({name: {"keypoints": points} for name in NAMES[:2]})
    with growing(folder / "bigm.h5", MATCHES, {}) as store:
        found = np.arange(n, dtype=np.int32)[::-1].copy()
        store.add({"a.jpg/b.jpg": {"matches0": found, "matching_scores0": np.ones(n, np.float16)}})
    done = write_database(folder / "photos", folder / "big.h5", folder / "bigm.h5", folder / "big.db", verify=False)
    assert done.matches == n
    with pycolmap.Database.open(folder / "big.db") as db:
        assert db.read_matches(1, 2)[0].tolist() == [0, n - 1]


def test_one_camera_of_photos_that_come_later(files):
    folder, points = files
    write(folder, single_camera=True)
    with growing(folder / "f.h5", FEATURES, {}) as store:
        store.add({"without.jpg": {"keypoints": points, "image_size": np.array(SIZE)}})
    write(folder, single_camera=True)
    with pycolmap.Database.open(folder / "d.db") as db:
        assert db.num_images() == 4
        assert db.num_cameras() == 1


def test_photos_that_are_gone_and_other_cameras_are_refused(files):
    folder, _ = files
    write(folder)
    before = (folder / "d.db").read_bytes()
    with pytest.raises(InputError, match="camera_model SIMPLE_RADIAL there, PINHOLE now"):
        write(folder, camera_model="PINHOLE")
    (folder / "photos" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"not in the folder, a\.jpg for one"):
        write(folder)
    assert (folder / "d.db").read_bytes() == before


@pytest.mark.parametrize("other", [{"single_camera": True}, {"max_error": 0.01}, {"camera_model": "PINHOLE"}])
def test_other_settings_are_refused_either_way(files, other):
    folder, _ = files
    for first, then in (({}, other), (other, {})):
        write(folder, **first)
        before = (folder / "d.db").read_bytes()
        with pytest.raises(InputError, match=rf"made otherwise: {next(iter(other))} .* there, .* now"):
            write(folder, **then)
        assert (folder / "d.db").read_bytes() == before
        (folder / "d.db").unlink()


def test_a_database_of_colmap_itself(files):
    folder, _ = files
    pycolmap.Database.open(folder / "d.db").close()
    pycolmap.import_images(folder / "d.db", folder / "photos", options={"camera_model": "PINHOLE"})
    with pytest.raises(InputError, match="cameras of PINHOLE, not SIMPLE_RADIAL"):
        write(folder)
    assert write(folder, camera_model="PINHOLE").verified == 2


def test_other_matches_are_refused(files):
    folder, _ = files
    write(folder)
    before = (folder / "d.db").read_bytes()
    with growing(folder / "other.h5", MATCHES, {}) as store:
        store.add({"sub-c.jpg/a.jpg": {"matches0": np.arange(200, dtype=np.int32)}})
    with pytest.raises(InputError, match=r"d.db has other matches of sub/c.jpg a.jpg"):
        write_database(folder / "photos", folder / "f.h5", folder / "other.h5", folder / "d.db")
    assert (folder / "d.db").read_bytes() == before


def test_the_same_matches_from_the_other_side_are_the_same(files):
    folder, _ = files
    turned = np.arange(200, dtype=np.int32)[::-1].copy()
    for name, key, found in (("one.h5", "a.jpg/b.jpg", np.roll(turned, 7)), ("other.h5", "b.jpg/a.jpg", None)):
        with growing(folder / name, MATCHES, {}) as store:
            store.add({key: {"matches0": np.roll(turned, 7).argsort().astype(np.int32) if found is None else found}})
        assert write_database(folder / "photos", folder / "f.h5", folder / name, folder / "d.db").matches == 200


def test_pairs_of_photos_without_features_are_listed(files):
    folder, _ = files
    with growing(folder / "m.h5", MATCHES, {}) as store:
        store.add({"a.jpg/nobody.jpg": {"matches0": np.full(200, -1, np.int32)}})
    assert write(folder).left_out["a.jpg nobody.jpg"] == "no features of nobody.jpg"


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("a.jpg_b.jpg", "a.jpg_b.jpg is no group of a pair"),
        ("x.jpg/y.jpg", "has no matches of two of these photos"),
        (None, "has no matches of two of these photos"),
    ],
)
def test_files_that_are_no_matches_of_these_photos(files, group, message):
    folder, _ = files
    if group is None:
        matches = folder / "f.h5"
    else:
        matches = folder / "older.h5"
        with growing(matches, MATCHES, {}) as store:
            store.add({group: {"matches0": np.full(200, -1, np.int32)}})
    with pytest.raises(InputError, match=message):
        write_database(folder / "photos", folder / "f.h5", matches, folder / "new.db")
    assert not (folder / "new.db").exists()


def test_one_camera_takes_photos_of_one_size(files):
    folder, points = files
    save_picture(folder / "photos" / "portrait.jpg", SIZE[::-1], 0)
    with growing(folder / "f.h5", FEATURES, {}) as store:
        store.add({"portrait.jpg": {"keypoints": points, "image_size": np.array(SIZE[::-1])}})
    with pytest.raises(InputError, match=r"a.jpg has 320 x 240 pixels, portrait.jpg has 240 x 320 pixels"):
        write(folder, single_camera=True)
    assert write(folder).photos == 4
