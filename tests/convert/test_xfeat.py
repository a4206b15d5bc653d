"""Checkpoints of XFeat and its matcher, LighterGlue: read and given back bit for bit, faults listed, figures met."""

import numpy as np
import pytest
import torch

from lightglue_hf import (
    KeypointFeatures,
    LightGlueForKeypointMatching,
    XFeatConfig,
    XFeatForKeypointDetection,
)
from lightglue_hf.convert import (
    convert_disk_state_dict,
    convert_lightglue_state_dict,
    convert_xfeat_state_dict,
    lightglue_to_cvg,
    xfeat_to_published,
)
from lightglue_hf.convert.reading import load_pickle
from lightglue_hf.convert.state_dicts import LIGHTERGLUE_SETTINGS
from lightglue_hf.convert.xfeat import is_xfeat

from ..detectors.figures import FIXTURES, figures
from ..weights import weights_file
from .test_state_dicts import checkpoint as matcher_checkpoint

NAME = "block2.0.layer.0.weight"


def checkpoint(**overrides):
    detector = XFeatForKeypointDetection(XFeatConfig(**{"descriptor_dim": 8, **overrides}))
    return {
        name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in detector.state_dict().items()
    }


def test_every_tensor_is_read_and_given_back():
    tensors = checkpoint()
    config, converted = convert_xfeat_state_dict(tensors, max_keypoints=7)
    assert (config.descriptor_dim, config.max_keypoints) == (8, 7)
    XFeatForKeypointDetection(config).load_state_dict(converted)
    back = xfeat_to_published(config, converted)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert converted[NAME].data_ptr() != tensors[NAME].data_ptr()


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda t: without(t, "block1.0.layer.1.running_var"), r"missing: block1\.0\.layer\.1\.running_var"),
        (lambda t: without(t, "block_fusion.2.weight"), "missing: block_fusion.2.weight"),
        (lambda t: t | {"block6.weight": torch.zeros(1)}, r"unexpected: block6\.weight"),
        (lambda t: t | {NAME: torch.zeros(24, 24, 1, 1)}, "of another shape: block2.0"),
        (lambda t: t | {NAME: torch.full_like(t[NAME], torch.inf)}, r"NaN or Inf in block2\.0"),
        (lambda t: t | {NAME: t[NAME].int()}, "no floating-point numbers in block2"),
        (lambda t: t | {"block_fusion.2.weight": torch.zeros(())}, "block_fusion.2.weight"),
        (lambda t: {}, "missing"),
    ],
)
def test_faults_are_listed(fault, message):
    with pytest.raises(ValueError, match=message):
        convert_xfeat_state_dict(fault(checkpoint()))


def test_tensors_of_another_configuration_are_not_given_back():
    with pytest.raises(ValueError, match="of another shape"):
        xfeat_to_published(XFeatConfig(descriptor_dim=8), checkpoint(descriptor_dim=9))


def test_xfeat_is_known_by_its_names():
    assert is_xfeat(checkpoint())
    assert not is_xfeat(["conv1a.weight", "unet.path_down.0.1.3.weight"])
    assert not is_xfeat([f"extractor.model.net.{name}" for name in checkpoint()])


# -- LighterGlue


def lighterglue_checkpoint():
    """The matcher and a detector, as the published file has them."""
    matcher = matcher_checkpoint(width=96, layers=6, heads=1, inputs=64)
    del matcher["confidence_thresholds"]
    detector = {f"extractor.model.net.{name}": tensor for name, tensor in checkpoint().items()}
    return {f"matcher.{name}": tensor for name, tensor in matcher.items()} | detector


def test_lighterglue_is_known_by_its_sizes_and_gets_its_settings():
    config, tensors = convert_lightglue_state_dict(lighterglue_checkpoint())
    assert {name: getattr(config, name) for name in LIGHTERGLUE_SETTINGS} == LIGHTERGLUE_SETTINGS
    assert (config.input_dim, config.num_attention_heads) == (64, 1)
    LightGlueForKeypointMatching(config).load_state_dict(tensors)
    overridden, _ = convert_lightglue_state_dict(lighterglue_checkpoint(), width_confidence=0.5)
    assert (overridden.width_confidence, overridden.depth_confidence) == (0.5, -1)
    other, _ = convert_lightglue_state_dict(matcher_checkpoint(width=96, layers=5, heads=1, inputs=64))
    assert (other.depth_confidence, other.width_confidence) == (0.95, 0.99)


