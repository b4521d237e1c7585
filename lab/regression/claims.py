"""The paper's claims about function fitting, judged: in one setting, and over a grid of them.

A cell is what was measured in one setting, over seeds: architecture -> measure -> array (seeds,),
where the measures are "mse" (mean squared error) and "rank" (effective rank of the last hidden
layer). Nothing here trains; regression_demo.py does.
"""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

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
        return self.margin > 0

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.margin) > self.half_width

    def row(self, claim: Claim) -> dict:
        """A line of the table of claims."""
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
    """The claim, of two arrays (seeds,) of its measure: difference of means, Welch's interval.

    Errors are compared by their decadic logarithms; `like` asks by how much their difference is
    below that of a factor of 2.
    """
    if claim.measure == "mse":
        first, second = -np.log10(first), -np.log10(second)
    found = difference([first], [second])
    margin = math.log10(2) - abs(found.value) if claim.like else found.value
    return Verdict(margin, found.high - found.value)


class Setting(NamedTuple):
    """A cell of the grid."""

    x_range: str
    optimizer: str
    learning_rate: float
    steps: int


def geometric_mean(values: np.ndarray) -> float:
    return math.exp(np.log(values).mean())


def judge_cell(claim: Claim, cell: Cell) -> Verdict:
    """The claim in one setting."""
    return judge(claim, cell[claim.first][claim.measure], cell[claim.second][claim.measure])


def judge_tuned(claim: Claim, cells: dict[Setting, Cell]) -> list[Verdict]:
    """The claim where each architecture has the learning rate at which its error is lowest.

    One verdict for each range, optimizer and number of steps.
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
    """A row per claim: in how many settings it holds, and how clearly.

    `holds_there` counts only settings in which one of the two explains 90 % of the variance of the
    function (`variances`: that of each x_range), `holds_tuned` those of `judge_tuned`.
    """
    rows = []
    for claim in CLAIMS:
        verdicts = {setting: judge_cell(claim, cell) for setting, cell in cells.items()}
        fit = [
            verdict
            for setting, verdict in verdicts.items()
            if min(
                geometric_mean(cells[setting][name]["mse"]) for name in (claim.first, claim.second)
            )
            < 0.1 * variances[setting.x_range]
        ]
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


def sweep_figure(cells: dict[Setting, Cell]) -> Figure:
    """A heat map per claim: optimizers and learning rates down, ranges and steps across.

    Blue where the claim holds, red where it does not, by its margin; a dot where the 95 % interval
    leaves it open.
    """
    rows = list(dict.fromkeys((s.optimizer, s.learning_rate) for s in cells))
    columns = list(dict.fromkeys((s.x_range, s.steps) for s in cells))
    figure = Figure(figsize=(15, 10), layout="constrained")
    *panels, last = figure.subplots(3, 4).flat
    images = {}
    for i, (axes, claim) in enumerate(zip(panels, CLAIMS, strict=True)):
        verdicts = {setting: judge_cell(claim, cell) for setting, cell in cells.items()}
        margins = np.full((len(rows), len(columns)), np.nan)
        for setting, verdict in verdicts.items():
            row = rows.index((setting.optimizer, setting.learning_rate))
            column = columns.index((setting.x_range, setting.steps))
            margins[row, column] = verdict.margin
            if not verdict.clear:
                axes.plot(column, row, ".", color="0.2", ms=4)
        scale = 10 if claim.measure == "rank" else 2
        images[claim.measure] = axes.imshow(margins, "RdBu", vmin=-scale, vmax=scale, aspect="auto")
        holds = sum(verdict.holds for verdict in verdicts.values())
        axes.set_title(f"{claim.text}\nholds in {holds} of {len(verdicts)}", fontsize=9.5)
        axes.set_yticks(range(len(rows)), [f"{name} {rate:g}" for name, rate in rows])
        labels = [f"{steps} steps, {x_range}" for x_range, steps in columns]
        axes.set_xticks(range(len(columns)), labels, rotation=90, fontsize=8)
        axes.tick_params(labelbottom=i >= 8, labelleft=i % 4 == 0)
    labels = {"mse": "margin, decades of error", "rank": "margin, effective rank"}
    for at, (measure, image) in enumerate(images.items()):
        inset = last.inset_axes([0.15 + 0.5 * at, 0, 0.08, 1])
        figure.colorbar(image, cax=inset, label=labels[measure])
    last.set_title("blue: holds, red: does not,\ndot: open at 95 %", fontsize=9.5)
    last.set_axis_off()
    return figure
