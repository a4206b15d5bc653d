"""LightGlue on ONNX Runtime; needs Optimum."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.modeling_base import OptimizedModel
from transformers import AutoModelForKeypointMatching

from .base import HUB_OPTIONS, KeypointMatchingRuntime, find_files, load_processors


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
        files = find_files(model_id, "onnx", **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs})
        sessions = {}
        for part, file in files.items():
            sessions[part] = onnxruntime.InferenceSession(
                file, session_options, providers=[(provider, provider_options or {})]
            )
            if provider not in sessions[part].get_providers():
                raise RuntimeError(f"ONNX Runtime could not start {provider}")
        directory = next(iter(files.values())).parent
        return cls(sessions, config, files, preprocessors=load_processors(directory))

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
