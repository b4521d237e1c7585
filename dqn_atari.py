"""DQN on Atari with a Hadamard representation: v1 Table 3 of arXiv 2406.09079 by default.

    python dqn_atari.py                                       Tanh (HR) on Breakout, the full run
    python dqn_atari.py --activation relu --branches 1        the plain network
    python dqn_atari.py --env-id Seaquest --seed 2 --precision bf16

One step is one agent step, which is 4 emulator frames. Reads top to bottom: flags, network, replay
memory, loss, training loop; the layer, the measures, the games and the run folder are imported.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atari import AtariEnvs
from experiment import (
    Run,
    UsageError,
    check_shared_flags,
    free_memory,
    launch,
    pick_device,
    require,
)
from hadamard import HadamardConv2d, HadamardLinear

FRAME = (84, 84)
LOG_EVERY = 1_000  # agent steps between two points of the loss curves


@dataclass
class Args:
    """DQN on Atari with a Hadamard representation. A step is an agent step (4 emulator frames)."""

    env_id: str = "Breakout"
    """the game: Breakout, ALE/Breakout-v5, BreakoutNoFrameskip-v4 and breakout mean the same"""
    seed: int = 1
    """seed of the network, the exploration, the replay sampling and the games"""
    total_timesteps: int = 10_000_000
    """steps of the run, summed over the parallel games (the paper: 10M, which are 40M frames)"""
    activation: str = "tanh"
    """of the hidden layers that --apply-to names: relu, tanh, sigmoid, selu, gelu, elu, silu,
    identity"""
    branches: int = 2
    """factors of the product: 1 is the plain layer, 2 the paper's HR, 3 its 2xHR"""
    combine: str = "product"
    """what becomes of the branches: product or sum"""
    latent_dim: int = 512
    """width of the last hidden layer, z (1024 with --branches 1: the parameter-matched control)"""
    layer_norm: bool = False
    """normalise inside each branch, before its activation"""
    apply_to: str = "last"
    """hidden layers that get activation, branches and norm: last or all; the others are ReLU"""
    num_envs: int = 4
    """games played in parallel; 1 is the original loop. Gradient steps per step stay the same"""
    env_threads: int = 0
    """threads of the emulator; 0: one per core, at most one per game"""
    sticky_actions: float = 0.0
    """chance that the emulator repeats the last action (the paper: 0)"""
    learning_rate: float = 1e-4
    """of Adam"""
    adam_eps: float = 1e-5
    """epsilon of Adam (CleanRL: 1e-8)"""
    buffer_size: int = 1_000_000
    """transitions in the replay memory, 7.1 kB each, on the device that trains"""
    gamma: float = 0.99
    """discount factor"""
    tau: float = 1.0
    """share of the online network in the target network at an update of the latter"""
    target_network_frequency: int = 1_000
    """steps between two updates of the target network"""
    batch_size: int = 32
    """transitions per gradient step"""
    start_e: float = 1.0
    """epsilon at the start"""
    end_e: float = 0.1
    """epsilon at the end (CleanRL: 0.01)"""
    exploration_fraction: float = 0.1
    """share of total-timesteps over which epsilon falls"""
    learning_starts: int = 80_000
    """steps before the first gradient step"""
    train_frequency: int = 4
    """steps per gradient step"""
    double_dqn: bool = False
    """let the online network choose the action that the target network values (v1 Eq. 3)"""
    metrics_every: int = 20_000
    """steps between two measurements of the representation"""
    metrics_samples: int = 2048
    """newest observations that a measurement uses (the KDE test depends on their number)"""
    device: str = "auto"
    """auto, cpu or cuda; the replay memory lies there too"""
    precision: str = "fp32"
    """fp32 or bf16 (autocast; the weights stay fp32)"""
    runs_dir: str = "runs"
    """where the run folder is made"""
    track: bool = False
    """mirror TensorBoard to Weights & Biases, if installed"""


