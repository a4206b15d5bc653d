import resource
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

from lightglue_hf.collection import storage
from lightglue_hf.collection.storage import (
    FEATURES,
    MATCHES,
    growing,
    open_hdf5,
    pair_key,
    parts_of,
    read_matches,
    read_names,
    read_pairs,
    read_settings,
    write_pairs,
)
from lightglue_hf.utils.errors import InputError

SETTINGS = {"format": 1, "detector": {"type": "superpoint", "max_keypoints": 64}, "about": {"model": "tiny"}}


def features(n=5, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "keypoints": rng.uniform(0, 4000, (n, 2)).astype(np.float32),
        "descriptors": rng.normal(size=(d, n)).astype(np.float16),
        "scores": rng.uniform(size=n).astype(np.float16),
        "image_size": np.array([4000, 3000], np.int32),
        "uncertainty": np.array(2.5, np.float32),
    }


def matches(n=5):
    return {"matches0": np.arange(n, dtype=np.int32) - 1, "matching_scores0": np.ones(n, np.float16)}


def grow(path, *parts, dataset=FEATURES, settings=SETTINGS):
    with growing(path, dataset, settings) as store:
        for part in parts:
            store.add(part)
    return path


def interrupted(path, groups):
    """A part is written, and then something goes wrong."""

    def run():
        with growing(path, FEATURES, SETTINGS) as store:
            store.add(groups)
            raise KeyError

    with pytest.raises(KeyError):
        run()


# -- hloc's layout; what its code does with such files, at hloc@abb2520


def hloc_get_keypoints(path, name):
    with h5py.File(str(path), "r", libver="latest") as file:
        dataset = file[name]["keypoints"]
        return dataset.__array__(), dataset.attrs.get("uncertainty")


def hloc_list_names(path):
    names = []
    with h5py.File(str(path), "r", libver="latest") as file:

        def visit(_, item):
            if isinstance(item, h5py.Dataset):
                names.append(item.parent.name.strip("/"))

        file.visititems(visit)
    return sorted(set(names))


def hloc_get_matches(path, name0, name1):
    key0, key1 = (name.replace("/", "-") for name in (name0, name1))
    with h5py.File(str(path), "r", libver="latest") as file:
        turned = f"{key0}/{key1}" not in file
        group = file[f"{key1}/{key0}" if turned else f"{key0}/{key1}"]
        found, scores = group["matches0"].__array__(), group["matching_scores0"].__array__()
    (index,) = np.where(found != -1)
    columns = (found[index], index) if turned else (index, found[index])
    return np.stack(columns, -1), scores[index]


def test_hloc_reads_features(tmp_path):
    made = features()
    path = grow(tmp_path / "features.h5", {"x/a.jpg": made, "b.jpg": features(0)})
    assert hloc_list_names(path) == ["b.jpg", "x/a.jpg"]
    keypoints, uncertainty = hloc_get_keypoints(path, "x/a.jpg")
    assert keypoints.dtype == np.float32
    assert np.array_equal(keypoints, made["keypoints"])
    assert uncertainty == 2.5
    with h5py.File(path) as file:
        group = file["x/a.jpg"]
        assert group["descriptors"].dtype == np.float16
        assert group["descriptors"].shape == (8, 5)
        assert group["image_size"][()].tolist() == [4000, 3000]


@pytest.mark.parametrize("turned", [False, True])
def test_hloc_reads_matches_and_so_do_we(tmp_path, turned):
    path = grow(tmp_path / "matches.h5", {pair_key("x/a.jpg", "b.jpg"): matches()}, dataset=MATCHES)
    names = ("b.jpg", "x/a.jpg") if turned else ("x/a.jpg", "b.jpg")
    expected = [[1, 0], [2, 1], [3, 2], [4, 3]]
    expected = [row[::-1] for row in expected] if turned else expected
    for read in (hloc_get_matches, read_matches):
        found, scores = read(path, *names)
        assert found.tolist() == expected
        assert scores.tolist() == [1] * 4
    with pytest.raises(InputError, match=r"no matches of b.jpg and c.jpg"):
        read_matches(path, "b.jpg", "c.jpg")


