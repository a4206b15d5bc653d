"""optimum-cli exports LightGlue models as users type it: no task, no other option (make test-export)."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from lightglue_hf.export import ExportOptions

from .test_export import saved

pytest.importorskip("optimum.commands.base")
from optimum.commands.register import register_lightglue_hf as plugin

SOURCE = str(Path(__file__).parent.parent / "src")


def optimum_cli(*arguments):
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoint"), size={"longest_edge": 64})


def test_export_onnx(checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    result = optimum_cli("onnx", "--model", checkpoint, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "pipeline: 100.00% of the keypoints, 100.00% of the matches in common with PyTorch" in result.stdout
    assert {"model.onnx", "config.json", "preprocessor_config.json"} <= {f.name for f in (tmp_path / "out").iterdir()}


def test_export_openvino(checkpoint, tmp_path):
    pytest.importorskip("optimum.intel")
    kwargs = '{"max_keypoints": 40, "adaptive": true}'
    result = optimum_cli(
        "openvino", "--model", checkpoint, "--weight-format", "fp16", "--model-kwargs", kwargs, tmp_path / "out"
    )
    assert result.returncode == 0, result.stderr
    assert "pipeline: " in result.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `matches` (output) | int64 | (1, 2, 40) |" in card
    assert "weights in fp16" in card


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
