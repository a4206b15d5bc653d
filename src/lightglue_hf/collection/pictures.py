"""Pictures of a reconstruction, by matplotlib."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import write_atomically
from ..utils.optional import import_optional
from .photos import load_stored

SHOWN = 12
"""Photos in a picture, at most."""
EDGE = 900
"""Pixels of a photo in a picture."""
TRIANGULATED, OTHER = "#2bd448", "#e8402a"


def _pyplot() -> Any:
    import_optional("matplotlib", "collections").use("Agg", force=False)
    return import_optional("matplotlib.pyplot", "collections")


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    _pyplot().close(figure)
    write_atomically(path, buffer.getvalue())


def draw_cameras(reconstruction: Any, path: str | os.PathLike[str]) -> None:
    """Draw the cameras and points of a model from above and from the front.

    Args:
        reconstruction: `pycolmap.Reconstruction`.
        path: a .png file.
    """
    pyplot = _pyplot()
    points = np.array([point.xyz for point in reconstruction.points3D.values()]).reshape(-1, 3)
    colors = np.array([point.color for point in reconstruction.points3D.values()]).reshape(-1, 3) / 255
    poses = [reconstruction.images[i].cam_from_world() for i in sorted(reconstruction.reg_image_ids())]
    turns = np.array([pose.rotation.matrix() for pose in poses])  # world to camera
    centres = np.array([-pose.rotation.matrix().T @ pose.translation for pose in poses])
    axes = upright_axes(turns)
    points, centres = points @ axes.T, centres @ axes.T
    away = np.median(np.linalg.norm(centres - np.median(points, 0), axis=1)) if len(points) else 1.0
    corners = frustums(reconstruction, turns, 0.15 * away) @ axes.T + centres[:, None]

    figure, panels = pyplot.subplots(1, 2, figsize=(16, 8), layout="constrained")
    for panel, (x, y), title in zip(panels, ((0, 2), (0, 1)), ("from above", "from the front")):
        low, high = np.percentile(np.concatenate([points, centres]), [1, 99], axis=0)
        low, high = np.minimum(low, corners.min((0, 1))), np.maximum(high, corners.max((0, 1)))
        margin = 0.05 * (high - low).max()
        panel.scatter(points[:, x], points[:, y], s=3, c=colors * 0.85, linewidths=0)
        for centre, rim in zip(centres, corners):
            for corner in rim:
                panel.plot(*zip(centre[[x, y]], corner[[x, y]]), color="#1f5fd0", linewidth=0.8)
            loop = rim[[0, 1, 2, 3, 0]]
            panel.plot(loop[:, x], loop[:, y], color="#1f5fd0", linewidth=1.2)
        panel.set_xlim(low[x] - margin, high[x] + margin)
        panel.set_ylim(low[y] - margin, high[y] + margin)
        if y == 1:
            panel.invert_yaxis()  # down is positive
        panel.set_aspect("equal")
        panel.set_title(f"{title}: {len(poses)} cameras, {len(points)} points")
        panel.set_xticks([])
        panel.set_yticks([])
    _save(figure, Path(path))


def upright_axes(turns: np.ndarray) -> np.ndarray:
    """Right, down and ahead of all cameras together, `(3, 3)` rows in world coordinates.

    Photos are seldom rolled: down is across what is right for the cameras, and along what is down for them.

    Args:
        turns: `(cameras, 3, 3)`, world to camera.
    """
    right, below = turns[:, 0], turns[:, 1]
    down = np.linalg.eigh(right.T @ right - 1e-3 * below.T @ below)[1][:, 0]
    down = down if (below @ down).sum() >= 0 else -down
    ahead = turns[:, 2].mean(0)
    ahead = ahead - down * (ahead @ down)
    if np.linalg.norm(ahead) < 1e-6:  # they look all around
        ahead = turns[0, 2] - down * (turns[0, 2] @ down)
    if np.linalg.norm(ahead) < 1e-6:
        ahead = np.cross(turns[0, 0], down)
    ahead = ahead / np.linalg.norm(ahead)
    return np.stack([np.cross(down, ahead), down, ahead])


def frustums(reconstruction: Any, turns: np.ndarray, depth: float) -> np.ndarray:
    """The corners of what each camera sees at some depth, `(cameras, 4, 3)`, from its centre in world axes."""
    rims = []
    for i, turn in zip(sorted(reconstruction.reg_image_ids()), turns):
        camera = reconstruction.cameras[reconstruction.images[i].camera_id]
        half = np.array([camera.width, camera.height]) / 2 / camera.mean_focal_length()
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        rims.append(np.c_[corners, np.ones(4)] * depth @ turn)
    return np.array(rims)


def draw_photos(reconstruction: Any, photos: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw photos with their keypoints: green if they are of a point in space, red if not.

    Args:
        reconstruction: `pycolmap.Reconstruction`.
        photos: the folder.
        path: a .png file.
    """
    pyplot = _pyplot()
    ids = sorted(reconstruction.reg_image_ids(), key=lambda i: reconstruction.images[i].name)
    ids = [ids[i] for i in np.linspace(0, len(ids) - 1, min(SHOWN, len(ids))).astype(int)]
    columns = min(4, len(ids))
    rows = -(-len(ids) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(5 * columns, 4 * rows), layout="constrained", squeeze=False
    )
    for panel in panels.flat:
        panel.axis("off")
    for panel, i in zip(panels.flat, ids):
        image = reconstruction.images[i]
        photo = load_stored(Path(photos, image.name)).convert("RGB")
        width, height = photo.size
        photo.thumbnail((EDGE, EDGE))
        found = np.array([point.has_point3D() for point in image.points2D], dtype=bool)
        points = np.array([point.xy for point in image.points2D]).reshape(-1, 2) - 0.5  # COLMAP's to ours
        panel.imshow(photo, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        for which, color in ((~found, OTHER), (found, TRIANGULATED)):
            panel.scatter(*points[which].T, s=4, c=color, linewidths=0)
        panel.set_xlim(-0.5, width - 0.5)
        panel.set_ylim(height - 0.5, -0.5)
        panel.set_title(f"{image.name[-40:]}: {found.sum()} of {len(found)}", fontsize=9)
    _save(figure, Path(path))
