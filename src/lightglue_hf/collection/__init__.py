"""Collections of photos: features once, pairs, matches, a COLMAP database, a reconstruction; here or on Ray.

The stages are functions that files join, in hloc's layout; each goes on where it stopped:

    extract_features(photos, "features.h5", model, processor)
    write_pairs("pairs.txt", retrieval_pairs(read_names("features.h5"), "features.h5"))
    match_pairs("features.h5", "pairs.txt", "matches.h5", model)
    write_database(photos, "features.h5", "matches.h5", "database.db")

and `reconstruct` is all of them. docs/collections.md is the tour.
"""

from .colmap import DatabaseSummary, write_database
from .distributed import Cluster
from .extraction import FeaturesSummary, extract_features
from .matching import MatchesSummary, match_pairs
from .pairing import exhaustive_pairs, gps_pairs, retrieval_pairs, sequential_pairs
from .photos import check_names, photo_names
from .reconstruction import MappingSummary, choose_pairs, map_photos, reconstruct
from .storage import pair_key, read_matches, read_names, read_pairs, read_settings, write_pairs

__all__ = [
    "Cluster",
    "DatabaseSummary",
    "FeaturesSummary",
    "MappingSummary",
    "MatchesSummary",
    "check_names",
    "choose_pairs",
    "exhaustive_pairs",
    "extract_features",
    "gps_pairs",
    "map_photos",
    "match_pairs",
    "pair_key",
    "photo_names",
    "read_matches",
    "read_names",
    "read_pairs",
    "read_settings",
    "reconstruct",
    "retrieval_pairs",
    "sequential_pairs",
    "write_database",
    "write_pairs",
]
