"""Broken input to the commands: it works, or one line says what is wrong, in bounded time and memory.

Configurations, weights, pickles, photos, recipes and exported graphs, each changed at random places, in an order that
`--hypothesis-seed` decides. `make fuzz` runs thirty cases of each, `CASES=1000 make fuzz` as many as one likes.
"""

import contextlib
import io
import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from lightglue_hf import LightGlueImageProcessor, cli

from ..random_weights import random_weights
from ..tiny import whole_model
from .mutations import changed_bytes, changed_values, json_files, safetensors_files, zip_files

pytestmark = pytest.mark.fuzz

# what Python says of faults of a program
INTERNAL = re.compile(
    r"NoneType|object is not|object has no|has no attribute|unsupported operand|positional argument"
    r"|not supported between|unexpected keyword|indices must be|must be str"
    r"|not enough values|too many values|unhashable type"
    r"|can't allocate|bad_alloc|MemoryError|RecursionError"
)


def run(bounded, *arguments):
    """Run the command, which must work or refuse its input in one line; return the exit status."""
    out, err = io.StringIO(), io.StringIO()
    with bounded, warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("ignore")
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    printed = [line for line in err.getvalue().splitlines() if line]
    assert status in (0, 1, 2), err.getvalue()
    if status == 2:
        assert printed, "an error without a word"
        assert re.match(r"lightglue-hf( \w+)*: error: .", printed[-1]), printed
        assert len(printed[-1]) < 600
        assert not INTERNAL.search(printed[-1]), printed[-1]
    assert "Traceback" not in err.getvalue()
    return status


