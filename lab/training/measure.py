"""What a run measures of its network: hidden layers, gradients, one update; when, by which tags."""

import collections
import copy
import math
from collections.abc import Callable
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
from metrics import churn, dead_neurons, measure_layer, measure_weights, q_contribution

# Observations or steps, for what takes a forward or a backward pass of its own.
PROBES = 128
# A figure every so many measurements: it costs about as much as one, and 16 neurons change slowly.
FIGURE_EVERY = 10


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


class Probed(NamedTuple):
    """What a network makes of observations: z (samples, features), which a head reads."""

    obs: Tensor
    z: Tensor
    head: nn.Linear


@exact_fp32()
@torch.no_grad()
def probe(network: Encoder, head: nn.Linear, obs: Tensor) -> Probed:
    """Compute z of obs (samples, 4, 84, 84) in fp32, and keep the head as it is now."""
    z = network.latent(features(network.feature_maps(obs)[-1]))
    return Probed(obs, z, copy.deepcopy(head))


@exact_fp32()
@torch.no_grad()
def measure_churn(before: Probed, after: Probed) -> dict[str, float]:
    """Measure whose greedy action changed from `before` to `after`; return shares by tag.

    Both are of the same observations. `encoder` and `head`: with that part alone exchanged. nan
    where the head's output overflows; the run then ends as diverged.
    """
    outputs = before.head(before.z)

    def share_changed(new: Tensor) -> float:
        return churn(outputs, new) if (outputs - new).isfinite().all() else math.nan

    return {
        tags.churn("total"): share_changed(after.head(after.z)),
        tags.churn("encoder"): share_changed(before.head(after.z)),
        tags.churn("head"): share_changed(after.head(before.z)),
    }


