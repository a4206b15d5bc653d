"""Bytes to pixels: what is refused, and by which name."""

import http.server
import os
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from lightglue_hf import images
from lightglue_hf.image_processing_lightglue import LightGlueImageProcessor
from lightglue_hf.images import allow_pixels, find_photos, load_image, to_pixels


@pytest.mark.parametrize("kind", ["device", "pipe", "directory"])
def test_what_is_no_regular_file_is_not_read(kind, tmp_path):
    path = tmp_path / "photo.png"
    if kind == "device":
        path = "/dev/zero"
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=f"{path}: it is no regular file"):
        load_image(path)


@pytest.fixture
def server(monkeypatch):
    """A server on this machine: `answer` is what it sends, `None` for nothing at all."""

    class Handler(http.server.BaseHTTPRequestHandler):
        answer: bytes | None = b""
        done = threading.Event()

        def do_GET(self):
            if self.answer is None:
                self.done.wait(10)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.answer)

        def log_message(self, *_):
            pass

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{server.server_port}/photo.png"
    Handler.done.set()
    server.shutdown()
    server.server_close()


def test_a_url_has_a_limit_of_time_and_of_size(server, monkeypatch):
    handler, url = server
    handler.answer = bytes(2 << 20)
    monkeypatch.setattr(images, "URL_BYTES", 1 << 20)
    with pytest.raises(OSError, match=f"{url}: it has more than 1 MiB"):
        load_image(url)
    handler.answer = None
    monkeypatch.setattr(images, "URL_TIMEOUT", 0.2)
    with pytest.raises(OSError, match=f"{url}: .*timed out"):
        load_image(url)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_grey_level_lies_over_white(bits, tmp_path):
    white = 2**bits - 1
    pixels = np.array([[0, white // 4, white // 2], [white, white // 4, 7]], np.uint8 if bits == 8 else np.uint16)
    Image.fromarray(pixels).save(tmp_path / "grey.png", transparency=white // 4)
    found, scale = to_pixels(load_image(tmp_path / "grey.png"))
    expected = np.where(pixels == white // 4, white, pixels)
    assert scale == white
    np.testing.assert_allclose(found[0] if bits == 16 else found[-1], expected, atol=1)


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (np.ma.masked_array(np.zeros((4, 4)), mask=np.eye(4)), "a masked array"),
        (np.zeros((4, 4), complex), "an array of complex128"),
        (np.array([["a"]]), "an array of <U1"),
        (np.array([[None]]), "an array of object"),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(pixels, kind):
    with pytest.raises(ValueError, match=f"the image is {kind}"):
        to_pixels(pixels)


def test_photos_are_found_by_their_suffix(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "deep/c.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_photos(tmp_path)] == ["a.png", "b.JPG", "c.tiff"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size: longest_edge must be a whole number from 1"),
        ({"size": "big"}, "`size` must be"),
        ({"size": {"height": 1.5, "width": 2}}, "size: height must be a whole number"),
        ({"size": {"shortest_edge": 2}}, "`size` must be"),
        ({"do_resize": "yes"}, "do_resize must be true or false"),
        ({"resample": 9}, "resample must be a whole number from 0 to 5"),
        ({"rescale_factor": None}, "rescale_factor must be a number"),
        ({"size_divisor": 0}, "size_divisor must be a whole number from 1"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LightGlueImageProcessor(**settings)


def test_sizes_of_numpy_are_whole_numbers_and_vast_ones_are_refused():
    photos = [np.zeros((30, 40), np.uint8)] * 2
    assert LightGlueImageProcessor(size=np.int64(64))(photos)["pixel_values"].shape == (1, 2, 3, 48, 64)
    with pytest.raises(ValueError, match="`size` would make image 0 of pair 0 100000 x 75000 pixels"):
        LightGlueImageProcessor(size=100_000)(photos)


def test_an_image_beyond_pillows_limit_is_named_with_what_may_be_done(tmp_path, monkeypatch):
    Image.new("L", (40, 30)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    message = r"huge\.png: Image size \(1200 pixels\) exceeds limit of 1000 pixels: PIL.Image.MAX_IMAGE_PIXELS is half"
    with pytest.raises(Image.DecompressionBombError, match=message) as error:
        load_image(tmp_path / "huge.png")
    assert "attack" not in str(error.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        allow_pixels(1200)
        assert load_image(tmp_path / "huge.png").size == (40, 30)
        allow_pixels(0)
        assert Image.MAX_IMAGE_PIXELS == 600, "which is never less than it was"


def test_an_image_is_taken_for_no_other_format_than_allowed(tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "a.png", "BMP")
    assert load_image(tmp_path / "a.png", formats=("BMP",)).size == (40, 30)
    with pytest.raises(OSError, match=r"Cannot read the image .*a\.png: cannot identify"):
        load_image(tmp_path / "a.png", formats=("PNG", "JPEG"))
