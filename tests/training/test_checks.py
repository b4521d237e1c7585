"""What memory is asked for, against the network that the flags make."""

import pytest
import torch
from algorithms import NETWORKS, SCRIPTS

from hadamard import HadamardConv2d, HadamardLinear
from lab.training import checks


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize(
    ("branches", "width"), [(1, "match"), (1, 1.0), (2, 1.0), (1, 2.5), (2, 0.5)]
)
def test_memory_is_asked_for_the_sizes_of_the_network(branches, width, algorithm, monkeypatch):
    """Five times the hidden layers, where their width is changed; every activation three times."""
    asked = {}

    def require_memory(what, count, bytes_each, device):
        asked[what.rpartition("--")[2].split()[0]] = count * bytes_each

    monkeypatch.setattr(checks, "require_memory", require_memory)
    args = SCRIPTS[algorithm].Args(branches=branches, width=width)
    checks.check_memory(args)

    network = NETWORKS[algorithm](4, args)
    layers = [*network.convolutions, network.latent]
    activations = []
    for layer in network.modules():
        if isinstance(layer, (HadamardConv2d, HadamardLinear)):
            layer.register_forward_hook(
                lambda layer, _, output: activations.append(layer.branches * output.numel())
            )
    network(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
    size = {"dqn": 32, "ppo": 8 * 128 // 4, "pqn": 128 * 32 // 32}[algorithm]  # of a batch
    flag = "batch-size" if algorithm == "dqn" else "num-minibatches"
    assert asked[flag] == size * 4 * (4 * 84 * 84 + 3 * sum(activations))
    if width != 1.0:
        parameters = sum(weight.numel() for layer in layers for weight in layer.parameters())
        assert asked["branches"] == 5 * 4 * parameters
