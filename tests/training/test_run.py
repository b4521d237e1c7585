"""The outside of a run: names, refusals in one line, memory, folders that hold together."""

import functools
import importlib.machinery
import os
import re
import resource
import signal
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ENV

import dqn_atari
import ppo_atari
from dqn_atari import Args, QNetwork
from hadamard import ACTIVATIONS
from lab.common.cli import UsageError
from lab.common.device import free_memory, pick_device
from lab.training import board, checks, progress, runfolder
from lab.training.frames import RecentObs
from lab.training.measure import hidden_layers
from lab.training.run import Run

BAD_FLAGS = [
    (["--env-id", "Breakut"], r"unknown game 'Breakut': did you mean Breakout"),
    (["--env-id", "../../etc"], r"unknown game '\.\./\.\./etc'"),
    (["--activation", "tahn"], r"--activation 'tahn': choose one of relu, tanh, sigmoid"),
    (["--combine", "mean"], r"--combine 'mean': choose one of product, sum"),
    (["--apply-to", "first"], r"--apply-to 'first': choose one of last, all"),
    (["--precision", "fp64"], r"--precision 'fp64': choose one of fp32, bf16"),
    (["--device", "tpu"], r"--device 'tpu': choose one of auto, cpu, cuda"),
    (["--branches", "0"], r"--branches must be at least 1, not 0"),
    (["--num-envs", "0"], r"--num-envs must be between 1 and 4096, not 0"),
    (["--num-envs", "100000"], r"--num-envs must be between 1 and 4096, not 100000"),
    (
        ["--total-timesteps", "1" + "0" * 400],
        r"--total-timesteps must be at least 1 and below 1e18",
    ),
    (["--runs-dir", "a" * 300], r"--runs-dir a+: File name too long"),
    (
        ["--branches", "100000"],
        r"--branches 100000 needs 3\d+\.\d GB of memory .* choose at most \d+",
    ),
    (
        ["--latent-dim", "9" * 9, "--metrics-samples", "9" * 9, "--buffer-size", "9" * 9],
        r"--latent-dim 9+ needs .* at most",
    ),
    (
        ["--batch-size", "9" * 7, "--buffer-size", "9" * 7],
        r"--batch-size 9+ needs .*|--buffer-size 9+ needs .*",
    ),
    (["--total-timesteps", "-5"], r"--total-timesteps must be at least 1, not -5"),
    (["--batch-size", "0"], r"--batch-size must be at least 1, not 0"),
    (["--train-frequency", "0"], r"--train-frequency must be at least 1, not 0"),
    (["--metrics-every", "0"], r"--metrics-every must be at least 1, not 0"),
    (["--latent-dim", "0"], r"--latent-dim must be at least 1, not 0"),
    (["--learning-starts", "-1"], r"--learning-starts must be at least 0, not -1"),
    (["--seed", "-1"], r"--seed must be between 0 and \d+, not -1"),
    (["--learning-rate", "-1"], r"--learning-rate must be at least 0, not -1"),
    (["--learning-rate", "nan"], r"--learning-rate must be at least 0 and below 1e18, not nan"),
    (["--init", "xavier"], r"--init 'xavier': choose one of torch, orthogonal, he_normal"),
    (["--gamma", "1.5"], r"--gamma must be between 0 and 1, not 1.5"),
    (["--tau", "0"], r"--tau must be above 0, not 0"),
    (["--tau", "1.5"], r"--tau must be at most 1, not 1.5"),
    (["--sticky-actions", "-0.5"], r"--sticky-actions must be at least 0, not -0.5"),
    (["--sticky-actions", "1"], r"--sticky-actions must be below 1, not 1"),
    (["--metrics-samples", "511"], r"--metrics-samples must be at least 512"),
    (["--metrics-samples", "900", "--latent-dim", "1024"], r"must be at least 1024"),
    (
        ["--learning-starts", "6000", "--total-timesteps", "5000"],
        r"--learning-starts 6000 .* at most --total-timesteps 5000",
    ),
    (["--buffer-size", "31"], r"--buffer-size 31 must be at least 2048"),
    (
        ["--buffer-size", "900000000000"],
        r"needs 6\d+\.\d GB of memory on cpu and .* choose at most",
    ),
    (["--runs-dir", "/dev/null/runs"], r"--runs-dir /dev/null/runs: /dev/null is not a folder"),
    (["--runs-dir", "/proc/no/runs"], r"--runs-dir /proc/no/runs: "),
    (["--track"], r"--track needs Weights & Biases: pip install wandb"),
    (["--num-envs", "many"], r"--num-envs must be a whole number, .* not 'many'; --help lists the"),
    (["--total-timesteps", "1e6"], r"--total-timesteps must be a whole number, .* not '1e6'"),
    (["--gamma", "x"], r"--gamma must be a number, such as 0.001, not 'x'"),
    (["--env-threads", "2147483648"], r"--env-threads must be between 0 and 1024, not 2147483648"),
    (["--runs-dir", ""], r"--runs-dir is empty: it must be a folder, such as runs"),
    (["--activaton=relu"], r"--activaton=relu \(did you mean --activation\?\)"),
    (["--env-idd", "Pong"], r"Unrecognized options: --env-idd, Pong \(did you mean --env-id\?\)"),
    (["--device", "cpu", "--seed"], r"Missing value for argument '--seed'"),
    (
        ["--layer-norm", "True"],
        r"Unrecognized options: True \(--[\w-]+ and the like take no value\)",
    ),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[" ".join(f) for f, _ in BAD_FLAGS])
