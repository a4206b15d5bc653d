import h5py
import numpy as np
import pytest
import torch

from lightglue_hf import KeypointFeatures
from lightglue_hf.collection.extraction import extract_features
from lightglue_hf.collection.matching import Matcher, check_detector, match_pairs, plan_pairs, refuse_collisions
from lightglue_hf.collection.pairing import exhaustive_pairs
from lightglue_hf.collection.storage import MATCHES, read_matches, read_names, read_settings, write_pairs
from lightglue_hf.data.posed_pairs import read_features
from lightglue_hf.utils.errors import InputError

from ..tiny import whole_model
from .conftest import save_picture


@pytest.fixture(scope="module")
def features(tmp_path_factory, photos, model, processor):
    path = tmp_path_factory.mktemp("features") / "features.h5"
    extract_features(photos, path, model, processor, name="somewhere")
    return path


@pytest.fixture
def pairs(tmp_path, features):
    write_pairs(tmp_path / "pairs.txt", exhaustive_pairs(read_names(features)))
    return tmp_path / "pairs.txt"


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@torch.inference_mode()
def test_a_pair_gets_what_it_gets_alone(tmp_path, features, pairs, model, batch_size):
    done = match_pairs(features, pairs, tmp_path / "m.h5", model, batch_size=batch_size)
    assert done == (15, 15, {})
    count = 0
    for name0, name1 in exhaustive_pairs(read_names(features)):
        images = []
        for name in (name0, name1):
            arrays = read_features(features, name)
            images.append({f: arrays[f] for f in ("keypoints", "descriptors")} | {"image_sizes": arrays["image_size"]})
        alone = model.match_features(KeypointFeatures.from_numpy(images).pairs([[0, 1]]))
        expected = alone.matches[0, 0, : len(images[0]["keypoints"])]
        found, scores = read_matches(tmp_path / "m.h5", name0, name1)
        assert found[:, 0].tolist() == torch.nonzero(expected >= 0)[:, 0].tolist()
        assert found[:, 1].tolist() == expected[expected >= 0].tolist()
        assert (scores > 0).all()
        count += len(found)
    assert count > 10
    with h5py.File(tmp_path / "m.h5") as file:
        group = file["a.jpg/sub-e.jpg"]
        assert (group["matches0"].dtype, group["matching_scores0"].dtype) == (np.int32, np.float16)


def test_what_is_there_is_not_done_again(tmp_path, features, pairs, model, monkeypatch):
    out = tmp_path / "m.h5"
    names = read_names(features)
    write_pairs(tmp_path / "some.txt", [(names[1], names[0]), (names[2], names[3])])
    assert match_pairs(features, tmp_path / "some.txt", out, model).made == 2
    assert match_pairs(features, pairs, out, model)[:2] == (15, 13)  # one of the two came the other way round
    monkeypatch.setattr(Matcher, "match", None)
    assert match_pairs(features, pairs, out, model).made == 0
    assert len(read_names(out, MATCHES)) == 15


def test_pairs_of_a_photo_that_was_replaced_are_matched_again(tmp_path, model, processor):
    folder, features, out = tmp_path / "photos", tmp_path / "f.h5", tmp_path / "m.h5"
    for seed, name in enumerate(("a.png", "sub/b.png", "c.png")):
        save_picture(folder / name, (100, 80), seed)
    extract_features(folder, features, model, processor)
    write_pairs(tmp_path / "pairs.txt", exhaustive_pairs(read_names(features)))
    assert match_pairs(features, tmp_path / "pairs.txt", out, model).made == 3
    save_picture(folder / "sub/b.png", (140, 60), 9)
    assert extract_features(folder, features, model, processor).replaced == 1
    write_pairs(tmp_path / "one.txt", [("a.png", "sub/b.png")])
    assert match_pairs(features, tmp_path / "one.txt", out, model).made == 1
    assert read_names(out, MATCHES) == ["a.png/c.png", "a.png/sub-b.png"], "the other one with it has gone"
    assert match_pairs(features, tmp_path / "pairs.txt", out, model).made == 1
    assert match_pairs(features, tmp_path / "pairs.txt", out, model).made == 0
    match_pairs(features, tmp_path / "pairs.txt", tmp_path / "fresh.h5", model)
    for pair in exhaustive_pairs(read_names(features)):
        found, expected = (read_matches(path, *pair)[0].tolist() for path in (out, tmp_path / "fresh.h5"))
        assert found == expected