def test_hlocs_own_types_are_read(tmp_path):
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        group = file.create_group("a.jpg/b.jpg")
        group["matches0"] = np.array([2, -1, 0], np.int16)
        group["matching_scores0"] = np.array([0.5, 0, 1], np.float16)
    found, scores = read_matches(tmp_path / "matches.h5", "a.jpg", "b.jpg")
    assert found.tolist() == [[0, 2], [2, 0]]
    assert scores.tolist() == [0.5, 1]
    assert read_settings(tmp_path / "matches.h5") is None


def test_33_more_than_32767_keypoints(tmp_path):
    n = 70_000
    made = {"matches0": np.arange(n, dtype=np.int32)[::-1].copy(), "matching_scores0": np.ones(n, np.float16)}
    path = grow(tmp_path / "matches.h5", {"a.jpg/b.jpg": made}, dataset=MATCHES)
    found, _ = read_matches(path, "a.jpg", "b.jpg")
    assert np.array_equal(found[:, 1], np.arange(n)[::-1])


# -- growing


def test_the_parts_and_their_order_leave_no_trace(tmp_path):
    groups = {f"{i}.jpg": features(i, seed=i) for i in range(6)}
    whole = grow(tmp_path / "a.h5", groups)
    halves = [dict(list(groups.items())[i::2]) for i in (0, 1)]
    grow(tmp_path / "b.h5", halves[0])
    later = grow(tmp_path / "b.h5", halves[1])
    assert read_names(whole) == read_names(later) == sorted(groups)
    assert read_settings(later) == SETTINGS
    assert not list(tmp_path.glob("*.parts"))
    with h5py.File(whole) as one, h5py.File(later) as other:
        for name in groups:
            for field in one[name]:
                assert np.array_equal(one[name][field], other[name][field])


def test_the_same_parts_give_the_same_bytes(tmp_path):
    parts = [{f"{i}.jpg": features(seed=i)} for i in range(4)]
    one = grow(tmp_path / "a.h5", *parts)
    other = grow(tmp_path / "b.h5", *parts[::-1], parts[2])  # one came twice
    assert one.read_bytes() == other.read_bytes()


def test_an_error_keeps_the_parts_and_the_file_that_was_there(tmp_path):
    path = grow(tmp_path / "f.h5", {"a.jpg": features()})
    before = path.read_bytes()
    interrupted(path, {"b.jpg": features()})
    assert path.read_bytes() == before
    with growing(path, FEATURES, SETTINGS) as store:
        assert store.done == {"a.jpg", "b.jpg"}
    assert read_names(path) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("left", [1, 3])
def test_killed_after_the_merge(tmp_path, monkeypatch, left):
    """The file is whole, and some of its parts are still there."""
    names = [f"{i}.jpg" for i in range(8)]
    parts = [{name: features(i + 1, seed=i)} for i, name in enumerate(names)]

    def killed(directory, ignore_errors):
        for part in sorted(directory.iterdir())[left:]:
            part.unlink()

    with monkeypatch.context() as patch:
        patch.setattr("lightglue_hf.collection.storage.shutil.rmtree", killed)
        path = grow(tmp_path / "f.h5", *parts)
    assert len(list(parts_of(path).glob("*.h5"))) == left
    before = path.read_bytes()
    with growing(path, FEATURES, SETTINGS) as store:
        assert store.done == set(names)
    assert path.read_bytes() == before
    assert not parts_of(path).exists()


def test_unfinished_files_say_so(tmp_path):
    interrupted(tmp_path / "f.h5", {"b.jpg": features()})
    with pytest.raises(InputError, match="not finished"):
        open_hdf5(tmp_path / "f.h5")
    (tmp_path / "broken.h5").write_bytes(b"no")
    with pytest.raises(InputError, match=r"broken.h5 is no HDF5 file"):
        open_hdf5(tmp_path / "broken.h5")
    with pytest.raises(InputError, match="does not exist"):
        open_hdf5(tmp_path / "nothing.h5")


