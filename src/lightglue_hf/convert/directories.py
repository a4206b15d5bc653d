"""Checkpoint files of every project as directories for `from_pretrained`, to the Hub, and back.

What is made is made beside its place, and moved there when it is whole, loads and, if asked for, computes what the
original computes: a conversion that fails leaves nothing behind.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import AutoConfig, AutoModel

from .. import __version__
from ..configuration_lightglue import LightGlueConfig
from ..detectors.superpoint import SuperPointConfig
from ..image_processing_lightglue import LightGlueImageProcessor
from .state_dicts import (
    PLAIN_SUPERPOINT,
    convert_lightglue_state_dict,
    convert_superpoint_state_dict,
    is_superpoint,
    is_superpoint_open,
    lightglue_to_cvg,
    load_pickle,
    settings_other_than,
    superpoint_to_magic_leap,
)
from .verification import lightglue_difference, superpoint_difference

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
TOLERANCE = 1e-4  # of --verify, in probabilities


class Published(NamedTuple):
    """A file that others published. The digest is None where no two sources were found that agree on it."""

    url: str
    sha256: str | None
    licence: str
    trained_on: str  # or, of a detector, its name
    base_model: str | None = None  # on the Hub


CVG = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/"
PUBLISHED = {
    "superpoint_lightglue.pth": Published(
        f"{CVG}superpoint_lightglue.pth",
        "6ff7040d0a497fc6639337946d7538dae07428c18f77a067a0b5a960e7cc551a",
        "apache-2.0",
        "SuperPoint",
        "ETH-CVG/lightglue_superpoint",
    ),
    "disk_lightglue.pth": Published(
        f"{CVG}disk_lightglue.pth",
        "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
        "apache-2.0",
        "DISK",
        "ETH-CVG/lightglue_disk",
    ),
    "aliked_lightglue.pth": Published(
        f"{CVG}aliked_lightglue.pth",
        "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        "apache-2.0",
        "ALIKED",
    ),
    "sift_lightglue.pth": Published(
        f"{CVG}sift_lightglue.pth",
        "5b52b8d9982d43532dc042606b346bb9594c9f5a4bd6f64362c63866287b4ac0",
        "apache-2.0",
        "SIFT",
    ),
    "doghardnet_lightglue.pth": Published(f"{CVG}doghardnet_lightglue.pth", None, "apache-2.0", "DoGHardNet"),
    "superpoint_v1.pth": Published(
        "https://github.com/magicleap/SuperPointPretrainedNetwork/raw/master/superpoint_v1.pth",
        "52b6708629640ca883673b5d5c097c4ddad37d8048b33f09c8ca0d69db12c40e",
        "superpoint-noncommercial",
        "SuperPoint",
        "magic-leap-community/superpoint",
    ),
    "superpoint_v6_from_tf.pth": Published(
        "https://github.com/rpautrat/SuperPoint/raw/master/weights/superpoint_v6_from_tf.pth",
        None,
        "mit",
        "SuperPoint-Open",
    ),
}
MAGIC_LEAP_LICENCE = "https://github.com/magicleap/SuperPointPretrainedNetwork/blob/master/LICENSE"

# what a matcher and its SuperPoint are run with in cvg's demonstrations, and in transformers' conversion
MATCHING = {"keypoint_threshold": 0.0005, "max_keypoints": 2048}
LONGEST_EDGE = 1024
# the settings that tensors do not show, read from the configuration of a directory
LIGHTGLUE_SETTINGS = (
    "depth_confidence filter_threshold width_confidence pruning_min_keypoints hidden_act attention_dropout"
    " initializer_range"
).split()
SUPERPOINT_SETTINGS = (
    "keypoint_threshold max_keypoints nms_radius border_removal_distance remove_far_borders descriptor_grid"
    " min_pooled_channels initializer_range"
).split()
# our own fields of the configurations, and the values that mean what stock transformers does anyway
STOCK_LIGHTGLUE = {"use_keypoint_detector": True, "add_scale_ori": False, "pruning_min_keypoints": -1}
STOCK_PROCESSOR = {
    "do_resize": True,
    "size": {"height": 480, "width": 640},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_grayscale": True,
}


class Source(NamedTuple):
    """A checkpoint as it was read: its tensors in their own names, settings where it has any, and what it is."""

    name: str
    sha256: str
    published: Published | None
    tensors: dict[str, Tensor]
    cvg_names: str  # "current" or "released": the spelling to give back
    config: Any = None
    processor: LightGlueImageProcessor | None = None


# ---------------------------------------------------------------------------------------------------------------------
# There


def convert(
    source: str,
    out: str | Path,
    superpoint: str | None = None,
    verify: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Make a directory that `AutoModel.from_pretrained` loads from a checkpoint of any project.

    Args:
        source: a file, an http(s) URL, or a directory with config.json and model.safetensors: a LightGlue, with its
            detector or without, or a SuperPoint. Pickles are read with `weights_only=True`.
        out: the directory to write; it must not exist.
        superpoint: likewise, the detector that a matcher is to be saved with.
        verify: also hold the written model against the original's mathematics, on random features.
        log: is given the lines to print.

    Raises:
        OSError: a file or URL that cannot be read, a directory that cannot be written.
        ValueError: no such checkpoint, tensors missing, unexpected, or with NaN or Inf, listed; a published file whose
            digest differs; with `verify` a difference above 1e-4.
    """
    with replacing(Path(out)) as (temporary, directory):
        read = read_source(source, temporary, log)
        matcher, detector, left_out = split(read.tensors)
        for part, names in left_out.items():
            log(f"left out: {len(names)} tensors of {part}, which is no SuperPoint")
        detector_source = read
        if superpoint is not None:
            if not matcher or detector:
                raise ValueError(f"--superpoint: {read.name} is or has a detector already")
            detector_source = read_source(superpoint, temporary, log)
            _, detector, _ = split(detector_source.tensors)
            if not detector:
                raise ValueError(f"{detector_source.name} is no SuperPoint")

        directory.mkdir()
        config, tensors = converted(matcher, detector, read.config, detector_source.config)
        write_model(directory, config, tensors, {"cvg_names": read.cvg_names})
        if matcher:
            processor = read.processor or LightGlueImageProcessor(size={"longest_edge": LONGEST_EDGE})
            processor.save_pretrained(directory)
        else:
            write_json(directory / PROCESSOR, {**STOCK_PROCESSOR, "image_processor_type": "SuperPointImageProcessor"})
        model = AutoModel.from_pretrained(directory)  # which wants every weight, no more and no less
        numbers = {"layers": getattr(config, "num_hidden_layers", None), "parameters": model.num_parameters()}
        if matcher and not detector:
            log("the matcher alone: it takes keypoints and descriptors, not images (give --superpoint for a detector)")
        if verify:
            numbers["difference"] = largest_difference(model, config, tensors, matcher, detector)
            log(f"largest difference from the original's mathematics: {numbers['difference']:.1e}")
            if not numbers["difference"] <= TOLERANCE:
                raise ValueError(
                    f"{read.name}: the converted model differs from the original by more than {TOLERANCE:.0e}"
                )
        write_card(directory, config, read, detector_source if detector else None, matcher, detector, numbers)
    log(f"wrote {out}")


