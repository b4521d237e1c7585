"""Numbers of one run: its score at the end, its representation, and what theory predicts of it."""

import math
import re

import numpy as np

from lab.common import tags
from lab.report.runs import POINTS, SCORE, RunRecord

DEAD, RANK, SATURATED = tags.dead(), tags.rank(), tags.saturated()
LIVE_RANK, LIVE_RANK_SHARE = map(tags.of_layer, ("srank_live", "srank_live_share"))
GRAD_DORMANT = tags.of_layer("grad_dormant_0.01")
# What the table of the representation has of z, beside churn: dead, srank and saturated stand with
# the scores, and all measures of all layers in a table of their own.
SHOWN = ("dead_std", "grad_dormant_0.01", "srank_live", "srank_live_share")
SHOWN += ("feature_norm", "weight_norm")
BRANCHES = ("branch_0", "branch_1")  # of HR, whose product z is
BRANCHES_DEAD = tuple(map(tags.dead, BRANCHES))
BRANCHES_SATURATED = tuple(map(tags.saturated, BRANCHES))
PREDICTED = ("tanh", "sigmoid", "relu")  # activations of which v1 Table 1 predicts the deaths


def final_value(run: RunRecord, measure: str) -> float:
    """Return the score at the end of a run, or the mean of another measure over its last tenth."""
    if measure not in run.measures:
        return math.nan
    values = run.measures[measure]
    return float(values[-1] if measure == SCORE else np.mean(values[-(POINTS // 10) :]))


def list_layers(runs: list[RunRecord]) -> list[str]:
    """Return the layers that runs have measured: "z", and "branch_0" ..., "conv_1" ... if any."""
    pattern = re.compile(rf"{tags.REPRESENTATION}(branch_\d+|conv_\d+)/")
    found = {match[1] for run in runs for tag in run.measures if (match := pattern.match(tag))}
    return ["z", *sorted(found)]


def first_point(runs: list[RunRecord]) -> int | None:
    """Return the first of the POINTS at which all runs that measure dead neurons have done so.

    Runs of different versions measure for the first time at different agent steps; at this point
    they can be compared. None where no run measures them.
    """
    measured = (~np.isnan(run.measures[DEAD]) for run in runs if DEAD in run.measures)
    return max((int(np.argmax(there)) for there in measured), default=None)


def dead_share_at(run: RunRecord, point: int) -> float:
    """Return the newest share of dead neurons at one of the POINTS."""
    return float(run.measures[DEAD][point]) if DEAD in run.measures else math.nan


def is_counted(run: RunRecord) -> bool:
    """Return whether a run is part of the comparisons: complete, and a game has ended in it."""
    return run.complete and not math.isnan(final_value(run, SCORE))


def mean_score(run: RunRecord) -> float:
    """Return the mean over the run of the score so far."""
    return np.nanmean(run.measures[SCORE])


def branches_saturated(run: RunRecord) -> float:
    """Return the share of saturated neurons in a branch of z, mean over the two; nan without."""
    return np.mean([final_value(run, tag) for tag in BRANCHES_SATURATED])


def dead_part(run: RunRecord) -> float:
    """Return the share of the magnitude of the Q-values, or value, that comes from dead neurons."""
    parts = (tags.contribution(part, run.algorithm) for part in ("dead_abs", "live_abs"))
    dead, live = (final_value(run, tag) for tag in parts)
    return dead / max(dead + live, 1e-12)


def has_prediction(run: RunRecord) -> bool:
    """Return whether the paper predicts the deaths of a run's products, from two branches."""
    activation, _, kind = run.variant.partition("-")
    known = not any(math.isnan(final_value(run, tag)) for tag in (DEAD, *BRANCHES_DEAD))
    return activation in PREDICTED and kind.split("-")[0] == "hr" and known


def predict_dead(activation: str, branches: tuple[float, float]) -> float:
    """Return the share of dead products if their branches, of these shares, die independently.

    v1 Table 1, where saturation is symmetric. tanh: both must be dead, p^2; ReLU: one is enough,
    2p - p^2; sigmoid: p, as one dead at 0 is enough and one dead at 1 is not. Raise KeyError for
    another activation: of those the paper says nothing.
    """
    if activation not in PREDICTED:
        raise KeyError(activation)
    first, second = branches
    if activation == "relu":
        return first + second - first * second
    return (first + second) / 2 if activation == "sigmoid" else first * second


def predict_share(run: RunRecord) -> float:
    """Return `predict_dead` of the branches of a run that `has_prediction`."""
    branches = tuple(final_value(run, tag) for tag in BRANCHES_DEAD)
    return predict_dead(run.variant.split("-")[0], branches)
