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
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..configuration_lightglue import LightGlueConfig
from ..export import FILES, ExportOptions, export
from ..features import KeypointFeatures, check_images, check_one_mode, features_of_pairs
from ..image_processing_lightglue import LightGlueImageProcessor
from ..modeling_lightglue import LightGlueKeypointMatchingOutput

HUB_OPTIONS = ("subfolder", "revision", "force_download", "local_files_only", "cache_dir", "token")
CLASSES = {"onnx": "ORTModelForKeypointMatching", "openvino": "OVModelForKeypointMatching"}


class KeypointMatchingRuntime:
    """The PyTorch model's methods on graphs: the whole pipeline, or detector and matcher, or one of the two.

    Tensors and arrays are taken; what comes back are tensors, shaped as the PyTorch model shapes them: as many columns
    as the image of the batch with the most keypoints has, however many the graph has.
    """

    backend: str
    options: ClassVar[tuple[str, ...]]
    """Keywords of `from_pretrained` beside those of the Hub."""
    config: Any
    minimum_score: float = 0.0
    """Matches are kept if they score above it; a graph has a threshold of its own, the configuration's, beside it."""
    # What a backend provides: the inputs of a part's graph with their axes (`None` for any length; `None` altogether
    # without such a graph), the graph run, and the graphs of a directory or a Hub repository loaded.
    axes: Callable[[str], dict[str, list[int | None]] | None]
    infer: Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]
    _from_pretrained: Callable[..., Any]

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        export: bool = False,
        config: LightGlueConfig | None = None,
        export_options: ExportOptions | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load the graphs of a directory or a Hub repository; a directory that has none is exported first.

        Args:
            model_id: a directory or a name on the Hub.
            export: export the model, although there may be graphs already.
            config: in place of config.json.
            export_options: what graphs to make.
            kwargs: of the Hub (`subfolder`, also of a directory; `revision`, `force_download`, `local_files_only`,
                `cache_dir`, `token`) and of the class.

        Raises:
            OSError: there are neither graphs nor a model.
            TypeError: a keyword that this class does not know.
            ValueError: graphs of the other class, or `export_options` where nothing is exported.
        """
        unknown = sorted(kwargs.keys() - {*HUB_OPTIONS, *cls.options})
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained does not know {', '.join(unknown)}; it takes "
                f"{', '.join((*cls.options, *HUB_OPTIONS))}"
            )
        hub_options = {name: value for name in HUB_OPTIONS if (value := kwargs.pop(name, None)) is not None}
        if Path(model_id).is_dir():
            directory = Path(model_id, hub_options.pop("subfolder", ""))
            export = export or cls._to_be_exported(directory)
            model_id = directory
        if export:
            return cls._export(model_id, None, export_options, **hub_options, **kwargs)
        if export_options is not None:
            raise ValueError(f"{model_id} holds graphs: give export=True for export_options to mean anything")
        if config is None:
            config = LightGlueConfig.from_pretrained(model_id, **hub_options)
        return cls._from_pretrained(str(model_id), config, **hub_options, **kwargs)

    @classmethod
    def _to_be_exported(cls, directory: Path) -> bool:
        """Whether a directory has a model and no graphs of this backend."""
        graphs = {
            backend: [name for name in names.values() if (directory / name).is_file()]
            for backend, names in FILES.items()
        }
        if graphs[cls.backend]:
            return False
        if any(directory.glob("model*.safetensors")):
            return True
        for backend, names in graphs.items():
            if names:
                raise ValueError(f"{directory} holds {', '.join(names)}: load it with {CLASSES[backend]}")
        raise FileNotFoundError(
            f"{directory} has none of {', '.join(FILES[cls.backend].values())}, and no model to export either"
        )

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
        pixel_values: Tensor | np.ndarray | None = None,
        image_sizes: Tensor | np.ndarray | None = None,
        keypoints: Tensor | np.ndarray | None = None,
        descriptors: Tensor | np.ndarray | None = None,
        mask: Tensor | np.ndarray | None = None,
        scales: Tensor | np.ndarray | None = None,
        orientations: Tensor | np.ndarray | None = None,
        return_dict: bool | None = None,
    ) -> LightGlueKeypointMatchingOutput | tuple:
        """Match pairs of images, or of features that were extracted before: arguments and output of the PyTorch model.

        Raises:
            ValueError: as in PyTorch; there is no graph for what is given, or the graph was made for other shapes.
        """
        check_one_mode(
            {"pixel_values": pixel_values},
            {
                "keypoints": keypoints,
                "descriptors": descriptors,
                "mask": mask,
                "scales": scales,
                "orientations": orientations,
            },
        )
        if pixel_values is None:
            outputs = self.match_features(keypoints, descriptors, mask, image_sizes, scales, orientations)
        elif self.axes("pipeline"):
            pixels, sizes = self._images("pipeline", pixel_values, image_sizes)
            found = self._kept(_trimmed(self._run("pipeline", pixel_values=pixels, image_sizes=sizes)))
            del found["descriptors"]
            outputs = LightGlueKeypointMatchingOutput(**found, image_sizes=sizes)  # type: ignore[arg-type]
        else:
            outputs = self.match_features(self.extract_features(pixel_values, image_sizes))
        return outputs.to_tuple() if return_dict is False else outputs

    def extract_features(
        self, pixel_values: Tensor | np.ndarray, image_sizes: Tensor | np.ndarray | None = None
    ) -> KeypointFeatures:
        """Detect and describe the keypoints of images; see the PyTorch model's.

        Raises:
            ValueError: as in PyTorch; there is no graph of the detector alone, or it was made for other shapes.
        """
        pixels, sizes = self._images("detector", pixel_values, image_sizes)
        images = (-1, 2) if pixels.ndim == 5 else (-1,)
        found = self._run("detector", pixel_values=pixels.flatten(0, -4), image_sizes=sizes.reshape(-1, 2))
        found = {name: value.unflatten(0, images) for name, value in _trimmed(found).items()}
        return KeypointFeatures(**found, image_sizes=sizes)

    def match_features(
        self,
        keypoints: Any,
        descriptors: Tensor | np.ndarray | None = None,
        mask: Tensor | np.ndarray | None = None,
        image_sizes: Tensor | np.ndarray | None = None,
        scales: Tensor | np.ndarray | None = None,
        orientations: Tensor | np.ndarray | None = None,
    ) -> LightGlueKeypointMatchingOutput:
        """Match keypoints in pixels; see the PyTorch model's. `image_sizes` are required.

        Raises:
            ValueError: as in PyTorch; no `image_sizes`, no graph of the matcher alone, or it was made for other
                shapes.
        """
        if isinstance(keypoints, KeypointFeatures):
            keypoints = KeypointFeatures(**{name: torch.as_tensor(value) for name, value in keypoints.items()})
        else:
            keypoints = _tensor(keypoints)
        others = map(_tensor, (descriptors, mask, image_sizes, scales, orientations))
        features = features_of_pairs(self.config, keypoints, *tuple(others))  # type: ignore[arg-type] # five of them
        points, sizes = features.keypoints, features.image_sizes
        assert points is not None
        if sizes is None:
            raise ValueError("image_sizes are required: an exported matcher does not guess them from the keypoints")
        exists = torch.ones_like(points[..., 0]) if features.mask is None else features.mask
        features = replace(features, mask=exists.bool().int())
        n = points.shape[2]
        # a graph wants one keypoint at least, or so many: let the others be padding
        columns = (self.axes("matcher") or {"mask": [None] * 3})["mask"][2] or 1
        found = self._kept(self._run("matcher", **(features.padded(columns) if n < columns else features)))
        per_point = {name: value if value.ndim < 3 else value[:, :, :n] for name, value in found.items()}
        relative = points.float() / sizes.flip(-1)[:, :, None]
        shared = {"keypoints": relative, "mask": features.mask, "image_sizes": sizes}
        return LightGlueKeypointMatchingOutput(**per_point, **shared)  # type: ignore[arg-type]

    def _kept(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the matches alone that score above `minimum_score`."""
        scores = found["matching_scores"]
        low = scores <= self.minimum_score
        return found | {
            "matches": found["matches"].masked_fill(low, -1),
            "matching_scores": scores.masked_fill(low, 0),
        }

    def _run(self, part: str, **tensors: Tensor) -> dict[str, Tensor]:
        """Run a graph, pair by pair where it takes one pair and there are more."""
        axes = self.axes(part)
        if not axes:
            raise ValueError(f"there is no graph of the {part} here: export it with --part {part}")
        types = {"image_sizes": torch.int64, "mask": torch.int32}
        inputs = {name: tensors[name].detach().to("cpu", types.get(name, torch.float32)).numpy() for name in axes}
        batch = len(next(iter(inputs.values())))
        if batch == 0:
            return self._nothing(part, inputs)
        chunks = range(batch) if batch != 1 and all(shape[0] == 1 for shape in axes.values()) else [slice(None)]
        runs = []
        for chunk in chunks:
            rows = {name: x[[chunk]] if isinstance(chunk, int) else x[chunk] for name, x in inputs.items()}
            for name, shape in axes.items():
                if len(shape) != rows[name].ndim or any(a not in (None, b) for a, b in zip(shape, rows[name].shape)):
                    raise ValueError(f"{name} must be {_written(shape)} for this graph, got {rows[name].shape}")
            runs.append(self.infer(part, rows))
        return {name: torch.from_numpy(np.concatenate([run[name] for run in runs])) for name in runs[0]}

    def _nothing(self, part: str, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """What a graph would give of a batch of nothing, which runtimes refuse."""
        images = (0,) if part == "detector" else (0, 2)
        n = inputs["keypoints"].shape[2] if part == "matcher" else 0
        found = {
            "keypoints": torch.zeros(*images, n, 2),
            "descriptors": torch.zeros(*images, n, self.config.num_input_features),
            "mask": torch.zeros(*images, n, dtype=torch.int32),
        }
        if part == "detector":
            return found | {"scores": torch.zeros(*images, n)}
        matched = {name: torch.zeros(0, 2, n, dtype=torch.int64) for name in ("matches", "prune")}
        matched |= {"matching_scores": torch.zeros(0, 2, n), "stop": torch.zeros(0, dtype=torch.int64)}
        return matched if part == "matcher" else found | matched

    def _images(self, part: str, pixel_values: Any, image_sizes: Any) -> tuple[Tensor, Tensor]:
        """The images and their sizes, checked, as tensors; all of `pixel_values` by default."""
        pixels, sizes = torch.as_tensor(pixel_values), _tensor(image_sizes)
        check_images(pixels, sizes)
        whole = torch.tensor(pixels.shape[-2:]).expand(*pixels.shape[:-3], 2)
        if sizes is None:
            return pixels, whole
        if "image_sizes" not in (self.axes(part) or {"image_sizes"}) and not torch.equal(sizes.cpu(), whole):
            raise ValueError(
                "this graph was made for images that fill pixel_values: use the preprocessor_config.json beside it"
            )
        return pixels, sizes


def _tensor(value: Any) -> Tensor | None:
    return None if value is None else torch.as_tensor(value)


def _trimmed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without columns that are padding in all images, which stand behind."""
    mask = found["mask"]
    n = int(mask.sum(-1).max()) if mask.numel() else 0
    return {name: value if name == "stop" else value.narrow(mask.ndim - 1, 0, n) for name, value in found.items()}


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


def load_processors(model_id: str | Path) -> list[Any]:
    try:
        return [LightGlueImageProcessor.from_pretrained(model_id)]
    except OSError:  # a matcher alone has none
        return []
