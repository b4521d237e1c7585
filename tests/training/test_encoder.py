"""The encoder in the precision and the sizes of the flags."""

import math

import numpy as np
import pytest
import torch
from algorithms import HADAMAX, MATCHED, NETWORKS, SCRIPTS, VARIANTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hadamard import HadamardConv2d, HadamardLinear
from lab.training.encoder import (
    Encoder,
    count_hidden_parameters,
    map_sides,
    max_pool,
    resolve_widths,
)


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
        twin = count_of(Encoder(args_class(**flags)))
        convolutions = Encoder(args).convolutions
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
    network = Encoder(args)
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


class HadamaxByHand(nn.Module):
    """The network of arXiv 2505.15345 written out with torch's own layers, for 4 actions."""

    def __init__(self, branches):
        super().__init__()
        shapes = [(4, 32, 8), (32, 64, 4), (64, 64, 3)]
        self.convolutions = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(*shape, padding="same") for _ in range(branches))
            for shape in shapes
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.LayerNorm(shape[1], eps=1e-6) for _ in range(branches))
            for shape in shapes
        )
        self.latent, self.norm = nn.Linear(64 * 11 * 11, 512), nn.LayerNorm(512, eps=1e-6)
        self.head = nn.Linear(512, 4)

    def forward(self, obs):
        gelu = nn.GELU(approximate="tanh")
        pools = [nn.MaxPool2d(4, 4), nn.MaxPool2d(2, 2, ceil_mode=True), nn.MaxPool2d(3, 1, 1)]
        x = obs.float() / 255
        for convolutions, norms, pool in zip(self.convolutions, self.norms, pools, strict=True):
            product = 1
            for convolution, norm in zip(convolutions, norms, strict=True):
                branch = norm(convolution(x).movedim(1, -1)).movedim(-1, 1)
                product = product * gelu(branch)
            x = pool(product)
        z = gelu(self.norm(self.latent(x.movedim(1, -1).flatten(1))))
        return self.head(z)

    def parameters_in_order(self):
        """In the order and the shapes of ours."""
        found = []
        for convolutions, norms in zip(self.convolutions, self.norms, strict=True):
            found += [torch.cat([each.weight for each in convolutions])]
            found += [torch.cat([each.bias for each in convolutions])]
            found += [torch.stack([each.weight for each in norms])]
            found += [torch.stack([each.bias for each in norms])]
        found += [self.latent.weight, self.latent.bias]
        found += [self.norm.weight.unsqueeze(0), self.norm.bias.unsqueeze(0)]
        return [*found, self.head.weight, self.head.bias]


@pytest.mark.parametrize("branches", [1, 2])
def test_hadamax_is_the_network_written_out(branches):
    torch.manual_seed(0)
    ours = NETWORKS["dqn"](4, SCRIPTS["dqn"].Args(**HADAMAX, branches=branches))
    theirs = HadamaxByHand(branches)
    with torch.no_grad():
        for norm in [*theirs.norms.modules(), theirs.norm]:
            if isinstance(norm, nn.LayerNorm):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
        pairs = zip(ours.parameters(), theirs.parameters_in_order(), strict=True)
        for parameter, value in pairs:
            assert parameter.shape == value.shape
            parameter.copy_(value)
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    assert torch.allclose(ours(obs), theirs(obs), atol=1e-5)
    if branches == 2:
        assert count_of(ours) == 4_125_124
    assert count_of(ours) == count_of(theirs)


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_parameters_of_hadamax_are_counted_as_they_are(algorithm):
    args = SCRIPTS[algorithm].Args(**HADAMAX)
    network = NETWORKS[algorithm](6, args)
    linear = [layer for layer in network.children() if type(layer) is nn.Linear]
    heads = sum(map(count_of, linear))
    hidden = count_hidden_parameters(args, resolve_widths(args), args.branches)
    assert hidden == count_of(network) - heads
    adds = [2 * 32 * 4 * 64 * 84**2, 2 * 64 * 32 * 16 * 21**2, 2 * 64 * 64 * 9 * 11**2]
    adds += [64 * 11**2 * 512, sum(layer.weight.numel() for layer in linear)]
    assert network.count_multiply_adds() == sum(adds)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
def test_pooling_is_a_loop_over_windows(side, window, stride):
    """flax's SAME: ceil(side / stride) windows, of which half of what is beyond lies before."""
    maps = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    count = math.ceil(side / stride)
    before = max((count - 1) * stride + window - side, 0) // 2
    expected = torch.empty(2, 3, count, count)
    for i in range(count):
        for j in range(count):
            rows = slice(max(i * stride - before, 0), max(i * stride - before + window, 0))
            columns = slice(max(j * stride - before, 0), max(j * stride - before + window, 0))
            expected[..., i, j] = maps[..., rows, columns].amax(dim=(-2, -1))
    assert torch.equal(max_pool(maps, window, stride), expected)


def test_the_forward_pass_of_hadamax_is_a_loop_in_numpy():
    """One convolution with its norm, activation, product and pooling, pixel by pixel."""
    torch.manual_seed(1)
    network = NETWORKS["pqn"](4, SCRIPTS["pqn"].Args(**HADAMAX))
    obs = torch.randint(0, 256, (1, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        found = network.feature_maps(obs)[0][0].numpy()
    assert found.shape == (32, 21, 21)
    x = np.pad(obs[0].numpy() / 255.0, ((0, 0), (3, 4), (3, 4)))  # SAME, as flax pads a window of 8
    layer = network.convolutions[0]
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    for row, column in ((0, 0), (5, 17), (20, 20)):  # of the pooled map
        best = np.full(32, -np.inf)
        for i in range(4 * row, 4 * row + 4):
            for j in range(4 * column, 4 * column + 4):
                pixel = (weight * x[None, :, i : i + 8, j : j + 8]).sum(axis=(1, 2, 3)) + bias
                product = np.ones(32)
                for branch in pixel.reshape(2, 32):
                    normed = (branch - branch.mean()) / np.sqrt(branch.var() + 1e-6)
                    inner = np.sqrt(2 / np.pi) * (normed + 0.044715 * normed**3)
                    product *= 0.5 * normed * (1 + np.tanh(inner))
                best = np.maximum(best, product)
        assert np.allclose(found[:, row, column], best, atol=1e-4)


def test_the_sides_of_the_maps():
    assert map_sides(SCRIPTS["dqn"].Args()) == ([20, 9, 7], [20, 9, 7])
    assert map_sides(SCRIPTS["dqn"].Args(encoder="hadamax")) == ([84, 21, 11], [21, 11, 11])
