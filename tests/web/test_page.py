"""The page in Chromium: it finds what Python finds, and says what is wrong in a sentence."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor, located

from .conftest import SITE, Handler

pytestmark = pytest.mark.browser


PATIENCE = 120_000  # milliseconds for what takes a second or two on a processor that has nothing else to do


def choose(page, *files):
    """Put photos into their places: paths, or (name, bytes)."""
    for place, file in enumerate(files):
        if isinstance(file, tuple):
            file = {"name": file[0], "mimeType": "image/*", "buffer": file[1]}
        page.set_input_files(f"#file{place}", file)


def matches_of(page):
    """What the page found, as it saves it, once all photos are read and matched."""
    page.locator("main[aria-busy=false] #result").wait_for(timeout=PATIENCE)
    with page.expect_download() as download:
        page.click("#save")
    return json.loads(download.value.path().read_text())


def points(found):
    """`(m, 4)`."""
    return np.concatenate([np.reshape(found[name], (-1, 2)) for name in ("keypoints0", "keypoints1")], axis=1)


def in_common(found, others):
    """The share of matches `(m, 4)` that are among the others, every coordinate within a tenth of a pixel."""
    return (np.abs(found[:, None] - others).max(-1).min(1) < 0.1).mean()


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def by_python():
    """Matches two files with the model that the page has, with the settings of its graph."""
    where = located(json.loads((SITE / "model" / "about.json").read_text())["name"])
    config = LightGlueConfig.from_pretrained(SITE / "model")
    model = LightGlueForKeypointMatching.from_pretrained(where, config=config).eval()
    processor = LightGlueImageProcessor.from_pretrained(SITE / "model")

    @torch.inference_mode()
    def match(*files):
        sizes = [[Image.open(file).size[::-1] for file in files]]
        outputs = model(**processor([str(file) for file in files], return_tensors="pt"))
        (found,) = processor.post_process_keypoint_matching(outputs, sizes)
        return points({name: values.numpy() for name, values in found.items()})

    return match


# -- the same as in Python


@pytest.mark.parametrize("options", ["", "?threads=1"])
def test_the_same_matches_as_python(page, address, by_python, options):
    page.goto(address + options)
    page.get_by_text("Ready").wait_for(timeout=PATIENCE)
    assert page.evaluate("crossOriginIsolated") == (not options), "a service worker brings threads"
    page.click("#example")
    saved = matches_of(page)
    found, expected = points(saved), by_python(SITE / "example" / "left.jpg", SITE / "example" / "right.jpg")
    assert len(expected) > 200
    assert in_common(found, expected) >= 0.98
    assert in_common(expected, found) >= 0.98
    assert len(set(map(tuple, found))) == len(found)
    assert f"{len(found)} matches" in page.inner_text("#count")


def test_photos_of_other_shapes(ready, by_python, tmp_path):
    """Turned by EXIF, of different sizes and aspects, one of them grey."""
    photo = Image.open(SITE / "example" / "left.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    photo.crop((0, 0, 500, 480)).rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    photo.convert("L").resize((1000, 675)).save(tmp_path / "grey.png")
    files = tmp_path / "turned.jpg", tmp_path / "grey.png"
    choose(ready, *files)
    ready.get_by_text("turned.jpg, 500 × 480").wait_for()
    ready.get_by_text("grey.png, 1000 × 675").wait_for()
    saved = matches_of(ready)
    assert saved["image_sizes"] == [[480, 500], [675, 1000]]
    found, expected = points(saved), by_python(*upright(files, tmp_path))
    assert len(expected) > 100
    assert in_common(found, expected) >= 0.98
    assert in_common(expected, found) >= 0.98


def upright(files, folder):
    """Copies of the photos whose size is the one that they are shown with."""
    from PIL import ImageOps

    for i, file in enumerate(files):
        ImageOps.exif_transpose(Image.open(file)).save(folder / f"upright{i}.png")
        yield folder / f"upright{i}.png"


PREPARE = """async ([data, processor]) => {
    const { decode, prepare } = await import("./pixels.js");
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const { values, height, width } = prepare(await decode(new Blob([bytes]), "photo"), processor);
    return [Array.from(values), height, width];
}"""


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype(np.uint8)


PHOTOS = {
    "smaller": encoded(Image.fromarray(noise(123, 211, 3))),
    "much smaller": encoded(Image.fromarray(noise(700, 331, 3))),
    "larger": encoded(Image.fromarray(noise(17, 31, 3))),
    "as it is": encoded(Image.fromarray(noise(64, 48, 3))),
    "narrow": encoded(Image.fromarray(noise(3, 300, 3))),
    "grey": encoded(Image.fromarray(noise(90, 110))),
    "palette": encoded(Image.fromarray(noise(90, 110)).convert("P")),
    "transparent": encoded(Image.fromarray(np.dstack([smooth(90, 110), noise(90, 110)]))),
    "JPEG": encoded(Image.fromarray(smooth(90, 110)), "JPEG", quality=90),
    "grey JPEG": encoded(Image.fromarray(noise(90, 110)), "JPEG", quality=90),
    "WebP": encoded(Image.fromarray(smooth(90, 110)), "WEBP", lossless=True),
    "16 bits": encoded(Image.fromarray(noise(90, 110).astype(np.uint16) * 257)),
}


@pytest.mark.parametrize("kind", PHOTOS)
@pytest.mark.parametrize("settings", [{}, {"do_grayscale": False}, {"size": {"height": 40, "width": 50}}], ids=str)
def test_the_same_pixels_as_python(ready, tmp_path, kind, settings):
    processor = LightGlueImageProcessor(**{"size": {"longest_edge": 64}, **settings})
    (tmp_path / "photo").write_bytes(PHOTOS[kind])
    inputs = processor(str(tmp_path / "photo"), pairs=False, return_tensors="np")
    data = base64.b64encode(PHOTOS[kind]).decode()
    values, height, width = ready.evaluate(PREPARE, [data, json.loads(processor.to_json_string())])
    assert [[height, width]] == inputs["image_sizes"].tolist()
    difference = np.abs(np.reshape(values, (3, height, width)) - inputs["pixel_values"][0, :, :height, :width])
    # which axis Pillow 13 resizes first depends on the shape, and values are rounded between the two
    assert difference.max() <= 1 / 255 + 1e-6
    assert kind == "16 bits" or difference.mean() < 0.3 / 255


# -- what is wrong is said


def huge_png():
    """8400 x 8000 pixels in a few kilobytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(8000 * (1 + 8400 // 8)), 9)
    header = struct.pack(">IIBBBBB", 8400, 8000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_files_that_are_refused(ready):
    for name, data, message in (
        ("notes.txt", b"not a picture", "notes.txt is no picture that this browser can read."),
        ("empty.jpg", b"", "empty.jpg is no picture that this browser can read."),
        ("huge.png", huge_png(), "huge.png has 67.2 megapixels; 64 is the most."),
    ):
        choose(ready, (name, data))
        ready.get_by_role("alert").get_by_text(message).wait_for()
        assert not ready.locator("#result").is_visible()
    ready.click("#example")
    assert len(matches_of(ready)["matching_scores"]) > 200, "the page goes on"
    assert not ready.get_by_role("alert").is_visible()


@pytest.mark.parametrize("file", ["model/model.onnx", "model/preprocessor_config.json", "ort/*.wasm"])
def test_files_of_the_page_that_are_missing(page, address, file):
    page.route(f"**/{file}", lambda route: route.fulfill(status=404))
    page.goto(address + "?threads=1")
    if "preprocessor" in file:  # it is needed when there is a photo
        choose(page, SITE / "example" / "left.jpg")
    page.get_by_role("alert").get_by_text("cannot be loaded (404)").wait_for()


def test_too_little_memory(page, address, monkeypatch):
    source = (SITE / "worker.js").read_text()
    step = "await session.run(feeds)"
    assert step in source
    broken = source.replace(step, "new ArrayBuffer(2 ** 50)")
    monkeypatch.setitem(Handler.replaced, "/worker.js", broken.encode())
    page.goto(address + "?threads=1")
    page.get_by_text("Ready").wait_for(timeout=PATIENCE)
    page.click("#example")
    page.get_by_role("alert").get_by_text("not enough memory").wait_for(timeout=PATIENCE)


def test_no_webgpu(page, address):
    page.goto(address + "?engine=webgpu&threads=1")
    if page.evaluate("navigator.gpu?.requestAdapter().then(Boolean) ?? false"):
        pytest.skip("there is one")
    page.get_by_role("alert").get_by_text("This browser has no WebGPU here.").wait_for()


# -- how it is used


def example_of(page):
    """Matches of the example, or of what the page has."""
    if not page.locator("main[aria-busy=false] #result").is_visible():
        page.click("#example")
    return matches_of(page)


def test_bytes_are_counted_while_the_model_comes(page, address):
    page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
            window.said = [];
            const look = () => window.said.push(document.getElementById("status").textContent);
            new MutationObserver(look).observe(document.getElementById("status"), { childList: true });
        })"""
    )
    page.goto(address + "?threads=1")
    page.get_by_text("Ready").wait_for(timeout=PATIENCE)
    said = [line for line in page.evaluate("window.said") if "MB" in line]
    size = (SITE / "model" / "model.onnx").stat().st_size + (
        SITE / "ort" / "ort-wasm-simd-threaded.wasm"
    ).stat().st_size
    assert len(said) > 2
    assert said[-1] == f"Loading the model: {size / 1e6:.1f} of {size / 1e6:.1f} MB"


def test_the_slider_and_the_keyboard(ready):
    everything = example_of(ready)
    ready.focus("#threshold")
    for _ in range(60):
        ready.keyboard.press("ArrowRight")
    best = matches_of(ready)
    assert 0 < len(best["matching_scores"]) < len(everything["matching_scores"])
    assert min(best["matching_scores"]) > 0.6
    text = f"{len(best['matching_scores'])} of {len(everything['matching_scores'])} matches"
    assert ready.inner_text("#count") == text
    ready.focus("#threshold")
    ready.keyboard.press("Home")
    assert len(matches_of(ready)["matching_scores"]) == len(everything["matching_scores"])


def test_everything_is_reached_by_the_tabulator(ready):
    example_of(ready)
    ready.focus("#file0")
    reached = []
    for _ in range(4):
        ready.keyboard.press("Tab")
        reached.append(ready.evaluate("document.activeElement.id"))
    assert reached == ["file1", "example", "threshold", "save"]


GIVE = """async ([kind, target, names]) => {
    const transfer = new DataTransfer();
    for (const name of names) {
        transfer.items.add(new File([await (await fetch(`example/${name}`)).blob()], name));
    }
    const event = kind === "paste"
        ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true })
        : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.querySelector(target).dispatchEvent(event);
}"""


def test_drop_and_paste(page, address):
    page.goto(address + "?threads=1")
    page.get_by_text("Ready").wait_for(timeout=PATIENCE)
    page.evaluate(GIVE, ["drop", "#card1", ["left.jpg"]])
    page.locator("#name1").get_by_text("left.jpg, 741 × 500").wait_for()
    page.evaluate(GIVE, ["paste", "body", ["right.jpg"]])  # into the place that is empty
    page.locator("#name0").get_by_text("right.jpg, 741 × 500").wait_for()
    page.evaluate(GIVE, ["drop", "body", ["left.jpg", "right.jpg"]])
    page.locator("#name0").get_by_text("left.jpg").wait_for()
    page.locator("#name1").get_by_text("right.jpg").wait_for()
    assert matches_of(page)["images"] == ["left.jpg", "right.jpg"]


SLOW = "const shown = await"
LATER = "if (place === 1) await new Promise((resolve) => setTimeout(resolve, 500));"


def test_a_second_pair_whose_photos_come_one_after_the_other(page, address, monkeypatch):
    """The first of the new photos is there while the second is still being read."""
    source = (SITE / "worker.js").read_text()
    assert SLOW in source
    monkeypatch.setitem(Handler.replaced, "/worker.js", source.replace(SLOW, f"{LATER} {SLOW}").encode())
    page.goto(address + "?threads=1")
    page.get_by_text("Ready").wait_for(timeout=PATIENCE)
    page.click("#example")
    assert matches_of(page)["images"] == ["left.jpg", "right.jpg"]
    page.evaluate(GIVE, ["drop", "body", ["right.jpg", "left.jpg"]])
    page.locator("#name0").get_by_text("right.jpg").wait_for()
    page.locator("#name1").get_by_text("left.jpg").wait_for()
    assert matches_of(page)["images"] == ["right.jpg", "left.jpg"]
    assert not page.get_by_role("alert").is_visible()


def test_a_broken_photo_while_others_are_matched(page, address, monkeypatch):
    source = (SITE / "worker.js").read_text()
    step = "const found = await session.run(feeds);"
    assert step in source
    slow = source.replace(step, f"{step} await new Promise((resolve) => setTimeout(resolve, 500));")
    monkeypatch.setitem(Handler.replaced, "/worker.js", slow.encode())
    page.goto(address + "?threads=1")
    page.get_by_text("Ready").wait_for(timeout=PATIENCE)
    page.click("#example")
    page.get_by_text("Matching ...").wait_for(timeout=PATIENCE)
    choose(page, ("notes.txt", b"not a picture"))
    page.get_by_text("Ready").wait_for(timeout=PATIENCE)
    page.locator("main[aria-busy=false]").wait_for()
    assert page.get_by_role("alert").inner_text() == "notes.txt is no picture that this browser can read."
    assert not page.locator("#result").is_visible()


@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_the_screen(ready, width):
    ready.set_viewport_size({"width": width, "height": 800})
    try:
        example_of(ready)
        assert ready.evaluate("document.documentElement.scrollWidth") <= width
        box = ready.locator("#drawing").bounding_box()
        assert (box["height"] > box["width"]) == (width == 320), "one above the other where it is narrow"
    finally:
        ready.set_viewport_size({"width": 1280, "height": 900})
