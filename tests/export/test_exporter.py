"""Exported graphs are the model: the same keypoints and matches, whatever the batch, the sizes and the counts.

Needs the extras `onnx` and `openvino` (make test-export); each backend is skipped where its packages are missing.
"""

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint
from lightglue_hf.cli import main
from lightglue_hf.data.textures import render_textures
from lightglue_hf.export import exporter as module
from lightglue_hf.export.check import random_features
from lightglue_hf.export.exporter import FILES, WRITTEN, Exportable, ExportError, ExportOptions, export
from lightglue_hf.export.formats import ONNXFormat, run_onnx, run_openvino
from lightglue_hf.utils.files import refilling

from ..tiny import LAYERS, different_pairs, whole_model
from .test_graphs import PRUNED_IMAGES, matched, points, pruning_whole_images, some_features

RUN = {"onnx": run_onnx, "openvino": run_openvino}
RUNTIMES = {"onnx": "ORTModelForKeypointMatching", "openvino": "OVModelForKeypointMatching"}
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}


def needs(backend):
    for package in PACKAGES[backend]:
        pytest.importorskip(package)


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def backend(request):
    needs(request.param)
    return request.param


def saved(directory, model=None, **processor):
    (model or whole_model(max_keypoints=150)).save_pretrained(directory)
    LightGlueImageProcessor(**processor).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights; photos of different sizes share a batch."""
    return saved(tmp_path_factory.mktemp("checkpoint"), size={"longest_edge": 64})


def runner(backend, directory, part="pipeline"):
    return RUN[backend](directory / FILES[backend][part])


def arrays(**tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def assert_same(found, wanted, fields=("matches", "prune", "mask", "stop"), scores=2e-5):
    """Whichever has more columns, they are padding there."""
    n = min(found["matching_scores"].shape[-1], wanted.matching_scores.shape[-1])
    for name in fields:
        if name in found:
            ours, theirs = found[name], wanted[name].numpy()
            if name == "stop":
                np.testing.assert_array_equal(ours, theirs)
            else:
                np.testing.assert_array_equal(ours[..., :n], theirs[..., :n], err_msg=name)
                assert not (ours[..., n:] > 0).any()
                assert not (theirs[..., n:] > 0).any()
    ours, theirs = (x[..., :n] for x in (found["matching_scores"], wanted.matching_scores.numpy()))
    np.testing.assert_allclose(ours, theirs, atol=scores)
    if "keypoints" in found:
        np.testing.assert_allclose(found["keypoints"][:, :, :n], wanted.keypoints.numpy()[:, :, :n], atol=1e-5)


# -- graphs of fixed depth


@pytest.fixture(scope="module")
def fixed(backend, checkpoint, tmp_path_factory):
    """All parts, as exported: any batch and size."""
    directory = tmp_path_factory.mktemp("fixed")
    checks = export(checkpoint, directory, backend, ExportOptions(parts=("pipeline", "detector", "matcher")))
    judged = [result for result in checks if result.precision == "fp32"]  # OpenVINO in bfloat16 is told, not judged
    assert [result.part for result in judged] == ["pipeline", "detector", "matcher"]
    assert all(result.compared > 0 for result in checks)
    return directory


@pytest.fixture(scope="module")
def model(checkpoint):
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    model.config.depth_confidence = model.config.width_confidence = -1
    return model


@pytest.mark.parametrize("rows", [[0], [0, 1, 2, 3, 4, 5], [5], [1, 5]])
def test_any_batch_and_images_without_keypoints(backend, fixed, model, rows):
    images = different_pairs()[rows]
    sizes = torch.tensor([48, 64]).expand(len(rows), 2, 2)
    with torch.no_grad():
        wanted = model(pixel_values=images, image_sizes=sizes)
    assert_same(runner(backend, fixed)(arrays(pixel_values=images, image_sizes=sizes)), wanted)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 70), (80, 40)])
def test_any_size_and_sizes_that_differ_in_a_batch(backend, fixed, model, height, width):
    images = torch.rand(2, 2, 3, height, width)
    sizes = torch.tensor([[[height, width], [8, 8]], [[height, width - 3], [max(8, height - 2), width]]]).clamp(min=1)
    with torch.no_grad():
        wanted = model(pixel_values=images, image_sizes=sizes)
    assert_same(runner(backend, fixed)(arrays(pixel_values=images, image_sizes=sizes)), wanted)


@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_one_photo_one_answer(backend, kind, checkpoint, request):
    """Alone, padded to a multiple of 8, and padded far: what the PyTorch model finds in the photo alone."""
    run = runner(backend, request.getfixturevalue(kind))
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    if kind == "fixed":
        model.config.depth_confidence = model.config.width_confidence = -1
    height, width = 61, 75
    photos = torch.rand(1, 2, 3, height, width, generator=torch.Generator().manual_seed(5))
    photos[:, 1] = photos[:, 0].roll(4, -1)
    sizes = torch.tensor([height, width]).expand(1, 2, 2)
    with torch.no_grad():
        wanted = model(pixel_values=photos)
    assert wanted.mask.sum() > 50
    for canvas in ((61, 75), (64, 80), (120, 200)):
        pixels = torch.ones(1, 2, 3, *canvas)  # what the padding holds does not matter
        pixels[..., :height, :width] = photos
        assert_same(run(arrays(pixel_values=pixels, image_sizes=sizes)), wanted)


def test_the_parts_make_the_whole(backend, fixed, model):
    images = different_pairs()
    sizes = torch.tensor([48, 64]).expand(6, 2, 2)
    detector, matcher = (runner(backend, fixed, part) for part in ("detector", "matcher"))
    features = detector(arrays(pixel_values=images.flatten(0, 1), image_sizes=sizes.flatten(0, 1)))
    assert features["keypoints"].max() > 40  # pixels
    pairs = {n: features[n].reshape(6, 2, *features[n].shape[1:]) for n in ("keypoints", "descriptors", "mask")}
    with torch.no_grad():
        wanted = model(pixel_values=images, image_sizes=sizes)
    found = matcher({**pairs, "image_sizes": sizes.numpy()})
    assert set(found) == {"matches", "matching_scores", "prune", "stop"}
    assert_same(found, wanted)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 3), points)
def test_the_matcher_takes_any_number_of_keypoints_and_masks(backend, fixed, model, pairs, mask):
    features = some_features(model, pairs, mask)
    assert_same(runner(backend, fixed, "matcher")(arrays(**features)), matched(model, features))


@pytest.mark.parametrize(("height", "weight_format"), [(0, "fp32"), (48, "fp16"), (0, "int8")])
def test_bfloat16_rounds_neither_pixels_nor_scores(checkpoint, tmp_path, height, weight_format):
    needs("openvino")
    import openvino

    if weight_format == "int8":
        pytest.importorskip("nncf")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    options = ExportOptions(("detector",), height=height, width=height, weight_format=weight_format, validate=False)
    export(checkpoint, tmp_path, "openvino", options)
    hint = {"INFERENCE_PRECISION_HINT": "bf16"}
    compiled = openvino.compile_model(tmp_path / FILES["openvino"]["detector"], "CPU", hint)

    def said(node, key):
        return node.get_rt_info()[key].value

    nodes = compiled.get_runtime_model().get_ordered_ops()
    convolutions = [node for node in nodes if said(node, "layerType") == "Convolution"]
    precisions = {node.friendly_name.split("/")[0]: said(node, "outputPrecisions") for node in convolutions}
    encoder = "__module.model.keypoint_detector.encoder.conv_blocks"
    assert precisions[f"{encoder}.1.conv_a"] == "bf16"
    assert precisions["__module.model.keypoint_detector.keypoint_decoder.conv_score_b"] == "f32"
    (node,) = (node for node in convolutions if f"{encoder}.0.conv_a/" in node.friendly_name)
    while said(node, "layerType") != "Input":
        assert said(node, "outputPrecisions") == "f32", node.friendly_name
        node = node.input_value(0).get_node()


def test_nobody_is_told_of_an_export(checkpoint, tmp_path):
    """In a process of its own: what is on or off when OpenVINO and NNCF start stays so, and in pytest NNCF is off."""
    for package in ("openvino_telemetry", "openvino", "nncf"):
        pytest.importorskip(package)
    code = """
