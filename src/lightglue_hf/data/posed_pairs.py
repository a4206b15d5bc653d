"""Pairs of photos with depth maps and poses: reading them, and the true matches of keypoints in them.

Points are (x, y) in pixels, the centre of the first pixel is (0, 0); sizes are (height, width). A pose takes points in
the coordinates of the first camera to those of the second; depth is measured along the optical axis, in the unit of
the pose's translation, and is 0 or not finite where it is unknown.

Sources: MegaDepth, Li and Snavely, CVPR 2018, with the scene files of D2-Net (Dusmanu et al., CVPR 2019) and LoFTR
(Sun et al., CVPR 2021); labels from depth, LightGlue (Lindenberger et al., ICCV 2023), section 3.3 and appendix.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry import mutual_nearest, points_inside
from ..utils.optional import import_optional

CONSISTENT = 0.1  # relative difference of two depths of the same point


class DepthPair(NamedTuple):
    """Two photos, their depth maps `read_depth` reads, intrinsics for the photos' pixels, and the relative pose."""

    names: tuple[str, str]
    images: tuple[Path, Path]
    depths: tuple[Path, Path]
    intrinsics: np.ndarray  # (2, 3, 3)
    T_0to1: np.ndarray  # (4, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class PosedPair(NamedTuple):
    """A line of a list; intrinsics and pose are of the images as stored, which `rot` quarter turns put upright."""

    name0: str
    name1: str
    rot0: int
    rot1: int
    K0: np.ndarray
    K1: np.ndarray
    T_0to1: np.ndarray


def read_posed_pairs(path: str | os.PathLike[str]) -> list[PosedPair]:
    """Read a list of pairs with ground truth, one a line: `name0 name1 rot0 rot1 K0 (9) K1 (9) T_0to1 (16)`.

    Args:
        path: of the text file; empty lines are skipped.

    Raises:
        ValueError: a line of another form, or numbers that are no quarter turns, intrinsics or pose; the message has
            its number. A list without pairs.

    Source: the pair lists of SuperGlue.
    """
    pairs = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            if len(fields) != 38:
                raise ValueError(f"{len(fields)} fields instead of 38")
            rot0, rot1 = int(fields[2]), int(fields[3])
            numbers = np.array(fields[4:], dtype=float)
            K0, K1, T_0to1 = (part.reshape(n, n) for part, n in zip(np.split(numbers, [9, 18]), (3, 3, 4)))
            _check_calibration((rot0, rot1), (K0, K1), T_0to1)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        pairs.append(PosedPair(fields[0], fields[1], rot0, rot1, K0, K1, T_0to1))
    if not pairs:
        raise ValueError(f"{path} lists no pairs.")
    return pairs


def _check_calibration(rotations: Sequence[int], intrinsics: Sequence[np.ndarray], T_0to1: np.ndarray) -> None:
    if not set(rotations) <= {0, 1, 2, 3}:
        raise ValueError(f"rotations must be 0 to 3 quarter turns, but are {rotations}")
    for K in intrinsics:
        if not np.isfinite(K).all() or K[2].tolist() != [0, 0, 1] or min(K[0, 0], K[1, 1]) <= 0:
            raise ValueError(f"{K.tolist()} are no intrinsics")
    rotation = T_0to1[:3, :3]
    orthonormal = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    if not orthonormal or T_0to1[3].tolist() != [0, 0, 0, 1] or not np.isfinite(T_0to1).all():
        raise ValueError(f"{T_0to1.tolist()} is no pose")


