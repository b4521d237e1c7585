"""Learning curves of a run as a CSV and a picture: python results/curve.py RUN_FOLDER OUT_STEM

Writes OUT_STEM.csv (every score and every measure: tag, agent step, value) and OUT_STEM.png.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from flags import UsageError
from lab.common.events import Curve, read_scalars
from lab.common.files import replacing
from lab.common.tables import format_number, write_csv
from lab.common.tags import RETURN
from lab.report.runs import RunRecord, read_run

KEPT = (
    *("charts/episodic", "charts/epsilon", "charts/learning_rate", "losses/", "representation/"),
    *("q_contribution/", "value_contribution/"),
)
MEASURES = {  # panel -> (tag, what it is called, factor)
    "dead and saturated neurons (%)": [
        ("representation/dead_kde", "z, dead by the KDE test", 100),
        ("representation/branch_0/dead_kde", "branch 0, dead by the KDE test", 100),
        ("representation/branch_1/dead_kde", "branch 1, dead by the KDE test", 100),
        *(
            (f"representation/conv_{i}/dead_kde", f"conv {i}, dead by the KDE test", 100)
            for i in (1, 2, 3)
        ),
        ("representation/dormant_0.1", "z, dormant at 0.1", 100),
        ("representation/saturated", "z, saturated", 100),
        ("representation/branch_0/saturated", "branch 0, saturated", 100),
    ],
    "effective rank": [
        ("representation/effective_rank", "z", 1),
        ("representation/branch_0/effective_rank", "branch 0", 1),
        ("representation/branch_1/effective_rank", "branch 1", 1),
    ],
}


def draw(run: RunRecord, curves: dict[str, Curve]) -> Figure:
    figure = Figure(figsize=(14, 4), layout="constrained")
    FigureCanvasAgg(figure)
    score, *others = figure.subplots(1, 1 + len(MEASURES))
    steps, returns = curves[RETURN]
    score.plot(steps, returns, ".", ms=2, color="0.7", label="each game")
    if len(returns) >= 100:
        means = np.convolve(returns, np.ones(100) / 100, mode="valid")
        score.plot(steps[99:], means, color="tab:blue", label="mean of the last 100 games")
    score.set_title("episodic return (raw score, in training)")
    for axes, (title, lines) in zip(others, MEASURES.items(), strict=True):
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
    return figure


def write_curves(folder: Path, stem: Path):
    """Table and picture, both or neither. UsageError for what is no run, or cannot be written."""
    run = read_run(folder)
    curves = {
        tag: of for tag, of in sorted(read_scalars(folder)[0].items()) if tag.startswith(KEPT)
    }
    if RETURN not in curves:
        raise UsageError(f"no game has ended in {folder}: train it further, with --resume {folder}")
    rows = [
        {"tag": tag, "agent_step": step, "value": format_number(value)}
        for tag, curve in curves.items()
        for step, value in zip(*curve, strict=True)
    ]
    if not stem.parent.is_dir():
        raise UsageError(f"{stem}: there is no folder {stem.parent}; make it first")
    names = (f"{stem.name}.csv", f"{stem.name}.png")
    with replacing(stem.parent, names, "OUT_STEM in") as staged:
        write_csv(staged / names[0], rows)
        draw(run, curves).savefig(staged / names[1], dpi=90)


def main(arguments: list[str]) -> int:
    """The status to exit with: 2, after a line, for what is no run."""
    try:
        if len(arguments) != 2:
            raise UsageError("give a run folder and a stem: curve.py runs/NAME results/NAME")
        write_curves(*map(Path, arguments))
    except UsageError as error:
        print(f"curve.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
