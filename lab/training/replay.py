"""DQN's replay memory: one frame per transition, the exact stacks rebuilt when it is sampled."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.common.device import upload
from lab.training.frames import FRAME_SHAPE, channels_last

# Transitions in a segment of the replay memory, 7 MB: the least that a checkpoint writes of it.
SEGMENT = 1024
# Truncated games that the replay memory has room for, besides one of each env, as all of them can
# be cut off in the same step: one takes 27,000 agent steps.
MOST_TRUNCATED = 1024
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
    no later row holds, lies beside. Frames lie on the device and the rest on the host, which draws
    and works out where the frames of a batch lie: so nothing is asked of a GPU. `capacity`
    transitions (rounded up to a multiple of num_envs) take TRANSITION_BYTES each; the CPU's memory
    is touched only as it fills.
    """

    def __init__(self, capacity: int, num_envs: int, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.num_envs = num_envs
        self.capacity = -(-capacity // num_envs)  # in rows
        # One more row for the newest frame, and three for the stacks of the oldest transitions.
        self.rows = self.capacity + 4
        shape = (self.rows, num_envs)
        count = self.rows * num_envs
        beside = min(count, MOST_TRUNCATED + num_envs)  # final frames; and one of zeros
        self.store = torch.empty(
            count + 1 + beside, *FRAME_SHAPE, dtype=torch.uint8, device=self.device
        )
        self.actions = np.empty(shape, dtype=np.uint8)
        self.rewards = np.empty(shape, dtype=np.float32)
        self.terminations = np.empty(shape, dtype=bool)
        # Frames of the same game before this one, as far as a stack can see: 0 to 3.
        self.history = np.empty(shape, dtype=np.uint8)
        # The frame after this one is among the final frames, not in the next row.
        self.truncated = np.empty(shape, dtype=bool)
        self.zeros = count  # where in the store the frame of zeros lies
        self.store[self.zeros] = 0
        self.free = list(range(count + 1, len(self.store)))  # places for final frames
        self.final_at: dict[int, int] = {}  # row * num_envs + env -> place in the store
        self.segment_rows = max(1, SEGMENT // num_envs)
        self.dirty: set[int] = set()  # segments that changed since the last checkpoint
        self.position = 0  # the row of the newest frame
        self.size = 0  # rows whose transitions are complete

    @property
    def frames(self) -> Tensor:
        """Return the frames of the ring, uint8 (rows, num_envs, 84, 84)."""
        return self.store[: self.zeros].view(self.rows, self.num_envs, *FRAME_SHAPE)

    def __len__(self) -> int:
        """Return how many transitions can be sampled."""
        return self.size * self.num_envs

    def start(self, obs: np.ndarray):
        """Take the first obs (num_envs, 4, 84, 84) after a reset of all games."""
        self.position = self.size = 0
        self._clear_final_frames()
        self._put_frames(0, obs)
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
        self.actions[row] = actions
        self.rewards[row] = rewards
        self.terminations[row] = terminations
        self.truncated[row] = False
        if self.final_at or final_obs is not None:
            for env in range(self.num_envs):
                transition = row * self.num_envs + env
                if transition in self.final_at:
                    self.free.append(self.final_at.pop(transition))
                if final_obs is not None and final_obs[env] is not None:
                    self._keep_final(transition, torch.from_numpy(final_obs[env][-1].copy()))
                    self.truncated[row, env] = True
        self._put_frames(following, next_obs)
        self.history[following] = np.minimum(self.history[row] + 1, 3) * ~game_over
        self.dirty |= {row // self.segment_rows, following // self.segment_rows}
        self.position = following
        self.size = min(self.size + 1, self.capacity)

    def _put_frames(self, row: int, obs: np.ndarray):
        """Put the newest frames of obs (num_envs, 4, 84, 84) into a row of the ring."""
        place = row * self.num_envs
        newest = torch.from_numpy(obs[:, -1])
        self.store[place : place + self.num_envs] = upload(newest, self.device)

    def _keep_final(self, transition: int, frame: Tensor):
        """Put the last frame of a truncated game beside the ring."""
        if not self.free:
            most = len(self.final_at)
            raise RuntimeError(f"more than {most} truncated games in the replay memory")
        self.final_at[transition] = place = self.free.pop()
        self.store[place] = upload(frame, self.device)

    def _clear_final_frames(self):
        self.free += self.final_at.values()
        self.final_at.clear()

    def segment(self, index: int) -> list[Tensor]:
        """Return the rows of a segment, a view of each tensor: what a checkpoint keeps of them."""
        rows = slice(index * self.segment_rows, (index + 1) * self.segment_rows)
        parts = (self.actions, self.rewards, self.terminations, self.history, self.truncated)
        return [self.frames[rows], *(torch.from_numpy(part[rows]) for part in parts)]

    def state_dict(self) -> dict:
        """Return what is not in the segments."""
        frames = {at: self.store[place].clone() for at, place in self.final_at.items()}
        return {"position": self.position, "size": self.size, "final_frames": frames}

    def load_state_dict(self, state: dict):
        """Go on from a checkpoint, whose segments have been read already."""
        self.position, self.size = state["position"], state["size"]
        self._clear_final_frames()
        for transition, frame in state["final_frames"].items():
            self._keep_final(transition, frame)

    def draw(self, count: int, generator: torch.Generator | None = None, coming: int = 0) -> Tensor:
        """Draw numbers of transitions, int64 (count,), uniformly, with replacement.

        Of those that will be there after `coming` more steps of the games: with 1, numbers below
        num_envs are of the step that comes.
        """
        there = min(self.size + coming, self.capacity) * self.num_envs
        return torch.randint(there, (count,), generator=generator)

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Batch:
        """Draw a batch of transitions uniformly, with replacement."""
        return self.transitions(self.draw(batch_size, generator))

    def newest(self, count: int) -> Tensor | None:
        """Return the obs of the newest `count` transitions, uint8 (count, 4, 84, 84).

        The newest comes first. None before there are as many.
        """
        if len(self) < count:
            return None
        return self.transitions(torch.arange(count)).obs

    def transitions(self, index: Tensor) -> Batch:
        """Return the transitions with these numbers (batch,), counted back from the newest one."""
        places, numbers = self.locate(index)
        return self.gather(upload(places, self.device), upload(numbers, self.device))

    def locate(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `gather` makes the transitions with these numbers (batch,) of, on the host.

        Places of five frames in the store, int64 (batch * 5,), and actions, rewards and
        terminations, float32 (3, batch).
        """
        index = index.numpy()
        rows, envs = self.position - 1 - index // self.num_envs, index % self.num_envs
        rows %= self.rows
        # Five frames serve both obs (the first four) and next_obs (the last four).
        offsets = np.arange(-3, 2)
        places = (rows[:, None] + offsets) % self.rows * self.num_envs + envs[:, None]
        places[-offsets > self.history[rows, envs][:, None]] = self.zeros
        if self.final_at:
            for k in np.flatnonzero(self.truncated[rows, envs]):
                places[k, 4] = self.final_at[int(rows[k]) * self.num_envs + int(envs[k])]
        parts = (self.actions, self.rewards, self.terminations)
        numbers = np.stack([part[rows, envs].astype(np.float32) for part in parts])
        return torch.from_numpy(places.reshape(-1)), torch.from_numpy(numbers)

    def gather(self, places: Tensor, numbers: Tensor) -> Batch:
        """Return the batch whose frames lie at these places; see `locate`. All on the device."""
        frames = self.store.index_select(0, places).view(-1, 5, *FRAME_SHAPE)
        actions, rewards, terminations = numbers
        return Batch(
            channels_last(frames[:, :4]),
            actions.long(),
            rewards,
            channels_last(frames[:, 1:]),
            terminations,
        )