def read_depth_list(path: str | Path, root: str | Path, depths: str) -> list[DepthPair]:
    """Read a list of pairs with poses, as `read_posed_pairs` does, and find their depth maps.

    Args:
        path: of the list.
        root: directory that the names start from.
        depths: directory in `root`; the depth map of `a/b.jpg` is `a/b.h5`, `.png` or `.npy` in it.

    Rotations are not in what is returned: photos are taken as they are stored, as their depth maps are.

    Raises:
        OSError: a photo has no depth map; both are named.
    """

    def depth_of(name: str) -> Path:
        stem = Path(root, depths, name)
        for candidate in (stem.with_suffix(suffix) for suffix in DEPTH_READERS):
            if candidate.is_file() and candidate.resolve() != Path(root, name).resolve():
                return candidate
        raise FileNotFoundError(f"{name} has no depth map: no {stem.with_suffix('')}{{{','.join(DEPTH_READERS)}}}")

    return [
        DepthPair(
            names=(pair.name0, pair.name1),
            images=(Path(root, pair.name0), Path(root, pair.name1)),
            depths=(depth_of(pair.name0), depth_of(pair.name1)),
            intrinsics=np.stack([pair.K0, pair.K1]),
            T_0to1=pair.T_0to1,
        )
        for pair in read_posed_pairs(path)
    ]


