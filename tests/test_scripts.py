"""What holds for every script without a whole run: variants, parameters, play, refused flags."""

import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from algorithms import NETWORKS, PLAIN, SCRIPTS, SHORT, VARIANTS, parameters_by_hand, parse
from conftest import ROOT

import ppo_atari
import pqn_atari
from lab.common.variants import variant_name
from lab.training import checks, radam
from lab.training.atari import AtariEnvs


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


def test_the_tables_of_variants_say_how_large_they_are():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "flags.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    for name, flags in VARIANTS.items():
        made = {a: NETWORKS[a](4, SCRIPTS[a].Args(**flags)) for a in SCRIPTS}
        counts = {a: sum(weight.numel() for weight in made[a].parameters()) for a in SCRIPTS}
        (row,) = (row for row in rows if f"`{name}`" in row[0].split(", "))
        assert row[2:] == [f"{counts[algorithm]:,}" for algorithm in SCRIPTS]
        for algorithm, network in made.items():
            for row in (row for row in rows if row[0] == f"{algorithm.upper()} `{name}`"):
                assert row[1] == ", ".join(str(layer.width) for layer in network.convolutions)
                assert row[2] == str(network.latent.width)
                assert row[3].split(" ")[0] == f"{counts[algorithm]:,}"
                assert row[4].split(" ")[0] == f"{network.count_multiply_adds():,}"


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


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("init", ["torch", "orthogonal", "he_normal", "xavier_normal", "gated"])
def test_the_init_is_that_of_the_flag(init, algorithm):
    """Standard deviations of the weights of z, per branch, and the heads of PPO and PQN."""
    torch.manual_seed(0)
    network = NETWORKS[algorithm](4, SCRIPTS[algorithm].Args(init=init))
    fan_in = 64 * 7 * 7
    std = {
        "torch": (1 / fan_in) ** 0.5 / 3**0.5,  # uniform within 1 / sqrt(fan_in)
        "orthogonal": 2**0.5 / fan_in**0.5,  # rows of norm sqrt(2)
        "he_normal": (2 / fan_in) ** 0.5,
        "xavier_normal": (2 / (fan_in + 512)) ** 0.5,
        "gated": 2**0.5 / fan_in**0.5,
    }[init]
    for branch in network.latent.weight.split(512):
        assert branch.std().item() == pytest.approx(std, rel=0.02)
    latent = network.latent
    biases = (latent.norm_bias if latent.layer_norm else latent.bias.view(2, 512)).tolist()
    if init == "gated":
        assert biases == [[0.0] * 512, [2.0] * 512]
    elif init != "torch":
        assert biases == [[0.0] * 512] * 2
    if init in ("orthogonal", "gated"):
        gram = network.latent.weight[512:] @ network.latent.weight[512:].T
        assert torch.allclose(gram, 2 * torch.eye(512), atol=1e-4)
        if algorithm == "ppo":
            gram = network.actor.weight @ network.actor.weight.T
            assert torch.allclose(gram, 1e-4 * torch.eye(4), atol=1e-8)
            assert network.critic.weight.norm().item() == pytest.approx(1.0, abs=1e-4)
    if algorithm == "pqn":
        head = network.head.weight
        if init in ("orthogonal", "gated"):
            assert torch.allclose(head @ head.T, torch.eye(4), atol=1e-4)
        else:  # 2,048 weights: a standard error of a standard deviation is 1.6 % of it
            std = {
                "torch": (1 / 512) ** 0.5 / 3**0.5,
                "he_normal": (1 / 512) ** 0.5,
                "xavier_normal": (1 / (512 + 4)) ** 0.5,
            }[init]
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

    def send(self, actions):
        self.asked = np.array(actions)
        super().send(actions)

    def recv(self):
        obs, rewards, *rest = super().recv()
        self.steps.append((self.asked, obs.copy(), rewards.copy(), *rest))
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
    counted, seen = [], []  # of each step, how many steps had been played when it was counted
    run = types.SimpleNamespace(
        count_step=lambda: counted.append(len(envs.steps)), log_episodes=seen.append, step=30
    )
    sampling, choose = torch.Generator().manual_seed(0), partial(script.act, network)
    obs = script.play(network, choose, envs, first, rollout, args, sampling, run)

    assert counted == list(range(1, 251))
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


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
def test_the_targets_of_a_run(algorithm, tmp_path, monkeypatch):
    """What `main` hands to `update`: returns from the values of the states that really followed."""
    script, handed = SCRIPTS[algorithm], []

    def update(learn, rollout, args, generator):
        handed.append(type(rollout)(*(field.clone() for field in rollout)))
        return {}

    monkeypatch.setattr(script, "update", update)  # nothing is learned: V stays what it was
    flags = ("--total-timesteps", 320, "--num-envs", 2, "--num-steps", 80, "--num-minibatches", 1)
    flags += ("--metrics-samples", 512, "--device", "cpu", "--runs-dir", tmp_path, *PLAIN)
    args = parse(algorithm, *flags)
    assert script.main(args) == 0
    first, second = handed
    assert first.dones.any()
    following = torch.cat([first.values[1:], second.values[:1]])
    if algorithm == "pqn":
        last = first.rewards + 0.99 * ~first.dones * following  # G at lambda 0
        expected = [last[-1]]
        for t in reversed(range(79)):
            mixed = 0.65 * expected[0] + 0.35 * following[t]
            expected.insert(0, first.rewards[t] + 0.99 * ~first.dones[t] * mixed)
    else:
        deltas = first.rewards + 0.99 * ~first.dones * following - first.values
        expected = [deltas[-1]]
        for t in reversed(range(79)):
            expected.insert(0, deltas[t] + 0.99 * 0.95 * ~first.dones[t] * expected[0])
        assert torch.allclose(first.advantages, torch.stack(expected), atol=1e-5)
        expected = [advantage + v for advantage, v in zip(expected, first.values, strict=True)]
    assert torch.allclose(first.returns, torch.stack(expected), atol=1e-5)


