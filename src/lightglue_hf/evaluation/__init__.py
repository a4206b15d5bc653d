"""How good matches are: metrics, data sets, methods, their comparison, and what adaptivity costs."""

from .metrics import (
    Precision,
    accuracy,
    area_under_curve,
    corner_error,
    epipolar_precision,
    estimate_fundamental,
    estimate_homography,
    estimate_relative_pose,
    estimators,
    match_precision,
    matching_score,
    project,
    relative_pose_error,
    repeatability,
    reprojection_precision,
    symmetric_epipolar_distance,
)
from .verdict import Verdict, judge_against_chance

__all__ = [
    "Precision",
    "Verdict",
    "accuracy",
    "area_under_curve",
    "corner_error",
    "epipolar_precision",
    "estimate_fundamental",
    "estimate_homography",
    "estimate_relative_pose",
    "estimators",
    "judge_against_chance",
    "match_precision",
    "matching_score",
    "project",
    "relative_pose_error",
    "repeatability",
    "reprojection_precision",
    "symmetric_epipolar_distance",
]
