"""Worlds of planes under two views, as a few numbers per plane and view, sampled in NumPy.

A pure homography is the world of one plane. A world of several has a tilted background and tilted cut-outs in front of
it under two cameras, where plane k moves by `H_k = K (R + t n_k^T / d_k) K^-1`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .textures import cut_out_coverage
from .warps import matrix_of, project, sample_homography, similarity

OUTSIDE = 255
"""Layer id of a pixel that shows nothing known: it lies outside the canvas of its plane."""

TRIES = 12
"""Poses drawn for each pair; the first that has the wanted overlap is taken, or the best."""


@dataclass(eq=False)
class Plane:
    """A plane, and where two views see it.

    Attributes:
        inverses: `(2, 3, 3)`, pixel of view 0 and 1 -> pixel of the plane, with a positive third coordinate in front
            of the camera.
        canvas: which canvas it is painted with.
        gain, offset: of its tones: grey 0 to 255 of the canvas becomes `gain * grey + offset` in [0, 1].
        corner: row and column of the canvas where the plane begins.
        coverage: `(height, width)` uint8 of a cut-out; None for the whole canvas.
        shading: relative change of brightness down and across a cut-out.
    """

    inverses: np.ndarray
    canvas: int
    gain: float
    offset: float
    corner: tuple[int, int] = (0, 0)
    coverage: np.ndarray | None = None
    shading: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Changes:
    """How much two views of a world differ.

    Attributes:
        viewpoint: what changes of scale and of viewpoint are multiplied by.
        inverted: the share of planes whose tones are inverted, as on a negative.
    """

    viewpoint: float = 1.0
    inverted: float = 0.5


USUAL = Changes()


def flat_world(
    rng: np.random.Generator, canvases: tuple[int, ...], height: int, width: int, changes: Changes = USUAL
) -> list[Plane]:
    """One canvas under two homographies."""
    count, canvas_height, canvas_width = canvases
    wanted = rng.uniform(0.25, 0.95)
    zoom = np.exp(rng.uniform(-0.3, 0.5, (TRIES, 1)))
    ratio = np.exp(changes.viewpoint * np.clip(0.36 * rng.standard_normal((TRIES, 1)), -0.85, 0.85))
    fit = 1.1 * min(canvas_height / height, canvas_width / width)
    sizes = np.minimum(zoom * ratio ** [0.5, -0.5], fit)
    turned = np.where(rng.random((TRIES, 1)) < 0.7, 0, rng.uniform(0, 2 * math.pi, (TRIES, 1)))
    angles = turned + 0.15 * rng.standard_normal((TRIES, 2)) + _rolls(rng, 18)[:, None] * [0.5, -0.5]
    spare = np.maximum(0, [canvas_width, canvas_height] - zoom * [width, height]) / 2
    x, y = ((np.array([canvas_width, canvas_height]) - 1) / 2 + rng.uniform(-0.6, 0.6, (TRIES, 2)) * spare).T[
        ..., None
    ]
    warps = sample_homography(
        rng,
        height,
        width,
        rotation=0,
        scale=0,
        corners=np.minimum(changes.viewpoint * rng.uniform(0.02, 0.18, (TRIES, 1)), 0.3),
        translation=0.6 * (1.1 - wanted) * rng.random((TRIES, 1)),
        shape=(TRIES, 2),
    )
    flip = _mirror(rng, canvas_width)
    inverses = flip @ similarity(angles, sizes, x, y) @ similarity(0, 1, (1 - width) / 2, (1 - height) / 2) @ warps
    best = _best(inverses, wanted, (height, width), (canvas_height, canvas_width))
    return [Plane(inverses[best], int(rng.integers(count)), *_tones(rng, changes.inverted))]


def layered_world(
    rng: np.random.Generator,
    canvases: tuple[int, ...],
    height: int,
    width: int,
    max_layers: int,
    changes: Changes = USUAL,
) -> list[Plane]:
    """A background at a distance of 1 and tilted cut-outs under two cameras, back to front."""
    canvas_count, *canvas = canvases
    view, whole = np.array([width, height]), np.array(canvas[::-1])
    wanted = rng.uniform(0.25, 0.95)
    cameras, focal = _cameras(rng, height, width, 1.1 - wanted, changes.viewpoint)
    pixel = np.exp(-rng.uniform(-0.25, 0.35, TRIES)) / focal
    axes = _tilted(rng, TRIES, 18, 45, np.zeros(TRIES, dtype=bool))
    middle = np.broadcast_to((whole - 1) / 2, (TRIES, 2))
    inverses = _plane_inverses(cameras, axes, np.broadcast_to(_AHEAD, (TRIES, 3)), pixel, middle)
    best = _best(inverses, wanted, (height, width), (canvas[0], canvas[1]))
    background = _mirror(rng, canvas[1]) @ inverses[best]
    planes = [Plane(background, int(rng.integers(canvas_count)), *_tones(rng, changes.inverted))]

    count = int(rng.integers(1, max_layers)) if max_layers > 1 else 0
    depth = np.sort(rng.uniform(0.5, 0.93, count))[::-1]
    share = rng.uniform(0.3, 1.0, count)  # of the width of the view
    size = np.clip(share * width * np.exp(rng.uniform(-0.2, 0.5, count)), 32, whole.min()).astype(int)
    size = np.minimum(size, whole.min())
    field = depth * width / focal[best]
    offset = rng.uniform(-0.5, 0.5, (count, 2)) * view / width * field[:, None]
    origin = np.concatenate([offset, depth[:, None]], -1)
    axes = _tilted(rng, count, 25, 60, rng.random(count) < 0.4)
    middle = np.repeat((size[:, None] - 1) / 2, 2, axis=1)
    inverses = _plane_inverses(cameras[best], axes, origin, share * field / size, middle)
    for inverse, pixels in zip(inverses, size.tolist(), strict=True):
        corner = int(rng.integers(canvas[0] - pixels + 1)), int(rng.integers(canvas[1] - pixels + 1))
        down, across = rng.uniform(-0.6, 0.6, 2) * (rng.random() < 0.5)
        painted = int(rng.integers(canvas_count)), *_tones(rng, changes.inverted), corner
        planes.append(Plane(inverse, *painted, cut_out_coverage(rng, pixels), (down, across)))
    return planes


def plane_homography(plane: Plane, height: int, width: int) -> np.ndarray:
    """View 0 -> view 1 on a plane, `(3, 3)`; the third coordinate is positive in front of both cameras."""
    matrix = np.linalg.inv(plane.inverses[1]) @ plane.inverses[0]
    weight = matrix[2] @ [(width - 1) / 2, (height - 1) / 2, 1.0]
    return matrix / (abs(weight) if abs(weight) > 1e-6 else np.abs(matrix[2]).max())


def plane_placements(plane: Plane) -> np.ndarray:
    """Pixel of the canvas -> view 0 and 1, `(2, 3, 3)`; the third coordinate is positive in front of the camera."""
    top, left = plane.corner
    return np.linalg.inv(plane.inverses) @ similarity(0, 1, -left, -top)


def _tones(rng: np.random.Generator, inverted: float) -> tuple[float, float]:
    """A random contrast and polarity: `gain` and `offset` of a `Plane`."""
    middle, gain = rng.uniform(0.38, 0.62), rng.uniform(0.6, 1.7) * (1 if rng.random() < 1 - inverted else -1)
    return gain / 255, middle - gain / 2


def _mirror(rng: np.random.Generator, width: int) -> np.ndarray:
    """At random the identity or a left-right flip of an image, `(3, 3)`."""
    return np.array([[-1.0, 0.0, width - 1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) if rng.random() < 0.5 else np.eye(3)


def _rolls(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Rotations `(TRIES,)` in radians: normal for most, up to 90 degrees for 20%, up to 180 for 3%."""
    kind, normal, uniform = rng.random(TRIES), rng.standard_normal(TRIES), rng.uniform(-1, 1, TRIES)
    widest = np.where(kind < 0.03, math.pi, math.pi / 2)
    return np.where(kind < 0.23, widest * uniform, math.radians(sigma) * normal)


