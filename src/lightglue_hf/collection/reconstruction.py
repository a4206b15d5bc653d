"""From a folder of photos to cameras and points in space, all in one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.digests import sha256_of
from ..utils.errors import InputError
from ..utils.files import refilling, write_atomically
from .colmap import MIN_INLIERS, SEED, check_camera_model, import_pycolmap, write_database
from .extraction import extract_features
from .matching import match_pairs
from .pairing import exhaustive_pairs, gps_pairs, retrieval_pairs, sequential_pairs
from .photos import photo_names
from .pictures import draw_cameras, draw_photos
from .storage import read_names, write_pairs
from .work import NoProgress

EXHAUSTIVE = 60
"""Photos, up to which every pair is matched by default; beyond, each photo with those that look most alike."""

INITIAL_INLIERS = (100, 50)
"""Of the pair that the mapping begins with: COLMAP's number, and what is tried if not all photos are registered."""

LARGEST_ERROR = 3.0
"""Pixels between a keypoint and its point as the camera sees it, beyond which it is of another point.

COLMAP says 4; with 3 the mean error is a seventh less on ten photos of a church, and points are not fewer."""

MODEL_FILES = ("cameras.bin", "frames.bin", "images.bin", "points3D.bin", "rigs.bin")


class MappingSummary(NamedTuple):
    """What the largest model has.

    Args:
        photos: how many there are.
        registered: the names of those whose cameras were found.
        points: in space.
        observations: keypoints that are of one of these points.
        track_length: keypoints of a point, on average.
        reprojection_error: pixels, on average, between a keypoint and its point as the camera sees it.
        models: how many were found that have no photo in common with the largest, or not enough; with it.
    """

    photos: int
    registered: list[str]
    points: int
    observations: int
    track_length: float
    reprojection_error: float
    models: int


def map_photos(
    photos: str | os.PathLike[str],
    database: str | os.PathLike[str],
    out: str | os.PathLike[str],
    threads: int = 1,
) -> MappingSummary | None:
    """Find the cameras and points by COLMAP's incremental mapping, and write the largest model.

    Args:
        photos: the folder.
        database: of COLMAP, verified.
        out: a directory for cameras.bin, images.bin, points3D.bin and so on, as COLMAP writes them.
        threads: of COLMAP; -1 for all. Only with 1 does the same database give the same model again.

    Returns:
        What was found, or `None` if no two photos fit together.

    Source: Schönberger and Frahm, "Structure-from-Motion Revisited" (CVPR 2016).
    """
    pycolmap = import_pycolmap()
    with pycolmap.Database.open(database) as db:
        count = db.num_images()
    best, models = None, 0
    with refilling(out, MODEL_FILES, "cameras.bin") as made:
        for inliers in INITIAL_INLIERS:
            found = pycolmap.incremental_mapping(database, photos, made, _options(pycolmap, inliers, threads))
            for directory in [path for path in made.iterdir() if path.is_dir()]:
                shutil.rmtree(directory)
            for model in found.values():
                if best is None or _size(model) > _size(best):
                    best, models = model, len(found)
            if best is not None and best.num_reg_images() == count:
                break
        if best is None:
            return None
        best.write(made)
    return MappingSummary(
        photos=count,
        registered=sorted(best.images[i].name for i in best.reg_image_ids()),
        points=best.num_points3D(),
        observations=best.compute_num_observations(),
        track_length=best.compute_mean_track_length(),
        reprojection_error=best.compute_mean_reprojection_error(),
        models=models,
    )


def _size(model: Any) -> tuple[int, int]:
    return model.num_reg_images(), model.num_points3D()


def _options(pycolmap: Any, inliers: int, threads: int) -> Any:
    """Of the mapping, which begins with a pair of so many inliers."""
    options = pycolmap.IncrementalPipelineOptions(
        min_num_matches=MIN_INLIERS, min_model_size=2, random_seed=SEED, num_threads=threads
    )
    options.mapper.random_seed = SEED
    options.triangulation.random_seed = SEED
    options.mapper.init_min_num_inliers = inliers
    # half of COLMAP's: on ten photos of a church, as many cameras and a tenth more points of the weakest checkpoint
    options.mapper.abs_pose_min_num_inliers = MIN_INLIERS
    options.mapper.filter_max_reproj_error = LARGEST_ERROR
    options.triangulation.complete_max_reproj_error = LARGEST_ERROR
    options.triangulation.merge_max_reproj_error = LARGEST_ERROR
    return options


