"""Other projects' checkpoints: every name finds its place, strangers and gaps are listed, and no code is run."""

import itertools
import os
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from lightglue_hf import LightGlueForKeypointMatching, SuperPointForKeypointDetection
from lightglue_hf.convert.reading import load_pickle
from lightglue_hf.convert.state_dicts import (
    SUPERPOINT_NAMES,
    convert_lightglue_state_dict,
    convert_superpoint_state_dict,
    lightglue_to_cvg,
    superpoint_to_magic_leap,
)
from lightglue_hf.convert.verification import superpoint_difference
from lightglue_hf.modeling_lightglue import confidence_threshold

from ..random_weights import random_weights
from ..reference import KINDS, released_names


def checkpoint(width=32, layers=3, heads=4, inputs=32, positions=2):
    """A matcher of cvg/LightGlue as its present code saves it."""
    tensors = {}

    def linear(name, rows, columns, bias=True):
        tensors[f"{name}.weight"] = torch.randn(rows, columns)
        if bias:
            tensors[f"{name}.bias"] = torch.randn(rows)

    tensors["confidence_thresholds"] = torch.tensor([confidence_threshold(i, layers) for i in range(layers)])
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
    tensors = random_weights(kind)
    config, weights = convert_lightglue_state_dict(tensors)
    assert config.add_scale_ori == (kind == "sift")
    loaded(config, weights)


