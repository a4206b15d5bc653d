"""Graphs in the layouts of the programs that run them: really run by those that can be had, and by their contract.

OpenCV 5 runs them itself. COLMAP was not run: its wheels have no ONNX Runtime; what it checks and computes around a
graph is restated here on ONNX Runtime. The page in a browser has its own tests.
"""

import json
import re

import numpy as np
import pytest
import torch

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint
from lightglue_hf.cli import main
from lightglue_hf.detectors import configuration_class
from lightglue_hf.export import ExportError, ExportOptions, export
from lightglue_hf.export import consumers as module
from lightglue_hf.export.check import photos, random_features

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
cv2 = pytest.importorskip("cv2")

needs_opencv5 = pytest.mark.skipif(not hasattr(cv2, "LightGlueMatcher"), reason="needs OpenCV 5")

DETECTORS = {
    "aliked-n16rot": ("aliked", {}),
    "aliked-n32": ("aliked", {"num_sample_positions": 32}),
    "disk": ("disk", {}),
    "superpoint": ("superpoint", {}),
    "xfeat": ("xfeat", {}),
    "sift": ("sift", {}),
}


def saved(directory, name):
    """A matcher of random weights with a detector; of what it finds something matches."""
    torch.manual_seed(0)
    detector, options = DETECTORS[name]
    detector = configuration_class(detector)(max_keypoints=200, keypoint_threshold=0.0, **options)
    config = LightGlueConfig(
        detector,
        descriptor_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        filter_threshold=0.1,
        add_scale_ori=name == "sift",
        depth_confidence=-1,
        width_confidence=-1,
    )
    model = LightGlueForKeypointMatching(config)
    model.positional_encoder.projector.weight.data.normal_(std=3.0)  # so that distances count
    for layer in model.match_assignment_layers:
        layer.final_projection.weight.data.normal_(std=0.6)
    model.save_pretrained(directory)
    LightGlueImageProcessor(**detector.processor_settings).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`(model, directory)` of a detector's name and a consumer; each is exported once."""
    made = {}

    def of(name, consumer, **options):
        key = (name, consumer, *options.items())
        if key not in made:
            directory = tmp_path_factory.mktemp(f"{name}-{consumer}")
            source = bundled_checkpoint(name) if name == "tiny" else saved(directory / "model", name)
            # of random weights scores are nearly equal, and a black picture has no descriptors
            validate = name in ("tiny", "sift") and consumer != "web"
            options = ExportOptions(consumer=consumer, validate=validate, **options)
            checks = export(source, directory / "out", "onnx", options)
            assert all(result.compared > 3 for result in checks)
            model = LightGlueForKeypointMatching.from_pretrained(source).eval().with_all_layers()
            made[key] = model, directory / "out"
        return made[key]

    return of


def features_of(model, n0, n1, sizes, seed=1):
    """Features of a pair without padding, `(n, ...)` arrays of each image, and PyTorch's matches of them."""
    features = random_features(model, 1, max(n0, n1), *sizes[0], seed=seed)
    features["image_sizes"] = np.array([sizes])
    features["mask"] = (np.arange(max(n0, n1)) < [[[n0], [n1]]]).astype(np.int32)
    with torch.no_grad():
        wanted = model.match_features(**{name: torch.from_numpy(value) for name, value in features.items()})
    images = [
        {name: values[0, i, :n] for name, values in features.items() if values.ndim > 2}
        for i, n in enumerate((n0, n1))
    ]
    matches = wanted.matches[0, 0, :n0].numpy()
    assert (matches >= 0).any()
    return images, matches, wanted.matching_scores[0, 0, :n0].numpy()


# -- OpenCV


def matched_by_opencv(matcher, images, sizes):
    matcher.setPairInfo(*(image["keypoints"] for image in images), *sizes)
    found = matcher.match(*(image["descriptors"] for image in images))
    return {(one.queryIdx, one.trainIdx): 1 - one.distance for one in found}


def assert_pairs(found, matches, scores):
    wanted = {(i, int(j)): scores[i] for i, j in enumerate(matches) if j >= 0}
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[pair] for pair in wanted], list(wanted.values()), atol=1e-4)