import sys
from openvino_telemetry.backend.backend_ga4 import GA4Backend
from openvino_telemetry.utils.opt_in_checker import OptInChecker
sent = []
GA4Backend.send = lambda self, message: sent.append(message)
OptInChecker.consent_file = lambda self: "/nowhere"  # nobody has said yes or no
from lightglue_hf.export import ExportOptions, export
options = ExportOptions(("detector",), height=48, width=48, weight_format="int8", validate=False)
export(sys.argv[1], sys.argv[2], "openvino", options)
assert "nncf" in sys.modules
assert not sent, sent
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    command = [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists(), "no number by which this machine is known"


def test_the_first_inference_in_bfloat16_is_as_the_second(tmp_path):
    """Where points are matched outside of a branch, OpenVINO is wrong in its first inference, for this width and n."""
    needs("openvino")
    import openvino

    torch.manual_seed(0)
    config = LightGlueConfig(
        use_keypoint_detector=False,
        descriptor_dim=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        filter_threshold=0.0,
        initializer_range=0.1,
    )
    model = LightGlueForKeypointMatching(config)
    options = ExportOptions(("matcher",), num_keypoints=256, adaptive=True, validate=False)
    export(saved(tmp_path / "model", model), tmp_path / "out", "openvino", options)
    inputs = random_features(model, 1, 256, 480, 640, seed=0)
    file = tmp_path / "out" / FILES["openvino"]["matcher"]
    compiled = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    first, second = ({port.any_name: np.array(x) for port, x in compiled(inputs).items()} for _ in range(2))
    assert second["matching_scores"].max() > 0.1
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], name)


