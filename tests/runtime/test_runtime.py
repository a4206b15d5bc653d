"""The exported graphs behind the PyTorch model's interface, on ONNX Runtime and on OpenVINO (make test-export)."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, app, bundled_checkpoint
from lightglue_hf.cli import main, parser
from lightglue_hf.cli.models import load_matcher
from lightglue_hf.data.textures import render_textures
from lightglue_hf.export import ExportOptions, export
from lightglue_hf.export.check import random_features
from lightglue_hf.utils.errors import InputError

from ..export.test_exporter import assert_same, saved
from ..tiny import different_pairs

NAMES = {"onnx": "ORTModelForKeypointMatching", "openvino": "OVModelForKeypointMatching"}
NEEDS = {"onnx": ("onnx", "onnxruntime", "optimum.modeling_base"), "openvino": ("openvino", "optimum.intel")}


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def backend(request):
    for package in NEEDS[request.param]:
        pytest.importorskip(package)
    return request.param


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoint"), size={"longest_edge": 64})


@pytest.fixture(scope="module")
def adaptive(backend, checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adaptive")
    export(checkpoint, directory, backend, ExportOptions(adaptive=True, validate=False))
    return directory


@pytest.fixture(scope="module")
def parts(backend, checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("parts")
    export(checkpoint, directory, backend, ExportOptions(parts=("detector", "matcher"), validate=False))
    return directory


def load(backend, directory, **kwargs):
    from lightglue_hf import runtime

    if backend == "openvino":  # bfloat16 would be the default where the processor has it
        kwargs["ov_config"] = {"INFERENCE_PRECISION_HINT": "f32", **kwargs.get("ov_config", {})}
    return getattr(runtime, NAMES[backend]).from_pretrained(directory, **kwargs)


def static(checkpoint):
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    model.config.depth_confidence = model.config.width_confidence = -1
    return model


@torch.no_grad()
def test_a_batch_of_pairs_on_an_adaptive_graph(backend, adaptive, checkpoint):
    wanted = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()(pixel_values=different_pairs())
    found = load(backend, adaptive)(pixel_values=different_pairs())
    assert_same({name: value.numpy() for name, value in found.items()}, wanted)
    assert torch.equal(found.image_sizes, wanted.image_sizes)
    for name in ("matches", "matching_scores", "keypoints", "prune", "mask", "stop"):
        assert found[name].dtype == wanted[name].dtype, name
    assert len(set(found.stop.tolist())) > 1


@torch.no_grad()
def test_features_once_and_matches_often(backend, parts, checkpoint):
    model, wanted = load(backend, parts), static(checkpoint)
    images = different_pairs()
    features = model.extract_features(images[:, 0])
    pairs = torch.tensor([[0, 2], [3, 0], [5, 4]])
    chosen = [features[name][pairs] for name in ("keypoints", "descriptors", "mask", "image_sizes")]
    assert_same(
        {name: value.numpy() for name, value in model.match_features(*chosen).items()}, wanted.match_features(*chosen)
    )
    whole = model(pixel_values=images)  # both graphs, one after the other
    assert_same({name: value.numpy() for name, value in whole.items()}, wanted(pixel_values=images))
    nothing = model.match_features(torch.zeros(2, 2, 0, 2), torch.zeros(2, 2, 0, 16), image_sizes=torch.ones(2, 2, 2))
    assert nothing.matches.shape == (2, 2, 0)


@torch.no_grad()
def test_a_higher_score_is_asked_of_whatever_matches(backend, adaptive, parts):
    for directory in (adaptive, parts):
        graphs = load(backend, directory)
        wanted = graphs(pixel_values=different_pairs())
        graphs.minimum_score = float(wanted.matching_scores[wanted.matches >= 0].median())
        found = graphs(pixel_values=different_pairs())
        keep = wanted.matching_scores > graphs.minimum_score
        assert 0 < keep.sum() < (wanted.matches >= 0).sum()
        assert torch.equal(found.matches, torch.where(keep, wanted.matches, -1))
        assert torch.equal(found.matching_scores, torch.where(keep, wanted.matching_scores, 0))
        assert torch.equal(found.prune, wanted.prune)


def test_matches_of_a_collection_score_above_the_threshold(parts, tmp_path):
    pytest.importorskip("h5py")
    from lightglue_hf.collection.storage import read_matches, read_settings

    canvas = render_textures(1, 80, 100, seed=3)[0]
    (tmp_path / "photos").mkdir()
    Image.fromarray(canvas[:64, :90]).save(tmp_path / "photos" / "a.png")
    Image.fromarray(canvas[6:76, 4:84]).save(tmp_path / "photos" / "b.png")
    (tmp_path / "p.txt").write_text("a.png b.png\n")
    features, common = str(tmp_path / "f.h5"), ["--model", str(parts)]
    assert main(["features", str(tmp_path / "photos"), "-o", features, *common]) == 0
    match = ["match-pairs", features, str(tmp_path / "p.txt"), *common, "-o"]
    assert main([*match, str(tmp_path / "all.h5")]) == 0
    _, scores = read_matches(tmp_path / "all.h5", "a.png", "b.png")
    middle = np.sort(scores)[len(scores) // 4 : -len(scores) // 4]
    widest = np.diff(middle).argmax()  # far from any score, which the file rounds
    threshold = float(middle[widest : widest + 2].mean())
    assert main([*match, str(tmp_path / "some.h5"), "--threshold", str(threshold)]) == 0
    _, some = read_matches(tmp_path / "some.h5", "a.png", "b.png")
    assert 0 < len(some) < len(scores)
    np.testing.assert_array_equal(some, scores[scores > threshold])
    assert read_settings(tmp_path / "some.h5")["matcher"]["filter_threshold"] == threshold


def test_processor_and_pipeline_as_they_are(backend, adaptive, checkpoint):
    canvas = render_textures(1, 80, 100, seed=3)[0]
    photos = [Image.fromarray(canvas[:64, :90]), Image.fromarray(canvas[6:76, 4:84])]
    processor = LightGlueImageProcessor.from_pretrained(adaptive)
    results = []
    for model in (load(backend, adaptive), LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()):
        results.append(pipeline("keypoint-matching", model=model, image_processor=processor)(photos))
    assert len(results[0]) == len(results[1]) > 0
    for found, wanted in zip(*results):
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-4)
    batches = pipeline("keypoint-matching", model=load(backend, adaptive), image_processor=processor)(
        [photos, photos[::-1]], batch_size=2
    )
    assert len(batches) == 2


def test_saved_and_loaded_again(backend, adaptive, tmp_path):
    model = load(backend, adaptive)
    model.save_pretrained(tmp_path)
    again = load(backend, tmp_path)
    images = different_pairs()[:1]
    assert torch.equal(model(pixel_values=images).matches, again(pixel_values=images).matches)
    assert LightGlueImageProcessor.from_pretrained(tmp_path).size == {"longest_edge": 64}


@torch.no_grad()
def test_exported_while_loading(backend, checkpoint, tmp_path):
    options = ExportOptions(parts=("matcher",), num_keypoints=50, validate=False)
    model = load(backend, checkpoint, export=True, export_options=options)
    assert model.config.keypoint_detector_config.max_keypoints == 50
    features = static(checkpoint).extract_features(different_pairs())
    chosen = [features[name][:, :, :50] for name in ("keypoints", "descriptors", "mask")]
    found = model.match_features(*chosen, features.image_sizes)
    wanted = static(checkpoint).match_features(*chosen, features.image_sizes)
    assert_same({name: value.numpy() for name, value in found.items()}, wanted)
    model.save_pretrained(tmp_path)
    assert load(backend, tmp_path).axes("matcher")["mask"] == [None, 2, 50]


def test_errors_say_what_is_wrong(backend, adaptive, parts, tmp_path):
    whole, halves = load(backend, adaptive), load(backend, parts)
    images = different_pairs()[:1]
    with pytest.raises(ValueError, match="no graph of the detector here: export it with --part detector"):
        whole.extract_features(images)
    with pytest.raises(ValueError, match="image_sizes are required"):
        halves.match_features(torch.zeros(1, 2, 5, 2), torch.zeros(1, 2, 5, 16))
    with pytest.raises(ValueError, match=r"descriptors must have shape \(1, 2, 5, 16\), got \(1, 2, 5, 9\)"):
        halves.match_features(torch.zeros(1, 2, 5, 2), torch.zeros(1, 2, 5, 9), image_sizes=torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="either pixel_values"):
        whole()
    with pytest.raises(ValueError, match="keypoints, mask cannot be given with pixel_values"):
        whole(images, keypoints=torch.zeros(1, 2, 5, 2), mask=torch.ones(1, 2, 5))
    if backend == "onnx":
        with pytest.raises(ValueError, match=r"has no NoSuchProvider here, only .*CPUExecutionProvider"):
            load(backend, adaptive, provider="NoSuchProvider")
    else:
        with pytest.raises(ValueError, match="no device NPU here"):
            load(backend, adaptive, device="NPU")


def test_openvino_reshaped_half_and_compiled(checkpoint, tmp_path):
    for package in NEEDS["openvino"]:
        pytest.importorskip(package)
    LightGlueForKeypointMatching.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    LightGlueImageProcessor(size={"height": 48, "width": 64}).save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out", "openvino", ExportOptions(validate=False))
    images = different_pairs()[:2]
    with torch.no_grad():
        wanted = static(checkpoint)(pixel_values=images)
    model = load("openvino", tmp_path / "out", compile=False)
    assert model.request is None
    model.reshape(2, 48, 64)
    model.compile()
    assert model.axes("pipeline") == {"pixel_values": [2, 2, 3, 48, 64]}
    assert_same({name: value.numpy() for name, value in model(pixel_values=images).items()}, wanted)
    with pytest.raises(ValueError, match=r"pixel_values must be \(2, 2, 3, 48, 64\)"):
        model(pixel_values=images[:1])
    with pytest.raises(ValueError, match="images that fill pixel_values"):
        model(pixel_values=images, image_sizes=torch.full((2, 2, 2), 40))
    model.save_pretrained(tmp_path / "fixed")
    assert load("openvino", tmp_path / "fixed", compile=False).axes("pipeline") == model.axes("pipeline")
    halved = model.half()(pixel_values=images)
    n = min(halved.matches.shape[-1], wanted.matches.shape[-1])  # columns of nothing but padding may be left out
    assert (halved.matches[..., :n] == wanted.matches[..., :n]).float().mean() > 0.8


@torch.no_grad()
def test_openvino_chooses_a_device(checkpoint):
    for package in NEEDS["openvino"]:
        pytest.importorskip(package)
    options = ExportOptions(validate=False)
    model = load("openvino", checkpoint, export=True, export_options=options, device="AUTO", compile=False)
    assert model.engine.endswith("on AUTO")
    images = different_pairs()[:1]
    found = model(pixel_values=images)
    assert_same({name: value.numpy() for name, value in found.items()}, static(checkpoint)(pixel_values=images))
    model.to("CPU")
    model.compile()
    assert model.request.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"  # ov_config has arrived


@torch.no_grad()
def test_openvino_quantised_while_loading(tmp_path):
    """Optimum's options for weights in eight bits, on what is exported then and on what was exported before."""
    for package in (*NEEDS["openvino"], "nncf"):
        pytest.importorskip(package)
    from optimum.intel import OVWeightQuantizationConfig

    tiny = bundled_checkpoint("tiny")
    features = random_features(static(tiny), 1, 100, 48, 64, seed=0)
    features = {name: torch.from_numpy(array) for name, array in features.items()}
    wanted = static(tiny).match_features(**features).matches
    options = ExportOptions(parts=("matcher",), validate=False)
    export(tiny, tmp_path / "out", "openvino", options)
    symmetric = OVWeightQuantizationConfig(bits=8, sym=True)
    for weights, directory, kwargs in (
        ("u8", tiny, {"export": True, "export_options": options, "load_in_8bit": True}),
        ("i8", tmp_path / "out", {"quantization_config": symmetric}),
    ):
        model = load("openvino", directory, **kwargs)
        model.save_pretrained(tmp_path / weights)
        for quantised in (model, load("openvino", tmp_path / weights)):
            large = [op for op in quantised.model.get_ops() if op.get_type_name() == "Constant" and len(op.shape) > 1]
            assert sum(op.get_element_type().get_type_name() == weights for op in large) > 20
            matches = quantised.match_features(**features).matches
            assert (matches == wanted)[wanted >= 0].float().mean() > 0.9


