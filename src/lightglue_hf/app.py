"""The browser app: two photos in; their matches, and all that agrees with them, to look at and to keep.

`match_photos_at` does the work and knows nothing of Gradio, `build` lays out the page, and `serve` opens it, to this
machine alone by default.
"""

from __future__ import annotations

import html
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from . import bundled_checkpoint
from .convert.published import BUNDLED, CHECKPOINTS, PUBLISHED, cached_directory, list_checkpoints
from .convert.state_dicts import LIGHTERGLUE_SETTINGS
from .data.posed_pairs import resizing
from .data.warps import warp_images
from .evaluation.datasets import BUILT_IN
from .images import load_image, to_pixels, to_rgb
from .matching import (
    Geometry,
    Matches,
    describe,
    describe_matches,
    describe_turn,
    encode,
    find_geometry,
    match_photos,
    to_arrays,
    to_metadata,
)
from .runtime.fixed import fixed_options, set_options
from .utils.errors import InputError, is_of_input, one_line
from .utils.files import json_object
from .utils.optional import import_optional
from .visualization import draw_epipolar_lines, draw_matches, draw_pruning, one_height

WIDTH = 1600  # pixels of a picture of both photos
MOST_LINES = 6  # epipolar lines at once
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")  # Pillow hands others to programs, such as PostScript
FORGET = 3600  # seconds after which what was shown to somebody is deleted
EXAMPLES = (("stereo", 0), ("warped-easy", 8))  # dataset and number of the pair: a motorcycle, a cup of coffee

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """What strangers may ask for.

    Args:
        megabytes: of a file.
        megapixels: of a photo; it is not decoded if it has more.
        waiting: clicks in the queue, of which one is worked at.
        tiled_megapixels: of a pair that is searched in tiles, a turned photo as often as it is searched: without
            tiles a photo is no larger than the slider makes it, and with them each takes its time.
    """

    megabytes: int = 25
    megapixels: int = 50
    waiting: int = 16
    tiled_megapixels: int = 100


LIMITS = Limits()


class Settings(NamedTuple):
    """What is set on the page.

    Args:
        max_keypoints, threshold: as `match` has them.
        longest_edge: likewise; `None` is what the processor does, or the photos' own size with tiles.
        depth_confidence, width_confidence: 1 turns stopping and pruning off.
        turns, tiles: as in `match_turned`.
    """

    max_keypoints: int = 1024
    longest_edge: int | None = 1024
    threshold: float = 0.1
    depth_confidence: float = 0.95
    width_confidence: float = 0.99
    turns: int = 1
    tiles: bool = False


class Slider(NamedTuple):
    label: str
    info: str
    minimum: float
    maximum: float
    step: float


SLIDERS = {
    "max_keypoints": Slider("Keypoints", "at most, of each photo", 64, 4096, 64),
    "longest_edge": Slider("Longest edge", "pixels to resize each photo to", 256, 2048, 32),
    "threshold": Slider("Threshold", "matches with lower scores are dropped", 0, 0.95, 0.01),
    "depth_confidence": Slider("Stopping", "share of sure keypoints that ends it; 1: never", 0.05, 1, 0.01),
    "width_confidence": Slider("Pruning", "how sure to be that a keypoint has no match; 1: never", 0.5, 1, 0.01),
}


# ---------------------------------------------------------------------------------------------------------------------
# Models


class OneModel:
    """The model that was asked for last, for one user at a time: each takes memory, and has settings of its own."""

    def __init__(self, load: Callable[[str], tuple[Any, Any]]) -> None:
        self.load = load
        self.lock = threading.Lock()
        self.name: str | None = None
        self.loaded: tuple[Any, Any] | None = None

    @contextmanager
    def use(self, name: str) -> Iterator[tuple[Any, Any]]:
        """The processor and the model of a name; others wait until the block is left."""
        with self.lock:
            if self.loaded is None or self.name != name:
                self.name = self.loaded = None  # before the next one takes memory
                self.loaded, self.name = self.load(name), name
            yield self.loaded


def matchers() -> list[str]:
    """The checkpoints by name that can match, and are not detectors alone."""
    return [*BUNDLED, *(name for name, entry in CHECKPOINTS.items() if entry.matcher is not None)]


