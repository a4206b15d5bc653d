"""The database that COLMAP starts from: photos, cameras, keypoints, matches, and matches that agree with a geometry.

COLMAP puts the centre of the first pixel at (0.5, 0.5): half a pixel is added here, and nowhere else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import InputError
from ..utils.files import working_directory
from ..utils.optional import import_optional
from .photos import photo_names
from .storage import (
    FEATURES,
    MATCHES,
    SETTINGS,
    Settings,
    group_names,
    matches_of,
    open_hdf5,
    refuse_other_settings,
)
from .work import NoProgress

MIN_INLIERS = 15
"""Matches that agree with a geometry, below which a pair says nothing; COLMAP's own number."""
SEED = 0


class DatabaseSummary(NamedTuple):
    """What is in a database.

    Args:
        photos: how many.
        pairs: that were matched.
        verified: of those, with a geometry that enough of them agree with.
        matches: of all pairs.
        inliers: of all pairs, those that agree.
        left_out: photos that are not in the folder or that COLMAP cannot read, pairs of photos without features, and
            why.
    """

    photos: int
    pairs: int
    verified: int
    matches: int
    inliers: int
    left_out: dict[str, str]


def import_pycolmap() -> Any:
    """pycolmap, which logs errors only.

    Raises:
        MissingPackageError: it is not installed.
    """
    pycolmap = import_optional("pycolmap", "collections")
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    return pycolmap


def check_camera_model(name: str) -> None:
    """Raise an InputError if COLMAP has no such camera model."""
    models = [model for model in import_pycolmap().CameraModelId.__members__ if model != "INVALID"]
    if name not in models:
        raise InputError(f"COLMAP has no camera model {name}; it has {', '.join(sorted(models))}")


def write_database(
    photos: str | os.PathLike[str],
    features: str | os.PathLike[str],
    matches: str | os.PathLike[str],
    out: str | os.PathLike[str],
    camera_model: str = "SIMPLE_RADIAL",
    single_camera: bool = False,
    verify: bool = True,
    max_error: float = 4.0,
    progress: Any = NoProgress,
) -> DatabaseSummary:
    """Write a COLMAP database of photos, features and matches; what is in it already stays and is not added again.

    It has a table of its own, `lightglue_hf`, with the settings that it was made with; COLMAP looks at its own alone.

    Args:
        photos: the folder.
        features: features.h5. Photos that are not in the folder are left out, and so are their pairs.
        matches: matches.h5.
        out: the database; changed in one move, or not at all.
        camera_model: COLMAP's name. Focal lengths are those of EXIF data, or 1.2 times the longer side.
        single_camera: all photos were taken by one, with one lens.
        verify: look for the geometry of every pair: a fundamental or essential matrix, or a homography.
        max_error: pixels, by which a match may miss it.
        progress: tqdm's class, or one like it.

    Raises:
        InputError: no photo of the features is in the folder, or no pair of them has matches; an index of a match is
            of no keypoint; one camera is asked for, and photos differ in size; `out` holds other keypoints for a photo
            or other matches for a pair, photos that are not in the folder, or was made with other settings.
        FileExistsError: another process writes it.
        OSError: it cannot be written.
    """
    pycolmap = import_pycolmap()
    out = Path(out)
    check_camera_model(camera_model)
    settings = {"camera_model": camera_model, "single_camera": single_camera} | (
        {"max_error": max_error} if verify else {}
    )
    with open_hdf5(features) as feature_file, open_hdf5(matches) as match_file:
        in_folder = set(photo_names(photos))
        found = sorted(group_names(feature_file, FEATURES))
        names = [name for name in found if name in in_folder]
        left_out = {name: f"it is not in {photos}" for name in found if name not in in_folder}
        if not names:
            raise InputError(f"no photo of {features} is in {photos}")
        if single_camera:
            _refuse_other_sizes(feature_file, names)
        with _changing(out) as (database, changes):
            pycolmap.Database.open(database).close()
            if _settle(database, out, settings):
                changes.append("settings")
            reader = pycolmap.ImageReaderOptions(camera_model=camera_model)
            cameras = _check_there(pycolmap, database, out, in_folder, camera_model, single_camera)
            if single_camera and cameras:
                reader.existing_camera_id = cameras[0]
            mode = pycolmap.CameraMode.SINGLE if single_camera else pycolmap.CameraMode.AUTO
            if new := _missing(pycolmap, database, names):
                pycolmap.import_images(database, photos, mode, image_names=new, options=reader)
                changes.append("photos")
            left_out |= dict.fromkeys(_missing(pycolmap, database, names), "COLMAP cannot read it")
            names = [name for name in names if name not in left_out]
            if not names:
                raise InputError("COLMAP can read none of the photos")
            pairs = _pairs_of(match_file, names, left_out)
            _fill(pycolmap, database, names, pairs, feature_file, match_file, out, progress, changes)
            if verify and _verify(pycolmap, database, pairs, max_error):
                changes.append("geometries")
            return _summary(pycolmap, database, left_out)


