"""The layer against its definition: branches built one by one with torch's own layers."""

import copy
import itertools
import math
from functools import reduce

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from dqn_atari import Args, QNetwork
from hadamard import (
    ACTIVATIONS,
    COMBINES,
    INITS,
    LAYER_NORM_EPS,
    HadamardConv2d,
    HadamardLinear,
    features,
)

FORMULAS = {  # the activations written out, from their papers
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "tanh": lambda x: 1 - 2 / (1 + torch.exp(2 * x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "selu": lambda x: (
        1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (x.exp() - 1))
    ),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + ((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh()),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "identity": lambda x: x,
}

layers = st.fixed_dictionaries(
    {
        "activation": st.sampled_from(sorted(ACTIVATIONS)),
        "branches": st.integers(1, 4),
        "combine": st.sampled_from(COMBINES),
        "layer_norm": st.booleans(),
    }
)
seeds = st.integers(0, 2**32 - 1)


def combined(branches, combine):
    operation = torch.mul if combine == "product" else torch.add
    return reduce(operation, branches)


def random_norm(layer):
    """LayerNorm parameters that are not the identity, so that mixing up branches shows."""
    if layer.layer_norm:
        with torch.no_grad():
            layer.norm_weight.normal_()
            layer.norm_bias.normal_()


def test_activations_are_the_published_functions():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    assert set(ACTIVATIONS) == set(FORMULAS)
    for name, formula in FORMULAS.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), formula(x), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(layers, seeds, st.integers(1, 6), st.integers(1, 7))
def test_linear_equals_separate_layers(config, seed, n_in, n_out):
    torch.manual_seed(seed)
    layer = HadamardLinear(n_in, n_out, **config).double()
    random_norm(layer)
    x = torch.randn(5, n_in, dtype=torch.float64)
    expected = []
    for i in range(config["branches"]):
        rows = slice(i * n_out, (i + 1) * n_out)
        linear = nn.Linear(n_in, n_out).double()
        linear.load_state_dict({"weight": layer.weight[rows], "bias": layer.bias[rows]})
        y = linear(x)
        if config["layer_norm"]:
            norm = nn.LayerNorm(n_out, eps=LAYER_NORM_EPS).double()
            norm.load_state_dict({"weight": layer.norm_weight[i], "bias": layer.norm_bias[i]})
            y = norm(y)
        expected.append(ACTIVATIONS[config["activation"]](y))
    torch.testing.assert_close(layer.branch_activations(x), torch.stack(expected))
    torch.testing.assert_close(layer(x), combined(expected, config["combine"]))


@settings(deadline=None, max_examples=40)
@given(layers, seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 2), st.integers(0, 1))
def test_conv_equals_separate_layers(config, seed, n_in, n_out, stride, padding):
    torch.manual_seed(seed)
    layer = HadamardConv2d(n_in, n_out, 3, stride=stride, padding=padding, **config).double()
    random_norm(layer)
    x = torch.randn(2, n_in, 7, 6, dtype=torch.float64)
    expected = []
    for i in range(config["branches"]):
        rows = slice(i * n_out, (i + 1) * n_out)
        y = F.conv2d(x, layer.weight[rows], layer.bias[rows], stride, padding)
        if config["layer_norm"]:  # over the channels of each pixel, written out
            mean = y.mean(dim=1, keepdim=True)
            variance = (y - mean).square().mean(dim=1, keepdim=True)
            y = (y - mean) / (variance + 1e-6).sqrt()
            y = y * layer.norm_weight[i][:, None, None] + layer.norm_bias[i][:, None, None]
        expected.append(ACTIVATIONS[config["activation"]](y))
    torch.testing.assert_close(layer.branch_activations(x), torch.stack(expected))
    torch.testing.assert_close(layer(x), combined(expected, config["combine"]))
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(channels_last), layer(x))


