"""LightGlue on ONNX Runtime; needs Optimum."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.modeling_base import OptimizedModel
from transformers import AutoModelForKeypointMatching

from .base import KeypointMatchingRuntime, find_files, load_processors

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ORTModelForKeypointMatching(KeypointMatchingRuntime, OptimizedModel):
    """LightGlue on ONNX Runtime.

    `from_pretrained` takes a directory or a Hub id, `export=True` (with `export_options`, an
    [`ExportOptions`]), `provider` ("CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider",
    "OpenVINOExecutionProvider") with `provider_options`, or ONNX Runtime's own list of `providers`, names or
    (name, options); and `session_options`. A provider that is not there is an error, not a run on the CPU.
    """

    backend = "onnx"
    options = ("provider", "provider_options", "providers", "session_options")
    auto_model_class = AutoModelForKeypointMatching

    def __init__(
        self, config: Any, files: dict[str, Path], providers: list[Any], session_options: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(None, config, **kwargs)
        self.files = files
        self.model_save_dir = next(iter(files.values())).parent
        self.session_options = session_options
        self._start(providers)

    @classmethod
    def _from_pretrained(
        cls,
        model_id: Any,
        config: Any,
        provider: str | None = None,
        provider_options: dict[str, Any] | None = None,
        providers: Sequence[Any] | None = None,
        session_options: Any = None,
        **hub_options: Any,
    ) -> Any:
        if providers is not None and (provider is not None or provider_options is not None):
            raise ValueError("give either provider and provider_options, or providers")
        if providers is None:
            providers = [(provider or "CPUExecutionProvider", provider_options or {})]
        files = find_files(model_id, "onnx", **hub_options)
        directory = next(iter(files.values())).parent
        return cls(config, files, list(providers), session_options, preprocessors=load_processors(directory))

    def _start(self, providers: list[Any]) -> None:
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        available = onnxruntime.get_available_providers()
        for name in names:
            if name not in available:
                raise ValueError(f"ONNX Runtime has no {name} here, only {', '.join(available)}")
        self.sessions = {
            part: onnxruntime.InferenceSession(file, self.session_options, providers=providers)
            for part, file in self.files.items()
        }
        for session in self.sessions.values():
            if missing := set(names) - set(session.get_providers()):
                raise RuntimeError(f"ONNX Runtime could not start {', '.join(sorted(missing))}")

    def to(self, device: str | torch.device) -> ORTModelForKeypointMatching:
        """Compute on the "cpu" or a "cuda" device, "cuda:1" for example; what comes back lies on the CPU.

        Raises:
            ValueError: ONNX Runtime has nothing for the device here.
        """
        wanted = torch.device(device)
        if wanted.type not in PROVIDERS:
            raise ValueError(f"ONNX Runtime runs on {' or '.join(PROVIDERS)} here, got {wanted}")
        options = {} if wanted.index is None or wanted.type == "cpu" else {"device_id": wanted.index}
        if next(iter(self.sessions.values())).get_providers()[0] != PROVIDERS[wanted.type] or options:
            self._start([(PROVIDERS[wanted.type], options)])
        return self

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
