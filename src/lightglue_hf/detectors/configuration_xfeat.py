"""Configuration of XFeat."""

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
        self.descriptor_dim = whole_number("descriptor_dim", descriptor_dim, 1, 1 << 14)
        self.keypoint_threshold = number("keypoint_threshold", keypoint_threshold, 0)
        self.max_keypoints = whole_number("max_keypoints", max_keypoints, -1)
        self.nms_radius = whole_number("nms_radius", nms_radius, 0, MOST_RADIUS)
        self.initializer_range = number("initializer_range", initializer_range, 0)
        super().__init__(**kwargs)


__all__ = ["XFeatConfig"]
