"""Checkpoints as they are found: files, URLs and directories, whose sizes are looked at before the numbers."""

import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig

from ..configuration_lightglue import LightGlueConfig
from ..features import KeypointDetectorConfig
from ..image_processing_lightglue import LightGlueImageProcessor
from ..utils.digests import sha256_of
from ..utils.files import json_object, regular_file
from .downloads import LARGEST_FILE, download
from .published import PUBLISHED, PublishedFile

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
# where trainings and publications keep the tensors, in files with more than those
NESTED = ("model", "state_dict", "extractor")


class Checkpoint(NamedTuple):
    """A checkpoint as it was read: its tensors in their own names, settings where it has any, and what it is."""

    name: str
    sha256: str
    published: PublishedFile | None
    tensors: dict[str, Tensor]
    cvg_names: str  # "current" or "released": the spelling to give back
    config: Any = None
    processor: LightGlueImageProcessor | None = None


def read_source(source: str, log: Callable[[str], None]) -> Checkpoint:
    """Read a file, URL or directory, print its digest, and recognise what others published.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than what is read.
        ValueError: no such checkpoint.
    """
    if urlparse(source).scheme in ("http", "https"):
        name = Path(urlparse(source).path).name or "download"
        if constants.HF_HUB_OFFLINE:
            raise OSError(f"{source}: offline mode is enabled, URLs are not fetched")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            download(source, path)
            return read_file(path, log)
    path = Path(source)
    if not path.is_dir():
        return read_file(path, log)
    config, tensors, metadata = read_directory(path)
    processor = None
    if isinstance(config, LightGlueConfig) and (path / PROCESSOR).exists():
        json_object(path / PROCESSOR)
        processor = LightGlueImageProcessor.from_pretrained(path)
    sha256 = digest(path / WEIGHTS, path.name, log)
    return Checkpoint(path.name, sha256, None, tensors, spelling(tensors, metadata), config, processor)


def read_file(path: Path, log: Callable[[str], None]) -> Checkpoint:
    regular_file(path, LARGEST_FILE)
    sha256 = digest(path, path.name, log)
    published = recognise(path.name, sha256, log)
    tensors = read_tensors(path, log)
    return Checkpoint(path.name, sha256, published, tensors, spelling(tensors, {}))


def digest(path: Path, name: str, log: Callable[[str], None]) -> str:
    sha256 = sha256_of(path)
    log(f"{name}: sha256 {sha256}")
    return sha256


def spelling(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    current = any(name.startswith(("transformers.", "matcher.transformers.")) for name in tensors)
    return metadata.get("cvg_names", "current" if current else "released")


def recognise(name: str, sha256: str, log: Callable[[str], None]) -> PublishedFile | None:
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


def read_directory(directory: Path) -> tuple[Any, dict[str, Tensor], dict[str, str]]:
    """The configuration, tensors and metadata of a saved LightGlue or detector.

    Raises:
        OSError: no such files.
        ValueError: of another model, or broken.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).exists():
            raise FileNotFoundError(f"{directory}: there is no {name}")
    regular_file(directory / WEIGHTS, LARGEST_FILE)
    json_object(directory / CONFIG)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if not isinstance(config, (LightGlueConfig, KeypointDetectorConfig)):
        raise ValueError(f"{directory} is a {config.model_type}, neither a LightGlue nor a detector of this package")
    return config, *read_safetensors(directory / WEIGHTS)


def read_tensors(path: Path, log: Callable[[str], None]) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a pickle, of which a training's other entries are left out."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    content = load_pickle(path)
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            if others := sorted(str(name) for name in content if name != key):
                log(f"left out, of training only: {', '.join(others)}")
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: a {type(content).__name__}, and not a dictionary of tensors")
    not_tensors = sorted(str(name) for name, value in content.items() if not is_plain(value))
    if not_tensors or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path}: a dictionary with more than tensors: {', '.join(not_tensors)}")
    check_storage(path, content)
    return dict(content)


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor with numbers of its own, neither sparse nor quantised nor without any."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata; the format itself has no tensor larger than its part of the file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: broken safetensors: {error}") from error


def load_pickle(path: str | Path) -> Any:
    """What another project pickled, if that is tensors and plain values; code in it is refused, never run.

    Raises:
        OSError: there is no such file, or no regular one, or it is larger than what is read.
        ValueError: no pickle of that kind, or a compressed one; the file is named, and the code that it wants to run.
    """
    path = regular_file(path, LARGEST_FILE)
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it wants to run {found[1]}" if found else "it is no pickle of tensors"
        raise ValueError(f"{path}: refused, unsupported: {reason}") from error
    except Exception as error:  # broken data makes the unpickler raise anything: EOFError, KeyError, RuntimeError...
        raise ValueError(f"{path}: no pickle, or a broken one: {error}") from error


def check_archive(path: Path) -> None:
    """Raise a ValueError of a zip archive that becomes larger when it is read; torch.save makes none such."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: no pickle, or a broken one: {error}") from error
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError(f"{path}: refused: a compressed archive, which torch.save does not write")


def check_storage(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise a ValueError where a few numbers stand for many: any computation would write them all out."""
    total = 0
    for name, tensor in tensors.items():
        wanted, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if wanted > there:
            raise ValueError(
                f"{path}: refused: {name} has the shape {tuple(tensor.shape)}, {wanted:,} bytes, and {there:,} of them"
            )
        total += wanted
    if total > 2 * path.stat().st_size:  # tied weights are in two places, not in many
        raise ValueError(f"{path}: refused: {total:,} bytes of tensors in {path.stat().st_size:,} bytes")
