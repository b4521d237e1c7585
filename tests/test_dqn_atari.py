"""The DQN script: its pure functions against slow definitions, and itself as a user calls it."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENV, ROOT, TIMEOUT
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

import dqn_atari
from dqn_atari import Args, QNetwork, act, linear_schedule, td_loss, update_target
from lab.training import run as training
from lab.training.atari import AtariEnvs
from lab.training.replay import Batch
from metrics import MEASURES

# A short run that learns, measures twice and logs. 2,048 samples are there after 2,048 steps.
SHORT = (
    *("--total-timesteps", 3_000, "--learning-starts", 2_400, "--buffer-size", 5_000),
    *("--metrics-every", 1_250, "--exploration-fraction", 0.5),
)


class Table(nn.Module):
    """Q-values looked up by the first pixel of an obs."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, obs):
        return self.values[obs[:, 0, 0, 0].long()]


def table_batch():
    obs = torch.zeros(4, 4, 1, 1, dtype=torch.uint8)
    next_obs = obs.clone()
    obs[:, 0, 0, 0] = torch.tensor([0, 1, 0, 1])
    next_obs[:, 0, 0, 0] = torch.tensor([1, 0, 1, 1])
    rewards = torch.tensor([1.0, -1.0, 0.0, 1.0])
    return Batch(obs, torch.tensor([0, 1, 1, 0]), rewards, next_obs, torch.tensor([0, 0, 1.0, 0]))


@pytest.mark.parametrize("double_dqn", [False, True])
def test_td_loss_against_a_loop(double_dqn):
    online = [[1.0, 2.0], [5.0, -3.0]]
    target = [[0.5, 0.25], [1.0, 7.0]]
    batch = table_batch()
    errors = []
    for i in range(4):
        s, s_next = batch.obs[i, 0, 0, 0].item(), batch.next_obs[i, 0, 0, 0].item()
        action = batch.actions[i].item()
        if double_dqn:
            best = max(range(2), key=lambda a: online[s_next][a])
            bootstrap = target[s_next][best]
        else:
            bootstrap = max(target[s_next])
        y = batch.rewards[i].item() + (0 if batch.terminations[i] else 0.9 * bootstrap)
        errors.append((y - online[s][action]) ** 2)
    q_network = Table(online)
    target_network = Table(target)
    loss, q_values = td_loss(q_network, target_network, batch, 0.9, double_dqn)
    assert loss.item() == pytest.approx(np.mean(errors))
    assert q_values.tolist() == [1.0, -3.0, 2.0, 5.0]
    loss.backward()
    assert target_network.values.grad is None  # a semi-gradient
    assert q_network.values.grad is not None


def test_target_network_moves_by_tau():
    online, target = Table([[1.0, 2.0]]), Table([[3.0, 6.0]])
    update_target(target, online, 0.25)
    assert target.values.tolist() == [[2.5, 5.0]]
    update_target(target, online, 1.0)
    assert torch.equal(target.values, online.values)


def test_linear_schedule():
    values = [linear_schedule(1.0, 0.1, 1_000, step) for step in (0, 500, 1_000, 5_000)]
    assert values == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_epsilon_greedy_frequencies():
    """Each env explores by itself: the greedy action has 1 - epsilon + epsilon / 3."""
    network = QNetwork(3, Args(branches=1, latent_dim=8))
    obs = np.random.default_rng(0).integers(0, 255, (1, 4, 84, 84), dtype=np.uint8)
    greedy = network(torch.from_numpy(obs)).argmax().item()
    rng, device = np.random.default_rng(1), torch.device("cpu")
    many = np.repeat(obs, 50, axis=0)
    actions = np.concatenate([act(network, many, 0.6, device, rng) for _ in range(60)])
    counts = np.bincount(actions, minlength=3) / len(actions)
    # 3,000 draws from a fixed seed: 5 standard errors are 0.045
    assert counts[greedy] == pytest.approx(0.6, abs=0.045)
    assert counts.max() == counts[greedy]
    assert (act(network, many, 0.0, device, rng) == greedy).all()


