"""Points that optical flow follows through made pictures: where they are is known."""

import numpy as np
import pytest

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor, bundled_checkpoint
from lightglue_hf.data.textures import render_textures
from lightglue_hf.evaluation.metrics import project
from lightglue_hf.geometry import points_inside
from lightglue_hf.video import FlowTracker, FrameFeatures
from lightglue_hf.video.flow import Step, correlation, flow, normalised

cv2 = pytest.importorskip("cv2")
pytest.importorskip("poselib")

HEIGHT, WIDTH, POINTS = 240, 320, 100
STILL = np.eye(3)


@pytest.fixture(scope="module")
def features():
    where = bundled_checkpoint("tiny")
    model = LightGlueForKeypointMatching.from_pretrained(where).eval()
    model.keypoint_detector.config.max_keypoints = POINTS
    processor = LightGlueImageProcessor.from_pretrained(where)
    processor.do_resize, processor.size = True, {"height": HEIGHT, "width": WIDTH}
    return FrameFeatures(model, processor)


@pytest.fixture(scope="module")
def walls():
    return render_textures(2, 480, 640, seed=3).squeeze()


def walk(t, turn=0.01):
    """What takes pixels of a frame to those of the wall."""
    cos, sin = np.cos(turn * t), np.sin(turn * t)
    to_middle = np.array([[1, 0, -WIDTH / 2], [0, 1, -HEIGHT / 2], [0, 0, 1]])
    return np.array([[cos, -sin, 300 + 2.3 * t], [sin, cos, 230 - 1.4 * t], [0, 0, 1]]) @ to_middle


