"""From the files of every project through the command to a directory that loads, to matches, to the Hub, and back."""

import copy
import functools
import hashlib
import http.server
import inspect
import io
import json
import re
import runpy
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from lightglue_hf import (
    LightGlueConfig,
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
    SuperPointForKeypointDetection,
    cli,
)
from lightglue_hf.convert import directories
from lightglue_hf.convert.detectors import DETECTOR_KINDS
from lightglue_hf.convert.published import PUBLISHED
from lightglue_hf.convert.reading import load_pickle, read_tensors
from lightglue_hf.detectors import configuration_class, model_class

from ..random_weights import random_weights
from ..reference import CASES, KINDS, features_of_case, load, released_names
from ..tiny import different_pairs, whole_model
from .test_state_dicts import Malicious, assert_same_tensors, checkpoint, gluefactory_names, superpoint_open_checkpoint

NAMINGS = {"current": dict, "released": released_names}
ROOT = Path(__file__).parents[2]


def convert(*arguments):
    assert cli.main(["convert", *map(str, arguments)]) == 0


def tensors_of(kind, naming="current"):
    return NAMINGS[naming](random_weights(kind))


def small_superpoint(width=64, seed=0):
    """Magic Leap's layout, smaller, with descriptors of the reference's SuperPoint matcher."""
    torch.manual_seed(seed)
    shapes = {"1a": (8, 1), "1b": (8, 8), "2a": (8, 8), "2b": (8, 8), "3a": (8, 8), "3b": (8, 8), "4a": (8, 8)}
    shapes |= {"4b": (8, 8), "Pa": (16, 8), "Pb": (65, 16), "Da": (16, 8), "Db": (width, 16)}
    tensors = {}
    for name, (rows, columns) in shapes.items():
        kernel = 1 if name in ("Pb", "Db") else 3
        tensors[f"conv{name}.weight"] = 0.3 * torch.randn(rows, columns, kernel, kernel)
        tensors[f"conv{name}.bias"] = 0.1 * torch.randn(rows)
    return tensors


def save(tensors, path):
    torch.save(tensors, path)
    return path


