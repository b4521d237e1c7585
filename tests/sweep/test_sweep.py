"""A sweep: runs by name; finished ones are skipped, others gone on with, hopeless ones given up."""

import dataclasses
import json
import os
import signal
import time
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
from algorithms import parse
from conftest import TIMEOUT
from interruptions import differences, run_through, start_script

import lab.sweep.__main__ as sweep
from lab.common.cli import UsageError, parse_flags
from lab.common.variants import variant_name
from lab.sweep import pool as pool_room
from lab.sweep.flags import Args
from lab.sweep.plan import plan_runs
from lab.training.checkpoint import FORMAT, Checkpoints, Footer
from lab.training.runfolder import RunOnDisk, lock, select_checkpoint_flags
from lab.training.signals import CAN_RESUME

TINY = ("--num-envs", "4", "--num-steps", "16", "--num-minibatches", "4")
TINY += ("--metrics-samples", "512", "--device", "cpu", "--checkpoint-every", "0")


def plan(algorithms, variants, games, seeds, *flags, **more):
    return plan_runs(Args(algorithms, variants, games, seeds, flags=flags, **more))


def test_a_plan_has_every_combination_once():
    runs = plan(("pqn", "dqn"), ("relu", "tanh-match"), ("Breakout", "pong", "breakout"), (1, 2))
    names = {(run.algorithm, run.variant, run.game, run.seed) for run in runs}
    assert len(runs) == len(names) == 2 * 2 * 2 * 2
    assert ("dqn", "relu", "Pong", 2) in names
    for run in runs:
        assert (run.args.env_id, run.args.seed) == (run.game, run.seed)
        assert variant_name(run.args) == run.variant
    assert [run.seed for run in runs] == [1] * 8 + [2] * 8  # one seed of everything first


def test_runs_that_differ_in_a_flag_have_logs_of_their_own():
    """Else one of two sweeps at once would wait for runs that are not its own."""

    def name_log(*flags, runs_dir="runs"):
        return plan(("ppo",), ("tanh",), ("Pong",), (1,), *flags, runs_dir=runs_dir)[0].log_name

    names = {name_log(), name_log("--gamma", "0.9"), name_log("--total-timesteps", "4096")}
    assert len(names) == 3
    assert name_log() == name_log("--checkpoint-every", "1", runs_dir="elsewhere")


def test_a_folder_may_begin_like_a_flag(tmp_path, monkeypatch):
    """For the runs of a pool, and for the job of a cluster, which is a sweep of one run."""
    monkeypatch.chdir(tmp_path)
    (run,) = plan(("ppo",), ("relu",), ("Pong",), (1,), runs_dir="-x")
    again = parse("ppo", *run.command()[1:])
    assert (again.runs_dir, again.resume) == ("-x", "auto")
    flags = sweep.build_single_run_flags(run, Args(runs_dir="-x"))
    assert parse_flags(Args, argv=list(flags)).runs_dir == "-x"


def test_on_another_machine_there_may_be_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda: this machine has no CUDA device"):
        plan(("ppo",), ("tanh",), ("Pong",), (1,), "--device", "cuda")
    (run,) = plan(("ppo",), ("tanh",), ("Pong",), (1,), "--device", "cuda", slurm=True)
    assert run.args.device == "cuda"
    with pytest.raises(UsageError, match="unknown --device 'gpu'"):
        plan(("ppo",), ("tanh",), ("Pong",), (1,), "--device", "gpu", slurm=True)


