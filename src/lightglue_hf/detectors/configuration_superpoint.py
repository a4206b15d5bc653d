"""Configuration of SuperPoint, readable by and from transformers' own."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import PretrainedConfig

from ..features import KeypointDetectorConfig
from ..utils.validation import MOST_RADIUS, choice, flag, number, whole_number, whole_numbers

CELL = 8  # scores a side of the cell that one score vector describes
DESCRIPTOR_GRIDS = ("stretched", "centred")
MOST_BLOCKS, MOST_WIDE = 10, 1 << 14  # beyond any network: a mistake, or an attempt to fill the memory


class SuperPointConfig(KeypointDetectorConfig, PretrainedConfig):
    """Configuration of [`SuperPointForKeypointDetection`].

    Args:
        encoder_hidden_sizes: channels of the encoder blocks; all but the last end in a 2x2 max-pooling. With other
            than four blocks a cell is not 8 pixels, and keypoints are off by that factor, as in transformers.
        decoder_hidden_size: channels of the hidden layer of both decoders.
        keypoint_decoder_dim: 65: the 64 pixels of a cell and "no keypoint".
        descriptor_decoder_dim: width of the descriptors.
        keypoint_threshold: a keypoint's score is strictly greater.
        max_keypoints: the best so many of each image are kept; -1 keeps all.
        nms_radius: pixels; no two keypoints of an image are nearer than this along both axes.
        border_removal_distance: pixels; keypoints nearer to an image border are removed.
        remove_far_borders: remove them at the right and bottom borders too. `False` is what transformers' own
            SuperPoint does (at the left and top only); configurations saved without this field are read as `False`.
        descriptor_grid: where the map of cells is sampled for a pixel k: "stretched", Magic Leap's, at
            (k - 3.5) / (8 cells - 4.5) of its length; or "centred", SuperPoint-Open's, where the centres of the cells
            really lie, (k - 3.5) / 8.
        min_pooled_channels: of each encoder block but the last, so many last channels are pooled to their minimum:
            what is left of a batch norm of negative scale, folded (SuperPoint-Open). None by default.
        initializer_range: standard deviation of the weights of a new model.

    Raises:
        ValueError: a number out of its range, named.
    """

    model_type = "superpoint"
    checks = {
        **KeypointDetectorConfig.checks,
        "encoder_hidden_sizes": partial(whole_numbers, low=1, high=MOST_WIDE, counts=range(1, MOST_BLOCKS + 1)),
        "decoder_hidden_size": partial(whole_number, low=1, high=MOST_WIDE),
        "keypoint_decoder_dim": partial(whole_number, low=65, high=65),
        "descriptor_decoder_dim": partial(whole_number, low=1, high=MOST_WIDE),
        "nms_radius": partial(whole_number, low=0, high=MOST_RADIUS),
        "border_removal_distance": partial(whole_number, low=0),
        "remove_far_borders": flag,
        "descriptor_grid": partial(choice, choices=DESCRIPTOR_GRIDS),
        "min_pooled_channels": partial(whole_numbers, low=0),
        "initializer_range": partial(number, low=0),
    }
    attribute_map = {"descriptor_dim": "descriptor_decoder_dim"}
    channels = 1
    float32_modules = ("encoder.conv_blocks.0.conv_a", "keypoint_decoder.conv_score_b")

    def __init__(
        self,
        encoder_hidden_sizes: Sequence[int] = (64, 64, 128, 128),
        decoder_hidden_size: int = 256,
        keypoint_decoder_dim: int = CELL**2 + 1,
        descriptor_decoder_dim: int = 256,
        keypoint_threshold: float = 0.005,
        max_keypoints: int = -1,
        nms_radius: int = 4,
        border_removal_distance: int = 4,
        remove_far_borders: bool = True,
        descriptor_grid: str = "stretched",
        min_pooled_channels: Sequence[int] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.encoder_hidden_sizes = encoder_hidden_sizes
        widths = self.encoder_hidden_sizes[:-1]
        self.min_pooled_channels = [0] * len(widths) if min_pooled_channels is None else min_pooled_channels
        if len(self.min_pooled_channels) != len(widths) or any(
            count > width for count, width in zip(self.min_pooled_channels, widths)
        ):
            raise ValueError(
                f"min_pooled_channels must be {len(widths)} counts of at most {widths}, got {self.min_pooled_channels}"
            )
        self.decoder_hidden_size = decoder_hidden_size
        self.keypoint_decoder_dim = keypoint_decoder_dim
        self.descriptor_decoder_dim = descriptor_decoder_dim
        self.keypoint_threshold = keypoint_threshold
        self.max_keypoints = max_keypoints
        self.nms_radius = nms_radius
        self.border_removal_distance = border_removal_distance
        self.remove_far_borders = remove_far_borders
        self.descriptor_grid = descriptor_grid
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def stride(self) -> int:  # type: ignore[override]
        """Pixels a side that one score vector and one descriptor describe."""
        return 2 ** (len(self.encoder_hidden_sizes) - 1)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "SuperPointConfig":
        """As in transformers; a saved configuration without `remove_far_borders` keeps the Hub's behaviour."""
        return super().from_dict({"remove_far_borders": False, **config_dict}, **kwargs)


__all__ = ["SuperPointConfig"]
