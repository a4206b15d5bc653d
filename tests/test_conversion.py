"""Other projects' checkpoints: every name finds its place, strangers and gaps are listed, and no code is run."""

import os
import re

import pytest
import torch

from lightglue_hf import LightGlueForKeypointMatching, SuperPointForKeypointDetection
from lightglue_hf.conversion import convert_lightglue_state_dict, convert_superpoint_state_dict, load_pickle

from .reference import FIXTURES, KINDS, released_names


def checkpoint(width=32, layers=3, heads=4, inputs=32, positions=2):
    """A matcher of cvg/LightGlue as its present code saves it."""
    tensors = {}

    def linear(name, rows, columns, bias=True):
        tensors[f"{name}.weight"] = torch.randn(rows, columns)
        if bias:
            tensors[f"{name}.bias"] = torch.randn(rows)

    tensors["confidence_thresholds"] = torch.rand(layers)
    linear("posenc.Wr", width // heads // 2, positions, bias=False)
    if inputs != width:
        linear("input_proj", width, inputs)
    for i in range(layers):
        linear(f"transformers.{i}.self_attn.Wqkv", 3 * width, width)
        linear(f"transformers.{i}.self_attn.out_proj", width, width)
        for name in ("to_qk", "to_v", "to_out"):
            linear(f"transformers.{i}.cross_attn.{name}", width, width)
        for side in ("self", "cross"):
            linear(f"transformers.{i}.{side}_attn.ffn.0", 2 * width, 2 * width)
            linear(f"transformers.{i}.{side}_attn.ffn.3", width, 2 * width)
            for kind in ("weight", "bias"):
                tensors[f"transformers.{i}.{side}_attn.ffn.1.{kind}"] = torch.randn(2 * width)
        linear(f"log_assignment.{i}.final_proj", width, width)
        linear(f"log_assignment.{i}.matchability", 1, width)
        if i < layers - 1:
            linear(f"token_confidence.{i}.token.0", 1, width)
    return tensors


def loaded(config, weights):
    """The model: a missing or unexpected name, or another shape, is an error of load_state_dict."""
    model = LightGlueForKeypointMatching(config)
    model.load_state_dict(weights)
    return model


def test_every_tensor_finds_its_place():
    tensors = checkpoint(layers=2, inputs=48)
    _, weights = convert_lightglue_state_dict(tensors)
    qkv = tensors["transformers.1.self_attn.Wqkv.weight"]
    expected = {
        "positional_encoder.projector.weight": tensors["posenc.Wr.weight"],
        "input_projection.bias": tensors["input_proj.bias"],
        # the row of head h, channel c and part p is (c + 8 h) * 3 + p
        "transformer_layers.1.self_attention.q_proj.weight": qkv.view(4, 8, 3, 32)[:, :, 0].reshape(32, 32),
        "transformer_layers.1.self_attention.k_proj.weight": qkv.view(4, 8, 3, 32)[:, :, 1].reshape(32, 32),
        "transformer_layers.1.self_attention.v_proj.weight": qkv.view(4, 8, 3, 32)[:, :, 2].reshape(32, 32),
        "transformer_layers.1.self_attention.o_proj.bias": tensors["transformers.1.self_attn.out_proj.bias"],
        "transformer_layers.0.cross_attention.q_proj.weight": tensors["transformers.0.cross_attn.to_qk.weight"],
        "transformer_layers.0.cross_attention.k_proj.weight": tensors["transformers.0.cross_attn.to_qk.weight"],
        "transformer_layers.0.cross_attention.v_proj.bias": tensors["transformers.0.cross_attn.to_v.bias"],
        "transformer_layers.0.cross_attention.o_proj.weight": tensors["transformers.0.cross_attn.to_out.weight"],
        "transformer_layers.0.self_mlp.fc1.weight": tensors["transformers.0.self_attn.ffn.0.weight"],
        "transformer_layers.0.self_mlp.layer_norm.bias": tensors["transformers.0.self_attn.ffn.1.bias"],
        "transformer_layers.1.cross_mlp.fc2.weight": tensors["transformers.1.cross_attn.ffn.3.weight"],
        "match_assignment_layers.1.final_projection.bias": tensors["log_assignment.1.final_proj.bias"],
        "match_assignment_layers.0.matchability.weight": tensors["log_assignment.0.matchability.weight"],
        "token_confidence.0.token.bias": tensors["token_confidence.0.token.0.bias"],
    }
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize(
    ("sizes", "config"),
    [
        ({}, {"descriptor_dim": 32, "num_attention_heads": 4, "input_dim": 32, "add_scale_ori": False}),
        ({"heads": 2, "inputs": 16}, {"num_attention_heads": 2, "input_dim": 16}),
        ({"positions": 4, "inputs": 128}, {"add_scale_ori": True, "input_dim": 128}),
        ({"layers": 1}, {"num_hidden_layers": 1}),
        ({"layers": 12}, {"num_hidden_layers": 12}),
    ],
)
def test_sizes_are_read_from_the_tensors(sizes, config):
    converted, weights = convert_lightglue_state_dict(checkpoint(**sizes))
    for name, value in config.items():
        assert getattr(converted, name) == value, name
    assert converted.use_keypoint_detector is False
    loaded(converted, weights)


def test_layers_above_the_ninth_keep_their_number():
    tensors = checkpoint(layers=12)
    _, weights = convert_lightglue_state_dict(released_names(tensors))
    for layer in (1, 10, 11):
        assert torch.equal(
            weights[f"transformer_layers.{layer}.cross_attention.v_proj.weight"],
            tensors[f"transformers.{layer}.cross_attn.to_v.weight"],
        )


def gluefactory_names(tensors):
    strangers = {"matcher.log_assignment.0.r": torch.zeros(())}  # of an older version, of no use
    return {f"matcher.{name}": tensor for name, tensor in tensors.items()} | strangers


@pytest.mark.parametrize("names", [released_names, gluefactory_names])
def test_every_project_s_names_give_the_same(names):
    tensors = checkpoint()
    config, expected = convert_lightglue_state_dict(tensors)
    other_config, weights = convert_lightglue_state_dict(names(tensors))
    assert other_config.to_dict() == config.to_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", KINDS)
def test_reference_matchers_of_every_kind(kind):
    tensors = load_pickle(str(FIXTURES / f"{kind}_small.pth"))
    config, weights = convert_lightglue_state_dict(tensors)
    assert config.add_scale_ori == (kind == "sift")
    loaded(config, weights)


def test_other_shapes_are_listed():
    tensors = checkpoint()
    tensors["transformers.0.cross_attn.to_v.bias"] = torch.ones(31)
    with pytest.raises(ValueError, match=r"of another shape: transformer_layers\.0\.cross_attention\.v_proj\.bias$"):
        convert_lightglue_state_dict(tensors)


def test_our_own_names_pass_unchanged():
    config, weights = convert_lightglue_state_dict(checkpoint())
    again, same = convert_lightglue_state_dict(weights)
    assert again.to_dict() == config.to_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())


