"""The figures of a report: the statistics of one group in, panels to draw out.

Lines are means over seeds, bands 95 % intervals: Student's t over seeds where one game is shown,
the stratified bootstrap where several are. With fewer than 5 seeds each seed is drawn in place of
a band, which would reach beyond what is possible.

A figure is a file with all its panels; on the page each panel is a picture of its own, so that they
stand side by side on a screen and one below the other on a phone.
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from lab.common import tags
from lab.common.stats import BOOTSTRAP_SEEDS
from lab.report.groups import Group
from lab.report.runs import SCORE
from lab.report.scores import Band, GroupStatistics

OVER_TIME = {  # measure of a layer -> title, whether it is a share
    "dead_kde": ("dead neurons", True),
    "effective_rank": ("srank (effective rank)", False),
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
    "tanh-match": "#17BECF",
    "relu-match": "#BCBD22",
    "hadamax": "#E377C2",
    "hadamax-plain": "#7F3C8D",
}


class Panel(NamedTuple):
    """A pair of axes to draw: what fills it, its title and what its axes are called."""

    draw: Callable[[Axes], None]
    title: str
    xlabel: str
    ylabel: str = ""


def render(figure: Figure, kind: str, **options) -> bytes:
    """Return a figure as "png", "svg" or "pdf", with other options of savefig.

    Text in an SVG stays text, and the same figure gives the same bytes.
    """
    content = io.BytesIO()
    dated = {"svg": "Date", "pdf": "CreationDate"}
    if kind in dated:
        options["metadata"] = {dated[kind]: None}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hadamard"}):
        figure.savefig(content, format=kind, **options)
    return content.getvalue()


def pick_color(variant: str, group: Group) -> str:
    """Return the colour of a variant: one of its own, or by its place in the group."""
    place = mpl.colormaps["tab10"].colors[group.variants.index(variant) % 10]
    return COLORS.get(variant, to_hex(place))


def fill(axes: Axes, panel: Panel):
    """Draw a panel into axes."""
    axes.grid(alpha=0.25)
    if panel.xlabel.startswith("agent steps"):
        axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_title(panel.title)
    panel.draw(axes)


def draw_together(panels: list[Panel], columns: int = 4) -> Figure:
    """Draw panels into one figure, so many in a row, with one legend for all."""
    columns = min(len(panels), columns)
    rows = -(-len(panels) // columns)
    size = 4.2 * max(columns, 1.5), 3.0 * rows + 0.5
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    handles = {}
    for axes, panel in zip(every, panels, strict=False):
        fill(axes, panel)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel(panels[0].xlabel)
    figure.supylabel(panels[0].ylabel)
    if handles:
        figure.legend(
            handles.values(), handles, loc="outside upper center", ncols=min(len(handles), 6)
        )
    return figure


def draw_alone(panel: Panel) -> Figure:
    """Draw one panel as the page shows it, whose legend stands there."""
    figure = Figure(figsize=(3.7, 2.8), layout="constrained")
    axes = figure.subplots()
    fill(axes, panel)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    return figure


def draw_line(axes: Axes, band: Band | None, color: str, label: str):
    """Draw a mean over seeds, with its interval or, with few seeds, a thin line for each."""
    if band is None:
        return
    axes.plot(band.x, band.value, color=color, label=label)
    if band.runs is None or len(band.runs) >= BOOTSTRAP_SEEDS:
        axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.15, lw=0)
    elif len(band.runs) > 1:
        axes.plot(band.x, band.runs.T, color=color, alpha=0.4, lw=0.8)


def draw_measure(scores: GroupStatistics, game: str, measure: str) -> Callable[[Axes], None]:
    """Return what draws a measure of all variants in a game against agent steps."""

    def draw(axes: Axes):
        for variant in scores.group.variants:
            color = pick_color(variant, scores.group)
            draw_line(axes, scores.curve(variant, game, measure), color, variant)

    return draw


def list_curves(scores: GroupStatistics) -> list[Panel]:
    """Return a panel per game: the score against agent steps."""
    labels = "agent steps (4 emulator frames each)", "mean return of 100 games"
    return [Panel(draw_measure(scores, game, SCORE), game, *labels) for game in scores.group.games]


def list_hours(scores: GroupStatistics) -> list[Panel]:
    """Return a panel per game: the score against the hours that the runs took."""

    def draw(game: str, axes: Axes):
        for variant in scores.group.variants:
            color = pick_color(variant, scores.group)
            if (found := scores.against_hours(variant, game)) is not None:
                hours, values = found
                axes.plot(hours.mean(axis=0), values.mean(axis=0), color=color, label=variant)
                if len(hours) > 1:
                    axes.plot(hours.T, values.T, color=color, alpha=0.4, lw=0.8)

    labels = "hours", "mean return of 100 games"
    return [
        Panel(lambda axes, game=game: draw(game, axes), game, *labels)
        for game in scores.group.games
    ]


def list_losses(scores: GroupStatistics) -> list[Panel]:
    """Return a panel per game and loss: its mean over the last steps, against agent steps."""
    return [
        Panel(draw_measure(scores, game, tag), f"{game}: {tag.split('/')[1]}", "agent steps")
        for game in scores.group.games
        for tag in scores.losses
    ]


def list_representation(scores: GroupStatistics) -> list[Panel]:
    """Return a panel per game and measure: of z against agent steps, its branches dotted."""

    def draw(game: str, measure: str, axes: Axes):
        draw_measure(scores, game, tags.of_layer(measure))(axes)
        for variant in scores.group.variants:
            for branch in range(3):
                tag = tags.of_layer(measure, f"branch_{branch}")
                if (band := scores.curve(variant, game, tag)) is not None:
                    color = pick_color(variant, scores.group)
                    axes.plot(band.x, band.value, color=color, ls=":", lw=1)
        if OVER_TIME[measure][1]:
            axes.set_ylim(0, min(axes.get_ylim()[1], 1.02))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return [
        Panel(
            lambda axes, game=game, measure=measure: draw(game, measure, axes),
            f"{game}: {title}",
            "agent steps; dotted: the branches",
        )
        for game in scores.group.games
        for measure, (title, _) in OVER_TIME.items()
    ]


def list_efficiency(scores: GroupStatistics) -> list[Panel]:
    """Return a panel: the interquartile mean of human-normalised scores against agent steps."""

    def draw(axes: Axes):
        for variant, band in scores.efficiency.items():
            draw_line(axes, band, pick_color(variant, scores.group), variant)

    return [Panel(draw, "all games", "agent steps", "IQM, human-normalised")]


def list_profiles(scores: GroupStatistics) -> list[Panel]:
    """Return a panel: the share of runs above each human-normalised score."""

    def draw(axes: Axes):
        for variant, band in scores.profiles.items():
            color = pick_color(variant, scores.group)
            axes.step(band.x, band.value, color=color, label=variant, where="post")
            axes.fill_between(
                band.x, band.low, band.high, color=color, alpha=0.15, lw=0, step="post"
            )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return [Panel(draw, "all games", "human-normalised score", "share of runs above it")]


def list_improvement(scores: GroupStatistics) -> list[Panel]:
    """Return a panel: how often a run of the first variant beats one of each other."""

    def draw(axes: Axes):
        others = list(scores.improvements)
        for i, (other, (value, low, high)) in enumerate(scores.improvements.items()):
            ends = np.nan_to_num([[value - low], [high - value]]).clip(min=0)  # no interval: no bar
            color = pick_color(other, scores.group)
            axes.errorbar([value], [i], xerr=ends, fmt="o", color=color, capsize=4)
        axes.axvline(0.5, color="0.4", lw=1)
        axes.set_yticks(range(len(others)), [f"> {other}" for other in others])
        axes.set_ylim(-0.6, len(others) - 0.4)
        axes.set_xlim(-0.03, 1.03)

    label = f"P(a run of {scores.first} beats one of the other)"
    return [Panel(draw, "all games", label)]


def list_prediction(scores: GroupStatistics) -> list[Panel]:
    """Return a panel: dead products against what independent branches would give, by run."""

    def draw(axes: Axes):
        highest = 1.0
        for variant in scores.group.variants:
            own = [row for row in scores.predictions if row["variant"] == variant]
            if own:
                both = [[row[f"{which}, %"] for row in own] for which in ("predicted", "measured")]
                axes.plot(*both, "o", color=pick_color(variant, scores.group), label=variant)
                highest = max(highest, *both[0], *both[1])
        axes.plot([0, highest], [0, highest], color="0.4", lw=1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter())

    label = "predicted from its branches (v1 Table 1)"
    return [Panel(draw, "dead share of z", label, "measured")]


def list_all(scores: GroupStatistics) -> dict[str, list[Panel]]:
    """Return name of a figure -> its panels, where there is something to draw."""
    figures = {"curves": list_curves(scores)}
    if any(scores.against_hours(*cell) is not None for cell in scores.group.cells):
        figures["hours"] = list_hours(scores)
    shown = {tags.of_layer(measure) for measure in OVER_TIME}
    if any(shown & run.measures.keys() for run in scores.group.runs):
        figures["representation"] = list_representation(scores)
    if scores.losses:
        figures["losses"] = list_losses(scores)
    if scores.games and len(scores.variants) > 1:
        figures["efficiency"] = list_efficiency(scores)
        figures["profiles"] = list_profiles(scores)
    if scores.improvements:
        figures["improvement"] = list_improvement(scores)
    if scores.predictions:
        figures["prediction"] = list_prediction(scores)
    return figures
