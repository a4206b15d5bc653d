"""examples/model_repository.py: the folder is laid out as OpenVINO Model Server wants it, and its graphs run."""

import json
from pathlib import Path

import numpy as np
import pytest

from lightglue_hf import ExportOptions, LightGlueImageProcessor

from ..tiny import whole_model
from . import load_example

openvino = pytest.importorskip("openvino")
repository = load_example("model_repository")


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "checkpoint"
    whole_model(max_keypoints=64).save_pretrained(directory)
    LightGlueImageProcessor(size={"height": 64, "width": 96}).save_pretrained(directory)
    return str(directory)


def test_layout(checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    options = ExportOptions(validate=False)
    assert repository.write_model(checkpoint, folder, "a", options) == folder / "a" / "1"

    def exported(model, directory, backend, options):
        for name in ("openvino_model.xml", "openvino_model.bin", "config.json", "README.md"):
            Path(directory, name).touch()
        return []

    monkeypatch.setattr(repository, "export", exported)
    assert repository.write_model(checkpoint, folder, "b", options) == folder / "b" / "1"
    assert repository.write_model(checkpoint, folder, "b", options) == folder / "b" / "2"
    repository.write_config(folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    graph = ["openvino_model.bin", "openvino_model.xml"]
    assert files == [*(f"{v}/{name}" for v in ("a/1", "b/1", "b/2") for name in graph), "config.json"]
    assert json.loads((folder / "config.json").read_text()) == {
        "model_config_list": [
            {"config": {"name": "a", "base_path": "/models/a"}},
            {"config": {"name": "b", "base_path": "/models/b"}},
        ]
    }
    model = openvino.Core().read_model(folder / "a" / "1" / "openvino_model.xml")
    assert [port.any_name for port in model.inputs] == ["pixel_values"]
    found = openvino.compile_model(model, "CPU")({"pixel_values": np.zeros((3, 2, 3, 64, 96), np.float32)})
    assert found["matches"].shape == (3, 2, 64)
