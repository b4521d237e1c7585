"""PQN on Atari with a Hadamard representation: the PQN authors' setting (arXiv 2407.04811).

    python pqn_atari.py                                       Tanh (HR) on Breakout, the full run
    python pqn_atari.py --activation relu --branches 1        the plain network
    python pqn_atari.py --env-id Seaquest --seed 2 --precision bf16

One step is one agent step, which is 4 emulator frames. Reads top to bottom: flags, heads, play,
returns, update, training loop; the encoder, the measures, the games and the run folder are
imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard import init_parameters
from lab.common.cli import above, at_least, at_most, between
from lab.common.device import pick_device, upload
from lab.training.atari import AtariEnvs
from lab.training.checks import check_rollout_flags, check_shared_flags
from lab.training.encoder import Encoder
from lab.training.frames import (
    RecentObs,
    channels_last,
    empty_obs,
    flatten_steps,
    sample_steps,
    take_steps,
)
from lab.training.graphs import Graphed
from lab.training.measure import PROBES
from lab.training.radam import RAdam
from lab.training.run import Run, launch, make_envs

LOSSES = ("td_loss", "q_values")


@dataclass
class Args:
    """PQN on Atari with a Hadamard representation. A step is an agent step (4 emulator frames)."""

    env_id: str = "Breakout"
    """the game: Breakout, ALE/Breakout-v5, BreakoutNoFrameskip-v4 and breakout mean the same"""
    seed: int = 1
    """seed of the network, the actions, the minibatches and the games"""
    total_timesteps: int = 10_000_000
    """steps of the run, summed over the parallel games (10M, as the paper's DQN and PPO)"""
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
    layer_norm: bool = True
    """normalise inside each branch, before its activation"""
    apply_to: str = "all"
    """hidden layers that get activation, branches and norm: last or all; the others are ReLU"""
    encoder: str = "nature"
    """nature (the paper's), or hadamax: its successor (arXiv 2505.15345), with max-pooling"""
    init: str = "he_normal"
    """of the heads and of each branch, as if it were a layer alone: torch, orthogonal,
    he_normal, xavier_normal, gated (orthogonal, but all branches save the first start nearly
    constant)"""
    num_envs: int = 128
    """games played in parallel"""
    env_threads: int = 0
    """threads of the emulator; 0: one per core, at most one per game"""
    sticky_actions: float = 0.0
    """chance that the emulator repeats the last action (the paper: 0)"""
    learning_rate: float = 2.5e-4
    """of RAdam, at the start (0 freezes the network)"""
    anneal_lr: bool = False
    """let the learning rate fall to 0 over the run"""
    num_steps: int = 32
    """steps that each game plays between two updates"""
    num_minibatches: int = 32
    """minibatches per epoch"""
    update_epochs: int = 2
    """passes over the steps of a rollout"""
    gamma: float = 0.99
    """discount factor"""
    q_lambda: float = 0.65
    """lambda of the Q(lambda) returns"""
    start_e: float = 1.0
    """epsilon at the start"""
    end_e: float = 0.001
    """epsilon at the end"""
    exploration_fraction: float = 0.1
    """share of total-timesteps over which epsilon falls"""
    max_grad_norm: float = 10.0
    """norm that the gradient is clipped to"""
    metrics_every: int = 20_000
    """steps between two measurements of the representation; the first is made before, as soon as
    --metrics-samples observations have been played. A shorter run measures nothing"""
    metrics_samples: int = 2048
    """newest observations that a measurement uses (the KDE test depends on their number); there is
    none before as many have been played"""
    device: str = "auto"
    """auto, cpu or cuda; the rollouts lie there too"""
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
    check_rollout_flags(args)
    at_least(args, 0, "learning_rate")
    above(args, 0, "max_grad_norm")
    shares = ("gamma", "q_lambda", "start_e", "end_e")
    between(args, 0, 1, *shares)
    above(args, 0, "exploration_fraction")
    at_most(args, 1, "exploration_fraction")


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


class Rollout(NamedTuple):
    """Steps that were played: (steps, envs, ...) in a rollout, (batch, ...) in a minibatch.

    What the games say of them lies on the host until it is learnt from, the rest on the device.
    """

    obs: Tensor  # uint8 (..., 4, 84, 84), channels last in memory
    actions: Tensor  # int64, as executed, which after a life loss is FIRE
    rewards: Tensor  # plus gamma max_a Q(final_obs, a) where a game was truncated
    dones: Tensor  # bool: life lost, game over or truncated
    values: Tensor  # max_a Q(obs, a) of the network that played
    returns: Tensor  # Q(lambda) returns, the targets


def empty_rollout(args: Args, device: torch.device) -> Rollout:
    """Return room for num_steps steps of all games."""
    shape = (args.num_steps, args.num_envs)
    obs = empty_obs(*shape, device=device)
    actions, dones = torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.bool)
    rewards, (values, returns) = torch.zeros(shape), torch.zeros(2, *shape, device=device)
    return Rollout(obs, actions, rewards, dones, values, returns)


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Return the value at a step: from start to end over `duration` steps, then constant."""
    return start + (end - start) * min(step / duration, 1.0)


def compute_epsilon(args: Args, step: int) -> float:
    """Return epsilon at an agent step."""
    duration = args.exploration_fraction * args.total_timesteps
    return linear_schedule(args.start_e, args.end_e, duration, step)


def draw_exploration(
    num_envs: int, num_actions: int, epsilon: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw which envs explore, bool (num_envs,), each on its own, and how, int64 (num_envs,)."""
    explore = torch.rand(num_envs, generator=generator) < epsilon
    return explore, torch.randint(num_actions, (num_envs,), generator=generator)