@pytest.mark.parametrize("merged", [True, False])
def test_31_other_settings_are_refused_and_named(tmp_path, merged):
    path = tmp_path / "f.h5"
    if merged:
        grow(path, {"a.jpg": features()})
    else:
        interrupted(path, {"a.jpg": features()})
    other = {**SETTINGS, "detector": {"type": "disk", "max_keypoints": 64}}
    with pytest.raises(InputError, match=r"detector.type superpoint there, disk now\. Choose"):
        grow(path, settings=other)
    grow(path, settings={**SETTINGS, "about": {"model": "/elsewhere/tiny"}})
    assert read_names(path) == ["a.jpg"]


def test_31_a_file_of_another_program_is_not_continued(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a.jpg/keypoints"] = np.zeros((1, 2))
    with pytest.raises(InputError, match="another program"):
        grow(tmp_path / "f.h5")
    assert not list(tmp_path.glob("*.parts"))


def test_30_two_writers(tmp_path):
    path = tmp_path / "f.h5"
    code = (
        "import sys; from pathlib import Path; from lightglue_hf.utils.files import working_directory\n"
        "with working_directory(sys.argv[1]):\n    print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, f"{path}.parts"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(FileExistsError, match="another process"):
            grow(path, {"a.jpg": features()})
    finally:
        other.kill()
        other.communicate()
    grow(path, {"a.jpg": features()})  # the lock is gone with its process
    assert read_names(path) == ["a.jpg"]


@pytest.fixture
def file_limit():
    """No file may become larger than so many bytes, as on a full disk; the error is another number."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("while_merging", [False, True])
def test_29_disk_full(tmp_path, file_limit, while_merging):
    path = grow(tmp_path / "f.h5", {"a.jpg": features(1000)})
    before = path.read_bytes()

    def add():
        with growing(path, FEATURES, SETTINGS) as store:
            if while_merging:
                store.add({"b.jpg": features(1000)})
            file_limit(len(before) + 2000 if while_merging else 5000)
            if not while_merging:
                store.add({"b.jpg": features(1000)})

    with pytest.raises(OSError, match="cannot be written") as error:
        add()
    file_limit(resource.RLIM_INFINITY)
    assert "\n" not in str(error.value)[:200]
    assert path.read_bytes() == before
    left = [p.name for p in (tmp_path / "f.h5.parts").glob("*")] if (tmp_path / "f.h5.parts").exists() else []
    assert len(left) == while_merging  # the part that is whole
    grow(path, {"b.jpg": features(1000)})
    assert read_names(path) == ["a.jpg", "b.jpg"]


def test_29_too_little_room_is_seen_before(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: storage.shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(OSError, match=r"f.h5 cannot be written: No space left on device, [\d,]+ bytes are needed"):
        grow(tmp_path / "f.h5", {"a.jpg": features()})


def test_a_place_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="directory of"):
        grow(tmp_path / "no" / "f.h5")
    with pytest.raises(InputError, match="is a directory"):
        grow(tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- pairs.txt


def test_pairs_there_and_back(tmp_path):
    pairs = [("a.jpg", "b.jpg"), ("x/ä.jpg", "a.jpg")]
    write_pairs(tmp_path / "pairs.txt", pairs)
    assert (tmp_path / "pairs.txt").read_text(encoding="utf-8") == "a.jpg b.jpg\nx/ä.jpg a.jpg\n"
    assert read_pairs(tmp_path / "pairs.txt") == pairs


def test_pairs_that_come_again_are_one(tmp_path):
    (tmp_path / "pairs.txt").write_text("# COLMAP's comment\na b\nb a\n\na b\n")
    assert read_pairs(tmp_path / "pairs.txt") == [("a", "b")]


@pytest.mark.parametrize(("text", "message"), [("a b\nx y z\n", "line 2"), ("a a", "line 1"), ("\n", "no pairs")])
def test_broken_pairs(tmp_path, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "pairs.txt")


def test_pairs_that_are_no_text(tmp_path):
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe a\n")
    with pytest.raises(InputError, match="no UTF-8"):
        read_pairs(tmp_path / "pairs.txt")


def test_a_folder_may_have_the_name_of_a_dataset(tmp_path):
    names = ["keypoints/a.jpg", "sub/b.jpg", "sub/keypoints/c.jpg"]
    with growing(tmp_path / "f.h5", FEATURES, {}) as store:
        for name in names:
            store.add({name: {"keypoints": np.zeros((2, 2), np.float32)}})
    assert read_names(tmp_path / "f.h5") == names
