"""The detectors that checkpoints are converted of: how each is told by its names, converted, and given back."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from .state_dicts import convert_superpoint_state_dict, is_superpoint, superpoint_to_magic_leap


class DetectorKind(NamedTuple):
    """A kind of detector, and what is done with files of it."""

    name: str
    paper: str
    recognise: Callable[[Iterable[str]], bool]  # from the names of tensors
    convert: Callable[..., tuple[Any, dict[str, Tensor]]]  # state dict, **overrides -> configuration, tensors
    back: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]  # configuration, tensors -> state dict
    # what it is run with before a matcher, in the matchers' own demonstrations; alone, its own defaults hold
    matching: dict[str, Any]
    has_weights: bool = True


CVG = {"max_keypoints": 2048}  # cvg/LightGlue@1fd587b, demo.ipynb

KINDS = {
    "superpoint": DetectorKind(
        "SuperPoint",
        "https://arxiv.org/abs/1712.07629",
        is_superpoint,
        convert_superpoint_state_dict,
        superpoint_to_magic_leap,
        {**CVG, "keypoint_threshold": 0.0005},
    ),
}
"""By `model_type`."""


def kind_of(names: Iterable[str]) -> str | None:
    """The `model_type` of the detector whose tensors have these names, or `None`."""
    names = list(names)
    return next((kind for kind, detector in KINDS.items() if detector.recognise(names)), None)
