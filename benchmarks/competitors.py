"""Every implementation behind one call: pixels of pairs in, matches out, all with the same weights."""

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor
from lightglue_hf.convert.state_dicts import lightglue_to_cvg

from .inputs import textures

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OURS, TRANSFORMERS, KORNIA = "lightglue_hf", "transformers", "kornia"
OPENVINO, ONNXRUNTIME = "OpenVINO", "ONNX Runtime"
# what has to be installed for each
PACKAGES = {
    OURS: (),
    TRANSFORMERS: (),
    KORNIA: ("kornia",),
    OPENVINO: ("openvino", "optimum.intel", "nncf"),
    ONNXRUNTIME: ("onnx", "onnxruntime", "optimum"),
}


@dataclass(frozen=True)
class Contestant:
    """An implementation and how it is run.

    Args:
        library: a key of `PACKAGES`.
        dtype: "float32", or "bfloat16" or "float16", under autocast.
        precise: the detector in float32 all the same, so that keypoints stay where they are.
        compiled: by torch.compile.
        weights: of an exported graph "fp32", "int8 weights", or "int8" where activations are quantised, too.
        plain: the graph as others export it; see `plain.py`.
    """

    library: str
    dtype: str = "float32"
    precise: bool = False
    compiled: bool = False
    weights: str = "fp32"
    plain: bool = False

    @property
    def name(self) -> str:
        details = [self.dtype] if self.dtype != "float32" else []
        details += ["detector in float32"] if self.precise else []
        details += ["compiled"] if self.compiled else []
        details += [self.weights] if self.weights != "fp32" else []
        details += ["plain graph"] if self.plain else []
        return ", ".join([self.library, *details])

    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [package for package in PACKAGES[self.library] if not installed(package)]


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False


@dataclass(frozen=True)
class Settings:
    """What all contestants of a comparison share.

    Args:
        checkpoint: directory of the weights.
        keypoints: of each image, exactly.
        adaptive: stops early and prunes as the checkpoint says; otherwise all layers run.
        device: "cpu" or "cuda".
    """

    checkpoint: Path
    keypoints: int
    adaptive: bool = False
    device: str = "cpu"


class Implementation:
    """A loaded contestant.

    Args:
        match: `(batch, 2, 3, height, width)` -> an output with `keypoints` `(batch, 2, n, 2)`, relative, and `matches`
            `(batch, 2, n)`.
        detect: `(images, 3, height, width)` -> an output with `keypoints` `(images, n, 2)`, relative.
        model: for whoever needs more than that.
    """

    def __init__(self, match: Callable, detect: Callable | None, model: Any, settings: Settings, dtype: str) -> None:
        self.model = model
        self._match, self._detect = match, detect
        self._device, self._dtype = settings.device, DTYPES[dtype]

    @torch.no_grad()
    def run(self, function: Callable, *inputs: Tensor) -> Any:
        """A function of the model as this contestant runs it."""
        reduced = self._dtype != torch.float32
        with torch.autocast(self._device, self._dtype) if reduced else nullcontext():
            return function(*(x.to(self._device) for x in inputs))

    def match(self, pixels: Tensor) -> Any:
        return self.run(self._match, pixels)

    def detect(self, pixels: Tensor) -> Any:
        assert self._detect is not None
        return self.run(self._detect, pixels)


def load(contestant: Contestant, settings: Settings) -> Implementation:
    """Load a contestant whose packages are there."""
    if contestant.library in (OPENVINO, ONNXRUNTIME):
        model = (plain_graph if contestant.plain else exported)(contestant, settings)
        return Implementation(model, None, model, settings, "float32")  # the runtime has a precision of its own
    if contestant.library == KORNIA:
        model = KorniaModel(settings)
    else:
        model = (our_model if contestant.library == OURS else transformers_model)(settings)
    if contestant.precise:
        model.extract_features = torch.autocast(settings.device, enabled=False)(model.extract_features)
    match = model
    detect = model.extract_features if contestant.library == OURS else model.keypoint_detector
    if contestant.compiled:
        match, detect = torch.compile(model, dynamic=False), torch.compile(detect, dynamic=False)
    return Implementation(match, detect, model, settings, contestant.dtype)


def configuration(settings: Settings) -> LightGlueConfig:
    config = LightGlueConfig.from_pretrained(settings.checkpoint)
    config.keypoint_detector_config.max_keypoints = settings.keypoints
    config.keypoint_detector_config.remove_far_borders = False  # as transformers' own
    if not settings.adaptive:
        config.depth_confidence = config.width_confidence = -1.0
    return config


def our_model(settings: Settings) -> LightGlueForKeypointMatching:
    model = LightGlueForKeypointMatching.from_pretrained(settings.checkpoint, config=configuration(settings))
    return model.to(settings.device).eval()


def transformers_model(settings: Settings) -> nn.Module:
    """transformers' own classes, by their modules: its Auto classes give ours."""
    from transformers.models.lightglue.configuration_lightglue import LightGlueConfig
    from transformers.models.lightglue.modeling_lightglue import LightGlueForKeypointMatching as Matcher
    from transformers.models.superpoint.configuration_superpoint import SuperPointConfig
    from transformers.models.superpoint.modeling_superpoint import SuperPointForKeypointDetection as Detector

    saved = configuration(settings)
    names = ("encoder_hidden_sizes", "decoder_hidden_size", "keypoint_decoder_dim", "descriptor_decoder_dim")
    names += ("keypoint_threshold", "max_keypoints", "nms_radius", "border_removal_distance")
    detector_config = SuperPointConfig(**{name: getattr(saved.keypoint_detector_config, name) for name in names})
    names = ("descriptor_dim", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "attention_bias")
    names += ("depth_confidence", "width_confidence", "filter_threshold", "hidden_act")
    config = LightGlueConfig(
        keypoint_detector_config=detector_config, **{name: getattr(saved, name) for name in names}
    )
    model = Matcher(config)
    model.keypoint_detector = Detector(detector_config)
    model.load_state_dict(load_file(settings.checkpoint / "model.safetensors"))
    return model.to(settings.device).eval()


