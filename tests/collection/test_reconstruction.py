import itertools
import json

import numpy as np
import pytest
from PIL import Image

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint
from lightglue_hf.collection import reconstruction as module
from lightglue_hf.collection.pictures import upright_axes
from lightglue_hf.collection.reconstruction import choose_pairs, reconstruct
from lightglue_hf.utils.errors import InputError

from .conftest import save_picture

pycolmap = pytest.importorskip("pycolmap")


@pytest.fixture(scope="module")
def tiny():
    model = LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny")).eval()
    return model, LightGlueImageProcessor(size={"longest_edge": 480})


@pytest.fixture(scope="module")
def made(tmp_path_factory, room, tiny):
    """The room reconstructed: where, the truth, and the summary."""
    out = tmp_path_factory.mktemp("out") / "room"
    return out, room[1], reconstruct(room[0], out, *tiny)


def test_all_photos_are_registered_and_the_points_fit(made):
    out, poses, summary = made
    mapping = summary["mapping"]
    assert mapping["registered"] == sorted(poses)
    assert mapping["points"] > 150
    assert mapping["track_length"] >= 2
    assert mapping["reprojection_error"] < 1
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["database"]["verified"] >= 4


def test_the_cameras_are_where_they_were(made):
    """Up to where, which way round and how large the whole is."""
    out, poses, _ = made
    model = pycolmap.Reconstruction(out / "sparse")
    found = {image.name: image.cam_from_world() for image in model.images.values()}
    names = sorted(poses)
    for a, b in itertools.pairwise(names):
        relative = found[b].rotation.matrix() @ found[a].rotation.matrix().T
        true = poses[b][0] @ poses[a][0].T
        angle = np.degrees(np.arccos(np.clip((np.trace(relative @ true.T) - 1) / 2, -1, 1)))
        assert angle < 2
    steps = [
        [np.linalg.norm(np.subtract(centre(a), centre(b))) for a, b in zip(names, names[2:])]
        for centre in (
            lambda name: poses[name][1],
            lambda name: -found[name].rotation.matrix().T @ found[name].translation,
        )
    ]
    np.testing.assert_allclose(np.divide(steps[1], steps[1][0]), np.divide(steps[0], steps[0][0]), rtol=0.15)


def test_what_is_written(made):
    out, _, summary = made
    header = (out / "points.ply").read_bytes()[:400].decode(errors="replace")
    assert f"element vertex {summary['mapping']['points']}" in header
    for name in ("model.png", "photos.png"):
        pixels = np.asarray(Image.open(out / name).convert("RGB"))
        assert pixels.std() > 10
    assert not [path.name for path in out.iterdir() if path.name.startswith(".") or path.name.endswith(".parts")]
    assert (out / "pairs.txt").read_text().count("\n") == 10


def test_again_nothing_is_done_again(made, room, tiny, monkeypatch):
    out, _, summary = made
    monkeypatch.setattr(module, "map_photos", None)
    again = reconstruct(room[0], out, *tiny)
    assert again["mapping"] == summary["mapping"]
    assert (again["features"]["made"], again["matches"]["made"]) == (0, 0)


def test_the_same_matches_give_the_same_model(made, room):
    out, _, summary = made
    again = module.map_photos(room[0], out / "database.db", out / "again")
    assert again._asdict() == summary["mapping"]


def test_photos_of_different_things_are_no_model(tmp_path, photos, model, processor):
    summary = reconstruct(photos, tmp_path / "out", model, processor)
    assert summary["mapping"] is None
    assert not (tmp_path / "out" / "points.ply").exists()


def test_too_few_photos(tmp_path, model, processor):
    folder = tmp_path / "photos"
    save_picture(folder / "a.jpg", (160, 120), 0)
    with pytest.raises(InputError, match="one photo"):
        reconstruct(folder, tmp_path / "out", model, processor)
    (folder / "b.jpg").write_text("no image")
    with pytest.raises(InputError, match="1 of 2 photos can be read"):
        reconstruct(folder, tmp_path / "out", model, processor)
    with pytest.raises(InputError, match="taken for photos"):
        reconstruct(folder, folder / "out", model, processor)
    with pytest.raises(InputError, match="directory of"):
        reconstruct(folder, tmp_path / "no" / "out", model, processor)
    with pytest.raises(InputError, match="no camera model ROUND"):
        reconstruct(folder, tmp_path / "out", model, processor, camera_model="ROUND")


def test_a_model_of_another_reconstruction_is_not_replaced(tmp_path, photos, model, processor):
    (tmp_path / "out" / "sparse").mkdir(parents=True)
    (tmp_path / "out" / "sparse" / "cameras.bin").write_bytes(b"of somebody")
    with pytest.raises(InputError, match=r"sparse/cameras.bin is of another reconstruction"):
        reconstruct(photos, tmp_path / "out", model, processor)
    assert (tmp_path / "out" / "sparse" / "cameras.bin").read_bytes() == b"of somebody"


def test_ways_of_choosing_pairs(tmp_path):
    names = [f"{i}.jpg" for i in range(10)]
    assert len(choose_pairs("auto", names, tmp_path, "")[0]) == 45
    assert len(choose_pairs("sequential", names, tmp_path, "", window=1, neighbours=3)[0]) == 9
    with pytest.raises(InputError, match="called random"):
        choose_pairs("random", names, tmp_path, "")


def test_down_is_down_although_the_cameras_look_up():
    angles = np.linspace(-1, 1, 5)
    turns = []
    for heading in angles:
        level = np.array([[np.cos(heading), 0, -np.sin(heading)], [0, 1, 0], [np.sin(heading), 0, np.cos(heading)]])
        tilt = 0.5  # all look up
        turns.append(np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]]) @ level)
    np.testing.assert_allclose(upright_axes(np.array(turns))[1], [0, 1, 0], atol=2e-3)
    assert np.isfinite(upright_axes(np.array(turns[:1]))).all()
    axes = upright_axes(np.array(turns))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