def converted(
    matcher: dict[str, Tensor], detector: dict[str, Tensor], matcher_config: Any, detector_config: Any
) -> tuple[Any, dict[str, Tensor]]:
    """The configuration and tensors of a matcher, a detector or both, in our names."""
    if detector:
        found = getattr(detector_config, "keypoint_detector_config", detector_config)
        detection: dict[str, Any] = MATCHING if matcher else {}
        if found is not None:
            detection = {name: getattr(found, name) for name in SUPERPOINT_SETTINGS}
        superpoint_config, superpoint_tensors = convert_superpoint_state_dict(detector, **detection)
        if not matcher:
            return superpoint_config, superpoint_tensors
    settings: dict[str, Any] = {}
    if matcher_config is not None:
        settings = {name: getattr(matcher_config, name) for name in LIGHTGLUE_SETTINGS}
    if not detector:
        return convert_lightglue_state_dict(matcher, **settings)
    settings |= {"use_keypoint_detector": True, "keypoint_detector_config": superpoint_config}
    config, tensors = convert_lightglue_state_dict(matcher, **settings)
    if config.input_dim != superpoint_config.descriptor_decoder_dim:
        raise ValueError(
            f"the matcher takes {config.input_dim}-dimensional descriptors: "
            f"it was not made for a SuperPoint of {superpoint_config.descriptor_decoder_dim}"
        )
    config.input_dim = None  # the detector's
    return config, tensors | {f"keypoint_detector.{name}": tensor for name, tensor in superpoint_tensors.items()}