class KorniaModel(nn.Module):
    """kornia's LightGlue after our SuperPoint, because kornia has none."""

    def __init__(self, settings: Settings) -> None:
        from kornia.feature import LightGlue

        super().__init__()
        self.keypoint_detector = our_model(replace(settings, adaptive=False)).extract_features
        config = configuration(settings)
        self.matcher = LightGlue(
            features=None,
            input_dim=config.num_input_features,
            descriptor_dim=config.descriptor_dim,
            n_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            depth_confidence=config.depth_confidence,
            width_confidence=config.width_confidence,
            filter_threshold=config.filter_threshold,
        )
        tensors = load_file(settings.checkpoint / "model.safetensors")
        self.matcher.load_state_dict(lightglue_to_cvg(config, tensors, current_names=True))
        self.matcher.to(settings.device).eval()

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        features = self.keypoint_detector(pixels)
        sizes = features.image_sizes.flip(-1)
        images = {
            f"image{i}": {
                "keypoints": features.keypoints[:, i],
                "descriptors": features.descriptors[:, i].float(),
                "image_size": sizes[:, i],
            }
            for i in (0, 1)
        }
        found = self.matcher(images)
        matches = torch.stack([found["matches0"], found["matches1"]], 1)
        return SimpleNamespace(keypoints=features.keypoints / sizes[:, :, None], matches=matches)


def exported(contestant: Contestant, settings: Settings, part: str = "pipeline") -> Any:
    """A graph for one pair of the size that the checkpoint's processor gives, made beside the checkpoint, once."""
    from lightglue_hf.export import export
    from lightglue_hf.runtime import ORTModelForKeypointMatching, OVModelForKeypointMatching

    backend = "openvino" if contestant.library == OPENVINO else "onnx"
    details = backend, part, settings.keypoints, contestant.weights, "adaptive" if settings.adaptive else "full"
    directory = settings.checkpoint.with_name("-".join(map(str, (settings.checkpoint.name, *details))))
    if not directory.exists():
        export(settings.checkpoint, directory, backend, export_options(contestant, settings, part))
    if backend == "onnx":
        return ORTModelForKeypointMatching.from_pretrained(directory)
    return OVModelForKeypointMatching.from_pretrained(directory, ov_config=precision(contestant))


def export_options(contestant: Contestant, settings: Settings, part: str) -> Any:
    from lightglue_hf.export import ExportOptions

    size = LightGlueImageProcessor.from_pretrained(settings.checkpoint).size
    fixed = part != "matcher" and "height" in size
    return ExportOptions(
        parts=(part,),
        batch_size=1,
        **(size if fixed else {}),  # height and width
        num_keypoints=settings.keypoints,
        adaptive=settings.adaptive,
        weight_format="int8" if contestant.weights == "int8 weights" else "fp32",
        calibration=textures(settings.checkpoint.with_name("textures")) if contestant.weights == "int8" else None,
        num_samples=10,
        validate=False,  # the benchmark's own guard looks at the matches
    )


def precision(contestant: Contestant) -> dict[str, str]:
    """OpenVINO's setting for the type to compute in."""
    return {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[contestant.dtype]}


def plain_graph(contestant: Contestant, settings: Settings) -> Callable[[Tensor], SimpleNamespace]:
    """The graph as others export it, on OpenVINO."""
    import openvino

    from .plain import convert

    size = LightGlueImageProcessor.from_pretrained(settings.checkpoint).size
    graph = convert(our_model(settings), size["height"], size["width"])
    compiled = openvino.compile_model(graph, "CPU", precision(contestant))

    def match(pixels: Tensor) -> SimpleNamespace:
        keypoints, matches = (torch.from_numpy(x) for x in compiled(pixels.numpy()).to_tuple())
        return SimpleNamespace(keypoints=keypoints, matches=matches)

    return match


def matches_of(outputs: Any) -> list[frozenset]:
    """The matches of each pair as coordinates `(x0, y0, x1, y1)`: columns may change places where scores are equal.

    Relative coordinates, rounded to far less than a pixel. The eighth keeps whole pixels of common sizes off the
    boundaries of rounding: a last bit more or less must not make another match.
    """
    keypoints = outputs.keypoints.float().cpu()
    matches = outputs.matches.cpu().reshape(keypoints.shape[:3])
    found = []
    for points, partner in zip(keypoints, matches[:, 0]):
        columns = (partner >= 0).nonzero()[:, 0]
        coordinates = torch.cat([points[0, columns], points[1, partner[columns]]], -1)
        found.append(frozenset(map(tuple, (coordinates * 1e5 + 1 / 8).round().long().tolist())))
    return found


def keypoints_of(outputs: Any, height: int, width: int) -> list[frozenset]:
    """The keypoints of each image in pixels."""
    pixels = outputs.keypoints.float().cpu()
    if pixels.max() <= 1:
        pixels = pixels * torch.tensor([width, height])
    return [frozenset(map(tuple, (points * 10).round().long().tolist())) for points in pixels]


def kept(found: list[frozenset], reference: list[frozenset]) -> float:
    """The share of what either has that both have, over all pairs; 0 where the reference has nothing to compare."""
    if len(found) != len(reference):
        return 0.0
    common = sum(len(a & b) for a, b in zip(found, reference))
    most = sum(max(len(a), len(b)) for a, b in zip(found, reference))
    return common / most if any(reference) else 0.0