def read_scene(path: str | Path, root: str | Path, overlap: tuple[float, float] = (0.1, 0.7)) -> list[DepthPair]:
    """Read the pairs of one scene of MegaDepth.

    Args:
        path: `.npz` with `image_paths`, `depth_paths`, `intrinsics` `(n, 3, 3)`, `poses` `(n, 4, 4)` (world to camera)
            and either `pair_infos` (LoFTR) or `overlap_matrix` `(n, n)` (D2-Net). Photos that are None are left out.
        root: directory that the paths within the file start from.
        overlap: smallest and largest overlap of a pair.

    Raises:
        ValueError: an array is missing, or the file holds more than arrays of numbers and text.
    """
    scene = _read_arrays(path)
    missing = [name for name in ("image_paths", "depth_paths", "intrinsics", "poses") if name not in scene]
    if missing or not {"pair_infos", "overlap_matrix"} & set(scene):
        raise ValueError(f"{path} is no scene of MegaDepth: no {', '.join(missing) or 'pair_infos or overlap_matrix'}")
    if "pair_infos" in scene:
        candidates = [(int(i), int(j), float(share)) for (i, j), share, *_ in scene["pair_infos"]]
    else:
        shares = scene["overlap_matrix"].astype(float)
        candidates = [(int(i), int(j), shares[i, j]) for i, j in np.argwhere(shares > 0) if i < j]
    images, depths = scene["image_paths"], scene["depth_paths"]
    pairs = []
    for i, j, share in candidates:
        if not overlap[0] <= share <= overlap[1] or any(x[k] is None for x in (images, depths) for k in (i, j)):
            continue
        poses = [np.asarray(scene["poses"][k], dtype=float) for k in (i, j)]
        pairs.append(
            DepthPair(
                names=(str(images[i]), str(images[j])),
                images=(Path(root, images[i]), Path(root, images[j])),
                depths=(Path(root, depths[i]), Path(root, depths[j])),
                intrinsics=np.stack([np.asarray(scene["intrinsics"][k], dtype=float) for k in (i, j)]),
                T_0to1=poses[1] @ np.linalg.inv(poses[0]),
            )
        )
    return pairs


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of Python's own types, and runs nothing: MegaDepth's scene files hold arrays of objects."""

    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype")} | {
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"refused to load {module}.{name}")
        return super().find_class(module, name)


def _read_arrays(path: str | Path) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                content = archive.read(name)
                stream = io.BytesIO(content)
                version = np.lib.format.read_magic(stream)
                header = (
                    np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
                )
                is_object = header(stream)[2].hasobject
                value = _ArrayUnpickler(stream).load() if is_object else np.load(io.BytesIO(content))
                arrays[name.removesuffix(".npy")] = value
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return arrays


def _millimetres(path: Path) -> np.ndarray:
    """A PNG of 16 bits, in metres."""
    from PIL import Image

    with Image.open(path) as image:
        if not image.mode.startswith("I"):  # I;16, or I as older Pillow has it
            raise ValueError(f"a PNG must have one channel of 16 bits, but its mode is {image.mode}")
        return np.asarray(image, dtype=np.float32) / 1000


def _hdf5_depth(path: Path) -> np.ndarray:
    with _open_hdf5(path) as file:
        return file["depth"][()]


DEPTH_READERS: dict[str, Callable[[Path], np.ndarray]] = {".h5": _hdf5_depth, ".png": _millimetres, ".npy": np.load}


def read_depth(path: str | Path) -> np.ndarray:
    """Read a depth map, `(height, width)` float32: HDF5 (its data set `depth`), 16-bit PNG in millimetres, or NumPy.

    Raises:
        ImportError: an HDF5 file, and h5py is not installed.
        FileNotFoundError: there is no such file; it is named.
        ValueError: it is broken, or of another kind or shape; it is named.
    """
    path = Path(path)
    if path.suffix not in DEPTH_READERS:
        raise ValueError(f"{path} is no depth map: its name must end in {', '.join(DEPTH_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no depth map {path}")
    try:
        depth = np.asarray(DEPTH_READERS[path.suffix](path), dtype=np.float32)
    except ImportError:
        raise
    except Exception as error:  # of a broken file each reader raises what it likes
        raise ValueError(f"{path} is no depth map that can be read: {' '.join(str(error).split())}") from error
    if depth.ndim != 2:
        raise ValueError(f"{path}: a depth map must be (height, width), but has the shape {depth.shape}")
    return depth


def read_features(path: str | Path, name: str) -> dict[str, np.ndarray]:
    """Read the features of one photo from an HDF5 file in hloc's layout.

    Args:
        path: of the file: a group for each photo, with `keypoints` `(n, 2)` in pixels of the photo, `descriptors`
            `(d, n)`, `image_size` (width, height), and `scales` and `oris` `(n,)` where the matcher takes them.
        name: of the photo.

    Returns:
        These as float32, `descriptors` as `(n, d)`, `oris` as `orientations`, and `image_size` (height, width).

    Raises:
        ImportError: h5py is not installed.
        ValueError: the file has no such photo, or the photo not all of these.
    """
    file = _open_hdf5(path)
    if name not in file:
        raise ValueError(f"{path} has no features of {name}")
    return features_of_group(file[name], f"{path}: {name}")


def features_of_group(group: Any, where: str) -> dict[str, np.ndarray]:
    """The features of one photo from its group in an open HDF5 file; see [`read_features`].

    Args:
        group: an `h5py.Group`.
        where: what to call it in errors.

    Raises:
        ValueError: a field is missing.
    """
    missing = [field for field in ("keypoints", "descriptors", "image_size") if field not in group]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}")
    features = {field: np.asarray(values[()], dtype=np.float32) for field, values in group.items()}
    features["descriptors"] = features["descriptors"].T
    features["image_size"] = features["image_size"][::-1].astype(np.int64)
    if "oris" in features:
        features["orientations"] = features.pop("oris")
    return features


def _open_hdf5(path: str | Path) -> Any:
    return import_optional("h5py", "train").File(path, "r")


# ---------------------------------------------------------------------------------------------------------------------
# Ground truth


def resizing(from_size: Any, to_size: Any) -> np.ndarray:
    """`(3, 3)`, pixels of an image to those of it resized: x' + 0.5 = s (x + 0.5); sizes are (height, width)."""
    y, x = np.asarray(to_size, dtype=float) / np.asarray(from_size, dtype=float)
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def depth_at(points: Tensor, depth: Tensor, image_size: Tensor) -> Tensor:
    """Depth at points of an image of another resolution, at the nearest pixel; NaN where unknown or outside.

    Args:
        points: `(n, 2)`, pixels of the image.
        depth: `(height, width)`.
        image_size: `(2,)`, (height, width) of the image.
    """
    extent = points.new_tensor(depth.shape)
    column, row = ((points + 0.5) / image_size.flip(0) * extent.flip(0)).floor().long().unbind(-1)
    height, width = depth.shape
    inside = (row >= 0) & (column >= 0) & (row < height) & (column < width)
    values = depth[row.clamp(0, height - 1), column.clamp(0, width - 1)].to(points.dtype)
    return torch.where(inside & values.isfinite() & (values > 0), values, torch.nan)