@pytest.mark.parametrize(
    ("num_envs", "learning_starts", "every"),
    [(1, 120, 40), (3, 125, 40), (8, 120, 40), (8, 125, 40), (1, 125, 2), (8, 120, 2)],
)
def test_one_gradient_step_per_4_agent_steps(
    num_envs, learning_starts, every, tmp_path, monkeypatch
):
    calls = {"updates": 0, "target": 0}

    def counted(name, function):
        def wrapper(*arguments):
            calls[name] += 1
            return function(*arguments)

        return wrapper

    monkeypatch.setattr(dqn_atari, "td_loss", counted("updates", td_loss))
    monkeypatch.setattr(dqn_atari, "update_target", counted("target", update_target))
    args = Args(
        total_timesteps=240,
        learning_starts=learning_starts,
        num_envs=num_envs,
        target_network_frequency=every,
        buffer_size=2_048,
        latent_dim=16,
        batch_size=2,
        runs_dir=str(tmp_path),
        device="cpu",
    )
    assert dqn_atari.main(args) == 0
    original_loop = [t for t in range(learning_starts + 1, 241) if t % 4 == 0]
    targets = [t for t in range(learning_starts + 1, 241) if t % every == 0]
    assert calls == {"updates": len(original_loop), "target": len(targets)}


