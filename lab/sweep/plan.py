"""Runs by name: algorithm, variant, game and seed -> the command that makes them, checked."""

import dataclasses
import importlib
import itertools
import types
from pathlib import Path
from typing import NamedTuple

from lab.common.cli import UsageError, flag, parse_flags, variant_flags, variant_name
from lab.training.atari import game_title, resolve_game
from lab.training.runfolder import Found, runs_of

ALGORITHMS = ("dqn", "ppo", "pqn")


def script(algorithm: str) -> types.ModuleType:
    """The module of a script, by its algorithm."""
    return importlib.import_module(f"{algorithm}_atari")


def script_args(algorithm: str, *flags: str):
    """The Args of a script, as its command line makes them. UsageError if they do not parse."""
    return parse_flags(script(algorithm).Args, argv=list(flags))


class Planned(NamedTuple):
    """A run that is wanted. `flags` make it, beside those that decide no number."""

    algorithm: str
    variant: str
    game: str
    seed: int
    flags: tuple[str, ...]
    args: object  # of the script

    @property
    def name(self) -> str:
        return f"{self.game}__{self.algorithm}__{self.variant}__s{self.seed}"

    def command(self, *more: str) -> list[str]:
        """Goes on with what is there of this run, or starts it."""
        path = Path(__file__).parents[2] / f"{self.algorithm}_atari.py"
        return [str(path), "--resume", "auto", *self.flags, *more]

    def runs(self) -> list[Found]:
        """All that is there of these flags, finished or not."""
        return runs_of(self.args, self.algorithm)

    def found(self) -> Found | None:
        """The finished one, else the newest; None before it starts."""
        runs = self.runs()
        return max(runs, key=lambda run: (run.has_finished(self.args), run.started), default=None)

    def has_finished(self) -> bool:
        return any(run.has_finished(self.args) for run in self.runs())


def part_of(algorithm: str, more: tuple[str, ...]) -> tuple[str, ...]:
    """The flags in `more` that are for this algorithm: those before a word such as `dqn:` are for
    all, those after it for that one alone."""
    found, owner = [], algorithm
    for word in more:
        if named := _owner(word):
            owner = named
        elif owner == algorithm:
            found.append(word)
    return tuple(found)


def _owner(word: str) -> str:
    """dqn: -> dqn; empty for what is a flag or its value."""
    return word[:-1] if word.endswith(":") and not word.startswith("-") else ""


def plan(
    algorithms: tuple[str, ...],
    variants: tuple[str, ...],
    games: tuple[str, ...],
    seeds: tuple[int, ...],
    runs_dir: str,
    more: tuple[str, ...] = (),
    elsewhere: bool = False,
) -> list[Planned]:
    """Every combination, seed by seed, so that there is something to compare early.

    `more` are flags of the scripts (`part_of`); `elsewhere`: they are for another machine, of whose
    GPU nothing is known here. UsageError for a name that is not known, for flags
    that a script does not accept, that name what the sweep names or that make another variant of
    it; nothing is made.
    """
    for owner in filter(None, map(_owner, more)):
        if owner not in algorithms:
            known = ", ".join(f"{name}:" for name in algorithms)
            raise UsageError(f"{owner}: begins flags of an algorithm that is not run here: {known}")
    found = {}
    for seed, game, variant, algorithm in itertools.product(seeds, games, variants, algorithms):
        if algorithm not in ALGORITHMS:
            raise UsageError(f"unknown algorithm {algorithm!r}: choose of {', '.join(ALGORITHMS)}")
        try:
            title = game_title(resolve_game(game))
        except ValueError as error:
            raise UsageError(str(error)) from None
        own = ("--env-id", title, "--seed", str(seed), "--runs-dir", runs_dir)
        flags = (*own, *variant_flags(variant), *part_of(algorithm, more))
        try:
            args = script_args(algorithm, *flags)
            away = elsewhere and args.device == "cuda"
            script(algorithm).check(dataclasses.replace(args, device="auto") if away else args)
        except UsageError as error:
            raise UsageError(f"{algorithm}: {error}") from None
        fixed = {"env_id": title, "seed": seed, "runs_dir": runs_dir, "resume": ""}
        for name, value in fixed.items():
            if getattr(args, name) != value:
                raise UsageError(f"{flag(name)} belongs to the sweep itself: leave it out after --")
        if variant_name(args) != variant:
            given = part_of(algorithm, more)
            told = f"{algorithm} calls {variant!r} {variant_name(args)!r}"
            if given:
                told += f" with {' '.join(given)}"
            raise UsageError(f"{told}: name that one in --variants, or leave such flags out")
        run = Planned(algorithm, variant, title, seed, flags, args)
        found[dataclasses.astuple(args), algorithm] = run
    return list(found.values())
