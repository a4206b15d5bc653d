"""The app as a person sees it: in a headless Chromium."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from lightglue_hf import app, bundled_checkpoint

from .conftest import Loading, waiting_for_result

pytestmark = pytest.mark.browser

UPLOADED = "img[src*='file=']"  # and no longer on its way


def choose(page, paths):
    for i, path in enumerate(paths):
        page.locator(".photo").nth(i).locator("input[type=file]").set_input_files(str(path))
        page.locator(".photo").nth(i).locator(UPLOADED).wait_for()


def match(page):
    with waiting_for_result(page):
        page.locator("#match").click()
    assert page.locator(".toast-body.error").all_inner_texts() == []
    return page.locator("#summary").inner_text()


def move(page, field, value):
    box = page.locator(f"#{field} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def download(page, suffix, tmp_path):
    with page.expect_download() as started:
        page.locator(f"#download-{suffix}").click()
    path = tmp_path / started.value.suggested_filename
    started.value.save_as(path)
    return path


def saved(page, tmp_path):
    return json.loads(download(page, "json", tmp_path).read_text())


def error_of(page):
    toast = page.locator(".toast-body.error")
    toast.first.wait_for()
    text = toast.first.inner_text()
    page.locator(".toast-close").first.click()
    return text


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def pixels_of(page, selector, n=0):
    """The picture that is shown there, once it is loaded: (width, height) of the file."""
    image = page.locator(f"{selector} img").nth(n)
    image.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    return image.evaluate("image => [image.naturalWidth, image.naturalHeight]")


def test_two_photos_give_pictures_counts_and_files(visit, photos, tmp_path):
    page = visit()
    choose(page, photos["small"])
    text = match(page)
    count = int(re.search(r"(\d+) matches, stopped after layer \d+ of 4", text)[1])
    assert count > 20
    assert "more than chance would give" in text
    for word in ("inliers of a homography", "keypoints", "reading", "matching", "geometry", "drawing"):
        assert word in text
    assert pixels_of(page, "#matches") == [800, 300]
    tab(page, "Pruning")
    assert pixels_of(page, "#pruning")[0] == 800
    tab(page, "Overlay")
    assert pixels_of(page, "#overlay", 0) == pixels_of(page, "#overlay", 1) == [400, 300]
    tab(page, "Epipolar lines")
    assert pixels_of(page, "#epipolar") == [800, 300]
    assert Image.open(download(page, "png", tmp_path)).size == (800, 300)
    found = saved(page, tmp_path)
    assert len(found["matches"]) == count
    assert found["images"] == ["small-left.png", "small-right.png"]
    h5py = pytest.importorskip("h5py")
    with h5py.File(download(page, "h5", tmp_path)) as file:
        np.testing.assert_allclose(file["keypoints0"][()], found["keypoints0"], rtol=1e-6)
        assert json.loads(file.attrs["metadata"])["model"] == "tiny"
    hosts = {re.match(r"(?:https?|wss?)://([^/:]+)", url)[1] for url in page.asked if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}, "nobody else is asked"


def test_every_slider_does_what_it_says(visit, photos, tmp_path):
    page = visit()
    choose(page, photos["small"])
    for field in app.SLIDERS:
        move(page, field, getattr(app.Settings(256, 384, 0.3, 1, 0.9), field))
    text = match(page)
    few = saved(page, tmp_path)
    assert {field: few[field] for field in app.Settings._fields} == app.Settings(256, 384, 0.3, 1, 0.9)._asdict()
    assert len(few["all_keypoints0"]) <= 256
    assert min(few["matching_scores"]) > 0.3
    assert "stopped after layer 4 of 4" in text, "a confidence of 1 never stops"
    move(page, "depth_confidence", 0.05)
    assert int(re.search(r"layer (\d) of 4", match(page))[1]) < 4
    move(page, "max_keypoints", 64)
    assert "64 keypoints" in match(page)


def test_turns_and_tiles(visit, photos, tmp_path):
    left, right = photos["small"]
    Image.open(right).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png")
    page = visit()
    choose(page, [left, tmp_path / "lying.png"])
    assert "matches best" not in match(page)
    page.get_by_text("Turned and huge photos").click()
    page.get_by_label("all quarters").check()
    assert "the second photo matches best turned by 270 degrees counter-clockwise" in match(page)
    found = saved(page, tmp_path)
    assert (found["turned"], found["turns"], found["tiles"], found["longest_edge"]) == (270, 4, False, 640)

    edge = page.locator("#longest_edge input[type=number]")
    page.locator("#tiles input").check()
    page.locator("#longest_edge", has_text="as large as the photos are").wait_for()
    assert edge.is_disabled()
    assert "first photo 400 x 300" in match(page)
    found = saved(page, tmp_path)
    assert (found["turned"], found["tiles"], found["longest_edge"]) == (270, True, None)
    assert len(found["matches"]) > 20
    page.locator("#tiles input").uncheck()
    page.locator("#longest_edge", has_text="pixels to resize each photo to").wait_for()
    assert edge.is_enabled()
    assert edge.input_value() == "640"

    Image.new("1", (1500, 1500)).save(tmp_path / "large.png")
    page = visit()
    choose(page, [tmp_path / "large.png"] * 2)
    page.get_by_text("Turned and huge photos").click()
    page.get_by_label("all quarters").check()
    page.locator("#tiles input").check()
    page.locator("#match").click()
    text = error_of(page)
    assert "11 megapixels to search in tiles, the second photo in all its turns, and 10 are allowed" in text


def test_what_an_exported_graph_has_fixed_cannot_be_moved(chromium, photos, tmp_path, monkeypatch):
    """A graph's directory without the graph, and the bundled model in its place: this is about the page."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((bundled_checkpoint("tiny") / file).read_bytes())
    (tmp_path / "openvino_model.xml").touch()
    page = app.build(Loading(), str(tmp_path))
    try:
        visitor = chromium.new_page()
        visitor.goto(app.serve(page, port=None))
        for field in ("max_keypoints", "depth_confidence", "width_confidence"):
            visitor.locator(f"#{field}", has_text="as the graph was exported").wait_for()
            assert visitor.locator(f"#{field} input[type=number]").is_disabled()
        assert visitor.locator("#threshold input[type=number]").is_enabled()
        visitor.get_by_text("Turned and huge photos").click()
        for field in ("turns", "tiles"):
            visitor.locator(f"#{field}", has_text="not with this exported graph").wait_for()
            assert visitor.locator(f"#{field} input").first.is_disabled()
        visitor.locator("#checkpoint input").click()
        visitor.get_by_role("option", name="tiny", exact=True).click()
        visitor.locator("#max_keypoints", has_text="at most, of each photo").wait_for()
        for field in ("max_keypoints", "tiles"):
            assert visitor.locator(f"#{field} input").first.is_enabled()
        visitor.close()
    finally:
        page.close(verbose=False)