def separate(torch_layer, layer, **arguments):
    """The branches of a layer as torch's own layers with its parameters."""
    separate_layers = []
    for i in range(layer.branches):
        one = torch_layer(bias=layer.bias is not None, dtype=layer.weight.dtype, **arguments)
        rows = slice(i * layer.width, (i + 1) * layer.width)
        one.load_state_dict({name: of[rows] for name, of in layer.state_dict().items()})
        separate_layers.append(one)
    return separate_layers


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 4)]),  # groups, input channels of each
    st.integers(1, 2),
    st.sampled_from(["same", "valid", 0, (1, 2)]),
    st.sampled_from([1, 2, (2, 1)]),
    st.booleans(),
    st.booleans(),
    seeds,
)
def test_conv_takes_what_torchs_takes(n, channels, each, padding, dilation, bias, batched, seed):
    groups, read = channels
    torch.manual_seed(seed)
    window = {"kernel_size": 3, "padding": padding, "dilation": dilation, "groups": groups}
    shape = {"in_channels": groups * read, "out_channels": groups * each, **window}
    layer = HadamardConv2d(**shape, branches=n, bias=bias, dtype=torch.float64)
    x = torch.randn(2, groups * read, 7, 9, dtype=torch.float64)
    x = x if batched else x[0]
    expected = [torch.tanh(one(x)) for one in separate(nn.Conv2d, layer, **shape)]
    torch.testing.assert_close(layer.branch_activations(x), torch.stack(expected))
    torch.testing.assert_close(layer(x), combined(expected, "product"))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_conv_of_one_image_is_that_of_a_batch_of_one(layer_norm):
    layer = HadamardConv2d(2, 3, 3, layer_norm=layer_norm)
    random_norm(layer)
    x = torch.randn(2, 6, 5)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    torch.testing.assert_close(layer.branch_activations(x), layer.branch_activations(x[None])[:, 0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"groups": 3}, "divisible by groups"),
        ({"padding": "some"}, "padding"),
        ({"padding": "same", "stride": 2}, "strided"),
    ],
)
def test_what_torchs_conv_refuses_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        HadamardConv2d(4, 4, 3, **arguments)


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_linear_without_bias_and_of_any_dtype_draws_what_torchs_draw(branches):
    arguments = {"bias": False, "dtype": torch.float64}
    torch.manual_seed(0)
    layer = HadamardLinear(5, 4, branches=branches, **arguments)
    torch.manual_seed(0)
    weights = [nn.Linear(5, 4, **arguments).weight for _ in range(branches)]
    assert layer.bias is None
    assert list(layer.state_dict()) == ["weight"]
    assert torch.equal(layer.weight, torch.cat(weights))
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), combined([(x @ w.T).tanh() for w in weights], "product"))
    for init in INITS:
        if init != "gated" or branches == 1:
            layer.reset_parameters(init)
            assert layer(x).isfinite().all()


@pytest.mark.parametrize("make", [HadamardLinear, HadamardConv2d])
def test_device_and_dtype_hold_for_every_parameter(make):
    shape = (4, 3) if make is HadamardLinear else (4, 3, 3)
    layer = make(*shape, layer_norm=True, device="meta", dtype=torch.bfloat16)
    kinds = {(of.device.type, of.dtype) for of in layer.parameters()}
    assert kinds == {("meta", torch.bfloat16)}
    before = torch.get_rng_state()
    make(*shape, device="meta")  # nothing is drawn that other layers would miss
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("function", [nn.PReLU(), F.softplus, lambda x: x.clamp(-1, 2)])
def test_activation_may_be_any_function(function, layer_norm):
    for make, shape, x in (
        (HadamardLinear, (5, 4), torch.randn(3, 5)),
        (HadamardConv2d, (2, 4, 3), torch.randn(3, 2, 5, 5)),
    ):
        layer = make(*shape, activation=function, layer_norm=layer_norm)
        without = make(*shape, activation="identity", layer_norm=layer_norm)
        without.load_state_dict(layer.state_dict(), strict=False)
        expected = function(without.branch_activations(x))
        torch.testing.assert_close(layer.branch_activations(x), expected)
        torch.testing.assert_close(layer(x), expected[0] * expected[1])
        # A module among the activations is trained and saved with the layer.
        is_module = isinstance(function, nn.Module)
        assert ("activation.weight" in layer.state_dict()) == is_module


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["tanh", "sigmoid"]), seeds, st.integers(1, 5))
def test_gradient_is_the_formula_of_the_paper(activation, seed, n_out):
    """v1 section 3.2: z' = A_1 f'(.) f(.) + f(.) A_2 f'(.), for each output and input."""
    torch.manual_seed(seed)
    layer = HadamardLinear(3, n_out, activation=activation).double()
    x = torch.randn(3, dtype=torch.float64)
    a1, a2 = layer.weight.detach().split(n_out)
    b1, b2 = layer.bias.detach().split(n_out)
    u1, u2 = a1 @ x + b1, a2 @ x + b2
    if activation == "tanh":
        f1, f2 = u1.tanh(), u2.tanh()
        d1, d2 = u1.cosh() ** -2, u2.cosh() ** -2
    else:
        f1, f2 = u1.sigmoid(), u2.sigmoid()
        d1, d2 = f1 * (1 - f1), f2 * (1 - f2)
    expected = a1 * (d1 * f2)[:, None] + a2 * (f1 * d2)[:, None]
    measured = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(measured, expected)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 4))
