"""`python -m benchmarks.serving`: requests a second of examples/serve.py, on this machine, at 1, 4 and 16 clients."""

import argparse
import http.client
import io
import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .report import machine, write_docs

HOST = "127.0.0.1"
ROOT = Path(__file__).parent.parent
CLIENTS = (1, 4, 16)
BATCHES = (4, 1)
MOST = 500  # requests of one row
START = 180  # seconds that a server may take to get ready
PATIENCE = 120  # seconds that a client waits for an answer


class Result(NamedTuple):
    """What a number of clients got, each of which asks again when it has its answer."""

    clients: int
    seconds: float  # of the whole row
    latencies: list[float]  # seconds, of answers that were right
    errors: int

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency that so many of the answers did not exceed."""
        return sorted(self.latencies)[math.ceil(share * len(self.latencies)) - 1]


def encoded_pair() -> dict[str, bytes]:
    """The stereo pair that comes with scikit-image, as a client would send it."""
    from skimage import data

    files = {}
    for name, pixels in zip(("image0", "image1"), data.stereo_motorcycle()):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
        files[name] = buffer.getvalue()
    return files


def multipart(files: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A form with files: its bytes and its headers."""
    boundary = uuid.uuid4().hex
    head = '--{}\r\nContent-Disposition: form-data; name="{}"; filename="{}"\r\n\r\n'
    parts = [head.format(boundary, name, name).encode() + content + b"\r\n" for name, content in files.items()]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), headers


def load(port: int, clients: int, seconds: float, body: bytes, headers: dict[str, str], most: int = MOST) -> Result:
    """Let clients ask for so many seconds, and no more than `most` times."""
    latencies: list[float] = []
    errors = 0
    left = iter(range(most))
    lock = threading.Lock()
    start = time.perf_counter()

    def client() -> None:
        nonlocal errors
        connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
        while time.perf_counter() - start < seconds:
            with lock:
                if next(left, None) is None:
                    break
            began = time.perf_counter()
            try:
                connection.request("POST", "/match", body, headers)
                response = connection.getresponse()
                right = response.status == 200 and len(json.loads(response.read())["matching_scores"]) > 0
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                connection.close()
                right = False
            with lock:
                if right:
                    latencies.append(time.perf_counter() - began)
                else:
                    errors += 1
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Result(clients, time.perf_counter() - start, latencies, errors)


@contextmanager
def server(model: str, batch: int) -> Iterator[tuple[int, subprocess.Popen]]:
    """examples/serve.py on a port of loopback, once its model has answered; it is stopped at the end."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    program = ROOT / "examples" / "serve.py"
    process = subprocess.Popen(
        [sys.executable, program, model, "--port", str(port), "--batch", str(batch)], stderr=subprocess.DEVNULL
    )
    try:
        wait(process, port)
        yield port, process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(process: subprocess.Popen, port: int) -> None:
    for _ in range(START * 5):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready after {START} s")


def rows(name: str, batch: int, results: list[Result]) -> list[str]:
    """The lines of the table of one server."""
    lines = []
    for result in results:
        cells = [name, str(batch), str(result.clients), str(len(result.latencies) + result.errors)]
        if result.latencies:
            times = statistics.median(result.latencies), result.percentile(0.95)
            cells += [f"{result.rate:.2f}", *(f"{1e3 * seconds:.0f}" for seconds in times)]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join([*cells, str(result.errors)])} |")
    return lines


HEAD = [
    "| model | pairs at once, at most | clients | requests | requests/s | median, ms | 95th percentile, ms | errors |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", default="tiny", help="a checkpoint's name or directory (default: tiny)")
    parser.add_argument("--seconds", type=float, default=15, help="of each row (default: 15)")
    parser.add_argument("--no-openvino", action="store_true", help="leave out the exported graph")
    parser.add_argument("--write-docs", action="store_true", help="also renew the table of docs/serving.md")
    options = parser.parse_args(arguments)
    body, headers = multipart(encoded_pair())
    lines = list(HEAD)
    with tempfile.TemporaryDirectory() as directory:
        models = {f"{options.model}, PyTorch": options.model}
        if not options.no_openvino:
            from lightglue_hf import located
            from lightglue_hf.export import export

            export(located(options.model), directory, "openvino")
            models[f"{options.model}, OpenVINO, all layers"] = directory
        print("\n".join(HEAD), flush=True)
        for name, model in models.items():
            for batch in BATCHES:
                with server(model, batch) as (port, _):
                    load(port, 1, 1, body, headers)  # for whatever is done at the first request
                    results = [load(port, clients, options.seconds, body, headers) for clients in CLIENTS]
                found = rows(name, batch, results)
                print("\n".join(found), flush=True)
                lines += found
    if options.write_docs:
        about = ", ".join(f"{name}: {value}" for name, value in machine("cpu").items())
        write_docs(ROOT / "docs" / "serving.md", "\n".join([f"{about}.", "", *lines, ""]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
