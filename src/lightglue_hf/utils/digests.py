"""SHA-256 of files and of weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

PIECE = 1 << 20  # bytes


def sha256_of(path: Path) -> str:
    """The digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """The digest of a `state_dict`, whatever file it came from and in whatever order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
