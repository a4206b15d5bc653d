"""Configuration of ALIKED."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import PretrainedConfig

from ..features import KeypointDetectorConfig
from ..utils.validation import MOST_RADIUS, flag, odd_number, whole_number, whole_numbers

STAGES = 4  # of the encoder
MOST_WIDE = 1 << 14


def widths(name: str, values: Any) -> list[int]:
    """Channels of the stages."""
    channels = whole_numbers(name, values, 1, MOST_WIDE)
    if len(channels) != STAGES or channels[-1] % STAGES:
        raise ValueError(f"{name} must be {STAGES} widths, the last a multiple of {STAGES}, got {channels!r:.100}")
    return channels


class ALIKEDConfig(KeypointDetectorConfig, PretrainedConfig):
    """Configuration of [`ALIKEDForKeypointDetection`]; the defaults are those of ALIKED-N(16).

    Args:
        hidden_sizes: channels of the four stages of the encoder, `[c1, c2, c3, c4]`. The last is the width of the
            descriptors, too, and a multiple of 4.
        kernel_size: side of the patch that a keypoint's sample positions are computed from; odd, in pixels.
        num_sample_positions: positions around a keypoint that its descriptor is made of: 16, or 32 in ALIKED-N(32).
        keypoint_threshold: a keypoint's score is strictly greater. From 0 downwards there is no threshold: the best
            `max_keypoints` are kept, whatever their score.
        max_keypoints: the best so many of each image are kept; -1 keeps all. The published code keeps 20000 at most.
        nms_radius: pixels; the side of the window of a maximum is twice that and 1, and so is that of the window
            which refines its position. Keypoints are at least so far from an image's borders.
        fallback_to_mean: take the mean score of the image for the threshold where no maximum of the image passes
            `keypoint_threshold`, or where there is neither threshold nor `max_keypoints`, as the published code does.
            `False` leaves the former image without keypoints, and keeps all maxima of the latter.

    Raises:
        ValueError: a number out of its range, named.
    """

    model_type = "aliked"
    checks = {
        **KeypointDetectorConfig.checks,
        "hidden_sizes": widths,
        "kernel_size": partial(odd_number, low=1, high=31),
        "num_sample_positions": partial(whole_number, low=1, high=1024),
        "nms_radius": partial(whole_number, low=0, high=MOST_RADIUS),
        "fallback_to_mean": flag,
    }
    stride = 32
    channels = 3
    float32_modules = ("block1.conv1", "score_head.0", "score_head")

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (16, 32, 64, 128),
        kernel_size: int = 3,
        num_sample_positions: int = 16,
        keypoint_threshold: float = 0.2,
        max_keypoints: int = -1,
        nms_radius: int = 2,
        fallback_to_mean: bool = True,
        **kwargs: Any,
    ) -> None:
        self.hidden_sizes = hidden_sizes
        self.kernel_size = kernel_size
        self.num_sample_positions = num_sample_positions
        self.keypoint_threshold = keypoint_threshold
        self.max_keypoints = max_keypoints
        self.nms_radius = nms_radius
        self.fallback_to_mean = fallback_to_mean
        super().__init__(**kwargs)

    @property
    def descriptor_dim(self) -> int:  # type: ignore[override]
        """Width of the descriptors."""
        return self.hidden_sizes[-1]


__all__ = ["ALIKEDConfig"]
