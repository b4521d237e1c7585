"""All intervals and tests: of scores over games and seeds, and of any other samples over seeds.

`scores` is a list with one array (seeds,) per game; games may have unequal numbers of seeds. What
aggregates scores over games is Agarwal et al. 2021 (rliable), with a bootstrap that is stratified:
seeds are drawn anew within each game. Their percentile intervals are too narrow for few seeds, so
ours reach as much further as Student's for that number of seeds (`tail_share`). How often either
holds the truth is simulated by tests/interval_coverage.py: results/coverage.csv. With fewer than
`fewest` seeds in a game an interval is (nan, nan), as this one, too, is then too narrow. Means and
their differences have Student's and Welch's intervals, which are right for few seeds, too, if these
are about normal.
"""

import csv
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import signal, stats

LEVEL = 0.95
REPEATS = 5_000  # of the bootstrap
BOOTSTRAP_SEEDS = 5  # fewest of which it gives an interval
SCORES = Path(__file__).parent / "atari_scores.csv"

Scores = list[np.ndarray]


class Estimate(NamedTuple):
    """A value and its 95 % interval; (nan, nan) where there is none.

    Numbers, or in `mean_interval` arrays of one shape.
    """

    value: float
    low: float
    high: float

    @property
    def in_percent(self) -> "Estimate":
        """Return the same, times 100."""
        return Estimate(*(100 * number for number in self))

    @property
    def as_share(self) -> "Estimate":
        """Return a share in percent, its interval cut off where no share can be."""
        value, *ends = self.in_percent
        return Estimate(value, *(min(max(end, 0.0), 100.0) for end in ends))

    def format(self, digits: int = 2) -> str:
        """Format as "0.50 (0.40 to 0.60)"; the value alone where there is no interval."""
        value, low, high = (f"{number:.{digits}f}" for number in self)
        return value if math.isnan(self.low) else f"{value} ({low} to {high})"

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.format()} (no interval)"
        return self.format()


@functools.cache
def reference_scores() -> dict[str, tuple[float, float]]:
    """Return game -> raw scores (random, human) of 57 games, no-op starts: v1 D.1's normalisation.

    As Wang et al. 2016 print them; the human ones of Mnih et al. 2015 are others.
    """
    with SCORES.open(newline="") as file:
        return {
            row["game"]: (float(row["random"]), float(row["human"])) for row in csv.DictReader(file)
        }


