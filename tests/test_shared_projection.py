"""Queries and keys of cross-attention that one layer projects, in the configuration and wherever it is changed.

Every case is compared with the plain model, whose two projections are layers of their own.
"""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.models.lightglue.modeling_lightglue import LightGlueForKeypointMatching as Stock

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching

from .tiny import LAYERS, different_pairs, whole_model

STATIC = {"depth_confidence": -1, "width_confidence": -1, "max_keypoints": 40}


def attentions(model):
    return [layer.cross_attention for layer in model.transformer_layers]


def shared(**overrides):
    return whole_model(shared_query_key=True, **{**STATIC, **overrides})


def plain(model):
    """The same model with two projections of equal weights, each computed."""
    twin = copy.deepcopy(model)
    twin.config.shared_query_key = False
    for attention in attentions(twin):
        attention.k_proj = copy.deepcopy(attention.q_proj)
        assert not attention.shares_query_key()
    return twin


def assert_same(outputs, expected, atol=1e-5):
    assert torch.equal(outputs.mask, expected.mask)
    torch.testing.assert_close(outputs.matching_scores.float(), expected.matching_scores.float(), atol=atol, rtol=1e-3)
    assert torch.equal(outputs.matches, expected.matches)
    assert (outputs.matches > -1).any()


def calls(module):
    """How often a layer runs, counted in a list."""
    count = []
    module.register_forward_hook(lambda *_: count.append(1))
    return count


@torch.no_grad()
def test_one_layer_is_run_once():
    model = shared()
    count = calls(attentions(model)[0].q_proj)
    outputs = model(different_pairs())
    assert len(count) == 1
    assert_same(outputs, plain(model)(different_pairs()))
    count = calls(attentions(two := whole_model(**STATIC))[0].k_proj)
    two(different_pairs())
    assert len(count) == 1


def test_the_default_is_two_layers():
    assert LightGlueConfig().shared_query_key is None
    model = whole_model()
    assert not any(attention.shares_query_key() for attention in attentions(model))
    with pytest.raises(ValueError, match="shared_query_key needs as many key-value heads"):
        LightGlueConfig(num_key_value_heads=2, shared_query_key=True)


def test_training_cannot_part_them():
    model = shared().train()
    names = [name for name, _ in model.named_parameters()]
    assert not any("cross_attention.k_proj" in name for name in names)
    keypoints = torch.rand(1, 2, 8, 2) * 40
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(
        keypoints=keypoints,
        descriptors=torch.rand(1, 2, 8, 16),
        image_sizes=torch.full((1, 2, 2), 40),
        labels=torch.arange(8).expand(1, 2, 8),
    ).loss.backward()
    optimizer.step()
    for attention in attentions(model):
        assert attention.q_proj.weight is attention.k_proj.weight
        assert attention.shares_query_key()


@torch.no_grad()
def test_saved_by_both_names_and_loaded_by_either_side(tmp_path):
    model = shared(depth_confidence=0.9, width_confidence=0.5)
    expected = model(different_pairs())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            name = f"transformer_layers.{i}.cross_attention.{{}}_proj.{kind}"
            assert torch.equal(tensors[name.format("q")], tensors[name.format("k")])
    assert json.loads((tmp_path / "config.json").read_text())["shared_query_key"] is True
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path).eval()
    assert all(attention.shares_query_key() for attention in attentions(loaded))
    assert_same(loaded(different_pairs()), expected)
    _, info = Stock.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not [key for key in info["unexpected_keys"] if "proj" in key]


@pytest.mark.parametrize("equal", [True, False])
def test_a_checkpoint_that_does_not_say_is_recognised_as_it_is_loaded(equal, tmp_path):
    model = plain(shared()) if equal else whole_model(**STATIC)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("shared_query_key")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert loaded.config.shared_query_key is equal
    assert all(attention.shares_query_key() is equal for attention in attentions(loaded))
    config["shared_query_key"] = False  # said: two layers, whatever their weights
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert not any(attention.shares_query_key() for attention in attentions(loaded))


# -- what a comparison of weights at run time got wrong


def test_a_model_made_under_inference_mode():
    with torch.inference_mode():
        model = shared()
        outputs = model(different_pairs())
        assert_same(outputs, plain(model)(different_pairs()))


@pytest.mark.parametrize("where", ["cpu", "disk"])
@torch.no_grad()
def test_weights_that_are_offloaded(where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = shared()
    expected = plain(model)(different_pairs())
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert attentions(model)[0].q_proj.weight.device.type == "meta"
    assert_same(model(different_pairs()), expected)


@pytest.mark.parametrize("targets", [["q_proj"], ["v_proj"], ["q_proj", "k_proj"], ["projector"]])
@torch.no_grad()
def test_adapters_on_some_layers(targets):
    """The adapter's weights are merged into the plain model by hand: W + B A times the scaling."""
    peft = pytest.importorskip("peft")
    model = shared()
    twin = plain(model)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }
    assert layers
    for name, layer in layers.items():
        merged = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
        twin.get_submodule(name).weight += merged
    outputs = adapted(pixel_values=different_pairs())
    assert_same(outputs, twin(different_pairs()), atol=1e-4)
    assert not torch.allclose(outputs.matching_scores, plain(shared())(different_pairs()).matching_scores, atol=1e-3)


def quantized_dynamically(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def quantized_by_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize("quantize", [quantized_dynamically, quantized_by_torchao])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_quantized_weights(quantize):
    """Eight bits change scores by little, the same with one layer as with two."""
    model = shared()
    expected = plain(model)(different_pairs())
    outputs = quantize(model)(different_pairs())
    twin = quantize(plain(shared()))(different_pairs())
    for found in (outputs, twin):
        agree = (found.matches == expected.matches).float().mean()
        assert agree > 0.9
        assert (found.matches > -1).any()
    torch.testing.assert_close(outputs.matching_scores, twin.matching_scores, atol=0.1, rtol=0)


@torch.no_grad()
def test_a_replica_of_data_parallel_is_the_model():
    """What `torch.nn.parallel.replicate` does: shallow copies of the modules, and of the parameters afterwards."""
    model = shared()
    expected = model(different_pairs())
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            setattr(replica, name, copies[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1.5)
    replica = copies[model]
    scaled = plain(model)
    for parameter in scaled.parameters():
        parameter.mul_(1.5)
    assert_same(replica(different_pairs()), scaled(different_pairs()))
    assert_same(model(different_pairs()), expected)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_follows_its_weights():
    model = shared()
    compiled = torch.compile(model.match_features)
    features = model.extract_features(different_pairs())
    compiled(features)
    for attention in attentions(model):
        attention.q_proj.weight.mul_(0.5)
    assert_same(compiled(features), plain(model).match_features(features), atol=1e-4)
