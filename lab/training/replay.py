"""DQN's replay memory: one frame per transition, the exact stacks rebuilt when it is sampled."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.training.frames import FRAME_SHAPE, channels_last

# Transitions in a segment of the replay memory, 7 MB: the least that a checkpoint writes of it.
SEGMENT = 1024
# Of the replay memory: a frame, action, reward, termination, history and truncation.
TRANSITION_BYTES = math.prod(FRAME_SHAPE) + 1 + 4 + 1 + 1 + 1


class Batch(NamedTuple):
    """Transitions drawn from the replay memory; obs uint8 (batch, 4, 84, 84), channels last."""

    obs: Tensor
    actions: Tensor  # int64 (batch,)
    rewards: Tensor  # float32 (batch,)
    next_obs: Tensor  # not to be used where the game ended
    terminations: Tensor  # float32 (batch,), 1 where the bootstrap ends


class ReplayBuffer:
    """Replay memory that keeps one frame per transition and rebuilds the stacks when sampling.

    A ring of rows, one per vector step: row t holds the newest frame of obs t and the action,
    reward and termination of the step from obs t to obs t + 1, of each env. Stacks are read off the
    rows before, with zeros before the start of a game. The last frame of a truncated game, which
    no later row holds, lies beside. `capacity` transitions (rounded up to a multiple of num_envs)
    take TRANSITION_BYTES each; the CPU's memory is touched only as it fills.
    """

    def __init__(self, capacity: int, num_envs: int, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.num_envs = num_envs
        self.capacity = -(-capacity // num_envs)  # in rows
        # One more row for the newest frame, and three for the stacks of the oldest transitions.
        self.rows = self.capacity + 4
        shape = (self.rows, num_envs)
        self.frames = torch.empty(*shape, *FRAME_SHAPE, dtype=torch.uint8, device=self.device)
        self.actions = torch.empty(shape, dtype=torch.uint8, device=self.device)
        self.rewards = torch.empty(shape, dtype=torch.float32, device=self.device)
        self.terminations = torch.empty(shape, dtype=torch.bool, device=self.device)
        # Frames of the same game before this one, as far as a stack can see: 0 to 3.
        self.history = torch.empty(shape, dtype=torch.uint8, device=self.device)
        # The frame after this one is in `final_frames`, not in the next row.
        self.truncated = torch.empty(shape, dtype=torch.bool, device=self.device)
        self.segment_rows = max(1, SEGMENT // num_envs)
        self.dirty: set[int] = set()  # segments that changed since the last checkpoint
        self.final_frames: dict[int, Tensor] = {}  # by row * num_envs + env
        self.position = 0  # the row of the newest frame
        self.size = 0  # rows whose transitions are complete

    def __len__(self) -> int:
        """Return how many transitions can be sampled."""
        return self.size * self.num_envs

    def start(self, obs: np.ndarray):
        """Take the first obs (num_envs, 4, 84, 84) after a reset of all games."""
        self.position = self.size = 0
        self.final_frames.clear()
        self.frames[0] = torch.from_numpy(obs[:, -1])
        self.history[0] = 0
        self.dirty.add(0)

    def add(
        self,
        next_obs: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminations: np.ndarray,
        game_over: np.ndarray,
        final_obs: np.ndarray | None = None,
    ):
        """Store the step that led to next_obs, of each env; all arrays (num_envs, ...).

        `game_over` says that next_obs is the first of a new game; `final_obs` then holds the last
        obs of each truncated game and None elsewhere.
        """
        row, following = self.position, (self.position + 1) % self.rows
        self.actions[row] = torch.from_numpy(actions)
        self.rewards[row] = torch.from_numpy(rewards)
        self.terminations[row] = torch.from_numpy(terminations)
        self.truncated[row] = False
        if self.final_frames or final_obs is not None:
            for env in range(self.num_envs):
                self.final_frames.pop(row * self.num_envs + env, None)
                if final_obs is not None and final_obs[env] is not None:
                    frame = torch.from_numpy(final_obs[env][-1].copy()).to(self.device)
                    self.final_frames[row * self.num_envs + env] = frame
                    self.truncated[row, env] = True
        self.frames[following] = torch.from_numpy(next_obs[:, -1])
        history = (self.history[row] + 1).clamp(max=3)
        self.history[following] = history * torch.from_numpy(~game_over).to(self.device)
        self.dirty |= {row // self.segment_rows, following // self.segment_rows}
        self.position = following
        self.size = min(self.size + 1, self.capacity)

    def segment(self, index: int) -> list[Tensor]:
        """Return the rows of a segment, a view of each tensor: what a checkpoint keeps of them."""
        rows = slice(index * self.segment_rows, (index + 1) * self.segment_rows)
        parts = (self.frames, self.actions, self.rewards, self.terminations, self.history)
        return [part[rows] for part in (*parts, self.truncated)]

    def state_dict(self) -> dict:
        """Return what is not in the segments."""
        names = ("position", "size", "final_frames")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict):
        """Go on from a checkpoint, whose segments have been read already."""
        self.position, self.size = state["position"], state["size"]
        frames = state["final_frames"].items()
        self.final_frames = {at: frame.to(self.device) for at, frame in frames}

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Batch:
        """Draw a batch of transitions uniformly, with replacement."""
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.device)
        return self.transitions(index)

    def newest(self, count: int) -> Tensor | None:
        """Return the obs of the newest `count` transitions, uint8 (count, 4, 84, 84).

        The newest comes first. None before there are as many.
        """
        if len(self) < count:
            return None
        return self.transitions(torch.arange(count, device=self.device)).obs

    def transitions(self, index: Tensor) -> Batch:
        """Return the transitions with these numbers (batch,), counted back from the newest one."""
        rows, envs = self.position - 1 - index // self.num_envs, index % self.num_envs
        rows = rows % self.rows
        # Five frames serve both obs (the first four) and next_obs (the last four).
        offsets = torch.arange(-3, 2, device=self.device)
        at = (rows.unsqueeze(1) + offsets) % self.rows * self.num_envs + envs.unsqueeze(1)
        frames = (
            self.frames.view(-1, *FRAME_SHAPE)
            .index_select(0, at.flatten())
            .view(-1, 5, *FRAME_SHAPE)
        )
        here = rows * self.num_envs + envs
        frames *= (-offsets <= self.history.view(-1)[here].unsqueeze(1))[:, :, None, None]
        if self.final_frames:
            for k in torch.nonzero(self.truncated.view(-1)[here]).flatten().tolist():
                frames[k, 4] = self.final_frames[int(here[k])]
        return Batch(
            channels_last(frames[:, :4]),
            self.actions.view(-1)[here].long(),
            self.rewards.view(-1)[here],
            channels_last(frames[:, 1:]),
            self.terminations.view(-1)[here].float(),
        )
