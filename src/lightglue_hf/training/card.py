"""The model card beside trained weights: what they are, what they came from, and how to go on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub

from .. import __version__
from ..utils.files import write_atomically
from .recipes import MatcherRecipe, Recipe, to_json


def write_card(recipe: Recipe, model: Any) -> None:
    """Write README.md into the directory of a finished run."""
    matcher = isinstance(recipe, MatcherRecipe)
    task = "keypoint-matching" if matcher else "keypoint-detection"
    data = huggingface_hub.ModelCardData(
        license="unknown",
        library_name="transformers",
        pipeline_tag=task,
        tags=[task, "image-matching", "lightglue"] if matcher else [task, "superpoint"],
    )
    text = f"---\n{data}\n---\n\n{description(recipe, model)}\n\n{usage(model)}\n\n{figures(recipe, model)}"
    write_atomically(Path(recipe.output_dir, "README.md"), text)


def description(recipe: Recipe, model: Any) -> str:
    """What the model is, and what it learned from."""
    if isinstance(recipe, MatcherRecipe):
        on = f"the detector `{recipe.detector}`" if recipe.detector else f"the features of `{recipe.features}`"
        what = f"A LightGlue keypoint matcher ([paper](https://arxiv.org/abs/2306.13643)), trained on {on}"
        if recipe.stage == 2:
            what += "; in this run its token confidences alone (stage 2)"
    else:
        what = "A SuperPoint keypoint detector ([paper](https://arxiv.org/abs/1712.07629))"
    initial_model = getattr(recipe, "initial_model", None)
    origin = f", from `{initial_model}` on" if initial_model else ", from new weights"
    if scenes := getattr(recipe, "scenes", []):
        source = f"photos with depth and poses ({', '.join(map(str, scenes))})"
    elif recipe.photos and recipe.photo_share:
        source = f"warps of the photos in `{recipe.photos}`"
        if recipe.photo_share < 1:
            source += f" ({recipe.photo_share:.0%} of the canvases) and of procedural canvases"
    else:
        source = "warps of procedural canvases, no photo"
    if teacher := getattr(recipe, "teacher", None):
        source += f", with keypoints and similarities of `{teacher}`"
    title = Path(recipe.output_dir).resolve().name
    return f"# {title}\n\n{what}{origin}.\n\nTraining data: {recipe.pairs:,} pairs, {source}."


def usage(model: Any) -> str:
    """How to load and run it."""
    lines = ["import lightglue_hf  # registers its classes with transformers"]
    if getattr(model.config, "use_keypoint_detector", False):
        lines += [
            "from transformers import AutoImageProcessor, AutoModel",
            "",
            'checkpoint = "..."  # this directory, or its name on the Hub',
            "processor = AutoImageProcessor.from_pretrained(checkpoint)",
            "model = AutoModel.from_pretrained(checkpoint)",
            'outputs = model(**processor(["left.jpg", "right.jpg"], return_tensors="pt"))',
        ]
    else:
        lines += [
            "from transformers import AutoModel",
            "",
            'model = AutoModel.from_pretrained("...")  # this directory, or its name on the Hub',
        ]
        if hasattr(model.config, "use_keypoint_detector"):
            lines += ["outputs = model.match_features(features)  # lightglue_hf.KeypointFeatures of pairs"]
        else:
            lines += ["outputs = model(pixel_values)  # (batch, channels, height, width) in [0, 1]"]
    return "## Usage\n\n```python\n" + "\n".join(lines) + "\n```"


def figures(recipe: Recipe, model: Any) -> str:
    """The loss, the recipe, and what is not known."""
    log = json.loads(Path(recipe.output_dir, "log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    loss = f"The training loss went from {losses[0]:.3f} to {losses[-1]:.3f}. " if losses else ""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"## Training\n\n{parameters:,} parameters. {loss}Accuracy was not measured here: `lightglue-hf evaluate`.\n\n"
        f"```json\n{to_json(asdict(recipe))}```\n\n"
        f"Trained by `lightglue-hf train`, version {__version__}.\n\n"
        "## Licence\n\nNot chosen yet: set `license` above. What the run started from, and its training data, may "
        "have conditions of their own.\n"
    )