def picture(wall, view, light=1.0, hidden=None):
    """The frame of a view, `(height, width, 3)` uint8; where `hidden` is true, the other wall."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    grey = cv2.warpPerspective(wall.astype(np.float32), view, (WIDTH, HEIGHT), flags=flags)
    grey = np.clip(light * grey + 2 * np.random.default_rng(0).standard_normal(grey.shape), 0, 255)
    if hidden is not None:
        grey = np.where(hidden[0], hidden[1], grey)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, 2)


def follow(tracker, frames):
    """Ids and positions of each frame, each id once."""
    followed = []
    for frame in frames:
        tracks = tracker.update(frame)
        assert len(set(tracks.ids.tolist())) == len(tracks.ids) == len(tracks.positions) <= POINTS
        assert points_inside(tracks.positions, (HEIGHT, WIDTH)).all()
        assert (tracks.scores >= 0).all()
        assert (tracks.scores <= 1).all()
        followed.append((tracks.ids, tracks.positions))
    return followed


def errors(first, last, views):
    """By how many pixels the points of a frame are beside their places in another, of those that are in view."""
    there = project(np.linalg.inv(views[1]) @ views[0], first[1])
    found = dict(zip(last[0].tolist(), last[1]))
    in_view = points_inside(there, (HEIGHT - 12, WIDTH - 12)) & (there >= 12).all(1)
    return np.array(
        [
            np.linalg.norm(found[id] - place) if id in found else np.inf
            for id, place in zip(first[0][in_view].tolist(), there[in_view])
        ]
    )


def test_a_picture_that_stands_still_keeps_every_point_where_it_is(features, walls):
    followed = follow(FlowTracker(features), [picture(walls[0], walk(0))] * 12)
    assert len(followed[0][0]) > 50
    for ids, positions in followed[1:]:
        np.testing.assert_array_equal(ids[: len(followed[0][0])], followed[0][0])
        np.testing.assert_allclose(positions[: len(followed[0][0])], followed[0][1], atol=0.05)


@pytest.mark.parametrize(("every", "near"), [(1, 1), (5, 1), (100, 2)])
def test_points_go_where_the_wall_goes(features, walls, every, near):
    followed = follow(FlowTracker(features, every=every), [picture(walls[0], walk(t)) for t in range(21)])
    away = errors(followed[0], followed[20], (walk(0), walk(20)))
    assert len(away) > 30
    assert (away < near).mean() > 0.95


def test_light_changes_nothing(features, walls):
    frames = [picture(walls[0] * 0.6, walk(t, turn=0), 1 + 0.6 * np.sin(t)) for t in range(16)]
    followed = follow(FlowTracker(features), frames)
    away = errors(followed[0], followed[15], (walk(0, turn=0), walk(15, turn=0)))
    assert len(away) > 30
    assert (away < 1).mean() > 0.9


def test_what_something_passes_by_comes_back_as_itself(features, walls):
    x = np.arange(WIDTH)[None].repeat(HEIGHT, 0)

    def frame(t):
        if not 4 <= t < 17:
            return picture(walls[0], walk(t))
        shift = 20 * (t - 4)
        return picture(walls[0], walk(t), hidden=(abs(x - shift) < 90, np.roll(walls[1], shift, 1)[:HEIGHT, :WIDTH]))

    followed = follow(FlowTracker(features), map(frame, range(30)))
    x = followed[3][1][:, 0]
    behind = followed[3][0][(x > 60) & (x < 260)]
    assert len(behind) > 20
    gone = set(behind.tolist()) - set(followed[10][0].tolist())
    assert len(gone) > 8  # or nothing had to be found again
    away = errors(followed[3], followed[29], (walk(3), walk(29)))
    assert (away < 1.5).mean() > 0.8
    assert ((away > 3) & (away < np.inf)).mean() < 0.05


@pytest.mark.parametrize(("window", "again"), [(60, True), (3, False)])
def test_after_a_cut_and_back_points_are_the_same_within_the_window(features, walls, window, again):
    frames = [picture(walls[int(3 <= t < 9)], walk(t, turn=0)) for t in range(16)]
    followed = follow(FlowTracker(features, window), frames)
    before, between, after = (set(followed[t][0].tolist()) for t in (2, 7, 15))
    assert len(before & between) < 5  # that look alike by chance
    away = errors(followed[2], followed[15], (walk(2, turn=0), walk(15, turn=0)))
    if again:
        assert (away < 2).mean() > 0.6
    else:
        assert len(before & after) < 5


def test_ages_and_gaps_count_frames(features, walls):
    tracker = FlowTracker(features)
    frame = picture(walls[0], walk(0))
    first = tracker.update(frame)
    assert (first.ages == 1).all()
    assert (first.scores == 0).all()
    assert first.keyframe
    second = tracker.update(frame)
    np.testing.assert_array_equal(second.ids, first.ids)
    assert (second.ages == 2).all()
    assert (second.gaps == 0).all()
    assert not second.keyframe
    for t in (3, 4, 5):
        tracker.update(picture(walls[1], walk(t)))
    back = tracker.update(frame)
    known = np.isin(back.ids, first.ids)
    assert known.sum() > 20
    assert (back.gaps[known] == 3).mean() > 0.8  # some may look alike by chance between
    assert (back.ages + back.gaps)[known].max() == 6


@pytest.mark.parametrize(("window", "every"), [(60, 1), (3, 2), (0, 5)])
def test_ages_and_gaps_are_those_of_the_ids_whatever_happens(features, walls, window, every):
    rng = np.random.default_rng(window)
    tracker, seen, back = FlowTracker(features, window, every), {}, 0
    for t in range(30):
        kind = rng.random()
        frame = picture(walls[int(kind < 0.2)], walk(rng.normal() * 8 if kind > 0.8 else t / 4), rng.uniform(0.4, 1))
        tracks = tracker.update(np.zeros_like(frame) if 0.2 < kind < 0.3 else frame)
        assert len(set(tracks.ids.tolist())) == len(tracks.ids)
        for id, age, gap in zip(tracks.ids.tolist(), tracks.ages.tolist(), tracks.gaps.tolist()):
            frames = seen.setdefault(id, [])
            assert (age, gap) == (len(frames) + 1, t - frames[-1] - 1 if frames else 0)
            assert gap <= window
            frames.append(t)
            back += gap > 0
    assert (back > 50) == (window > 0)


def test_what_a_caller_does_to_tracks_does_nothing_to_the_tracker(features, walls):
    frames = [picture(walls[0], walk(t)) for t in range(4)]
    expected = follow(FlowTracker(features), frames)
    tracker = FlowTracker(features)
    for frame, (ids, positions) in zip(frames, expected):
        tracks = tracker.update(frame)
        np.testing.assert_array_equal(tracks.ids, ids)
        np.testing.assert_array_equal(tracks.positions, positions)
        tracks.ids[:], tracks.positions[:] = -7, 0


def test_frames_with_nothing_in_them(features, walls):
    grey = np.full((HEIGHT, WIDTH, 3), 127, np.uint8)
    frame = picture(walls[0], walk(0))
    followed = follow(FlowTracker(features, every=1), [grey, grey, frame, frame, grey, grey, frame])
    assert len(followed[3][0]) > 50
    assert not set(followed[5][0].tolist()) & set(followed[3][0].tolist())
    assert len(set(followed[6][0].tolist()) & set(followed[3][0].tolist())) > 20


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_the_first_axis_of_a_frame_is_its_rows(features, rows):
    frame = np.full((rows, WIDTH, 3), 127, np.uint8)  # which could be channels of a picture of three columns
    for tracks in follow(FlowTracker(features, every=1), [frame, frame]):
        assert not len(tracks[0])


def test_what_is_remembered_has_an_end(features, walls):
    tracker = FlowTracker(features, window=10, every=5)
    for t in range(40):
        tracker.update(picture(walls[t // 5 % 2], walk(t % 7)))
    assert len(tracker.views) <= 11
    assert len(tracker.register.lives) <= 30 * POINTS


def test_reset_forgets_and_numbers_go_on(features, walls):
    tracker = FlowTracker(features)
    before = tracker.update(picture(walls[0], walk(0)))
    tracker.reset()
    after = tracker.update(picture(walls[0], walk(0))[: HEIGHT - 20])  # of another size, too
    assert after.ids.min() == before.ids.max() + 1


def test_errors_say_what_is_wrong(features, walls):
    for arguments in ({"window": -1}, {"every": 0}):
        with pytest.raises(ValueError, match="window must be at least 0 and every at least 1"):
            FlowTracker(features, **arguments)
    tracker = FlowTracker(features)
    tracker.update(picture(walls[0], walk(0)))
    with pytest.raises(ValueError, match=r"one size, got \(220, 320\) after \(240, 320\)"):
        tracker.update(picture(walls[0], walk(0))[: HEIGHT - 20])


# ---------------------------------------------------------------------------------------------------------------------
# Flow itself

CORNERS = (
    np.stack(np.meshgrid(np.arange(60, 260, 40.0), np.arange(60, 180, 40.0)), -1).reshape(-1, 2).astype(np.float32)
)


def test_flow_finds_a_move_and_what_leaves_the_picture(walls):
    before = normalised(picture(walls[0], walk(0, turn=0)))
    after = normalised(picture(walls[0], walk(2, turn=0)))
    there, missed = flow(before, after, CORNERS)
    assert (missed < 1).mean() > 0.9
    np.testing.assert_allclose(
        (there - CORNERS)[missed < 0.1], np.tile((-4.6, 2.8), ((missed < 0.1).sum(), 1)), atol=0.3
    )
    gone = normalised(picture(walls[0], walk(0) @ [[1, 0, 200], [0, 1, 0], [0, 0, 1]]))
    _, missed = flow(before, gone, CORNERS, CORNERS - (200, 0))
    assert np.isinf(missed[CORNERS[:, 0] < 200]).all()
    there, missed = flow(before, after, np.zeros((0, 2), np.float32))
    assert there.shape == (0, 2)
    assert missed.shape == (0,)


def test_normalised_pictures_know_nothing_of_exposure(walls):
    image = picture(walls[0], walk(0)).astype(np.float32)
    bright, dark = (normalised(np.rint(values).astype(np.uint8)) for values in (0.9 * image, 0.35 * image + 60))
    contrast = cv2.blur((image[..., 0] - cv2.blur(image[..., 0], (31, 31))) ** 2, (31, 31)) ** 0.5
    apart = abs(bright.astype(int) - dark)[contrast > 25]
    assert apart.size > 1000
    assert np.median(apart) <= 10
    assert (normalised(np.full((40, 50, 3), 99, np.uint8)) == 128).all()


def test_a_step_finds_points_after_a_turn_that_flow_alone_loses(walls):
    now = STILL @ walk(0) @ np.array([[0.9, -0.5, 70], [0.5, 0.9, -60], [0, 0, 1]])
    pictures = [normalised(picture(walls[0], view)) for view in (walk(0), now)]
    true = project(np.linalg.inv(now) @ walk(0), CORNERS)
    inside = points_inside(true, (HEIGHT - 12, WIDTH - 12)) & (true >= 12).all(1)
    assert inside.sum() >= 8
    alone, missed = flow(*pictures, CORNERS)
    assert ((np.linalg.norm(alone - true, axis=1) < 1) & (missed < 1))[inside].mean() < 0.5
    links = CORNERS[inside][:6], true[inside][:6].astype(np.float32)
    there, missed = Step(*pictures, *links).follow(CORNERS)
    assert ((np.linalg.norm(there - true, axis=1) < 1) & (missed < 1))[inside].mean() > 0.8


def test_a_step_by_points_on_one_line(walls):
    view = normalised(picture(walls[0], walk(0)))
    line = np.float32([[50, 50], [60, 60], [70, 70]])
    np.testing.assert_allclose(Step(view, view, line, line + 3).moved(CORNERS), CORNERS + 3, atol=1)


def test_correlation_of_the_same_of_its_negative_and_of_nothing(walls):
    view = normalised(picture(walls[0], walk(0)))
    np.testing.assert_allclose(correlation(view, view, CORNERS, CORNERS), 1, atol=1e-5)
    np.testing.assert_allclose(correlation(view, 255 - view, CORNERS, CORNERS), -1, atol=1e-5)
    np.testing.assert_array_equal(correlation(view, np.full_like(view, 5), CORNERS, CORNERS), 0)
    assert correlation(view, view, CORNERS[:0], CORNERS[:0]).shape == (0,)
