"""What exported graphs were made with is theirs; no graph is needed to see that."""

import json
from types import SimpleNamespace

import pytest

from lightglue_hf.runtime.fixed import backend_of, fixed_options, set_options
from lightglue_hf.utils.errors import InputError

ALWAYS = {"max_keypoints", "depth_confidence", "width_confidence"}


@pytest.mark.parametrize(
    ("files", "backend", "more"),
    [
        ([], None, None),
        (["model.safetensors"], None, None),
        (["openvino_model.xml"], "openvino", {"turns", "tiles"}),
        (["model.onnx"], "onnx", {"turns", "tiles"}),
        (["openvino_detector.xml", "openvino_matcher.xml"], "openvino", set()),
        (["detector.onnx", "matcher.onnx"], "onnx", set()),
        (["openvino_matcher.xml"], "openvino", {"turns", "tiles"}),
        (["detector.onnx", "matcher.onnx", "model.onnx"], "onnx", set()),
        # of all three OpenVINO's class loads the pipeline alone
        (["openvino_detector.xml", "openvino_matcher.xml", "openvino_model.xml"], "openvino", {"turns", "tiles"}),
        (["openvino_detector.xml", "openvino_matcher.xml", "model.onnx"], "openvino", set()),
    ],
)
def test_what_a_directory_holds_says_what_is_fixed(tmp_path, files, backend, more):
    for name in files:
        (tmp_path / name).touch()
    assert backend_of(tmp_path) == backend
    assert fixed_options(tmp_path) == (set() if more is None else ALWAYS | more)
    for edge, fixed in ((640, set()), (None, {"longest_edge", "tiles"})):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"longest_edge": edge}))
        assert fixed_options(tmp_path) == (set() if more is None else ALWAYS | more | fixed)


def model(**engine):
    config = SimpleNamespace(filter_threshold=0.2, depth_confidence=-1, width_confidence=0.9)
    config.keypoint_detector_config = SimpleNamespace(max_keypoints=300)
    return SimpleNamespace(config=config, **engine)


def test_a_model_is_set_and_keeps_what_is_not_given():
    made = model()
    set_options("mine", made, max_keypoints=10, depth_confidence=0.5)
    assert made.config.keypoint_detector_config.max_keypoints == 10
    assert (made.config.depth_confidence, made.config.width_confidence, made.config.filter_threshold) == (
        0.5,
        0.9,
        0.2,
    )
    set_options("mine", made, threshold=0.0)
    assert made.config.filter_threshold == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_keypoints": 301}, "^mine was exported for 300 keypoints: export it again$"),
        ({"threshold": 0.1}, "^mine was exported with the threshold 0.2: export it again$"),
        ({"depth_confidence": 0.5}, "^mine was exported with a depth_confidence of -1: export it again$"),
        ({"width_confidence": -1}, "^mine was exported with a width_confidence of 0.9: export it again$"),
    ],
)
def test_a_graph_is_asked_for_nothing_else_than_it_does(options, message):
    made = model(engine="a runtime")
    set_options("mine", made)
    set_options("mine", made, max_keypoints=300, threshold=0.2, depth_confidence=-1, width_confidence=0.9)
    set_options("mine", made, threshold=0.7, depth_confidence=1)  # as off as -1
    with pytest.raises(InputError, match=message):
        set_options("mine", made, **options)
    assert vars(made.config)["filter_threshold"] == 0.2
    assert made.minimum_score == 0.7
    set_options("mine", made, threshold=0.3)  # lower again
    assert made.minimum_score == 0.3