def test_the_loop_stores_what_the_games_did(tmp_path, monkeypatch):
    """Every stored transition against the games' own steps, with FIRE, life losses and cuts."""
    stepped, stored = [], []

    class ShortGames(AtariEnvs):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options, max_episode_frames=4 * 140)

        def step(self, actions):
            obs, *rest = super().step(actions)
            stepped.append((np.array(actions), obs.copy(), *rest))
            return obs, *rest

    class Recorder(dqn_atari.ReplayBuffer):
        def add(self, *arguments):
            stored.append(arguments)
            super().add(*arguments)

    monkeypatch.setattr(training, "AtariEnvs", ShortGames)
    monkeypatch.setattr(dqn_atari, "ReplayBuffer", Recorder)
    args = Args(
        total_timesteps=2_000,
        learning_starts=2_000,
        buffer_size=2_048,
        latent_dim=16,
        runs_dir=str(tmp_path),
        device="cpu",
    )
    assert dqn_atari.main(args) == 0
    assert len(stored) == len(stepped) == 500
    seen = dict.fromkeys(("fire", "life loss", "truncated", "ended"), 0)
    for put, (actions, obs, rewards, terminations, truncations, infos) in zip(
        stored, stepped, strict=True
    ):
        next_obs, played, put_rewards, put_terminations, put_game_over, put_final_obs = put
        assert np.array_equal(next_obs, obs)
        assert np.array_equal(played, infos["executed_actions"])
        assert np.array_equal(put_rewards, rewards)
        assert np.array_equal(put_terminations, terminations)
        assert np.array_equal(put_game_over, infos["game_over"])
        for i in np.flatnonzero(truncations):
            assert np.array_equal(put_final_obs[i], infos["final_obs"][i])
        seen["fire"] += (played != actions).sum()
        seen["life loss"] += (terminations & ~infos["game_over"]).sum()
        seen["truncated"] += truncations.sum()
        seen["ended"] += (infos["game_over"] & ~truncations).sum()
    assert min(seen.values()) >= 2, seen


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """One real run through the command line: its folder, its output."""
    folder = tmp_path_factory.mktemp("short")
    command = [sys.executable, str(ROOT / "dqn_atari.py"), *map(str, SHORT)]
    done = subprocess.run(
        command, cwd=folder, env=ENV, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    return run, done


def test_what_lands_in_the_event_file(short_run, events):
    run, _ = short_run
    log = events(run)
    scalars = {
        tag: [(event.step, event.value) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
    }
    expected = {"charts/episodic_return", "charts/episodic_length", "charts/mean_return_100"}
    expected |= {"charts/SPS"}
    expected |= {"charts/epsilon", "charts/learning_rate", "losses/td_loss", "losses/q_values"}
    expected |= {f"representation/{measure}" for measure in MEASURES}
    expected |= {f"representation/branch_{i}/{m}" for i in (0, 1) for m in MEASURES}
    parts = ("live", "dead", "bias", "live_abs", "dead_abs")
    expected |= {f"q_contribution/{part}" for part in parts}
    assert set(scalars) == expected

    assert all(np.isfinite(value) for points in scalars.values() for _, value in points)
    for tag, points in scalars.items():
        if tag.startswith("representation/"):
            # 1,250 steps are too few observations for a measurement, 2,048 are enough.
            assert [step for step, _ in points] == [2_048, 2_500]
            low, high = (1, 512) if tag.endswith("rank") else (0, 1)
            assert all(low <= value <= high for _, value in points)
    # Epsilon is logged as it was used: at the step before, num_envs 4.
    assert [step for step, _ in scalars["charts/epsilon"]] == [1_000, 2_000, 3_000]
    for step, value in scalars["charts/epsilon"]:
        assert value == pytest.approx(max(1 - 0.9 * (step - 4) / 1_500, 0.1), abs=1e-6)
    assert [step for step, _ in scalars["losses/td_loss"]] == [3_000]
    # A random game of Breakout takes 100 to 350 steps, of which there are 3,000
    assert 8 <= len(scalars["charts/episodic_return"]) <= 30
    returns = [value for _, value in scalars["charts/episodic_return"]]
    assert scalars["charts/mean_return_100"][-1] == (3_000, pytest.approx(np.mean(returns)))
    lengths = [value for _, value in scalars["charts/episodic_length"]]
    assert all(100 <= length <= 600 for length in lengths)
    assert sum(lengths) <= 3_000

    assert log.Tags()["images"] == ["representation/kde"]
    assert log.Images("representation/kde")[0].step == 2_048


def test_what_tensorboard_is_told_about_the_run(short_run, events):
    run, _ = short_run
    assert [path.name for path in run.iterdir() if path.is_dir()] == ["replay"]  # no extra runs
    log = events(run)
    hparams = {}
    for tag in ("_hparams_/experiment", "_hparams_/session_start_info"):
        content = log.SummaryMetadata(tag).plugin_data.content
        hparams[tag] = plugin_data_pb2.HParamsPluginData.FromString(content)
    values = hparams["_hparams_/session_start_info"].session_start_info.hparams
    assert values["activation"].string_value == "tanh"
    assert values["branches"].number_value == 2
    assert values["variant"].string_value == "tanh-hr"
    metrics = hparams["_hparams_/experiment"].experiment.metric_infos
    assert "charts/mean_return_100" in {metric.name.tag for metric in metrics}
    text = log.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "|learning_rate|0.0001|" in text
    layout = log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0].decode("latin1")
    for group in ("score", "representation", "losses"):
        assert group in layout
    # The charts are regular expressions: together they pick out z and its branches.
    patterns = re.findall(r"representation/[^\x00-\x1f]*?\$", layout)
    assert len(patterns) == len(MEASURES)
    for tag in ("representation/dead_kde", "representation/branch_1/dead_kde"):
        assert sum(bool(re.match(pattern, tag)) for pattern in patterns) == 1


def test_what_the_run_folder_says(short_run):
    run, done = short_run
    assert re.fullmatch(r"Breakout__dqn__tanh-hr__s1__\d{8}-\d{6}", run.name)
    config = json.loads((run / "config.json").read_text())
    assert config["flags"]["learning_starts"] == 2_400
    assert config["flags"]["adam_eps"] == 1e-5  # a default, kept all the same
    assert set(config["flags"]) == set(Args.__dataclass_fields__)
    assert config["num_parameters"] == 3_290_272 + 512 * 4 + 4
    assert config["versions"]["torch"] == torch.__version__
    if shutil.which("git"):
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
        assert config["git_commit"] == (head.stdout.strip() or None)
    assert f"{config['num_parameters']:,} parameters" in done.stdout
    assert run.name in done.stdout


def test_progress_in_a_file_is_plain_lines(short_run):
    _, done = short_run
    assert "\r" not in done.stderr
    last = done.stderr.strip().split("\n")[-1]
    assert re.fullmatch(
        r"100%  3,000/3,000 steps  [\d,]+/s  ETA 0:00:00  return \d+\.\d \(last \d+ games\)"
        r"  dead \d+%  rank \d+",
        last,
    )


def test_same_seed_same_weights(short_run, in_process, only_run):
    run, _ = short_run
    first = torch.load(run / "model.pt", weights_only=True)
    in_process("dqn_atari.py", *SHORT, "--env-threads", 1)
    second = torch.load(only_run() / "model.pt", weights_only=True)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(1)
    fresh = QNetwork(4, Args()).state_dict()
    assert all((first[key] != fresh[key]).any() for key in first)  # it did learn


@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        (("--activation", "relu", "--branches", 1, "--num-envs", 1), "relu"),
        (("--layer-norm", "--apply-to", "all", "--precision", "bf16"), "tanh-hr-ln-all"),
        (("--combine", "sum", "--env-id", "ALE/Pong-v5", "--double-dqn"), "tanh-sum"),
    ],
)
def test_other_settings_train(flags, variant, in_process, only_run):
    in_process(
        *("dqn_atari.py", "--total-timesteps", 360, "--learning-starts", 300),
        *("--buffer-size", 2_100, *flags),
    )
    run = only_run()
    game = "Pong" if "ALE/Pong-v5" in flags else "Breakout"
    assert run.name.startswith(f"{game}__dqn__{variant}__s1__")
    weights = torch.load(run / "model.pt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_stops_the_run_and_keeps_its_files(number, tmp_path, events, only_run):
    command = [sys.executable, str(ROOT / "dqn_atari.py"), "--buffer-size", "5000"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, env=ENV, stdout=pipe, stderr=pipe, text=True)
    try:
        assert "steps" in process.stderr.readline()  # the first progress line: it is under way
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 75
    assert "Traceback" not in err
    steps = int(re.search(r"stopped at ([\d,]+) agent steps", out)[1].replace(",", ""))
    assert 1_000 <= steps < 10_000_000
    torch.load(only_run() / "model.pt", weights_only=True)
    assert events(only_run()).Scalars("charts/SPS")


def test_a_terminal_shows_a_bar(tmp_path):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    command = [sys.executable, str(ROOT / "dqn_atari.py"), "--total-timesteps", "2000"]
    command += ["--learning-starts", "2000", "--buffer-size", "5000"]
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
    assert re.search(r"2,000/2,000  [\d,]+/s  ETA 0:00:00  return \d\.\d ", shown.decode())


def test_frozen_until_learning_starts(in_process, only_run):
    in_process(
        *("dqn_atari.py", "--total-timesteps", 400, "--learning-starts", 400),
        *("--buffer-size", 2_100, "--seed", 5),
    )
    weights = torch.load(Path(only_run()) / "model.pt", weights_only=True)
    torch.manual_seed(5)
    fresh = QNetwork(4, Args()).state_dict()
    assert all(torch.equal(weights[key], fresh[key]) for key in fresh)


def test_a_diverged_run_says_so_in_one_line(in_process):
    flags = ("--total-timesteps", 2_000, "--learning-starts", 500, "--learning-rate", 1e15)
    done = in_process("dqn_atari.py", *flags, "--buffer-size", 2_100, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(
        r"error: the run has diverged: at 1,000 agent steps losses/\w+ is (nan|inf);", done.stderr
    )