def test_default_init_draws_what_separate_torch_layers_draw(seed, branches):
    torch.manual_seed(seed)
    linear = HadamardLinear(5, 4, branches=branches)
    conv = HadamardConv2d(2, 3, 3, branches=branches)
    torch.manual_seed(seed)
    linears = [nn.Linear(5, 4) for _ in range(branches)]
    convs = [nn.Conv2d(2, 3, 3) for _ in range(branches)]
    for fused, separate in ((linear, linears), (conv, convs)):
        assert torch.equal(fused.weight, torch.cat([layer.weight for layer in separate]))
        assert torch.equal(fused.bias, torch.cat([layer.bias for layer in separate]))


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("make", ["linear", "conv"])
def test_init_statistics_hold_in_each_branch(branches, make):
    torch.manual_seed(0)
    if make == "linear":
        layer, fan_in, width = HadamardLinear(256, 200, branches=branches), 256, 200
    else:
        layer, fan_in, width = HadamardConv2d(64, 200, 2, branches=branches), 256, 200
    layer.reset_parameters("orthogonal", gain=1.5)
    for weight in layer.weight.detach().flatten(1).split(width):
        torch.testing.assert_close(
            weight @ weight.T, 1.5**2 * torch.eye(width), atol=1e-4, rtol=1e-4
        )
    assert not layer.bias.any()

    layer.reset_parameters("he_normal")
    for weight in layer.weight.detach().flatten(1).split(width):
        # 51,200 draws: the standard error of the standard deviation is 0.3 %
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        untruncated = math.sqrt(2 / fan_in) / stats.truncnorm.std(-2, 2)
        assert weight.abs().max().item() <= 2 * untruncated * (1 + 1e-6)
    assert not layer.bias.any()

    layer.reset_parameters("he_normal", gain=1.0)  # flax's lecun_normal
    for weight in layer.weight.detach().flatten(1).split(width):
        assert weight.std().item() == pytest.approx(math.sqrt(1 / fan_in), rel=0.02)

    layer.reset_parameters("xavier_normal")
    fan_out = width * (1 if make == "linear" else 4)
    for weight in layer.weight.detach().flatten(1).split(width):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.02)
    assert not layer.bias.any()

    layer.reset_parameters("torch")
    bound = 1 / math.sqrt(fan_in)
    for weight in layer.weight.detach().flatten(1).split(width):
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert weight.abs().max().item() <= bound


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("make", ["linear", "conv"])
def test_gated_is_orthogonal_with_all_branches_but_the_first_held_open(make, branches, layer_norm):
    options = {"branches": branches, "layer_norm": layer_norm}
    layer = (
        HadamardLinear(9, 4, **options) if make == "linear" else HadamardConv2d(3, 4, 3, **options)
    )
    torch.manual_seed(0)
    layer.reset_parameters("orthogonal", 1.5)
    expected = copy.deepcopy(layer.state_dict())
    name = "norm_bias" if layer_norm else "bias"
    assert not expected[name].any()
    expected[name].view(branches, 4)[1:] = 2.0
    torch.manual_seed(0)
    layer.reset_parameters("gated", 1.5)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("branches", [2, 3])
