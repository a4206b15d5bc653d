"""Photos of a collection: their names, sizes, pixels and places.

A photo is called by its path below the folder, with "/" between directories, in every file of a collection.

Pixels and sizes are as the file stores them: the EXIF orientation is ignored, because COLMAP ignores it, too, and
keypoints have to lie in the picture that COLMAP reads. (A single pair, in `lightglue-hf match`, is turned upright.)
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import ExifTags, Image

from ..images import find_photos, load_image
from ..utils.digests import sha256_of
from ..utils.errors import InputError
from ..utils.files import regular_file

BROKEN = (OSError, ValueError, Image.DecompressionBombError)
"""What reading a photo raises that is no image, or not a whole one, or too large."""


def photo_names(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the photos in a folder and those below it, in the order of the names.

    Raises:
        InputError: there is no such folder, no photo in it, or a name that the files cannot hold; see
            [`check_names`].
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder")
    names = sorted(path.relative_to(folder).as_posix() for path in find_photos(folder) if not path.is_dir())
    if not names:
        raise InputError(f"there are no photos in {folder}")
    check_names(names)
    return names


def check_names(names: Iterable[str]) -> None:
    """Refuse names that pairs.txt or the HDF5 files cannot tell apart or hold.

    Raises:
        InputError: white space or a "#" in front, which the lines of pairs.txt cannot hold; bytes that are no text;
            or two names that differ in "/" and "-" alone, which hloc's name of a pair confuses. The names are given.

    Source: hloc@abb2520, `hloc/utils/parsers.py` (`names_to_pair`, `parse_retrieval`).
    """
    same = defaultdict(list)
    for name in names:
        if name.split() != [name]:
            raise InputError(f"{name!r}: rename it, names with spaces cannot stand in pairs.txt")
        if name.startswith("#"):
            raise InputError(f"{name!r}: rename it, COLMAP takes a line that begins with # for a comment")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{os.fsencode(name)!r}: rename it, the name is not valid UTF-8") from None
        same[name.replace("/", "-")].append(name)
    for alike in same.values():
        if len(alike) > 1:
            raise InputError(f"{alike[0]!r} and {alike[1]!r}: rename one, the names of their pairs would be the same")


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that puts frame2 before frame10: numbers count by their value."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), part) if part[0].isdigit() and part.isascii() else (1, 0, part) for part in parts]


def stored_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) from the head of a file, without decoding it or turning it by its EXIF orientation.

    Raises:
        OSError: it is no image, or cannot be read.
        PIL.Image.DecompressionBombError: it has more pixels than Pillow takes without a warning.
    """
    with Image.open(regular_file(path)) as image:
        pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
        if most is not None and pixels > most:
            raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {most} for batches")
        return image.height, image.width


def load_stored(path: str | os.PathLike[str]) -> Image.Image:
    """A photo as the file stores it, not turned by its EXIF orientation.

    Raises:
        OSError: it cannot be read; the path is named.
        PIL.Image.DecompressionBombError: it has more pixels than Pillow takes without a warning.
    """
    return load_image(regular_file(path), max_pixels=Image.MAX_IMAGE_PIXELS, upright=False)


def stamp(path: str | os.PathLike[str]) -> str:
    """By what a photo's file is known again: its size in bytes, its time in nanoseconds and a digest.

    Raises:
        OSError: it cannot be read.
    """
    about = os.stat(path)
    return f"{about.st_size} {about.st_mtime_ns} {sha256_of(Path(path))[:16]}"


def has_stamp(path: str | os.PathLike[str], made: str) -> bool:
    """Whether a file is the one that has this stamp; it is read only if its time is another, and its size is not.

    One that is not there or cannot be read is no other one.
    """
    size, time, digest = made.split()
    try:
        about = os.stat(path)
        if about.st_size != int(size):
            return False
        return about.st_mtime_ns == int(time) or sha256_of(Path(path))[:16] == digest
    except OSError:
        return True


def gps_position(path: str | os.PathLike[str]) -> tuple[float, float] | None:
    """Latitude and longitude in degrees from a photo's EXIF data, north and east positive; `None` without.

    Raises:
        OSError: it is no image, or cannot be read.
    """
    with Image.open(regular_file(path)) as image:
        gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)

    def degrees(value: ExifTags.GPS, reference: ExifTags.GPS, negative: str) -> float:
        whole, minutes, seconds = (float(part) for part in gps[value])
        sign = -1 if str(gps.get(reference, "")).strip("\0 ").upper() == negative else 1
        return sign * (whole + minutes / 60 + seconds / 3600)

    try:
        latitude = degrees(ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "S")
        longitude = degrees(ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "W")
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else None