def choose_pairs(
    way: str, names: list[str], photos: str | os.PathLike[str], features: str | os.PathLike[str], **options: Any
) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of photos by the name of a way, and the photos without a GPS position, which are in none.

    Args:
        way: "exhaustive", "sequential", "retrieval" or "gps"; "auto" for the first or third, by the number of photos.
        names: of photos in features.h5.
        photos: the folder.
        features: the file.
        options: `neighbours`; `window` and `loop_every` of sequential pairs; `distance` of GPS pairs.
    """
    if way == "auto":
        way = "exhaustive" if len(names) <= EXHAUSTIVE else "retrieval"
    neighbours = {"neighbours": options["neighbours"]} if options.get("neighbours") else {}
    if way == "exhaustive":
        return list(exhaustive_pairs(names)), []
    if way == "sequential":
        own = {name: options[name] for name in ("window", "loop_every") if options.get(name) is not None}
        return list(sequential_pairs(names, features=features, **own, **neighbours)), []
    if way == "retrieval":
        return list(retrieval_pairs(names, features, **neighbours)), []
    if way == "gps":
        own = {"distance": options["distance"]} if options.get("distance") else {}
        return gps_pairs(photos, names, **own, **neighbours)
    raise InputError(f"there is no way of choosing pairs called {way}")


def reconstruct(
    photos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: Any,
    processor: Any,
    by: str = "auto",
    pair_options: dict[str, Any] | None = None,
    batch_size: int = 8,
    camera_model: str = "SIMPLE_RADIAL",
    single_camera: bool = False,
    threads: int = 1,
    name: str = "",
    cluster: Any | None = None,
    progress: Any = NoProgress,
    log: Any = lambda text: None,
) -> dict[str, Any]:
    """Everything from a folder of photos to a model; what a run before it did is not done again.

    Args:
        photos: the folder.
        out: a directory, for features.h5, pairs.txt, matches.h5, database.db, sparse/ (the model, as COLMAP writes
            it), points.ply, model.png (cameras and points from two sides), photos.png (photos, their keypoints
            coloured by whether they are of a point in space) and summary.json.
        model: matcher with its detector; in evaluation mode.
        processor: its image processor; its `size` is what photos are resized to.
        by: how pairs are chosen; see [`choose_pairs`].
        pair_options: of that.
        batch_size: photos of one size, and pairs, that are computed together.
        camera_model, single_camera: see [`write_database`].
        threads: see [`map_photos`].
        name, cluster, progress: see [`extract_features`].
        log: takes what is being done, in words.

    Returns:
        What is in summary.json: `features`, `matches`, `database` and `mapping`, as dictionaries of the fields of
        [`FeaturesSummary`], [`MatchesSummary`], [`DatabaseSummary`] and [`MappingSummary`]; the last is `None` if no
        two photos fit together.

    Raises:
        InputError: fewer than two photos that can be read; or see the stages.
        OSError: a file cannot be written.
    """
    out = Path(out)
    check_camera_model(camera_model)  # before hours of work
    if len(photo_names(photos)) < 2:
        raise InputError(f"one photo in {photos}: a reconstruction needs two, and better twenty")
    if out.resolve().is_relative_to(Path(photos).resolve()):
        raise InputError(f"{out} lies in {photos}: its pictures would be taken for photos the next time")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is no directory")
    if not out.absolute().parent.is_dir():
        raise InputError(f"the directory of {out} does not exist")
    if not (out / "features.h5").exists() and (
        left := [name for name in MODEL_FILES if (out / "sparse" / name).exists()]
    ):
        raise InputError(f"{out}/sparse/{left[0]} is of another reconstruction: choose another directory")
    out.mkdir(exist_ok=True)
    features, pairs, matches, database = (out / f for f in ("features.h5", "pairs.txt", "matches.h5", "database.db"))
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "name": name,
        "cluster": cluster,
        "progress": progress,
    }
    extracted = extract_features(photos, features, model, processor, **shared)
    in_folder = set(photo_names(photos))
    names = [name for name in read_names(features) if name in in_folder]
    if len(names) < 2:
        raise InputError(f"{len(names)} of {extracted.photos} photos can be read: a reconstruction needs two")
    chosen, without = choose_pairs(by, names, photos, features, **(pair_options or {}))
    if not chosen:
        raise InputError("no two photos were chosen to be matched")
    write_pairs(pairs, chosen)
    log(f"{len(names)} photos, {len(chosen)} pairs")
    matched = match_pairs(features, pairs, matches, model, processor, **shared)
    log("looking for the geometry of every pair ...")
    filled = write_database(photos, features, matches, database, camera_model, single_camera)
    # what was taken out of the folder since is not missed
    filled = filled._replace(left_out={name: why for name, why in filled.left_out.items() if name in in_folder})
    log("looking for cameras and points ...")
    summary: dict[str, Any] = {
        "features": extracted._asdict(),
        "without_position": without,
        "matches": matched._asdict(),
        "database": filled._asdict(),
    }
    summary["mapping"] = _mapped(photos, out, threads)
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _mapped(photos: str | os.PathLike[str], out: Path, threads: int) -> dict[str, Any] | None:
    """The model of a database, with its pictures; not made again as long as the database is the same."""
    made = out / "sparse" / "made.json"
    if made.exists():
        there = json.loads(made.read_text())
        if there["database"] == sha256_of(out / "database.db") and (out / "photos.png").exists():
            return there["mapping"]
        made.unlink()
    mapping = map_photos(photos, out / "database.db", out / "sparse", threads)
    if mapping is None:
        return None
    reconstruction = import_pycolmap().Reconstruction(out / "sparse")
    reconstruction.export_PLY(out / ".points.ply")
    (out / ".points.ply").replace(out / "points.ply")
    draw_cameras(reconstruction, out / "model.png")
    draw_photos(reconstruction, photos, out / "photos.png")
    about = {"database": sha256_of(out / "database.db"), "mapping": mapping._asdict()}  # COLMAP changes its header
    write_atomically(made, json.dumps(about, indent=1) + "\n")
    return mapping._asdict()
