"""How the claims of claims.py are tested on a group of runs, and what follows.

A claim is supported or contradicted where the 95 % interval of what was measured lies wholly within
or beyond what the claim asks; else there is not enough data, and what is missing is said. That one
variant scores higher than another is decided by a permutation test at 5 %, which is right for any
number of seeds. Nothing is decided with fewer than MIN_SEEDS seeds in any of the games
(BOOTSTRAP_SEEDS where nothing but a bootstrap gives an interval), nor corrected for the number of
claims: of 20 that are not true one will seem so.
"""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from scipy.stats import norm

from lab.common import stats
from lab.common.stats import Estimate
from lab.report.claims import CLAIMS, Claim
from lab.report.groups import Group
from lab.report.headers import is_share
from lab.report.measures import DEAD, dead_part, final_value, predict_share
from lab.report.runs import SCORE

ALPHA = 0.05  # below which a p decides
SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not enough data"


class Measured(NamedTuple):
    """What a test found: a number with its interval, in words, and where a claim asks it to lie."""

    estimate: Estimate
    words: str
    above: float = -math.inf
    below: float = math.inf
    p: float | None = None  # where a test decides in place of the interval
    undecided: str = ""  # why it decides nothing, whatever the interval


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


def format_games(games: list[str], numbers: Iterable[float]) -> str:
    """Format the numbers behind a mean: ": Pong 0.10, Qbert 0.30"; nothing for one game."""
    each = (f"{game} {number:.2f}" for game, number in zip(games, numbers, strict=True))
    return f": {', '.join(each)}" if len(games) > 1 else ""


def measure_wins(claim: Claim, group: Group, games: list[str]) -> Measured:
    """Test that a run of the first variant scores higher than one of the second more often."""
    found, words = _probability(claim, group, games)
    both = [group.values(name, games, SCORE) for name in claim.variants]
    p, lowest = stats.improvement_p(*both), stats.lowest_p(*both)
    undecided = ""
    if lowest >= ALPHA:
        enough = next(n for n in itertools.count(2) if 2 / math.comb(2 * n, n) < ALPHA)
        undecided = (
            f"undecidable: so few runs cannot give a p below {lowest:.2f}: takes {enough} seeds of "
            "each in a game, or more games"
        )
    return Measured(found, f"{words}; p = {p:.3f}", above=0.5, p=p, undecided=undecided)


def measure_alike(claim: Claim, group: Group, games: list[str]) -> Measured:
    """Test that the first variant wins a share of the pairs within the claim's bounds."""
    return Measured(*_probability(claim, group, games), *claim.between)


def _probability(claim: Claim, group: Group, games: list[str]) -> tuple[Estimate, str]:
    """Return how often a run of the first variant beats one of the second, and that in words."""
    first, second = claim.variants
    scores = [group.values(name, games, SCORE) for name in (first, second)]
    estimate = stats.probability_of_improvement(*scores)
    by_game = format_games(games, stats.shares_won(*scores))
    return estimate, f"P({first} > {second}) = {estimate.format()}{by_game}"


def measure_doubling(claim: Claim, group: Group, games: list[str]) -> Measured:
    """Test that the median human-normalised score of the first is over twice the second's.

    Of two games the median is their mean, and a game of few points to the human score, such as
    Breakout, decides it: the scores of each game are named beside it.
    """
    first, second = claim.variants
    scores = [group.human_normalised(name, games) for name in (first, second)]
    estimate = stats.ratio_of_medians(*scores)
    each = [
        f"{name} {stats.estimate(of, stats.median).format()}"
        for name, of in zip((first, second), scores, strict=True)
    ]
    if len(games) > 1:
        for game, ours, theirs in zip(games, *scores, strict=True):
            each.append(f"{game} {ours.mean():.2f} and {theirs.mean():.2f}")
    ratio, undecided = f"ratio {estimate.format()}", ""
    if math.isnan(estimate.value):
        ratio = "no ratio"
        undecided = f"the median of {second} is not above 0: takes runs of it above random play"
    return Measured(estimate, f"{ratio}: {', '.join(each)}", above=2.0, undecided=undecided)


