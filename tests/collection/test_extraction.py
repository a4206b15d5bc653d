import json
import os
import tracemalloc
from concurrent.futures import Future

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import KeypointFeatures, LightGlueImageProcessor
from lightglue_hf.collection import extraction
from lightglue_hf.collection import photos as photos_module
from lightglue_hf.collection.extraction import Extractor, extract_features, plan_photos
from lightglue_hf.collection.photos import load_stored, photo_names
from lightglue_hf.collection.storage import FEATURES, Store, growing, open_hdf5, read_names, read_settings
from lightglue_hf.collection.work import remaining
from lightglue_hf.data.posed_pairs import read_features
from lightglue_hf.geometry import scale_keypoints
from lightglue_hf.utils.errors import InputError

from ..tiny import whole_model
from .conftest import SIZES, save_picture


@torch.inference_mode()
def alone(model, processor, path):
    """The features of one photo, in pixels of the photo."""
    photo = load_stored(path)
    inputs = processor(photo, pairs=False, return_tensors="pt")
    (arrays,) = model.extract_features(**inputs).numpy()
    size = (photo.height, photo.width)
    arrays["keypoints"] = scale_keypoints(
        torch.from_numpy(arrays["keypoints"]), arrays["image_sizes"].tolist(), size
    ).numpy()
    return arrays


def test_a_photo_gets_what_it_gets_alone(tmp_path, photos, model, processor):
    done = extract_features(photos, tmp_path / "f.h5", model, processor, batch_size=3)
    assert done == (6, 6, {}, 0)
    assert read_names(tmp_path / "f.h5") == sorted(SIZES)
    counts = 0
    for name, (width, height) in SIZES.items():
        expected, found = alone(model, processor, photos / name), read_features(tmp_path / "f.h5", name)
        assert found["image_size"].tolist() == [height, width]
        np.testing.assert_allclose(found["keypoints"], expected["keypoints"], atol=1e-3)
        np.testing.assert_allclose(found["descriptors"], expected["descriptors"], atol=1e-3)
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-3)
        counts += len(found["keypoints"])
    assert counts > 100
    with open_hdf5(tmp_path / "f.h5") as file:
        types = {name: str(file["a.jpg"][name].dtype) for name in file["a.jpg"]}
    assert types == {
        "keypoints": "float32",
        "descriptors": "float16",
        "scores": "float16",
        "image_size": "int32",
    }


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_make_no_difference(tmp_path, photos, model, processor, batch_size):
    extract_features(photos, tmp_path / "f.h5", model, processor, batch_size=batch_size)
    for name in SIZES:
        expected, found = alone(model, processor, photos / name), read_features(tmp_path / "f.h5", name)
        assert len(found["keypoints"]) == len(expected["keypoints"])


def test_what_is_there_is_not_done_again(tmp_path, photos, model, processor, monkeypatch):
    path = tmp_path / "f.h5"
    extract_features(photos, path, model, processor)
    before = path.read_bytes()
    monkeypatch.setattr(Extractor, "load", None)  # would fail
    assert extract_features(photos, path, model, processor).made == 0
    assert path.read_bytes() == before


def test_new_photos_are_added(tmp_path, model, processor):
    folder = tmp_path / "photos"
    save_picture(folder / "a.png", (100, 80), 0)
    assert extract_features(folder, tmp_path / "f.h5", model, processor)[:2] == (1, 1)
    save_picture(folder / "b.png", (100, 80), 1)
    assert extract_features(folder, tmp_path / "f.h5", model, processor)[:2] == (2, 1)
    assert read_names(tmp_path / "f.h5") == ["a.png", "b.png"]


def features_of(path, name):
    return read_features(path, name)["keypoints"].tolist()


def test_a_photo_that_was_replaced_under_its_name_is_done_again(tmp_path, model, processor, monkeypatch):
    folder, out = tmp_path / "photos", tmp_path / "f.h5"
    for seed, name in enumerate("abc"):
        save_picture(folder / f"{name}.bmp", (100, 80), seed)  # files of one size, whatever is in them
    extract_features(folder, out, model, processor)
    before = {name: features_of(out, f"{name}.bmp") for name in "abc"}
    stored = out.read_bytes()

    os.utime(folder / "a.bmp", (1e9, 1e9))  # touched, and the same
    assert extract_features(folder, out, model, processor) == (3, 0, {}, 0)
    assert out.read_bytes() == stored

    save_picture(folder / "b.bmp", (100, 80), 9)
    os.utime(folder / "b.bmp", (1e9, 1e9))  # older than it was
    assert extract_features(folder, out, model, processor) == (3, 1, {}, 1)
    fresh = tmp_path / "fresh.h5"
    extract_features(folder, fresh, model, processor)
    for name in "abc":
        assert features_of(out, f"{name}.bmp") == features_of(fresh, f"{name}.bmp")
        assert (features_of(out, f"{name}.bmp") == before[name]) == (name != "b")

    monkeypatch.setattr(photos_module, "sha256_of", lambda path: pytest.fail("it was read"))
    assert extract_features(folder, fresh, model, processor) == (3, 0, {}, 0), "by their times alone"


