"""Which runs may be compared: those of one algorithm whose other flags are the same."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lab.common.stats import Scores, normalise, reference_scores
from lab.common.variants import ADDED_FLAGS, FREE_FLAGS, NAMED_VARIANTS, VARIANT_FLAGS
from lab.report.measures import final_value, is_counted
from lab.report.runs import SCORE, RunRecord

# Flags in which the runs of one setting may differ: those that variant, game and seed stand for,
# and those that change no number.
NAMED_OR_FREE = {*VARIANT_FLAGS, "env_id", "seed", "device", *FREE_FLAGS}


def name_settings(runs: list[RunRecord]):
    """Give every run the name of its setting: the flags in which runs of its algorithm differ.

    Runs of unequal settings must not be averaged: each setting is reported by itself.
    """
    for algorithm in {run.algorithm for run in runs}:
        own = [run for run in runs if run.algorithm == algorithm]
        differing = []
        for name in sorted({name for run in own for name in run.flags} - NAMED_OR_FREE):
            if len({repr(_read_flag(run, name)) for run in own}) > 1:
                differing.append(name)
        for run in own:
            run.setting = ", ".join(_describe_flag(run, name) for name in differing)


def _read_flag(run: RunRecord, name: str):
    """Return a flag of a run; one that is not there, as it was not yet, counts as None."""
    value = run.flags.get(name)
    return ADDED_FLAGS.get(name) if value is None else value


def _describe_flag(run: RunRecord, name: str) -> str:
    value, words = _read_flag(run, name), name.replace("_", "-")
    return f"no {words}" if value == "" else f"{words} {value}"


@dataclass
class Group:
    """Runs that count, of one algorithm in one setting."""

    algorithm: str
    setting: str
    runs: list[RunRecord] = field(repr=False)
    letter: str = ""  # of the setting, where there are several

    def __post_init__(self):
        cells = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: run.seed):
            cells[run.variant, run.game].append(run)
        self.cells = dict(cells)  # (variant, game) -> runs, by seed
        order = {name: i for i, name in enumerate(NAMED_VARIANTS)}
        names = {run.variant for run in self.runs}
        self.variants = sorted(names, key=lambda name: (order.get(name, len(order)), name))
        self.games = sorted({run.game for run in self.runs})
        self.total = self.runs[0].total  # agent steps
        self.title = f"{self.algorithm.upper()} {self.letter}".rstrip()

    def common_games(self, *variants: str) -> list[str]:
        """Return the games in which there is a run of each of these variants."""
        return [game for game in self.games if all((v, game) in self.cells for v in variants)]

    def comparable(self, first: str) -> tuple[list[str], list[str]]:
        """Return variants and games to compare over games: as many as have a run of every pair.

        `first` is among them, if there are runs of it: without it there is nothing to compare with.
        Other variants that lack games are left out, rather than these games, unless fewer pairs
        would be left.
        """
        wanted = [first] if first in self.variants else []
        found = ([], [])
        for fewest in range(len(self.common_games(*wanted)), 0, -1):
            kept = [v for v in self.variants if len(self.common_games(*wanted, v)) >= fewest]
            games = self.common_games(*kept)
            # Of as many pairs, those of more variants.
            if len(kept) * len(games) >= len(found[0]) * len(found[1]):
                found = (kept, games)
        return found

    def missing(self) -> list[str]:
        """Return the pairs of variant and game of which there is no run, in words."""
        return [
            f"{v} in {g}" for g in self.games for v in self.variants if (v, g) not in self.cells
        ]

    def collect(self, name: str) -> list[str]:
        """Return the "commits", "machines" or "torches" of all runs, each once."""
        return sorted({item for run in self.runs for item in getattr(run, name)})

    def values(
        self, variant: str, games: list[str], measure: str | Callable[[RunRecord], float]
    ) -> Scores:
        """Return a measure at the end of the runs, or a number of each: (seeds,) per game."""
        number = measure if callable(measure) else lambda run: final_value(run, measure)
        return [np.array([number(run) for run in self.cells[variant, game]]) for game in games]

    def human_normalised(self, variant: str, games: list[str]) -> Scores:
        """Return scores at the end, (seeds,) per game; all games need a human score."""
        known = reference_scores()
        scores = self.values(variant, games, SCORE)
        return [normalise(of, *known[game]) for game, of in zip(games, scores, strict=True)]


def name_letters(runs: list[RunRecord]) -> dict[tuple[str, str], str]:
    """Return (algorithm, setting) -> A, B, ..., Z, AA, ...; "" where an algorithm has one setting.

    Settings are long; they are told once, and called by these.
    """
    letters = {}
    for algorithm in {run.algorithm for run in runs}:
        settings = sorted({run.setting for run in runs if run.algorithm == algorithm})
        for i, setting in enumerate(settings):
            letters[algorithm, setting] = _letter(i) if len(settings) > 1 else ""
    return dict(sorted(letters.items()))


def _letter(i: int) -> str:
    before, own = divmod(i, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + own)


def group_runs(runs: list[RunRecord]) -> list[Group]:
    """Return the runs that count, by algorithm and setting."""
    found, letters = defaultdict(list), name_letters(runs)
    for run in runs:
        if is_counted(run):
            found[run.algorithm, run.setting].append(run)
    return [Group(*key, members, letters[key]) for key, members in sorted(found.items())]


def name_groups(groups: list[Group]) -> list[str]:
    """Return what the names of their files begin with, which are anchors of the page, too.

    They are cut to what the name of a file holds: an algorithm may be called anything.
    """
    taken = {"top", "settings", "claims", "runs"}
    names = []
    for group in groups:
        title = f"{group.algorithm[:60]} {group.letter}".lower()
        name = stem = re.sub(r"[^a-z0-9]+", "-", title).strip("-")
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        names.append(name)
    return names
