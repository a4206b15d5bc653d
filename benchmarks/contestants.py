"""Every contestant behind one call: pixels of pairs in, matched points out, all with the same published weights."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import lightglue_hf
from lightglue_hf import KeypointFeatures, LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor
from lightglue_hf.data.textures import render_textures

from . import published
from .photos import HEIGHT, WIDTH, Matched

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRANSFORMERS, KORNIA, PUBLISHED = "transformers", "kornia", "published code"
PYTORCH, OPENVINO, ONNXRUNTIME = "PyTorch", "OpenVINO", "ONNX Runtime"  # ours
ADAPTIVE, ALL_LAYERS, PLAIN = "adaptive", "all layers", "plain graph"
CALIBRATION = 11  # procedural pictures that int8 is calibrated by: photos would be those that are then matched
PACKAGES = {  # what has to be installed for each, beside PyTorch and transformers
    KORNIA: ("kornia",),
    PUBLISHED: ("kornia",),
    OPENVINO: ("openvino", "optimum.intel", "nncf"),
    ONNXRUNTIME: ("onnx", "onnxruntime", "optimum"),
}


@dataclass(frozen=True)
class Contestant:
    """An implementation and how it is run.

    Args:
        engine: of the constants above.
        precision: "float32", "bfloat16" or "float16" (in PyTorch under autocast), or on OpenVINO "int8".
        form: "adaptive" as the checkpoint says; "all layers"; or the "plain graph" as others export it (plain.py).
        compiled: the detector by torch.compile; on a GPU, with all layers, the whole model with CUDA graphs.
        runtime_cache: OpenVINO's bound on what it keeps for shapes; the package's by default.
    """

    engine: str
    precision: str = "float32"
    form: str = ADAPTIVE
    compiled: bool = False
    runtime_cache: int | None = None

    @property
    def name(self) -> str:
        details = [] if self.precision == "float32" else [self.precision]
        details += [] if self.form == ADAPTIVE else [self.form]
        details += ["compiled"] if self.compiled else []
        details += [] if self.runtime_cache is None else [f"CPU_RUNTIME_CACHE_CAPACITY {self.runtime_cache}"]
        return ", ".join([self.engine, *details])

    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [package for package in PACKAGES.get(self.engine, ()) if not installed(package)]


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False


@dataclass(frozen=True)
class Task:
    """What all contestants of a comparison share.

    Args:
        checkpoint: a name of `lightglue_hf.checkpoint`, or a directory.
        keypoints: of each image at most; graphs have so many columns.
        scratch: a directory for changed checkpoints and graphs, each made once.
        height, width: of the images; 0 makes graphs for any.
        device: "cpu" or "cuda".
        detector: more settings of the detector's configuration, such as a threshold of 0.
        matcher: more settings of the matcher's configuration.
    """

    checkpoint: str
    keypoints: int
    scratch: Path
    height: int = HEIGHT
    width: int = WIDTH
    device: str = "cpu"
    detector: dict[str, Any] = field(default_factory=dict)
    matcher: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps({**asdict(self), "scratch": str(self.scratch)})

    @classmethod
    def from_json(cls, text: str) -> "Task":
        values = json.loads(text)
        return cls(**{**values, "scratch": Path(values["scratch"])})

    def source(self) -> Path:
        return Path(self.checkpoint) if Path(self.checkpoint).is_dir() else lightglue_hf.checkpoint(self.checkpoint)

    def processor(self) -> LightGlueImageProcessor:
        return LightGlueImageProcessor.from_pretrained(self.source())

    def directory(self, form: str = ADAPTIVE) -> Path:
        """The checkpoint with these settings, as every contestant reads it."""
        off = {"depth_confidence": -1.0, "width_confidence": -1.0, "rejection_threshold": 0.0}
        static = off if form != ADAPTIVE else {}
        changes = self.detector | {"max_keypoints": self.keypoints}, self.matcher | static
        key = "-".join(f"{name}={value}" for change in changes for name, value in sorted(change.items()))
        directory = self.scratch / f"{Path(self.checkpoint).name}-{key}"
        if not directory.exists():
            source, config = self.source(), {}
            directory.mkdir()
            config = json.loads((source / "config.json").read_text())
            detector = config.get("keypoint_detector_config", config)
            detector.update(changes[0])
            config.update(changes[1] if detector is not config else {})
            (directory / "config.json").write_text(json.dumps(config))
            shutil.copy(source / "preprocessor_config.json", directory)
            (directory / "model.safetensors").symlink_to(source / "model.safetensors")
        return directory


class Implementation:
    """A loaded contestant.

    Args:
        match: `(pairs, 2, 3, height, width)` -> an output with `keypoints` `(pairs, 2, n, 2)`, relative, and
            `matches`; or the list of `Matched` itself.
        model: for whoever needs more than that; `None` of published code.
    """

    def __init__(self, match: Callable[[Tensor], Any], model: Any, task: Task, dtype: str = "float32") -> None:
        self._match, self.model, self.task, self._dtype = match, model, task, DTYPES.get(dtype, torch.float32)

    @torch.no_grad()
    def run(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """A function of the model as this contestant runs it."""
        reduced = self._dtype != torch.float32
        with torch.autocast(self.task.device, self._dtype) if reduced else nullcontext():
            return function(*inputs, **options)

    def match(self, pixels: Tensor) -> Any:
        return self.run(self._match, pixels.to(self.task.device))

    def matched(self, outputs: Any) -> list[Matched]:
        """The matched points of each pair, in pixels of what was given to `match`."""
        if isinstance(outputs, list):
            return outputs
        size = torch.tensor([self.task.width, self.task.height])
        keypoints = outputs.keypoints.float().cpu() * size
        partners = outputs.matches.cpu().reshape(keypoints.shape[:3])[:, 0]
        return [
            (points[0, partner >= 0], points[1, partner[partner >= 0]]) for points, partner in zip(keypoints, partners)
        ]


def load(contestant: Contestant, task: Task) -> Implementation:
    """Load a contestant whose packages are there."""
    engine, precision = contestant.engine, contestant.precision
    if engine in (PUBLISHED, KORNIA):
        return Implementation(others(contestant, task), None, task)
    if contestant.form == PLAIN:
        from .plain import plain_pipeline

        return Implementation(plain_pipeline(engine, precision, our_model(task, PLAIN), task), None, task)
    if engine in (OPENVINO, ONNXRUNTIME):
        model = exported(contestant, task)
        return Implementation(model, model, task)  # the runtime has a precision of its own
    model = (our_model if engine == PYTORCH else transformers_model)(task, contestant.form)
    if not contestant.compiled:
        return Implementation(model, model, task, precision)
    if task.device == "cuda" and contestant.form == ALL_LAYERS:
        return Implementation(torch.compile(model, mode="reduce-overhead", dynamic=False), model, task, precision)
    model.extract_features = torch.compile(model.extract_features, dynamic=False)
    return Implementation(model, model, task, precision)


def our_model(task: Task, form: str = ADAPTIVE) -> Any:
    return LightGlueForKeypointMatching.from_pretrained(task.directory(form)).to(task.device).eval()


def transformers_model(task: Task, form: str = ADAPTIVE) -> nn.Module:
    """transformers' own classes, by their modules: its Auto classes give ours. Its pruning keeps the far borders."""
    from transformers.models.lightglue.configuration_lightglue import LightGlueConfig
    from transformers.models.lightglue.modeling_lightglue import LightGlueForKeypointMatching as Matcher
    from transformers.models.superpoint.configuration_superpoint import SuperPointConfig
    from transformers.models.superpoint.modeling_superpoint import SuperPointForKeypointDetection as Detector

    from lightglue_hf.convert.directories import convert_back

    stock = task.scratch / f"{Path(task.checkpoint).name}-transformers"
    if not stock.exists():
        convert_back(task.source(), stock, "transformers", log=lambda _: None)
    values = json.loads((stock / "config.json").read_text())
    ours = json.loads((task.directory(form) / "config.json").read_text())
    wanted = values["keypoint_detector_config"] | {"max_keypoints": task.keypoints, **task.detector}
    values |= {name: ours[name] for name in ("depth_confidence", "width_confidence")}
    detector = SuperPointConfig(**wanted)
    model = Matcher(LightGlueConfig(**{**values, "keypoint_detector_config": detector}))
    model.keypoint_detector = Detector(detector)
    model.load_state_dict(load_file(stock / "model.safetensors"))
    return model.to(task.device).eval()