def test_the_command_matches_with_exported_graphs(backend, tmp_path, capsys):
    canvas = render_textures(1, 140, 180, seed=5)[0]
    for name, pixels in (("a.png", canvas[:120, :160]), ("b.png", canvas[12:132, 9:169])):
        Image.fromarray(pixels).save(tmp_path / name)
    tiny, out = bundled_checkpoint("tiny"), tmp_path / "out"
    options = ExportOptions(adaptive=True, num_keypoints=300, validate=False)
    export(tiny, out, backend, options)
    photos = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    saved_as = [str(tmp_path / "torch.json"), str(tmp_path / "graph.json")]
    common = ["match", *photos, "--save"]
    assert main([*common, saved_as[0], "--max-keypoints", "300", "--longest-edge", "160"]) == 0
    assert main([*common, saved_as[1], "--model", str(out), "--longest-edge", "160"]) == 0
    printed = capsys.readouterr().out
    assert {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[backend] in printed
    wanted, found = (json.loads(open(name).read()) for name in saved_as)
    assert found["stop"] == wanted["stop"]
    pairs = [
        {tuple(round(x, 2) for point in pair for x in point) for pair in zip(r["keypoints0"], r["keypoints1"])}
        for r in (wanted, found)
    ]
    assert len(pairs[0] & pairs[1]) > 0.97 * len(pairs[0] | pairs[1])
    assert len(pairs[0]) > 50
    assert main([*common, saved_as[1], "--model", str(out), "--max-keypoints", "100"]) == 2
    assert "300 keypoints" in capsys.readouterr().err

    pytest.importorskip("poselib")
    name, models = str(out), app.OneModel(lambda name: load_matcher(name, parser().parse_args(["app"])))
    asked = app.chosen(name, app.Settings(64, 160, 0.0, 1, 1, turns=4))  # of which it takes 160 and the threshold
    shown = app.match_photos_at(photos, name, asked._replace(threshold=app.settings_of(name).threshold), models)
    assert shown.metadata["max_keypoints"] == 300
    np.testing.assert_allclose(shown.arrays["keypoints1"], found["keypoints1"], atol=1e-3)
    for wrong, message in (
        ({"max_keypoints": 64}, "300 keypoints"),
        ({"depth_confidence": 1}, "a depth_confidence of"),
    ):
        with pytest.raises(InputError, match=message):
            app.match_photos_at(photos, name, asked._replace(threshold=0.5, **wrong), models)
    with pytest.raises(InputError, match="exported with the threshold"):
        app.match_photos_at(photos, name, asked, models)

    evaluate = [
        "evaluate",
        "--model",
        str(out),
        "--methods",
        "model",
        "--max-keypoints",
        "300",
        "--longest-edge",
        "160",
    ]
    assert main([*evaluate, "--pair", *photos]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["data", "figure", "out"]
    assert rows[2][1:] == ["matches", str(len(found["keypoints0"]))]


# -- what is given and what comes back


@torch.no_grad()
def test_arrays_nothing_and_columns_as_in_pytorch(backend, adaptive, parts, checkpoint):
    """NumPy arrays, no keypoints, no pairs, and as many columns as the image with the most keypoints has."""
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    whole, halves = load(backend, adaptive), load(backend, parts)
    images = different_pairs()
    for runtime in (whole, halves):
        for rows in (slice(3), slice(0), slice(5, 6)):  # three pairs, none, and one of black images
            wanted = (model if runtime is whole else static(checkpoint))(pixel_values=images[rows])
            n = wanted.mask.sum(-1).max() if wanted.mask.numel() else 0
            found = runtime(pixel_values=images[rows].numpy())
            for name in ("matches", "matching_scores", "prune", "mask", "keypoints", "stop"):
                shape = list(wanted[name].shape)
                shape[2:3] = [n] * (len(shape) > 2)
                assert list(found[name].shape) == shape, name
                assert found[name].dtype == wanted[name].dtype, name
    for pairs, n in ((0, 5), (2, 0), (0, 0)):
        given = [torch.zeros(pairs, 2, n, 2), torch.zeros(pairs, 2, n, 16), None, torch.ones(pairs, 2, 2)]
        wanted = static(checkpoint).match_features(*given)
        found = halves.match_features(*(None if value is None else value.numpy() for value in given))
        for name in ("matches", "matching_scores", "prune", "mask", "keypoints", "stop"):
            assert found[name].shape == wanted[name].shape, name
            assert found[name].dtype == wanted[name].dtype, name
    assert halves.extract_features(images[:0, 0]).descriptors.shape == (0, 0, 16)


def test_values_are_refused_as_in_pytorch(backend, adaptive, parts, checkpoint):
    model = LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    images = different_pairs()[:1]
    broken = images.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    points, descriptors, sizes = torch.zeros(1, 2, 5, 2), torch.zeros(1, 2, 5, 16), torch.full((1, 2, 2), 48)
    for call, message in (
        (lambda m: m(pixel_values=broken), "pixel_values contains NaN or Inf"),
        (lambda m: m(pixel_values=images, image_sizes=0 * sizes), "must lie between"),
        (lambda m: m(pixel_values=images, image_sizes=10 * sizes), "must lie between"),
        (lambda m: m(pixel_values=images, image_sizes=sizes[:, :1]), "image_sizes must have shape"),
    ):
        for kind in (model, load(backend, adaptive)):
            with pytest.raises(ValueError, match=message):
                call(kind)
    for call, message in (
        (lambda m: m.match_features(points / 0, descriptors, None, sizes), "keypoints contains NaN or Inf"),
        (lambda m: m.match_features(points, descriptors, None, 0 * sizes), "must be positive"),
        (lambda m: m.match_features(points, descriptors + 1e19, None, sizes), "beyond"),
        (lambda m: m.match_features(points[:, :1], descriptors, None, sizes), r"keypoints must be \(batch, 2, n, 2\)"),
    ):
        for kind in (model, load(backend, parts)):
            with pytest.raises(ValueError, match=message):
                call(kind)


def test_one_model_in_several_threads(backend, parts):
    model, images = load(backend, parts, **({"compile": False} if backend == "openvino" else {})), different_pairs()

    def matches(i):
        return model(pixel_values=images[i : i + 1]).matches

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(matches, [0, 1, 2, 3, 4, 5] * 3))
    for i, each in enumerate(found):
        assert torch.equal(each, matches(i % 6))


# -- how it is loaded


def test_unknown_keywords_are_errors(backend, adaptive):
    for keyword in ({"provder": "CPUExecutionProvider"}, {"trust_remote_code": True}, {"file_name": "model.onnx"}):
        with pytest.raises(TypeError, match=f"does not know {next(iter(keyword))}; it takes .*revision"):
            load(backend, adaptive, **keyword)
    with pytest.raises(ValueError, match="give export=True"):
        load(backend, adaptive, export_options=ExportOptions())


def test_directories(backend, adaptive, checkpoint, tmp_path):
    """A subfolder of a directory; graphs of the other runtime; neither graphs nor a model."""
    shutil.copytree(adaptive, tmp_path / "a" / "b")
    model = load(backend, tmp_path, subfolder="a/b")
    assert model.axes("pipeline")["pixel_values"][:3] == [1, 2, 3]
    other = "onnx" if backend == "openvino" else "openvino"
    for package in NEEDS[other]:
        pytest.importorskip(package)
    with pytest.raises(ValueError, match=f"load it with {NAMES[backend]}"):
        load(other, adaptive)
    shutil.copy(adaptive / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="and no model to export either"):
        load(backend, tmp_path)


def test_providers_and_devices_of_onnx_runtime(checkpoint, tmp_path):
    for package in NEEDS["onnx"]:
        pytest.importorskip(package)
    export(checkpoint, tmp_path, "onnx", ExportOptions(("matcher",), validate=False))
    for providers in (["CPUExecutionProvider"], [("CPUExecutionProvider", {})]):
        model = load("onnx", tmp_path, providers=providers)
        assert "CPUExecutionProvider" in model.engine
    assert model.to("cpu") is model
    for name in ("CUDAExecutionProvider", "NoSuchProvider"):
        if name not in onnxruntime_providers():
            with pytest.raises(ValueError, match=f"no {name} here, only"):
                load("onnx", tmp_path, providers=[name, "CPUExecutionProvider"])
    if "CUDAExecutionProvider" not in onnxruntime_providers():
        with pytest.raises(ValueError, match="no CUDAExecutionProvider here"):
            model.to("cuda")
    with pytest.raises(ValueError, match="cpu or cuda"):
        model.to("mps")
    with pytest.raises(ValueError, match="either provider"):
        load("onnx", tmp_path, providers=["CPUExecutionProvider"], provider="CPUExecutionProvider")


def onnxruntime_providers():
    import onnxruntime

    return onnxruntime.get_available_providers()


def test_devices_of_openvino(checkpoint, tmp_path):
    for package in NEEDS["openvino"]:
        pytest.importorskip(package)
    export(checkpoint, tmp_path, "openvino", ExportOptions(("matcher",), validate=False))
    given = torch.rand(1, 2, 9, 2), torch.rand(1, 2, 9, 16), None, torch.ones(1, 2, 2)
    wanted = static(checkpoint).match_features(*given).matches
    for device in ("CPU", "cpu", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU"):
        model = load("openvino", tmp_path, device=device)
        assert torch.equal(model.match_features(*given).matches, wanted), device
    for device in ("cuda", torch.device("cuda:0"), "HETERO:NPU,CPU", "MULTI:CPU,TPU"):
        with pytest.raises(ValueError, match=r"OpenVINO has no device .* here, only CPU"):
            model.to(device)
    assert model.to(torch.device("cpu")).engine.endswith("on CPU")
    assert torch.equal(model.match_features(*given).matches, wanted)


def test_openvino_remembers_a_bounded_number_of_shapes(checkpoint, tmp_path, monkeypatch):
    for package in NEEDS["openvino"]:
        pytest.importorskip(package)
    from optimum.intel.openvino.modeling import OVModel

    compile_model, settings = OVModel._compile_model, []

    def recorded(model, device=None, ov_config=None, model_save_dir=None):
        settings.append(ov_config)
        return compile_model(model, device, ov_config, model_save_dir)

    monkeypatch.setattr(OVModel, "_compile_model", staticmethod(recorded))
    export(checkpoint, tmp_path, "openvino", ExportOptions(("matcher",), validate=False))
    name = "CPU_RUNTIME_CACHE_CAPACITY"
    load("openvino", tmp_path)
    load("openvino", tmp_path, ov_config={name: "5000"})
    load("openvino", tmp_path, device="AUTO:CPU")
    assert 0 < int(settings[0][name]) < 5000
    assert settings[1][name] == "5000"
    assert name not in settings[2]  # devices other than the CPU do not know it
