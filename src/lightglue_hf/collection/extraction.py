"""The features of every photo of a folder, once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..geometry import resized_shape, scale_keypoints
from ..utils.errors import InputError
from ..utils.files import write_atomically
from .photos import BROKEN, has_stamp, load_stored, photo_names, stamp, stored_size
from .settings import feature_settings
from .storage import FEATURES, MADE_FROM, Arrays, growing
from .work import NoProgress, Part, Shard, ahead, cut, remaining, run_here, to_shards

PHOTOS_IN_A_SHARD = 16
READERS = min(8, (os.cpu_count() or 1) + 1)
"""Threads that decode photos while the model computes."""


class FeaturesSummary(NamedTuple):
    """What became of a folder.

    Args:
        photos: how many there are.
        made: how many of them this run did.
        left_out: those that cannot be read, and why.
        replaced: how many were another photo under the same name when their features were made before.
    """

    photos: int
    made: int
    left_out: dict[str, str]
    replaced: int = 0


class Extractor:
    """Finds the features of photos; a [`Worker`] of shards of names.

    Args:
        model: with a detector, in evaluation mode.
        processor: its image processor.
        folder: that the names start from.
    """

    def __init__(self, model: Any, processor: Any, folder: str) -> None:
        self.model, self.processor, self.folder = model, processor, folder

    def __call__(self, shards: Iterable[Shard]) -> Iterator[Part]:
        shards = list(shards)
        batches = [batch for shard in shards for batch in shard]
        with ThreadPoolExecutor(READERS) as pool:
            most = 2 * max(map(len, batches), default=1) + READERS
            loaded = ahead(pool, self.load, (name for batch in batches for name in batch), most)
            for shard in shards:
                part = Part()
                for batch in shard:
                    self.extract([next(loaded) for _ in batch], part)
                yield part

    def load(self, name: str) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int], str]:
        """Pixels `(1, 3, h, w)`, image sizes `(1, 2)` (height, width), the size of the photo as stored, its stamp."""
        path = Path(self.folder, name)
        made = stamp(path)  # before: what is written meanwhile is then another photo
        photo = load_stored(path)
        inputs = self.processor(photo, pairs=False, return_tensors="pt")
        return inputs["pixel_values"], inputs["image_sizes"], (photo.height, photo.width), made

    def extract(self, batch: list[tuple[str, Any]], part: Part) -> None:
        """Add the features of a batch to a part, and what is wrong with the others."""
        alike: dict[tuple[int, ...], list[tuple[str, Any]]] = {}
        for name, future in batch:
            try:
                loaded = future.result()
            except BROKEN as error:
                part.left_out[name] = reason(error, Path(self.folder, name))
            else:
                alike.setdefault(loaded[0].shape, []).append((name, loaded))
        for group in alike.values():
            pixels, sizes = (torch.cat([loaded[i] for _, loaded in group]) for i in (0, 1))
            if not hasattr(self.model, "engine"):
                pixels, sizes = pixels.to(self.model.device), sizes.to(self.model.device)
            features = self.model.extract_features(pixels, image_sizes=sizes)
            for (name, loaded), arrays in zip(group, features.numpy()):
                part.groups[name] = to_group(arrays, loaded[2]) | {MADE_FROM: np.array(loaded[3].encode())}


def to_group(features: Arrays, size: tuple[int, int]) -> Arrays:
    """The features of one image as features.h5 has them.

    Args:
        features: as `KeypointFeatures.numpy` gives them, in pixels of the image that was resized from the photo.
        size: (height, width) of the photo.

    Source: hloc@abb2520, `hloc/extract_features.py` (the half-pixel rule; scales and uncertainty by the mean factor).
    """
    resized = features["image_sizes"]
    factor = float(np.mean(np.asarray(size) / resized))
    keypoints = scale_keypoints(torch.from_numpy(features["keypoints"]), resized.tolist(), size).numpy()
    group: Arrays = {
        FEATURES: keypoints.astype(np.float32),
        "descriptors": np.ascontiguousarray(features["descriptors"].T.astype(np.float16)),
        "image_size": np.array(size[::-1], dtype=np.int32),
        "uncertainty": np.array(factor, dtype=np.float32),
    }
    if "scores" in features:
        group["scores"] = features["scores"].astype(np.float16)
    if "scales" in features:
        group["scales"] = (features["scales"] * factor).astype(np.float32)
        group["oris"] = features["orientations"].astype(np.float32)
    return group


def from_group(group: Any, arrays: Arrays) -> Arrays:
    """The way back, for `KeypointFeatures.from_numpy`; keypoints stay in pixels of the photo.

    Args:
        group: of an open file.
        arrays: what [`features_of_group`] reads from it.
    """
    features = {name: arrays[name] for name in (FEATURES, "descriptors")}
    features["image_sizes"] = arrays["image_size"]
    if "scales" in arrays and "orientations" in arrays:
        # the matcher learned from scales in the image that the detector saw
        features["scales"] = arrays["scales"] / np.float32(group[FEATURES].attrs.get("uncertainty", 1))
        features["orientations"] = arrays["orientations"]
    return features


def plan_photos(folder: Path, names: list[str], processor: Any, batch_size: int) -> tuple[list[Shard], dict[str, str]]:
    """Which photos are computed together: those that fill the same canvas.

    Returns:
        The shards, and the photos whose size cannot be read, with the reason.
    """

    def canvas(size: tuple[int, int]) -> tuple[int, int]:
        if not processor.do_resize:
            return size
        height, width = resized_shape(*size, processor.size)
        divisor = processor.size_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def try_size(name: str) -> tuple[int, int] | str:
        try:
            return canvas(stored_size(folder / name))
        except BROKEN as error:
            return reason(error, folder / name)

    left_out: dict[str, str] = {}
    canvases: dict[str, tuple[int, int]] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for name, found in ahead(pool, try_size, names, 1000):
            size = found.result()
            if isinstance(size, str):
                left_out[name] = size
            else:
                canvases[name] = size
    ordered = sorted(canvases, key=lambda name: (canvases[name], name))
    return list(to_shards(cut(ordered, batch_size, canvases.__getitem__), PHOTOS_IN_A_SHARD)), left_out


def reason(error: Exception, path: Path) -> str:
    """Why a photo is left out, in a line without its path."""
    text = " ".join(str(error).split()).replace(str(path), "it")
    return text[:300] or type(error).__name__


def extract_features(
    photos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: Any,
    processor: Any,
    batch_size: int = 8,
    name: str = "",
    cluster: Any | None = None,
    progress: Any = NoProgress,
) -> FeaturesSummary:
    """Write the features of every photo of a folder to features.h5; those that are there are not done again.

    Those of a photo that was replaced by another one of its name are.

    Photos that cannot be read are left out, and listed with the reason in a file beside `out`, which ends in
    `.left-out.json`; they are tried again the next time. The EXIF orientation is ignored; see photos.py.

    Args:
        photos: the folder.
        out: the file; see storage.py. It is there when all is done, and until then what is done in `out.parts`.
        model: with a detector; in evaluation mode.
        processor: its image processor; its `size` is what photos are resized to.
        batch_size: photos of one size that are computed together.
        name: what the model is called, for the file to say.
        cluster: a [`Cluster`] to compute on, instead of here.
        progress: tqdm's class, or one like it.

    Raises:
        InputError: no photos, names that the files cannot hold, none that can be read, or `out` was made otherwise.
        FileExistsError: another process writes the same file.
        OSError: it cannot be written.
    """
    folder, out = Path(photos), Path(out)
    names = photo_names(folder)
    settings = feature_settings(model, processor, name)
    with growing(out, FEATURES, settings, lru_cache(None)(partial(_is_of, folder))) as store:
        shards, left_out = plan_photos(folder, names, processor, batch_size)
        ahead_of_us = list(remaining(shards, store.done.__contains__))
        there = len(store.done.intersection(names))
        work = partial(Extractor, folder=str(folder.absolute()))
        with progress(desc="photos", total=len(names) - len(left_out), initial=there, unit="photo") as bar:
            if cluster is None:
                left_out |= run_here(work(model, processor), ahead_of_us, store, bar)
            else:
                left_out |= cluster.run(work, ahead_of_us, store, bar)
        _write_left_out(out, left_out)
        if len(left_out) == len(names):
            first = next(iter(left_out))
            raise InputError(f"none of the {len(names)} photos can be read; {first}: {left_out[first]}")
    made = len(names) - there - len(left_out)
    return FeaturesSummary(len(names), made, dict(sorted(left_out.items())), len(store.outdated - left_out.keys()))


def _is_of(folder: Path, name: str, made: str) -> bool:
    return has_stamp(folder / name, made)


def _write_left_out(out: Path, left_out: dict[str, str]) -> None:
    path = out.with_name(f"{out.name}.left-out.json")
    if left_out:
        write_atomically(path, json.dumps(dict(sorted(left_out.items())), indent=1) + "\n")
    else:
        path.unlink(missing_ok=True)
