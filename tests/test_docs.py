"""The documentation is true: its Python runs, its commands and names exist, its links lead somewhere.

A block of Python is run, with the checkpoint in the package and photos of scikit-image, unless its title says what it
needs beside them. Such a block is compiled, and what it takes from this package is looked up; one that needs published
weights is run by `make test-weights`.
"""

import argparse
import ast
import importlib
import re
import warnings
from dataclasses import fields
from urllib.parse import urlsplit

import numpy as np
import pytest
import transformers
from PIL import Image

import lightglue_hf
from lightglue_hf import cli, evaluation
from lightglue_hf.cli.train import read_recipe
from lightglue_hf.training import DetectorRecipe, MatcherRecipe

from .collection.room import render_room
from .documents import ROOT, anchors, blocks, commands, inline_code, links, slug
from .weights import weights_file

DOCS = sorted((ROOT / "docs").glob("*.md"))
MARKDOWN = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
WEIGHTS = "needs published weights"
PROGRAMS = {"lightglue-hf", "make", "pip", "python", "colmap", "optimum-cli", "hf"}


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.name)


# ---------------------------------------------------------------------------------------------------------------------
# Python


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A directory with the files that the pages speak of."""
    data = pytest.importorskip("skimage.data")
    monkeypatch.chdir(tmp_path)
    for name, pixels in zip(("left.jpg", "right.jpg"), data.stereo_motorcycle()):
        Image.fromarray(pixels).save(name)
    scene = Image.fromarray(data.rocket())  # 640 x 427 pixels
    scene.save("scene.png")
    scene.crop((0, 0, 420, 427)).save("west.jpg", quality=95)
    turned = scene.rotate(4, Image.Resampling.BICUBIC)  # as a second photo is
    turned.crop((220, 30, 620, 400)).save("east.jpg", quality=95)
    for folder in ("PHOTOS", "FRAMES"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        scene.crop((8 * i, 100, 8 * i + 400, 400)).save(tmp_path / "FRAMES" / f"{i}.jpg")
    return tmp_path


def run(scripts, path, namespace):
    """Run blocks one after another, at the lines of their page."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for block in scripts:
            exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), namespace)


@named([path for path in DOCS if any(not block.title for block in blocks(path, "python"))])
def test_python(path, photos):
    """All blocks without a title in order, as one script."""
    pytest.importorskip("cv2")
    namespace = {}
    if path.name == "recipes.md":
        pytest.importorskip("pycolmap")
        if transformers.__version__ >= "5":
            pytest.skip("what they have of transformers, other pages have, too")
        truth = render_room(photos / "PHOTOS", 4)
        (photos / "PHOTOS" / "v3.jpg").rename("new.jpg")
    run([block for block in blocks(path, "python") if not block.title], path, namespace)
    if path.name == "recipes.md":
        check_recipes(namespace, truth)


def check_recipes(names, truth):
    """What the recipes found is what there is to find."""
    assert names["verdict"].answer == "yes"

    panorama, scene = (np.asarray(Image.open(name).convert("L"), float) for name in ("panorama.jpg", "scene.png"))
    from_east = slice(60, 380), slice(440, 590)
    assert np.abs(panorama[from_east] - scene[from_east]).mean() < 5

    assert names["centre"][0] > 0.95, "the second photo of the stereo pair is to the right of the first"
    found = names["found"]
    points = (np.c_[matched, np.ones(len(matched))] for matched in (found.keypoints0, found.keypoints1))
    rays0, rays1 = (pixels @ np.linalg.inv(names[K]).T for pixels, K in zip(points, ("K0", "K1")))
    off = np.abs(np.einsum("ni,ij,nj->n", rays1, names["essential"], rays0))
    assert np.median(off[names["inliers"]]) < 1e-3

    model3d = names["pycolmap"].Reconstruction("out/sparse")
    others = {image.name: image.cam_from_world() for image in model3d.images.values()}
    assert len(others) == 3
    place = names["place"]
    assert place["num_inliers"] > 30
    relative = place["cam_from_world"].rotation.matrix() @ others["v1.jpg"].rotation.matrix().T
    true = truth["v3.jpg"][0] @ truth["v1.jpg"][0].T
    angle = np.degrees(np.arccos(np.clip((np.trace(relative @ true.T) - 1) / 2, -1, 1)))
    assert angle < 2

    inside = names["outputs"].keypoints[0, 0][names["outputs"].mask[0, 0].bool()]
    assert len(inside) > 100
    assert inside[:, 0].min() > 0.49, "keypoints of the right half alone"

    assert names["turned"].turns == 3
    assert len(names["turned"].matches) > 100
    assert len(names["huge"].matches) > 100
    assert np.count_nonzero(names["tracks"].ages == 3) > 50


@named([path for path in DOCS if any(block.title for block in blocks(path, "python"))])
def test_python_that_is_not_run(path):
    """It compiles, its title says what it needs, and what it takes from this package exists."""
    for block in blocks(path, "python"):
        if block.title:
            assert block.title.startswith("needs ")
            tree = ast.parse(block.code)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lightglue_hf":
                    there = dir(importlib.import_module(node.module))
                    assert not [name.name for name in node.names if name.name not in there]
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lightglue_hf":
                    assert node.attr in dir(lightglue_hf)


