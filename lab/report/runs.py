"""Runs back from the disk: what decided them, and their curves; as fast as event files allow.

A record that is cut off ends its file, without harm. Points that a resumed run has written anew
replace those from before it. Nothing here needs a run to have finished. What is read can be written
as two tables, which are read back like the runs themselves.
"""

import contextlib
import csv
import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from lab.common.cli import UsageError
from lab.common.events import FILES

POINTS = 100  # of a curve, evenly spaced over the agent steps that the run was to take
RETURNS, WINDOW = "charts/episodic_return", 100  # games
LENGTHS = "charts/episodic_length"
SCORE = "score"  # mean raw return of the newest 100 games
FINISHED = "in_finished_games"  # share of all agent steps: what no game has ended with has no score
KEPT = ("representation/", "q_contribution/", "value_contribution/")
RUNS_CSV, CURVES_CSV = "runs.csv", "curves.csv"
AS_JSON = ("made", "whole", "diverged")  # columns of runs.csv; tables from before may lack them
# Flags that variant, game and seed stand for, or that decide no number.
NAMED = ("activation", "branches", "combine", "latent_dim", "layer_norm", "apply_to")
NAMED += ("env_id", "seed", "device", "resume", "checkpoint_every", "runs_dir", "track")
NAMED += ("env_threads",)
UNTOLD = ("runs_dir", "resume")  # flags that no table keeps: where the folder was
# Of config.json beside the flags: on what a run was made, and where it was taken up again.
MADE = ("num_parameters", "device", "processor", "torch_threads", "versions")
MADE += ("git_commit", "git_has_changes", "resumed")


class Curve(NamedTuple):
    """Points of one tag: agent steps (points,), in their order, and values (points,)."""

    steps: np.ndarray
    values: np.ndarray


def is_made(made) -> bool:
    """Whether it has the form of `Recorded.made`, in what is read of it."""
    if not isinstance(made, dict) or not isinstance(made.get("resumed", []), list):
        return False
    times = [made, *made.get("resumed", [])]
    if not all(isinstance(of, dict) for of in times):
        return False
    versions = [of["versions"] for of in times if "versions" in of]
    return all(isinstance(of, dict) and "torch" in of for of in versions)


@dataclass
class Recorded:
    """One run: what decided it, and its measures at POINTS agent steps; nan where there is none."""

    name: str
    algorithm: str
    game: str
    variant: str
    seed: int
    total: int  # agent steps it was to take
    last_step: int  # that it has logged
    commit: str
    started: str
    flags: dict
    steps: np.ndarray  # (points,)
    measures: dict[str, np.ndarray] = field(repr=False)  # name -> (points,)
    made: dict = field(default_factory=dict, repr=False)  # MADE of its config.json, as far as there
    whole: bool = True  # whether none of its event files is damaged or cut off
    diverged: int | None = None  # the agent step, if it did
    setting: str = ""  # the flags in which it differs from others of its algorithm

    def __post_init__(self):
        if not is_made(self.made):
            raise ValueError(f"of {self.name}, made is not as a report writes it")

    @property
    def complete(self) -> bool:
        """Whether it came to its end, but for the last hundredth, which may not be logged.

        One that has diverged has ended there.
        """
        return self.reached_total or self.diverged is not None

    @property
    def reached_total(self) -> bool:
        return self.last_step >= 0.99 * self.total

    @property
    def machines(self) -> list[str]:
        """GPU, or else processor, on which it was begun and each on which it went on."""
        found = {
            made.get("processor", "") if made.get("device", "cpu") == "cpu" else made["device"]
            for made in self._times()
        }
        return sorted(found - {""})

    @property
    def torches(self) -> list[str]:
        """Versions of torch with which it was begun and went on."""
        return sorted({made["versions"]["torch"] for made in self._times() if "versions" in made})

    @property
    def commits(self) -> list[str]:
        """At which it was begun, and each at which it went on."""
        return sorted({self.commit} | {commit_name(made) for made in self._times()[1:]})

    def _times(self) -> list[dict]:
        """How it was made at its beginning, and each time that it went on."""
        return [self.made, *(self.made | more for more in self.made.get("resumed", ()))]


def trailing_return(curve: Curve, steps: np.ndarray) -> np.ndarray:
    """Mean of the newest 100 returns (of all, before there are 100) at these agent steps.

    Before the first game has ended the value of the first stands for it.
    """
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    until = np.maximum(np.searchsorted(curve.steps, steps, side="right"), 1)
    since = np.maximum(until - WINDOW, 0)
    return (sums[until] - sums[since]) / (until - since)


def share_in_finished(lengths: Curve, steps: np.ndarray) -> np.ndarray:
    """Share of these many agent steps that games have had which had ended by then."""
    sums = np.concatenate([[0.0], np.cumsum(lengths.values)])
    return sums[np.searchsorted(lengths.steps, steps, side="right")] / steps


