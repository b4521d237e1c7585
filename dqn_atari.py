"""DQN on Atari with a Hadamard representation: v1 Table 3 of arXiv 2406.09079 by default.

    python dqn_atari.py                                       Tanh (HR) on Breakout, the full run
    python dqn_atari.py --activation relu --branches 1        the plain network
    python dqn_atari.py --env-id Seaquest --seed 2 --precision bf16

One step is one agent step, which is 4 emulator frames. Reads top to bottom: flags, heads, loss,
update, acting, training loop; the encoder, the replay memory, the measures, the games and the run
folder are imported.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard import init_parameters
from lab.common.cli import UsageError, above, at_least, at_most, between
from lab.common.device import pick_device
from lab.training.checks import check_shared_flags
from lab.training.encoder import Encoder
from lab.training.graphs import Graphed
from lab.training.logger import Means
from lab.training.measure import PROBES
from lab.training.replay import Batch, ReplayBuffer
from lab.training.run import Run, launch, make_envs

LOSSES = ("td_loss", "q_values")
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
    tag: str = ""
    """a word for a change that no flag makes: in the name of the run, and a setting of its own"""
    activation: str = "tanh"
    """of the hidden layers that --apply-to names: relu, tanh, sigmoid, selu, gelu,
    gelu_tanh, elu, silu, identity"""
    branches: int = 2
    """factors of the product: 1 is the plain layer, 2 the paper's HR, 3 its 2xHR"""
    combine: str = "product"
    """what becomes of the branches: product or sum"""
    latent_dim: int = 512
    """features of the last hidden layer, z"""
    width: float | str = 1.0
    """factor of the channels and z of the layers that --apply-to names; match: as many parameters
    with --branches 1 as with --branches 2"""
    layer_norm: bool = False
    """normalise inside each branch, before its activation"""
    apply_to: str = "last"
    """hidden layers that get activation, branches and norm: last or all; the others are ReLU"""
    encoder: str = "nature"
    """nature (the paper's), or hadamax: its successor (arXiv 2505.15345), with max-pooling"""
    init: str = "torch"
    """of the head and of each branch, as if it were a layer alone: torch, orthogonal, he_normal,
    xavier_normal, gated (orthogonal, but all branches save the first start nearly constant)"""
    num_envs: int = 4
    """games played in parallel; 1 is the original loop. Gradient steps per step stay the same"""
    env_threads: int = 0
    """threads of the emulator; 0: one per core, at most one per game"""
    sticky_actions: float = 0.0
    """chance that the emulator repeats the last action (the paper: 0)"""
    learning_rate: float = 1e-4
    """of Adam (0 freezes the network)"""
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
    """steps between two measurements of the representation; the first is made before, as soon as
    --metrics-samples observations have been played. A shorter run measures nothing"""
    metrics_samples: int = 2048
    """newest observations that a measurement uses (the KDE test depends on their number)"""
    device: str = "auto"
    """auto, cpu or cuda; the replay memory lies there too"""
    precision: str = "fp32"
    """fp32, bf16 (autocast; the weights stay fp32) or, on a GPU, tf32"""
    cuda_graphs: bool = True
    """on a GPU, replay what it computes as CUDA graphs; a CPU has none"""
    runs_dir: str = "runs"
    """where the run folder is made"""
    track: bool = False
    """mirror TensorBoard to Weights & Biases, if installed"""
    checkpoint_every: float = 10.0
    """minutes between two checkpoints, from which the run can go on; 0: as often as can be"""
    resume: str = ""
    """folder of a run to go on with, by its own flags; auto: the unfinished run of these flags"""


def check(args: Args):
    """Raise UsageError for a flag that cannot work, before anything is made."""
    check_shared_flags(args)
    counts = ("buffer_size", "target_network_frequency", "batch_size", "train_frequency")
    at_least(args, 1, *counts)
    at_least(args, 0, "learning_starts", "learning_rate")
    above(args, 0, "adam_eps")
    between(args, 0, 1, "gamma", "start_e", "end_e")
    above(args, 0, "tau", "exploration_fraction")
    at_most(args, 1, "tau", "exploration_fraction")
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


