"""What holds for every script: variants, parameter counts, play, and whole runs from outside."""

import json
import re
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import ENV, ROOT, TIMEOUT

import dqn_atari
import ppo_atari
import pqn_atari
from lab.common.variants import variant_name
from lab.training import radam
from lab.training import run as training
from lab.training.atari import AtariEnvs
from metrics import MEASURES

SCRIPTS = {"dqn": dqn_atari, "ppo": ppo_atari, "pqn": pqn_atari}
NETWORKS = {"dqn": dqn_atari.QNetwork, "ppo": ppo_atari.Agent, "pqn": pqn_atari.QNetwork}
VARIANTS = {
    "relu": {"activation": "relu", "branches": 1},
    "tanh": {"branches": 1},
    "sigmoid": {"activation": "sigmoid", "branches": 1},
    "selu": {"activation": "selu", "branches": 1},
    "tanh-hr": {},
    "sigmoid-hr": {"activation": "sigmoid"},
    "relu-hr": {"activation": "relu"},
    "tanh-ln": {"branches": 1, "layer_norm": True},
    "tanh-wide": {"branches": 1, "latent_dim": 1024},
    "tanh-sum": {"combine": "sum"},
    "tanh-3hr": {"branches": 3},
}
# As short as a run that learns can be: one rollout and its update, or ten updates of DQN.
ROLLOUT = ("--num-envs", 8, "--num-steps", 32, "--num-minibatches", 4, "--update-epochs", 1)
SHORT = {
    "dqn": ("--total-timesteps", 520, "--learning-starts", 480, "--buffer-size", 2_100),
    "ppo": ("--total-timesteps", 256, *ROLLOUT),
    "pqn": ("--total-timesteps", 256, *ROLLOUT),
}


def parameters_by_hand(algorithm, num_actions, flags):
    """Every weight, bias and norm of the Nature network, counted layer by layer."""
    branches, width = flags.get("branches", 2), flags.get("latent_dim", 512)
    norm = flags.get("layer_norm", algorithm == "pqn")
    everywhere = algorithm == "pqn"

    def layer(fan_in, out, changed):
        each = fan_in * out + out + (2 * out if norm and changed else 0)
        return each * (branches if changed else 1)

    total = layer(4 * 8 * 8, 32, everywhere) + layer(32 * 4 * 4, 64, everywhere)
    total += layer(64 * 3 * 3, 64, everywhere) + layer(64 * 7 * 7, width, True)
    heads = (num_actions, 1) if algorithm == "ppo" else (num_actions,)
    return total + sum(width * out + out for out in heads)


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_paper(variant, algorithm):
    flags = VARIANTS[variant]
    args = SCRIPTS[algorithm].Args(**flags)
    # PQN is layer-normalised throughout, so that its tanh has the norm already.
    name = "tanh" if (variant, algorithm) == ("tanh-ln", "pqn") else variant
    assert variant_name(args) == name
    network = NETWORKS[algorithm](4, args)
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert counted == parameters_by_hand(algorithm, 4, flags)
    obs = torch.randint(0, 255, (3, 4, 84, 84), dtype=torch.uint8)
    out = network(obs)
    shapes = [tuple(x.shape) for x in (out if algorithm == "ppo" else (out,))]
    assert shapes == ([(3, 4), (3,)] if algorithm == "ppo" else [(3, 4)])


@pytest.mark.parametrize("algorithm", ["dqn", "ppo"])
def test_the_wide_control_has_the_parameters_of_hr(algorithm):
    """Within 0.1 % on Breakout; without the heads, of which it has twice the weights, equal."""
    counts = []
    for name in ("tanh-hr", "tanh-wide"):
        network = NETWORKS[algorithm](4, SCRIPTS[algorithm].Args(**VARIANTS[name]))
        counts.append(sum(parameter.numel() for parameter in network.parameters()))
    hr, wide = counts
    assert abs(wide - hr) / hr < 0.001
    assert wide - hr == 512 * (4 if algorithm == "dqn" else 4 + 1)


