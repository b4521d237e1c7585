"""What needs no emulator: fitting a function with a product of branches, and the paper's theory.

    y = 10 sin 7x + 15 sin 10x + 5 cos 5x          (v1 Fig. 2 and 12)

Trains all seeds of an architecture at once, on the CPU, and writes the figure and the table of
fits, the table of predicted against measured theory (theory.py) and TensorBoard curves. The paper
does not say on which range, with which optimizer or for how long it trained, so `--sweep` trains on
a grid of these and reports for each claim in how many settings it holds.
"""

import dataclasses
import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hadamard import INITS
from lab.common.cli import (
    UsageError,
    above,
    at_least,
    between,
    check_folder,
    flag,
    launch,
    one_of,
    say,
)
from lab.common.device import require_memory
from lab.common.drawing import own_style
from lab.common.files import check_targets, replace_files, write_json
from lab.common.provenance import record_provenance
from lab.common.tables import format_table
from lab.regression.claims import CLAIMS, Cell, Setting, count_claims, judge_cell
from lab.regression.fitting import ARCHITECTURES, DIVERGED, POINTS, tabulate_fits, target, train
from lab.regression.theory import check_all


@dataclass
class Args:
    """Fit a function with products of branches, and check the paper's theory."""

    seeds: int = 10
    """networks per architecture, at least 2: from seed, seed + 1, ..."""
    seed: int = 1
    """of the first network, and of the noise"""
    x_min: float = -1.0
    """the function is fitted from here"""
    x_max: float = 1.0
    """to here"""
    samples: int = 128
    """evenly spaced points to train on, all in every step"""
    noise: float = 0.0
    """standard deviation of Gaussian noise on the training targets (y itself has about 13)"""
    optimizer: str = "adam"
    """adam, or sgd with momentum 0.9"""
    learning_rate: float = 1e-2
    """of the optimizer, constant"""
    steps: int = 1000
    """gradient steps"""
    init: str = "torch"
    """of every layer: torch, orthogonal, he_normal, xavier_normal or gated"""
    sweep: bool = False
    """train on the grid of ranges, optimizers, learning rates and steps instead"""
    output_dir: str = "regression_demo"
    """folder for pictures, tables and TensorBoard; what an earlier call wrote is replaced"""


# The grid of --sweep. The default setting is in it.
RANGES = {"[0, 1]": (0.0, 1.0), "[-1, 1]": (-1.0, 1.0), "[-pi, pi]": (-math.pi, math.pi)}
LEARNING_RATES = {"adam": (1e-3, 1e-2, 1e-1), "sgd": (1e-4, 1e-3, 1e-2)}
STEPS = [250, 500, 1000, 2000]
SWEPT = ("x_min", "x_max", "optimizer", "learning_rate", "steps")


def train_grid(args: Args) -> dict[Setting, Cell]:
    """Train every architecture on the grid: what was measured in each setting."""
    compared = (claim for claim in CLAIMS if claim.measure == "rank")
    ranked = {name for claim in compared for name in (claim.first, claim.second)}
    rates = [(optimizer, rate) for optimizer, of in LEARNING_RATES.items() for rate in of]
    runs = list(itertools.product(RANGES, rates))
    cells, start = {}, time.monotonic()
    for done, (x_range, (optimizer, rate)) in enumerate(runs, start=1):
        flags = {"optimizer": optimizer, "learning_rate": rate}
        flags["x_min"], flags["x_max"] = RANGES[x_range]
        run_args = dataclasses.replace(args, **flags)
        for name, architecture in ARCHITECTURES.items():
            fits = train(architecture, run_args, STEPS, ranked=name in ranked)
            for at, steps in enumerate(STEPS):
                setting = Setting(x_range, optimizer, rate, steps)
                cells.setdefault(setting, {})[name] = fits.cell(at)
        left = (time.monotonic() - start) / done * (len(runs) - done)
        say(f"{done}/{len(runs)}  {optimizer} {rate:g} on {x_range}  ETA {left:.0f} s")
    return cells


def check(args: Args):
    """Raise UsageError for a bad flag, before anything is touched."""
    between(args, 2, 1000, "seeds")
    between(args, 0, 1_000_000_000, "seed")
    between(args, -1000, 1000, "x_min", "x_max")
    between(args, 2, 1_000_000, "samples")
    at_least(args, 0, "noise")
    above(args, 0, "learning_rate")
    between(args, 1, 10_000_000, "steps")
    if args.x_min >= args.x_max:
        raise UsageError(f"--x-min {args.x_min} must be below --x-max {args.x_max}")
    one_of(args, LEARNING_RATES, "optimizer")
    one_of(args, INITS, "init")
    check_folder(args, "output_dir")
    # Twelve tensors of 200 units, three layers deep, per sample and network.
    each = args.seeds * 12 * 200 * 4
    require_memory(f"--samples {args.samples}", args.samples, each, torch.device("cpu"))
    # The losses of every step, of all architectures.
    each = 4 * args.seeds * len(ARCHITECTURES)
    require_memory(f"--steps {args.steps}", args.steps, each, torch.device("cpu"))
    for field in dataclasses.fields(args):
        if args.sweep and field.name in SWEPT and getattr(args, field.name) != field.default:
            raise UsageError(f"--sweep sets {flag(field.name)} itself: leave it out")


