"""Pictures of keypoints and matches.

Three verbs compose a matplotlib figure: `plot_images`, then `plot_keypoints` and `plot_matches` on top of it, and
`save_plot` writes it to a file. `draw_matches`, `draw_pruning` and
`draw_epipolar_lines` give a PIL image of one pair.

Points are `(x, y)` in pixels of the image shown, with the centre of the first pixel at `(0, 0)`.

Example:
    >>> plot_images([image0, image1], titles=["left", "right"])
    >>> plot_keypoints([keypoints0, keypoints1], colors=[layer_colors(prune[0]), layer_colors(prune[1])])
    >>> plot_matches(matches["keypoints0"], matches["keypoints1"], score_colors(matches["matching_scores"]))
    >>> save_plot("matches.png")
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .images import load_image, to_rgb
from .utils.optional import import_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .data.homographies import PlanarPairs


LAYER_TINTS = (  # RGB factors of a grey view: the background, then cut-outs
    (1.0, 1.0, 1.0),
    (1.0, 0.75, 0.45),
    (0.5, 0.85, 1.0),
    (0.65, 1.0, 0.55),
    (1.0, 0.6, 0.85),
    (1.0, 1.0, 0.4),
    (0.7, 0.65, 1.0),
)
SCORE_COLORS = ((0.93, 0.11, 0.14), (1.0, 0.80, 0.10), (0.10, 0.83, 0.28))  # low, middle, high score
LINE_COLORS = ((255, 214, 10), (10, 200, 255), (255, 90, 160), (120, 230, 60), (255, 140, 40), (180, 130, 255))
FINE = 2  # pixels drawn for each of a picture

Place = Callable[[np.ndarray], np.ndarray]


def score_colors(scores: Any) -> np.ndarray:
    """Return a colour from red (0) over yellow to green (1) for each score.

    Args:
        scores: `(n,)`; values outside [0, 1] count as the nearer end.

    Returns:
        `(n, 3)`, RGB in [0, 1].
    """
    scores = _to_numpy(scores)
    ramp = np.array(SCORE_COLORS)
    return np.stack([np.interp(scores, np.linspace(0, 1, len(ramp)), channel) for channel in ramp.T], axis=-1)


def layer_colors(prune: Any, num_layers: int | None = None) -> np.ndarray:
    """Return a colour from purple (pruned early) to yellow (never pruned) for each keypoint.

    Args:
        prune: `(n,)`, the layer that pruned each keypoint, as in the model's output.
        num_layers: the layer that gets the last colour; `None` takes the largest value.

    Returns:
        `(n, 3)`, RGB in [0, 1].
    """
    prune = _to_numpy(prune)
    last = max(1, prune.max(initial=1) if num_layers is None else num_layers)
    return _pyplot().get_cmap("plasma")(0.15 + 0.8 * prune / last)[:, :3]


def plot_images(images: Sequence[Any], titles: Sequence[str] | None = None, height: float = 4.5) -> Figure:
    """Show images in one row of equal height.

    Args:
        images: PIL images, arrays or tensors `(h, w)`, `(h, w, c)` or `(c, h, w)`, or paths.
        titles: one for each image.
        height: of the images, in inches.
    """
    pixels = [_to_rgb(image) for image in images]
    widths = [height * image.shape[1] / image.shape[0] for image in pixels]
    gap, head = 0.04, 0.3 if titles else 0.0
    total = sum(widths) + gap * (len(widths) - 1)
    figure = _pyplot().figure(figsize=(total, height + head), dpi=100)
    left = 0.0
    for index, (image, width) in enumerate(zip(pixels, widths)):
        axes = figure.add_axes((left / total, 0, width / total, height / (height + head)))
        axes.imshow(image, aspect="auto", interpolation="antialiased")
        axes.set_autoscale_on(False)
        axes.axis("off")
        if titles:
            axes.set_title(titles[index], fontsize=11, pad=5)
        left += width + gap
    return figure


def plot_keypoints(
    keypoints: Sequence[Any],
    colors: Any = "lime",
    size: float = 5.0,
    alpha: float = 0.9,
    axes: Sequence[Axes] | None = None,
) -> None:
    """Draw keypoints as dots on the images of the current figure.

    Args:
        keypoints: for each image `(n, 2)`.
        colors: one colour for all, or for each image a colour or `(n, 3)` colours, such as `layer_colors` gives.
        size: diameter of a dot, in points.
        axes: where to draw; `None` takes the current figure's.

    Raises:
        ValueError: more lists of keypoints than images.
    """
    axes = _pyplot().gcf().axes if axes is None else axes
    if len(keypoints) > len(axes):
        raise ValueError(f"{len(keypoints)} lists of keypoints for {len(axes)} images.")
    each = colors if isinstance(colors, (list, tuple)) and len(colors) == len(keypoints) else [colors] * len(keypoints)
    for ax, points, color in zip(axes, keypoints, each):
        points = _to_points(points)
        ax.scatter(points[:, 0], points[:, 1], c=color, s=size**2, alpha=alpha, linewidths=0, zorder=4)


def plot_matches(
    keypoints0: Any,
    keypoints1: Any,
    color: Any = "lime",
    linewidth: float = 0.9,
    size: float = 3.0,
    alpha: float | None = None,
    axes: Sequence[Axes] | None = None,
) -> None:
    """Draw a line from each keypoint of one image to its match in another, on top of the current figure.

    Args:
        keypoints0: `(m, 2)`.
        keypoints1: `(m, 2)`, in the order of `keypoints0`.
        color: one colour, or `(m, 3)` colours, such as `score_colors` gives; matches are drawn in the given order.
        linewidth: of the lines, in points; 0 draws none.
        size: diameter of the dots at the ends, in points; 0 draws none.
        alpha: opacity of the lines; `None` makes many lines more transparent than few.
        axes: the two axes to connect; `None` takes the current figure's first two.

    Raises:
        ValueError: lists of different lengths.
    """
    axes0, axes1 = (_pyplot().gcf().axes if axes is None else axes)[:2]
    from matplotlib.collections import LineCollection
    from matplotlib.transforms import IdentityTransform

    keypoints0, keypoints1 = _to_points(keypoints0), _to_points(keypoints1)
    if len(keypoints0) != len(keypoints1):
        raise ValueError(f"{len(keypoints0)} keypoints do not match {len(keypoints1)}.")

    class Lines(LineCollection):
        """Lines whose ends are looked up at every drawing, so that they follow a zoom or a change of resolution."""

        def draw(self, renderer: Any) -> None:
            ends = axes0.transData.transform(keypoints0), axes1.transData.transform(keypoints1)
            self.set_segments(list(np.stack(ends, axis=1)))
            super().draw(renderer)

    if linewidth > 0 and len(keypoints0):
        alpha = _line_alpha(len(keypoints0)) if alpha is None else alpha
        lines = Lines([], colors=color, linewidths=linewidth, alpha=alpha, transform=IdentityTransform(), zorder=3)
        lines.set_in_layout(False)
        axes0.figure.add_artist(lines)
    if size > 0:
        plot_keypoints([keypoints0, keypoints1], [color, color], size, 1.0, [axes0, axes1])


def save_plot(path: str | os.PathLike[str], dpi: int = 200) -> None:
    """Write the current figure to a file, its kind by the suffix, without margins.

    Args:
        path: of the file to write.
        dpi: pixels per inch.
    """
    _pyplot().gcf().savefig(path, dpi=dpi, bbox_inches="tight", pad_inches=0)


def draw_matches(
    image0: Any,
    image1: Any,
    keypoints0: Any,
    keypoints1: Any,
    scores: Any | None = None,
    max_width: int | None = None,
) -> Image.Image:
    """Draw two images side by side, aligned at the top on black, with lines from red (low scores) to green (high).

    Lines are drawn at twice the resolution and averaged; the best matches lie on top.

    Args:
        image0: PIL image, array or tensor `(h, w)`, `(h, w, c)` or `(c, h, w)`, or path.
        image1: the same.
        keypoints0: `(m, 2)`; may be empty.
        keypoints1: `(m, 2)`, in the order of `keypoints0`.
        scores: `(m,)` in [0, 1]; `None` draws all lines green.
        max_width: bring both images to the height of the higher one, or to less, so that the drawing is no wider
            than so many pixels; `None` leaves them as they are.

    Returns:
        RGB image of size `(w0 + w1, max(h0, h1))`.

    Raises:
        ValueError: lists of different lengths.
    """
    points0, points1 = _to_points(keypoints0), _to_points(keypoints1)
    scores = np.ones(len(points0)) if scores is None else _to_numpy(scores)
    if not len(points0) == len(points1) == len(scores):
        raise ValueError(f"{len(points0)} keypoints, {len(points1)} keypoints and {len(scores)} scores do not match.")
    canvas, place0, place1 = _side_by_side(image0, image1, max_width)
    if not len(points0):
        return canvas
    order = np.argsort(scores, kind="stable")
    ends0, ends1 = place0(points0[order]), place1(points1[order])
    colors = _to_bytes(score_colors(scores[order]))
    opacity = round(255 * _line_alpha(len(points0)))
    with _finely(canvas) as pen:
        for end0, end1, color in zip(ends0, ends1, colors):
            pen.line(end0, end1, (*color, opacity))
        for ends in (ends0, ends1):
            for end, color in zip(ends, colors):
                pen.dot(end, color)
    return canvas


def draw_pruning(
    image0: Any,
    image1: Any,
    keypoints0: Any,
    keypoints1: Any,
    prune0: Any,
    prune1: Any,
    num_layers: int,
    max_width: int | None = None,
) -> Image.Image:
    """Draw the keypoints of two images side by side, from purple (pruned early) to yellow (kept), with a key below.

    Args:
        image0, image1: as in `draw_matches`.
        keypoints0, keypoints1: `(n0, 2)` and `(n1, 2)`; may be empty.
        prune0, prune1: `(n0,)` and `(n1,)`, as in the model's output; see `pruned_after`.
        num_layers: of the model.
        max_width: as in `draw_matches`.

    Returns:
        RGB image, a little higher than that of `draw_matches`.

    Raises:
        ValueError: lists of different lengths.
        ImportError: matplotlib is not installed.
    """
    points0, points1 = _to_points(keypoints0), _to_points(keypoints1)
    if len(points0) != len(prune0) or len(points1) != len(prune1):
        raise ValueError(f"{len(points0)} and {len(points1)} keypoints, but {len(prune0)} and {len(prune1)} layers.")
    canvas, place0, place1 = _side_by_side(image0, image1, max_width)
    points = np.concatenate([place0(points0), place1(points1)])
    layers = np.concatenate([pruned_after(prune, num_layers) for prune in (prune0, prune1)])
    order = np.argsort(layers, kind="stable")  # those that are kept lie on top
    with _finely(canvas) as pen:
        for point, color in zip(points[order], _to_bytes(layer_colors(layers[order], num_layers))):
            pen.dot(point, color)
    present, counts = np.unique(layers, return_counts=True)
    names = ["kept" if layer == num_layers else f"pruned after layer {layer}" for layer in present]
    entries = [f"{name}: {count}" for name, count in zip(names, counts)]
    return _with_key(canvas, entries, _to_bytes(layer_colors(present, num_layers)))


def pruned_after(prune: Any, num_layers: int) -> np.ndarray:
    """The layer after which each keypoint of an image was pruned; `num_layers` for those that were kept.

    Kept are the keypoints that survived the most rounds of pruning.

    Args:
        prune: `(n,)`, as in the model's output: 1 + the rounds of pruning survived.
        num_layers: of the model.
    """
    prune = _to_numpy(prune).astype(int)
    return np.where(prune == prune.max(initial=0), num_layers, prune)


def draw_epipolar_lines(
    image0: Any,
    image1: Any,
    fundamental: Any,
    points: Sequence[tuple[int, float, float]],
    max_width: int | None = None,
) -> Image.Image:
    """Draw two images side by side, with points of either and, in the same colour, the epipolar line in the other.

    Args:
        image0, image1: as in `draw_matches`.
        fundamental: `(3, 3)` with `x1^T F x0 = 0`.
        points: the image, 0 or 1, and the (x, y) of each.
        max_width: as in `draw_matches`.

    Returns:
        RGB image of the size of that of `draw_matches`.
    """
    images = [_to_rgb(image) for image in (image0, image1)]
    canvas, *places = _side_by_side(images[0], images[1], max_width)
    to_other = np.asarray(fundamental, dtype=float)
    with _finely(canvas) as pen:
        for (view, x, y), color in zip(points, itertools.cycle(LINE_COLORS)):
            line = epipolar_line(to_other.T if view else to_other, (x, y), images[1 - view].shape[:2])
            if line is not None:
                start, end = places[1 - view](line)
                pen.line(start, end, (*color, 255), width=2.5)
            pen.dot(places[view](np.array([x, y])), color, radius=5)
    return canvas


def epipolar_line(fundamental: Any, point: Any, image_size: tuple[int, int]) -> np.ndarray | None:
    """Where the other view of a point of the first image lies in the second.

    Args:
        fundamental: `(3, 3)` with `x1^T F x0 = 0`; its transpose for a point of the second image.
        point: (x, y).
        image_size: (height, width) of the second image.

    Returns:
        `(2, 2)`, the ends of the line on the borders of that image; `None` where it passes by.
    """
    a, b, c = np.asarray(fundamental, dtype=float) @ [*point, 1.0]
    left, top = -0.5, -0.5
    bottom, right = image_size[0] - 0.5, image_size[1] - 0.5
    slack = 1e-6  # pixels, for rounding at a corner
    crossings = [(x, -(a * x + c) / b) for x in (left, right) if b]
    crossings += [(-(b * y + c) / a, y) for y in (top, bottom) if a]
    inside = [
        (x, y) for x, y in crossings if left - slack <= x <= right + slack and top - slack <= y <= bottom + slack
    ]
    on_border = np.array(inside).reshape(-1, 2)
    if len(on_border) < 2:
        return None
    distances = np.linalg.norm(on_border - on_border[0], axis=1)  # one through a corner crosses two borders there
    return on_border[[0, distances.argmax()]]


def _side_by_side(image0: Any, image1: Any, max_width: int | None) -> tuple[Image.Image, Place, Place]:
    """Two images beside each other on black, see `draw_matches`, and where points `(..., 2)` of each come to lie."""
    images = [Image.fromarray(_to_rgb(image)) for image in (image0, image1)]
    sizes = [image.size for image in images]
    if max_width is not None:
        sizes = one_height(sizes[0], sizes[1], max_width)
    canvas = Image.new("RGB", (sizes[0][0] + sizes[1][0], max(sizes[0][1], sizes[1][1])))
    places = []
    for image, size, left in zip(images, sizes, (0, sizes[0][0])):
        canvas.paste(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS), (left, 0))
        scale, shift = np.array(size) / image.size, np.array([left, 0]) - 0.5
        places.append(lambda points, scale=scale, shift=shift: (points + 0.5) * scale + shift)
    return canvas, places[0], places[1]


def one_height(size0: tuple[int, int], size1: tuple[int, int], max_width: int) -> list[tuple[int, int]]:
    """The (width, height) of two images at the height of the higher one, or less, to be no wider than `max_width`."""
    height = max(size0[1], size1[1])
    width = sum(height * size[0] / size[1] for size in (size0, size1))
    height = max(1, math.floor(height * min(1.0, max_width / width)))
    return [(max(1, math.floor(size[0] * height / size[1])), height) for size in (size0, size1)]


class _Pen:
    """Draws on a canvas of twice the resolution; points and lengths are in pixels of the picture."""

    def __init__(self, draw: ImageDraw.ImageDraw, picture: Image.Image) -> None:
        self.draw = draw
        self.unit = FINE * max(1.0, max(picture.size) / 1600)  # about one pixel on a screen

    def line(self, start: np.ndarray, end: np.ndarray, color: tuple[int, ...], width: float = 1.5) -> None:
        self.draw.line((*self._pixel(start), *self._pixel(end)), fill=color, width=round(width * self.unit))

    def dot(self, point: np.ndarray, color: tuple[int, ...], radius: float = 2.3) -> None:
        (x, y), r = self._pixel(point), radius * self.unit
        outline = round(0.6 * self.unit)
        self.draw.ellipse([x - r, y - r, x + r, y + r], fill=(*color, 255), outline=(0, 0, 0, 160), width=outline)

    @staticmethod
    def _pixel(point: np.ndarray) -> list[float]:
        return np.floor((point + 0.5) * FINE).tolist()  # Pillow draws on whole pixels


@contextmanager
def _finely(picture: Image.Image) -> Iterator[_Pen]:
    """Draw on a picture at twice its resolution, which is averaged then."""
    fine = picture.resize((picture.width * FINE, picture.height * FINE), Image.Resampling.NEAREST)
    yield _Pen(ImageDraw.Draw(fine, "RGBA"), picture)
    picture.paste(fine.reduce(FINE))


def _with_key(picture: Image.Image, entries: Sequence[str], colors: Sequence[tuple[int, ...]]) -> Image.Image:
    """The picture, with what each colour means in lines below it."""
    size = max(11, round(picture.width / 75))
    font, gap = ImageFont.load_default(size), size // 2
    places, x, row = [], gap, 0
    for entry in entries:
        width = round(1.5 * size + font.getlength(entry))
        if x + width > picture.width and x > gap:
            x, row = gap, row + 1
        places.append((x, picture.height + gap + row * (size + gap)))
        x += width + 2 * gap
    higher = Image.new("RGB", (picture.width, picture.height + gap + (row + 1) * (size + gap)), "white")
    higher.paste(picture, (0, 0))
    draw = ImageDraw.Draw(higher)
    for entry, color, (x, y) in zip(entries, colors, places):
        draw.ellipse([x, y, x + size, y + size], fill=color, outline=(90, 90, 90))
        draw.text((x + 1.5 * size, y + size / 2), entry, fill="black", font=font, anchor="lm")
    return higher


def draw_pairs(pairs: PlanarPairs, keypoints: Any, matches: Any, zoom: int = 2, legend: bool = False) -> Image.Image:
    """Draw pairs with known geometry, one a row: both views with their matches, then the clean views by layers.

    The lines of a row are coloured from the left to the right of its first view; blue dots are keypoints without a
    match. In the clean views each layer has a tint, and what is off its canvas is dark.

    Args:
        pairs: of `batch` pairs.
        keypoints: `(batch, 2, n, 2)`, pixels of the views.
        matches: `(batch, 2, n)`, of each keypoint the index of its match in the other view, -1 for none; -2 draws
            nothing.
        zoom: whole number of pixels for each pixel of the views.
        legend: write below what is what.

    Returns:
        RGB image of size `(4 * width * zoom, batch * height * zoom)`, and with a legend higher than that.
    """
    keypoints, matches = _to_numpy(keypoints), _to_numpy(matches).astype(int)
    views, clean, layers = (_to_numpy(values) for values in (pairs.images, pairs.clean, pairs.layers))
    batch, _, height, width = views.shape
    tints = np.append(np.array(LAYER_TINTS), np.full((256 - len(LAYER_TINTS), 3), 0.25), axis=0)
    picture = Image.new("RGB", (4 * width * zoom, batch * height * zoom))
    for row in range(batch):
        left, right = (np.kron(view, np.ones((zoom, zoom))) for view in views[row])
        tinted = np.concatenate(list(clean[row, :, ..., None] * tints[layers[row].astype(int)]), axis=1)
        matched = np.flatnonzero(matches[row, 0] >= 0)
        places = (keypoints[row] + 0.5) * zoom - 0.5
        ends0, ends1 = places[0][matched], places[1][matches[row, 0, matched]]
        canvas = draw_matches(left, right, ends0, ends1, keypoints[row, 0, matched, 0] / width)
        draw = ImageDraw.Draw(canvas)
        for view, (points, labels) in enumerate(zip(places, matches[row])):
            for x, y in (points[labels == -1] + (view * width * zoom, 0)).tolist():
                draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=(60, 140, 255))
        picture.paste(canvas, (0, row * height * zoom))
        side = Image.fromarray((tinted * 255).astype(np.uint8)).resize((2 * width * zoom, height * zoom))
        picture.paste(side, (2 * width * zoom, row * height * zoom))
    return _with_legend(picture) if legend else picture


LEGEND = (  # under the views, and under the clean views
    ("Lines: true matches, coloured", "from left to right.", "Blue: keypoints without one."),
    ("The clean views: a tint", "for each plane.", "Dark: off its canvas."),
)


def _with_legend(picture: Image.Image) -> Image.Image:
    """The picture with lines of text below each half of it."""
    font = ImageFont.load_default()
    line = 14
    higher = Image.new("RGB", (picture.width, picture.height + line * (len(LEGEND[0]) + 1)), "white")
    higher.paste(picture, (0, 0))
    draw = ImageDraw.Draw(higher)
    for half, lines in enumerate(LEGEND):
        for index, text in enumerate(lines):
            position = 6 + half * picture.width // 2, picture.height + line * index + line // 2
            draw.text(position, text, fill="black", font=font)
    return higher


def _line_alpha(count: int) -> float:
    """Return the opacity at which `count` lines leave the photos visible."""
    return float(np.clip(9 / np.sqrt(count), 0.35, 0.9))


def _pyplot() -> Any:
    return import_optional("matplotlib.pyplot", "plot")


def _to_numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().float().numpy() if isinstance(values, torch.Tensor) else np.asarray(values, float)


def _to_bytes(colors: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(color) for color in np.round(255 * colors).astype(int).tolist()]


def _to_points(keypoints: Any) -> np.ndarray:
    return _to_numpy(keypoints).reshape(-1, 2)


def _to_rgb(image: Any) -> np.ndarray:
    """Return any image as `(h, w, 3)` uint8."""
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        image = load_image(image)
    return to_rgb(image)
