"""Keypoint detectors: for each a file of its configuration and one of its model, and here the table of them.

transformers' Auto classes look configurations up without importing models, hence two files.
"""

from importlib import import_module
from typing import Any, NamedTuple


class DetectorClasses(NamedTuple):
    """Where a detector's classes are: modules of this package, and names within them."""

    configuration_module: str
    configuration: str
    model_module: str
    model: str


DETECTORS = {
    "superpoint": DetectorClasses(
        "configuration_superpoint", "SuperPointConfig", "superpoint", "SuperPointForKeypointDetection"
    ),
    "aliked": DetectorClasses("configuration_aliked", "ALIKEDConfig", "aliked", "ALIKEDForKeypointDetection"),
    "disk": DetectorClasses("configuration_disk", "DISKConfig", "disk", "DISKForKeypointDetection"),
    "xfeat": DetectorClasses("configuration_xfeat", "XFeatConfig", "xfeat", "XFeatForKeypointDetection"),
    "sift": DetectorClasses("configuration_sift", "SIFTConfig", "sift", "SIFTForKeypointDetection"),
    "doghardnet": DetectorClasses(
        "configuration_doghardnet", "DoGHardNetConfig", "doghardnet", "DoGHardNetForKeypointDetection"
    ),
}
"""By `model_type`; none of them is imported before it is asked for."""


def configuration_class(model_type: str) -> Any:
    """The configuration of a detector of the table, or `None`."""
    if model_type not in DETECTORS:
        return None
    classes = DETECTORS[model_type]
    return getattr(import_module(f".{classes.configuration_module}", __package__), classes.configuration)


def model_class(config: Any) -> Any:
    """The model of a configuration of the table, or `None`."""
    own = configuration_class(config.model_type)
    if own is None or not isinstance(config, own):
        return None
    classes = DETECTORS[config.model_type]
    return getattr(import_module(f".{classes.model_module}", __package__), classes.model)