def test_settings_can_be_given():
    config, weights = convert_lightglue_state_dict(checkpoint(), filter_threshold=0.2, depth_confidence=-1)
    assert (config.filter_threshold, config.depth_confidence) == (0.2, -1)
    loaded(config, weights)
    config, _ = convert_lightglue_state_dict(checkpoint(), use_keypoint_detector=True)
    assert config.use_keypoint_detector
    with pytest.raises(ValueError, match="of another shape: positional_encoder"):
        convert_lightglue_state_dict(checkpoint(), num_attention_heads=2)


def test_the_tensors_are_copies():
    tensors = checkpoint()
    _, weights = convert_lightglue_state_dict(tensors)
    weights["positional_encoder.projector.weight"].zero_()
    weights["transformer_layers.0.cross_attention.q_proj.weight"].zero_()
    assert tensors["posenc.Wr.weight"].any()
    assert weights["transformer_layers.0.cross_attention.k_proj.weight"].any()


def test_strangers_are_listed_by_their_own_names():
    tensors = checkpoint()
    tensors |= {"matcher.stranger.weight": torch.ones(1), "extractor.conv1a.bias": torch.ones(1)}
    with pytest.raises(ValueError, match=r"unexpected tensors.*: extractor\.conv1a\.bias, matcher\.stranger\.weight$"):
        convert_lightglue_state_dict(tensors)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("posenc.Wr.weight", "posenc.Wr.weight"),
        ("log_assignment.0.final_proj.weight", "log_assignment.0.final_proj.weight"),
        ("transformers.1.self_attn.Wqkv.bias", "transformer_layers.1.self_attention.q_proj.bias"),
        ("transformers.2.cross_attn.ffn.1.weight", "transformer_layers.2.cross_mlp.layer_norm.weight"),
        ("token_confidence.1.token.0.weight", "token_confidence.1.token.weight"),
        ("input_proj.bias", "input_projection.bias"),
    ],
)
def test_missing_tensors_are_listed(lost, named):
    tensors = checkpoint(inputs=16)
    del tensors[lost]
    with pytest.raises(ValueError, match=f"missing.*{re.escape(named)}|{re.escape(named)}.*missing"):
        convert_lightglue_state_dict(tensors)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_are_refused(value):
    tensors = checkpoint()
    tensors["transformers.1.cross_attn.to_v.bias"][3] = value
    with pytest.raises(ValueError, match=r"NaN or Inf.*transformers\.1\.cross_attn\.to_v\.bias"):
        convert_lightglue_state_dict(tensors)
    weights = load_pickle(str(FIXTURES / "superpoint_random.pth"))
    weights["conv1a.bias"][0] = value
    with pytest.raises(ValueError, match=r"NaN or Inf.*conv1a\.bias"):
        convert_superpoint_state_dict(weights)


