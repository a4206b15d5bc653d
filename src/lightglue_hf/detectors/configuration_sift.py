"""Configuration of SIFT, and of what it shares with DoGHardNet: OpenCV's keypoints."""

from functools import partial
from typing import Any

from transformers import PretrainedConfig

from ..features import KeypointDetectorConfig
from ..utils.validation import MOST_RADIUS, flag, number, whole_number

MOST_LAYERS = 64  # of an octave, each an image


class DifferenceOfGaussiansConfig(KeypointDetectorConfig, PretrainedConfig):
    """How OpenCV's SIFT detects keypoints; see [`SIFTConfig`] for the fields."""

    channels = 1
    has_scale_ori = True
    exportable = False
    descriptor_dim = 128
    checks = {
        **KeypointDetectorConfig.checks,
        "edge_threshold": number,
        "num_octave_layers": partial(whole_number, low=1, high=MOST_LAYERS),
        "nms_radius": partial(whole_number, low=0, high=MOST_RADIUS),
        "precise_upscale": flag,
    }

    def __init__(
        self,
        keypoint_threshold: float = 0.0066667,
        edge_threshold: float = 10.0,
        num_octave_layers: int = 4,
        max_keypoints: int = 4096,
        nms_radius: int = 0,
        precise_upscale: bool = False,
        **kwargs: Any,
    ) -> None:
        self.keypoint_threshold = keypoint_threshold
        self.edge_threshold = edge_threshold
        self.num_octave_layers = num_octave_layers
        self.max_keypoints = max_keypoints
        self.nms_radius = nms_radius
        self.precise_upscale = precise_upscale
        super().__init__(**kwargs)


class SIFTConfig(DifferenceOfGaussiansConfig):
    """Configuration of [`SIFTForKeypointDetection`]; the defaults are those of cvg/LightGlue@1fd587b.

    All fields are read at every call.

    Args:
        keypoint_threshold: contrast, of pixels in [0, 1], that an extremum of the differences of Gaussians has at
            least. The differences shrink with the number of layers, and so does the threshold: a keypoint's score is
            at least `keypoint_threshold / num_octave_layers`.
        edge_threshold: an extremum whose principal curvatures have a larger ratio than this lies on an edge.
        num_octave_layers: scales per octave at which extrema are looked for.
        max_keypoints: the best so many of each image are kept; -1 keeps all.
        nms_radius: pixels; no two keypoints of an image are nearer than this along both axes. 0 leaves one keypoint
            a pixel, of one orientation.
        precise_upscale: keypoints lie where they are. Otherwise, which is OpenCV's default and cvg's, they lie a
            quarter of a pixel further right and down: positions in an image of twice the size are simply halved.
        rootsift: descriptors are the square roots of SIFT's (Arandjelovic and Zisserman, CVPR 2012).

    Raises:
        ValueError: a number out of its range, named.
    """

    model_type = "sift"
    checks = {**DifferenceOfGaussiansConfig.checks, "rootsift": flag}

    def __init__(self, rootsift: bool = True, **kwargs: Any) -> None:
        self.rootsift = rootsift
        super().__init__(**kwargs)


__all__ = ["SIFTConfig"]
