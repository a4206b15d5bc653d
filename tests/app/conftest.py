"""The app, served in this process, and a headless Chromium that looks at it; skipped where either is missing."""

import os
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from PIL import Image

from lightglue_hf import app, cli

PATIENCE = 60_000  # milliseconds
ARGUMENTS = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--disable-dev-shm-usage"]


class Loading:
    """Loads models as the command does, and counts those who use one at the same time."""

    def __init__(self):
        self.args = cli.parser().parse_args(["app", "--device", "cpu"])
        self.running = self.most = self.runs = 0
        self.lock = threading.Lock()
        self.pause = 0.0  # seconds that a pair takes longer

    def __call__(self, name):
        processor, model = cli.models.load_matcher(name, self.args)
        extract = model.extract_features

        def counted(*args, **kwargs):
            with self.lock:
                self.running += 1
                self.runs += 1
                self.most = max(self.most, self.running)
            time.sleep(self.pause)
            try:
                return extract(*args, **kwargs)
            finally:
                with self.lock:
                    self.running -= 1

        model.extract_features = counted
        return processor, model


@pytest.fixture(scope="session")
def loading():
    return Loading()


@pytest.fixture(scope="session")
def address(loading, tmp_path_factory):
    """Where the app is."""
    pytest.importorskip("gradio")
    pytest.importorskip("skimage")
    pytest.importorskip("poselib")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        limits = app.Limits(megabytes=1, megapixels=3, waiting=4, tiled_megapixels=10)
        page = app.build(loading, limits=limits)
        yield app.serve(page, port=None, limits=limits)
        page.close(verbose=False)


@pytest.fixture(scope="session")
def chromium():
    """A browser, which has a camera that shows a test picture."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    playwright = pytest.importorskip("playwright.sync_api")
    if path is None:
        pytest.skip("there is no chromium")
    arguments = [*ARGUMENTS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ARGUMENTS
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Opens the app for one user: a page, which is closed after the test."""
    contexts = []

    def visit(width=1280, height=1000, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        page.locator("#match").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """The motorcycle, cut out twice: two pairs of files of different sizes."""
    data = pytest.importorskip("skimage.data")
    directory = tmp_path_factory.mktemp("photos")
    views = [Image.fromarray(pixels) for pixels in data.stereo_motorcycle()[:2]]
    boxes = {"large": (0, 0, 741, 500), "small": (100, 150, 500, 450)}
    pairs = {}
    for name, box in boxes.items():
        pairs[name] = [directory / f"{name}-{side}.png" for side in ("left", "right")]
        for view, path in zip(views, pairs[name]):
            view.crop(box).save(path)
    return pairs


SUMMARY = "[...document.querySelectorAll('#summary li')].map(line => line.innerText).join('\\n')"


@contextmanager
def waiting_for_result(page):
    """Waits until the summary is another one than before the block: no two take the same time."""
    before = page.evaluate(SUMMARY)
    yield
    failed = "document.querySelector('.toast-body.error')"
    page.wait_for_function(f"before => {failed} || ({SUMMARY} && {SUMMARY} !== before)", arg=before)
