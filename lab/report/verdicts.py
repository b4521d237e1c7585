"""The paper's claims about games, each beside what the runs at hand measured of it.

A claim is supported or contradicted where the 95 % interval of what was measured lies wholly within
or beyond what the claim asks; else there is not enough data, and what is missing is said. That one
variant scores higher than another is decided by a permutation test at 5 %, as a bootstrap over few
seeds is too narrow. Nothing is decided with fewer than MIN_SEEDS seeds in any of the games
(BOOTSTRAP_SEEDS where nothing but a bootstrap gives an interval), nor corrected for the number of
claims: of 20 that are not true one will seem so.
"""

import math
from typing import NamedTuple

from scipy import stats

from lab.common.stats import reference_scores
from lab.report.claims import CLAIMS, Claim, Group, Measured, at_the_end

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not enough data"


class Finding(NamedTuple):
    """A line of the table: what was measured of a claim, on how much, and what follows."""

    claim: str
    source: str
    paper: str
    setting: str
    ours: str
    verdict: str
    why: str
    games: str
    seeds: str


def would_take(seeds: int, short: float) -> str:
    """How many seeds would decide, where an interval or a deviation is `short` times too wide.

    More than the `seeds` at hand. Widths fall with the root of that number; Student's fall faster,
    so there fewer may do, also where this is over 100.
    """
    needed = max(seeds * short**2, seeds + 1)
    told = f"takes up to about {math.ceil(needed - 1e-9)}" if needed <= 100 else "may take over 100"
    return f"{told} seeds if value and spread stay"


def fewest_runs(claim: Claim) -> str:
    """The fewest runs that decide a claim."""
    where = f"in {' and '.join(claim.only)}" if claim.only else "in a game"
    return f"{claim.seeds} seeds of {' and '.join(claim.variants)} {where}"


def verdict(of: Measured, seeds: int) -> tuple[str, str]:
    """(verdict, why): the interval lies within, beyond, or across what the claim asks.

    Where there is a p, it decides in place of the interval. `seeds` are the most of a variant in a
    game: an open verdict says how many it would take in each, but where the measure is `empty` or
    has no interval it says that alone.
    """
    value, low, high = of.estimate
    if of.empty:
        return OPEN, of.empty
    if of.p is not None:
        if of.p >= 0.05:
            deviation = max(stats.norm.isf(of.p / 2), 1e-9)
            short = stats.norm.isf(0.05 / 2) / deviation
            return OPEN, f"p = {of.p:.3f}: {would_take(seeds, short)}"
        return (SUPPORTED if value > of.above else CONTRADICTED), ""
    if math.isnan(low):
        return OPEN, "no interval: takes more seeds"
    if of.above < low and high < of.below:
        return SUPPORTED, ""
    if high < of.above or low > of.below:
        return CONTRADICTED, ""
    bounds = [bound for bound in (of.above, of.below) if math.isfinite(bound)]
    # From the value to a bound, and how far the interval reaches that way.
    reaches = [
        (abs(value - bound), high - value if value < bound else value - low) for bound in bounds
    ]
    on_bound = any(distance < 1e-9 for distance, _ in reaches)
    short = math.inf if on_bound else max(reach / distance for distance, reach in reaches)
    crossed = " and ".join(f"{bound:g}" for bound in bounds if low <= bound <= high)
    told = would_take(seeds, short)
    return OPEN, f"the interval includes {crossed}: {told}"


def judge(claim: Claim, group: Group) -> Finding:
    """A claim, on the runs of one group, which is of its algorithm."""
    games = group.common_games(*claim.variants)
    if claim.in_table:
        games = [game for game in games if game in reference_scores()]
    if claim.only:
        games = [game for game in games if game in claim.only]
    cells = [group.cells[variant, game] for variant in claim.variants for game in games]
    named = [claim.text, claim.source, claim.paper, group.title]
    counts = sorted({len(cell) for cell in cells}) or [0]
    span = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    told = (str(len(games)), span)
    if not games:
        missing = [name for name in claim.variants if name not in group.variants]
        what = f"no runs of {' and '.join(missing)}" if missing else "no game with runs of all"
        return Finding(*named, "", OPEN, f"{what}: takes {fewest_runs(claim)}", *told)
    for name in claim.needs:
        if any(math.isnan(at_the_end(run, name)) for cell in cells for run in cell):
            what = f"a run has not measured {name}: takes runs that have, or a report without it"
            return Finding(*named, "", OPEN, what, *told)
    measured = claim.measure(group, games)
    if counts[0] < claim.seeds:
        what = f"fewer than {claim.seeds} seeds: takes {claim.seeds} in each game"
        return Finding(*named, measured.ours, OPEN, what, *told)
    return Finding(*named, measured.ours, *verdict(measured, counts[-1]), *told)


def judge_all(groups: list[Group]) -> list[Finding]:
    """Every claim: on each group of its algorithm, or that there is none."""
    found = []
    for claim in CLAIMS:
        of_algorithm = [group for group in groups if group.algorithm == claim.algorithm]
        for group in of_algorithm:
            found.append(judge(claim, group))
        if not of_algorithm:
            named = (claim.text, claim.source, claim.paper, claim.algorithm.upper())
            what = f"no complete runs: takes {fewest_runs(claim)}"
            found.append(Finding(*named, "", OPEN, what, "0", "0"))
    return found