def check(args: Args):
    """UsageError for a flag that cannot work, before anything is made."""
    check_shared_flags(args)
    counts = ("buffer_size", "target_network_frequency", "batch_size", "train_frequency")
    require(args, "at least 1", lambda value: value >= 1, *counts)
    require(args, "at least 0", lambda value: value >= 0, "learning_starts")
    require(args, "above 0", lambda value: value > 0, "learning_rate", "adam_eps")
    require(args, "in [0, 1]", lambda value: 0 <= value <= 1, "gamma", "start_e", "end_e")
    require(args, "in (0, 1]", lambda value: 0 < value <= 1, "tau", "exploration_fraction")
    if args.learning_starts > args.total_timesteps:
        raise UsageError(
            f"--learning-starts {args.learning_starts} lies after the end of the run: it must be "
            f"at most --total-timesteps {args.total_timesteps}"
        )
    smallest = max(args.batch_size, args.metrics_samples, args.num_envs)
    if args.buffer_size < smallest:
        raise UsageError(
            f"--buffer-size {args.buffer_size} must be at least {smallest}, the largest of "
            "--batch-size, --metrics-samples and --num-envs"
        )


class QNetwork(nn.Module):
    """The Nature network (Mnih et al. 2015); z is its last hidden layer.

    obs uint8 (batch, 4, 84, 84) -> Q-values (batch, actions).
    """

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        changed = {
            "activation": args.activation,
            "branches": args.branches,
            "combine": args.combine,
            "layer_norm": args.layer_norm,
        }
        conv = changed if args.apply_to == "all" else {"activation": "relu", "branches": 1}
        self.features = nn.Sequential(
            HadamardConv2d(4, 32, 8, stride=4, **conv),
            HadamardConv2d(32, 64, 4, stride=2, **conv),
            HadamardConv2d(64, 64, 3, stride=1, **conv),
            nn.Flatten(),
        )
        self.latent = HadamardLinear(64 * 7 * 7, args.latent_dim, **changed)
        self.head = nn.Linear(args.latent_dim, num_actions)

    def encode(self, obs: Tensor) -> Tensor:
        """The input of the last hidden layer: (batch, 3136)."""
        # Channels last: the layout in which the convolutions are fastest, 1.3 to 2 times on a CPU.
        x = (obs.float() / 255.0).contiguous(memory_format=torch.channels_last)
        return self.features(x)

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(self.latent(self.encode(obs)))


