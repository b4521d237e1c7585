"""The encoder in the precision of the flags."""

import pytest
import torch
from algorithms import NETWORKS, SCRIPTS


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
