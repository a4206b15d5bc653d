"""What is drawn is where it should be, in the right colour, and nothing to draw is no error."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import visualization
from lightglue_hf.data.homographies import OUTSIDE, PlanarPairs
from lightglue_hf.visualization import (
    LAYER_TINTS,
    draw_matches,
    draw_pairs,
    layer_colors,
    plot_images,
    plot_keypoints,
    plot_matches,
    save_plot,
    score_colors,
)

GREY = np.full((60, 80, 3), 128, np.uint8)
DARK = np.zeros((40, 50), np.uint8)
NONE = np.zeros((0, 2))


@pytest.fixture
def plt():
    plt = pytest.importorskip("matplotlib.pyplot")
    yield plt
    plt.close("all")


def rendered(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def test_scores_go_from_red_to_green():
    colors = score_colors(torch.linspace(-1, 2, 31))
    assert colors.shape == (31, 3)
    assert np.array_equal(colors[0], score_colors([0.0])[0])
    assert np.array_equal(colors[-1], score_colors([1.0])[0])
    assert colors[0, 0] > 2 * colors[0, 1]
    assert colors[-1, 1] > 2 * colors[-1, 0]
    difference = np.diff(colors[:, 1] - colors[:, 0])
    assert (difference >= 0).all()
    assert score_colors([]).shape == (0, 3)


def test_layers_have_colours_of_their_own(plt):
    colors = layer_colors(torch.arange(1, 10))
    assert len(np.unique(colors.round(3), axis=0)) == 9
    assert np.array_equal(layer_colors([3], num_layers=9)[0], colors[2])
    assert layer_colors([]).shape == (0, 3)


# ---- Pillow


def test_images_without_matches_are_only_put_side_by_side():
    drawn = np.asarray(draw_matches(GREY, DARK + 9, NONE, NONE, torch.zeros(0)))
    assert drawn.shape == (60, 130, 3)
    assert np.array_equal(drawn[:, :80], GREY)
    assert (drawn[:40, 80:] == 9).all()
    assert (drawn[40:, 80:] == 0).all()


def test_images_of_different_sizes_come_to_one_height_and_no_more_than_a_width():
    tall = np.full((400, 100, 3), 200, np.uint8)
    drawn = draw_matches(tall, GREY, [[50, 200]], [[40, 30]], max_width=10_000)
    assert drawn.size == (100 + 400 * 80 // 60, 400)
    pixels = np.asarray(drawn).astype(int)
    green = 255 * score_colors([1.0])[0]
    for x, y in ((50, 200), (100 + round(40.5 * 400 / 60 - 0.5), round(30.5 * 400 / 60 - 0.5))):
        assert np.abs(pixels[y, x] - green).max() < 3, "the points move along"
    narrow = draw_matches(tall, GREY, NONE, NONE, max_width=300)
    assert 290 <= narrow.width <= 300
    assert narrow.height / 400 == pytest.approx(narrow.width / 633, abs=0.01)
    assert np.array_equal(draw_matches(GREY, GREY, NONE, NONE, max_width=160), draw_matches(GREY, GREY, NONE, NONE))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, Image.fromarray, lambda a: a / 255])
def test_images_may_be_of_any_kind(kind):
    assert np.array_equal(np.asarray(draw_matches(kind(GREY), kind(DARK), NONE, NONE))[:, :80], GREY)


def test_a_match_is_drawn_between_its_points_in_its_colour():
    for score in (0.0, 1.0):
        drawn = np.asarray(draw_matches(GREY, DARK, [[10, 20]], [[30, 5]], [score])).astype(int)
        color = 255 * score_colors([score])[0]
        assert np.abs(drawn[20, 10] - color).max() < 3
        assert np.abs(drawn[5, 110] - color).max() < 3
        changed = np.abs(drawn - np.asarray(draw_matches(GREY, DARK, NONE, NONE)).astype(int)).sum(-1) > 0
        ys, xs = np.nonzero(changed)
        assert np.abs((20 + (xs - 10) * (5 - 20) / 100) - ys).max() < 4
        assert (xs.min(), xs.max()) == (pytest.approx(10, abs=3), pytest.approx(110, abs=3))


@pytest.mark.parametrize("shift", [0, 0.25, 0.5])
def test_dots_and_lines_are_centred_on_their_points(shift):
    """Up to a quarter pixel, half of what twice the resolution can show, and their own asymmetry."""
    drawn = np.asarray(draw_matches(DARK, DARK, [[10, 20 + shift]], [[10, 20 + shift]])).sum(-1).astype(float)
    for column in (10, 35, 60):
        rows = drawn[:, column - 3 : column + 4].sum(1)
        assert rows @ np.arange(40) / rows.sum() == pytest.approx(20 + shift, abs=0.35)
    for x, side in ((10, slice(0, 10)), (60, slice(61, None))):  # the ends, away from the line
        columns = np.nonzero(drawn[20, side])[0] + (side.start or 0)
        assert abs(abs(columns - x).max() - 3) <= 1


def test_the_best_match_lies_on_top():
    top = np.asarray(draw_matches(GREY, GREY, [[9, 30]] * 2, [[70, 30]] * 2, [1.0, 0.0])).astype(int)
    assert np.abs(top[30, 9] - 255 * score_colors([1.0])[0]).max() < 3


def test_lists_of_different_lengths_are_refused(plt):
    with pytest.raises(ValueError, match="do not match"):
        draw_matches(GREY, DARK, [[1, 2]], NONE)
    with pytest.raises(ValueError, match="do not match"):
        draw_matches(GREY, DARK, [[1, 2]], [[1, 2]], [0.5, 0.5])
    plot_images([GREY, DARK])
    with pytest.raises(ValueError, match="do not match"):
        plot_matches([[1, 2]], NONE)
    with pytest.raises(ValueError, match="3 lists of keypoints for 2 images"):
        plot_keypoints([NONE] * 3)


# ---- matplotlib


def test_images_keep_their_shape_and_height(plt):
    figure = plot_images([GREY, DARK], titles=["left", "right"])
    figure.canvas.draw()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert boxes[0].height == pytest.approx(boxes[1].height)
    assert [box.width / box.height for box in boxes] == [pytest.approx(80 / 60), pytest.approx(50 / 40)]
    assert [axes.get_title() for axes in figure.axes] == ["left", "right"]


def test_lines_join_their_points_at_any_resolution(plt):
    figure = plot_images([GREY, DARK])
    plot_matches(torch.tensor([[10.0, 20.0]]), torch.tensor([[30.0, 5.0]]), "blue", linewidth=2, size=0)
    for dpi in (100, 50, 150):
        figure.set_dpi(dpi)
        image = rendered(figure)
        ys, xs = np.nonzero((image[..., 2] > 150) & (image[..., 0] < 100))
        (x0, y0), (x1, y1) = (axes.transData.transform(point) for axes, point in zip(figure.axes, ([10, 20], [30, 5])))
        assert (xs.min(), xs.max()) == (pytest.approx(x0, abs=4), pytest.approx(x1, abs=4))
        assert np.abs(image.shape[0] - ys - (y0 + (y1 - y0) / (x1 - x0) * (xs - x0))).max() < 5


def test_keypoints_are_drawn_in_their_colours(plt):
    figure = plot_images([GREY, DARK])
    plot_keypoints([[[10, 20], [70, 50]], [[5, 5]]], colors=[np.array([[1, 0, 0], [0, 1, 0]]), "blue"], alpha=1)
    image = rendered(figure)
    for axes, point, color in ((0, (10, 20), (255, 0, 0)), (0, (70, 50), (0, 255, 0)), (1, (5, 5), (0, 0, 255))):
        x, y = figure.axes[axes].transData.transform(point)
        assert tuple(image[round(image.shape[0] - y), round(x)]) == color


def test_nothing_to_draw_leaves_the_images(plt, tmp_path):
    figure = plot_images([GREY, DARK])
    before = rendered(figure)
    plot_keypoints([NONE, NONE])
    plot_matches(NONE, NONE, score_colors([]))
    assert np.array_equal(rendered(figure), before)
    save_plot(tmp_path / "empty.png", dpi=50)
    assert Image.open(tmp_path / "empty.png").width > 100


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plots_are_written(plt, tmp_path, suffix):
    plot_images([GREY, DARK], ["a", "b"])
    plot_matches([[10, 20]], [[30, 5]], score_colors([0.5]))
    save_plot(tmp_path / f"plot.{suffix}")
    assert (tmp_path / f"plot.{suffix}").stat().st_size > 500


def test_a_missing_matplotlib_is_named(monkeypatch):
    for module in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: plot_images([GREY]), lambda: plot_keypoints([NONE]), lambda: plot_matches(NONE, NONE)):
        with pytest.raises(ImportError, match=r"install lightglue-hf\[plot\]"):
            call()
    assert visualization.draw_matches(GREY, DARK, NONE, NONE).size == (130, 60)


def test_draw_pairs_shows_matches_keypoints_and_layers():
    views = torch.full((2, 2, 20, 30), 0.5)
    layers = torch.zeros(2, 2, 20, 30, dtype=torch.uint8)
    layers[0, 1, :, 15:], layers[1, 0, :10] = 1, OUTSIDE
    unused = torch.full((2, 2), -1), torch.eye(3).repeat(2, 2, 2, 1, 1)
    pairs = PlanarPairs(views, views, torch.eye(3).repeat(2, 2, 1, 1), layers, *unused)
    keypoints = torch.tensor([[[[5, 4.0], [9, 15]], [[6, 4], [25, 15]]]]).repeat(2, 1, 1, 1)
    matches = torch.tensor([[[0, -1], [0, -2]], [[-2, -2], [-2, -2]]])
    picture = np.asarray(draw_pairs(pairs, keypoints, matches, zoom=2)).astype(int)
    assert picture.shape == (80, 240, 3)
    saturated = np.ptp(picture, axis=-1) > 60
    assert saturated[8:10, 20:60].any(0).all(), "a line from one view to the other"
    blue = (picture[..., 2] > 200) & (picture[..., 0] < 100)
    rows, columns = np.nonzero(blue)
    assert abs(rows.mean() - 30.5) < 1, "the keypoint without a match"
    assert abs(columns.mean() - 18.5) < 1
    assert not saturated[40:, :120].any(), "what is ignored is not drawn"
    assert (picture[20, 215:] == np.floor(127.5 * np.array(LAYER_TINTS[1]))).all()
    assert (picture[45, 130:170] == 31).all(), "off the canvas"
    assert (picture[75, 130:] == 127).all()