@exact_fp32()
def loss_gradients(
    network: Encoder, loss: Callable[[Encoder], Tensor], convolutions: bool = False
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each hidden layer's weight and gradient, both (neurons, incoming weights), in fp32.

    `loss(network)` is the algorithm's own. Of "z", of "branch_0" ... where z has several, and with
    `convolutions` of "conv_1" ..., of which each feature map is a neuron. The weights of a product
    are those of all its branches.
    """
    # Of a copy: autograd remembers on which stream of a GPU a weight was used, which would break
    # off the recording of a CUDA graph.
    network = copy.deepcopy(network)
    network.dtype = torch.float32
    layers = {"z": network.latent}
    if convolutions:
        layers |= {f"conv_{i}": layer for i, layer in enumerate(network.convolutions, start=1)}
    weights = [layer.weight for layer in layers.values()]
    gradients = torch.autograd.grad(loss(network), weights)

    found = {}
    for (name, layer), weight, gradient in zip(layers.items(), weights, gradients, strict=True):
        by_branch = [
            tensor.detach().flatten(1).unflatten(0, (layer.branches, layer.width))
            for tensor in (weight, gradient)
        ]  # (branches, width, incoming weights)
        found[name] = tuple(tensor.movedim(0, 1).flatten(1) for tensor in by_branch)
        if name == "z" and layer.branches > 1:
            found |= {f"branch_{i}": pair for i, pair in enumerate(zip(*by_branch, strict=True))}
    return found


def measure_gradient(weight: Tensor, gradient: Tensor) -> dict[str, float]:
    """Return what `measure_weights` does, or nan where the loss has no finite gradient."""
    if torch.isfinite(gradient).all():
        return measure_weights(weight, gradient)
    return dict.fromkeys(measure_weights(weight, weight), math.nan)


class Snapshot(NamedTuple):
    """What is measured of a network, as it is at an agent step."""

    step: int
    layers: dict[str, Tensor]  # of `hidden_layers`
    weights: dict[str, dict[str, float]]  # of `measure_gradient`
    head: nn.Linear  # reads Q-values or the value off z
    churn: dict[str, float]  # of `measure_churn`, by tag

    def to_host(self) -> "Snapshot":
        """Return a copy in the host's memory."""
        layers = {name: layer.to("cpu", copy=True) for name, layer in self.layers.items()}
        return self._replace(layers=layers, head=copy.deepcopy(self.head).cpu())


def describe_deaths(layers: dict[str, Tensor], dead_of: dict[str, Tensor]) -> dict[str, float]:
    """Describe how the dead neurons of z are dead; return values by tag.

    layers as in `measure_representation`; dead_of: bool (features,) of each. Shares of all neurons
    of z: dead with all their branches, and dead while all their branches live. Where any is dead,
    the mean over them of |their mean|, which is near 1 for a tanh that died at its ends.
    """
    dead, found = dead_of["z"], {}
    if dead.any():
        held = layers["z"].double().mean(dim=0)[dead].abs().mean()
        found[tags.of_layer("dead_magnitude")] = held.item()
    branches = [neurons for name, neurons in dead_of.items() if name.startswith("branch_")]
    if branches:
        count = torch.stack(branches).sum(dim=0)  # of a neuron's dead branches
        kinds = {"dead_with_branches": count == len(branches), "dead_without_branches": count == 0}
        for name, kind in kinds.items():
            found[tags.of_layer(name)] = (dead & kind).double().mean().item()
    return found


def measure_representation(
    layers: dict[str, Tensor],
    weights: dict[str, dict[str, float]],
    head: nn.Linear,
    algorithm: str,
) -> dict[str, float]:
    """Measure the hidden layers and their head; return values by TensorBoard tag.

    layers: "z" and, where there are any, "branch_0" ..., "conv_1" ..., each (samples, features),
    and what was measured of the weights of each. `head` reads Q-values or the value off z. What
    live and dead neurons bring into its output are means over samples and actions, those called
    `_abs` of the magnitudes.
    """
    values, dead_of = {}, {name: dead_neurons(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        measured = measure_layer(layer, dead_of[name]) | weights[name]
        for measure, value in measured.items():
            values[tags.of_layer(measure, name)] = value
    values |= describe_deaths(layers, dead_of)
    live, dead = q_contribution(layers["z"], dead_of["z"], head.weight, head.bias)
    parts = {"live": live, "dead": dead, "bias": head.bias}
    parts |= {"live_abs": live.abs(), "dead_abs": dead.abs()}
    for part, contribution in parts.items():
        values[tags.contribution(part, algorithm)] = contribution.mean().item()
    return values


class Measured(NamedTuple):
    """What was measured of a network at an agent step."""

    step: int
    values: dict[str, float]  # by TensorBoard tag
    picture: np.ndarray | None  # uint8 (height, width, 3), where it was asked for


def measure(snapshot: Snapshot, algorithm: str, is_drawn: bool) -> Measured:
    """Measure what was taken of a network, and draw it, if that is asked for."""
    step, layers, weights, head, churned = snapshot
    values = measure_representation(layers, weights, head, algorithm) | churned
    shown = {name: layer for name, layer in layers.items() if "conv" not in name}
    return Measured(step, values, try_draw_kde(shown) if is_drawn else None)


class Measurer:
    """Measure the network of a run where it is time; on a GPU a thread works out the numbers.

    A measurement takes most of a second, for which a GPU would have to wait: there the thread works
    on copies of the activations. One is under way at a time. `recent.newest(count)` gives the
    newest observations (count, 4, 84, 84), or None.
    """

    def __init__(self, args, network: Encoder, algorithm: str):
        self.args, self.network, self.algorithm = args, network, algorithm
        self.aside = next(network.parameters()).device.type == "cuda"
        self.last_considered = 0  # the agent step at which a measurement was last considered
        self.count = 0  # measurements so far
        self._before: Probed | None = None  # the newest update
        self._policy_head: nn.Linear | None = None
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future | None = None

    def find_due(self, recent, step: int) -> Tensor | None:
        """Return the observations that are to be measured at an agent step, or None."""
        if measurement_due(self.args, self.last_considered, step):
            return recent.newest(self.args.metrics_samples)
        return None

    def watch_update(self, recent, policy_head: nn.Linear, step: int):
        """Keep what the update that comes next changes, if it is measured after it."""
        obs = self.find_due(recent, step)
        if obs is not None:
            spread = torch.linspace(0, len(obs) - 1, min(PROBES, len(obs))).long()
            self._before = probe(self.network, policy_head, obs[spread])
            self._policy_head = policy_head

    def start(
        self,
        obs: Tensor,
        head: nn.Linear,
        loss: Callable[[Encoder], Tensor],
        step: int,
        require_finite: Callable,
    ):
        """Measure the network over obs (samples, 4, 84, 84); `collect` has the result.

        `head` reads Q-values or the value off z. What `require_finite` refuses is not measured.
        """
        convolutions = self.args.apply_to == "all"
        layers = hidden_layers(self.network, obs, convolutions)
        require_finite(layers.items(), step)
        require_finite(self.network.named_parameters(), step)
        gradients = loss_gradients(self.network, loss, convolutions)
        weights = {name: measure_gradient(*pair) for name, pair in gradients.items()}
        churned = {}
        if self._before is not None:
            after = probe(self.network, self._policy_head, self._before.obs)
            churned, self._before = measure_churn(self._before, after), None
        snapshot = Snapshot(step, layers, weights, head, churned)
        how = (self.algorithm, self.count % FIGURE_EVERY == 0)
        self.count += 1
        if self.aside:
            # On the host, where the thread does not wait for the GPU, nor the GPU for it.
            self._under_way = self._thread.submit(measure, snapshot.to_host(), *how)
        else:
            self._under_way = Future()
            self._under_way.set_result(measure(snapshot, *how))

    def collect(self, wait: bool = True) -> Measured | None:
        """Return what was measured, once; None where there is nothing, or not yet without wait."""
        if self._under_way is None or not (wait or self._under_way.done()):
            return None
        measured, self._under_way = self._under_way.result(), None
        return measured

    def close(self):
        """End the thread."""
        self._thread.shutdown()
