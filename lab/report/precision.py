"""Do runs in bf16 learn like those in fp32? python results/precision.py OUT_STEM RUN_FOLDER...

Writes OUT_STEM.csv (the mean return of the last 100 games at 100 steps of each run), OUT_STEM.png,
and prints per algorithm the areas under these curves, their difference and its 95 % interval
(Welch, over the seeds). An area is a mean over agent steps, so it has the unit of the score. A CSV
that it wrote counts like the run folders it was made from:

    python results/precision.py results/precision results/precision.csv runs/*
"""

import collections
import csv
import io
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy.stats import ttest_ind
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checkpoint import written_whole
from lab.report.groups import NAMED

TAG = "charts/mean_return_100"
COLUMNS = ("game", "algorithm", "variant", "precision", "seed", "commit", "agent_step", TAG)


def read_config(run: Path) -> dict:
    """The config.json of a run, with its `commit` and `decided`: the flags that must be the same.

    ValueError if it is none.
    """
    try:
        config = json.loads((run / "config.json").read_text())
        config["commit"] = config.get("git_commit") or "unknown"
        config["commit"] += "+ changes" * bool(config.get("git_has_changes"))
        flags = config["flags"]
        flags |= {name: int(flags[name]) for name in ("seed", "total_timesteps")}
        config["decided"] = {
            name: flags[name] for name in flags if name not in (*NAMED, "precision")
        }
        str(flags["precision"])
        return dict(
            config, **{name: str(config[name]) for name in ("game", "algorithm", "variant")}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{run} is no run folder: its config.json is not whole ({what})") from None


def rows_of(run: Path) -> list[tuple]:
    """The curve of a run at 100 evenly spaced steps, to its end. ValueError if it has none yet."""
    config = read_config(run)
    log = EventAccumulator(str(run), size_guidance={"scalars": 0})
    log.Reload()
    if TAG not in log.Tags()["scalars"]:
        raise ValueError(f"{run}: no game has ended yet; finish the run first")
    steps, values = np.array([(event.step, event.value) for event in log.Scalars(TAG)]).T
    at = np.linspace(0, config["flags"]["total_timesteps"], 101)[1:]
    if steps[-1] < at[-2]:
        raise ValueError(f"{run} has not finished; finish it first: --resume {run}")
    named = (config["game"], config["algorithm"], config["variant"], config["flags"]["precision"])
    about = (*named, config["flags"]["seed"], config["commit"])
    # Before the first game has ended there is no score: its first value stands for it.
    points = zip(at, np.interp(at, steps, values), strict=True)
    return [(*about, int(x), f"{y:.6g}") for x, y in points]


def table_and_figure(rows: list[tuple]) -> Figure:
    curves = collections.defaultdict(list)  # (algorithm, precision, seed) -> (step, score)
    for _, algorithm, _, precision, seed, _, step, value in rows:
        curves[algorithm, precision, int(seed)].append((float(step), float(value)))
    curves = {name: np.array(points) for name, points in curves.items()}
    algorithms = sorted({name[0] for name in curves})
    figure = Figure(figsize=(5 * len(algorithms), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    print("| algorithm | seeds | area, fp32 | area, bf16 | bf16 - fp32 (95 %) |\n|-|-|-|-|-|")
    panels = figure.subplots(1, len(algorithms), squeeze=False)[0]
    for algorithm, axes in zip(algorithms, panels, strict=True):
        areas = {}
        for precision, color in (("fp32", "tab:blue"), ("bf16", "tab:orange")):
            runs = [c for name, c in sorted(curves.items()) if name[:2] == (algorithm, precision)]
            areas[precision] = [curve[:, 1].mean() for curve in runs]
            for curve in runs:
                axes.plot(*curve.T, color=color, lw=0.7, alpha=0.6)
            axes.plot(*np.mean(runs, axis=0).T, color=color, lw=2, label=f"{precision}, mean")
        interval = ttest_ind(areas["bf16"], areas["fp32"], equal_var=False).confidence_interval()
        difference = np.mean(areas["bf16"]) - np.mean(areas["fp32"])
        each = [" ".join(f"{area:.2f}" for area in areas[name]) for name in ("fp32", "bf16")]
        seeds = f"{len(areas['fp32'])} and {len(areas['bf16'])}"
        told = f"{difference:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
        print(f"| {algorithm} | {seeds} | {' | '.join(each)} | {told} |")
        game, variant = next((row[0], row[2]) for row in rows if row[1] == algorithm)
        axes.set_title(f"{algorithm}, {variant}, {game}")
        axes.set_xlabel("agent steps")
        axes.set_ylabel("mean return of the last 100 games")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def rows_of_table(path: Path) -> list[tuple]:
    """What an earlier call wrote. ValueError for another file."""
    try:
        header, *rows = csv.reader(path.read_text().splitlines())
    except (OSError, ValueError, csv.Error):
        header, rows = (), ()
    if tuple(header) != COLUMNS:
        raise ValueError(
            f"{path} is no table of this script: its first line must be {','.join(COLUMNS)}"
        )
    if not rows:
        raise ValueError(f"{path} holds no run, only a header: give one with runs")
    for line, row in enumerate(rows, start=2):
        try:
            seed, _, step, value = row[4:]
            if not np.isfinite([float(seed), float(step), float(value)]).all():
                raise ValueError
            int(seed)
        except ValueError:
            raise ValueError(
                f"{path}, line {line}: {','.join(row)} must be {len(COLUMNS)} cells, the seed and "
                "the last two numbers"
            ) from None
    return [tuple(row) for row in rows]


def refuse_unequal_flags(folders: list[Path]):
    """ValueError if runs of one algorithm differ in more than seed and precision."""
    first = {}  # algorithm -> a run of it
    for folder in folders:
        config = read_config(folder)
        other, decided = first.setdefault(config["algorithm"], (folder, config["decided"]))
        for name in sorted(decided.keys() | config["decided"].keys()):
            # As in curves.py one that is not there, as it was not yet, counts as None.
            value, others = config["decided"].get(name), decided.get(name)
            if value != others:
                raise ValueError(
                    f"{folder} has {name} {value} and {other} {others}: compare runs that "
                    "differ in seed and precision alone"
                )


def targets(stem: Path) -> tuple[Path, Path]:
    """The table and the picture. ValueError, before any work, where they cannot be written."""
    if not stem.parent.is_dir():
        raise ValueError(f"{stem}: there is no folder {stem.parent}; make it first")
    if not os.access(stem.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{stem}: {stem.parent} is no folder one can write to; choose another")
    paths = Path(f"{stem}.csv"), Path(f"{stem}.png")
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder and in the way: choose another stem")
    return paths


def compare(stem: Path, sources: list[Path]):
    """Table, picture and printed lines. ValueError for what cannot be compared."""
    refuse_unequal_flags([source for source in sources if source.suffix != ".csv"])
    runs = {}  # game, algorithm, variant, precision, seed -> rows; the last source of a run counts
    for source in sources:
        rows = rows_of_table(source) if source.suffix == ".csv" else rows_of(source)
        for name, points in itertools.groupby(rows, lambda row: tuple(map(str, row[:5]))):
            runs[name] = list(points)
            about = f"{source}: {', '.join(name)}"
            if name[3] not in ("fp32", "bf16"):
                raise ValueError(f"{about}: its precision must be fp32 or bf16")
            if (count := len(runs[name])) != 100:
                raise ValueError(f"{about}: it must have 100 points in a row, not {count}")
    for algorithm in sorted({name[1] for name in runs}):
        of_it = {name: points for name, points in runs.items() if name[1] == algorithm}
        settings = {f"{of[0]}, {of[2]}, to {points[-1][6]}" for of, points in of_it.items()}
        if len(settings) > 1:
            several = " and ".join(sorted(settings))
            raise ValueError(f"runs of {algorithm} that differ are not averaged: {several}")
        for precision in ("fp32", "bf16"):
            seeds = sum(name[3] == precision for name in of_it)
            if seeds < 2:
                count = ("no run", "one run")[seeds]
                raise ValueError(f"there is {count} of {algorithm} in {precision}: it takes two")
    rows = list(itertools.chain(*runs.values()))
    figure = table_and_figure(rows)
    table, picture = io.StringIO(newline=""), io.BytesIO()
    csv.writer(table).writerows([COLUMNS, *rows])
    figure.savefig(picture, dpi=90, format="png")
    try:
        csv_path, png_path = targets(stem)
        with written_whole(csv_path) as csv_file, written_whole(png_path) as png_file:
            csv_file.write(table.getvalue().encode())
            png_file.write(picture.getvalue())
            csv_file.flush()  # neither takes its place if one finds no room
            png_file.flush()
    except OSError as error:
        raise ValueError(f"{stem}: {error.strerror or error}; choose another stem") from None


def main(arguments: list[str]) -> int:
    """The status to exit with: 2, after a line, for what cannot be compared."""
    try:
        if len(arguments) < 2:
            raise ValueError("give a stem and run folders: precision.py results/precision runs/*")
        stem, *sources = map(Path, arguments)
        targets(stem)
        for source in sources:
            if not (source / "config.json").is_file() and source.suffix != ".csv":
                raise ValueError(f"{source} is no run folder: it has no config.json")
        compare(stem, sources)
    except (OSError, ValueError) as error:
        print(f"precision.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
