"""What holds of tracks whatever the network: ids are unique, stay with their points, and come back."""

import numpy as np
import pytest
import torch

from lightglue_hf import KeypointFeatures
from lightglue_hf.video import Tracker
from lightglue_hf.video.points import agreeing, moved_along

from .conftest import HEIGHT, POINTS, WIDTH, ByDescriptor, Wall

pytest.importorskip("poselib")


def follow(tracker, wall, frames):
    """The id of each point of the wall in each frame, -1 where it is not seen; frames are arguments of `features`."""
    table = []
    for arguments in frames:
        features, numbers = wall.features(**arguments)
        tracks = tracker.update(features)
        assert len(set(tracks.ids.tolist())) == len(tracks.ids) == len(numbers)
        np.testing.assert_array_equal(tracks.positions, features["keypoints"].numpy())
        row = np.full(len(wall.places), -1)
        row[numbers] = tracks.ids
        table.append(row)
    return np.array(table)


def walk(t):
    return {"move": (3.0 * t, -2.0 * t), "turn": 0.01 * t}


def test_a_picture_that_stands_still_keeps_every_id(wall):
    table = follow(Tracker(ByDescriptor()), wall, [{}] * 12)
    assert (table == table[0]).all()
    assert sorted(table[0]) == list(range(POINTS))


def test_what_a_caller_does_to_the_tracks_of_a_frame_changes_no_other():
    expected, found = [], []
    for tables, spoilt in ((expected, False), (found, True)):
        wall, tracker = Wall(), Tracker(ByDescriptor())
        for t in range(12):
            features, _ = wall.features(**walk(t))
            tracks = tracker.update(features)
            tables.append((tracks.ids.copy(), tracks.positions.copy(), tracks.ages.copy()))
            for field in ("ids", "positions", "ages", "gaps", "scores") if spoilt else ():
                getattr(tracks, field)[:] = 77
    for one, other in zip(found, expected):
        for values, wanted in zip(one, other):
            np.testing.assert_array_equal(values, wanted)
    assert max(found[-1][2]) == 12


def test_ids_stay_with_their_points_however_they_move_and_are_ordered(wall):
    table = follow(Tracker(ByDescriptor()), wall, [walk(t) for t in range(20)])
    assert (table == table[0]).all()


def test_points_that_come_and_go_never_share_an_id(wall):
    rng = np.random.default_rng(1)
    frames = [{"visible": rng.random(POINTS) < 0.7, **walk(t)} for t in range(40)]
    table = follow(Tracker(ByDescriptor()), wall, frames)
    for id in range(table.max() + 1):
        assert len({point for row in table for point in np.flatnonzero(row == id)}) <= 1
    assert table.max() < POINTS + 5  # gaps are short, so nearly every point comes back as itself


@pytest.mark.parametrize("gap", [1, 3, 5])
def test_a_short_gap_does_not_end_a_track(wall, gap):
    hidden = np.arange(POINTS) == 7
    tracker = Tracker(ByDescriptor(), memory=5)
    table = follow(tracker, wall, [walk(0), walk(1)])
    for t in range(gap):
        follow(tracker, wall, [{"visible": ~hidden, **walk(2 + t)}])
    features, numbers = wall.features(**walk(2 + gap))
    tracks = tracker.update(features)
    (there,) = np.flatnonzero(numbers == 7)
    assert tracks.ids[there] == table[0][7]
    assert tracks.gaps[there] == gap
    assert tracks.ages[there] == 3
    others = numbers != 7
    assert (tracks.gaps[others] == 0).all()
    assert (tracks.ages[others] == 3 + gap).all()


def test_points_behind_something_are_refound_by_a_keyframe(wall):
    hidden = wall.places[:, 0] > WIDTH / 2
    assert 20 < hidden.sum() < 40
    away = [{"visible": ~hidden, **walk(t)} for t in range(3, 23)]
    table = follow(Tracker(ByDescriptor()), wall, [*map(walk, range(3)), *away, *map(walk, range(23, 30))])
    assert (table[3:23, hidden] == -1).all()
    np.testing.assert_array_equal(table[-1], table[0])  # those that are taken for new at first, too
    assert (table[:, ~hidden] == table[0, ~hidden]).all()


