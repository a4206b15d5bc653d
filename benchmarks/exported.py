"""Exported graphs: how fast, with random weights of the published sizes, and how good, with the bundled checkpoint.

    python benchmarks/exported.py speed --keypoints 1024 --threads 2
    python benchmarks/exported.py quality PHOTOS --posed pairs.txt DIR

`speed` runs one pair of 640x480 through each contestant in turn, several rounds, and prints medians and how many times
faster than transformers' own eager model that is. `quality` exports the checkpoint, quantises it by the photos of a
folder and prints how many of the correct matches of float32 each precision keeps. Needs lightglue-hf[openvino,eval].
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

from lightglue_hf import (
    LightGlueConfig,
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
    OVModelForKeypointMatching,
    SuperPointConfig,
    bundled_checkpoint,
)
from lightglue_hf.comparison import judge
from lightglue_hf.datasets import BUILT_IN, posed
from lightglue_hf.evaluation import reprojection_precision
from lightglue_hf.export import ExportOptions, export
from lightglue_hf.methods import lightglue
from lightglue_hf.textures import render_textures

HEIGHT, WIDTH = 480, 640
Run = Callable[[], Any]


def write_model(directory: Path, keypoints: int) -> None:
    """SuperPoint and LightGlue of the published sizes, with random weights, that find `keypoints` in any photo.

    It is sure of all its points after a third of the layers; that counts where depth_confidence is above 0.
    """
    detector = SuperPointConfig(max_keypoints=keypoints, keypoint_threshold=0.0)
    model = LightGlueForKeypointMatching(LightGlueConfig(detector, width_confidence=-1, filter_threshold=0.0))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1 and not name.startswith("positional_encoder"):
            parameter.data.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    for i, layer in enumerate(model.token_confidence):
        layer.token.bias.data.fill_(20.0 if i == len(model.transformer_layers) // 3 - 1 else -20.0)
    model.save_pretrained(directory)
    LightGlueImageProcessor(size={"height": HEIGHT, "width": WIDTH}).save_pretrained(directory)


def transformers_eager(directory: Path, pixels: np.ndarray) -> Run:
    """transformers' own classes, with their default attention's eager form."""
    from transformers.models.lightglue.modeling_lightglue import LightGlueForKeypointMatching

    model = LightGlueForKeypointMatching.from_pretrained(directory, attn_implementation="eager").eval()
    model.config.depth_confidence = model.config.width_confidence = -1
    model.depth_confidence = model.width_confidence = -1
    return torch.inference_mode()(lambda: model(torch.from_numpy(pixels)))


def pytorch(directory: Path, pixels: np.ndarray) -> Run:
    """This package's model."""
    model = LightGlueForKeypointMatching.from_pretrained(directory).eval()
    model.config.depth_confidence = -1
    return torch.inference_mode()(lambda: model(torch.from_numpy(pixels)))


def openvino_graph(file: Path, precision: str, inputs: dict[str, np.ndarray], threads: int) -> Run:
    """A graph on OpenVINO, in "f32" or "bf16"."""
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(file, "CPU", options).create_infer_request()
    return lambda: request.infer(inputs)


