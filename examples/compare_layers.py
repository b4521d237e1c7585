"""Compare hidden layers in the agent of cartpole_ppo.py and in fitting a function.

python -m examples.compare_layers > layers.csv         # 25 minutes on one core of a CPU

All networks have two hidden layers. The score in CartPole is the mean return of the last 20 games,
that in fitting the mean squared error; docs/starting.md says what came out.
"""

import csv
import functools
import itertools
import sys
from dataclasses import dataclass

import torch
from torch import nn

from examples.cartpole_ppo import NUM_ENVS, NUM_STEPS, Agent, layer_init, train
from hadamard import HadamardLinear
from lab.common.cli import UsageError, at_least, launch
from lab.regression.fitting import POINTS, target

FIT_RATE = 1e-2


def plain(n_in: int, n_out: int) -> nn.Module:
    """Make CleanRL's hidden layer of tanh."""
    return nn.Sequential(layer_init(nn.Linear(n_in, n_out)), nn.Tanh())


def hr(n_in: int, n_out: int, init="orthogonal", gain=2**0.5, shift=None, gate=None, **layer):
    """Make a Hadamard layer.

    `shift`: biases of all branches, with random signs. `gate`: of all branches but the first.
    """
    made = HadamardLinear(n_in, n_out, **layer)
    made.reset_parameters(init, gain)
    with torch.no_grad():
        if shift is not None:
            made.bias.bernoulli_(0.5).mul_(2 * shift).sub_(shift)
        if gate is not None:
            made.bias[n_out:] = gate
    return made


def hr_last(n_in: int, n_out: int, **layer) -> nn.Module:
    """Make a Hadamard layer on top of a plain one."""
    return hr(n_in, n_out, **layer) if n_in == n_out else plain(n_in, n_out)


# Gain 2.7 and biases of 1.5 keep E z² at that of a plain layer for E x² of 0.5 to 1.
VARIANTS = {
    "tanh": plain,
    "tanh, orthogonal, layer_norm": functools.partial(hr, branches=1, layer_norm=True),
    "tanh, torch, layer_norm": functools.partial(hr, init="torch", branches=1, layer_norm=True),
    "HR, torch": functools.partial(hr, init="torch"),
    "HR, orthogonal": hr,
    "HR, he_normal": functools.partial(hr, init="he_normal"),
    "HR, orthogonal, last alone": hr_last,
    "HR, orthogonal, layer_norm": functools.partial(hr, layer_norm=True),
    "HR, torch, layer_norm": functools.partial(hr, init="torch", layer_norm=True),
    "HR, orthogonal, gain 2.7": functools.partial(hr, gain=2.7),
    "HR, biases -1.5 or 1.5": functools.partial(hr, shift=1.5),
    "HR, gate 1": functools.partial(hr, gate=1.0),
    "HR, gated (2)": functools.partial(hr, init="gated"),
    "HR, gated, layer_norm": functools.partial(hr, init="gated", layer_norm=True),
    "HR, gate 3": functools.partial(hr, gate=3.0),
    "HR, gated, last alone": functools.partial(hr_last, init="gated"),
    "3 branches, orthogonal": functools.partial(hr, branches=3),
    "3 branches, gated (2)": functools.partial(hr, init="gated", branches=3),
}


def play_cartpole(hidden, seed: int, learning_rate: float, steps: int) -> float:
    """Return the mean return of the last 20 games."""
    torch.manual_seed(seed)
    returns = train(Agent(hidden), seed, steps, learning_rate, report=lambda line: None)
    return sum(returns[-20:]) / len(returns[-20:])


def fit_function(hidden, seed: int, steps: int) -> float:
    """Return the mean squared error after training as regression_demo.py does by default."""
    torch.manual_seed(seed)
    network = nn.Sequential(hidden(1, 100), hidden(100, 100), nn.Linear(100, 1))
    optimizer = torch.optim.Adam(network.parameters(), FIT_RATE, fused=True)
    x = torch.linspace(-1, 1, 128).unsqueeze(1)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(x) - target(x)).square().mean().backward()
        optimizer.step()
    points = torch.linspace(-1, 1, POINTS).unsqueeze(1)
    with torch.no_grad():
        return (network(points) - target(points)).square().mean().item()


@dataclass
class Args:
    """Compare hidden layers in an agent and in fitting a function: a table on standard output."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    """of the hidden layers"""
    learning_rates: tuple[float, ...] = (2.5e-4,)
    """of the agent"""
    seeds: int = 5
    """of each: 1, 2, ..."""
    steps: int = 25_000
    """of the games"""
    fit_steps: int = 1000
    """of fitting; 0: CartPole alone"""


def main(args: Args):
    """Train every variant from every seed."""
    for name in args.variants:
        if name not in VARIANTS:
            raise UsageError(f"unknown variant {name!r}: choose from {'; '.join(VARIANTS)}")
    at_least(args, 1, "seeds")
    at_least(args, NUM_ENVS * NUM_STEPS, "steps")
    at_least(args, 0, "fit_steps")
    if not all(0 < rate < 1 for rate in args.learning_rates):
        raise UsageError("--learning-rates must lie between 0 and 1")
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["task", "variant", "learning_rate", "steps", "seed", "score"])
    for name, seed in itertools.product(args.variants, range(1, args.seeds + 1)):
        for rate in args.learning_rates:
            score = play_cartpole(VARIANTS[name], seed, rate, args.steps)
            table.writerow(["cartpole", name, rate, args.steps, seed, score])
        if args.fit_steps:
            score = fit_function(VARIANTS[name], seed, args.fit_steps)
            table.writerow(["fit", name, FIT_RATE, args.fit_steps, seed, score])
        sys.stdout.flush()


if __name__ == "__main__":
    launch(main, Args)
