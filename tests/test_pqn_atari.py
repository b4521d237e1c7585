"""PQN's own functions against sums written out and hand-derived numbers."""

import numpy as np
import pytest
import torch
from conftest import EVERY_ENDING, ended_steps
from torch import nn

from pqn_atari import (
    Args,
    Rollout,
    act,
    draw_exploration,
    gradient_step,
    linear_schedule,
    q_lambda_returns,
    update,
)

GAMMA = 0.9


def return_by_definition(steps, next_values, start, q_lambda):
    """The lambda-weighted mean of the n-step returns from `start`, each written out as a sum.

    An n-step return ends, without a bootstrap, at a life loss or game over, and with that of the
    final state at a truncation; then no longer one differs from it, and it takes all that is left
    of the weight, as the one that reaches the end of the rollout does.
    """
    mean, left, rewards = 0.0, 1.0, 0.0
    for n, (reward, ending, final_value) in enumerate(steps[start:]):
        rewards += GAMMA**n * reward
        bootstrap = {"": next_values[start + n], "truncated": final_value}.get(ending, 0.0)
        n_step = rewards + GAMMA ** (n + 1) * bootstrap
        if ending or start + n + 1 == len(steps):
            return mean + left * n_step
        mean += left * (1 - q_lambda) * n_step
        left *= q_lambda
    raise AssertionError("no steps")


@pytest.mark.parametrize("q_lambda", [0.0, 0.3, 0.65, 1.0])
def test_returns_are_the_mean_of_their_definition(q_lambda):
    """Life losses, game overs and truncations at every position: all 4^5 rollouts of 5 steps."""
    rng = np.random.default_rng(0)
    steps = ended_steps(rng, EVERY_ENDING)  # (envs, steps) of (reward, ending, final value)
    next_values = rng.normal(size=(len(steps), 5))
    rewards = [
        [r + GAMMA * final * (ending == "truncated") for r, ending, final in env] for env in steps
    ]
    dones = [[bool(ending) for _, ending, _ in env] for env in steps]
    result = q_lambda_returns(
        torch.tensor(rewards, dtype=torch.float64).T,
        torch.tensor(dones).T,
        torch.from_numpy(next_values).T,
        GAMMA,
        q_lambda,
    )
    for i, env in enumerate(steps):
        for t in range(5):
            expected = return_by_definition(env, next_values[i], t, q_lambda)
            assert result[t, i].item() == pytest.approx(expected, abs=1e-12)


def test_returns_at_lambda_0_and_1():
    """0: r + gamma max Q; 1: the discounted rewards up to the end, or the bootstrap."""
    rewards = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    dones = torch.tensor([[False], [True], [False], [False]])
    next_values = torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    one_step = q_lambda_returns(rewards, dones, next_values, 0.5, 0.0)
    assert one_step.flatten().tolist() == [1 + 5, 2, 4 + 15, 8 + 20]
    full = q_lambda_returns(rewards, dones, next_values, 0.5, 1.0)
    assert full.flatten().tolist() == [1 + 1, 2, 4 + 4 + 10, 8 + 20]


def test_linear_schedule():
    values = [linear_schedule(1.0, 0.1, 1_000, step) for step in (0, 500, 1_000, 5_000)]
    assert values == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_epsilon_greedy_frequencies():
    """Each env explores by itself: the greedy action has 1 - epsilon + epsilon / 3."""
    obs = torch.zeros(3_000, 4, 1, 1, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)

    def network(obs):
        return torch.tensor([[0.0, 2.0, 1.0]]).repeat(len(obs), 1)

    def acted(epsilon):
        return act(network, obs, *draw_exploration(3_000, 3, epsilon, generator))[1]

    counts = acted(0.6).bincount(minlength=3) / 3_000
    # 3,000 draws from a fixed seed: 5 standard errors are 0.045
    assert counts.tolist() == pytest.approx([0.2, 0.6, 0.2], abs=0.045)
    assert (acted(0.0) == 1).all()


class Table(nn.Module):
    """Q-values looked up by the first pixel of an obs."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.arange(12, dtype=torch.float64).view(6, 2))
        self.seen = []

    def forward(self, obs):
        self.seen.append(obs[:, 0, 0, 0].tolist())
        return self.values[obs[:, 0, 0, 0].long()]


def table_rollout():
    """Six states of a rollout of 3 steps of 2 games, actions 0 1 0 1 0 1, returns all 3."""
    obs = torch.arange(6, dtype=torch.uint8).view(3, 2, 1, 1, 1).expand(3, 2, 4, 1, 1)
    zeros = torch.zeros(3, 2, dtype=torch.float64)
    actions = torch.tensor([[0, 1]] * 3)
    return Rollout(obs, actions, zeros, zeros.bool(), zeros, zeros + 3)


def learner(table, optimizer, args):
    return lambda *batch: gradient_step(table, optimizer, Rollout(*batch), args)


def test_one_update_against_hand_derived_numbers():
    """d/dQ of the mean of 1/2 (G - Q)^2 over 6 steps is (Q - G) / 6, for the action played."""
    table = Table()
    args = Args(num_minibatches=1, update_epochs=1, max_grad_norm=1e9)
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    losses = update(learner(table, optimizer, args), table_rollout(), args, torch.Generator())
    change = (table.values.detach() - torch.arange(12).view(6, 2)).tolist()
    played = [0, 3, 4, 7, 8, 11]
    for state, q in enumerate(played):
        assert change[state][state % 2] == pytest.approx((3 - q) / 6)
        assert change[state][1 - state % 2] == 0
    assert losses["losses/q_values"] == pytest.approx(sum(played) / 6)
    assert losses["losses/td_loss"] == pytest.approx(sum((q - 3) ** 2 for q in played) / 6 / 2)


def test_the_gradient_is_clipped_to_its_norm():
    table = Table()
    before = table.values.detach().clone()
    args = Args(num_minibatches=1, update_epochs=1, max_grad_norm=0.01)
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    update(learner(table, optimizer, args), table_rollout(), args, torch.Generator())
    assert (table.values - before).norm().item() == pytest.approx(0.01, rel=1e-4)


def test_an_update_passes_over_every_step_once_per_epoch():
    table = Table()
    args = Args(num_minibatches=3, update_epochs=4)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.0)
    update(learner(table, optimizer, args), table_rollout(), args, torch.Generator().manual_seed(0))
    assert [len(states) for states in table.seen] == [2] * 12
    epochs = torch.tensor(table.seen).view(4, 6).tolist()
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
