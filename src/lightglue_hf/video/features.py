"""The features of pictures that come one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..features import KeypointFeatures
from ..geometry import points_inside, scale_keypoints
from ..images import to_rgb

BORDER = 0.02  # of the shorter side: what is found nearer to the edge of a picture on a canvas may be the edge


class FrameFeatures:
    """Finds the features of pictures.

    Args:
        model: with a detector, in evaluation mode: `LightGlueForKeypointMatching`, or a runtime of exported graphs.
        processor: its image processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @torch.inference_mode()
    def __call__(self, image: np.ndarray | Image.Image) -> KeypointFeatures:
        """Features of `shape` `()`, in pixels of the image as the model saw it; see [`in_picture`].

        Args:
            image: `(height, width, 3)` uint8 RGB, or a PIL image.
        """
        inputs = self.processor(image, pairs=False, return_tensors="pt", input_data_format="channels_last")
        pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
        if not hasattr(self.model, "engine"):
            pixels, sizes = pixels.to(self.model.device), sizes.to(self.model.device)
        return self.model.extract_features(pixels, image_sizes=sizes)[0]

    def undistorted(self, image: Image.Image) -> KeypointFeatures:
        """As a call, of a picture of any shape, in pixels of the picture.

        Where the processor gives all pictures one shape, as for a graph of a fixed size, the picture is put on a
        canvas of that shape instead of being stretched.
        """
        height, width = image.height, image.width
        fixed = self.processor.size if self.processor.do_resize and "height" in self.processor.size else None
        if fixed is None:
            return in_picture(self(image), (height, width))
        shape = max(height / fixed["height"], width / fixed["width"])
        canvas = Image.new("RGB", (round(fixed["width"] * shape), round(fixed["height"] * shape)))
        canvas.paste(Image.fromarray(to_rgb(image)))
        features = in_picture(self(canvas), (canvas.height, canvas.width))
        border = BORDER * min(height, width)
        inside = points_inside(features["keypoints"], (height - border, width - border))
        exists = torch.ones_like(inside) if features.mask is None else features.mask.bool()
        features.mask = (exists & inside).int()
        features.image_sizes = torch.tensor([height, width], device=inside.device)
        return features


def in_picture(features: KeypointFeatures, size: tuple[int, int]) -> KeypointFeatures:
    """Features of one image as the model saw it, with keypoints in pixels of a picture of (height, width)."""
    there = KeypointFeatures(**features)
    there.keypoints = scale_keypoints(features["keypoints"], features["image_sizes"], size)
    there.image_sizes = torch.tensor(size, device=features["keypoints"].device)
    return there