def test_a_checkpoint_says_its_licence_and_sets_the_sliders(visit):
    page = visit()
    for name, word in (("superpoint", "non-commercial"), ("xfeat", "XFeat + LighterGlue"), ("tiny", "Apache-2.0")):
        page.locator("#checkpoint input").click()
        page.get_by_role("option", name=name, exact=True).click()
        page.locator("#licence", has_text=word).wait_for()
        stopping = page.locator("#depth_confidence input[type=number]")
        expected = "1" if name == "xfeat" else "0.95"
        page.wait_for_function("([box, value]) => box.value === value", arg=[stopping.element_handle(), expected])


def test_errors_are_sentences(visit, photos, tmp_path, monkeypatch):
    page = visit()
    page.locator("#match").click()
    assert "choose two photos first" in error_of(page)

    (tmp_path / "text.png").write_text("no photo")
    page = visit()  # without the error of before
    with page.expect_response(lambda response: "/upload" in response.url):
        page.locator(".photo").nth(0).locator("input[type=file]").set_input_files(str(tmp_path / "text.png"))
    page.locator(".photo").nth(1).locator("input[type=file]").set_input_files(str(photos["small"][1]))
    page.locator(".photo").nth(1).locator(UPLOADED).wait_for()
    page.locator("#match").click()
    text = error_of(page)
    assert "text.png cannot be read as a photo" in text

    Image.new("1", (2000, 2000)).save(tmp_path / "vast.png")
    page = visit()
    choose(page, [tmp_path / "vast.png", photos["small"][1]])
    page.locator("#match").click()
    assert "vast.png: more than the 3 megapixels that are allowed" in error_of(page)

    (tmp_path / "long.png").write_bytes(photos["small"][0].read_bytes() + bytes(2 << 20))
    page = visit()
    page.locator(".photo").nth(0).locator("input[type=file]").set_input_files(str(tmp_path / "long.png"))
    assert "size" in error_of(page).lower()


