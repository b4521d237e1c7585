"""The tables of a report: runs, findings or one group of runs in, a row for each line out."""

import functools
import math
from collections.abc import Callable

import numpy as np

from lab.common.stats import (
    STATISTICS,
    Estimate,
    estimate,
    mean_over_games,
    normalised,
    reference_scores,
)
from lab.common.tables import format_number
from lab.report.groups import Group
from lab.report.measures import (
    BRANCHES_DEAD,
    BRANCHES_SATURATED,
    DEAD,
    RANK,
    SATURATED,
    at_first,
    at_the_end,
    branches_saturated,
    dead_part,
    has_prediction,
    is_counted,
    predict_share,
)
from lab.report.runs import IN_FINISHED_GAMES, SCORE, RunRecord
from lab.report.verdicts import OPEN, Finding


def game_rows(group: Group) -> list[dict]:
    """Per game and variant: seeds, score at the end, its mean over the run, measures of z.

    Also what the head gets from dead neurons, of all that it gets (`dead_part`).
    """
    rows = []
    for game in group.games:
        for variant in group.variants:
            runs = group.cells.get((variant, game), [])
            if not runs:
                continue
            row = {"game": game, "variant": variant, "seeds": len(runs)}
            over_seeds = functools.partial(mean_over_seeds, group, variant, game)
            row["score"] = over_seeds(SCORE)
            row["mean score over the run"] = over_seeds(lambda run: np.nanmean(run.measures[SCORE]))
            row["dead at first, %"] = over_seeds(lambda run: at_first(run, DEAD)).in_percent
            row["dead, %"] = over_seeds(DEAD).in_percent
            row["rank"] = over_seeds(RANK)
            row["saturated, %"] = over_seeds(SATURATED).in_percent
            row["branches saturated, %"] = over_seeds(branches_saturated).in_percent
            part = f"dead part of {'the value' if group.algorithm == 'ppo' else 'Q'}, %"
            row[part] = over_seeds(dead_part).in_percent
            row["steps in finished games, %"] = over_seeds(IN_FINISHED_GAMES).in_percent
            rows.append(row)
    return rows


def mean_over_seeds(
    group: Group, variant: str, game: str, measure: str | Callable[[RunRecord], float]
) -> Estimate:
    return mean_over_games(group.values(variant, [game], measure))


def aggregate_rows(group: Group, baseline: str) -> list[dict]:
    """Per variant: median, IQM and mean of the normalised scores, on the games that all have."""
    rows = []
    (variants, games), known = group.comparable(), reference_scores()
    scales = {"human-normalised": {game: known[game] for game in games if game in known}}
    scales["baseline-normalised"] = {}
    for game in games if baseline in variants else ():
        curves = np.concatenate([run.measures[SCORE] for run in group.cells[baseline, game]])
        low, high = np.nanmin(curves), np.nanmax(curves)
        if high > low:
            scales["baseline-normalised"][game] = (low, high)
    for scale, ranges in scales.items():
        for variant in variants if ranges else ():
            scores = [
                normalised(of, *ranges[game])
                for game, of in zip(ranges, group.values(variant, list(ranges), SCORE), strict=True)
            ]
            found = {name: estimate(scores, of) for name, of in STATISTICS.items()}
            rows.append({"scale": scale, "variant": variant, "games": len(ranges)} | found)
    return rows


def prediction_rows(group: Group) -> list[dict]:
    """Per run with two branches: shares of dead neurons, and what independence would give.

    And the shares of those that are saturated, in each branch.
    """
    rows = []
    for run in group.runs:
        if not has_prediction(run):
            continue
        first, second = (at_the_end(run, tag) for tag in BRANCHES_DEAD)
        row = {"game": run.game, "variant": run.variant, "seed": run.seed}
        row |= {"branch 0 dead, %": 100 * first, "branch 1 dead, %": 100 * second}
        row["predicted, %"] = 100 * predict_share(run)
        row["measured, %"] = 100 * at_the_end(run, DEAD)
        for branch, tag in enumerate(BRANCHES_SATURATED):
            row[f"branch {branch} saturated, %"] = 100 * at_the_end(run, tag)
        rows.append(row)
    return rows


def run_rows(runs: list[RunRecord]) -> list[dict]:
    return [
        {
            "run": run.name,
            "setting": run.setting,
            "agent steps": f"{run.last_step:,} of {run.total:,}",
            "counts": "yes"
            if is_counted(run)
            else "no score"
            if run.complete
            else "no: not complete",
            "score at the end": f"{at_the_end(run, SCORE):.1f}" if is_counted(run) else "",
            "commit": run.commit,
        }
        for run in runs
    ]


def claim_rows(findings: list[Finding]) -> list[dict]:
    """Decided ones first, then those with something to show."""
    return [
        {
            "claim": f.claim,
            "verdict": f.verdict,
            "here": f.ours,
            "the paper's number": f.paper,
            "of": f.setting,
            "games": f.games,
            "seeds": f.seeds,
            "why": f.why,
            "source": f.source,
        }
        for f in sorted(findings, key=lambda f: (f.verdict == OPEN, f.ours == ""))
    ]


def as_cells(rows: list[dict]) -> list[dict]:
    """For the page: numbers to a digit or two, intervals in words, nothing for nan."""

    def cell(value):
        number = value.value if isinstance(value, Estimate) else value
        if isinstance(number, float) and math.isnan(number):
            return ""
        if isinstance(value, Estimate):
            return value.format(digits=1 if abs(number) >= 10 else 2)
        return f"{value:.1f}" if isinstance(value, float) else value

    return [{name: cell(value) for name, value in row.items()} for row in rows]


def as_columns(rows: list[dict]) -> list[dict]:
    """For CSV: an interval as three columns, numbers to six digits."""
    return [
        {
            column: format_number(number) if isinstance(number, float) else number
            for name, value in row.items()
            for column, number in (
                [(name, value.value), (f"{name} low", value.low), (f"{name} high", value.high)]
                if isinstance(value, Estimate)
                else [(name, value)]
            )
        }
        for row in rows
    ]
