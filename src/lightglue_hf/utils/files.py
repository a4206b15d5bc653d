"""Files and directories that are there whole or not at all."""

import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    parent = out.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"the directory of {out} does not exist")
    prefix = f".{out.name}.making-"
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        _remove_abandoned(left)
    temporary, lock = _locked_directory(parent, prefix)
    try:
        made = temporary / out.name
        yield temporary, made
        if out.exists():  # another process was faster
            raise FileExistsError(f"{out} exists already")
        os.replace(made, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
