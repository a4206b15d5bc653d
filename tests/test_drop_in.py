"""Checkpoints go both ways between transformers' own LightGlue and ours, with the same matches.

transformers' side runs in another process, which never sees this package.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForKeypointDetection, AutoModelForKeypointMatching

from lightglue_hf import (
    LightGlueConfig,
    LightGlueForKeypointMatching,
    SuperPointConfig,
    SuperPointForKeypointDetection,
)

from .tiny import whole_model

STOCK = """
import json, sys
import numpy as np, torch
from transformers import (
    AutoModelForKeypointDetection, AutoModelForKeypointMatching, LightGlueConfig, LightGlueForKeypointMatching,
    SuperPointConfig, SuperPointForKeypointDetection,
)

classes = {
    "lightglue": (LightGlueConfig, LightGlueForKeypointMatching, AutoModelForKeypointMatching),
    "superpoint": (SuperPointConfig, SuperPointForKeypointDetection, AutoModelForKeypointDetection),
}
root, jobs = sys.argv[1], json.loads(sys.argv[2])
for name, job in jobs.items():
    config_class, model_class, auto_class = classes[job["model_type"]]
    info = {}
    if "config" in job:
        torch.manual_seed(4)
        model = model_class(config_class(**job["config"])).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias"):
                    parameter.normal_(std=0.1)
                if parameter_name.startswith("token_confidence") and parameter_name.endswith("bias"):
                    parameter += job.get("certainty", 0.0)
        model.save_pretrained(f"{root}/{name}")
    else:
        model, info = auto_class.from_pretrained(f"{root}/{name}", output_loading_info=True)
        assert type(model) is model_class
        model = model.eval()
    with torch.no_grad():
        outputs = model(torch.from_numpy(np.load(f"{root}/{job['pixels']}.npy")))
    arrays = {key: value.numpy() for key, value in outputs.items()}
    for kind in ("missing_keys", "unexpected_keys"):
        arrays[kind] = np.array(sorted(info.get(kind, [])), dtype=str)
    np.savez(f"{root}/{name}.npz", **arrays)
