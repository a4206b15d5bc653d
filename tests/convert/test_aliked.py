"""Checkpoints of ALIKED: sizes are read from the tensors, faults are listed, and the way back is bit for bit."""

import pytest
import torch

from lightglue_hf import ALIKEDConfig, ALIKEDForKeypointDetection
from lightglue_hf.convert.aliked import aliked_to_published, convert_aliked_state_dict, is_aliked
from lightglue_hf.convert.reading import load_pickle

from ..weights import weights_file


def checkpoint(seed=0, **sizes):
    """As published: with the counters of the batch norms."""
    torch.manual_seed(seed)
    config = ALIKEDConfig(**{"hidden_sizes": [4, 8, 12, 16], "num_sample_positions": 5, **sizes})
    return aliked_to_published(config, ALIKEDForKeypointDetection(config).state_dict())


@pytest.mark.parametrize(
    "sizes", [{}, {"hidden_sizes": [8, 4, 16, 32]}, {"kernel_size": 5}, {"num_sample_positions": 32}]
)
def test_sizes_are_read_and_the_way_back_is_exact(sizes):
    tensors = checkpoint(**sizes)
    assert tensors["block4.bn2.num_batches_tracked"].dtype == torch.int64
    assert sum(name.endswith("num_batches_tracked") for name in tensors) == 8
    config, converted = convert_aliked_state_dict(tensors, max_keypoints=99, keypoint_threshold=0.1)
    assert (config.max_keypoints, config.keypoint_threshold) == (99, 0.1)
    expected = {"hidden_sizes": [4, 8, 12, 16], "kernel_size": 3, "num_sample_positions": 5, **sizes}
    assert {name: getattr(config, name) for name in expected} == expected
    ALIKEDForKeypointDetection(config).load_state_dict(converted)
    back = aliked_to_published(config, converted)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_the_counters_may_be_missing():
    tensors = {name: t for name, t in checkpoint().items() if not name.endswith("num_batches_tracked")}
    assert convert_aliked_state_dict(tensors)[1].keys() == tensors.keys()


def test_what_is_converted_is_a_copy():
    tensors = checkpoint()
    _, converted = convert_aliked_state_dict(tensors)
    converted["conv1.weight"].zero_()
    assert tensors["conv1.weight"].any()


@pytest.mark.parametrize("name", ["conv3.weight", "block1.bn2.running_var", "desc_head.agg_weights"])
def test_what_is_missing_is_listed(name):
    tensors = checkpoint()
    del tensors[name]
    with pytest.raises(ValueError, match=f"missing.*{name}"):
        convert_aliked_state_dict(tensors)


def test_other_faults_are_listed():
    with pytest.raises(ValueError, match=r"unexpected: block5\.conv1\.weight"):
        convert_aliked_state_dict(checkpoint() | {"block5.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"another shape: block2\.bn1\.bias"):
        convert_aliked_state_dict(checkpoint() | {"block2.bn1.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"another shape: conv2\.weight"):
        convert_aliked_state_dict(checkpoint() | {"conv2.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"another shape: .*conv1\.weight"):
        convert_aliked_state_dict(checkpoint() | {"conv1.weight": torch.zeros(4, 9, 1, 1)})
    with pytest.raises(ValueError, match=r"NaN or Inf in score_head\.0\.weight"):
        convert_aliked_state_dict(checkpoint() | {"score_head.0.weight": torch.full((8, 16, 1, 1), torch.nan)})
    with pytest.raises(ValueError, match=r"no tensors: conv1\.weight"):
        convert_aliked_state_dict(checkpoint() | {"conv1.weight": "text"})
    with pytest.raises(ValueError, match="not an ALIKED checkpoint"):
        convert_aliked_state_dict({"conv1a.weight": torch.zeros(64, 1, 3, 3)})
    config, converted = convert_aliked_state_dict(checkpoint())
    with pytest.raises(ValueError, match=r"missing: conv1\.weight"):
        aliked_to_published(config, {name: t for name, t in converted.items() if name != "conv1.weight"})


def test_it_is_known_by_its_names():
    assert is_aliked(checkpoint())
    assert not is_aliked(["conv1.weight", "conv1a.weight", "encoder.conv_blocks.0.conv_a.weight"])


@pytest.mark.weights
@pytest.mark.parametrize(
    ("variant", "hidden_sizes", "samples", "numbers"),
    [
        ("n16", [16, 32, 64, 128], 16, 678324),
        ("n16rot", [16, 32, 64, 128], 16, 678324),
        ("n32", [16, 32, 64, 128], 32, 980468),
        ("t16", [8, 16, 32, 64], 16, 192588),
    ],
)
def test_published_files(variant, hidden_sizes, samples, numbers):
    tensors = load_pickle(str(weights_file(f"aliked-{variant}.pth")))
    config, converted = convert_aliked_state_dict(tensors)
    assert config.hidden_sizes == hidden_sizes
    assert config.num_sample_positions == samples
    assert sum(tensor.numel() for tensor in converted.values()) == numbers - 8  # the counters
    back = aliked_to_published(config, converted)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], t) for name, t in tensors.items() if not name.endswith("num_batches_tracked"))
