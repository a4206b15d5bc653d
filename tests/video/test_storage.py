"""tracks.h5: what is written is read, whole or not at all."""

from contextlib import suppress

import numpy as np
import pytest

from lightglue_hf.utils.errors import InputError
from lightglue_hf.video import Tracks, read_tracks, writing_tracks
from lightglue_hf.video import storage as module

h5py = pytest.importorskip("h5py")


def some_tracks(count, first=0, keyframe=False):
    rng = np.random.default_rng(count)
    zeros = np.zeros(count, np.int64)
    positions = rng.uniform(0, 100, (count, 2)).astype(np.float32)
    scores = rng.random(count).astype(np.float32)
    return Tracks(np.arange(first, first + count), positions, zeros + 1, zeros, scores, keyframe)


@pytest.mark.parametrize("at_once", [1, 7, 1 << 14])
def test_round_trip(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", at_once)
    frames = [some_tracks(5, keyframe=True), some_tracks(0), some_tracks(3, first=2), some_tracks(9, first=2)]
    path = tmp_path / "tracks.h5"
    with writing_tracks(path, (48, 64), {"made": "here"}) as add:
        for i, tracks in enumerate(frames):
            add(0.04 * i, tracks)
        assert not path.exists()
    saved = read_tracks(path)
    assert len(saved) == 4
    assert saved.image_size == (48, 64)
    assert saved.settings == {"made": "here"}
    assert saved.homographies is None
    assert saved.template_size is None
    np.testing.assert_allclose(saved.times, [0, 0.04, 0.08, 0.12])
    assert saved.keyframes.tolist() == [True, False, False, False]
    for i, tracks in enumerate(frames):
        ids, positions = saved.frame(i)
        np.testing.assert_array_equal(ids, tracks.ids)
        np.testing.assert_array_equal(positions, tracks.positions)
    at, positions = saved.track(2)
    assert at.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(positions, [frames[i].positions[tracks_row(frames[i], 2)] for i in at])
    ids, counts = saved.lengths()
    assert dict(zip(ids.tolist(), counts.tolist()))[2] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["tracks.h5"]


def tracks_row(tracks, id):
    return np.flatnonzero(tracks.ids == id)[0]


def test_with_a_template(tmp_path):
    with writing_tracks(tmp_path / "t.h5", (48, 64), template_size=(30, 20)) as add:
        add(0.0, homography=np.eye(3))
        add(1.0)
    saved = read_tracks(tmp_path / "t.h5")
    assert saved.template_size == (30, 20)
    np.testing.assert_array_equal(saved.homographies[0], np.eye(3))
    assert np.isnan(saved.homographies[1]).all()
    assert len(saved.frame(0)[0]) == 0


def test_no_frames(tmp_path):
    with writing_tracks(tmp_path / "t.h5", (48, 64)):
        pass
    assert len(read_tracks(tmp_path / "t.h5")) == 0


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "tracks.h5"
    path.write_text("before")
    with suppress(KeyboardInterrupt), writing_tracks(path, (48, 64)) as add:
        add(0.0, some_tracks(4))
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["tracks.h5"]


def test_other_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["ids"] = [1]
    with pytest.raises(InputError, match="no file of tracks: it has no positions"):
        read_tracks(tmp_path / "other.h5")
    with writing_tracks(tmp_path / "cut.h5", (48, 64)) as add:
        add(0.0, some_tracks(4))
    with h5py.File(tmp_path / "cut.h5", "a") as file:
        file["ids"].resize(2, axis=0)
    with pytest.raises(InputError, match="do not go together"):
        read_tracks(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "cut.h5", "a") as file:
        file["first"].resize(0, axis=0)
    with pytest.raises(InputError, match="do not go together"):
        read_tracks(tmp_path / "cut.h5")
    with pytest.raises(InputError, match="does not exist"):
        read_tracks(tmp_path / "no.h5")


@pytest.mark.parametrize("name", ["ids", "positions", "scores", "times", "keyframes", "homographies"])
def test_a_column_that_is_cut_is_seen(tmp_path, name):
    with writing_tracks(tmp_path / "t.h5", (48, 64), template_size=(30, 20)) as add:
        add(0.0, some_tracks(4), np.eye(3))
        add(1.0, some_tracks(4))
    assert len(read_tracks(tmp_path / "t.h5")) == 2
    with h5py.File(tmp_path / "t.h5", "a") as file:
        file[name].resize(1, axis=0)
    with pytest.raises(InputError, match="do not go together"):
        read_tracks(tmp_path / "t.h5")
