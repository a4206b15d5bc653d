"""Export to ONNX and OpenVINO IR: the whole pipeline, the detector alone or the matcher alone, as one graph each.

The graphs are traced from the PyTorch model itself. Fixed-depth graphs take any batch; adaptive graphs, one pair: a
layer is then the branch of an `If`, skipped once the pair has stopped, and pruned points leave the tensors. Every
graph is run against PyTorch before its files appear. docs/export.md has the inputs and outputs in a table.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers.utils import cached_file

from ..configuration_lightglue import LightGlueConfig
from ..features import KeypointDetector
from ..image_processing_lightglue import SIZE_DIVISOR, LightGlueImageProcessor
from ..images import PHOTO_SUFFIXES, find_photos
from ..modeling_lightglue import LightGlueForKeypointMatching
from ..utils.files import refilling
from ..utils.optional import how_to_install
from .check import LIMITS, Check, ExportError, check, examples_of
from .consumers import CONSUMERS, Layout
from .formats import ONNXFormat, OpenVINOFormat
from .graphs import FEATURES, AdaptiveMatcher, Arrays, Axes, Detector, Graph, Matcher, Pipeline, Run, fused

FILES = {
    "onnx": {"pipeline": "model.onnx", "detector": "detector.onnx", "matcher": "matcher.onnx"},
    "openvino": {
        "pipeline": "openvino_model.xml",
        "detector": "openvino_detector.xml",
        "matcher": "openvino_matcher.xml",
    },
}
PARTS = tuple(FILES["onnx"])
OPSET = 18
FIRST_OPSET = 16  # with GridSample
WEIGHT_FORMATS = ("fp32", "fp16", "int8")
FORMATS: dict[str, Any] = {"onnx": ONNXFormat, "openvino": OpenVINOFormat}

EXPORTED = "Exported by lightglue-hf"
"""What the card of an export says."""

# What an export may have left in a directory, which the next one replaces.
WRITTEN = frozenset(
    [name.replace(".xml", end) for names in FILES.values() for name in names.values() for end in (".xml", ".bin")]
    + [f"{consumer}_{name}" for consumer in CONSUMERS for name in FILES["onnx"].values()]
    + ["web_model.json"]
    + ["config.json", "preprocessor_config.json", "README.md", "openvino_config.json"]
)


@dataclass(frozen=True)
class ExportOptions:
    """What graphs to make.

    Args:
        parts: of "pipeline", "detector" and "matcher"; by default the pipeline, or what the consumer takes.
        consumer: "opencv", "colmap" or "web": the program that is to run the graphs, which are ONNX in its layout and
            take one pair, the detector one image. By default the layout is that of docs/export.md.
        batch_size: pairs, for the detector images; 0 for any number. Adaptive graphs take one pair.
        height, width: of the images; 0 for any of at least 8 pixels. Both or neither.
        num_keypoints: the columns of every image, those without a keypoint masked; by default the detector's
            `max_keypoints`, 1024 where it has none. For the matcher alone any number by default.
        matcher_keypoints: the columns of the graph of the matcher alone, where they are others: a video's frame is
            matched with more points than are found in it.
        adaptive: stop early and prune points as the model's configuration says; otherwise all layers run.
        weight_format: "fp32", "fp16" or "int8", how the weights are stored.
        calibration: folder of photos to quantise weights and activations by (OpenVINO alone).
        num_samples: pairs of photos that are used of it.
        opset: of ONNX, 16 or later.
        validate: run every graph against PyTorch, and fail where it differs.

    Raises:
        ValueError: a number or name out of its range, or options that exclude each other, named.
    """

    parts: tuple[str, ...] = ()
    consumer: str | None = None
    batch_size: int = 0
    height: int = 0
    width: int = 0
    num_keypoints: int | None = None
    matcher_keypoints: int | None = None
    adaptive: bool = False
    weight_format: str = "fp32"
    calibration: str | os.PathLike[str] | None = None
    num_samples: int = 100
    opset: int = OPSET
    validate: bool = True

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise ValueError(f"parts must be of {', '.join(PARTS)}, got {self.parts}")
        if self.consumer is None:
            object.__setattr__(self, "parts", self.parts or ("pipeline",))
        elif self.consumer not in CONSUMERS:
            raise ValueError(f"consumer must be of {', '.join(CONSUMERS)}, got {self.consumer!r}")
        elif self.adaptive or self.batch_size > 1:
            raise ValueError(
                f"a graph for {self.consumer} runs all layers on one pair: leave adaptive and batch_size out"
            )
        if self.weight_format not in WEIGHT_FORMATS:
            raise ValueError(f"weight_format must be of {', '.join(WEIGHT_FORMATS)}, got {self.weight_format!r}")
        if self.batch_size < 0:
            raise ValueError(f"batch_size must be at least 0, got {self.batch_size}")
        if self.opset < FIRST_OPSET:
            raise ValueError(f"opset must be at least {FIRST_OPSET}, got {self.opset}")
        for name in ("num_keypoints", "matcher_keypoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        sides = (self.height, self.width)
        if sides != (0, 0) and min(sides) < SIZE_DIVISOR:
            raise ValueError(f"height and width must both be 0 or at least {SIZE_DIVISOR}, got {sides}")
        if self.adaptive and self.batch_size > 1:
            raise ValueError(
                "an adaptive graph takes one pair: batch_size must be 1 or 0 (a runtime loops over pairs)"
            )
        if self.adaptive and (self.weight_format == "int8" or self.calibration is not None):
            raise ValueError("adaptive graphs are not quantised yet: choose fp32 or fp16, or leave adaptive out")

    def for_model(self, config: LightGlueConfig) -> ExportOptions:
        """These options with the parts of a model that the consumer, if any, takes, and a size where it needs one.

        Raises:
            ValueError: it takes none, or not those that are asked for.
        """
        if self.consumer is None:
            return self
        consumer = CONSUMERS[self.consumer]
        parts = self.parts or consumer.parts(config) or tuple(consumer.layouts)
        side = max(consumer.layout(part, config).side for part in parts)
        return replace(self, parts=parts, height=self.height or side, width=self.width or side)


# ---------------------------------------------------------------------------------------------------------------------
# What is exported


class Exportable:
    """A model that does what its graphs are to do, itself and `fused`, the processor that feeds them, and the options.

    Args:
        model: not changed, but copied.
        processor: `None` for the matcher alone.
        options: what graphs to make.

    Raises:
        ValueError: the model or the processor cannot do what the options ask for.
    """

    def __init__(
        self, model: LightGlueForKeypointMatching, processor: LightGlueImageProcessor | None, options: ExportOptions
    ) -> None:
        self.options = options = options.for_model(model.config)  # type: ignore[arg-type]
        self.model = model = copy.deepcopy(model).float().cpu().eval()
        model.set_attn_implementation("sdpa")
        config = model.config
        if not options.adaptive:
            config.run_all_layers()
        elif not config.is_adaptive:
            raise ValueError(f"nothing is adaptive: the model's {' and '.join(CONFIDENCES)} are <= 0")
        if config.use_keypoint_detector:
            detector = config.keypoint_detector_config
            if set(options.parts) != {"matcher"} and not getattr(detector, "exportable", True):
                raise ValueError(
                    f'{detector.model_type} is no network and cannot be exported: export the "matcher" alone, which '
                    "takes its keypoints"
                )
            if options.num_keypoints:
                detector.max_keypoints = options.num_keypoints
            elif detector.max_keypoints < 1:
                detector.max_keypoints = 1024
        elif set(options.parts) != {"matcher"}:
            raise ValueError('this model has no keypoint detector: its "matcher" can be exported, and nothing else')
        broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
        if broken:
            raise ValueError(f"weights that are NaN or Inf: {', '.join(broken[:5])}")
        self.fused = fused(model)
        self.processor = processor = copy.deepcopy(processor)
        if processor is None and set(options.parts) != {"matcher"}:
            raise ValueError("there is no image processor, which a graph that takes images needs")
        if processor is not None and options.height:
            processor.size = {"height": options.height, "width": options.width}
            processor.do_resize = True
        # Photos of different sizes then share a batch, and the graphs are told those sizes. Consumers give each image
        # as it is.
        self.sized = processor is not None and (not processor.do_resize or "longest_edge" in processor.size)
        self.sized &= options.consumer is None

        # Detectors that do not know padding find keypoints on each image by itself, and so does their graph.
        detector = getattr(model, "keypoint_detector", None)
        own = isinstance(detector, KeypointDetector) and type(detector).extract_features
        self.one_by_one = self.sized and own is KeypointDetector.extract_features
        if self.one_by_one and options.batch_size > 1 and set(options.parts) != {"matcher"}:
            raise ValueError(
                f"a graph with {config.keypoint_detector_config.model_type} takes one pair, for the detector one "
                "image, where sizes differ: give batch_size 0 (a runtime loops over them), or height and width"
            )

        self.photos: list[Path] = []
        if options.calibration is not None:
            self.photos = find_photos(options.calibration)
            if processor is None or len(self.photos) < 2:
                raise ValueError(
                    "quantisation needs an image processor and two photos at least; "
                    f"in {options.calibration} there are {len(self.photos)} ({', '.join(PHOTO_SUFFIXES)})"
                )

    def metadata(self, part: str) -> dict[str, str]:
        """What is written into a graph of the part."""
        config = self.model.config
        said = {
            "producer": f"lightglue-hf {_version()}",
            "part": part,
            "adaptive": self.options.adaptive and part != "detector",
            "weight_format": self.options.weight_format,
            "consumer": self.options.consumer or "",
            "calibrated": self.options.calibration is not None,
        }
        if part != "matcher":
            said["max_keypoints"] = config.keypoint_detector_config.max_keypoints
            said["keypoint_threshold"] = getattr(config.keypoint_detector_config, "keypoint_threshold", "")
        if part != "detector":
            said |= {name: getattr(config, name) for name in ("filter_threshold", *CONFIDENCES)}
        return {name: str(value) for name, value in said.items()}

    def graph(self, part: str) -> Graph:
        """The graph of a part of the model: "pipeline", "detector" or "matcher"."""
        model, options = self.fused, self.options
        config = model.config
        batch: int | str = options.batch_size or "batch"
        if options.adaptive or (self.one_by_one and part == "pipeline"):
            batch = 1
        height, width = options.height or "height", options.width or "width"
        n: int | str = options.matcher_keypoints or options.num_keypoints or "keypoints"
        if part != "matcher":
            n = config.keypoint_detector_config.max_keypoints
        pair: tuple[int | str, ...] = (batch, 2)
        if part == "detector":
            pair = (1 if self.one_by_one else options.batch_size or "images",)
        images = {"pixel_values": Axes(torch.float32, (*pair, 3, height, width))}
        sizes = {"image_sizes": Axes(torch.int64, (*pair, 2))}
        if self.sized:
            images |= sizes
        per_point = Axes(torch.float32, (*pair, n))
        features = {
            "keypoints": Axes(torch.float32, (*pair, n, 2)),
            "descriptors": Axes(torch.float32, (*pair, n, config.num_input_features)),
            "mask": Axes(torch.int32, (*pair, n)),
        }
        metadata = self.metadata(part)
        float32_modules = getattr(config.keypoint_detector_config, "float32_modules", ())
        if part == "detector":
            found = {"keypoints": features["keypoints"], "scores": per_point, **features}
            return Graph(part, Detector(model), images, found, metadata, float32_modules)
        matcher: nn.Module = AdaptiveMatcher(model) if options.adaptive else Matcher(model)
        matched = {
            "matches": Axes(torch.int64, (*pair, n)),
            "matching_scores": per_point,
            "prune": Axes(torch.int64, (*pair, n)),
            "stop": Axes(torch.int64, (batch,)),
        }
        if part == "matcher":
            extra = {"scales": per_point, "orientations": per_point} if config.add_scale_ori else {}
            return Graph(part, matcher, features | sizes | extra, matched, metadata)
        found = {name: features[name] for name in ("keypoints", "mask", "descriptors")}
        return Graph(part, Pipeline(model, matcher), images, matched | found, metadata, float32_modules)

    def layout(self, graph: Graph) -> Layout | None:
        """A graph of this model in the layout of the consumer, if there is one."""
        options, config = self.options, self.model.config
        if options.consumer is None:
            return None
        layout = CONSUMERS[options.consumer].layout(graph.part, config)
        file = f"{options.consumer}_{FILES['onnx'][graph.part]}"
        return layout(graph, config, options.height, options.width, file)

    def calibration(self, part: str) -> Iterator[Arrays]:
        """Inputs of the part, from pairs of neighbouring photos in the folder of the options."""
        assert self.processor is not None
        for pair in list(pairwise(self.photos))[: self.options.num_samples]:
            inputs = dict(self.processor([pair], return_tensors="pt"))
            if part == "detector":
                inputs = {name: tensor[0] for name, tensor in inputs.items()}
            elif part == "matcher":
                with torch.no_grad():
                    found = self.model.extract_features(**inputs)
                inputs = {name: found[name] for name in FEATURES if name in found}
            yield {name: tensor.numpy() for name, tensor in inputs.items()}


CONFIDENCES = ("depth_confidence", "width_confidence", "rejection_threshold")


def _version() -> str:
    from .. import __version__

    return __version__


# ---------------------------------------------------------------------------------------------------------------------
# Files


def export(
    model_id: str | os.PathLike[str],
    output: str | os.PathLike[str],
    backend: str,
    options: ExportOptions | None = None,
    **hub_options: Any,
) -> list[Check]:
    """Write the graphs of a model, with config.json, preprocessor_config.json and a card, and check them.

    Args:
        model_id: a directory or a name on the Hub.
        output: the directory to write to. What an earlier export wrote there goes, whatever its model, parts and
            backend, and other files stay; the new files appear together at the end, or nothing changes.
        backend: "onnx" or "openvino"; for a consumer "onnx".
        options: what graphs to make.
        hub_options: such as `revision` and `token`, for `from_pretrained`.

    Returns:
        How the graphs compare with PyTorch; empty without `options.validate`.

    Raises:
        ExportError: a graph differs from PyTorch by more than its precision explains.
        FileExistsError: another export into `output` is running.
        ImportError: the packages for the backend are missing; which to install is said.
        OSError: the model cannot be read or `output` not be written.
        ValueError: the options do not go with the model or the backend.
    """
    options = options or ExportOptions()
    output = Path(output)
    if backend not in FILES:
        raise ValueError(f"backend must be of {', '.join(FILES)}, got {backend!r}")
    if options.calibration is not None and backend != "openvino":
        raise ValueError("weights and activations are quantised by photos for OpenVINO alone")
    if options.consumer is not None and backend != "onnx":
        raise ValueError(f"graphs for {options.consumer} are ONNX: choose that format")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is no directory")
    if output.is_dir() and os.path.isdir(model_id) and output.samefile(model_id):
        raise ValueError(f"{output} is the model itself: its configuration would be overwritten")
    _refuse_others(output)
    _need(backend, options)
    model = LightGlueForKeypointMatching.from_pretrained(model_id, **hub_options)
    options = options.for_model(model.config)
    processor = None
    if set(options.parts) != {"matcher"} or options.calibration is not None:
        processor = LightGlueImageProcessor.from_pretrained(model_id, **hub_options)
    source = Exportable(model, processor, options)

    name, credits = str(model_id), source_card(model_id, hub_options)
    with refilling(output, WRITTEN, key="config.json") as directory:
        return _write(source, directory, backend, name, credits)


def _refuse_others(output: Path) -> None:
    """Raise a ValueError for files that no export wrote, and that this one would replace."""
    graphs = any((output / name).exists() for name in WRITTEN if name.endswith((".xml", ".onnx")))
    if any(output.glob("*.safetensors")) or ((output / "config.json").exists() and not graphs):
        raise ValueError(f"{output} holds a model: its configuration would be overwritten")
    card = output / "README.md"
    if card.exists() and EXPORTED not in card.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{card} was written by no export, and would be overwritten: choose another directory")


def source_card(model_id: str | os.PathLike[str], hub_options: dict[str, Any]) -> ModelCard | None:
    """The card of a model, which names licences and authors; `None` if it has none."""
    path = cached_file(str(model_id), "README.md", **hub_options, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    return ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True)


def _write(
    source: Exportable, directory: Path, backend: str, name: str, credits: ModelCard | None = None
) -> list[Check]:
    options = source.options
    weights = "calibrated" if options.calibration is not None else options.weight_format
    graphs, layouts, checks = {}, [], []
    for part in options.parts:
        graph = exported = source.graph(part)
        file = directory / FILES[backend][part]
        layout = source.layout(graph)
        if layout is not None:
            exported = replace(
                graph, module=layout, inputs=layout.inputs, outputs=layout.outputs, finish=layout.finish
            )
            file = directory / layout.file
            layouts.append(layout)
        written = FORMATS[backend](exported, options.opset)

        as_ours = _unchanged if layout is None else layout.as_ours
        if options.validate:
            examples = examples_of(source.model, graph, *([] if layout is None else [layout.sizes()]))
            if weights != "fp32":  # first whether the graph is right, then what fewer bits do to it
                written.save(file, "fp32")
                check(part, as_ours(written.run(file)), examples, "fp32", LIMITS["fp32"])
        samples = list(source.calibration(part)) if weights == "calibrated" else []
        written.save(file, options.weight_format, samples)
        graphs[file.name] = exported
        if options.validate:
            checks.append(check(part, as_ours(written.run(file)), examples, weights, LIMITS[weights]))
            if written.default_precision() != "float32":  # what users get who ask for nothing
                precision = f"{weights} in {written.default_precision()}"
                checks.append(check(part, as_ours(written.run(file, default=True)), examples, precision, None))
    source.model.config.save_pretrained(directory)
    if source.processor is not None:
        source.processor.save_pretrained(directory)
    card = _card(options, backend, name, graphs, checks, layouts, credits)
    (directory / "README.md").write_text(card, encoding="utf-8")
    if options.consumer is not None and CONSUMERS[options.consumer].manifest:
        _write_manifest(source, directory, name, graphs)
    return checks


def _unchanged(run: Run) -> Run:
    return run


def _need(backend: str, options: ExportOptions) -> None:
    packages = {"onnx": ["onnx", "onnxruntime"], "openvino": ["openvino"]}[backend]
    if backend == "openvino" and (options.weight_format == "int8" or options.calibration is not None):
        packages.append("nncf")
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} missing: {how_to_install(backend)}")


def _write_manifest(source: Exportable, directory: Path, name: str, graphs: dict[str, Graph]) -> None:
    """What a program that reads no metadata has to know, as JSON beside the graph."""
    size = source.processor.size if source.processor is not None else {}
    for file, graph in graphs.items():
        values = {
            "model": Path(name).name,
            "file": file,
            "longest_edge": size.get("longest_edge") or max(size.values()),
            "max_keypoints": source.model.config.keypoint_detector_config.max_keypoints,
            **{
                kind: {name: [str(dtype)[6:], axes] for name, (dtype, axes) in values.items()}
                for kind, values in (("inputs", graph.inputs), ("outputs", graph.outputs))
            },
        }
        (directory / file).with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")


def _card(
    options: ExportOptions,
    backend: str,
    name: str,
    graphs: dict[str, Graph],
    checks: list[Check],
    layouts: list[Layout],
    credits: ModelCard | None,
) -> str:
    licences = {} if credits is None else credits.data.to_dict()
    kind = "adaptive (early exit and point pruning, one pair)" if options.adaptive else "fixed depth, any batch"
    consumer = CONSUMERS[options.consumer] if options.consumer else None
    if consumer:
        kind = f"all layers, one pair, for {consumer.title}"
    lines = [
        "---",
        "library_name: optimum",
        "pipeline_tag: keypoint-matching",
        f"tags: [lightglue, keypoint-matching, {backend}]",
        *(
            f"{field}: {licences[field]}"
            for field in ("license", "license_name", "license_link")
            if licences.get(field)
        ),
        "---",
        "",
        f"# {Path(name).name}, exported to {'ONNX' if backend == 'onnx' else 'OpenVINO IR'}",
        "",
        f"{EXPORTED} {_version()} from `{Path(name).name}`: {kind}, weights in {options.weight_format}"
        + (", activations quantised by photos." if options.calibration is not None else "."),
        "",
        "| file | input | type | axes |",
        "|---|---|---|---|",
    ]
    for file, graph in graphs.items():
        for kind, values in (("", graph.inputs), (" (output)", graph.outputs)):
            for value, (dtype, axes) in values.items():
                shape = ", ".join(map(str, axes))
                lines.append(f"| {file} | `{value}`{kind} | {str(dtype)[6:]} | ({shape}) |")
    lines += ["", "Compared with PyTorch when it was made:" if checks else "Not compared with PyTorch.", ""]
    lines += [f"- {result}" for result in checks]
    if consumer:
        usage = consumer.opening + "".join(layout.usage() for layout in layouts)
        lines += ["", "## Use", "", f"```{consumer.language}", usage.rstrip(), "```"]
    if credits is not None:  # it goes where the weights go
        lines += ["", "---", "", "The card of the model that was exported:", "", credits.text.strip()]
    return "\n".join(lines) + "\n"


__all__ = ["Check", "ExportError", "ExportOptions", "export"]
