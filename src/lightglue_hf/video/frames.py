"""Frames of videos, cameras and folders of pictures, one by one; and videos written, frame by frame.

Only the frame at hand is in memory, with the few that a decoder or an encoder holds back.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..collection.photos import BROKEN, natural_order
from ..images import find_photos, load_image, to_rgb
from ..utils.errors import InputError
from ..utils.files import overwriting, regular_file
from ..utils.optional import import_optional

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first that there is writes."""
ENCODER_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20"}}
TIME_BASE = Fraction(1, 60000)  # seconds: MPEG-4 has no finer one, and usual frame rates are multiples of it
PICTURES_A_SECOND = 25.0

CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""FFmpeg's name of a platform's cameras, and of one of them by its number; on Windows, by its name."""


class Frame(NamedTuple):
    """A picture of a video.

    Args:
        number: from 0.
        time: seconds since the first frame.
        image: `(height, width, 3)` uint8 RGB, upright.
    """

    number: int
    time: float
    image: np.ndarray


@dataclass
class Frames:
    """What [`open_frames`] gives: an iterator of frames, once.

    Args:
        frames: all of one size.
        size: (height, width) of them, upright.
        rate: frames a second, on average or as they are to be shown.
        count: how many there will be, as far as the source says.
        live: whether they come from a camera, which has no end.
    """

    frames: Iterator[Frame]
    size: tuple[int, int]
    rate: float
    count: int | None
    live: bool

    def __iter__(self) -> Iterator[Frame]:
        return self.frames


@contextmanager
def open_frames(source: str | os.PathLike[str], rate: float = PICTURES_A_SECOND) -> Iterator[Frames]:
    """The frames of a video, a camera or a folder of pictures.

    Args:
        source: the path of a video or of a folder, whose pictures are taken in the order of their names, frame2 before
            frame10; or a camera, by its number or device ("0", "/dev/video0", on Windows its name after "video=").
        rate: of a folder, pictures a second.

    Raises:
        InputError: no such file, folder or camera, none that can be read, or frames of different sizes.
        MissingPackageError: PyAV is not installed.
        OSError: a picture cannot be read; it is named.
    """
    name = os.fspath(source)
    if Path(name).is_dir():
        with _checked(name, _folder(Path(name), rate)) as frames:
            yield frames
        return
    av = import_optional("av", "video")
    device = camera_device(name)
    try:
        if device is None:
            # a playlist in a file is not to fetch anything
            container = av.open(str(regular_file(name)), options={"protocol_whitelist": "file"})
        else:
            container = av.open(device[1], format=device[0])
    except FileNotFoundError:
        what = f"{name} does not exist" if device is None else f"there is no camera {name}: {device[1]} does not exist"
        raise InputError(what) from None
    except (av.FFmpegError, OSError, ValueError) as error:
        what = "is no video, or a broken one" if device is None else "is no camera that can be opened"
        raise InputError(f"{name} {what}: {_said(error)}") from error
    with container, _checked(name, _stream(name, av, container, device is not None)) as frames:
        yield frames


def camera_device(name: str) -> tuple[str, str] | None:
    """FFmpeg's format and name of a camera; `None` of anything else."""
    platform = next((key for key in CAMERAS if sys.platform.startswith(key)), "linux")
    kind, by_number = CAMERAS[platform]
    if re.fullmatch(r"\d{1,3}", name) and not Path(name).exists():
        return kind, by_number.format(name)
    if name.startswith("video=") and platform == "win32":
        return kind, name
    try:
        is_device = stat.S_ISCHR(os.stat(name).st_mode)
    except (OSError, ValueError):
        is_device = False
    return (kind, name) if is_device and os.path.basename(name).startswith("video") else None


@contextmanager
def _checked(name: str, frames: Frames) -> Iterator[Frames]:
    """Read the first frame, which says how large all are to be."""
    rest = frames.frames
    first = next(rest, None)
    if first is None:
        raise InputError(f"{name} has no frames")
    size = first.image.shape[:2]

    def alike() -> Iterator[Frame]:
        for frame in chain([first], rest):
            if frame.image.shape[:2] != size:
                (height, width), (h, w) = size, frame.image.shape[:2]
                raise InputError(
                    f"{name}: frame {frame.number} has {w} x {h} pixels, and those before {width} x {height}"
                )
            yield frame

    frames.frames, frames.size = alike(), size
    yield frames


