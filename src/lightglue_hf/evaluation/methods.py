"""Methods that match two images: a model, its detector alone, a classical baseline; and their predictions in files.

A method turns two images into keypoints of each and matches among them. Its predictions are kept in files under what
they depend on, since they alone take long.
"""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image

from ..features import KeypointFeatures
from ..geometry import mutual_nearest, scale_keypoints
from ..image_processing_lightglue import resize_options
from ..images import to_pixels
from ..utils.files import write_atomically
from ..utils.optional import import_optional


class Prediction(NamedTuple):
    """What a method finds in two images.

    Args:
        keypoints0: `(n0, 2)` float32, pixels of the first image, (x, y), centre of the first pixel = (0, 0).
        keypoints1: `(n1, 2)` float32, pixels of the second image.
        matches: `(m, 2)` int64, indices into both.
        matching_scores: `(m,)` float32; of nearest neighbours, the cosine between their descriptors.
    """

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    matches: np.ndarray
    matching_scores: np.ndarray

    @property
    def matched(self) -> tuple[np.ndarray, np.ndarray]:
        """The matched keypoints of each image, `(m, 2)`, in the same order."""
        return self.keypoints0[self.matches[:, 0]], self.keypoints1[self.matches[:, 1]]


@dataclass(frozen=True)
class Method:
    """A way to match two images.

    Args:
        name: heads its column.
        fingerprint: of all that its predictions depend on, the images apart; `None` where that is not known.
        predict: from two images.
    """

    name: str
    fingerprint: str | None
    predict: Callable[[Image.Image, Image.Image], Prediction]


Features = Callable[[tuple[Image.Image, Image.Image]], KeypointFeatures]


def lightglue(
    name: str,
    model: Any,
    processor: Any,
    longest_edge: int | None = None,
    nearest: bool = False,
    features: Features | None = None,
) -> Method:
    """Match by a LightGlue model with its own detector, as they are configured.

    Args:
        name: heads its column.
        model: `LightGlueForKeypointMatching`, or a runtime of exported graphs, whose predictions are never kept.
        processor: its `LightGlueImageProcessor`.
        longest_edge: resize images to so many pixels; as the processor is configured, by default.
        nearest: match mutual nearest descriptors, instead of by the model.
        features: of two images, as `sharing_features` gives them; not shared with other methods by default.
    """
    features = features or sharing_features(model, processor, longest_edge)

    @torch.inference_mode()
    def predict(image0: Image.Image, image1: Image.Image) -> Prediction:
        images = image0, image1
        if nearest:
            return _nearest_prediction(features(images), images)
        if hasattr(model, "engine"):  # one graph does it all
            return to_prediction(model(**prepare(model, processor, images, longest_edge)), images)
        return to_prediction(model.match_features(features(images)), images)

    if hasattr(model, "engine"):
        return Method(name, None, predict)
    programs = torch.__version__, transformers.__version__, model.device.type
    settings = model.config.to_json_string(), processor.to_json_string(), longest_edge, nearest
    weights = (part for item in model.state_dict().items() for part in item)
    return Method(name, _digest(*_sources(), *programs, *settings, *weights), predict)


def prepare(
    model: Any, processor: Any, images: tuple[Image.Image, Image.Image], longest_edge: int | None = None
) -> dict[str, Any]:
    """Two images as arguments of the model; see `lightglue`."""
    inputs = processor(list(images), return_tensors="pt", **resize_options(longest_edge)).to(model.device)
    return {**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}


def extract(
    model: Any, processor: Any, images: tuple[Image.Image, Image.Image], longest_edge: int | None = None
) -> KeypointFeatures:
    """The features of two images, as `match_features` takes them; see `lightglue`."""
    return model.extract_features(**prepare(model, processor, images, longest_edge))


def sharing_features(model: Any, processor: Any, longest_edge: int | None = None) -> Features:
    """`extract`, which remembers the last pair: several methods with one detector run it once."""
    last: list[Any] = [None, None]

    def features(images: tuple[Image.Image, Image.Image]) -> KeypointFeatures:
        if last[0] is None or any(image is not before for image, before in zip(images, last[0])):
            last[:] = images, extract(model, processor, images, longest_edge)
        return last[1]

    return features