def test_names_of_the_settings_beyond():
    silu = dqn_atari.Args(activation="silu", branches=4, combine="sum")
    assert variant_name(silu) == "silu-4sum"
    assert variant_name(dqn_atari.Args(latent_dim=256)) == "tanh-hr-z256"
    assert variant_name(pqn_atari.Args(layer_norm=False)) == "tanh-hr-noln"
    assert variant_name(pqn_atari.Args(apply_to="last", branches=1)) == "tanh-last"
    assert variant_name(ppo_atari.Args(apply_to="all", layer_norm=True)) == "tanh-hr-ln-all"


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("init", ["torch", "orthogonal", "he_normal"])
def test_the_init_is_that_of_the_flag(init, algorithm):
    """Standard deviations of the weights of z, per branch, and the heads of PPO and PQN."""
    torch.manual_seed(0)
    network = NETWORKS[algorithm](4, SCRIPTS[algorithm].Args(init=init))
    fan_in = 64 * 7 * 7
    std = {
        "torch": (1 / fan_in) ** 0.5 / 3**0.5,  # uniform within 1 / sqrt(fan_in)
        "orthogonal": 2**0.5 / fan_in**0.5,  # rows of norm sqrt(2)
        "he_normal": (2 / fan_in) ** 0.5,
    }[init]
    for branch in network.latent.weight.split(512):
        assert branch.std().item() == pytest.approx(std, rel=0.02)
    if init == "orthogonal":
        gram = network.latent.weight[512:] @ network.latent.weight[512:].T
        assert torch.allclose(gram, 2 * torch.eye(512), atol=1e-4)
        if algorithm == "ppo":
            gram = network.actor.weight @ network.actor.weight.T
            assert torch.allclose(gram, 1e-4 * torch.eye(4), atol=1e-8)
            assert network.critic.weight.norm().item() == pytest.approx(1.0, abs=1e-4)
    if algorithm == "pqn":
        head = network.head.weight
        if init == "orthogonal":
            assert torch.allclose(head @ head.T, torch.eye(4), atol=1e-4)
        else:  # 2,048 weights: a standard error of a standard deviation is 1.6 % of it
            std = {"torch": (1 / 512) ** 0.5 / 3**0.5, "he_normal": (1 / 512) ** 0.5}[init]
            assert head.std().item() == pytest.approx(std, rel=0.06)
        assert init == "torch" or network.head.bias.abs().max() == 0


def test_ppo_starts_from_a_nearly_uniform_policy():
    torch.manual_seed(0)
    agent = ppo_atari.Agent(4, ppo_atari.Args(activation="relu", branches=1))
    logits, _ = agent(torch.randint(0, 255, (8, 4, 84, 84), dtype=torch.uint8))
    assert logits.softmax(dim=1).sub(0.25).abs().max() < 0.02


