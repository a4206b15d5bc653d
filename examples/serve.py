"""Match photos over HTTP: requests in batches, limits on what they may hold, and a word on whether the model is ready.

    pip install ".[serve]"
    python examples/serve.py tiny --port 8000
    curl -F image0=@left.jpg -F image1=@right.jpg http://127.0.0.1:8000/match

A pair in a batch gets what it gets alone, so batching changes no answer. docs/serving.md says more.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image, ImageOps

import lightglue_hf
from lightglue_hf.images import load_image
from lightglue_hf.runtime.fixed import backend_of

FORMATS = ("JPEG", "PNG", "WEBP")
RETRY = {"Retry-After": "1"}  # seconds
GRACE = 30  # seconds that requests have to end in when the server is stopped

log = logging.getLogger("uvicorn.error")

Pair = list[Image.Image]
Answer = dict[str, Any]


class Limits(NamedTuple):
    """What the server takes.

    Args:
        batch: pairs that the model gets at once.
        waiting: pairs that are inside at once; others are sent away with 503.
        megabytes: of one request.
        megapixels: of one photo.
    """

    batch: int = 4
    waiting: int = 32
    megabytes: float = 32.0
    megapixels: float = 32.0


# ---------------------------------------------------------------------------------------------------------------------
# The model


def load(name: str) -> Callable[[list[Pair]], list[Answer]]:
    """What matches pairs of photos, all at once: with a checkpoint by its name or directory, or exported graphs."""
    where = lightglue_hf.located(name)
    processor = lightglue_hf.LightGlueImageProcessor.from_pretrained(where)
    graphs = {"openvino": "OVModelForKeypointMatching", "onnx": "ORTModelForKeypointMatching"}
    model: Any
    if backend := backend_of(Path(where)):
        model = getattr(lightglue_hf, graphs[backend]).from_pretrained(where)
    else:
        model = lightglue_hf.LightGlueForKeypointMatching.from_pretrained(where).eval()

    @torch.inference_mode()
    def match(pairs: list[Pair]) -> list[Answer]:
        sizes = [[(photo.height, photo.width) for photo in pair] for pair in pairs]
        outputs = model(**processor(pairs, return_tensors="pt"))
        found = processor.post_process_keypoint_matching(outputs, sizes)
        return [
            {"image_sizes": size, **{name: rounded(values) for name, values in matches.items()}}
            for size, matches in zip(sizes, found)
        ]

    return match


def rounded(values: torch.Tensor) -> list:
    """Thousandths of pixels and scores are enough, and a third of the bytes."""
    return values.double().mul(1000).round().div(1000).tolist()


class Batcher:
    """Gives a model what waits for it, in batches: pairs that came while it was busy are the next.

    The model is loaded and run in one thread of its own, so that it never runs twice at once.

    Args:
        load: gives what answers a batch.
        limits: of a batch and of what waits.
    """

    def __init__(self, load: Callable[[], Callable[[list[Pair]], list[Answer]]], limits: Limits) -> None:
        self.load, self.limits = load, limits
        self.status = "loading"
        self.inside = 0  # pairs that are read, wait or are matched
        self.waiting: asyncio.Queue[tuple[Pair, asyncio.Future[Answer]]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, "model")

    async def work(self) -> None:
        """Load the model, let it answer once, then answer what comes until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            match = await loop.run_in_executor(self.thread, self.load)
            await loop.run_in_executor(self.thread, match, [[Image.new("L", (640, 480)), Image.new("L", (640, 480))]])
        except Exception as error:
            log.exception("the model does not run")
            self.status = f"failed: {error}"
            return
        self.status = "ready"
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.limits.batch and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            pairs, futures = zip(*batch)
            for future, answer in zip(futures, await self.matched(match, list(pairs))):
                if not future.done():  # its request was given up
                    future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)

    async def matched(self, match: Callable[[list[Pair]], list[Answer]], pairs: list[Pair]) -> list[Any]:
        """The answers of a batch; if it fails those of each pair alone, so that one takes no other along."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, match, pairs)
        except Exception as error:
            log.exception("a batch of %d failed", len(pairs))
            if len(pairs) == 1:
                return [error]
        return [answer for pair in pairs for answer in await self.matched(match, [pair])]

    async def answer(self, read: Callable[[], Pair]) -> Answer:
        """Read a pair in some thread, and match it when its turn comes.

        Raises:
            HTTPException: 503 if the model is not ready, or enough wait for it; whatever `read` raises.
        """
        if self.status != "ready":
            raise HTTPException(503, f"The model is not ready: {self.status}.", RETRY)
        if self.inside >= self.limits.waiting:
            raise HTTPException(503, f"{self.inside} pairs are waiting already: try again later.", RETRY)
        self.inside += 1
        try:
            pair = await run_in_threadpool(read)
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self.waiting.put_nowait((pair, future))
            return await future
        finally:
            self.inside -= 1


# ---------------------------------------------------------------------------------------------------------------------
# Requests


def read_photo(name: str, file: BinaryIO, limits: Limits) -> Image.Image:
    """A photo, upright.

    Raises:
        HTTPException: 413 for too many pixels, 422 for what cannot be read.
    """
    try:
        image = Image.open(file, formats=FORMATS)
        megapixels = image.width * image.height / 1e6
        if megapixels > limits.megapixels:
            text = f"{name} has {megapixels:.1f} megapixels, more than {limits.megapixels:g}."
            raise HTTPException(413, text)
        return ImageOps.exif_transpose(load_image(image))
    except HTTPException:
        raise
    except Image.DecompressionBombError as error:  # beyond what Pillow opens, whatever is allowed here
        raise HTTPException(413, f"{name} has too many pixels: {error}") from error
    except Exception as error:  # broken data makes Pillow raise anything
        raise HTTPException(422, f"{name} is no photo that can be read ({', '.join(FORMATS)}).") from error


class BodyLimit:
    """ASGI middleware: a request with more bytes is answered 413 as soon as they have come."""

    def __init__(self, app: Any, megabytes: float) -> None:
        self.app, self.megabytes = app, megabytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        received = 0

        async def limited() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.megabytes * 1e6:
                raise HTTPException(413, f"The request has more than {self.megabytes:g} megabytes.")
            return message

        await self.app(scope, limited, send)


class RequestLimit:
    """ASGI middleware: of requests to `/match` so many are read at once, others are answered 503 before they are.

    `/health` is answered always: of a server that is busy it must not seem to be dead.
    """

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most, self.inside = app, most, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/match":
            return await self.app(scope, receive, send)
        if self.inside >= self.most:
            answer = JSONResponse({"detail": f"{self.inside} requests are inside: try again later."}, 503, RETRY)
            return await answer(scope, receive, send)
        self.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1


def create_app(load: Callable[[], Callable[[list[Pair]], list[Answer]]], limits: Limits) -> FastAPI:
    """The application; its model is loaded when it starts, while `/health` answers already."""
    batcher = Batcher(load, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(batcher.work())
        yield
        work.cancel()
        batcher.thread.shutdown()

    app = FastAPI(title="LightGlue", version=lightglue_hf.__version__, lifespan=lifespan)
    app.state.batcher = batcher
    app.add_middleware(BodyLimit, megabytes=limits.megabytes)
    # twice as many as pairs: those that wait, and others whose photos still come, or that are sent away
    app.add_middleware(RequestLimit, most=2 * limits.waiting)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        fields = ", ".join(str(item["loc"][-1]) for item in error.errors())
        said = f"Two photos are needed, as files image0 and image1: {fields} is missing or no file."
        return JSONResponse({"detail": said}, 422)

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 when the model has answered once, 503 before, and if it failed."""
        ready = batcher.status == "ready"
        content = {"status": batcher.status, "waiting": batcher.inside}
        return JSONResponse(content, 200 if ready else 503, None if ready else RETRY)

    @app.post("/match")
    async def match(image0: UploadFile, image1: UploadFile) -> JSONResponse:
        """The matches of two photos: points are (x, y) in pixels of the photos, sizes are (height, width)."""
        files = {"image0": image0, "image1": image1}
        read = lambda: [read_photo(name, upload.file, limits) for name, upload in files.items()]  # noqa: E731
        return JSONResponse(await batcher.answer(read))

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's name, a directory with one or with exported graphs, or a Hub id")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    defaults = Limits()
    parser.add_argument("--batch", type=int, default=defaults.batch, help="pairs at once, at most (%(default)s)")
    parser.add_argument("--waiting", type=int, default=defaults.waiting, help="pairs inside, at most (%(default)s)")
    parser.add_argument("--megabytes", type=float, default=defaults.megabytes, help="of a request (%(default)s)")
    parser.add_argument("--megapixels", type=float, default=defaults.megapixels, help="of a photo (%(default)s)")
    options = parser.parse_args()
    try:
        lightglue_hf.located(options.model)  # so that a wrong name is said at once
    except (OSError, ValueError) as error:
        parser.error(str(error))
    limits = Limits(options.batch, options.waiting, options.megabytes, options.megapixels)
    app = create_app(lambda: load(options.model), limits)
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=GRACE)


if __name__ == "__main__":
    main()
