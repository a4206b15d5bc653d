"""examples/serve.py over loopback: answers, batches, limits, health and its end."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from benchmarks import serving
from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint

from . import load_example

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
serve = load_example("serve")

ROOT = Path(__file__).parent.parent.parent


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def textured(height, width, seed=0):
    """A photo in which there is something to find, and the same moved by eight pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width + 8), dtype=np.uint8)
    return Image.fromarray(pixels[:, 8:]), Image.fromarray(pixels[:, :-8])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The one in the package, on small photos."""
    directory = tmp_path_factory.mktemp("checkpoint")
    LightGlueForKeypointMatching.from_pretrained(bundled_checkpoint("tiny")).save_pretrained(directory)
    LightGlueImageProcessor(size={"longest_edge": 128}).save_pretrained(directory)
    return str(directory)


class Running(NamedTuple):
    """The application on loopback."""

    server: uvicorn.Server
    batcher: serve.Batcher
    port: int


@contextmanager
def running(load, ready=True, **limits):
    """The application on a port of loopback."""
    app = serve.create_app(load, serve.Limits(**limits))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level=60))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        found = Running(server, app.state.batcher, server.servers[0].sockets[0].getsockname()[1])
        if ready:
            until(lambda: get(found)[0] == 200)
        yield found
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(condition, seconds=60):
    for _ in range(seconds * 100):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true")


def get(app):
    return request(app, "GET", "/health")


def post(app, **files):
    return request(app, "POST", "/match", *serving.multipart(files))


def request(app, *arguments):
    """`(status, headers, JSON)`, or `(status, headers, None)` of an answer that is no JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=60)
    try:
        connection.request(*arguments)
        response = connection.getresponse()
        body = response.read()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, dict(response.headers), json.loads(body) if is_json else None
    finally:
        connection.close()


class Gated:
    """Something that matches, when the gate is open; what it was given, and whether twice at once, is remembered."""

    def __init__(self, match=None):
        self.match = match or (lambda pairs: [{"matching_scores": []} for _ in pairs])
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []
        self.inside = 0

    def __call__(self):  # loads it
        return self.run

    def run(self, pairs):
        self.inside += 1
        assert self.inside == 1
        self.batches.append(len(pairs))
        assert self.gate.wait(60)
        answers = self.match(pairs)
        self.inside -= 1
        return answers


PHOTO = encoded(Image.new("L", (40, 30)))
# turned, with a fraction (type 11) in the field of a whole number, which Pillow reads and does not write
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + bytes.fromhex("0112 0003 00000001 0006 0000 0128 000b 00000001 3fc00000")
ODD = encoded(Image.new("L", (40, 30)), "JPEG", exif=EXIF + bytes(4))


def test_the_answer_is_the_model_s_in_pixels_of_the_upright_photos(checkpoint):
    photo, moved = textured(120, 180)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = encoded(photo.rotate(90, expand=True), exif=exif)
    (expected,) = serve.load(checkpoint)([[photo, moved]])
    with running(lambda: serve.load(checkpoint)) as app:
        status, _, answer = post(app, image0=turned, image1=encoded(moved))
    assert status == 200
    assert answer["image_sizes"] == [[120, 180], [120, 180]]
    assert answer == json.loads(json.dumps(expected))
    assert len(answer["matching_scores"]) > 5
    assert np.max(answer["keypoints0"], axis=0)[0] > 128, "pixels of the photo, not of what the model saw"
    assert {len(answer[name]) for name in ("keypoints0", "keypoints1", "matching_scores")} == {
        len(answer["matching_scores"])
    }


def test_a_batch_changes_no_answer(checkpoint):
    """Pairs of different sizes and aspects, which are padded to one size together."""
    match = serve.load(checkpoint)
    shapes = [(120, 180), (180, 120), (96, 96), (60, 200), (240, 320), (120, 180)]
    pairs = [textured(*shape, seed) for seed, shape in enumerate(shapes)]
    alone = [match([list(pair)])[0] for pair in pairs]
    gated = Gated(match)
    with running(gated, batch=4) as app, ThreadPoolExecutor(len(pairs) + 1) as pool:
        gated.gate.clear()
        before = pool.submit(post, app, image0=PHOTO, image1=PHOTO)  # keeps the model busy
        until(lambda: len(gated.batches) == 2)
        answers = [pool.submit(post, app, image0=encoded(photo), image1=encoded(moved)) for photo, moved in pairs]
        until(lambda: app.batcher.waiting.qsize() == len(pairs))
        assert get(app)[2]["waiting"] == len(pairs) + 1
        gated.gate.set()
        answers = [answer.result() for answer in answers]
        assert before.result()[0] == 200
    assert gated.batches[2:] == [4, 2]
    for (status, _, answer), expected in zip(answers, alone):
        assert status == 200
        for name in ("keypoints0", "keypoints1", "image_sizes"):
            assert answer[name] == json.loads(json.dumps(expected[name]))
        np.testing.assert_allclose(answer["matching_scores"], expected["matching_scores"], atol=2e-3)
        assert len(expected["matching_scores"]) > 5