def test_a_life_lost_in_the_step_of_a_truncation_ends_the_bootstrap():
    """Games that lose a life, are cut off, and both, in the same step."""

    class Games:
        num_envs, single_action_space = 3, types.SimpleNamespace(n=4)

        def send(self, actions):
            self.actions = actions

        def recv(self):
            final_obs = np.full(3, None, dtype=object)
            final_obs[1] = final_obs[2] = np.full((4, 84, 84), 200, dtype=np.uint8)
            infos = {"executed_actions": self.actions, "final_obs": final_obs}
            lost, cut = np.array([True, False, True]), np.array([False, True, True])
            return np.zeros((3, 4, 84, 84), dtype=np.uint8), np.ones(3, "f4"), lost, cut, infos

    for algorithm in ("ppo", "pqn"):
        script = SCRIPTS[algorithm]
        args = script.Args(num_envs=3, num_steps=1, latent_dim=8, gamma=0.5)
        network = NETWORKS[algorithm](4, args)
        rollout = script.empty_rollout(args, torch.device("cpu"))
        run = types.SimpleNamespace(
            count_step=lambda: None, log_episodes=lambda infos: None, step=0
        )
        obs = np.zeros((3, 4, 84, 84), dtype=np.uint8)
        choose = partial(script.act, network)
        script.play(network, choose, Games(), obs, rollout, args, torch.Generator(), run)
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
    flags = (*SHORT[algorithm], *PLAIN, "--device", "cpu", "--runs-dir", tmp_path)
    args = parse(algorithm, *flags)
    assert SCRIPTS[algorithm].main(args) == 0
    assert made == [expected]