@contextmanager
def _changing(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A copy of a database, or a new one, and a list; the copy takes its place if there is anything in the list."""
    if not path.absolute().parent.is_dir():
        raise InputError(f"the directory of {path} does not exist")
    aside = Path(f"{path}.parts")
    with working_directory(aside):
        try:
            for left in aside.iterdir():  # of a killed process
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            copy = aside / "database.db"
            if path.exists():
                shutil.copyfile(path, copy)
            changes: list[str] = []
            yield copy, changes
            if changes or not path.exists():
                copy.replace(path)
        except RuntimeError as error:  # SQLite's, for a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _refuse_other_sizes(features: Any, names: list[str]) -> None:
    """Raise an InputError if photos of one camera have several sizes."""
    sizes: dict[tuple[int, ...], str] = {}
    for name in names:
        if "image_size" in features[name]:
            sizes.setdefault(tuple(features[name]["image_size"][()].tolist()), name)
    if len(sizes) > 1:
        first, second, *_ = (f"{name} has {width} x {height} pixels" for (width, height), name in sizes.items())
        raise InputError(f"one camera is asked for, and takes photos of one size: {first}, {second}")


def _settle(database: Path, out: Path, settings: Settings) -> bool:
    """Write settings into a database, which keeps those that it has; whether any is new.

    A database with photos and without such settings is another program's, and stays as it is.

    Raises:
        InputError: it was made with others, which are named.
    """
    with closing(sqlite3.connect(database)) as db, db:
        known = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (SETTINGS,)).fetchone()
        if not known:
            if db.execute("SELECT 1 FROM images").fetchone():
                return False
            db.execute(f"CREATE TABLE {SETTINGS} (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        there = {name: json.loads(value) for name, value in db.execute(f"SELECT name, value FROM {SETTINGS}")}
        refuse_other_settings(out, {name: there.get(name, value) for name, value in settings.items()}, settings)
        new = [(name, json.dumps(value)) for name, value in settings.items() if name not in there]
        db.executemany(f"INSERT INTO {SETTINGS} VALUES (?, ?)", new)
    return bool(new)


def _check_there(
    pycolmap: Any, database: Path, out: Path, photos: set[str], camera_model: str, single_camera: bool
) -> list[int]:
    """The numbers of the cameras that a database has already.

    Raises:
        InputError: it has photos that are in the folder no longer, or was made with other cameras.
    """
    with pycolmap.Database.open(database) as db:
        gone = sorted(image.name for image in db.read_all_images() if image.name not in photos)
        cameras = db.read_all_cameras()
    if gone:
        raise InputError(f"{out} has photos that are not in the folder, {gone[0]} for one: remove it, or rename it")
    others = {camera.model_name for camera in cameras} - {camera_model}
    if others:
        raise InputError(f"{out} has cameras of {', '.join(sorted(others))}, not {camera_model}: choose another name")
    if single_camera and len(cameras) > 1:
        raise InputError(f"{out} has {len(cameras)} cameras, and one is asked for: choose another name")
    return [camera.camera_id for camera in cameras]


def _missing(pycolmap: Any, database: Path, names: list[str]) -> list[str]:
    with pycolmap.Database.open(database) as db:
        there = {image.name for image in db.read_all_images()}
    return [name for name in names if name not in there]


def _fill(
    pycolmap: Any,
    database: Path,
    names: list[str],
    pairs: list[tuple[str, str]],
    features: Any,
    matches: Any,
    out: Path,
    progress: Any,
    changes: list[str],
) -> None:
    """Write keypoints and matches that are not there.

    Raises:
        InputError: those that are there are others.
    """
    with pycolmap.Database.open(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        counts = {}
        with pycolmap.DatabaseTransaction(db):
            for name in names:
                keypoints = features[name][FEATURES][()].astype(np.float32) + np.float32(0.5)
                counts[name] = len(keypoints)
                if not db.exists_keypoints(ids[name]):
                    db.write_keypoints(ids[name], keypoints.reshape(-1, 2))
                    changes.append(name)
                elif not np.array_equal(db.read_keypoints(ids[name])[:, :2], keypoints):
                    raise InputError(f"{out} has other keypoints of {name}: choose another name, or remove it")
        with progress(desc="pairs", total=len(pairs), unit="pair") as bar, pycolmap.DatabaseTransaction(db):
            for name0, name1 in pairs:
                bar.update(1)
                found, _ = matches_of(matches, name0, name1)
                if len(found) and (found.max(0) >= [counts[name0], counts[name1]]).any():
                    raise InputError(f"{matches.filename}: matches of {name0} {name1} are of other features")
                pair = ids[name0], ids[name1]
                if not db.exists_matches(*pair):
                    db.write_matches(*pair, found.astype(np.uint32))
                    changes.append(name0)
                    continue
                there = db.read_matches(*pair)
                taken_out = len(there) == 0 and len(found) < MIN_INLIERS  # COLMAP does it where they are that few
                if not taken_out and not np.array_equal(np.unique(there, axis=0), np.unique(found, axis=0)):
                    raise InputError(f"{out} has other matches of {name0} {name1}: choose another name, or remove it")


def _pairs_of(matches: Any, names: list[str], left_out: dict[str, str]) -> list[tuple[str, str]]:
    """The pairs in a file of matches whose photos are named, by their names.

    Args:
        left_out: photos that are missed already; pairs of photos that nobody knows are added.

    Raises:
        InputError: there are none, or a group that is of no pair.
    """
    original = {name.replace("/", "-"): name for name in names}
    missed = {name.replace("/", "-") for name in left_out}
    pairs = []
    for key in group_names(matches, MATCHES):
        pair = key.split("/")
        if len(pair) != 2:
            raise InputError(f"{matches.filename}: {key} is no group of a pair, A/B")
        unknown = [name for name in pair if name not in original and name not in missed]
        if unknown:
            left_out[" ".join(pair)] = f"no features of {unknown[0]}"
        elif pair[0] in original and pair[1] in original:
            pairs.append((original[pair[0]], original[pair[1]]))
    if not pairs:
        raise InputError(f"{matches.filename} has no matches of two of these photos")
    return sorted(pairs)


def _verify(pycolmap: Any, database: Path, pairs: list[tuple[str, str]], max_error: float) -> bool:
    """Look for the geometry of every pair that has none yet; whether there were any."""
    with pycolmap.Database.open(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        left = [pair for pair in pairs if not db.exists_two_view_geometry(*(ids[name] for name in pair))]
    if not left:
        return False
    # COLMAP writes from a thread of its own, and ends the whole process if the disk is full
    needed = 2 * database.stat().st_size
    if shutil.disk_usage(database.parent).free < needed:
        raise OSError(f"{os.strerror(errno.ENOSPC)}: {needed:,} bytes are needed for {database.parent}")
    options = pycolmap.TwoViewGeometryOptions(min_num_inliers=MIN_INLIERS)
    options.ransac.max_error = max_error
    options.ransac.random_seed = SEED
    with tempfile.TemporaryDirectory(dir=database.parent) as directory:
        listed = Path(directory, "pairs.txt")
        listed.write_text("".join(f"{name0} {name1}\n" for name0, name1 in left), encoding="utf-8")
        pycolmap.verify_matches(database, listed, options)
    return True


def _summary(pycolmap: Any, database: Path, left_out: dict[str, str]) -> DatabaseSummary:
    with pycolmap.Database.open(database) as db:
        _, inliers = db.read_two_view_geometry_num_inliers()
        return DatabaseSummary(
            photos=db.num_images(),
            pairs=db.num_matched_image_pairs(),
            verified=sum(count >= MIN_INLIERS for count in inliers),
            matches=db.num_matches(),
            inliers=sum(inliers),
            left_out=left_out,
        )
