"""Learn CartPole with CleanRL's PPO, a Hadamard layer in place of each Linear and tanh.

python -m examples.cartpole_ppo          # from the top folder; 10 to 20 s on one core of a CPU

Algorithm, networks and values are those of CleanRL's ppo.py, but for `hidden`, the 25,000 steps,
and the 1e-8 that CleanRL adds to the deviation of the advantages.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import torch
from torch import nn
from torch.distributions import Categorical

from hadamard import HadamardLinear
from lab.common.cli import above, at_least, between, launch

NUM_ENVS, NUM_STEPS = 4, 128


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    """Initialise a layer of torch's as CleanRL does."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


def hidden(n_in: int, n_out: int) -> nn.Module:
    """Make a hidden layer; CleanRL's is nn.Sequential(layer_init(nn.Linear(n_in, n_out)), Tanh)."""
    layer = HadamardLinear(n_in, n_out, activation="tanh", branches=2)
    # As it comes, the layer needs a higher learning rate than 2.5e-4 here (docs/starting.md). Not
    # layer_init: it would draw both branches as one matrix.
    layer.reset_parameters("gated")
    return layer


class Agent(nn.Module):
    """Actor and critic: obs (batch, 4) -> logits (batch, 2) and values (batch, 1)."""

    def __init__(self, hidden: Callable[[int, int], nn.Module] = hidden):
        super().__init__()
        actor, critic = layer_init(nn.Linear(64, 2), 0.01), layer_init(nn.Linear(64, 1), 1.0)
        self.critic = nn.Sequential(hidden(4, 64), hidden(64, 64), critic)
        self.actor = nn.Sequential(hidden(4, 64), hidden(64, 64), actor)


def loss(agent: Agent, obs, actions, log_probs, advantages, values) -> torch.Tensor:
    """Return PPO's loss of a minibatch, with a clipped value loss and an entropy bonus."""
    policy, new_values = Categorical(logits=agent.actor(obs)), agent.critic(obs).squeeze(1)
    returns, advantages = values + advantages, (advantages - advantages.mean()) / advantages.std()
    ratio = (policy.log_prob(actions) - log_probs).exp()
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
    clipped = values + (new_values - values).clamp(-0.2, 0.2)
    value_loss = torch.max((new_values - returns) ** 2, (clipped - returns) ** 2).mean() / 2
    return policy_loss + 0.5 * value_loss - 0.01 * policy.entropy().mean()


def train(
    agent: Agent, seed: int, total_timesteps: int, learning_rate: float, report=print
) -> list[float]:
    """Train the agent; return the returns of all games that ended, in order."""
    same_step = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    envs = gym.make_vec("CartPole-v1", NUM_ENVS, "sync", vector_kwargs=same_step)
    optimizer = torch.optim.Adam(agent.parameters(), learning_rate, eps=1e-5)
    obs = torch.zeros(NUM_STEPS + 1, NUM_ENVS, 4)
    actions, log_probs, rewards, dones, advantages = torch.zeros(5, NUM_STEPS, NUM_ENVS)
    obs[-1] = torch.as_tensor(envs.reset(seed=seed)[0])
    running, returns = torch.zeros(NUM_ENVS), []
    rollouts = total_timesteps // (NUM_ENVS * NUM_STEPS)
    for rollout in range(rollouts):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - rollout / rollouts)
        obs[0] = obs[-1]
        with torch.no_grad():
            for t in range(NUM_STEPS):
                policy = Categorical(logits=agent.actor(obs[t]))
                actions[t] = policy.sample()
                log_probs[t] = policy.log_prob(actions[t])
                step = map(torch.as_tensor, envs.step(actions[t].long().numpy())[:4])
                obs[t + 1], rewards[t], terminated, truncated = step
                dones[t] = terminated | truncated
                running += rewards[t]
                returns += running[dones[t] == 1].tolist()
                running *= 1 - dones[t]
            values = agent.critic(obs).squeeze(2)
        last = 0
        for t in reversed(range(NUM_STEPS)):
            delta = rewards[t] + 0.99 * values[t + 1] * (1 - dones[t]) - values[t]
            last = advantages[t] = delta + 0.99 * 0.95 * (1 - dones[t]) * last
        batch = [of.flatten(0, 1) for of in (obs[:-1], actions, log_probs, advantages, values[:-1])]
        for _ in range(4):
            for minibatch in torch.randperm(NUM_ENVS * NUM_STEPS).chunk(4):
                optimizer.zero_grad()
                loss(agent, *(of[minibatch] for of in batch)).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        steps, newest = (rollout + 1) * NUM_ENVS * NUM_STEPS, returns[-20:]
        mean = sum(newest) / max(len(newest), 1)
        report(f"{steps:,} steps, mean return of the last 20 games {mean:.0f}")
    return returns


@dataclass
class Args:
    """Learn CartPole with PPO and Hadamard layers."""

    seed: int = 1
    """of the networks, the actions and the games"""
    total_timesteps: int = 25_000
    """steps of all four games together"""
    learning_rate: float = 2.5e-4
    """of Adam, at the start; it falls to 0"""


def main(args: Args):
    """Train an agent with these flags."""
    between(args, 0, 2**31 - 1 - NUM_ENVS, "seed")
    at_least(args, NUM_ENVS * NUM_STEPS, "total_timesteps")
    above(args, 0, "learning_rate")
    torch.manual_seed(args.seed)
    train(Agent(), args.seed, args.total_timesteps, args.learning_rate)


if __name__ == "__main__":
    launch(main, Args)