def test_pqn_explores_less_with_every_step(tmp_path, monkeypatch):
    """Epsilon falls from 1 to --end-e over the first 0.8 of the run, at every step of the games."""
    acted, draw = [], pqn_atari.draw_exploration

    def draw_exploration(num_envs, num_actions, epsilon, generator):
        acted.append(epsilon)
        return draw(num_envs, num_actions, epsilon, generator)

    monkeypatch.setattr(pqn_atari, "draw_exploration", draw_exploration)
    flags = ("--total-timesteps", 100, "--num-envs", 2, "--num-steps", 16, "--num-minibatches", 1)
    flags += ("--update-epochs", 1, "--metrics-samples", 512, "--exploration-fraction", 0.8)
    args = parse("pqn", *flags, *PLAIN, "--device", "cpu", "--runs-dir", tmp_path)
    assert pqn_atari.main(args) == 0
    assert acted == pytest.approx([1 - 0.999 * min(step / 80, 1) for step in range(0, 128, 2)])


ALL, ROLLOUTS = ("dqn", "ppo", "pqn"), ("ppo", "pqn")
# Who refuses it, the flags, what is said.
BAD_FLAGS = [
    (ALL, "--env-id Breakut", r"unknown game 'Breakut': did you mean Breakout"),
    (ALL, "--env-id Breakot", r"unknown game 'Breakot': did you mean Breakout"),
    (ALL, "--env-id ../../etc", r"unknown game '\.\./\.\./etc'"),
    (ALL, "--activation tahn", r"--activation 'tahn': choose one of relu, tanh, sigmoid"),
    (ALL, "--combine mean", r"--combine 'mean': choose one of product, sum"),
    (ALL, "--apply-to first", r"--apply-to 'first': choose one of last, all"),
    (ALL, "--precision fp64", r"--precision 'fp64': choose one of fp32, bf16, tf32"),
    (ALL, "--precision tf32", r"--precision tf32 needs a CUDA device: use fp32 or bf16 on the CPU"),
    (ALL, "--device tpu", r"--device 'tpu': choose one of auto, cpu, cuda"),
    (ALL, "--init xavier", r"--init 'xavier': choose one of torch, orthogonal, he_normal"),
    (ALL, "--branches 0", r"--branches must be at least 1, not 0"),
    (
        *(ALL, "--branches 100000"),
        r"--branches 100000 needs 3\d+\.\d GB of memory .* choose at most \d+",
    ),
    (ALL, "--latent-dim 0", r"--latent-dim must be at least 1, not 0"),
    (ALL, "--width 0", r"--width must be above 0, not 0"),
    (ALL, "--width -1.5", r"--width must be above 0, not -1.5"),
    (ALL, "--width nan", r"--width must be above 0 and below 1e18, not nan"),
    (ALL, "--width inf", r"--width must be above 0 and below 1e18, not inf"),
    (ALL, "--width twice", r"--width must be a number above 0 or match, not 'twice'"),
    (ALL, "--width match", r"--width match makes .*: it needs --branches 1, not 2"),
    (ALL, "--width match --branches 3", r"--width match makes .*: it needs --branches 1, not 3"),
    (ALL, "--width 0.0005", r"--width 0.0005 leaves .* channels and 0 features in z: it must be"),
    (("pqn",), "--width 0.01", r"--width 0.01 leaves 0, 1, 1 channels and 5 features in z"),
    (ALL, "--width 6", r"--metrics-samples must be at least 3072"),
    (
        *(ALL, "--width match --branches 1 --latent-dim 1024 --metrics-samples 1200"),
        r"--metrics-samples must be at least (1442|2048)",
    ),
    (
        *(("ppo", "pqn"), "--width 100000 --metrics-samples 51200000"),
        r"--width 100000.0 with --latent-dim 512 and --branches 2 needs \d+\.\d GB .* choose less",
    ),
    (ALL, "--num-envs 0", r"--num-envs must be between 1 and 4096, not 0"),
    (ALL, "--num-envs 100000", r"--num-envs must be between 1 and 4096, not 100000"),
    (ALL, "--num-envs many", r"--num-envs must be a whole number, .* not 'many'; --help lists the"),
    (ALL, "--env-threads 2147483648", r"--env-threads must be between 0 and 1024, not 2147483648"),
    (ALL, "--total-timesteps -5", r"--total-timesteps must be at least 1, not -5"),
    (ALL, "--total-timesteps 1.5", r"--total-timesteps must be a whole number, .* not '1.5'"),
    (ALL, "--total-timesteps 1.5e0", r"--total-timesteps must be a whole number, .* not '1.5e0'"),
    (ALL, "--total-timesteps 1e999999999", r"--total-timesteps must be a whole number"),
    (ALL, "--total-timesteps 1e99", r"--total-timesteps must be at least 1 and below 1e18"),
    (ALL, "--cuda", r"--cuda \(here it is --device cuda, or auto for where there is one\)"),
    (ALL, "--no-cuda", r"--no-cuda \(here it is --device cpu\)"),
    (ALL, "--cuda=False", r"--cuda=False \(here it is --device cuda"),
    (ALL, "--no_capture_video", r"--no_capture_video \(a run that was trained is shown by:"),
    (ALL, "--exp-name mine", r"--exp-name, mine \(here it is --tag\)"),
    (
        *(ALL, f"--total-timesteps 1{'0' * 400}"),
        r"--total-timesteps must be at least 1 and below 1e18",
    ),
    (ALL, "--seed -1", r"--seed must be between 0 and \d+, not -1"),
    (ALL, "--device cpu --seed", r"Missing value for argument '--seed'"),
    (ALL, "--tag a/b", r"--tag 'a/b' must be at most 40 letters, digits and \.\+-_, such as"),
    (ALL, "--tag a__b", r"--tag 'a__b' must be .* without two _ in a row"),
    (ALL, "--tag=--x", r"--tag '--x' must be at most 40 letters"),
    (ALL, f"--tag {'a' * 41}", r"--tag 'a+' must be at most 40 letters"),
    (ALL, "--metrics-every 0", r"--metrics-every must be at least 1, not 0"),
    (ALL, "--metrics-samples 511", r"--metrics-samples must be at least 512"),
    (ALL, "--metrics-samples 900 --latent-dim 1024", r"must be at least 1024"),
    (ALL, "--sticky-actions -0.5", r"--sticky-actions must be at least 0, not -0.5"),
    (ALL, "--sticky-actions 1", r"--sticky-actions must be below 1, not 1"),
    (ALL, "--learning-rate -1", r"--learning-rate must be at least 0, not -1"),
    (ALL, "--learning-rate -1e-4", r"--learning-rate must be at least 0, not -0.0001"),
    (ALL, "--learning-rate nan", r"--learning-rate must be at least 0 and below 1e18, not nan"),
    (ALL, "--gamma 1.5", r"--gamma must be between 0 and 1, not 1.5"),
    (ALL, "--gamma 2", r"--gamma must be between 0 and 1, not 2"),
    (ALL, "--gamma x", r"--gamma must be a number, such as 0.001, not 'x'"),
    (ALL, "--runs-dir=", r"--runs-dir is empty: it must be a folder, such as runs"),
    (ALL, f"--runs-dir {'a' * 300}", r"--runs-dir a+: File name too long"),
    (ALL, "--runs-dir /dev/null/runs", r"--runs-dir /dev/null/runs: Not a directory; choose"),
    (ALL, "--num-envs 1 --runs-dir /proc/no/runs", r"--runs-dir /proc/no/runs: "),
    (ALL, "--track", r"--track needs Weights & Biases: pip install wandb"),
    (ALL, "--activaton=relu", r"--activaton=relu \(did you mean --activation\?\)"),
    (ALL, "--env-idd Pong", r"Unrecognized options: --env-idd, Pong \(did you mean --env-id\?\)"),
    (
        ALL,
        "--layer-norm True",
        r"Unrecognized options: True \(--[\w-]+ and the like take no value\)",
    ),
    (("dqn",), "--batch-size 0", r"--batch-size must be at least 1, not 0"),
    (("dqn",), "--train-frequency 0", r"--train-frequency must be at least 1, not 0"),
    (("dqn",), "--learning-starts -1", r"--learning-starts must be at least 0, not -1"),
    (("dqn",), "--tau 0", r"--tau must be above 0, not 0"),
    (("dqn",), "--tau 1.5", r"--tau must be at most 1, not 1.5"),
    (
        *(("dqn",), "--learning-starts 6000 --total-timesteps 5000"),
        r"--learning-starts 6000 .* at most --total-timesteps 5000",
    ),
    (("dqn",), "--buffer-size 31", r"--buffer-size 31 must be at least 2048"),
    (
        *(("dqn",), "--buffer-size 900000000000"),
        r"needs 6\d+\.\d GB of memory on cpu and .* choose at most",
    ),
    (
        *(("dqn",), "--latent-dim 999999999 --metrics-samples 999999999 --buffer-size 999999999"),
        r"--latent-dim 9+ needs .* at most",
    ),
    (
        *(("dqn",), "--batch-size 9999999 --buffer-size 9999999"),
        r"--batch-size 9+ needs .*|--buffer-size 9+ needs .*",
    ),
    (ROLLOUTS, "--num-steps 0", r"--num-steps must be at least 1, not 0"),
    (ROLLOUTS, "--num-minibatches 0", r"--num-minibatches must be at least 1, not 0"),
    (
        *(ROLLOUTS, "--num-minibatches 3"),
        r"1024 steps, which --num-minibatches 3 does not divide: 2 would",
    ),
    (ROLLOUTS, "--num-minibatches 7", r"--num-minibatches 7 does not divide: 8 would"),
    (ROLLOUTS, "--num-minibatches 2000", r"--num-minibatches 2000 does not divide: 1024 would"),
    (ROLLOUTS, "--num-minibatches 1000000000000", r"does not divide: 1024 would"),
    (
        ROLLOUTS,
        "--total-timesteps 1000",
        r"--num-steps 128 is 1024 steps per rollout: more than --total",
    ),
    (ROLLOUTS, "--update-epochs -1", r"--update-epochs must be at least 1, not -1"),
    (ROLLOUTS, "--max-grad-norm 0", r"--max-grad-norm must be above 0, not 0"),
    (
        ROLLOUTS,
        "--metrics-samples 10000000000",
        r"--metrics-samples 10000000000 needs 564480\.0 GB",
    ),
    (
        *(ROLLOUTS, "--num-envs 4000 --num-steps 100000 --total-timesteps 1000000000"),
        r"--num-envs 4000 times --num-steps 100000, .* needs \d+\.\d GB .* choose at most \d+",
    ),
    (("ppo",), "--gae-lambda 1.1", r"--gae-lambda must be between 0 and 1, not 1.1"),
    (("ppo",), "--clip-coef 0", r"--clip-coef must be above 0, not 0"),
    (("ppo",), "--target-kl 0", r"--target-kl must be above 0, not 0"),
    (("ppo",), "--target-kl abc", r"--target-kl must be a number, such as 0.001, not 'abc'"),
    (("ppo",), "--vf-coef -1", r"--vf-coef must be at least 0, not -1"),
    (("ppo",), "--ent-coef nan", r"--ent-coef must be at least 0 and below 1e18, not nan"),
    (("ppo",), "--adam-eps 0", r"--adam-eps must be above 0, not 0"),
    (("ppo",), "--num-minibatches 1024", r"one step per minibatch, which cannot be normalised"),
    (("ppo",), "--q-lambda 0.5", r"Unrecognized options: --q-lambda, 0.5; --help"),
    (("pqn",), "--q-lambda -0.1", r"--q-lambda must be between 0 and 1, not -0.1"),
    (("pqn",), "--end-e 1.5", r"--end-e must be between 0 and 1, not 1.5"),
    (("pqn",), "--exploration-fraction 0", r"--exploration-fraction must be above 0, not 0"),
]


@pytest.mark.parametrize(
    ("algorithm", "flags", "message"),
    [(algorithm, *case) for algorithms, *case in BAD_FLAGS for algorithm in algorithms],
)
def test_bad_input_is_one_line_and_status_2(algorithm, flags, message, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    usual = {"--device": "cpu"}
    if algorithm != "dqn":
        usual |= {"--num-envs": "8", "--num-steps": "128", "--num-minibatches": "4"}
    flags = flags.split()
    usual = [word for name, value in usual.items() if name not in flags for word in (name, value)]
    refused(SCRIPTS[algorithm], [*usual, *flags], message)