def others(contestant: Contestant, task: Task) -> Callable[[Tensor], list[Matched]]:
    """Published code or kornia's for a pair: detector, then matcher, one pair at a time."""
    name, directory = task.checkpoint, task.directory()
    if contestant.engine == PUBLISHED and name == "xfeat":
        matcher = published.lighterglue(directory)
    else:
        make = published.cvg_lightglue if contestant.engine == PUBLISHED else published.kornia_lightglue
        matcher = make(directory, task.device)
    if contestant.engine in published.DETECTORS.get(name, {}):
        detect = published.DETECTORS[name][contestant.engine](task.keypoints)
    else:  # kornia has no SuperPoint: its LightGlue gets the features of ours, which flatters it
        detect = our_detector(our_model(task))

    def match(pixels: Tensor) -> list[Matched]:
        return [matcher(detect(pair), task.height, task.width) for pair in pixels]

    return match


def our_detector(model: Any) -> Callable[[Tensor], published.Features]:
    def detect(images: Tensor) -> published.Features:
        return features_as_lists(model.extract_features(images))

    return detect


def features_as_lists(features: KeypointFeatures) -> published.Features:
    """Without padding, as others have them."""
    assert features.keypoints is not None
    return [
        {name: features[name][i][features["mask"][i].bool()] for name in ("keypoints", "descriptors")}
        for i in range(len(features.keypoints))
    ]


