"""The floors of the house: imports point down only, and heavy packages are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "lightglue_hf"

FLOORS = {
    "configuration_lightglue": 0,
    "modeling_lightglue": 1,
    "detectors": 1,
    "image_processing_lightglue": 1,
    "conversion": 2,
    "verification": 2,
    "pipeline_keypoint_matching": 2,
    "textures": 2,
    "photometry": 2,
    "homographies": 2,
    "posed_pairs": 2,
    "registration": 3,
    "storage": 2,
    "checkpoint_files": 3,
    "training": 3,
    "evaluation": 3,
    "datasets": 3,
    "methods": 3,
    "comparison": 4,
    "adaptivity": 4,
    "graphs": 2,
    "graph_check": 3,
    "graph_formats": 3,
    "export": 4,
    "runtime": 4,
    "visualization": 3,
    "colmap": 3,
    "collection": 4,
    "app": 5,
    "cli": 5,
}

# transformers puts visualize_keypoint_matching on the image processor: it looks up when called, not when imported.
LOOKS_UP = {("image_processing_lightglue", "visualization")}

HEAVY = set(
    "accelerate cv2 gradio h5py matplotlib nncf onnx onnxruntime onnxscript openvino optimum poselib pycolmap ray"
    " skimage torchvision".split()
)

# The models compute with tensors: no pictures, paths, environment or network.
PURE = {"configuration_lightglue", "modeling_lightglue", "detectors"}
IMPURE = set("PIL httpx huggingface_hub io os pathlib requests shutil socket subprocess tempfile urllib".split())


def imports(source: str, module: str) -> list[tuple[str, bool]]:
    """(absolute dotted name, is it at module level?) of every import in the source of `module`.

    `from a import b` yields `a.b`, so that a submodule is seen however it is imported. A block under
    `if TYPE_CHECKING` does not run and is left out.
    """
    package = module.split(".")[:-1]
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


def faults(path: Path, source: str) -> list[str]:
    """What the source of a file of the package does against the floors, one line each."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    module, room = ".".join(parts), parts[1]
    public_face = room == "__init__"
    if not public_face and room not in FLOORS:
        return [f"{path.name}: has no floor; give it one in test_floors.py"]
    found = []
    for name, top in imports(source, module):
        root, *rest = name.split(".")
        if root in HEAVY and top:
            found.append(f"{path.name}: imports {root} at module level")
        if public_face:
            continue
        if root in IMPURE and room in PURE:
            found.append(f"{path.name}: imports {root}, and models compute with tensors only")
        if root == "lightglue_hf" and rest and rest[0] in FLOORS and rest[0] != room:
            # Rooms of one floor may look at each other; nobody looks up.
            if FLOORS[rest[0]] > FLOORS[room] and (top or (room, rest[0]) not in LOOKS_UP):
                found.append(f"{path.name}: floor {FLOORS[room]} imports {rest[0]} of floor {FLOORS[rest[0]]}")
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if "checkpoints" not in path.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert faults(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("modeling_lightglue.py", "from .cli import main", "imports cli of floor 5"),
        ("modeling_lightglue.py", "def f():\n    from lightglue_hf import cli", "imports cli of floor 5"),
        ("modeling_lightglue.py", "import lightglue_hf.convert.state_dicts", "imports conversion of floor 2"),
        ("detectors/superpoint.py", "from ..training import loss", "imports training of floor 3"),
        ("detectors/superpoint.py", "from .. import conversion", "imports conversion of floor 2"),
        ("modeling_lightglue.py", "def f():\n    import os", "imports os"),
        ("detectors/superpoint.py", "from PIL import Image", "imports PIL"),
        ("evaluation.py", "try:\n    import cv2\nexcept ImportError:\n    pass", "imports cv2 at module level"),
        ("evaluation.py", "class A:\n    from matplotlib import pyplot", "imports matplotlib at module level"),
        ("__init__.py", "import skimage.data", "imports skimage at module level"),
        ("image_processing_lightglue.py", "from . import visualization", "imports visualization of floor 3"),
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
        ("cli.py", "from .evaluation import match_precision"),
        ("modeling_lightglue.py", "from .detectors.superpoint import SuperPointConfig"),
        ("evaluation.py", "def f():\n    import cv2"),
        ("evaluation.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cv2"),
        ("detectors/superpoint.py", "from . import disk"),
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
