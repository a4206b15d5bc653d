"""The verdict against chance: true geometry is seen, and chance is not taken for it."""

import math

import numpy as np
import pytest

from lightglue_hf.evaluation.verdict import (
    chance_of_agreement,
    judge_against_chance,
    log10_false_alarms,
    sampson_distance,
)

SIZE = (480, 640)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def views(rng, n):
    """Points of a random cloud in two views, and the true fundamental matrix."""
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    angle, t = 0.2, np.array([1.0, 0.2, 0.1])
    R = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    points = np.stack([rng.uniform(-3, 3, n), rng.uniform(-2, 2, n), rng.uniform(5, 10, n)], axis=1)
    first, second = points @ K.T, (points @ R.T + t) @ K.T
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    inverse = np.linalg.inv(K)
    return first[:, :2] / first[:, 2:], second[:, :2] / second[:, 2:], inverse.T @ cross @ R @ inverse


def random_points(rng, n):
    return rng.uniform(0, (SIZE[1], SIZE[0]), (n, 2))


def test_matches_of_two_views_are_no_chance(rng):
    pytest.importorskip("poselib")
    points0, points1, _ = views(rng, 60)
    points1[40:] = random_points(rng, 20)
    verdict = judge_against_chance(points0, points1, [SIZE, SIZE])
    assert verdict.answer == "yes"
    assert verdict.inliers[:40].mean() > 0.9
    assert sampson_distance(verdict.fundamental, points0[:40], points1[:40]).max() < 2


@pytest.mark.parametrize("count", [12, 20, 40, 100])
def test_random_matches_are_chance_however_many(count):
    """Ten draws of each: the limit is one in a million."""
    pytest.importorskip("poselib")
    for seed in range(10):
        rng = np.random.default_rng([count, seed])
        verdict = judge_against_chance(random_points(rng, count), random_points(rng, count), [SIZE, SIZE])
        assert verdict.answer == "no"
        assert verdict.inliers.sum() < 7 + 0.3 * count


def test_matches_between_two_small_spots_are_chance(rng):
    """Lines through both spots hold most of them, so that far more agree than if they lay anywhere."""
    pytest.importorskip("poselib")
    spots = [rng.normal(centre, 3, (40, 2)) for centre in ((200, 150), (400, 300))]
    verdict = judge_against_chance(*spots, [SIZE, SIZE])
    assert verdict.inliers.sum() > 15
    assert verdict.answer == "no"


@pytest.mark.parametrize("count", [0, 1, 7, 8, 10])
def test_of_a_few_matches_nothing_is_said_even_if_all_are_right(rng, count):
    pytest.importorskip("poselib")
    points0, points1, _ = views(rng, count)
    verdict = judge_against_chance(points0, points1, [SIZE, SIZE])
    assert verdict.answer == "too few"
    assert verdict.inliers.shape == (count,)


def test_the_verdict_is_the_same_either_way_round_and_every_time(rng):
    pytest.importorskip("poselib")
    points0, points1, _ = views(rng, 50)
    points1[25:] = random_points(rng, 25)
    forth, again = (judge_against_chance(points0, points1, [SIZE, SIZE]) for _ in range(2))
    back = judge_against_chance(points1, points0, [SIZE, SIZE])
    assert forth.answer == again.answer == back.answer == "yes"
    assert forth.log10_false_alarms == again.log10_false_alarms


def test_false_alarms_by_their_formula():
    for matches, inliers, chance in ((8, 8, 0.01), (11, 8, 0.005), (34, 16, 0.02)):
        rest = matches - 7
        tail = sum(math.comb(rest, k) * chance**k * (1 - chance) ** (rest - k) for k in range(inliers - 7, rest + 1))
        expected = math.log10(3 * math.comb(matches, 7) * tail)
        assert log10_false_alarms(matches, inliers, chance) == pytest.approx(expected, abs=1e-9)
    assert log10_false_alarms(7, 7, 0.01) == log10_false_alarms(20, 7, 0.01) == math.inf
    assert math.isfinite(log10_false_alarms(2048, 2048, 0.005))
    assert math.isfinite(log10_false_alarms(2048, 100, 1.0))


def test_more_inliers_are_less_likely_and_more_matches_more():
    by_inliers = [log10_false_alarms(50, inliers, 0.005) for inliers in range(8, 51)]
    assert (np.diff(by_inliers) < 0).all()
    by_matches = [log10_false_alarms(matches, 12, 0.005) for matches in range(12, 200)]
    assert (np.diff(by_matches) > 0).all()


def test_the_chance_of_an_agreement_is_the_share_of_wrong_pairings(rng):
    points0, points1, fundamental = views(rng, 200)
    assert sampson_distance(fundamental, points0, points1).max() < 1e-6
    agree = [
        sampson_distance(fundamental, points0[i], points1[j]) < 1.5
        for i, j in rng.integers(0, 200, (4000, 2))
        if i != j
    ]
    chance = chance_of_agreement(fundamental, points0, points1)
    assert chance == pytest.approx(np.mean(agree), abs=0.01)
    assert 0 < chance < 0.05
    assert chance_of_agreement(fundamental, points0[:1], points1[:1]) == 0
