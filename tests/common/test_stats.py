"""Statistics over runs: against loops, scipy, full enumeration and rliable's own results."""

import itertools
import math

import ale_py.roms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from interval_coverage import simulate
from scipy import stats

from lab.common.stats import (
    BOOTSTRAP_SEEDS,
    STATISTICS,
    difference,
    estimate,
    improvement_p,
    iqm,
    lowest_p,
    mean,
    mean_interval,
    mean_over_games,
    median,
    normalise,
    percentile_interval,
    performance_profile,
    probability_of_improvement,
    ratio_of_medians,
    reference_scores,
    resample,
    tail_share,
)
from lab.training.atari import game_title

SCORES = [np.array([1.0, 4.0, 2.5]), np.array([10.0, -3.0]), np.array([0.5, 0.25, 7.0, 8.0])]
OTHERS = [np.array([2.0, 2.0, 3.0, 1.0]), np.array([-1.0, 10.0]), np.array([0.5, 9.0])]


def test_the_table_of_scores_names_every_game_as_the_runs_do():
    """Values as Wang et al. 2016 print them; Mnih et al. 2015 have 31.8 for a human in Breakout."""
    scores = reference_scores()
    assert len(scores) == 57
    assert set(scores) <= {game_title(rom) for rom in ale_py.roms.get_all_rom_ids()}
    assert scores["Breakout"] == (1.7, 30.5)
    assert scores["Seaquest"] == (68.4, 42054.7)
    assert scores["VideoPinball"] == (16256.9, 17667.9)


def test_normalised_scores():
    assert normalise(np.array([1.7, 30.5, 16.1]), 1.7, 30.5) == pytest.approx([0, 1, 0.5])


def test_point_estimates_by_hand():
    values = np.concatenate(SCORES)
    each = [2.5, 3.5, 3.9375]
    assert mean(SCORES) == pytest.approx(sum(each) / 3)
    assert median(SCORES) == pytest.approx(3.5)
    # 9 runs: the lowest and the highest 2 are cut off
    assert iqm(SCORES) == pytest.approx(np.mean(sorted(values)[2:-2]))


@given(arrays(float, st.integers(1, 12), elements=st.floats(-100, 100)))
def test_interquartile_mean_is_that_of_the_middle_half(values):
    ordered = sorted(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    assert iqm([values]) == pytest.approx(sum(kept) / len(kept), abs=1e-9)


@pytest.fixture
def percentile(monkeypatch):
    """The interval of rliable, whose ends are the same for any number of seeds."""
    monkeypatch.setattr("lab.common.stats.tail_share", lambda seeds: 0.025)


@pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS)
def test_intervals_are_those_of_all_possible_draws(statistic, percentile):
    """Two games with 3 and 2 seeds: 27 x 4 equally likely draws, all of them looked at."""
    scores = SCORES[:2]
    every = [
        statistic([np.array(first), np.array(second)])
        for first in itertools.product(scores[0], repeat=3)
        for second in itertools.product(scores[1], repeat=2)
    ]
    found = estimate(scores, statistic, repeats=100_000, fewest=2)
    ordered = np.sort(every)
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        # a percentile may fall on either of two neighbouring values
        assert np.mean(ordered < end - 1e-9) <= share + 0.01
        assert np.mean(ordered <= end + 1e-9) >= share - 0.01


def test_draws_stay_within_their_game():
    drawn = resample(SCORES, repeats=500)
    assert [of.shape for of in drawn] == [(500, len(game)) for game in SCORES]
    for part, game in zip(drawn, SCORES, strict=True):
        assert set(np.unique(part)) == set(game)


