"""The regression demo: its networks, training all seeds at once, and what it leaves on disk."""

import csv
import dataclasses
import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import scipy
import torch
from conftest import ENV, ROOT, TIMEOUT
from torch import nn

import regression_demo as demo
from lab.regression.claims import CLAIMS, judge_cell

SMALL = ("--steps", 5, "--seeds", 2)
OUTPUTS = {"fits.png", "dying.png", "fits.csv", "claims.csv", "theory.csv", "demo.json"}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("relu", 601),
        ("tanh", 601),
        ("tanh-hr", 501),
        ("relu-hr", 501),
        ("tanh-sum", 501),
        ("relu-deep", 81_001),
        ("tanh-deep", 81_001),
        ("tanh-hr-deep", 2 * 200 + 2 * (2 * 100 * 101) + 101),
    ],
)
def test_parameter_counts_of_the_paper(name, count):
    network = demo.Network(demo.ARCHITECTURES[name], "torch")
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_function_of_the_paper():
    for x in (-2.0, -0.3, 0.0, 0.7):
        y = 10 * math.sin(7 * x) + 15 * math.sin(10 * x) + 5 * math.cos(5 * x)
        assert demo.target(torch.tensor(x)).item() == pytest.approx(y, abs=1e-4)


def train_alone(architecture, args, seed, steps):
    """The plain loop for one seed: loss before each step; fit, and z, at the end."""
    x = torch.tensor(np.linspace(args.x_min, args.x_max, args.samples)).to(
        torch.get_default_dtype()
    )
    y = 10 * torch.sin(7 * x) + 15 * torch.sin(10 * x) + 5 * torch.cos(5 * x)
    torch.manual_seed(seed)
    network = demo.Network(architecture, args.init)
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=args.learning_rate, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(network(x[:, None])[0], y[:, None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    points = torch.linspace(args.x_min, args.x_max, demo.POINTS)
    with torch.no_grad():
        fit, z = network(points[:, None])
    return torch.stack(losses), fit[:, 0], z


def rank_by_hand(z):
    s = scipy.linalg.svdvals(z.double().numpy())
    return next(k for k in range(1, len(s) + 1) if s[:k].sum() >= 0.99 * s.sum())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", demo.ARCHITECTURES)
def test_seeds_at_once_equal_seeds_one_by_one(double, name, optimizer):
    rate = 1e-2 if optimizer == "adam" else 1e-4
    args = demo.Args(seeds=3, seed=5, samples=40, optimizer=optimizer, learning_rate=rate)
    architecture = demo.ARCHITECTURES[name]
    fits = demo.train(architecture, args, [10, 60])
    for i in range(3):
        losses, fit, z = train_alone(architecture, args, 5 + i, 60)
        torch.testing.assert_close(fits.losses[:, i], losses, rtol=1e-5, atol=0)
        torch.testing.assert_close(fits.y[i], fit, rtol=1e-5, atol=1e-5)
        points = torch.linspace(-1, 1, demo.POINTS)
        error = (fit - demo.target(points)).square().mean()
        torch.testing.assert_close(fits.mse[1, i], error, rtol=1e-5, atol=0)
        assert fits.rank[1, i] == rank_by_hand(z)
    assert not torch.equal(fits.y[0], fits.y[1])


def test_seeds_at_once_equal_seeds_one_by_one_in_the_precision_of_the_demo():
    args = demo.Args(seeds=3)
    for name in ("tanh", "tanh-hr", "relu"):
        architecture = demo.ARCHITECTURES[name]
        fits = demo.train(architecture, args, [30])
        for i in range(3):
            losses, fit, _ = train_alone(architecture, args, 1 + i, 30)
            torch.testing.assert_close(fits.losses[:, i], losses, rtol=1e-5, atol=0)
            torch.testing.assert_close(fits.y[i], fit, rtol=1e-5, atol=1e-5)


def test_a_measurement_does_not_disturb_training_and_comes_after_its_step():
    architecture, args = demo.ARCHITECTURES["tanh-hr"], demo.Args(seeds=2)
    once, often = (demo.train(architecture, args, steps) for steps in ([20], [1, 7, 13, 20]))
    assert torch.equal(once.y, often.y)
    assert torch.equal(once.mse[0], often.mse[3])
    assert torch.equal(demo.train(architecture, args, [7]).mse[0], often.mse[1])


def test_noise_is_on_the_training_targets_alone():
    architecture = demo.ARCHITECTURES["tanh"]
    plain, noisy = (
        demo.train(architecture, demo.Args(seeds=2, noise=noise, samples=5000), [1])
        for noise in (0.0, 3.0)
    )
    # A network that knows nothing of the noise errs by its variance more.
    torch.testing.assert_close(
        noisy.losses[0] - plain.losses[0], torch.full((2,), 9.0), rtol=0.1, atol=0
    )
    torch.testing.assert_close(noisy.mse, plain.mse, rtol=0.05, atol=0)


def test_what_diverges_counts_as_the_worst_fit_and_stops_early():
    args = demo.Args(seeds=2, optimizer="sgd", learning_rate=1e6)
    fits = demo.train(demo.ARCHITECTURES["relu"], args, [1, 500])
    assert fits.mse.tolist() == [[demo.DIVERGED] * 2] * 2
    assert fits.rank[1].tolist() == [0, 0]
    assert fits.losses[200:].isnan().all()


def test_the_default_demo_orders_the_shallow_networks_as_the_paper_does():
    args = demo.Args()
    cell = {
        name: demo.train(demo.ARCHITECTURES[name], args, [args.steps]).cell(-1)
        for name in ("relu", "tanh", "tanh-hr")
    }
    better_than_tanh, better_than_relu = (judge_cell(claim, cell) for claim in CLAIMS[:2])
    assert better_than_tanh.holds
    assert better_than_relu.holds
    assert better_than_relu.clear


def test_every_file_is_written_and_a_second_run_replaces_them(script, tmp_path, events):
    folder = tmp_path / "runs" / "regression_demo"
    out = script("regression_demo.py", *SMALL).stdout
    first = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert set(first) == OUTPUTS
    assert all(architecture.title in out for architecture in demo.ARCHITECTURES.values())
    assert "False" not in out  # every line of the theory holds

    (folder / "mine.txt").write_text("kept")
    script("regression_demo.py", *SMALL, "--seed", 7)
    second = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert set(second) == OUTPUTS | {"mine.txt"}
    assert second["theory.csv"] == first["theory.csv"]
    for name in ("fits.png", "fits.csv", "claims.csv", "demo.json"):
        assert second[name] != first[name]
    assert json.loads(second["demo.json"])["flags"]["seed"] == 7
    runs = {path.name: list(path.iterdir()) for path in (folder / "tensorboard").iterdir()}
    assert set(runs) == {*demo.ARCHITECTURES, "demo"}
    assert all(len(files) == 1 for files in runs.values())

    # The table, TensorBoard and a training of our own say the same.
    rows = {row["architecture"]: row for row in csv.DictReader((folder / "fits.csv").open())}
    args = demo.Args(steps=5, seeds=2, seed=7)
    for name, architecture in demo.ARCHITECTURES.items():
        fits = demo.train(architecture, args, [5])
        mse = math.sqrt(fits.mse[0].prod().item())
        assert float(rows[architecture.title]["mse"]) == pytest.approx(mse, rel=1e-5)
        log = events(folder / "tensorboard" / name)
        assert log.Scalars("fit/mse")[-1].value == pytest.approx(mse, rel=1e-5)
        assert log.Scalars("fit/mse")[-1].step == 5
        rank = log.Scalars("representation/effective_rank")[-1].value
        assert rank == pytest.approx(fits.rank[0].mean().item())
        losses = [(point.step, point.value) for point in log.Scalars("losses/mse")]
        expected = [math.sqrt(pair.prod().item()) for pair in fits.losses]
        assert [step for step, _ in losses] == [0, 1, 2, 3, 4]
        assert [value for _, value in losses] == pytest.approx(expected, rel=1e-5)
    assert set(events(folder / "tensorboard" / "demo").Tags()["images"]) == {"fits", "dying"}


def test_a_sweep_covers_its_grid_and_writes_its_files(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "STEPS", [2, 4])
    monkeypatch.setattr(demo, "LEARNING_RATES", {"adam": (1e-2,), "sgd": (1e-4, 1e9)})
    assert demo.main(demo.Args(sweep=True, seeds=2, output_dir=str(tmp_path / "out"))) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"sweep.png", "sweep_fits.csv", "sweep_claims.csv", "sweep.json", "tensorboard"}
    rows = list(csv.DictReader((tmp_path / "out" / "sweep_fits.csv").open()))
    assert len(rows) == 3 * 3 * 2 * len(demo.ARCHITECTURES)  # ranges, rates, steps
    assert all(math.isfinite(float(row["mse"])) for row in rows)
    claims = list(csv.DictReader((tmp_path / "out" / "sweep_claims.csv").open()))
    assert [row["claim"] for row in claims] == [claim.text for claim in CLAIMS]
    assert {row["settings"] for row in claims} == {"18"}

    # One cell against a demo with the same flags.
    (row,) = (
        row
        for row in rows
        if (row["x_range"], row["optimizer"], row["learning_rate"], row["steps"])
        == ("[-pi, pi]", "sgd", "0.0001", "4")
        and row["architecture"] == "Tanh (HR)"
    )
    args = demo.Args(seeds=2, x_min=-math.pi, x_max=math.pi, optimizer="sgd", learning_rate=1e-4)
    fits = demo.train(demo.ARCHITECTURES["tanh-hr"], args, [4])
    assert float(row["mse"]) == pytest.approx(math.sqrt(fits.mse[0].prod().item()), rel=1e-6)
    assert float(row["rank"]) == fits.rank[0].mean().item()
    deep = next(row for row in rows if row["architecture"] == "Tanh, 3 x 200")
    assert deep["rank"] == "nan"  # not measured, as no claim is about it
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["grid"]["steps"] == [2, 4]


def test_demo_and_sweep_share_a_folder(monkeypatch, tmp_path, events):
    monkeypatch.setattr(demo, "STEPS", [1])
    monkeypatch.setattr(demo, "RANGES", {"[0, 1]": (0.0, 1.0)})
    monkeypatch.setattr(demo, "LEARNING_RATES", {"adam": (1e-2,)})
    flags = {"seeds": 2, "output_dir": str(tmp_path)}
    for _ in range(2):
        assert demo.main(demo.Args(steps=2, **flags)) == 0
        assert demo.main(demo.Args(sweep=True, **flags)) == 0
    assert {path.name for path in tmp_path.glob("*.*")} >= OUTPUTS | {"sweep.png", "sweep.json"}
    for run, pictures in (("demo", {"fits", "dying"}), ("sweep", {"sweep"})):
        assert set(events(tmp_path / "tensorboard" / run).Tags()["images"]) == pictures


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_nothing_behind(tmp_path, number):
    command = [sys.executable, str(ROOT / "regression_demo.py"), "--steps", "1000000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, env=ENV, text=True, **pipes)
    assert process.stdout.readline().startswith("part")  # the theory; training comes next
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT)
    # Nothing has been made yet, so only Ctrl-C is caught; a shell says 128 + number of all.
    assert process.returncode == (128 + number if number == signal.SIGINT else -number)
    assert err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1"], "--seeds must be between 2 and 1000, not 1"),
        (["--seed", "-1"], "--seed must be between 0"),
        (["--x-min", "2"], r"--x-min 2.0 must be below --x-max 1.0"),
        (["--x-max", "nan"], "--x-max must be between -1000 and 1000"),
        (["--samples", "1"], "--samples must be between 2"),
        (["--samples", "1000000", "--seeds", "1000"], "--samples 1000000 needs .* GB"),
        (["--noise", "-1"], "--noise must be at least 0"),
        (["--learning-rate", "0"], "--learning-rate must be above 0"),
        (["--learning-rate", "inf"], "--learning-rate must be above 0 and below 1e18"),
        (["--steps", "0"], "--steps must be between 1"),
        (["--steps", "10000000", "--seeds", "1000"], "--steps 10000000 needs .* GB"),
        (["--output-dir", "/proc/x"], "--output-dir /proc/x: .*; choose a folder one can write to"),
        (["--output-dir", "bad\udcff"], "is no name that can be written in UTF-8"),
        (["--sweep", "true"], r"Unrecognized options: true \(--sweep and the like take no value\)"),
        (["--steps", "ten"], "--steps must be a whole number"),
        (["--optimizer", "adm"], "unknown --optimizer 'adm': choose one of adam, sgd"),
        (["--init", "zeros"], "unknown --init 'zeros': choose one of torch, orthogonal"),
        (["--output-dir", ""], "--output-dir is empty"),
        (["--output-dir", "/dev/null/x"], "--output-dir /dev/null/x: /dev/null is not a folder"),
        (["--sweep", "--steps", "10"], "--sweep sets --steps itself: leave it out"),
        (["--swep"], "did you mean --sweep"),
    ],
)
def test_bad_flags_end_in_one_line(refused, flags, message):
    refused(demo, flags, message)


def test_what_is_in_the_way_is_refused_before_anything_is_trained(refused, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    (folder / "tensorboard").write_text("")
    refused(demo, ["--output-dir", str(folder)], "tensorboard is a file and in the way: remove it")
    (folder / "tensorboard").unlink()
    (folder / "claims.csv").mkdir()
    refused(demo, ["--output-dir", str(folder)], "claims.csv is a folder and in the way: remove it")
    assert [path.name for path in folder.iterdir()] == ["claims.csv"]


def test_every_flag_of_the_grid_is_refused_beside_sweep():
    other = {"x_min": 0.0, "x_max": 2.0, "optimizer": "sgd", "learning_rate": 1.0, "steps": 9}
    assert set(other) == set(demo.SWEPT)
    for name, value in other.items():
        args = dataclasses.replace(demo.Args(sweep=True), **{name: value})
        with pytest.raises(demo.UsageError, match="--sweep sets"):
            demo.check(args)