def exported(contestant: Contestant, task: Task, part: str = "pipeline") -> Any:
    """A graph, made once, on its runtime."""
    from lightglue_hf.export import export
    from lightglue_hf.runtime import ORTModelForKeypointMatching, OVModelForKeypointMatching

    backend = "openvino" if contestant.engine == OPENVINO else "onnx"
    weights = contestant.precision if contestant.precision == "int8" else "fp32"
    source = task.directory(contestant.form)
    size = f"{task.height}x{task.width}"
    directory = source.with_name(f"{source.name}-{backend}-{part}-{contestant.form.split()[0]}-{weights}-{size}")
    if not directory.exists():
        export(source, directory, backend, export_options(contestant, task, part))
    if backend == "onnx":
        return ORTModelForKeypointMatching.from_pretrained(directory)
    options = openvino_config(contestant.precision)
    if contestant.runtime_cache is not None:
        options["CPU_RUNTIME_CACHE_CAPACITY"] = str(contestant.runtime_cache)
    return OVModelForKeypointMatching.from_pretrained(directory, ov_config=options)


def export_options(contestant: Contestant, task: Task, part: str = "pipeline") -> Any:
    from lightglue_hf.export import ExportOptions

    images = part != "matcher"
    return ExportOptions(
        parts=(part,),
        batch_size=1 if task.height else 0,
        height=task.height if images else 0,
        width=task.width if images else 0,
        num_keypoints=task.keypoints,
        adaptive=contestant.form == ADAPTIVE and part != "detector",
        calibration=textures(task.scratch / "textures") if contestant.precision == "int8" else None,
        num_samples=CALIBRATION - 1,
        validate=False,  # the benchmark judges the matches itself
    )


def openvino_config(precision: str) -> dict[str, str]:
    """OpenVINO's setting for the type to compute in; what int8 leaves is computed in bfloat16 where there is any."""
    if precision == "int8":
        return {}
    return {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}


def textures(directory: Path) -> Path:
    """The directory, with procedural pictures to quantise by."""
    if not directory.exists():
        directory.mkdir()
        for i, texture in enumerate(render_textures(CALIBRATION, HEIGHT, WIDTH, seed=0)):
            Image.fromarray(texture).save(directory / f"{i:02}.png")
    return directory


# ---------------------------------------------------------------------------------------------------------------------
# Detectors alone


def load_detector(contestant: Contestant, task: Task) -> Callable[[Tensor], list[Tensor]]:
    """`(images, 3, height, width)` -> keypoints `(n, 2)` of each image, in pixels."""
    engine = contestant.engine
    if engine in published.DETECTORS.get(task.checkpoint, {}):
        detect = published.DETECTORS[task.checkpoint][engine](task.keypoints)
        return torch.no_grad()(lambda images: [found["keypoints"] for found in detect(images)])
    if engine == OPENVINO:
        return openvino_detector(contestant, task)
    if engine == TRANSFORMERS:
        stock: Any = transformers_model(task)
        return torch.no_grad()(lambda images: relative_keypoints(stock.keypoint_detector(images), task))
    model = detector_of(task)
    find = torch.compile(model.extract_features, dynamic=False) if contestant.compiled else model.extract_features
    runner = Implementation(find, model, task, contestant.precision)
    return lambda images: [f["keypoints"] for f in features_as_lists(runner.match(images))]


def detector_of(task: Task) -> Any:
    """The detector of a checkpoint, of its matcher or alone."""
    if has_matcher(task):
        return our_model(task).keypoint_detector
    from transformers import AutoModelForKeypointDetection

    return AutoModelForKeypointDetection.from_pretrained(task.directory()).to(task.device).eval()


def openvino_detector(contestant: Contestant, task: Task) -> Callable[[Tensor], list[Tensor]]:
    """The detector's graph for one image of fixed size."""
    if not has_matcher(task):
        task = replace(task, checkpoint=str(with_any_matcher(task)))
    graph = exported(contestant, task, "detector")
    return lambda images: [f["keypoints"] for f in features_as_lists(graph.extract_features(images))]


def has_matcher(task: Task) -> bool:
    return "keypoint_detector_config" in json.loads((task.source() / "config.json").read_text())


def with_any_matcher(task: Task) -> Path:
    """A detector that is published alone, with a matcher of random weights: exports begin with a whole model."""
    directory = task.scratch / f"{task.checkpoint}-whole"
    if not directory.exists():
        detector = detector_of(task)
        model = LightGlueForKeypointMatching(LightGlueConfig(detector.config, num_hidden_layers=1))
        model.keypoint_detector = detector
        model.save_pretrained(directory)
        task.processor().save_pretrained(directory)
    return directory


def relative_keypoints(outputs: Any, task: Task) -> list[Tensor]:
    size = torch.tensor([task.width, task.height])
    return [points[mask.bool()] * size for points, mask in zip(outputs.keypoints, outputs.mask)]
