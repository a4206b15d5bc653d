"""No code that comes with a checkpoint is ever run, whatever the user answers to a question."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightglue_hf import LightGlueImageProcessor

from .tiny import whole_model

EVIL = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel, SuperPointConfig

Path({marker!r}).touch()


class EvilConfig(PretrainedConfig):
    model_type = "evil"


class EvilModel(PreTrainedModel):
    config_class = EvilConfig


class EvilProcessor:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls()
"""
AUTO_MAP = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForKeypointDetection": "evil.EvilModel",
    "AutoModelForKeypointMatching": "evil.EvilModel",
    "AutoImageProcessor": "evil.EvilProcessor",
}


@pytest.fixture(params=["a foreign detector", "a known detector", "a foreign model"])
def checkpoint(request, tmp_path):
    """A whole checkpoint whose configurations name code beside them: of the detector, or of all."""
    directory = tmp_path / "checkpoint"
    model = whole_model(20)
    if request.param == "a foreign model":
        model = model.keypoint_detector
    model.save_pretrained(directory)
    LightGlueImageProcessor(size=64).save_pretrained(directory)
    (directory / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "marker")))
    config = json.loads((directory / "config.json").read_text())
    if request.param == "a foreign model":
        config |= {"model_type": "evil", "auto_map": AUTO_MAP}
    else:
        detector = config["keypoint_detector_config"]
        detector |= {"auto_map": AUTO_MAP, "_name_or_path": str(directory), "trust_remote_code": True}
        if request.param == "a foreign detector":
            detector["model_type"] = "evil"
        config |= {"auto_map": AUTO_MAP, "trust_remote_code": True}
        processor = json.loads((directory / "preprocessor_config.json").read_text())
        (directory / "preprocessor_config.json").write_text(json.dumps({**processor, "auto_map": AUTO_MAP}))
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("left.png", "right.png"):
        Image.new("L", (64, 48)).save(tmp_path / name)
    return directory


PYTHON = """
import sys, lightglue_hf
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForKeypointMatching
from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, SuperPointForKeypointDetection
loads = [LightGlueForKeypointMatching, SuperPointForKeypointDetection, LightGlueConfig]
if {known}:  # of others transformers asks, as it would without this package
    loads += [AutoConfig, AutoModel, AutoModelForKeypointMatching, AutoImageProcessor]
for load in loads:
    try:
        load.from_pretrained(sys.argv[1])
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["python"],
        ["match", "left.png", "right.png", "--model", "checkpoint"],
        ["train", "matcher", "--output_dir", "out", "--detector", "checkpoint", "--pairs", "4", "--textures", "4"],
        ["export", "onnx", "checkpoint", "out"],
        ["convert", "checkpoint", "out"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_it_is_not_run(arguments, checkpoint, tmp_path, request):
    marker: Path = tmp_path / "marker"
    program = ["-m", "lightglue_hf.cli", *arguments]
    if arguments == ["python"]:
        known = "a foreign model" not in request.node.name
        program = ["-c", PYTHON.format(known=known), "checkpoint"]
    found = subprocess.run(
        [sys.executable, *program], cwd=tmp_path, input="y\n" * 50, capture_output=True, text=True, timeout=300
    )
    assert not marker.exists(), found.stdout + found.stderr
    if "foreign" in request.node.name and arguments != ["python"]:
        assert found.returncode == 2, found.stdout + found.stderr
