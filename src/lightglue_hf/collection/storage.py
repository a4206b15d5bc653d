"""The files of a collection: features.h5 and matches.h5 in hloc's layout, and pairs.txt.

**features.h5** has a group for each photo, by its name: `keypoints` `(n, 2)` float32, pixels of the photo as stored,
(x, y), centre of the first pixel = (0, 0), with the attribute `uncertainty` in pixels; `descriptors` `(d, n)` float16;
`scores` `(n,)` float16; `image_size` `(2,)` int32 (width, height); and `scales` and `oris` `(n,)` float32 of detectors
that have them. hloc's own float16 keypoints are read, too; they turn 3001.7 into 3002.

**matches.h5** has a group for each pair, `A/B`, where the names have "-" for "/": `matches0` `(n,)` int32, the index
of each keypoint's match in the other photo or -1, and `matching_scores0` `(n,)` float16. hloc's own int16 indices,
which end at 32,767, are read, too.

Groups that are made here also have the attribute `made_from`: of a photo its file's size, time and digest, and of a
pair the digests of both photos. By it what was made from another photo of the same name is seen, and made again.

**pairs.txt** has two names a line.

An HDF5 file that is being written to when its process is killed may be lost as a whole. So a file here *grows by
parts*: each is written whole, in one move, into the directory `FILE.parts`; in the end all are copied into a new file,
which takes the place of the old one in one move. What a killed run finished stays, and is not done again.

Source of the layout: hloc@abb2520, `hloc/extract_features.py`, `hloc/match_features.py`, `hloc/utils/parsers.py`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import InputError
from ..utils.files import working_directory, write_atomically
from ..utils.optional import import_optional

Arrays = dict[str, np.ndarray]
Settings = dict[str, Any]

FEATURES, MATCHES = "keypoints", "matches0"
"""What every group of features.h5 and of matches.h5 has, and no other group."""

SETTINGS = "lightglue_hf"
"""Attribute of a file: what made it, as JSON."""


MADE_FROM = "made_from"
"""Attribute of a group: what it was made from."""

Current = Callable[[str, str], bool]
"""Whether a group of this name that was made from this is still what would be made."""


def pair_key(name0: str, name1: str) -> str:
    """hloc's name of the group of a pair."""
    return "/".join(name.replace("/", "-") for name in (name0, name1))


# ---------------------------------------------------------------------------------------------------------------------
# pairs.txt


def write_pairs(path: str | os.PathLike[str], pairs: Iterable[tuple[str, str]]) -> None:
    """Write pairs of names, one a line; whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{name0} {name1}\n" for name0, name1 in pairs)
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_pairs(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Read pairs of names. A pair that comes again, also the other way round, is left out.

    Raises:
        InputError: a line without exactly two different names; its number is given. No pairs.
    """
    pairs: dict[tuple[str, str], None] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8: {error}") from None
    for number, line in enumerate(lines, start=1):
        names = line.split()
        if not names or names[0].startswith("#"):
            continue
        if len(names) != 2 or names[0] == names[1]:
            raise InputError(f"{path}, line {number}: two different names without spaces are needed")
        if (names[1], names[0]) not in pairs:
            pairs[names[0], names[1]] = None
    if not pairs:
        raise InputError(f"{path} lists no pairs")
    return list(pairs)


# ---------------------------------------------------------------------------------------------------------------------
# HDF5


def open_hdf5(path: str | os.PathLike[str]) -> Any:
    """An `h5py.File` for reading.

    Raises:
        MissingPackageError: h5py is not installed.
        InputError: it is not there, with what to do if its parts are, or no HDF5 file.
    """
    h5py = import_optional("h5py", "collections")
    if not Path(path).exists() and parts_of(path).exists():
        raise InputError(f"{path} is not finished: run the command that makes it again, it goes on where it stopped")
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} is no HDF5 file, or a broken one: {error}") from error


def parts_of(path: str | os.PathLike[str]) -> Path:
    """The directory in which a file grows."""
    return Path(f"{os.fspath(path)}.parts")