def _stream(name: str, av: Any, container: Any, live: bool) -> Frames:
    """The first video stream of an open container."""
    if not container.streams.video:
        raise InputError(f"{name} is no video, or a broken one: it has no pictures")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or PICTURES_A_SECOND)

    def frames() -> Iterator[Frame]:
        start, last = None, -1.0
        decoded = container.decode(stream)
        index = 0
        while True:
            try:
                picture = next(decoded, None)
                if picture is None:
                    return
                image = picture.to_ndarray(format="rgb24")
            except (av.FFmpegError, OSError, ValueError) as error:
                raise InputError(f"{name} is broken after {index} frames: {_said(error)}") from error
            time = picture.time
            if time is None or (start is not None and time - start <= last):
                time = (start or 0.0) + last + 1 / rate if index else 0.0
            start = time if start is None else start
            last = time - start
            yield Frame(index, last, upright(image, picture.rotation))
            index += 1

    return Frames(frames(), (0, 0), rate, stream.frames or None, live)


def upright(image: np.ndarray, rotation: float) -> np.ndarray:
    """A picture `(h, w, 3)` turned counter-clockwise by so many degrees, of which there are quarter turns alone."""
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _folder(folder: Path, rate: float) -> Frames:
    """The pictures in a folder and those below it."""
    paths = sorted(find_photos(folder), key=lambda path: natural_order(path.relative_to(folder).as_posix()))
    if not paths:
        raise InputError(f"there are no photos in {folder}")

    def frames() -> Iterator[Frame]:
        for index, path in enumerate(paths):
            try:
                rgb = to_rgb(load_image(path), str(path))
            except BROKEN as error:
                raise InputError(_said(error)) from error
            yield Frame(index, index / rate, rgb)

    return Frames(frames(), (0, 0), rate, len(paths), live=False)


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@contextmanager
def writing_video(
    path: str | os.PathLike[str], size: tuple[int, int], rate: float
) -> Iterator[Callable[[np.ndarray, float], None]]:
    """A function that adds a frame `(height, width, 3)` uint8 RGB, and its time in seconds, to a video.

    The file takes its place at the end, whole; after an error what stood there stays.

    Args:
        path: of the file, in .mp4, .mkv or .mov.
        size: (height, width) of the frames; an odd side gets a row or column more, a copy of the last one.
        rate: frames a second, on average; frames are shown at their times.

    Raises:
        InputError: PyAV has no encoder.
        MissingPackageError: PyAV is not installed.
        OSError: it cannot be written.
    """
    av = import_optional("av", "video")
    encoder = next((name for name in ENCODERS if name in av.codecs_available and _can_encode(av, name)), None)
    if encoder is None:
        raise InputError(f"PyAV was built without an encoder of {', '.join(ENCODERS)}: no video can be written")
    height, width = size
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    with overwriting(path) as made:
        try:
            with av.open(str(made), "w") as container:
                about = Fraction(rate).limit_denominator(1001)
                stream = container.add_stream(encoder, rate=about, options=ENCODER_OPTIONS.get(encoder, {}))
                stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
                stream.codec_context.time_base = TIME_BASE
                last = -1

                def add(image: np.ndarray, time: float) -> None:
                    nonlocal last
                    picture = av.VideoFrame.from_ndarray(np.pad(image, padding, mode="edge"), format="rgb24")
                    last = max(last + 1, round(time / TIME_BASE))
                    picture.pts, picture.time_base = last, TIME_BASE
                    container.mux(stream.encode(picture))

                yield add
                container.mux(stream.encode(None))
        except av.FFmpegError as error:
            raise OSError(f"{path} cannot be written: {_said(error)}") from error


def _can_encode(av: Any, name: str) -> bool:
    try:
        return av.codec.Codec(name, "w").is_encoder
    except ValueError:  # av.codec.codec.UnknownCodecError
        return False