def measure_higher(claim: Claim, group: Group, games: list[str]) -> Measured:
    """Test that a measure is higher in the first variant: mean difference over games."""
    (first, second), measure = claim.variants, claim.measures[0]
    values = [group.values(variant, games, measure) for variant in (first, second)]
    estimate = stats.difference(*values)
    shown, unit, scale = estimate, "", 1
    if is_share(measure):
        shown, unit, scale = estimate.in_percent, " points", 100
    by_game = [scale * (x.mean() - y.mean()) for x, y in zip(*values, strict=True)]
    words = f"{first} - {second} = {shown}{unit}{format_games(games, by_game)}"
    return Measured(estimate, words, above=0.0)


def measure_live(claim: Claim, group: Group, games: list[str]) -> Measured:
    """Test as `measure_higher` does, of a measure of the live neurons.

    Where hardly one lives such a measure says little: nothing is decided if in a game over 95 % of
    the neurons of a variant are dead. DQN's start so, by the scale of z alone.
    """
    undecided = ""
    for variant in claim.variants:
        for game, dead in zip(games, group.values(variant, games, DEAD), strict=True):
            if dead.mean() > 0.95:
                of = f"{variant} in {game}"
                undecided = f"hardly a neuron of {of} lives: takes runs in which at least 5 % do"
    return measure_higher(claim, group, games)._replace(undecided=undecided)


def measure_share(claim: Claim, group: Group, games: list[str]) -> Measured:
    """Test that a share, mean over games, lies within the claim's bounds."""
    (variant,), (measure,) = claim.variants, claim.measures
    values = group.values(variant, games, measure)
    estimate = stats.mean_over_games(values)
    by_game = [100 * of.mean() for of in values]
    words = f"{estimate.as_share} %{format_games(games, by_game)}"
    return Measured(estimate, words, *claim.between)


def measure_gap(claim: Claim, group: Group, games: list[str]) -> Measured:
    """Test that dead products less those predicted of independent branches are within bounds.

    Mean over games; where it lies within them but the gap of a game does not, nothing is decided.
    Where hardly a branch dies both shares are about 0, whatever the branches do, and where nearly
    all do both are about 1: within 5 points of either nothing is decided.
    """
    (variant,), (above, below) = claim.variants, claim.between
    dead = group.values(variant, games, DEAD)
    expected = group.values(variant, games, predict_share)
    gaps = [x - y for x, y in zip(dead, expected, strict=True)]
    estimate = stats.mean_over_games(gaps)
    shares = [stats.mean_over_games(of).value for of in (dead, expected)]
    undecided = ""
    nothing = "neuron died, so nothing is told apart: takes runs in which"
    if max(shares) < 0.05:
        undecided = f"hardly a {nothing} at least 5 % do"
    elif min(shares) > 0.95:
        undecided = f"nearly every {nothing} at most 95 % do"
    elif above < estimate.value < below and not all(above < gap.mean() < below for gap in gaps):
        undecided = "the games disagree: takes more games"
    each = [
        f"{game} {100 * x.mean():.1f} and {100 * y.mean():.1f} %"
        for game, x, y in zip(games, dead, expected, strict=True)
    ]
    words = f"measured - predicted = {estimate.in_percent} points: {', '.join(each)}"
    return Measured(estimate, words, above, below, undecided=undecided)


def measure_bias(claim: Claim, group: Group, games: list[str]) -> Measured:
    """Test that dead neurons bring a share of the Q-values that lies within the claim's bounds.

    Nothing is decided where fewer than one neuron in a hundred is dead.
    """
    (variant,) = claim.variants
    estimate = stats.mean_over_games(group.values(variant, games, dead_part))
    dead = stats.mean_over_games(group.values(variant, games, DEAD)).value
    words = f"{estimate.as_share} % of the magnitude, from {100 * dead:.1f} % of the neurons"
    undecided = ""
    if dead < 0.01:
        undecided = "hardly a neuron died: takes runs in which at least 1 % do"
    return Measured(estimate, words, *claim.between, undecided=undecided)


TESTS = {
    "wins": measure_wins,
    "alike": measure_alike,
    "doubles": measure_doubling,
    "higher": measure_higher,
    "live": measure_live,
    "share": measure_share,
    "gap": measure_gap,
    "bias": measure_bias,
}


def format_seeds_needed(seeds: int, short: float) -> str:
    """Say how many seeds would decide, where an interval or a deviation is `short` times too wide.

    More than the `seeds` at hand. Widths fall with the root of that number; Student's fall faster,
    so there fewer may do, also where this is over 100.
    """
    needed = max(seeds * short**2, seeds + 1)
    if needed > 100:
        return "may take over 100 seeds if value and spread stay"
    return f"takes up to about {math.ceil(needed - 1e-9)} seeds if value and spread stay"


