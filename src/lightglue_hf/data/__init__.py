"""Pairs of images with known geometry: procedural ones, warped photos, photos with depth and poses."""