def files(directory):
    """Everything under a directory, hidden too, with its content."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def failing(capsys, tmp_path):
    """Run a conversion that must fail with one line and leave everything as it was; return the line."""

    def failing(*arguments):
        before = files(tmp_path)
        capsys.readouterr()
        assert cli.main(["convert", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "error: " in error
        assert files(tmp_path) == before
        return error

    return failing


# -- the reference, from its .pth to matches and back


@pytest.fixture(scope="module", params=[(kind, naming) for kind in KINDS for naming in NAMINGS], ids="-".join)
def reference(request, tmp_path_factory):
    """A kind, a naming, the file and the directory that the command made of it."""
    kind, naming = request.param
    directory = tmp_path_factory.mktemp("reference")
    source = save(tensors_of(kind, naming), directory / f"{kind}.pth")
    convert(source, directory / "out", "--verify")
    return kind, naming, source, directory / "out"


def test_every_case_of_the_reference_from_file_to_matches(reference):
    kind, _, _, directory = reference
    original = AutoModel.from_pretrained(directory).eval()
    assert type(original) is LightGlueForKeypointMatching
    cases = [case for case in CASES if case.startswith(kind)]
    assert len(cases) == 12
    for case in cases:
        expected = load(case)
        settings = json.loads(str(expected["conf_json"]))
        model = copy.deepcopy(original)
        for name in ("depth_confidence", "width_confidence", "filter_threshold"):
            setattr(model.config, name, settings[name])
        if settings["matchability_bias"] is not None:
            for layer in model.match_assignment_layers:
                layer.matchability.bias.data.fill_(settings["matchability_bias"])
        with torch.no_grad():
            outputs = model.match_features(**features_of_case(case))
        assert (outputs.stop == int(expected["out_stop"])).all()
        for image in (0, 1):
            n = expected[f"in_keypoints{image}"].shape[1]
            np.testing.assert_array_equal(outputs.matches[:, image, :n], expected[f"out_matches{image}"])
            np.testing.assert_array_equal(outputs.prune[:, image, :n], expected[f"out_prune{image}"])
            scores = outputs.matching_scores[:, image, :n]
            np.testing.assert_allclose(scores, expected[f"out_matching_scores{image}"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_and_back_to_the_same_bytes_under_the_same_names(reference, suffix, tmp_path):
    _, _, source, directory = reference
    out = tmp_path / f"back{suffix}"
    convert("--to", "cvg", directory, out)
    back = load_pickle(str(out)) if suffix == ".pth" else load_file(out)
    assert_same_tensors(back, load_pickle(str(source)))


def test_every_setting_of_a_directory_is_kept(tmp_path):
    of_tensors = {
        "descriptor_dim",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "attention_bias",
    }
    of_tensors |= {"add_scale_ori", "shared_query_key", "input_dim", "use_keypoint_detector"}
    of_others = {"self", "keypoint_detector_config", "trust_remote_code", "kwargs"}
    settings = {
        "depth_confidence": 0.4,
        "width_confidence": 0.6,
        "rejection_threshold": 0.05,
        "filter_threshold": 0.3,
        "pruning_min_keypoints": 7,
        "initializer_range": 0.5,
        "hidden_act": "relu",
        "attention_dropout": 0.1,
    }
    assert settings.keys() == inspect.signature(LightGlueConfig.__init__).parameters.keys() - of_tensors - of_others
    model = whole_model(**settings)
    model.save_pretrained(tmp_path / "model")
    LightGlueImageProcessor().save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out")
    config = LightGlueConfig.from_pretrained(tmp_path / "out")
    assert {name: getattr(config, name) for name in settings} == settings


def test_the_directory_is_whole(reference):
    kind, _, source, directory = reference
    assert {path.name for path in directory.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert AutoImageProcessor.from_pretrained(directory).size == {"longest_edge": 1024}
    card = (directory / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "keypoint-matching"
    assert metadata["license"] == "unknown"
    assert hashlib.sha256(source.read_bytes()).hexdigest() in card
    assert ("orientations=orientations" in card) == (kind == "sift")
    assert re.search(r"no\s+probability differs by more than \d\.\de-0\d", card)


def test_verify_prints_the_largest_difference(tmp_path, capsys):
    source = save(tensors_of("sift"), tmp_path / "a.pth")
    convert(source, tmp_path / "out", "--verify")
    printed = capsys.readouterr().out
    assert f"a.pth: sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}\n" in printed
    assert "the matcher alone" in printed
    assert 0 < float(re.search(r"largest difference from the original's mathematics: (\S+)", printed)[1]) < 1e-5


def test_a_model_that_computes_something_else_is_not_written(tmp_path, failing, monkeypatch):
    source = save(tensors_of("sp"), tmp_path / "a.pth")
    original = directories.convert_lightglue_state_dict

    def wrong(*arguments, **options):
        config, tensors = original(*arguments, **options)
        tensors["transformer_layers.0.self_attention.q_proj.weight"] *= 1.01
        return config, tensors

    monkeypatch.setattr(directories, "convert_lightglue_state_dict", wrong)
    assert "differs from the original by more than 1e-04" in failing(source, tmp_path / "out", "--verify")


def test_half_precision_is_kept(tmp_path):
    tensors = {name: tensor.half() for name, tensor in tensors_of("disk", "released").items()}
    convert(save(tensors, tmp_path / "a.pth"), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float16"
    convert("--to", "cvg", tmp_path / "out", tmp_path / "back.pth")
    assert_same_tensors(load_pickle(str(tmp_path / "back.pth")), tensors)


# -- with a detector


@torch.no_grad()
def test_a_matcher_and_its_superpoint_there_and_back(tmp_path, capsys, failing):
    matcher, superpoint = tensors_of("sp", "released"), small_superpoint()
    sources = save(matcher, tmp_path / "lg.pth"), save(superpoint, tmp_path / "sp.pth")
    convert(sources[0], tmp_path / "out", "--superpoint", sources[1], "--verify")
    assert "the matcher alone" not in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    images = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in (0, 1)]
    outputs = model(**processor(images, size={"longest_edge": 64}, return_tensors="pt"))
    assert outputs.mask.sum() > 20
    assert outputs.matches.shape[:2] == (1, 2)
    card = (tmp_path / "out/README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert (metadata["license"], metadata["license_name"]) == ("other", "superpoint-noncommercial")
    assert "non-commercial use only" in card
    convert("--to", "cvg", tmp_path / "out", tmp_path / "lg2.pth", "--superpoint", tmp_path / "sp2.pth")
    assert_same_tensors(load_pickle(str(tmp_path / "lg2.pth")), matcher)
    assert_same_tensors(load_pickle(str(tmp_path / "sp2.pth")), superpoint)
    convert("--to", "cvg", tmp_path / "out", tmp_path / "lg3.pth")
    assert "left out: the detector" in capsys.readouterr().out
    same = tmp_path / "same.pth"
    assert "where the matcher is to be" in failing("--to", "cvg", tmp_path / "out", same, "--superpoint", same)


def test_superpoint_alone_there_and_back(tmp_path):
    superpoint = small_superpoint()
    convert(save(superpoint, tmp_path / "sp.pth"), tmp_path / "out", "--verify")
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert type(model) is SuperPointForKeypointDetection
    assert model.config.keypoint_threshold == 0.005
    convert("--to", "cvg", tmp_path / "out", tmp_path / "back.pth")
    assert_same_tensors(load_pickle(str(tmp_path / "back.pth")), superpoint)


def test_superpoint_open_with_a_matcher(tmp_path, failing):
    tensors = {name: 0.3 * tensor for name, tensor in checkpoint(width=16, heads=2, inputs=10).items()}
    lightglue = save(tensors, tmp_path / "lg.pth")
    superpoint = save(superpoint_open_checkpoint(), tmp_path / "open.pth")
    convert(lightglue, tmp_path / "out", "--superpoint", superpoint, "--verify")
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.keypoint_detector_config.descriptor_grid == "centred"
    assert model(torch.rand(1, 2, 3, 48, 64)).matches.shape[:2] == (1, 2)
    assert "MIT" in (tmp_path / "out/README.md").read_text().upper()
    assert "cannot hold descriptor_grid" in failing("--to", "transformers", tmp_path / "out", tmp_path / "stock")
    both = ("--superpoint", tmp_path / "sp2.pth")
    assert "cannot hold descriptor_grid" in failing("--to", "cvg", tmp_path / "out", tmp_path / "lg2.pth", *both)


def test_a_matcher_of_other_features_takes_no_superpoint(tmp_path, failing):
    superpoint = save(small_superpoint(32), tmp_path / "sp.pth")
    other = save(small_superpoint(64), tmp_path / "64.pth")
    sift, disk = (save(tensors_of(kind), tmp_path / f"{kind}.pth") for kind in ("sift", "disk"))
    assert "with scale and orientation" in failing(sift, tmp_path / "out", "--superpoint", superpoint)
    assert "disk.pth takes 32-dimensional descriptors, and 64.pth, which is SuperPoint, gives 64" in failing(
        disk, tmp_path / "out", "--superpoint", other
    )
    assert "sp.pth is or has a detector already" in failing(superpoint, tmp_path / "out", "--superpoint", other)
    assert "disk.pth is no detector of this package: this is a LightGlue matcher" in failing(
        disk, tmp_path / "out", "--superpoint", disk
    )


def random_detector(kind):
    torch.manual_seed(0)
    sizes = {
        "aliked": {"hidden_sizes": [4, 8, 8, 16]},
        "disk": {"encoder_hidden_sizes": [4, 4, 4], "decoder_hidden_sizes": [4], "descriptor_dim": 16},
        "xfeat": {"descriptor_dim": 16},
        "doghardnet": {},
    }[kind]
    config = configuration_class(kind)(**sizes)
    return model_class(config)(config)


@pytest.mark.parametrize("kind", ["aliked", "disk", "xfeat", "doghardnet"])
def test_other_detectors_there_and_back_alone_and_with_a_matcher(kind, tmp_path, capsys):
    model = random_detector(kind)
    published = DETECTOR_KINDS[kind].back(model.config, dict(model.state_dict()))
    detector = save(published, tmp_path / "detector.pth")
    scale_ori = model.config.has_scale_ori
    inputs = model.config.descriptor_dim
    tensors = checkpoint(width=16, heads=2, layers=2, inputs=inputs, positions=4 if scale_ori else 2)
    matcher = save(tensors, tmp_path / "matcher.pth")
    convert(detector, tmp_path / "alone")
    convert(matcher, tmp_path / "both", "--superpoint", detector)
    alone, both = (AutoModel.from_pretrained(tmp_path / name) for name in ("alone", "both"))
    assert_same_tensors(dict(alone.state_dict()), dict(model.state_dict()))
    assert_same_tensors(dict(both.keypoint_detector.state_dict()), dict(model.state_dict()))
    assert both.config.keypoint_detector_config.max_keypoints == DETECTOR_KINDS[kind].matching["max_keypoints"]
    for name in ("alone", "both"):
        processor = AutoImageProcessor.from_pretrained(tmp_path / name)
        assert (processor.size, processor.size_divisor) == ({"longest_edge": 1024}, alone.config.stride)
        assert processor.do_grayscale == (alone.config.channels == 1)
        card = (tmp_path / name / "README.md").read_text()
        assert DETECTOR_KINDS[kind].paper in card
        assert "unknown, ask whoever trained it" in card
    convert("--to", "cvg", tmp_path / "both", tmp_path / "m2.pth", "--superpoint", tmp_path / "d2.pth")
    convert("--to", "cvg", tmp_path / "alone", tmp_path / "d3.safetensors")
    convert("--to", "cvg", tmp_path / "both", tmp_path / "m4.safetensors")
    assert_same_tensors(read_tensors(tmp_path / "d2.pth", print), read_tensors(detector, print))
    nested = "extractor." if kind == "disk" else ""
    flat = {f"{nested}{name}": tensor for name, tensor in read_tensors(detector, print).items()}
    assert_same_tensors(load_file(tmp_path / "d3.safetensors"), flat)
    assert_same_tensors(load_pickle(tmp_path / "m2.pth"), load_pickle(matcher))
    convert(tmp_path / "both", tmp_path / "again")
    assert_same_tensors(dict(AutoModel.from_pretrained(tmp_path / "again").state_dict()), dict(both.state_dict()))
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert str(tmp_path) not in json.dumps(config)


def test_a_detector_without_weights(tmp_path, failing):
    matcher = save(checkpoint(width=16, heads=2, layers=2, inputs=128, positions=4), tmp_path / "matcher.pth")
    convert(matcher, tmp_path / "out", "--superpoint", "sift")
    config = AutoModel.from_pretrained(tmp_path / "out").config
    assert (config.keypoint_detector_config.model_type, config.add_scale_ori) == ("sift", True)
    convert("--to", "cvg", tmp_path / "out", tmp_path / "back.pth")
    assert_same_tensors(load_pickle(tmp_path / "back.pth"), load_pickle(matcher))
    line = failing("--to", "transformers", tmp_path / "out", tmp_path / "stock")
    assert "stock transformers cannot hold a sift detector, add_scale_ori = True" in line
    assert "is or has a detector already" in failing(tmp_path / "out", tmp_path / "b", "--superpoint", "sift")


# -- glue-factory and transformers


def test_a_checkpoint_of_glue_factory_s_training(tmp_path, capsys):
    tensors = tensors_of("sp", "current")
    del tensors["confidence_thresholds"]
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    detector = {f"extractor.{name}": tensor for name, tensor in small_superpoint().items()}
    content = {
        "model": OrderedDict({**gluefactory_names(tensors), **detector}),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"last_epoch": 3},
        "conf": {"train": {"lr": 1e-4, "best_key": "loss/total"}},
        "epoch": 3,
        "eval": {"loss/total": 0.5},
    }
    convert(save(content, tmp_path / "checkpoint_best.tar"), tmp_path / "out", "--verify")
    printed = capsys.readouterr().out
    assert "left out, of training only: conf, epoch, eval, lr_scheduler, optimizer" in printed
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert torch.equal(
        model.keypoint_detector.encoder.conv_blocks[0].conv_a.weight, detector["extractor.conv1a.weight"]
    )
    convert("--to", "cvg", tmp_path / "out", tmp_path / "back.pth")
    back = load_pickle(str(tmp_path / "back.pth"))
    back.pop("confidence_thresholds")
    assert_same_tensors(back, tensors)


def test_another_extractor_of_glue_factory_is_left_out_and_said_so(tmp_path, capsys):
    tensors = {**gluefactory_names(tensors_of("disk")), "extractor.score_head.0.weight": torch.ones(1)}
    convert(save({"model": tensors}, tmp_path / "a.tar"), tmp_path / "out")
    assert "left out: 1 tensors of extractor, which is no detector of this package" in capsys.readouterr().out


def saved_model(directory):
    model = whole_model(depth_confidence=0.8, max_keypoints=40)
    model.save_pretrained(directory)
    LightGlueImageProcessor(size={"height": 48, "width": 64}).save_pretrained(directory)
    return model


@pytest.mark.parametrize("form", ["directory", "safetensors", "pickle"])
@torch.no_grad()
def test_transformers_names(tmp_path, form):
    model = saved_model(tmp_path / "saved")
    source = {
        "directory": tmp_path / "saved",
        "safetensors": tmp_path / "saved/model.safetensors",
        "pickle": tmp_path / "pytorch_model.bin",
    }[form]
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    convert(source, tmp_path / "out")
    converted = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert_same_tensors(dict(converted.state_dict()), dict(model.state_dict()))
    if form == "directory":
        assert converted.config.depth_confidence == 0.8
        assert converted.config.keypoint_detector_config.max_keypoints == 40
        assert AutoImageProcessor.from_pretrained(tmp_path / "out").size == {"height": 48, "width": 64}
        pixels = different_pairs()
        assert torch.equal(converted(pixels).matches, model(pixels).matches)


def test_transformers_names_are_verified_by_way_of_cvg_s(tmp_path, failing, capsys):
    convert(save(tensors_of("sp"), tmp_path / "a.pth"), tmp_path / "one", "--superpoint", save_superpoint(tmp_path))
    convert(tmp_path / "one", tmp_path / "two", "--verify")
    assert "largest difference" in capsys.readouterr().out
    convert("--to", "cvg", tmp_path / "two", tmp_path / "back.pth")
    assert_same_tensors(load_pickle(str(tmp_path / "back.pth")), tensors_of("sp"))
    saved_model(tmp_path / "trained")
    assert "which differ" in failing(tmp_path / "trained", tmp_path / "three", "--verify")


def save_superpoint(directory):
    return save(small_superpoint(), directory / "sp.pth")


STOCK = """
import sys
import numpy as np, torch
from transformers import AutoModelForKeypointDetection, AutoModelForKeypointMatching

