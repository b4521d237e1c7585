"""The three scripts, the variants of the paper and runs as short as can be, for several tests."""

import torch

import dqn_atari
import ppo_atari
import pqn_atari
from lab.training.algorithms import script_args
from lab.training.frames import OBS_SHAPE

SCRIPTS = {"dqn": dqn_atari, "ppo": ppo_atari, "pqn": pqn_atari}
NETWORKS = {"dqn": dqn_atari.QNetwork, "ppo": ppo_atari.Agent, "pqn": pqn_atari.QNetwork}
HADAMAX = {"encoder": "hadamax", "activation": "gelu_tanh", "layer_norm": True, "apply_to": "all"}
VARIANTS = {
    "relu": {"activation": "relu", "branches": 1},
    "tanh": {"branches": 1},
    "sigmoid": {"activation": "sigmoid", "branches": 1},
    "selu": {"activation": "selu", "branches": 1},
    "tanh-hr": {},
    "sigmoid-hr": {"activation": "sigmoid"},
    "relu-hr": {"activation": "relu"},
    "tanh-ln": {"branches": 1, "layer_norm": True},
    "tanh-wide": {"branches": 1, "latent_dim": 1024},
    "tanh-sum": {"combine": "sum"},
    "tanh-3hr": {"branches": 3},
    "tanh-match": {"branches": 1, "width": "match"},
    "relu-match": {"activation": "relu", "branches": 1, "width": "match"},
    "hadamax": HADAMAX,
    "hadamax-plain": HADAMAX | {"branches": 1},
}
# Where --width match comes out, of the sizes that a run has by default: channels and z.
MATCHED = {"dqn": ((32, 64, 64), 1024), "ppo": ((32, 64, 64), 1024), "pqn": ((45, 91, 91), 721)}
# The layers where they are not the subject: a tenth of the time of those that are the default.
PLAIN = ("--activation", "relu", "--branches", 1, "--latent-dim", 32)
# As short as a run that learns can be: one rollout and its update, or ten updates of DQN. Of two
# games, as making one takes longer than to play and learn from 64 steps.
ROLLOUT = ("--num-envs", 2, "--num-steps", 32, "--num-minibatches", 4, "--update-epochs", 1)
ROLLOUT += ("--metrics-samples", 512)
SHORT = {
    "dqn": (
        *("--total-timesteps", 160, "--learning-starts", 120, "--buffer-size", 600),
        *("--num-envs", 2, "--metrics-samples", 512),
    ),
    "ppo": ("--total-timesteps", 64, *ROLLOUT),
    "pqn": ("--total-timesteps", 64, *ROLLOUT),
}


def parse(algorithm, *flags):
    """The Args of a script from flags that may be numbers."""
    return script_args(algorithm, *map(str, flags))


def fresh_weights(algorithm, *flags, seed=1):
    """What the network of these flags starts from in a game of 4 actions."""
    torch.manual_seed(seed)
    return NETWORKS[algorithm](4, parse(algorithm, *flags)).state_dict()


def saved_weights(folder):
    """What a run has saved at its end."""
    return torch.load(folder / "model.pt", weights_only=True)


def parameters_by_hand(algorithm, num_actions, flags):
    """Every weight, bias and norm of the network, counted layer by layer."""
    branches = flags.get("branches", 2)
    channels, width = (32, 64, 64), flags.get("latent_dim", 512)
    if flags.get("width") == "match":
        channels, width = MATCHED[algorithm]
    first, second, third = channels
    norm = flags.get("layer_norm", algorithm == "pqn")
    everywhere = flags.get("apply_to", "all" if algorithm == "pqn" else "last") == "all"

    def layer(fan_in, out, changed):
        each = fan_in * out + out + (2 * out if norm and changed else 0)
        return each * (branches if changed else 1)

    total = layer(4 * 8 * 8, first, everywhere) + layer(first * 4 * 4, second, everywhere)
    total += layer(second * 3 * 3, third, everywhere)
    if flags.get("encoder") == "hadamax":  # whose z is plain, over maps of 11 x 11
        total += third * 11 * 11 * width + 3 * width
    else:
        total += layer(third * 7 * 7, width, True)
    heads = (num_actions, 1) if algorithm == "ppo" else (num_actions,)
    return total + sum(width * out + out for out in heads)


def draw_acting(algorithm, call, games):
    """What acting is given besides the network: observations as the games give them, and draws."""
    generator = torch.Generator().manual_seed(call)
    obs = torch.randint(256, (games, *OBS_SHAPE), dtype=torch.uint8, generator=generator)
    if algorithm == "dqn":
        return (obs,)
    if algorithm == "ppo":
        return obs, torch.empty(games, 4).exponential_(generator=generator)
    return obs, *pqn_atari.draw_exploration(games, 4, 0.3, generator)
