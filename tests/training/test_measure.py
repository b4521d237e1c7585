"""What is measured of a network: its hidden layers, computed again by torch's own functions."""

import functools

import pytest
import torch
import torch.nn.functional as F

from dqn_atari import Args, QNetwork
from hadamard import ACTIVATIONS
from lab.training.measure import hidden_layers


def layer_by_torch(layer, apply, channels_at):
    """Its branches by torch's own functions, in float64: affine map, norm over channels, tanh."""
    branches = []
    for i, rows in enumerate(torch.arange(len(layer.bias)).split(layer.width)):
        out = apply(layer.weight[rows].double(), layer.bias[rows].double())
        if layer.layer_norm:
            out = out.movedim(channels_at, -1)
            mean, variance = out.mean(-1, keepdim=True), out.var(-1, keepdim=True, correction=0)
            out = (out - mean) / (variance + 1e-6).sqrt()
            out = out * layer.norm_weight[i].double() + layer.norm_bias[i].double()
            out = out.movedim(-1, channels_at)
        branches.append(ACTIVATIONS[layer.activation](out))
    return branches


def network_by_torch(network, obs):
    """All hidden activations of a network: the maps of each convolution, the branches of z."""
    x, maps = obs.double() / 255, []
    for layer, stride in zip(network.convolutions, (4, 2, 1), strict=True):
        convolve = functools.partial(F.conv2d, x, stride=stride)
        x = torch.stack(layer_by_torch(layer, convolve, 1)).prod(dim=0)
        maps.append(x)
    multiply = functools.partial(F.linear, x.permute(0, 2, 3, 1).flatten(1))
    return maps, layer_by_torch(network.latent, multiply, 1)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("apply_to", ["last", "all"])
@pytest.mark.parametrize("branches", [1, 3])
def test_hidden_layers_are_those_of_the_network(branches, apply_to, layer_norm):
    torch.manual_seed(0)
    flags = {"branches": branches, "apply_to": apply_to, "layer_norm": layer_norm}
    network = QNetwork(4, Args(**flags, latent_dim=8, precision="bf16"))
    obs = torch.randint(0, 255, (300, 4, 84, 84), dtype=torch.uint8)
    layers = hidden_layers(network, obs, convolutions=apply_to == "all")
    maps, factors = network_by_torch(network, obs)

    names = {"z"} | {f"branch_{i}" for i in range(branches) if branches > 1}
    names |= {"conv_1", "conv_2", "conv_3"} if apply_to == "all" else set()
    assert set(layers) == names
    expected = {"z": torch.stack(factors).prod(dim=0)}
    expected |= {f"branch_{i}": factor for i, factor in enumerate(factors)}
    for name in names:
        if "conv" not in name:
            assert torch.allclose(layers[name].double(), expected[name], atol=1e-4)
    for i, feature_maps in enumerate(maps if apply_to == "all" else (), start=1):
        # Each sample is one pixel of its own maps, and not always the same one.
        sampled = layers[f"conv_{i}"].double()
        assert sampled.shape == feature_maps.shape[:2]
        distance = (feature_maps.flatten(2) - sampled.unsqueeze(2)).abs().amax(dim=1)
        assert (distance.amin(dim=1) < 1e-4).all()
        assert len(distance.argmin(dim=1).unique()) > 20
