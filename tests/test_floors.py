"""The floors of the house: imports point down only, and heavy packages are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "lightglue_hf"

# The floor of each file and folder; a file may import from lower floors, and from its own folder.
FLOORS = {
    "utils": 0,
    "geometry": 1,
    "features": 1,
    "loading": 1,
    "images": 1,
    "detectors/__init__": 1,  # the table, which imports nothing by itself
    "configuration_lightglue": 2,
    "detectors": 2,
    "visualization": 2,
    "modeling_lightglue": 3,
    "image_processing_lightglue": 3,
    "pipeline_keypoint_matching": 4,
    "tiles": 4,
    "turns": 5,
    "data": 4,
    "registration": 5,
    "__init__": 6,  # the package's face: its version and checkpoints, and the registration
    "convert": 7,
    "training": 7,
    "evaluation": 7,
    "export": 7,
    "collection": 7,
    "two_photos": 8,
    "runtime": 8,
    "matching": 8,
    "video": 8,
    "app": 9,
    "cli": 10,
    "__main__": 11,
}

HEAVY = set(
    "accelerate av cv2 gradio h5py matplotlib nncf onnx onnxruntime onnxscript openvino optimum poselib pycolmap ray"
    " skimage torchvision".split()
)

# The models compute with tensors: no pictures, paths, environment or network.
PURE = {"configuration_lightglue", "modeling_lightglue", "detectors", "features", "geometry", "utils/tensors"}
IMPURE = set("PIL httpx huggingface_hub io os pathlib requests shutil socket subprocess tempfile urllib".split())


# Modules that are what their optional package is for, and are imported by name alone.
BACKENDS = {
    "runtime/openvino": {"openvino", "optimum"},
    "runtime/onnxruntime": {"onnxruntime", "optimum"},
    "optimum": {"optimum"},  # the plug-in
}


def imports(source: str, package: list[str]) -> list[tuple[str, bool]]:
    """(absolute dotted name, is it at module level?) of every import in the source of a module of `package`.

    `from a import b` yields `a.b`, so that a submodule is seen however it is imported. A block under
    `if TYPE_CHECKING` does not run and is left out.
    """
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found.extend((".".join([*base, alias.name]), top) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, top)
        else:
            top = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, top)

    visit(ast.parse(source), True)
    return found


def room_of(parts: tuple[str, ...] | list[str]) -> str | None:
    """The entry of FLOORS for what `lightglue_hf.PARTS` names: a file, something in one, or the package's face."""
    for name in ("/".join(parts[:2]), parts[0] if parts else "__init__"):
        if name in FLOORS:
            return name
    if parts and (PACKAGE / parts[0]).is_dir():
        return f"{parts[0]}/__init__" if f"{parts[0]}/__init__" in FLOORS else None
    # a name that the face gives, such as `from . import bundled_checkpoint`; no file of that name is without a floor
    return None if parts and (PACKAGE / f"{parts[0]}.py").exists() else "__init__"


def imported_room(rest: list[str]) -> str | None:
    """As `room_of`, of an import: `lightglue_hf.detectors.name` is the folder's face unless `name` is a file in it."""
    if len(rest) > 1 and f"{rest[0]}/__init__" in FLOORS and not (PACKAGE / rest[0] / f"{rest[1]}.py").exists():
        return f"{rest[0]}/__init__"
    return room_of(rest)


def faults(path: Path, source: str) -> list[str]:
    """What the source of a file does against the floors, one line each; `path` is below PACKAGE or beside it."""
    if PACKAGE in path.parents:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        room = next((name for name in ("/".join(parts), parts[0]) if name in FLOORS), "")
        if not room:
            return [f"{path.name}: has no floor; give it one in test_floors.py"]
        floor, package = FLOORS[room], ["lightglue_hf", *parts[:-1]]
    else:  # what stands beside the package uses all of it
        parts, room, floor, package = ("optimum",), "", 99, []
    found = []
    for name, top in imports(source, package):
        root, *rest = name.split(".")
        if root in HEAVY and top and root not in BACKENDS.get("/".join(parts), ()):
            found.append(f"{path.name}: imports {root} at module level")
        if root in IMPURE and {room, "/".join(parts)} & PURE:
            found.append(f"{path.name}: imports {root}, and models compute with tensors only")
        if root != "lightglue_hf":
            continue
        other = imported_room(rest)
        if other is None:
            found.append(f"{path.name}: imports {name}, which has no floor")
        elif other.split("/")[0] != room.split("/")[0] and FLOORS[other] >= floor:
            found.append(f"{path.name}: floor {floor} imports {other} of floor {FLOORS[other]}")
    return found


