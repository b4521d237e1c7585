"""Scores of many runs as few numbers with intervals, after Agarwal et al. 2021 (rliable).

`scores` is a list with one array (seeds,) per game; games may have unequal numbers of seeds. An
interval is the percentile one of a bootstrap that is stratified: seeds are drawn anew within each
game. With fewer than `fewest` in a game it is (nan, nan), as it would be much too narrow: with 3
seeds in 2 games it holds the truth in 80 % of the cases, not 95.
"""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
REPEATS = 2_000  # of the bootstrap
BOOTSTRAP_SEEDS = 5  # fewest of which it gives an interval
SCORES = Path(__file__).parent / "atari_scores.csv"

Scores = list[np.ndarray]


class Estimate(NamedTuple):
    """A value and its 95 % interval; (nan, nan) where there is none."""

    value: float
    low: float
    high: float

    @property
    def in_percent(self) -> "Estimate":
        return Estimate(*(100 * number for number in self))

    def told(self, digits: int = 2) -> str:
        """In words; the value alone where there is no interval."""
        value, low, high = (f"{number:.{digits}f}" for number in self)
        return value if math.isnan(self.low) else f"{value} ({low} to {high})"

    def __str__(self) -> str:
        return self.told() + " (no interval)" * math.isnan(self.low)


def reference_scores() -> dict[str, tuple[float, float]]:
    """Game -> raw scores (random, human), no-op starts: v1 D.1's normalisation; 57 games."""
    with SCORES.open(newline="") as file:
        return {
            row["game"]: (float(row["random"]), float(row["human"])) for row in csv.DictReader(file)
        }