def test_after_the_window_a_point_is_another_one(wall):
    hidden = wall.places[:, 0] > WIDTH / 2
    away = [{"visible": ~hidden}] * 12
    table = follow(Tracker(ByDescriptor(), window=10), wall, [{}, {}, *away, *[{}] * 8])
    assert not set(table[-1, hidden]) & set(table[0, hidden])
    np.testing.assert_array_equal(table[-1, ~hidden], table[0, ~hidden])


def test_without_a_window_nothing_is_refound(wall):
    hidden = np.arange(POINTS) < 30
    table = follow(Tracker(ByDescriptor(), window=0), wall, [{}, {}, {"visible": ~hidden}, {}, {}])
    assert not set(table[-1, hidden]) & set(table[0, hidden])
    np.testing.assert_array_equal(table[-1], table[-2])


def test_what_looks_alike_elsewhere_is_another_point(wall):
    """From frame to frame: half a picture away, where no neighbour goes."""
    places = wall.places.copy()
    places[7] = (places[7] + (WIDTH / 2, HEIGHT / 2)) % (WIDTH, HEIGHT)
    table = follow(Tracker(ByDescriptor()), wall, [{}, {}, {"places": places}])
    assert table[2][7] not in table[1]
    others = np.arange(POINTS) != 7
    np.testing.assert_array_equal(table[2][others], table[1][others])


def test_what_looks_alike_elsewhere_is_not_refound(wall):
    hidden = wall.places[:, 0] > WIDTH / 2
    places = wall.places.copy()
    liars = np.flatnonzero(hidden)[:5]
    places[liars] = (places[liars] + (150, 210)) % (WIDTH, HEIGHT)
    away = [{"visible": ~hidden}] * 8
    table = follow(Tracker(ByDescriptor()), wall, [{}, {}, *away, *[{"places": places}] * 8])
    honest = np.setdiff1d(np.arange(POINTS), liars)
    np.testing.assert_array_equal(table[-1][honest], table[0][honest])
    assert not set(table[-1][liars]) & set(table[0].tolist())


def test_frames_without_keypoints(wall):
    tracker = Tracker(ByDescriptor())
    nothing = {"visible": np.zeros(POINTS, bool)}
    table = follow(tracker, wall, [nothing, nothing, {}, {}, *[nothing] * 9, {}, {}, nothing])
    assert (table[[0, 1, *range(4, 13), 15]] == -1).all()
    np.testing.assert_array_equal(table[14], table[3])


def test_one_frame(wall):
    features, _ = wall.features()
    tracks = Tracker(ByDescriptor()).update(features)
    assert tracks.ids.tolist() == list(range(POINTS))
    assert (tracks.ages == 1).all()
    assert not tracks.gaps.any()
    assert not tracks.scores.any()
    assert tracks.keyframe


def test_a_cut_begins_new_tracks_and_a_cut_back_finds_the_old_ones():
    both = Wall(2 * POINTS)
    first = np.arange(2 * POINTS) < POINTS
    scenes = [first] * 4 + [~first] * 10 + [first] * 8
    table = follow(Tracker(ByDescriptor()), both, [{"visible": scene} for scene in scenes])
    assert not set(table[4][~first]) & set(table[3][first])
    assert (table[4:14, ~first] == table[4, ~first]).all()
    np.testing.assert_array_equal(table[-1, first], table[0, first])


def test_padding_counts_for_nothing_and_a_batch_of_one_is_one(wall):
    plain, padded = Tracker(ByDescriptor()), Tracker(ByDescriptor())
    for t in range(4):
        features, _ = wall.features(**walk(t))
        batch = KeypointFeatures(**{name: value[None] for name, value in features.items()}).padded(POINTS + 9)
        for one, other in zip(plain.update(features), padded.update(batch)):
            np.testing.assert_array_equal(one, other)


def test_a_graph_gets_no_more_points_than_it_takes(wall):
    model = ByDescriptor(columns=POINTS)
    rng = np.random.default_rng(2)
    frames = [{"visible": rng.random(POINTS) < 0.8, **walk(t)} for t in range(30)]
    table = follow(Tracker(model), wall, frames)
    assert model.calls
    assert max(call["keypoints"].shape[2] for call in model.calls) <= POINTS
    assert table.max() < 2 * POINTS


def test_all_points_are_followed_however_many_there_are():
    table = follow(Tracker(ByDescriptor()), Wall(1500), [{}, {}, {}])
    assert (table == table[0]).all()


def test_each_frame_is_matched_once_while_nothing_is_lost(wall):
    model = ByDescriptor()
    follow(Tracker(model), wall, [walk(t) for t in range(15)])
    assert len(model.calls) == 14