@needs_opencv5
@pytest.mark.parametrize("name", ["aliked-n16rot", "disk", "tiny"])
def test_opencv_matches(exported, name):
    """Photos of any proportions by squares of their longer side; one graph for any numbers of keypoints."""
    model, out = exported(name, "opencv", parts=("matcher",))
    matcher = cv2.LightGlueMatcher.create(str(out / "opencv_matcher.onnx"))
    for n0, n1, shapes in (
        (60, 60, ((64, 64), (64, 64))),
        (70, 50, ((48, 96), (48, 96))),
        (30, 90, ((48, 96), (120, 40))),
    ):
        images, matches, scores = features_of(model, n0, n1, shapes)
        squares = [(max(shape), max(shape)) for shape in shapes]
        assert_pairs(matched_by_opencv(matcher, images, squares), matches, scores)


@needs_opencv5
def test_opencv_matches_photos_of_known_proportions(exported):
    """Told their size, OpenCV stretches them; the graph undoes it."""
    model, out = exported("superpoint", "opencv", height=120, width=240)
    matcher = cv2.LightGlueMatcher.create(str(out / "opencv_matcher.onnx"))
    images, matches, scores = features_of(model, 70, 50, ((48, 96), (48, 96)))
    assert_pairs(matched_by_opencv(matcher, images, [(96, 48)] * 2), matches, scores)
    assert (
        matched_by_opencv(matcher, images, [(96, 96)] * 2).keys()
        != matched_by_opencv(matcher, images, [(96, 48)] * 2).keys()
    )


@needs_opencv5
@pytest.mark.parametrize("name", ["aliked-n16rot", "disk"])
def test_opencv_detects(exported, name):
    """Photos of the size that the network sees: keypoints, scores and descriptors are PyTorch's."""
    model, out = exported(name, "opencv", height=96, width=128)
    height, width = 96, 128
    photo = np.ascontiguousarray(
        (photos(1, height, width, seed=2)[0, 0] * 255).round().astype(np.uint8).transpose(1, 2, 0)
    )
    file = str(out / "opencv_detector.onnx")
    if name == "disk":
        detector = cv2.DISK.create(file, imageSize=(width, height))
    else:
        params = cv2.ALIKED.Params()
        params.inputSize = (width, height)
        detector = cv2.ALIKED.create(file, params)
    keypoints, descriptors = detector.detectAndCompute(photo, None)
    with torch.no_grad():
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
        wanted = model.keypoint_detector.extract_features(pixels)
    assert len(keypoints) == int(wanted.mask.sum()) > 50
    points = cv2.KeyPoint.convert(keypoints)
    distances = np.linalg.norm(points[:, None] - wanted.keypoints[0].numpy(), axis=-1)
    nearest = distances.argmin(1)
    near = distances.min(1) < 1e-2
    assert near.mean() > 0.95  # of random weights some scores are all but equal
    cosines = (descriptors * wanted.descriptors[0].numpy()[nearest]).sum(1)
    np.testing.assert_allclose(cosines[near], 1, atol=1e-4)
    responses = np.array([keypoint.response for keypoint in keypoints])
    np.testing.assert_allclose(responses[near], wanted.scores[0].numpy()[nearest][near], rtol=1e-3, atol=1e-4)


@needs_opencv5
@pytest.mark.parametrize("name", ["aliked-n16rot", "disk"])
def test_the_lines_of_its_card(exported, name, tmp_path, monkeypatch):
    """They run as they stand, beside two photos."""
    model, out = exported(name, "opencv", height=96, width=128)
    pictures = (photos(1, 96, 128, seed=3)[0] * 255).round().astype(np.uint8)
    for file, picture in zip(("left.jpg", "right.jpg"), pictures):
        cv2.imwrite(str(tmp_path / file), picture.transpose(1, 2, 0)[..., ::-1])
    for file in out.glob("*.onnx"):
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(lines.splitlines()) <= 15
    names = {}
    exec(lines, names)
    loaded = [torch.from_numpy(x[..., ::-1].copy()).permute(2, 0, 1) / 255 for x in names["photos"]]
    with torch.no_grad():
        features = model.extract_features(torch.stack(loaded)[None])
        wanted = model.match_features(features)
    expected = int((wanted.matches[0, 0] >= 0).sum())
    assert expected > 0
    assert abs(len(names["matches"]) - expected) <= 1 + 0.1 * expected  # of random weights scores are nearly equal