def test_gated_keeps_the_second_moment_of_a_plain_layer(branches):
    """E z² = E tanh(u)² E tanh(2 + u)² ^ (branches - 1): most of that of a plain layer."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for inputs in (0.1, 0.5):
        u = rng.normal(0, math.sqrt(2 * inputs), 1_000_000)
        plain, gate = np.tanh(u) ** 2, np.tanh(2 + u) ** 2
        expected = plain.mean() * gate.mean() ** (branches - 1)
        layer = HadamardLinear(1024, 512, branches=branches)
        layer.reset_parameters("gated")
        measured = layer(math.sqrt(inputs) * torch.randn(512, 1024)).square().mean().item()
        assert measured == pytest.approx(expected, rel=0.03)
        assert 0.6 < measured / plain.mean() < 1
        layer.reset_parameters("orthogonal")
        measured = layer(math.sqrt(inputs) * torch.randn(512, 1024)).square().mean().item()
        assert measured == pytest.approx(plain.mean() ** branches, rel=0.03)


def test_gated_needs_a_bias_and_holds_no_summand_open():
    with pytest.raises(ValueError, match="bias=True or layer_norm=True"):
        HadamardLinear(3, 4, bias=False).reset_parameters("gated")
    HadamardLinear(3, 4, bias=False, layer_norm=True).reset_parameters("gated")
    layer = HadamardLinear(3, 4, combine="sum")
    layer.reset_parameters("gated")
    assert not layer.bias.any()


def trunk_parameters(network):
    head = sum(parameter.numel() for parameter in network.head.parameters())
    return sum(parameter.numel() for parameter in network.parameters()) - head


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"branches": 1}, 1_684_128),
        ({"branches": 2}, 3_290_272),
        ({"branches": 2, "apply_to": "all"}, 3_368_256),
        ({"branches": 1, "latent_dim": 1024}, 3_290_272),
    ],
)
def test_parameter_counts_without_the_head(flags, expected):
    assert trunk_parameters(QNetwork(4, Args(**flags))) == expected


def test_dtype_moves_and_state_dict_round_trip(tmp_path):
    torch.manual_seed(0)
    for layer in (HadamardLinear(6, 5, layer_norm=True), HadamardConv2d(2, 5, 3, layer_norm=True)):
        random_norm(layer)
        x = torch.randn(3, 6) if isinstance(layer, HadamardLinear) else torch.randn(3, 2, 6, 6)
        torch.save(layer.state_dict(), tmp_path / "layer.pt")
        other = copy.deepcopy(layer)
        other.reset_parameters("he_normal")
        assert not torch.equal(other(x), layer(x))
        other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
        assert torch.equal(other(x), layer(x))
        for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
            z = copy.deepcopy(layer).to(dtype)(x.to(dtype))
            assert z.dtype == dtype
            torch.testing.assert_close(z.float(), layer(x), atol=tolerance, rtol=tolerance)
        with torch.device("meta"):
            assert layer.to("meta")(x.to("meta")).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_move():
    layer = HadamardLinear(6, 5, layer_norm=True)
    x = torch.randn(3, 6)
    expected = layer(x)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), expected)


def test_gradients_reach_every_branch():
    layer = HadamardLinear(4, 3, branches=3)
    layer(torch.randn(8, 4)).sum().backward()
    for gradient in layer.weight.grad.split(3):
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"activation": "tahn"}, "relu, tanh, .*, identity, or a function"),
        ({"activation": nn.Tanh}, "or a function such as"),
        ({"activation": None}, "or a function such as"),
        ({"combine": "mean"}, "product, sum"),
        ({"branches": 0}, "at least 1"),
        ({"branches": 1.5}, "at least 1"),
        ({"branches": True}, "at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        HadamardLinear(3, 4, **arguments)
    with pytest.raises(ValueError, match=named):
        HadamardConv2d(3, 4, 3, **arguments)
    with pytest.raises(ValueError, match="torch, orthogonal, he_normal, xavier_normal"):
        HadamardLinear(3, 4).reset_parameters("xavier")


def test_extra_leading_dimensions():
    layer = HadamardLinear(4, 3, branches=2)
    x = torch.randn(2, 5, 4)
    assert layer(x).shape == (2, 5, 3)
    branches = layer.branch_activations(x)
    assert branches.shape == (2, 2, 5, 3)
    np.testing.assert_allclose(branches.prod(0).detach(), layer(x).detach(), rtol=1e-6)


def test_features_are_the_maps_pixel_by_pixel_without_a_copy():
    maps = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    taken = features(maps)
    assert taken.data_ptr() == maps.data_ptr()
    for i, y, x, channel in itertools.product(range(2), range(4), range(5), range(3)):
        assert taken[i, (y * 5 + x) * 3 + channel] == maps[i, channel, y, x]
    assert torch.equal(features(maps.contiguous()), taken)


# Where a weight has more rows than columns: all features of each branch, or only of all branches.
TALL = [
    lambda n: HadamardLinear(4, 64, branches=n),
    lambda n: HadamardLinear(48, 32, branches=n),
    lambda n: HadamardLinear(64, 64, branches=n, bias=False, dtype=torch.float64),
    lambda n: HadamardConv2d(2, 16, 3, branches=n),
    lambda n: HadamardConv2d(8, 8, 3, branches=n, groups=8),
]


def pass_through(layer):
    linear = isinstance(layer, HadamardLinear)
    shape = (2, layer.in_features) if linear else (2, layer.in_channels, 5, 5)
    return layer(torch.randn(shape, dtype=layer.weight.dtype))


@pytest.mark.parametrize("make", TALL)
@pytest.mark.parametrize("branches", [2, 3])
def test_orthogonal_drawn_over_all_branches_at_once_is_told(make, branches):
    """As CleanRL's layer_init does it. Every way to draw each branch alone is taken as it is."""
    torch.manual_seed(0)
    layer = make(branches)
    nn.init.orthogonal_(layer.weight, 2**0.5)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r'each is too small: .*reset_parameters\("orthogonal"'
        ):
            pass_through(layer)
    for init in ("torch", "orthogonal", "he_normal"):
        layer.reset_parameters(init)
        pass_through(layer)
    for draw in (nn.init.orthogonal_, nn.init.xavier_uniform_, nn.init.zeros_):
        layer = make(branches)
        for weight in layer.weight.detach().split(layer.width):
            draw(weight)
        pass_through(layer)
    layer = make(1)
    nn.init.orthogonal_(layer.weight)  # one branch: all there is
    pass_through(layer)


def test_few_columns_are_not_taken_for_orthogonal_by_accident():
    """Two columns of 1024 drawn numbers nearly are once in a thousand times, as with seed 509."""
    torch.manual_seed(509)
    layer = HadamardLinear(2, 512)
    one, other = layer.weight.detach().double().T
    assert abs(one @ other) < 1e-3 * one @ one
    layer(torch.zeros(1, 2))


def test_orthogonal_over_all_branches_is_right_where_the_weight_is_wide():
    layer = HadamardLinear(64, 32)
    nn.init.orthogonal_(layer.weight, 3)
    for weight in layer.weight.detach().split(32):
        torch.testing.assert_close(weight @ weight.T, 9 * torch.eye(32), atol=1e-4, rtol=1e-4)
    pass_through(layer)


def test_weights_that_torch_func_swaps_in_are_not_looked_at():
    layers = [HadamardLinear(4, 64) for _ in range(3)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    parameters, _ = torch.func.stack_module_state(layers)
    skeleton = copy.deepcopy(layers[0]).to("meta")

    def forward(own, x):
        return torch.func.functional_call(skeleton, own, (x,))

    assert torch.func.vmap(forward, (0, None))(parameters, torch.randn(2, 4)).shape == (3, 2, 64)