def split(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, list[str]]]:
    """The tensors of the matcher and of the SuperPoint, and the names of other detectors', which are left out.

    A detector is called `keypoint_detector` by transformers and `extractor` by glue-factory.
    """
    matcher, detector, left_out = dict(tensors), {}, {}
    for part in ("keypoint_detector", "extractor"):
        found = {name: matcher.pop(name) for name in tensors if name.startswith(f"{part}.")}
        own = {name.removeprefix(f"{part}."): tensor for name, tensor in found.items()}
        if is_superpoint(own):
            detector = own
        elif found:
            left_out[part] = sorted(found)
    if is_superpoint(matcher) and not detector:
        return {}, matcher, left_out
    return matcher, detector, left_out


def largest_difference(
    model: Any,
    config: Any,
    tensors: dict[str, Tensor],
    matcher: dict[str, Tensor],
    detector: dict[str, Tensor],
) -> float:
    """Between the model and the mathematics of the tensors that were read, in cvg's and Magic Leap's names."""
    differences = []
    if matcher:
        if "positional_encoder.projector.weight" in matcher:  # transformers' names
            matcher = lightglue_to_cvg(config, tensors)
        differences.append(lightglue_difference(model, matcher))
    if detector:
        superpoint = model.keypoint_detector if matcher else model
        if "encoder.conv_blocks.0.conv_a.weight" in detector:  # transformers' names
            detector = superpoint_to_magic_leap(superpoint.config, superpoint.state_dict())
        differences.append(superpoint_difference(superpoint, detector))
    return max(differences)


# ---------------------------------------------------------------------------------------------------------------------
# And back