def settings_of(name: str) -> Settings:
    """What a checkpoint says, in the range of the sliders; of one that is not here yet, what it will say.

    What an exported graph was made with is as it is, in that range or not.
    """
    directory = directory_of(name)
    own: dict[str, Any] = {}
    if (directory / "config.json").is_file():
        own = json_object(directory / "config.json")
        own["max_keypoints"] = (own.get("keypoint_detector_config") or {}).get("max_keypoints")
        if (directory / "preprocessor_config.json").is_file():
            own["longest_edge"] = json_object(directory / "preprocessor_config.json").get("longest_edge")
    elif name in CHECKPOINTS and PUBLISHED[CHECKPOINTS[name].matcher or ""].trained_on == "XFeat":
        own = dict(LIGHTERGLUE_SETTINGS)
    own["threshold"] = own.get("filter_threshold")
    fixed = fixed_options(directory)
    settings: dict[str, Any] = {}
    for field, slider in SLIDERS.items():
        value = own.get(field)
        if value is None or (value <= 0 and field == "max_keypoints"):  # as many as there are
            value = Settings._field_defaults[field]
        elif value <= 0 and field.endswith("confidence"):
            value = 1
        settings[field] = value if field in fixed else min(max(value, slider.minimum), slider.maximum)
    if "max_keypoints" not in fixed:
        settings["max_keypoints"] = min(settings["max_keypoints"], Settings().max_keypoints)
    return Settings(**settings)


def chosen(name: str, settings: Settings) -> Settings:
    """Settings for a checkpoint, without what does not count: what it has fixed, and the size of photos in tiles."""
    fixed = fixed_options(directory_of(name))
    own = settings_of(name)._asdict()
    settings = settings._replace(**{field: own[field] for field in fixed})
    return settings._replace(longest_edge=None) if settings.tiles or "longest_edge" in fixed else settings


def directory_of(name: str) -> Path:
    if name in BUNDLED:
        return bundled_checkpoint(name)
    return cached_directory(name) if name in CHECKPOINTS else Path(name)


def licence_of(name: str) -> str:
    """Markdown: what a checkpoint is, the licence of its weights, and whether it has to be fetched."""
    rows = [row for row in list_checkpoints() if row.name == name]
    if not rows:
        return "The licence is what its model card says."
    (row,) = rows
    licence = f"**{row.licence}**" if "non-commercial" in row.licence else row.licence
    notes = [row.what, f"licence of the weights: {licence}"]
    if not row.cached:
        notes.append(f"{row.megabytes:.0f} MB are fetched when it is first used")
    return "; ".join([*notes, *filter(None, [row.note])])


def apply(settings: Settings, name: str, model: Any) -> None:
    """Set what is set on the page.

    Raises:
        InputError: the model is a graph, and was made with something else.
    """
    confidences = {field: float(getattr(settings, field)) for field in ("depth_confidence", "width_confidence")}
    set_options(
        name,
        model,
        int(settings.max_keypoints),
        float(settings.threshold),
        **{field: value if value < 1 else -1.0 for field, value in confidences.items()},
    )


def controls(name: str, tiled: bool = False) -> dict[str, dict[str, Any]]:
    """How the control of each setting stands for a checkpoint: Gradio's names of its properties, and their values.

    What an exported graph has fixed, or what does not count because photos are searched in tiles, cannot be moved,
    and says why.
    """
    own, fixed = settings_of(name), fixed_options(directory_of(name))
    found: dict[str, dict[str, Any]] = {}
    for field, slider in SLIDERS.items():
        value = getattr(own, field)
        found[field] = {**slider._asdict(), "value": value}
        found[field]["minimum"] = value if fixed and field == "threshold" else min(slider.minimum, value)
        found[field]["maximum"] = max(slider.maximum, value)
    found["turns"] = {"label": "Turn the second photo", "info": "and keep what matches best", "value": 1}
    found["turns"]["choices"] = [("as it is", 1), ("also upside down", 2), ("all quarters", 4)]
    info = "at full resolution, for 20 megapixels and more: ask for more keypoints, too"
    found["tiles"] = {"label": "Search tile by tile", "info": info, "value": False}
    for field, properties in found.items():
        properties["interactive"] = field not in fixed
        if field in fixed:
            properties["info"] = "as the graph was exported" if field in SLIDERS else "not with this exported graph"
    if tiled and "tiles" not in fixed:
        found["longest_edge"] |= {"info": "with tiles: as large as the photos are", "interactive": False}
    return found


