"""Configuration of XFeat."""

from functools import partial
from typing import Any

from transformers import PretrainedConfig

from ..features import KeypointDetectorConfig
from ..utils.validation import MOST_RADIUS, number, whole_number


class XFeatConfig(KeypointDetectorConfig, PretrainedConfig):
    """Configuration of [`XFeatForKeypointDetection`]; the defaults are the published `xfeat.pt`.

    Args:
        descriptor_dim: width of the descriptors and of the layers that make them.
        keypoint_threshold: the probability that a pixel is a keypoint is strictly greater. A keypoint's score, which
            is that times its reliability, may be less.
        max_keypoints: the best so many of each image are kept; -1 keeps all.
        nms_radius: pixels; no keypoint's probability is exceeded within this along both axes.
        initializer_range: standard deviation of the weights of a new model.

    Raises:
        ValueError: a number out of its range, named.
    """

    model_type = "xfeat"
    checks = {
        **KeypointDetectorConfig.checks,
        "descriptor_dim": partial(whole_number, low=1, high=1 << 14),
        "keypoint_threshold": partial(number, low=0),
        "nms_radius": partial(whole_number, low=0, high=MOST_RADIUS),
        "initializer_range": partial(number, low=0),
    }
    stride = 32
    float32_modules = ("block1.0", *(f"keypoint_head.{i}" for i in range(4)))

    def __init__(
        self,
        descriptor_dim: int = 64,
        keypoint_threshold: float = 0.05,
        max_keypoints: int = -1,
        nms_radius: int = 2,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.descriptor_dim = descriptor_dim
        self.keypoint_threshold = keypoint_threshold
        self.max_keypoints = max_keypoints
        self.nms_radius = nms_radius
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


__all__ = ["XFeatConfig"]