@torch.no_grad()
def act(
    q_network: nn.Module, obs: Tensor, explore: Tensor, random_actions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return obs as the rollout keeps them, epsilon-greedy actions and max_a Q (envs,).

    obs uint8 (envs, 4, 84, 84), as the games give them; channels last where they are kept.
    """
    obs = channels_last(obs)
    q_values = q_network(obs)
    actions = torch.where(explore, random_actions, q_values.argmax(dim=1))
    return obs, actions, q_values.max(dim=1).values


@torch.no_grad()
def play(
    q_network: nn.Module,
    choose: Callable,
    envs: AtariEnvs,
    obs: np.ndarray,
    rollout: Rollout,
    args: Args,
    generator: torch.Generator,
    run: Run,
) -> np.ndarray:
    """Fill the rollout (steps, envs, ...) with play from obs on; return the obs after it.

    `choose(obs, explore, random_actions)` is `act` of the network.
    """
    device, num_actions = rollout.values.device, int(envs.single_action_space.n)
    with q_network.autocast(device.type):
        for t in range(args.num_steps):
            # 1. act
            epsilon = compute_epsilon(args, run.step)
            drawn = draw_exploration(len(obs), num_actions, epsilon, generator)
            seen, actions, values = choose(torch.from_numpy(obs), *drawn)

            # 2. step the games, and meanwhile store what was seen
            envs.send(actions.cpu().numpy())
            rollout.obs[t], rollout.values[t] = seen, values
            obs, rewards, terminations, truncations, infos = envs.recv()
            run.count_step()
            run.log_episodes(infos)

            # 3. store what was played, which after a life loss is FIRE
            rollout.actions[t] = torch.from_numpy(infos["executed_actions"])
            cut = truncations & ~terminations
            if cut.any():
                final_obs = torch.from_numpy(np.stack(infos["final_obs"][cut])).to(device)
                rewards[cut] += args.gamma * q_network(final_obs).max(dim=1).values.cpu().numpy()
            rollout.rewards[t] = torch.from_numpy(rewards)
            rollout.dones[t] = torch.from_numpy(terminations | truncations)
    return obs


def q_lambda_returns(
    rewards: Tensor, dones: Tensor, next_values: Tensor, gamma: float, q_lambda: float
) -> Tensor:
    """Return Q(lambda) returns (Gallici et al. 2024, arXiv 2407.04811), (steps, envs).

    G_{T-1} = r_{T-1} + gamma (1 - d_{T-1}) max_a Q(s_T, a)
    G_t     = r_t + gamma (1 - d_t) [lambda G_{t+1} + (1 - lambda) max_a Q(s_{t+1}, a)]

    rewards, dones, next_values (steps, envs): d_t says that step t ended the bootstrap,
    next_values[t] is max_a Q(s_{t+1}, a). A truncated step comes with gamma max_a Q(final_obs, a)
    in its reward and d_t = 1.
    """
    discounts = gamma * (1.0 - dones.to(rewards))
    returns = torch.empty_like(rewards)
    following = next_values[-1]  # G_T: the last step has nothing but the bootstrap
    for t in reversed(range(len(rewards))):
        mixed = q_lambda * following + (1 - q_lambda) * next_values[t]
        following = returns[t] = rewards[t] + discounts[t] * mixed
    return returns


def td_loss(q_network: nn.Module, batch: Rollout) -> tuple[Tensor, Tensor]:
    """Return L = 1/2 (G - Q(s, a))^2, mean over the batch, and the Q(s, a) (batch,)."""
    q_values = q_network(batch.obs).gather(1, batch.actions.unsqueeze(1)).squeeze(1)
    return 0.5 * F.mse_loss(q_values, batch.returns), q_values


def gradient_step(
    q_network: nn.Module, optimizer: torch.optim.Optimizer, batch: Rollout, args: Args
) -> tuple[Tensor, Tensor]:
    """Take one gradient step; return the loss and the mean Q(s, a)."""
    loss, q_values = td_loss(q_network, batch)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
    optimizer.step()
    return loss.detach(), q_values.detach().mean()


def update(
    learn: Callable, rollout: Rollout, args: Args, generator: torch.Generator
) -> dict[str, float]:
    """Learn from a rollout (steps, envs, ...); return means over the update.

    `learn(*minibatch)` is `gradient_step` of the network.
    """
    device, steps = rollout.obs.device, flatten_steps(rollout)
    learnt = []
    for _ in range(args.update_epochs):
        order = upload(torch.randperm(len(steps.obs), generator=generator), device)
        for index in order.chunk(args.num_minibatches):
            learnt.append(learn(*take_steps(steps, index)))
    losses, q_means = zip(*learnt, strict=True)
    return {
        "losses/td_loss": torch.stack(losses).mean().item(),
        "losses/q_values": torch.stack(q_means).mean().item(),
    }


def make_graphs(
    q_network: QNetwork, optimizer: torch.optim.Optimizer, args: Args
) -> tuple[Graphed, Graphed]:
    """Return `act` and `gradient_step` as functions of tensors, CUDA graphs on a GPU."""
    device = q_network.head.weight.device

    def learn(*batch):
        return gradient_step(q_network, optimizer, Rollout(*batch), args)

    return (
        Graphed("act", partial(act, q_network), device, (q_network,), args.cuda_graphs),
        Graphed("update", learn, device, (q_network, optimizer), args.cuda_graphs),
    )


def main(args: Args) -> int:
    """Train PQN with these flags; return the exit status."""
    device = pick_device(args.device, args.precision)
    torch.manual_seed(args.seed)
    sampling = torch.Generator().manual_seed(args.seed)
    rollout = empty_rollout(args, device)
    recent = RecentObs(args.metrics_samples, device)
    envs, obs = make_envs(args)
    q_network = QNetwork(int(envs.single_action_space.n), args)
    q_network.to(device, memory_format=torch.channels_last)
    optimizer = RAdam(q_network.parameters(), lr=args.learning_rate)
    choose, learn = make_graphs(q_network, optimizer, args)

    def measured_loss(network: QNetwork) -> Tensor:
        return td_loss(network, sample_steps(rollout, PROBES))[0]

    parts = {  # all that a checkpoint holds
        "network": q_network,
        "optimizer": optimizer,
        "sampling": sampling,
        "games": envs,
        "recent": recent,
    }
    with Run(args, "pqn", q_network, LOSSES) as run:
        if run.resume(parts):
            obs = envs.obs
        while run.goes_on():
            run.checkpoint(parts)
            if args.anneal_lr:
                left = 1 - run.step / args.total_timesteps
                optimizer.param_groups[0]["lr"] = left * args.learning_rate

            # 1. to 3. act, step the games, store
            obs = play(q_network, choose, envs, obs, rollout, args, sampling, run)

            # 4. learn
            with torch.no_grad():
                last = q_network(torch.from_numpy(obs).to(device)).max(dim=1, keepdim=True).values
            # On the host, in whose caches these few numbers lie
            next_values = torch.cat([rollout.values[1:], last.T]).cpu()
            returns = q_lambda_returns(
                rollout.rewards, rollout.dones, next_values, args.gamma, args.q_lambda
            )
            rollout.returns.copy_(returns)
            recent.add(rollout.obs)
            run.watch_update(recent, q_network.head)
            logs = update(learn, rollout, args, sampling)

            # 5. log
            logs["charts/epsilon"] = compute_epsilon(args, run.step - args.num_envs)
            logs["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
            run.log(logs)
            run.measure(recent, q_network.head, measured_loss)
        status = run.finish(parts)
    envs.close()
    return status


if __name__ == "__main__":
    launch(main, Args, check, "pqn")