def test_files_say_what_they_are(backend, fixed):
    assert not [file for file in fixed.iterdir() if file.name.startswith(".")]
    config = LightGlueConfig.from_pretrained(fixed)
    assert config.depth_confidence == config.width_confidence == -1
    assert config.keypoint_detector_config.max_keypoints == 150
    assert LightGlueImageProcessor.from_pretrained(fixed).size == {"longest_edge": 64}
    card = (fixed / "README.md").read_text()
    assert "| `pixel_values` | float32 | (batch, 2, 3, height, width) |" in card
    assert "in common with PyTorch" in card
    if backend == "onnx":
        import onnx

        metadata = {entry.key: entry.value for entry in onnx.load(fixed / "matcher.onnx").metadata_props}
    else:
        import openvino

        graph = openvino.Core().read_model(fixed / "openvino_matcher.xml")
        metadata = {key: str(value) for key, value in graph.get_rt_info("lightglue_hf").value.items()}
    assert metadata["part"] == "matcher"
    assert metadata["adaptive"] == "False"
    assert float(metadata["filter_threshold"]) == pytest.approx(1e-4)


# -- adaptive graphs


@pytest.fixture(scope="module")
def adaptive(backend, checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adaptive")
    export(checkpoint, directory, backend, ExportOptions(adaptive=True))
    return directory


def test_adaptive_graphs_stop_and_prune_as_the_model(backend, adaptive, checkpoint):
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    images = different_pairs()
    sizes = torch.tensor([[48, 64]]).expand(1, 2, 2)
    run = runner(backend, adaptive)
    stops, prunes = set(), set()
    for i in (0, 1, 2, 3, 0, 4, 5):
        with torch.no_grad():
            wanted = model(pixel_values=images[i : i + 1], image_sizes=sizes)
        assert_same(run(arrays(pixel_values=images[i : i + 1], image_sizes=sizes)), wanted)
        stops.add(int(wanted.stop))
        prunes |= set(wanted.prune.flatten().tolist())
    assert {1, 3, 4} <= stops
    assert {0, 1, 2, 3} <= prunes


def test_adaptive_graphs_give_pairs_up_as_the_model(backend, tmp_path):
    model = whole_model(use_keypoint_detector=False, rejection_threshold=0.3, depth_confidence=-1)
    options = ExportOptions(adaptive=True, parts=("matcher",), validate=False)
    export(saved(tmp_path / "model", model), tmp_path / "out", backend, options)
    run = runner(backend, tmp_path / "out", "matcher")
    stops = set()
    for n in (2, 3, 5, 8, 13, 40):
        features = some_features(model, 1, np.ones((2, n), bool))
        wanted = matched(model, features)
        assert_same(run(arrays(**features)), wanted)
        stops.add(int(wanted.stop))
    assert LAYERS in stops, "some are meant to be matched"
    assert len(stops) > 1, "and others given up"


def test_the_runtime_warns_of_nothing(backend, adaptive, fixed):
    """Its warnings are written by native code, straight to the standard error stream."""
    code = (
        "import sys, torch, lightglue_hf.runtime as runtime\n"
        f"model = runtime.{RUNTIMES[backend]}.from_pretrained(sys.argv[1])\n"
        "model(torch.rand(1, 2, 3, 48, 64), image_sizes=torch.tensor([[[48, 64], [40, 60]]]))"
    )
    pytest.importorskip("optimum")
    for directory in (adaptive, fixed):
        found = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        assert "Implicit input" not in found.stderr
        assert "[W:" not in found.stderr


def test_layers_are_branches(backend, adaptive):
    """What a pair does not need is not computed: every layer is inside an If."""
    if backend == "onnx":
        import onnx

        nodes = [node.op_type for node in onnx.load(adaptive / "model.onnx").graph.node]
    else:
        import openvino

        nodes = [op.get_type_name() for op in openvino.Core().read_model(adaptive / "openvino_model.xml").get_ops()]
    assert nodes.count("If") >= 4
    assert nodes.count("Softmax") + nodes.count("ScaledDotProductAttention") <= 1  # the detector's


def test_all_points_of_an_image_are_pruned(backend, tmp_path):
    model = pruning_whole_images()
    options = ExportOptions(adaptive=True, parts=("matcher",), validate=False)
    export(saved(tmp_path / "model", model), tmp_path / "out", backend, options)
    run = runner(backend, tmp_path / "out", "matcher")
    for counts, _ in PRUNED_IMAGES:
        features = some_features(model, 1, np.arange(20) < np.array(counts)[:, None])
        assert_same(run(arrays(**features)), matched(model, features))


# -- other models and options


def test_scales_and_orientations_of_a_matcher_alone(tmp_path):
    needs("onnx")
    model = whole_model(use_keypoint_detector=False, add_scale_ori=True, input_dim=24)
    model.save_pretrained(tmp_path / "model")  # there is no image processor
    export(tmp_path / "model", tmp_path / "out", "onnx", ExportOptions(parts=("matcher",)))
    source = Exportable(model, None, ExportOptions(parts=("matcher",)))
    features = random_features(model, 2, 140, 48, 64, seed=5)
    assert {"scales", "orientations"} <= set(features)
    with torch.no_grad():
        wanted = source.model.match_features(**{name: torch.from_numpy(value) for name, value in features.items()})
    run = runner("onnx", tmp_path / "out", "matcher")
    assert_same(run(features), wanted)
    turned = run({**features, "orientations": features["orientations"] + 1})
    assert np.abs(turned["matching_scores"] - wanted.matching_scores.numpy()).max() > 1e-6
    with pytest.raises(ValueError, match="no keypoint detector"):
        Exportable(model, None, ExportOptions())


def test_fixed_shapes(tmp_path, checkpoint):
    needs("onnx")
    options = ExportOptions(batch_size=2, height=48, width=64, num_keypoints=40)
    export(checkpoint, tmp_path, "onnx", options)
    processor = LightGlueImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"height": 48, "width": 64}  # so that no sizes are an input
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert {i.name: i.shape for i in session.get_inputs()} == {"pixel_values": [2, 2, 3, 48, 64]}
    assert {o.name: o.shape for o in session.get_outputs()}["matches"] == [2, 2, 40]