class QNetwork(Encoder):
    """Map obs uint8 (batch, 4, 84, 84) to Q-values (batch, actions), linear in z."""

    def __init__(self, num_actions: int, args: Args):
        super().__init__(args)
        self.head = nn.Linear(self.latent.out_features, num_actions)
        self.reset_hidden(args.init)
        init_parameters(self.head.weight, self.head.bias, args.init, gain=1.0)

    def forward(self, obs: Tensor) -> Tensor:
        z = self.encode(obs)
        with torch.autocast(obs.device.type, enabled=False):  # the head computes in fp32
            return self.head(z)


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Return the value at a step: from start to end over `duration` steps, then constant."""
    return start + (end - start) * min(step / duration, 1.0)


def td_loss(
    q_network: nn.Module, target_network: nn.Module, batch: Batch, gamma: float, double_dqn: bool
) -> tuple[Tensor, Tensor]:
    """Return L = |Y - Q(s, a)|^2 (v1 Eq. 4), mean over the batch, and the Q(s, a) (batch,).

    Y = r + gamma (1 - d) max_a Q'(s', a) (Mnih et al. 2015), or with double_dqn
    Y = r + gamma (1 - d) Q'(s', argmax_a Q(s', a)) (v1 Eq. 3); d: life lost or game over.
    """
    with torch.no_grad():
        next_q = target_network(batch.next_obs)
        choice = q_network(batch.next_obs) if double_dqn else next_q
        next_q = next_q.gather(1, choice.argmax(dim=1, keepdim=True)).squeeze(1)
        targets = batch.rewards + gamma * (1 - batch.terminations) * next_q
    q_values = q_network(batch.obs).gather(1, batch.actions.unsqueeze(1)).squeeze(1)
    return F.mse_loss(q_values, targets), q_values


def update(
    q_network: nn.Module,
    target_network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    args: Args,
) -> dict[str, Tensor]:
    """Take one gradient step; return the loss and the mean Q(s, a), scalars, by tag."""
    loss, q_values = td_loss(q_network, target_network, batch, args.gamma, args.double_dqn)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"losses/td_loss": loss.detach(), "losses/q_values": q_values.detach().mean()}


@torch.no_grad()
def update_target(target_network: nn.Module, q_network: nn.Module, tau: float):
    """Move the target network by Q' <- tau Q + (1 - tau) Q'."""
    for target, online in zip(target_network.parameters(), q_network.parameters(), strict=True):
        target.lerp_(online, tau)


@torch.no_grad()
def greedy_actions(q_network: nn.Module, obs: Tensor) -> Tensor:
    """Return the actions of the highest Q-value, int64 (num_envs,)."""
    return q_network(obs).argmax(dim=1)


def act(
    choose: Callable, obs: np.ndarray, epsilon: float, num_actions: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw epsilon-greedy actions, int64 (num_envs,), for obs uint8 (num_envs, 4, 84, 84).

    `choose(obs)` gives the greedy ones.
    """
    explore = rng.random(len(obs)) < epsilon
    actions = rng.integers(num_actions, size=len(obs))
    if not explore.all():
        actions = np.where(explore, actions, choose(torch.from_numpy(obs)).cpu().numpy())
    return actions


def make_graphs(
    q_network: QNetwork,
    target_network: QNetwork,
    optimizer: torch.optim.Optimizer,
    buffer: ReplayBuffer,
    args: Args,
) -> tuple[Graphed, Graphed]:
    """Return `greedy_actions` and `update` as functions of tensors, CUDA graphs on a GPU.

    The latter learns from what `buffer.locate` gives.
    """

    def learn(places: Tensor, numbers: Tensor):
        batch = buffer.gather(places, numbers)
        return update(q_network, target_network, optimizer, batch, args)

    choose, read = partial(greedy_actions, q_network), (q_network, target_network, buffer.store)
    return (
        Graphed("act", choose, buffer.device, (q_network,), args.cuda_graphs),
        Graphed("update", learn, buffer.device, (*read, optimizer), args.cuda_graphs),
    )


def main(args: Args) -> int:
    """Train DQN with these flags; return the exit status."""
    device = pick_device(args.device, args.precision)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    buffer = ReplayBuffer(args.buffer_size, args.num_envs, device)
    sampling = torch.Generator().manual_seed(args.seed)
    envs, obs = make_envs(args)
    num_actions = int(envs.single_action_space.n)
    q_network = QNetwork(num_actions, args)
    q_network.to(device, memory_format=torch.channels_last)
    target_network = copy.deepcopy(q_network)
    optimizer = torch.optim.Adam(
        q_network.parameters(), lr=args.learning_rate, eps=args.adam_eps, fused=True
    )
    choose, learn = make_graphs(q_network, target_network, optimizer, buffer, args)
    buffer.start(obs)
    losses = Means(device)  # of the updates since the last log

    def measured_loss(network: QNetwork) -> Tensor:
        target = copy.deepcopy(target_network)
        target.dtype = torch.float32  # as the network that is measured
        batch = buffer.sample(PROBES, torch.Generator().manual_seed(0))
        return td_loss(network, target, batch, args.gamma, args.double_dqn)[0]

    parts = {  # all that a checkpoint holds
        "network": q_network,
        "target_network": target_network,
        "optimizer": optimizer,
        "exploring": rng,
        "sampling": sampling,
        "games": envs,
        "buffer": buffer,
        "losses": losses,
    }
    with Run(args, "dqn", q_network, LOSSES) as run:
        if run.resume(parts):
            obs = envs.obs
        while run.goes_on():
            run.checkpoint(parts)

            # 1. act
            duration = args.exploration_fraction * args.total_timesteps
            epsilon = linear_schedule(args.start_e, args.end_e, duration, run.step)
            actions = act(choose, obs, epsilon, num_actions, rng)

            # 2. step the games, and meanwhile learn from batches without the step that they play:
            # one update per train_frequency steps, whatever the number of games
            envs.send(actions)
            run.count_step()
            due = run.times_due(args.train_frequency, after=args.learning_starts)
            draws = [buffer.draw(args.batch_size, sampling, coming=1) for _ in range(due)]
            if draws:
                run.watch_update(buffer, q_network.head)
            while draws and draws[0].min() >= args.num_envs:
                losses.add(learn(*buffer.locate(draws.pop(0) - args.num_envs)))
            obs, rewards, terminations, _, infos = envs.recv()
            run.log_episodes(infos)

            # 3. store what was played, which after a life loss is FIRE
            played, final_obs = infos["executed_actions"], infos.get("final_obs")
            buffer.add(obs, played, rewards, terminations, infos["game_over"], final_obs)

            # 4. learn from the batches that hold this step
            for draw in draws:
                losses.add(learn(*buffer.locate(draw)))
            for _ in range(run.times_due(args.target_network_frequency, args.learning_starts)):
                update_target(target_network, q_network, args.tau)

            # 5. log
            if run.times_due(LOG_EVERY) or run.step >= args.total_timesteps:
                logs = {"charts/epsilon": epsilon, "charts/learning_rate": args.learning_rate}
                run.log(logs | losses.pop())
            run.measure(buffer, q_network.head, measured_loss)
        status = run.finish(parts)
    envs.close()
    return status


if __name__ == "__main__":
    launch(main, Args, check, "dqn")