def seconds(model: Any) -> float:
    """The clock, when the model's device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def to_prediction(outputs: Any, images: tuple[Image.Image, Image.Image]) -> Prediction:
    """What a model returns for two images, in pixels of the images and without padding."""
    names = "keypoints", "image_sizes", "mask", "matches", "matching_scores"
    # to the CPU first: not every device has double precision
    keypoints, image_sizes, masks, matches, scores = (getattr(outputs, name).cpu() for name in names)
    pixels = keypoints.double() * image_sizes.flip(-1)[:, :, None]
    first, second = masks[0].bool()
    partners, scores = matches[0, 0][first], scores[0, 0][first]
    matched = partners > -1
    without_padding = second.cumsum(0) - 1
    indices = torch.stack([matched.nonzero()[:, 0], without_padding[partners[matched]]], dim=1)
    points = _in_images(pixels, masks, image_sizes, images)
    return Prediction(*points, indices.numpy(), scores[matched].float().numpy())


def _nearest_prediction(features: KeypointFeatures, images: tuple[Image.Image, Image.Image]) -> Prediction:
    described = zip(features["descriptors"][0].float(), features["mask"][0].bool())
    points = _in_images(features["keypoints"], features["mask"], features["image_sizes"], images)
    return _predict_nearest(*points, *(vectors[mask].cpu().numpy() for vectors, mask in described))


def _in_images(
    keypoints: torch.Tensor, masks: torch.Tensor, image_sizes: torch.Tensor, images: tuple[Image.Image, Image.Image]
) -> tuple[np.ndarray, np.ndarray]:
    """The keypoints of each image of the only pair, `(n, 2)` float32, in pixels of the image itself."""
    found = scale_keypoints(keypoints[0], image_sizes[0], [(image.height, image.width) for image in images])
    first, second = (points[mask].float().cpu().numpy() for points, mask in zip(found, masks[0].bool()))
    return first, second


def _predict_nearest(
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    descriptors0: np.ndarray,
    descriptors1: np.ndarray,
    ratio: float | None = None,
) -> Prediction:
    indices = match_nearest(descriptors0, descriptors1, ratio)
    cosines = (descriptors0[indices[:, 0]] * descriptors1[indices[:, 1]]).sum(axis=1)
    return Prediction(keypoints0, keypoints1, indices, cosines)


def nearest_rootsift(name: str, max_keypoints: int, ratio: float | None = None) -> Method:
    """Match RootSIFT by mutual nearest neighbours, and with a ratio by the ratio test, at the size of the images."""

    def predict(image0: Image.Image, image1: Image.Image) -> Prediction:
        (points0, descriptors0), (points1, descriptors1) = (
            rootsift(_to_uint8(image), max_keypoints) for image in (image0, image1)
        )
        return _predict_nearest(points0, points1, descriptors0, descriptors1, ratio)

    cv2 = import_optional("cv2", "eval")
    return Method(name, _digest(*_sources(), cv2.__version__, max_keypoints, ratio), predict)


def _to_uint8(image: Image.Image) -> np.ndarray:
    """`(height, width)` grey or `(height, width, 3)` RGB."""
    pixels, white = to_pixels(image)
    pixels = np.round(pixels * (255 / white)).astype(np.uint8)
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)


def rootsift(image: Any, max_keypoints: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Detect SIFT keypoints and describe them by RootSIFT.

    Args:
        image: `(height, width)` grey or `(height, width, 3)` RGB, uint8.
        max_keypoints: the strongest are kept.

    Returns:
        Keypoints `(n, 2)`, pixels, and descriptors `(n, 128)` of unit length, both float32.

    Raises:
        ImportError: OpenCV is not installed.

    Source: Lowe, IJCV 2004; Arandjelovic and Zisserman, CVPR 2012.
    """
    cv2 = import_optional("cv2", "eval")
    pixels = np.asarray(image)
    gray = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    keypoints, descriptors = cv2.SIFT_create(nfeatures=max_keypoints).detectAndCompute(gray, None)
    if not keypoints:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
    return points[:max_keypoints], roots[:max_keypoints]


def match_nearest(descriptors0: Any, descriptors1: Any, ratio: float | None = None) -> np.ndarray:
    """Match descriptors of unit length that are each other's nearest.

    Args:
        descriptors0: `(n0, d)`.
        descriptors1: `(n1, d)`.
        ratio: with one, the nearest must also be closer than `ratio` times the second nearest.

    Returns:
        `(m, 2)`, indices into both lists, in the order of the first.
    """
    first, second = (np.asarray(descriptors, dtype=float) for descriptors in (descriptors0, descriptors1))
    if not len(first) or not len(second):
        return np.zeros((0, 2), dtype=int)
    squared = np.maximum(2 - 2 * first @ second.T, 0)
    nearest, keep = (values.numpy() for values in mutual_nearest(torch.from_numpy(squared))[:2])
    if ratio is not None and len(second) > 1:
        two = np.partition(squared, 1, axis=1)
        keep &= two[:, 0] < ratio**2 * two[:, 1]
    return np.stack([np.flatnonzero(keep), nearest[keep]], axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Predictions in files


def cached_prediction(
    method: Method, images: tuple[Image.Image, Image.Image], cache: Path | None = None
) -> Prediction:
    """Apply a method to two images, or read what it said of them before.

    Args:
        method: the file depends on its fingerprint and on the pixels of the images, on no name.
        images: two.
        cache: a directory, made if need be; without it nothing is read or written. A file that cannot be read, as
            after a full disk, is made again.
    """
    if cache is None or method.fingerprint is None:
        return method.predict(*images)
    pixels = (part for image in images for part in to_pixels(image))
    path = cache / f"{_digest(method.fingerprint, *pixels)}.npz"
    try:
        with np.load(path) as arrays:  # allow_pickle=False
            return Prediction(*(arrays[name] for name in Prediction._fields))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        prediction = method.predict(*images)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **prediction._asdict())
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return prediction


def _digest(*parts: Any) -> str:
    """A number of strings, tensors, arrays, and so on, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _sources() -> list[str]:
    """The files of this package that make a prediction what it is."""
    package = Path(__file__).parent.parent
    lower = ("*.py", "utils/*.py", "detectors/*.py", "evaluation/methods.py")
    return [path.read_text() for pattern in lower for path in sorted(package.glob(pattern))]
