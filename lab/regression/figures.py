"""The figures of regression_demo.py: fits, a grid of settings, and the theory of dying products."""

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from lab.common.stats import mean_interval
from lab.regression.claims import CLAIMS, Cell, Setting, geometric_mean, judge_cell
from lab.regression.fitting import ARCHITECTURES, POINTS, Fits, target
from lab.regression.theory import PAPER_RATES, dead_probability, dead_share, layer_name

COLUMNS = 4  # panels in a row
ROW_HEIGHT = 10 / 3  # inches


def draw_fits(args, all_fits: dict[str, Fits]) -> Figure:
    """Draw the fits of the first seed, and losses and effective ranks over training.

    `args` are the flags of regression_demo.py, all_fits: architecture -> its fits.
    """
    num_rows = math.ceil(len(all_fits) / COLUMNS) + 1
    figure = Figure(figsize=(15, ROW_HEIGHT * num_rows), layout="constrained")
    grid = figure.add_gridspec(num_rows, COLUMNS)
    x = torch.linspace(args.x_min, args.x_max, POINTS)
    losses, ranks = figure.add_subplot(grid[-1, :2]), figure.add_subplot(grid[-1, 2:])
    for i, (name, fits) in enumerate(all_fits.items()):
        axes = figure.add_subplot(grid[i // COLUMNS, i % COLUMNS])
        axes.plot(x, fits.y[0], color=f"C{i}", lw=3, alpha=0.6, label=f"fit, seed {args.seed}")
        axes.plot(x, target(x), color="black", lw=0.8, label="y")
        error, title = geometric_mean(fits.cell(-1)["mse"]), ARCHITECTURES[name].title
        axes.set_title(f"{title}: error {error:.2g}", fontsize=10)
        axes.legend(fontsize=7, loc="upper left")
        losses.plot(fits.mean_losses(), color=f"C{i}", label=title, lw=1)
        mean, _, high = mean_interval(fits.rank.double().numpy().T)
        ranks.errorbar(fits.steps, mean, high - mean, color=f"C{i}", label=title)
    seeds = f"{args.seeds} seeds"
    losses.set(yscale="log", title=f"training loss, geometric mean of {seeds}", xlabel="step")
    ranks.set(title=f"effective rank of the last hidden layer, {seeds}, 95 %", xlabel="step")
    ranks.set(xscale="log")
    for axes in (losses, ranks):
        axes.legend(fontsize=8, ncols=2)
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"y = 10 sin 7x + 15 sin 10x + 5 cos 5x on [{args.x_min:g}, {args.x_max:g}]: {args.steps} "
        f"steps of {args.optimizer}, learning rate {args.learning_rate:g}, {args.samples} samples, "
        f"noise {args.noise:g}, init {args.init}; "
        f"error: mean squared, geometric mean of {seeds}"
    )
    return figure


def draw_sweep(cells: dict[Setting, Cell]) -> Figure:
    """Draw a heat map per claim: optimizers and learning rates down, ranges and steps across.

    Blue where the claim holds, red where it does not, by its margin; a dot where the 95 % interval
    leaves it open.
    """
    rows = list(dict.fromkeys((s.optimizer, s.learning_rate) for s in cells))
    columns = list(dict.fromkeys((s.x_range, s.steps) for s in cells))
    num_rows = math.ceil((len(CLAIMS) + 1) / COLUMNS)  # the last panel is the legend
    figure = Figure(figsize=(15, ROW_HEIGHT * num_rows), layout="constrained")
    *panels, last = figure.subplots(num_rows, COLUMNS).flat
    images = {}
    for i, (axes, claim) in enumerate(zip(panels, CLAIMS, strict=False)):
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
        axes.tick_params(labelbottom=i >= COLUMNS * (num_rows - 1), labelleft=i % COLUMNS == 0)
    for axes in panels[len(CLAIMS) :]:
        axes.set_axis_off()
    labels = {"mse": "margin, decades of error", "rank": "margin, effective rank"}
    for at, (measure, image) in enumerate(images.items()):
        inset = last.inset_axes([0.15 + 0.5 * at, 0, 0.08, 1])
        figure.colorbar(image, cax=inset, label=labels[measure])
    last.set_title("blue: holds, red: does not,\ndot: open at 95 %", fontsize=9.5)
    last.set_axis_off()
    return figure


def draw_dying() -> Figure:
    """Draw the probability of a dead product: formulas as lines, drawn units as points.

    After v1 Fig. 13. Above over p with independent branches, below over their correlation at the
    paper's rates.
    """
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    panels = figure.subplots(2, len(PAPER_RATES), sharey=True)
    x = np.linspace(0, 1, 65)
    generator = torch.Generator().manual_seed(0)
    for (activation, rate), (above, below) in zip(PAPER_RATES.items(), panels.T, strict=True):
        for axes, p, rho, label in (
            (above, x, 0 * x, "p, independent branches"),
            (below, 0 * x + rate, x, f"correlation of the branches' deaths, p = {rate}"),
        ):
            for branches, color in ((1, "0.4"), (2, "tab:blue"), (3, "tab:orange")):
                cases = [(activation, p[i], branches, rho[i]) for i in range(len(x))]
                axes.plot(x, [dead_probability(*case) for case in cases], color=color)
                shares = [dead_share(*case, 10_000, generator) for case in cases[::8]]
                name = layer_name(activation, branches)
                axes.plot(x[::8], shares, "o", ms=4, color=color, label=name)
            axes.set(xlabel=label, ylabel="share of dead units", ylim=(-0.03, 1.03))
            axes.legend(fontsize=8)
            axes.grid(alpha=0.3)
    return figure