# ---------------------------------------------------------------------------------------------------------------------
# One pair


class View(NamedTuple):
    """Two photos as they are shown, at one height, and their geometry in these pixels."""

    images: tuple[Image.Image, Image.Image]
    fundamental: np.ndarray | None
    homography: np.ndarray | None


class Found(NamedTuple):
    """What is shown of a pair."""

    summary: str  # Markdown
    matches: Image.Image
    pruning: Image.Image | None
    view: View
    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray]


def match_photos_at(
    paths: Sequence[str | None], name: str, settings: Settings, models: OneModel, limits: Limits = LIMITS
) -> Found:
    """Match two photos.

    Args:
        paths: of the photos.
        name: of the checkpoint.
        settings: see `Settings` and `chosen`.
        models: that give the model of this name.
        limits: see `Limits`.

    Raises:
        InputError: photos are missing, broken or too large; or as the models raise it.
    """
    times = {}
    start = time.perf_counter()
    images = [read_photo(path, limits) for path in paths]
    refuse_many_tiles(images, settings, limits)
    times["reading"], start = time.perf_counter() - start, time.perf_counter()
    with models.use(name) as (processor, model):
        times["loading"] = time.perf_counter() - start
        apply(settings, name, model)
        edge = None if settings.longest_edge is None else int(settings.longest_edge)
        matches = match_photos(processor, model, images, edge, int(settings.turns), bool(settings.tiles))
    times |= matches.times
    start = time.perf_counter()
    geometry = find_geometry(matches, images)
    times["geometry"], start = time.perf_counter() - start, time.perf_counter()
    left, right = images
    points0, points1 = matches.prediction.matched
    drawn = draw_matches(left, right, points0, points1, matches.prediction.matching_scores, max_width=WIDTH)
    pruning = None
    if matches.prune is not None:
        all0, all1 = matches.prediction[:2]
        pruning = draw_pruning(left, right, all0, all1, *matches.prune, matches.layers, max_width=WIDTH)
    view = to_view(images, geometry)
    times["drawing"] = time.perf_counter() - start
    names = [Path(path or "").name for path in paths]
    metadata = to_metadata(matches, geometry, images, names, model=name, **settings._asdict())
    summary = summarize(images, matches, geometry, times, settings.turns)
    return Found(summary, drawn, pruning, view, metadata, to_arrays(matches.prediction, geometry))


def read_photo(path: str | None, limits: Limits) -> Image.Image:
    """The photo of a file, upright, if it is no larger than allowed.

    Raises:
        InputError: it is missing, broken or too large; its name is said, and not its place.
    """
    if path is None:
        raise InputError("choose two photos first")
    name = Path(path).name
    try:
        if os.path.getsize(path) > limits.megabytes << 20:
            raise InputError(f"more than the {limits.megabytes} MB that are allowed")
        image = load_image(path, max_pixels=limits.megapixels * 1_000_000, formats=FORMATS)
        if image.mode.startswith(("I", "F")):
            to_pixels(image)  # their values may be out of range
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: more than the {limits.megapixels} megapixels that are allowed") from error
    except Exception as error:  # broken data makes Pillow raise anything
        text = one_line(error).replace(str(path), name)
        raise InputError(text if name in text else f"{name}: {text}") from error
    return image


def refuse_many_tiles(images: Sequence[Image.Image], settings: Settings, limits: Limits) -> None:
    """Raise an InputError if more is to be searched in tiles than allowed; without tiles the slider bounds it."""
    first, second = (image.width * image.height / 1e6 for image in images)
    searched = first + settings.turns * second
    if settings.tiles and searched > limits.tiled_megapixels:
        counted = ", the second photo in all its turns" if settings.turns > 1 else ""
        raise InputError(
            f"{searched:.0f} megapixels to search in tiles{counted}, and {limits.tiled_megapixels} are allowed"
        )


