"""Runs read back from their folders, or from the two tables that a report keeps of them."""

import contextlib
import csv
import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lab.common import tags
from lab.common.cli import LARGEST_FLAG, UsageError, escape_controls, named_path
from lab.common.events import Curve, read_scalars
from lab.common.files import read_json, read_regular
from lab.common.runconfig import (
    LARGEST_WHOLE,
    check_flags,
    check_kinds,
    check_whole,
    read_run_config,
)
from lab.common.tables import format_number, read_csv
from lab.report.headers import HEADERS, is_share

POINTS = 100  # of a curve, evenly spaced over the agent steps that the run was to take
WINDOW = 100  # games that a score is the mean of
LARGEST_VALUE = 1e30  # what reaches it is no value of a measure, such as a loss that diverged
SCORE = "score"  # mean raw return of the newest WINDOW games
IN_FINISHED_GAMES = "in_finished_games"  # share of the agent steps; those in others have no score
HOURS = "hours"  # of work so far, without the time between two sessions
# What a report keeps beside these.
REPORTED_TAGS = (tags.REPRESENTATION, tags.CHURN, *tags.CONTRIBUTIONS, tags.LOSSES)
RUNS_CSV, CURVES_CSV = "runs.csv", "curves.csv"
LOCAL_FLAGS = ("runs_dir", "resume")  # in no table: where the folder was
# What config.json says beside the flags: on what a run was made, and where it was resumed.
PROVENANCE = ("num_parameters", "multiply_adds", "device", "processor", "torch_threads")
PROVENANCE += ("versions", "git_commit", "git_has_changes", "resumed")
COLUMNS = ("name", "algorithm", "game", "variant", "seed", "total", "last_step", "commit")
COLUMNS += ("started",)  # of runs.csv, as they are called in RunRecord
# Columns of runs.csv in JSON -> their field of RunRecord; older tables may lack them.
JSON_COLUMNS = {"made": "provenance", "whole": "whole", "diverged": "diverged"}
# Columns of whole numbers -> the least that they may be, and what is beyond the largest.
WHOLE_COLUMNS = {"seed": (0, LARGEST_FLAG), "total": (1, LARGEST_WHOLE)}
WHOLE_COLUMNS |= {"last_step": (0, LARGEST_WHOLE)}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf", re.ASCII)


@dataclass
class RunRecord:
    """One run: what decided it, and its measures at POINTS agent steps; nan where there is none."""

    name: str
    algorithm: str
    game: str
    variant: str
    seed: int
    total: int  # agent steps that it was to take
    last_step: int  # that it has logged
    commit: str
    started: str
    flags: dict
    steps: np.ndarray  # (points,)
    measures: dict[str, np.ndarray] = field(repr=False)  # SCORE or a tag -> (points,)
    provenance: dict = field(default_factory=dict, repr=False)  # PROVENANCE, as far as known
    whole: bool = True  # whether none of its event files is damaged, cut off or gone
    diverged: int | None = None  # the agent step, if it did
    setting: str = ""  # the flags in which it differs from others of its algorithm
    losses: list[str] = field(default_factory=list, repr=False)  # in words, if it is not whole

    def __post_init__(self):
        """List the machines, versions of torch and commits on which it was begun and went on."""
        begun = self.provenance
        resumed = [begun | session for session in begun.get("resumed") or []]
        machines = {_machine(session) for session in (begun, *resumed)}
        torches = {(of.get("versions") or {}).get("torch") for of in (begun, *resumed)}
        self.machines: list[str] = sorted(machines - {""})
        self.torches: list[str] = sorted(torches - {None})
        self.commits: list[str] = sorted({self.commit, *map(format_commit, resumed)})

    @property
    def complete(self) -> bool:
        """Return whether the run came to its end; one that has diverged has ended there."""
        return self.reached_total or self.diverged is not None

    @property
    def reached_total(self) -> bool:
        """Return whether it has logged its end; the last hundredth may not be logged."""
        return self.last_step >= 0.99 * self.total


def _machine(session: dict) -> str:
    """Return the GPU, or else the processor, of a run's provenance; "" if it is not known."""
    device = session.get("device") or "cpu"
    return (session.get("processor") or "") if device == "cpu" else device