def test_a_run_that_is_killed_keeps_what_it_did_again(tmp_path, model, processor, monkeypatch):
    folder, out = tmp_path / "photos", tmp_path / "f.h5"
    save_picture(folder / "a.png", (100, 80), 0)
    save_picture(folder / "b.png", (120, 80), 1)
    extract_features(folder, out, model, processor)
    for seed, name in enumerate("ab", start=5):
        save_picture(folder / f"{name}.png", (100, 80), seed)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "merge", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract_features(folder, out, model, processor)
    assert extract_features(folder, out, model, processor) == (2, 0, {}, 0)
    extract_features(folder, tmp_path / "fresh.h5", model, processor)
    for name in ("a.png", "b.png"):
        assert features_of(out, name) == features_of(tmp_path / "fresh.h5", name)


def test_a_photo_that_was_replaced_by_a_broken_one_has_no_features(tmp_path, model, processor):
    folder, out = tmp_path / "photos", tmp_path / "f.h5"
    for seed, name in enumerate("ab"):
        save_picture(folder / f"{name}.png", (100, 80), seed)
    extract_features(folder, out, model, processor)
    (folder / "b.png").write_text("no image")
    done = extract_features(folder, out, model, processor)
    assert (done.made, done.replaced, list(done.left_out)) == (0, 0, ["b.png"])
    assert read_names(out) == ["a.png"]


def test_features_that_do_not_say_their_photo_stay(tmp_path, photos, model, processor):
    """Files that were made before this was noted."""
    out = tmp_path / "f.h5"
    extract_features(photos, out, model, processor)
    with h5py.File(out, "a") as file:
        for name in SIZES:
            del file[name].attrs["made_from"]
    assert extract_features(photos, out, model, processor) == (6, 0, {}, 0)


