"""Methods against what they are made of, and when a prediction is read instead of made."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf.evaluation import match_precision, methods
from lightglue_hf.evaluation.datasets import BUILT_IN
from lightglue_hf.evaluation.methods import (
    Method,
    Prediction,
    cached_prediction,
    lightglue,
    match_nearest,
    nearest_rootsift,
    rootsift,
    to_prediction,
)
from lightglue_hf.image_processing_lightglue import LightGlueImageProcessor
from lightglue_hf.utils.files import write_atomically

from ..tiny import whole_model


@pytest.fixture(scope="module")
def images():
    """Noise, and the same noise moved, of another size."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    return Image.fromarray(pixels), Image.fromarray(pixels[:, 8:])


@pytest.fixture(scope="module")
def model():
    return whole_model(max_keypoints=60)


@pytest.fixture(scope="module")
def processor():
    return LightGlueImageProcessor(size={"longest_edge": 96})


# -- the model and its detector ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest_edge", [None, 64])
def test_lightglue_is_the_model_between_processor_and_post_processing(model, processor, images, longest_edge):
    prediction = lightglue("", model, processor, longest_edge).predict(*images)
    options = {} if longest_edge is None else {"size": longest_edge}
    with torch.inference_mode():
        outputs = model(**processor(list(images), return_tensors="pt", **options))
    (expected,) = processor.post_process_keypoint_matching(outputs, [[(60, 90), (60, 82)]])
    assert len(prediction.matches) > 0
    assert [len(prediction.keypoints0), len(prediction.keypoints1)] == outputs.mask[0].sum(dim=1).tolist()
    for found, name in zip((*prediction.matched, prediction.matching_scores), expected):
        np.testing.assert_allclose(found, expected[name].numpy(), rtol=1e-5, atol=1e-5)
    assert [array.dtype for array in prediction] == [np.float32, np.float32, np.int64, np.float32]


def test_a_longest_edge_is_for_a_processor_that_does_not_resize_too(model, processor, images):
    not_resizing = LightGlueImageProcessor(do_resize=False)
    for expected, found in zip(*(lightglue("", model, p, 64).predict(*images) for p in (processor, not_resizing))):
        assert len(expected) > 0
        np.testing.assert_array_equal(found, expected)


