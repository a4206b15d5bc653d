"""HardNet's checkpoints: every layout finds its place, gaps and others' tensors are listed."""

import pytest
import torch

from lightglue_hf import DoGHardNetForKeypointDetection
from lightglue_hf.convert import convert_hardnet_state_dict
from lightglue_hf.detectors.doghardnet import HardNet


def checkpoint():
    """HardNet as kornia names it."""
    network = HardNet()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
        else:
            tensor.fill_(7)
        assert name.startswith("features.")
    return network.state_dict()


LAYOUTS = {
    "kornia": lambda tensors: tensors,
    "training": lambda tensors: {"epoch": 9, "state_dict": tensors},
    "module": lambda tensors: {f"descriptor.{name}": tensor for name, tensor in tensors.items()},
    "ours": lambda tensors: {f"hardnet.{name}": tensor for name, tensor in tensors.items()},
    "original": lambda tensors: {"state_dict": {n: t for n, t in tensors.items() if not n.endswith("tracked")}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(layout):
    tensors = checkpoint()
    config, converted = convert_hardnet_state_dict(LAYOUTS[layout](tensors), max_keypoints=77)
    assert config.max_keypoints == 77
    model = DoGHardNetForKeypointDetection(config).eval()
    model.load_state_dict(converted)
    expected = HardNet().eval()
    expected.load_state_dict(tensors)
    patches = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.hardnet(patches), expected(patches))
    counted = [int(tensor) for name, tensor in converted.items() if name.endswith("num_batches_tracked")]
    assert counted == [0 if layout == "original" else 7] * 7


def test_names_are_those_of_kornia():
    """Seven convolutions without bias, each before a batch norm without weights, and a dropout before the last."""
    convolutions = {0: (32, 1, 3), 3: (32, 32, 3), 6: (64, 32, 3), 9: (64, 64, 3), 12: (128, 64, 3), 15: (128, 128, 3)}
    expected = {}
    for index, (channels, inputs, kernel) in {**convolutions, 19: (128, 128, 8)}.items():
        expected[f"features.{index}.weight"] = (channels, inputs, kernel, kernel)
        for kind in ("running_mean", "running_var"):
            expected[f"features.{index + 1}.{kind}"] = (channels,)
        expected[f"features.{index + 1}.num_batches_tracked"] = ()
    assert {name: tuple(tensor.shape) for name, tensor in HardNet().state_dict().items()} == expected


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: t.pop("features.19.weight"), "missing: hardnet.features.19.weight"),
        (lambda t: t.pop("features.4.running_mean"), "missing: hardnet.features.4.running_mean"),
        (lambda t: t.update({"features.22.weight": torch.rand(3)}), "unexpected: hardnet.features.22.weight"),
        (lambda t: t.update({"other": torch.rand(3)}), "unexpected: hardnet.other"),
        (lambda t: t.update({"features.0.weight": torch.rand(16, 1, 3, 3)}), "another shape: .*features.0.weight"),
        (lambda t: t.update({"a.features.0.weight": t["features.0.weight"]}), "given twice"),
        (lambda t: t["features.0.weight"].fill_(torch.nan), "NaN or Inf in features.0.weight"),
        (lambda t: t.update({"features.0.weight": 3}), "no tensors: features.0.weight"),
        (lambda t: t.clear(), "missing"),
    ],
)
def test_others_are_refused(change, fault):
    tensors = checkpoint()
    change(tensors)
    with pytest.raises(ValueError, match=fault):
        convert_hardnet_state_dict(tensors)
