"""PPO on Atari with a Hadamard representation: v1 Table 4 of arXiv 2406.09079 by default.

    python ppo_atari.py                                       Tanh (HR) on Breakout, the full run
    python ppo_atari.py --activation relu --branches 1        the plain network
    python ppo_atari.py --env-id Seaquest --seed 2 --precision bf16

One step is one agent step, which is 4 emulator frames. Reads top to bottom: flags, heads, play,
advantages, loss, update, training loop; the encoder, the measures, the games and the run folder are
imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hadamard import init_parameters
from lab.common.cli import UsageError, above, at_least, between
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
from lab.training.run import Run, launch, make_envs

LOSSES = (
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "old_approx_kl",
    "clipfrac",
    "explained_variance",
)


@dataclass
class Args:
    """PPO on Atari with a Hadamard representation. A step is an agent step (4 emulator frames)."""

    env_id: str = "Breakout"
    """the game: Breakout, ALE/Breakout-v5, BreakoutNoFrameskip-v4 and breakout mean the same"""
    seed: int = 1
    """seed of the network, the actions, the minibatches and the games"""
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
    init: str = "orthogonal"
    """of the heads and of each branch, as if it were a layer alone: torch, orthogonal,
    he_normal, xavier_normal, gated (orthogonal, but all branches save the first start nearly
    constant)"""
    num_envs: int = 8
    """games played in parallel"""
    env_threads: int = 0
    """threads of the emulator; 0: one per core, at most one per game"""
    sticky_actions: float = 0.0
    """chance that the emulator repeats the last action (the paper: 0)"""
    learning_rate: float = 2.5e-4
    """of Adam, at the start (0 freezes the network)"""
    anneal_lr: bool = True
    """let the learning rate fall to 0 over the run"""
    adam_eps: float = 1e-5
    """epsilon of Adam"""
    num_steps: int = 128
    """steps that each game plays between two updates"""
    num_minibatches: int = 4
    """minibatches per epoch"""
    update_epochs: int = 4
    """passes over the steps of a rollout"""
    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage estimation"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    clip_coef: float = 0.1
    """how far the ratio of the policies may go from 1, and the value from the old one"""
    clip_vloss: bool = True
    """clip the loss of the value, too"""
    ent_coef: float = 0.01
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the loss of the value"""
    max_grad_norm: float = 0.5
    """norm that the gradient is clipped to"""
    target_kl: float | None = None
    """end an update once approx_kl has gone beyond this (the paper: None)"""
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
    coefficients = ("learning_rate", "ent_coef", "vf_coef")
    at_least(args, 0, *coefficients)
    above(args, 0, "adam_eps", "clip_coef", "max_grad_norm")
    between(args, 0, 1, "gamma", "gae_lambda")
    if args.target_kl is not None:
        above(args, 0, "target_kl")
    if args.norm_adv and args.num_envs * args.num_steps == args.num_minibatches:
        raise UsageError(
            f"--num-minibatches {args.num_minibatches} leaves one step per minibatch, which cannot "
            "be normalised: choose fewer or --no-norm-adv"
        )


class Agent(Encoder):
    """Map obs uint8 (batch, 4, 84, 84) to logits (batch, actions) and values (batch,).

    Actor and critic are linear in z.
    """

    def __init__(self, num_actions: int, args: Args):
        super().__init__(args)
        self.actor = nn.Linear(self.latent.out_features, num_actions)
        self.critic = nn.Linear(self.latent.out_features, 1)
        self.reset_hidden(args.init)
        init_parameters(self.actor.weight, self.actor.bias, args.init, gain=0.01)
        init_parameters(self.critic.weight, self.critic.bias, args.init, gain=1.0)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(obs)
        with torch.autocast(obs.device.type, enabled=False):  # the heads compute in fp32
            return self.actor(z), self.critic(z).squeeze(1)


class Rollout(NamedTuple):
    """Steps that were played: (steps, envs, ...) in a rollout, (batch, ...) in a minibatch.

    What the games say of them lies on the host until it is learnt from, the rest on the device.
    """

    obs: Tensor  # uint8 (..., 4, 84, 84), channels last in memory
    actions: Tensor  # int64, as the policy drew them
    log_probs: Tensor  # of these actions under the policy that played
    rewards: Tensor  # plus gamma V(final_obs) where a game was truncated
    dones: Tensor  # bool: life lost, game over or truncated
    values: Tensor  # V(obs) of the network that played
    advantages: Tensor  # generalised advantage estimates
    returns: Tensor  # advantages + values


def empty_rollout(args: Args, device: torch.device) -> Rollout:
    """Return room for num_steps steps of all games."""
    shape = (args.num_steps, args.num_envs)
    obs = empty_obs(*shape, device=device)
    actions = torch.empty(shape, dtype=torch.int64, device=device)
    rewards, dones = torch.zeros(shape), torch.empty(shape, dtype=torch.bool)
    log_probs, values, advantages, returns = torch.zeros(4, *shape, device=device)
    return Rollout(obs, actions, log_probs, rewards, dones, values, advantages, returns)