def newest(curve: Curve, steps: np.ndarray) -> np.ndarray:
    """The newest finite value at these agent steps; nan before there is one."""
    finite = np.isfinite(curve.values)
    curve = Curve(curve.steps[finite], curve.values[finite])
    if not len(curve.steps):
        return np.full(len(steps), np.nan)
    index = np.searchsorted(curve.steps, steps, side="right") - 1
    return np.where(index >= 0, curve.values[np.maximum(index, 0)], np.nan)


class CutOff(Exception):
    """An event file has a record that is not whole; what came before it has been given."""


def events(path: Path) -> Iterator[Event]:
    """The records of an event file, up to the first that is cut off or damaged: then CutOff.

    A record is its length (uint64), a checksum of that, the event, a checksum of it. The checksums
    are not looked at: they would take longer than all the rest.
    """
    content = memoryview(path.read_bytes())
    at = 0
    while at + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        if at + 16 + length > len(content):
            raise CutOff
        try:
            yield Event.FromString(content[at + 12 : at + 12 + length].tobytes())
        except DecodeError:
            raise CutOff from None
        at += 16 + length
    if at < len(content):
        raise CutOff


def scalars(folder: Path) -> tuple[dict[str, Curve], bool]:
    """Every scalar of a run folder, by tag, and whether all of its files are whole."""
    points, whole = defaultdict(lambda: ([], [])), True
    for path in sorted(folder.glob(FILES)):
        try:
            for event in events(path):
                if event.HasField("session_log"):
                    if event.session_log.status == SessionLog.START:
                        _forget(points, event.step)
                    continue
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        steps, values = points[value.tag]
                        steps.append(event.step)
                        values.append(value.simple_value)
        except CutOff:
            whole = False
    curves = {}
    for tag, (steps, values) in points.items():
        order = np.argsort(steps, kind="stable")
        if len(order):
            curves[tag] = Curve(np.array(steps)[order], np.array(values)[order])
    return curves, whole


def _forget(points: dict, step: int):
    """Points at and after this step, which a resumed run writes anew."""
    for tag, (steps, values) in points.items():
        kept = [i for i, at in enumerate(steps) if at < step]
        if len(kept) < len(steps):
            points[tag] = ([steps[i] for i in kept], [values[i] for i in kept])


def as_text(value: float) -> str:
    """As the tables have it, and so the runs, too: a report from either is the same."""
    return f"{value:.6g}"


