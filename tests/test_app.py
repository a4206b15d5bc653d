"""What the app does apart from its page, which app/test_browser.py looks at."""

import itertools
import json
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from lightglue_hf import app
from lightglue_hf.utils.errors import InputError, MissingPackageError


def picture(height=60, width=80, seed=0):
    """Smooth, so that what is resampled twice is still itself."""
    cells = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def difference(image, other):
    return np.abs(np.asarray(image).astype(int) - np.asarray(other).astype(int))


# -- the second photo on the first ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, -1, 1e-3, -1e3])
def test_a_photo_lies_on_itself_whatever_the_scale_of_the_homography(factor):
    first, second = app.overlay(picture(), picture(), factor * np.eye(3))
    assert difference(first, picture()).max() == 0
    assert difference(second, picture()).max() <= 1


def test_a_moved_photo_lies_where_it_belongs_and_beside_it_the_first_is_dark():
    whole = picture(60, 100)
    left, right = whole.crop((0, 0, 80, 60)), whole.crop((20, 0, 100, 60))
    _, warped = app.overlay(left, right, [[1, 0, -20], [0, 1, 0], [0, 0, 1]])
    assert difference(warped.crop((20, 0, 80, 60)), left.crop((20, 0, 80, 60))).max() <= 1
    dark = np.asarray(left.crop((0, 0, 19, 60))) * 0.3
    assert difference(warped.crop((0, 0, 19, 60)), dark.round()).max() <= 1