def test_bad_input_is_one_line_and_status_2(flags, message, refused, monkeypatch):
    if "--device" not in flags:
        flags = [*flags, "--device", "cpu"]
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    refused(dqn_atari, flags, message)


def test_fp32_is_fp32_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    pick_device("auto")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_cuda_without_a_device(script, tmp_path):
    done = script("dqn_atari.py", "--device", "cuda", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no CUDA device; use --device cpu or auto" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_memory_is_met_at_the_start(script, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))

    flags = ("--buffer-size", 2_000_000)
    done = script("dqn_atari.py", *flags, check=False, preexec_fn=limited)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search("14.1 GB .*--buffer-size 2000000|--buffer-size 2000000 .*14.1 GB", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_complaints_survive_a_terminal_without_unicode(script, monkeypatch):
    for name, value in (("LC_ALL", "C"), ("PYTHONIOENCODING", "ascii"), ("PYTHONUTF8", "0")):
        monkeypatch.setitem(ENV, name, value)
    done = script("dqn_atari.py", "--env-idd", "Pong", check=False)
    assert "Unrecognized options: --env-idd, Pong (did you mean --env-id?)" in done.stderr


def test_help_lists_every_flag_and_ends_well(script):
    done = script("dqn_atari.py", "--help")
    for name in Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_free_memory_is_at_most_what_the_machine_has():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory(torch.device("cpu")) <= total


@pytest.fixture
def make_run(tmp_path):
    def make(**flags):
        args = Args(runs_dir=str(tmp_path / "a" / "runs"), **flags)
        network = QNetwork(4, Args(latent_dim=8, branches=args.branches, apply_to=args.apply_to))
        return Run(args, "dqn", network, ("td_loss",))

    return make


def test_runs_of_one_second_get_folders_of_their_own(make_run, monkeypatch):
    now = types.SimpleNamespace(strftime=lambda f: "20260101-000000", isoformat=lambda **k: "now")
    clock = types.SimpleNamespace(now=lambda zone: now)
    monkeypatch.setattr(runfolder.datetime, "datetime", clock)
    names = []
    for _ in range(3):
        with make_run() as run:
            names.append(run.folder.name)
    stem = "Breakout__dqn__tanh-hr__s1__20260101-000000"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]


@pytest.fixture
def clock(monkeypatch):
    """The clock of the progress line, set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_progress_speed_is_that_of_the_last_seconds(make_run, capsys, clock):
    """1,000 steps/s for a minute, then 100/s: after 20 s more the line says 100/s."""
    ended = {"_r": [True, True], "r": [1.0, 3.0], "l": [5, 5]}
    with make_run(num_envs=100) as run:
        for second in range(100):
            clock[0] += 1.0
            for _ in range(10 if second < 60 else 1):
                run.count_step({"episode": ended} if run.step == 6_000 else {})
            run.log({})
    lines = capsys.readouterr().err.strip().split("\n")
    assert "31,000/10,000,000 steps  1,000/s  ETA 2:46:09" in "\n".join(lines)
    assert "100/s  ETA 1 day, 3:36" in lines[-1]
    assert "return 2.0 (last 2 games)" in lines[-1]


def test_steps_due_are_those_of_a_loop_over_single_steps(make_run):
    """What a vector step brings is what the original loop of one game would have done."""
    for num_envs in range(1, 13):
        with make_run(num_envs=num_envs) as run:
            for _ in range(3):
                since = run.step
                run.count_step({})
                steps = range(since + 1, run.step + 1)
                for every in range(1, 6):
                    for after in (0, 7, 100):
                        expected = sum(t > after and t % every == 0 for t in steps)
                        assert run.times_due(every, after) == expected


def test_a_run_that_is_asked_to_stop_says_until_when_it_goes_on(make_run, capsys, clock):
    """At once, and for a rollout that takes long every half minute; then it goes on no more."""
    with make_run() as run:
        assert run.goes_on()
        clock[0] += 95.0
        assert run.goes_on()
        signal.raise_signal(signal.SIGTERM)
        for _ in range(9):
            clock[0] += 10.0
            run.count_step({})
        assert not run.goes_on()
    said = capsys.readouterr().err.strip().split("\n")
    assert "SIGTERM: stopping before the next rollout, in 95 s or less" in said[0]
    assert len([line for line in said if "stopping: " in line]) == 2


class FakeTracker(types.ModuleType):
    """Stands in for wandb, which keeps what it is given."""

    def __init__(self, broken=False):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.logged, self.axes, self.ended, self.broken = [], {}, [], broken

    def init(self, **config):
        if self.broken:
            raise RuntimeError("no API key")
        return self

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.ended.append(exit_code)


FEW = ("--total-timesteps", 2_048, "--num-steps", 64, "--latent-dim", 8, "--track")
FEW += ("--metrics-samples", 512, "--metrics-every", 1_024)


def test_weights_and_biases_has_every_scalar_of_tensorboard(
    in_process, only_run, events, monkeypatch
):
    wandb = FakeTracker()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    in_process("ppo_atari.py", *FEW)
    log = events(only_run())
    expected = sorted(
        (tag, event.step, event.value)
        for tag in log.Tags()["scalars"]
        for event in log.Scalars(tag)
    )
    found = sorted(
        (tag, values["global_step"], float(np.float32(value)))
        for values in wandb.logged
        for tag, value in values.items()
        if tag != "global_step"
    )
    assert found == expected
    assert {"charts/episodic_return", "losses/entropy", "charts/SPS"} <= {tag for tag, *_ in found}
    assert wandb.axes["*"] == "global_step"
    assert wandb.ended == [0]


def test_where_weights_and_biases_refuses_nothing_is_left(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeTracker(broken=True))
    refused(
        ppo_atari, FEW, r"--track: Weights & Biases does not take the run \(no API key\); log in"
    )


def test_scores_are_means_over_the_last_100_games(make_run, events):
    with make_run() as run:
        for game in range(150):
            episode = {"_r": [False, True], "r": [99.0, float(game)], "l": [0, 10]}
            run.count_step({"episode": episode})
        run.log({})
    (score,) = events(run.folder).Scalars("charts/mean_return_100")
    assert score.value == sum(range(50, 150)) / 100


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


def test_recent_observations_are_the_newest_in_order():
    obs = torch.arange(7 * 3, dtype=torch.uint8).view(7, 3, 1, 1, 1).expand(-1, -1, 4, 84, 84)
    for count in (4, 6, 21):  # more, as much and less than what comes at once
        recent = RecentObs(count, torch.device("cpu"))
        assert recent.newest(count) is None
        for part in (obs[:2], obs[2:4], obs[4:5], obs[5:]):
            recent.add(part)
        assert recent.newest(count)[:, 0, 0, 0].tolist() == list(range(21 - count, 21))


@pytest.mark.parametrize("apply_to", ["last", "all"])
@pytest.mark.parametrize("branches", [1, 3])
def test_what_is_measured_of_a_network(branches, apply_to, make_run, events):
    recent = RecentObs(512, torch.device("cpu"))
    recent.add(torch.randint(0, 255, (1, 512, 4, 84, 84), dtype=torch.uint8))
    flags = {"metrics_samples": 512, "metrics_every": 1, "num_envs": 512}
    with make_run(apply_to=apply_to, branches=branches, **flags) as run:
        run.count_step({})
        run.measure(recent, run.network.head)
    tags = set(events(run.folder).Tags()["scalars"])
    assert "representation/effective_rank" in tags
    for i in range(4):
        assert (f"representation/branch_{i}/effective_rank" in tags) == (1 < branches > i)
        assert (f"representation/conv_{i}/dead_kde" in tags) == (apply_to == "all" and i > 0)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_filled_leaves_nothing(error, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(board, "Board", full)
    expected = UsageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is UsageError else None):
        Run(Args(runs_dir=str(tmp_path / "a" / "runs")), "dqn", torch.nn.Linear(1, 1), ())
    assert not list(tmp_path.iterdir())
