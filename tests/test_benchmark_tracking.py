"""The truth of the made videos, and the figures that are taken by it."""

import numpy as np
import pytest

from lightglue_hf.evaluation.metrics import project

cv2 = pytest.importorskip("cv2")
pytest.importorskip("skimage.data")

from benchmarks.photos import HEIGHT, WIDTH  # noqa: E402 - after what may be missing
from benchmarks.tracking import (  # noqa: E402
    VIDEOS,
    Entry,
    Made,
    covered,
    kept,
    lucas_kanade,
    make,
    markdown,
    sift,
    track_lengths,
    view,
)


@pytest.fixture(scope="module", params=list(VIDEOS))
def made(request):
    return make(request.param, 9)


def test_the_views_say_where_everything_is(made):
    """The first frame, warped as they say, is the last one; but for light, blur and what stands before it."""
    first, last = (made.frames[t].astype(np.float32).mean(2) for t in (0, -1))
    matrix = np.linalg.inv(made.views[-1]) @ made.views[0]
    there = cv2.warpPerspective(first, matrix, (WIDTH, HEIGHT), borderValue=-1)
    seen = (there >= 0) & ~made.hidden[-1]
    seen &= cv2.warpPerspective(made.hidden[0].astype(np.float32), matrix, (WIDTH, HEIGHT)) < 0.01
    moved = np.abs(matrix / matrix[2, 2] - np.eye(3)).max()
    assert moved > 1
    assert seen.mean() > 0.3
    right, wrong = (np.corrcoef(image[seen], last[seen])[0, 1] for image in (there, first))
    assert right > 0.9
    assert right > wrong + 0.1


def test_a_walk_is_smooth_and_stays_on_the_wall():
    phases = np.random.default_rng(0).uniform(0, 6, 6)
    corners = np.array([(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)], float)
    places = np.array([project(view(t, phases, 1.5), corners) for t in range(300)])
    assert places.min() > 0
    assert places[..., 0].max() < 1920
    assert places[..., 1].max() < 1440
    steps = np.linalg.norm(np.diff(places, axis=0), axis=2)
    assert 3 < steps.mean() < 40
    assert steps.max() < 60


def still(count=40):
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return Made([blank] * count, np.repeat(np.eye(3)[None], count, 0), [np.zeros((HEIGHT, WIDTH), bool)] * count)


def test_points_count_that_are_near_their_place_and_could_be_seen():
    made = still()
    made.hidden[30] = made.hidden[30].copy()
    made.hidden[30][:, :100] = True
    made.views[30] = np.array([[1, 0, -50], [0, 1, 0], [0, 0, 1.0]])  # 50 pixels to the right in the picture
    start = np.arange(5), np.array([[200.0, 50], [300, 50], [400, 50], [620, 50], [20, 50]])
    nobody = np.zeros(0, int), np.zeros((0, 2))
    end = np.array([1, 0, 7]), np.array([[351.0, 51], [253, 50], [450, 50]])
    followed = [start, *[nobody] * 29, end, *[nobody] * 9]
    # of 0, 1, 2 (3 has left, 4 is hidden) 0 is too far, 1 is right, and 2 is on another track
    assert kept(made, followed, 30, starts=(0,)) == (1, 3)
    assert kept(made, followed, 100) == (0, 0)


def test_lengths_are_of_tracks_that_go_on():
    followed = [(np.array(ids), np.zeros((len(ids), 2))) for ids in ([0, 1], [0, 2], [0, 2], [3])]
    assert sorted(track_lengths(followed)) == [2, 3]


def test_hidden_points():
    hidden = np.zeros((HEIGHT, WIDTH), bool)
    hidden[10:20, 30:40] = True
    assert covered(hidden, np.array([[30.4, 10], [29.4, 10], [-3, 900]])).tolist() == [True, False, False]


@pytest.mark.parametrize("contestant", [lucas_kanade, sift])
def test_classical_contestants_follow(contestant):
    made = make("motion", 6)
    follow = contestant()
    followed = [follow(frame) for frame in made.frames]
    for ids, points in followed:
        assert len(ids) == len(points) == len(set(ids.tolist())) > 100
    right, possible = kept(made, followed, 5, starts=(0,))
    assert right > 0.3 * possible


def test_the_table_has_every_figure():
    entry = Entry("xfeat, OpenVINO", lucas_kanade, [14.0, 16.0, 17.0], [np.array([2, 4])])
    entry.kept = {("motion", 30): (3, 4), ("motion", 100): (1, 4), ("blur", 30): (1, 4), ("blur", 100): (1, 4)}
    text = markdown([entry], ["motion", "blur"], 1.1, 3.0)
    assert (
        "| xfeat, OpenVINO | 16.0 (14.0 - 17.0) | 17.6 | 3.0 | 50% | 25% | at least 15 frames a second: met |" in text
    )
    assert "| xfeat, OpenVINO | 75%, 25% | 25%, 25% |" in text