def test_a_matcher_of_more_points_than_are_found(tmp_path, checkpoint):
    needs("onnx")
    options = ExportOptions(
        ("detector", "matcher"), batch_size=1, height=48, width=64, num_keypoints=40, matcher_keypoints=80
    )
    export(checkpoint, tmp_path, "onnx", options)
    import onnxruntime

    detector, matcher = (onnxruntime.InferenceSession(tmp_path / FILES["onnx"][part]) for part in options.parts)
    assert {o.name: o.shape for o in detector.get_outputs()}["keypoints"] == [1, 40, 2]
    assert {i.name: i.shape for i in matcher.get_inputs()}["keypoints"] == [1, 2, 80, 2]


def test_weights_in_half_precision(backend, checkpoint, tmp_path):
    sizes = {}
    for weight_format in ("fp32", "fp16"):
        options = ExportOptions(parts=("matcher",), weight_format=weight_format)
        export(checkpoint, tmp_path / weight_format, backend, options)
        sizes[weight_format] = sum(f.stat().st_size for f in (tmp_path / weight_format).glob("*matcher.[bo]*"))
    assert sizes["fp16"] < sizes["fp32"]


def test_weights_in_eight_bits(backend, tmp_path):
    """Of the checkpoint in the package, because small layers stay as they are."""
    if backend == "openvino":
        pytest.importorskip("nncf")
    sizes = {}
    for weight_format in ("fp32", "int8"):
        options = ExportOptions(parts=("matcher",), weight_format=weight_format)
        result, *_ = export(bundled_checkpoint("tiny"), tmp_path / weight_format, backend, options)
        assert result.compared > 100
        sizes[weight_format] = sum(f.stat().st_size for f in (tmp_path / weight_format).glob("*matcher.[bo]*"))
    assert sizes["int8"] < 0.5 * sizes["fp32"]


