"""Training of the detector, then of the matcher in two stages, on `transformers.Trainer`."""

from .recipes import *  # noqa: F403
