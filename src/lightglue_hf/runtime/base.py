"""Exported graphs in the place of the PyTorch model: `OVModelForKeypointMatching` and `ORTModelForKeypointMatching`.

They take the model's arguments and give its output, so that the image processor and the pipeline go with them as they
are. The first is built on Optimum Intel's `OVModel`, the second on Optimum's `OptimizedModel`, which both generations
of Optimum have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor

from ..configuration_lightglue import LightGlueConfig
from ..export import FILES, ExportOptions, export
from ..features import KeypointFeatures
from ..modeling_lightglue import LightGlueKeypointMatchingOutput

HUB_OPTIONS = ("subfolder", "revision", "force_download", "local_files_only", "cache_dir", "token")


class KeypointMatchingRuntime:
    """The PyTorch model's methods on graphs: the whole pipeline, or detector and matcher, or one of the two."""

    backend: str
    # What a backend provides: the inputs of a part's graph with their axes (`None` for any length; `None` altogether
    # without such a graph), the graph run, and the graphs of a directory or a Hub repository loaded.
    axes: Callable[[str], dict[str, list[int | None]] | None]
    infer: Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]
    _from_pretrained: Callable[..., Any]

    @classmethod
    def from_pretrained(cls, model_id: str | Path, export: bool = False, **kwargs: Any) -> Any:
        """Load the graphs of a directory or a Hub repository; a directory that has none is exported first."""
        from optimum.modeling_base import OptimizedModel

        directory = Path(model_id)
        if directory.is_dir():
            export = export or not any((directory / name).is_file() for name in FILES[cls.backend].values())
        load: Any = OptimizedModel.from_pretrained  # not OVModel's, which looks for graphs by their number
        return load.__func__(cls, str(model_id), export=export, **kwargs)

    @classmethod
    def _export(cls, model_id: Any, config: Any, export_options: ExportOptions | None = None, **kwargs: Any) -> Any:
        """Export to a temporary directory, and load what is in it."""
        directory = tempfile.TemporaryDirectory()
        hub_options = {name: value for name in HUB_OPTIONS if (value := kwargs.pop(name, None)) is not None}
        export(model_id, directory.name, cls.backend, export_options, **hub_options)
        model = cls._from_pretrained(directory.name, LightGlueConfig.from_pretrained(directory.name), **kwargs)
        model._export_directory = directory  # kept for save_pretrained, and as long as weights in it are mapped
        return model

    def forward(
        self,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        keypoints: Tensor | None = None,
        descriptors: Tensor | None = None,
        mask: Tensor | None = None,
        scales: Tensor | None = None,
        orientations: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> LightGlueKeypointMatchingOutput | tuple:
        """Match pairs of images, or of features that were extracted before: arguments and output of the PyTorch model.

        Raises:
            ValueError: there is no graph for what is given, or the graph was made for other shapes.
        """
        if (pixel_values is None) == (keypoints is None or descriptors is None):
            raise ValueError("give either pixel_values, or keypoints and descriptors")
        if pixel_values is None:
            assert keypoints is not None and descriptors is not None  # noqa: PT018
            outputs = self.match_features(
                KeypointFeatures(keypoints, descriptors, mask, image_sizes, None, scales, orientations)
            )
        elif self.axes("pipeline"):
            image_sizes = self._sizes(pixel_values, image_sizes)
            found = self._run("pipeline", pixel_values=pixel_values, image_sizes=image_sizes)
            del found["descriptors"]
            outputs = LightGlueKeypointMatchingOutput(**found, image_sizes=image_sizes)  # type: ignore[arg-type]
        else:
            outputs = self.match_features(self.extract_features(pixel_values, image_sizes))
        return outputs.to_tuple() if return_dict is False else outputs

    def extract_features(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> KeypointFeatures:
        """Detect and describe the keypoints of images; see the PyTorch model's.

        Raises:
            ValueError: there is no graph of the detector alone, or it was made for other shapes.
        """
        image_sizes = self._sizes(pixel_values, image_sizes)
        images = (-1, 2) if pixel_values.ndim == 5 else (-1,)
        flat = pixel_values.flatten(0, -4)
        found = self._run("detector", pixel_values=flat, image_sizes=image_sizes.reshape(-1, 2))
        return KeypointFeatures(
            **{name: value.unflatten(0, images) for name, value in found.items()}, image_sizes=image_sizes
        )

    def match_features(
        self,
        keypoints: KeypointFeatures | Tensor,
        descriptors: Tensor | None = None,
        mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        scales: Tensor | None = None,
        orientations: Tensor | None = None,
    ) -> LightGlueKeypointMatchingOutput:
        """Match keypoints in pixels; see the PyTorch model's. `image_sizes` are required.

        Raises:
            ValueError: no `image_sizes`, no graph of the matcher alone, or it was made for other shapes.
        """
        if isinstance(keypoints, KeypointFeatures):
            features = keypoints
        else:
            features = KeypointFeatures(keypoints, descriptors, mask, image_sizes, None, scales, orientations)
        features.check()
        points, sizes = features.keypoints, features.image_sizes
        assert points is not None
        if sizes is None:
            raise ValueError("image_sizes are required: an exported matcher does not guess them from the keypoints")
        exists = torch.ones_like(points[..., 0]) if features.mask is None else features.mask
        features = replace(features, mask=exists.bool().int())
        n = points.shape[2]
        # a graph wants one keypoint at least: let it be padding
        inputs = features.padded(1) if n == 0 else features
        found = self._run("matcher", **inputs)
        per_point = {name: value if value.ndim < 3 else value[:, :, :n] for name, value in found.items()}
        relative = points.float() / sizes.flip(-1)[:, :, None]
        shared = {"keypoints": relative, "mask": features.mask, "image_sizes": sizes}
        return LightGlueKeypointMatchingOutput(**per_point, **shared)  # type: ignore[arg-type]

    def _run(self, part: str, **tensors: Tensor) -> dict[str, Tensor]:
        """Run a graph, pair by pair where it takes one pair and there are more."""
        axes = self.axes(part)
        if not axes:
            raise ValueError(f"there is no graph of the {part} here: export it with --part {part}")
        types = {"image_sizes": torch.int64, "mask": torch.int32}
        inputs = {name: tensors[name].detach().to("cpu", types.get(name, torch.float32)).numpy() for name in axes}
        batch = len(next(iter(inputs.values())))
        chunks = range(batch) if batch != 1 and all(shape[0] == 1 for shape in axes.values()) else [slice(None)]
        runs = []
        for chunk in chunks:
            rows = {name: x[[chunk]] if isinstance(chunk, int) else x[chunk] for name, x in inputs.items()}
            for name, shape in axes.items():
                if len(shape) != rows[name].ndim or any(a not in (None, b) for a, b in zip(shape, rows[name].shape)):
                    raise ValueError(f"{name} must be {_written(shape)} for this graph, got {rows[name].shape}")
            runs.append(self.infer(part, rows))
        return {name: torch.from_numpy(np.concatenate([run[name] for run in runs])) for name in runs[0]}

    def _sizes(self, pixel_values: Tensor, image_sizes: Tensor | None) -> Tensor:
        """The sizes of the images, where they are not given all of `pixel_values`."""
        if pixel_values.ndim not in (4, 5):
            raise ValueError(f"pixel_values must have 4 or 5 axes, got shape {tuple(pixel_values.shape)}")
        whole = torch.tensor(pixel_values.shape[-2:]).expand(*pixel_values.shape[:-3], 2)
        if image_sizes is None:
            return whole
        part = "pipeline" if self.axes("pipeline") else "detector"
        if "image_sizes" not in (self.axes(part) or {"image_sizes"}) and not torch.equal(image_sizes.cpu(), whole):
            raise ValueError(
                "this graph was made for images that fill pixel_values: use the preprocessor_config.json beside it"
            )
        return image_sizes


def _written(shape: list[int | None]) -> str:
    return f"({', '.join('any' if axis is None else str(axis) for axis in shape)})"


def find_files(model_id: str | Path, backend: str, **hub_options: Any) -> dict[str, Path]:
    """The graphs of a directory or Hub repository by part, downloaded."""
    from transformers.utils import cached_file

    options = {name: value for name, value in hub_options.items() if value is not None}
    found: dict[str, Path] = {}
    for part, name in FILES[backend].items():
        for file in (name, name.replace(".xml", ".bin")):
            path = cached_file(str(model_id), file, **options, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                found.setdefault(part, Path(path))
    if not found:
        raise FileNotFoundError(f"{model_id} has none of {', '.join(FILES[backend].values())}: export it first")
    return found


def load_processors(model_id: str | Path, **hub_options: Any) -> list[Any]:
    try:
        return [AutoImageProcessor.from_pretrained(model_id, **hub_options)]
    except OSError:  # a matcher alone has none
        return []