def normalised(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """(score - low) / (high - low): random and human scores, or a baseline's range (v1 D.1)."""
    return (np.asarray(scores, dtype=float) - low) / (high - low)


def mean(values: np.ndarray, games: np.ndarray) -> np.ndarray:
    """Mean over games of the mean over seeds. values (..., runs), games (runs,) as indices."""
    return _game_means(values, games).mean(axis=-1)


def median(values: np.ndarray, games: np.ndarray) -> np.ndarray:
    """Median over games of the mean over seeds."""
    return np.median(_game_means(values, games), axis=-1)


def iqm(values: np.ndarray, games: np.ndarray) -> np.ndarray:
    """Interquartile mean: that of the middle half of all runs (the ends cut off whole runs)."""
    return stats.trim_mean(values, 0.25, axis=-1)


def _game_means(values: np.ndarray, games: np.ndarray) -> np.ndarray:
    names = np.unique(games)
    return np.stack([values[..., games == name].mean(axis=-1) for name in names], axis=-1)


STATISTICS = {"median": median, "IQM": iqm, "mean": mean}


def _games(scores: Scores) -> np.ndarray:
    """(runs,): the index of each run's game, where the arrays are joined."""
    return np.repeat(np.arange(len(scores)), [len(game) for game in scores])


def resampled(scores: Scores, repeats: int = REPEATS, seed: int = 0) -> np.ndarray:
    """(repeats, runs): the seeds of each game drawn with replacement, game by game."""
    rng = np.random.default_rng(seed)
    parts = [game[rng.integers(len(game), size=(repeats, len(game)))] for game in scores]
    return np.concatenate(parts, axis=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of bootstrapped values (repeats,)."""
    tail = 100 * (1 - LEVEL) / 2
    ends = np.percentile(values, [tail, 100 - tail], method="inverted_cdf")  # a draw may be inf
    return tuple(float(bound) for bound in ends)


def _too_few(fewest: int, *all_scores: Scores) -> bool:
    return any(len(game) < fewest for scores in all_scores for game in scores)


def estimate(
    scores: Scores,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    repeats: int = REPEATS,
    seed: int = 0,
    fewest: int = BOOTSTRAP_SEEDS,
) -> Estimate:
    """One of STATISTICS over runs of several games, with its interval."""
    games = _games(scores)
    value = float(statistic(np.concatenate(scores), games))
    if _too_few(fewest, scores):
        return Estimate(value, np.nan, np.nan)
    return Estimate(value, *interval(statistic(resampled(scores, repeats, seed), games)))


def performance_profile(
    scores: Scores,
    thresholds: np.ndarray,
    repeats: int = REPEATS,
    seed: int = 0,
    fewest: int = BOOTSTRAP_SEEDS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of runs with a score above each threshold: values, lower and upper ends."""
    share = np.array([(np.concatenate(scores) > t).mean() for t in thresholds])
    if _too_few(fewest, scores):
        return share, *np.full((2, len(thresholds)), np.nan)
    drawn = resampled(scores, repeats, seed)
    ends = [interval((drawn > threshold).mean(axis=1)) for threshold in thresholds]
    return share, *np.array(ends).T


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x (..., seeds), y (..., seeds) -> (...)"""
    difference = x[..., :, None] - y[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-1, -2))


def shares_won(ours: Scores, theirs: Scores) -> list[float]:
    """Chance per game that a run of ours beats one of theirs, ties half."""
    return [float(_wins(x, y)) for x, y in zip(ours, theirs, strict=True)]


def probability_of_improvement(
    ours: Scores,
    theirs: Scores,
    repeats: int = REPEATS,
    seed: int = 0,
    fewest: int = BOOTSTRAP_SEEDS,
) -> Estimate:
    """Chance that a run of ours beats one of theirs in the same game, ties half; mean over games.

    `ours` and `theirs` have the same games in the same order.
    """
    value = float(np.mean(shares_won(ours, theirs)))
    if _too_few(fewest, ours, theirs):
        return Estimate(value, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    drawn = [
        _wins(*(z[rng.integers(len(z), size=(repeats, len(z)))] for z in (x, y)))
        for x, y in zip(ours, theirs, strict=True)
    ]
    return Estimate(value, *interval(np.mean(drawn, axis=0)))


def improvement_p(ours: Scores, theirs: Scores, repeats: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of `probability_of_improvement` being 0.5: labels drawn anew within each game.

    A permutation test: it is right for any number of seeds, where a bootstrap of few is too narrow.
    """
    rng = np.random.default_rng(seed)
    drawn, seen = np.zeros(repeats), 0.0
    for x, y in zip(ours, theirs, strict=True):
        ranks = stats.rankdata(np.concatenate([x, y]))
        centre = len(x) * (len(x) + len(y) + 1) / 2
        weight = 1 / (len(x) * len(y))
        seen += weight * (ranks[: len(x)].sum() - centre)
        shuffled = rng.permuted(np.tile(ranks, (repeats, 1)), axis=1)
        drawn += weight * (shuffled[:, : len(x)].sum(axis=1) - centre)
    as_far = np.abs(drawn) >= abs(seen) - 1e-9
    return float((1 + as_far.sum()) / (1 + repeats))


def mean_over_games(scores: Scores) -> Estimate:
    """Mean over games of the mean over seeds, with Student's interval over the seeds.

    Games may have unequal spreads: degrees of freedom by Welch and Satterthwaite. (nan, nan) where
    a game has one seed.
    """
    return _student(scores, [1.0] * len(scores))


def difference(ours: Scores, theirs: Scores) -> Estimate:
    """Mean over games of (mean of ours - mean of theirs), with Welch's interval over the seeds."""
    return _student([*ours, *theirs], [1.0] * len(ours) + [-1.0] * len(theirs), len(ours))


def _student(scores: Scores, signs: list[float], games: int | None = None) -> Estimate:
    """The sum of sign times mean, over the number of games."""
    games = games or len(scores)
    value = sum(sign * of.mean() for sign, of in zip(signs, scores, strict=True)) / games
    if any(len(of) < 2 for of in scores):
        return Estimate(float(value), np.nan, np.nan)
    parts = np.array([of.var(ddof=1) / len(of) for of in scores]) / games**2
    if parts.sum() == 0:
        return Estimate(float(value), float(value), float(value))
    freedom = parts.sum() ** 2 / sum(
        part**2 / (len(of) - 1) for part, of in zip(parts, scores, strict=True)
    )
    half = stats.t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(parts.sum())
    return Estimate(float(value), float(value - half), float(value + half))


def ratio_of_medians(
    ours: Scores,
    theirs: Scores,
    repeats: int = REPEATS,
    seed: int = 0,
    fewest: int = BOOTSTRAP_SEEDS,
) -> Estimate:
    """`median` of ours over that of theirs; nan where theirs is not above 0.

    A draw in which it is not counts as no bound above: an infinite ratio.
    """

    def medians(values: np.ndarray, scores: Scores) -> np.ndarray:
        return median(values, _games(scores))

    def ratio(above, below, otherwise):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(below > 0, above / below, otherwise)

    whole = (medians(np.concatenate(scores), scores) for scores in (ours, theirs))
    value = float(ratio(*whole, np.nan))
    if math.isnan(value) or _too_few(fewest, ours, theirs):
        return Estimate(value, np.nan, np.nan)
    above, below = resampled(ours, repeats, seed), resampled(theirs, repeats, seed + 1)
    ratios = ratio(medians(above, ours), medians(below, theirs), np.inf)
    return Estimate(value, *interval(ratios))
