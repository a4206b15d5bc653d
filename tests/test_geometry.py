"""Sizes, resizing, and which points lie on an image or nearest to each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightglue_hf.geometry import (
    mutual_nearest,
    pixels_inside,
    points_inside,
    resized_shape,
    scale_keypoints,
    turn_keypoints,
)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 3000))
def test_a_resize_keeps_the_aspect_and_a_pixel_at_least(height, width, longest):
    h, w = resized_shape(height, width, {"longest_edge": longest})
    assert max(h, w) == longest
    assert min(h, w) >= 1
    assert abs(h * width - w * height) <= max(height, width) / 2 + 1 or min(h, w) == 1
    assert resized_shape(height, width, {"height": 48, "width": 64}) == (48, 64)


def test_a_resize_takes_borders_to_borders():
    corners = torch.tensor([[-0.5, -0.5], [639.5, 479.5], [0.0, 0.0]])
    moved = scale_keypoints(corners, (480, 640), (960, 320))
    assert moved.tolist() == [[-0.5, -0.5], [319.5, 959.5], [-0.25, 0.5]]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_point_is_inside_where_a_pixel_is(as_tensor):
    x = np.array([-0.51, -0.5, 0, 9.49, 9.5, 5, 5, 5, 5])
    y = np.array([2, 2, 2, 2, 2, -0.51, -0.5, 4.49, 4.5])
    points = np.stack([x, y], -1)
    expected = [False, True, True, True, False, False, True, True, False]
    given = torch.from_numpy(points) if as_tensor else points
    assert points_inside(given, (5, 10)).tolist() == expected
    size = torch.tensor([5, 10]) if as_tensor else np.array([5, 10])
    assert points_inside(given, size).tolist() == expected


def test_pixels_inside_are_points_inside():
    sizes = torch.tensor([[5, 7], [0, 3], [9, 9]])
    inside = pixels_inside(sizes, 8, 9)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(9), indexing="ij")
    for mask, size in zip(inside, sizes):
        assert torch.equal(mask, points_inside(torch.stack([x, y], -1), size))
    assert pixels_inside(sizes[:1], 8, 9, border=2).nonzero()[:, 1:].amin(0).tolist() == [2, 2]
    assert pixels_inside(sizes[:1], 8, 9, border=2).nonzero()[:, 1:].amax(0).tolist() == [2, 4]
    assert pixels_inside(sizes[:1], 8, 9, border=2, far_borders=False).nonzero()[:, 1:].amax(0).tolist() == [4, 6]


def test_mutual_nearest_goes_both_ways():
    distances = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(0))
    nearest0, mutual0, nearest1, mutual1 = mutual_nearest(distances)
    for row in range(2):
        for i in range(9):
            j = int(distances[row, i].argmin())
            assert nearest0[row, i] == j
            assert mutual0[row, i] == (int(distances[row, :, j].argmin()) == i)
    assert mutual0.sum() == mutual1.sum()
    swapped = mutual_nearest(distances.transpose(1, 2))
    assert torch.equal(swapped[0], nearest1)
    assert torch.equal(swapped[1], mutual1)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(-5, 5))
def test_keypoints_turn_with_their_pixels(height, width, turns):
    image = torch.arange(height * width).view(height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([x, y], -1).flatten(0, 1).float()
    turned = image.rot90(turns)
    moved = turn_keypoints(points, (height, width), turns)
    x, y = moved.long().unbind(-1)
    assert torch.equal(turned[y, x], image.flatten())
    assert torch.equal(turn_keypoints(moved, turned.shape, -turns), points)


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(0, 3))
def test_turned_keypoints_return_exactly(height, width, turns):
    """Also from between the pixels: a 256th of a pixel is a number of float32 in photos of 65,536 pixels."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(50, 2, generator=generator) * torch.tensor([width, height])
    points = (points * 256).round() / 256 - 0.5
    size = (height, width) if turns % 2 == 0 else (width, height)
    moved = turn_keypoints(points, (height, width), turns)
    assert torch.equal(turn_keypoints(moved, size, -turns), points)
    assert points_inside(moved, size).sum() >= points_inside(points, (height, width)).sum() - 2, "borders to borders"
