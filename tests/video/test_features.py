"""What a model sees of a picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import KeypointFeatures, LightGlueImageProcessor
from lightglue_hf.video import FrameFeatures

HALF = np.uint8([[100, 100, 200, 200]] * 4)
TRANSPARENT = np.dstack([HALF, HALF, HALF, np.where(HALF == 200, 0, 255).astype(np.uint8)])


class Seen:
    """In place of a model: keeps the pixels that it gets, and finds a point in their middle."""

    device = torch.device("cpu")

    def extract_features(self, pixel_values, image_sizes):
        self.pixels = pixel_values[0, 0]
        middle = (image_sizes.flip(-1)[:, None] - 1) / 2
        return KeypointFeatures(keypoints=middle, descriptors=torch.ones(1, 1, 4), image_sizes=image_sizes)


@pytest.mark.parametrize(
    ("image", "right"),
    [
        (Image.fromarray(HALF), 200),
        (Image.fromarray(HALF.astype(np.uint16) * 257), 200),
        (Image.fromarray(TRANSPARENT), 255),
    ],
    ids=["8 bits", "16 bits", "transparent"],
)
def test_a_picture_on_a_canvas_has_the_values_that_it_has_elsewhere(image, right):
    model = Seen()
    processor = LightGlueImageProcessor(size={"height": 4, "width": 8})
    features = FrameFeatures(model, processor).undistorted(image)
    np.testing.assert_allclose(model.pixels[:, 0] * 255, 100, atol=0.5)
    np.testing.assert_allclose(model.pixels[:, 3] * 255, right, atol=0.5)
    np.testing.assert_allclose(model.pixels[:, 4:], 0, atol=1e-6)
    assert features["image_sizes"].tolist() == [4, 4]
