"""The paper's claims about games: what each says, and the measure of runs that decides it.

How a verdict is reached is in verdicts.py.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from flags import PAPER_VARIANTS
from lab.common.stats import (
    BOOTSTRAP_SEEDS,
    Estimate,
    Scores,
    difference,
    estimate,
    improvement_p,
    mean_over_games,
    median,
    normalised,
    probability_of_improvement,
    ratio_of_medians,
    reference_scores,
    shares_won,
)
from lab.report.runs import POINTS, SCORE, Recorded

MIN_SEEDS = 3
DEAD, RANK = "representation/dead_kde", "representation/effective_rank"
BRANCHES_DEAD = ("representation/branch_0/dead_kde", "representation/branch_1/dead_kde")


def at_the_end(run: Recorded, measure: str) -> float:
    """The score at the end of a run; of any other measure the mean over its last tenth."""
    if measure not in run.measures:
        return math.nan
    values = run.measures[measure]
    return float(values[-1] if measure == SCORE else np.mean(values[-(POINTS // 10) :]))


def counts(run: Recorded) -> bool:
    """Whether it is part of the comparisons: complete, and a game has ended in it."""
    return run.complete and SCORE in run.measures and not math.isnan(at_the_end(run, SCORE))


@dataclass
class Group:
    """Complete runs of one algorithm in one setting: what may be compared."""

    algorithm: str
    setting: str
    runs: list[Recorded] = field(repr=False)

    def __post_init__(self):
        self.cells = defaultdict(list)  # (variant, game) -> runs, by seed
        for run in sorted(self.runs, key=lambda run: run.seed):
            self.cells[run.variant, run.game].append(run)
        known = {name: i for i, name in enumerate(PAPER_VARIANTS)}
        names = {run.variant for run in self.runs}
        self.variants = sorted(names, key=lambda name: (known.get(name, 99), name))
        self.games = sorted({run.game for run in self.runs})
        self.total = self.runs[0].total  # agent steps

    @property
    def title(self) -> str:
        return f"{self.algorithm.upper()}{', ' * bool(self.setting)}{self.setting}"

    def common_games(self, *variants: str) -> list[str]:
        """Those in which there is a run of each of these variants."""
        return [game for game in self.games if all((v, game) in self.cells for v in variants)]

    def comparable(self) -> tuple[list[str], list[str]]:
        """Variants and games of the tables over games: as many cells as are there of all of them.

        Variants that lack games leave these tables, rather than take the games with them, unless
        fewer cells would be left.
        """
        found = ([], [])
        for fewest in range(len(self.games), 0, -1):
            having = {v: [g for g in self.games if (v, g) in self.cells] for v in self.variants}
            kept = [variant for variant in self.variants if len(having[variant]) >= fewest]
            games = self.common_games(*kept) if kept else []
            if len(kept) * len(games) > len(found[0]) * len(found[1]):
                found = (kept, games)
        return found

    def values(
        self, variant: str, games: list[str], measure: str | Callable[[Recorded], float]
    ) -> Scores:
        """A measure at the end of the runs, or a number of each: an array (seeds,) per game."""
        of = measure if callable(measure) else lambda run: at_the_end(run, measure)
        return [np.array([of(run) for run in self.cells[variant, game]]) for game in games]

    def human_normalised(self, variant: str, games: list[str]) -> Scores:
        """Scores at the end; the games must be in the table of human scores."""
        known = reference_scores()
        scores = self.values(variant, games, SCORE)
        return [normalised(of, *known[game]) for game, of in zip(games, scores, strict=True)]


class Measured(NamedTuple):
    """What a claim found: a number with its interval, in words, and what the claim asks of it."""

    estimate: Estimate
    ours: str
    above: float = -math.inf
    below: float = math.inf
    p: float | None = None  # of a test that decides in place of the interval
    empty: str = ""  # why it decides nothing, whatever the interval


class Claim(NamedTuple):
    """What the paper says, of which algorithm and variants; `measure` gives what was found."""

    text: str
    source: str
    paper: str  # its number, if it gives one
    algorithm: str
    variants: tuple[str, ...]
    measure: Callable[[Group, list[str]], Measured]
    needs: tuple[str, ...] = (SCORE,)  # measures
    in_table: bool = False  # only games with a human score
    only: tuple[str, ...] = ()  # these games alone, where the paper's line is of them
    seeds: int = MIN_SEEDS  # fewest in each game that decide


def per_game(games: list[str], numbers: Iterable[float]) -> str:
    """The numbers behind a mean over games: ": Pong 0.10, Qbert 0.30"; empty for one game."""
    each = (f"{game} {number:.2f}" for game, number in zip(games, numbers, strict=True))
    return f": {', '.join(each)}" if len(games) > 1 else ""


def told_probability(
    first: str, second: str, games: list[str], scores: list[Scores]
) -> tuple[Estimate, str]:
    """How often a run of `first` beats one of `second`: over the games, and that and each in words.

    `scores`: of both, per game.
    """
    found = probability_of_improvement(*scores)
    by_game = per_game(games, shares_won(*scores))
    return found, f"P({first} > {second}) = {found.format()}{by_game}"


def better(first: str, second: str) -> Callable:
    """A run of `first` scores higher than one of `second` more often than not."""

    def measure(group: Group, games: list[str]) -> Measured:
        scores = [group.values(name, games, SCORE) for name in (first, second)]
        found, told = told_probability(first, second, games, scores)
        p = improvement_p(*scores)
        return Measured(found, f"{told}; p = {p:.3f}", 0.5, p=p)

    return measure


def alike(first: str, second: str) -> Callable:
    """Neither beats the other in more than 65 % of the pairs."""

    def measure(group: Group, games: list[str]) -> Measured:
        scores = [group.values(name, games, SCORE) for name in (first, second)]
        return Measured(*told_probability(first, second, games, scores), 0.35, 0.65)

    return measure


def more(name: str, first: str, second: str, percent: bool = False) -> Callable:
    """A measure is higher in `first` than in `second`: mean difference over games."""

    def measure(group: Group, games: list[str]) -> Measured:
        values = [group.values(variant, games, name) for variant in (first, second)]
        found = difference(*values)
        shown, unit, scale = (found.in_percent, " points", 100) if percent else (found, "", 1)
        by_game = [scale * (x.mean() - y.mean()) for x, y in zip(*values, strict=True)]
        ours = f"{first} - {second} = {shown}{unit}{per_game(games, by_game)}"
        return Measured(found, ours, above=0.0)

    return measure


def about(variant: str, name: str, share: float, give: float = 0.1) -> Callable:
    """A share is within 10 points of the paper's."""

    def measure(group: Group, games: list[str]) -> Measured:
        values = group.values(variant, games, name)
        found = mean_over_games(values)
        by_game = [100 * of.mean() for of in values]
        ours = f"{found.in_percent} %{per_game(games, by_game)}"
        return Measured(found, ours, share - give, share + give)

    return measure


