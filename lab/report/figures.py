"""The figures of a report: one group of runs in, one matplotlib figure out.

Lines are means over seeds, bands 95 % intervals: Student's t over seeds where one game is shown,
from 3 seeds on (of fewer each is drawn, as the interval of two is a dozen times their distance),
the stratified bootstrap of aggregate.py where several are, from 5 seeds in each game on.
"""

import warnings

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from lab.common.stats import (
    Estimate,
    estimate,
    iqm,
    mean_interval,
    normalised,
    performance_profile,
    probability_of_improvement,
    reference_scores,
)
from lab.report.claims import MIN_SEEDS
from lab.report.groups import VARIANTS, Group
from lab.report.measures import DEAD, RANK, at_the_end, has_prediction, predict_share
from lab.report.runs import SCORE

OVER_TIME = {  # tag below representation/ -> title, whether it is a share
    "dead_kde": ("dead neurons", True),
    "effective_rank": ("effective rank", False),
    "saturated": ("saturated neurons", True),
}


def color(variant: str, variants: list[str]) -> str:
    return VARIANTS.get(variant, f"C{variants.index(variant) % 10}")


def _grid(count: int, width: float = 4.2, height: float = 3.0):
    """A figure with that many panels, at most 4 in a row."""
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * max(columns, 1.5), height * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[:count]:
        axes.grid(alpha=0.25)
    return figure, panels[:count]


def _legend(figure: Figure, panels):
    """One for all panels, above them."""
    handles = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        figure.legend(
            handles.values(), handles, loc="outside upper center", ncols=min(len(handles), 6)
        )


def _line(axes, group: Group, game: str, tag: str, variant: str, branch: bool = False):
    """Mean over seeds, with its interval or, with few, each seed; a branch dotted, by itself."""
    runs = [run for run in group.cells.get((variant, game), ()) if tag in run.measures]
    axes.xaxis.set_major_formatter(EngFormatter())
    if not runs:
        return
    values = np.stack([run.measures[tag] for run in runs])
    middle, low, high = mean_interval(values)
    steps, line = runs[0].steps, color(variant, group.variants)
    if branch:
        axes.plot(steps, middle, color=line, ls=":", lw=1)
        return
    axes.plot(steps, middle, color=line, label=variant)
    if len(runs) >= MIN_SEEDS:
        axes.fill_between(steps, low, high, color=line, alpha=0.15, lw=0)
    elif len(runs) > 1:
        axes.plot(steps, values.T, color=line, alpha=0.4, lw=0.8)


def curves(group: Group) -> Figure:
    """Score against agent steps, a panel per game."""
    figure, panels = _grid(len(group.games))
    for axes, game in zip(panels, group.games, strict=True):
        for variant in group.variants:
            _line(axes, group, game, SCORE, variant)
        axes.set_title(game)
    figure.supxlabel("agent steps (4 emulator frames each)")
    figure.supylabel("mean return of 100 games")
    _legend(figure, panels)
    return figure


def rank_of_all(group: Group) -> float:
    """The highest effective rank of any run: intervals of few seeds reach beyond what can be."""
    ranks = [run.measures[RANK] for run in group.runs if RANK in run.measures]
    return float(np.nanmax(ranks, initial=1.0))