class ShortGames(AtariEnvs):
    """Games cut off after 70 steps, which keep what every step gave."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options, max_episode_frames=4 * 70)
        self.steps = []

    def step(self, actions):
        obs, rewards, *rest = super().step(actions)
        self.steps.append((np.array(actions), obs.copy(), rewards.copy(), *rest))
        return obs, rewards, *rest


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_play_stores_what_the_games_did(algorithm):
    """Every step of a rollout against the games' own, with FIRE, life losses and truncations."""
    script, gamma = SCRIPTS[algorithm], 0.9
    flags = {"activation": "relu", "branches": 1, "latent_dim": 8, "num_envs": 3, "num_steps": 250}
    args = script.Args(**flags, gamma=gamma, total_timesteps=750)
    torch.manual_seed(3)
    network = NETWORKS[algorithm](4, args)
    envs = ShortGames("Breakout", 3, seed=1)
    first, _ = envs.reset()
    rollout = script.empty_rollout(args, torch.device("cpu"))
    seen = []
    run = types.SimpleNamespace(count_step=seen.append, step=30)
    sampling = torch.Generator().manual_seed(0)
    obs = script.play(network, envs, first, rollout, args, sampling, run)

    assert [infos is taken[-1] for infos, taken in zip(seen, envs.steps, strict=True)] == 250 * [
        True
    ]
    assert np.array_equal(obs, envs.steps[-1][1])
    observed = [first, *(taken[1] for taken in envs.steps[:-1])]
    assert np.array_equal(rollout.obs.numpy(), np.stack(observed))
    found = dict.fromkeys(("fire", "life lost", "truncated", "reward"), 0)
    with torch.no_grad():
        for t, (asked, _, rewards, terminations, truncations, infos) in enumerate(envs.steps):
            played = torch.from_numpy(infos["executed_actions"])
            found["fire"] += (played.numpy() != asked).sum()
            out = network(rollout.obs[t])
            if algorithm == "ppo":
                drawn = torch.from_numpy(asked)
                assert torch.equal(rollout.actions[t], drawn)
                value, chances = out[1], torch.distributions.Categorical(logits=out[0])
                assert torch.allclose(rollout.log_probs[t], chances.log_prob(drawn), atol=1e-6)
            else:
                assert torch.equal(rollout.actions[t], played)
                value = out.amax(dim=1)
            assert torch.allclose(rollout.values[t], value, atol=1e-6)
            assert np.array_equal(rollout.dones[t].numpy(), terminations | truncations)
            for i in range(3):
                expected = rewards[i]
                if truncations[i] and not terminations[i]:
                    last = network(torch.from_numpy(infos["final_obs"][i]).unsqueeze(0))
                    last = last[1] if algorithm == "ppo" else last.amax()
                    assert abs(last.item()) > 1e-3
                    expected += gamma * last.item()
                    found["truncated"] += 1
                assert rollout.rewards[t, i].item() == pytest.approx(expected, abs=1e-5)
            found["life lost"] += (terminations & ~infos["game_over"]).sum()
            found["reward"] += (rewards != 0).sum()
    envs.close()
    assert min(found.values()) >= 2, found


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        ((), "tanh-hr"),
        (("--activation", "relu", "--branches", 1, "--precision", "bf16"), "relu"),
        (("--combine", "sum", "--env-id", "ALE/Pong-v5"), "tanh-sum"),
    ],
)
def test_a_whole_run_of_three_variants(flags, variant, algorithm, in_process, only_run):
    done = in_process(f"{algorithm}_atari.py", *SHORT[algorithm], *flags)
    run = only_run()
    game = "Pong" if "ALE/Pong-v5" in flags else "Breakout"
    assert re.fullmatch(rf"{game}__{algorithm}__{variant}__s1__\d{{8}}-\d{{6}}", run.name)
    count = parameters_by_hand(algorithm, 6 if game == "Pong" else 4, VARIANTS[variant])
    config = json.loads((run / "config.json").read_text())
    assert config["num_parameters"] == count
    assert config["variant"] == variant
    assert set(config["flags"]) == set(SCRIPTS[algorithm].Args.__dataclass_fields__)
    assert f"{count:,} parameters" in done.stdout
    weights = torch.load(run / "model.pt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_same_seed_same_weights(algorithm, script, in_process, only_run):
    script(f"{algorithm}_atari.py", *SHORT[algorithm], "--runs-dir", "a")
    in_process(f"{algorithm}_atari.py", *SHORT[algorithm], "--runs-dir", "b", "--env-threads", 1)
    first, second = (
        torch.load(only_run(name) / "model.pt", weights_only=True) for name in ("a", "b")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(1)
    fresh = NETWORKS[algorithm](4, SCRIPTS[algorithm].Args()).state_dict()
    assert all((first[key] != fresh[key]).any() for key in first)  # it did learn


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_learning_rate_0_changes_nothing(algorithm, in_process, only_run):
    in_process(f"{algorithm}_atari.py", *SHORT[algorithm], "--learning-rate", 0, "--seed", 7)
    weights = torch.load(only_run() / "model.pt", weights_only=True)
    torch.manual_seed(7)
    fresh = NETWORKS[algorithm](4, SCRIPTS[algorithm].Args()).state_dict()
    assert all(torch.equal(weights[key], fresh[key]) for key in fresh)


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_a_signal_stops_the_run_and_keeps_its_files(algorithm, tmp_path, events, only_run):
    command = [sys.executable, str(ROOT / f"{algorithm}_atari.py"), "--num-steps", "32"]
    command += ["--num-envs", "8", "--num-minibatches", "4"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, env=ENV, stdout=pipe, stderr=pipe, text=True)
    try:
        assert "steps" in process.stderr.readline()  # the first progress line: it is under way
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 75
    assert "Traceback" not in err
    steps = int(re.search(r"stopped at ([\d,]+) agent steps", out)[1].replace(",", ""))
    assert 256 <= steps < 10_000_000
    torch.load(only_run() / "model.pt", weights_only=True)
    assert events(only_run()).Scalars("charts/SPS")


LOSSES = {
    "ppo": (
        *("policy_loss", "value_loss", "entropy", "approx_kl", "old_approx_kl", "clipfrac"),
        "explained_variance",
    ),
    "pqn": ("td_loss", "q_values"),
}


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_what_lands_in_the_event_file(algorithm, in_process, only_run, events, monkeypatch):
    acted, pqn_act = [], pqn_atari.act  # with which epsilon

    def act(q_values, epsilon, generator):
        acted.append(epsilon)
        return pqn_act(q_values, epsilon, generator)

    monkeypatch.setattr(pqn_atari, "act", act)
    in_process(
        *(f"{algorithm}_atari.py", "--total-timesteps", 2_000, "--num-envs", 8, "--num-steps", 64),
        *("--num-minibatches", 4, "--update-epochs", 1, "--metrics-every", 500, "--anneal-lr"),
        *("--metrics-samples", 700, "--latent-dim", 64, "--learning-rate", 1e-4),
        *(("--exploration-fraction", 0.8) if algorithm == "pqn" else ()),
    )
    log = events(only_run())
    scalars = {
        tag: [(event.step, event.value) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
    }
    contribution = "value_contribution" if algorithm == "ppo" else "q_contribution"
    expected = {"charts/episodic_return", "charts/episodic_length", "charts/mean_return_100"}
    expected |= {"charts/SPS", "charts/learning_rate"}
    expected |= {f"losses/{name}" for name in LOSSES[algorithm]}
    expected |= {f"{contribution}/{p}" for p in ("live", "dead", "bias", "live_abs", "dead_abs")}
    layers = ["", "branch_0/", "branch_1/"]
    if algorithm == "pqn":
        expected.add("charts/epsilon")
        layers += ["conv_1/", "conv_2/", "conv_3/"]
    expected |= {f"representation/{layer}{m}" for layer in layers for m in MEASURES}
    assert set(scalars) == expected

    # The run ends with the rollout that reaches its total; 700 samples are there after two.
    ends = [512, 1_024, 1_536, 2_048]
    for tag, points in scalars.items():
        if tag.startswith(("losses/", "charts/learning_rate")):
            assert [step for step, _ in points] == ends
        if tag.startswith("representation/"):
            assert [step for step, _ in points] == ends[1:]
            width = {"1": 32, "2": 64, "3": 64}.get(tag.partition("conv_")[2][:1], 64)
            low, high = (1, width) if tag.endswith("rank") else (0, 1)
            assert all(low <= value <= high for _, value in points)
    rates = [value for _, value in scalars["charts/learning_rate"]]
    assert rates == pytest.approx([1e-4 * (1 - step / 2_000) for step in (0, 512, 1_024, 1_536)])
    if algorithm == "pqn":
        # 1 to 0.001 over the first 1,600 steps; logged as it was at the last step of each rollout.
        expected = [1 - 0.999 * min(step / 1_600, 1) for step in range(0, 2_048, 8)]
        assert acted == pytest.approx(expected)
        expected = expected[63::64]
        assert [value for _, value in scalars["charts/epsilon"]] == pytest.approx(expected)
    layout = log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0].decode("latin1")
    assert all(f"losses/{name}" in layout for name in LOSSES[algorithm])
    assert ("conv_" in layout) == (algorithm == "pqn")


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
        played.append(arguments[3].obs.flatten(0, 1).clone())
        return result

    ppo_play, of_network = ppo_atari.play, training.hidden_layers
    monkeypatch.setattr(ppo_atari, "play", play)
    monkeypatch.setattr(training, "hidden_layers", hidden_layers)
    args = ppo_atari.Args(
        total_timesteps=1_024,
        num_steps=32,
        update_epochs=1,
        metrics_samples=samples,
        metrics_every=every,
        latent_dim=8,
        device="cpu",
        runs_dir=str(tmp_path / "runs"),
    )
    assert ppo_atari.main(args) == 0
    log = events(only_run())
    points = log.Scalars("representation/dead_kde") if expected else []
    assert [event.step for event in points] == expected
    for step, obs in zip(expected, measured, strict=True):
        assert torch.equal(obs, torch.cat(played[: step // 256])[-samples:])


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_the_targets_of_a_run(algorithm, tmp_path, monkeypatch):
    """What `main` hands to `update`: returns from the values of the states that really followed."""
    script, handed = SCRIPTS[algorithm], []

    def update(network, optimizer, rollout, args, generator):
        handed.append(type(rollout)(*(field.clone() for field in rollout)))
        return {}

    monkeypatch.setattr(script, "update", update)  # nothing is learned: V stays what it was
    args = script.Args(
        total_timesteps=600,
        num_envs=3,
        num_steps=100,
        num_minibatches=1,
        latent_dim=8,
        device="cpu",
        runs_dir=str(tmp_path),
    )
    assert script.main(args) == 0
    first, second = handed
    following = torch.cat([first.values[1:], second.values[:1]])
    if algorithm == "pqn":
        last = first.rewards + 0.99 * ~first.dones * following  # G at lambda 0
        expected = [last[-1]]
        for t in reversed(range(99)):
            mixed = 0.65 * expected[0] + 0.35 * following[t]
            expected.insert(0, first.rewards[t] + 0.99 * ~first.dones[t] * mixed)
    else:
        deltas = first.rewards + 0.99 * ~first.dones * following - first.values
        expected = [deltas[-1]]
        for t in reversed(range(99)):
            expected.insert(0, deltas[t] + 0.99 * 0.95 * ~first.dones[t] * expected[0])
        assert torch.allclose(first.advantages, torch.stack(expected), atol=1e-5)
        expected = [advantage + v for advantage, v in zip(expected, first.values, strict=True)]
    assert torch.allclose(first.returns, torch.stack(expected), atol=1e-5)


def test_a_life_lost_in_the_step_of_a_truncation_ends_the_bootstrap():
    """Games that lose a life, are cut off, and both, in the same step."""

    class Games:
        num_envs = 3

        def step(self, actions):
            final_obs = np.full(3, None, dtype=object)
            final_obs[1] = final_obs[2] = np.full((4, 84, 84), 200, dtype=np.uint8)
            infos = {"executed_actions": actions, "final_obs": final_obs}
            lost, cut = np.array([True, False, True]), np.array([False, True, True])
            return np.zeros((3, 4, 84, 84), dtype=np.uint8), np.ones(3, "f4"), lost, cut, infos

    for algorithm in ("ppo", "pqn"):
        script = SCRIPTS[algorithm]
        args = script.Args(num_envs=3, num_steps=1, latent_dim=8, gamma=0.5)
        network = NETWORKS[algorithm](4, args)
        rollout = script.empty_rollout(args, torch.device("cpu"))
        run = types.SimpleNamespace(count_step=lambda infos: None, step=0)
        obs = np.zeros((3, 4, 84, 84), dtype=np.uint8)
        script.play(network, Games(), obs, rollout, args, torch.Generator(), run)
        out = network(torch.full((1, 4, 84, 84), 200, dtype=torch.uint8))
        value = out[1] if algorithm == "ppo" else out.amax(dim=1)
        expected = [1, 1 + 0.5 * value.item(), 1]
        assert rollout.rewards[0].tolist() == pytest.approx(expected, abs=1e-6)
        assert rollout.dones[0].all()


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("dqn", (torch.optim.Adam, 1e-4, 1e-5)),
        ("ppo", (torch.optim.Adam, 2.5e-4, 1e-5)),
        ("pqn", (radam.RAdam, 2.5e-4, 1e-8)),
    ],
)
def test_the_optimizer_is_that_of_the_paper(algorithm, expected, tmp_path, monkeypatch):
    made = []

    def watched(self, params, defaults):
        made.append((type(self), defaults["lr"], defaults["eps"]))
        original(self, params, defaults)

    original = torch.optim.Optimizer.__init__
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", watched)
    flags = dict(zip(SHORT[algorithm][::2], SHORT[algorithm][1::2], strict=True))
    flags = {name[2:].replace("-", "_"): value for name, value in flags.items()}
    args = SCRIPTS[algorithm].Args(**flags, latent_dim=8, device="cpu", runs_dir=str(tmp_path))
    assert SCRIPTS[algorithm].main(args) == 0
    assert made == [expected]


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


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_a_diverged_run_says_so_in_one_line(algorithm, in_process):
    done = in_process(
        *(f"{algorithm}_atari.py", *ROLLOUT, "--total-timesteps", 1_024, "--learning-rate", 1e17),
        *("--metrics-samples", 512, "--metrics-every", 512, "--max-grad-norm", 1e9),
        *("--activation", "relu", "--branches", 1, "--latent-dim", 8),
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(
        r"error: the run has diverged: at [\d,]+ agent steps \S+ (is|has) .*; a smaller",
        done.stderr,
    )


BAD_FLAGS = [
    (["--num-minibatches", "1000000000000"], r"does not divide: 1024 would"),
    (["--metrics-samples", "10000000000"], r"--metrics-samples 10000000000 needs 564480\.0 GB"),
    (["--num-minibatches", "7"], r"does not divide: 8 would"),
    (["--num-minibatches", "3"], r"1024 steps, which --num-minibatches 3 does not divide: 2 would"),
    (["--num-minibatches", "2000"], r"--num-minibatches 2000 does not divide: 1024 would"),
    (
        ["--total-timesteps", "1000"],
        r"--num-steps 128 is 1024 steps per rollout: more than --total",
    ),
    (["--metrics-samples", "511"], r"--metrics-samples must be at least 512"),
    (["--num-steps", "0"], r"--num-steps must be at least 1, not 0"),
    (["--num-minibatches", "0"], r"--num-minibatches must be at least 1, not 0"),
    (["--update-epochs", "-1"], r"--update-epochs must be at least 1, not -1"),
    (["--learning-rate", "-1e-4"], r"--learning-rate must be at least 0, not -0.0001"),
    (["--max-grad-norm", "0"], r"--max-grad-norm must be above 0, not 0"),
    (["--gamma", "2"], r"--gamma must be between 0 and 1, not 2"),
    (["--env-id", "Breakot"], r"unknown game 'Breakot': did you mean Breakout"),
    (["--branches", "0"], r"--branches must be at least 1, not 0"),
    (["--runs-dir", "/dev/null/runs"], r"/dev/null is not a folder"),
    (
        ["--num-envs", "4000", "--num-steps", "100000", "--total-timesteps", "1000000000"],
        r"--num-envs 4000 times --num-steps 100000, .* needs \d+\.\d GB .* choose at most \d+",
    ),
]
OWN_BAD_FLAGS = {
    "ppo": [
        (["--gae-lambda", "1.1"], r"--gae-lambda must be between 0 and 1, not 1.1"),
        (["--clip-coef", "0"], r"--clip-coef must be above 0, not 0"),
        (["--target-kl", "0"], r"--target-kl must be above 0, not 0"),
        (["--vf-coef", "-1"], r"--vf-coef must be at least 0, not -1"),
        (["--ent-coef", "nan"], r"--ent-coef must be at least 0 and below 1e18, not nan"),
        (["--adam-eps", "0"], r"--adam-eps must be above 0, not 0"),
        (["--num-minibatches", "1024"], r"one step per minibatch, which cannot be normalised"),
        (["--q-lambda", "0.5"], r"Unrecognized options: --q-lambda, 0.5; --help"),
        (["--target-kl", "abc"], r"--target-kl must be a number, such as 0.001, not 'abc'"),
    ],
    "pqn": [
        (["--q-lambda", "-0.1"], r"--q-lambda must be between 0 and 1, not -0.1"),
        (["--end-e", "1.5"], r"--end-e must be between 0 and 1, not 1.5"),
        (["--exploration-fraction", "0"], r"--exploration-fraction must be above 0, not 0"),
    ],
}


@pytest.mark.parametrize(
    ("algorithm", "flags", "message"),
    [(name, *case) for name, own in OWN_BAD_FLAGS.items() for case in BAD_FLAGS + own],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_status_2(algorithm, flags, message, refused):
    sizes = {"--num-envs": "8", "--num-steps": "128", "--num-minibatches": "4", "--device": "cpu"}
    for name, value in sizes.items():
        flags = flags if name in flags else [*flags, name, value]
    refused(SCRIPTS[algorithm], flags, message)