def more_than_double(first: str, second: str) -> Callable:
    """The median human-normalised score of `first` over that of `second`; beside it, per game.

    Of two games the median is their mean, and a game of few points to the human score, such as
    Breakout, decides it.
    """

    def measure(group: Group, games: list[str]) -> Measured:
        scores = [group.human_normalised(name, games) for name in (first, second)]
        found = ratio_of_medians(*scores)
        each = [
            f"{name} {estimate(of, median).format()}"
            for name, of in zip((first, second), scores, strict=True)
        ]
        for game, ours, theirs in zip(games, *scores, strict=True):
            each += [f"{game} {ours.mean():.2f} and {theirs.mean():.2f}"] * (len(games) > 1)
        ratio, empty = f"ratio {found.format()}", ""
        if math.isnan(found.value):
            ratio = "no ratio"
            empty = f"the median of {second} is not above 0: takes runs of it above random play"
        told_all = f"{ratio}: {', '.join(each)}"
        return Measured(found, told_all, above=2.0, empty=empty)

    return measure


PREDICTED = ("tanh", "sigmoid", "relu")


def has_prediction(run: Recorded) -> bool:
    """Whether the paper predicts the deaths of its products, from those of two branches."""
    activation, _, kind = run.variant.partition("-")
    known = not any(math.isnan(at_the_end(run, tag)) for tag in (DEAD, *BRANCHES_DEAD))
    return activation in PREDICTED and kind.split("-")[0] == "hr" and known


def predicted_dead(activation: str, branches: tuple[float, float]) -> float:
    """Share of dead products from those of their branches, if these die independently.

    v1 Table 1: saturation is symmetric. tanh: both must be dead, p^2; ReLU: one is enough,
    2p - p^2; sigmoid: p, as one dead at 0 is enough and one dead at 1 is not. KeyError for another
    activation: of those the paper says nothing.
    """
    if activation not in PREDICTED:
        raise KeyError(activation)
    first, second = branches
    if activation == "relu":
        return first + second - first * second
    return (first + second) / 2 if activation == "sigmoid" else first * second


