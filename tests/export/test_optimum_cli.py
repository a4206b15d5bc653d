"""optimum-cli exports LightGlue models as users type it, without a task: every form that docs/export.md has.

The plainest form of each command runs in a new process, the others in this one, because a start takes seconds.
"""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from lightglue_hf import LightGlueForKeypointMatching, bundled_checkpoint
from lightglue_hf.convert import convert
from lightglue_hf.data.textures import render_textures
from lightglue_hf.export import ExportOptions, export

from ..weights import weights_file
from .test_exporter import needs, saved

optimum_cli = pytest.importorskip("optimum.commands.optimum_cli")
PLUGIN = Path(__file__).parents[2] / "optimum-plugin"
sys.path.append(str(PLUGIN))  # where it is not installed
plugin = import_module("optimum.commands.register.register_lightglue_hf")

KWARGS = json.dumps({"max_keypoints": 40, "adaptive": True})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoint"), size={"longest_edge": 64})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint in the package, for int8: random weights do not bear it, and small layers stay as they are."""
    model = LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny"))
    model.config.keypoint_detector_config.max_keypoints = 150
    return saved(tmp_path_factory.mktemp("trained"), model, size={"longest_edge": 96})


def in_a_new_process(*arguments):
    environment = {**os.environ, "PYTHONPATH": f"{PLUGIN.parent / 'src'}{os.pathsep}{PLUGIN}"}
    command = [Path(sys.executable).with_name("optimum-cli"), "export", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def typed(monkeypatch, capfd):
    """Runs the command as it is typed after `optimum-cli export` and returns what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "export", *map(str, arguments)])
        optimum_cli.main()
        return capfd.readouterr().out

    return run


def read_onnx(directory):
    """The opset, the axes of `pixel_values` and `matches`, the types of large weights, and the operators of a file."""
    import onnx

    model = onnx.load(directory / "model.onnx")
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    axes = {
        value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    types = {onnx.TensorProto.DataType.Name(w.data_type) for w in model.graph.initializer if w.ByteSize() > 1000}
    return opset, axes["pixel_values"], axes["matches"], types, Counter(node.op_type for node in model.graph.node)


def read_openvino(directory):
    """As of ONNX files, without the opset and with the number of weights of each type."""
    import openvino

    graph = openvino.Core().read_model(directory / "openvino_model.xml")
    axes = {
        port.any_name: [axis.get_length() if axis.is_static else "" for axis in port.partial_shape]
        for port in (*graph.inputs, *graph.outputs)
    }
    operators = graph.get_ops()
    weights = [op for op in operators if op.get_type_name() == "Constant" and op.get_output_size() == 1]
    types = Counter(op.get_element_type().get_type_name() for op in weights if op.get_byte_size() > 500)
    return axes["pixel_values"], axes["matches"], types, Counter(op.get_type_name() for op in operators)


def test_export_onnx(checkpoint, tmp_path):
    needs("onnx")
    printed = in_a_new_process("onnx", "--model", checkpoint, tmp_path / "out")
    assert re.search(r"pipeline, fp32: \d+\.\d+% of the keypoints, \d+\.\d+% of the matches in common", printed)
    assert {"model.onnx", "config.json", "preprocessor_config.json"} <= {f.name for f in (tmp_path / "out").iterdir()}
    opset, images, matches, types, _ = read_onnx(tmp_path / "out")
    assert opset == 18
    assert images == ["batch", 2, 3, "height", "width"]
    assert matches == ["batch", 2, 150]
    assert types == {"FLOAT"}


def test_onnx_of_fixed_shape_in_half_precision(typed, checkpoint, tmp_path):
    needs("onnx")
    shape = ("--no-dynamic-axes", "--height", 48, "--width", 64)  # and Optimum's own number of pairs
    printed = typed("onnx", "--model", checkpoint, "--opset", 20, "--dtype", "fp16", *shape, tmp_path / "out")
    assert "pipeline, fp16: " in printed
    opset, images, matches, types, _ = read_onnx(tmp_path / "out")
    assert opset == 20
    assert images == [2, 2, 3, 48, 64]
    assert matches == [2, 2, 150]
    assert types == {"FLOAT16"}


def test_adaptive_onnx(typed, checkpoint, tmp_path):
    needs("onnx")
    typed("onnx", "--model", checkpoint, "--model-kwargs", KWARGS, tmp_path / "out")
    _, images, matches, _, operators = read_onnx(tmp_path / "out")
    assert images == [1, 2, 3, "height", "width"]
    assert matches == [1, 2, 40]
    assert operators["If"] > 1


def test_export_openvino(checkpoint, tmp_path):
    pytest.importorskip("optimum.intel")
    printed = in_a_new_process("openvino", "--model", checkpoint, tmp_path / "out")
    assert re.search(r"pipeline, fp32: \d+\.\d+% of the keypoints, \d+\.\d+% of the matches in common", printed)
    images, matches, types, operators = read_openvino(tmp_path / "out")
    assert images == ["", 2, 3, "", ""]
    assert matches == ["", 2, 150]
    assert types["f32"]
    assert not types["f16"]
    assert not operators["If"]


def test_adaptive_openvino_in_half_precision(typed, checkpoint, tmp_path):
    pytest.importorskip("optimum.intel")
    half = ("--weight-format", "fp16")
    typed("openvino", "--model", checkpoint, *half, "--model-kwargs", KWARGS, tmp_path / "out")
    images, matches, types, operators = read_openvino(tmp_path / "out")
    assert images == [1, 2, 3, "", ""]
    assert matches[1:] == [2, 40]  # OpenVINO does not know how many pairs leave an `If`
    assert types["f16"]
    assert not types["f32"]
    assert operators["If"] > 1
    assert "weights in fp16" in (tmp_path / "out" / "README.md").read_text()


def test_openvino_weights_in_eight_bits(typed, trained, tmp_path):
    pytest.importorskip("optimum.intel")
    typed("openvino", "--model", trained, "--weight-format", "int8", tmp_path / "out")
    _, _, types, operators = read_openvino(tmp_path / "out")
    assert types["i8"] > 20
    assert not operators["FakeQuantize"]


def test_openvino_quantised_by_photos(typed, trained, tmp_path):
    pytest.importorskip("optimum.intel")
    (tmp_path / "photos").mkdir()
    for i, canvas in enumerate(render_textures(3, 96, 128, seed=2)):
        Image.fromarray(canvas).save(tmp_path / "photos" / f"{i}.png")
    by_photos = ("--quant-mode", "int8", "--dataset", tmp_path / "photos", "--num-samples", 2)
    typed("openvino", "--model", trained, *by_photos, tmp_path / "out")
    _, _, _, operators = read_openvino(tmp_path / "out")
    assert operators["FakeQuantize"] > 20


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({}, {}),
        ({"weight_format": "int8"}, {"weight_format": "int8"}),
        (
            {"quant_mode": "int8", "dataset": "photos", "num_samples": 7},
            {"calibration": "photos", "num_samples": 7},
        ),
        ({"opset": 20, "dtype": "fp16"}, {"opset": 20, "weight_format": "fp16"}),
        ({"no_dynamic_axes": False, "batch_size": 2, "height": 64, "width": 64}, {}),
        (
            {"no_dynamic_axes": True, "batch_size": 2, "height": 480, "width": 640},
            {"batch_size": 2, "height": 480, "width": 640},
        ),
        ({"model_kwargs": {"max_keypoints": 512, "adaptive": True}}, {"num_keypoints": 512, "adaptive": True}),
    ],
)
def test_what_optimums_options_stand_for(typed, expected):
    options = plugin.options_of(Namespace(**typed))
    assert options == expected
    ExportOptions(**options)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"awq": True, "group_size": 64}, "--awq, --group-size"),
        ({"quant_mode": "f8e4m3", "dataset": "photos", "num_samples": None}, "--quant-mode int8"),
        ({"quant_mode": "int8", "dataset": None, "num_samples": None}, "--dataset FOLDER_OF_PHOTOS"),
    ],
)
def test_options_that_do_not_go_with_it(typed, message):
    with pytest.raises(ValueError, match=message):
        plugin.options_of(Namespace(**typed))


def test_only_lightglue_is_taken_over(checkpoint, tmp_path):
    assert plugin.is_lightglue(str(checkpoint))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert not plugin.is_lightglue(str(tmp_path))
    assert not plugin.is_lightglue(str(tmp_path / "nowhere"))


def test_checkpoints_by_name(typed, tmp_path):
    needs("onnx")
    printed = typed("onnx", "--model", "tiny", "--model-kwargs", '{"parts": ["matcher"]}', tmp_path / "out")
    assert "matcher, fp32: " in printed
    assert (tmp_path / "out" / "matcher.onnx").is_file()


def test_the_library_does_not_look_like_optimum():
    """A folder of that name in the package would make transformers take Optimum for installed."""
    assert not (Path(__file__).parents[2] / "src" / "optimum").exists()


@pytest.mark.weights
@pytest.mark.parametrize(
    "options",
    [("--weight-format", "fp32"), ("--weight-format", "fp16"), ("--weight-format", "int8"), ("--quant-mode", "int8")],
    ids=" ".join,
)
def test_the_published_checkpoint_in_all_formats(typed, published, options, tmp_path):
    """SuperPoint + LightGlue: what users can use is not refused."""
    pytest.importorskip("optimum.intel")
    if options[0] == "--quant-mode":
        (tmp_path / "photos").mkdir()
        for i, canvas in enumerate(render_textures(4, 240, 320, seed=2)):
            Image.fromarray(canvas).save(tmp_path / "photos" / f"{i}.png")
        options = (*options, "--dataset", tmp_path / "photos", "--num-samples", 3)
    printed = typed("openvino", "--model", published, *options, tmp_path / "out")
    assert "in common with PyTorch" in printed


@pytest.mark.weights
@pytest.mark.parametrize("weight_format", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_published_parts_in_all_formats(published, format, weight_format, tmp_path):
    needs(format)
    options = ExportOptions(parts=("detector", "matcher"), weight_format=weight_format)
    assert len(export(published, tmp_path / "out", format, options)) >= 2


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("published") / "superpoint"
    convert(
        str(weights_file("superpoint_lightglue.pth")), out, detector=str(weights_file("superpoint_v1.pth")), log=str
    )
    return out