def test_more_than_may_wait_are_sent_away():
    gated = Gated()
    with running(gated, batch=1, waiting=3) as app, ThreadPoolExecutor(3) as pool:
        gated.gate.clear()
        waiting = [pool.submit(post, app, image0=PHOTO, image1=PHOTO) for _ in range(3)]
        until(lambda: get(app)[2]["waiting"] == 3)
        status, headers, answer = post(app, image0=PHOTO, image1=PHOTO)
        assert (status, headers["retry-after"]) == (503, "1")
        assert answer == {"detail": "3 pairs are waiting already: try again later."}
        gated.gate.set()
        assert [answer.result()[0] for answer in waiting] == [200] * 3
        until(lambda: get(app)[2]["waiting"] == 0)
        assert post(app, image0=PHOTO, image1=PHOTO)[0] == 200
    assert set(gated.batches) == {1}


def test_health_is_answered_however_many_ask():
    """Requests that send slowly, of which there are as many as may be inside; and connections on which nothing is."""
    with running(Gated(), waiting=2) as app, ExitStack() as stack:
        body, headers = serving.multipart({"image0": PHOTO, "image1": PHOTO})

        def connect():
            connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=60)
            stack.callback(connection.close)
            connection.connect()
            return connection

        slow = [connect() for _ in range(4)]
        for connection in slow:
            connection.putrequest("POST", "/match")
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(body[:-1])
        for _ in range(80):
            connect()
        until(lambda: post(app, image0=PHOTO, image1=PHOTO)[0] == 503)
        status, headers, answer = post(app, image0=PHOTO, image1=PHOTO)
        assert (status, headers["retry-after"]) == (503, "1")
        assert answer == {"detail": "4 requests are inside: try again later."}
        assert get(app)[0] == 200
        for connection in slow:
            connection.send(body[-1:])
        statuses = [connection.getresponse().status for connection in slow]
        assert 200 in statuses
        assert set(statuses) <= {200, 503}, "two may be inside, and the model is quick"
        until(lambda: post(app, image0=PHOTO, image1=PHOTO)[0] == 200)


