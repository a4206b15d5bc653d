"""What is drawn, and what is left as it was."""

import numpy as np

from lightglue_hf.video import Tracks, Trails, draw_outline, draw_text
from lightglue_hf.video.drawing import COLORS


def at(x, y, age=2, id=3):
    one = np.array([1])
    return Tracks(id * one, np.array([[x, y]], np.float32), age * one, 0 * one, np.ones(1, np.float32), False)


def black():
    return np.zeros((60, 80, 3), np.uint8)


def test_a_point_and_its_trail_have_the_colour_of_its_track():
    trails, image = Trails(5), black()
    trails.draw(image, at(10, 30, age=1))
    drawn = trails.draw(image, at(40, 30))
    assert tuple(drawn[30, 40]) == tuple(drawn[30, 25]) == COLORS[3]
    assert not drawn[20].any()
    assert not image.any()


def test_a_new_point_is_not_drawn():
    assert not Trails().draw(black(), at(10, 30, age=1)).any()


def test_trails_end_and_are_forgotten():
    trails = Trails(3)
    for x in range(10, 60, 5):
        drawn = trails.draw(black(), at(x, 30))
    assert drawn[30, 46].any()
    assert not drawn[30, :43].any()
    nobody = Tracks(*(values[:0] for values in at(0, 0)[:5]), False)
    for _ in range(4):
        assert not trails.draw(black(), nobody).any()
    assert not trails.paths


def test_outlines_and_text():
    square = np.array([[10, 10], [60, 10], [60, 50], [10, 50]])
    drawn = draw_outline(black(), square)
    assert drawn[10, 30].any()
    assert drawn[30, 10].any()
    assert not drawn[30, 30].any()
    assert draw_outline(image := black(), None) is image
    assert draw_text(black() + 100, "12 points").max() > 200