def predicted_share(run: Recorded) -> float:
    """`predicted_dead` of the branches of a run that `has_prediction`."""
    branches = tuple(at_the_end(run, name) for name in BRANCHES_DEAD)
    return predicted_dead(run.variant.split("-")[0], branches)


def gap_to_prediction(variant: str, above: float = -0.05, below: float = 0.05) -> Callable:
    """The share of dead products less what independent branches would give: in (above, below).

    Mean over games; where it lies within but the gap of a game does not, nothing is decided. Where
    hardly a branch dies both shares are about 0, whatever the branches do, and where nearly all do
    both are about 1: within 5 points of either nothing is decided.
    """

    def measure(group: Group, games: list[str]) -> Measured:
        dead = group.values(variant, games, DEAD)
        expected = group.values(variant, games, predicted_share)
        gaps = [x - y for x, y in zip(dead, expected, strict=True)]
        found = mean_over_games(gaps)
        shares = [mean_over_games(of).value for of in (dead, expected)]
        empty = ""
        undecided = "neuron died, so nothing is told apart: takes runs in which"
        if max(shares) < 0.05:
            empty = f"hardly a {undecided} at least 5 % do"
        elif min(shares) > 0.95:
            empty = f"nearly every {undecided} at most 95 % do"
        elif above < found.value < below and not all(above < gap.mean() < below for gap in gaps):
            empty = "the games disagree: takes more games"
        each = [
            f"{game} {100 * x.mean():.1f} and {100 * y.mean():.1f} %"
            for game, x, y in zip(games, dead, expected, strict=True)
        ]
        ours = f"measured - predicted = {found.in_percent} points: {', '.join(each)}"
        return Measured(found, ours, above, below, empty=empty)

    return measure


def dead_part(run: Recorded) -> float:
    """Share of the magnitude that the head, of Q-values or value, gets from dead neurons."""
    head = "value_contribution" if run.algorithm == "ppo" else "q_contribution"
    dead, live = (at_the_end(run, f"{head}/{name}_abs") for name in ("dead", "live"))
    return dead / max(dead + live, 1e-12)


def hidden_bias(variant: str) -> Callable:
    """What dead neurons bring into the Q-values is at least a tenth of what all do.

    Not decided where fewer than one neuron in a hundred is dead.
    """

    def measure(group: Group, games: list[str]) -> Measured:
        found = mean_over_games(group.values(variant, games, dead_part))
        dead = mean_over_games(group.values(variant, games, DEAD)).value
        ours = f"{found.in_percent} % of the magnitude, from {100 * dead:.1f} % of the neurons"
        empty = "hardly a neuron died: takes runs in which at least 1 % do" if dead < 0.01 else ""
        return Measured(found, ours, above=0.1, empty=empty)

    return measure


def _scores(text: str, source: str, algorithm: str, first: str, second: str) -> Claim:
    """That `first` scores higher than `second`."""
    return Claim(text, source, "", algorithm, (first, second), better(first, second))


def _score_claims() -> list[Claim]:
    found = []
    for algorithm, source in (("dqn", "v1 Fig. 5"), ("ppo", "v1 Fig. 8"), ("pqn", "v4 Fig. 1")):
        for name, other in (("ReLU", "relu"), ("Tanh", "tanh")):
            text = f"Tanh (HR) scores higher than {name}"
            of = f"{source}, inferred" if (algorithm, other) == ("pqn", "relu") else source
            found.append(_scores(text, of, algorithm, "tanh-hr", other))
    for algorithm, source in (("dqn", "v1 Fig. 14"), ("pqn", "v4 Fig. 1")):
        text = "ReLU (HR) scores lower than ReLU"
        found.append(_scores(text, source, algorithm, "relu", "relu-hr"))
    for text, source, first, second in (
        ("ReLU scores higher than Tanh", "v1 Fig. 5", "relu", "tanh"),
        ("ReLU scores higher than Sigmoid", "v1 Fig. 5", "relu", "sigmoid"),
        ("The sum of branches is worse than their product", "v1 Fig. 7", "tanh-hr", "tanh-sum"),
        ("SELU is worse than Tanh (HR)", "v1 Fig. 7", "tanh-hr", "selu"),
        (
            "Tanh with z twice as wide is worse than Tanh (HR)",
            "v1 Fig. 5",
            "tanh-hr",
            "tanh-wide",
        ),
        (
            "Tanh (HR) scores higher than Tanh where both have LayerNorm",
            "asked by reviewers",
            "tanh-hr-ln",
            "tanh-ln",
        ),
    ):
        found.append(_scores(text, source, "dqn", first, second))
    text = "Tanh (HR) more than doubles the median human-normalised score of Tanh"
    names = ("tanh-hr", "tanh")
    doubles = more_than_double(*names)
    named = (text, "v4 Fig. 1", "> 2", "pqn", names, doubles)
    found.append(Claim(*named, in_table=True, seeds=BOOTSTRAP_SEEDS))
    text = "The product of three scores like that of two (wins 35 to 65 % of the pairs)"
    names = ("tanh-3hr", "tanh-hr")
    named = (text, "v1 Fig. 7", "", "dqn", names, alike(*names))
    return [*found, Claim(*named, seeds=BOOTSTRAP_SEEDS)]


