"""LightGlue keypoint matching for transformers.

Importing this package registers its classes: `AutoConfig`, `AutoModel`, `AutoModelForKeypointMatching`,
`AutoModelForKeypointDetection`, `AutoImageProcessor` and `pipeline("keypoint-matching")` then give them in place of
transformers' own, unless `LIGHTGLUE_HF_REGISTER=0` is in the environment; see registration.py. Neither transformers'
models nor ours are imported before they are used.
"""

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .registration import register

try:
    __version__ = version("lightglue-hf")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "unknown"

_MODULES = {
    "LightGlueConfig": "configuration_lightglue",
    "LightGlueForKeypointMatching": "modeling_lightglue",
    "LightGlueKeypointMatchingOutput": "modeling_lightglue",
    "KeypointFeatures": "features",
    "KeypointDetector": "features",
    "KeypointDetectorConfig": "features",
    "LightGlueImageProcessor": "image_processing_lightglue",
    "KeypointMatchingPipeline": "pipeline_keypoint_matching",
    "SuperPointConfig": "detectors.configuration_superpoint",
    "SuperPointForKeypointDetection": "detectors.superpoint",
    "ALIKEDConfig": "detectors.configuration_aliked",
    "ALIKEDForKeypointDetection": "detectors.aliked",
    "DISKConfig": "detectors.configuration_disk",
    "DISKForKeypointDetection": "detectors.disk",
    "XFeatConfig": "detectors.configuration_xfeat",
    "XFeatForKeypointDetection": "detectors.xfeat",
    "SIFTConfig": "detectors.configuration_sift",
    "SIFTForKeypointDetection": "detectors.sift",
    "DoGHardNetConfig": "detectors.configuration_doghardnet",
    "DoGHardNetForKeypointDetection": "detectors.doghardnet",
    "ExportOptions": "export",
    "OVModelForKeypointMatching": "runtime",
    "ORTModelForKeypointMatching": "runtime",
    "checkpoint": "convert.published",
    "located": "convert.published",
    "plot_images": "visualization",
    "plot_keypoints": "visualization",
    "plot_matches": "visualization",
}

# the runtimes need packages that may not be there, so they are imported by name alone
__all__ = ["bundled_checkpoint", "register", *(name for name, module in _MODULES.items() if module != "runtime")]


def bundled_checkpoint(name: str) -> Path:
    """The directory of a checkpoint that comes with the package, for any `from_pretrained`.

    Args:
        name: "tiny".

    Raises:
        ValueError: no bundled checkpoint has that name.

    Example:

    ```python
    >>> from lightglue_hf import bundled_checkpoint
    >>> bundled_checkpoint("tiny").name
    'tiny'

    ```
    """
    checkpoints = Path(__file__).parent / "checkpoints"
    names = sorted(path.parent.name for path in checkpoints.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"no bundled checkpoint is called {name!r}; there are: {', '.join(names)}")
    return checkpoints / name


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


if os.environ.get("LIGHTGLUE_HF_REGISTER", "1") not in ("0", "false", "no"):
    register()