def group_names(group: Any, dataset: str, prefix: str = "") -> Iterator[str]:
    """The full names of the groups in an open file that have such a data set: of photos, or of pairs."""
    for name, item in group.items():
        if has_dataset(item, dataset):
            yield prefix + name
        elif hasattr(item, "items"):
            yield from group_names(item, dataset, f"{prefix}{name}/")


def has_dataset(item: Any, dataset: str) -> bool:
    """Whether something in an open file is a group with such a data set; a folder of photos may have its name."""
    return hasattr(item, "items") and dataset in item and not hasattr(item[dataset], "items")


def read_names(path: str | os.PathLike[str], dataset: str = FEATURES) -> list[str]:
    """The names of the photos in features.h5, or with `MATCHES` of the pairs in matches.h5, in order.

    Raises:
        InputError: see [`open_hdf5`]; or there are none.
    """
    with open_hdf5(path) as file:
        names = sorted(group_names(file, dataset))
    if not names:
        raise InputError(f"{path} has no {'features' if dataset == FEATURES else 'matches'}")
    return names


def made_from(group: Any) -> str | None:
    """What a group says it was made from, if it does."""
    found = group.attrs.get(MADE_FROM)
    return found.decode() if isinstance(found, bytes) else found


def read_settings(path: str | os.PathLike[str]) -> Settings | None:
    """What made a file; `None` for one of another program."""
    with open_hdf5(path) as file:
        return settings_of(file)


def settings_of(file: Any) -> Settings | None:
    return json.loads(file.attrs[SETTINGS]) if SETTINGS in file.attrs else None


