"""Fitting a function with small networks, all seeds of one at once.

y = 10 sin 7x + 15 sin 10x + 5 cos 5x          (v1 Fig. 2 and 12)
"""

import copy
import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from hadamard import HadamardLinear, init_parameters
from lab.common.stats import mean_interval
from lab.regression.claims import Cell
from metrics import effective_rank


class Architecture(NamedTuple):
    """`depth` hidden layers of `width` units each, and a linear output."""

    title: str
    activation: str
    width: int
    depth: int = 1
    branches: int = 1
    combine: str = "product"


ARCHITECTURES = {
    "relu": Architecture("ReLU", "relu", 200),
    "tanh": Architecture("Tanh", "tanh", 200),
    "tanh-hr": Architecture("Tanh (HR)", "tanh", 100, branches=2),
    "relu-hr": Architecture("ReLU (HR)", "relu", 100, branches=2),
    "tanh-sum": Architecture("Tanh (+HR)", "tanh", 100, branches=2, combine="sum"),
    "relu-deep": Architecture("ReLU, 3 x 200", "relu", 200, depth=3),
    "tanh-deep": Architecture("Tanh, 3 x 200", "tanh", 200, depth=3),
    "tanh-hr-deep": Architecture("Tanh (HR), 3 x 100", "tanh", 100, depth=3, branches=2),
}

# Points on which fits and ranks are measured: evenly spaced over the range, not those trained on,
# and more than the widest layer has units, which a rank needs.
POINTS = 257
# A worse fit counts as this one (y has a variance of about 170), and so does NaN: it has diverged.
DIVERGED = 1e4


def target(x: Tensor) -> Tensor:
    """Return the function to fit, v1 Fig. 2."""
    return 10 * torch.sin(7 * x) + 15 * torch.sin(10 * x) + 5 * torch.cos(5 * x)


class Network(nn.Module):
    """A network from x (batch, 1) to y (batch, 1); z (batch, width) is its last hidden layer."""

    def __init__(self, architecture: Architecture, init: str):
        super().__init__()
        _, activation, width, depth, branches, combine = architecture
        sizes = [1] + [width] * depth
        self.hidden = nn.Sequential(
            *(
                HadamardLinear(fan_in, fan_out, activation, branches, combine)
                for fan_in, fan_out in itertools.pairwise(sizes)
            )
        )
        self.head = nn.Linear(width, 1)
        for layer in self.hidden:
            layer.reset_parameters(init)
        init_parameters(self.head.weight, self.head.bias, init, gain=1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (batch, 1) and z (batch, width)."""
        z = self.hidden(x)
        return self.head(z), z


class Fits(NamedTuple):
    """All seeds of one architecture, at each of the `steps` at which they were measured."""

    steps: list[int]
    mse: Tensor  # (steps, seeds), on POINTS points of the noiseless function, at most DIVERGED
    rank: Tensor  # (steps, seeds), effective rank of z there: 0 if diverged, NaN if not measured
    losses: Tensor  # (gradient steps, seeds), on the training samples before each step
    y: Tensor  # (seeds, POINTS), the fits when last measured

    def cell(self, at: int) -> dict[str, np.ndarray]:
        """Return what a claim compares, after steps[at]: errors and ranks, (seeds,) each."""
        return {"mse": self.mse[at].double().numpy(), "rank": self.rank[at].double().numpy()}

    def mean_losses(self) -> Tensor:
        """Return the geometric mean over the seeds of the training losses, (gradient steps,)."""
        return self.losses.log().mean(1).exp()


def train(architecture: Architecture, args, steps: list[int], ranked: bool = True) -> Fits:
    """Train the seeds of an architecture at once up to the last of `steps`; measure at each.

    `args` are the flags of regression_demo.py.
    The networks are stacked and mapped over (torch.func); both optimizers work element by element,
    so each network takes the steps that it would take alone. Without `ranked` no rank is measured.
    """
    x = torch.linspace(args.x_min, args.x_max, args.samples).unsqueeze(1)
    y = target(x)
    y += args.noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(args.seed))
    points = torch.linspace(args.x_min, args.x_max, POINTS).unsqueeze(1)

    networks = []
    for seed in range(args.seed, args.seed + args.seeds):
        torch.manual_seed(seed)
        networks.append(Network(architecture, args.init))
    parameters, _ = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def forward(inputs):
        return vmap(lambda own: functional_call(skeleton, own, (inputs,)))(parameters)

    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters.values(), args.learning_rate, fused=True)
    else:
        optimizer = torch.optim.SGD(parameters.values(), args.learning_rate, 0.9, fused=True)

    shape = (len(steps), args.seeds)
    mse, rank = torch.full(shape, DIVERGED), torch.full(shape, 0.0 if ranked else torch.nan)
    losses = torch.full((steps[-1], args.seeds), torch.nan)
    fits = torch.full((args.seeds, POINTS), torch.nan)
    for step in range(steps[-1] + 1):
        if step in steps:
            with torch.no_grad():
                fits, z = forward(points)
            at = steps.index(step)
            error = (fits - target(points)).square().mean((1, 2))
            mse[at] = error.nan_to_num(DIVERGED).clamp(max=DIVERGED)
            if ranked:
                ranks = [effective_rank(of) if of.isfinite().all() else 0 for of in z]
                rank[at] = torch.tensor(ranks)
            fits = fits.squeeze(2)
        if step == steps[-1]:
            break
        loss = (forward(x)[0] - y).square().mean((1, 2))
        losses[step] = loss.detach()
        if step % 50 == 0 and not loss.isfinite().any():
            break  # every seed has diverged
        optimizer.zero_grad()
        loss.sum().backward()  # of networks that share nothing: each gets its own gradient
        optimizer.step()
    return Fits(steps, mse, rank, losses, fits)


def tabulate_fits(cell: Cell) -> list[dict]:
    """Return a row per architecture: means over the seeds and their intervals (Student's t).

    Those of the error are taken of its logarithm, so that `mse` is a geometric mean.
    """
    rows = []
    for name, architecture in ARCHITECTURES.items():
        mse, rank = cell[name]["mse"], cell[name]["rank"]
        count = sum(p.numel() for p in Network(architecture, "torch").parameters())
        row = {"architecture": architecture.title, "parameters": count}
        row["mse"], row["mse_low"], row["mse_high"] = np.exp(mean_interval(np.log(mse)))
        row["rank"], row["rank_low"], row["rank_high"] = mean_interval(rank)
        rows.append(row | {"mse_arithmetic": mse.mean(), "units": architecture.width})
    return rows
