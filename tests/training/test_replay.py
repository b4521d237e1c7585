"""The replay memory against a plain list of stacks, over random games with every kind of end."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqn_atari
from lab.common import device
from lab.common.cli import UsageError
from lab.training import replay
from lab.training.checks import check_memory
from lab.training.replay import MOST_TRUNCATED, TRANSITION_BYTES, ReplayBuffer


class Games:
    """Stands for the emulator: random frames, stacks with zeros before the start of a game."""

    def __init__(self, num_envs, rng):
        self.num_envs, self.rng = num_envs, rng
        self.stacks = [self._new_game() for _ in range(num_envs)]

    def _frame(self):
        # Few rows of random pixels tell frames apart; full ones would only be slower.
        frame = np.zeros((84, 84), np.uint8)
        frame[:2] = self.rng.integers(1, 256, (2, 84))
        return frame

    def _new_game(self):
        zeros = [np.zeros((84, 84), np.uint8)] * 3
        return collections.deque([*zeros, self._frame()], maxlen=4)

    def obs(self):
        return np.stack([np.stack(stack) for stack in self.stacks])

    def step(self, chances):
        """Each env goes on, loses a life, ends or is truncated (even while it loses a life)."""
        kinds = self.rng.choice(["on", "life", "end", "cut", "life+cut"], self.num_envs, p=chances)
        for stack in self.stacks:
            stack.append(self._frame())
        true_next_obs = self.obs()
        terminations = np.isin(kinds, ["life", "end", "life+cut"])
        truncations = np.isin(kinds, ["cut", "life+cut"])
        game_over = truncations | (kinds == "end")
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in range(self.num_envs):
            if truncations[i]:
                final_obs[i] = true_next_obs[i]
            if game_over[i]:
                self.stacks[i] = self._new_game()
        actions = self.rng.integers(0, 18, self.num_envs)
        rewards = self.rng.choice([-1.0, 0.0, 1.0], self.num_envs).astype(np.float32)
        final_obs = final_obs if truncations.any() else None
        return true_next_obs, actions, rewards, terminations, game_over, final_obs


def assert_transition(batch, k, expected):
    obs, action, reward, next_obs, termination = expected
    assert np.array_equal(batch.obs[k], obs)
    assert batch.actions[k] == action
    assert batch.rewards[k] == reward
    assert batch.terminations[k] == termination
    if not termination:  # where the bootstrap ends next_obs is not used
        assert np.array_equal(batch.next_obs[k], next_obs)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_envs=st.integers(1, 4),
    rows=st.integers(1, 9),
    steps=st.integers(1, 40),
    weights=st.tuples(*[st.floats(0.01, 1.0)] * 5),
)
def test_equals_a_list_of_stacks(seed, num_envs, rows, steps, weights):
    rng = np.random.default_rng(seed)
    games = Games(num_envs, rng)
    buffer = ReplayBuffer(rows * num_envs, num_envs)
    model = collections.deque(maxlen=rows)  # newest last, each a list over envs
    obs = games.obs()
    buffer.start(obs)
    chances = np.array(weights) / np.sum(weights)
    for _ in range(steps):
        true_next_obs, actions, rewards, terminations, game_over, final_obs = games.step(chances)
        next_obs = games.obs()
        buffer.add(next_obs, actions, rewards, terminations, game_over, final_obs)
        model.append(
            [
                (obs[i], actions[i], rewards[i], true_next_obs[i], terminations[i])
                for i in range(num_envs)
            ]
        )
        obs = next_obs

        assert len(buffer) == len(model) * num_envs
        newest = buffer.newest(len(buffer))
        newest_first = [transition for row in reversed(model) for transition in row]
        everything = buffer.transitions(torch.arange(len(buffer)))
        for k, expected in enumerate(newest_first):
            assert_transition(everything, k, expected)
            assert np.array_equal(newest[k], expected[0])


def test_sampling_is_uniform_and_reproducible():
    rng = np.random.default_rng(0)
    games = Games(2, rng)
    buffer = ReplayBuffer(20, 2)
    buffer.start(games.obs())
    for number in range(25):  # the ring has wrapped around: steps 15 to 24 remain
        games.step([1, 0, 0, 0, 0])
        actions, zeros = np.array([2 * number, 2 * number + 1]), np.zeros(2, bool)
        buffer.add(games.obs(), actions, np.zeros(2, np.float32), zeros, zeros)
    draws = buffer.sample(20_000, torch.Generator().manual_seed(1)).actions
    counts = np.bincount(draws.numpy(), minlength=50)
    assert not counts[:30].any()
    # 1000 expected for each; the seed is fixed, and 5 standard deviations are 154
    assert np.abs(counts[30:] - 1000).max() < 154
    again = buffer.sample(20_000, torch.Generator().manual_seed(1)).actions
    assert torch.equal(draws, again)


def test_final_frames_go_with_their_rows():
    games = Games(3, np.random.default_rng(0))
    buffer = ReplayBuffer(12, 3)
    buffer.start(games.obs())
    for _ in range(100):
        _, actions, rewards, terminations, game_over, final_obs = games.step([0, 0, 0, 1, 0])
        buffer.add(games.obs(), actions, rewards, terminations, game_over, final_obs)
    # The ring has 8 rows of 3 games, all truncated; 300 were in all.
    assert len(buffer.final_at) <= 24
    # Each has a place of its own, and the others are free again.
    places = [*buffer.final_at.values(), *buffer.free]
    assert sorted(places) == list(range(buffer.zeros + 1, len(buffer.store)))


def test_all_games_may_be_truncated_at_once_and_more_are_refused(monkeypatch):
    """As games of which none ends before its limit are."""
    monkeypatch.setattr(replay, "MOST_TRUNCATED", 2)
    num_envs = 5
    games = Games(num_envs, np.random.default_rng(0))
    buffer = ReplayBuffer(20 * num_envs, num_envs)
    buffer.start(games.obs())

    def add(chances):
        true_next_obs, *step = games.step(chances)
        buffer.add(games.obs(), *step)
        return true_next_obs

    add([1, 0, 0, 0, 0])
    last = add([0, 0, 0, 1, 0])
    assert np.array_equal(buffer.transitions(torch.arange(5)).next_obs, last)
    with pytest.raises(RuntimeError, match="more than 7 truncated games in the replay memory"):
        add([0, 0, 0, 1, 0])


def test_draws_before_a_step_are_those_after_it():
    """And transitions that were there before it lie a step further back after it."""
    rng = np.random.default_rng(0)
    games, chances = Games(3, rng), [0.6, 0.1, 0.1, 0.1, 0.1]
    buffer = ReplayBuffer(30, 3)
    buffer.start(games.obs())
    coming = 0
    for step in range(40):
        ahead = buffer.draw(50, torch.Generator().manual_seed(step), coming=1)
        before = buffer.transitions(ahead[ahead >= 3] - 3)
        _, actions, rewards, terminations, game_over, final_obs = games.step(chances)
        buffer.add(games.obs(), actions, rewards, terminations, game_over, final_obs)
        assert torch.equal(buffer.draw(50, torch.Generator().manual_seed(step)), ahead)
        for one, other in zip(before, buffer.transitions(ahead[ahead >= 3]), strict=True):
            assert torch.equal(one, other)
        coming += int((ahead < 3).sum())
        assert ahead.max() < len(buffer)
    assert coming > 100


def taken_bytes(buffer):
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in (*arrays, buffer.store))


def test_a_million_transitions_fit_the_promised_memory(monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda device: 8e9)
    check_memory(dqn_atari.Args())
    buffer = ReplayBuffer(1_000_000, 4)
    assert taken_bytes(buffer) <= 7.2e9
    assert buffer.capacity * buffer.num_envs == 1_000_000


def test_too_little_memory_is_refused_with_what_would_fit(monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda device: 1e9)
    with pytest.raises(UsageError, match=r"needs 7\.1 GB .* 1\.0 GB are free.*at most 127"):
        check_memory(dqn_atari.Args(buffer_size=1_000_000))
    check_memory(dqn_atari.Args(buffer_size=127_000))
    with pytest.raises(UsageError, match="--metrics-samples 50000"):
        check_memory(dqn_atari.Args(buffer_size=100_000, metrics_samples=50_000))


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_transition_takes_the_bytes_that_are_promised(num_envs):
    buffer = ReplayBuffer(1000, num_envs)
    count = buffer.rows * num_envs
    beside = (1 + min(count, MOST_TRUNCATED + num_envs)) * 84 * 84  # zeros, and final frames
    assert taken_bytes(buffer) == count * TRANSITION_BYTES + beside