def project_with_depth(points: Tensor, depth: Tensor, K0: Tensor, K1: Tensor, T_0to1: Tensor) -> tuple[Tensor, Tensor]:
    """Points of known depth in image 0 to image 1.

    Args:
        points: `(n, 2)`, pixels of image 0.
        depth: `(n,)`, NaN where unknown.
        K0, K1: `(3, 3)`.
        T_0to1: `(4, 4)`.

    Returns:
        `(n, 2)`, pixels of image 1, and `(n,)`, the depth there; both NaN where unknown or behind the camera.
    """
    rays = torch.cat([points, torch.ones_like(points[:, :1])], 1) @ torch.linalg.inv(K0).T
    moved = (rays * depth[:, None]) @ T_0to1[:3, :3].T + T_0to1[:3, 3]
    moved = torch.where(moved[:, 2:] > 1e-6, moved, torch.nan)
    projected = moved @ K1.T
    return projected[:, :2] / projected[:, 2:], moved[:, 2]


def matches_from_depth(
    keypoints: tuple[Tensor, Tensor],
    depths: tuple[Tensor, Tensor],
    image_sizes: Tensor,
    intrinsics: Tensor,
    T_0to1: Tensor,
    positive_threshold: float = 3.0,
    negative_threshold: float = 5.0,
) -> tuple[Tensor, Tensor]:
    """Label the keypoints of two images with their true matches.

    Two keypoints match if each is the other's nearest and both reproject less than `positive_threshold` from each
    other. A keypoint has no match if it leaves the frame, is hidden (its depth there is by a tenth more than the
    other image's), or is farther than `negative_threshold` from every keypoint there. The rest is ignored, and so is
    a keypoint without depth.

    Args:
        keypoints: `(n0, 2)` and `(n1, 2)`, pixels of the images.
        depths: `(h0, w0)` and `(h1, w1)`, of any resolution.
        image_sizes: `(2, 2)`, (height, width).
        intrinsics: `(2, 3, 3)`, for the images' pixels.
        T_0to1: `(4, 4)`.
        positive_threshold, negative_threshold: pixels.

    Returns:
        `(n0,)` and `(n1,)` int64: index of the match in the other image, -1 unmatched, -2 ignored.
    """
    poses = (T_0to1.double(), torch.linalg.inv(T_0to1.double()))
    points = tuple(x.double() for x in keypoints)
    distances, unmatched = [], []
    for i, j in ((0, 1), (1, 0)):
        known = depth_at(points[i], depths[i], image_sizes[i])
        projected, there = project_with_depth(
            points[i], known, intrinsics[i].double(), intrinsics[j].double(), poses[i]
        )
        in_front = there.isfinite()
        outside = (known.isfinite() & ~in_front) | (in_front & ~points_inside(projected, image_sizes[j]))
        other = depth_at(torch.where(projected.isnan(), -1.0, projected), depths[j], image_sizes[j])
        visible = ((other - there).abs() < CONSISTENT * there) & ~outside
        hidden = there > other * (1 + CONSISTENT)
        distance = torch.cdist(torch.where(visible[:, None], projected, 1e6), points[j])
        distances.append(distance)
        nearest = distance.amin(1) if distance.shape[1] else torch.full_like(there, torch.inf)
        unmatched.append(outside | hidden | (visible & (nearest > negative_threshold)))
    labels = tuple(torch.where(no_match, -1, -2) for no_match in unmatched)
    if 0 in distances[0].shape:
        return labels[0], labels[1]
    both = torch.maximum(distances[0], distances[1].T)
    nearest0, mutual, _, _ = mutual_nearest(both)
    index = torch.nonzero(mutual & (both.amin(1) < positive_threshold))[:, 0]
    labels[0][index] = nearest0[index]
    labels[1][nearest0[index]] = index
    return labels[0], labels[1]
