"""The theory table: it holds, and its predictions follow from counting and from calculus."""

import collections
import itertools
import math
from fractions import Fraction

import pytest
import scipy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hadamard import ACTIVATIONS
from lab.regression import theory

BRANCHES = (1, 2, 3)


def dead_by_counting(activation, p, branches, correlation):
    """Exact: every way in which the branches can be live, dead at the lower or the upper end."""
    ends = {"tanh": (-1, 1), "sigmoid": (0, 1), "relu": (0,)}[activation]
    fates = [(None, 1 - p)] + [(end, p / len(ends)) for end in ends]

    def is_dead(states):
        return 0 in states or None not in states

    alone = sum(
        math.prod(chance for _, chance in ways)
        for ways in itertools.product(fates, repeat=branches)
        if is_dead([state for state, _ in ways])
    )
    together = sum(chance for state, chance in fates if is_dead([state] * branches))
    return correlation * together + (1 - correlation) * alone


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("branches", BRANCHES)
@given(p=st.fractions(0, 1), correlation=st.fractions(0, 1))
def test_probabilities_equal_those_of_all_cases_counted(activation, branches, p, correlation):
    formula = theory.dead_probability(activation, p, branches, correlation)
    assert formula == dead_by_counting(activation, p, branches, correlation)


def test_probabilities_of_the_papers_table():
    p = Fraction(2, 5)
    assert theory.dead_probability("tanh", p, 2) == p**2
    assert theory.dead_probability("sigmoid", p, 2) == p
    assert theory.dead_probability("relu", p, 2) == 2 * p - p**2


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_the_given_correlation_is_that_of_the_deaths_that_are_drawn(correlation):
    """A dead tanh product has two dead branches; the branches alone die with probability p."""
    p, units = 0.3, 40_000
    generator = torch.Generator().manual_seed(2)
    both = theory.dead_share("tanh", p, 2, correlation, units, generator)
    measured = (both - p * p) / (p * (1 - p))
    assert measured == pytest.approx(correlation, abs=5 * 0.5 / units**0.5 / (p * (1 - p)))


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_drawn_units_die_as_often_as_counted(activation, branches, correlation):
    generator = torch.Generator().manual_seed(1)
    for p in (0.0, 0.35, 1.0):
        share = theory.dead_share(activation, p, branches, correlation, 20_000, generator)
        expected = dead_by_counting(activation, p, branches, correlation)
        error = math.sqrt(expected * (1 - expected) / 20_000)
        assert share == pytest.approx(expected, abs=5 * error + 1e-12)


def test_every_line_of_the_table_holds():
    checks = theory.check_all()
    assert [line for line in checks if not line.holds] == []
    # 6 layers x 3 lines; 13 cases at one branch, of which 3 have no other, and 3 at both; 3 x 7.
    parts = collections.Counter(line.part for line in checks)
    assert parts == {"Theorem 4.1": 18, "gradients": 13 + 10 + 3, "dying": 21, "start": 28}
    assert all(line.tolerance <= 0.01 for line in checks if line.part != "start")


def second_moments(function, variance, centre):
    """E function(centre + u)², u normal: the integral, by scipy."""
    sd = math.sqrt(variance)
    return scipy.integrate.quad(
        lambda u: function(centre + sd * u) ** 2 * scipy.stats.norm.pdf(u), -12, 12
    )[0]


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize(("init", "gain", "centre"), [("orthogonal", 2, 0), ("gated", 2, 2)])
@pytest.mark.parametrize("inputs", [0.1, 1.0])
def test_the_predicted_start_is_that_of_independent_branches(init, gain, centre, branches, inputs):
    """Each branch by itself: z is the product of all; a gradient is f' of one, f of the others."""
    z, gradient = inputs, 1.0
    for _ in range(2):
        centres = [0, *[centre] * (branches - 1)]
        of_f = [second_moments(math.tanh, gain * z, c) for c in centres]
        of_slope = [second_moments(lambda a: math.cosh(a) ** -2, gain * z, c) for c in centres]
        each = [of_slope[i] * math.prod(of_f) / of_f[i] for i in range(branches)]
        z, gradient = math.prod(of_f), gradient * gain * sum(each)
    assert theory.predict_start(init, branches, inputs) == pytest.approx((z, gradient), rel=1e-3)


def test_a_line_that_is_off_does_not_hold():
    line = theory.Check("part", "case", "quantity", 1.0, 1.2, 0.1)
    assert not line.holds
    assert line._replace(measured=1.05).holds
    assert not line._replace(measured=math.nan).holds


@given(seed=st.integers(0, 100), levels=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=12))
def test_constant_units_fold_into_the_next_bias(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(20, 3).double()
    z = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    for unit, level in enumerate(levels):
        z[:, unit] = level
    constant, bias = theory.fold_constant_units(head.weight, head.bias, z)
    assert constant.tolist() == [True] * len(levels) + [False] * (20 - len(levels))
    live = nn.functional.linear(z[:, ~constant], head.weight[:, ~constant], bias)
    torch.testing.assert_close(live, head(z), atol=1e-6, rtol=0)
    by_hand = head.bias + sum(
        (level * head.weight[:, unit] for unit, level in enumerate(levels)), torch.zeros(3)
    )
    torch.testing.assert_close(bias, by_hand)
    if set(levels) <= {0.0}:  # pruning: a dead ReLU adds nothing
        assert torch.equal(bias, head.bias)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_the_trained_network_has_learned_and_has_constant_units(activation, branches):
    layer, head, x = theory.train_stuck_network(activation, branches)
    z = layer(x)
    spread = z.amax(0) - z.amin(0)
    by_hand = theory.read_constants(layer)
    stuck = ~by_hand.isnan()
    assert 0 < stuck.sum() < 64
    assert (spread[stuck] < 1e-12).all()
    torch.testing.assert_close(z[0, stuck], by_hand[stuck], atol=1e-12, rtol=0)
    y = torch.sin(3 * x[:, :3]) * x[:, 1:]
    assert (head(z) - y).square().mean() < 0.5 * y.square().mean()
    # dL/dA_i = c_i dL/dB, of gradients that are there
    assert head.bias.grad.abs().max() > 1e-6
    expected = by_hand[stuck] * head.bias.grad.unsqueeze(1)
    torch.testing.assert_close(head.weight.grad[:, stuck], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("combine", ["product", "sum"])
@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("at", [-2.0, 0.7, 3.0])
def test_gradient_factors_are_f_and_its_derivative(activation, at, branches, combine):
    f, step = ACTIVATIONS[activation], 1e-6
    point = torch.tensor(at, dtype=torch.float64)
    slope = (f(point + step) - f(point - step)) / (2 * step)  # a finite difference
    own, other = theory.gradient_factors(activation, at, branches, combine)
    assert own == pytest.approx(slope.item(), abs=1e-8)
    if branches == 1:
        assert math.isnan(other)
    else:
        assert other == pytest.approx(f(point).item() if combine == "product" else 1.0, abs=1e-12)


def test_names_are_those_of_the_paper():
    assert theory.layer_name("tanh") == "Tanh"
    assert theory.layer_name("relu", 2) == "ReLU (HR)"
    assert theory.layer_name("tanh", 3) == "Tanh (2xHR)"
    assert theory.layer_name("tanh", 2, "sum") == "Tanh (+HR)"
