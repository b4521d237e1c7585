"""The statistics of one group of runs: computed once, here; tables print and figures draw them."""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lab.common import stats, tags
from lab.common.stats import Estimate
from lab.report import measures
from lab.report.claims import MIN_SEEDS
from lab.report.groups import Group
from lab.report.headers import CHURN_HEADERS, HEADERS
from lab.report.runs import HOURS, IN_FINISHED_GAMES, SCORE, RunRecord


class Band(NamedTuple):
    """A curve with its 95 % interval, each (points,), and the runs behind it (seeds, points).

    The ends are nan where there is no interval; `runs` is None where the interval is over games.
    """

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: np.ndarray | None = None


def drawn_score(run: RunRecord) -> np.ndarray:
    """Return the curve of a run's score (points,); nan before its first game has ended.

    The tables have the score of that first game there.
    """
    score = run.measures[SCORE]
    if IN_FINISHED_GAMES not in run.measures:
        return score
    return np.where(run.measures[IN_FINISHED_GAMES] > 0, score, np.nan)


class EachSeed(NamedTuple):
    """A number of so few runs that an interval would reach beyond what is possible."""

    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """Return the mean."""
        return float(np.mean(self.values))


class GroupStatistics:
    """Statistics of a group; each is computed when a table or a figure first asks for it.

    `first` is the variant to compare with all others, `baseline` that of the normalised scores.
    """

    def __init__(self, group: Group, first: str = "tanh-hr", baseline: str = "relu"):
        self.group, self.first, self.baseline = group, first, baseline
        # Variants and games to compare over games; those games that have a human score.
        self.variants, self.shared_games = group.comparable(first)
        self.games = [game for game in self.shared_games if game in stats.reference_scores()]

    @functools.cached_property
    def by_game(self) -> list[dict]:
        """Return per game and variant: seeds, score at the end, measures of z, over the seeds."""
        group = self.group
        part = f"dead part of {'the value' if group.algorithm == 'ppo' else 'Q'}, %"
        numbers = {"score": SCORE, "mean score over the run": measures.mean_score}
        if (point := measures.first_point(group.runs)) is not None:
            early = f"dead at {group.runs[0].steps[point]:,} steps, %"
            numbers[early] = functools.partial(measures.dead_share_at, point=point)
        numbers |= {
            HEADERS["dead_kde"]: measures.DEAD,
            HEADERS["effective_rank"]: measures.RANK,
            HEADERS["saturated"]: measures.SATURATED,
            "branches saturated, %": measures.branches_saturated,
            part: measures.dead_part,
            "steps in finished games, %": IN_FINISHED_GAMES,
        }
        return self._rows(numbers)

    @functools.cached_property
    def representation(self) -> list[dict]:
        """Return per game and variant: those SHOWN of the measures of z, and churn, over the seeds.

        Without what no run has measured; no rows where that is all.
        """
        numbers = {HEADERS[name]: tags.of_layer(name) for name in measures.SHOWN}
        numbers |= {header: tag for tag, header in CHURN_HEADERS.items()}
        measured = {tag for run in self.group.runs for tag in run.measures}
        numbers = {name: tag for name, tag in numbers.items() if tag in measured}
        return self._rows(numbers) if numbers else []

    @functools.cached_property
    def by_layer(self) -> list[dict]:
        """Return per game, variant and measure: its value in each layer, over the seeds.

        Without what none of its runs has measured; no rows where `representation` has none.
        """
        if not self.representation:
            return []
        layers, rows = measures.list_layers(self.group.runs), []
        for variant, game in self._cells():
            measured = {tag for run in self.group.cells[variant, game] for tag in run.measures}
            for measure, header in HEADERS.items():
                own = {layer: tags.of_layer(measure, layer) for layer in layers}
                if measured.isdisjoint(own.values()):
                    continue
                row = {"game": game, "variant": variant, "measure": header}
                for layer, tag in own.items():
                    number = self._describe(variant, game, tag, header.endswith("%"))
                    row[layer.replace("_", " ")] = number
                rows.append(row)
        return rows

    @functools.cached_property
    def over_games(self) -> list[dict]:
        """Return per scale and variant: median, IQM and mean over all comparable games."""
        known, rows = stats.reference_scores(), []
        scales = {"human-normalised": {game: known[game] for game in self.games}}
        if self.baseline in self.variants:
            scales["baseline-normalised"] = self._ranges(self.baseline, self.shared_games)
        for scale, ranges in scales.items():
            if not ranges:
                continue
            for variant in self.variants:
                scores = []
                for game, (low, high) in ranges.items():
                    (of_game,) = self.group.values(variant, [game], SCORE)
                    scores.append(stats.normalise(of_game, low, high))
                row = {"scale": scale, "variant": variant, "games": len(ranges)}
                row |= {name: stats.estimate(scores, of) for name, of in stats.STATISTICS.items()}
                rows.append(row)
        return rows

    @functools.cached_property
    def improvements(self) -> dict[str, Estimate]:
        """Return other variant -> P(a run of `first` beats it), on the games that both have."""
        improvements = {}
        for other in self.group.variants:
            games = self.group.common_games(self.first, other)
            if other != self.first and games:
                both = (self.group.values(name, games, SCORE) for name in (self.first, other))
                improvements[other] = stats.probability_of_improvement(*both)
        return improvements

    @functools.cached_property
    def predictions(self) -> list[dict]:
        """Return per run with a prediction (v1 Table 1): dead and saturated shares of each."""
        rows = []
        for run in filter(measures.has_prediction, self.group.runs):
            row = {"game": run.game, "variant": run.variant, "seed": run.seed}
            for i, tag in enumerate(measures.BRANCHES_DEAD):
                row[f"branch {i} dead, %"] = 100 * measures.final_value(run, tag)
            row["predicted, %"] = 100 * measures.predict_share(run)
            row["measured, %"] = 100 * measures.final_value(run, measures.DEAD)
            for i, tag in enumerate(measures.BRANCHES_SATURATED):
                row[f"branch {i} saturated, %"] = 100 * measures.final_value(run, tag)
            rows.append(row)
        return rows

    @functools.cached_property
    def efficiency(self) -> dict[str, Band]:
        """Return variant -> IQM of the human-normalised scores against agent steps."""
        bands, known, steps = {}, stats.reference_scores(), self.group.runs[0].steps
        for variant in self.variants:
            curves = [
                stats.normalise(self._curves(variant, game, SCORE), *known[game])
                for game in self.games
            ]
            values = np.full((len(steps), 3), np.nan)  # a gap until each run has a score
            for i in np.flatnonzero(~np.isnan(np.concatenate(curves)).any(axis=0)):
                values[i] = stats.estimate([of[:, i] for of in curves], stats.iqm, repeats=2_000)
            bands[variant] = Band(steps, *values.T)
        return bands

    @functools.cached_property
    def profiles(self) -> dict[str, Band]:
        """Return variant -> share of its runs above each human-normalised score."""
        scores = {name: self.group.human_normalised(name, self.games) for name in self.variants}
        every = np.concatenate([of for games in scores.values() for of in games])
        thresholds = np.linspace(min(0.0, every.min()), every.max() * 1.02 + 1e-3, 101)
        return {
            variant: Band(thresholds, *stats.performance_profile(games, thresholds))
            for variant, games in scores.items()
        }

    @functools.cached_property
    def losses(self) -> list[str]:
        """Return the tags of the losses that the runs have logged."""
        names = {name for run in self.group.runs for name in run.measures}
        return sorted(name for name in names if name.startswith(tags.LOSSES))

    def against_hours(self, variant: str, game: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return hours of work and scores (seeds, points), of the runs that tell both; or None."""
        runs = [run for run in self.group.cells.get((variant, game), ()) if HOURS in run.measures]
        if not runs:
            return None
        return np.array([run.measures[HOURS] for run in runs]), np.array(
            list(map(drawn_score, runs))
        )

    def curve(self, variant: str, game: str, measure: str) -> Band | None:
        """Return the mean over seeds of a measure against agent steps; None without a run."""
        runs = self._curves(variant, game, measure)
        if not len(runs):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of nan: drawn as gaps
            return Band(self.group.runs[0].steps, *stats.mean_interval(runs), runs)

    def _cells(self) -> list[tuple[str, str]]:
        """Return the pairs of variant and game that have runs, game by game."""
        pairs = [(variant, game) for game in self.group.games for variant in self.group.variants]
        return [pair for pair in pairs if pair in self.group.cells]

    def _rows(self, numbers: dict[str, str | Callable[[RunRecord], float]]) -> list[dict]:
        """Return a row per game and variant: seeds, and numbers, shares where a name ends in %."""
        rows = []
        for variant, game in self._cells():
            seeds = len(self.group.cells[variant, game])
            row = {"game": game, "variant": variant, "seeds": seeds}
            for name, measure in numbers.items():
                row[name] = self._describe(variant, game, measure, name.endswith("%"))
            rows.append(row)
        return rows

    def _describe(
        self, variant: str, game: str, measure: str | Callable[[RunRecord], float], is_share: bool
    ) -> Estimate | EachSeed:
        """Return a number over the seeds: mean and interval, or each where they are few."""
        (values,) = self.group.values(variant, [game], measure)
        if len(values) < MIN_SEEDS:
            return EachSeed(tuple(((100 if is_share else 1) * values).tolist()))
        found = stats.mean_over_games([values])
        return found.as_share if is_share else found

    def _ranges(self, variant: str, games: list[str]) -> dict[str, tuple[float, float]]:
        """Return game -> lowest and highest point of the score curves of a variant (v1 D.1)."""
        found = {}
        for game in games:
            curves = [run.measures[SCORE] for run in self.group.cells[variant, game]]
            low, high = np.nanmin(curves), np.nanmax(curves)
            if high > low:
                found[game] = (low, high)
        return found

    def _curves(self, variant: str, game: str, measure: str) -> np.ndarray:
        """Return a measure of the runs of a variant in a game that have it, (seeds, points)."""
        runs = self.group.cells.get((variant, game), [])
        runs = [run for run in runs if measure in run.measures]
        return np.array(
            [drawn_score(run) if measure == SCORE else run.measures[measure] for run in runs]
        )