for name, auto_class in (("matcher", AutoModelForKeypointMatching), ("detector", AutoModelForKeypointDetection)):
    model, info = auto_class.from_pretrained(f"{sys.argv[1]}/{name}-stock", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert type(model).__module__.startswith("transformers.models."), type(model)
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(np.load(f"{sys.argv[1]}/{name}.npy")))
    np.savez(f"{sys.argv[1]}/{name}.npz", **{key: value.numpy() for key, value in outputs.items()})
assert "lightglue_hf" not in sys.modules
"""


def test_stock_transformers_loads_the_way_back(tmp_path, capsys):
    """Another process, which never sees this package, gets the same matches and the same detections."""
    model = saved_model(tmp_path / "matcher")
    convert(save_superpoint(tmp_path), tmp_path / "detector")
    pixels = {"matcher": different_pairs()[:1], "detector": different_pairs()[0]}
    for name, images in pixels.items():
        np.save(tmp_path / f"{name}.npy", images.numpy())
        convert("--to", "transformers", tmp_path / name, tmp_path / f"{name}-stock")
        assert "right and bottom borders" in capsys.readouterr().out
    program = subprocess.run([sys.executable, "-c", STOCK, str(tmp_path)], capture_output=True, text=True)
    assert program.returncode == 0, program.stderr
    compared = {"matcher": ("matches", "matching_scores"), "detector": ("keypoints", "scores", "descriptors")}
    for name, images in pixels.items():
        ours = AutoModel.from_pretrained(tmp_path / f"{name}-stock").eval()  # which keeps those borders too
        if name == "matcher":
            assert_same_tensors(dict(ours.state_dict()), dict(model.state_dict()))
        with torch.no_grad():
            outputs = ours(images)
        assert (outputs.mask > 0).sum() > 20
        stock = np.load(tmp_path / f"{name}.npz")
        for key in compared[name]:
            np.testing.assert_allclose(outputs[key].float().numpy(), stock[key], atol=1e-4, rtol=0)


def test_what_stock_transformers_cannot_hold_is_listed(tmp_path, failing):
    convert(save(tensors_of("sift"), tmp_path / "a.pth"), tmp_path / "out")
    line = failing("--to", "transformers", tmp_path / "out", tmp_path / "stock")
    for fault in ("use_keypoint_detector = False", "add_scale_ori = True", "input_dim = 32"):
        assert fault in line
    whole_model(depth_confidence=-1, pruning_min_keypoints=9).save_pretrained(tmp_path / "saved")
    line = failing("--to", "transformers", tmp_path / "saved", tmp_path / "stock")
    for fault in ("depth_confidence = -1", "pruning_min_keypoints = 9"):
        assert fault in line


def test_a_directory_with_gaps_goes_nowhere(tmp_path, failing):
    convert(save(tensors_of("sp"), tmp_path / "a.pth"), tmp_path / "out", "--superpoint", save_superpoint(tmp_path))
    weights = load_file(tmp_path / "out/model.safetensors")
    for lost in ("token_confidence.1.token.bias", "keypoint_detector.encoder.conv_blocks.0.conv_a.bias"):
        gaps = {name: tensor for name, tensor in weights.items() if name != lost}
        save_file(gaps, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
        named = re.escape(lost.removeprefix("keypoint_detector."))
        both = ("--superpoint", tmp_path / "c.pth")
        assert re.search(f"missing.*{named}", failing("--to", "cvg", tmp_path / "out", tmp_path / "b.pth", *both))
        assert re.search(f"missing.*{named}", failing("--to", "transformers", tmp_path / "out", tmp_path / "b"))


def test_stock_transformers_gets_sizes_it_knows(tmp_path, capsys):
    whole_model().save_pretrained(tmp_path / "saved")
    LightGlueImageProcessor(size={"longest_edge": 640}).save_pretrained(tmp_path / "saved")
    convert("--to", "transformers", tmp_path / "saved", tmp_path / "stock")
    assert "480 x 640 instead of a longest edge" in capsys.readouterr().out
    processor = json.loads((tmp_path / "stock/preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 480, "width": 640}
    config = json.loads((tmp_path / "stock/config.json").read_text())
    own = {"input_dim", "add_scale_ori", "use_keypoint_detector", "pruning_min_keypoints"}
    assert not own & config.keys()
    assert str(tmp_path) not in json.dumps(config)
    assert not {"descriptor_grid", "min_pooled_channels"} & config["keypoint_detector_config"].keys()


# -- files that are not right


def pickled(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def broken_files():
    good = tensors_of("disk")
    gap = {name: tensor for name, tensor in good.items() if name != "input_proj.bias"}
    nan = {**good, "posenc.Wr.weight": good["posenc.Wr.weight"] * torch.nan}
    content = pickled(good)
    return {
        "empty": (b"", "no pickle, or a broken one|refused"),
        "truncated": (content[: len(content) // 2], "no pickle, or a broken one"),
        "text": (b"no checkpoint at all", "refused|no pickle"),
        "a list": (pickled([torch.ones(1)]), "a list, and not a dictionary of tensors"),
        "a tensor": (pickled(torch.ones(3)), "a Tensor, and not a dictionary"),
        "an empty dictionary": (pickled({}), "not a dictionary of tensors"),
        "numbers": (pickled({"a": 1}), "more than tensors: a"),
        "numbered": (pickled({0: torch.ones(1)}), "more than tensors"),
        "integers": (pickled({**good, "posenc.Wr.weight": torch.ones(16, 2).long()}), "no floating-point numbers"),
        "extra key": (pickled({**good, "stranger": torch.ones(1)}), "unexpected tensors.*: stranger"),
        "missing key": (pickled(gap), r"missing: input_projection\.bias"),
        "NaN": (pickled(nan), r"NaN or Inf in posenc\.Wr\.weight"),
    }


@pytest.mark.parametrize("fault", broken_files())
def test_broken_files_are_refused_and_nothing_is_left(fault, tmp_path, failing):
    content, message = broken_files()[fault]
    (tmp_path / "a.pth").write_bytes(content)
    assert re.search(message, failing(tmp_path / "a.pth", tmp_path / "out"))


def test_code_in_a_file_is_refused_and_named_and_not_run(tmp_path, failing):
    trace = tmp_path / "executed"
    save({**tensors_of("disk"), "posenc.Wr.weight": Malicious(trace)}, tmp_path / "a.pth")
    good = save(tensors_of("sp"), tmp_path / "good.pth")
    for arguments in ((tmp_path / "a.pth",), (good, "--superpoint", tmp_path / "a.pth")):
        line = failing(arguments[0], tmp_path / "out", *arguments[1:])
        assert re.search(r"a\.pth: refused, .*mkdir", line)
        assert "weights_only=False" not in line
    assert not trace.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert trace.exists(), "it is meant to be malicious"


@pytest.mark.parametrize("content", [b"", b"\xff" * 7 + b"\x7f", b"not at all safetensors"])
def test_broken_safetensors_are_refused(content, tmp_path, failing):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "a.safetensors: broken safetensors" in failing(tmp_path / "a.safetensors", tmp_path / "out")


def test_places_that_cannot_be_read_or_written(tmp_path, failing):
    source = save(tensors_of("disk"), tmp_path / "a.pth")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("kept")
    assert "there exists already" in failing(source, tmp_path / "there")
    assert "does not exist" in failing(source, tmp_path / "nowhere/out")
    assert "nowhere.pth" in failing(tmp_path / "nowhere.pth", tmp_path / "out")
    assert "there is no config.json" in failing(tmp_path / "there", tmp_path / "out")
    convert(source, tmp_path / "out")
    assert "exists already" in failing("--to", "cvg", tmp_path / "out", source)
    assert "must end in .pth or .safetensors" in failing("--to", "cvg", tmp_path / "out", tmp_path / "a.onnx")
    assert "--detector" in failing("--to", "cvg", tmp_path / "out", tmp_path / "b.pth", "--superpoint", "c.pth")
    assert "--private needs" in failing(source, tmp_path / "b", "--private")
    assert "--verify" in failing("--to", "cvg", tmp_path / "out", tmp_path / "b.pth", "--verify")


def test_a_full_disk_leaves_nothing(tmp_path, failing, monkeypatch):
    source = save(tensors_of("disk"), tmp_path / "a.pth")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directories, "write_card", full)
    assert "No space left" in failing(source, tmp_path / "out")


# -- URLs and published files


@pytest.fixture
def served(tmp_path):
    """A directory, and the address under which a web server of this process serves it."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path / "www", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_but_not_offline(served, tmp_path, failing, monkeypatch, capsys):
    directory, address = served
    source = save(tensors_of("disk"), directory / "a.pth")
    assert "offline" in failing(f"{address}/a.pth", tmp_path / "out")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert f"{address}/b.pth: HTTP Error 404" in failing(f"{address}/b.pth", tmp_path / "out")
    convert(f"{address}/a.pth?raw=true", tmp_path / "out")
    assert f"a.pth: sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}" in capsys.readouterr().out
    assert AutoModel.from_pretrained(tmp_path / "out").config.input_dim == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "www"]


