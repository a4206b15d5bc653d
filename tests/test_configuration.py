"""Configurations that came from elsewhere: whatever stands in a field, it is right or named."""

import json

import pytest
from transformers import AutoConfig

from lightglue_hf import LightGlueConfig, SuperPointConfig

WRONG = ["text", -7, 2**40, 1e300, True, [], {}, [1, 2], {"a": 1}, None]
DERIVED = {"hidden_size", "intermediate_size", "model_type", "architectures", "transformers_version", "dtype"}


@pytest.mark.parametrize("config_class", [LightGlueConfig, SuperPointConfig])
def test_a_wrong_value_is_named_and_nothing_else_goes_wrong(config_class, tmp_path):
    """Every field with every wrong value, as config.json: it is taken, or a ValueError begins with a field's name."""
    values = json.loads(config_class().to_json_string(use_diff=False))
    fields = [name for name in values if name in config_class.__init__.__code__.co_varnames and name not in DERIVED]
    assert len(fields) > 10
    messages = []
    for field in fields:
        for wrong in WRONG:
            (tmp_path / "config.json").write_text(json.dumps({**values, field: wrong}))
            try:
                AutoConfig.from_pretrained(tmp_path)
            except ValueError as error:
                messages.append(str(error))
    assert [message for message in messages if not message.startswith(tuple(fields))] == []
    assert len(messages) > 5 * len(fields)


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
