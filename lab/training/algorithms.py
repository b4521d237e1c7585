"""The training scripts by name, and the one way in which tools ask for their networks."""

import importlib
import importlib.util
import types
from pathlib import Path

from torch import Tensor, nn

from lab.common.cli import parse_flags
from lab.training.flags import translate_cleanrl

# Algorithm -> the class of its network in NAME_atari.py. Its instances map obs uint8
# (batch, 4, 84, 84) to Q-values (batch, actions), or to logits and values; in a checkpoint they are
# the part "network".
NETWORKS = {"dqn": "QNetwork", "ppo": "Agent", "pqn": "QNetwork"}
ALGORITHMS = tuple(NETWORKS)


def load_script(algorithm: str) -> types.ModuleType:
    """Import the script of an algorithm."""
    return importlib.import_module(f"{algorithm}_atari")


def script_path(algorithm: str) -> Path:
    """Return the file of a script, without importing it."""
    return Path(importlib.util.find_spec(f"{algorithm}_atari").origin)


def script_args(algorithm: str, *flags: str):
    """Return the Args of a script, as its command line makes them.

    Raises UsageError if the flags do not parse.
    """
    return parse_flags(load_script(algorithm).Args, argv=list(flags), hint=translate_cleanrl)


def make_network(algorithm: str, num_actions: int, args) -> nn.Module:
    """Make the network of an algorithm from the flags of its script."""
    return getattr(load_script(algorithm), NETWORKS[algorithm])(num_actions, args)


def score_actions(network: nn.Module, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of the actions (batch, actions), and the value of obs (batch,).

    Scores are Q-values or logits: the highest is the greedy action. The value is the highest
    Q-value, or PPO's V.
    """
    out = network(obs)
    return out if isinstance(out, tuple) else (out, out.amax(dim=1))


def value_head(network: nn.Module) -> nn.Linear:
    """Return the layer that reads Q-values or the value off z."""
    return network.critic if hasattr(network, "critic") else network.head
