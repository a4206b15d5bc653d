"""What tells files and models apart: SHA-256 of files and of weights, and the settings that count."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 20  # bytes
# What configurations say that changes no number.
UNIMPORTANT = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


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


def settings_of(config: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a configuration that differ from what their class says, as JSON has them, and change a number.

    Args:
        config: of transformers; configurations within it are left out.
        without: fields that change none where the settings are compared.
    """
    return {
        field: value
        for field, value in sorted(config.to_diff_dict().items())
        if field not in UNIMPORTANT + without and isinstance(value, (bool, int, float, str, list, type(None)))
    }
