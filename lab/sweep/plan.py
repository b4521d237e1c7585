"""Runs by name: algorithm, variant, game and seed -> the command that makes them, checked."""

import dataclasses
import itertools
import zlib
from typing import NamedTuple

from hadamard import ACTIVATIONS
from lab.common.cli import UsageError, flag
from lab.common.variants import variant_flags, variant_name
from lab.sweep.flags import Args, check
from lab.training.algorithms import ALGORITHMS, load_script, script_args, script_path
from lab.training.atari import game_title, resolve_game
from lab.training.runfolder import RunOnDisk, find_runs_of, select_identifying_flags


class PlannedRun(NamedTuple):
    """A run that is wanted. `flags` make it, beside those that decide no number."""

    algorithm: str
    variant: str
    game: str
    seed: int
    flags: tuple[str, ...]
    args: object  # of the script

    @property
    def name(self) -> str:
        """Return Game__algorithm__variant__sSEED, and a --tag as in the name of the run."""
        parts = (self.game, self.algorithm, self.variant, self.args.tag, f"s{self.seed}")
        return "__".join(filter(None, parts))

    @property
    def log_name(self) -> str:
        """Return the file name of its log: the run's name and a checksum of its deciding flags.

        Each sweep locks its logs: two sweeps whose runs differ in such a flag must not share one.
        """
        flags = sorted(select_identifying_flags(dataclasses.asdict(self.args)).items())
        return f"{self.name}__{zlib.crc32(repr(flags).encode()):08x}.log"

    def command(self, *more: str) -> list[str]:
        """Return the command that goes on with what is there of this run, or starts it."""
        return [str(script_path(self.algorithm)), "--resume", "auto", *self.flags, *more]

    def runs(self) -> list[RunOnDisk]:
        """Return all runs of these flags that are there, finished or not."""
        return find_runs_of(self.args, self.algorithm)

    def pick(self) -> RunOnDisk | None:
        """Return the finished one, else the newest; None before it starts."""
        runs = self.runs()
        return max(runs, key=lambda run: (run.has_finished(self.args), run.started), default=None)

    def has_finished(self) -> bool:
        """Return whether a run of these flags has taken all its steps."""
        return any(run.has_finished(self.args) for run in self.runs())


def select_flags(algorithm: str, more: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags in `more` that are for this algorithm.

    Those before a word such as `dqn:` are for all, those after it for that one alone.
    """
    selected, owner = [], algorithm
    for word in more:
        if named := _owner(word):
            owner = named
        elif owner == algorithm:
            selected.append(word)
    return tuple(selected)


def _owner(word: str) -> str:
    """Return dqn for dqn:, and an empty string for what is a flag or its value."""
    return word[:-1] if word.endswith(":") and not word.startswith("-") else ""


def plan_runs(args: Args) -> list[PlannedRun]:
    """Return every combination that `args` name, seed by seed, so that there is something early.

    Raises UsageError, before anything is made, for a name that is not known, for flags that a
    script does not accept, that name what the sweep names or that make another variant of it.
    """
    check(args)
    for owner in filter(None, map(_owner, args.flags)):
        if owner not in args.algorithms:
            known = ", ".join(f"{name}:" for name in args.algorithms)
            raise UsageError(f"{owner}: begins flags of an algorithm that is not run here: {known}")
    runs = {}
    for combination in itertools.product(args.seeds, args.games, args.variants, args.algorithms):
        run = plan_run(*combination, args)
        runs[dataclasses.astuple(run.args), run.algorithm] = run
    return list(runs.values())


def plan_run(seed: int, game: str, variant: str, algorithm: str, args: Args) -> PlannedRun:
    """Return one run of the sweep. Raise UsageError as `plan_runs` does."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"unknown algorithm {algorithm!r}: choose of {', '.join(ALGORITHMS)}")
    try:
        title = game_title(resolve_game(game))
    except ValueError as error:
        raise UsageError(str(error)) from None
    own = ("--env-id", title, "--seed", str(seed), f"--runs-dir={args.runs_dir}")
    given = select_flags(algorithm, args.flags)
    flags = (*own, *variant_flags(variant, ACTIVATIONS), *given)
    try:
        of_script = script_args(algorithm, *flags)
        # Of the GPU of another machine nothing is known here.
        elsewhere = args.slurm and of_script.device == "cuda"
        checked = dataclasses.replace(of_script, device="auto") if elsewhere else of_script
        load_script(algorithm).check(checked)
    except UsageError as error:
        raise UsageError(f"{algorithm}: {error}") from None
    fixed = {"env_id": title, "seed": seed, "runs_dir": args.runs_dir, "resume": ""}
    for name, value in fixed.items():
        if getattr(of_script, name) != value:
            raise UsageError(f"{flag(name)} belongs to the sweep itself: leave it out after --")
    if variant_name(of_script) != variant:
        problem = f"{algorithm} calls {variant!r} {variant_name(of_script)!r}"
        if given:
            problem += f" with {' '.join(given)}"
        raise UsageError(f"{problem}: name that one in --variants, or leave such flags out")
    return PlannedRun(algorithm, variant, title, seed, flags, of_script)