def test_what_is_remembered_has_an_end(wall):
    """A camera has none."""
    tracker = Tracker(ByDescriptor(), window=3, memory=2)
    for _ in range(60):
        wall.descriptors = wall.descriptors[:, np.random.default_rng(0).permutation(wall.descriptors.shape[1])]
        features, _ = wall.features()
        tracker.update(features)
    assert tracker.register.next_id > 20 * POINTS
    assert len(tracker.register.lives) <= 12 * POINTS
    assert len(tracker.keyframes) <= 4


def test_reset_forgets_and_numbers_go_on(wall):
    tracker = Tracker(ByDescriptor())
    before = follow(tracker, wall, [{}, {}])
    tracker.reset()
    after = follow(tracker, wall, [{}, {}])
    assert after.min() == before.max() + 1
    np.testing.assert_array_equal(after[0], after[1])


def test_errors_say_what_is_wrong(wall):
    features, _ = wall.features()
    pair = KeypointFeatures.cat([KeypointFeatures(**{k: v[None] for k, v in features.items()})] * 2)
    with pytest.raises(ValueError, match="features of one image"):
        Tracker(ByDescriptor()).update(pair)
    features.image_sizes = None
    with pytest.raises(ValueError, match="image_sizes"):
        Tracker(ByDescriptor()).update(features)
    features.descriptors = None
    with pytest.raises(ValueError, match="descriptors"):
        Tracker(ByDescriptor()).update(features)
    with pytest.raises(ValueError, match="every and capacity at least 1"):
        Tracker(ByDescriptor(), every=0)


def test_neighbours_agree_on_a_rotation_and_a_zoom_and_not_on_a_jump():
    points = np.random.default_rng(0).uniform(0, 500, (200, 2))
    angle = 0.3
    there = 1.1 * points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + (30, -20)
    assert agreeing(points, there, 3.0).all()
    there[:10] = np.random.default_rng(1).uniform(0, 500, (10, 2))
    agree = agreeing(points, there, 3.0)
    assert agree[10:].mean() > 0.97
    assert agree[:10].sum() <= 1


def test_few_matches_agree_or_not():
    assert agreeing(np.zeros((0, 2)), np.zeros((0, 2)), 3.0).tolist() == []
    assert agreeing(np.array([[5.0, 5.0]]), np.array([[6.0, 5.0]]), 3.0).tolist() == [True]
    assert agreeing(np.array([[5.0, 5.0]]), np.array([[60.0, 5.0]]), 3.0).tolist() == [False]
    two = np.array([[5.0, 5.0], [20.0, 5.0]])
    assert agreeing(two, two + 40, 3.0).tolist() == [True, True]
    assert agreeing(two, two + np.array([[0, 0], [40, 0]]), 3.0).tolist() == [False, False]


def test_lost_points_move_with_their_neighbours():
    points = np.random.default_rng(0).uniform(0, 100, (30, 2))
    moved = points + np.array([4, 5])
    np.testing.assert_allclose(moved_along(points, points, moved), moved)
    np.testing.assert_array_equal(moved_along(points, points[:0], points[:0]), points)
    assert moved_along(points[:0], points, points).shape == (0, 2)


def test_the_bundled_checkpoint_follows_a_photo():
    """Crops of a photo that go 3 pixels to the right each frame."""
    data = pytest.importorskip("skimage.data")
    import lightglue_hf
    from lightglue_hf.video import FrameFeatures

    checkpoint = lightglue_hf.bundled_checkpoint("tiny")
    model = lightglue_hf.LightGlueForKeypointMatching.from_pretrained(checkpoint).eval()
    model.config.keypoint_detector_config.max_keypoints = 128
    processor = lightglue_hf.LightGlueImageProcessor.from_pretrained(checkpoint, do_resize=False)
    features, tracker = FrameFeatures(model, processor), Tracker(model)
    photo = data.astronaut()
    seen = [tracker.update(features(photo[40:232, 60 + 3 * t : 316 + 3 * t])) for t in range(8)]
    first, last = (dict(zip(tracks.ids.tolist(), tracks.positions)) for tracks in (seen[0], seen[-1]))
    moves = np.array([last[id] - first[id] for id in first.keys() & last.keys()])
    assert len(moves) > 40
    assert (np.linalg.norm(moves - (-21, 0), axis=1) < 3).mean() > 0.9
    assert torch.is_tensor(tracker.reference.features["keypoints"])
