"""The networks of the regression demo, and training all seeds at once."""

import math

import numpy as np
import pytest
import scipy
import torch
from torch import nn

from lab.regression import fitting
from lab.regression.claims import CLAIMS, judge_cell
from regression_demo import Args


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("relu", 601),
        ("tanh", 601),
        ("tanh-hr", 501),
        ("relu-hr", 501),
        ("tanh-sum", 501),
        ("relu-deep", 81_001),
        ("tanh-deep", 81_001),
        ("tanh-hr-deep", 2 * 200 + 2 * (2 * 100 * 101) + 101),
    ],
)
def test_parameter_counts_of_the_paper(name, count):
    network = fitting.Network(fitting.ARCHITECTURES[name], "torch")
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_function_of_the_paper():
    for x in (-2.0, -0.3, 0.0, 0.7):
        y = 10 * math.sin(7 * x) + 15 * math.sin(10 * x) + 5 * math.cos(5 * x)
        assert fitting.target(torch.tensor(x)).item() == pytest.approx(y, abs=1e-4)


def train_alone(architecture, args, seed, steps):
    """The plain loop for one seed: loss before each step; fit, and z, at the end."""
    x = torch.tensor(np.linspace(args.x_min, args.x_max, args.samples)).to(
        torch.get_default_dtype()
    )
    y = 10 * torch.sin(7 * x) + 15 * torch.sin(10 * x) + 5 * torch.cos(5 * x)
    torch.manual_seed(seed)
    network = fitting.Network(architecture, args.init)
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=args.learning_rate, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(network(x[:, None])[0], y[:, None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    points = torch.linspace(args.x_min, args.x_max, fitting.POINTS)
    with torch.no_grad():
        fit, z = network(points[:, None])
    return torch.stack(losses), fit[:, 0], z


def rank_by_hand(z):
    s = scipy.linalg.svdvals(z.double().numpy())
    return next(k for k in range(1, len(s) + 1) if s[:k].sum() >= 0.99 * s.sum())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", fitting.ARCHITECTURES)
def test_seeds_at_once_equal_seeds_one_by_one(double, name, optimizer):
    rate = 1e-2 if optimizer == "adam" else 1e-4
    args = Args(seeds=3, seed=5, samples=40, optimizer=optimizer, learning_rate=rate)
    architecture = fitting.ARCHITECTURES[name]
    fits = fitting.train(architecture, args, [10, 60])
    for i in range(3):
        losses, fit, z = train_alone(architecture, args, 5 + i, 60)
        torch.testing.assert_close(fits.losses[:, i], losses, rtol=1e-5, atol=0)
        torch.testing.assert_close(fits.y[i], fit, rtol=1e-5, atol=1e-5)
        points = torch.linspace(-1, 1, fitting.POINTS)
        error = (fit - fitting.target(points)).square().mean()
        torch.testing.assert_close(fits.mse[1, i], error, rtol=1e-5, atol=0)
        assert fits.rank[1, i] == rank_by_hand(z)
    assert not torch.equal(fits.y[0], fits.y[1])


def test_seeds_at_once_equal_seeds_one_by_one_in_the_precision_of_the_demo():
    args = Args(seeds=3)
    for name in ("tanh", "tanh-hr", "relu"):
        architecture = fitting.ARCHITECTURES[name]
        fits = fitting.train(architecture, args, [30])
        for i in range(3):
            losses, fit, _ = train_alone(architecture, args, 1 + i, 30)
            torch.testing.assert_close(fits.losses[:, i], losses, rtol=1e-5, atol=0)
            torch.testing.assert_close(fits.y[i], fit, rtol=1e-5, atol=1e-5)


def test_a_measurement_does_not_disturb_training_and_comes_after_its_step():
    architecture, args = fitting.ARCHITECTURES["tanh-hr"], Args(seeds=2)
    once, often = (fitting.train(architecture, args, steps) for steps in ([20], [1, 7, 13, 20]))
    assert torch.equal(once.y, often.y)
    assert torch.equal(once.mse[0], often.mse[3])
    assert torch.equal(fitting.train(architecture, args, [7]).mse[0], often.mse[1])


def test_noise_is_on_the_training_targets_alone():
    architecture = fitting.ARCHITECTURES["tanh"]
    plain, noisy = (
        fitting.train(architecture, Args(seeds=2, noise=noise, samples=5000), [1])
        for noise in (0.0, 3.0)
    )
    # A network that knows nothing of the noise errs by its variance more.
    torch.testing.assert_close(
        noisy.losses[0] - plain.losses[0], torch.full((2,), 9.0), rtol=0.1, atol=0
    )
    torch.testing.assert_close(noisy.mse, plain.mse, rtol=0.05, atol=0)


def test_what_diverges_counts_as_the_worst_fit_and_stops_early():
    args = Args(seeds=2, optimizer="sgd", learning_rate=1e6)
    fits = fitting.train(fitting.ARCHITECTURES["relu"], args, [1, 500])
    assert fits.mse.tolist() == [[fitting.DIVERGED] * 2] * 2
    assert fits.rank[1].tolist() == [0, 0]
    assert fits.losses[200:].isnan().all()


def test_the_default_demo_orders_the_shallow_networks_as_the_paper_does():
    args = Args()
    cell = {
        name: fitting.train(fitting.ARCHITECTURES[name], args, [args.steps]).cell(-1)
        for name in ("relu", "tanh", "tanh-hr")
    }
    better_than_tanh, better_than_relu = (judge_cell(claim, cell) for claim in CLAIMS[:2])
    assert better_than_tanh.holds
    assert better_than_relu.holds
    assert better_than_relu.clear
