"""Whole runs of every script from outside: their files, what they show, how they end."""

import fcntl
import json
import math
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios

import numpy as np
import pytest
import torch
from algorithms import (
    PLAIN,
    ROLLOUT,
    SCRIPTS,
    SHORT,
    fresh_weights,
    parameters_by_hand,
    parse,
    saved_weights,
)
from conftest import ENV, ROOT, TIMEOUT, command_of
from interruptions import start
from tensorboard.plugins.hparams import plugin_data_pb2

import ppo_atari
from lab.training import measure as measuring
from metrics import MEASURES

# Runs of which every curve has points: they learn, measure twice, log more than once, end games.
ROLLOUTS = ("--total-timesteps", 1_000, "--num-envs", 2, "--num-steps", 128, "--latent-dim", 64)
ROLLOUTS += ("--num-minibatches", 4, "--update-epochs", 1, "--learning-rate", 1e-4, "--anneal-lr")
ROLLOUTS += ("--metrics-samples", 700, "--metrics-every", 250)
LOGGED = {
    "dqn": (
        *("--total-timesteps", 1_400, "--learning-starts", 1_200, "--buffer-size", 1_500),
        *("--metrics-samples", 512, "--metrics-every", 650, "--latent-dim", 64),
        *("--exploration-fraction", 0.8, "--num-envs", 2),
    ),
    "ppo": ROLLOUTS,
    "pqn": (*ROLLOUTS, "--exploration-fraction", 0.8),
}
# DQN logs every 1,000 steps and at the end, the others after every rollout; theirs ends the run
# that reaches the total.
LOGGED_AT = {"dqn": [1_000, 1_400], "ppo": [256, 512, 768, 1_024], "pqn": [256, 512, 768, 1_024]}
# At 500 steps there are no 512 observations yet, after two rollouts no 700.
MEASURED_AT = {"dqn": [512, 650, 1_300], "ppo": [768, 1_024], "pqn": [768, 1_024]}
CHURN_AT = MEASURED_AT | {"dqn": [1_300]}  # which has no update before
LOSSES = {
    "dqn": ("td_loss", "q_values"),
    "ppo": (
        *("policy_loss", "value_loss", "entropy", "approx_kl", "old_approx_kl", "clipfrac"),
        "explained_variance",
    ),
    "pqn": ("td_loss", "q_values"),
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Algorithm -> folder, stdout and stderr of a real run through the command line."""
    processes = {}
    for algorithm, flags in LOGGED.items():
        cwd = tmp_path_factory.mktemp(algorithm)
        processes[algorithm] = cwd, start(algorithm, flags, cwd)
    runs = {}
    for algorithm, (cwd, process) in processes.items():
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
        (folder,) = (cwd / "runs").iterdir()
        runs[algorithm] = folder, out, err
    return runs


def tags_of(algorithm):
    """Every scalar that such a run has."""
    tags = {"charts/episodic_return", "charts/episodic_length", "charts/mean_return_100"}
    tags |= {"charts/SPS", "charts/learning_rate"}
    tags |= {"charts/epsilon"} if algorithm != "ppo" else set()
    tags |= {f"losses/{name}" for name in LOSSES[algorithm]}
    contribution = "value_contribution" if algorithm == "ppo" else "q_contribution"
    tags |= {f"{contribution}/{part}" for part in ("live", "dead", "bias", "live_abs", "dead_abs")}
    layers = ["", "branch_0/", "branch_1/"]
    layers += ["conv_1/", "conv_2/", "conv_3/"] if algorithm == "pqn" else []
    tags |= {f"representation/dead_{how}" for how in ("with_branches", "without_branches")}
    tags |= {f"churn/{part}" for part in ("total", "encoder", "head")}
    return tags | {f"representation/{layer}{m}" for layer in layers for m in MEASURES}


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_what_lands_in_the_event_file(algorithm, logged, events):
    log = events(logged[algorithm][0])
    scalars = {
        tag: [(event.step, event.value) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
    }
    # Where a neuron is dead there is the value that it holds.
    held = {"representation/dead_magnitude"} & scalars.keys()
    assert bool(held) == any(value > 0 for _, value in scalars["representation/dead_kde"])
    assert scalars.keys() - held == tags_of(algorithm)
    assert all(np.isfinite(value) for points in scalars.values() for _, value in points)
    logged_at, measured_at = LOGGED_AT[algorithm], MEASURED_AT[algorithm]
    for tag, points in scalars.items():
        if tag.startswith("losses/"):  # DQN learns after its first log
            assert [step for step, _ in points] == logged_at[1 if algorithm == "dqn" else 0 :]
        if tag.startswith("representation/"):
            assert [step for step, _ in points] == measured_at or tag in held
            width = {"1": 32, "2": 64, "3": 64}.get(tag.partition("conv_")[2][:1], 64)
            low, high = (1, width) if tag.endswith("rank") else (0, 1)
            low, high = (0, width) if tag.endswith("srank_live") else (low, high)
            low, high = (0, math.inf) if tag.endswith("norm") else (low, high)
            assert all(low <= value <= high for _, value in points)
        if tag.startswith("churn/"):
            assert [step for step, _ in points] == CHURN_AT[algorithm]
            assert all(0 <= value <= 1 for _, value in points)
    assert log.Tags()["images"] == ["representation/kde"]
    assert log.Images("representation/kde")[0].step == measured_at[0]

    # A random game of Breakout takes 100 to 350 steps, of which two games share 1,024 or 1,400.
    lengths = [value for _, value in scalars["charts/episodic_length"]]
    assert 2 <= len(lengths) <= 14
    assert all(100 <= length <= 600 for length in lengths)
    assert sum(lengths) <= logged_at[-1]
    returns = [value for _, value in scalars["charts/episodic_return"]]
    assert len(returns) == len(lengths)
    assert scalars["charts/mean_return_100"][-1] == (logged_at[-1], pytest.approx(np.mean(returns)))


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_schedules_are_logged_as_they_were_used(algorithm, logged, events):
    """Learning rates at the start of an update, epsilon at the last step before a log."""
    log = events(logged[algorithm][0])
    rates = [(event.step, event.value) for event in log.Scalars("charts/learning_rate")]
    starts = [0, 256, 512, 768]
    expected = [1e-4] * 2 if algorithm == "dqn" else [1e-4 * (1 - at / 1_000) for at in starts]
    assert [step for step, _ in rates] == LOGGED_AT[algorithm]
    assert [value for _, value in rates] == pytest.approx(expected)
    if algorithm == "ppo":
        return
    # 1 to --end-e over the first 0.8 of the run.
    end, duration = {"dqn": (0.1, 1_120), "pqn": (0.001, 800)}[algorithm]
    epsilon = [(event.step, event.value) for event in log.Scalars("charts/epsilon")]
    assert [step for step, _ in epsilon] == LOGGED_AT[algorithm]
    for step, value in epsilon:
        used_at = min((step - 2) / duration, 1)
        assert value == pytest.approx(1 - (1 - end) * used_at, abs=1e-6)


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_what_tensorboard_is_told_about_the_run(algorithm, logged, events):
    folder, *_ = logged[algorithm]
    extra = [path.name for path in folder.iterdir() if path.is_dir()]
    assert extra == (["replay"] if algorithm == "dqn" else [])  # no further runs in it
    log = events(folder)
    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["activation"].string_value == "tanh"
    assert values["branches"].number_value == 2
    assert values["variant"].string_value == "tanh-hr-z64"
    assert values["layer_norm"].string_value == ("on" if algorithm == "pqn" else "off")
    text = log.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "|learning_rate|0.0001|" in text
    layout = log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0].decode("latin1")
    for group in ("score", "representation", "losses"):
        assert group in layout
    assert all(f"losses/{name}" in layout for name in LOSSES[algorithm])
    # The charts are regular expressions: together they pick out z and its branches, and in PQN in
    # further charts z and the convolutions.
    patterns = re.findall(r"representation/[^\x00-\x1f]*?\$", layout)
    convolutions = int(algorithm == "pqn")
    assert ("conv_" in layout) == convolutions
    assert len(patterns) == len(MEASURES) * (1 + convolutions)
    for layer, charts in (("", 1 + convolutions), ("branch_1/", 1), ("conv_1/", convolutions)):
        tag = f"representation/{layer}dead_kde"
        assert sum(bool(re.match(pattern, tag)) for pattern in patterns) == charts


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_what_the_run_folder_says(algorithm, logged):
    folder, out, _ = logged[algorithm]
    assert re.fullmatch(rf"Breakout__{algorithm}__tanh-hr-z64__s1__\d{{8}}-\d{{6}}", folder.name)
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"] == vars(parse(algorithm, *LOGGED[algorithm]))  # defaults, too
    assert config["flags"]["latent_dim"] == 64
    assert config["variant"] == "tanh-hr-z64"
    assert config["num_parameters"] == parameters_by_hand(algorithm, 4, {"latent_dim": 64})
    assert config["versions"]["torch"] == torch.__version__
    if shutil.which("git"):
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
        assert config["git_commit"] == (head.stdout.strip() or None)
    assert f"{config['num_parameters']:,} parameters" in out
    # Layer by layer in numbers: weights of both branches, times the pixels of the maps.
    convolutions = 256 * 32 * 400 + 512 * 64 * 81 + 576 * 64 * 49
    heads = 64 * (5 if algorithm == "ppo" else 4)
    multiply_adds = (1 + (algorithm == "pqn")) * convolutions + 2 * 3136 * 64 + heads
    assert config["multiply_adds"] == multiply_adds
    assert f", {multiply_adds:,} multiply-adds per observation, " in out
    assert folder.name in out


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_progress_in_a_file_is_plain_lines(algorithm, logged):
    *_, err = logged[algorithm]
    assert "\r" not in err
    steps = {"dqn": "1,400/1,400", "ppo": "1,024/1,000", "pqn": "1,024/1,000"}[algorithm]
    assert re.fullmatch(
        rf"100%  {steps} steps  [\d,]+/s  ETA 0:00:00  return \d+\.\d \(last \d+ games\)"
        r"  dead \d+%  rank \d+",
        err.strip().split("\n")[-1],
    )


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_same_seed_same_weights(algorithm, logged, in_process, only_run):
    """In another process, and whatever the threads of the emulator."""
    first = saved_weights(logged[algorithm][0])
    in_process(f"{algorithm}_atari.py", *LOGGED[algorithm], "--env-threads", 1)
    second = saved_weights(only_run())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    fresh = fresh_weights(algorithm, *LOGGED[algorithm])
    assert all((first[key] != fresh[key]).any() for key in first)  # it did learn


def test_a_terminal_shows_a_bar(tmp_path):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    command = command_of("dqn_atari.py", "--total-timesteps", 1_000, "--learning-starts", 1_000)
    command += map(str, ("--num-envs", 2, "--buffer-size", 1_000, "--metrics-samples", 512, *PLAIN))
    env = ENV | {"TERM": "xterm"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=child
    ) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            shown += chunk
    os.close(parent)
    assert process.returncode == 0
    assert b"\r" in shown
    assert re.search(r"1,000/1,000  [\d,]+/s  ETA 0:00:00  return \d\.\d ", shown.decode())


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_by_default_a_run_is_the_papers(algorithm, in_process, only_run):
    done = in_process(f"{algorithm}_atari.py", *SHORT[algorithm])
    check_run(algorithm, only_run(), done.stdout, "Breakout", "tanh-hr", {})


def check_run(algorithm, folder, out, game, variant, flags):
    """Its name, its number of parameters, all flags, and weights that are finite and have moved."""
    assert re.fullmatch(rf"{game}__{algorithm}__{variant}__s1__\d{{8}}-\d{{6}}", folder.name)
    count = parameters_by_hand(algorithm, 6 if game == "Pong" else 4, flags)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_parameters"] == count
    assert config["variant"] == variant
    assert set(config["flags"]) == set(SCRIPTS[algorithm].Args.__dataclass_fields__)
    assert f"{count:,} parameters" in out
    assert all(torch.isfinite(weight).all() for weight in saved_weights(folder).values())


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize(
    ("variant", "layers", "others", "of_dqn"),
    [
        (
            "relu-z32",
            {"activation": "relu", "branches": 1},
            ("--precision", "bf16"),
            "--num-envs=1",
        ),
        ("tanh-sum-z32", {"combine": "sum"}, ("--env-id", "ALE/Pong-v5"), "--double-dqn"),
        (
            *("tanh-hr-z32-ln-all", {"layer_norm": True, "apply_to": "all"}),
            *(("--precision", "bf16"), "--tau=0.5"),
        ),
    ],
)
def test_other_settings_train(variant, layers, others, of_dqn, algorithm, in_process, only_run):
    layers = layers | {"latent_dim": 32}
    flags = []
    for name, value in layers.items():
        name = f"--{name.replace('_', '-')}"
        flags += [name] if value is True else [name, value]
    flags += [*others, *([of_dqn] if algorithm == "dqn" else [])]
    done = in_process(f"{algorithm}_atari.py", *SHORT[algorithm], *flags)
    if algorithm == "pqn":  # which has norms in all layers by itself
        variant = variant.removesuffix("-ln-all")
    game = "Pong" if "ALE/Pong-v5" in others else "Breakout"
    check_run(algorithm, only_run(), done.stdout, game, variant, layers)


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_learning_rate_0_changes_nothing(algorithm, in_process, only_run):
    flags = (*SHORT[algorithm], *PLAIN, "--learning-rate", 0, "--seed", 7)
    in_process(f"{algorithm}_atari.py", *flags)
    weights, fresh = saved_weights(only_run()), fresh_weights(algorithm, *flags, seed=7)
    assert all(torch.equal(weights[key], fresh[key]) for key in fresh)


def test_dqn_is_frozen_until_learning_starts(in_process, only_run):
    flags = ("--total-timesteps", 200, "--learning-starts", 200, "--buffer-size", 600, *PLAIN)
    flags += ("--num-envs", 2, "--metrics-samples", 512, "--seed", 5)
    in_process("dqn_atari.py", *flags)
    weights, fresh = saved_weights(only_run()), fresh_weights("dqn", *flags, seed=5)
    assert all(torch.equal(weights[key], fresh[key]) for key in fresh)


# SIGTERM and SIGUSR1, of DQN and PPO, are those of tests/training/test_resume.py.
@pytest.mark.parametrize(
    ("algorithm", "number", "first_line_at"),
    [
        ("dqn", signal.SIGHUP, 1_000),
        ("ppo", signal.SIGINT, 64),
        ("pqn", signal.SIGUSR2, 64),
    ],
)
def test_a_signal_stops_the_run_and_keeps_its_files(
    algorithm, number, first_line_at, tmp_path, events, only_run
):
    flags = ROLLOUT
    if algorithm == "dqn":
        flags = ("--num-envs", 2, "--buffer-size", 1_000, "--metrics-samples", 512)
    process = start(algorithm, (*flags, *PLAIN), tmp_path)
    try:
        assert "steps" in process.stderr.readline()  # the first progress line: it is under way
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 75
    assert "Traceback" not in err
    assert f"{number.name}: stopping before the next rollout" in err
    steps = int(re.search(r"stopped at ([\d,]+) agent steps", out)[1].replace(",", ""))
    assert first_line_at <= steps < 10_000_000
    assert saved_weights(only_run()).keys() == fresh_weights(algorithm, *PLAIN).keys()
    assert events(only_run()).Scalars("charts/SPS")


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_diverged_run_says_so_in_one_line(algorithm, in_process):
    flags = (*ROLLOUT, "--total-timesteps", 1_024, "--metrics-every", 512, "--max-grad-norm", 1e9)
    flags += ("--learning-rate", 1e17)
    if algorithm == "dqn":  # which looks at its losses every 1,000 steps
        flags = ("--total-timesteps", 2_000, "--learning-starts", 900, "--learning-rate", 1e15)
        flags += ("--num-envs", 2, "--metrics-samples", 512, "--buffer-size", 1_000)
    done = in_process(f"{algorithm}_atari.py", *flags, *PLAIN, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    when = r"1,000 agent steps losses/\w+ is (nan|inf)"
    when = when if algorithm == "dqn" else r"[\d,]+ agent steps \S+ (is|has) .*"
    assert re.search(f"error: the run has diverged: at {when}; a smaller", done.stderr)


@pytest.mark.parametrize(
    ("samples", "every", "expected"),
    [(700, 1, [768, 1_024]), (512, 1_000, [512, 1_024]), (512, 1_025, [])],
)
def test_the_measured_observations_are_the_newest(
    tmp_path, monkeypatch, events, only_run, samples, every, expected
):
    """700 of rollouts of 256: the last three rollouts but for the oldest 68 steps, in order.

    The first time is when there are so many, also where it is not due, in a run that measures.
    """
    measured, played = [], []

    def hidden_layers(network, obs, *others):
        measured.append(obs.clone())
        return of_network(network, obs, *others)

    def play(*arguments):
        result = ppo_play(*arguments)
        played.append(arguments[4].obs.flatten(0, 1).clone())
        return result

    ppo_play, of_network = ppo_atari.play, measuring.hidden_layers
    monkeypatch.setattr(ppo_atari, "play", play)
    monkeypatch.setattr(measuring, "hidden_layers", hidden_layers)
    flags = ("--total-timesteps", 1_024, "--num-envs", 2, "--num-steps", 128, "--update-epochs", 1)
    flags += ("--metrics-samples", samples, "--metrics-every", every, "--device", "cpu", *PLAIN)
    args = parse("ppo", *flags)
    args.runs_dir = str(tmp_path / "runs")
    assert ppo_atari.main(args) == 0
    log = events(only_run())
    points = log.Scalars("representation/dead_kde") if expected else []
    assert [event.step for event in points] == expected
    for step, obs in zip(expected, measured, strict=True):
        assert torch.equal(obs, torch.cat(played[: step // 256])[-samples:])