def broken_photos(folder):
    save_picture(folder / "good.jpg", (160, 120), 0)
    content = (folder / "good.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()


def test_08_09_broken_photos_are_left_out_and_the_rest_is_done(tmp_path, model, processor):
    folder, out = tmp_path / "photos", tmp_path / "f.h5"
    broken_photos(folder)
    done = extract_features(folder, out, model, processor)
    assert (done.photos, done.made) == (4, 1)
    assert sorted(done.left_out) == ["cut.jpg", "empty.png", "text.jpg"]
    assert all(len(why) > 10 and str(folder) not in why for why in done.left_out.values())
    assert json.loads((tmp_path / "f.h5.left-out.json").read_text()) == done.left_out
    assert read_names(out) == ["good.jpg"]
    # repaired, they are done
    for name in done.left_out:
        save_picture(folder / name, (160, 120), 1)
    assert extract_features(folder, out, model, processor) == (4, 3, {}, 0)
    assert not (tmp_path / "f.h5.left-out.json").exists()


def test_none_that_can_be_read(tmp_path, model, processor):
    folder, out = tmp_path / "photos", tmp_path / "f.h5"
    broken_photos(folder)
    (folder / "good.jpg").unlink()
    with pytest.raises(InputError, match=r"none of the 3 photos can be read; .*\.(jpg|png): "):
        extract_features(folder, out, model, processor)
    assert not out.exists()
    assert not (tmp_path / "f.h5.parts").exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_07_decompression_bombs_are_left_out(tmp_path, model, processor, monkeypatch):
    folder = tmp_path / "photos"
    save_picture(folder / "a.png", (40, 30), 0)
    save_picture(folder / "b.png", (100, 80), 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    done = extract_features(folder, tmp_path / "f.h5", model, processor)
    assert list(done.left_out) == ["b.png"]


def test_photos_of_very_different_sizes_and_without_keypoints(tmp_path, model, processor):
    folder = tmp_path / "photos"
    for i, size in enumerate([(1, 1), (2000, 3), (3, 2000), (640, 480)]):
        save_picture(folder / f"{i}.png", size, i)
    assert extract_features(folder, tmp_path / "f.h5", model, processor) == (4, 4, {}, 0)
    for name in ("1.png", "2.png"):  # one pixel high and wide, as the model sees them
        assert read_features(tmp_path / "f.h5", name)["keypoints"].shape == (0, 2)
        assert read_features(tmp_path / "f.h5", name)["descriptors"].shape == (0, 16)


def test_31_another_model_or_setting_is_refused_and_named(tmp_path, photos, model, processor):
    out = tmp_path / "f.h5"
    extract_features(photos, out, model, processor, name="one")
    assert read_settings(out)["about"] == {"model": "one"}
    with pytest.raises(InputError, match=r"weights \w+ there, \w+ now"):
        extract_features(photos, out, whole_model(max_keypoints=64, seed=1), processor)
    with pytest.raises(InputError, match=r"detector.max_keypoints 64 there, 32 now"):
        extract_features(photos, out, whole_model(max_keypoints=32), processor)
    with pytest.raises(InputError, match=r"size.longest_edge 96 there, 128 now"):
        extract_features(photos, out, model, LightGlueImageProcessor(size={"longest_edge": 128}))
    extract_features(photos, out, model, processor, batch_size=1, name="two")  # changes nothing


def test_like_sizes_are_computed_together(photos, processor):
    shards, left_out = plan_photos(photos, photo_names(photos), processor, batch_size=2)
    assert left_out == {}
    batches = [batch for shard in shards for batch in shard]
    assert sorted(name for batch in batches for name in batch) == sorted(SIZES)
    assert ["a.jpg", "b.png"] in batches
    assert all(len({SIZES[name] for name in batch}) == 1 for batch in batches)


def test_photos_are_read_ahead_but_not_all_at_once(photos, model, processor, monkeypatch):
    """However many there are, the pixels of a few are in memory."""
    monkeypatch.setattr(extraction, "READERS", 2)
    started, done, most = 0, 0, 0
    extract = Extractor.extract

    class Pool:
        """Counts what is begun, and does it at once."""

        def __init__(self, count):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, name):
            nonlocal started
            started += 1
            future = Future()
            future.set_result(function(name))
            return future

    def counting_extract(self, batch, part):
        nonlocal done, most
        most = max(most, started - done)
        done += len(batch)
        extract(self, batch, part)

    monkeypatch.setattr(extraction, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(Extractor, "extract", counting_extract)
    shards = [[["a.jpg", "b.png"]] * 3 for _ in range(10)]
    with torch.inference_mode():
        parts = list(Extractor(model, processor, str(photos))(shards))
    assert len(parts) == 10
    assert started == done == 60
    assert most == 2 * 2 + 2 + 2  # two batches, one for each reader, and the batch that is computed


def test_the_bookkeeping_of_ten_thousand_photos(tmp_path, processor, monkeypatch):
    """Names, sizes, plan, what is done and the merge take less than 2 kB a photo."""
    names = [f"{i // 1000:03}/{i:06}.jpg" for i in range(10_000)]
    sizes = [(480, 640), (640, 480), (600, 800)]
    monkeypatch.setattr(extraction, "stored_size", lambda path: sizes[int(path.stem) % 3])
    empty = {"keypoints": np.zeros((0, 2), np.float32)}
    shards, left_out = plan_photos(tmp_path, names, processor, batch_size=8)
    with growing(tmp_path / "f.h5", FEATURES, {}) as store:
        for shard in remaining(shards, store.done.__contains__):
            store.add({name: empty for batch in shard for name in batch})
    tracemalloc.start()  # which makes writing slow
    shards, left_out = plan_photos(tmp_path, names, processor, batch_size=8)
    with growing(tmp_path / "f.h5", FEATURES, {}) as store:
        assert len(store.done) == 10_000
        assert list(remaining(shards, store.done.__contains__)) == []
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left_out == {}
    assert most < 2000 * len(names)
    print(f"{most / len(names):.0f} bytes a photo")


def test_scales_and_orientations_come_back_as_the_matcher_takes_them(tmp_path):
    rng = np.random.default_rng(0)
    features = KeypointFeatures.from_numpy(
        [
            {
                "keypoints": rng.uniform(0, 90, (4, 2)).astype(np.float32),
                "descriptors": rng.normal(size=(4, 8)).astype(np.float32),
                "image_sizes": np.array([60, 90]),
                "scales": rng.uniform(1, 9, 4).astype(np.float32),
                "orientations": rng.uniform(-3, 3, 4).astype(np.float32),
            }
        ]
    )
    (arrays,) = features.numpy()
    group = extraction.to_group(arrays, (600, 900))
    with growing(tmp_path / "f.h5", FEATURES, {}) as store:
        store.add({"a.jpg": group})
    with open_hdf5(tmp_path / "f.h5") as file:
        found = extraction.from_group(file["a.jpg"], read_features(tmp_path / "f.h5", "a.jpg"))
    np.testing.assert_allclose(group["scales"], arrays["scales"] * 10, rtol=1e-6)
    np.testing.assert_allclose(found["scales"], arrays["scales"], rtol=1e-6)
    np.testing.assert_allclose(found["orientations"], arrays["orientations"])
