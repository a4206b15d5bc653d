"""The processor and the model that the options name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.files import json_object
from .errors import one_line, reading


def load_matcher(name: str, args: argparse.Namespace) -> tuple[Any, Any]:
    """Read a processor and a LightGlue model with a detector, and set what the options set.

    Args:
        name: of a checkpoint, see [`find_checkpoint`].
        args: what `add_model_options` adds.

    Raises:
        InputError: there is no such model, or it does not do what the options ask for.
    """
    import torch

    from ..modeling_lightglue import LightGlueForKeypointMatching
    from ..runtime.fixed import set_options

    quiet_libraries(args)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    processor, model = load(name, args)
    is_model = isinstance(model, LightGlueForKeypointMatching)
    if not (is_model or hasattr(model, "engine")) or not model.config.use_keypoint_detector:
        raise InputError(f"{name} is no LightGlue model with a keypoint detector")
    set_options(name, model, args.max_keypoints, args.threshold)
    return processor, model


def quiet_libraries(args: argparse.Namespace) -> None:
    """Errors of transformers alone are shown, unless the options say otherwise."""
    import transformers

    if args.verbose:
        transformers.logging.set_verbosity_info()
    else:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def find_checkpoint(name: str) -> Path | str:
    """The directory of a checkpoint by its name or path, published ones fetched at their first use, or a Hub id.

    Raises:
        InputError: it is none of them, or cannot be had.
    """
    from .. import located

    with reading():
        found = located(name)
    return Path(found) if Path(found).is_dir() else found


def load(name: str, args: argparse.Namespace) -> tuple[Any, Any]:
    """Read a processor and a model whose weights are all there, from the package, a directory or the Hub."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForKeypointMatching

    found = find_checkpoint(name)
    problem = f"cannot load the model {name}"
    runtime = None
    options: dict[str, Any] = {"trust_remote_code": False}
    if isinstance(found, Path):
        for file in ("config.json", "preprocessor_config.json"):
            if not (found / file).is_file():
                raise InputError(f"no model in {found}: there is no {file}")
            check_types(found / file)
        runtime = runtime_of(found)
    else:
        problem += " from the Hub (and no directory here is called that)"
        options["revision"] = args.revision or "main"
    if runtime is None:
        check_device(args.device)
    with reading(problem):
        processor = AutoImageProcessor.from_pretrained(found, **options)
        if runtime is not None:
            return processor, runtime(found, args.device, args.dtype)
        model, info = AutoModelForKeypointMatching.from_pretrained(
            found, dtype=getattr(torch, args.dtype), use_safetensors=True, output_loading_info=True, **options
        )
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            keys = sorted(info[kind])
            raise InputError(f"{problem}: {len(keys)} {kind.replace('_', ' ')}, {keys[0]} first")
    return processor, model.eval().to(args.device)


def openvino_config(dtype: str) -> dict[str, str]:
    """What has OpenVINO compute in a type that PyTorch has a name for."""
    return {"INFERENCE_PRECISION_HINT": {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]}


def check_types(path: Path) -> None:
    """Raise an InputError where a JSON file has something else in a field by which transformers chooses classes."""
    fields = json_object(path)
    kinds = {"model_type": str, "image_processor_type": str, "feature_extractor_type": str, "auto_map": dict}
    for name, kind in kinds.items():
        if not isinstance(fields.get(name, kind()), (kind, type(None))):
            raise InputError(f"{path}: {name} must be {'text' if kind is str else 'a dictionary'}")


def check_device(device: str) -> None:
    """Raise an InputError if PyTorch cannot compute there."""
    import torch

    try:
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # a build without it; no such name
        problem = one_line(error).split(". ")[0]
        raise InputError(f"--device {device}: {problem}") from error


def runtime_of(directory: Path) -> Callable[[Any, str, str], Any] | None:
    """How to load the graphs in a directory, if it has any."""
    from .. import runtime
    from ..runtime.fixed import backend_of

    def openvino(directory: Path, device: str, dtype: str) -> Any:
        options = {"device": device, "ov_config": openvino_config(dtype)}
        return runtime.OVModelForKeypointMatching.from_pretrained(directory, **options)

    def onnxruntime(directory: Path, device: str, dtype: str) -> Any:
        providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if dtype != "float32" or device not in providers:
            raise InputError(f"ONNX Runtime is run in float32, on {' or '.join(providers)}, not {dtype} on {device}")
        return runtime.ORTModelForKeypointMatching.from_pretrained(directory, provider=providers[device])

    return {"openvino": openvino, "onnx": onnxruntime, None: None}[backend_of(directory)]