PLUGIN = Path(__file__).parent.parent / "optimum-plugin"
FILES = sorted(
    path for root in (PACKAGE.parent, PLUGIN) for path in root.rglob("*.py") if "checkpoints" not in path.parts
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent.parent)))
def test_imports_point_down(path):
    assert faults(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("modeling_lightglue.py", "from .cli import main", "imports cli of floor 10"),
        ("modeling_lightglue.py", "def f():\n    from lightglue_hf import cli", "imports cli of floor 10"),
        ("modeling_lightglue.py", "import lightglue_hf.convert.state_dicts", "imports convert of floor 7"),
        (
            "modeling_lightglue.py",
            "from .detectors import superpoint\nfrom . import data",
            "imports data of floor 4",
        ),
        ("modeling_lightglue.py", "from . import bundled_checkpoint", "imports __init__ of floor 6"),
        ("modeling_lightglue.py", "from .image_processing_lightglue import x", "floor 3 imports image_processing"),
        ("configuration_lightglue.py", "from .detectors.superpoint import x", "imports detectors of floor 2"),
        ("configuration_lightglue.py", "from .detectors import superpoint", "imports detectors of floor 2"),
        ("detectors/superpoint.py", "from ..training import loss", "imports training of floor 7"),
        ("detectors/superpoint.py", "from .. import convert", "imports convert of floor 7"),
        ("convert/names.py", "from ..export import export", "floor 7 imports export"),
        ("utils/files.py", "from ..features import KeypointFeatures", "floor 0 imports features"),
        ("modeling_lightglue.py", "def f():\n    import os", "imports os"),
        ("detectors/superpoint.py", "from PIL import Image", "imports PIL"),
        (
            "evaluation/metrics.py",
            "try:\n    import cv2\nexcept ImportError:\n    pass",
            "imports cv2 at module level",
        ),
        ("evaluation/metrics.py", "class A:\n    from matplotlib import pyplot", "imports matplotlib at module level"),
        ("runtime/openvino.py", "import onnxruntime", "imports onnxruntime at module level"),
        ("__init__.py", "import skimage.data", "imports skimage at module level"),
        ("__init__.py", "from .cli import main", "floor 6 imports cli"),
        ("attic.py", "", "has no floor"),
    ],
)
def test_the_check_sees_a_fault(name, source, expected):
    (fault,) = faults(PACKAGE / name, source)
    assert expected in fault


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("image_processing_lightglue.py", "import os\nfrom PIL import Image"),
        ("cli/demo.py", "from ..evaluation import match_precision"),
        ("modeling_lightglue.py", "from .detectors.superpoint import SuperPointConfig"),
        ("configuration_lightglue.py", "from .detectors import DETECTORS"),
        ("evaluation/metrics.py", "def f():\n    import cv2"),
        ("evaluation/metrics.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cv2"),
        ("evaluation/metrics.py", "from .datasets import stereo\nfrom . import methods"),
        ("training/recipes.py", "from .. import bundled_checkpoint"),
        ("runtime/openvino.py", "import openvino"),
        ("detectors/superpoint.py", "from . import selection"),
    ],
)
def test_the_check_lets_pass(name, source):
    assert faults(PACKAGE / name, source) == []


def printed_by(code):
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    heavy = HEAVY - {"accelerate"}  # transformers itself imports it where it is installed
    code = f"import sys, lightglue_hf; print(*sorted({heavy!r} & set(sys.modules)))"
    assert printed_by(code).split() == []


def test_import_leaves_the_models_for_later():
    code = (
        "import sys, lightglue_hf; slow = {'transformers.modeling_utils', 'transformers.models.auto.modeling_auto'};"
        "print(*slow & set(sys.modules));"
        "from transformers import AutoModel; print('lightglue_hf.modeling_lightglue' in sys.modules)"
    )
    printed = printed_by(code)
    assert printed.splitlines() == ["", "True"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("lightglue_hf.modeling_lightglue", "AutoModel._model_mapping[m.LightGlueConfig].__module__"),
        ("lightglue_hf.configuration_lightglue", "CONFIG_MAPPING['superpoint'].__module__"),
        (
            "lightglue_hf.pipeline_keypoint_matching",
            "pipelines.PIPELINE_REGISTRY.supported_tasks['keypoint-matching']['impl'].__module__",
        ),
        ("transformers.models.auto.modeling_auto", "AutoModel._model_mapping[m.LightGlueConfig].__module__"),
    ],
)
def test_classes_are_registered_in_whatever_order_modules_are_imported(first, then):
    code = (
        f"import {first}, lightglue_hf as m; from transformers import AutoModel, CONFIG_MAPPING, pipelines;"
        f"print({then})"
    )
    printed = printed_by(code)
    assert printed.startswith("lightglue_hf.")


def test_everything_is_imported_without_extras():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('openvino', 'onnxruntime', 'optimum')));"
        "from lightglue_hf import *;"
        "print(LightGlueForKeypointMatching.__name__, 'OVModelForKeypointMatching' in dir())"
    )
    printed = printed_by(code)
    assert printed.split() == ["LightGlueForKeypointMatching", "False"]
