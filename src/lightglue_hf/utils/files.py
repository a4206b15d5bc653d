"""Files and directories that are there whole or not at all."""

import glob
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file beside its place and move it there; what stood there stays until then.

    Raises:
        OSError: the file cannot be written; it is named, and nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(out: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """A temporary directory and a path in it, where a file or directory is made that then becomes `out`.

    An error leaves nothing behind, and what a killed process left for the same `out` is removed.

    Raises:
        FileExistsError: `out` exists, before or after it was made.
        FileNotFoundError: the directory of `out` does not exist.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists already")
    with _aside(out) as temporary:
        made = temporary / out.name
        yield temporary, made
        if out.exists():  # another process was faster
            raise FileExistsError(f"{out} exists already")
        os.replace(made, out)


@contextmanager
def overwriting(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path where a file is made, bit by bit, that then takes the place of `path`; what stood there stays until then.

    An error leaves nothing behind, and what a killed process left for the same `path` is removed.

    Raises:
        FileNotFoundError: the directory of `path` does not exist.
    """
    path = Path(path)
    with _aside(path) as temporary:
        made = temporary / path.name
        yield made
        os.replace(made, path)


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out`, without those that killed processes left."""
    parent = out.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"the directory of {out} does not exist")
    prefix = f".{out.name}.making-"
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        _remove_abandoned(left)
    temporary, lock = _locked_directory(parent, prefix)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def refilling(directory: str | os.PathLike[str], own: Container[str], key: str) -> Iterator[Path]:
    """A place within a directory for new files, which then become the directory's in place of its old ones.

    Old files of the names in `own` go, before the first new one comes, and others stay: whenever a process is killed,
    there are files of the old set or of the new one, never of both, and all of them if the key is there. What a
    killed process left is removed.

    Args:
        directory: made if it does not exist, and removed again after an error.
        own: names of files that belong to such a set, whether or not there is a new one of it.
        key: the file without which nobody reads the others; it goes first and comes last.

    Raises:
        FileExistsError: another process is at it.
    """
    directory = Path(directory)
    existed = directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock(directory)
    except BlockingIOError:
        raise FileExistsError(f"{directory} is being written to by another process") from None
    except OSError:  # a file system without locks
        lock = None
    aside = directory / ".new"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        (directory / key).unlink(missing_ok=True)
        for file in directory.iterdir():
            if file.name in own:
                file.unlink()
        for file in sorted(aside.iterdir(), key=lambda file: (file.name == key, file.name)):
            file.replace(directory / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if not existed and not any(directory.iterdir()):
            directory.rmdir()
        if lock is not None:
            os.close(lock)


@contextmanager
def working_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A directory that one process at a time works in; it stays unless the caller removes it.

    Raises:
        FileExistsError: another process works in it; the lock of a killed one is gone with it.
        OSError: it cannot be made.
    """
    path = Path(path)
    while True:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock = _lock(path)
        except BlockingIOError:
            raise FileExistsError(f"{path} is being worked in by another process") from None
        except FileNotFoundError:  # removed meanwhile, by a process that is done
            continue
        except OSError:  # a file system without locks
            lock = None
        if lock is None or (path.exists() and os.path.samestat(os.fstat(lock), os.stat(path))):
            break
        os.close(lock)
    try:
        yield path
    finally:
        if lock is not None:
            os.close(lock)


def _locked_directory(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """A new directory, which is locked as long as this process lives, where the file system can do that."""
    while True:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            lock = _lock(path)
        except (BlockingIOError, FileNotFoundError):  # taken for abandoned before it was locked
            continue
        except OSError:
            return path, None
        if lock is None or path.exists():
            return path, lock
        os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a directory; an OSError if there is none to be had."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_abandoned(path: Path) -> None:
    try:
        lock = _lock(path)
    except OSError:
        return
    if lock is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def regular_file(path: str | os.PathLike[str], largest: int | None = None) -> Path:
    """The path, if it is a regular file: reading a pipe or a device may never end.

    Raises:
        OSError: it is not, does not exist, or has more than `largest` bytes.
    """
    path = Path(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is a {'directory' if path.is_dir() else 'device or pipe'}, and no file")
    if largest is not None and status.st_size > largest:
        raise OSError(f"{path} has {status.st_size:,} bytes, more than the {largest:,} that are read")
    return path


LARGEST_JSON = 1 << 20  # bytes


def json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a JSON file.

    Raises:
        OSError: it is no regular file, or too large.
        InputError: it is no JSON of fields and values; the file is named.
    """
    try:
        values = json.loads(regular_file(path, LARGEST_JSON).read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must have fields with values, in curly brackets")
    return values
