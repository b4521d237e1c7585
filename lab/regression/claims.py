"""The paper's claims about function fitting, judged: in one setting, and over a grid of them.

A cell is what was measured in one setting, over seeds: architecture -> measure -> array (seeds,),
where the measures are "mse" (mean squared error) and "rank" (effective rank of the last hidden
layer). Nothing here trains; regression_demo.py does.
"""

import math
from typing import NamedTuple

import numpy as np

from lab.common.stats import difference

Cell = dict[str, dict[str, np.ndarray]]


class Claim(NamedTuple):
    """`first` beats `second` in `measure`, or with `like` their errors differ less than twofold."""

    text: str
    source: str
    first: str
    second: str
    measure: str = "mse"
    like: bool = False


CLAIMS = (
    Claim("Tanh (HR) fits better than Tanh", "v1 Fig. 2", "tanh-hr", "tanh"),
    Claim("Tanh (HR) fits better than ReLU", "v1 Fig. 2", "tanh-hr", "relu"),
    Claim("Tanh (HR) has a higher rank than Tanh", "v1 4.1", "tanh-hr", "tanh", "rank"),
    Claim("Tanh (HR) has a higher rank than ReLU", "v1 4.1", "tanh-hr", "relu", "rank"),
    Claim("Tanh has a higher rank than ReLU", "v1 Fig. 12a", "tanh", "relu", "rank"),
    Claim("Tanh (HR) fits better than Tanh, 3 x 200", "v1 Fig. 12b", "tanh-hr", "tanh-deep"),
    Claim("Tanh (HR) fits better than ReLU, 3 x 200", "v1 Fig. 12b", "tanh-hr", "relu-deep"),
    Claim("ReLU fits better than Tanh if both 3 x 200", "v1 Fig. 12b", "relu-deep", "tanh-deep"),
    Claim("Tanh (HR) fits like its 3 x 100", "v1 C.1", "tanh-hr", "tanh-hr-deep", like=True),
    # Said of reinforcement learning alone; here as a control.
    Claim("Tanh (HR) fits better than Tanh (+HR)", "v1 Fig. 7", "tanh-hr", "tanh-sum"),
    Claim("ReLU fits better than ReLU (HR)", "v1 C.3", "relu", "relu-hr"),
)


class Verdict(NamedTuple):
    """By how much a claim holds, with the half width of its 95 % interval.

    In decades of the mean squared error, or in units of rank; below 0 the claim fails.
    """

    margin: float
    half_width: float

    @property
    def holds(self) -> bool:
        """Return whether the margin is on the claim's side."""
        return self.margin > 0

    @property
    def clear(self) -> bool:
        """Return whether the interval excludes 0."""
        return abs(self.margin) > self.half_width

    def row(self, claim: Claim) -> dict:
        """Return the line of the table of claims."""
        return {
            "claim": claim.text,
            "source": claim.source,
            "margin": self.margin,
            "low": self.margin - self.half_width,
            # Two errors cannot be more alike than equal.
            "high": min(self.margin + self.half_width, math.log10(2) if claim.like else math.inf),
            "unit": "rank" if claim.measure == "rank" else "decades of error",
            "verdict": ("holds" if self.holds else "fails") if self.clear else "open",
        }


def judge(claim: Claim, first: np.ndarray, second: np.ndarray) -> Verdict:
    """Judge a claim on two arrays (seeds,) of its measure: difference of means, Welch's interval.

    Errors are compared by their decadic logarithms; `like` asks by how much their difference is
    below that of a factor of 2.
    """
    if claim.measure == "mse":
        first, second = -np.log10(first), -np.log10(second)
    gap = difference([first], [second])
    margin = math.log10(2) - abs(gap.value) if claim.like else gap.value
    return Verdict(margin, gap.high - gap.value)


class Setting(NamedTuple):
    """A cell of the grid."""

    x_range: str
    optimizer: str
    learning_rate: float
    steps: int


def geometric_mean(values: np.ndarray) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(np.log(values).mean())


def judge_cell(claim: Claim, cell: Cell) -> Verdict:
    """Judge a claim in one setting."""
    return judge(claim, cell[claim.first][claim.measure], cell[claim.second][claim.measure])


def judge_tuned(claim: Claim, cells: dict[Setting, Cell]) -> list[Verdict]:
    """Judge a claim where each architecture has the learning rate that gives it the lowest error.

    Return one verdict for each range, optimizer and number of steps.
    """
    groups = {}
    for setting, cell in cells.items():
        groups.setdefault(setting._replace(learning_rate=None), []).append(cell)

    def tuned(name, group):
        return min(group, key=lambda cell: geometric_mean(cell[name]["mse"]))[name][claim.measure]

    return [
        judge(claim, tuned(claim.first, group), tuned(claim.second, group))
        for group in groups.values()
    ]


def count_claims(cells: dict[Setting, Cell], variances: dict[str, float]) -> list[dict]:
    """Return a row per claim: in how many settings it holds, and how clearly.

    `holds_there` counts only settings in which one of the two explains 90 % of the variance of the
    function (`variances`: that of each x_range), `holds_tuned` those of `judge_tuned`.
    """
    rows = []
    for claim in CLAIMS:
        verdicts = {setting: judge_cell(claim, cell) for setting, cell in cells.items()}
        fit = []
        for setting, verdict in verdicts.items():
            errors = (cells[setting][name]["mse"] for name in (claim.first, claim.second))
            if min(map(geometric_mean, errors)) < 0.1 * variances[setting.x_range]:
                fit.append(verdict)
        tuned = judge_tuned(claim, cells)
        rows.append(
            {
                "claim": claim.text,
                "source": claim.source,
                "settings": len(verdicts),
                "holds": sum(v.holds for v in verdicts.values()),
                "clearly": sum(v.holds and v.clear for v in verdicts.values()),
                "clearly_not": sum(not v.holds and v.clear for v in verdicts.values()),
                "where_one_fits": len(fit),
                "holds_there": sum(v.holds for v in fit),
                "tuned": len(tuned),
                "holds_tuned": sum(v.holds for v in tuned),
            }
        )
    return rows
