"""Recipes so small that a training takes seconds."""

import json
from pathlib import Path

SMALL = {"height": 64, "width": 96, "textures": 6, "batch_size": 4, "workers": 0, "warmup_steps": 5}

MATCHER = {
    **SMALL,
    "keypoints": 48,
    "save_steps": 1000,
    "descriptor_dim": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}

NARROW = {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "descriptor_decoder_dim": 16}


def losses(directory):
    return [entry["loss"] for entry in json.loads(Path(directory, "log.json").read_text()) if "loss" in entry]