def test_borders_stay_in_place_when_the_second_photo_is_twice_as_large():
    large = picture().resize((160, 120), Image.Resampling.BICUBIC)
    _, warped = app.overlay(picture(), large, [[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    assert difference(warped, picture()).mean() < 2


def test_what_is_behind_the_camera_is_not_shown():
    """A plane seen at a slant: its horizon is the column 60, beyond which the mathematics goes on within the photo."""
    slanted = np.array([[1.0, 0, 0], [0, 1, 0], [-1 / 60, 0, 1]])
    homography = np.array([[1.0, 0, 2000], [0, 1, 2000], [0, 0, 1]]) @ slanted
    assert 0 < (79 / (1 - 79 / 60)) + 2000 < 4000
    first, warped = app.overlay(picture(), picture(4000, 4000, seed=1), homography)
    dark = (np.asarray(first) * 0.3).round()
    assert difference(np.asarray(warped)[:, 61:], dark[:, 61:]).max() <= 1
    assert difference(np.asarray(warped)[:, :30], dark[:, :30]).mean() > 10


def test_a_homography_that_flattens_all_shows_nothing():
    assert app.overlay(picture(), picture(), np.diag([1.0, 0, 1])) is None


def test_grey_and_transparent_photos_can_be_laid_over():
    first, second = app.overlay(picture().convert("L"), picture().convert("RGBA"), np.eye(3))
    assert first.mode == second.mode == "RGB"


# -- the view ---------------------------------------------------------------------------------------------------------


def test_the_geometry_moves_with_the_photos_to_the_size_they_are_shown_at():
    photos = [picture(3000, 4000), picture(1500, 1000)]
    homography = np.array([[0.5, 0.1, 30], [-0.1, 0.4, 200], [1e-5, 0, 1]])
    point, fundamental = np.array([1234.0, 567.0, 1]), np.random.default_rng(0).normal(size=(3, 3))
    verdict = SimpleNamespace(fundamental=fundamental)
    view = app.to_view(photos, SimpleNamespace(verdict=verdict, homography=homography))
    assert view.images[0].height == view.images[1].height
    assert sum(image.width for image in view.images) <= app.WIDTH

    def shown(point, i):
        scale = np.array(view.images[i].size) / photos[i].size
        return (point[:2] / point[2] + 0.5) * scale - 0.5

    expected = shown(homography @ point, 1)
    found = view.homography @ [*shown(point, 0), 1]
    np.testing.assert_allclose(found[:2] / found[2], expected, atol=1e-6)
    line, in_view = fundamental @ point, view.fundamental @ [*shown(point, 0), 1]
    x, y = 100.0, -(line[0] * 100 + line[2]) / line[1]
    np.testing.assert_allclose(
        in_view @ [*shown(np.array([x, y, 1]), 1), 1] / np.linalg.norm(in_view[:2]), 0, atol=1e-6
    )


def test_a_click_is_on_either_photo_or_beside_them():
    view = app.View((picture(60, 80), picture(60, 40)), None, None)
    assert app.point_at(view, 79, 10) == (0, 79, 10)
    assert app.point_at(view, 80, 10) == (1, 0, 10)
    assert app.point_at(view, 119, 59) == (1, 39, 59)
    for x, y in ((120, 10), (-1, 10), (10, 60)):
        assert app.point_at(view, x, y) is None


# -- photos of strangers ----------------------------------------------------------------------------------------------


def test_large_photos_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "vast.png"
    Image.new("1", (3000, 1000)).save(path)
    Image.init()  # which makes a picture
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=r"^vast\.png: more than the 2 megapixels that are allowed$"):
        app.read_photo(str(path), app.Limits(megapixels=2))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(InputError, match=r"^vast\.png: more than the 50 megapixels that are allowed$"):
            app.read_photo(str(path), app.Limits())
    (tmp_path / "long.png").write_bytes(path.read_bytes() + bytes(2 << 20))
    with pytest.raises(InputError, match=r"^long\.png: more than the 1 MB that are allowed$"):
        app.read_photo(str(tmp_path / "long.png"), app.Limits(megabytes=1))


def test_broken_photos_are_named_without_their_place(tmp_path):
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(InputError, match=r"Cannot read the image text\.jpg: ") as error:
        app.read_photo(str(tmp_path / "text.jpg"), app.Limits())
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(InputError, match="choose two photos"):
        app.read_photo(None, app.Limits())


def test_no_program_is_run_on_a_photo(tmp_path, monkeypatch):
    """Pillow has PostScript read by Ghostscript, whatever the suffix."""
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg", "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(
        InputError, match=r"^Cannot read the image photo\.jpg: cannot identify image file 'photo\.jpg'$"
    ):
        app.read_photo(str(tmp_path / "photo.jpg"), app.Limits())


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_one_model_is_kept_for_one_user_at_a_time():
    loaded, inside = [], []

    def load(name):
        loaded.append(name)
        if name == "broken":
            raise OSError("cannot be had")
        return name, name

    models = app.OneModel(load)

    def work(name):
        with models.use(name) as (processor, _):
            assert processor == name
            inside.append(name)
            assert len(inside) == 1
            time.sleep(0.002)
            inside.pop()

    threads = [threading.Thread(target=work, args=("ab"[i % 2],)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []
    assert all(before != after for before, after in itertools.pairwise(loaded)), "the one that is there is used again"
    with pytest.raises(OSError, match="cannot be had"):
        work("broken")
    assert models.loaded is None
    work("a")
    assert loaded[-1] == "a"


def test_detectors_alone_are_not_offered():
    assert "tiny" in app.matchers()
    assert "aliked" in app.matchers()
    assert "aliked-t16" not in app.matchers()


def test_sliders_begin_at_what_the_checkpoint_says(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    tiny = app.settings_of("tiny")
    assert tiny.longest_edge == 640
    assert tiny.depth_confidence == pytest.approx(0.95)
    assert app.settings_of("xfeat")[3:5] == (1, pytest.approx(0.95)), "LighterGlue runs all layers"
    assert app.settings_of("aliked") == app.Settings()
    (tmp_path / "mine").mkdir()
    fields = {"filter_threshold": 0.2, "width_confidence": -1, "keypoint_detector_config": {"max_keypoints": -1}}
    (tmp_path / "mine" / "config.json").write_text(json.dumps(fields))
    mine = app.settings_of(str(tmp_path / "mine"))
    assert mine.threshold == 0.2
    assert mine.width_confidence == 1
    assert mine.max_keypoints == app.Settings().max_keypoints, "as many as there are is too many"


def test_settings_reach_the_model():
    config = SimpleNamespace(keypoint_detector_config=SimpleNamespace())
    app.apply(app.Settings(512.0, 640, 0.3, 1, 0.8), "mine", SimpleNamespace(config=config))
    assert vars(config.keypoint_detector_config) == {"max_keypoints": 512}
    assert (config.filter_threshold, config.depth_confidence, config.width_confidence) == (0.3, -1.0, 0.8)


def graph_directory(directory, *files, longest_edge=640, **fields):
    """What an export leaves, without the graphs."""
    directory.mkdir()
    for file in files:
        (directory / file).touch()
    config = {"filter_threshold": 0.2, "depth_confidence": 0.9, "width_confidence": -1} | fields
    config["keypoint_detector_config"] = {"max_keypoints": 5000}
    (directory / "config.json").write_text(json.dumps(config))
    processor = {"size": {"height": 480, "width": 640}, "longest_edge": longest_edge}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(directory)


def test_what_a_graph_has_fixed_cannot_be_moved_and_says_so(tmp_path):
    graph = graph_directory(tmp_path / "graph", "openvino_detector.xml", "openvino_matcher.xml")
    found = app.controls(graph)
    fixed = {"max_keypoints", "depth_confidence", "width_confidence"}
    assert {field for field, properties in found.items() if not properties["interactive"]} == fixed
    assert {found[field]["info"] for field in fixed} == {"as the graph was exported"}
    assert found["max_keypoints"]["value"] == found["max_keypoints"]["maximum"] == 5000, (
        "and not what a slider reaches"
    )
    assert (found["depth_confidence"]["value"], found["width_confidence"]["value"]) == (0.9, 1)
    assert found["threshold"]["minimum"] == 0.2, "what the graph drops cannot be had"
    tiny = app.controls("tiny")
    assert all(properties["interactive"] for properties in tiny.values())
    assert tiny["threshold"]["minimum"] == 0

    whole = graph_directory(tmp_path / "whole", "model.onnx")
    one_size = graph_directory(tmp_path / "one-size", "detector.onnx", "matcher.onnx", longest_edge=None)
    for name, more in ((whole, {"turns", "tiles"}), (one_size, {"longest_edge", "tiles"})):
        assert {field for field, p in app.controls(name).items() if not p["interactive"]} == fixed | more
    asked = app.Settings(256, 512, 0.3, 0.5, 0.5, 4, True)
    assert app.chosen(whole, asked) == app.Settings(5000, 512, 0.3, 0.9, 1)
    assert app.chosen(one_size, asked._replace(tiles=False)) == app.Settings(5000, None, 0.3, 0.9, 1, 4)


def test_photos_in_tiles_have_the_size_they_have():
    found = app.controls("tiny", tiled=True)["longest_edge"]
    assert not found["interactive"]
    assert "as large as the photos are" in found["info"]
    assert app.chosen("tiny", app.Settings(tiles=True)) == app.Settings(longest_edge=None, tiles=True)
    assert app.chosen("tiny", app.Settings(turns=4)) == app.Settings(turns=4)


def test_what_is_searched_in_tiles_is_bounded():
    images = [Image.new("1", (3000, 1000)), Image.new("1", (1000, 2000))]
    limits = app.Limits(tiled_megapixels=10)
    for settings in (app.Settings(turns=4), app.Settings(turns=2, tiles=True)):
        app.refuse_many_tiles(images, settings, limits)
    message = "^11 megapixels to search in tiles, the second photo in all its turns, and 10 are allowed$"
    with pytest.raises(InputError, match=message):
        app.refuse_many_tiles(images, app.Settings(turns=4, tiles=True), limits)
    with pytest.raises(InputError, match=r"^5 megapixels to search in tiles, and 4 are allowed$"):
        app.refuse_many_tiles(images, app.Settings(tiles=True), limits._replace(tiled_megapixels=4))


def test_licences_are_said(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    assert "Apache-2.0" in app.licence_of("tiny")
    assert "fetched" not in app.licence_of("tiny")
    assert "**non-commercial (Magic Leap)" in app.licence_of("superpoint").replace("Apache-2.0, ", "")
    assert "53 MB are fetched" in app.licence_of("superpoint")
    assert "model card" in app.licence_of("owner/name")


# -- a pair -----------------------------------------------------------------------------------------------------------


def test_the_app_finds_what_the_command_finds(tmp_path, capsys):
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("poselib")
    pytest.importorskip("matplotlib")
    from lightglue_hf import cli

    paths = [str(tmp_path / name) for name in ("left.png", "right.png")]
    for path, pixels in zip(paths, data.stereo_motorcycle()):
        Image.fromarray(pixels[:300, :400]).save(path)
    arguments = ["--max-keypoints", "256", "--longest-edge", "400", "--threshold", "0.2", "--json"]
    assert cli.main(["match", *paths, *arguments, "--device", "cpu"]) == 0
    expected = json.loads(capsys.readouterr().out)
    args = cli.parser().parse_args(["app", "--device", "cpu"])
    models = app.OneModel(lambda name: cli.models.load_matcher(name, args))
    found = app.match_photos_at(paths, "tiny", app.Settings(256, 400, 0.2), models)
    np.testing.assert_allclose(found.arrays["keypoints1"], expected["keypoints1"], atol=1e-3)
    assert found.metadata["verdict"]["answer"] == expected["verdict"]["answer"] == "yes"
    assert found.metadata["images"] == ["left.png", "right.png"]
    assert found.metadata["threshold"] == 0.2
    for part in ("reading", "loading", "keypoints", "matching", "geometry", "drawing"):
        assert part in found.summary
    assert f"{len(expected['matches'])} matches" in found.summary
    assert found.pruning.width == found.matches.width
    assert app.overlay(*found.view.images, found.view.homography) is not None
    fewer = app.match_photos_at(paths, "tiny", app.Settings(128, 400, 0.2, 1, 1), models)
    assert "stopped after layer 4 of 4" in fewer.summary
    written = app.write(fewer, tmp_path)
    assert [path.name for path in written] == ["matches.png", "matches.json", "matches.h5"]
    assert json.loads(written[1].read_text())["max_keypoints"] == 128


def test_the_app_turns_and_tiles_as_the_command_does(tmp_path, capsys):
    pytest.importorskip("poselib")
    pytest.importorskip("matplotlib")
    from lightglue_hf import cli

    from .small_detectors import picture

    upright = Image.fromarray(picture(200, 300))
    paths = [str(tmp_path / name) for name in ("upright.png", "turned.png")]
    upright.save(paths[0])
    upright.transpose(Image.Transpose.ROTATE_90).save(paths[1])
    args = cli.parser().parse_args(["app", "--device", "cpu"])
    models = app.OneModel(lambda name: cli.models.load_matcher(name, args))
    for more, tiles in (([], False), (["--tiles"], True)):
        options = ["--max-keypoints", "128", "--turns", "4", *more, "--json", "--device", "cpu"]
        assert cli.main(["match", *paths, *options]) == 0
        expected = json.loads(capsys.readouterr().out)
        own = app.settings_of("tiny")._replace(max_keypoints=128, turns=4, tiles=tiles)
        found = app.match_photos_at(paths, "tiny", app.chosen("tiny", own), models)
        np.testing.assert_allclose(found.arrays["keypoints1"], expected["keypoints1"], atol=1e-3)
        assert found.metadata["turned"] == expected["turned"] == 270
        assert "the second photo matches best turned by 270 degrees counter-clockwise" in found.summary
        assert (found.metadata["turns"], found.metadata["tiles"]) == (4, tiles)
    upright = app.match_photos_at([paths[0]] * 2, "tiny", own._replace(turns=2, tiles=False), models)
    assert "the second photo matches best as it is" in upright.summary
    assert "matches best" not in app.match_photos_at([paths[0]] * 2, "tiny", own._replace(turns=1), models).summary


# -- the page, as far as it goes without a browser --------------------------------------------------------------------


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingPackageError, match=r"install lightglue-hf\[app\]"):
        app.build(lambda name: None)


def test_errors_of_input_are_shown_and_faults_are_logged(caplog):
    gr = pytest.importorskip("gradio")

    def fail(error):
        raise error

    shown = app._readably(gr, fail)
    with pytest.raises(gr.Error, match="&lt;b&gt;: no such photo"):
        shown(InputError("<b>: no such photo"))
    with pytest.raises(gr.Error, match="not enough memory"):
        shown(MemoryError())
    assert caplog.text == ""
    with pytest.raises(gr.Error, match=r"^'The program failed") as error:
        shown(KeyError("secret"))
    assert "secret" not in str(error.value)
    assert "secret" in caplog.text


def test_the_page_is_bounded():
    pytest.importorskip("gradio")
    pytest.importorskip("skimage")
    page = app.build(lambda name: None, limits=app.Limits(waiting=3))
    matching = [block for block in page.fns.values() if block.concurrency_id == "model"]
    assert [block.concurrency_limit for block in matching] == [1]
    assert page.max_queue_size == 3 if hasattr(page, "max_queue_size") else page._queue.max_size == 3
    assert not page.analytics_enabled
    page.close(verbose=False)
