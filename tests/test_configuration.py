"""Configurations that came from elsewhere: whatever stands in a field, it is right or named."""

import json

import numpy as np
import pytest
from transformers import AutoConfig

from lightglue_hf import LightGlueConfig
from lightglue_hf.detectors import DETECTORS, configuration_class

WRONG = ["text", -7, 2**40, 1e300, True, [], {}, [1, 2], {"a": 1}, None]
DERIVED = {"hidden_size", "intermediate_size", "model_type", "architectures", "transformers_version", "dtype"}


def fields_of(config_class):
    code = config_class.__init__.__code__
    return [name for name in code.co_varnames[: code.co_argcount] if name not in {"self"}]


@pytest.mark.parametrize("config_class", [LightGlueConfig, *map(configuration_class, DETECTORS)])
def test_a_wrong_value_is_named_and_nothing_else_goes_wrong(config_class, tmp_path):
    """Every field with every wrong value, as config.json: it is taken, or a ValueError begins with a field's name."""
    values = json.loads(config_class().to_json_string(use_diff=False))
    fields = [name for name in values if name in config_class.__init__.__code__.co_varnames and name not in DERIVED]
    assert set(fields) | {"trust_remote_code"} >= set(fields_of(config_class))
    messages = []
    for field in fields:
        for wrong in WRONG:
            (tmp_path / "config.json").write_text(json.dumps({**values, field: wrong}))
            try:
                AutoConfig.from_pretrained(tmp_path)
            except ValueError as error:
                messages.append(str(error))
    assert [message for message in messages if not message.startswith(tuple(fields))] == []
    assert len(messages) >= 5 * len(fields)


@pytest.mark.parametrize("config_class", [LightGlueConfig, *map(configuration_class, DETECTORS)])
def test_every_field_is_checked_whenever_it_is_set(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    config = config_class.from_pretrained(tmp_path)
    before = config.to_dict()
    assert set(config_class.checks) | {"trust_remote_code"} >= set(fields_of(config_class))
    for field in config_class.checks:
        with pytest.raises(ValueError, match=rf"^{field} "):
            setattr(config, field, "wrong")
        with pytest.raises(ValueError, match=rf"^{field} "):
            config_class.from_pretrained(tmp_path, **{field: "wrong"})
        setattr(config, field, getattr(config, field))
    assert config.to_dict() == before


@pytest.mark.parametrize("values", [{"rejection_threshold": 5}, {"num_hidden_layers": 2.0}, {"add_scale_ori": 1}])
def test_a_value_out_of_range_changes_nothing(values):
    config = LightGlueConfig()
    with pytest.raises(ValueError, match=next(iter(values))):
        config.update(values)
    assert config.to_dict() == LightGlueConfig().to_dict()


def test_values_that_are_set_become_plain_ones_under_each_of_their_names():
    config = LightGlueConfig()
    config.depth_confidence, config.input_dim = np.float32(0.5), None
    config.keypoint_detector_config = {"model_type": "superpoint", "max_keypoints": 7}
    detector = config.keypoint_detector_config
    detector.descriptor_dim = np.int64(64)
    assert (type(config.depth_confidence), type(detector.descriptor_decoder_dim)) == (float, int)
    with pytest.raises(ValueError, match="descriptor_dim must be a whole number"):
        detector.descriptor_dim = 64.0
    assert (config.num_input_features, detector.max_keypoints) == (64, 7)


def test_numbers_of_numpy_can_be_saved():
    config = LightGlueConfig(descriptor_dim=np.int64(64), num_attention_heads=np.int64(2))
    saved = json.loads(config.to_json_string())
    assert (saved["descriptor_dim"], saved["hidden_size"], saved["intermediate_size"]) == (64, 64, 128)


@pytest.mark.parametrize(
    "values",
    [{"num_hidden_layers": 2**31}, {"descriptor_dim": 2**20}, {"num_attention_heads": 0}, {"hidden_act": "sine"}],
)
def test_numbers_beyond_any_network_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        LightGlueConfig(**values)


def test_whole_numbers_stand_for_thresholds():
    config = LightGlueConfig(depth_confidence=-1, width_confidence=0, filter_threshold=1)
    assert (config.depth_confidence, config.width_confidence, config.filter_threshold) == (-1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", []),
        ("dtype", "float33"),
        ("torch_dtype", "Tensor"),
        ("id2label", True),
        ("output_hidden_states", "yes"),
        ("architectures", [1]),
        ("is_encoder_decoder", True),
        ("to_dict", 1),
        ("from_pretrained", None),
    ],
)
@pytest.mark.parametrize("model_type", ["lightglue", *DETECTORS])
def test_a_wrong_value_of_what_transformers_reads_is_named(model_type, field, value):
    config_class = configuration_class(model_type) or LightGlueConfig
    with pytest.raises(ValueError, match=field):
        config_class(**{field: value})
    assert config_class(dtype="float16", output_hidden_states=True, id2label={0: "a"}, strange=[1]).strange == [1]


@pytest.mark.parametrize("model_type", ["lightglue", *DETECTORS])
def test_what_is_read_at_every_call_is_never_none(model_type):
    config = (configuration_class(model_type) or LightGlueConfig)()
    names = ("depth_confidence", "width_confidence", "filter_threshold", "max_keypoints", "keypoint_threshold")
    names = [name for name in names if hasattr(config, name)]
    assert len(names) >= 2
    for name in names:
        with pytest.raises(ValueError, match=f"{name} must be a number, got None"):
            setattr(config, name, None)
        setattr(config, name, 1)
        assert getattr(config, name) == 1