def to_view(images: Sequence[Image.Image], geometry: Geometry) -> View:
    """The photos at the size at which they are shown, and the geometry moved along."""
    first, second = images
    sizes = one_height(first.size, second.size, WIDTH)
    shown = [
        Image.fromarray(to_rgb(image)).resize(size, Image.Resampling.LANCZOS) for image, size in zip(images, sizes)
    ]
    from_shown = [np.linalg.inv(resizing(image.size[::-1], size[::-1])) for image, size in zip(images, sizes)]
    fundamental, homography = geometry.verdict.fundamental, geometry.homography
    if fundamental is not None:
        fundamental = from_shown[1].T @ fundamental @ from_shown[0]
    if homography is not None:
        homography = np.linalg.inv(from_shown[1]) @ homography @ from_shown[0]
    return View((shown[0], shown[1]), fundamental, homography)


def overlay(image0: Image.Image, image1: Image.Image, homography: Any) -> tuple[Image.Image, Image.Image] | None:
    """The first image, and the second one warped onto it; where that shows nothing, the first is left, darkened.

    Args:
        image0, image1: the images.
        homography: `(3, 3)`, takes pixels of the first to those of the second.

    Returns:
        Two RGB images of one size; `None` if the homography cannot be inverted.
    """
    homography = np.asarray(homography, dtype=float)
    volume = np.linalg.det(homography / np.linalg.norm(homography))
    if not abs(volume) > 1e-15:
        return None
    # of determinant 1: what is in front of the camera then has a positive third coordinate
    to_first = np.linalg.inv(homography / np.cbrt(np.linalg.det(homography)))
    first, second = (torch.tensor(to_rgb(image)).permute(2, 0, 1).float() for image in (image0, image1))
    warped, seen = warp_images(second[None], torch.from_numpy(to_first)[None], image0.height, image0.width)
    pixels = torch.where(seen, warped[0], 0.3 * first).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(to_rgb(image0)), Image.fromarray(pixels)


def point_at(view: View, x: float, y: float) -> tuple[int, float, float] | None:
    """Which of the images that stand side by side was clicked, 0 or 1, and where in it."""
    first, second = view.images
    image, left = (0, 0) if x < first.width else (1, first.width)
    inside = 0 <= x < first.width + second.width and 0 <= y < first.height
    return (image, x - left, y) if inside else None


