"""What an import registers with transformers, and what it leaves alone."""

import json
import os
import subprocess
import sys

import pytest

from lightglue_hf import bundled_checkpoint
from lightglue_hf.detectors import DETECTORS

from .tiny import whole_model

CODE = """
import json, sys, lightglue_hf, transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipelines
directory, registers = sys.argv[1:]
made = [AutoConfig.for_model("lightglue"), AutoConfig.for_model("superpoint"), AutoModel.from_pretrained(directory)]
if registers == "1":  # transformers' own may want torchvision
    made.append(AutoImageProcessor.from_pretrained(directory))
impl = pipelines.PIPELINE_REGISTRY.supported_tasks["keypoint-matching"]["impl"]
own = lightglue_hf.LightGlueForKeypointMatching.from_pretrained(directory)
print(json.dumps({
    "auto": [getattr(cls, "__module__", "transformers").split(".")[0] for cls in (*map(type, made), impl)],
    "stock": transformers.LightGlueForKeypointMatching.__module__.split(".")[0],
    "own": [type(own).__module__.split(".")[0], type(own.keypoint_detector).__module__.split(".")[0]],
}))
"""


FIRST = """
import os, sys, importlib, torch, lightglue_hf
for name in ("configuration_lightglue", "features", "image_processing_lightglue", "convert.published", "export"):
    child = os.fork()
    if not child:
        importlib.import_module(f"lightglue_hf.{name}")
        from transformers import AutoImageProcessor
        os._exit(getattr(AutoImageProcessor, "is_dummy", False))
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} cannot be imported first")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each module in a process of its own")
def test_whatever_of_ours_is_imported_first():
    """Registration imports modules of ours out of transformers': none may be half made then."""
    found = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("registers", ["1", "0"])
def test_registration_can_be_left_out(registers, tmp_path, monkeypatch):
    model = whole_model()
    model.save_pretrained(tmp_path)
    processor = {
        "do_resize": True,
        "size": {"height": 48, "width": 64},
        "image_processor_type": "LightGlueImageProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    monkeypatch.setenv("LIGHTGLUE_HF_REGISTER", registers)
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), registers], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout.splitlines()[-1])
    assert set(answer["auto"]) == {"lightglue_hf" if registers == "1" else "transformers"}
    assert answer["stock"] == "transformers"
    assert answer["own"] == ["lightglue_hf", "lightglue_hf"]


def test_every_detector_of_the_table_is_registered():
    from transformers import AutoModelForKeypointDetection

    from lightglue_hf.detectors import configuration_class, model_class

    for model_type in DETECTORS:
        config = configuration_class(model_type)()
        assert config.model_type == model_type
        assert type(AutoModelForKeypointDetection.from_config(config)) is model_class(config)


QUIET = """
import sys, lightglue_hf
from transformers import AutoImageProcessor, pipeline
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
directory = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(directory)
assert type(processor) is lightglue_hf.LightGlueImageProcessor
assert type(pipeline("keypoint-matching", model=directory).image_processor) is lightglue_hf.LightGlueImageProcessor
print("lightglue" in IMAGE_PROCESSOR_MAPPING_NAMES)
"""


def test_ours_is_given_without_a_word_of_slow_processors():
    """Not by the Auto class and not by the pipeline; the table keeps its entry in transformers 5."""
    import transformers

    found = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", QUIET, str(bundled_checkpoint("tiny"))],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert "slow" not in found.stderr
    assert found.stdout.splitlines()[-1] == str(not transformers.__version__.startswith("4."))


def test_of_other_slow_processors_transformers_still_says_it(tmp_path, caplog):
    import transformers

    if not transformers.__version__.startswith("4."):
        pytest.skip("transformers 5 says no such thing")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()  # of which other tests may have left less
    logging.warning_once.cache_clear()
    logging.enable_propagation()
    logging.set_verbosity_warning()
    try:
        transformers.AutoImageProcessor.from_pretrained(tmp_path)
    finally:
        logging.set_verbosity(verbosity)
        logging.disable_propagation()
    assert "Using a slow image processor" in caplog.text
