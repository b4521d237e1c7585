"""How long a sweep will take and how much disk it needs, by the runs that are there already."""

import contextlib
import dataclasses
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.common import tags
from lab.common.cli import UsageError, plural
from lab.common.events import read_scalars
from lab.sweep.plan import PlannedRun
from lab.training.runfolder import read_config, select_checkpoint_flags

EXAMPLES = 5  # the newest that an estimate looks at
# Flags in which a run may differ from one that it is estimated by.
UNLIKE = ("env_id", "seed", "tag", "total_timesteps")


class Example(NamedTuple):
    """A run that is there: its agent step, agent steps per second, and bytes on the disk."""

    folder: Path
    step: int
    rate: float
    size: int


def read_example(folder: Path) -> Example | None:
    """Return how fast and how large a run was, or None if it says nothing of its speed."""
    try:
        curve = read_scalars(folder)[0][tags.SPS]
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except (OSError, UsageError, KeyError):
        return None
    rates = np.where(curve.values > 0, curve.values, np.nan)
    seconds = np.nansum(np.diff(curve.steps, prepend=0) / rates)
    if not seconds > 0:
        return None
    return Example(folder, int(curve.steps[-1]), float(curve.steps[-1] / seconds), size)


class Estimator:
    """Estimate runs by those below a folder: of the same flags, or else the same variant."""

    def __init__(self, runs_dir: Path):
        self.found: dict[tuple, list[Path]] = {}  # newest first
        self.used: set[Path] = set()
        self._examples: dict[Path, Example | None] = {}
        configs = []
        for path in runs_dir.glob("*/config.json"):
            with contextlib.suppress(UsageError, OSError):
                configs.append((read_config(path.parent), path.parent))
        for config, folder in sorted(configs, key=lambda pair: str(pair[0]["started"]))[::-1]:
            named = config["algorithm"], config.get("variant")
            for key in self._keys(*named, config["flags"]):
                self.found.setdefault(key, []).append(folder)

    @staticmethod
    def _keys(algorithm: str, variant: str, flags: dict) -> tuple[tuple, tuple]:
        deciding = select_checkpoint_flags(flags)
        same = {name: value for name, value in deciding.items() if name not in UNLIKE}
        return (algorithm, variant, repr(sorted(same.items()))), (algorithm, variant)

    def find_examples(self, run: PlannedRun) -> list[Example]:
        """Return the newest runs that are most like this one; those that say how fast they were."""
        for key in self._keys(run.algorithm, run.variant, dataclasses.asdict(run.args)):
            examples = []
            for folder in self.found.get(key, ()):
                if len(examples) == EXAMPLES:
                    break
                if folder not in self._examples:
                    self._examples[folder] = read_example(folder)
                if self._examples[folder] is not None:
                    examples.append(self._examples[folder])
            if examples:
                self.used |= {example.folder for example in examples}
                return examples
        return []


def describe_effort(planned: list[PlannedRun], at_once: int, runs_dir: Path) -> str:
    """Return what the runs that have not finished still take, in one line."""
    estimator, hours, room, unknown = Estimator(runs_dir), [], 0, {}
    for run in planned:
        if run.has_finished():
            continue
        examples = estimator.find_examples(run)
        if not examples:
            unknown[f"{run.algorithm} {run.variant}"] = None
            continue
        newest = run.pick()
        step = 0 if newest is None or newest.footer is None else newest.footer.step
        rate = statistics.median(example.rate for example in examples)
        hours.append((run.args.total_timesteps - step) / rate / 3600)
        own = None if newest is None else read_example(newest.folder)
        furthest = max(examples, key=lambda example: example.step)
        room += max(0, furthest.size - (0 if own is None else own.size))
    parts = []
    if hours:
        # No sooner than the longest run.
        lasting = max(sum(hours) / at_once, max(hours))
        parts.append(
            f"about {lasting:,.1f} hours, {at_once} at a time, and {room / 1e9:,.2f} GB of disk, "
            f"by {plural(len(estimator.used), 'run')} of such kind in {runs_dir}"
        )
    if unknown:
        parts.append(f"nothing is known of {', '.join(unknown)}: no such run is in {runs_dir} yet")
    return "; ".join(parts)
