"""Do runs in bf16 learn like those in fp32? python -m lab.report.precision STEM RUNS...

Writes STEM.csv (the mean return of the last 100 games at 100 steps of each run), STEM.png, and
prints per algorithm the areas under these curves, their difference and its 95 % interval (Welch,
over the seeds). An area is a mean over agent steps, so it has the unit of the score. A CSV that it
wrote counts like the run folders it was made from:

    python -m lab.report.precision results/precision results/precision.csv runs/*
"""

import csv
import itertools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from lab.common.cli import UsageError, launch, say
from lab.common.events import read_scalars
from lab.common.files import check_stem, write_files
from lab.common.stats import Estimate, difference
from lab.common.tables import format_csv, format_number
from lab.common.tags import MEAN_RETURN
from lab.report.figures import render
from lab.report.groups import NAMED
from lab.report.runs import POINTS, RunRecord, read_run

COLUMNS = ("game", "algorithm", "variant", "precision", "seed", "commit", "agent_step", MEAN_RETURN)
PRECISIONS = {"fp32": "tab:blue", "bf16": "tab:orange"}
Runs = dict[tuple, list[tuple]]  # the first five columns of a run -> its rows of the table


@dataclass
class Args:
    """Compare runs in bf16 with runs in fp32."""

    stem: Annotated[str, tyro.conf.Positional] = ""
    """what the names of table and picture begin with, such as results/precision"""
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """run folders, and tables that an earlier call wrote"""


def read_curve(folder: Path, run: RunRecord) -> list[tuple]:
    """Return the rows of a run, at evenly spaced steps to its end. Raise UsageError without one."""
    curves, _ = read_scalars(folder)
    if MEAN_RETURN not in curves:
        raise UsageError(f"{folder}: no game has ended yet; finish the run first")
    steps, values = curves[MEAN_RETURN]
    at = np.linspace(0, run.total, POINTS + 1)[1:]
    if steps[-1] < at[-2]:
        raise UsageError(f"{folder} has not finished; finish it first: --resume {folder}")
    about = (run.game, run.algorithm, run.variant, str(run.flags.get("precision")), str(run.seed))
    # Before the first game has ended there is no score: its first value stands for it.
    scores = map(format_number, np.interp(at, steps, values))
    return [(*about, run.commit, int(step), score) for step, score in zip(at, scores, strict=True)]


def read_table(path: Path) -> list[tuple]:
    """Return the rows that an earlier call wrote. Raise UsageError for another file."""
    try:
        header, *rows = csv.reader(path.read_text().splitlines())
    except (OSError, ValueError, csv.Error):
        header, rows = [], []
    if tuple(header) != COLUMNS:
        raise UsageError(
            f"{path} is no table of this script: its first line must be {','.join(COLUMNS)}"
        )
    if not rows:
        raise UsageError(f"{path} holds no run, only a header: give one with runs")
    for line, row in enumerate(rows, start=2):
        try:
            seed, _, step, value = row[4:]
            if not np.isfinite([int(seed), float(step), float(value)]).all():
                raise ValueError
        except ValueError:
            raise UsageError(
                f"{path}, line {line}: {','.join(row)} must be {len(COLUMNS)} cells, the seed and "
                "the last two numbers"
            ) from None
    return [tuple(row) for row in rows]


def read_sources(sources: list[Path]) -> Runs:
    """Return the runs in folders and tables; the last of two that are the same counts."""
    runs, first = {}, {}  # first: algorithm -> a folder of it, and its run
    for source in sources:
        if source.suffix == ".csv":
            rows = read_table(source)
        else:
            run = read_run(source)
            refuse_unequal_flags(source, run, *first.setdefault(run.algorithm, (source, run)))
            rows = read_curve(source, run)
        for key, points in itertools.groupby(rows, lambda row: row[:5]):
            runs[key] = list(points)
            about = f"{source}: {', '.join(key)}"
            if key[3] not in PRECISIONS:
                raise UsageError(f"{about}: its precision must be fp32 or bf16")
            if (count := len(runs[key])) != POINTS:
                raise UsageError(f"{about}: it must have {POINTS} points in a row, not {count}")
    return runs


