"""The regression demo: its networks, training all seeds at once, and what it leaves on disk."""

import csv
import dataclasses
import json
import math
import shutil
import signal

import pytest
from conftest import TIMEOUT
from interruptions import start_script

import regression_demo as demo
from lab.regression import fitting
from lab.regression.claims import CLAIMS
from lab.regression.theory import Check, check_all

SMALL = ("--steps", 5, "--seeds", 2)
OUTPUTS = {"fits.png", "dying.png", "fits.csv", "claims.csv", "theory.csv", "demo.json"}
SWEEP_OUTPUTS = {"sweep.png", "sweep_fits.csv", "sweep_claims.csv", "sweep.json"}


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """A real run through the command line: the folder that it was called in, what it printed."""
    cwd = tmp_path_factory.mktemp("demo")
    process = start_script("regression_demo.py", (*SMALL, "--seed", 7), cwd)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return cwd, out


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_every_file_is_written(demo_run):
    cwd, out = demo_run
    folder = cwd / "regression_demo"
    assert set(files_in(folder)) == OUTPUTS
    assert json.loads((folder / "demo.json").read_text())["flags"]["seed"] == 7
    assert all(architecture.title in out for architecture in fitting.ARCHITECTURES.values())
    assert "False" not in out  # every line of the theory holds
    assert out.rstrip().endswith(f"all {out.count('  True')} predictions of the theory held")


def test_table_and_curves_are_those_of_a_training_of_our_own(demo_run, events):
    folder = demo_run[0] / "regression_demo"
    rows = {row["architecture"]: row for row in csv.DictReader((folder / "fits.csv").open())}
    args = demo.Args(steps=5, seeds=2, seed=7)
    for name, architecture in fitting.ARCHITECTURES.items():
        fits = fitting.train(architecture, args, [5])
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


def test_demo_and_sweep_share_a_folder_and_replace_their_own(
    demo_run, launched, tmp_path, monkeypatch, events
):
    """A sweep beside a demo, another demo, another sweep: each leaves alone what is not its own."""
    monkeypatch.setattr(demo, "STEPS", [1])
    monkeypatch.setattr(demo, "RANGES", {"[0, 1]": (0.0, 1.0)})
    monkeypatch.setattr(demo, "LEARNING_RATES", {"adam": (1e-2,)})
    shutil.copytree(demo_run[0] / "regression_demo", tmp_path / "regression_demo")
    folder = tmp_path / "regression_demo"
    (folder / "mine.txt").write_text("kept")
    first = files_in(folder)

    sweep = ["--sweep", "--seeds", 2]
    assert launched(demo, sweep).returncode == 0
    both = files_in(folder)
    assert set(both) == set(first) | SWEEP_OUTPUTS
    assert {name: both[name] for name in first} == first

    assert launched(demo, [*SMALL, "--seed", 8]).returncode == 0
    second = files_in(folder)
    assert set(second) == set(both)
    for name in ("theory.csv", "mine.txt", *SWEEP_OUTPUTS):
        assert second[name] == both[name]
    for name in ("fits.png", "fits.csv", "claims.csv", "demo.json"):
        assert second[name] != first[name]
    assert json.loads(second["demo.json"])["flags"]["seed"] == 8

    assert launched(demo, [*sweep, "--seed", 9]).returncode == 0
    third = files_in(folder)
    assert {name: third[name] for name in OUTPUTS} == {name: second[name] for name in OUTPUTS}
    assert third["sweep_fits.csv"] != second["sweep_fits.csv"]
    runs = {path.name: list(path.iterdir()) for path in (folder / "tensorboard").iterdir()}
    assert set(runs) == {*fitting.ARCHITECTURES, "demo", "sweep"}
    assert all(len(files) == 1 for files in runs.values())
    for run, pictures in (("demo", {"fits", "dying"}), ("sweep", {"sweep"})):
        assert set(events(folder / "tensorboard" / run).Tags()["images"]) == pictures