def test_a_photo_beyond_what_pillow_opens_is_too_large(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # of which twice as many are an error
    with running(Gated()) as app:
        status, _, answer = post(app, image0=PHOTO, image1=PHOTO)
        assert status == 413
        assert answer["detail"].startswith("image0 has too many pixels")


@pytest.mark.parametrize(
    ("files", "status", "detail"),
    [
        ({"image0": PHOTO, "image1": b"no photo"}, 422, "image1 is no photo that can be read (JPEG, PNG, WEBP)."),
        ({"image0": PHOTO, "image1": ODD}, 422, "image1 is no photo that can be read (JPEG, PNG, WEBP)."),
        ({"image0": PHOTO[:-30], "image1": PHOTO}, 422, "image0 is no photo that can be read (JPEG, PNG, WEBP)."),
        ({"image0": encoded(Image.new("L", (8, 8)), "BMP"), "image1": PHOTO}, 422, "image0 is no photo"),
        ({"image0": PHOTO}, 422, "Two photos are needed, as files image0 and image1: image1 is missing or no file."),
        ({"image0": encoded(Image.new("1", (2000, 1001))), "image1": PHOTO}, 413, "image0 has 2.0 megapixels, more"),
        ({"image0": bytes(2_000_000), "image1": PHOTO}, 413, "The request has more than 1 megabytes."),
    ],
)
def test_what_is_refused(files, status, detail):
    gated = Gated()
    with running(gated, megabytes=1, megapixels=2) as app:
        try:
            found, _, answer = post(app, **files)
        except (ConnectionError, http.client.HTTPException):  # hung up on while it still sent
            assert status == 413
            assert len(files["image0"]) > 1e6
        else:
            assert found == status
            assert answer["detail"].startswith(detail)
        assert post(app, image0=PHOTO, image1=PHOTO)[0] == 200, "the server goes on"
    assert gated.batches == [1, 1], "that reached the model: the first picture, and the last request"


def test_health_waits_for_the_first_answer():
    gated = Gated()
    gated.gate.clear()
    with running(gated, ready=False) as app:
        until(lambda: gated.batches)
        for status, headers, answer in (get(app), post(app, image0=PHOTO, image1=PHOTO)):
            assert (status, headers["retry-after"]) == (503, "1")
            assert "loading" in str(answer)
        gated.gate.set()
        until(lambda: get(app)[0] == 200)
        assert get(app)[2] == {"status": "ready", "waiting": 0}


def test_health_says_why_there_is_no_model():
    with running(lambda: serve.load("/nowhere"), ready=False) as app:
        until(lambda: "failed" in get(app)[2]["status"])
        assert get(app)[0] == 503
        assert "/nowhere" in get(app)[2]["status"]


def test_a_batch_that_fails_is_an_error_and_the_next_is_not():
    def match(pairs):
        if any(pair[0].width == 7 for pair in pairs):
            raise RuntimeError("out of luck")
        return [{} for _ in pairs]

    with running(lambda: match) as app:
        assert post(app, image0=encoded(Image.new("L", (7, 9))), image1=PHOTO)[0] == 500
        assert post(app, image0=PHOTO, image1=PHOTO)[0] == 200
        assert get(app)[2] == {"status": "ready", "waiting": 0}


def test_a_pair_that_fails_takes_no_other_along():
    batches, busy, together = [], threading.Event(), threading.Event()

    def match(pairs):
        busy.set()
        together.wait()
        batches.append(len(pairs))
        if any(pair[0].width == 7 for pair in pairs):
            raise RuntimeError("out of luck")
        return [{} for _ in pairs]

    together.set()
    with running(lambda: match) as app, ThreadPoolExecutor(3) as clients:
        busy.clear()
        together.clear()
        first = clients.submit(post, app, image0=PHOTO, image1=PHOTO)
        until(busy.is_set)
        bad = clients.submit(post, app, image0=encoded(Image.new("L", (7, 9))), image1=PHOTO)
        good = clients.submit(post, app, image0=PHOTO, image1=PHOTO)
        until(lambda: app.batcher.waiting.qsize() == 2)
        together.set()
        assert [answer.result()[0] for answer in (first, bad, good)] == [200, 500, 200]
    assert batches == [1, 1, 2, 1, 1]


def test_what_was_asked_is_answered_before_it_ends():
    gated = Gated()
    with running(gated, batch=2) as app, ThreadPoolExecutor(6) as pool:
        gated.gate.clear()
        answers = [pool.submit(post, app, image0=PHOTO, image1=PHOTO) for _ in range(6)]
        until(lambda: get(app)[2]["waiting"] == 6)
        app.server.should_exit = True  # as SIGTERM does
        until(lambda: refused(app))
        gated.gate.set()
        assert [answer.result()[0] for answer in answers] == [200] * 6


def refused(app):
    try:
        get(app)
    except ConnectionError:
        return True
    return False


def program(*arguments):
    return [sys.executable, str(ROOT / "examples" / "serve.py"), *arguments]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_load_test_runs_the_program_itself(checkpoint, monkeypatch):
    """From its start to its end by SIGTERM, with requests between."""
    pytest.importorskip("skimage")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"), prepend=os.pathsep)
    body, headers = serving.multipart(serving.encoded_pair())
    with serving.server(checkpoint, batch=2) as (port, process):
        result = serving.load(port, clients=3, seconds=60, body=body, headers=headers, most=6)
    assert (len(result.latencies), result.errors) == (6, 0)
    assert process.returncode in (0, -signal.SIGTERM)


def test_a_wrong_model_is_said_at_once(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"), prepend=os.pathsep)
    found = subprocess.run(program("no such model"), capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert "'no such model' is no directory" in found.stderr


# -- the load test


def test_load_counts_answers_and_errors():
    calls = []

    def match(pairs):
        calls.extend(pairs)
        return [{"matching_scores": [1.0] if len(calls) % 3 else []} for _ in pairs]

    body, headers = serving.multipart({"image0": PHOTO, "image1": PHOTO})
    with running(lambda: match, batch=1) as app:
        result = serving.load(app.port, clients=4, seconds=60, body=body, headers=headers, most=30)
    assert (len(result.latencies), result.errors) == (20, 10)
    assert result.rate == pytest.approx(20 / result.seconds)


def test_percentiles_and_rows():
    result = serving.Result(4, 10.0, [i / 100 for i in range(100, 0, -1)], 2)
    assert result.percentile(0.95) == 0.95
    assert result.percentile(1) == 1.0
    assert serving.Result(1, 1.0, [0.25], 0).percentile(0.95) == 0.25
    assert serving.rows("tiny", 4, [result]) == ["| tiny | 4 | 4 | 102 | 10.00 | 505 | 950 | 2 |"]
    assert serving.rows("tiny", 4, [serving.Result(1, 1.0, [], 3)]) == ["| tiny | 4 | 1 | 3 |  |  |  | 3 |"]