# What the paper measured in DQN alone is asked of PQN, too.
OF_DQN = (("dqn", ""), ("pqn", ", of DQN"))


def _measure_claims() -> list[Claim]:
    found = []

    def higher(text, source, algorithm, measure, first, second):
        of = more(measure, first, second, percent=measure == DEAD)
        found.append(Claim(text, source, "", algorithm, (first, second), of, (measure,)))

    def rank(source, algorithm, first, second):
        text = f"The effective rank of {first} is higher than that of {second}"
        higher(text, source, algorithm, RANK, first, second)

    for algorithm, there in OF_DQN:
        for variant, share in (("relu", 0.6), ("tanh", 0.4), ("sigmoid", 0.4)):
            text = f"Dead neurons in z of {variant}: within 10 points of the paper's share"
            named = (text, f"v1 Fig. 6a{there}", f"about {share:.0%}", algorithm, (variant,))
            found.append(Claim(*named, about(variant, DEAD, share), (DEAD,)))
        for other in ("tanh", "relu", "sigmoid"):
            text = f"Tanh (HR) has fewer dead neurons than {other}"
            higher(text, f"v1 Fig. 6a{there}", algorithm, DEAD, other, "tanh-hr")
        for first, second in (
            *(("tanh-hr", "tanh"), ("tanh", "relu")),
            *(("sigmoid", "relu"), ("tanh-hr", "sigmoid")),
        ):
            rank(f"v1 Fig. 6b{there}", algorithm, first, second)
    for other in ("tanh", "relu"):
        rank("v1 Fig. 8", "ppo", "tanh-hr", other)
    for algorithm, source in (("dqn", "v1 Fig. 14"), ("pqn", "v4 Fig. 1, inferred")):
        text = "ReLU (HR) has a lower rank than ReLU"
        higher(text, source, algorithm, RANK, "relu", "relu-hr")
        text = "ReLU (HR) has more dead neurons than ReLU"
        higher(text, source, algorithm, DEAD, "relu-hr", "relu")
    dying = (DEAD, *BRANCHES_DEAD)
    for algorithm in ("dqn", "ppo", "pqn"):
        for variant, form in (("tanh-hr", "p^2"), ("sigmoid-hr", "p"), ("relu-hr", "2p - p^2")):
            text = f"Products of {variant} die as independent branches would, within 5 points: "
            of = gap_to_prediction(variant)
            found.append(Claim(text + form, "v1 Table 1", form, algorithm, (variant,), of, dying))
    bias = tuple(f"q_contribution/{name}_abs" for name in ("dead", "live"))
    for algorithm, there in OF_DQN:
        text = (
            "Fewer products of Tanh (HR) are dead than of independent branches, as if one branch "
            "made up for the other"
        )
        of = gap_to_prediction("tanh-hr", -math.inf, 0.0)
        named = (text, f"ours, after v1 Fig. 10{there}", "", algorithm, ("tanh-hr",))
        found.append(Claim(*named, of, dying))
        text = (
            "In Seaquest dead tanh neurons are a hidden bias: over a tenth (our bound) of the "
            "magnitude of the Q-values' parts"
        )
        named = (text, f"v4 Fig. 4{there}", "substantial", algorithm, ("tanh",))
        needs = (DEAD, *bias)
        found.append(Claim(*named, hidden_bias("tanh"), needs, only=("Seaquest",)))
    return found


CLAIMS = (*_score_claims(), *_measure_claims())
