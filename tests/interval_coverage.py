"""How often the intervals over games hold the truth, where the truth is known: a simulation.

    python tests/interval_coverage.py results/coverage.csv              10 minutes on one core
    python tests/interval_coverage.py results/coverage.csv "IQM"        these rows alone anew

Of 95 % intervals 95 in 100 should. A row has the share for the percentile interval of the bootstrap
and for the one that reports have (`lab.common.stats.tail_share`; where all pairs are won both have
the bound of `probability_of_improvement`). Scores of a game are 1 and a spread; those of "unequal"
games spread by 0.4 in the first and by 0.02 in the others.
"""

import csv
import itertools
import sys
from pathlib import Path

import numpy as np
from scipy.stats import norm as normal

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab.common import stats
from lab.common.tables import format_csv

EXPERIMENTS = 1_000
REPEATS = 2_000  # of the bootstrap
GAMES = {"1": (0.4,), "2": (0.4, 0.4), "2, unequal": (0.4, 0.02), "8": (0.4,) * 8}
NOISE = {  # mean 0, variance 1
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed": lambda rng, size: (np.exp(0.6 * rng.normal(size=size)) - 1.1972) / 0.7882,
}
# Measure -> by how many spreads ours are ahead. Of normal scores, those 1.8124 ahead win a pair
# with a chance of 0.9.
AHEAD = {"P(improvement)": 0.0, "P(improvement), ahead": 1.8124}
MEASURES = ("median", "IQM", "ratio of medians", *AHEAD)
TIMES = 2.0  # ours are this many times theirs, in the ratio


def interval(measure: str, ours: stats.Scores, theirs: stats.Scores, tail=stats.tail_share):
    """Return a measure of these scores with its interval; `tail` is that of its ends."""
    kept, stats.tail_share = stats.tail_share, tail
    try:
        if measure == "ratio of medians":
            return stats.ratio_of_medians(ours, theirs, REPEATS, fewest=2)
        if measure in AHEAD:
            return stats.probability_of_improvement(ours, theirs, REPEATS, fewest=2)
        return stats.estimate(ours, stats.STATISTICS[measure], REPEATS, fewest=2)
    finally:
        stats.tail_share = kept


def draw(rng, spreads, noise: str, seeds: int, measure: str = "") -> stats.Scores:
    """Draw scores of so many seeds per game; with a `measure`, ours, as far ahead as it asks."""
    times, ahead = TIMES if measure == "ratio of medians" else 1.0, AHEAD.get(measure, 0.0)
    return [times * (1 + spread * (NOISE[noise](rng, seeds) + ahead)) for spread in spreads]


def truth(rng, measure: str, spreads, noise: str) -> float:
    """Return what a measure is of very many seeds."""
    if measure == "IQM":
        return float(stats.iqm(draw(rng, spreads, noise, 400_000)))
    if measure in AHEAD and (noise == "normal" or AHEAD[measure] == 0):
        # Not simulated, as ends of intervals may be these very numbers: wins are counted.
        return round(normal.cdf(AHEAD[measure] / 2**0.5), 4)
    if measure in AHEAD:  # the same in each game, as all is in spreads
        ours, theirs = draw(rng, (1,), noise, 400_000, measure), draw(rng, (1,), noise, 400_000)
        return float(np.mean(ours[0] > theirs[0]))
    return {"median": 1.0, "ratio of medians": TIMES}[measure]


def simulate(
    measure: str, games: str, noise: str, seeds: int, experiments: int = EXPERIMENTS
) -> tuple[float, float]:
    """Return the shares of percentile intervals, and of the reports', that hold the truth."""
    rng, spreads, held = np.random.default_rng(0), GAMES[games], np.zeros(2)
    true = truth(rng, measure, spreads, noise)
    for _ in range(experiments):
        ours = draw(rng, spreads, noise, seeds, measure)
        theirs = draw(rng, spreads, noise, seeds)
        for i, tail in enumerate((lambda seeds: 0.025, stats.tail_share)):
            _, low, high = interval(measure, ours, theirs, tail)
            held[i] += low <= true <= high
    return tuple((held / experiments).tolist())


def main(path: str, *measures: str):
    """Write the table of all simulations, or only the rows of these measures anew."""
    rows = []
    if measures:
        kept = csv.DictReader(Path(path).read_text().splitlines())
        rows = [row for row in kept if row["measure"] not in measures]
    chosen = measures or MEASURES
    for measure, games, noise, seeds in itertools.product(chosen, GAMES, NOISE, (3, 5, 10)):
        percentile, ours = simulate(measure, games, noise, seeds)
        row = {"measure": measure, "games": games, "scores": noise, "seeds": seeds}
        rows.append(row | {"percentile": round(percentile, 3), "in reports": round(ours, 3)})
        print(*rows[-1].values(), flush=True)
    Path(path).write_bytes(format_csv(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