def run_demo(args: Args) -> tuple[dict, dict, dict]:
    """Train all architectures in one setting and check the theory: figures, tables, fits."""
    from lab.regression.figures import draw_dying, draw_fits

    theory = [line._asdict() | {"holds": line.holds} for line in check_all()]
    say(f"{format_table(theory)}\n")
    steps = np.unique(np.geomspace(1, args.steps, 12).round().astype(int)).tolist()
    fits = {}
    for name, architecture in ARCHITECTURES.items():
        fits[name] = train(architecture, args, steps)
        say(f"{architecture.title}: {args.seeds} seeds trained")
    cell = {name: own.cell(-1) for name, own in fits.items()}
    tables = {
        "theory": theory,
        "fits": tabulate_fits(cell),
        "claims": [judge_cell(claim, cell).row(claim) for claim in CLAIMS],
    }
    return {"fits": draw_fits(args, fits), "dying": draw_dying()}, tables, fits


def run_sweep(args: Args) -> tuple[dict, dict, dict]:
    """Train all architectures on the grid: figures, tables, and no fits to show."""
    from lab.regression.figures import draw_sweep

    cells = train_grid(args)
    points = {name: torch.linspace(*ends, POINTS) for name, ends in RANGES.items()}
    variances = {name: target(x).var().item() for name, x in points.items()}
    rows = []
    for setting, cell in cells.items():
        rows += [setting._asdict() | row for row in tabulate_fits(cell)]
    tables = {"sweep_claims": count_claims(cells, variances), "sweep_fits": rows}
    return {"sweep": draw_sweep(cells)}, tables, {}


OUTPUTS = {
    "demo": ("fits.png", "dying.png", "fits.csv", "claims.csv", "theory.csv", "demo.json"),
    "sweep": ("sweep.png", "sweep_fits.csv", "sweep_claims.csv", "sweep.json"),
}


@own_style()
def main(args: Args) -> int:
    """Return 0, or 1 if a line of the theory does not hold."""
    from lab.regression.outputs import write_curves, write_summary  # matplotlib, in its own style

    check(args)
    name, out = "sweep" if args.sweep else "demo", Path(args.output_dir)
    earlier = any((out / f"{kind}.json").exists() for kind in OUTPUTS)
    if out.is_dir() and any(out.iterdir()) and not earlier:
        raise UsageError(
            f"--output-dir {out} is not empty and holds no earlier result: name a new folder"
        )
    check_targets(out, (*OUTPUTS[name], "tensorboard/"), "--output-dir")
    config = record_provenance(args)
    start = time.monotonic()
    if args.sweep:
        figures, tables, fits = run_sweep(args)
        for swept in SWEPT:
            del config["flags"][swept]
        config["grid"] = {"ranges": RANGES, "learning_rates": LEARNING_RATES, "steps": STEPS}
    else:
        figures, tables, fits = run_demo(args)
    seconds = time.monotonic() - start
    config["seconds"] = round(seconds, 1)
    with replace_files(out, "--output-dir") as folder:
        write_summary(folder, name, figures, tables)
        write_curves(folder, fits)
        write_json(folder / f"{name}.json", config)
    for table in ("fits", "claims", "sweep_claims"):
        if table in tables:
            say(f"\n{format_table(tables[table])}")
    if any((own.mse[-1] == DIVERGED).any() for own in fits.values()):
        say(f"\nsome networks have diverged: they count with an error of {DIVERGED:,.0f}, rank 0")
    say(f"\n{seconds:.0f} s; in {args.output_dir}: {', '.join(OUTPUTS[name])}, tensorboard/")
    if "theory" not in tables:
        return 0
    return report_theory(tables["theory"])


def report_theory(rows: list[dict]) -> int:
    """Say whether every prediction held; return the exit status, 1 if one did not."""
    failed = [
        f"{row['part']}, {row['case']}: {row['quantity']}" for row in rows if not row["holds"]
    ]
    if failed:
        say(f"{len(failed)} of {len(rows)} predictions did not hold: {'; '.join(failed)}")
        return 1
    say(f"all {len(rows)} predictions of the theory held")
    return 0


if __name__ == "__main__":
    launch(main, Args)
