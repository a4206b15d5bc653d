"""A corner of a room, two walls and a floor with procedural textures, seen by cameras at known places."""

import numpy as np
from PIL import Image

from lightglue_hf.data.textures import render_textures

SIZE, FOCAL = (480, 360), 450.0  # (width, height), pixels
SIDE = 512  # pixels of a texture


def look(centre, target):
    """World to camera, `(3, 3)`: x right, y down, z ahead; the world's y is down."""
    ahead = np.subtract(target, centre) / np.linalg.norm(np.subtract(target, centre))
    right = np.cross([0.0, 1.0, 0.0], ahead)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(ahead, right), ahead])


def render_room(folder, views=5):
    """Save views as v0.jpg, v1.jpg and so on; their poses by name."""
    textures = render_textures(3, SIDE, SIDE, seed=3).astype(float)
    width, height = SIZE
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(x - width / 2) / FOCAL, (y - height / 2) / FOCAL, np.ones_like(x)], -1)
    poses = {}
    for i in range(views):
        centre = np.array([1.1 + 0.35 * i, 0.9 + 0.1 * (i % 2), 4.2 - 0.25 * i])
        turn = look(centre, [0.9, 1.2, 0.9])
        world = rays @ turn
        nearest, grey = np.full(x.shape, np.inf), np.full(x.shape, 128.0)
        # each plane: the axis that it is across, where it lies, and the axes along it; all are 2 by 2
        for texture, (axis, place, along) in zip(textures, ((2, 0.0, (0, 1)), (0, 0.0, (2, 1)), (1, 2.0, (0, 2)))):
            distance = (place - centre[axis]) / world[..., axis]
            u, v = ((centre[k] + distance * world[..., k]) / 2 * SIDE - 0.5 for k in along)
            seen = (distance > 0) & (distance < nearest) & (np.minimum(u, v) > 0) & (np.maximum(u, v) < SIDE - 1)
            column, row = np.where(seen, u, 0).astype(int), np.where(seen, v, 0).astype(int)
            right, down = np.where(seen, u, 0) - column, np.where(seen, v, 0) - row
            shade = (1 - down) * ((1 - right) * texture[row, column] + right * texture[row, column + 1])
            shade += down * ((1 - right) * texture[row + 1, column] + right * texture[row + 1, column + 1])
            nearest, grey = np.where(seen, distance, nearest), np.where(seen, shade, grey)
        name = f"v{i}.jpg"
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB").save(folder / name, quality=95)
        poses[name] = (turn, centre)
    return poses
