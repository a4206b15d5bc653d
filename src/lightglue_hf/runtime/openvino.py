"""LightGlue on OpenVINO; needs Optimum Intel."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForKeypointMatching

from ..utils.optional import without_telemetry
from .base import FILES, HUB_OPTIONS, KeypointMatchingRuntime, find_files, load_processors

with without_telemetry():  # also of NNCF, which Optimum Intel imports
    import openvino
    from optimum.intel.openvino.modeling import OVModel

# OpenVINO keeps what it compiled for a shape of inputs, by default of 5000 operations, which with photos of many
# sizes takes hundreds of megabytes.
CPU_CACHE = {"CPU_RUNTIME_CACHE_CAPACITY": "500"}
VIRTUAL_DEVICES = ("AUTO", "BATCH", "HETERO", "MULTI")


class OVModelForKeypointMatching(KeypointMatchingRuntime, OVModel):
    """LightGlue on OpenVINO.

    `from_pretrained` takes what Optimum's other classes take: a directory or a Hub id, `export=True` (with
    `export_options`, an [`ExportOptions`]), `device` ("CPU", "GPU", "AUTO",
    "HETERO:GPU,CPU" and so on), `ov_config`, `compile`, `dynamic_shapes`, `load_in_8bit`, `quantization_config`.
    One model can be called from several threads. OpenVINO computes in bfloat16 where the processor has it, unless
    `ov_config={"INFERENCE_PRECISION_HINT": "f32"}`.
    """

    backend = "openvino"
    options = ("compile", "device", "dynamic_shapes", "load_in_8bit", "ov_config", "quantization_config")
    export_feature = "keypoint-matching"
    auto_model_class = AutoModelForKeypointMatching

    def __init__(self, model: Any, config: Any, **kwargs: Any) -> None:
        self.detector = kwargs.pop("detector", None)
        self.detector_request: Any = None
        self.part = _part(model)
        # requests of each part's compiled graph: one serves one thread at a time
        self._idle: dict[str, tuple[Any, SimpleQueue[Any]]] = {}
        self._compiling = threading.RLock()
        _check_device(kwargs.get("device", "CPU"))
        super().__init__(model, config, **kwargs)

    @classmethod
    def _from_pretrained(cls, model_id: Any, config: Any, **kwargs: Any) -> Any:
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        files = find_files(model_id, "openvino", **hub_options)
        main = next(part for part in ("pipeline", "matcher", "detector") if part in files)
        detector = openvino.Core().read_model(files["detector"]) if main == "matcher" and "detector" in files else None
        kwargs.setdefault("preprocessors", load_processors(files[main].parent))
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

    @staticmethod
    def _compile_model(model: Any, device: Any = None, ov_config: Any = None, model_save_dir: Any = None) -> Any:
        """The base class's, with a bound on what the CPU remembers."""
        if str(device).upper() == "CPU":
            ov_config = {**CPU_CACHE, **(ov_config or {})}
        return OVModel._compile_model(model, device, ov_config, model_save_dir)

    def to(self, device: str | torch.device) -> OVModelForKeypointMatching:
        """Compute on a device of OpenVINO's: "CPU", "GPU", "AUTO", "HETERO:GPU,CPU" and so on.

        Raises:
            ValueError: OpenVINO has no such device here: "cuda", for example, is PyTorch's.
        """
        name = str(device).upper()
        _check_device(name)
        if name != self._device:
            super().to(name)
        return self

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
        with self._compiling:
            self.compile()
            compiled: Any = self.request if part == self.part else self.detector_request
            if part not in self._idle or self._idle[part][0] is not compiled:  # another since `half`, `to`, `reshape`
                self._idle[part] = compiled, SimpleQueue()
            idle = self._idle[part][1]
        try:
            request = idle.get_nowait()
        except Empty:
            request = compiled.create_infer_request()
        results = request.infer(inputs, share_inputs=True, share_outputs=True)
        # by the graph's own names: those of what was compiled may be several for one output
        outputs = {port.any_name: np.array(results[i]) for i, port in enumerate(self._graph(part).outputs)}
        idle.put(request)
        return outputs

    @property
    def engine(self) -> str:
        """What computes, in words."""
        return f"OpenVINO {openvino.__version__.split('-')[0]} on {self._device}"


def _check_device(device: str) -> None:
    """Raise a ValueError that says which devices there are, if one of those named is not."""
    kind, _, rest = device.upper().partition(":")
    names = rest.split(",") if kind in VIRTUAL_DEVICES else [device.upper()]
    available = openvino.Core().available_devices
    known = {"", *available, *(name.split(".")[0] for name in available)}
    for name in names:
        if name.strip(" -").split("(")[0] not in known:
            raise ValueError(f"OpenVINO has no device {name} here, only {', '.join(available)}")


def _part(model: Any) -> str:
    """Which part an OpenVINO graph is, from its inputs and outputs."""
    names = {port.any_name for port in (*model.inputs, *model.outputs)}
    if "pixel_values" not in names:
        return "matcher"
    return "pipeline" if "matches" in names else "detector"
