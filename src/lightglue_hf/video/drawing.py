"""Tracks and outlines, drawn on frames."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .points import Tracks

GOLDEN = 0.618034  # steps of the hue: ids that follow each other look different
COLORS = [
    tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(GOLDEN * i % 1, 0.75 + 0.25 * (i % 2), 1.0))
    for i in range(128)
]
OUTLINE = (60, 255, 90)
SCREEN = 640  # pixels of the longer side that lines of one pixel are right for


class Trails:
    """Draws the points of each frame, with where they were in the frames before.

    Args:
        length: of a trail, in frames.
    """

    def __init__(self, length: int = 15) -> None:
        self.length = length
        self.frame = 0
        self.paths: dict[int, list[tuple[int, float, float]]] = {}

    def draw(self, image: np.ndarray, tracks: Tracks) -> np.ndarray:
        """The frame `(height, width, 3)` uint8 with its tracks on it; new points, which may be seen once only, not.

        Args:
            image: left as it is.
            tracks: with positions in pixels of the image.
        """
        self.frame += 1
        first = self.frame - self.length
        for id, (x, y) in zip(tracks.ids.tolist(), tracks.positions.tolist()):
            path = self.paths.setdefault(id, [])
            path.append((self.frame, x, y))
        self.paths = {id: path[-self.length :] for id, path in self.paths.items() if path[-1][0] > first}
        picture = Image.fromarray(image)
        draw = ImageDraw.Draw(picture)
        unit = max(1, round(max(picture.size) / SCREEN))
        for id in tracks.ids[tracks.ages > 1].tolist():
            points = [(x, y) for frame, x, y in self.paths[id] if frame > first]
            color = COLORS[id % len(COLORS)]
            if len(points) > 1:
                draw.line(points, fill=color, width=unit)
            x, y = points[-1]
            radius = 1.5 * unit
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        return np.asarray(picture)


def draw_outline(image: np.ndarray, outline: np.ndarray | None, color: Any = OUTLINE) -> np.ndarray:
    """The frame `(height, width, 3)` uint8 with a closed outline `(k, 2)` on it; as it is with `None`."""
    if outline is None:
        return image
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    unit = max(1, round(max(picture.size) / SCREEN))
    closed = [tuple(point) for point in np.concatenate([outline, outline[:2]]).tolist()]
    for width, fill in ((5 * unit, (0, 0, 0)), (3 * unit, color)):
        draw.line(closed, fill=fill, width=width, joint="curve")
    return np.asarray(picture)


def draw_text(image: np.ndarray, text: str) -> np.ndarray:
    """The frame with a line of text in its upper left corner."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, round(max(picture.size) / 45)))
    left, top, right, bottom = draw.textbbox((6, 4), text, font=font)
    draw.rectangle((left - 6, top - 4, right + 6, bottom + 4), fill=(0, 0, 0))
    draw.text((6, 4), text, fill=(255, 255, 255), font=font)
    return np.asarray(picture)
