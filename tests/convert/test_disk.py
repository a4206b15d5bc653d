"""Checkpoints of DISK: read and given back bit for bit, sizes found, faults listed."""

import pytest
import torch

from lightglue_hf import DISKConfig, DISKForKeypointDetection
from lightglue_hf.convert import convert_disk_state_dict, disk_to_published
from lightglue_hf.convert.disk import is_disk
from lightglue_hf.convert.reading import load_pickle

from ..weights import weights_file

SIZES = {"encoder_hidden_sizes": [4, 6, 8], "decoder_hidden_sizes": [10], "descriptor_dim": 12}
HEAD = "unet.path_up.1.conv.3.weight"


def checkpoint(**overrides):
    detector = DISKForKeypointDetection(DISKConfig(**{**SIZES, **overrides}))
    return {name: torch.randn_like(tensor) for name, tensor in detector.state_dict().items()}


@pytest.mark.parametrize(
    "layout",
    [dict, lambda tensors: {"extractor": tensors}, lambda tensors: {f"extractor.{n}": t for n, t in tensors.items()}],
)
def test_every_layout_is_read_and_given_back(layout):
    tensors = checkpoint()
    config, converted = convert_disk_state_dict(layout(tensors), max_keypoints=7)
    assert {name: getattr(config, name) for name in SIZES} == SIZES
    assert config.max_keypoints == 7
    DISKForKeypointDetection(config).load_state_dict(converted)
    back = disk_to_published(config, converted)
    assert list(back) == ["extractor"]
    assert back["extractor"].keys() == tensors.keys()
    assert all(torch.equal(back["extractor"][name], tensor) for name, tensor in tensors.items())
    assert converted[HEAD].data_ptr() != tensors[HEAD].data_ptr()


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda t: without(t, "unet.path_down.1.1.1.weight"), r"missing: unet\.path_down\.1\.1\.1\.weight"),
        (lambda t: without(t, HEAD), r"missing: .*unet\.path_up"),
        (lambda t: t | {"unet.path_down.9.weight": torch.zeros(1)}, r"unexpected: unet\.path_down\.9\.weight"),
        (
            lambda t: t | {"unet.path_up.0.conv.3.weight": torch.zeros(10, 14, 3, 3)},
            "of another shape: unet.path_up.0",
        ),
        (lambda t: t | {HEAD: torch.full_like(t[HEAD], torch.nan)}, r"NaN or Inf in unet\.path_up\.1"),
        (lambda t: t | {HEAD: t[HEAD].int()}, "no floating-point numbers in unet"),
        (lambda t: t | {HEAD: torch.zeros(())}, "unet.path_up.1.conv.3.weight"),
        (lambda t: t | {f"extractor.{HEAD}": t[HEAD]}, "given twice"),
        (lambda t: {"extractor": t, "optimizer": {}}, "beside the extractor of a DISK checkpoint: optimizer"),
        (lambda t: {}, "missing"),
    ],
)
def test_faults_are_listed(fault, message):
    with pytest.raises(ValueError, match=message):
        convert_disk_state_dict(fault(checkpoint()))


def test_tensors_of_another_configuration_are_not_given_back():
    with pytest.raises(ValueError, match="of another shape"):
        disk_to_published(DISKConfig(**SIZES), checkpoint(descriptor_dim=13))


def test_disk_is_known_by_its_names():
    assert is_disk(checkpoint())
    assert is_disk(f"extractor.{name}" for name in checkpoint())
    assert not is_disk(["conv1a.weight", "keypoint_head.0.layer.0.weight"])


@pytest.mark.weights
def test_the_published_file_is_read_and_given_back():
    content = load_pickle(str(weights_file("disk-depth-save.pth")))
    config, tensors = convert_disk_state_dict(content)
    assert config.to_diff_dict() == DISKConfig().to_diff_dict()
    back = disk_to_published(config, tensors)
    assert back.keys() == content.keys()
    assert back["extractor"].keys() == content["extractor"].keys()
    assert all(torch.equal(back["extractor"][name], tensor) for name, tensor in content["extractor"].items())