# -- COLMAP


def check_node(node, name, shape):
    """As COLMAP's ThrowCheckONNXNode: -1 is any length."""
    assert node.name == name
    assert len(node.shape) == len(shape), f"{name}: rank {len(node.shape)}"
    for length, expected in zip(node.shape, shape):
        assert expected in (-1, length), f"{name}: {node.shape}"


def colmap_extractor(file, dim=128):
    """A session that COLMAP's ALIKED extractor takes: three inputs and three outputs, these names, ranks and types."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    image, most, least = session.get_inputs()
    check_node(image, "image", (-1, 3, -1, -1))
    check_node(most, "max_keypoints", ())
    check_node(least, "min_score", ())
    assert [node.type for node in (image, most, least)] == ["tensor(float)", "tensor(int64)", "tensor(float)"]
    keypoints, descriptors, scores = session.get_outputs()
    check_node(keypoints, "keypoints", (-1, -1, -1))
    check_node(descriptors, "descriptors", (-1, -1, -1))
    assert descriptors.shape[2] == dim  # it takes the width from here
    check_node(scores, "scores", (-1, -1))
    assert {node.type for node in (keypoints, descriptors, scores)} == {"tensor(float)"}
    return session


def extracted_by_colmap(session, photo, max_keypoints, min_score):
    """Keypoints in COLMAP's pixels (the corner of the first is (0, 0)) and descriptors of `(h, w, 3)` uint8."""
    height, width = photo.shape[:2]
    canvas = np.pad(photo, ((0, -height % 32), (0, -width % 32), (0, 0)), mode="edge")
    inputs = {
        "image": canvas.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255),
        "max_keypoints": np.array(max_keypoints),
        "min_score": np.array(min_score, np.float32),
    }
    keypoints, descriptors, scores = session.run(None, inputs)
    assert keypoints.shape == (1, scores.shape[1], 2)
    assert descriptors.shape[:2] == scores.shape
    points = (keypoints[0] + 1) * 0.5 * (np.array(canvas.shape[1::-1], np.float32) - 1) + 0.5
    inside = ((points >= 0) & (points < (width, height))).all(1)
    return points[inside], descriptors[0, inside], scores[0, inside]


@pytest.mark.parametrize("name", ["aliked-n16rot", "aliked-n32"])
def test_colmap_extracts(exported, name):
    model, out = exported(name, "colmap")
    session = colmap_extractor(out / "colmap_detector.onnx")
    for height, width in ((96, 128), (90, 117)):
        photo = (photos(1, height, width, seed=2)[0, 0] * 255).round().astype(np.uint8).transpose(1, 2, 0)
        points, descriptors, scores = extracted_by_colmap(session, photo, 2048, 0.0)
        assert (np.diff(scores) <= 0).all(), "the best first"
        if (height, width) == (96, 128):
            with torch.no_grad():
                wanted = model.keypoint_detector.extract_features(
                    torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None]
                )
            assert len(points) == int(wanted.mask.sum()) > 50
            distances = np.linalg.norm(points[:, None] - 0.5 - wanted.keypoints[0].numpy(), axis=-1)
            near = distances.min(1) < 1e-2
            assert near.mean() > 0.95
            cosines = (descriptors * wanted.descriptors[0].numpy()[distances.argmin(1)]).sum(1)
            np.testing.assert_allclose(cosines[near], 1, atol=1e-4)
        few, of_few, _ = extracted_by_colmap(session, photo, 20, 0.0)
        np.testing.assert_array_equal(few, points[: len(few)])
        np.testing.assert_array_equal(of_few, descriptors[: len(few)])
        assert 5 < len(few) <= 20
        least = float(np.median(scores))
        *_, passing = extracted_by_colmap(session, photo, 2048, least)
        np.testing.assert_array_equal(passing, scores[scores > least])


