"""The processor and the model that the options name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import bundled_checkpoint
from .arguments import BUNDLED
from .errors import CommandError, one_line


def load_matcher(args: argparse.Namespace) -> tuple[Any, Any]:
    """Read a processor and a model with a detector."""
    from ..modeling_lightglue import LightGlueForKeypointMatching

    processor, model = load_configured(args)
    is_model = isinstance(model, LightGlueForKeypointMatching)
    if not (is_model or hasattr(model, "engine")) or not model.config.use_keypoint_detector:
        raise CommandError(f"{args.model} is no LightGlue model with a keypoint detector")
    return processor, model


def load_configured(args: argparse.Namespace) -> tuple[Any, Any]:
    """Read a processor and a model, and set what the options set."""
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    processor, model = load(args.model, args.device, args.dtype)
    apply(args, model)
    return processor, model


def apply(args: argparse.Namespace, model: Any) -> None:
    """Set what the options set; in an exported graph it is what it was made with."""
    config = model.config
    detector: Any = getattr(config, "keypoint_detector_config", None)
    if hasattr(model, "engine"):
        if args.max_keypoints not in (None, detector.max_keypoints):
            raise CommandError(f"{args.model} was exported for {detector.max_keypoints} keypoints: export it again")
        if args.threshold is not None and args.threshold < config.filter_threshold:
            raise CommandError(f"{args.model} was exported with the threshold {config.filter_threshold}")
        return
    if args.max_keypoints and detector is not None:
        detector.max_keypoints = args.max_keypoints
    if args.threshold is not None:
        config.filter_threshold = args.threshold


def load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Read a processor and a model whose weights are all there, from the package, a directory or the Hub."""
    import torch
    import transformers
    from transformers import AutoImageProcessor, AutoModelForKeypointMatching

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory = bundled_checkpoint(name) if name == BUNDLED else Path(name).expanduser()
    if directory.is_dir():
        for file in ("config.json", "preprocessor_config.json"):
            if not (directory / file).is_file():
                raise CommandError(f"no model in {directory}: there is no {file}")
        where, problem = str(directory), f"cannot load the model {name}"
    elif directory.exists() or name.startswith((".", "/", "~")):
        raise CommandError(f"{name} is no directory with a model")
    else:
        where, problem = name, f"cannot load the model {name} from the Hub (and no directory here is called that)"
    runtime = exported(directory)
    try:
        processor = AutoImageProcessor.from_pretrained(where)
        if runtime is not None:
            return processor, runtime(directory, device, dtype)
        model, info = AutoModelForKeypointMatching.from_pretrained(
            where, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever a broken file makes transformers, safetensors or json raise
        raise CommandError(f"{problem}: {one_line(error)}") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            keys = sorted(info[kind])
            raise CommandError(f"{problem}: {len(keys)} {kind.replace('_', ' ')}, {keys[0]} first")
    return processor, model.eval().to(device)


def exported(directory: Path) -> Callable[[Path, str, str], Any] | None:
    """How to load the graphs in a directory, if it has any."""
    from .. import runtime

    def openvino(directory: Path, device: str, dtype: str) -> Any:
        hint = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
        options = {"device": device, "ov_config": {"INFERENCE_PRECISION_HINT": hint}}
        return runtime.OVModelForKeypointMatching.from_pretrained(directory, **options)

    def onnxruntime(directory: Path, device: str, dtype: str) -> Any:
        providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if dtype != "float32" or device not in providers:
            raise CommandError(f"ONNX Runtime is run in float32, on {' or '.join(providers)}, not {dtype} on {device}")
        return runtime.ORTModelForKeypointMatching.from_pretrained(directory, provider=providers[device])

    for pattern, load in (("openvino_*.xml", openvino), ("*.onnx", onnxruntime)):
        if any(directory.glob(pattern)):
            return load
    return None
