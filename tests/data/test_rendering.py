"""Painting of planes: to the pixel, without aliasing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightglue_hf.data import rendering
from lightglue_hf.data.rendering import Stroke, render
from lightglue_hf.data.warps import similarity
from lightglue_hf.data.worlds import Plane


def stroke(inverses: np.ndarray, view: int, order: int = 0, **settings: Any) -> Stroke:
    plane = Plane(inverses, canvas=0, gain=1 / 255, offset=0.0, **settings)
    return Stroke(plane, side=view, view=view, order=order, layer=order)


def test_planes_are_painted_pixel_exactly() -> None:
    """A canvas seen from 3 and 4 pixels further on, and a cut-out in front that moves by other whole pixels."""
    canvas = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 50, 60), dtype=np.uint8))
    behind = np.stack([np.eye(3), similarity(0, 1, 3, 4)])
    front = np.stack([similarity(0, 1, -7, -5), similarity(0, 1, 4 - 7, -3 - 5)])
    cut_out = {"coverage": np.full((9, 11), 255, dtype=np.uint8), "corner": (20, 30)}
    strokes = [stroke(behind, 0), stroke(front, 0, 1, **cut_out), stroke(behind, 1), stroke(front, 1, 1, **cut_out)]
    for together in (False, True):
        grey, layers = render(strokes, canvas, (2, 40, 44), torch.device("cpu"), together)
        for view, (dx, dy, left, top) in enumerate([(0, 0, 7, 5), (3, 4, 3, 8)]):
            expected, ids = canvas[0, dy : dy + 40, dx : dx + 44] / 255, torch.zeros(40, 44)
            expected[top : top + 9, left : left + 11] = canvas[0, 20:29, 30:41] / 255
            ids[top : top + 9, left : left + 11] = 1
            torch.testing.assert_close(grey[view], expected, atol=2e-5, rtol=0)
            assert torch.equal(layers[view], ids.byte())


@pytest.mark.parametrize("padding", ["reflection", "zeros"])
def test_antialiased_sampling_keeps_the_place(padding: str) -> None:
    """A halved or a third-sized dot stays where the geometry says, however many pixels are averaged."""
    ys, xs = torch.meshgrid(torch.arange(121.0), torch.arange(161.0), indexing="ij")
    dot = torch.exp(-((xs - 71) ** 2 + (ys - 53) ** 2) / (2 * 5.0**2))[None, None]
    folds = []
    for factor in (1.0, 1.6, 2.0, 3.0):
        inverse, height, width = np.diag([factor, factor, 1.0])[None], int(120 / factor), int(160 / factor)
        boxes, fold = rendering._footprints(inverse, np.array([[121, 161]]), height, width)
        assert boxes.tolist() == [[0, 0, width, height]]
        view = rendering._sample_planes(dot, inverse, (0, 0, width, height), int(fold[0]), padding)[0][0, 0]
        grid_y, grid_x = torch.meshgrid(torch.arange(view.shape[0]), torch.arange(view.shape[1]), indexing="ij")
        assert ((view * grid_x).sum() / view.sum()).item() == pytest.approx(71 / factor, abs=0.02)
        assert ((view * grid_y).sum() / view.sum()).item() == pytest.approx(53 / factor, abs=0.02)
        folds.append(int(fold[0]))
    assert folds == [1, 2, 2, 3]


def test_small_stripes_turn_grey_and_not_coarse() -> None:
    stripes = (torch.arange(120) % 2).expand(1, 1, 120, 120).float()
    view = rendering._sample_planes(stripes, np.diag([2.1, 2.1, 1.0])[None], (0, 0, 56, 56), 2, "reflection")[0]
    assert view.sub(0.5).abs().max() < 1e-3