def test_a_published_file_is_known_by_its_digest(tmp_path, monkeypatch, capsys, failing):
    source = save(tensors_of("sp"), tmp_path / "any_name.pth")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    impostor = save(tensors_of("sp"), tmp_path / "superpoint_lightglue.pth")
    line = failing(impostor, tmp_path / "out")
    assert PUBLISHED["superpoint_lightglue.pth"].sha256 in line
    assert PUBLISHED["superpoint_lightglue.pth"].url in line

    original = PUBLISHED["superpoint_lightglue.pth"]
    monkeypatch.setitem(PUBLISHED, "superpoint_lightglue.pth", original._replace(sha256=digest))
    convert(source, tmp_path / "out")
    assert "any_name.pth: the published superpoint_lightglue.pth" in capsys.readouterr().out
    metadata = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    assert metadata["base_model"] == "ETH-CVG/lightglue_superpoint"
    assert metadata["license"] == ["apache-2.0"]


def test_an_unknown_digest_is_said_to_be_unknown(tmp_path, capsys):
    convert(save(tensors_of("sift"), tmp_path / "doghardnet_lightglue.pth"), tmp_path / "out")
    assert "digest of the published file is not known" in capsys.readouterr().out


def test_the_table_of_published_files():
    features = {"superpoint", "disk", "aliked", "sift", "doghardnet"}
    assert {f"{name}_lightglue.pth" for name in features} < PUBLISHED.keys()
    for name, published in PUBLISHED.items():
        assert published.url.startswith("https://")
        assert name.endswith(published.url.rsplit("/", 1)[1])
        assert published.sha256 is None or re.fullmatch("[0-9a-f]{64}", published.sha256)
    digests = [published.sha256 for published in PUBLISHED.values() if published.sha256]
    assert len(set(digests)) == len(digests)
    documented = (ROOT / "docs/checkpoints.md").read_text()
    for name, published in PUBLISHED.items():
        assert published.url in documented
        assert published.sha256 is None or published.sha256 in documented, name


