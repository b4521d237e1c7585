"""The scripts on a CUDA device: they learn what they learn on the CPU, and go on after a stop."""

import copy
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TIMEOUT
from interruptions import series

import dqn_atari
import ppo_atari
import pqn_atari
from lab.common.device import pick_device
from lab.training.frames import channels_last
from lab.training.radam import RAdam
from lab.training.replay import Batch, ReplayBuffer
from lab.training.signals import CAN_RESUME
from training.test_resume import RUNS, SMALL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NUM_ACTIONS, UPDATES = 4, 5
# Of the change that the updates make to the outputs, in the Euclidean norm.
TOLERANCES = {"fp32": 1e-2, "bf16": 0.2}


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """fp32 all through, as `pick_device` has it in a run."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    pick_device("cuda")


def random_obs(*shape):
    frames = np.random.default_rng(0).integers(256, size=(*shape, 4, 84, 84), dtype=np.uint8)
    return torch.from_numpy(frames)


def learn_dqn(network, device, args):
    """Some updates of DQN on one batch."""
    target = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=args.adam_eps, fused=True)
    actions = torch.arange(32, device=device) % NUM_ACTIONS
    rewards, ends = torch.linspace(-1, 1, 32, device=device), torch.zeros(32, device=device)
    obs = channels_last(random_obs(64)).to(device)
    batch = Batch(obs[:32], actions, rewards, obs[32:], ends)
    for _ in range(UPDATES):
        dqn_atari.update(network, target, optimizer, batch, args)


def learn_from_rollout(network, device, args):
    """Some updates of PPO or PQN from one rollout, which is one minibatch."""
    module = ppo_atari if hasattr(network, "critic") else pqn_atari
    rollout = module.empty_rollout(args, device)
    rollout.obs.copy_(random_obs(args.num_steps, args.num_envs))
    shape = rollout.rewards.shape
    rollout.actions.copy_((torch.arange(shape.numel()) % NUM_ACTIONS).view(shape))
    rollout.dones.zero_()
    targets = torch.linspace(-1, 1, shape.numel()).view(shape)
    rollout.returns.copy_(targets)
    if module is ppo_atari:
        rollout.advantages.copy_(targets.flip(0))
        rollout.log_probs.fill_(-math.log(NUM_ACTIONS))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-5, fused=True)
    else:
        optimizer = RAdam(network.parameters(), lr=1e-3)
    generator = torch.Generator(device).manual_seed(0)
    module.update(network, optimizer, rollout, args, generator)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("algorithm", ["dqn", "ppo", "pqn"])
def test_updates_are_those_of_the_cpu(algorithm, precision):
    """The change of the outputs over some updates from the same weights, on both devices."""
    rollouts = {"num_envs": 8, "num_steps": 8, "num_minibatches": 1, "update_epochs": UPDATES}
    module, learn, own = {
        "dqn": (dqn_atari, learn_dqn, {}),
        "ppo": (ppo_atari, learn_from_rollout, rollouts),
        "pqn": (pqn_atari, learn_from_rollout, rollouts),
    }[algorithm]
    args = module.Args(precision=precision, **own)
    torch.manual_seed(0)
    network = (module.Agent if algorithm == "ppo" else module.QNetwork)(NUM_ACTIONS, args)
    probe, changes = channels_last(random_obs(64)), []
    for device in map(torch.device, ("cpu", "cuda")):
        own_network = copy.deepcopy(network).to(device, memory_format=torch.channels_last)

        def outputs(own_network=own_network, device=device):
            with torch.no_grad():
                out = own_network(probe.to(device))
            return torch.cat([part.flatten() for part in out]).cpu()

        before = outputs()
        learn(own_network, device, args)
        changes.append(outputs() - before)
    on_cpu, on_gpu = changes
    assert on_cpu.norm() > 0.1  # they have learned something
    assert (on_gpu - on_cpu).norm() < TOLERANCES[precision] * on_cpu.norm()


def test_replay_memory_is_that_of_the_cpu():
    """Every transition, with games that end and are truncated on the way."""
    rng = np.random.default_rng(0)
    memories = [ReplayBuffer(40, 2, device) for device in ("cpu", "cuda")]
    obs = rng.integers(256, size=(30, 2, 4, 84, 84), dtype=np.uint8)
    for memory in memories:
        memory.start(obs[0])
    for t in range(1, 30):
        ends, cut = rng.random(2) < 0.2, rng.random(2) < 0.1
        final = np.array([None, None], dtype=object)
        for env in np.flatnonzero(cut):
            final[env] = rng.integers(256, size=(4, 84, 84), dtype=np.uint8)
        step = (obs[t], rng.integers(4, size=2), rng.random(2).astype(np.float32), ends, ends | cut)
        for memory in memories:
            memory.add(*step, final if cut.any() else None)
    on_cpu, on_gpu = (
        memory.transitions(torch.arange(40, device=memory.device)) for memory in memories
    )
    for name, part in on_cpu._asdict().items():
        assert torch.equal(getattr(on_gpu, name).cpu(), part), name


@pytest.mark.parametrize("algorithm", ["dqn", "ppo", "pqn"])
def test_a_stopped_run_goes_on(algorithm, tmp_path):
    """To its end, with every curve finite and no step missing or twice."""
    command = [sys.executable, str(ROOT / f"{algorithm}_atari.py"), "--device", "cuda"]
    command += [*map(str, (*RUNS[algorithm], *SMALL))]
    popen = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **popen)
    while "parameters on" not in (line := first.stdout.readline()) and line:
        pass
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=TIMEOUT)
    assert first.returncode == CAN_RESUME, out
    (folder,) = (tmp_path / "runs").iterdir()
    again = subprocess.run(
        [*command, "--resume", "auto"], capture_output=True, timeout=TIMEOUT, **popen
    )
    assert again.returncode == 0, again.stderr
    assert "resumed at" in again.stdout
    config = json.loads((folder / "config.json").read_text())
    assert config["device"] == torch.cuda.get_device_name()
    curves = series(folder)
    loss = "losses/entropy" if algorithm == "ppo" else "losses/q_values"
    assert max(step for step, _ in curves[loss]) >= 1024
    for tag, points in curves.items():
        steps, values = zip(*points, strict=True)
        if "episodic" not in tag:
            assert len(set(steps)) == len(steps), tag
        assert all(map(math.isfinite, values)), tag
