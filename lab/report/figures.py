"""The figures of a report: the statistics of one group in, one matplotlib figure out.

Lines are means over seeds, bands 95 % intervals: Student's t over seeds where one game is shown,
from 3 seeds on (of fewer each is drawn, as the interval of two is a dozen times their distance),
the stratified bootstrap where several are, from 5 seeds in each game on.
"""

import io

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from lab.common import tags
from lab.report.claims import MIN_SEEDS
from lab.report.groups import Group
from lab.report.runs import SCORE
from lab.report.scores import Band, GroupStatistics

OVER_TIME = {  # measure of a layer -> title, whether it is a share
    "dead_kde": ("dead neurons", True),
    "effective_rank": ("effective rank", False),
    "saturated": ("saturated neurons", True),
}

# Colours for the colour-blind (Okabe and Ito) as far as they reach; the rest are matplotlib's.
COLORS = {
    "relu": "#999999",
    "tanh": "#0072B2",
    "sigmoid": "#009E73",
    "selu": "#CC79A7",
    "tanh-hr": "#D55E00",
    "sigmoid-hr": "#8C564B",
    "relu-hr": "#000000",
    "tanh-ln": "#56B4E9",
    "tanh-wide": "#E69F00",
    "tanh-sum": "#C8B400",
    "tanh-3hr": "#9467BD",
}


def render(figure: Figure, kind: str, **options) -> bytes:
    """Return a figure as "png" or "svg", with other options of savefig.

    Text in an SVG stays text, and the same figure gives the same bytes.
    """
    content = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hadamard"}):
        figure.savefig(content, format=kind, **options)
    return content.getvalue()


def pick_color(variant: str, group: Group) -> str:
    """Return the colour of a variant: one of its own, or by its place in the group."""
    return COLORS.get(variant, f"C{group.variants.index(variant) % 10}")