def convert_back(
    source: str | Path,
    out: str | Path,
    to: str,
    superpoint: str | Path | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Give a directory's tensors back in another project's form, bit for bit.

    Args:
        source: a directory with config.json and model.safetensors.
        out: a .pth or .safetensors file for "cvg", a directory for "transformers"; it must not exist.
        to: "cvg": the matcher in cvg's names, those that it came with, or a SuperPoint alone in Magic Leap's;
            "transformers": a directory that transformers loads without this package.
        superpoint: for "cvg", the file to write a matcher's SuperPoint to.
        log: is given the lines to print.

    Raises:
        OSError: as in [`convert`].
        ValueError: what the other project cannot hold, listed.
    """
    source, out = Path(source), Path(out)
    config, tensors, metadata = read_directory(source)
    if to == "transformers":
        if superpoint is not None:
            raise ValueError("--superpoint: transformers keeps a detector and its matcher in one directory")
        back_to_transformers(source, out, config, tensors, log)
        return
    matcher, detector, _ = split(tensors)
    if superpoint is not None and not (matcher and detector):
        raise ValueError(f"--superpoint: {source} is not a matcher with its detector")
    if superpoint is not None and Path(superpoint) == out:
        raise ValueError(f"--superpoint: {out} is where the matcher is to be written")
    files = {}
    if detector and (superpoint is not None or not matcher):
        detector_config = config.keypoint_detector_config if matcher else config
        files[Path(superpoint or out)] = superpoint_to_magic_leap(detector_config, detector)
    if matcher:
        files[out] = lightglue_to_cvg(config, tensors, current_names=metadata.get("cvg_names") == "current")
    write_tensors(files, log)
    if not matcher:
        return
    if detector and superpoint is None:
        log("left out: the detector (give --superpoint FILE to write it)")
    settings = {
        "features": None,
        "input_dim": config.num_input_features,
        "descriptor_dim": config.descriptor_dim,
        "n_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "add_scale_ori": config.add_scale_ori,
    }
    log(f"for LightGlue({', '.join(f'{name}={value}' for name, value in settings.items())})")


def back_to_transformers(
    source: Path, out: Path, config: Any, tensors: dict[str, Tensor], log: Callable[[str], None]
) -> None:
    detector = getattr(config, "keypoint_detector_config", config)
    faults = settings_other_than(detector, PLAIN_SUPERPOINT)
    matcher = config is not detector
    if matcher:
        faults += settings_other_than(config, STOCK_LIGHTGLUE)
        if config.num_input_features != detector.descriptor_decoder_dim:
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
    if set(stock["size"]) != {"height", "width"}:
        stock["size"] = STOCK_PROCESSOR["size"]
        log("transformers resizes every image to one size: 480 x 640 instead of a longest edge")
    with replacing(out) as (_, directory):
        directory.mkdir()
        write_json(directory / CONFIG, values)
        write_json(directory / PROCESSOR, stock)
        write_safetensors(directory / WEIGHTS, tensors, {"format": "pt"})
        AutoModel.from_pretrained(directory)  # which wants every weight, no more and no less
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


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_source(source: str, temporary: Path, log: Callable[[str], None]) -> Source:
    """Read a file, URL or directory, print its digest, and recognise what others published."""
    path, config, processor = Path(source), None, None
    metadata: dict[str, str] = {}
    name = path.name
    if urlparse(source).scheme in ("http", "https"):
        name = Path(urlparse(source).path).name
        path = download(source, temporary / f"download-{name}")
    if path.is_dir():
        config, _, metadata = read_directory(path)
        if config.model_type == "lightglue" and (path / PROCESSOR).exists():
            processor = LightGlueImageProcessor.from_pretrained(path)
        path = path / WEIGHTS
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    log(f"{name}: sha256 {sha256}")
    published = recognise(name, sha256, log)
    tensors = read_tensors(path, log)
    todays = any(key.startswith(("transformers.", "matcher.transformers.")) for key in tensors)
    cvg_names = metadata.get("cvg_names", "current" if todays else "released")
    return Source(name, sha256, published, tensors, cvg_names, config, processor)


def recognise(name: str, sha256: str, log: Callable[[str], None]) -> Published | None:
    """The published file that this is, by its digest or else its name.

    Raises:
        ValueError: it has the name of a published file, and not its digest.
    """
    by_digest = {published.sha256: file for file, published in PUBLISHED.items() if published.sha256}
    if sha256 in by_digest:
        log(f"{name}: the published {by_digest[sha256]}")
        return PUBLISHED[by_digest[sha256]]
    namesake = PUBLISHED.get(name)
    if namesake is not None and namesake.sha256 is not None:
        raise ValueError(
            f"{name}: not the published file of that name, whose sha256 is {namesake.sha256}: a broken download? "
            f"Get it from {namesake.url}, or rename it if it is another"
        )
    if namesake is not None:
        log(f"{name}: the digest of the published file is not known, so it was not compared")
    return namesake


def download(url: str, path: Path) -> Path:
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise OSError(f"{url}: offline mode is enabled, URLs are not fetched")
    try:
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise OSError(f"{url}: {error}") from error
    return path


def read_tensors(path: Path, log: Callable[[str], None]) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a pickle, of which a training's other entries are left out."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: broken safetensors: {error}") from error
    content = load_pickle(str(path))
    if isinstance(content, dict) and isinstance(content.get("model"), dict):  # a checkpoint of glue-factory's training
        if others := sorted(str(name) for name in content if name != "model"):
            log(f"left out, of training only: {', '.join(others)}")
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: a {type(content).__name__}, and not a dictionary of tensors")
    strangers = sorted(str(name) for name, value in content.items() if not isinstance(value, Tensor))
    if strangers or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path}: a dictionary with more than tensors: {', '.join(strangers)}")
    return dict(content)


def read_directory(directory: Path) -> tuple[Any, dict[str, Tensor], dict[str, str]]:
    """The configuration, tensors and metadata of a saved LightGlue or SuperPoint."""
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: there is no {name}")
    config = AutoConfig.from_pretrained(directory)
    if not isinstance(config, (LightGlueConfig, SuperPointConfig)):
        raise ValueError(f"{directory} is a {config.model_type}, neither a LightGlue nor a SuperPoint")
    try:
        with safe_open(directory / WEIGHTS, "pt") as file:
            return config, {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{directory / WEIGHTS}: broken safetensors: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@contextmanager
def replacing(out: Path) -> Iterator[tuple[Path, Path]]:
    """A temporary directory and a path in it, where what is to become `out` is made; without an error it does."""
    if out.exists():
        raise FileExistsError(f"{out} exists already")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"the directory of {out} does not exist")
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as temporary:
        path = Path(temporary) / out.name
        yield Path(temporary), path
        os.replace(path, out)


def write_model(directory: Path, config: Any, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config.architectures = [
        "LightGlueForKeypointMatching" if config.model_type == "lightglue" else "SuperPointForKeypointDetection"
    ]
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(directory)
    write_safetensors(directory / WEIGHTS, tensors, {"format": "pt", **metadata})


def write_tensors(files: dict[Path, dict[str, Tensor]], log: Callable[[str], None]) -> None:
    with ExitStack() as stack:
        for out, tensors in files.items():
            if out.suffix not in (".pth", ".safetensors"):
                raise ValueError(f"cannot tell how to write {out}: the name must end in .pth or .safetensors")
            _, path = stack.enter_context(replacing(out))
            if out.suffix == ".pth":
                torch.save(tensors, path)
            else:
                write_safetensors(path, tensors)
    for out in files:
        log(f"wrote {out}")


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    # save_file would write a file that others may not read
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_card(
    directory: Path,
    config: Any,
    source: Source,
    detector_source: Source | None,
    matcher: dict[str, Tensor],
    detector: dict[str, Tensor],
    numbers: dict[str, Any],
) -> None:
    """README.md, from the template beside this file."""
    matcher_licence = source.published.licence if source.published else "unknown"
    detector_licence = None
    if detector_source is not None:
        if detector_source.published and (not matcher or detector_source is not source):
            detector_licence = detector_source.published.licence
        else:  # of unknown origin: most files of Magic Leap's layout are Magic Leap's
            detector_licence = "mit" if is_superpoint_open(detector) else "superpoint-noncommercial"
    licences = sorted({licence for licence in (matcher_licence if matcher else None, detector_licence) if licence})
    restrictive = "superpoint-noncommercial" in licences
    card = huggingface_hub.ModelCard.from_template(
        huggingface_hub.ModelCardData(
            license="other" if restrictive else "unknown" if "unknown" in licences else licences,  # type: ignore[arg-type]
            license_name="superpoint-noncommercial" if restrictive else None,
            license_link=MAGIC_LEAP_LICENCE if restrictive else None,
            library_name="transformers",
            pipeline_tag="keypoint-matching" if matcher else "keypoint-detection",
            tags=["keypoint-matching", "image-matching", "lightglue"] if matcher else ["keypoint-detection"],
            base_model=source.published.base_model if source.published else None,
        ),
        template_path=str(Path(__file__).with_name("model_card_template.md")),
        config=config,
        source=source,
        detector_source=detector_source,
        has_matcher=bool(matcher),
        matcher_licence=matcher_licence,
        detector_licence=detector_licence,
        magic_leap_licence=MAGIC_LEAP_LICENCE,
        version=__version__,
        **numbers,
    )
    card.save(directory / "README.md")