# -- SuperPoint


def superpoint_checkpoint():
    return load_pickle(str(FIXTURES / "superpoint_random.pth"))


def test_superpoint():
    tensors = superpoint_checkpoint()
    config, weights = convert_superpoint_state_dict(tensors, max_keypoints=77)
    assert config.encoder_hidden_sizes == [64, 64, 128, 128]
    assert (config.decoder_hidden_size, config.descriptor_decoder_dim, config.max_keypoints) == (256, 256, 77)
    SuperPointForKeypointDetection(config).load_state_dict(weights)
    assert torch.equal(weights["encoder.conv_blocks.3.conv_a.weight"], tensors["conv4a.weight"])
    assert torch.equal(weights["keypoint_decoder.conv_score_b.bias"], tensors["convPb.bias"])
    assert torch.equal(weights["descriptor_decoder.conv_descriptor_a.weight"], tensors["convDa.weight"])


def test_superpoint_with_strangers_or_gaps():
    tensors = superpoint_checkpoint()
    with pytest.raises(ValueError, match=r"unexpected \['bn1a.weight'\]"):
        convert_superpoint_state_dict({**tensors, "bn1a.weight": torch.ones(1)})
    for lost, named in (
        ("conv2b.weight", "encoder.conv_blocks.1.conv_b.weight"),
        ("convPa.bias", "keypoint_decoder.conv_score_a.bias"),
        ("conv1a.weight", "encoder.conv_blocks.0.conv_a.weight"),
    ):
        with pytest.raises(ValueError, match=f"missing.*{re.escape(named)}"):
            convert_superpoint_state_dict({name: tensor for name, tensor in tensors.items() if name != lost})


def test_a_matcher_is_no_superpoint_and_the_other_way_round():
    with pytest.raises(ValueError, match="not a SuperPoint"):
        convert_superpoint_state_dict(checkpoint())
    with pytest.raises(ValueError, match="unexpected"):
        convert_lightglue_state_dict(superpoint_checkpoint())
    with pytest.raises(ValueError, match="not a LightGlue"):
        convert_lightglue_state_dict({})


# -- pickles


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, zipped):
    trace = tmp_path / "executed"
    torch.save({"posenc.Wr.weight": Malicious(trace)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Exception, match=r"mkdir|[Uu]nsupported|Weights only"):
        load_pickle(str(tmp_path / "a.pth"))
    assert not trace.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert trace.exists(), "it is meant to be malicious"


def test_a_pickle_of_tensors_is_read(tmp_path):
    tensors = checkpoint()
    torch.save(tensors, tmp_path / "a.pth")
    read = load_pickle(str(tmp_path / "a.pth"))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