def summarize(
    images: Sequence[Image.Image], matches: Matches, geometry: Geometry, times: dict[str, float], turns: int = 1
) -> str:
    """Markdown: counts, inliers, the layer, the turn if any were tried, and the time of each part."""
    verdict = describe(geometry.verdict)
    points = matches.prediction[:2]
    count = geometry.homography_inliers.sum()
    share = f", {geometry.homography_inliers.mean():.0%} of the matches" if count else ""
    parts = " · ".join(f"{part} {seconds:.2f}" for part, seconds in times.items())
    sizes = [f"{image.width} x {image.height}, {len(found)} keypoints" for image, found in zip(images, points)]
    return "\n".join(
        [
            f"**{describe_matches(matches)}**",
            f"- {verdict}",
            f"- {count} inliers of a homography (3 px){share}",
            *([f"- {describe_turn(matches)}"] if turns > 1 else []),
            f"- first photo {sizes[0]}; second photo {sizes[1]}",
            f"- seconds: {parts} · **all {sum(times.values()):.2f}**; {matches.engine}",
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# The page


TEXT = """# Match two photos
Each line joins two points that LightGlue takes for the same: green where it is sure, red where it is not.
"""
BUTTONS = ["download", "fullscreen"]  # of a picture; Gradio's others share it with the world
HINT = "Click a point of either photo: its match must lie on the line of the same colour in the other."
CSS = """
.gradio-container {max-width: 1280px !important; width: 100%; margin: auto}
.photo img {object-fit: contain}
@media (max-width: 500px) {.tab-container button {padding: 8px 5px !important; font-size: 14px}}
"""


def gradio() -> Any:
    """Gradio, which must not send what it would send about its use."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return import_optional("gradio", "app")


def build(load: Callable[[str], tuple[Any, Any]], model: str = "tiny", limits: Limits = LIMITS) -> Any:
    """The page, as Gradio's Blocks.

    Args:
        load: gives a processor and a model by name.
        model: the checkpoint that is chosen at first: one of `matchers()`, or another that `load` knows.
        limits: see `Limits`.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    gr = gradio()
    models = OneModel(load)
    reporter = gr.Progress()
    folder = tempfile.TemporaryDirectory(prefix="lightglue-hf-")
    names = list(dict.fromkeys([*matchers(), model]))
    at_first = controls(model)

    with gr.Blocks(title="LightGlue", analytics_enabled=False, delete_cache=(FORGET, FORGET)) as page:
        view, points = gr.State(None, time_to_live=FORGET), gr.State([], time_to_live=FORGET)
        gr.Markdown(TEXT)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    photos = [_photo(gr, label) for label in ("First photo", "Second photo")]
                gr.Examples(_examples(Path(folder.name)), photos, label="Examples", api_visibility="private")
                with gr.Accordion("Turned and huge photos", open=False, elem_id="more"):
                    turns = gr.Radio(elem_id="turns", **at_first["turns"])
                    tiles = gr.Checkbox(elem_id="tiles", **at_first["tiles"])
            with gr.Column(min_width=320):
                checkpoint = gr.Dropdown(names, value=model, label="Checkpoint", elem_id="checkpoint")
                licence = gr.Markdown(licence_of(model), elem_id="licence")
                sliders = {field: gr.Slider(elem_id=field, **at_first[field]) for field in SLIDERS}
                moved = {**sliders, "turns": turns, "tiles": tiles}
                button = gr.Button("Match", variant="primary", elem_id="match")
        summary = gr.Markdown(elem_id="summary")
        with gr.Tabs():
            with gr.Tab("Matches"):
                matches = _picture(gr, "Matches, from red (unsure) to green (sure)", "matches")
            with gr.Tab("Pruning"):
                pruning = _picture(gr, "Keypoints, by the layer that pruned them", "pruning")
            with gr.Tab("Overlay"):
                warped = gr.ImageSlider(
                    label="First photo, and second photo warped",
                    format="png",
                    interactive=False,
                    buttons=BUTTONS,
                    elem_id="overlay",
                )
            with gr.Tab("Epipolar lines"):
                gr.Markdown(HINT)
                lines = _picture(gr, "Points, and their lines in the other photo", "epipolar", "jpeg")
        with gr.Row():
            downloads = [
                gr.DownloadButton(f"Download {label}", interactive=False, elem_id=f"download-{suffix}")
                for label, suffix in (("picture", "png"), ("JSON", "json"), ("HDF5", "h5"))
            ]

        def match(path0: Any, path1: Any, name: str, *values: Any, progress: Any = reporter) -> list[Any]:
            progress(0.1, "matching, with a checkpoint that is fetched at its first use")
            if name not in names:
                raise InputError(f"no checkpoint is called {name!r}")
            found = match_photos_at((path0, path1), name, chosen(name, Settings(*values)), models, limits)
            progress(0.9, "drawing")
            files = [gr.DownloadButton(value=path, interactive=True) for path in write(found, Path(folder.name))]
            both = None if found.view.homography is None else overlay(*found.view.images, found.view.homography)
            empty = None if found.view.fundamental is None else draw_lines(found.view, [])
            return [found.summary, found.matches, found.pruning, both, empty, found.view, [], *files]

        def click(shown: View | None, before: list[Any], event: Any) -> list[Any]:
            point = None if shown is None or shown.fundamental is None else point_at(shown, *event.index)
            if shown is None or point is None:
                return [gr.skip(), before]
            after = [*before, point][-MOST_LINES:]
            return [draw_lines(shown, after), after]

        click.__annotations__["event"] = gr.SelectData  # by which Gradio knows what to give
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        shown = [summary, matches, pruning, warped, lines, view, points, *downloads]
        button.click(_readably(gr, match), [*photos, checkpoint, *moved.values()], shown, **one_at_a_time)
        lines.select(
            _readably(gr, click),
            [view, points],
            [lines, points],
            show_progress="hidden",
            trigger_mode="multiple",
            api_visibility="private",
        )

        def change(name: str, tiled: bool) -> list[Any]:
            changed = controls(name, tiled)
            for field in {"turns", "tiles"} - fixed_options(directory_of(name)):
                del changed[field]["value"]  # stays as it is
            return [licence_of(name), *(gr.update(**properties) for properties in changed.values())]

        def resize(name: str, tiled: bool) -> Any:
            properties = controls(name, tiled)["longest_edge"]
            return gr.update(**{field: properties[field] for field in ("info", "interactive")})

        at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        checkpoint.change(_readably(gr, change), [checkpoint, tiles], [licence, *moved.values()], **at_once)
        tiles.change(_readably(gr, resize), [checkpoint, tiles], [sliders["longest_edge"]], **at_once)
    page.folder = folder  # which is there as long as the page is
    page.queue(max_size=limits.waiting, default_concurrency_limit=1, api_open=False)
    return page


def draw_lines(view: View, points: Sequence[tuple[int, float, float]]) -> Image.Image:
    return draw_epipolar_lines(*view.images, view.fundamental, points)


def write(found: Found, folder: Path) -> list[Path]:
    """The picture, the JSON and the HDF5 file of a pair; Gradio copies them, and those of the pair before go."""
    directory = folder / "found"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    found.matches.save(directory / "matches.png")
    for suffix in (".json", ".h5"):
        (directory / f"matches{suffix}").write_bytes(encode(found.metadata, found.arrays, suffix))
    return [directory / f"matches{suffix}" for suffix in (".png", ".json", ".h5")]


def _photo(gr: Any, label: str) -> Any:
    """Where a photo is given; what comes in is opened by `read_photo`, within its limits."""
    photo = gr.Image(
        label=label,
        type="filepath",
        image_mode=None,  # the file as it is
        sources=["upload", "clipboard", "webcam"],
        height=300,
        buttons=BUTTONS[1:],
        elem_classes="photo",
    )
    preprocess = photo.preprocess

    def opened(payload: Any) -> Any:
        try:
            return preprocess(payload)
        except Exception:  # what Pillow makes of a file that is no photo
            name = getattr(payload, "orig_name", None) or "this file"
            raise _error(gr, f"{name} cannot be read as a photo: upload it again, or another one") from None

    photo.preprocess = opened
    return photo


def _picture(gr: Any, label: str, name: str, format: str = "png") -> Any:
    return gr.Image(label=label, format=format, interactive=False, buttons=BUTTONS, elem_id=name)


def _examples(folder: Path) -> list[list[str]]:
    """Pairs of photos that come with scikit-image, as files."""
    pairs = []
    for dataset, number in EXAMPLES:
        data = BUILT_IN[dataset]()
        pair = data.load(data.entries[number])
        paths = [str(folder / f"{dataset}-{side}.png") for side in ("left", "right")]
        for image, path in zip(pair.images, paths):
            image.save(path)
        pairs.append(paths)
    return pairs


def _readably(gr: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose errors are sentences on the page; a fault of the program is logged, and not shown."""

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            if is_of_input(error):
                raise _error(gr, one_line(error)) from None
            log.exception("the app failed")
            raise _error(gr, "The program failed; where it runs, its log says why.") from None

    return called


def _error(gr: Any, text: str) -> Exception:
    """A message that stays until it is closed."""
    return gr.Error(html.escape(text), duration=None, print_exception=False)


# ---------------------------------------------------------------------------------------------------------------------
# The server


# the page brings all that it needs, and its browser asks nobody else
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)


class SelfContained:
    """ASGI middleware: tells the browser to fetch nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def serve(page: Any, host: str = "127.0.0.1", port: int | None = 7860, limits: Limits = LIMITS) -> str:
    """Open the page, in threads of its own, and return its address; `page.close()` ends it.

    Args:
        page: what `build` gives.
        host: the address to listen at; by default nobody but this machine can reach it.
        port: `None` takes a free one.
        limits: see `Limits`.

    Raises:
        OSError: the port is taken.
    """
    gr = gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # of the browser's own
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=limits.megabytes << 20,
        state_session_capacity=100,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(**fonts),
        css=CSS,
        app_kwargs={"middleware": [(SelfContained, (), {})]},
    )
    return address