# -- the Hub


class Hub:
    """What the Hub's interface is asked for, kept in a dictionary."""

    def __init__(self):
        self.private = {}
        self.files = {}

    def create_repo(self, repo_id, *, private=False, exist_ok=False):
        validate_repo_id(repo_id)
        if repo_id in self.private and not exist_ok:
            raise OSError("exists")
        self.private.setdefault(repo_id, private)

    def repo_info(self, repo_id):
        return huggingface_hub.hf_api.ModelInfo(id=repo_id, private=self.private[repo_id])

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert commit_message
        self.files[repo_id] = files(Path(folder_path))


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def test_a_directory_is_uploaded_as_it_is(hub, tmp_path, capsys):
    source = save(tensors_of("disk"), tmp_path / "a.pth")
    convert(source, tmp_path / "out", "--push-to-hub", "someone/disk", "--private")
    assert hub.private == {"someone/disk": True}
    assert hub.files == {"someone/disk": files(tmp_path / "out")}
    assert capsys.readouterr().out.endswith("uploaded to someone/disk\n")
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name, content in hub.files["someone/disk"].items():
        (fetched / name).write_bytes(content)
    assert AutoModel.from_pretrained(fetched).config.input_dim == 32


def test_what_shall_be_private_is_not_uploaded_in_public(hub, tmp_path, capsys):
    source = save(tensors_of("disk"), tmp_path / "a.pth")
    hub.create_repo("someone/public")
    arguments = ["--push-to-hub", "someone/public", "--private"]
    assert cli.main(["convert", str(source), str(tmp_path / "out"), *arguments]) == 2
    assert "exists and is public: nothing was uploaded" in capsys.readouterr().err
    assert hub.files == {}
    assert (tmp_path / "out/model.safetensors").exists()  # the conversion itself is done


def test_a_wrong_name_on_the_hub(hub, tmp_path, capsys):
    source = save(tensors_of("disk"), tmp_path / "a.pth")
    assert cli.main(["convert", str(source), str(tmp_path / "out"), "--push-to-hub", "a/b/c"]) == 2
    assert "a/b/c" in capsys.readouterr().err


# -- the script and the documentation


def test_the_script_is_the_command(tmp_path, monkeypatch):
    source = save(tensors_of("disk"), tmp_path / "a.pth")
    script = ROOT / "conversion_scripts/convert_lightglue_to_hf.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(source), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    assert (tmp_path / "out/model.safetensors").exists()


def test_the_commands_of_the_documentation_exist():
    text = (ROOT / "docs/checkpoints.md").read_text()
    commands = re.findall(r"^lightglue-hf (convert .*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        cli.parser().parse_args(command.split())