def trailing_return(returns: Curve, steps: np.ndarray) -> np.ndarray:
    """Return the mean of the newest WINDOW returns, or of all so far, at these agent steps.

    Before the first game has ended the value of the first stands for it.
    """
    sums = np.concatenate([[0.0], np.cumsum(returns.values)])
    until = np.maximum(np.searchsorted(returns.steps, steps, side="right"), 1)
    since = np.maximum(until - WINDOW, 0)
    return (sums[until] - sums[since]) / (until - since)


def share_in_finished_games(lengths: Curve, steps: np.ndarray) -> np.ndarray:
    """Return the share of these many agent steps that lie in games which had ended by then."""
    sums = np.concatenate([[0.0], np.cumsum(lengths.values)])
    return sums[np.searchsorted(lengths.steps, steps, side="right")] / steps


def hours_of_work(speed: Curve) -> Curve:
    """Return the hours that a run took up to each agent step, from its steps per second."""
    taken = np.diff(speed.steps, prepend=0) / np.maximum(speed.values, 1e-9)
    return Curve(speed.steps, np.cumsum(taken) / 3600)


def newest_values(curve: Curve, steps: np.ndarray) -> np.ndarray:
    """Return the newest finite value at each of these agent steps; nan before there is one."""
    finite = np.isfinite(curve.values)
    curve = Curve(curve.steps[finite], curve.values[finite])
    if not len(curve.steps):
        return np.full(len(steps), np.nan)
    index = np.searchsorted(curve.steps, steps, side="right") - 1
    return np.where(index >= 0, curve.values[np.maximum(index, 0)], np.nan)


def format_commit(provenance: dict) -> str:
    """Format the commit of a config.json: ten digits, and whether files had changed since."""
    commit = (provenance.get("git_commit") or "unknown")[:10]
    return f"{commit}+ changes" if provenance.get("git_has_changes") else commit


def _escape(value):
    """Return a JSON value in which no text holds control characters."""
    if isinstance(value, str):
        return escape_controls(value)
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, dict):
        return {escape_controls(name): _escape(item) for name, item in value.items()}
    return value


def _read_whole(read: Callable[[Path], dict], path: Path) -> dict:
    """Return what `read` makes of a JSON file of a run. Raise UsageError if it is damaged."""
    try:
        return _escape(read(path))
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(
            f"{path} is damaged ({what}): put it back, or leave that run out"
        ) from None


def _read_config(path: Path) -> dict:
    """Read a config.json with all that a report needs. Raise ValueError if something is missing."""
    config = read_run_config(path)
    for name in ("game", "variant"):
        if config.get(name) is None:
            raise ValueError(f"{name} is missing")
    check_whole("total_timesteps", config["flags"].get("total_timesteps"), 1)
    check_whole("seed", config["flags"].get("seed"), high=LARGEST_FLAG)
    return config


def _read_divergence(path: Path) -> dict:
    report = read_json(path)
    check_whole("step", report.get("step"))
    return report


def read_run(folder: Path) -> RunRecord:
    """Read a run folder. Raise UsageError if it is none."""
    try:
        config = _read_whole(_read_config, folder / "config.json")
        flags = config["flags"]
        total, seed = flags["total_timesteps"], flags["seed"]
        sessions = config.get("resumed") or []
        resumed = [session["step"] for session in sessions if session.get("step") is not None]
        curves, losses = read_scalars(folder, resumed)
        last = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
        check_whole("the last step of its event files", last)
        report = folder / "diverged.json"
        diverged = None
        if report.exists():
            diverged = _read_whole(_read_divergence, report)["step"]
        steps = np.linspace(0, total, POINTS + 1)[1:].astype(int)
        provenance = {name: config[name] for name in PROVENANCE if config.get(name) is not None}
        provenance["resumed"] = [
            {name: value for name, value in session.items() if name != "command"}
            for session in sessions
        ]
        measures = _measure(curves, steps, last, diverged is not None)
        own = (config[name] for name in ("algorithm", "game", "variant"))
        about = (escape_controls(folder.name), *own, seed, total, last, format_commit(config))
        decided = (*about, config["started"], flags)
        return RunRecord(*decided, steps, measures, provenance, not losses, diverged, losses=losses)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"{folder} is no run folder that can be read ({what})") from None


