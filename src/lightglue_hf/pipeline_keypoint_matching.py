"""The "keypoint-matching" pipeline: image pairs in, points of the photos out.

Call and result are those of the pipeline of this name in transformers; in addition photos of any shape, batches,
generators and subpixel coordinates come out right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypedDict

from PIL import Image
from transformers.pipelines.base import Pipeline

from .image_processing_lightglue import LightGlueImageProcessor
from .images import load_image


class Keypoint(TypedDict):
    """A point of a photo, in pixels; the centre of the first pixel is (0, 0)."""

    x: float
    y: float


class Match(TypedDict):
    """Two points that show the same spot, and a score in [0, 1]."""

    keypoint_image_0: Keypoint
    keypoint_image_1: Keypoint
    score: float


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(isinstance(image, (Image.Image, str, os.PathLike)) for image in pair)
    )


class KeypointMatchingPipeline(Pipeline):
    """Match the keypoints of image pairs with any `AutoModelForKeypointMatching`.

    Example:
        >>> matcher = pipeline("keypoint-matching", model=model, image_processor=processor)
        >>> matcher(["left.jpg", "right.jpg"], threshold=0.5)
        [{"keypoint_image_0": {"x": 1.5, "y": 2.25}, "keypoint_image_1": {"x": 3.0, "y": 4.0}, "score": 0.93}, ...]
        >>> matcher([["a.jpg", "b.jpg"], ["a.jpg", "c.jpg"]], batch_size=2)  # a list for each pair
    """

    _load_processor: bool = False  # type: ignore[assignment]
    _load_image_processor: bool = True  # type: ignore[assignment]
    _load_feature_extractor: bool = False  # type: ignore[assignment]
    _load_tokenizer: bool = False  # type: ignore[assignment]

    def _sanitize_parameters(  # type: ignore[override]
        self, threshold: float | None = None, timeout: float | None = None, max_pixels: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        reading = {"timeout": timeout, "max_pixels": max_pixels}
        preprocess = {name: value for name, value in reading.items() if value is not None}
        forward = {} if threshold is None else {"threshold": threshold}
        return preprocess, forward, {}

    def __call__(  # type: ignore[override]
        self, inputs: Any, threshold: float | None = None, **kwargs: Any
    ) -> list[Match] | list[list[Match]] | Iterator[list[Match]]:
        """Match one pair, or several.

        Args:
            inputs: a pair of images, a list or tuple of pairs, or an iterator or dataset of pairs. An image is a PIL
                image, a path or a URL. Files and URLs are turned upright by their EXIF orientation.
            threshold: matches are kept if their score is strictly greater; 0 unless set when building the pipeline.
            kwargs: `batch_size`, pairs in one run of the model; `timeout`, seconds to wait for a URL; `max_pixels`
                of an image, by default as the image processor has it: Pillow's limit where there are several pairs.

        Returns:
            The matches of a pair, best first; for several pairs a list of such lists (one list of two images in
            another list counts as one pair, as in transformers), for an iterator or dataset an iterator over them.

        Raises:
            ValueError: the input is none of these.
        """
        if isinstance(inputs, (list, tuple)):
            pairs = [inputs] if _is_pair(inputs) else list(inputs)
            for pair in pairs:
                _check_pair(pair)
            if len(pairs) > 1:
                kwargs.setdefault("max_pixels", Image.MAX_IMAGE_PIXELS)
            results = super().__call__(pairs, threshold=threshold, **kwargs) if pairs else []
            return results[0] if len(pairs) == 1 else results
        if isinstance(inputs, Iterator):
            inputs = (pair for pair in inputs)  # the base class streams generators, not other iterators
        kwargs.setdefault("max_pixels", Image.MAX_IMAGE_PIXELS)
        return super().__call__(inputs, threshold=threshold, **kwargs)

    def preprocess(  # type: ignore[override]
        self, pair: Any, timeout: float | None = None, max_pixels: int | None = None
    ) -> dict[str, Any]:
        """Read the two images of a pair; they are resized together with the others of their batch."""
        _check_pair(pair)
        images = [load_image(image, timeout, max_pixels) for image in pair]
        if not isinstance(self.image_processor, LightGlueImageProcessor):  # others take RGB only
            images = [image.convert("RGB") for image in images]
        return {"pairs": images}

    def _forward(  # type: ignore[override]
        self, inputs: dict[str, Any], threshold: float = 0.0
    ) -> dict[str, Any]:
        processor: Any = self.image_processor
        batched = isinstance(inputs["pairs"][0], list)
        pairs = inputs["pairs"] if batched else [inputs["pairs"]]
        model_inputs = processor(pairs, return_tensors="pt").to(self.device).to(self.model.dtype)
        sizes = [tuple((image.height, image.width) for image in pair) for pair in pairs]
        results = processor.post_process_keypoint_matching(
            self.model(**model_inputs), target_sizes=sizes, threshold=threshold
        )
        return {"matches": results if batched else results[0]}

    def postprocess(self, outputs: dict[str, Any]) -> list[Match]:  # type: ignore[override]
        """Write the matches of one pair as dictionaries, best first."""
        matches = outputs["matches"]
        order = matches["matching_scores"].argsort(descending=True, stable=True)
        points0, points1, scores = (
            matches[key][order].tolist() for key in ("keypoints0", "keypoints1", "matching_scores")
        )
        return [
            {"keypoint_image_0": {"x": x0, "y": y0}, "keypoint_image_1": {"x": x1, "y": y1}, "score": score}
            for (x0, y0), (x1, y1), score in zip(points0, points1, scores)
        ]


def _check_pair(pair: Any) -> None:
    if not _is_pair(pair):
        raise ValueError(
            f"Expected a pair of images or pairs of images, each a PIL image, a path or a URL, but got {pair!r:.200}."
        )
