"""Verdicts on numbers: which way, and how many seeds an open one would take."""

import re

import numpy as np
import pytest
from scipy import stats

from lab.common.stats import Estimate, mean_over_games
from lab.report.claims import Claim
from lab.report.groups import Group
from lab.report.runs import POINTS, SCORE, RunRecord
from lab.report.verdicts import CONTRADICTED, OPEN, SUPPORTED, TESTS, Measured, judge, reach_verdict


@pytest.mark.parametrize("mean", [-0.4, 0.35, 0.9])
def test_the_seeds_that_it_would_take_decide_and_a_third_of_them_does_not(mean):
    """Samples of any size with exactly this mean and a standard deviation of 1."""

    def judged(seeds):
        values = stats.norm.ppf((np.arange(seeds) + 0.5) / seeds)
        values = mean + (values - values.mean()) / values.std(ddof=1)
        measured = Measured(mean_over_games([values]), "", above=0.0, below=1.4)
        return reach_verdict(measured, seeds)

    at_hand = 4
    named, why = judged(at_hand)
    assert named == OPEN
    needed = int(re.search(r"takes up to about (\d+) seeds", why)[1])
    assert judged(needed)[0] == (SUPPORTED if mean > 0 else CONTRADICTED)
    for fewer in range(at_hand, needed // 3):
        assert judged(fewer)[0] == OPEN


def test_what_no_number_of_seeds_would_decide_may_take_over_100():
    measured = Measured(Estimate(0.5, 0.2, 0.8), "", above=0.5)
    assert "may take over 100 seeds" in reach_verdict(measured, 3)[1]
    level = Measured(Estimate(0.5, 0.5, 0.5), "", above=0.5, p=1.0)
    assert "may take over 100 seeds" in reach_verdict(level, 3)[1]


def test_over_100_is_said_as_what_may_be():
    """Student's factor falls from 4.30 to 2.05 in 3 to 30 seeds: 30 may do what the root denies."""
    spread, value = 1.0, 0.4
    low, high = (value + sign * 4.303 * spread / 3**0.5 for sign in (-1, 1))
    assert 3 * (4.303 * spread / 3**0.5 / value) ** 2 > 100  # 115.7
    assert 2.045 * spread / 30**0.5 < value  # 0.373: there 0 lies outside
    measured = Measured(Estimate(value, low, high), "", above=0.0)
    expected = "the interval includes 0: may take over 100 seeds if value and spread stay"
    assert reach_verdict(measured, 3) == (OPEN, expected)


@pytest.mark.parametrize(
    ("estimate", "bounds", "seeds"),
    [
        # The value is 0.1 above the bound and the interval reaches 0.2 down: four times 5 seeds.
        ((0.6, 0.4, 0.65), {"above": 0.5}, "up to about 20 seeds"),
        # However far it reaches up.
        ((0.6, 0.4, 0.99), {"above": 0.5}, "up to about 20 seeds"),
        # 0.1 below it, and it reaches 0.3 up.
        ((0.4, 0.39, 0.7), {"above": 0.5}, "up to about 45 seeds"),
        # Between two bounds: 0.1 from the upper one, to which it reaches 0.2; the lower is clear.
        ((0.6, 0.5, 0.8), {"above": 0.3, "below": 0.7}, "up to about 20 seeds"),
        # Above both: 0.1 from the nearer one, to which it reaches 0.15.
        ((0.8, 0.65, 0.85), {"above": 0.3, "below": 0.7}, "up to about 12 seeds"),
        # Below both: 0.1 from the nearer one, to which it reaches 0.4.
        ((0.2, 0.1, 0.6), {"above": 0.3, "below": 0.7}, "up to about 80 seeds"),
        # Between two, both crossed: 0.2 from either, to which it reaches 0.3 and 0.5.
        ((0.5, 0.2, 1.0), {"above": 0.3, "below": 0.7}, "up to about 32 seeds"),
        # An upper bound alone.
        ((-0.1, -0.2, 0.1), {"below": 0.0}, "up to about 20 seeds"),
        # The value outside of its own interval, as a bootstrap's may be: 0.2 above, 0.3 down.
        ((0.7, 0.4, 0.6), {"above": 0.5}, "up to about 12 seeds"),
        # It hardly crosses: one seed more than there are.
        ((0.6, 0.4999, 0.65), {"above": 0.5}, "up to about 6 seeds"),
        # On the bound, with and without a width.
        ((0.5, 0.5, 0.5), {"above": 0.5}, "over 100 seeds"),
        ((0.5, 0.5, 0.9), {"above": 0.5}, "over 100 seeds"),
        ((0.7, 0.6, 0.7), {"above": 0.3, "below": 0.7}, "over 100 seeds"),
        # On it but for rounding.
        ((0.1 + 0.2, 0.3, 0.1 + 0.2), {"above": 0.3}, "over 100 seeds"),
    ],
)
def test_an_open_verdict_says_how_many_seeds_it_would_take(estimate, bounds, seeds):
    """Five are at hand; the way to a bound that is to be left out shrinks with their root."""
    named, why = reach_verdict(Measured(Estimate(*estimate), "", **bounds), 5)
    assert named == OPEN
    takes = "may take" if seeds.startswith("over") else "takes"
    assert f"{takes} {seeds} if value and spread stay" in why


@pytest.mark.parametrize(
    ("low", "high", "crossed"), [(0.2, 0.6, "0.3"), (0.4, 0.8, "0.7"), (0.2, 0.8, "0.3 and 0.7")]
)
def test_only_the_bounds_that_are_crossed_are_named(low, high, crossed):
    why = reach_verdict(Measured(Estimate(0.5, low, high), "", 0.3, 0.7), 3)[1]
    assert why.startswith(f"the interval includes {crossed}: ")


@pytest.mark.parametrize(
    ("p", "seeds"),
    [
        (0.05, "takes up to about 4"),  # no deviation is missing: one more than there are
        (0.1, "takes up to about 5"),  # 3 * (1.960 / 1.645)^2 = 4.3
        (0.5, "takes up to about 26"),  # 3 * (1.960 / 0.674)^2 = 25.3
        (0.9, "may take over 100"),  # 3 * (1.960 / 0.126)^2 = 730
    ],
)
def test_a_test_that_does_not_decide_says_how_many_seeds_it_would_take(p, seeds):
    measured = Measured(Estimate(0.75, 0.75, 0.75), "", above=0.5, p=p)
    assert reach_verdict(measured, 3) == (
        OPEN,
        f"p = {p:.3f}: {seeds} seeds if value and spread stay",
    )


def test_without_anything_to_go_by_the_reason_stands_alone():
    nothing = Estimate(0.5, np.nan, np.nan)
    assert reach_verdict(Measured(nothing, "", above=0.4), 3) == (
        OPEN,
        "no interval: takes more seeds",
    )
    clear = Measured(Estimate(0.5, 0.5, 0.5), "", above=0.4, undecided="hardly a neuron died")
    assert reach_verdict(clear, 3) == (OPEN, "hardly a neuron died")


def test_where_seeds_are_unequal_it_would_take_so_many_of_each(monkeypatch):
    """3 and 6 of them, an interval twice as wide as may be: 4 * 6, as all widths have to halve."""

    def made(variant, seed):
        own = (f"{variant}-{seed}", "dqn", "Pong", variant, seed, 100, 100, "", "", {})
        return RunRecord(*own, np.arange(POINTS), {SCORE: np.zeros(POINTS)})

    runs = [made("relu", i) for i in range(3)] + [made("tanh", i) for i in range(6)]
    measured = Measured(Estimate(0.75, 0.25, 0.8), "", above=0.5)
    monkeypatch.setitem(TESTS, "planted", lambda claim, group, games: measured)
    claim = Claim("", "", "", "dqn", ("relu", "tanh"), "planted")
    line = judge(claim, Group("dqn", "", runs))
    assert (line.verdict, line.seeds) == (OPEN, "3-6")
    assert "takes up to about 24 seeds" in line.why


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.6, 0.9, SUPPORTED),
        (0.1, 0.4, CONTRADICTED),
        (0.4, 0.6, OPEN),
        (np.nan, np.nan, OPEN),
        (0.5, 0.5, OPEN),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, expected):
    assert reach_verdict(Measured(Estimate(0.5, low, high), "", above=0.5), 3)[0] == expected


def test_a_claim_of_a_range_is_judged_from_both_sides():
    def of(low, high):
        return reach_verdict(Measured(Estimate(0.5, low, high), "", 0.3, 0.7), 3)[0]

    assert of(0.4, 0.6) == SUPPORTED
    assert of(0.1, 0.2) == CONTRADICTED
    assert of(0.8, 0.9) == CONTRADICTED
    assert of(0.2, 0.6) == OPEN