@np.errstate(invalid="ignore")  # of an infinite return or length: nan, from that game on
def _measure(
    curves: dict[str, Curve], steps: np.ndarray, last: int, ended: bool
) -> dict[str, np.ndarray]:
    """Return a run's score and measures at these agent steps (points,), as in the tables.

    `last` is the step that it has logged last; if it `ended` there, what it had then stays.
    """
    total = steps[-1]
    at = np.append(steps[:-1], max(total, last))  # the last rollout may end beyond the total
    measures = {
        tag: newest_values(curve, at)
        for tag, curve in curves.items()
        if tag.startswith(REPORTED_TAGS)
    }
    if tags.RETURN in curves:
        measures[SCORE] = trailing_return(curves[tags.RETURN], at)
    if tags.LENGTH in curves:
        reached = np.minimum(at, max(last, 1))
        measures[IN_FINISHED_GAMES] = share_in_finished_games(curves[tags.LENGTH], reached)
    if tags.SPS in curves:
        measures[HOURS] = newest_values(hours_of_work(curves[tags.SPS]), at)
    for name, values in measures.items():
        if not ended:
            # A rollout may end a little before or after a point; beyond that there is nothing.
            values[steps > last + 0.01 * total] = np.nan
        rounded = np.array([float(format_number(value)) for value in values])
        # What no table may hold is not there: a report can be made again from what it writes.
        measures[name] = np.where(is_possible(name, rounded), rounded, np.nan)
    return {name: values for name, values in measures.items() if not np.isnan(values).all()}


def is_possible(measure: str, values: np.ndarray) -> np.ndarray:
    """Return where a measure can have these values; nan is none.

    Shares are from 0 to 1, ranks, norms and hours at least 0, and nothing reaches LARGEST_VALUE,
    beyond which statistics would overflow.
    """
    share = is_share(measure) or measure == IN_FINISHED_GAMES
    above_zero = share or measure == HOURS or measure.rpartition("/")[2] in HEADERS
    low = 0 if above_zero else -LARGEST_VALUE
    return (values >= low) & (values <= 1 if share else np.abs(values) < LARGEST_VALUE)


def has_tables(folder: Path) -> bool:
    """Return whether a folder holds the two tables of `tabulate_runs`."""
    return all(os.path.isfile(folder / name) for name in (RUNS_CSV, CURVES_CSV))