def test_flags_of_one_algorithm_reach_that_one_alone():
    more = ("--gamma", "0.9", "dqn:", "--buffer-size", "5000", "pqn:", "--num-envs", "16")
    runs = plan(("dqn", "ppo", "pqn"), ("tanh",), ("Pong",), (1,), *more)
    args = {run.algorithm: run.args for run in runs}
    assert {name: found.gamma for name, found in args.items()} == dict.fromkeys(args, 0.9)
    assert args["dqn"].buffer_size == 5000
    assert {name: found.num_envs for name, found in args.items()} == {"dqn": 4, "ppo": 8, "pqn": 16}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algorithms", "a2c"], "unknown algorithm 'a2c': choose of dqn, ppo, pqn"),
        (["--variants", "tanh-xr"], "unknown variant 'tanh-xr': choose one of relu, tanh, "),
        (["--variants", "tanh-ln"], "pqn calls 'tanh-ln' 'tanh': name that one in --variants"),
        (["--variants", "tanh-hr-match"], "dqn: --width match makes .*: it needs --branches 1"),
        (["--variants", "tanh-w1"], "dqn calls 'tanh-w1' 'tanh': name that one in --variants"),
        (["--variants", "tanh-w0"], "dqn: --width must be above 0, not 0"),
        (["--games", "Tetriss"], "Tetriss"),
        (["--seeds", "one"], "--seeds must be a whole number, such as 1000, not 'one'"),
        (["--seeds"], "--seeds"),
        (["--jobs", "-1"], "--jobs must be at least 0, not -1"),
        (["--stalled-after", "0"], "--stalled-after must be above 0"),
        (["--runs-dir", "/dev/null/x"], "--runs-dir"),
        (["--", "--seed", "7"], "--seed belongs to the sweep itself"),
        (["--", "--resume", "auto"], "--resume belongs to the sweep itself"),
        (["--", "--activation", "relu"], "dqn calls 'tanh' 'relu' with --activation relu"),
        (["--", "--gamma", "2"], "dqn: --gamma must be between 0 and 1, not 2"),
        (["--", "--gama", "0.9"], "did you mean --gamma"),
        (
            ["--", "a2c:", "--gamma", "0.9"],
            "a2c: begins flags of an algorithm that is not run here: dqn:, ppo:",
        ),
        (
            ["--algorithms", "ppo", "--", "dqn:", "--x"],
            "dqn: begins flags of an algorithm that is not",
        ),
        (["--", "ppo:", "--buffer-size", "9"], "ppo: Unrecognized .*--buffer-size"),
        (["--", "pqn:", "--seed", "7"], "--seed belongs to the sweep itself"),
        (["--algorithms", "pqn", "--", "--buffer-size", "9"], "pqn: Unrecognized .*--buffer-size"),
        (["--gamma", "0.9"], "--gamma, 0.9 .a flag of the runs: it follows --, as in -- --gamma"),
        (["--no-anneal-lr"], "it follows --, as in -- --no-anneal-lr"),
        (["--jobbs", "2"], "did you mean --jobs"),
        (["--no-cuda"], "here it is --device cpu"),
        (["--", "--no-cuda"], "here it is --device cpu"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(flags, message, refused):
    refused(sweep, flags, message)


def test_a_dry_run_says_what_would_be_run_and_makes_nothing(script, tmp_path):
    flags = ("--algorithms", "pqn", "ppo", "--variants", "relu", "--seeds", 3, 4, "--dry-run")
    done = script("lab.sweep", *flags, "--", "--total-timesteps", 4096)
    assert list(tmp_path.iterdir()) == []
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all("--activation relu" in line and "4096" in line for line in lines[:4])
    assert lines[4] == "4 runs, 16,384 agent steps in all"
    assert lines[5] == "nothing is known of pqn relu, ppo relu: no such run is in runs yet"


def flags_of(seeds, total, jobs=2):
    named = ("--algorithms", "ppo", "--variants", "tanh-hr-z32", "--seeds", *map(str, seeds))
    return (*named, "--jobs", jobs, "--", "--total-timesteps", total, *TINY)


def folders(tmp_path):
    return sorted(path.parent for path in (tmp_path / "runs").glob("*/config.json"))


def files(tmp_path):
    return {
        path: path.stat().st_mtime_ns
        for folder in folders(tmp_path)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.long
def test_a_sweep_that_is_stopped_goes_on_and_its_runs_are_those_without_a_break(tmp_path):
    """Three real runs are stopped; the same command finishes two of them and leaves them alone from
    then on. The third, of which no checkpoint is whole any more, is given up after three tries."""
    total = 1280
    process = start_script("lab.sweep", flags_of((1, 2, 3), total, 3), tmp_path)
    while sum((folder / "previous.pt").exists() for folder in folders(tmp_path)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == CAN_RESUME, err
    assert out.startswith(f"3 runs, {3 * total:,} agent steps in all\n")
    assert "stopped; the same command goes on" in out
    first, second, third = folders(tmp_path)
    assert "__s3__" in third.name
    for path in (third / "checkpoint.pt", third / "previous.pt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    before = {path: path.read_bytes() for path in third.iterdir() if path.is_file()}
    out, err = start_script("lab.sweep", flags_of((1, 2, 3), total, 3), tmp_path).communicate(
        timeout=TIMEOUT
    )
    assert "3 runs: 2 done, 1 given up" in out, err
    assert "3 times without getting further: given up, see runs/logs/Breakout__ppo__" in out
    assert "no whole checkpoint" in out
    assert {path: path.read_bytes() for path in third.iterdir() if path.is_file()} == before
    assert folders(tmp_path) == [first, second, third]
    (log,) = (tmp_path / "runs" / "logs").glob("Breakout__ppo__tanh-hr-z32__s1__*.log")
    assert f"done: {total:,} agent steps" in log.read_text()

    (tmp_path / "alone").mkdir()
    own = ("--seed", 1, "--total-timesteps", total, *TINY, "--latent-dim", 32)
    whole = run_through("ppo", own, tmp_path / "alone")
    assert differences(whole, first) == []

    before = files(tmp_path)
    process = start_script("lab.sweep", flags_of((1, 2), total), tmp_path)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert out.startswith("2 runs: 2 done")  # nothing of what they would take
    assert files(tmp_path) == before


class Stub:
    """A planned run whose process is a few lines of Python."""

    flags = ()
    args = types.SimpleNamespace(env_threads=1)

    def __init__(self, code, tmp_path, name="stub"):
        self.code, self.name, self.folder = code, name, tmp_path / name
        self.folder.mkdir()
        self.path = tmp_path / f"{name}.py"
        self.path.write_text(
            f"import pathlib, sys, time\nhere = pathlib.Path({str(self.folder)!r})\n{code}"
        )

    def command(self, *more):
        return [str(self.path), *more]

    def pick(self):
        step = len(list(self.folder.glob("step*")))
        return RunOnDisk("now", self.folder, Footer(FORMAT, step, 0)) if step else None

    def runs(self):
        return [self.pick()] if self.pick() else []

    def has_finished(self):
        return (self.folder / "done").exists()


def run_stubs(monkeypatch, tmp_path, *stubs, at_once=2):
    monkeypatch.setattr(pool_room, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(
        RunOnDisk, "has_finished", lambda self, args: (self.folder / "done").exists()
    )
    jobs = [pool_room.Job(stub, tmp_path / f"{stub.name}.log") for stub in stubs]
    pool = pool_room.Pool(jobs, at_once, [], 30.0)
    return pool, jobs


def test_a_run_that_crashes_is_tried_three_times_and_the_others_go_on(monkeypatch, tmp_path, capfd):
    good = Stub("(here / 'done').touch()", tmp_path, "good")
    crashing = Stub(
        "(here / f'try{time.time_ns()}').touch(); sys.exit('it broke')", tmp_path, "bad"
    )
    pool, jobs = run_stubs(monkeypatch, tmp_path, crashing, good, at_once=1)
    assert pool.run() == pool_room.GIVEN_UP
    assert [job.state for job in jobs] == ["given up", "done"]
    assert len(list(crashing.folder.glob("try*"))) == 3
    out = capfd.readouterr().out
    assert "it broke" in out
    assert "2 runs: 1 done, 1 given up" in out


@pytest.mark.parametrize(
    ("code", "how"),
    [
        # A signal without a name, and a child that is left behind and has the log open.
        ("import os; os.kill(os.getpid(), 40)", f"ended: {signal.strsignal(40)}, 3 times"),
        (
            "import subprocess; subprocess.Popen(['sleep', '300']); sys.exit(3)",
            "ended: status 3, 3 times",
        ),
    ],
)
def test_a_run_that_ends_strangely_is_tried_again(code, how, monkeypatch, tmp_path, capfd):
    pool, _ = run_stubs(monkeypatch, tmp_path, Stub(code, tmp_path))
    pool.patience = 60  # seconds, for what holds a log
    assert pool.run() == pool_room.GIVEN_UP
    out = capfd.readouterr().out
    assert how in out
    assert "is left to that process" not in out


@pytest.mark.parametrize(
    ("log", "what"),
    [
        ("/dev/full", "No space left on device"),
        ("no/such/folder/log", "No such file or directory"),
        ("pipe", "No such device or address"),
        ("link", "Too many levels of symbolic links"),
    ],
)
def test_a_run_whose_log_cannot_be_written_is_given_up_alone(
    log, what, monkeypatch, tmp_path, capfd
):
    """A full disk is a failed try of that run, and so is a log that is a pipe or a link."""
    if log == "pipe":
        os.mkfifo(log := str(tmp_path / log))
    elif log == "link":
        (tmp_path / "precious").write_text("mine")
        (tmp_path / log).symlink_to(tmp_path / "precious")
        log = str(tmp_path / log)
    good = Stub("(here / 'done').touch()", tmp_path, "good")
    unlucky = Stub("sys.exit('started')", tmp_path, "unlucky")
    pool, jobs = run_stubs(monkeypatch, tmp_path, unlucky, good, at_once=1)
    jobs[0].log = Path(log)
    assert pool.run() == pool_room.GIVEN_UP
    assert [job.state for job in jobs] == ["given up", "done"]
    said = capfd.readouterr().out
    assert said.count(f"unlucky cannot be started: {what}") == pool_room.TRIES
    assert f"3 times without getting further: given up, see {log}" in said
    assert not log.endswith("link") or (tmp_path / "precious").read_text() == "mine"


def test_a_run_that_gets_further_each_time_is_not_given_up(monkeypatch, tmp_path):
    """It crashes ten times, each time after another checkpoint."""
    code = """
count = len(list(here.glob("step*")))
(here / f"step{count}").touch()
(here / "done").touch() if count == 9 else sys.exit(1)
"""
    pool, (job,) = run_stubs(monkeypatch, tmp_path, Stub(code, tmp_path))
    assert pool.run() == 0
    assert job.state == "done"


def test_a_run_that_is_silent_is_killed_and_tried_again(monkeypatch, tmp_path, capfd):
    code = """
if (here / "hung").exists():
    (here / "done").touch()
else:
    (here / "hung").touch()
    time.sleep(1000)
"""
    stub = Stub(code, tmp_path)
    pool, (job,) = run_stubs(monkeypatch, tmp_path, stub)
    monkeypatch.setattr(
        pool_room.Job,
        "silent_for",
        lambda self, now: 1801.0 if (stub.folder / "hung").exists() and job.tries == 0 else 0.0,
    )
    assert pool.run() == 0
    assert "silent for 30 minutes, killed" in capfd.readouterr().out
    assert job.tries == 1


def test_silence_is_counted_from_the_start_and_from_the_last_word(tmp_path):
    job = pool_room.Job(None, tmp_path / "log")
    job.heard = (-1, 900.0)
    job.log.write_text("earlier\nlast\n\n")
    assert job.silent_for(1000.0) == 0
    assert job.silent_for(1030.0) == 30
    job.log.write_text("earlier\nlast\nmore\n")
    assert job.silent_for(1030.0) == 0
    assert job.last_line() == "more"
    job.log.unlink()
    assert job.silent_for(2000.0) == 0  # nobody knows


def test_a_run_of_another_process_is_waited_for(monkeypatch, tmp_path, capfd):
    """Not started a second time; it counts once it has finished."""
    stub = Stub("sys.exit('started twice')", tmp_path)
    (stub.folder / "step0").touch()
    pool, (job,) = run_stubs(monkeypatch, tmp_path, stub)
    held = lock(stub.folder)
    looks = Counter()

    def look():
        looks["count"] += 1
        if looks["count"] == 3:
            assert job.state == "elsewhere"
            (stub.folder / "done").touch()
            held.close()

    pool.wait = look
    assert pool.run() == 0
    assert job.state == "done"
    assert "is under way in another process" in capfd.readouterr().out


def test_a_job_of_a_cluster_waits_for_another_process_only_so_long(monkeypatch, tmp_path, capfd):
    stub = Stub("sys.exit('started twice')", tmp_path)
    (stub.folder / "step0").touch()
    pool, (job,) = run_stubs(monkeypatch, tmp_path, stub)
    pool.patience = 0
    with lock(stub.folder):
        assert pool.run() == pool_room.GIVEN_UP
    assert job.state == "given up"
    assert "is left to that process, or to the next sweep" in capfd.readouterr().out


def test_the_table_is_cleared_from_its_first_column(capfd):
    """Ctrl-C shows as ^C on a terminal: behind it two characters of the table would stay."""
    table = pool_room.Table()
    table.lines = 3
    table.event("stopping 1 run")
    assert capfd.readouterr().out == "\r\x1b[3A\x1b[Jstopping 1 run\n"


def test_every_gpu_gets_its_share(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pool_room.list_gpus() == ["1", "GPU-5"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pool_room.list_gpus() == []
    code = (
        "import os; (here / os.environ['CUDA_VISIBLE_DEVICES']).touch(); (here / 'done').touch()\n"
    )
    stubs = [Stub(code, tmp_path, f"s{i}") for i in range(4)]
    _, jobs = run_stubs(monkeypatch, tmp_path, *stubs)
    pool = pool_room.Pool(jobs, 4, ["1", "GPU-5"], 30.0)
    assert pool.run() == 0
    used = Counter(name for stub in stubs for name in os.listdir(stub.folder) if name != "done")
    assert used == {"1": 2, "GPU-5": 2}


def test_every_run_gets_its_share_of_the_cores(monkeypatch, tmp_path):
    """7 cores, 2 runs at a time: 3 threads of torch and of the emulator, unless they are given."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool_room, "count_cores", lambda: 7)
    code = (
        "import os; told = [os.environ['OMP_NUM_THREADS'], *sys.argv[1:]]\n"
        "(here / 'told').write_text(' '.join(told)); (here / 'done').touch()"
    )
    own, given = Stub(code, tmp_path, "own"), Stub(code, tmp_path, "given")
    own.args = types.SimpleNamespace(env_threads=0)
    pool, _ = run_stubs(monkeypatch, tmp_path, own, given)
    assert pool.run() == 0
    assert (own.folder / "told").read_text() == "3 --env-threads 3"
    assert (given.folder / "told").read_text() == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = Stub(code, tmp_path, "asked")
    pool, _ = run_stubs(monkeypatch, tmp_path, asked)
    assert pool.run() == 0
    assert (asked.folder / "told").read_text() == "1"


def test_a_tag_is_a_run_of_its_own(tmp_path, monkeypatch, in_process):
    """By its name, its log, and what a sweep and a resume look for."""
    monkeypatch.chdir(tmp_path)
    named = (("ppo",), ("relu-z32",), ("Pong",), (1,), *TINY, "--total-timesteps", "64")
    (plain,), (tagged,) = plan(*named), plan(*named, "--tag", "mine")
    assert (plain.name, tagged.name) == ("Pong__ppo__relu-z32__s1", "Pong__ppo__relu-z32__mine__s1")
    in_process("ppo_atari", *tagged.command()[1:])
    assert tagged.pick().folder.name.startswith("Pong__ppo__relu-z32__mine__s1__")
    assert tagged.has_finished()
    assert plain.pick() is None
    again = ("--resume", str(tagged.pick().folder), "--total-timesteps", "128")
    done = in_process("ppo_atari", *again, "--tag", "other", check=False)
    assert "--tag other contradicts the run in" in done.stderr
    assert "done: 128 agent steps" in in_process("ppo_atari", *again).stdout


def test_finished_runs_are_found_whatever_the_threads(tmp_path, monkeypatch):
    """The number of the emulator's threads decides nothing; every other flag does."""
    monkeypatch.chdir(tmp_path)
    (wanted,) = plan(("ppo",), ("relu",), ("pong",), (5,), "--total-timesteps", "2048")
    assert wanted.pick() is None
    folder = tmp_path / "runs" / "any-name"
    folder.mkdir(parents=True)
    flags = dataclasses.asdict(wanted.args) | {"env_threads": 7}
    config = {"algorithm": "ppo", "flags": flags, "started": "2026"}
    (folder / "config.json").write_text(json.dumps(config))
    Checkpoints(folder, select_checkpoint_flags(flags)).save(2048, {})
    assert wanted.has_finished()
    config["flags"] = flags | {"gamma": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    os.utime(folder / "config.json", ns=(1, 1))
    assert not wanted.has_finished()


def test_a_finished_run_is_not_made_again_for_want_of_its_checkpoints(
    tmp_path, monkeypatch, in_process
):
    """Which may be taken away when it has ended, as they are large."""
    monkeypatch.chdir(tmp_path)
    named = (("ppo",), ("tanh",), ("Pong",), (1,))
    (wanted,) = plan(*named, *TINY, "--total-timesteps", "64")
    in_process("ppo_atari", *wanted.command()[1:])
    folder = wanted.pick().folder
    for name in ("checkpoint.pt", "previous.pt"):
        (folder / name).unlink(missing_ok=True)
    assert wanted.has_finished()
    gone = in_process("ppo_atari", "--resume", str(folder), check=False)
    assert gone.returncode == 2
    assert "it has finished (64 agent steps), and the checkpoints are gone" in gone.stderr
    # As one that is made longer and has not come to its end.
    (longer,) = plan(*named, *TINY, "--total-timesteps", "128")
    config = json.loads((folder / "config.json").read_text())
    config["flags"]["total_timesteps"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    os.utime(folder / "config.json", ns=(1, 1))
    assert [run.folder for run in longer.runs()] == [folder]
    assert not longer.has_finished()