def test_pairs_without_features_are_left_out(tmp_path, features, model):
    (tmp_path / "pairs.txt").write_text("a.jpg b.png\na.jpg nowhere.jpg\n")
    done = match_pairs(features, tmp_path / "pairs.txt", tmp_path / "m.h5", model)
    assert done == (2, 1, {"a.jpg nowhere.jpg": "no features of nowhere.jpg"})
    (tmp_path / "pairs.txt").write_text("x.jpg sub\n")
    with pytest.raises(InputError, match="has not both photos of any pair"):
        match_pairs(features, tmp_path / "pairs.txt", tmp_path / "m.h5", model)


def test_31_another_matcher_or_other_features_are_refused(tmp_path, features, photos, pairs, model, processor):
    out = tmp_path / "m.h5"
    match_pairs(features, pairs, out, model)
    with pytest.raises(InputError, match=r"matcher.filter_threshold 0.0001 there, 0.5 now"):
        match_pairs(features, pairs, out, whole_model(max_keypoints=64, filter_threshold=0.5))
    processor = type(processor)(size={"longest_edge": 64})
    extract_features(photos, tmp_path / "f.h5", model, processor)
    with pytest.raises(InputError, match=r"features.size.longest_edge 96 there, 64 now"):
        match_pairs(tmp_path / "f.h5", pairs, out, model)
    assert read_settings(out)["features"]["size"] == {"longest_edge": 96}


def test_features_of_another_detector_are_refused(tmp_path, features, pairs, processor):
    other = whole_model(max_keypoints=64, seed=1)
    with pytest.raises(InputError, match="made by somewhere, whose detector is not this model's"):
        match_pairs(features, pairs, tmp_path / "m.h5", other, processor)


def test_a_detector_of_another_kind_is_refused_whatever_computed(features, model, processor):
    made = read_settings(features)
    made["engine"], made["detector"]["type"] = "torch bfloat16", "disk"
    with pytest.raises(InputError, match="whose detector is not this model's"):
        check_detector(features, made, model, processor)


def test_broken_features_are_named(tmp_path, features, pairs, model):
    h5py = pytest.importorskip("h5py")
    for problem, message in (("nan", "has NaN or Inf"), ("fewer", "descriptors"), ("none", "no descriptors")):
        path = tmp_path / f"{problem}.h5"
        path.write_bytes(features.read_bytes())
        with h5py.File(path, "r+") as file:
            group = file["a.jpg"]
            if problem == "nan":
                group["keypoints"][0] = np.nan
            else:
                descriptors = group["descriptors"][:, 1:]
                del group["descriptors"]
                if problem == "fewer":
                    group["descriptors"] = descriptors
        with pytest.raises(InputError, match=message):
            match_pairs(path, pairs, tmp_path / f"{problem}-matches.h5", model)


def test_descriptors_of_another_width_are_refused(tmp_path, model):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in ("a.jpg", "b.jpg"):
            file[f"{name}/keypoints"] = np.zeros((3, 2), np.float16)
            file[f"{name}/descriptors"] = np.zeros((256, 3), np.float16)
            file[f"{name}/image_size"] = np.array([640, 480])
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg\n")
    with pytest.raises(InputError, match="256 numbers, and this matcher takes 16"):
        match_pairs(tmp_path / "f.h5", tmp_path / "pairs.txt", tmp_path / "m.h5", model)


def test_hlocs_own_features_are_matched(tmp_path, features, pairs, model):
    """Keypoints in half precision and no settings."""
    with h5py.File(features) as ours, h5py.File(tmp_path / "hloc.h5", "w") as file:
        for name in read_names(features):
            for field in ours[name]:
                values = ours[name][field][()]
                file[f"{name}/{field}"] = values.astype(np.float16) if field == "keypoints" else values
    done = match_pairs(tmp_path / "hloc.h5", pairs, tmp_path / "m.h5", model)
    assert done == (15, 15, {})
    assert sum(len(read_matches(tmp_path / "m.h5", *pair)[0]) for pair in exhaustive_pairs(read_names(features))) > 10


def test_32_pairs_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"x/a b and x-a b would have the same name"):
        refuse_collisions([("x/a", "b"), ("x-a", "b")])
    refuse_collisions([("x/a", "b"), ("x-a", "c")])


def test_pairs_of_like_counts_are_matched_together():
    counts = {"a": 10, "b": 500, "c": 11, "d": 490}
    pairs = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "a")]
    (shard,) = plan_pairs(pairs, counts, 2)
    assert shard == [[("a", "c"), ("c", "a")], [("a", "b"), ("b", "d")]]