def photo(seed, size=(64, 48)):
    cells = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("photos") / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        photo(i).save(path)
    return paths


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, photos):
    """A whole checkpoint, which works."""
    directory = tmp_path_factory.mktemp("checkpoint")
    whole_model(20).save_pretrained(directory)
    LightGlueImageProcessor(size={"height": 48, "width": 64}).save_pretrained(directory)
    assert cli.main(["match", *map(str, photos), "--model", str(directory)]) == 0
    return directory


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A function that gives the checkpoint with another content of one file."""
    directory = tmp_path / "broken"
    shutil.copytree(checkpoint, directory)

    def broken(name, content):
        (directory / name).write_bytes(content)
        return directory

    return broken


def content_of(checkpoint, name):
    return (checkpoint / name).read_bytes()


@given(data=st.data())
def test_configurations(data, checkpoint, broken, photos, bounded):
    config = json.loads(content_of(checkpoint, "config.json"))
    directory = broken("config.json", data.draw(json_files(config)))
    run(bounded, "match", *photos, "--model", directory)


@pytest.mark.parametrize("model_type", ["aliked", "disk", "xfeat", "sift", "doghardnet"])
@given(data=st.data())
def test_configurations_of_other_detectors(data, model_type, checkpoint, broken, photos, bounded):
    from lightglue_hf.detectors import configuration_class

    config = json.loads(content_of(checkpoint, "config.json"))
    detector = configuration_class(model_type)().to_dict()
    config |= {"keypoint_detector_config": data.draw(changed_values(detector)), "input_dim": 16}
    directory = broken("config.json", json.dumps(config).encode())
    run(bounded, "match", *photos, "--model", directory)


@given(data=st.data())
def test_settings_of_processors(data, checkpoint, broken, photos, bounded):
    settings = json.loads(content_of(checkpoint, "preprocessor_config.json"))
    settings["longest_edge"] = 64
    directory = broken("preprocessor_config.json", data.draw(json_files(settings)))
    run(bounded, "match", *photos, "--model", directory)


@given(data=st.data())
def test_safetensors(data, checkpoint, broken, photos, bounded):
    weights = content_of(checkpoint, "model.safetensors")
    directory = broken("model.safetensors", data.draw(safetensors_files(weights)))
    run(bounded, "match", *photos, "--model", directory)
    shutil.rmtree(directory.parent / "converted", ignore_errors=True)
    run(bounded, "convert", directory, directory.parent / "converted")


@pytest.fixture(scope="module")
def pickled():
    buffer = io.BytesIO()
    torch.save(random_weights("disk"), buffer)
    return buffer.getvalue()


@given(data=st.data())
def test_pickles(data, pickled, tmp_path, bounded):
    path = tmp_path / "weights.pth"
    path.write_bytes(data.draw(zip_files(pickled)))
    shutil.rmtree(tmp_path / "converted", ignore_errors=True)
    run(bounded, "convert", path, tmp_path / "converted")
    assert {path.name for path in tmp_path.iterdir()} <= {"weights.pth", "converted"}


VALUES = st.one_of(
    st.sampled_from([None, 1, "a", [], {}, 0.5, {"a": torch.ones(2)}, torch.ones(2), b"", (1,)]),
    st.builds(
        lambda shape, value, dtype: torch.full(shape, value).to(dtype),
        st.lists(st.sampled_from([0, 1, 2, 64]), max_size=4),
        st.sampled_from([0.0, float("nan"), float("inf"), 1e30]),
        st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
    ),
    st.builds(lambda n: torch.zeros(1).expand(n, n), st.sampled_from([2, 1000, 100_000])),
    st.builds(lambda: torch.zeros(3, 3).to_sparse()),
    st.builds(lambda: torch.empty(64, 64, device="meta")),
)


@given(data=st.data())
def test_pickles_of_other_tensors(data, tmp_path, bounded):
    weights = random_weights("disk")
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(weights)))
        action = data.draw(st.sampled_from(("replace", "replace", "delete", "rename", "number")))
        if action == "replace":
            weights[name] = data.draw(VALUES)
        elif action == "number":
            weights[7] = weights.pop(name)
        elif action == "delete":
            del weights[name]
        else:
            weights[data.draw(st.sampled_from(("", "a", "transformers.99.a", f"{name}.weight")))] = weights.pop(name)
        if any(not isinstance(key, str) for key in weights):
            break
    torch.save(weights, tmp_path / "weights.pth")
    shutil.rmtree(tmp_path / "converted", ignore_errors=True)
    run(bounded, "convert", tmp_path / "weights.pth", tmp_path / "converted", "--verify")


def encoded(format, mode):
    buffer = io.BytesIO()
    image = photo(3).convert("L") if mode == "I;16" else photo(3).convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(buffer, format)
    return buffer.getvalue()


FORMATS = [
    *(("PNG", mode) for mode in ("RGB", "P", "LA", "I;16", "1")),
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("TIFF", mode) for mode in ("RGB", "F", "I;16")),
    *((name, "RGB") for name in ("WEBP", "BMP", "GIF", "PPM", "ICO", "JPEG2000")),
]


@given(data=st.data())
def test_photos(data, checkpoint, photos, tmp_path, bounded):
    path = tmp_path / "broken.photo"
    path.write_bytes(data.draw(changed_bytes(encoded(*data.draw(st.sampled_from(FORMATS))))))
    run(bounded, "match", path, photos[0], "--model", checkpoint)


YAML = st.sampled_from(
    (
        b"pairs: [",
        b"a: &a [*a]\n",
        b"output_dir: x\npairs: !!python/object/apply:os.system [ls]\n",
        b"pairs: 0x10\n",
        b"- 1\n",
        b"\xff\xfe",
        b"output_dir: x\npairs: &a [x,x,x,x,x,x,x,x,x]\nseed: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n",
        b"output_dir: {a: 1}\n? [1]\n: 2\n",
        b"[" * 3000,
    )
)


@pytest.mark.parametrize("network", ["detector", "matcher"])
@given(data=st.data())
def test_recipes(data, network, tmp_path, bounded, monkeypatch):
    from lightglue_hf import training

    monkeypatch.setattr(training, f"train_{network}", lambda recipe: None)  # what it asks for may take hours
    recipe_class = training.DetectorRecipe if network == "detector" else training.MatcherRecipe
    values = vars(recipe_class(output_dir="run"))
    path = tmp_path / "recipe.yaml"
    path.write_bytes(data.draw(st.one_of(json_files(values), json_files(values), YAML)))
    run(bounded, "train", network, "--config", path)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@given(data=st.data())
def test_exported_graphs(data, backend, exported, tmp_path, photos, bounded):
    directory = tmp_path / "broken"
    if not directory.exists():
        shutil.copytree(exported[backend], directory)
    names = sorted(path.name for path in exported[backend].iterdir() if path.suffix in (".onnx", ".xml", ".bin"))
    name = data.draw(st.sampled_from(names))
    whole = content_of(exported[backend], name)
    (directory / name).write_bytes(data.draw(changed_bytes(whole)))
    run(bounded, "match", *photos, "--model", directory)
    (directory / name).write_bytes(whole)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The checkpoint's graphs for both runtimes."""
    for package in ("onnx", "onnxruntime", "openvino", "optimum.intel"):
        pytest.importorskip(package)
    directories = {name: tmp_path_factory.mktemp(name) for name in ("onnx", "openvino")}
    for name, directory in directories.items():
        assert cli.main(["export", name, str(checkpoint), str(directory), "--no-validate"]) == 0
    return directories
