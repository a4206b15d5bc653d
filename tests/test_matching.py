"""One pair, from a model to files."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import matching
from lightglue_hf.image_processing_lightglue import LightGlueImageProcessor
from lightglue_hf.modeling_lightglue import LightGlueForKeypointMatching


@pytest.fixture(scope="module")
def loaded():
    from lightglue_hf import bundled_checkpoint

    where = bundled_checkpoint("tiny")
    model = LightGlueForKeypointMatching.from_pretrained(where).eval()
    model.config.keypoint_detector_config.max_keypoints = 100
    return LightGlueImageProcessor.from_pretrained(where), model


@pytest.fixture(scope="module")
def photos():
    """Two cut-outs of one picture, 8 pixels apart, of different heights."""
    cells = np.random.default_rng(0).integers(0, 255, (24, 32), np.uint8)
    picture = Image.fromarray(cells).resize((320, 240), Image.Resampling.NEAREST)
    return [picture.crop((0, 0, 300, 240)), picture.crop((8, 0, 308, 200))]


def test_a_pair_is_matched_as_by_the_model(loaded, photos):
    processor, model = loaded
    matches = matching.match_photos(processor, model, photos, 320)
    with torch.inference_mode():
        outputs = model(**processor(photos, size={"longest_edge": 320}, return_tensors="pt"))
    sizes = [[(photo.height, photo.width) for photo in photos]]
    (expected,) = processor.post_process_keypoint_matching(outputs, sizes)
    for points, name in zip(matches.prediction.matched, ("keypoints0", "keypoints1")):
        np.testing.assert_allclose(points, expected[name].numpy(), atol=1e-3)
    assert len(matches.prediction.matches) > 20
    assert matches.stop == outputs.stop.item()
    assert list(matches.times) == ["keypoints", "matching"]
    assert matches.seconds == sum(matches.times.values())
    assert [len(prune) for prune in matches.prune] == [len(points) for points in matches.prediction[:2]]


def test_geometry_and_words(loaded, photos):
    pytest.importorskip("poselib")
    matches = matching.match_photos(*loaded, photos, 320)
    geometry = matching.find_geometry(matches, photos)
    moved = geometry.homography / geometry.homography[2, 2]
    np.testing.assert_allclose(moved[:2], [[1, 0, -8], [0, 1, 0]], atol=1)
    assert geometry.pose is None
    assert matching.describe(geometry.verdict).startswith(f"{geometry.verdict.inliers.sum()} inliers")
    assert matching.describe_matches(matches).startswith(f"{len(matches.prediction.matches)} matches, stopped after")


@pytest.mark.parametrize("suffix", [".json", ".npz", ".h5"])
def test_files_give_back_what_went_in(loaded, photos, suffix):
    pytest.importorskip("h5py")
    pytest.importorskip("poselib")
    matches = matching.match_photos(*loaded, photos, 320)
    geometry = matching.find_geometry(matches, photos)
    metadata = matching.to_metadata(matches, geometry, photos, ["a", "b"], model="tiny")
    arrays = matching.to_arrays(matches.prediction, geometry)
    data = matching.encode(metadata, arrays, suffix)
    if suffix == ".json":
        back = json.loads(data)
        fields = {name: back[name] for name in metadata}
    elif suffix == ".npz":
        back = np.load(io.BytesIO(data))
        fields = json.loads(str(back["metadata"]))
    else:
        import h5py

        file = h5py.File(io.BytesIO(data))
        back, fields = {name: file[name][()] for name in file}, json.loads(file.attrs["metadata"])
    assert fields == json.loads(json.dumps(metadata))
    assert fields["model"] == "tiny"
    assert fields["image_sizes"] == [[240, 300], [200, 300]]
    for name, values in arrays.items():
        np.testing.assert_allclose(np.array(back[name]), values, rtol=1e-6)
