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
from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:  # what `__getattr__` imports, for type checkers and editors; a test holds it and _MODULES together
    from .configuration_lightglue import LightGlueConfig as LightGlueConfig
    from .convert.published import checkpoint as checkpoint, located as located
    from .detectors.aliked import ALIKEDForKeypointDetection as ALIKEDForKeypointDetection
    from .detectors.configuration_aliked import ALIKEDConfig as ALIKEDConfig
    from .detectors.configuration_disk import DISKConfig as DISKConfig
    from .detectors.configuration_doghardnet import DoGHardNetConfig as DoGHardNetConfig
    from .detectors.configuration_sift import SIFTConfig as SIFTConfig
    from .detectors.configuration_superpoint import SuperPointConfig as SuperPointConfig
    from .detectors.configuration_xfeat import XFeatConfig as XFeatConfig
    from .detectors.disk import DISKForKeypointDetection as DISKForKeypointDetection
    from .detectors.doghardnet import DoGHardNetForKeypointDetection as DoGHardNetForKeypointDetection
    from .detectors.sift import SIFTForKeypointDetection as SIFTForKeypointDetection
    from .detectors.superpoint import SuperPointForKeypointDetection as SuperPointForKeypointDetection
    from .detectors.xfeat import XFeatForKeypointDetection as XFeatForKeypointDetection
    from .export import ExportOptions as ExportOptions
    from .features import (
        KeypointDetector as KeypointDetector,
        KeypointDetectorConfig as KeypointDetectorConfig,
        KeypointFeatures as KeypointFeatures,
    )
    from .image_processing_lightglue import LightGlueImageProcessor as LightGlueImageProcessor
    from .two_photos import PhotoMatches as PhotoMatches, match as match
    from .modeling_lightglue import (
        LightGlueForKeypointMatching as LightGlueForKeypointMatching,
        LightGlueKeypointMatchingOutput as LightGlueKeypointMatchingOutput,
    )
    from .pipeline_keypoint_matching import KeypointMatchingPipeline as KeypointMatchingPipeline
    from .runtime import (
        ORTModelForKeypointMatching as ORTModelForKeypointMatching,
        OVModelForKeypointMatching as OVModelForKeypointMatching,
    )
    from .visualization import (
        plot_images as plot_images,
        plot_keypoints as plot_keypoints,
        plot_matches as plot_matches,
    )

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
    "match": "two_photos",
    "PhotoMatches": "two_photos",
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