@given(st.floats(-50, 50), st.floats(0.1, 50), st.sampled_from(sorted(STATISTICS)))
def test_estimates_move_with_the_scores(shift, scale, name):
    moved = [scale * game + shift for game in SCORES]
    plain, moved = (
        estimate(scores, STATISTICS[name], repeats=200, fewest=2) for scores in (SCORES, moved)
    )
    expected = np.array(plain) * scale + shift
    assert np.array(moved) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_probability_of_improvement_is_mann_whitneys():
    found = probability_of_improvement(SCORES, OTHERS, fewest=2)
    each = [
        stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
        for x, y in zip(SCORES, OTHERS, strict=True)
    ]
    assert found.value == pytest.approx(np.mean(each))
    assert found.low <= found.value <= found.high
    same = probability_of_improvement(SCORES, SCORES)
    assert same.value == pytest.approx(0.5)
    reverse = probability_of_improvement(OTHERS, SCORES)
    assert reverse.value == pytest.approx(1 - found.value)
    above = [game + 100 for game in OTHERS]
    value, low, high = probability_of_improvement(above, OTHERS, fewest=2)
    pairs = len(OTHERS) * min(map(len, OTHERS))  # that share no run
    assert low**pairs == pytest.approx(0.025)  # so likely it is to win them all at this chance
    assert (value, high) == (1, 1)
    assert probability_of_improvement(OTHERS, above, fewest=2) == pytest.approx((0, 0, 1 - low))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([[3.0, 5.0, 9.0, 6.0]], [[1.0, 4.0, 5.0]]),
        ([[3.0, 5.0, 9.0], [1.0, 1.0]], [[2.0, 2.5, 4.0], [1.0, 0.0, 2.0]]),
        ([[1.0, 2.0], [5.0], [7.0, 8.0, 9.0]], [[3.0], [4.0, 5.0], [6.0, 7.0]]),
        ([[1.0, 1.0]], [[1.0, 1.0]]),
    ],
)
def test_permutation_test_is_that_of_all_labellings(ours, theirs):
    """Games and sides of unequal sizes, with ties: all labellings looked at, by counting pairs."""

    def wins(runs, first):
        others = [i for i in range(len(runs)) if i not in first]
        pairs = [(runs[i] > runs[j]) + 0.5 * (runs[i] == runs[j]) for i in first for j in others]
        return np.mean(pairs) - 0.5

    every, seen = [], 0.0
    for x, y in zip(ours, theirs, strict=True):
        runs = x + y
        every.append([wins(runs, of) for of in itertools.combinations(range(len(runs)), len(x))])
        seen += every[-1][0]
    sums = [sum(parts) for parts in itertools.product(*every)]
    expected = np.mean(np.abs(sums) >= abs(seen) - 1e-9)
    games = [list(map(np.array, of)) for of in (ours, theirs)]
    assert improvement_p(*games) == pytest.approx(expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_permutation_test_of_one_game_is_mann_whitneys(n, m, seed):
    x, y = np.split(np.random.default_rng(seed).normal(size=n + m), [n])
    expected = stats.mannwhitneyu(x, y, method="exact").pvalue
    assert improvement_p([x], [y]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([(3, 3)], 2 / 20), ([(3, 3)] * 2, 2 / 400), ([(4, 3)], 2 / 35), ([(1, 1)], 1.0)],
)
def test_the_lowest_p_is_that_of_one_side_ahead_throughout(sizes, expected):
    ours, theirs = ([np.arange(size[side]) + 100.0 * side for size in sizes] for side in (0, 1))
    assert lowest_p(ours, theirs) == pytest.approx(expected)
    assert improvement_p(ours, theirs) == pytest.approx(expected)


def test_permutation_test_of_many_games_and_odd_numbers_of_seeds():
    """20 games with 1 to 9 seeds: more labellings than could be looked at one by one."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 10, size=(20, 2))
    ours, theirs = ([rng.normal(size=n) for n in sizes[:, side]] for side in (0, 1))
    drawn = [  # of a normal distribution, which a sum over so many games is close to
        (np.mean(x[:, None] > y) - 0.5, (len(x) + len(y) + 1) / (12 * len(x) * len(y)))
        for x, y in zip(ours, theirs, strict=True)
    ]
    seen, variance = np.sum(drawn, axis=0)
    expected = 2 * stats.norm.sf(abs(seen) / math.sqrt(variance))
    assert improvement_p(ours, theirs) == pytest.approx(expected, abs=0.01)


def test_permutation_test_keeps_its_level():
    """Of 400 pairs of variants that do not differ, in 2 games with 4 seeds, one in 20 seems to."""
    rng = np.random.default_rng(0)
    p = [
        improvement_p(list(rng.normal(size=(2, 4))), list(rng.normal(size=(2, 4))))
        for _ in range(400)
    ]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.08


@pytest.mark.parametrize("measure", ["ratio of medians", "P(improvement)"])
def test_intervals_that_decide_claims_hold_the_truth(measure):
    """From 5 seeds on in 93 of 100 cases at least, where percentile intervals may in 86."""
    percentile, ours = simulate(measure, "2, unequal", "normal", BOOTSTRAP_SEEDS, experiments=300)
    assert ours > 0.93
    assert percentile < ours


def test_the_ends_of_an_interval_are_hesterbergs():
    """2015, section 4.3: z of the tail is sqrt(n / (n - 1)) times Student's t."""
    for seeds, t in ((5, 2.7764), (10, 2.2622), (30, 2.0452)):  # of a printed table
        expected = stats.norm.sf(math.sqrt(seeds / (seeds - 1)) * t)
        assert tail_share(seeds) == pytest.approx(expected, rel=1e-3)
    assert tail_share(10_000) == pytest.approx(0.025, rel=1e-3)
    values = np.linspace(0, 1, 100_001)
    assert percentile_interval(values, SCORES) == pytest.approx(
        (tail_share(2), 1 - tail_share(2)), abs=1e-4
    )


def test_performance_profile_counts_runs():
    thresholds = np.linspace(-5, 11, 33)
    share, low, high = performance_profile(SCORES, thresholds, fewest=2)
    runs = np.concatenate(SCORES)
    for i, threshold in enumerate(thresholds):
        assert share[i] == sum(run > threshold for run in runs) / len(runs)
    assert (low <= share).all()
    assert (share <= high).all()
    assert share[0] == 1
    assert share[-1] == 0