def draw(log_probs: Tensor, clocks: Tensor) -> Tensor:
    """Draw an action from each row of log-probabilities (batch, actions): int64 (batch,).

    `clocks` (batch, actions) are exponentially distributed with rate 1.
    """
    # Of clocks that ring at exponential times with rates p_a, clock a rings first with chance p_a.
    return (log_probs.exp() / clocks).argmax(dim=1)


def select_actions(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Select the log-probabilities (batch,) of actions (batch,) out of all (batch, actions)."""
    return log_probs.gather(1, actions.unsqueeze(1)).squeeze(1)


@torch.no_grad()
def act(agent: nn.Module, obs: Tensor, clocks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return obs as the rollout keeps them; actions, log-probabilities and values (envs,).

    obs uint8 (envs, 4, 84, 84), as the games give them; channels last where they are kept.
    """
    obs = channels_last(obs)
    logits, values = agent(obs)
    log_probs = logits.log_softmax(dim=1)
    actions = draw(log_probs, clocks)
    return obs, actions, select_actions(log_probs, actions), values


@torch.no_grad()
def play(
    agent: nn.Module,
    choose: Callable,
    envs: AtariEnvs,
    obs: np.ndarray,
    rollout: Rollout,
    args: Args,
    generator: torch.Generator,
    run: Run,
) -> np.ndarray:
    """Fill the rollout (steps, envs, ...) with play from obs on; return the obs after it.

    `choose(obs, clocks)` is `act` of the agent. FIRE after a life loss is a move of the game here:
    the policy's own action, which it replaced, is stored. A policy gradient needs actions that the
    policy drew, and as this one had no effect, it teaches nothing on average.
    """
    device, num_actions = rollout.values.device, int(envs.single_action_space.n)
    with agent.autocast(device.type):
        for t in range(args.num_steps):
            # 1. act
            clocks = torch.empty(len(obs), num_actions).exponential_(generator=generator)
            seen, actions, log_probs, values = choose(torch.from_numpy(obs), clocks)

            # 2. step the games, and meanwhile store what was seen and done
            envs.send(actions.cpu().numpy())
            rollout.obs[t], rollout.actions[t] = seen, actions
            rollout.log_probs[t], rollout.values[t] = log_probs, values
            obs, rewards, terminations, truncations, infos = envs.recv()
            run.count_step()
            run.log_episodes(infos)

            # 3. store what came of it
            cut = truncations & ~terminations
            if cut.any():
                final_obs = torch.from_numpy(np.stack(infos["final_obs"][cut])).to(device)
                rewards[cut] += args.gamma * agent(final_obs)[1].cpu().numpy()
            rollout.rewards[t] = torch.from_numpy(rewards)
            rollout.dones[t] = torch.from_numpy(terminations | truncations)
    return obs


def gae(
    rewards: Tensor,
    dones: Tensor,
    values: Tensor,
    next_value: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return generalised advantage estimates (Schulman et al. 2016, Eq. 16), (steps, envs).

    delta_t = r_t + gamma (1 - d_t) V(s_{t+1}) - V(s_t)
    A_t     = delta_t + gamma lambda (1 - d_t) A_{t+1}

    rewards, dones, values (steps, envs): d_t says that step t ended the bootstrap, values[t] is
    V(s_t); next_value (envs,) is V of the state that the last step led to. A truncated step comes
    with gamma V(final_obs) in its reward and d_t = 1.
    """
    goes_on = 1.0 - dones.to(rewards)
    next_values = torch.cat([values[1:], next_value.unsqueeze(0)])
    deltas = rewards + gamma * goes_on * next_values - values
    advantages = torch.empty_like(deltas)
    advantage = torch.zeros_like(next_value)
    for t in reversed(range(len(deltas))):
        advantage = deltas[t] + gamma * gae_lambda * goes_on[t] * advantage
        advantages[t] = advantage
    return advantages


def ppo_loss(agent: nn.Module, batch: Rollout, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the clipped surrogate loss (Schulman et al. 2017, Eq. 7 and 9) and its parts.

    L = -min(r A, clip(r, 1 - eps, 1 + eps) A) + c_v 1/2 max((V - R)^2, (V_clip - R)^2) - c_e S
    with r = pi(a|s) / pi_old(a|s) and V_clip = V_old + clip(V - V_old, -eps, eps).
    """
    logits, values = agent(batch.obs)
    log_probs = logits.log_softmax(dim=1)
    log_ratio = select_actions(log_probs, batch.actions) - batch.log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    advantages = batch.advantages
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()

    errors = (values - batch.returns) ** 2
    if args.clip_vloss:
        change = (values - batch.values).clamp(-args.clip_coef, args.clip_coef)
        errors = torch.max(errors, (batch.values + change - batch.returns) ** 2)
    value_loss = 0.5 * errors.mean()

    entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
    loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
    parts = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        # Two estimates of KL(pi_old, pi): mean of -log r, and of r - 1 - log r, which is never
        # negative and varies less (Schulman, http://joschu.net/blog/kl-approx.html).
        "old_approx_kl": -log_ratio.mean(),
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "clipfrac": ((ratio - 1).abs() > args.clip_coef).float().mean(),
    }
    return loss, {name: part.detach() for name, part in parts.items()}


def gradient_step(
    agent: nn.Module, optimizer: torch.optim.Optimizer, batch: Rollout, args: Args
) -> dict[str, Tensor]:
    """Take one gradient step on a minibatch; return the parts of its loss."""
    loss, parts = ppo_loss(agent, batch, args)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    optimizer.step()
    return parts


def update(
    learn: Callable, rollout: Rollout, args: Args, generator: torch.Generator
) -> dict[str, float]:
    """Learn from a rollout (steps, envs, ...); return the parts of the loss, as CleanRL has them.

    `learn(*minibatch)` is `gradient_step` of the agent. The parts are of the last minibatch, but
    clipfrac, which is the mean over all.
    """
    device, steps = rollout.obs.device, flatten_steps(rollout)
    clipfracs = []
    for _ in range(args.update_epochs):
        order = upload(torch.randperm(len(steps.obs), generator=generator), device)
        for index in order.chunk(args.num_minibatches):
            parts = learn(*take_steps(steps, index))
            clipfracs.append(parts["clipfrac"])
        if args.target_kl is not None and parts["approx_kl"] > args.target_kl:
            break
    parts["clipfrac"] = torch.stack(clipfracs).mean()
    variance = steps.returns.var(correction=0)
    if variance > 0:  # else it is not defined
        unexplained = (steps.returns - steps.values).var(correction=0)
        parts["explained_variance"] = 1 - unexplained / variance
    return {f"losses/{name}": part.item() for name, part in parts.items()}


def make_graphs(
    agent: Agent, optimizer: torch.optim.Optimizer, args: Args
) -> tuple[Graphed, Graphed]:
    """Return `act` and `gradient_step` as functions of tensors, CUDA graphs on a GPU."""
    device = agent.critic.weight.device

    def learn(*batch):
        return gradient_step(agent, optimizer, Rollout(*batch), args)

    return (
        Graphed("act", partial(act, agent), device, (agent,), args.cuda_graphs),
        Graphed("update", learn, device, (agent, optimizer), args.cuda_graphs),
    )


def main(args: Args) -> int:
    """Train PPO with these flags; return the exit status."""
    device = pick_device(args.device, args.precision)
    torch.manual_seed(args.seed)
    sampling = torch.Generator().manual_seed(args.seed)
    rollout = empty_rollout(args, device)
    recent = RecentObs(args.metrics_samples, device)
    envs, obs = make_envs(args)
    agent = Agent(int(envs.single_action_space.n), args)
    agent.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        agent.parameters(), lr=args.learning_rate, eps=args.adam_eps, fused=True
    )
    choose, learn = make_graphs(agent, optimizer, args)

    def measured_loss(network: Agent) -> Tensor:
        return ppo_loss(network, sample_steps(rollout, PROBES), args)[0]

    parts = {  # all that a checkpoint holds
        "network": agent,
        "optimizer": optimizer,
        "sampling": sampling,
        "games": envs,
        "recent": recent,
    }
    with Run(args, "ppo", agent, LOSSES) as run:
        if run.resume(parts):
            obs = envs.obs
        while run.goes_on():
            run.checkpoint(parts)
            if args.anneal_lr:
                left = 1 - run.step / args.total_timesteps
                optimizer.param_groups[0]["lr"] = left * args.learning_rate

            # 1. to 3. act, step the games, store
            obs = play(agent, choose, envs, obs, rollout, args, sampling, run)

            # 4. learn
            with torch.no_grad():
                next_value = agent(torch.from_numpy(obs).to(device))[1]
            advantages = gae(  # on the host, in whose caches these few numbers lie
                rollout.rewards,
                rollout.dones,
                rollout.values.cpu(),
                next_value.cpu(),
                args.gamma,
                args.gae_lambda,
            )
            rollout.advantages.copy_(advantages)
            rollout.returns[:] = rollout.advantages + rollout.values
            recent.add(rollout.obs)
            run.watch_update(recent, agent.actor)
            logs = update(learn, rollout, args, sampling)

            # 5. log
            logs["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
            run.log(logs)
            run.measure(recent, agent.critic, measured_loss)
        status = run.finish(parts)
    envs.close()
    return status


if __name__ == "__main__":
    launch(main, Args, check, "ppo")