def test_opset_20(tmp_path, checkpoint):
    needs("onnx")
    import onnx

    export(checkpoint, tmp_path, "onnx", ExportOptions(opset=20))
    assert {entry.domain: entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import}[""] == 20


def test_descriptors_are_an_output_of_the_pipeline(backend, fixed, model):
    """So that OpenVINO, where it computes in bfloat16, samples them in float32."""
    images = different_pairs()[:1]
    sizes = torch.tensor([48, 64]).expand(1, 2, 2)
    with torch.no_grad():
        wanted = model.extract_features(images, sizes)
    found = runner(backend, fixed)(arrays(pixel_values=images, image_sizes=sizes))["descriptors"]
    np.testing.assert_allclose(found[:, :, : wanted.descriptors.shape[2]], wanted.descriptors.numpy(), atol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_openvino_reads_the_onnx_file(tmp_path, checkpoint, model, adaptive):
    needs("onnx")
    openvino = pytest.importorskip("openvino")
    export(checkpoint, tmp_path, "onnx", ExportOptions(adaptive=adaptive, validate=False))
    if adaptive:
        model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    images, sizes = different_pairs()[:1], torch.tensor([48, 64]).expand(1, 2, 2)
    with torch.no_grad():
        wanted = model(pixel_values=images, image_sizes=sizes)
    converted = openvino.convert_model(tmp_path / "model.onnx")
    for half, scores in ((False, 2e-5), (True, 0.05)):
        openvino.save_model(converted, tmp_path / "ovc.xml", compress_to_fp16=half)  # what the command ovc does
        found = RUN["openvino"](tmp_path / "ovc.xml")(arrays(pixel_values=images, image_sizes=sizes))
        fields = () if half else ("matches", "mask")
        if half:
            n = wanted.matches.shape[2]
            assert (found["matches"][:, :, :n] == wanted.matches.numpy()).mean() > 0.8
        else:
            assert_same(found, wanted, fields, scores)


MAIN = """
#include <cstdio>
#include <string>
int main(int, char** argv) {
    size_t n = std::stoul(argv[2]), d = std::stoul(argv[3]);
    std::vector<float> keypoints(4 * n), descriptors(2 * n * d);
    std::vector<int32_t> mask(2 * n);
    std::vector<int64_t> sizes(4);
    size_t read = fread(keypoints.data(), 4, 4 * n, stdin) + fread(descriptors.data(), 4, 2 * n * d, stdin);
    read += fread(mask.data(), 4, 2 * n, stdin) + fread(sizes.data(), 8, 4, stdin);
    MATCHER
    for (int64_t partner : match(matcher, n, d, keypoints.data(), descriptors.data(), mask.data(), sizes.data()))
        printf("%ld ", long(partner));
    return read == 6 * n + 2 * n * d + 4 ? 0 : 1;
}
"""
LOADED = {
    "openvino": 'auto matcher = ov::Core().compile_model(argv[1], "CPU", '
    "ov::hint::inference_precision(ov::element::f32));",
    "onnx": "Ort::Env env; Ort::Session matcher(env, argv[1], Ort::SessionOptions{});",
}


def headers_and_library(backend):
    """Where a backend's are: both in OpenVINO's Python package, in ONNX Runtime's the library alone."""
    if backend == "openvino":
        package = Path(pytest.importorskip("openvino").__file__).parent
        (library,) = (package / "libs").glob("libopenvino.so.*")
        return package / "include", library
    package = Path(pytest.importorskip("onnxruntime").__file__).parent
    places = [Path(__file__).parents[2] / "build" / "onnxruntime" / "include", Path("/usr/include/onnxruntime")]
    headers = next((place for place in places if (place / "onnxruntime_cxx_api.h").is_file()), None)
    libraries = list((package / "capi").glob("libonnxruntime.so.*"))
    if headers is None or not libraries:
        pytest.skip("needs ONNX Runtime's headers, which make test-export fetches, and its library")
    return headers, libraries[0]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_cpp_of_its_page(backend, checkpoint, tmp_path, model):
    headers, library = headers_and_library(backend)
    export(checkpoint, tmp_path, backend, ExportOptions(parts=("matcher",), validate=False))
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    name = {"openvino": "openvino", "onnx": "onnxruntime"}[backend]
    (snippet,) = (block for block in re.findall(r"```cpp\n(.*?)```", page, re.DOTALL) if name in block)
    (tmp_path / "main.cpp").write_text(snippet + MAIN.replace("MATCHER", LOADED[backend]))
    folder = library.parent
    if backend == "onnx":  # which programs look for by another name
        folder = tmp_path
        (folder / re.sub(r"(\.so\.\d+).*", r"\1", library.name)).symlink_to(library)
    command = ["g++", "-std=c++17", "-I", headers, "main.cpp", library, f"-Wl,-rpath,{folder}"]
    subprocess.run([*command, "-o", "main"], cwd=tmp_path, check=True)
    features = random_features(model, 1, 70, 48, 64, seed=1)
    with torch.no_grad():
        wanted = model.match_features(**{name: torch.from_numpy(value) for name, value in features.items()})
    names = ("keypoints", "descriptors", "mask", "image_sizes")
    given = b"".join(features[name].tobytes() for name in names)
    run = ["./main", FILES[backend]["matcher"], "70", str(features["descriptors"].shape[-1])]
    printed = subprocess.run(run, cwd=tmp_path, input=given, check=True, capture_output=True).stdout
    assert [int(partner) for partner in printed.split()] == wanted.matches.flatten().tolist()
    assert (wanted.matches >= 0).any()


# -- faults


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ("head",)}, "parts must be of"),
        ({"weight_format": "int3"}, "weight_format"),
        ({"batch_size": -1}, "batch_size"),
        ({"num_keypoints": 0}, "num_keypoints"),
        ({"matcher_keypoints": 0}, "matcher_keypoints"),
        ({"opset": 15}, "opset must be at least 16"),
        ({"height": 480}, "height and width"),
        ({"adaptive": True, "batch_size": 2}, "one pair"),
        ({"adaptive": True, "weight_format": "int8"}, "not quantised"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ExportOptions(**options)


def test_a_model_that_is_not_adaptive():
    with pytest.raises(ValueError, match="nothing is adaptive"):
        Exportable(whole_model(depth_confidence=-1, width_confidence=-1), None, ExportOptions(adaptive=True))


def test_a_failed_export_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    needs("onnx")
    other = Exportable(whole_model(max_keypoints=150, seed=99), None, ExportOptions(parts=("matcher",)))
    monkeypatch.setitem(module.FORMATS, "onnx", lambda graph, opset: ONNXFormat(other.graph("matcher"), opset))
    with pytest.raises(ExportError, match=r"differs from PyTorch|no match in common"):
        export(checkpoint, tmp_path / "out", "onnx", ExportOptions(parts=("matcher",)))
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_not_overwritten(checkpoint):
    needs("onnx")
    with pytest.raises(ValueError, match="is the model itself"):
        export(checkpoint, checkpoint, "onnx")


def test_another_model_is_not_overwritten(checkpoint, tmp_path):
    needs("onnx")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="holds a model"):
        export(checkpoint, tmp_path, "onnx")