def representation(group: Group) -> Figure:
    """Dead and saturated shares and rank of z against agent steps; branches dotted."""
    tags = list(OVER_TIME)
    columns = len(tags)
    size = (4.2 * columns, 2.8 * len(group.games) + 0.6)  # a row per game
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(group.games), columns, squeeze=False).flatten()
    for i, axes in enumerate(panels):
        game, tag = group.games[i // columns], tags[i % columns]
        title, is_share = OVER_TIME[tag]
        for variant in group.variants:
            _line(axes, group, game, f"representation/{tag}", variant)
            for branch in range(3):
                name = f"representation/branch_{branch}/{tag}"
                _line(axes, group, game, name, variant, branch=True)
        axes.set_title(f"{game}: {title}")
        axes.grid(alpha=0.25)
        axes.set_ylim(0, min(axes.get_ylim()[1], 1.02 if is_share else 2 * rank_of_all(group)))
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.supxlabel("agent steps; dotted: the branches")
    _legend(figure, panels)
    return figure


def in_table(group: Group) -> tuple[list[str], list[str]]:
    """Variants and games to compare over games, of those with a human score."""
    variants, games = group.comparable()
    known = reference_scores()
    return variants, [game for game in games if game in known]


def efficiency(group: Group) -> Figure:
    """Interquartile mean of the human-normalised score against agent steps, over all games."""
    figure, (axes,) = _grid(1)
    variants, games = in_table(group)
    known, steps = reference_scores(), group.runs[0].steps
    for variant in variants:
        curves = [
            normalised([run.measures[SCORE] for run in group.cells[variant, game]], *known[game])
            for game in games
        ]
        values = [
            estimate([of[:, i] for of in curves], iqm, repeats=400) for i in range(len(steps))
        ]
        middle, low, high = np.array(values).T
        line = color(variant, group.variants)
        axes.plot(steps, middle, color=line, label=variant)
        axes.fill_between(steps, low, high, color=line, alpha=0.15, lw=0)
    axes.set_xlabel("agent steps")
    axes.set_ylabel("IQM, human-normalised")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.legend(fontsize=8)
    return figure


def profiles(group: Group) -> Figure:
    """Share of runs above each human-normalised score."""
    figure, (axes,) = _grid(1)
    variants, games = in_table(group)
    scores = {variant: group.human_normalised(variant, games) for variant in variants}
    every = np.concatenate([of for variant in scores.values() for of in variant])
    thresholds = np.linspace(min(0.0, every.min()), every.max() * 1.02 + 1e-3, 101)
    for variant, of in scores.items():
        share, low, high = performance_profile(of, thresholds, repeats=1_000)
        line = color(variant, group.variants)
        axes.step(thresholds, share, color=line, label=variant, where="post")
        axes.fill_between(thresholds, low, high, color=line, alpha=0.15, lw=0, step="post")
    axes.set_xlabel("human-normalised score")
    axes.set_ylabel("share of runs above it")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(fontsize=8)
    return figure


def improvements(group: Group, first: str) -> dict[str, Estimate]:
    """P(first > other) for every other variant, on the games that both have."""
    found = {}
    for other in group.variants:
        games = group.common_games(first, other)
        if other != first and games:
            scores = (group.values(name, games, SCORE) for name in (first, other))
            found[other] = probability_of_improvement(*scores)
    return found


def improvement(group: Group, first: str, found: dict[str, Estimate]) -> Figure:
    """The chance that a run of `first` beats one of each other variant: `improvements`."""
    figure, (axes,) = _grid(1, height=0.4 * len(found) + 1.2)
    for i, (other, (value, low, high)) in enumerate(found.items()):
        ends = np.nan_to_num([[value - low], [high - value]]).clip(min=0)  # none: no bar
        axes.errorbar(
            [value], [i], xerr=ends, fmt="o", color=color(other, group.variants), capsize=4
        )
    axes.axvline(0.5, color="0.4", lw=1)
    axes.set_yticks(range(len(found)), [f"> {other}" for other in found])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(f"P(a run of {first} beats one of the other)")
    return figure


def prediction(group: Group) -> Figure | None:
    """Dead products against what independent branches would give, a point per run; None without."""
    figure, (axes,) = _grid(1)
    drawn = False
    for variant in group.variants:
        runs = [run for run in group.runs if run.variant == variant and has_prediction(run)]
        if not runs:
            continue
        predicted = [predict_share(run) for run in runs]
        measured = [at_the_end(run, DEAD) for run in runs]
        axes.plot(predicted, measured, "o", color=color(variant, group.variants), label=variant)
        drawn = True
    if not drawn:
        return None
    axes.plot([0, 1], [0, 1], color="0.4", lw=1)
    axes.set_xlabel("predicted from its branches (v1 Table 1)")
    axes.set_ylabel("dead share of z, measured")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(fontsize=8)
    return figure


def all_figures(group: Group, first: str, over: dict[str, Estimate]) -> dict[str, Figure]:
    """Name -> figure, those for which there is something to draw; over: `improvements`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over nan: drawn as gaps
        found = {"curves": curves(group)}
        drawn = [f"representation/{tag}" for tag in OVER_TIME]
        if any(tag in run.measures for run in group.runs for tag in drawn):
            found["representation"] = representation(group)
        variants, games = in_table(group)
        if games and len(variants) > 1:
            found["efficiency"] = efficiency(group)
            found["profiles"] = profiles(group)
        if over:
            found["improvement"] = improvement(group, first, over)
        if (figure := prediction(group)) is not None:
            found["prediction"] = figure
    return found