def test_a_checkpoint_that_cannot_be_fetched_is_a_sentence(visit, photos, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setenv("LIGHTGLUE_HF_WEIGHTS", str(tmp_path))
    page = visit()
    choose(page, photos["small"])
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name="xfeat", exact=True).click()
    page.locator("#licence", has_text="XFeat").wait_for()
    page.locator("#match").click()
    assert "cannot be had" in error_of(page)
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name="tiny", exact=True).click()
    page.locator("#licence", has_text="Apache-2.0").wait_for()
    assert "matches" in match(page), "and then it goes on"


def test_a_clicked_point_gets_its_line(visit, photos):
    page = visit()
    choose(page, photos["small"])
    match(page)
    tab(page, "Epipolar lines")
    pixels_of(page, "#epipolar")
    image = page.locator("#epipolar img")
    sources = [image.get_attribute("src")]
    for x in (0.2, 0.7):
        box = image.bounding_box()
        image.click(position={"x": x * box["width"], "y": box["height"] / 2})
        page.wait_for_function("([image, src]) => image.src !== src", arg=[image.element_handle(), sources[-1]])
        sources.append(image.get_attribute("src"))
    assert len(set(sources)) == 3


def test_two_users_at_once_get_what_is_theirs(visit, photos, tmp_path, loading):
    pages = {name: visit() for name in ("large", "small")}
    for name, page in pages.items():
        choose(page, photos[name])
    loading.most, loading.pause = 0, 0.5
    for page in pages.values():
        page.locator("#match").click()
    for name, page in pages.items():
        page.locator("#summary li").first.wait_for()
        found = saved(page, tmp_path)
        assert found["images"] == [path.name for path in photos[name]]
    loading.pause = 0
    assert loading.most == 1, "one after the other"


def test_ten_clicks_do_not_run_ten_models(visit, photos, loading):
    page = visit()
    choose(page, photos["small"])
    loading.runs, loading.pause = 0, 1
    for _ in range(10):
        page.locator("#match").dispatch_event("click")
    page.locator("#summary li").first.wait_for()
    page.wait_for_timeout(500)
    loading.pause = 0
    assert 1 <= loading.runs <= 2


def test_an_example_is_a_pair(visit):
    page = visit()
    page.locator("table tbody tr, .gallery button").first.click()
    page.locator(".photo").nth(1).locator(UPLOADED).wait_for()
    assert "more than chance would give" in match(page)


def test_a_photo_may_be_taken_or_pasted(visit, photos):
    page = visit(permissions=["clipboard-read", "clipboard-write", "camera"])
    first, second = page.locator(".photo").nth(0), page.locator(".photo").nth(1)
    first.get_by_label("Capture from camera").click()
    first.get_by_text("Click to Access Webcam").click()
    page.wait_for_function(
        "document.querySelector('.photo video')?.currentTime > 0"
    )  # before that there is no picture
    first.get_by_label("capture photo").click()
    first.locator(UPLOADED).wait_for()
    page.evaluate(
        """async () => {
            const canvas = document.createElement('canvas');
            canvas.width = 200; canvas.height = 100;
            const blob = await new Promise(done => canvas.toBlob(done, 'image/png'));
            await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        }"""
    )
    second.get_by_label("Paste from clipboard").click()
    second.locator(UPLOADED).wait_for()
    assert "second photo 200 x 100" in match(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1600])
def test_it_fits_narrow_and_wide_windows(visit, width, scheme):
    page = visit(width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    for box in (page.locator("#match").bounding_box(), page.locator("#longest_edge").bounding_box()):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_files_of_this_machine_are_not_served(visit, address):
    page = visit()
    for path in (__file__, "pyproject.toml", "/etc/passwd"):
        assert page.request.get(f"{address}gradio_api/file={path}").status in (403, 404)