def test_licences_and_authors_go_with_the_graphs(tmp_path):
    needs("onnx")
    source = saved(tmp_path / "source")
    (source / "README.md").write_text(
        "---\nlicense: cc-by-4.0\n---\n# mine\n\nPhotos by Ann Onymous, 100 €.\n", encoding="utf-8"
    )
    for _ in range(2):  # over an export of before, too
        export(source, tmp_path / "out", "onnx", ExportOptions(parts=("matcher",), validate=False))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert "Photos by Ann Onymous, 100 €." in card


@pytest.mark.parametrize(("name", "message"), [("README.md", "by no export"), ("config.json", "holds a model")])
def test_what_no_export_wrote_is_not_overwritten(checkpoint, tmp_path, name, message):
    needs("onnx")
    (tmp_path / name).write_text("of my project")
    with pytest.raises(ValueError, match=message):
        export(checkpoint, tmp_path, "onnx", ExportOptions(parts=("matcher",), validate=False))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "of my project")]


def test_old_parts_go_and_other_files_stay(checkpoint, tmp_path):
    needs("onnx")
    for name in ("openvino_model.xml", "openvino_model.bin", "detector.onnx", "config.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / ".new").mkdir()  # of a process that was killed
    (tmp_path / ".new" / "matcher.onnx").write_text("half")
    export(checkpoint, tmp_path, "onnx", ExportOptions(parts=("matcher",), validate=False))
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"matcher.onnx", "config.json", "README.md", "notes.txt"}
    assert left - {"notes.txt"} <= WRITTEN
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_one_export_at_a_time(checkpoint, tmp_path):
    needs("onnx")
    pytest.importorskip("fcntl")
    with refilling(tmp_path / "out", WRITTEN, "config.json"):
        with pytest.raises(FileExistsError, match="written to by another process"):
            export(checkpoint, tmp_path / "out", "onnx", ExportOptions(parts=("matcher",), validate=False))
    assert not (tmp_path / "out").exists()


