"""A wall of points that describe themselves, and a matcher that reads the descriptions: tracking without networks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightglue_hf import KeypointFeatures

WIDTH, HEIGHT = 640, 480
POINTS = 60


class ByDescriptor:
    """In place of a model: matches keypoints whose descriptors are the same, each once."""

    def __init__(self, columns=None):
        self.columns, self.calls = columns, []
        if columns:
            self.axes = lambda part: {"mask": [1, 2, columns]} if part == "matcher" else None

    def match_features(self, features):
        assert features.shape == (1, 2)
        features.check()
        self.calls.append(features)
        descriptors, mask = features["descriptors"][0], features["mask"][0].bool()
        alike = (descriptors[0] @ descriptors[1].T > 0.999) & mask[0][:, None] & mask[1][None]
        n = alike.shape[0]
        matches = torch.full((1, 2, n), -1)
        for i in range(n):
            for j in torch.nonzero(alike[i])[:, 0].tolist():
                if matches[0, 0, i] < 0 and matches[0, 1, j] < 0:
                    matches[0, 0, i], matches[0, 1, j] = j, i
        return SimpleNamespace(matches=matches, matching_scores=(matches >= 0).float())


class Wall:
    """Points on a plane.

    Attributes:
        places: `(n, 2)`, pixels of a frame at rest.
    """

    def __init__(self, count=POINTS, seed=0):
        self.rng = np.random.default_rng(seed)
        self.places = self.rng.uniform((40, 40), (WIDTH - 40, HEIGHT - 40), (count, 2))
        self.descriptors = np.eye(count, 64 + count, dtype=np.float32)[:, : 64 + count]
        self.order = np.arange(count)

    def features(self, visible=None, move=(0.0, 0.0), turn=0.0, places=None, shuffled=True):
        """The features of a frame, in any order; and the number of each point."""
        numbers = np.arange(len(self.places)) if visible is None else np.flatnonzero(visible)
        if shuffled:
            numbers = self.rng.permutation(numbers)
        cos, sin = np.cos(turn), np.sin(turn)
        middle = np.array([WIDTH, HEIGHT]) / 2
        there = (self.places if places is None else places) - middle
        there = there @ np.array([[cos, sin], [-sin, cos]]) + middle + move
        features = KeypointFeatures(
            keypoints=torch.from_numpy(there[numbers].astype(np.float32)),
            descriptors=torch.from_numpy(self.descriptors[numbers]),
            scores=torch.ones(len(numbers)),
            image_sizes=torch.tensor([HEIGHT, WIDTH]),
        )
        return features, numbers


@pytest.fixture
def wall():
    return Wall()