def read_json(path: Path) -> dict:
    """What a JSON file of a run folder says. UsageError if it is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged ({error}): put it back, or leave that run out"
        ) from None


def diverged_at(folder: Path) -> int | None:
    """The agent step of its report `diverged.json`; None without."""
    path = folder / "diverged.json"
    return int(read_json(path)["step"]) if path.exists() else None


def commit_name(made: dict) -> str:
    """The commit that config.json names, shortened; whether files had changed since."""
    changed = bool(made.get("git_has_changes"))
    return (made.get("git_commit") or "unknown")[:10] + "+ changes" * changed


def read_run(folder: Path) -> Recorded:
    """A run folder. UsageError if it is none."""
    try:
        config = read_json(folder / "config.json")
        flags = config["flags"]
        total = int(flags["total_timesteps"])
        commit = commit_name(config)
        own = [str(config[name]) for name in ("algorithm", "game", "variant")]
        curves, whole = scalars(folder)
        last = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
        steps = np.linspace(0, total, POINTS + 1)[1:].astype(int)
        at = np.append(steps[:-1], max(total, last))  # the last rollout may end beyond the total
        measures = {tag: newest(curve, at) for tag, curve in curves.items() if tag.startswith(KEPT)}
        if RETURNS in curves:
            measures[SCORE] = trailing_return(curves[RETURNS], at)
        if LENGTHS in curves:
            measures[FINISHED] = share_in_finished(curves[LENGTHS], np.minimum(at, max(last, 1)))
        diverged = diverged_at(folder)
        # A rollout may end a little before or after a point; beyond that there is nothing, but what
        # a run had when it diverged stays.
        for name, values in measures.items():
            if diverged is None:
                values[steps > last + 0.01 * total] = np.nan
            measures[name] = np.array([float(as_text(value)) for value in values])
        seed, started = int(flags["seed"]), str(config["started"])
        decided = (*own, seed, total, last, commit, started, flags)
        made = {name: config[name] for name in MADE if name in config}
        made["resumed"] = [
            {name: value for name, value in taken_up.items() if name != "command"}
            for taken_up in made.get("resumed", [])
        ]
        return Recorded(folder.name, *decided, steps, measures, made, whole, diverged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"{folder} is no run folder that can be read ({what})") from None


def is_source(path: Path) -> bool:
    """Whether it holds the two tables of `table_rows`."""
    return (path / RUNS_CSV).is_file() and (path / CURVES_CSV).is_file()


def find_runs(paths: list[str]) -> list[Path]:
    """Run folders, and folders with tables of runs, among these paths and directly below them.

    UsageError for a path at which there is none.
    """
    found = {}
    for path in map(Path, paths):
        inside = [path] if (path / "config.json").is_file() or is_source(path) else []
        with contextlib.suppress(OSError):
            inside += sorted(config.parent for config in path.glob("*/config.json"))
            inside += sorted(table.parent for table in path.glob(f"*/{RUNS_CSV}"))
        if not inside:
            raise UsageError(
                f"{path}: no run folder there (one has config.json) and no report ({RUNS_CSV} and "
                f"{CURVES_CSV}), nor below it"
            )
        found |= dict.fromkeys(inside)
    return list(found)


def table_rows(runs: list[Recorded]) -> tuple[list[dict], list[dict]]:
    """All that a report needs of the runs: one row per run, and one per run and point."""
    names = sorted({name for run in runs for name in run.measures})
    flags = sorted({name for run in runs for name in run.flags} - set(UNTOLD))
    own = (
        "name",
        "algorithm",
        "game",
        "variant",
        "seed",
        "total",
        "last_step",
        "commit",
        "started",
    )
    described = [
        {name: getattr(run, name) for name in own}
        | {f"flag_{name}": json.dumps(run.flags.get(name)) for name in flags}
        | {name: json.dumps(getattr(run, name)) for name in AS_JSON}
        for run in runs
    ]
    points = [
        {"name": run.name, "agent_step": int(step)}
        | {
            name: as_text(run.measures[name][i]) if name in run.measures else "nan"
            for name in names
        }
        for run in runs
        for i, step in enumerate(run.steps)
    ]
    return described, points


def from_rows(row: dict[str, str], points: list[dict[str, float]]) -> Recorded:
    """A run of its row and its points in the tables. ValueError if they are not whole."""
    name = row["name"]
    flags = {
        column.removeprefix("flag_"): json.loads(row.pop(column))
        for column in list(row)
        if column.startswith("flag_")
    }
    numbers = {column: int(row.pop(column)) for column in ("seed", "total", "last_step")}
    more = {column: json.loads(row.pop(column)) for column in AS_JSON if column in row}
    if len(points) != POINTS:
        raise ValueError(f"{name} has {len(points)} points, not {POINTS}")
    columns = {column: np.array([point[column] for point in points]) for column in points[0]}
    if any(np.isinf(values).any() for values in columns.values()):
        raise ValueError(f"{name} has a value that is infinite")
    steps = columns.pop("agent_step").astype(int)
    if (np.diff(steps, prepend=0) < 0).any() or steps[-1] != numbers["total"]:
        raise ValueError(f"the agent steps of {name} do not rise to its {numbers['total']}")
    measures = {tag: values for tag, values in columns.items() if not np.isnan(values).all()}
    return Recorded(**row, **numbers, **more, flags=flags, steps=steps, measures=measures)


def read_tables(folder: Path) -> list[Recorded]:
    """The runs of `table_rows`. UsageError if they are not whole."""
    try:
        with (folder / CURVES_CSV).open(newline="", encoding="utf-8") as file:
            points = defaultdict(list)
            for row in csv.DictReader(file):
                points[row.pop("name")].append({name: float(cell) for name, cell in row.items()})
        with (folder / RUNS_CSV).open(newline="", encoding="utf-8") as file:
            found = [from_rows(row, points.pop(row["name"], [])) for row in csv.DictReader(file)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{folder}: its tables of runs cannot be read ({what}): put {RUNS_CSV} and "
            f"{CURVES_CSV} back as a report wrote them"
        ) from None
    if not found:
        raise UsageError(f"{folder}: its tables hold no run")
    if points:
        raise UsageError(
            f"{folder}: {CURVES_CSV} has a run that {RUNS_CSV} lacks, {min(points)}: put "
            f"{RUNS_CSV} back as a report wrote it"
        )
    return found


def name_settings(runs: list[Recorded]):
    """Give every run the name of its setting: the flags in which runs of its algorithm differ.

    Runs of unequal setting are not to be averaged: each setting is reported by itself.
    """
    for algorithm in {run.algorithm for run in runs}:
        own = [run for run in runs if run.algorithm == algorithm]
        values = defaultdict(set)
        names = {name for run in own for name in run.flags} - set(NAMED)
        for run in own:
            for name in names:  # one that is not there, as it was not yet, counts as None
                values[name].add(repr(run.flags.get(name)))
        differing = sorted(name for name, found in values.items() if len(found) > 1)
        for run in own:
            told = (f"{name.replace('_', '-')} {run.flags.get(name)}" for name in differing)
            run.setting = ", ".join(told)
