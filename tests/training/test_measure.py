"""What is measured of a network: its hidden layers, computed again by torch's own functions; their
gradients, by finite differences; what an update changes, and that measuring changes nothing."""

import copy
import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from algorithms import SCRIPTS, SHORT, parse, saved_weights
from torch import nn

from dqn_atari import Args, QNetwork
from hadamard import ACTIVATIONS
from lab.training.measure import (
    PROBES,
    Probed,
    describe_deaths,
    hidden_layers,
    loss_gradients,
    measure_churn,
    measure_gradient,
    measure_representation,
    probe,
)
from lab.training.run import Run
from metrics import dead_neurons


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


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("apply_to", ["last", "all"])
@pytest.mark.parametrize("branches", [1, 2])
def test_gradients_are_finite_differences_of_the_loss(branches, apply_to, layer_norm):
    """In float64, by torch's own functions, where the run computes in bf16."""
    torch.manual_seed(0)
    flags = {"branches": branches, "apply_to": apply_to, "layer_norm": layer_norm}
    network = QNetwork(3, Args(**flags, latent_dim=8, init="orthogonal", precision="bf16"))
    obs = torch.randint(0, 255, (6, 4, 84, 84), dtype=torch.uint8)
    targets = torch.randn(6, 3)

    def loss():
        _, factors = network_by_torch(network, obs)
        head = (network.head.weight.double(), network.head.bias.double())
        q_values = F.linear(torch.stack(factors).prod(dim=0), *head)
        return ((q_values - targets) ** 2).mean().item()

    def difference(weight, place, by):
        with torch.no_grad():
            weight[place] += by
            high = loss()
            weight[place] -= 2 * by
            low = loss()
            weight[place] += by
        return (high - low) / (2 * by)

    everywhere = apply_to == "all"
    found = loss_gradients(network, lambda copied: F.mse_loss(copied(obs), targets), everywhere)
    assert set(found) == set(hidden_layers(network, obs, everywhere))
    layers = dict(enumerate(network.convolutions, start=1)) if apply_to == "all" else {}
    layers = {f"conv_{i}": layer for i, layer in layers.items()} | {"z": network.latent}
    for name, layer in layers.items():
        width, incoming = layer.width, layer.weight[0].numel()
        weights, gradient = found[name]
        assert gradient.shape == (width, branches * incoming)
        for i in range(branches):
            rows = layer.weight.detach().flatten(1)[i * width : (i + 1) * width]
            columns = slice(i * incoming, (i + 1) * incoming)
            assert torch.equal(weights[:, columns], rows)
            if name == "z" and branches > 1:
                branch_weights, branch_gradient = found[f"branch_{i}"]
                assert torch.equal(branch_gradient, gradient[:, columns])
                assert torch.equal(branch_weights, rows)
            # The weight with the largest gradient of the branch, and another of that neuron.
            neuron, most = divmod(int(gradient[:, columns].abs().argmax()), incoming)
            flat = layer.weight.detach().flatten(1)
            for weight in (most, (most + 7) % incoming):
                expected = difference(flat, (i * width + neuron, weight), 1e-3)
                largest = gradient.abs().max().item()
                measured = gradient[neuron, i * incoming + weight].item()
                assert measured == pytest.approx(expected, rel=0.02, abs=2e-3 * largest), name
    assert all(weight.grad is None for weight in network.parameters())


def test_how_products_are_dead():
    """Both branches dead, one, and none where the product is of small numbers; at 1 and at 0."""
    torch.manual_seed(0)
    n = 2048
    lives, one, small = torch.randn(n).tanh(), torch.full((n,), 0.98), 0.1 * torch.randn(n)
    pairs = [(one, one), (one, lives), (lives, one), (small, small), (lives, lives)]
    first, second = (torch.stack(of, dim=1) for of in zip(*pairs, strict=True))
    layers = {"z": first * second, "branch_0": first, "branch_1": second}
    dead = {name: dead_neurons(layer) for name, layer in layers.items()}
    assert dead["z"].tolist() == [True, False, False, True, False]
    found = describe_deaths(layers, dead)
    assert found["representation/dead_with_branches"] == pytest.approx(1 / 5)
    assert found["representation/dead_without_branches"] == pytest.approx(1 / 5)
    held = (0.98**2 + layers["z"][:, 3].mean().abs()) / 2
    assert found["representation/dead_magnitude"] == pytest.approx(held.item(), abs=1e-6)
    assert describe_deaths({"z": lives[:, None]}, {"z": torch.tensor([False])}) == {}


def test_a_gradient_that_is_not_finite_is_nan_and_not_dormant():
    for bad in (math.nan, math.inf):
        measured = measure_gradient(torch.ones(3, 4), torch.full((3, 4), bad))
        assert all(math.isnan(value) for value in measured.values())
    assert measure_gradient(torch.ones(3, 4), torch.ones(3, 4))["grad_dormant_0.1"] == 0


def test_churn_is_told_apart_by_what_is_exchanged():
    """Q-values of the old and the new network, and of either encoder below the other head."""
    torch.manual_seed(0)
    old, new = (QNetwork(4, Args(latent_dim=16, init="orthogonal")) for _ in range(2))
    obs = torch.randint(0, 255, (200, 4, 84, 84), dtype=torch.uint8)
    before, after = probe(old, old.head, obs), probe(new, new.head, obs)
    with torch.no_grad():
        zs = {"old": old.encode(obs), "new": new.encode(obs)}
        heads = {"old": old.head, "new": new.head}
        actions = {(e, h): heads[h](zs[e]).argmax(dim=1) for e in zs for h in heads}
    share = {pair: (a != actions["old", "old"]).double().mean() for pair, a in actions.items()}
    expected = {"total": ("new", "new"), "encoder": ("new", "old"), "head": ("old", "new")}
    measured = measure_churn(before, after)
    assert measured == {f"churn/{part}": share[pair] for part, pair in expected.items()}
    assert all(0 < value < 1 for value in measured.values())
    assert set(measure_churn(before, before).values()) == {0}
    # The head is kept as it was, also where an update then moves it.
    with torch.no_grad():
        old.head.weight.neg_()
    assert measure_churn(before, probe(old, old.head, obs))["churn/head"] > 0.5