def format_fewest_runs(claim: Claim) -> str:
    """Say which runs decide a claim at least."""
    where = f"in {' and '.join(claim.games)}" if claim.games else "in a game"
    return f"{claim.seeds} seeds of {' and '.join(claim.variants)} {where}"


def reach_verdict(measured: Measured, seeds: int) -> tuple[str, str]:
    """Return (verdict, why): the interval lies within, beyond, or across what the claim asks.

    Where there is a p, it decides in place of the interval. `seeds` are the most of a variant in a
    game: an open verdict says how many it would take in each, but where the measure is `undecided`
    or has no interval it says that alone.
    """
    value, low, high = measured.estimate
    if measured.undecided:
        return OPEN, measured.undecided
    if measured.p is not None:
        if measured.p >= ALPHA:
            deviation = max(norm.isf(measured.p / 2), 1e-9)
            short = norm.isf(ALPHA / 2) / deviation
            return OPEN, f"p = {measured.p:.3f}: {format_seeds_needed(seeds, short)}"
        return (SUPPORTED if value > measured.above else CONTRADICTED), ""
    if math.isnan(low):
        return OPEN, "no interval: takes more seeds"
    if measured.above < low and high < measured.below:
        return SUPPORTED, ""
    if high < measured.above or low > measured.below:
        return CONTRADICTED, ""
    bounds = [bound for bound in (measured.above, measured.below) if math.isfinite(bound)]
    # From the value to a bound, and how far the interval reaches that way.
    reaches = [
        (abs(value - bound), high - value if value < bound else value - low) for bound in bounds
    ]
    on_bound = any(distance < 1e-9 for distance, _ in reaches)
    short = math.inf if on_bound else max(reach / distance for distance, reach in reaches)
    crossed = " and ".join(f"{bound:g}" for bound in bounds if low <= bound <= high)
    return OPEN, f"the interval includes {crossed}: {format_seeds_needed(seeds, short)}"


def judge(claim: Claim, group: Group) -> Finding:
    """Test a claim on the runs of one group, which is of its algorithm."""
    games = shared = group.common_games(*claim.variants)
    if claim.human:
        games = [game for game in games if game in stats.reference_scores()]
    if claim.games:
        games = [game for game in games if game in claim.games]
    cells = [group.cells[variant, game] for variant in claim.variants for game in games]
    fewest, most = min(map(len, cells), default=0), max(map(len, cells), default=0)
    span = f"{fewest}-{most}" if fewest < most else f"{most}"

    def finding(words: str, verdict: str, why: str) -> Finding:
        about = (claim.text, claim.source, claim.paper, group.title)
        return Finding(*about, words, verdict, why, str(len(games)), span)

    if not games:
        missing = [name for name in claim.variants if name not in group.variants]
        what = f"no runs of {' and '.join(missing)}" if missing else "no game with runs of all"
        if shared:
            games_of_claim = " and ".join(claim.games)
            what = f"no runs in {games_of_claim}" if claim.games else "no game with a human score"
        return finding("", OPEN, f"{what}: takes {format_fewest_runs(claim)}")
    for name in claim.measures:
        if any(math.isnan(final_value(run, name)) for cell in cells for run in cell):
            what = f"a run has not measured {name}: takes runs that have, or a report without it"
            return finding("", OPEN, what)
    measured = TESTS[claim.test](claim, group, games)
    if fewest < claim.seeds:
        what = f"fewer than {claim.seeds} seeds: takes {claim.seeds} in each game"
        return finding(measured.words, OPEN, what)
    return finding(measured.words, *reach_verdict(measured, most))


def judge_all(groups: list[Group]) -> list[Finding]:
    """Test every claim: on each group of its algorithm, or say that there is none."""
    findings = []
    for claim in CLAIMS:
        own = [group for group in groups if group.algorithm == claim.algorithm]
        findings += [judge(claim, group) for group in own]
        if not own:
            about = (claim.text, claim.source, claim.paper, claim.algorithm.upper())
            what = f"no complete runs: takes {format_fewest_runs(claim)}"
            findings.append(Finding(*about, "", OPEN, what, "0", "0"))
    return findings
