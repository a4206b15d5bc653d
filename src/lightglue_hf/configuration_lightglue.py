"""Configuration of LightGlue, readable by and from transformers' own."""

from functools import partial
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.activations import ACT2CLS

from .detectors import configuration_class
from .utils.validation import CheckedFields, choice, flag, inherited_fields, number, optional, whole_number

MOST_LAYERS, MOST_WIDE = 256, 1 << 16  # beyond any network: a mistake, or an attempt to fill the memory


class LightGlueConfig(CheckedFields, PretrainedConfig):
    """Configuration of [`LightGlueForKeypointMatching`]; the defaults are the published `superpoint_lightglue`.

    Thresholds are read at every call: set `model.config.depth_confidence = -1` at any time.

    Args:
        keypoint_detector_config: configuration, or its dictionary, of any model that
            `AutoModelForKeypointDetection` knows; SuperPoint's by default. Remote code is never run.
        descriptor_dim: width of the matcher, a multiple of twice `num_attention_heads`.
        num_hidden_layers: layers of self- and cross-attention.
        num_attention_heads: heads of each attention.
        num_key_value_heads: of grouped-query attention; `num_attention_heads` by default.
        depth_confidence: a pair stops when more than this share of its keypoints is confident; <= 0 runs all layers.
        width_confidence: keypoints this certain to be unmatchable are pruned; <= 0 keeps all.
        rejection_threshold: a pair is given up, without matches, when after the second layer fewer than this share
            of the keypoints of its poorer image have a match; 0 gives up none. For collections most of
            whose pairs show different things: see docs/checkpoints.md for what each published checkpoint bears.
        filter_threshold: a match's score is strictly greater.
        pruning_min_keypoints: an image with at most so many remaining keypoints is not pruned; -1 always prunes.
            A gather pays off from about 1024 on CUDA, 1536 with flash attention (cvg/LightGlue@1fd587b).
        input_dim: width of the descriptors that are matched; the detector's by default.
        add_scale_ori: the positional encoding also takes each keypoint's scale and orientation (SIFT, DoGHardNet).
        use_keypoint_detector: `False` builds the matcher alone, which takes keypoints and descriptors.
        initializer_range: standard deviation of the weights of a new model.
        hidden_act: activation of the feed-forward networks; the published weights use the exact "gelu".
        attention_dropout: in training.
        attention_bias: biases in the attention's projections.
        shared_query_key: cross-attention projects queries and keys by one layer, as in the published weights (cvg's
            `to_qk`), and computes it once. `None`, as in configurations without this field, means two layers; of a
            checkpoint that is loaded it is found out from the weights.
        trust_remote_code: accepted because saved configurations have it; never honoured (CVE-2026-5241).

    Raises:
        ValueError: a number out of its range, an unknown detector, or `add_scale_ori` with a detector that declares
            to have no scales and orientations, named.
    """

    model_type = "lightglue"
    sub_configs = {"keypoint_detector_config": AutoConfig}  # type: ignore[dict-item]
    checks = {
        "keypoint_detector_config": lambda name, value: detector_config(value),
        "descriptor_dim": partial(whole_number, low=2, high=MOST_WIDE),
        "num_hidden_layers": partial(whole_number, low=1, high=MOST_LAYERS),
        "num_attention_heads": partial(whole_number, low=1, high=MOST_WIDE),
        "num_key_value_heads": partial(whole_number, low=1, high=MOST_WIDE),
        "depth_confidence": number,
        "width_confidence": number,
        "rejection_threshold": partial(number, low=0, high=1),
        "filter_threshold": number,
        "pruning_min_keypoints": partial(whole_number, low=-1),
        "input_dim": optional(partial(whole_number, low=1, high=MOST_WIDE)),
        "add_scale_ori": flag,
        "use_keypoint_detector": flag,
        "initializer_range": partial(number, low=0),
        "hidden_act": partial(choice, choices=ACT2CLS),
        "attention_dropout": partial(number, low=0, high=1),
        "attention_bias": flag,
        "shared_query_key": optional(flag),
    }

    def __init__(
        self,
        keypoint_detector_config: PretrainedConfig | dict[str, Any] | None = None,
        descriptor_dim: int = 256,
        num_hidden_layers: int = 9,
        num_attention_heads: int = 4,
        num_key_value_heads: int | None = None,
        depth_confidence: float = 0.95,
        width_confidence: float = 0.99,
        rejection_threshold: float = 0.0,
        filter_threshold: float = 0.1,
        pruning_min_keypoints: int = -1,
        input_dim: int | None = None,
        add_scale_ori: bool = False,
        use_keypoint_detector: bool = True,
        initializer_range: float = 0.02,
        hidden_act: str = "gelu",
        attention_dropout: float = 0.0,
        attention_bias: bool = True,
        shared_query_key: bool | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> None:
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.descriptor_dim = descriptor_dim
        if self.descriptor_dim % (2 * self.num_attention_heads):
            raise ValueError(
                f"descriptor_dim must be a multiple of 2 * num_attention_heads (rotary pairs), "
                f"got {self.descriptor_dim} and {self.num_attention_heads} heads"
            )
        self.num_key_value_heads = num_key_value_heads or self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads, "
                f"got {self.num_attention_heads} and {self.num_key_value_heads}"
            )
        self.shared_query_key = shared_query_key
        if shared_query_key and self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"shared_query_key needs as many key-value heads as heads, "
                f"got {self.num_key_value_heads} and {self.num_attention_heads}"
            )
        self.depth_confidence = depth_confidence
        self.width_confidence = width_confidence
        self.rejection_threshold = rejection_threshold
        self.filter_threshold = filter_threshold
        self.pruning_min_keypoints = pruning_min_keypoints
        self.input_dim = input_dim
        self.add_scale_ori = add_scale_ori
        self.use_keypoint_detector = use_keypoint_detector
        self.initializer_range = initializer_range
        self.hidden_act = hidden_act
        self.attention_dropout = attention_dropout
        self.attention_bias = attention_bias
        self.keypoint_detector_config: PretrainedConfig = keypoint_detector_config  # type: ignore[assignment]
        detector = self.keypoint_detector_config
        if add_scale_ori and use_keypoint_detector and not getattr(detector, "has_scale_ori", True):
            raise ValueError(
                "add_scale_ori=True needs scales and orientations, "
                f"which {type(detector).__name__} does not give (has_scale_ori=False)"
            )
        self.trust_remote_code = False
        # derived; transformers reads them under these names, also from a saved configuration
        kwargs.pop("hidden_size", None)
        kwargs.pop("intermediate_size", None)
        self.hidden_size = self.descriptor_dim
        self.intermediate_size = 2 * self.descriptor_dim
        super().__init__(**inherited_fields(type(self), kwargs))

    @property
    def is_adaptive(self) -> bool:
        """Whether pairs stop early or are given up, or keypoints are pruned: whether work depends on values."""
        return self.depth_confidence > 0 or self.width_confidence > 0 or self.rejection_threshold > 0

    def run_all_layers(self) -> None:
        """Turn all that off: every keypoint of every pair goes through every layer."""
        self.depth_confidence = self.width_confidence = -1.0
        self.rejection_threshold = 0.0

    @property
    def num_input_features(self) -> int:
        """Width of the descriptors that are matched."""
        if self.input_dim is not None:
            return self.input_dim
        detector = self.keypoint_detector_config
        for name in ("descriptor_dim", "descriptor_decoder_dim"):
            if hasattr(detector, name):
                return getattr(detector, name)
        raise ValueError(f"{type(detector).__name__} does not say how wide its descriptors are: set input_dim")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "LightGlueConfig":
        """As in transformers; the detector's configuration is read as a saved one too."""
        config_dict = dict(config_dict)
        if isinstance(config_dict.get("keypoint_detector_config"), dict):
            config_dict["keypoint_detector_config"] = detector_config(
                config_dict["keypoint_detector_config"], saved=True
            )
        return super().from_dict(config_dict, **kwargs)


def detector_config(config: PretrainedConfig | dict[str, Any] | None, saved: bool = False) -> PretrainedConfig:
    """The detector's configuration from whatever stands for it: nothing or a missing model type means SuperPoint."""
    if isinstance(config, PretrainedConfig):
        return config
    if config is not None and not isinstance(config, dict):
        raise ValueError(f"keypoint_detector_config must be a configuration or a dictionary, got {config!r:.100}")
    config = dict(config or {})
    model_type = config.pop("model_type", "superpoint")
    if not isinstance(model_type, str):
        raise ValueError(f"model_type of keypoint_detector_config must be text, got {model_type!r:.100}")
    config_class = configuration_class(model_type)
    if config_class is None and model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"keypoint_detector_config has the unknown model_type {model_type!r}: "
            "register its configuration with AutoConfig first (remote code is never run)"
        )
    config_class = config_class or CONFIG_MAPPING[model_type]
    return config_class.from_dict(config) if saved else config_class(**config)


__all__ = ["LightGlueConfig"]