def test_a_sweep_covers_its_grid_and_writes_its_files(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "STEPS", [2, 4])
    monkeypatch.setattr(demo, "LEARNING_RATES", {"adam": (1e-2,), "sgd": (1e-4, 1e9)})
    assert demo.main(demo.Args(sweep=True, seeds=2, output_dir=str(tmp_path / "out"))) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == SWEEP_OUTPUTS | {"tensorboard"}
    rows = list(csv.DictReader((tmp_path / "out" / "sweep_fits.csv").open()))
    assert len(rows) == 3 * 3 * 2 * len(fitting.ARCHITECTURES)  # ranges, rates, steps
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
    fits = fitting.train(fitting.ARCHITECTURES["tanh-hr"], args, [4])
    assert float(row["mse"]) == pytest.approx(math.sqrt(fits.mse[0].prod().item()), rel=1e-6)
    assert float(row["rank"]) == fits.rank[0].mean().item()
    deep = next(row for row in rows if row["architecture"] == "Tanh, 3 x 200")
    assert deep["rank"] == "nan"  # not measured, as no claim is about it
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["grid"]["steps"] == [2, 4]


def test_a_signal_ends_it_and_leaves_nothing_behind(tmp_path):
    processes = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        (tmp_path / number.name).mkdir()
        flags = ("--steps", 1_000_000)
        processes[number] = start_script("regression_demo.py", flags, tmp_path / number.name)
    for number, process in processes.items():
        assert process.stdout.readline().startswith("part")  # the theory; training comes next
        process.send_signal(number)
    for number, process in processes.items():
        _, err = process.communicate(timeout=TIMEOUT)
        # Nothing has been made yet, so only Ctrl-C is caught; a shell says 128 + number of all.
        assert process.returncode == (128 + number if number == signal.SIGINT else -number)
        assert err == ""
        assert list((tmp_path / number.name).iterdir()) == []


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
        (["--output-dir", "bad\udcff"], "has no UTF-8 in it: choose a name that can be printed"),
        (["--sweep", "true"], r"Unrecognized options: true \(--sweep and the like take no value\)"),
        (["--steps", "ten"], "--steps must be a whole number"),
        (["--optimizer", "adm"], "unknown --optimizer 'adm': choose one of adam, sgd"),
        (["--init", "zeros"], "unknown --init 'zeros': choose one of torch, orthogonal"),
        (["--output-dir", ""], "--output-dir is empty"),
        (
            ["--output-dir", "/dev/null/x"],
            "--output-dir /dev/null/x: Not a directory; choose a folder",
        ),
        (["--sweep", "--steps", "10"], "--sweep sets --steps itself: leave it out"),
        (["--swep"], "did you mean --sweep"),
    ],
)
def test_bad_flags_end_in_one_line(refused, flags, message):
    refused(demo, flags, message)


def test_what_is_in_the_way_is_refused_before_anything_is_trained(refused, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    (folder / "demo.json").write_text("")  # of an earlier demo
    (folder / "tensorboard").write_text("")
    refused(demo, ["--output-dir", str(folder)], "tensorboard is a file and in the way: remove it")
    (folder / "tensorboard").unlink()
    (folder / "claims.csv").mkdir()
    refused(demo, ["--output-dir", str(folder)], "claims.csv is a folder and in the way: remove it")
    assert {path.name for path in folder.iterdir()} == {"claims.csv", "demo.json"}


def test_every_flag_of_the_grid_is_refused_beside_sweep():
    other = {"x_min": 0.0, "x_max": 2.0, "optimizer": "sgd", "learning_rate": 1.0, "steps": 9}
    assert set(other) == set(demo.SWEPT)
    for name, value in other.items():
        args = dataclasses.replace(demo.Args(sweep=True), **{name: value})
        with pytest.raises(demo.UsageError, match="--sweep sets"):
            demo.check(args)


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path, refused):
    """Its files may be called like ours."""
    with_files = tmp_path.parent / f"{tmp_path.name}-theirs"
    with_files.mkdir()
    (with_files / "claims.csv").write_text("mine")
    message = "is not empty and holds no earlier result: name a new folder"
    refused(demo, ["--steps", "1", "--output-dir", str(with_files)], message)
    assert [path.read_text() for path in with_files.iterdir()] == ["mine"]


def test_a_prediction_that_does_not_hold_is_told_at_the_end(capsys):
    lines = [check_all()[0], Check("Theorem 4.1", "tanh", "outputs", 1.0, 2.0, 0.5)]
    rows = [line._asdict() | {"holds": line.holds} for line in lines]
    assert demo.report_theory(rows) == 1
    said = capsys.readouterr().out
    assert said == "1 of 2 predictions did not hold: Theorem 4.1, tanh: outputs\n"
