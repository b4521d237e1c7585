"""DQN's own functions against slow definitions, and its loop against the games' own steps."""

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import dqn_atari
from dqn_atari import (
    Args,
    QNetwork,
    act,
    greedy_actions,
    linear_schedule,
    td_loss,
    update_target,
)
from lab.training import run as training
from lab.training.atari import AtariEnvs
from lab.training.replay import Batch


class Table(nn.Module):
    """Q-values looked up by the first pixel of an obs."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, obs):
        return self.values[obs[:, 0, 0, 0].long()]


def table_batch():
    obs = torch.zeros(4, 4, 1, 1, dtype=torch.uint8)
    next_obs = obs.clone()
    obs[:, 0, 0, 0] = torch.tensor([0, 1, 0, 1])
    next_obs[:, 0, 0, 0] = torch.tensor([1, 0, 1, 1])
    rewards = torch.tensor([1.0, -1.0, 0.0, 1.0])
    return Batch(obs, torch.tensor([0, 1, 1, 0]), rewards, next_obs, torch.tensor([0, 0, 1.0, 0]))


@pytest.mark.parametrize("double_dqn", [False, True])
def test_td_loss_against_a_loop(double_dqn):
    online = [[1.0, 2.0], [5.0, -3.0]]
    target = [[0.5, 0.25], [1.0, 7.0]]
    batch = table_batch()
    errors = []
    for i in range(4):
        s, s_next = batch.obs[i, 0, 0, 0].item(), batch.next_obs[i, 0, 0, 0].item()
        action = batch.actions[i].item()
        if double_dqn:
            best = max(range(2), key=lambda a: online[s_next][a])
            bootstrap = target[s_next][best]
        else:
            bootstrap = max(target[s_next])
        y = batch.rewards[i].item() + (0 if batch.terminations[i] else 0.9 * bootstrap)
        errors.append((y - online[s][action]) ** 2)
    q_network = Table(online)
    target_network = Table(target)
    loss, q_values = td_loss(q_network, target_network, batch, 0.9, double_dqn)
    assert loss.item() == pytest.approx(np.mean(errors))
    assert q_values.tolist() == [1.0, -3.0, 2.0, 5.0]
    loss.backward()
    assert target_network.values.grad is None  # a semi-gradient
    assert q_network.values.grad is not None


def test_target_network_moves_by_tau():
    online, target = Table([[1.0, 2.0]]), Table([[3.0, 6.0]])
    update_target(target, online, 0.25)
    assert target.values.tolist() == [[2.5, 5.0]]
    update_target(target, online, 1.0)
    assert torch.equal(target.values, online.values)


def test_linear_schedule():
    values = [linear_schedule(1.0, 0.1, 1_000, step) for step in (0, 500, 1_000, 5_000)]
    assert values == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_epsilon_greedy_frequencies():
    """Each env explores by itself: the greedy action has 1 - epsilon + epsilon / 3."""
    network = QNetwork(3, Args(branches=1, latent_dim=8))
    obs = np.random.default_rng(0).integers(0, 255, (1, 4, 84, 84), dtype=np.uint8)
    greedy = network(torch.from_numpy(obs)).argmax().item()
    rng, choose = np.random.default_rng(1), partial(greedy_actions, network)
    many = np.repeat(obs, 50, axis=0)
    actions = np.concatenate([act(choose, many, 0.6, 3, rng) for _ in range(60)])
    counts = np.bincount(actions, minlength=3) / len(actions)
    # 3,000 draws from a fixed seed: 5 standard errors are 0.045
    assert counts[greedy] == pytest.approx(0.6, abs=0.045)
    assert counts.max() == counts[greedy]
    assert (act(choose, many, 0.0, 3, rng) == greedy).all()


class StillGames:
    """Games in which nothing happens, as it takes long to make eight real ones."""

    def __init__(self, env_id, num_envs, seed, **options):
        self.obs = np.zeros((num_envs, 4, 84, 84), np.uint8)
        self.rewards, self.never = np.zeros(num_envs, np.float32), np.zeros(num_envs, bool)
        self.single_action_space = gymnasium.spaces.Discrete(4)

    def reset(self):
        return self.obs, {}

    def send(self, actions):
        self.actions = actions

    def recv(self):
        infos = {"executed_actions": self.actions, "game_over": self.never}
        return self.obs, self.rewards, self.never, self.never, infos

    def state_dict(self):
        return {}

    def close(self):
        pass


@pytest.mark.parametrize(
    ("num_envs", "learning_starts", "every"),
    [(1, 120, 40), (3, 125, 40), (8, 120, 40), (8, 125, 40), (1, 125, 2), (8, 120, 2)],
)
def test_one_gradient_step_per_4_agent_steps(
    num_envs, learning_starts, every, tmp_path, monkeypatch
):
    calls = {"updates": 0, "target": 0}

    def counted(name, function):
        def wrapper(*arguments):
            calls[name] += 1
            return function(*arguments)

        return wrapper

    monkeypatch.setattr(training, "AtariEnvs", StillGames)
    monkeypatch.setattr(dqn_atari, "td_loss", counted("updates", td_loss))
    monkeypatch.setattr(dqn_atari, "update_target", counted("target", update_target))
    args = Args(
        total_timesteps=240,
        learning_starts=learning_starts,
        num_envs=num_envs,
        target_network_frequency=every,
        buffer_size=2_048,
        latent_dim=16,
        batch_size=2,
        runs_dir=str(tmp_path),
        device="cpu",
    )
    assert dqn_atari.main(args) == 0
    original_loop = [t for t in range(learning_starts + 1, 241) if t % 4 == 0]
    targets = [t for t in range(learning_starts + 1, 241) if t % every == 0]
    assert calls == {"updates": len(original_loop), "target": len(targets)}


class RandomGames(StillGames):
    """Games that show anything and never end."""

    def __init__(self, env_id, num_envs, seed, **options):
        super().__init__(env_id, num_envs, seed, **options)
        self.rng = np.random.default_rng(seed)

    def recv(self):
        self.obs = self.rng.integers(256, size=self.obs.shape, dtype=np.uint8)
        self.rewards = self.rng.random(len(self.obs), dtype=np.float32)
        return super().recv()


@pytest.mark.parametrize("num_envs", [1, 4])
def test_what_is_learnt_while_the_games_step_is_what_would_be_learnt_after(
    num_envs, tmp_path, monkeypatch
):
    """The same draws, and the same transitions in the same order; also in a memory that is full."""
    counts = {"meanwhile": 0, "after": 0}
    learnt, expected = [], []

    def digest(batch):
        return [hash(part.numpy().tobytes()) for part in batch]

    class Recorder(dqn_atari.ReplayBuffer):
        drawn = ()

        def draw(self, count, generator, coming=0):
            state = generator.get_state()
            index = super().draw(count, generator, coming)
            self.drawn = [*self.drawn, (state, index)]
            return index

        def locate(self, index):
            counts["meanwhile" if self.drawn else "after"] += 1
            found = super().locate(index)
            learnt.append(digest(self.gather(*found)))
            return found

        def add(self, *arguments):
            super().add(*arguments)
            for state, index in self.drawn:
                generator = torch.Generator()
                generator.set_state(state)
                assert torch.equal(super().draw(len(index), generator), index)
                expected.append(digest(self.gather(*super().locate(index))))
            self.drawn = ()

    monkeypatch.setattr(training, "AtariEnvs", RandomGames)
    monkeypatch.setattr(dqn_atari, "ReplayBuffer", Recorder)
    args = Args(
        total_timesteps=900,
        learning_starts=300,
        train_frequency=2,
        num_envs=num_envs,
        buffer_size=600,
        latent_dim=16,
        batch_size=8,
        metrics_samples=512,
        metrics_every=10**6,
        runs_dir=str(tmp_path),
        device="cpu",
    )
    assert dqn_atari.main(args) == 0
    assert learnt == expected
    assert sum(counts.values()) == 300
    assert min(counts.values()) >= 5, counts


def test_the_loop_stores_what_the_games_did(tmp_path, monkeypatch):
    """Every stored transition against the games' own steps, with FIRE, life losses and cuts."""
    stepped, stored = [], []

    class ShortGames(AtariEnvs):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options, max_episode_frames=4 * 140)

        def send(self, actions):
            self.asked = np.array(actions)
            super().send(actions)

        def recv(self):
            obs, *rest = super().recv()
            stepped.append((self.asked, obs.copy(), *rest))
            return obs, *rest

    class Recorder(dqn_atari.ReplayBuffer):
        def add(self, *arguments):
            stored.append(arguments)
            super().add(*arguments)

    monkeypatch.setattr(training, "AtariEnvs", ShortGames)
    monkeypatch.setattr(dqn_atari, "ReplayBuffer", Recorder)
    args = Args(
        total_timesteps=2_000,
        learning_starts=2_000,
        buffer_size=2_048,
        latent_dim=16,
        runs_dir=str(tmp_path),
        device="cpu",
    )
    assert dqn_atari.main(args) == 0
    assert len(stored) == len(stepped) == 500
    seen = dict.fromkeys(("fire", "life loss", "truncated", "ended"), 0)
    for put, (actions, obs, rewards, terminations, truncations, infos) in zip(
        stored, stepped, strict=True
    ):
        next_obs, played, put_rewards, put_terminations, put_game_over, put_final_obs = put
        assert np.array_equal(next_obs, obs)
        assert np.array_equal(played, infos["executed_actions"])
        assert np.array_equal(put_rewards, rewards)
        assert np.array_equal(put_terminations, terminations)
        assert np.array_equal(put_game_over, infos["game_over"])
        for i in np.flatnonzero(truncations):
            assert np.array_equal(put_final_obs[i], infos["final_obs"][i])
        seen["fire"] += (played != actions).sum()
        seen["life loss"] += (terminations & ~infos["game_over"]).sum()
        seen["truncated"] += truncations.sum()
        seen["ended"] += (infos["game_over"] & ~truncations).sum()
    assert min(seen.values()) >= 2, seen
