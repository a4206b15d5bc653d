"""Keypoint detectors, one file each: configuration and model together."""
