"""Figures of the reference implementation, cvg/LightGlue@1fd587b (and glue-factory@2d17e3b for the loss)."""

import hashlib
import json

import numpy as np
import pytest
import torch

from lightglue_hf.image_processing_lightglue import scale_keypoints

from .random_weights import random_weights
from .reference import CASES, FIXTURES, KINDS, features_of_case, load, matcher, matcher_of_case, padded, superpoint

TOLERANCE = 5e-5


DIGESTS = {
    "sp": "ebb5e0d256f3f11a",
    "disk": "041cdef19d607960",
    "sift": "5e9873e7ad54e335",
    "superpoint": "33776b6a392958ff",
}


def test_all_cases_are_here():
    assert len(CASES) == 36


@pytest.mark.parametrize("kind", DIGESTS)
def test_the_weights_are_those_the_figures_were_made_with(kind):
    weights = random_weights(kind)
    named = b"".join(name.encode() + weights[name].numpy().tobytes() for name in sorted(weights))
    assert hashlib.sha256(named).hexdigest()[:16] == DIGESTS[kind]


def test_figures_stop_and_prune_at_different_layers():
    figures = {case: load(case) for case in CASES}
    for kind in KINDS:
        full = int(figures[f"{kind}_small__none"]["out_stop"])
        assert int(figures[f"{kind}_small__depth"]["out_stop"]) < full
        for case in ("width", "both_w50"):
            prunes = [figures[f"{kind}_small__{case}"][f"out_prune{image}"].ravel() for image in (0, 1)]
            assert len(set(np.concatenate(prunes))) > 1
    adaptive = [int(figures[f"{kind}_small__{case}"]["out_stop"]) for kind in KINDS for case in ("both", "both_same")]
    assert len(set(adaptive)) > 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_matches_stop_prune_and_scores(case, attention):
    outputs = matcher_of_case(case, attn_implementation=attention).match_features(**features_of_case(case))
    expected = load(case)
    assert (outputs.stop == int(expected["out_stop"])).all()
    for image in (0, 1):
        n = expected[f"in_keypoints{image}"].shape[1]
        np.testing.assert_array_equal(outputs.matches[:, image, :n], expected[f"out_matches{image}"])
        np.testing.assert_array_equal(outputs.prune[:, image, :n], expected[f"out_prune{image}"])
        scores = outputs.matching_scores[:, image]
        np.testing.assert_allclose(scores[:, :n], expected[f"out_matching_scores{image}"], atol=TOLERANCE, rtol=0)
        assert (outputs.matches[:, image, n:] == -1).all()
        assert (scores[:, n:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_released_names_give_the_same_weights(kind):
    present, released = matcher(kind).state_dict(), matcher(kind, released=True).state_dict()
    assert present.keys() == released.keys()
    assert all(torch.equal(present[name], released[name]) for name in present)


def test_training_loss():
    expected = load("sp_small__loss")
    labels = padded([torch.from_numpy(expected[f"in_gt_matches{image}"]) for image in (0, 1)])
    outputs = matcher_of_case("sp_small__none").match_features(**features_of_case("sp_small__none"), labels=labels)
    np.testing.assert_allclose(outputs.loss.detach(), expected["out_total"][0], atol=TOLERANCE, rtol=0)


def superpoint_settings(settings):
    return {
        "max_keypoints": -1 if settings["max_num_keypoints"] is None else settings["max_num_keypoints"],
        "keypoint_threshold": settings["detection_threshold"],
        "border_removal_distance": settings["remove_borders"],
        "nms_radius": settings["nms_radius"],
    }


def grey(image):
    """The reference's conversion of `(..., channels, height, width)`."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    return image if image.shape[-3] == 1 else (image * weights[:, None, None]).sum(-3, keepdim=True)


def assert_same_detections(keypoints, scores, descriptors, expected):
    """Compared in order of position: the order of equal scores is nobody's promise."""
    for ours, theirs in zip(range(len(keypoints)), range(len(expected["out_keypoints"])), strict=True):
        order = np.lexsort(keypoints[ours].numpy().T.round(3))
        reference = np.lexsort(expected["out_keypoints"][theirs].T.round(3))
        np.testing.assert_allclose(
            keypoints[ours][order], expected["out_keypoints"][theirs][reference], atol=1e-3, rtol=0
        )
        np.testing.assert_allclose(
            scores[ours][order], expected["out_keypoint_scores"][theirs][reference], atol=TOLERANCE, rtol=0
        )
        np.testing.assert_allclose(
            descriptors[ours][order], expected["out_descriptors"][theirs][reference], atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("case", sorted(p.stem for p in FIXTURES.glob("superpoint__*.npz")))
@pytest.mark.parametrize("fixed_shapes", [False, True])
@torch.no_grad()
def test_superpoint(case, fixed_shapes):
    expected = load(case)
    settings = superpoint_settings(json.loads(str(expected["conf_json"])))
    if fixed_shapes and settings["max_keypoints"] < 0:
        settings["max_keypoints"] = expected["out_keypoints"].shape[1] + 5
    image = grey(torch.from_numpy(expected["in_image"]))
    outputs = superpoint(**settings)(image, fixed_shapes=fixed_shapes)
    assert outputs.mask.sum() == expected["out_keypoint_scores"].size
    n = expected["out_keypoints"].shape[1]
    keypoints = outputs.keypoints * torch.tensor([image.shape[-1], image.shape[-2]])
    assert_same_detections(keypoints[:, :n], outputs.scores[:, :n], outputs.descriptors[:, :n], expected)


@pytest.mark.parametrize("case", sorted(p.stem for p in FIXTURES.glob("superpoint_extract__*.npz")))
@torch.no_grad()
def test_extraction_ends_in_pixels_of_the_photo(case):
    expected = load(case)
    resized = grey(torch.from_numpy(expected["mid_resized"]))
    size = resized.shape[-2:]
    outputs = superpoint(max_keypoints=64, keypoint_threshold=0.0005)(resized)
    keypoints = outputs.keypoints * torch.tensor([size[1], size[0]])
    keypoints = scale_keypoints(keypoints, size, tuple(expected["in_size"]))
    assert_same_detections(keypoints, outputs.scores, outputs.descriptors, expected)
