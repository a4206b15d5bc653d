"""Pairs of images whose truth is known: photos warped on the fly, a stereo pair, and benchmarks in folders.

A dataset lists its pairs at once, so that what is missing or malformed is said before any work is done, and reads the
images of a pair when it is reached. Points are `(x, y)` in pixels with the centre of the first pixel at `(0, 0)`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from ..data.homographies import sample_homography, warp_images
from ..data.posed_pairs import PosedPair, read_posed_pairs, resizing
from ..images import load_image
from ..utils.optional import import_optional

SKIMAGE_PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
)
"""Every photo that scikit-image brings along, of 300 pixels a side or more, except two that show hardly anything
sharp (clock, cell)."""

PHOTO_SIZE = 640  # the longer side that they are brought to
WARPS_A_PHOTO = 2
SHIFTS = (3, 4)  # pixels
HPATCHES_SIZE = 480  # the shorter side that HPatches is brought to


class Homography(NamedTuple):
    """The second image shows the same plane; `matrix` `(3, 3)` takes points of the first image to the second."""

    matrix: np.ndarray


class Shift(NamedTuple):
    """The second image shows the very same pixels `x` columns farther to the left."""

    x: int


class Disparity(NamedTuple):
    """A rectified stereo pair; `values` `(height, width)` in pixels of the left image, not finite where unknown."""

    values: np.ndarray


class Pose(NamedTuple):
    """Two calibrated cameras: intrinsics `(3, 3)`, and `(4, 4)` from the coordinates of the first to the second."""

    K0: np.ndarray
    K1: np.ndarray
    T_0to1: np.ndarray


Truth: TypeAlias = "Homography | Shift | Disparity | Pose | None"


@dataclass(frozen=True)
class Pair:
    """Two images and what is known of their geometry; `group` names the part of the dataset that they belong to."""

    name: str
    images: tuple[Image.Image, Image.Image]
    truth: Truth
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """A named list of entries, each of which is loaded as a [`Pair`] when it is reached."""

    name: str
    entries: Sequence[Any]
    load: Callable[[Any], Pair]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Pair]:
        return map(self.load, self.entries)


# ---------------------------------------------------------------------------------------------------------------------
# What scikit-image brings along


def stereo() -> Dataset:
    """The motorcycle of the Middlebury 2014 stereo benchmark, as it comes with scikit-image.

    Raises:
        ImportError: scikit-image is not installed.
    """
    data = import_optional("skimage.data", "eval")

    def load(name: str) -> Pair:
        left, right, disparity = data.stereo_motorcycle()
        return Pair(name, (Image.fromarray(left), Image.fromarray(right)), Disparity(disparity))

    return Dataset("stereo", ["motorcycle"], load)


def shifted() -> Dataset:
    """The bundled photos cut out twice, 3 or 4 pixels apart, so that no pixel is interpolated between the two.

    The cut-outs are 640 pixels on the longer side.

    Raises:
        ImportError: scikit-image is not installed.
    """
    data = import_optional("skimage.data", "eval")

    def load(entry: tuple[str, int]) -> Pair:
        name, shift = entry
        photo = _photo(data, name, PHOTO_SIZE + shift)
        width = photo.width - shift
        height = min(photo.height, width)
        first, second = (photo.crop((left, 0, left + width, height)) for left in (0, shift))
        return Pair(name, (first, second), Shift(shift), group=f"{shift} px")

    return Dataset("shift", [(name, shift) for shift in SHIFTS for name in SKIMAGE_PHOTOS], load)


def warped(name: str, rotation: float, scale: float, corners: float) -> Dataset:
    """The bundled photos, 640 pixels on the longer side, each with two random warps of itself; black where unknown.

    A warp depends on the photo, its number and these arguments alone.

    Args:
        name: of the dataset.
        rotation: largest rotation about the centre either way, in degrees (uniform).
        scale: largest change of scale either way, a factor (uniform in its logarithm).
        corners: largest move of each corner before that, as a share of height and width (uniform).

    Raises:
        ImportError: scikit-image is not installed.
    """
    data = import_optional("skimage.data", "eval")

    def load(entry: tuple[int, int]) -> Pair:
        index, warp = entry
        photo = _photo(data, SKIMAGE_PHOTOS[index], PHOTO_SIZE)
        matrix = _random_warp(np.random.default_rng([index, warp]), photo, rotation, scale, corners)
        pixels = torch.from_numpy(np.array(photo)).reshape(photo.height, photo.width, -1).permute(2, 0, 1)[None]
        warped, _ = warp_images(pixels.float(), torch.from_numpy(matrix)[None], photo.height, photo.width)
        other = warped[0].round().byte().permute(1, 2, 0).squeeze(2).numpy()
        return Pair(f"{SKIMAGE_PHOTOS[index]} {warp}", (photo, Image.fromarray(other)), Homography(matrix))

    return Dataset(
        name, [(index, warp) for index in range(len(SKIMAGE_PHOTOS)) for warp in range(WARPS_A_PHOTO)], load
    )


def _photo(data: Any, name: str, longest_edge: int) -> Image.Image:
    return _resized(Image.fromarray(getattr(data, name)()), longest_edge, max)


def _resized(image: Image.Image, side: int, which: Callable[..., int]) -> Image.Image:
    """Resize such that the longer (`which=max`) or shorter (`min`) side has `side` pixels."""
    factor = side / which(image.size)
    width, height = (round(length * factor) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _random_warp(
    rng: np.random.Generator, image: Image.Image, rotation: float, scale: float, corners: float
) -> np.ndarray:
    """Move the corners, then turn and scale about the centre: `(3, 3)`, pixels of the image to pixels."""
    width, height = image.size
    perspective = sample_homography(rng, height, width, rotation=0, scale=0, corners=corners, translation=0)
    angle, factor = math.radians(rotation) * rng.uniform(-1, 1), scale ** rng.uniform(-1, 1)
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    similarity = np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [0, 0, 1]])
    return similarity @ perspective


WARPS = {"warped-easy": (25, 1.35, 0.08), "warped-hard": (50, 1.8, 0.15)}  # rotation, scale, corners
BUILT_IN: dict[str, Callable[[], Dataset]] = {
    "stereo": stereo,
    "shift": shifted,
    **{name: lambda name=name: warped(name, *WARPS[name]) for name in WARPS},  # type: ignore[misc]
}
"""The datasets that need nothing but scikit-image, by name."""


# ---------------------------------------------------------------------------------------------------------------------
# HPatches


def hpatches(directory: str | os.PathLike[str]) -> Dataset:
    """The sequences `i_*` (illumination) and `v_*` (viewpoint) of HPatches, the first image with each other.

    Each is a folder with `1.ppm` to `6.ppm` and the homographies `H_1_2` to `H_1_6`. Images are brought to 480 pixels
    on the shorter side and homographies with them, as usual for errors in pixels.

    Args:
        directory: with the folders.

    Raises:
        OSError: the directory, an image or a homography is missing.
        ValueError: there are no sequences, or a homography is malformed; the file is named.

    Source: Balntas et al., CVPR 2017; the size is that of SuperGlue (Sarlin et al., CVPR 2020).
    """
    groups = {"i": "illumination", "v": "viewpoint"}
    folders = [path for path in sorted(Path(directory).iterdir()) if path.is_dir() and path.name[:2] in ("i_", "v_")]
    if not folders:
        raise ValueError(f"{os.fspath(directory)} holds no sequences of HPatches (folders i_* and v_*).")
    entries = []
    for folder in folders:
        for number in range(2, 7):
            paths = folder / "1.ppm", folder / f"{number}.ppm"
            _require(*paths)
            entries.append((paths, _read_homography(folder / f"H_1_{number}")))

    def load(entry: tuple[tuple[Path, Path], np.ndarray]) -> Pair:
        paths, matrix = entry
        photos = [load_image(path) for path in paths]
        first, second = (_resized(photo, HPATCHES_SIZE, min) for photo in photos)
        resize0, resize1 = (
            resizing((before.height, before.width), (after.height, after.width))
            for before, after in zip(photos, (first, second))
        )
        resized = resize1 @ matrix @ np.linalg.inv(resize0)
        folder = paths[0].parent.name
        name = f"{folder} 1 {paths[1].stem}"
        return Pair(name, (first, second), Homography(resized), groups[folder[0]])

    return Dataset("HPatches", entries, load)


def _read_homography(path: Path) -> np.ndarray:
    try:
        matrix = np.array(path.read_text().split(), dtype=float)
        if matrix.size != 9:
            raise ValueError(f"{matrix.size} numbers instead of 9")
        matrix = matrix.reshape(3, 3)
        if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix) < 3:
            raise ValueError("the matrix is singular or not finite")
    except ValueError as error:
        raise ValueError(f"{path} is no homography: {error}") from error
    return matrix


# ---------------------------------------------------------------------------------------------------------------------
# Posed pairs: MegaDepth-1500, ScanNet-1500


def posed(pairs_file: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Dataset:
    """The pairs of a list with ground truth (see `read_posed_pairs`), turned upright as it says, whatever EXIF does.

    Args:
        pairs_file: the list.
        directory: what the names in the list are relative to.

    Raises:
        OSError: the list or an image is missing.
        ValueError: the list is malformed.
    """
    entries = read_posed_pairs(pairs_file)
    for entry in entries:
        _require(*(Path(directory, name) for name in (entry.name0, entry.name1)))

    def load(entry: PosedPair) -> Pair:
        first, second = (load_image(Path(directory, name), upright=False) for name in (entry.name0, entry.name1))
        K0, turn0 = turned_intrinsics(entry.K0, (first.height, first.width), entry.rot0)
        K1, turn1 = turned_intrinsics(entry.K1, (second.height, second.width), entry.rot1)
        images = upright(first, entry.rot0), upright(second, entry.rot1)
        return Pair(f"{entry.name0} {entry.name1}", images, Pose(K0, K1, turn1 @ entry.T_0to1 @ turn0.T))

    return Dataset(Path(pairs_file).name, entries, load)


def upright(image: Image.Image, rot: int) -> Image.Image:
    """Turn an image counter-clockwise by so many quarter turns, without interpolation."""
    return image.rotate(90 * rot, expand=True)


def turned_intrinsics(K: np.ndarray, image_size: tuple[int, int], rot: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the camera that takes the upright image.

    With A the way of a pixel and R that of the camera's axes, A K = (A K R^T) R, and A K R^T are intrinsics again.

    Args:
        K: `(3, 3)`, intrinsics of the image as stored.
        image_size: (height, width) of the image as stored.
        rot: quarter turns counter-clockwise that put it upright.

    Returns:
        The intrinsics `(3, 3)` of the upright image, and the rotation `(4, 4)` from the coordinates of the camera to
        those of the turned one.
    """
    height, width = image_size
    pixels, axes = np.eye(3), np.eye(4)
    for _ in range(rot):
        pixels = np.array([[0, 1, 0], [-1, 0, width - 1], [0, 0, 1]]) @ pixels
        axes = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ axes
        height, width = width, height
    return pixels @ K @ axes[:3, :3].T, axes


# ---------------------------------------------------------------------------------------------------------------------
# Any two photos


def unposed(path0: str | os.PathLike[str], path1: str | os.PathLike[str]) -> Dataset:
    """Two photos of which nothing is known.

    Raises:
        OSError: one of them is missing.
    """
    paths = Path(path0), Path(path1)
    _require(*paths)
    name = f"{paths[0].name}, {paths[1].name}"
    return Dataset(name, [paths], lambda paths: Pair(name, (load_image(paths[0]), load_image(paths[1])), None))


def _require(*paths: Path) -> None:
    """Raise the OSError of the first of these files that is not there."""
    for path in paths:
        path.stat()
