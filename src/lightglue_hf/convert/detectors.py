"""The detectors that checkpoints are converted of: how each is told by its names, converted, and given back."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from ..detectors.configuration_sift import SIFTConfig
from .aliked import aliked_to_published, convert_aliked_state_dict, is_aliked
from .disk import convert_disk_state_dict, disk_to_published, is_disk
from .hardnet import convert_hardnet_state_dict, hardnet_to_published, is_hardnet
from .state_dicts import convert_superpoint_state_dict, is_superpoint, superpoint_to_magic_leap
from .xfeat import convert_xfeat_state_dict, is_xfeat, xfeat_to_published


class DetectorKind(NamedTuple):
    """A kind of detector, and what is done with files of it."""

    name: str
    paper: str
    recognise: Callable[[Iterable[str]], bool]  # from the names of tensors
    convert: Callable[..., tuple[Any, dict[str, Tensor]]]  # state dict, **overrides -> configuration, tensors
    # configuration, tensors -> state dict; None where there are no weights
    back: Callable[[Any, dict[str, Tensor]], dict[str, Any]] | None
    # what it is run with before a matcher, in the matchers' own demonstrations; alone, its own defaults hold
    matching: dict[str, Any]


def no_file(names: Iterable[str]) -> bool:
    """A detector without weights is in no file."""
    return False


def sift_configuration(state_dict: dict[str, Tensor], **config_overrides: Any) -> tuple[SIFTConfig, dict[str, Tensor]]:
    return SIFTConfig(**config_overrides), {}


CVG = {"max_keypoints": 2048}  # cvg/LightGlue@1fd587b, demo.ipynb

DETECTOR_KINDS = {
    "superpoint": DetectorKind(
        "SuperPoint",
        "https://arxiv.org/abs/1712.07629",
        is_superpoint,
        convert_superpoint_state_dict,
        superpoint_to_magic_leap,
        {**CVG, "keypoint_threshold": 0.0005},
    ),
    "aliked": DetectorKind(
        "ALIKED", "https://arxiv.org/abs/2304.03608", is_aliked, convert_aliked_state_dict, aliked_to_published, CVG
    ),
    "disk": DetectorKind(
        "DISK", "https://arxiv.org/abs/2006.13566", is_disk, convert_disk_state_dict, disk_to_published, CVG
    ),
    "xfeat": DetectorKind(
        "XFeat",
        "https://arxiv.org/abs/2404.19174",
        is_xfeat,
        convert_xfeat_state_dict,
        xfeat_to_published,
        {"max_keypoints": 4096},  # verlab/accelerated_features, modules/xfeat.py
    ),
    "sift": DetectorKind(
        "SIFT", "https://doi.org/10.1023/B:VISI.0000029664.99615.94", no_file, sift_configuration, None, CVG
    ),
    "doghardnet": DetectorKind(
        "DoGHardNet",
        "https://arxiv.org/abs/1705.10872",
        is_hardnet,
        convert_hardnet_state_dict,
        hardnet_to_published,
        CVG,
    ),
}
"""By `model_type`."""


def kind_of(names: Iterable[str]) -> str | None:
    """The `model_type` of the detector whose tensors have these names, or `None`."""
    names = list(names)
    return next((kind for kind, detector in DETECTOR_KINDS.items() if detector.recognise(names)), None)
