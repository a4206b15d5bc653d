"""Configuration of DoGHardNet."""

from functools import partial
from typing import Any

from ..utils.validation import choice, number
from .configuration_sift import DifferenceOfGaussiansConfig

PATCH_ROTATIONS = ("counterclockwise", "clockwise")


class DoGHardNetConfig(DifferenceOfGaussiansConfig):
    """Configuration of [`DoGHardNetForKeypointDetection`]; the defaults are those of cvg/LightGlue@1fd587b.

    Args:
        patch_extent: half the side of a keypoint's patch, in units of its scale.
        patch_rotation: "clockwise", as OpenCV means its orientations, turns patches with the keypoints, so that
            descriptors stay as they are when a photo is turned. cvg's, with which the published matcher was trained,
            turns them "counterclockwise" (kornia/kornia#573): descriptors stay as they are in upright photos only.
        keypoint_threshold, edge_threshold, num_octave_layers, max_keypoints, nms_radius, precise_upscale: see
            [`SIFTConfig`].

    Raises:
        ValueError: a number out of its range, named.
    """

    model_type = "doghardnet"
    checks = {
        **DifferenceOfGaussiansConfig.checks,
        "patch_extent": partial(number, low=1e-3, high=1e3),
        "patch_rotation": partial(choice, choices=PATCH_ROTATIONS),
    }

    def __init__(self, patch_extent: float = 6.0, patch_rotation: str = "counterclockwise", **kwargs: Any) -> None:
        self.patch_extent = patch_extent
        self.patch_rotation = patch_rotation
        super().__init__(**kwargs)


__all__ = ["DoGHardNetConfig"]