class OnMetal(torch.Tensor):
    """A tensor on a device without double precision."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        if func is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return result


def test_a_device_needs_no_double_precision(model, processor, images):
    with torch.no_grad():
        outputs = model(**processor(list(images), return_tensors="pt"))
    expected = to_prediction(outputs, images)
    on_metal = type(outputs)(**{name: value.as_subclass(OnMetal) for name, value in outputs.items()})
    for array, other in zip(to_prediction(on_metal, images), expected):
        assert len(array) > 0
        np.testing.assert_array_equal(array, other)


def test_detector_with_nearest_neighbours(model, processor, images):
    prediction = lightglue("", model, processor, nearest=True).predict(*images)
    with torch.inference_mode():
        features = model.extract_features(**processor(list(images), return_tensors="pt"))
    counts = features.mask[0].sum(dim=1).tolist()
    descriptors = [features.descriptors[0, i, :count].numpy() for i, count in enumerate(counts)]
    similarity = descriptors[0] @ descriptors[1].T
    expected = [
        (i, j)
        for i in range(counts[0])
        for j in range(counts[1])
        if similarity[i, j] == similarity[i].max() == similarity[:, j].max()
    ]
    assert len(expected) > 5
    assert prediction.matches.tolist() == [list(pair) for pair in expected]
    np.testing.assert_allclose(prediction.matching_scores, [similarity[pair] for pair in expected], atol=1e-5)
    assert [len(prediction.keypoints0), len(prediction.keypoints1)] == counts


@pytest.mark.parametrize("nearest", [False, True])
def test_nothing_in_black_images(model, processor, images, nearest):
    black = Image.new("RGB", (50, 40))
    for pair in ((black, images[0]), (images[0], black), (black, black)):
        prediction = lightglue("", model, processor, nearest=nearest).predict(*pair)
        assert prediction.matches.shape == (0, 2)
        assert prediction.matched[0].shape == prediction.matched[1].shape == (0, 2)


# -- RootSIFT and nearest neighbours ----------------------------------------------------------------------------------


def test_match_nearest_is_mutual():
    descriptors0 = np.eye(4)[[0, 1, 1, 3]] + 0.01 * np.eye(4)[[1, 1, 0, 0]]
    descriptors1 = np.eye(4)[[1, 0, 2]]
    assert match_nearest(descriptors0, descriptors1).tolist() == [[0, 1], [1, 0]]
    assert match_nearest(descriptors0, descriptors1[:0]).shape == (0, 2)
    assert match_nearest(descriptors0[:0], descriptors1).shape == (0, 2)


def test_match_nearest_ratio_is_of_distances():
    def at(distance):  # a unit vector at this distance from (1, 0)
        cosine = 1 - distance**2 / 2
        return [cosine, (1 - cosine**2) ** 0.5]

    query = np.array([[1.0, 0.0]])
    descriptors = np.array([at(0.4), at(0.54)])  # ratio .74, of squares .55
    assert len(match_nearest(query, descriptors, ratio=0.75)) == 1
    assert len(match_nearest(query, descriptors, ratio=0.73)) == 0
    assert len(match_nearest(query, descriptors)) == 1


def test_rootsift_descriptors_are_roots_of_unit_length():
    pytest.importorskip("cv2")
    image = pytest.importorskip("skimage.data").camera()
    keypoints, descriptors = rootsift(image, 100)
    assert keypoints.shape == (100, 2)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, rtol=1e-5)
    keypoints, descriptors = rootsift(np.zeros((32, 48, 3), np.uint8))
    assert keypoints.shape == (0, 2)
    assert descriptors.shape == (0, 128)


def test_rootsift_on_the_stereo_pair():
    """The figure that others are held against: about 335 correct matches at a precision of .92."""
    pytest.importorskip("cv2")
    pytest.importorskip("skimage")
    (pair,) = BUILT_IN["stereo"]()
    prediction = nearest_rootsift("", 1024, ratio=0.8).predict(*pair.images)
    result = match_precision(*prediction.matched, pair.truth.values)
    assert 320 <= result.correct <= 350
    assert 0.9 <= result.precision <= 0.95


def test_rootsift_of_blank_images_and_of_any_mode(images):
    pytest.importorskip("cv2")
    method = nearest_rootsift("", 100)
    assert method.predict(Image.new("L", (48, 32)), Image.new("L", (1, 1))).matches.shape == (0, 2)
    grey = images[0].resize((180, 120)).convert("L")
    floats = Image.fromarray(np.asarray(grey, np.float32) / 255)  # white is 1
    prediction = method.predict(grey, floats)
    np.testing.assert_array_equal(prediction.keypoints0, prediction.keypoints1)
    assert len(prediction.matches) > 10
    np.testing.assert_allclose(prediction.matching_scores, 1, rtol=1e-5)


# -- predictions in files ---------------------------------------------------------------------------------------------


class Counter:
    """A method that says how often it was asked, in `asked` and in its answer."""

    def __init__(self, fingerprint="a"):
        self.asked = 0
        self.method = Method("counter", fingerprint, self.predict)

    def predict(self, image0, image1):
        self.asked += 1
        points = np.full((2, 2), self.asked, np.float32)
        return Prediction(points, points, np.array([[1, 0]]), np.ones(1, np.float32))


def same(prediction, other):
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(prediction, other, strict=True))


def test_a_prediction_is_made_once(tmp_path, images):
    counter = Counter()
    cache = tmp_path / "new" / "cache"
    first, second = (cached_prediction(counter.method, images, cache) for _ in range(2))
    assert counter.asked == 1
    assert same(first, second)
    renamed = replace(counter.method, name="other")
    copies = tuple(image.copy() for image in images)
    assert same(cached_prediction(renamed, copies, cache), first)
    assert counter.asked == 1
    (path,) = cache.iterdir()
    assert path.suffix == ".npz"


def test_without_a_cache_it_is_made_every_time(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counter = Counter()
    for _ in range(2):
        cached_prediction(counter.method, images)
    assert counter.asked == 2
    assert list(tmp_path.iterdir()) == []


def test_other_images_and_other_methods_are_predicted_anew(tmp_path, images):
    counter = Counter()
    first, second = images
    changed = first.copy()
    changed.putpixel((3, 3), (0, 1, 2))
    black = Image.new("L", (8, 2)), Image.new("L", (4, 4)), Image.new("I;16", (4, 2))  # the same bytes
    pairs = [(first, second), (second, first), (first, first), (changed, second), (first, second.convert("L"))]
    pairs += [(image, first) for image in black]
    for pair in pairs:
        cached_prediction(counter.method, pair, tmp_path)
    assert counter.asked == len(pairs)
    other = Counter(fingerprint="b")
    cached_prediction(other.method, images, tmp_path)
    assert other.asked == 1
    assert len(list(tmp_path.iterdir())) == len(pairs) + 1


@pytest.mark.parametrize("break_file", ["truncate", "empty", "other"])
def test_a_broken_file_is_made_again(tmp_path, images, break_file):
    counter = Counter()
    cached_prediction(counter.method, images, tmp_path)
    (path,) = tmp_path.iterdir()
    if break_file == "other":
        np.savez(path, something=np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[:100] if break_file == "truncate" else b"")
    cached_prediction(counter.method, images, tmp_path)
    assert counter.asked == 2
    cached_prediction(counter.method, images, tmp_path)
    assert counter.asked == 2


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]


def test_a_fingerprint_tells_models_and_settings_apart(processor):
    def fingerprint(change=lambda model: None, processor=processor, seed=13, **options):
        model = whole_model(max_keypoints=60, seed=seed)
        change(model)
        return lightglue("", model, processor, **options).fingerprint

    def nudge(model):
        model.positional_encoder.projector.weight.data[0, 0] += 1e-6

    def set_keypoints(model):
        model.config.keypoint_detector_config.max_keypoints = 61

    def set_threshold(model):
        model.config.filter_threshold = 0.3

    same = [fingerprint(), fingerprint(lambda model: setattr(model.config, "_name_or_path", "elsewhere"))]
    others = [
        fingerprint(seed=14),
        fingerprint(nudge),
        fingerprint(set_keypoints),
        fingerprint(set_threshold),
        fingerprint(lambda model: model.half()),
        fingerprint(processor=LightGlueImageProcessor(size={"longest_edge": 97})),
        fingerprint(longest_edge=64),
        fingerprint(nearest=True),
    ]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 1 + len(others)


def test_a_fingerprint_tells_versions_of_the_code_apart(model, processor, monkeypatch):
    before = lightglue("", model, processor).fingerprint
    sources = methods._sources()
    for marker in (
        "class SuperPointConfig",
        "class LightGlueConfig",
        "def match_features",
        "def load_image",
        "rootsift",
    ):
        assert sum(marker in source for source in sources) >= 1
    monkeypatch.setattr(methods, "_sources", lambda: [*sources[:-1], sources[-1] + "# changed"])
    assert lightglue("", model, processor).fingerprint != before


def test_a_fingerprint_tells_baselines_apart():
    pytest.importorskip("cv2")
    made = [nearest_rootsift("", *settings).fingerprint for settings in ((10,), (11,), (10, 0.8), (10, 0.7))]
    assert len(set(made)) == 4
    assert nearest_rootsift("other", 10).fingerprint == made[0]


def test_without_opencv_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"cv2 is not installed: install lightglue-hf\[eval\]"):
        nearest_rootsift("", 10)