class Batch(NamedTuple):
    """Transitions drawn from the replay memory; obs are uint8 (batch, 4, 84, 84)."""

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
    no later row holds, lies in a small store beside. `capacity` transitions (rounded up to a
    multiple of num_envs) take 7,067 bytes each; memory is touched only as it fills.

    Raises UsageError, before taking any, if the device's free memory cannot hold it.
    """

    def __init__(self, capacity: int, num_envs: int, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.num_envs = num_envs
        self.capacity = -(-capacity // num_envs)  # in rows
        # One more row for the newest frame, and three for the stacks of the oldest transitions.
        self.rows = self.capacity + 4
        pixels = FRAME[0] * FRAME[1]
        bytes_each = pixels + 1 + 4 + 1 + 1 + 4
        needed, free = self.rows * num_envs * bytes_each, free_memory(self.device)
        largest = int(0.9 * min(free, needed) / bytes_each)
        message = (
            f"--buffer-size {capacity} needs {needed / 1e9:.1f} GB of memory on {self.device}, "
            f"{free / 1e9:.1f} GB are free: choose at most --buffer-size {largest}"
        )
        if needed > 0.95 * free:
            raise UsageError(message)
        shape = (self.rows, num_envs)
        try:
            self.frames = torch.empty(*shape, *FRAME, dtype=torch.uint8, device=self.device)
            self.actions = torch.empty(shape, dtype=torch.uint8, device=self.device)
            self.rewards = torch.empty(shape, dtype=torch.float32, device=self.device)
            self.terminations = torch.empty(shape, dtype=torch.bool, device=self.device)
            # Frames of the same game before this one, as far as a stack can see: 0 to 3.
            self.history = torch.empty(shape, dtype=torch.uint8, device=self.device)
            # Where `final_frames` holds the frame after a truncation; -1: it is in the next row.
            self.final_index = torch.empty(shape, dtype=torch.int32, device=self.device)
        except RuntimeError as error:
            raise UsageError(f"{message} (the system refused: a memory limit?)") from error
        self.final_frames = torch.zeros(1, *FRAME, dtype=torch.uint8, device=self.device)
        self._free_slots = [0]
        self._slots_of_row: dict[int, list[int]] = {}
        self.position = 0  # the row of the newest frame
        self.size = 0  # rows whose transitions are complete

    def __len__(self) -> int:
        """Transitions that can be sampled."""
        return self.size * self.num_envs

    def start(self, obs: np.ndarray):
        """Take the first obs (num_envs, 4, 84, 84) after a reset of all games."""
        self.position = self.size = 0
        self._free_slots += [slot for slots in self._slots_of_row.values() for slot in slots]
        self._slots_of_row.clear()
        self.frames[0] = torch.from_numpy(obs[:, -1])
        self.history[0] = 0

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
        self._free_slots += self._slots_of_row.pop(row, ())
        self.final_index[row] = -1
        if final_obs is not None:
            for env, obs in enumerate(final_obs):
                if obs is not None:
                    self._store_final_frame(row, env, obs[-1])
        self.frames[following] = torch.from_numpy(next_obs[:, -1])
        history = (self.history[row] + 1).clamp(max=3)
        self.history[following] = history.masked_fill(self._tensor(game_over), 0)
        self.position = following
        self.size = min(self.size + 1, self.capacity)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _store_final_frame(self, row: int, env: int, frame: np.ndarray):
        if not self._free_slots:
            count = len(self.final_frames)
            self.final_frames = torch.cat([self.final_frames, torch.zeros_like(self.final_frames)])
            self._free_slots = list(range(count, 2 * count))
        slot = self._free_slots.pop()
        self._slots_of_row.setdefault(row, []).append(slot)
        self.final_index[row, env] = slot
        self.final_frames[slot] = torch.from_numpy(frame)

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Batch:
        """Draw transitions uniformly, with replacement."""
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.device)
        back, envs = index // self.num_envs + 1, index % self.num_envs
        return self._gather((self.position - back) % self.rows, envs)

    def newest_obs(self, count: int) -> Tensor:
        """The obs of the newest `count` transitions, uint8 (count, 4, 84, 84), newest first."""
        index = torch.arange(count, device=self.device)
        back, envs = index // self.num_envs + 1, index % self.num_envs
        return self._gather((self.position - back) % self.rows, envs).obs

    def _gather(self, rows: Tensor, envs: Tensor) -> Batch:
        # Five frames serve both obs (the first four) and next_obs (the last four).
        offsets = torch.arange(-3, 2, device=self.device)
        at = (rows.unsqueeze(1) + offsets) % self.rows * self.num_envs + envs.unsqueeze(1)
        frames = self.frames.view(-1, *FRAME).index_select(0, at.flatten()).view(-1, 5, *FRAME)
        here = rows * self.num_envs + envs
        frames *= (-offsets <= self.history.view(-1)[here].unsqueeze(1))[:, :, None, None]
        if self._slots_of_row:  # some game in the memory was truncated
            final_index = self.final_index.view(-1)[here].long()
            final_frames = self.final_frames[final_index.clamp(min=0)]
            truncated = (final_index >= 0)[:, None, None]
            frames[:, 4] = torch.where(truncated, final_frames, frames[:, 4])
        return Batch(
            frames[:, :4],
            self.actions.view(-1)[here].long(),
            self.rewards.view(-1)[here],
            frames[:, 1:],
            self.terminations.view(-1)[here].float(),
        )


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """From start to end over `duration` steps, then constant."""
    return start + (end - start) * min(step / duration, 1.0)


def multiples(since: int, now: int, every: int) -> int:
    """How many multiples of `every` lie in (since, now]: what falls due in a vector step."""
    return now // every - since // every


def td_loss(
    q_network: nn.Module, target_network: nn.Module, batch: Batch, gamma: float, double_dqn: bool
) -> tuple[Tensor, Tensor]:
    """L = |Y - Q(s, a)|^2 (v1 Eq. 4), mean over the batch, and the Q(s, a) (batch,).

    Y = r + gamma (1 - d) max_a Q'(s', a) (Mnih et al. 2015), or with double_dqn
    Y = r + gamma (1 - d) Q'(s', argmax_a Q(s', a)) (v1 Eq. 3); d: life lost or game over.
    """
    with torch.no_grad():
        next_q = target_network(batch.next_obs).float()
        choice = q_network(batch.next_obs) if double_dqn else next_q
        next_q = next_q.gather(1, choice.argmax(dim=1, keepdim=True)).squeeze(1)
        targets = batch.rewards + gamma * (1 - batch.terminations) * next_q
    q_values = q_network(batch.obs).float().gather(1, batch.actions.unsqueeze(1)).squeeze(1)
    return F.mse_loss(q_values, targets), q_values


@torch.no_grad()
def update_target(target_network: nn.Module, q_network: nn.Module, tau: float):
    """Q' <- tau Q + (1 - tau) Q'."""
    for target, online in zip(target_network.parameters(), q_network.parameters(), strict=True):
        target.lerp_(online, tau)


@torch.no_grad()
def act(
    q_network: nn.Module, obs: np.ndarray, epsilon: float, device: torch.device, rng
) -> np.ndarray:
    """Epsilon-greedy actions, int64 (num_envs,), each env on its own."""
    explore = rng.random(len(obs)) < epsilon
    actions = rng.integers(q_network.head.out_features, size=len(obs))
    if not explore.all():
        greedy = q_network(torch.from_numpy(obs).to(device)).argmax(dim=1).cpu().numpy()
        actions = np.where(explore, actions, greedy)
    return actions


@torch.no_grad()
def measure(run: Run, step: int, q_network: QNetwork, obs: Tensor):
    """Log the state of z and its branches over obs (samples, 4, 84, 84), always in fp32."""
    branches = [
        q_network.latent.branch_activations(q_network.encode(part)) for part in obs.split(256)
    ]
    z = torch.cat([q_network.latent.combine_branches(part) for part in branches])
    run.representation(step, z, torch.cat(branches, dim=1), q_network.head)


def main(args: Args) -> int:
    check(args)
    device = pick_device(args.device)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    envs = AtariEnvs(
        args.env_id,
        args.num_envs,
        args.seed,
        sticky_actions=args.sticky_actions,
        num_threads=args.env_threads,
    )
    num_actions = int(envs.single_action_space.n)
    q_network = QNetwork(num_actions, args).to(device, memory_format=torch.channels_last)
    target_network = QNetwork(num_actions, args).to(device, memory_format=torch.channels_last)
    target_network.load_state_dict(q_network.state_dict())
    optimizer = torch.optim.Adam(
        q_network.parameters(), lr=args.learning_rate, eps=args.adam_eps, fused=True
    )
    buffer = ReplayBuffer(args.buffer_size, args.num_envs, device)
    sampling = torch.Generator(device).manual_seed(args.seed)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")
    num_parameters = sum(parameter.numel() for parameter in q_network.parameters())

    with Run(args, "dqn", num_parameters, device) as run:
        step = 0
        obs, _ = envs.reset()
        buffer.start(obs)
        losses, q_sums = [], []
        while step < args.total_timesteps and run.stopped is None:
            # 1. act
            duration = args.exploration_fraction * args.total_timesteps
            epsilon = linear_schedule(args.start_e, args.end_e, duration, step)
            with autocast:
                actions = act(q_network, obs, epsilon, device, rng)

            # 2. step the games
            obs, rewards, terminations, _, infos = envs.step(actions)
            previous, step = step, step + args.num_envs
            run.episodes(step, infos)

            # 3. store
            buffer.add(
                obs,
                infos["executed_actions"],
                rewards,
                terminations,
                infos["game_over"],
                infos.get("final_obs"),
            )

            # 4. learn: whatever the number of games, one update per train_frequency steps
            if step > args.learning_starts:
                for _ in range(multiples(previous, step, args.train_frequency)):
                    batch = buffer.sample(args.batch_size, sampling)
                    with autocast:
                        loss, q_values = td_loss(
                            q_network, target_network, batch, args.gamma, args.double_dqn
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.detach())
                    q_sums.append(q_values.detach().mean())
                if multiples(previous, step, args.target_network_frequency):
                    update_target(target_network, q_network, args.tau)

            # 5. log
            if multiples(previous, step, LOG_EVERY) or step >= args.total_timesteps:
                values = {"charts/epsilon": epsilon, "charts/learning_rate": args.learning_rate}
                if losses:
                    values["losses/td_loss"] = torch.stack(losses).mean().item()
                    values["losses/q_values"] = torch.stack(q_sums).mean().item()
                    losses, q_sums = [], []
                run.scalars(step, values)
                run.progress(step)
            measured = multiples(previous, step, args.metrics_every)
            if measured and len(buffer) >= args.metrics_samples:
                measure(run, step, q_network, buffer.newest_obs(args.metrics_samples))
        status = run.finish(step, q_network)
    envs.close()
    return status


if __name__ == "__main__":
    launch(main, Args)
