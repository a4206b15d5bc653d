"""Exported graphs in the place of the PyTorch model: `OVModelForKeypointMatching` and `ORTModelForKeypointMatching`.

They take the model's arguments and give its output, so that the image processor and the pipeline go with them as they
are. The first is built on Optimum Intel's `OVModel`, the second on Optimum's `OptimizedModel`, which both generations
of Optimum have. The classes are made when they are first asked for, because their base classes are optional.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForKeypointMatching

from .configuration_lightglue import LightGlueConfig
from .export import FILES, ExportOptions, export
from .modeling_lightglue import KeypointFeatures, LightGlueKeypointMatchingOutput

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
            outputs = self.match_features(keypoints, descriptors, mask, image_sizes, scales, orientations)
        elif self.axes("pipeline"):
            image_sizes = self._sizes(pixel_values, image_sizes)
            found = self._run("pipeline", pixel_values=pixel_values, image_sizes=image_sizes)
            del found["descriptors"]
            outputs = LightGlueKeypointMatchingOutput(**found, image_sizes=image_sizes)  # type: ignore[arg-type]
        else:
            features: Any = self.extract_features(pixel_values, image_sizes)
            outputs = self.match_features(
                features.keypoints, features.descriptors, features.mask, features.image_sizes
            )
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
        keypoints: Tensor,
        descriptors: Tensor,
        mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        scales: Tensor | None = None,
        orientations: Tensor | None = None,
    ) -> LightGlueKeypointMatchingOutput:
        """Match keypoints in pixels; see the PyTorch model's. `image_sizes` are required.

        Raises:
            ValueError: no `image_sizes`, no graph of the matcher alone, or it was made for other shapes.
        """
        if image_sizes is None:
            raise ValueError("image_sizes are required: an exported matcher does not guess them from the keypoints")
        n = keypoints.shape[2]
        mask = torch.ones_like(keypoints[..., 0], dtype=torch.int32) if mask is None else mask.int()
        points: dict[str, Tensor] = {"keypoints": keypoints, "descriptors": descriptors, "mask": mask}
        if scales is not None and orientations is not None:
            points |= {"scales": scales, "orientations": orientations}
        if n == 0:  # the graph wants one at least: let it be padding
            points = {
                name: torch.cat([x, x.new_zeros(*x.shape[:2], 1, *x.shape[3:])], 2) for name, x in points.items()
            }
        found = self._run("matcher", **points, image_sizes=image_sizes)
        per_point = {name: value if value.ndim < 3 else value[:, :, :n] for name, value in found.items()}
        relative = keypoints.float() / image_sizes.flip(-1)[:, :, None]
        shared = {"keypoints": relative, "mask": mask, "image_sizes": image_sizes}
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


def _files(model_id: str | Path, backend: str, **hub_options: Any) -> dict[str, Path]:
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


def _processors(model_id: str | Path, **hub_options: Any) -> list[Any]:
    try:
        return [AutoImageProcessor.from_pretrained(model_id, **hub_options)]
    except OSError:  # a matcher alone has none
        return []


@cache
def _openvino_class() -> type:
    try:
        import openvino
        from optimum.intel.openvino.modeling import OVModel
    except ImportError as error:
        raise ImportError("OVModelForKeypointMatching needs Optimum Intel: install lightglue-hf[openvino]") from error

    class OVModelForKeypointMatching(KeypointMatchingRuntime, OVModel):
        """LightGlue on OpenVINO.

        `from_pretrained` takes what Optimum's other classes take: a directory or a Hub id, `export=True` (with
        `export_options`, an [`ExportOptions`]), `device` ("CPU", "GPU", "AUTO"), `ov_config`, `compile`,
        `load_in_8bit`, `quantization_config`. OpenVINO computes in bfloat16 where the processor has it, unless
        `ov_config={"INFERENCE_PRECISION_HINT": "f32"}`.
        """

        backend = "openvino"
        export_feature = "keypoint-matching"
        auto_model_class = AutoModelForKeypointMatching

        def __init__(self, model: Any, config: Any, **kwargs: Any) -> None:
            self.detector = kwargs.pop("detector", None)
            self.detector_request: Any = None
            self.part = _part(model)
            available = openvino.Core().available_devices
            device = kwargs.get("device", "CPU").upper()
            if device.split(":")[0].split(".")[0] not in {"AUTO", *(name.split(".")[0] for name in available)}:
                raise ValueError(f"OpenVINO has no device {device} here, only {', '.join(available)}")
            super().__init__(model, config, **kwargs)

        @classmethod
        def _from_pretrained(cls, model_id: Any, config: Any, **kwargs: Any) -> Any:
            hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            files = _files(model_id, "openvino", **hub_options)
            main = next(part for part in ("pipeline", "matcher", "detector") if part in files)
            detector = (
                openvino.Core().read_model(files["detector"]) if main == "matcher" and "detector" in files else None
            )
            kwargs.setdefault("preprocessors", _processors(files[main].parent))
            return super()._from_pretrained(
                model_id, config, file_name=FILES["openvino"][main], detector=detector, **kwargs
            )

        @property
        def _ov_model_names(self) -> list[str]:
            return ["model"] if self.detector is None else ["model", "detector"]

        @property
        def _ov_model_paths(self) -> dict[str, str]:
            names = FILES["openvino"]
            return {"model": names[self.part], "detector": names["detector"]}

        def compile(self) -> None:
            super().compile()
            if self.detector is not None and self.detector_request is None:
                self.detector_request = self._compile_model(
                    self.detector, self._device, {**self.ov_config}, self.model_save_dir
                )

        def clear_requests(self) -> None:
            super().clear_requests()
            self.detector_request = None

        def _reshape(
            self, model: Any, batch_size: int, sequence_length: int, height: Any = None, width: Any = None
        ) -> Any:
            """The base class's, for whom the second axis, the images of a pair, would be any number."""
            if batch_size == -1 and height is None and width is None:
                return model
            wanted = {0: batch_size, 3: height, 4: width}
            model.reshape(
                {
                    port: openvino.PartialShape(
                        [
                            wanted.get(axis) or length if axis == 0 or len(port.partial_shape) == 5 else length
                            for axis, length in enumerate(port.partial_shape)
                        ]
                    )
                    for port in model.inputs
                }
            )
            return model

        def reshape(self, batch_size: int, height: int, width: int) -> Any:  # type: ignore[override]
            """Fix the shapes of the pipeline, which then runs a little faster; compile afterwards.

            Raises:
                ValueError: not a graph of the whole pipeline, or another batch than 1 of an adaptive one.
            """
            shape = (self.axes("pipeline") or {}).get("pixel_values")
            if shape is None:
                raise ValueError("only a graph of the whole pipeline is reshaped")
            if shape[0] not in (None, batch_size):
                raise ValueError(f"this graph was made for batches of {shape[0]}, not {batch_size}")
            self.is_dynamic = False
            self.model: Any = self._reshape(self.model, batch_size, 2, height, width)
            self.clear_requests()
            return self

        def _graph(self, part: str) -> Any:
            return self.model if part == self.part else self.detector if part == "detector" else None

        def axes(self, part: str) -> dict[str, list[int | None]] | None:
            graph = self._graph(part)
            if graph is None:
                return None
            return {
                port.any_name: [None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape]
                for port in graph.inputs
            }

        def infer(self, part: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.compile()
            request: Any = self.request if part == self.part else self.detector_request
            results = request(inputs)
            return {output.any_name: np.array(results[output]) for output in request.outputs}

        @property
        def engine(self) -> str:
            """What computes, in words."""
            return f"OpenVINO {openvino.__version__.split('-')[0]} on {self._device}"

    return OVModelForKeypointMatching


def _part(model: Any) -> str:
    """Which part an OpenVINO graph is, from its inputs and outputs."""
    names = {port.any_name for port in (*model.inputs, *model.outputs)}
    if "pixel_values" not in names:
        return "matcher"
    return "pipeline" if "matches" in names else "detector"


@cache
def _onnxruntime_class() -> type:
    try:
        import onnxruntime
        from optimum.modeling_base import OptimizedModel
    except ImportError as error:
        raise ImportError("ORTModelForKeypointMatching needs ONNX Runtime: install lightglue-hf[onnx]") from error

    class ORTModelForKeypointMatching(KeypointMatchingRuntime, OptimizedModel):
        """LightGlue on ONNX Runtime.

        `from_pretrained` takes a directory or a Hub id, `export=True` (with `export_options`, an
        [`ExportOptions`]), `provider` ("CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider",
        "OpenVINOExecutionProvider"), `provider_options` and `session_options`. A provider that is not there is an
        error, not a run on the CPU.
        """

        backend = "onnx"
        auto_model_class = AutoModelForKeypointMatching

        def __init__(self, sessions: dict[str, Any], config: Any, files: dict[str, Path], **kwargs: Any) -> None:
            super().__init__(sessions, config, **kwargs)
            self.sessions = sessions
            self.files = files

        @classmethod
        def _from_pretrained(
            cls,
            model_id: Any,
            config: Any,
            provider: str = "CPUExecutionProvider",
            provider_options: dict[str, Any] | None = None,
            session_options: Any = None,
            **kwargs: Any,
        ) -> Any:
            available = onnxruntime.get_available_providers()
            if provider not in available:
                raise ValueError(f"ONNX Runtime has no {provider} here, only {', '.join(available)}")
            files = _files(model_id, "onnx", **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs})
            sessions = {}
            for part, file in files.items():
                sessions[part] = onnxruntime.InferenceSession(
                    file, session_options, providers=[(provider, provider_options or {})]
                )
                if provider not in sessions[part].get_providers():
                    raise RuntimeError(f"ONNX Runtime could not start {provider}")
            directory = next(iter(files.values())).parent
            return cls(sessions, config, files, preprocessors=_processors(directory))

        def _save_pretrained(self, save_directory: Any) -> None:
            for file in self.files.values():
                shutil.copy2(file, save_directory)

        @property
        def device(self) -> torch.device:
            """Where inputs are wanted and outputs lie."""
            return torch.device("cpu")

        @property
        def dtype(self) -> torch.dtype:
            return torch.float32

        def can_generate(self) -> bool:
            return False

        def axes(self, part: str) -> dict[str, list[int | None]] | None:
            if part not in self.sessions:
                return None
            ports = self.sessions[part].get_inputs()
            return {port.name: [axis if isinstance(axis, int) else None for axis in port.shape] for port in ports}

        def infer(self, part: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            session = self.sessions[part]
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, inputs)))

        @property
        def engine(self) -> str:
            """What computes, in words."""
            provider = next(iter(self.sessions.values())).get_providers()[0]
            return f"ONNX Runtime {onnxruntime.__version__}, {provider}"

    return ORTModelForKeypointMatching


_CLASSES = {"OVModelForKeypointMatching": _openvino_class, "ORTModelForKeypointMatching": _onnxruntime_class}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _CLASSES[name]()