def _may_be_run(folder: Path) -> bool:
    """Return whether a folder has a config.json, or may not be read, which is told later."""
    try:
        return stat.S_ISREG((folder / "config.json").stat().st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def find_runs(paths: list[str]) -> list[Path]:
    """Return the run folders, and the folders with tables of runs, at these paths and right below.

    Raise UsageError for a path at which there is none; but `logs`, which a sweep leaves among its
    runs, may stand beside others, as in runs/*.
    """
    folders = {}
    for path in map(named_path, paths):
        inside = [path] if _may_be_run(path) or has_tables(path) else []
        with contextlib.suppress(OSError):
            inside += sorted(filter(_may_be_run, path.iterdir()))
            inside += sorted(table.parent for table in path.glob(f"*/{RUNS_CSV}"))
        if not inside and (path.name != "logs" or len(paths) == 1):
            raise UsageError(
                f"{path}: no run folder there (one has config.json) and no report ({RUNS_CSV} and "
                f"{CURVES_CSV}), nor below it"
            )
        folders |= dict.fromkeys(inside)
    if not folders:
        raise UsageError(f"{paths[0]}: logs alone are no runs; name their folder, such as runs")
    return list(folders)


def tabulate_runs(runs: list[RunRecord]) -> tuple[list[dict], list[dict]]:
    """Return all that a report needs of runs: one row per run, and one per run and point."""
    names = sorted({name for run in runs for name in run.measures})
    flags = sorted({name for run in runs for name in run.flags} - set(LOCAL_FLAGS))
    about, points = [], []
    for run in runs:
        row = {column: getattr(run, column) for column in COLUMNS}
        row |= {f"flag_{name}": json.dumps(run.flags.get(name)) for name in flags}
        row |= {column: json.dumps(getattr(run, name)) for column, name in JSON_COLUMNS.items()}
        about.append(row)
        missing = np.full(len(run.steps), np.nan)
        for i, step in enumerate(run.steps):
            values = {name: format_number(run.measures.get(name, missing)[i]) for name in names}
            points.append({"name": run.name, "agent_step": int(step)} | values)
    return about, points


def _parse_json(column: str, cell: str):
    """Return the value of a cell in JSON. Raise ValueError, with the column, if it is damaged."""
    try:
        return _escape(json.loads(cell))
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else f"no JSON ({error})"
        raise ValueError(f"{column} is {what}") from None


def _parse_numbers(row: dict[str, str]) -> dict[str, float]:
    """Return the numbers of a row of curves.csv. Raise ValueError for a cell that is none."""
    for name, cell in row.items():
        if NUMBER.fullmatch(cell) is None:
            raise ValueError(f"{name} must be a number, not {cell[:60]!r}")
    return {name: float(cell) for name, cell in row.items()}


def _from_rows(row: dict[str, str], points: list[dict[str, float]]) -> RunRecord:
    """Return a run of its row and its points in the tables. ValueError if they are damaged."""
    name = row["name"]
    cells = {
        column: _parse_json(column, row.pop(column))
        for column in list(row)
        if column.startswith("flag_") or column in (*JSON_COLUMNS, *WHOLE_COLUMNS)
    }
    flags = {
        column.removeprefix("flag_"): cells.pop(column)
        for column in list(cells)
        if column.startswith("flag_")
    }
    check_flags(flags)
    for column, (low, high) in WHOLE_COLUMNS.items():
        check_whole(f"{column} of {name}", cells[column], low, high)
    if cells.get("diverged") is not None:
        check_whole(f"diverged of {name}", cells["diverged"])
    if not isinstance(cells.get("whole", True), bool):
        raise ValueError(f"whole of {name} must be true or false")
    try:
        check_kinds(cells.get("made", {}))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"of {name}, made is not as a report writes it ({error})") from None
    total = cells["total"]
    parsed = {JSON_COLUMNS.get(column, column): value for column, value in cells.items()}
    if len(points) != POINTS:
        raise ValueError(f"{name} has {len(points)} points, not {POINTS}")
    columns = {column: np.array([point[column] for point in points]) for column in points[0]}
    steps = columns.pop("agent_step")
    inside = (steps >= 0) & (steps <= total)  # neither is nan
    if not inside.all() or (np.diff(steps) < 0).any() or (steps % 1).any() or steps[-1] != total:
        raise ValueError(f"the agent steps of {name} do not rise to its {total}")
    for tag, values in columns.items():
        if (wrong := values[~(is_possible(tag, values) | np.isnan(values))]).size:
            raise ValueError(f"{tag} of {name} cannot be {wrong[0]:g}")
    measures = {tag: values for tag, values in columns.items() if not np.isnan(values).all()}
    return RunRecord(**row, **parsed, flags=flags, steps=steps.astype(int), measures=measures)


def _read_rows(path: Path) -> list[dict[str, str]]:
    rows = read_csv(read_regular(path))
    if any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path.name} has a row with more or fewer cells than its header")
    return _escape(rows)


def read_tables(folder: Path) -> list[RunRecord]:
    """Read the runs of the tables in a folder. Raise UsageError if they are not whole."""
    try:
        points = defaultdict(list)
        for row in _read_rows(folder / CURVES_CSV):
            points[row.pop("name")].append(_parse_numbers(row))
        rows = _read_rows(folder / RUNS_CSV)
        runs = [_from_rows(row, points.pop(row["name"], [])) for row in rows]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{folder}: its tables of runs cannot be read ({what}): put {RUNS_CSV} and "
            f"{CURVES_CSV} back as a report wrote them"
        ) from None
    if not runs:
        raise UsageError(f"{folder}: its tables hold no run")
    if points:
        raise UsageError(
            f"{folder}: {CURVES_CSV} has a run that {RUNS_CSV} lacks, {min(points)}: put "
            f"{RUNS_CSV} back as a report wrote it"
        )
    return runs