def assert_same_tensors(ours, theirs):
    """The same names, and the same bits under them."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_reference_matchers_go_back_bit_for_bit(kind):
    tensors = random_weights(kind)
    config, weights = convert_lightglue_state_dict(tensors)
    assert_same_tensors(lightglue_to_cvg(config, weights, current_names=True), tensors)
    assert_same_tensors(lightglue_to_cvg(config, weights), released_names(tensors))


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 12),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 4).map(lambda pairs: 2 * pairs),
    inputs=st.integers(1, 40),
    positions=st.sampled_from([2, 4]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_shape_goes_there_and_back(layers, heads, head_dim, inputs, positions, dtype):
    tensors = checkpoint(heads * head_dim, layers, heads, inputs, positions)
    tensors = {name: t if name == "confidence_thresholds" else t.to(dtype) for name, t in tensors.items()}
    config, weights = convert_lightglue_state_dict(tensors)
    assert (config.num_hidden_layers, config.num_attention_heads) == (layers, heads)
    assert (config.descriptor_dim, config.input_dim) == (heads * head_dim, inputs)
    assert config.add_scale_ori == (positions == 4)
    for current_names, expected in ((True, tensors), (False, released_names(tensors))):
        back = lightglue_to_cvg(config, weights, current_names)
        assert back.keys() == expected.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in expected.items())
        assert all(back[name].dtype == tensor.dtype for name, tensor in expected.items())


def test_what_cvg_cannot_hold_is_listed():
    config, weights = convert_lightglue_state_dict(checkpoint())
    weights["transformer_layers.1.cross_attention.k_proj.bias"][0] += 1
    with pytest.raises(ValueError, match=r"1\.cross_attention\.q_proj\.bias and .*which differ"):
        lightglue_to_cvg(config, weights)
    config.hidden_act = "relu"
    with pytest.raises(ValueError, match="hidden_act = 'relu'"):
        lightglue_to_cvg(config, weights)
    grouped = LightGlueForKeypointMatching(
        type(config)(descriptor_dim=16, num_key_value_heads=2, use_keypoint_detector=False, attention_bias=False)
    )
    with pytest.raises(ValueError, match=r"attention_bias = False, num_key_value_heads = 2"):
        lightglue_to_cvg(grouped.config, grouped.state_dict())
    config, weights = convert_lightglue_state_dict(grouped.state_dict())
    assert (config.num_key_value_heads, config.attention_bias) == (2, False)
    loaded(config, weights)


def test_one_tensor_by_two_names_is_refused():
    tensors = checkpoint()
    tensors["matcher.posenc.Wr.weight"] = tensors["posenc.Wr.weight"] + 1
    with pytest.raises(ValueError, match=r"given twice.*posenc\.Wr\.weight"):
        convert_lightglue_state_dict(tensors)


def test_layers_that_are_not_there_are_unexpected():
    tensors = {
        **checkpoint(),
        "log_assignment.99999999999.r": torch.ones(()),
        "self_attn.7.Wqkv.weight": torch.ones(1),
    }
    with pytest.raises(ValueError, match=r"unexpected tensors in a LightGlue checkpoint: self_attn\.7\.Wqkv\.weight$"):
        convert_lightglue_state_dict(tensors)


@pytest.mark.parametrize("shape", [(), (0,), (4,), (0, 2), (3, 2), (4, 3)])
@pytest.mark.parametrize(
    "name", ["posenc.Wr.weight", "log_assignment.0.final_proj.weight", "transformers.0.self_attn.Wqkv.weight"]
)
def test_impossible_shapes_are_an_error(name, shape):
    with pytest.raises(ValueError, match=r"no|not"):
        convert_lightglue_state_dict({**checkpoint(), name: torch.ones(shape)})


@pytest.mark.parametrize("value", [1.0, "text", None, torch.ones(2, dtype=torch.int64), torch.ones(2).to_sparse()])
def test_what_is_no_tensor_of_numbers_is_named(value):
    for convert, tensors in (
        (convert_lightglue_state_dict, checkpoint()),
        (convert_superpoint_state_dict, superpoint_checkpoint()),
    ):
        with pytest.raises(ValueError, match=r"(no tensors|no floating-point numbers|unexpected tensors).*stranger"):
            convert({**tensors, "stranger": value})


def test_other_shapes_are_listed():
    tensors = checkpoint()
    tensors["transformers.0.cross_attn.to_v.bias"] = torch.ones(31)
    with pytest.raises(
        ValueError,
        match=r"of another shape: transformer_layers\.0\.cross_attention\.v_proj\.bias \(31,\) instead of \(32,\)$",
    ):
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
    weights = random_weights("superpoint")
    weights["conv1a.bias"][0] = value
    with pytest.raises(ValueError, match=r"NaN or Inf.*conv1a\.bias"):
        convert_superpoint_state_dict(weights)


# -- SuperPoint


def superpoint_checkpoint():
    return random_weights("superpoint")


def test_superpoint():
    tensors = superpoint_checkpoint()
    config, weights = convert_superpoint_state_dict(tensors, max_keypoints=77)
    assert config.encoder_hidden_sizes == [64, 64, 128, 128]
    assert (config.decoder_hidden_size, config.descriptor_decoder_dim, config.max_keypoints) == (256, 64, 77)
    SuperPointForKeypointDetection(config).load_state_dict(weights)
    assert torch.equal(weights["encoder.conv_blocks.3.conv_a.weight"], tensors["conv4a.weight"])
    assert torch.equal(weights["keypoint_decoder.conv_score_b.bias"], tensors["convPb.bias"])
    assert torch.equal(weights["descriptor_decoder.conv_descriptor_a.weight"], tensors["convDa.weight"])


def test_superpoint_goes_back_bit_for_bit():
    tensors = superpoint_checkpoint()
    config, weights = convert_superpoint_state_dict(tensors)
    assert_same_tensors(superpoint_to_magic_leap(config, weights), tensors)
    again, same = convert_superpoint_state_dict(weights)
    assert again.to_dict() == config.to_dict()
    assert_same_tensors(same, weights)


def superpoint_open_checkpoint(widths=(6, 7, 8, 9), hidden=12, dim=10, signs=True):
    """As rpautrat/SuperPoint@ccf3008 saves it, with batch norms of either sign and a shift."""
    tensors = {}
    channels = [1, *(width for width in widths for _ in "ab")]
    shapes = [*itertools.pairwise(channels), (widths[3], hidden), (hidden, 65), (widths[3], hidden), (hidden, dim)]
    for (name, (prefix, _)), (inputs, outputs) in zip(SUPERPOINT_NAMES.items(), shapes, strict=True):
        kernel = 1 if name.endswith(("Pb", "Db")) else 3
        tensors[f"{prefix}.conv.weight"] = torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel) ** 0.5
        tensors[f"{prefix}.conv.bias"] = 0.1 * torch.randn(outputs)
        scale = 0.5 + torch.rand(outputs)
        tensors[f"{prefix}.bn.weight"] = scale * torch.randn(outputs).sign() if signs else scale
        tensors[f"{prefix}.bn.bias"] = 0.5 * torch.randn(outputs)
        tensors[f"{prefix}.bn.running_mean"] = 0.2 * torch.randn(outputs)
        tensors[f"{prefix}.bn.running_var"] = 0.5 + torch.rand(outputs)
        tensors[f"{prefix}.bn.num_batches_tracked"] = torch.tensor(7)
    return tensors


@pytest.mark.parametrize("signs", [True, False])
def test_superpoint_open_folds_into_the_same_function(signs):
    """Also at the borders, where the zeros of padding meet the shift of the batch norm, and for every sign of it."""
    tensors = superpoint_open_checkpoint(signs=signs)
    config, weights = convert_superpoint_state_dict(tensors)
    assert config.encoder_hidden_sizes == [7, 8, 9, 10]  # one channel of ones in each layer
    assert config.descriptor_grid == "centred"
    assert (max(config.min_pooled_channels) > 0) == signs
    model = SuperPointForKeypointDetection(config)
    model.load_state_dict(weights)
    assert superpoint_difference(model, tensors) < 2e-6
    with pytest.raises(ValueError, match=r"cannot hold descriptor_grid = 'centred'"):
        superpoint_to_magic_leap(config, weights)


@torch.no_grad()
def test_superpoint_open_with_padding_is_as_alone():
    config, weights = convert_superpoint_state_dict(superpoint_open_checkpoint(), keypoint_threshold=0.0)
    model = SuperPointForKeypointDetection(config).eval()
    model.load_state_dict(weights)
    image = torch.rand(1, 1, 40, 48)
    padded = torch.nn.functional.pad(image, (0, 32, 0, 24), value=0.5)
    alone, outputs = model(image), model(padded, image_sizes=torch.tensor([[40, 48]]))
    assert alone.mask.sum() > 10
    scale = torch.tensor([80 / 48, 64 / 40])
    torch.testing.assert_close(outputs.keypoints * scale, alone.keypoints, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.descriptors, alone.descriptors, atol=1e-4, rtol=0)


def test_superpoint_open_with_strangers_or_gaps():
    tensors = superpoint_open_checkpoint()
    for name in ("backbone.2.1.bn.running_var", "descriptor.1.conv.bias", "detector.0.conv.weight"):
        with pytest.raises(ValueError, match=f"missing: {re.escape(name)}"):
            convert_superpoint_state_dict({other: t for other, t in tensors.items() if other != name})
        with pytest.raises(ValueError, match=f"of another shape.*{re.escape(name)}"):
            convert_superpoint_state_dict({**tensors, name: torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"unexpected: backbone\.4\.0\.conv\.weight"):
        convert_superpoint_state_dict({**tensors, "backbone.4.0.conv.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="NaN or Inf"):
        convert_superpoint_state_dict({**tensors, "detector.0.bn.running_var": -torch.ones(12)})


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
    with pytest.raises(ValueError, match="not a SuperPoint checkpoint: this is a LightGlue matcher"):
        convert_superpoint_state_dict(checkpoint())
    with pytest.raises(ValueError, match="not a LightGlue checkpoint: this is a SuperPoint detector"):
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