_AHEAD = np.array([0.0, 0.0, 1.0])


def _cameras(
    rng: np.random.Generator, height: int, width: int, spread: float, viewpoint: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of cameras `K [R | t]`, `(TRIES, 2, 3, 4)`, about a scene at z = 1, and focal lengths in pixels.

    `spread`, about 0.2 to 1, is how far they look apart; their distance is multiplied by `viewpoint`.
    """
    focal = width * rng.uniform(0.8, 1.6, TRIES)
    intrinsic = matrix_of([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])
    heading, span = rng.uniform(0, 2 * math.pi, TRIES), rng.uniform(0.05, 0.5, TRIES)
    ahead = np.clip(0.14 * rng.standard_normal(TRIES), -0.35, 0.35)
    step = np.stack([np.cos(heading) * span, 0.5 * np.sin(heading) * span, ahead], -1)
    step *= np.minimum(viewpoint, [np.inf, np.inf, 2])  # the nearer one stays before the scene
    places = step[:, None] * [[0.5], [-0.5]]
    field = 0.5 * width / focal[:, None, None]
    aims = np.pad(rng.uniform(-1, 1, (TRIES, 2, 2)) * [1, 0.75] * field * spread, [(0, 0), (0, 0), (0, 1)])
    forward = aims + _AHEAD - places
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    look = np.stack([right, np.cross(forward, right), forward], -2)
    rolls = 0.1 * rng.standard_normal((TRIES, 1)) + _rolls(rng, 12)[:, None] * [0.5, -0.5]
    turn = _rotation(_AHEAD, rolls) @ look
    return intrinsic[:, None] @ np.concatenate([turn, -turn @ places[..., None]], -1), focal


def _tilted(rng: np.random.Generator, count: int, sigma: float, limit: float, spun: np.ndarray) -> np.ndarray:
    """Two orthogonal directions of tilted planes, `(count, 3, 2)`; angles in degrees, `spun` ones are not upright."""
    tilt = np.radians(np.clip(sigma * rng.standard_normal(count), -limit, limit))
    heading = rng.uniform(0, 2 * math.pi, count)
    axis = np.stack([np.cos(heading), np.sin(heading), np.zeros(count)], -1)
    spin = np.where(spun, rng.uniform(0, 2 * math.pi, count), 0.15 * rng.standard_normal(count))
    return (_rotation(axis, tilt) @ _rotation(_AHEAD, spin))[..., :2]


def _plane_inverses(
    cameras: np.ndarray, axes: np.ndarray, origin: np.ndarray, pixel: np.ndarray, middle: np.ndarray
) -> np.ndarray:
    """View pixel -> plane pixel, with a positive third coordinate in front of the camera.

    Args:
        cameras: `(..., 2, 3, 4)`.
        axes: `(planes, 3, 2)`, the directions of the columns and rows of the plane.
        origin: `(planes, 3)`, where its middle lies.
        pixel: `(planes,)`, the width of a pixel of the plane.
        middle: `(planes, 2)`, (x, y) of its middle in these pixels.

    Returns:
        `(planes, 2, 3, 3)`.
    """
    across = axes * pixel[:, None, None]
    corner = origin[..., None] - across @ middle[..., None]
    placed = np.concatenate([across, corner], -1)  # plane pixel -> world point
    placed = np.concatenate([placed, np.broadcast_to(_AHEAD, (len(placed), 1, 3))], -2)
    # inv(P) (x, y, 1) = (u, v, 1) / depth: positive in front; only the scale is free.
    inverses = np.linalg.inv(cameras @ placed[:, None])
    return inverses / np.abs(inverses[..., 2:, :]).max(-1, keepdims=True)


def _rotation(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rodrigues' formula for unit axes `(..., 3)` and angles `(...)` in radians, `(..., 3, 3)`."""
    x, y, z = np.moveaxis(axis, -1, 0)
    cross = matrix_of([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    sin, cos = np.sin(angle)[..., None, None], np.cos(angle)[..., None, None]
    return np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)


def _best(inverses: np.ndarray, wanted: float, view: tuple[int, int], canvas: tuple[int, int]) -> int:
    """The first of tries `(tries, 2, 3, 3)` within 0.15 of the wanted overlap and 85% on the canvas, or the best."""
    missed = np.maximum(np.abs(_overlap(inverses, view) - wanted) - 0.15, 0)
    on_canvas = seen_share(inverses, view, canvas)[0].min(-1)
    return int(np.argmax(np.minimum(on_canvas / 0.85, 1) - missed))


def _overlap(inverses: np.ndarray, view: tuple[int, int]) -> np.ndarray:
    """How much two views `(..., 2, 3, 3)` share: the geometric mean of the shares of each that the other one sees.

    A zoom by two about the centre counts 1/2. It is 0 if any of one view lies behind the other camera.
    """
    share, weight = seen_share(np.linalg.inv(inverses[..., ::-1, :, :]) @ inverses, view, view)
    regular = weight.min(-1) > 0.05 * np.abs(weight[..., weight.shape[-1] // 2])
    return np.sqrt((share * regular).prod(-1))


def seen_share(matrices: np.ndarray, view: tuple[int, int], image: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The share of a view that falls on an image, `(...)`, and the third coordinates over the view `(..., 81)`."""
    moved, weight = project(matrices, _lattice(*view))
    inside = ((moved >= 0) & (moved <= [image[1] - 1, image[0] - 1])).all(-1) & (weight > 0)
    return inside.mean(-1), weight


@lru_cache(maxsize=16)
def _lattice(height: int, width: int) -> np.ndarray:
    """A grid of 9x9 points over an image, `(81, 2)`, the centre in the middle of the list."""
    xs, ys = np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9))
    return np.stack([xs.ravel(), ys.ravel()], 1)
