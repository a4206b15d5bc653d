"""The commands of a collection, from a folder to a database, and what they say when something is wrong."""

import json

import pytest

from lightglue_hf import cli

h5py = pytest.importorskip("h5py")
pycolmap = pytest.importorskip("pycolmap")


@pytest.fixture
def folder(tmp_path, photos):
    """Photos, one of which is broken, and a place for files."""
    (tmp_path / "photos").mkdir()
    for path in photos:
        name = path.rpartition("/")[2]
        with open(path, "rb") as file:
            (tmp_path / "photos" / name).write_bytes(file.read())
    return tmp_path


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def features(capsys, folder, checkpoint, *options):
    return run(capsys, "features", folder / "photos", "-o", folder / "f.h5", "--model", checkpoint, *options)


def test_from_a_folder_to_a_database(folder, checkpoint, capsys):
    assert features(capsys, folder, checkpoint, "--longest-edge", 128)[:2] == (
        0,
        f"wrote {folder / 'f.h5'}: 2 of 2 photos, 2 of them now\n",
    )
    status, out, _ = features(capsys, folder, checkpoint, "--longest-edge", 128, "--json")
    assert (status, json.loads(out)) == (0, {"photos": 2, "made": 0, "left_out": {}, "replaced": 0})
    for way in ((), ("--by", "sequential"), ("--by", "retrieval", "--features", folder / "f.h5")):
        status, out, _ = run(capsys, "pairs", folder / "photos", "-o", folder / "p.txt", *way)
        assert (status, out) == (0, f"wrote {folder / 'p.txt'}: 1 pairs of 2 photos\n")
        assert (folder / "p.txt").read_text() == "a.png b.jpg\n"
    # the model is the one that made the features
    status, out, _ = run(capsys, "match-pairs", folder / "f.h5", folder / "p.txt", "-o", folder / "m.h5", "--json")
    assert (status, json.loads(out)) == (0, {"pairs": 1, "made": 1, "left_out": {}})
    files = (folder / "f.h5", folder / "m.h5", "-o", folder / "d.db")
    for _ in range(2):
        status, out, err = run(capsys, "colmap", folder / "photos", *files, "--json")
        assert status == 0, err
        assert json.loads(out)["photos"] == 2
    assert not list(folder.glob("*.parts"))


def test_a_photo_that_was_replaced_is_said_and_a_database_of_the_old_one_refused(folder, checkpoint, capsys):
    files = (folder / "f.h5", folder / "m.h5", "-o", folder / "d.db")
    match = ("match-pairs", folder / "f.h5", folder / "p.txt", "-o", folder / "m.h5", "--json")
    features(capsys, folder, checkpoint)
    run(capsys, "pairs", folder / "photos", "-o", folder / "p.txt")
    run(capsys, *match)
    assert run(capsys, "colmap", folder / "photos", *files)[0] == 0
    (folder / "photos" / "a.png").write_bytes((folder / "photos" / "b.jpg").read_bytes())
    assert features(capsys, folder, checkpoint)[:2] == (
        0,
        f"wrote {folder / 'f.h5'}: 2 of 2 photos, 1 of them now, 1 of those because the photo of that name is another "
        "one\n",
    )
    assert json.loads(run(capsys, *match)[1])["made"] == 1
    status, _, err = run(capsys, "colmap", folder / "photos", *files)
    assert status == 2
    assert "has other keypoints of a.png: choose another name, or remove it" in err


def test_photos_that_are_left_out_are_listed_and_the_status_is_3(folder, checkpoint, capsys):
    (folder / "photos" / "bad.jpg").write_text("no image")
    status, out, err = features(capsys, folder, checkpoint)
    assert status == 3
    assert "2 of 3 photos" in out
    assert err.startswith("left out: bad.jpg: ")
    status, _, err = run(capsys, "pairs", folder / "photos", "-o", folder / "p.txt", "--features", folder / "f.h5")
    assert status == 3
    assert "bad.jpg: not in" in err


def test_reconstruct(folder, checkpoint, capsys):
    status, out, _ = run(capsys, "reconstruct", folder / "photos", folder / "out", "--model", checkpoint, "-q")
    assert status == 1
    assert "no two photos fit together" in out
    status, out, _ = run(
        capsys, "reconstruct", folder / "photos", folder / "out", "--model", checkpoint, "-q", "--json"
    )
    assert status == 1
    assert json.loads(out)["mapping"] is None
    assert {path.name for path in (folder / "out").iterdir()} >= {"features.h5", "matches.h5", "database.db"}


def test_errors_are_one_line(folder, checkpoint, error, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    made = ("-o", tmp_path / "x.h5", "--model", checkpoint)
    assert "there are no photos in" in error("features", empty, *made)
    assert "is no folder" in error("features", tmp_path / "nowhere", *made)
    assert "must end in .h5" in error("features", folder / "photos", "-o", tmp_path / "x.txt")
    assert "go with --engine ray" in error("features", folder / "photos", *made, "--workers", 2)
    assert "--features" in error("pairs", folder / "photos", "-o", tmp_path / "p.txt", "--by", "retrieval")
    assert "0 of 2 photos have a GPS" in error("pairs", folder / "photos", "-o", tmp_path / "p.txt", "--by", "gps")
    assert "does not exist" in error("match-pairs", tmp_path / "no.h5", tmp_path / "p.txt", "-o", tmp_path / "m.h5")
    (folder / "photos" / "a b.jpg").touch()
    assert "names with spaces" in error("features", folder / "photos", *made)
    assert not (tmp_path / "x.h5").exists()
    assert not (tmp_path / "x.h5.parts").exists()


def test_another_setting_is_refused(folder, checkpoint, capsys, error):
    features(capsys, folder, checkpoint)
    said = error("features", folder / "photos", "-o", folder / "f.h5", "--model", checkpoint, "--max-keypoints", 9)
    assert "detector.max_keypoints 64 there, 9 now" in said


def test_features_that_do_not_say_their_model(folder, error):
    with h5py.File(folder / "hloc.h5", "w") as file:
        file["a.png/keypoints"] = [[0.0, 0.0]]
    (folder / "p.txt").write_text("a.png b.jpg\n")
    said = error("match-pairs", folder / "hloc.h5", folder / "p.txt", "-o", folder / "m.h5")
    assert "give --model" in said


def test_pairs_are_given_up_early_if_asked_to(folder, checkpoint, capsys, error):
    features(capsys, folder, checkpoint)
    (folder / "p.txt").write_text("a.png b.jpg\n")
    files = (folder / "f.h5", folder / "p.txt", "-o", folder / "m.h5")
    assert run(capsys, "match-pairs", *files, "--rejection-threshold", 1)[0] == 0
    assert "matcher.rejection_threshold 1.0 there" in error("match-pairs", *files)