def test_broken_weights_are_refused():
    model = whole_model()
    model.transformer_layers[1].self_mlp.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or Inf: transformer_layers\.1\.self_mlp\.fc1\.weight"):
        Exportable(model, None, ExportOptions(parts=("matcher",)))


def test_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"install lightglue-hf\[onnx\]"):
        export(bundled_checkpoint("tiny"), tmp_path / "out", "onnx")


def test_command(capsys, checkpoint, tmp_path):
    needs("onnx")
    out = tmp_path / "out"
    argv = ["export", "onnx", str(checkpoint), str(out), "--part", "detector", "--max-keypoints", "30"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert re.search(r"detector, fp32: (100|99)\.\d+% of the keypoints in common with PyTorch", printed)
    assert f"wrote {out}" in printed
    assert (out / "detector.onnx").is_file()
    assert main([*argv[:4], "--height", "480"]) == 2
    assert "height and width" in capsys.readouterr().err


def test_errors_of_the_command(capsys, checkpoint, tmp_path, monkeypatch):
    """What is wrong with options, model, place and graph is one line, and exit status 2."""
    needs("onnx")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    start = ["export", "onnx"]
    cases = {
        "is no directory": [str(checkpoint), str(tmp_path / "file")],
        "model itself": [str(checkpoint), str(checkpoint)],
        "safetensors": [str(tmp_path / "empty"), str(tmp_path / "out")],
        "does not write the opset 999": [
            str(checkpoint),
            str(tmp_path / "out"),
            "--opset",
            "999",
            "--part",
            "matcher",
        ],
        "opset must be at least 16": [str(checkpoint), str(tmp_path / "out"), "--opset", "3"],
        "for OpenVINO alone": [str(checkpoint), str(tmp_path / "out"), "--calibration", str(tmp_path)],
        "Not a directory": [str(checkpoint), str(tmp_path / "file" / "out")],
    }
    for message, arguments in cases.items():
        assert main(start + arguments) == 2, message
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("lightglue-hf: error: ")
        assert message in line
    monkeypatch.setattr(module, "check", failed)
    assert main([*start, str(checkpoint), str(tmp_path / "out"), "--part", "matcher"]) == 2
    assert capsys.readouterr().err == "lightglue-hf: error: the graph differs\n"
    assert not (tmp_path / "out").exists()


def failed(*_):
    raise ExportError("the graph differs")


WHOLE = {
    "first": {"README.md", "config.json", "preprocessor_config.json", "detector.onnx"},
    "second": {"README.md", "config.json", "matcher.onnx"},
}


@pytest.mark.slow
def test_killed_at_any_moment_an_export_is_old_or_new(checkpoint, tmp_path):
    """One set of files over the other, six times; the last is left alone, and leaves nothing but its own."""
    needs("onnx")
    pytest.importorskip("fcntl")
    out, moments, seconds = tmp_path / "out", random.Random(0), 0.0
    for i in range(7):
        part = ("detector", "matcher")[i % 2]
        start = time.monotonic()
        command = ["export", "onnx", str(checkpoint), str(out), "--part", part, "--no-validate"]
        process = subprocess.Popen([sys.executable, "-m", "lightglue_hf", *command], stdout=subprocess.DEVNULL)
        if i in (0, 6):
            assert process.wait(timeout=300) == 0
            seconds = time.monotonic() - start
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=moments.uniform(0.5, 1.0) * seconds)
            process.kill()
            process.wait()
        found = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        assert found in WHOLE.values() or "config.json" not in found, found
    assert {path.name for path in out.iterdir()} == WHOLE["first"]


@pytest.mark.slow
def test_quantised_by_photos(tmp_path):
    """Weights and activations in int8; few photos and points, so that little more than the mechanism is tested."""
    needs("openvino")
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    for i, canvas in enumerate(render_textures(3, 96, 128, seed=2)):
        Image.fromarray(canvas).save(tmp_path / f"{i}.png")
    options = ExportOptions(parts=("matcher",), num_keypoints=64, calibration=tmp_path, num_samples=2)
    export(bundled_checkpoint("tiny"), tmp_path / "out", "openvino", options)
    graph = openvino.Core().read_model(tmp_path / "out" / "openvino_matcher.xml")
    quantised = [op.get_friendly_name() for op in graph.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert len(quantised) > 20
    assert not [name for name in quantised if "positional_encoder" in name or "match_assignment" in name]


def test_photos_to_calibrate_by(tmp_path):
    for package in ("openvino", "nncf"):
        pytest.importorskip(package)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=r"two photos at least; in .* there are 0"):
        export(
            bundled_checkpoint("tiny"), tmp_path / "out", "openvino", ExportOptions(calibration=tmp_path / "photos")
        )
    assert not (tmp_path / "out").exists()
