"""What a run measures of its network: the hidden layers, when, and by which tags."""

import collections
import copy
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hadamard import features
from lab.common import tags
from lab.common.device import exact_fp32
from lab.training.encoder import Encoder
from lab.training.figures import try_draw_kde
from metrics import dead_neurons, measure_layer, q_contribution


def measurement_due(args, previous: int, step: int) -> bool:
    """Return whether to measure after the agent steps in (previous, step].

    At multiples of --metrics-every, and at first when there are --metrics-samples observations. A
    run that is shorter than --metrics-every measures nothing.
    """
    if args.metrics_every > args.total_timesteps:
        return False
    first = previous < args.metrics_samples <= step
    return first or step // args.metrics_every > previous // args.metrics_every


@exact_fp32()
@torch.no_grad()
def hidden_layers(network: Encoder, obs: Tensor, convolutions: bool = False) -> dict[str, Tensor]:
    """Return the activations of a network's hidden layers, in fp32 whatever its precision.

    obs uint8 (samples, 4, 84, 84) -> (samples, features) of "z", of "branch_0" ... where z has
    several, and with `convolutions` of "conv_1" ... There a feature map counts as one neuron, seen
    at one pixel per sample, drawn from a fixed seed: so the number of samples, on which the KDE
    test depends, is the same for every layer.
    """
    generator = torch.Generator().manual_seed(0)
    parts = collections.defaultdict(list)
    for part in obs.split(256):
        maps = network.feature_maps(part)
        branches = network.latent.branch_activations(features(maps[-1]))
        parts["z"].append(network.latent.combine_branches(branches))
        if len(branches) > 1:
            for i, branch in enumerate(branches):
                parts[f"branch_{i}"].append(branch)
        if convolutions:
            for i, layer in enumerate(maps, start=1):
                pixel = torch.randint(layer[0, 0].numel(), (len(part),), generator=generator)
                sample = torch.arange(len(part))
                parts[f"conv_{i}"].append(layer.flatten(2)[sample, :, pixel])
    return {name: torch.cat(layer) for name, layer in parts.items()}


def measure_representation(
    layers: dict[str, Tensor], head: nn.Linear, algorithm: str
) -> dict[str, float]:
    """Measure the hidden layers and their head; return values by TensorBoard tag.

    layers: "z" and, where there are any, "branch_0" ..., "conv_1" ..., each (samples, features);
    `head` reads Q-values or the value off z. What live and dead neurons bring into its output are
    means over samples and actions, those called `_abs` of the magnitudes.
    """
    values, dead_of = {}, {name: dead_neurons(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        for measure, value in measure_layer(layer, dead_of[name]).items():
            values[tags.of_layer(measure, name)] = value
    live, dead = q_contribution(layers["z"], dead_of["z"], head.weight, head.bias)
    parts = {"live": live, "dead": dead, "bias": head.bias}
    parts |= {"live_abs": live.abs(), "dead_abs": dead.abs()}
    for part, contribution in parts.items():
        values[tags.contribution(part, algorithm)] = contribution.mean().item()
    return values


class Measured(NamedTuple):
    """What was measured of the hidden layers at an agent step."""

    step: int
    values: dict[str, float]  # by TensorBoard tag
    picture: np.ndarray | None  # uint8 (height, width, 3), where it was asked for


class Measurer:
    """Measure hidden layers: at once, or `aside`, in a thread that works on copies.

    A measurement takes half a second of a core, for which a GPU would have to wait. One is under
    way at a time.
    """

    def __init__(self, aside: bool):
        self.aside = aside
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future | None = None

    def submit(self, step: int, layers: dict[str, Tensor], head: nn.Linear, *how):
        """Measure as `measure` does; `collect` has the result."""
        if not self.aside:
            self._under_way = Future()
            self._under_way.set_result(measure(step, layers, head, *how))
            return
        # On the host, where the thread does not wait for the GPU, nor the GPU for it.
        layers = {name: layer.to("cpu", copy=True) for name, layer in layers.items()}
        self._under_way = self._thread.submit(
            measure, step, layers, copy.deepcopy(head).cpu(), *how
        )

    def collect(self, wait: bool = True) -> Measured | None:
        """Return what was measured, once; None where there is nothing, or not yet without wait."""
        if self._under_way is None or not (wait or self._under_way.done()):
            return None
        measured, self._under_way = self._under_way.result(), None
        return measured

    def close(self):
        """End the thread."""
        self._thread.shutdown()


def measure(
    step: int, layers: dict[str, Tensor], head: nn.Linear, algorithm: str, is_drawn: bool
) -> Measured:
    """Measure the hidden layers and their head, and draw them, if that is asked for."""
    values = measure_representation(layers, head, algorithm)
    shown = {name: layer for name, layer in layers.items() if "conv" not in name}
    return Measured(step, values, try_draw_kde(shown) if is_drawn else None)
