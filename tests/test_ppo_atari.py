"""PPO's own functions against sums written out and hand-derived numbers."""

import math

import numpy as np
import pytest
import torch
from conftest import EVERY_ENDING, ended_steps
from torch import nn

from ppo_atari import Args, Rollout, draw, gae, gradient_step, ppo_loss, update

GAMMA = 0.9


def advantage_by_definition(steps, values, next_value, start, gae_lambda):
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, up to the first step that ends the bootstrap."""
    total = 0.0
    for k, (reward, ending, final_value) in enumerate(steps[start:]):
        t = start + k
        following = values[t + 1] if t + 1 < len(values) else next_value
        following = {"": following, "truncated": final_value}.get(ending, 0.0)
        total += (GAMMA * gae_lambda) ** k * (reward + GAMMA * following - values[t])
        if ending:
            break
    return total


@pytest.mark.parametrize("gae_lambda", [0.0, 0.3, 0.95, 1.0])
def test_gae_is_the_sum_of_its_definition(gae_lambda):
    """Life losses, game overs and truncations at every position: all 4^5 rollouts of 5 steps."""
    rng = np.random.default_rng(0)
    steps = ended_steps(rng, EVERY_ENDING)  # (envs, steps) of (reward, ending, final value)
    values = rng.normal(size=(len(steps), 5))
    next_value = rng.normal(size=len(steps))
    rewards = [
        [r + GAMMA * final * (ending == "truncated") for r, ending, final in env] for env in steps
    ]
    dones = [[bool(ending) for _, ending, _ in env] for env in steps]
    result = gae(
        torch.tensor(rewards, dtype=torch.float64).T,
        torch.tensor(dones).T,
        torch.from_numpy(values).T,
        torch.from_numpy(next_value),
        GAMMA,
        gae_lambda,
    )
    for i, env in enumerate(steps):
        for t in range(5):
            expected = advantage_by_definition(env, values[i], next_value[i], t, gae_lambda)
            assert result[t, i].item() == pytest.approx(expected, abs=1e-12)


def test_gae_at_lambda_0_and_1():
    """0: the TD error; 1: the discounted rewards up to the end, or the bootstrap, minus V."""
    rewards = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    dones = torch.tensor([[False], [True], [False], [False]])
    values, next_value = torch.tensor([[10.0], [20.0], [30.0], [40.0]]), torch.tensor([50.0])
    td = gae(rewards, dones, values, next_value, 0.5, 0.0)
    assert td.flatten().tolist() == [1 + 10 - 10, 2 - 20, 4 + 20 - 30, 8 + 25 - 40]
    full = gae(rewards, dones, values, next_value, 0.5, 1.0)
    assert full.flatten().tolist() == [1 + 1 - 10, 2 - 20, 4 + 4 + 12.5 - 30, 8 + 25 - 40]


def test_actions_are_drawn_with_the_chances_of_the_policy():
    chances = torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.0, 1.0]])
    clocks = torch.empty(10_000, 3).exponential_(generator=generator(0))
    drawn = draw(chances.log().repeat(5_000, 1), clocks).view(5_000, 2)
    counts = drawn[:, 0].bincount(minlength=3) / 5_000
    # From a fixed seed: 5 standard errors are 0.035
    assert counts.tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.035)
    assert (drawn[:, 1] == 2).all()


class Table(nn.Module):
    """A policy and values looked up by the first pixel of an obs."""

    def __init__(self, probabilities, values):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities, dtype=torch.float64).log())
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, obs):
        state = obs[:, 0, 0, 0].long()
        return self.logits[state], self.values[state]


def by_hand():
    """Six states, two actions of which the first was played; clip_coef is 0.1.

    state  pi   pi_old  ratio  A    policy term         V    V_old  R    value term
    0      0.6  0.4     1.5    +1   -1.1  clipped       0.3  0.0    1.0  0.81 clipped
    1      0.6  0.4     1.5    -1   +1.5                0.3  0.0    0.0  0.09
    2      0.2  0.4     0.5    +1   -0.5               -0.3  0.0   -1.0  0.81 clipped
    3      0.2  0.4     0.5    -1   +0.9  clipped      -0.3  0.0    0.0  0.09
    4      0.5  0.5     1.0    +2   -2.0                0.05 0.0    1.0  0.9025
    5      0.5  0.5     1.0    -3   +3.0                0.0  0.0    0.0  0
    """
    first = [0.6, 0.6, 0.2, 0.2, 0.5, 0.5]
    agent = Table([[p, 1 - p] for p in first], [0.3, 0.3, -0.3, -0.3, 0.05, 0.0])
    obs = torch.zeros(6, 4, 1, 1, dtype=torch.uint8)
    obs[:, 0, 0, 0] = torch.arange(6)
    numbers = {
        "log_probs": torch.tensor([0.4, 0.4, 0.4, 0.4, 0.5, 0.5], dtype=torch.float64).log(),
        "values": [0.0] * 6,
        "advantages": [1, -1, 1, -1, 2, -3],
        "returns": [1.0, 0.0, -1.0, 0.0, 1.0, 0.0],
        "rewards": [0.0] * 6,
    }
    numbers = {name: torch.as_tensor(x, dtype=torch.float64) for name, x in numbers.items()}
    batch = Rollout(
        obs=obs,
        actions=torch.zeros(6, dtype=torch.int64),
        dones=torch.zeros(6, dtype=torch.bool),
        **numbers,
    )
    return agent, batch


def binary_entropy(p):
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))


def test_the_loss_against_hand_derived_numbers():
    agent, batch = by_hand()
    args = Args(norm_adv=False, ent_coef=0.01, vf_coef=0.5, clip_coef=0.1)
    loss, parts = ppo_loss(agent, batch, args)
    entropy = (2 * binary_entropy(0.6) + 2 * binary_entropy(0.2) + 2 * binary_entropy(0.5)) / 6
    expected = {
        "policy_loss": (-1.1 + 1.5 - 0.5 + 0.9 - 2.0 + 3.0) / 6,
        "value_loss": (0.81 + 0.09 + 0.81 + 0.09 + 0.9025 + 0) / 6 / 2,
        "entropy": entropy,
        "old_approx_kl": -(2 * math.log(1.5) + 2 * math.log(0.5)) / 6,
        "approx_kl": (2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))) / 6,
        "clipfrac": 4 / 6,
    }
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected)
    total = expected["policy_loss"] + 0.5 * expected["value_loss"] - 0.01 * entropy
    assert loss.item() == pytest.approx(total)

    _, parts = ppo_loss(agent, batch, Args(norm_adv=False, clip_vloss=False))
    unclipped = (0.49 + 0.09 + 0.49 + 0.09 + 0.9025 + 0) / 6 / 2
    assert parts["value_loss"].item() == pytest.approx(unclipped)


def test_advantages_are_normalised_in_the_minibatch():
    agent, batch = by_hand()
    advantages = batch.advantages.numpy()
    normed = (advantages - advantages.mean()) / advantages.std(ddof=1)
    by_us = ppo_loss(agent, batch, Args(norm_adv=True))[1]
    given = batch._replace(advantages=torch.from_numpy(normed))
    by_hand_ = ppo_loss(agent, given, Args(norm_adv=False))[1]
    assert by_us["policy_loss"].item() == pytest.approx(by_hand_["policy_loss"].item(), abs=1e-6)


def learner(agent, optimizer, args):
    return lambda *batch: gradient_step(agent, optimizer, Rollout(*batch), args)


def test_one_update_against_hand_derived_gradients():
    """One plain gradient step of size 1: what the clips cut off gets none."""
    agent, batch = by_hand()
    logits, values = agent.logits.detach().clone(), agent.values.detach().clone()
    args = Args(
        **{"norm_adv": False, "num_minibatches": 1, "update_epochs": 1, "max_grad_norm": 1e9},
        ent_coef=0.0,
    )
    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    rollout = Rollout(*(field.unsqueeze(1) for field in batch))
    update(learner(agent, optimizer, args), rollout, args, torch.Generator())
    # d(-r A)/d logit of the played action is -A r (1 - pi), of the other + A r (1 - pi).
    slope = [0, 1.5 * 0.4, -0.5 * 0.8, 0, -2 * 0.5, 3 * 0.5]
    expected = torch.tensor([[-s / 6, s / 6] for s in slope], dtype=torch.float64)
    assert torch.allclose(agent.logits - logits, expected)
    # 1/2 c_v d(V - R)^2/dV is c_v (V - R), none where the clipped error is the larger one.
    slope = [0, 0.3, 0, -0.3, 0.05 - 1, 0]
    expected = torch.tensor([-0.5 * s / 6 for s in slope], dtype=torch.float64)
    assert torch.allclose(agent.values - values, expected)


def test_the_entropy_bonus_flattens_the_policy():
    agent, batch = by_hand()
    loss, _ = ppo_loss(
        agent, batch._replace(advantages=torch.zeros(6)), Args(norm_adv=False, ent_coef=1.0)
    )
    loss.backward()
    p = torch.tensor([0.6, 0.6, 0.2, 0.2, 0.5, 0.5], dtype=torch.float64)
    # dS/d logit = -p (log p + S) for a softmax policy
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    assert torch.allclose(agent.logits.grad[:, 0], p * (p.log() + entropy) / 6)


def test_the_gradient_is_clipped_to_its_norm():
    agent, batch = by_hand()
    before = torch.cat([p.detach().flatten().clone() for p in agent.parameters()])
    args = Args(num_minibatches=1, update_epochs=1, max_grad_norm=0.01)
    rollout = Rollout(*(field.unsqueeze(1) for field in batch))
    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    update(learner(agent, optimizer, args), rollout, args, torch.Generator())
    after = torch.cat([p.detach().flatten() for p in agent.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-4)


def test_an_update_passes_over_every_step_once_per_epoch():
    seen = []

    class Watching(Table):
        def forward(self, obs):
            seen.append(obs[:, 0, 0, 0].tolist())
            return super().forward(obs)

    _, batch = by_hand()
    agent = Watching([[0.5, 0.5]] * 6, [0.0] * 6)
    rollout = Rollout(*(field.unsqueeze(1) for field in batch))
    args = Args(num_minibatches=3, update_epochs=4)
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
    parts = update(learner(agent, optimizer, args), rollout, args, generator(0))
    assert [len(states) for states in seen] == [2] * 12
    epochs = torch.tensor(seen).view(4, 6).tolist()
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    returns, values = batch.returns.numpy(), batch.values.numpy()
    explained = 1 - np.var(returns - values) / np.var(returns)
    assert parts["losses/explained_variance"] == pytest.approx(explained)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_target_kl_ends_an_update():
    """The policies differ from the start: one epoch is played out, and no other."""
    agent, batch = by_hand()
    rollout = Rollout(*(field.unsqueeze(1) for field in batch))
    counted = []
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
    optimizer.register_step_post_hook(lambda *_: counted.append(1))
    for target_kl, updates in ((0.01, 1), (10.0, 4), (None, 4)):
        counted.clear()
        args = Args(num_minibatches=1, update_epochs=4, target_kl=target_kl)
        update(learner(agent, optimizer, args), rollout, args, generator(0))
        assert len(counted) == updates


def test_returns_that_do_not_vary_have_no_explained_variance():
    agent, batch = by_hand()
    rollout = Rollout(*(field.unsqueeze(1) for field in batch._replace(returns=batch.values)))
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
    args = Args(num_minibatches=1)
    parts = update(learner(agent, optimizer, args), rollout, args, generator(0))
    assert "losses/explained_variance" not in parts
