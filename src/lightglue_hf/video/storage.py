"""tracks.h5: where every point was in every frame.

The points of all frames stand one after the other, in the order of the frames; frame i has the rows `first[i]` to
`first[i + 1]`:

| data set | | |
|---|---|---|
| `ids` | `(n,)` int64 | the track of each point |
| `positions` | `(n, 2)` float32 | pixels of the upright frame, (x, y), centre of the first pixel = (0, 0) |
| `scores` | `(n,)` float16 | 1 less the pixels that flow misses there and back, or the match's; 0 where it begins |
| `first` | `(frames + 1,)` int64 | the first row of each frame, and the number of rows |
| `times` | `(frames,)` float64 | seconds since the first frame |
| `keyframes` | `(frames,)` bool | frames that were looked at |
| `image_size` | `(2,)` int32 | (width, height) of the frames |
| `homographies` | `(frames, 3, 3)` float64 | with a template: its pixels to the frame's; NaN where it was not found |

With a template there are no points, and `template_size` `(2,)` int32 is its (width, height). The attribute
`lightglue_hf` says what made the file, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..collection.storage import SETTINGS, Settings, open_hdf5, settings_of
from ..utils.errors import InputError
from ..utils.files import overwriting
from ..utils.optional import import_optional
from .points import Tracks

ROWS_AT_ONCE = 1 << 14  # that are kept in memory
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "ids": ("i8", ()),
    "positions": ("f4", (2,)),
    "scores": ("f2", ()),
    "first": ("i8", ()),
    "times": ("f8", ()),
    "keyframes": ("?", ()),
    "homographies": ("f8", (3, 3)),
}
"""Type and shape of a row of what grows."""


class TracksWriter:
    """Adds frames to an open file; see [`writing_tracks`]."""

    def __init__(self, path: str | os.PathLike[str], file: Any, template: bool) -> None:
        self.path, self.file, self.template = path, file, template
        self.waiting: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
        self.rows = 0
        for name, (dtype, shape) in COLUMNS.items():
            if name != "homographies" or template:
                file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(4096, *shape))
        self._put("first", [0])

    def add(self, time: float, tracks: Tracks | None = None, homography: np.ndarray | None = None) -> None:
        """The next frame.

        Args:
            time: of the frame, in seconds.
            tracks: its points, in pixels of the frame; `None` with a template.
            homography: `(3, 3)`, of a template that was found.
        """
        if tracks is not None:
            self._put("ids", tracks.ids)
            self._put("positions", tracks.positions)
            self._put("scores", tracks.scores)
            self.rows += len(tracks.ids)
        self._put("first", [self.rows])
        self._put("times", [time])
        self._put("keyframes", [tracks is not None and tracks.keyframe])
        if self.template:
            self._put("homographies", np.full((1, 3, 3), np.nan) if homography is None else homography[None])
        if sum(map(len, self.waiting["ids"])) >= ROWS_AT_ONCE or len(self.waiting["times"]) >= ROWS_AT_ONCE:
            self.flush()

    def _put(self, name: str, values: Any) -> None:
        self.waiting[name].append(np.asarray(values))

    def flush(self) -> None:
        """Write what waits in memory."""
        try:
            for name, parts in self.waiting.items():
                if parts:
                    rows, dataset = np.concatenate(parts), self.file[name]
                    dataset.resize(len(dataset) + len(rows), axis=0)
                    dataset[len(dataset) - len(rows) :] = rows
                    parts.clear()
        except (OSError, RuntimeError) as error:  # HDF5's, for a full disk
            raise OSError(f"{self.path} cannot be written: {error}") from error


@contextmanager
def writing_tracks(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    settings: Settings | None = None,
    template_size: tuple[int, int] | None = None,
) -> Iterator[Callable[..., None]]:
    """A function that adds frames to tracks.h5; see [`TracksWriter.add`].

    The file takes its place at the end, whole; after an error what stood there stays.

    Args:
        path: of the file.
        size: (height, width) of the frames.
        settings: what makes it.
        template_size: (height, width) of the template, if there is one.

    Raises:
        MissingPackageError: h5py is not installed.
        OSError: it cannot be written.
    """
    h5py = import_optional("h5py", "video")
    with overwriting(path) as made, h5py.File(made, "w") as file:
        file.attrs[SETTINGS] = json.dumps(settings or {}, sort_keys=True)
        file["image_size"] = np.array(size[::-1], np.int32)
        if template_size is not None:
            file["template_size"] = np.array(template_size[::-1], np.int32)
        writer = TracksWriter(path, file, template_size is not None)
        yield writer.add
        writer.flush()


@dataclass(frozen=True)
class SavedTracks:
    """What tracks.h5 says; fields as in the table above, `image_size` and `template_size` as (height, width)."""

    ids: np.ndarray
    positions: np.ndarray
    scores: np.ndarray
    first: np.ndarray
    times: np.ndarray
    keyframes: np.ndarray
    image_size: tuple[int, int]
    homographies: np.ndarray | None
    template_size: tuple[int, int] | None
    settings: Settings | None

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.times)

    def frame(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids `(n,)` and positions `(n, 2)` of a frame."""
        rows = slice(self.first[i], self.first[i + 1])
        return self.ids[rows], self.positions[rows]

    def track(self, id: int) -> tuple[np.ndarray, np.ndarray]:
        """The frames `(k,)` that a track is seen in, and where, `(k, 2)`."""
        rows = np.flatnonzero(self.ids == id)
        return np.searchsorted(self.first, rows, side="right") - 1, self.positions[rows]

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """All ids, in order, and in how many frames each is seen."""
        ids, counts = np.unique(self.ids, return_counts=True)
        return ids, counts


def read_tracks(path: str | os.PathLike[str]) -> SavedTracks:
    """Read tracks.h5.

    Raises:
        InputError: it is not there, no HDF5 file, or none of tracks.
    """
    with open_hdf5(path) as file:
        required = (*(name for name in COLUMNS if name != "homographies"), "image_size")
        if missing := [name for name in required if name not in file]:
            raise InputError(f"{path} is no file of tracks: it has no {', '.join(missing)}")
        size, template_size = (
            (int(file[name][1]), int(file[name][0])) if name in file else None
            for name in ("image_size", "template_size")
        )
        assert size is not None
        columns: dict[str, Any] = {name: file[name][()] if name in file else None for name in COLUMNS}
        first = columns["first"]
        rows = {len(columns[name]) for name in ("ids", "positions", "scores")}
        per_frame = ("times", "keyframes", *(["homographies"] if "homographies" in file else []))
        frames = {len(columns[name]) for name in per_frame}
        if not len(first) or rows != {int(first[-1])} or frames != {len(first) - 1} or (np.diff(first) < 0).any():
            raise InputError(f"{path} is broken: its frames and rows do not go together")
        return SavedTracks(**columns, image_size=size, template_size=template_size, settings=settings_of(file))