def read_matches(path: str | os.PathLike[str], name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
    """The matches of a pair, whichever of the two stands first in the file.

    Returns:
        `(m, 2)` int64, indices of keypoints of the first and second photo; and their scores, `(m,)` float32, 1 where
        the file has none.

    Raises:
        InputError: the file has no such pair.
    """
    with open_hdf5(path) as file:
        return matches_of(file, name0, name1)


def matches_of(file: Any, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
    """[`read_matches`] from an open file."""
    for key, turned in ((pair_key(name0, name1), False), (pair_key(name1, name0), True)):
        if key in file:
            group = file[key]
            partners = group[MATCHES][()].astype(np.int64)
            (matched,) = np.nonzero(partners >= 0)
            matches = np.stack([matched, partners[matched]], 1)
            scores = group["matching_scores0"][()] if "matching_scores0" in group else np.ones(len(partners))
            scores = scores.astype(np.float32)[matched]
            return matches[:, ::-1] if turned else matches, scores
    raise InputError(f"{file.filename} has no matches of {name0} and {name1}")


# ---------------------------------------------------------------------------------------------------------------------
# Growing by parts


class Store:
    """An HDF5 file that grows; see [`growing`].

    Args:
        path: of the file.
        dataset: that its groups have.
        settings: what makes it.
        current: see [`growing`].

    Attributes:
        done: names of the groups that are there already, and current.
        outdated: names of those that are there and are not; they go when the parts are merged.
    """

    def __init__(self, path: Path, dataset: str, settings: Settings, current: Current | None = None) -> None:
        self.path, self.parts, self.dataset, self.settings = path, parts_of(path), dataset, settings
        self.current = current
        self.done: set[str] = set()
        self.outdated: set[str] = set()
        for file in self.files():
            with open_hdf5(file) as source:
                refuse_other_settings(file, settings_of(source), settings)
                names = set(group_names(source, dataset))
                current_names = {name for name in names if self.is_current(name, source)}
            if file != path and current_names <= self.done:
                file.unlink()  # it adds nothing: a run merged it, and was killed before it removed it
            self.done |= current_names
            self.outdated |= names - current_names
        self.outdated -= self.done  # made again by a run that was killed

    def is_current(self, name: str, file: Any) -> bool:
        """Whether the group of an open file is made from what is there now, as far as it says."""
        made = None if self.current is None else made_from(file[name])
        return made is None or self.current is None or self.current(name, made)

    def files(self) -> list[Path]:
        """The files that hold groups: the file as it was, and its parts."""
        return [self.path] * self.path.exists() + sorted(self.parts.glob("*.h5"))

    def add(self, groups: Mapping[str, Arrays]) -> None:
        """Write a part with these groups, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        write_part(self.parts, groups, self.settings)

    def merge(self) -> None:
        """Make one file of all; what stood there stays until it is whole.

        Raises:
            OSError: it cannot be written.
        """
        h5py = import_optional("h5py", "collections")
        files = self.files()
        if files != [self.path] or self.outdated:
            needed = sum(file.stat().st_size for file in files)
            if shutil.disk_usage(self.parts).free < needed:
                problem = f"{os.strerror(errno.ENOSPC)}, {needed:,} bytes are needed"
                raise OSError(f"{self.path} cannot be written: {problem}")
            merged = self.parts / ".merged"
            try:
                with h5py.File(merged, "w") as target:
                    target.attrs[SETTINGS] = json.dumps(self.settings, sort_keys=True)
                    there: set[str] = set()
                    for file in files:
                        with h5py.File(file, "r") as source:
                            for name in group_names(source, self.dataset):
                                # a part may have been written twice
                                if name not in there and self.is_current(name, source):
                                    source.copy(name, target, name)
                                    there.add(name)
                _to_disk(merged)
                merged.replace(self.path)
            except (OSError, RuntimeError) as error:  # HDF5's, for a full disk
                raise OSError(f"{self.path} cannot be written: {error}") from error
            finally:
                merged.unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)


@contextmanager
def growing(
    path: str | os.PathLike[str], dataset: str, settings: Settings, current: Current | None = None
) -> Iterator[Store]:
    """A file to add groups to, which becomes one at the end; after an error its parts stay, to go on from.

    Args:
        path: features.h5 or matches.h5.
        dataset: `FEATURES` or `MATCHES`.
        settings: all that the groups depend on: a file of others is refused.
        current: says of a group whether it is still what would be made; others are as if they were not there. All
            are by default, and those that do not say what they were made from.

    Raises:
        FileExistsError: another process is at it.
        InputError: what is there was made otherwise; the difference is named.
        OSError: it cannot be written.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise InputError(f"the directory of {path} does not exist")
    if path.is_dir():
        raise InputError(f"{path} is a directory")
    new = not parts_of(path).exists()
    with working_directory(parts_of(path)) as parts:
        try:
            for left in parts.glob(".*"):  # of a killed process
                left.unlink()
            store = Store(path, dataset, settings, current)
            yield store
            store.merge()
        except BaseException:
            if new and parts.is_dir() and not any(parts.iterdir()):
                parts.rmdir()
            raise


def write_part(directory: Path, groups: Mapping[str, Arrays], settings: Settings) -> None:
    """Write a part of a file; the same groups give the same file, whoever writes it and however often.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    if not groups:
        return
    h5py = import_optional("h5py", "collections")
    name = hashlib.sha256("\n".join(groups).encode()).hexdigest()[:24]
    # in memory: HDF5 itself is no good at disks that are full
    with h5py.File(name, "w", driver="core", backing_store=False) as file:
        file.attrs[SETTINGS] = json.dumps(settings, sort_keys=True)
        for key, arrays in groups.items():
            group = file.create_group(key)
            for field, values in arrays.items():
                if field not in ("uncertainty", MADE_FROM):
                    group.create_dataset(field, data=values)
            if "uncertainty" in arrays:
                group[FEATURES].attrs["uncertainty"] = arrays["uncertainty"]
            if MADE_FROM in arrays:
                group.attrs[MADE_FROM] = arrays[MADE_FROM]
        file.flush()
        content = file.id.get_file_image()
    write_atomically(directory / f"{name}.h5", content)


def _to_disk(path: Path) -> None:
    """Have the operating system write a file out before it takes the place of another."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def refuse_other_settings(path: Path, made: Settings | None, wanted: Settings) -> None:
    """Raise an InputError that names what is different."""
    if made is None:
        raise InputError(f"{path} was made by another program, and does not say how: choose another name")
    old, new = _flat(made), _flat(wanted)
    different = [
        f"{name} {old.get(name, 'none')} there, {new.get(name, 'none')} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and not name.startswith("about")
    ]
    if different:
        raise InputError(f"{path} was made otherwise: {'; '.join(different)}. Choose another name, or remove it")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
