"""The matches of every pair of a list, from features that were found once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.posed_pairs import features_of_group
from ..features import KeypointFeatures
from ..utils.errors import InputError
from .extraction import from_group
from .settings import feature_settings, match_settings
from .storage import (
    FEATURES,
    MADE_FROM,
    MATCHES,
    Arrays,
    Settings,
    group_names,
    growing,
    has_dataset,
    made_from,
    open_hdf5,
    pair_key,
    read_pairs,
    settings_of,
)
from .work import NoProgress, Part, Shard, cut, remaining, run_here, to_shards

PAIRS_IN_A_SHARD = 64
PHOTOS_KEPT = 64
"""Photos whose features stay in memory for the next pairs."""


class MatchesSummary(NamedTuple):
    """What became of a list of pairs.

    Args:
        pairs: how many there are.
        made: how many of them this run did.
        left_out: those with a photo that has no features.
    """

    pairs: int
    made: int
    left_out: dict[str, str]


class Matcher:
    """Matches pairs; a [`Worker`] of shards of pairs of names.

    Args:
        model: `LightGlueForKeypointMatching`, or a runtime of exported graphs.
        processor: not used.
        features: path of features.h5.
    """

    def __init__(self, model: Any, processor: Any, features: str) -> None:
        self.model = model
        self.file = open_hdf5(features)
        self.read = lru_cache(PHOTOS_KEPT)(self._read)
        self.digest = lru_cache(PHOTOS_KEPT)(lambda name: digest_of(self.file[name]))

    def _read(self, name: str) -> Arrays:
        group = self.file[name]
        where = f"{self.file.filename}: {name}"
        arrays = features_of_group(group, where)
        if not all(np.isfinite(arrays[field]).all() for field in (FEATURES, "descriptors")):
            raise InputError(f"{where} has NaN or Inf")
        return from_group(group, arrays)

    def __call__(self, shards: Iterable[Shard]) -> Iterator[Part]:
        for shard in shards:
            part = Part()
            for batch in shard:
                part.groups |= self.match(batch)
            yield part

    def match(self, pairs: list[tuple[str, str]]) -> dict[str, Arrays]:
        """The groups of a batch of pairs, as matches.h5 has them."""
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        images = [self.read(name) for name in names]
        features = KeypointFeatures.from_numpy(images)
        if not hasattr(self.model, "engine"):
            features = features.to(self.model.device)
        outputs = self.model.match_features(features.pairs([[names.index(name) for name in pair] for pair in pairs]))
        matches = outputs.matches[:, 0].cpu().numpy().astype(np.int32)
        scores = outputs.matching_scores[:, 0].float().cpu().numpy().astype(np.float16)
        counts = [len(images[names.index(name0)][FEATURES]) for name0, _ in pairs]
        groups: dict[str, Arrays] = {}
        for i, (pair, n) in enumerate(zip(pairs, counts)):
            group = groups[pair_key(*pair)] = {MATCHES: matches[i, :n], "matching_scores0": scores[i, :n]}
            if made := made_of(*map(self.digest, pair)):
                group[MADE_FROM] = np.array(made.encode())
        return groups


def digest_of(group: Any) -> str | None:
    """Of the photo that features were made from, if they say it."""
    made = made_from(group)
    return None if made is None else made.split()[-1]


def made_of(digest0: str | None, digest1: str | None) -> str | None:
    """What matches are made from, by the digests of the photos."""
    return f"{digest0} {digest1}" if digest0 and digest1 else None


def plan_pairs(pairs: list[tuple[str, str]], counts: dict[str, int], batch_size: int) -> Iterator[Shard]:
    """Which pairs are computed together: those of like numbers of keypoints, so that little is padding."""
    most = np.array([max(counts[name0], counts[name1]) for name0, name1 in pairs])
    order = np.argsort(most, kind="stable")
    return to_shards(cut([pairs[i] for i in order], batch_size), PAIRS_IN_A_SHARD)


def match_pairs(
    features: str | os.PathLike[str],
    pairs: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: Any,
    processor: Any = None,
    batch_size: int = 8,
    name: str = "",
    cluster: Any | None = None,
    progress: Any = NoProgress,
) -> MatchesSummary:
    """Write the matches of every pair of a list to matches.h5; those that are there are not done again.

    Those of a photo that was replaced since by another one of its name are.

    Args:
        features: features.h5, ours or hloc's.
        pairs: pairs.txt.
        out: the file; see storage.py.
        model: the matcher; in evaluation mode.
        processor: of the model, by which it is seen whether the features are of the model's own detector; not
            looked at by default.
        batch_size: pairs that are computed together.
        name, cluster, progress: see [`extract_features`].

    Raises:
        InputError: no features or pairs, features of another detector, or `out` was made otherwise.
        FileExistsError: another process writes the same file.
        OSError: it cannot be written.
    """
    out = Path(out)
    listed = read_pairs(pairs)
    with open_hdf5(features) as file:
        made = settings_of(file)
        digests = {name.replace("/", "-"): digest_of(file[name]) for name in group_names(file, FEATURES)}
        counts: dict[str, int] = {}
        for photo in dict.fromkeys(photo for pair in listed for photo in pair):
            if photo in file and has_dataset(file[photo], FEATURES):
                counts[photo] = file[photo][FEATURES].shape[0]
                if "descriptors" not in file[photo]:
                    raise InputError(f"{features}: {photo} has no descriptors")
                width, columns = file[photo]["descriptors"].shape
                if columns != counts[photo]:
                    raise InputError(f"{features}: {photo} has {counts[photo]} keypoints and {columns} descriptors")
                if width != model.config.num_input_features and counts[photo]:
                    raise InputError(
                        f"{features}: descriptors of {width} numbers, and this matcher takes "
                        f"{model.config.num_input_features}: match with the model that made them"
                    )
    check_detector(features, made, model, processor)
    possible = [pair for pair in listed if pair[0] in counts and pair[1] in counts]
    left_out = {
        " ".join(pair): f"no features of {pair[0] if pair[0] not in counts else pair[1]}"
        for pair in listed
        if pair[0] not in counts or pair[1] not in counts
    }
    if not possible:
        raise InputError(f"{features} has not both photos of any pair of {pairs}")
    refuse_collisions(possible)

    def current(key: str, was: str) -> bool:
        name0, name1 = key.split("/")
        gone = name0 not in digests or name1 not in digests
        return gone or was == made_of(digests[name0], digests[name1])

    with growing(out, MATCHES, match_settings(model, made, name), current) as store:

        def done(pair: tuple[str, str]) -> bool:
            return pair_key(*pair) in store.done or pair_key(*pair[::-1]) in store.done

        there = sum(map(done, possible))
        shards = remaining(plan_pairs(possible, counts, batch_size), done)
        work = partial(Matcher, features=str(Path(features).absolute()))
        with progress(desc="pairs", total=len(possible), initial=there, unit="pair") as bar:
            if cluster is None:
                run_here(work(model, processor), shards, store, bar)
            else:
                cluster.run(work, list(shards), store, bar)
    return MatchesSummary(len(listed), len(possible) - there, left_out)


def refuse_collisions(pairs: list[tuple[str, str]]) -> None:
    """Raise an InputError for two pairs with one name in matches.h5."""
    keys: dict[str, tuple[str, str]] = {}
    for pair in pairs:
        other = keys.setdefault(pair_key(*pair), pair)
        if other != pair:
            raise InputError(f"{' '.join(other)} and {' '.join(pair)} would have the same name in matches.h5: rename")


def check_detector(features: Any, made: Settings | None, model: Any, processor: Any) -> None:
    """Raise an InputError if features that we made are of another detector than the model's own."""
    if made is None or processor is None or not model.config.use_keypoint_detector:
        return
    own = feature_settings(model, processor)
    same_engine = own["engine"] == made["engine"]
    if own["detector"]["type"] != made["detector"]["type"] or (same_engine and own["weights"] != made["weights"]):
        raise InputError(
            f"{features} was made by {made['about']['model'] or made['detector']['type']}, whose detector is not "
            "this model's: match with the model that made it"
        )
