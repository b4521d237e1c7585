"""The scripts on a CUDA device: they learn what they learn on the CPU, and go on after a stop."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from algorithms import draw_acting
from conftest import ROOT, TIMEOUT
from interruptions import series
from torch.utils._pytree import tree_leaves

import dqn_atari
import ppo_atari
import pqn_atari
from lab.common.device import pick_device
from lab.training.checkpoint import has_checkpoint
from lab.training.frames import channels_last
from lab.training.graphs import WARM_UP, Graphed
from lab.training.radam import RAdam
from lab.training.replay import Batch, ReplayBuffer
from lab.training.signals import CAN_RESUME
from training.test_graphs import Learner, random_batch
from training.test_resume import RUNS, SMALL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NUM_ACTIONS, UPDATES = 4, 5
# Of the change that the updates make to the outputs, in the Euclidean norm.
TOLERANCES = {"fp32": 1e-2, "tf32": 0.1, "bf16": 0.2}


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

    def learn(*batch):
        return module.gradient_step(network, optimizer, module.Rollout(*batch), args)

    module.update(learn, rollout, args, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", TOLERANCES)
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
    pick_device("cuda", precision)
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
    on_cpu, on_gpu = (memory.transitions(torch.arange(40)) for memory in memories)
    for name, part in on_cpu._asdict().items():
        assert torch.equal(getattr(on_gpu, name).cpu(), part), name


def outputs_of(learner):
    obs = random_obs(64).to("cuda")
    with torch.no_grad():
        return torch.cat([part.flatten() for part in tree_leaves(learner.network(obs))])


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("algorithm", ["dqn", "ppo", "pqn"])
def test_replayed_updates_are_the_updates(algorithm, precision, capfd):
    """100 of them while the learning rate falls; as near as updates without graphs are."""
    pick_device("cuda", precision)
    flags = {"device": "cuda", "precision": precision, "latent_dim": 512}
    batches = [[x.to("cuda") for x in random_batch(algorithm, call)] for call in range(10)]
    changes = []
    for cuda_graphs in (True, False, False):
        learner = Learner(algorithm, **flags, cuda_graphs=cuda_graphs)
        before = outputs_of(learner)
        for call in range(100):
            learner.optimizer.param_groups[0]["lr"] = 1e-3 * (1 - call / 100)
            learner.learn(*batches[call % 10])
        changes.append(outputs_of(learner) - before)
        assert learner.learn.replays == cuda_graphs * (92 if algorithm == "pqn" else 97)
    graph, plain, again = changes
    allowed = max(TOLERANCES[precision] * plain.norm(), 3 * (again - plain).norm())
    assert (graph - plain).norm() <= allowed
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("algorithm", ["dqn", "ppo", "pqn"])
def test_replayed_actions_are_the_actions(algorithm, precision, capfd):
    """What it is given comes from the host, which runs ahead and uses the memory again."""
    pick_device("cuda", precision)
    choose = Learner(algorithm, device="cuda", precision=precision).choose
    kept = []
    for call in range(30):
        given = draw_acting(algorithm, call, 5)
        copies = [x.clone().to("cuda") for x in given]
        kept.append((tree_leaves(choose(*given)), copies))
        for x in given:
            x.zero_()
    for call, (found, copies) in enumerate(kept):
        expected = tree_leaves(choose.function(*copies))
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one.double(), other.double(), atol=1e-3), call
    assert choose.replays == 30 - WARM_UP
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("algorithm", ["dqn", "ppo", "pqn"])
def test_memory_stays_as_it_is(algorithm):
    """Over 10,000 updates, with the comparisons among them."""
    learner, taken = Learner(algorithm, device="cuda"), []
    batch, given = [x.to("cuda") for x in random_batch(algorithm, 0)], draw_acting(algorithm, 0, 5)
    for call in range(1, 10_001):
        learner.learn(*batch)
        learner.choose(*given)
        if call in (1_500, 10_000):
            torch.cuda.synchronize()
            taken.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert taken[1][0] == taken[0][0]
    assert taken[1][1] <= taken[0][1] + 2**25


def test_what_cannot_be_recorded_runs_by_itself(capfd):
    """An update that waits for the GPU: one warning, its results, and graphs work afterwards."""
    ends = []
    for way in ("fails", "plain", "graph"):
        learner = Learner("ppo", device="cuda", cuda_graphs=way == "graph")
        learn, step = learner.learn, learner.learn.function

        def waits(*batch, step=step):
            parts = step(*batch)
            assert parts["value_loss"].item() > 0
            return parts

        if way == "fails":
            device = torch.device("cuda")
            learn = Graphed("update", waits, device, (learner.network, learner.optimizer))
        for call in range(12):
            learn(*random_batch("ppo", call))
        warning = capfd.readouterr().err
        assert warning.count("\n") == (way == "fails")
        if way == "fails":
            assert "warning: update runs without a CUDA graph: it cannot be recorded" in warning
        ends.append(outputs_of(learner))
    assert learn.replays == 12 - WARM_UP
    for end in (ends[0], ends[2]):
        assert (end - ends[1]).norm() < 0.01 * ends[1].norm()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("algorithm", ["dqn", "ppo", "pqn"])
def test_a_stopped_run_goes_on(algorithm, number, tmp_path):
    """To its end, with every curve finite and no step missing or twice."""
    command = [sys.executable, str(ROOT / f"{algorithm}_atari.py"), "--device", "cuda"]
    command += [*map(str, (*RUNS[algorithm], *SMALL))]
    popen = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **popen)
    while "parameters on" not in (line := first.stdout.readline()) and line:
        pass
    assert "with CUDA graphs" in line
    (folder,) = (tmp_path / "runs").iterdir()
    while not has_checkpoint(folder) and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(number)
    out, _ = first.communicate(timeout=TIMEOUT)
    assert first.returncode == (CAN_RESUME if number == signal.SIGTERM else -number), out
    again = subprocess.run(
        [*command, "--resume", "auto"], capture_output=True, timeout=TIMEOUT, **popen
    )
    assert again.returncode == 0, again.stderr
    assert "resumed at" in again.stdout
    config = json.loads((folder / "config.json").read_text())
    assert config["device"] == torch.cuda.get_device_name()
    assert config["cuda_graphs"] is True
    curves = series(folder)
    loss = "losses/entropy" if algorithm == "ppo" else "losses/q_values"
    assert max(step for step, _ in curves[loss]) >= 1024
    for tag, points in curves.items():
        steps, values = zip(*points, strict=True)
        if "episodic" not in tag:
            assert len(set(steps)) == len(steps), tag
        assert all(map(math.isfinite, values)), tag