def test_churn_of_a_head_that_overflows_is_no_number():
    """A run finds by it that it has diverged, rather than ending in a traceback."""
    head, z = nn.Linear(2, 3), torch.ones(4, 2)
    huge = copy.deepcopy(head)
    nn.init.constant_(huge.weight, 3e38)
    measured = measure_churn(Probed(z, z, head), Probed(z, z, huge))
    assert math.isnan(measured["churn/total"])
    assert math.isnan(measured["churn/head"])
    assert measured["churn/encoder"] == 0


def test_contributions_are_those_of_the_neurons_that_they_name():
    torch.manual_seed(0)
    z, head = torch.randn(512, 6).tanh(), nn.Linear(6, 3)
    z[:, :2] = 0.9
    found = measure_representation({"z": z}, {"z": {}}, head, "ppo")
    parts = z.detach().double()[:, None, :] * head.weight.detach().double()  # (512, 3, 6)
    for name, neurons in (("dead", slice(0, 2)), ("live", slice(2, 6))):
        part = parts[..., neurons].sum(dim=2)
        for tag, mean in ((name, part.mean()), (f"{name}_abs", part.abs().mean())):
            assert found[f"value_contribution/{tag}"] == pytest.approx(mean.item(), rel=1e-5)


# Runs that measure after most of their updates.
MEASURED = {
    "dqn": ("--total-timesteps", 600, "--learning-starts", 512, "--buffer-size", 800),
    "ppo": ("--total-timesteps", 640, *SHORT["ppo"][2:]),
    "pqn": ("--total-timesteps", 640, *SHORT["pqn"][2:]),
}
MEASURED["dqn"] += ("--num-envs", 2, "--metrics-samples", 512)
TINY = ("--branches", 1, "--latent-dim", 16, "--device", "cpu")
CHURN = ("churn/total", "churn/encoder", "churn/head")


@pytest.fixture
def run_measured(tmp_path, events):
    """Run a script that measures so often; return its folder and its curves."""

    def run(algorithm, every, *flags):
        runs = tmp_path / f"every_{every}"
        given = (*MEASURED[algorithm], *TINY, "--metrics-every", every, "--runs-dir", runs, *flags)
        assert SCRIPTS[algorithm].main(parse(algorithm, *given)) == 0
        (folder,) = runs.iterdir()
        return folder, events(folder)

    return run


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_measuring_does_not_move_a_run(algorithm, run_measured):
    """The same weights with a measurement after every update and with none."""
    rate = ("--learning-rate", 0.003)  # at which few updates suffice to change an action
    (often, measured), (never, plain) = (
        run_measured(algorithm, every, *rate) for every in (16, 10_000)
    )
    assert "representation/dead_kde" not in plain.Tags()["scalars"]
    churned = [point.value for tag in CHURN for point in measured.Scalars(tag)]
    assert len(churned) >= 3
    if algorithm == "dqn":  # the others prefer the same action everywhere so early
        assert max(churned) > 0
    one, other = saved_weights(often), saved_weights(never)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_churn_is_that_of_the_policy_over_one_update(algorithm, run_measured, monkeypatch):
    """Each update makes another action the greedy one everywhere, by the head alone."""
    calls = itertools.count()

    def update(learn, *others):
        (network,) = learn.modules
        head = network.actor if algorithm == "ppo" else network.head
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
            head.bias[next(calls) % len(head.bias)] = 1
        return {}

    monkeypatch.setattr(SCRIPTS[algorithm], "update", update)
    _, log = run_measured(algorithm, 64)
    for tag, expected in zip(CHURN, (1, 0, 1), strict=True):
        assert {point.value for point in log.Scalars(tag)} == {expected}


@pytest.mark.parametrize(
    ("algorithm", "loss", "head"),
    [("dqn", "td_loss", "head"), ("ppo", "ppo_loss", "critic"), ("pqn", "td_loss", "head")],
)
def test_the_head_of_the_values_is_measured_and_the_loss_of_the_algorithm(
    algorithm, loss, head, run_measured, monkeypatch
):
    calls, own, measured = [], getattr(SCRIPTS[algorithm], loss), []

    def keep_call(network, *given):
        result = own(network, *given)
        calls.append((network, given, result[0]))
        return result

    def measure(run, recent, given_head, given_loss):
        if run.goes_on():
            return
        calls.clear()
        value = given_loss(run.network)
        ((network, given, own_value),) = calls
        assert network is run.network
        assert value is own_value
        (batch,) = (part for part in given if hasattr(part, "obs"))
        assert 0 < len(batch.obs) <= PROBES
        assert given_head is getattr(run.network, head)
        measured.append(value)

    monkeypatch.setattr(SCRIPTS[algorithm], loss, keep_call)
    monkeypatch.setattr(Run, "measure", measure)
    run_measured(algorithm, 64)
    assert measured


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_an_update_of_rate_0_changes_no_action(algorithm, run_measured):
    _, log = run_measured(algorithm, 64, "--learning-rate", 0)
    points = [point.value for tag in CHURN for point in log.Scalars(tag)]
    assert len(points) >= 3
    assert set(points) == {0}
