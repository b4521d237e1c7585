"""The encoder in the precision and the sizes of the flags."""

import math

import pytest
import torch
from algorithms import MATCHED, NETWORKS, SCRIPTS, VARIANTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hadamard import HadamardConv2d, HadamardLinear
from lab.training.encoder import NatureEncoder, count_hidden_parameters, resolve_widths


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_bf16_is_near_fp32_and_not_equal(algorithm):
    outs = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = NETWORKS[algorithm](4, SCRIPTS[algorithm].Args(precision=precision))
        obs = torch.randint(0, 255, (64, 4, 84, 84), dtype=torch.uint8)
        out = network(obs)
        outs.append(torch.cat([out[0], out[1].unsqueeze(1)], 1) if algorithm == "ppo" else out)
    assert outs[1].dtype == torch.float32
    difference = (outs[1] - outs[0]).abs().max() / outs[0].abs().max()
    assert 1e-5 < difference < 0.05
    # The heads compute in fp32: their outputs are not rounded to the 8 bits of a bf16.
    assert (outs[1] != outs[1].bfloat16().float()).any()


def count_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


def sizes_of(network):
    return tuple(layer.width for layer in network.convolutions), network.latent.out_features


@pytest.mark.parametrize(
    ("algorithm", "matched", "twin", "adds", "twin_adds"),
    [
        ("dqn", 3_294_372, 3_292_324, 10_952_704, 10_950_656),
        ("ppo", 3_295_397, 3_292_837, 10_953_728, 10_951_168),
        ("pqn", 3_372_240, 3_372_996, 16_784_864, 18_688_000),
    ],
)
def test_the_matched_network_beside_its_twin(algorithm, matched, twin, adds, twin_adds):
    """With the heads, in a game of 4 actions; multiply-adds per observation."""
    args_class, make = SCRIPTS[algorithm].Args, NETWORKS[algorithm]
    network, hr = make(4, args_class(**VARIANTS["tanh-match"])), make(4, args_class())
    assert sizes_of(network) == MATCHED[algorithm]
    assert (count_of(network), count_of(hr)) == (matched, twin)
    assert (network.count_multiply_adds(), hr.count_multiply_adds()) == (adds, twin_adds)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(SCRIPTS)),
    st.sampled_from(["last", "all"]),
    st.booleans(),
    st.integers(1, 1_500),
)
def test_the_matched_z_is_the_nearest(algorithm, apply_to, layer_norm, latent_dim):
    """Of all z, by the parameters of networks that hold no memory; without the heads."""
    flags = {"apply_to": apply_to, "layer_norm": layer_norm, "latent_dim": latent_dim}
    args_class = SCRIPTS[algorithm].Args
    args = args_class(**flags, branches=1, width="match")
    with torch.device("meta"):
        twin = count_of(NatureEncoder(args_class(**flags)))
        convolutions = NatureEncoder(args).convolutions
        assert [layer.width for layer in convolutions] == (
            [round(math.sqrt(2) * n) for n in (32, 64, 64)] if apply_to == "all" else [32, 64, 64]
        )
        features, others = convolutions[-1].width * 7 * 7, count_of(convolutions)
        z = {n: HadamardLinear(features, n, "tanh", 1, "product", layer_norm) for n in (1, 2)}
    each = count_of(z[2]) - count_of(z[1])
    assert count_of(z[1]) == each
    distances = {n: abs(others + n * each - twin) for n in range(1, 2 * latent_dim + 9)}
    assert distances[resolve_widths(args).z] == min(distances.values())


@pytest.mark.parametrize("num_actions", range(3, 19))
def test_in_pqn_the_heads_would_not_change_the_matched_z(num_actions):
    """In no game of Atari: its whole network is the nearest, too."""
    args_class, make = SCRIPTS["pqn"].Args, NETWORKS["pqn"]
    with torch.device("meta"):
        distance = abs(
            (matched := count_of(make(num_actions, args_class(**VARIANTS["tanh-match"]))))
            - (twin := count_of(make(num_actions, args_class())))
        )
    each = 91 * 7 * 7 + 3 + num_actions  # weights, bias, norm and what the head reads
    assert distance == min(abs(matched + step * each - twin) for step in range(-700, 700))


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("width", [0.1, 1.0, 1.5])
def test_a_number_multiplies_the_layers_that_change(width, branches, algorithm):
    args = SCRIPTS[algorithm].Args(branches=branches, latent_dim=100, width=width)
    everywhere = algorithm == "pqn"
    channels = {0.1: (3, 6, 6), 1.0: (32, 64, 64), 1.5: (48, 96, 96)}[width if everywhere else 1.0]
    network = NETWORKS[algorithm](4, args)
    assert sizes_of(network) == (channels, {0.1: 10, 1.0: 100, 1.5: 150}[width])
    assert network(torch.zeros(2, 4, 84, 84, dtype=torch.uint8))[0].isfinite().all()
    heads = sum(count_of(layer) for layer in network.modules() if isinstance(layer, nn.Linear))
    counted = count_hidden_parameters(args, resolve_widths(args), branches)
    assert counted == count_of(network) - heads


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("variant", ["tanh", "tanh-hr", "tanh-3hr", "tanh-match"])
def test_multiply_adds_are_those_of_a_forward_pass(variant, algorithm):
    """By the shapes that go through every layer: weights that make a number, times numbers."""
    network, counted = NETWORKS[algorithm](4, SCRIPTS[algorithm].Args(**VARIANTS[variant])), []

    def count(layer, inputs, output):
        (x,) = inputs
        branches = getattr(layer, "branches", 1)
        if isinstance(layer, HadamardConv2d):
            kernel = x.shape[1] * math.prod(layer.kernel_size)
            counted.append(branches * kernel * output[0].numel())
        else:
            counted.append(branches * x.shape[1] * output[0].numel())

    for layer in network.modules():
        if isinstance(layer, (HadamardConv2d, HadamardLinear, nn.Linear)):
            layer.register_forward_hook(count)
    network(torch.zeros(2, 4, 84, 84, dtype=torch.uint8))
    assert len(counted) == (6 if algorithm == "ppo" else 5)
    assert network.count_multiply_adds() == sum(counted)


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_the_default_width_draws_what_layers_written_out_draw(algorithm):
    """The Nature network with its sizes in numbers: the same weights from the same seed."""
    args = SCRIPTS[algorithm].Args()
    torch.manual_seed(3)
    network = NatureEncoder(args)
    torch.manual_seed(3)
    hadamard = (args.activation, args.branches, args.combine, args.layer_norm)
    below = hadamard if algorithm == "pqn" else ("relu", 1)
    layers = [
        HadamardConv2d(4, 32, 8, 4, 0, *below),
        HadamardConv2d(32, 64, 4, 2, 0, *below),
        HadamardConv2d(64, 64, 3, 1, 0, *below),
        HadamardLinear(3136, 512, *hadamard),
    ]
    for ours, expected in zip((*network.convolutions, network.latent), layers, strict=True):
        state = expected.state_dict()
        assert ours.state_dict().keys() == state.keys()
        assert all(torch.equal(weight, state[key]) for key, weight in ours.state_dict().items())