def onnxruntime_graph(file: Path, inputs: dict[str, np.ndarray], threads: int) -> Run:
    """A graph on ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def speed(keypoints: int, threads: int, rounds: int) -> None:
    """Print the medians of all contestants, run in turn."""
    torch.set_num_threads(threads)
    canvas = render_textures(1, HEIGHT + 32, WIDTH + 32, seed=1)[0].astype(np.float32) / 255
    views = np.stack([canvas[:HEIGHT, :WIDTH], canvas[20 : 20 + HEIGHT, 10 : 10 + WIDTH]])
    pixels = np.ascontiguousarray(np.broadcast_to(views[None, :, None], (1, 2, 3, HEIGHT, WIDTH)))
    rng = np.random.default_rng(0)
    features = {
        "keypoints": (rng.random((1, 2, keypoints, 2)) * [WIDTH, HEIGHT]).astype(np.float32),
        "descriptors": rng.normal(0, 1 / 16, (1, 2, keypoints, 256)).astype(np.float32),
        "mask": np.ones((1, 2, keypoints), np.int32),
        "image_sizes": np.tile([HEIGHT, WIDTH], (1, 2, 1)),
    }
    shape: dict[str, Any] = {"batch_size": 1, "height": HEIGHT, "width": WIDTH}
    with tempfile.TemporaryDirectory() as name:
        model, out = Path(name, "model"), Path(name)
        write_model(model, keypoints)
        for index in range(2):  # to calibrate by
            file = out / f"photos/{index}.png"
            file.parent.mkdir(exist_ok=True)
            _save(views[index], file)

        def exported(kind: str, backend: str, **options: Any) -> Path:
            start = time.perf_counter()
            export(model, out / kind, backend, ExportOptions(validate=False, **options))
            print(f"exported {kind} in {time.perf_counter() - start:.1f} s", flush=True)
            return out / kind

        whole = exported("openvino", "openvino", **shape) / "openvino_model.xml"
        quantised = exported("int8", "openvino", **shape, calibration=out / "photos")
        onnx = exported("onnx", "onnx", **shape) / "model.onnx"
        points: dict[str, Any] = {"parts": ("matcher",), "num_keypoints": keypoints}
        layers = exported("matcher", "openvino", batch_size=1, **points) / "openvino_matcher.xml"
        early = exported("adaptive", "openvino", adaptive=True, **points) / "openvino_matcher.xml"
        images = {"pixel_values": pixels}
        contestants = {
            "transformers, eager": transformers_eager(model, pixels),
            "this package, PyTorch": pytorch(model, pixels),
            "ONNX Runtime f32": onnxruntime_graph(onnx, images, threads),
            "OpenVINO f32": openvino_graph(whole, "f32", images, threads),
            "OpenVINO bf16": openvino_graph(whole, "bf16", images, threads),
            "OpenVINO int8": openvino_graph(quantised / "openvino_model.xml", "bf16", images, threads),
            "matcher alone, OpenVINO bf16": openvino_graph(layers, "bf16", features, threads),
            "matcher alone, adaptive, a third of its layers": openvino_graph(early, "bf16", features, threads),
        }
        seconds = _in_turn(contestants, rounds)
        for contestant, value in seconds.items():
            factor = seconds["transformers, eager"] / value
            print(f"| {contestant} | {1000 * value:.0f} ms | {factor:.1f} |")
        cached = {"CACHE_DIR": str(out / "cache"), "INFERENCE_NUM_THREADS": threads}
        for when in ("first", "again"):
            start = time.perf_counter()
            openvino.Core().compile_model(whole, "CPU", cached)(images)
            print(f"OpenVINO bf16, loaded for the {when} time: {time.perf_counter() - start:.1f} s to a result")


def _save(grey: np.ndarray, file: Path) -> None:
    from PIL import Image

    Image.fromarray((grey * 255).astype(np.uint8)).save(file)


def _in_turn(contestants: dict[str, Run], rounds: int) -> dict[str, float]:
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def quality(photos: Path, posed_pairs: tuple[str, str] | None, samples: int) -> None:
    """Print the correct matches of each precision on photos whose truth is known."""
    model = bundled_checkpoint("tiny")
    processor = LightGlueImageProcessor.from_pretrained(model)
    with tempfile.TemporaryDirectory() as name:
        kinds: dict[str, tuple[str, dict[str, Any]]] = {
            "f32": ("f32", {}),
            "bf16": ("bf16", {}),
            "int8 weights": ("bf16", {"weight_format": "int8"}),
            "int8": ("bf16", {"calibration": photos, "num_samples": samples}),
        }
        models = {}
        for kind, (precision, options) in kinds.items():
            export(model, Path(name, kind), "openvino", ExportOptions(validate=False, **options))
            hint = {"INFERENCE_PRECISION_HINT": precision}
            models[kind] = OVModelForKeypointMatching.from_pretrained(Path(name, kind), ov_config=hint)
        datasets = [BUILT_IN["stereo"](), BUILT_IN["warped-easy"](), *([posed(*posed_pairs)] if posed_pairs else [])]
        totals = dict.fromkeys(models, 0)
        for dataset in datasets:
            correct = dict.fromkeys(models, 0)
            for pair in dataset:
                for kind, runtime in models.items():
                    correct[kind] += _correct(pair, lightglue(kind, runtime, processor, 640).predict(*pair.images))
            for kind in totals:
                totals[kind] += correct[kind]
            print(f"| {dataset.name} | " + " | ".join(_shares(correct)) + " |", flush=True)
        print("| all | " + " | ".join(_shares(totals)) + " |")


def _correct(pair: Any, prediction: Any) -> int:
    scores = judge(pair, prediction)
    found = [int(value) for name, value in scores.items() if name.startswith("correct")]
    return found[0] if found else reprojection_precision(*prediction.matched, pair.truth.matrix).correct


def _shares(correct: dict[str, int]) -> list[str]:
    return [f"{kind} {count} ({count / max(correct['f32'], 1):.1%})" for kind, count in correct.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--keypoints", type=int, default=1024)
    fast.add_argument("--threads", type=int, default=2)
    fast.add_argument("--rounds", type=int, default=5)
    good = commands.add_parser("quality")
    good.add_argument("photos", type=Path)
    good.add_argument("--posed", nargs=2, metavar=("PAIRS.txt", "DIR"))
    good.add_argument("--samples", type=int, default=10)
    args = parser.parse_args()
    if args.command == "speed":
        speed(args.keypoints, args.threads, args.rounds)
    else:
        quality(args.photos, args.posed, args.samples)


if __name__ == "__main__":
    main()