def test_difference_and_ratio():
    found = difference(SCORES, OTHERS)
    expected = np.mean([x.mean() - y.mean() for x, y in zip(SCORES, OTHERS, strict=True)])
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    one = difference(SCORES[:1], OTHERS[:1])
    welch = stats.ttest_ind(SCORES[0], OTHERS[0], equal_var=False).confidence_interval()
    assert one[1:] == pytest.approx(welch)
    alone = mean_over_games(SCORES[:1])
    assert alone[1:] == pytest.approx(stats.ttest_1samp(SCORES[0], 0).confidence_interval())
    above = [game + 20 for game in OTHERS]
    ratio = ratio_of_medians(SCORES, above, fewest=2)
    assert ratio.value == pytest.approx(3.5 / np.median([game.mean() for game in above]))
    assert ratio.low < ratio.value < ratio.high


@given(arrays(float, st.integers(2, 12), elements=st.floats(0.01, 1000)))
def test_intervals_of_a_mean_are_students(values):
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(sum(values) / len(values))
    if np.ptp(values) > 0:
        scale = np.std(values, ddof=1) / math.sqrt(len(values))
        expected = stats.t(len(values) - 1, loc=mean, scale=scale).interval(0.95)
        assert (low, high) == pytest.approx(expected)


def test_intervals_of_curves_are_students_at_each_point():
    values = np.random.default_rng(0).normal(size=(4, 7))
    mean, low, high = mean_interval(values)
    for i in range(7):
        expected = stats.ttest_1samp(values[:, i], 0).confidence_interval()
        assert (low[i], high[i]) == pytest.approx(expected)
        assert mean[i] == pytest.approx(values[:, i].mean())
    assert np.isnan(mean_interval(values[:1])[1:]).all()


def test_a_ratio_over_what_may_be_nothing_has_no_upper_end(percentile):
    """Two seeds, -1 and 3: of the means of two draws one in four is -1, and three are above 0."""
    ratio = ratio_of_medians([np.array([4.0, 4.0])], [np.array([-1.0, 3.0])], fewest=2)
    assert ratio == (4.0, pytest.approx(4 / 3), np.inf)
    nothing = ratio_of_medians([np.array([4.0, 4.0])], [np.array([-1.0, 1.0])], fewest=2)
    assert np.isnan(nothing).all()


@pytest.mark.parametrize("seeds", [1, 4])
def test_with_few_seeds_a_bootstrap_gives_no_interval(seeds):
    few = [np.arange(seeds) + 1.0, np.arange(9) + 3.0]  # few in one game are enough for that
    for found in (
        estimate(few, mean),
        probability_of_improvement(few, few),
        ratio_of_medians(few, few),
    ):
        assert np.isnan([found.low, found.high]).all()
        assert not np.isnan(found.value)
    assert np.isnan(performance_profile(few, np.array([0.0]))[1:]).all()
    assert np.isnan(difference(few, few).low) == (seeds == 1)


# rliable 1.2.0 (arch 7.2.0) of these scores, columns are games: 50,000 draws for the aggregates,
# 20,000 for the others; its own bootstrap, stratified by games.
RUNS_X = np.array(
    [[1, 10, 0.5, 3], [4, -3, 0.25, 3.5], [2.5, 6, 7, 9], [3, 8, 8, 1], [0.5, 2, 1.5, 2]]
)
RUNS_Y = np.array([[2, -1, 0.5, 4], [2, 10, 9, 2], [3, 1, 1, 3], [1, 0, 2.5, 0.5]])
RLIABLE = {
    "median": (3.575, 1.925, 5.05),
    "IQM": (2.85, 1.6, 4.85125),
    "mean": (3.4875, 2.0625, 4.8875),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_aggregates_are_rliables(name, percentile):
    found = estimate(list(RUNS_X.T), STATISTICS[name], repeats=50_000)
    assert found.value == pytest.approx(RLIABLE[name][0])
    # Ends of two bootstraps: each has its own draws.
    assert found[1:] == pytest.approx(RLIABLE[name][1:], abs=0.06)


def test_probability_of_improvement_is_rliables(percentile):
    found = probability_of_improvement(list(RUNS_X.T), list(RUNS_Y.T), repeats=20_000, fewest=2)
    assert found.value == pytest.approx(0.55)
    assert found[1:] == pytest.approx((0.35, 0.75), abs=0.02)


def test_performance_profile_is_rliables(percentile):
    thresholds = np.array([0.0, 1, 2, 3, 5, 8])
    share, low, high = performance_profile(list(RUNS_X.T), thresholds, repeats=20_000)
    assert share == pytest.approx([0.95, 0.7, 0.55, 0.4, 0.3, 0.1])
    assert low == pytest.approx([0.85, 0.5, 0.35, 0.2, 0.15, 0.0], abs=0.051)
    assert high == pytest.approx([1.0, 0.9, 0.75, 0.6, 0.45, 0.25], abs=0.051)