@pytest.mark.weights
@named([path for path in DOCS if any(block.title == WEIGHTS for block in blocks(path, "python"))])
def test_python_with_published_weights(path, photos):
    for name in ("aliked-n16.pth", "aliked_lightglue.pth"):
        weights_file(name)
    render_room(photos / "PHOTOS", 3)
    run([block for block in blocks(path, "python") if block.title == WEIGHTS], path, {})


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def subparsers():
    (action,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


@named([path for path in MARKDOWN if commands(path)])
def test_commands(path, tmp_path, monkeypatch):
    """Every line is one that its program takes."""
    monkeypatch.chdir(tmp_path)
    makefile = (ROOT / "Makefile").read_text()
    for program, *arguments in commands(path):
        assert program in PROGRAMS, program
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, flags=re.MULTILINE), arguments
        elif program == "lightglue-hf" and "--version" not in arguments:
            args = cli.parser().parse_args(arguments)
            if args.command == "train":
                recipe = {"detector": DetectorRecipe, "matcher": MatcherRecipe}[args.network]
                assert read_recipe(recipe, "train", args.options).output_dir
        elif program == "pip":
            check_pip(arguments)


def check_pip(arguments):
    extras = re.findall(r"\[([\w,-]+)\]", " ".join(arguments))
    assert {extra for names in extras for extra in names.split(",")} <= set(all_extras()), arguments
    assert not [name for name in arguments if name.startswith("./") and not (ROOT / name).is_dir()]


@named(MARKDOWN[:-1])
def test_options_in_the_text(path):
    """Each command and option that the text names exists."""
    parsers = subparsers()
    known = {option for parser in parsers.values() for option in parser._option_string_actions}
    known |= {f"--{entry.name}" for recipe in (DetectorRecipe, MatcherRecipe) for entry in fields(recipe)}
    known |= {"--help", "--version", "--print-completion", "--config"}
    known |= {option for path in EXAMPLES for option in re.findall(r'"(--[a-z-]+)"', path.read_text())}
    for code in inline_code(path):
        if code.startswith("lightglue-hf "):
            command = code.split()[1]
            assert command in parsers or command.startswith("-"), code
            if command in parsers and command != "train":
                options = set(re.findall(r"(?<!\S)--[\w-]+", code))
                assert options <= set(parsers[command]._option_string_actions), code
        elif code.startswith("--"):
            assert code.split()[0].rstrip("…") in known | OTHERS, code


EXAMPLES = sorted((ROOT / "examples").glob("**/*.py"))
OTHERS = {
    *("--part", "--no-dynamic-axes", "--fp16", "--opset", "--num-keypoints", "--batch_size"),  # of export, or not ours
    *("--editable", "--index-url"),  # of pip
}


# ---------------------------------------------------------------------------------------------------------------------
# Names


def all_extras():
    """The extras of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return re.findall(r"^([\w-]+) = \[", table, flags=re.MULTILINE)


def test_extras_are_listed():
    """All but those that are for development."""
    table = (ROOT / "docs" / "install.md").read_text().partition("## Extras")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([\w-]+)` \|", table, flags=re.MULTILINE)
    own = [extra for extra in all_extras() if not extra.startswith("dev") and extra not in ("benchmark", "docs")]
    assert sorted(listed) == sorted(own)


def test_names_of_the_migration_tables():
    """What stands in the columns of this package is there."""
    from lightglue_hf import (
        KeypointFeatures,
        LightGlueConfig,
        LightGlueForKeypointMatching,
        LightGlueImageProcessor,
        collection,
        visualization,
    )

    classes = (
        *(KeypointFeatures, LightGlueForKeypointMatching, LightGlueImageProcessor),
        *(LightGlueConfig(), lightglue_hf.LightGlueKeypointMatchingOutput(), lightglue_hf.SuperPointConfig()),
    )
    known = {name for part in (lightglue_hf, collection, evaluation, visualization, *classes) for name in dir(part)}
    for row in re.findall(r"^\|(.+)\|$", (ROOT / "docs" / "migration.md").read_text(), flags=re.MULTILINE):
        here = " | ".join(row.split("|")[1:])
        for code in re.findall(r"`([^`]+)`", here):
            if code.startswith(("lightglue-hf", "-", "out/", '"', "torch.", "pixel_values")):
                continue
            called = re.findall(r"(\w+)\(", code) + re.findall(r"\b(?:outputs|features|config)\.(\w+)", code)
            whole = [code] if code.isidentifier() else []
            assert not [name for name in called + whole if name not in known | LOCAL], code


LOCAL = {
    *("lightglue_hf", "model", "processor", "matches", "mask", "keypoints", "image_sizes", "attn_implementation"),
    *("keypoint_threshold", "nms_radius", "from_pretrained", "compile"),
}


# ---------------------------------------------------------------------------------------------------------------------
# Links


@named(MARKDOWN)
def test_links(path):
    """Links within the repository lead to a file, and to a heading in it; others have the form of an address."""
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert "." in parts.netloc, link
            continue
        target = (path.parent / parts.path).resolve() if parts.path else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^\s+- .*?([\w-]+\.md)$", (ROOT / "docs/site/mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert {path.name for path in DOCS} <= set(listed)
    assert len(listed) == len(set(listed))


def test_a_slug_is_that_of_hosts_of_repositories():
    assert slug("Do two photos show the same?") == "do-two-photos-show-the-same"
    assert slug("C++") == "c"
    assert slug("`regions`, and a_b - c") == "regions-and-a_b---c"