def colmap_matcher(file):
    """A session that COLMAP's LightGlue matcher takes: 6 inputs, or 10, and 2 outputs, these names and ranks."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()
    assert len(inputs) in (6, 10)
    names = ["kpts0", "kpts1", "desc0", "desc1", "image_size0", "image_size1", "scales0", "scales1", "oris0", "oris1"]
    ranks = [3, 3, 3, 3, 2, 2, 2, 2, 2, 2]
    for node, name, rank in zip(inputs, names, ranks):
        check_node(node, name, (-1,) * rank)
        assert node.type == "tensor(float)"
    assert len(outputs) == 2
    check_node(outputs[0], "matches0", (-1,))
    check_node(outputs[1], "mscores0", (-1,))
    assert outputs[0].type in ("tensor(int64)", "tensor(float)")
    assert outputs[1].type == "tensor(float)"
    return session


@pytest.mark.parametrize("name", ["aliked-n16rot", "sift"])
def test_colmap_matches(exported, name):
    model, out = exported(name, "colmap")
    session = colmap_matcher(out / "colmap_matcher.onnx")
    assert len(session.get_inputs()) == (10 if name == "sift" else 6)
    for n0, n1, shapes in ((60, 60, ((64, 64), (64, 64))), (30, 90, ((48, 96), (120, 40))), (1, 90, ((48, 96),) * 2)):
        if n0 > 1:
            images, matches, scores = features_of(model, n0, n1, shapes)
        inputs = {}
        for i, (image, (height, width)) in enumerate(zip(images, shapes)):
            n = (n0, n1)[i]
            inputs[f"kpts{i}"] = image["keypoints"][None, :n]
            inputs[f"desc{i}"] = image["descriptors"][None, :n]
            inputs[f"image_size{i}"] = np.array([[width, height]], np.float32)
            if name == "sift":
                inputs[f"scales{i}"] = image["scales"][None, :n]
                inputs[f"oris{i}"] = image["orientations"][None, :n]
        matches0, mscores0 = session.run(None, inputs)
        assert matches0.shape == mscores0.shape == (n0,)
        assert (matches0 < n1).all()
        if n0 > 1:
            np.testing.assert_array_equal(matches0, matches)
            np.testing.assert_allclose(mscores0[matches0 >= 0], scores[matches >= 0], atol=1e-4)


def test_colmaps_commands(exported):
    for name, words in (
        ("aliked-n16rot", ["ALIKED_N16ROT", "n16rot_model_path colmap_detector.onnx", "ALIKED_LIGHTGLUE"]),
        ("aliked-n32", ["ALIKED_N32", "n32_model_path colmap_detector.onnx", "AlikedMatching.lightglue_model_path"]),
        ("sift", ["SIFT_LIGHTGLUE", "SiftMatching.lightglue_model_path colmap_matcher.onnx"]),
    ):
        card = (exported(name, "colmap")[1] / "README.md").read_text()
        assert all(word in card for word in words)
        assert ("colmap_detector.onnx" in card) == (name != "sift")


# -- a page in a browser


@pytest.mark.parametrize("name", ["xfeat", "tiny"])
def test_web(exported, name):
    """Each image of a size of its own, in colour, and matched as each alone."""
    model, out = exported(name, "web", num_keypoints=200)
    session = onnxruntime.InferenceSession(out / "web_model.onnx", providers=["CPUExecutionProvider"])
    manifest = json.loads((out / "web_model.json").read_text())
    assert list(manifest["inputs"]) == ["image0", "image1"] == [node.name for node in session.get_inputs()]
    assert list(manifest["outputs"]) == [node.name for node in session.get_outputs()]
    assert manifest["inputs"]["image0"] == ["float32", [1, 3, "height0", "width0"]]
    assert manifest["max_keypoints"] == 200
    assert (out / manifest["file"]).is_file()
    model.keypoint_detector.config.max_keypoints = 200
    left, right = photos(1, 96, 128, seed=4)[0]
    colours = np.array([1, 0.9, 0.8], np.float32)[:, None, None]
    images = [left * colours, (right * colours)[:, :90, :117]]
    keypoints0, keypoints1, matches, scores = session.run(None, {f"image{i}": x[None] for i, x in enumerate(images)})
    processor = LightGlueImageProcessor(do_resize=False, do_grayscale=name == "tiny")
    inputs = processor([[image.transpose(1, 2, 0) for image in images]], return_tensors="pt", do_rescale=False)
    with torch.no_grad():
        features = model.extract_features(**inputs)
        wanted = model.match_features(features)
    for found, own, mask in zip((keypoints0, keypoints1), features.keypoints[0].numpy(), features.mask[0]):
        assert len(found) == int(mask.sum()) > 20
        assert len({*rounded(found)} & {*rounded(own[: len(found)])}) > 0.95 * len(found)
    left, right = features.keypoints[0].numpy()
    partners = wanted.matches[0, 0].numpy()
    expected = {*zip(rounded(left[partners >= 0]), rounded(right[partners[partners >= 0]]))}
    found = {*zip(rounded(keypoints0[matches[:, 0]]), rounded(keypoints1[matches[:, 1]]))}
    assert len(found & expected) > 0.9 * len(expected | found) > 0
    assert scores.min() > 0
    black = np.zeros((1, 3, 64, 96), np.float32)
    *_, matches, scores = session.run(None, {"image0": images[0][None], "image1": black})
    assert matches.shape[1] == 2
    assert len(matches) == len(scores)


def rounded(points):
    """`(n, 2)` as tuples that are equal if the points nearly are; of equal scores the order is not."""
    return map(tuple, np.round(points * 4).astype(int).tolist())


# -- the check, and faults


@pytest.mark.parametrize(("consumer", "change"), [("colmap", "sizes"), ("opencv", "pairs")])
def test_the_check_sees_the_layout(consumer, change, tmp_path, monkeypatch):
    """What a program would get from a wrong graph is refused."""
    forward, pairs_of = module.PairMatcher.forward, module.pairs_of
    if change == "sizes":
        monkeypatch.setattr(module.PairMatcher, "forward", lambda self, sizes, *x: forward(self, sizes / 3, *x))
    else:
        monkeypatch.setattr(module, "pairs_of", lambda *x: (pairs_of(*x)[0].flip(1), pairs_of(*x)[1]))
    options = ExportOptions(consumer=consumer, parts=("matcher",), opset=18)
    with pytest.raises(ExportError, match=r"differs from PyTorch|no match in common"):
        export(
            saved(tmp_path / "model", "sift" if consumer == "colmap" else "superpoint"),
            tmp_path / "out",
            "onnx",
            options,
        )
    assert not (tmp_path / "out").exists()


def test_what_a_consumer_does_not_take(tmp_path):
    source = saved(tmp_path / "superpoint", "superpoint")
    with pytest.raises(ValueError, match="COLMAP 4 takes no part of this model"):
        export(source, tmp_path / "out", "onnx", ExportOptions(consumer="colmap"))
    with pytest.raises(ValueError, match="OpenCV 5 takes matcher of this model, not detector"):
        export(source, tmp_path / "out", "onnx", ExportOptions(consumer="opencv", parts=("detector",)))
    with pytest.raises(ValueError, match="graphs for web are ONNX"):
        export(source, tmp_path / "out", "openvino", ExportOptions(consumer="web"))
    source = saved(tmp_path / "aliked", "aliked-n16rot")
    with pytest.raises(ValueError, match="images of any size are given to colmap_"):
        export(source, tmp_path / "out", "onnx", ExportOptions(consumer="colmap", height=96, width=128))
    for options in ({"adaptive": True}, {"batch_size": 2}):
        with pytest.raises(ValueError, match="all layers on one pair"):
            ExportOptions(consumer="opencv", **options)
    with pytest.raises(ValueError, match="consumer must be of opencv, colmap, web"):
        ExportOptions(consumer="unreal")


def test_command(tmp_path, capsys):
    """What it wrote is replaced by the next export, of whatever layout."""
    source, out = saved(tmp_path / "model", "superpoint"), tmp_path / "out"
    for consumer, files in (("web", {"web_model.onnx", "web_model.json"}), ("opencv", {"opencv_matcher.onnx"})):
        assert main(["export", "onnx", str(source), str(out), "--for", consumer, "--no-validate"]) == 0
        written = {file.name for file in out.iterdir()} - {"README.md", "config.json", "preprocessor_config.json"}
        assert written == files
    assert main(["export", "openvino", str(source), str(out), "--for", "web"]) == 2
    assert "graphs for web are ONNX" in capsys.readouterr().err