def make_panels(count: int, columns: int = 4, width: float = 4.2, height: float = 3.0):
    """Return a figure and its panels, at most so many in a row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * max(columns, 1.5), height * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[:count]:
        axes.grid(alpha=0.25)
    return figure, panels[:count]


def add_legend(figure: Figure, panels):
    """Put one legend for all panels above them."""
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    if handles:
        columns = min(len(handles), 6)
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns)


def draw_line(axes, band: Band | None, color: str, label: str):
    """Draw a mean over seeds, with its interval or, with few seeds, a thin line for each."""
    axes.xaxis.set_major_formatter(EngFormatter())
    if band is None:
        return
    axes.plot(band.x, band.value, color=color, label=label)
    if band.runs is None or len(band.runs) >= MIN_SEEDS:
        axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.15, lw=0)
    elif len(band.runs) > 1:
        axes.plot(band.x, band.runs.T, color=color, alpha=0.4, lw=0.8)


def draw_curves(scores: GroupStatistics) -> Figure:
    """Draw the score against agent steps, a panel per game."""
    group = scores.group
    figure, panels = make_panels(len(group.games))
    for axes, game in zip(panels, group.games, strict=True):
        for variant in group.variants:
            band = scores.curve(variant, game, SCORE)
            draw_line(axes, band, pick_color(variant, group), variant)
        axes.set_title(game)
    figure.supxlabel("agent steps (4 emulator frames each)")
    figure.supylabel("mean return of 100 games")
    add_legend(figure, panels)
    return figure


def draw_representation(scores: GroupStatistics) -> Figure:
    """Draw dead and saturated shares and rank of z against agent steps; branches dotted."""
    group = scores.group
    cells = [(game, measure) for game in group.games for measure in OVER_TIME]
    figure, panels = make_panels(len(cells), len(OVER_TIME), height=2.85)
    for axes, (game, measure) in zip(panels, cells, strict=True):
        title, is_share = OVER_TIME[measure]
        for variant in group.variants:
            color = pick_color(variant, group)
            draw_line(axes, scores.curve(variant, game, tags.of_layer(measure)), color, variant)
            for branch in range(3):
                tag = tags.of_layer(measure, f"branch_{branch}")
                if (band := scores.curve(variant, game, tag)) is not None:
                    axes.plot(band.x, band.value, color=color, ls=":", lw=1)
        axes.set_title(f"{game}: {title}")
        # Intervals of few seeds reach beyond what can be.
        highest = 1.02 if is_share else 2 * scores.highest_rank
        axes.set_ylim(0, min(axes.get_ylim()[1], highest))
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.supxlabel("agent steps; dotted: the branches")
    add_legend(figure, panels)
    return figure


def draw_efficiency(scores: GroupStatistics) -> Figure:
    """Draw the interquartile mean of the human-normalised score against agent steps."""
    figure, (axes,) = make_panels(1)
    for variant, band in scores.efficiency.items():
        draw_line(axes, band, pick_color(variant, scores.group), variant)
    axes.set_xlabel("agent steps")
    axes.set_ylabel("IQM, human-normalised")
    axes.legend(fontsize=8)
    return figure


def draw_profiles(scores: GroupStatistics) -> Figure:
    """Draw the share of runs above each human-normalised score."""
    figure, (axes,) = make_panels(1)
    for variant, band in scores.profiles.items():
        color = pick_color(variant, scores.group)
        axes.step(band.x, band.value, color=color, label=variant, where="post")
        axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.15, lw=0, step="post")
    axes.set_xlabel("human-normalised score")
    axes.set_ylabel("share of runs above it")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(fontsize=8)
    return figure


def draw_improvement(scores: GroupStatistics) -> Figure:
    """Draw how often a run of the first variant beats one of each other."""
    improvements = scores.improvements
    figure, (axes,) = make_panels(1, height=0.4 * len(improvements) + 1.2)
    for i, (other, (value, low, high)) in enumerate(improvements.items()):
        ends = np.nan_to_num([[value - low], [high - value]]).clip(min=0)  # no interval: no bar
        axes.errorbar(
            [value], [i], xerr=ends, fmt="o", color=pick_color(other, scores.group), capsize=4
        )
    axes.axvline(0.5, color="0.4", lw=1)
    axes.set_yticks(range(len(improvements)), [f"> {other}" for other in improvements])
    axes.set_ylim(-0.6, len(improvements) - 0.4)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(f"P(a run of {scores.first} beats one of the other)")
    return figure


def draw_prediction(scores: GroupStatistics) -> Figure:
    """Draw dead products against what independent branches would give, a point per run."""
    figure, (axes,) = make_panels(1)
    for variant in scores.group.variants:
        own = [row for row in scores.predictions if row["variant"] == variant]
        if own:
            points = ([row[f"{which}, %"] for row in own] for which in ("predicted", "measured"))
            axes.plot(*points, "o", color=pick_color(variant, scores.group), label=variant)
    axes.plot([0, 100], [0, 100], color="0.4", lw=1)
    axes.set_xlabel("predicted from its branches (v1 Table 1)")
    axes.set_ylabel("dead share of z, measured")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter())
    axes.legend(fontsize=8)
    return figure


def draw_all(scores: GroupStatistics) -> dict[str, Figure]:
    """Return name -> figure, those for which there is something to draw."""
    figures = {"curves": draw_curves(scores)}
    shown = {tags.of_layer(measure) for measure in OVER_TIME}
    if any(shown & run.measures.keys() for run in scores.group.runs):
        figures["representation"] = draw_representation(scores)
    if scores.games and len(scores.variants) > 1:
        figures["efficiency"] = draw_efficiency(scores)
        figures["profiles"] = draw_profiles(scores)
    if scores.improvements:
        figures["improvement"] = draw_improvement(scores)
    if scores.predictions:
        figures["prediction"] = draw_prediction(scores)
    return figures