assert "lightglue_hf" not in sys.modules
"""

DETECTOR = {
    "model_type": "superpoint",
    "encoder_hidden_sizes": [8, 8, 8, 8],
    "decoder_hidden_size": 16,
    "descriptor_decoder_dim": 16,
    "keypoint_threshold": 1e-6,
    "max_keypoints": 40,
    "nms_radius": 2,
    "initializer_range": 0.2,
}
MATCHER = {
    "keypoint_detector_config": DETECTOR,
    "descriptor_dim": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "depth_confidence": -1.0,
    "width_confidence": -1.0,
    "filter_threshold": 1e-5,
    "initializer_range": 0.2,
}
ALL_POINTS = {**DETECTOR, "max_keypoints": -1, "keypoint_threshold": 0.02}
CONFIGS = {
    "plain": MATCHER,
    "all_points": {**MATCHER, "keypoint_detector_config": ALL_POINTS},
    "projected": {**MATCHER, "descriptor_dim": 32, "num_attention_heads": 4},
    "grouped": {**MATCHER, "descriptor_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2},
    "without_bias": {**MATCHER, "attention_bias": False, "hidden_act": "relu"},
    "adaptive": {**MATCHER, "num_hidden_layers": 5, "depth_confidence": 0.95, "width_confidence": 0.5},
}
PIXELS = {name: "one_pair" if name == "adaptive" else "two_pairs" for name in CONFIGS}
OWN_FIELDS = {
    "pruning_min_keypoints": 7,
    "input_dim": 16,
    "depth_confidence": -1,
    "width_confidence": 0,
    "filter_threshold": 0,
}


def pixel_values(pairs):
    """Noise, and the same noise moved by a cell."""
    images = np.random.default_rng(pairs).random((pairs, 3, 48, 64), dtype=np.float32)
    return np.stack([images, np.roll(images, 8, axis=-1)], axis=1)


def our_model(config):
    torch.manual_seed(4)
    return LightGlueForKeypointMatching(config).eval()


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    """A directory in which transformers has saved its models, read ours, and left what each gives."""
    root = tmp_path_factory.mktemp("exchange")
    np.save(root / "one_pair.npy", pixel_values(1))
    np.save(root / "two_pairs.npy", pixel_values(2))
    np.save(root / "images.npy", pixel_values(2).reshape(4, 3, 48, 64))
    jobs = {}
    for name, config in CONFIGS.items():
        job = {"model_type": "lightglue", "config": config, "pixels": PIXELS[name], "certainty": 2.0}
        jobs[f"theirs_{name}"] = job
        ours = our_model(LightGlueConfig.from_dict(config))
        ours.save_pretrained(root / f"ours_{name}")
        jobs[f"ours_{name}"] = {"model_type": "lightglue", "pixels": PIXELS[name]}
    our_model(LightGlueConfig(**{**MATCHER, **OWN_FIELDS})).save_pretrained(root / "ours_own_fields")
    jobs["ours_own_fields"] = {"model_type": "lightglue", "pixels": "two_pairs"}
    for name, config in (("superpoint", DETECTOR), ("superpoint_all_points", ALL_POINTS)):
        config = {key: value for key, value in config.items() if key != "model_type"}
        jobs[f"theirs_{name}"] = {"model_type": "superpoint", "config": config, "pixels": "images"}
        torch.manual_seed(5)
        SuperPointForKeypointDetection(SuperPointConfig.from_dict(config)).save_pretrained(root / f"ours_{name}")
        jobs[f"ours_{name}"] = {"model_type": "superpoint", "pixels": "images"}
    run = subprocess.run([sys.executable, "-c", STOCK, str(root), json.dumps(jobs)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return root


def theirs(exchange, name):
    with np.load(exchange / f"{name}.npz") as arrays:
        arrays = dict(arrays)
    if "prune" in arrays:  # both thresholds off: (2 * batch, n)
        for key in ("matches", "matching_scores"):
            arrays[key] = arrays[key].reshape(arrays["mask"].shape)
    return {key: value if value.dtype.kind == "U" else torch.from_numpy(value) for key, value in arrays.items()}


def assert_same_matches(outputs, expected, but_last=False, at_least=4):
    """The outputs of keypoints; what theirs gives for padding is meaningless."""
    n = expected["mask"].shape[-1]
    assert not outputs.mask[..., n:].any()
    assert torch.equal(outputs.mask[..., :n].int(), expected["mask"].int())
    valid = expected["mask"].bool()
    assert valid.sum(-1).min() > 10
    torch.testing.assert_close(outputs.keypoints[..., :n, :][valid], expected["keypoints"][valid], atol=1e-6, rtol=0)
    if but_last:  # theirs writes the padding of pruned points over the last keypoint's
        valid[..., -1] = False
    assert torch.equal(outputs.matches[..., :n][valid], expected["matches"][valid].long())
    scores = outputs.matching_scores[..., :n]
    torch.testing.assert_close(scores[valid], expected["matching_scores"][valid], atol=1e-5, rtol=0)
    assert torch.equal(outputs.prune[..., :n][valid], expected["prune"][valid].long())
    assert (outputs.matches[..., :n][valid] >= 0).sum() >= at_least


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_ours_reads_what_theirs_saves(exchange, name):
    model, info = AutoModelForKeypointMatching.from_pretrained(exchange / f"theirs_{name}", output_loading_info=True)
    assert type(model) is LightGlueForKeypointMatching
    assert [len(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")] == [0, 0, 0]
    assert type(model.keypoint_detector) is SuperPointForKeypointDetection
    assert model.config.keypoint_detector_config.remove_far_borders is False
    saved = load_file(exchange / f"theirs_{name}" / "model.safetensors")
    weights = model.state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(weights[key], value) for key, value in saved.items())
    assert ("input_projection.weight" in weights) == (name in ("projected", "grouped"))

    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        outputs = model.eval()(torch.from_numpy(np.load(exchange / f"{PIXELS[name]}.npy")))
        assert_same_matches(outputs, theirs(exchange, f"theirs_{name}"), but_last=name == "adaptive")
    if name == "adaptive":
        assert len(outputs.prune.unique()) > 2, "points are meant to be pruned at different layers"
    if name == "all_points":
        assert len(outputs.mask.sum(-1).unique()) > 1, "the images are meant to have different counts"


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_theirs_reads_what_ours_saves(exchange, name):
    expected = theirs(exchange, f"ours_{name}")
    assert list(expected["missing_keys"]) == []
    assert list(expected["unexpected_keys"]) == []
    model = AutoModel.from_pretrained(exchange / f"ours_{name}").eval()
    assert type(model) is LightGlueForKeypointMatching
    outputs = model(torch.from_numpy(np.load(exchange / f"{PIXELS[name]}.npy")))
    assert_same_matches(outputs, expected, but_last=name == "adaptive", at_least=2)


@torch.no_grad()
def test_theirs_reads_our_own_fields_and_whole_numbers(exchange):
    expected = theirs(exchange, "ours_own_fields")
    assert list(expected["missing_keys"]) == []
    assert list(expected["unexpected_keys"]) == []
    assert expected["mask"].sum() > 40


@pytest.mark.parametrize("name", ["superpoint", "superpoint_all_points"])
@pytest.mark.parametrize("source", ["theirs", "ours"])
@torch.no_grad()
def test_superpoint_goes_both_ways(exchange, source, name):
    expected = theirs(exchange, f"{source}_{name}")
    assert list(expected["missing_keys"]) == []
    assert list(expected["unexpected_keys"]) == []
    model = AutoModelForKeypointDetection.from_pretrained(exchange / f"{source}_{name}").eval()
    assert type(model) is SuperPointForKeypointDetection
    assert type(AutoModel.from_pretrained(exchange / f"{source}_{name}")) is SuperPointForKeypointDetection
    assert model.config.remove_far_borders is False
    outputs = model(torch.from_numpy(np.load(exchange / "images.npy")))
    assert expected["mask"].sum(-1).min() > 10
    assert torch.equal(outputs.mask, expected["mask"].int())
    for key in ("keypoints", "scores", "descriptors"):
        torch.testing.assert_close(outputs[key], expected[key], atol=1e-5, rtol=0)


# -- configuration and names


def test_our_own_fields_survive_saving(tmp_path):
    detector = SuperPointConfig(encoder_hidden_sizes=[8, 8, 8, 8], descriptor_decoder_dim=16, remove_far_borders=True)
    fields = {
        "num_key_value_heads": 2,
        "input_dim": 24,
        "add_scale_ori": True,
        "use_keypoint_detector": False,
        "pruning_min_keypoints": 9,
        "filter_threshold": 0,
    }
    config = LightGlueConfig(detector, descriptor_dim=32, num_hidden_layers=2, **fields)
    model = our_model(config)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForKeypointMatching.from_pretrained(tmp_path).eval()
    assert type(loaded) is LightGlueForKeypointMatching
    assert {name: getattr(loaded.config, name) for name in fields} == fields
    assert loaded.config.keypoint_detector_config.remove_far_borders is True
    assert loaded.config.keypoint_detector_config.encoder_hidden_sizes == [8, 8, 8, 8]
    assert not hasattr(loaded, "keypoint_detector")
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    arguments = torch.rand(1, 2, 9, 2), torch.rand(1, 2, 9, 24)
    scales = {"scales": torch.rand(1, 2, 9), "orientations": torch.rand(1, 2, 9)}
    expected, outputs = (m.match_features(*arguments, **scales) for m in (model, loaded))
    assert torch.equal(outputs.matching_scores, expected.matching_scores)


def test_derived_widths_are_saved_under_the_names_of_transformers(tmp_path):
    LightGlueConfig(descriptor_dim=64, num_attention_heads=2).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    expected = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2, "model_type": "lightglue"}
    assert {name: saved[name] for name in expected} == expected
    assert saved["keypoint_detector_config"]["model_type"] == "superpoint"
    saved |= {"trust_remote_code": True, "hidden_size": 5}  # neither is honoured
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LightGlueConfig
    assert (config.hidden_size, config.intermediate_size, config.trust_remote_code) == (64, 128, False)


def test_a_configuration_without_the_detectors_type_means_superpoint(tmp_path):
    detector = {"descriptor_decoder_dim": 128, "attn_implementation": "eager"}
    content = {"model_type": "lightglue", "architectures": ["LightGlueForKeypointMatching"]}
    (tmp_path / "config.json").write_text(json.dumps({**content, "keypoint_detector_config": detector}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config.keypoint_detector_config) is SuperPointConfig
    assert config.keypoint_detector_config.remove_far_borders is False
    assert (config.num_input_features, config.num_hidden_layers, config.num_key_value_heads) == (128, 9, 4)


def expected_names(layers):
    def both(*names):
        return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}

    names = {"positional_encoder.projector.weight"}
    for i in range(layers):
        for side in ("self", "cross"):
            prefix = f"transformer_layers.{i}.{side}"
            names |= both(*(f"{prefix}_attention.{x}_proj" for x in "qkvo"))
            names |= both(*(f"{prefix}_mlp.{x}" for x in ("fc1", "layer_norm", "fc2")))
        names |= both(f"match_assignment_layers.{i}.final_projection", f"match_assignment_layers.{i}.matchability")
        if i < layers - 1:
            names |= both(f"token_confidence.{i}.token")
    for block in range(4):
        names |= both(*(f"keypoint_detector.encoder.conv_blocks.{block}.conv_{x}" for x in "ab"))
    for decoder, conv in (("keypoint_decoder", "conv_score"), ("descriptor_decoder", "conv_descriptor")):
        names |= both(*(f"keypoint_detector.{decoder}.{conv}_{x}" for x in "ab"))
    return names


def test_names_of_the_published_configuration():
    with torch.device("meta"):
        model = LightGlueForKeypointMatching(LightGlueConfig())
    names = set(model.state_dict())
    assert len(names) == 329
    assert names == expected_names(9)
    assert list(model.buffers()) == []
    assert sum(name.startswith("keypoint_detector.") for name in names) == 24


# -- loading


@pytest.fixture
def saved(tmp_path):
    our_model(LightGlueConfig.from_dict(MATCHER)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_new_weights_are_drawn_and_loaded_ones_stay(saved):
    new = our_model(LightGlueConfig.from_dict({**MATCHER, "descriptor_dim": 64, "initializer_range": 0.5}))
    assert abs(new.transformer_layers[0].self_mlp.fc1.weight.std() - 0.5) < 0.05
    assert abs(new.positional_encoder.projector.weight.std() - 1) < 0.3  # frequencies
    assert (new.transformer_layers[1].cross_mlp.fc2.bias == 0).all()
    assert (new.transformer_layers[1].cross_mlp.layer_norm.weight == 1).all()
    assert abs(new.keypoint_detector.encoder.conv_blocks[1].conv_a.weight.std() - 0.2) < 0.05

    weights = load_file(saved / "model.safetensors")
    for value in weights.values():
        value.fill_(0.125)
    lost = "transformer_layers.0.self_mlp.layer_norm.bias"
    save_file(
        {name: value for name, value in weights.items() if name != lost},
        saved / "model.safetensors",
        metadata={"format": "pt"},
    )
    model, info = AutoModelForKeypointMatching.from_pretrained(saved, output_loading_info=True)
    assert list(info["missing_keys"]) == [lost]
    for name, value in model.state_dict().items():
        assert (value == (0 if name == lost else 0.125)).all(), name


def test_the_matcher_alone_of_a_whole_checkpoint(saved):
    model = AutoModelForKeypointMatching.from_pretrained(saved, use_keypoint_detector=False)
    assert not any(name.startswith("keypoint_detector") for name in model.state_dict())
    whole = AutoModelForKeypointMatching.from_pretrained(saved).state_dict()
    assert all(torch.equal(whole[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForKeypointMatching, AutoModelForKeypointDetection])
def test_a_dtype_can_be_asked_for(saved, tmp_path, auto_class):
    if auto_class is AutoModelForKeypointDetection:
        saved = tmp_path / "detector"
        SuperPointForKeypointDetection(SuperPointConfig.from_dict(DETECTOR)).save_pretrained(saved)
    assert auto_class.from_pretrained(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert auto_class.from_pretrained(saved).dtype == torch.float32


@pytest.mark.skipif(os.name == "nt", reason="no modes there")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_saved_weights_may_be_read_by_whom_the_umask_lets(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        whole_model().save_pretrained(tmp_path)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors"), mode)