def published(detector, convert, matcher, **overrides):
    """A published detector with a published matcher, whole."""
    detector_config, detector = convert(load_pickle(str(weights_file(detector))), **overrides)
    config, tensors = convert_lightglue_state_dict(
        load_pickle(str(weights_file(matcher))), use_keypoint_detector=True, keypoint_detector_config=detector_config
    )
    model = LightGlueForKeypointMatching(config).eval()
    model.load_state_dict(tensors | {f"keypoint_detector.{name}": tensor for name, tensor in detector.items()})
    return model


@pytest.mark.weights
def test_the_published_files_are_read_and_given_back():
    content = load_pickle(str(weights_file("xfeat.pt")))
    config, tensors = convert_xfeat_state_dict(content)
    assert config.to_diff_dict() == XFeatConfig().to_diff_dict()
    back = xfeat_to_published(config, tensors)
    assert back.keys() == content.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in content.items())
    content = load_pickle(str(weights_file("xfeat-lighterglue.pt")))
    back = lightglue_to_cvg(*convert_lightglue_state_dict(content), current_names=True)
    for name, tensor in back.items():
        if name != "confidence_thresholds":
            assert torch.equal(content[f"matcher.{name}"], tensor), name


@pytest.mark.weights
@pytest.mark.parametrize(
    ("case", "depth_confidence", "width_confidence"),
    [("default", None, None), ("nonadaptive", -1.0, -1.0), ("depthwidth", 0.95, 0.95)],
)
@torch.no_grad()
def test_published_lighterglue_figures(case, depth_confidence, width_confidence):
    config, tensors = convert_lightglue_state_dict(load_pickle(str(weights_file("xfeat-lighterglue.pt"))))
    if depth_confidence is not None:
        config.depth_confidence, config.width_confidence = depth_confidence, width_confidence
    model = LightGlueForKeypointMatching(config).eval()
    model.load_state_dict(tensors)
    with np.load(FIXTURES / "xfeat_lighterglue__figures.npz") as file:
        expected = {
            name: torch.tensor(np.stack([file[f"{name}{i}"] for i in (0, 1)]))
            for name in (
                "keypoints",
                "descriptors",
                "image_size",
                *(f"{case}_{kind}" for kind in ("matches", "scores", "prune")),
            )
        }
        stop = int(file[f"{case}_stop"])
    outputs = model.match_features(
        KeypointFeatures(
            keypoints=expected["keypoints"][None],
            descriptors=expected["descriptors"][None],
            image_sizes=expected["image_size"].flip(-1)[None].long(),
        )
    )
    assert torch.equal(outputs.matches[0], expected[f"{case}_matches"].long())
    assert torch.equal(outputs.prune[0], expected[f"{case}_prune"].long())
    assert int(outputs.stop[0]) == stop
    torch.testing.assert_close(outputs.matching_scores[0], expected[f"{case}_scores"], atol=5e-4, rtol=0)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("detector", "convert", "matcher"),
    [
        ("xfeat.pt", convert_xfeat_state_dict, "xfeat-lighterglue.pt"),
        ("disk-depth-save.pth", convert_disk_state_dict, "disk_lightglue.pth"),
    ],
)
@torch.no_grad()
def test_published_detectors_and_matchers_find_a_shift(detector, convert, matcher):
    model = published(detector, convert, matcher, max_keypoints=512)
    _, photo = figures("disk", "a")
    pair = torch.cat([photo[..., :224, :256], photo[..., 16:, 64:]])[None]
    outputs = model(pair)
    points = outputs.keypoints[0] * torch.tensor([256, 224])
    matched = outputs.matches[0, 0] >= 0
    shift = points[0][matched] - points[1][outputs.matches[0, 0][matched]]
    assert matched.sum() > 100
    assert ((shift - torch.tensor([64.0, 16.0])).abs().amax(-1) < 2).float().mean() > 0.95