def refuse_unequal_flags(folder: Path, run: RunRecord, other_folder: Path, other: RunRecord):
    """Raise UsageError if two runs of one algorithm differ in more than seed and precision."""
    for name in sorted({*run.flags, *other.flags} - {*NAMED, "precision"}):
        # A flag that is not there, as it was not yet, counts as None.
        value, others = run.flags.get(name), other.flags.get(name)
        if value != others:
            raise UsageError(
                f"{folder} has {name} {value} and {other_folder} {others}: compare runs that "
                "differ in seed and precision alone"
            )


def group_curves(runs: Runs) -> dict[str, dict[str, np.ndarray]]:
    """Return algorithm -> precision -> (seeds, points, 2) of agent steps and scores.

    Raise UsageError where an algorithm has one seed of a precision, or runs that differ in game,
    variant or length.
    """
    curves, settings = defaultdict(lambda: defaultdict(list)), defaultdict(set)
    for key in sorted(runs, key=lambda key: (key[1], key[3], int(key[4]))):
        game, algorithm, variant, precision, _ = key
        settings[algorithm].add(f"{game}, {variant}, to {runs[key][-1][6]}")
        curves[algorithm][precision].append(np.array([row[6:] for row in runs[key]], float))
    for algorithm, own in curves.items():
        if len(settings[algorithm]) > 1:
            several = " and ".join(sorted(settings[algorithm]))
            raise UsageError(f"runs of {algorithm} that differ are not averaged: {several}")
        for precision in PRECISIONS:
            if len(own[precision]) < 2:
                count = "one run" if own[precision] else "no run"
                raise UsageError(f"there is {count} of {algorithm} in {precision}: it takes two")
            own[precision] = np.array(own[precision])
    return curves


def format_line(algorithm: str, areas: dict[str, np.ndarray], found: Estimate) -> str:
    """Format the line of the printed table: areas (seeds,) by precision, and their difference."""
    seeds = " and ".join(str(len(areas[name])) for name in PRECISIONS)
    each = [" ".join(f"{area:.2f}" for area in areas[name]) for name in PRECISIONS]
    interval = f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
    return f"| {algorithm} | {seeds} | {' | '.join(each)} | {interval} |"


def draw_curves(curves: dict[str, dict[str, np.ndarray]], titles: dict[str, str]) -> Figure:
    """Draw the scores, a panel per algorithm: thin lines for the seeds, thick ones for means."""
    figure = Figure(figsize=(5 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (algorithm, own) in zip(panels, curves.items(), strict=True):
        for precision, color in PRECISIONS.items():
            for curve in own[precision]:
                axes.plot(*curve.T, color=color, lw=0.7, alpha=0.6)
            mean = own[precision].mean(axis=0)
            axes.plot(*mean.T, color=color, lw=2, label=f"{precision}, mean")
        axes.set_title(titles[algorithm])
        axes.set_xlabel("agent steps")
        axes.set_ylabel("mean return of the last 100 games")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main(args: Args) -> int:
    """Write table and picture, or neither, and print the areas. Raise UsageError if that fails."""
    if not args.runs:
        raise UsageError("give a stem and run folders, such as results/precision runs/*")
    stem = Path(args.stem)
    table, picture = check_stem(stem)
    runs = read_sources(list(map(Path, args.runs)))
    curves = group_curves(runs)
    titles = {of[1]: f"{of[1]}, {of[2]}, {of[0]}" for of in runs}
    rows = [dict(zip(COLUMNS, row, strict=True)) for of_run in runs.values() for row in of_run]
    files = {table: format_csv(rows), picture: render(draw_curves(curves, titles), "png", dpi=90)}
    write_files(stem.parent, files, "stem in")
    say("| algorithm | seeds | area, fp32 | area, bf16 | bf16 - fp32 (95 %) |\n|-|-|-|-|-|")
    for algorithm, own in curves.items():
        areas = {precision: of[:, :, 1].mean(axis=1) for precision, of in own.items()}
        say(format_line(algorithm, areas, difference([areas["bf16"]], [areas["fp32"]])))
    return 0


if __name__ == "__main__":
    launch(main, Args)
