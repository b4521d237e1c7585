"""Learning curves of one run as a table and a picture.

    python -m lab.report.curve RUN STEM

Writes STEM.csv (scores, measures, losses, epsilon and learning rate: tag, agent step, value) and
STEM.png.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from lab.common import tags
from lab.common.cli import UsageError, launch, named_path, say
from lab.common.drawing import own_style
from lab.common.events import Curve, read_scalars
from lab.common.files import check_stem, write_files
from lab.common.tables import format_csv, format_number
from lab.report.runs import REPORTED_TAGS, WINDOW, RunRecord, read_run

TABULATED = (
    tags.RETURN,
    tags.LENGTH,
    tags.EPSILON,
    tags.LEARNING_RATE,
    *REPORTED_TAGS,
)
PANELS = {  # title -> (tag, what it is called, factor)
    "dead and saturated neurons (%)": [
        (tags.dead(), "z, dead by the KDE test", 100),
        (tags.dead("branch_0"), "branch 0, dead by the KDE test", 100),
        (tags.dead("branch_1"), "branch 1, dead by the KDE test", 100),
        (tags.dead("conv_1"), "conv 1, dead by the KDE test", 100),
        (tags.dead("conv_2"), "conv 2, dead by the KDE test", 100),
        (tags.dead("conv_3"), "conv 3, dead by the KDE test", 100),
        (tags.of_layer("dormant_0.1"), "z, dormant at 0.1", 100),
        (tags.saturated(), "z, saturated", 100),
        (tags.saturated("branch_0"), "branch 0, saturated", 100),
    ],
    "srank (effective rank)": [
        (tags.rank(), "z", 1),
        (tags.rank("branch_0"), "branch 0", 1),
        (tags.rank("branch_1"), "branch 1", 1),
    ],
}


@dataclass
class Args:
    """Learning curves of one run as a table and a picture."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """run folder"""
    stem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STEM")] = ""
    """what the names of the two files begin with, such as results/NAME"""


@own_style()
def draw_run(run: RunRecord, curves: dict[str, Curve]) -> bytes:
    """Draw every game's return, the mean of the newest 100, and the measures; return a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from lab.report.figures import render

    figure = Figure(figsize=(14, 4), layout="constrained")
    score, *others = figure.subplots(1, 1 + len(PANELS))
    steps, returns = curves[tags.RETURN]
    score.plot(steps, returns, ".", ms=2, color="0.7", label="each game")
    if len(returns) >= WINDOW:
        means = np.convolve(returns, np.ones(WINDOW) / WINDOW, mode="valid")
        score.plot(steps[WINDOW - 1 :], means, color="tab:blue", label="mean of the last 100 games")
    score.set_title("episodic return (raw score, in training)")
    for axes, (title, lines) in zip(others, PANELS.items(), strict=True):
        axes.set_title(title)
        for tag, label, factor in lines:
            if tag in curves:
                axes.plot(curves[tag].steps, factor * curves[tag].values, label=label)
    for axes in (score, *others):
        axes.set_xlabel("agent steps")
        axes.xaxis.set_major_formatter(EngFormatter())
        if axes.lines:
            axes.legend(fontsize=7, framealpha=0.6)
        axes.grid(alpha=0.3)
    commits = f"commit {' and '.join(run.commits)}"
    figure.suptitle(f"{run.game}, {run.algorithm}, {run.variant}, seed {run.seed}, {commits}")
    return render(figure, "png", dpi=90)


def main(args: Args) -> int:
    """Write table and picture, or neither. Raise UsageError where that is not possible."""
    if not args.stem:
        raise UsageError("give a run folder and a stem, such as runs/NAME results/NAME")
    folder, stem = named_path(args.run), Path(args.stem)
    table, picture = check_stem(stem)
    run = read_run(folder)
    for loss in run.losses:
        say(f"warning: {loss}", sys.stderr)
    found = sorted(read_scalars(folder)[0].items())
    curves = {tag: curve for tag, curve in found if tag.startswith(TABULATED)}
    if tags.RETURN not in curves:
        raise UsageError(f"no game has ended in {folder}: train it further, with --resume {folder}")
    rows = [
        {"tag": tag, "agent_step": step, "value": format_number(value)}
        for tag, curve in curves.items()
        for step, value in zip(*curve, strict=True)
    ]
    files = {table: format_csv(rows), picture: draw_run(run, curves)}
    write_files(stem.parent, files, "STEM")
    return 0


if __name__ == "__main__":
    launch(main, Args)
