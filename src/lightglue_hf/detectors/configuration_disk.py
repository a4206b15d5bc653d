"""Configuration of DISK."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import PretrainedConfig

from ..features import KeypointDetectorConfig
from ..utils.validation import MOST_RADIUS, number, odd_number, whole_number, whole_numbers

MOST_LEVELS, MOST_WIDE = 10, 1 << 14  # beyond any network: a mistake, or an attempt to fill the memory


class DISKConfig(KeypointDetectorConfig, PretrainedConfig):
    """Configuration of [`DISKForKeypointDetection`]; the defaults are the published `depth-save.pth`.

    Args:
        encoder_hidden_sizes: channels of the levels on the way down, the first of whole images, each next one of half
            the side.
        decoder_hidden_sizes: channels of the levels on the way up, without the last, which gives descriptors and
            scores.
        descriptor_dim: width of the descriptors.
        keypoint_threshold: a keypoint's score, an unbounded logit, is strictly greater; at least 0.
        max_keypoints: the best so many of each image are kept; -1 keeps all.
        window: pixels, odd: a keypoint's score is the largest of the square of that side around it, which lies
            within the image.
        initializer_range: standard deviation of the weights of a new model.

    Raises:
        ValueError: a number out of its range, named.
    """

    model_type = "disk"
    checks = {
        **KeypointDetectorConfig.checks,
        "encoder_hidden_sizes": partial(whole_numbers, low=1, high=MOST_WIDE, counts=range(2, MOST_LEVELS + 1)),
        "decoder_hidden_sizes": partial(whole_numbers, low=1, high=MOST_WIDE),
        "descriptor_dim": partial(whole_number, low=1, high=MOST_WIDE),
        "keypoint_threshold": partial(number, low=0),
        "window": partial(odd_number, low=1, high=2 * MOST_RADIUS + 1),
        "initializer_range": partial(number, low=0),
    }

    def __init__(
        self,
        encoder_hidden_sizes: Sequence[int] = (16, 32, 64, 64, 64),
        decoder_hidden_sizes: Sequence[int] = (64, 64, 64),
        descriptor_dim: int = 128,
        keypoint_threshold: float = 0.0,
        max_keypoints: int = -1,
        window: int = 5,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.encoder_hidden_sizes = encoder_hidden_sizes
        self.decoder_hidden_sizes = decoder_hidden_sizes
        if len(self.decoder_hidden_sizes) != len(self.encoder_hidden_sizes) - 2:
            raise ValueError(
                f"decoder_hidden_sizes must be {len(self.encoder_hidden_sizes) - 2} widths, two fewer than "
                f"encoder_hidden_sizes, got {self.decoder_hidden_sizes}"
            )
        self.descriptor_dim = descriptor_dim
        self.keypoint_threshold = keypoint_threshold
        self.max_keypoints = max_keypoints
        self.window = window
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def stride(self) -> int:  # type: ignore[override]
        """Pixels: images are padded with zeros to a multiple of it."""
        return 2 ** (len(self.encoder_hidden_sizes) - 1)

    @property
    def float32_modules(self) -> tuple[str, ...]:  # type: ignore[override]
        """The first convolution and the last."""
        return "unet.path_down.0.1.3", f"unet.path_up.{len(self.decoder_hidden_sizes)}.conv.3"


__all__ = ["DISKConfig"]