def normalise(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return (score - low) / (high - low), of random and human score or a baseline's range."""
    return (np.asarray(scores, dtype=float) - low) / (high - low)


def mean(scores: Scores) -> np.ndarray:
    """Return the mean over games of the mean over seeds: (...), of arrays (..., seeds)."""
    return np.mean([game.mean(axis=-1) for game in scores], axis=0)


def median(scores: Scores) -> np.ndarray:
    """Return the median over games of the mean over seeds; shapes as in `mean`."""
    return np.median([game.mean(axis=-1) for game in scores], axis=0)


def iqm(scores: Scores) -> np.ndarray:
    """Return the interquartile mean: that of the middle half of all runs; shapes as in `mean`."""
    return stats.trim_mean(np.concatenate(scores, axis=-1), 0.25, axis=-1)


STATISTICS = {"median": median, "IQM": iqm, "mean": mean}


def resample(scores: Scores, repeats: int = REPEATS, seed: int = 0) -> Scores:
    """Draw the seeds of each game with replacement: an array (repeats, seeds) per game."""
    rng = np.random.default_rng(seed)
    return [game[rng.integers(len(game), size=(repeats, len(game)))] for game in scores]


def tail_share(seeds: int) -> float:
    """Return the share of draws beyond either end of an interval, with so many seeds in a game.

    The expanded percentile interval of Hesterberg 2015 ("What Teachers Should Know About the
    Bootstrap", The American Statistician 69): draws of n seeds vary by sqrt((n - 1) / n) too
    little, and Student's t lies further out than the normal distribution. 0.001 with 5 seeds,
    0.009 with 10, and 0.025 with very many.
    """
    if seeds < 2:
        return 0.0
    t = stats.t.ppf(0.5 + LEVEL / 2, seeds - 1)
    return float(stats.norm.sf(math.sqrt(seeds / (seeds - 1)) * t))


def percentile_interval(values: np.ndarray, *all_scores: Scores) -> tuple[float, float]:
    """Return the interval of bootstrapped values (repeats,), of these scores."""
    tail = tail_share(min(len(game) for scores in all_scores for game in scores))
    # Not interpolated, as a draw may be inf.
    ends = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return tuple(float(bound) for bound in ends)


def _too_few(fewest: int, *all_scores: Scores) -> bool:
    return any(len(game) < fewest for scores in all_scores for game in scores)


def estimate(
    scores: Scores, statistic: Callable, repeats: int = REPEATS, fewest: int = BOOTSTRAP_SEEDS
) -> Estimate:
    """Return one of STATISTICS over runs of several games, with its bootstrapped interval."""
    value = float(statistic(scores))
    if _too_few(fewest, scores):
        return Estimate(value, np.nan, np.nan)
    return Estimate(value, *percentile_interval(statistic(resample(scores, repeats)), scores))


def performance_profile(
    scores: Scores, thresholds: np.ndarray, repeats: int = REPEATS, fewest: int = BOOTSTRAP_SEEDS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the share of runs above each threshold (thresholds,), with lower and upper ends."""
    share = np.array([(np.concatenate(scores) > t).mean() for t in thresholds])
    if _too_few(fewest, scores):
        return share, *np.full((2, len(thresholds)), np.nan)
    drawn = np.concatenate(resample(scores, repeats), axis=1)
    shares = ((drawn > threshold).mean(axis=1) for threshold in thresholds)
    ends = [percentile_interval(of, scores) for of in shares]
    return share, *np.array(ends).T


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the share of pairs that x (..., seeds) wins against y, ties half: (...)."""
    difference = x[..., :, None] - y[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-1, -2))


def shares_won(ours: Scores, theirs: Scores) -> list[float]:
    """Return per game the chance that a run of ours beats one of theirs, ties half."""
    return [float(_wins(x, y)) for x, y in zip(ours, theirs, strict=True)]


def probability_of_improvement(
    ours: Scores, theirs: Scores, repeats: int = REPEATS, fewest: int = BOOTSTRAP_SEEDS
) -> Estimate:
    """Return the mean over games of `shares_won`, with its bootstrapped interval.

    `ours` and `theirs` have the same games in the same order.
    """
    value = float(np.mean(shares_won(ours, theirs)))
    if _too_few(fewest, ours, theirs):
        return Estimate(value, np.nan, np.nan)
    rng = np.random.default_rng(0)
    drawn = [
        _wins(*(z[rng.integers(len(z), size=(repeats, len(z)))] for z in (x, y)))
        for x, y in zip(ours, theirs, strict=True)
    ]
    low, high = percentile_interval(np.mean(drawn, axis=0), ours, theirs)
    if value in (0, 1):  # all draws are alike
        bound = _bound_of_all_won(ours, theirs)
        low, high = (bound, 1.0) if value == 1 else (0.0, 1 - bound)
    return Estimate(value, low, high)


def _bound_of_all_won(ours: Scores, theirs: Scores) -> float:
    """Return the mean chance of winning a pair at which winning all has a probability of 2.5 %.

    Of that many pairs no two share a run. All are won with a probability of at most
    chance ** pairs.
    """
    pairs = len(ours) * min(len(game) for side in (ours, theirs) for game in side)
    return ((1 - LEVEL) / 2) ** (1 / pairs)


def improvement_p(ours: Scores, theirs: Scores) -> float:
    """Return the two-sided p of `probability_of_improvement` being 0.5, by a permutation test.

    Of all ways to share out the labels within each game, the part in which it lies as far from 0.5.
    Right for any number of seeds. All are counted, none is drawn: chances of sums add up.
    """
    sizes = [(len(x), len(y)) for x, y in zip(ours, theirs, strict=True)]
    # A game counts by 1 / (n m), in whole numbers: rounded where sizes are a rare mixture, which
    # changes the measure a little and not that the test is right.
    scale = min(math.lcm(*(n * m for n, m in sizes)), 5_040)
    chances, at, seen = np.ones(1), 0, 0  # chances of sums at, at + 1, ...
    for x, y, (n, m) in zip(ours, theirs, sizes, strict=True):
        weight = max(round(scale / (n * m)), 1)
        doubled = np.rint(2 * stats.rankdata(np.concatenate([x, y]))).astype(int)  # ties are halves
        counts = np.zeros((n + 1, doubled.sum() + 1))  # of ways to choose so many, by their sum
        counts[0, 0] = 1
        for rank in doubled:
            counts[1:, rank:] += counts[:-1, :-rank]
        lowest, highest = np.flatnonzero(counts[n])[[0, -1]]
        centre = n * (n + m + 1)
        own = np.zeros(weight * (highest - lowest) + 1)
        own[::weight] = counts[n, lowest : highest + 1] / counts[n].sum()
        chances = signal.fftconvolve(chances, own)
        at += weight * (lowest - centre)
        seen += weight * (doubled[:n].sum() - centre)
    as_far = np.abs(at + np.arange(len(chances))) >= abs(seen)
    return float(np.clip(chances[as_far].sum(), lowest_p(ours, theirs), 1.0))


def lowest_p(ours: Scores, theirs: Scores) -> float:
    """Return the lowest `improvement_p` that so many seeds can give: all runs of one side ahead."""
    sizes = ((len(x), len(y)) for x, y in zip(ours, theirs, strict=True))
    return min(2 / math.prod(math.comb(n + m, n) for n, m in sizes), 1.0)


def mean_over_games(scores: Scores) -> Estimate:
    """Return the mean over games of the mean over seeds, with Student's interval over the seeds.

    (nan, nan) where a game has one seed.
    """
    return _student(scores, [1.0] * len(scores), len(scores))


def difference(ours: Scores, theirs: Scores) -> Estimate:
    """Return the mean over games of (mean of ours - mean of theirs), with Welch's interval."""
    return _student([*ours, *theirs], [1.0] * len(ours) + [-1.0] * len(theirs), len(ours))


def mean_interval(values: np.ndarray) -> Estimate:
    """Return the mean of values (seeds, ...) over the seeds, with Student's interval: (...)."""
    return _student([values], [1.0], 1)


def _student(samples: list[np.ndarray], signs: list[float], games: int) -> Estimate:
    """Return the sum of sign times mean of samples (seeds, ...), over the number of games.

    Samples may have unequal sizes and spreads: degrees of freedom by Welch (1947, "The
    generalization of Student's problem") and Satterthwaite (1946), which for one sample are
    Student's. No spread at all gives an interval without width, one seed none.
    """
    value = (
        sum(sign * sample.mean(axis=0) for sign, sample in zip(signs, samples, strict=True)) / games
    )
    if any(len(sample) < 2 for sample in samples):
        return Estimate(value, value * np.nan, value * np.nan)
    parts = [sample.var(axis=0, ddof=1) / len(sample) / games**2 for sample in samples]
    variance = sum(parts)
    below = sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, samples, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(below > 0, variance**2 / below, 1.0)
    half = stats.t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(variance)
    return Estimate(value, value - half, value + half)


def ratio_of_medians(
    ours: Scores, theirs: Scores, repeats: int = REPEATS, fewest: int = BOOTSTRAP_SEEDS
) -> Estimate:
    """Return `median` of ours over that of theirs; nan where theirs is not above 0.

    A draw in which it is not counts as no bound above: an infinite ratio.
    """

    above, below = median(ours), median(theirs)
    if below <= 0:
        return Estimate(np.nan, np.nan, np.nan)
    if _too_few(fewest, ours, theirs):
        return Estimate(float(above / below), np.nan, np.nan)
    drawn = median(resample(ours, repeats)), median(resample(theirs, repeats, seed=1))
    ratios = np.full(repeats, np.inf)
    np.divide(*drawn, out=ratios, where=drawn[1] > 0)
    return Estimate(float(above / below), *percentile_interval(ratios, ours, theirs))
