"""Directories for `from_pretrained`: the model, its settings and its card."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..detectors import model_class
from .detectors import DETECTOR_KINDS
from .published import MAGIC_LEAP_LICENCE, NON_COMMERCIAL
from .reading import WEIGHTS, Checkpoint
from .state_dicts import is_superpoint_open


def write_model(directory: Path, config: Any, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    own = model_class(config)
    config.architectures = [own.__name__ if own else "LightGlueForKeypointMatching"]
    if tensors:
        config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(directory)
    write_safetensors(directory / WEIGHTS, tensors, {"format": "pt", **metadata})


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    # save_file would write a file that others may not read
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_card(
    directory: Path,
    config: Any,
    source: Checkpoint,
    detector_source: Checkpoint | None,
    numbers: dict[str, Any],
) -> None:
    """README.md, from the template beside this file.

    Args:
        source: of the matcher, or of a detector alone.
        detector_source: of the detector, where there is one that has weights; it may be `source`.
        numbers: what the template prints of the model.
    """
    has_matcher = config.model_type == "lightglue"
    detector_config = None
    if not has_matcher or config.use_keypoint_detector:
        detector_config = config.keypoint_detector_config if has_matcher else config
    kind = None if detector_config is None else DETECTOR_KINDS.get(detector_config.model_type)
    matcher_licence = source.published.licence if source.published else "unknown"
    detector_licence = None
    if detector_source is not None:
        detector_licence = licence_of_detector(detector_config, detector_source, has_matcher, source)
    licences = sorted({licence for licence in (matcher_licence if has_matcher else None, detector_licence) if licence})
    restrictive = NON_COMMERCIAL in licences
    card = huggingface_hub.ModelCard.from_template(
        huggingface_hub.ModelCardData(
            license="other" if restrictive else "unknown" if "unknown" in licences else licences,  # type: ignore[arg-type]
            license_name=NON_COMMERCIAL if restrictive else None,
            license_link=MAGIC_LEAP_LICENCE if restrictive else None,
            library_name="transformers",
            pipeline_tag="keypoint-matching" if has_matcher else "keypoint-detection",
            tags=["keypoint-matching", "image-matching", "lightglue"] if has_matcher else ["keypoint-detection"],
            base_model=source.published.base_model if source.published else None,
        ),
        template_path=str(Path(__file__).with_name("model_card_template.md")),
        config=config,
        source=source,
        detector_source=detector_source,
        detector_kind=kind,
        has_matcher=has_matcher,
        matcher_licence=matcher_licence,
        detector_licence=detector_licence,
        magic_leap_licence=MAGIC_LEAP_LICENCE,
        version=__version__,
        **numbers,
    )
    card.save(directory / "README.md")


def licence_of_detector(config: Any, detector_source: Checkpoint, has_matcher: bool, source: Checkpoint) -> str:
    """The licence of a detector's weights, presumed from their layout where the file is of unknown origin."""
    if detector_source.published and (not has_matcher or detector_source.sha256 != source.sha256):
        return detector_source.published.licence
    if config.model_type != "superpoint":
        return "unknown"
    open_layout = is_superpoint_open(detector_source.tensors) or config.descriptor_grid == "centred"
    return "mit" if open_layout else NON_COMMERCIAL  # most files of Magic Leap's layout are Magic Leap's
