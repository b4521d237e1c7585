"""A run that was interrupted and resumed is the run that was not, bit for bit."""

import collections
import dataclasses
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from algorithms import PLAIN, SCRIPTS, SHORT, parse
from conftest import ENV, ROOT, TIMEOUT
from interruptions import differences, run_through, run_with_breaks, start

import dqn_atari
import ppo_atari
import pqn_atari
from dqn_atari import Args
from hadamard import ACTIVATIONS
from lab.common.cli import UsageError, parse_flags
from lab.common.variants import variant_flags, variant_name
from lab.report.runs import read_run
from lab.training import replay, resume
from lab.training.atari import AtariEnvs
from lab.training.checkpoint import FORMAT, Checkpoints, Footer, read_newest_footer, read_state
from lab.training.resume import add_resumption, find_unfinished, resolve_resume
from lab.training.run import launch
from lab.training.runfolder import describe, lock, select_checkpoint_flags
from lab.training.signals import CAN_RESUME

# As small as a run that learns, measures, wraps its memory and loses lives can be.
SMALL = ("--latent-dim", 32, "--metrics-samples", 512, "--env-threads", 1)
SMALL += ("--metrics-every", 500, "--checkpoint-every", 0.02)
ROLLOUTS = ("--total-timesteps", 1024, "--num-steps", 32, "--num-minibatches", 4)
ROLLOUTS += ("--update-epochs", 1)
RUNS = {
    "dqn": (
        *("--total-timesteps", 1200, "--learning-starts", 800, "--buffer-size", 1000),
        *("--target-network-frequency", 200, "--sticky-actions", 0.25, "--env-id", "SpaceInvaders"),
    ),
    "ppo": (*ROLLOUTS, "--num-envs", 4, "--precision", "bf16"),
    "pqn": (*ROLLOUTS, "--num-envs", 8, "--sticky-actions", 0.25),
}
MEMORY = {"dqn": {"buffer_size": 1000, "num_envs": 4}, "ppo": {}, "pqn": {}}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run without a break, by algorithm."""
    folders = {}

    def get(algorithm):
        if algorithm not in folders:
            cwd = tmp_path_factory.mktemp(algorithm)
            folders[algorithm] = run_through(algorithm, (*RUNS[algorithm], *SMALL), cwd)
        return folders[algorithm]

    return get


@pytest.mark.parametrize(
    ("algorithm", "number", "more"),
    # A kill in the middle of a checkpoint once, where there is most to write; `make soak` has all.
    [
        ("dqn", "SIGTERM", ["writing"]),
        ("ppo", "SIGUSR1", []),
        pytest.param("pqn", "SIGINT", [], marks=pytest.mark.long),
    ],
)
def test_interrupted_runs_are_the_uninterrupted_run(
    algorithm, number, more, uninterrupted, tmp_path
):
    breaks = (signal.Signals[number], *more)
    flags = (*RUNS[algorithm], *SMALL)
    folder, counts = run_with_breaks(algorithm, flags, tmp_path, breaks, 1, 0.5, damage=True)
    assert counts[number] == 1
    assert differences(uninterrupted(algorithm), folder, **MEMORY[algorithm]) == []


def wait_for(process, text):
    """The first line on stderr that holds this text."""
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}")


def test_a_full_disk_and_a_vanished_folder_cost_nothing(uninterrupted, tmp_path, events):
    # Checkpoints every 0.2 s: of those there are many in this run, on any machine.
    process = start("dqn", (*RUNS["dqn"], *SMALL, "--checkpoint-every", 0.003), tmp_path)
    process.stdout.readline()
    (folder,) = (tmp_path / "runs").iterdir()
    while not (folder / "previous.pt").exists():
        assert process.poll() is None
    limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, limits[1]))
    line = wait_for(process, "warning: ")
    assert "File too large" in line
    assert "training goes on, writing is tried again" in line
    assert Checkpoints(folder).load(dqn_atari.ReplayBuffer(1000, 4))[1] == []  # whole as it was
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)

    process.send_signal(signal.SIGSTOP)  # it waits until we are done
    second = start("dqn", ("--resume", folder), tmp_path)
    _, err = second.communicate(timeout=TIMEOUT)
    assert second.returncode == 2
    assert "is in use by another process: wait for it to end, or stop it" in err

    folder.rename(tmp_path / "elsewhere")
    process.send_signal(signal.SIGCONT)
    wait_for(process, "No such file or directory; training goes on")
    (tmp_path / "elsewhere").rename(folder)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert differences(uninterrupted("dqn"), folder, **MEMORY["dqn"]) == []
    texts = events(folder).Tensors("warnings/text_summary")
    said = " ".join(text.tensor_proto.string_val[0].decode() for text in texts)
    assert "File too large" in said
    assert "No such file or directory" in said


def test_a_finished_run_says_so_and_goes_on_when_there_is_more_to_do(
    uninterrupted, in_process, tmp_path
):
    folder = tmp_path / "runs" / "copy"
    shutil.copytree(uninterrupted("ppo"), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = in_process("ppo_atari.py", "--resume", folder)
    assert "has finished: 1,024 agent steps" in done.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    done = in_process("ppo_atari.py", "--resume", folder, "--total-timesteps", 1152)
    assert "resumed at 1,024 agent steps" in done.stdout
    assert "done: 1,152 agent steps" in done.stdout
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["total_timesteps"] == 1152
    assert config["finished"] == 1152
    assert config["resumed"][0]["step"] == 1024
    assert read_state(folder / "checkpoint.pt")["state"]["step"] == 1152


def test_a_diverged_run_leaves_a_report_and_its_good_checkpoint(in_process, only_run):
    flags = ("--learning-rate", 1e17, "--num-envs", 4, *ROLLOUTS, *SMALL)
    done = in_process("ppo_atari.py", *flags, check=False)
    assert done.returncode == 2
    assert "ppo_atari.py: error: the run has diverged: at 128 agent steps " in done.stderr
    folder = only_run()
    report = json.loads((folder / "diverged.json").read_text())
    assert report["step"] == 128
    assert "losses/value_loss" in report["last_values"]
    assert "latent.weight" in report["weights"]
    assert not all(math.isfinite(v) for v in report["last_values"].values()) or any(
        weight["not_finite"] for weight in report["weights"].values()
    )
    saved = Checkpoints(folder).load()[0]
    assert saved["step"] < 128
    assert all(weight.isfinite().all() for weight in saved["network"].values())


def test_a_stop_while_games_come_back_leaves_all_as_it_was(tmp_path, in_process, only_run):
    """The emulator's call, which can take long, is not waited for: nothing is to be saved."""
    flags = ["--num-envs", 8, "--num-steps", 16, "--num-minibatches", 4, "--latent-dim", 16]
    flags += ["--total-timesteps", 128, "--metrics-samples", 512, "--update-epochs", 1]
    in_process("pqn_atari.py", *flags)
    folder = only_run()
    files = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    process = start("pqn", ["--resume", folder, "--total-timesteps", 256], tmp_path)
    while "restoring" not in (line := process.stdout.readline()) and line:
        pass
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == CAN_RESUME
    assert "SIGTERM" in err
    assert "resumed at" not in out
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files


@pytest.mark.parametrize("algorithm", ["ppo", "pqn"])
@pytest.mark.parametrize("stop_at", ["play", 5, 7, 12])
def test_a_stop_waits_for_the_rollout_and_its_update(algorithm, stop_at, tmp_path, monkeypatch):
    """In the second rollout, in the second of three updates of four minibatches, at its start, and
    in the last one, with which the run has finished: it is the run without a break."""
    script = {"ppo": ppo_atari, "pqn": pqn_atari}[algorithm]
    small = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2}
    small |= {"latent_dim": 8, "device": "cpu", "metrics_every": 10, "metrics_samples": 512}
    args = script.Args(**small, total_timesteps=2 * 8 * 2 + 5)
    seen = collections.Counter()

    def interrupting(what, call, at):
        def called(*arguments):
            seen[what] += 1
            if seen[what] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return call(*arguments)

        return called

    assert script.main(dataclasses.replace(args, runs_dir=str(tmp_path / "whole"))) == 0
    if stop_at == "play":
        recv = interrupting("play", script.AtariEnvs.recv, 12)
        monkeypatch.setattr(script.AtariEnvs, "recv", recv)
    else:
        take_steps = interrupting("update", script.take_steps, stop_at)
        monkeypatch.setattr(script, "take_steps", take_steps)
    status = script.main(dataclasses.replace(args, runs_dir=str(tmp_path / "broken")))
    (whole,), (broken,) = (list((tmp_path / name).iterdir()) for name in ("whole", "broken"))
    assert status == (0 if stop_at == 12 else CAN_RESUME)
    assert read_newest_footer(broken).step == (48 if stop_at == 12 else 32)
    monkeypatch.setattr(sys, "argv", [f"{algorithm}_atari.py", "--resume", str(broken)])
    with pytest.raises(SystemExit) as exit_:
        launch(script.main, script.Args, script.check, algorithm)
    assert exit_.value.code == 0
    assert differences(whole, broken) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_memory_that_runs_out_is_told_in_a_line_and_other_errors_are_not_hidden(
    error, told, monkeypatch, capsys
):
    def fail(args):
        raise error

    monkeypatch.setattr(sys, "argv", ["ppo_atari.py", "--device", "cpu"])
    script = SCRIPTS["ppo"]
    with pytest.raises(SystemExit if told else type(error)) as raised:
        launch(fail, script.Args, script.check, "ppo")
    if told:
        assert raised.value.code == 2
        assert "the memory of this machine ran out" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize(
    ("variant", "more"),
    [
        ("tanh-match", ("--init", "xavier_normal")),
        pytest.param("hadamax", (), marks=pytest.mark.long),
        pytest.param("hadamax-plain", (), marks=pytest.mark.long),
    ],
)
def test_a_network_of_version_5_that_was_stopped_is_the_one_that_was_not(
    variant, more, algorithm, tmp_path, monkeypatch
):
    """A matched width, which no flag has in numbers, and Hadamax: stopped, resumed, bit for bit."""
    script, send, seen = SCRIPTS[algorithm], AtariEnvs.send, collections.Counter()
    flags = [*SHORT[algorithm], "--latent-dim", 16, "--device", "cpu", *more]
    flags += variant_flags(variant, ACTIVATIONS)
    stop_at = 70  # of 80 steps of the games, of which DQN learns after 60
    if algorithm != "dqn":
        flags, stop_at = [*flags, "--total-timesteps", 192], 40  # in the second of three rollouts

    def interrupted(games, actions):
        seen["steps"] += 1
        if seen["steps"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        send(games, actions)

    status, folders = [], []
    for name in ("whole", "broken"):
        if name == "broken":
            monkeypatch.setattr(AtariEnvs, "send", interrupted)
        status.append(script.main(parse(algorithm, *flags, "--runs-dir", tmp_path / name)))
        folders += (tmp_path / name).iterdir()
    assert status == [0, CAN_RESUME]
    assert variant_name(parse(algorithm, *flags)).replace("-z16", "") == variant
    monkeypatch.setattr(sys, "argv", [f"{algorithm}_atari.py", "--resume", str(folders[1])])
    with pytest.raises(SystemExit) as exit_:
        launch(script.main, script.Args, script.check, algorithm)
    assert exit_.value.code == 0
    memory = {"buffer_size": 600, "num_envs": 2} if algorithm == "dqn" else {}
    assert differences(*folders, **memory) == []


SMALL_MEMORY = {"buffer_size": 600, "num_envs": 2}


class Killed(BaseException):
    """In place of SIGKILL."""


def interrupt(monkeypatch, at, change):
    """Have a run do something before this step of its games."""
    send, seen = AtariEnvs.send, collections.Counter()

    def interrupted(games, actions):
        seen["steps"] += 1
        if seen["steps"] == at:
            change()
        send(games, actions)

    monkeypatch.setattr(AtariEnvs, "send", interrupted)


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def small_dqn(tmp_path, monkeypatch):
    """A short run of DQN with several segments, without a break; and to make and resume others."""
    monkeypatch.setattr(replay, "SEGMENT", 16)
    flags = (*SHORT["dqn"], *PLAIN, "--device", "cpu")

    class Small:
        def run(self, name, *more):
            args = parse("dqn", *flags, *more, "--runs-dir", tmp_path / name)
            return dqn_atari.main(args)

        def folder(self, name):
            return next((tmp_path / name).iterdir())

        def resume(self, name):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", ["dqn_atari.py", "--resume", str(self.folder(name))])
                with pytest.raises(SystemExit) as exit_:
                    launch(dqn_atari.main, dqn_atari.Args, dqn_atari.check, "dqn")
            return exit_.value.code

    small = Small()
    assert small.run("whole") == 0
    return small


@pytest.mark.parametrize("lost", ["folder", "segment"])
def test_a_memory_that_was_deleted_while_the_run_had_it_comes_back(
    lost, small_dqn, tmp_path, monkeypatch
):
    def lose():
        (replayed,) = tmp_path.glob("broken/*/replay")
        if lost == "folder":
            shutil.rmtree(replayed)
        else:
            sorted(replayed.iterdir())[0].unlink()
        stop()

    with monkeypatch.context() as patch:
        interrupt(patch, 70, lose)
        assert small_dqn.run("broken", "--checkpoint-every", 0) == CAN_RESUME
    assert small_dqn.resume("broken") == 0
    folders = small_dqn.folder("whole"), small_dqn.folder("broken")
    assert differences(*folders, **SMALL_MEMORY) == []


def test_a_folder_that_was_made_again_can_go_on_and_its_lost_curves_are_told(
    small_dqn, tmp_path, monkeypatch, capfd
):
    """Deleted by somebody while the run was under way, then killed after its next checkpoint."""

    def lose():
        (folder,) = tmp_path.glob("broken/*")
        shutil.rmtree(folder)
        folder.mkdir()
        interrupt(monkeypatch, 5, kill)

    def kill():
        raise Killed

    interrupt(monkeypatch, 70, lose)
    with pytest.raises(Killed):
        small_dqn.run("broken", "--checkpoint-every", 0)
    monkeypatch.undo()
    monkeypatch.setattr(replay, "SEGMENT", 16)
    told = r"warning: \S+ was removed: its points up to agent step \d+ are gone"
    assert re.search(told, capfd.readouterr().err)
    assert small_dqn.resume("broken") == 0
    assert "the event file of the run's beginning is gone" in capfd.readouterr().err
    folders = small_dqn.folder("whole"), small_dqn.folder("broken")
    assert [d for d in differences(*folders, **SMALL_MEMORY) if "curve" not in d] == []
    assert "the event file of the run's beginning is gone" in read_run(folders[1]).losses


@pytest.mark.parametrize("damage", ["bit", "gone", "empty", "link", "pipe"])
def test_lost_curves_are_told_where_a_run_goes_on(damage, small_dqn, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        interrupt(patch, 70, stop)
        assert small_dqn.run("broken") == CAN_RESUME
    (path,) = small_dqn.folder("broken").glob("events*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()
    if damage in ("bit", "empty"):
        path.write_bytes(content if damage == "bit" else b"")
    elif damage == "link":
        path.symlink_to("nowhere")
    elif damage == "pipe":
        os.mkfifo(path)
    capfd.readouterr()
    assert small_dqn.resume("broken") == 0
    told = {"bit": "is damaged, ", "gone": "is gone", "link": "is gone"}
    told = told.get(damage, "is cut off: 0 of")
    assert f"warning: {path.name} {told}" in capfd.readouterr().err
    folders = small_dqn.folder("whole"), small_dqn.folder("broken")
    if damage != "link":  # which TensorBoard's own reader, that compares them, does not survive
        path.unlink() if damage == "pipe" else None
        found = differences(*folders, **SMALL_MEMORY)
        assert [difference for difference in found if "curve" not in difference] == []


@pytest.fixture
def run_folder(tmp_path_factory):
    """What a run of DQN leaves, as far as it is looked at before anything starts."""

    def make(footer=None, checkpoint=True, **config):
        folder = tmp_path_factory.mktemp("runs") / "run"
        folder.mkdir()
        whole = {
            "algorithm": "dqn",
            "flags": dataclasses.asdict(Args(seed=2)),
            "started": "2026",
            "git_commit": "abc",
        }
        (folder / "config.json").write_text(json.dumps(whole | config))
        if footer is not None:
            (folder / "checkpoint.pt").write_bytes(bytes(footer))
        elif checkpoint:
            flags = (whole | config)["flags"] or {}
            Checkpoints(folder, select_checkpoint_flags(flags)).save(100, {})
        return folder

    return make


NO_NUMBER = dataclasses.asdict(Args()) | {"num_envs": "four"}
NO_TOTAL = dataclasses.asdict(Args()) | {"total_timesteps": None}


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        ({}, ["--seed", "1"], "--seed 1 contradicts the run in .*, which has 2: leave it out"),
        ({}, ["--no-double-dqn", "--tau", "0.5"], "--tau 0.5 contradicts the run"),
        ({}, ["--seed", "1", "--tau", "0.5"], "--seed 1 contradicts .*; --tau 0.5 contradicts"),
        ({"flags": NO_NUMBER}, [], "config.json has num_envs 'four', which is no int: put it back"),
        ({"flags": NO_TOTAL}, [], "config.json has total_timesteps None, which is no int"),
        ({}, ["--total-timesteps", "1000"], "1000 is less than the 10000000 of the run"),
        ({}, ["--checkpoint-every", "-1"], "--checkpoint-every must be at least 0"),
        ({"algorithm": "pqn"}, [], "it is a run of pqn; resume it with pqn_atari.py"),
        ({"checkpoint": False}, [], "it has no whole checkpoint.pt; start the run anew"),
        (
            {"footer": Footer(FORMAT + 1, 100, 0)},
            [],
            "by a newer version .*; resume it with .* abc",
        ),
        (
            {"footer": Footer(FORMAT - 1, 100, 0)},
            [],
            "by an older version .*; resume it with .* abc",
        ),
        ({"flags": {"sede": 1}}, [], "its flags are not those of this version .* commit abc"),
        ({"flags": None}, [], "its flags are not those of this version|is no run"),
        ({}, ["--activaton", "relu"], "did you mean --activation"),
    ],
)
def test_what_cannot_be_resumed_is_refused(make, flags, message, run_folder, refused):
    folder = run_folder(**make)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused(dqn_atari, ["--resume", str(folder), *flags], message)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_paths_that_are_no_run_are_refused(refused, tmp_path_factory):
    refused(dqn_atari, ["--resume", "no/such/run"], "no/such/run: there is no such folder")
    refused(dqn_atari, ["--resume", __file__], "it is no folder; name one below runs/")
    folder = tmp_path_factory.mktemp("empty")
    refused(ppo_atari, ["--resume", str(folder)], "it is no run, as it has no whole config.json")
    (folder / "config.json").write_text('{"algorithm": "ppo"')
    refused(ppo_atari, ["--resume", str(folder)], "it is no run, as it has no whole config.json")


def test_other_names_of_the_same_thing_do_not_contradict(run_folder, monkeypatch):
    """Another name of the game, and the device that was asked for; both give the run's own."""
    folder = run_folder()
    same = ["--resume", str(folder), "--env-id", "ALE/Breakout-v5", "--device", "auto"]
    monkeypatch.setattr(sys, "argv", ["dqn_atari.py", *same])
    args = resolve_resume(parse_flags(Args), "dqn")
    assert (args.env_id, args.device, args.seed) == ("Breakout", "cpu", 2)


def test_auto_leaves_a_run_that_is_under_way_alone(tmp_path, run_folder):
    """Also before its first checkpoint: else there would be two of the same."""
    args = Args(seed=2, runs_dir=str(tmp_path))
    run_folder(flags=dataclasses.asdict(args), checkpoint=False).rename(tmp_path / "run")
    assert find_unfinished(args, "dqn") is None
    with lock(tmp_path / "run"), pytest.raises(UsageError, match="in use by another process"):
        find_unfinished(args, "dqn")


def test_a_second_process_on_a_folder_is_refused(tmp_path):
    with lock(tmp_path), pytest.raises(UsageError, match="in use by another process"):
        lock(tmp_path)
    lock(tmp_path).close()


def test_config_keeps_every_resumption(run_folder):
    folder = run_folder()
    for step in (100, 200):
        args = Args(total_timesteps=2 * 10**7)
        now = describe(args, "dqn", dqn_atari.QNetwork(4, args))
        config = add_resumption(folder, now, step)
        (folder / "config.json").write_text(json.dumps(config))
    assert [entry["step"] for entry in config["resumed"]] == [100, 200]
    assert config["flags"]["total_timesteps"] == 2 * 10**7
    assert config["started"] == "2026"
    for entry in config["resumed"]:  # a run may go on on another machine
        assert entry["device"] == "cpu"
        assert entry["versions"]["torch"] == torch.__version__


SAVING = """
import resource, sys
from pathlib import Path
from lab.training.checkpoint import Checkpoints
from lab.training.replay import ReplayBuffer
buffer = ReplayBuffer(40_000, 4)
buffer.frames.fill_(1)
buffer.dirty.update(range(len(buffer.frames) // buffer.segment_rows))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Checkpoints(Path(sys.argv[1])).save(1, {"buffer": buffer.state_dict()}, buffer)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_saving_the_replay_memory_takes_less_than_a_tenth_of_it_more(tmp_path):
    command = [sys.executable, "-c", SAVING, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    saved = sum(path.stat().st_size for path in (tmp_path / "replay").iterdir())
    assert saved > 2.5e8
    assert int(done.stdout) < 0.1 * saved


def test_auto_takes_only_what_can_go_on(tmp_path, run_folder):
    args = Args(seed=2, runs_dir=str(tmp_path))
    flags = dataclasses.asdict(args)
    others = {
        "finished": {"footer": Footer(FORMAT, args.total_timesteps, 0), "started": "2030"},
        "without": {"checkpoint": False, "started": "2031"},  # as one from before checkpoints
        "other-seed": {"flags": flags | {"seed": 3}, "started": "2032"},
        "other-version": {"footer": Footer(FORMAT - 1, 100, 0), "started": "2034"},
        "other-algorithm": {"algorithm": "ppo", "started": "2033"},
    }
    for name, config in others.items():
        run_folder(**({"flags": flags} | config)).rename(tmp_path / name)
    assert find_unfinished(args, "dqn") is None
    for name, started in (("old", "2027"), ("new", "2028")):
        run_folder(flags=flags | {"checkpoint_every": 3.0}, started=started).rename(tmp_path / name)
    assert find_unfinished(args, "dqn") == tmp_path / "new"
    assert find_unfinished(dataclasses.replace(args, gamma=0.5), "dqn") is None


def test_auto_goes_on_with_the_flags_that_change_no_number_as_they_are_given(
    tmp_path, run_folder, monkeypatch
):
    folder = run_folder(Footer(FORMAT, 100, 0))
    folder.rename(tmp_path / "there")
    monkeypatch.setattr(resume, "find_newest_whole", lambda *given: None)
    given = {"cuda_graphs": False, "checkpoint_every": 3.0, "env_threads": 2}
    args = Args(seed=2, runs_dir=str(tmp_path), resume="auto", **given)
    resolved = resolve_resume(args, "dqn")
    assert resolved.resume == str(tmp_path / "there")
    assert {name: getattr(resolved, name) for name in given} == given


@pytest.mark.parametrize("flag", [["--resume", ""], ["--resume="]])
def test_an_empty_name_of_a_run_begins_no_new_one(flag, refused):
    """As of a variable of a shell that is not set."""
    refused(ppo_atari, [*flag, "--total-timesteps", "1024"], "--resume is empty: name the folder")


def test_auto_says_so_where_a_new_run_begins(tmp_path, capsys):
    args = Args(runs_dir=str(tmp_path), resume="auto")
    assert resolve_resume(args, "dqn") == dataclasses.replace(args, resume="")
    said = f"--resume auto: no unfinished run with these flags in {tmp_path}; starting anew\n"
    assert capsys.readouterr().out == said


def test_auto_takes_a_run_from_before_a_flag_came_in(tmp_path, run_folder):
    """It had what is the default now, so it is the run of these flags, and of no others."""
    args = Args(seed=2, runs_dir=str(tmp_path))
    flags = dataclasses.asdict(args)
    for name, other in (("double_dqn", True), ("width", 1.5), ("width", "match")):
        flags.pop(name, None)
        folder = run_folder(flags=flags)
        folder.rename(tmp_path / "before")
        assert find_unfinished(args, "dqn") == tmp_path / "before"
        assert find_unfinished(dataclasses.replace(args, **{name: other}), "dqn") is None
        shutil.rmtree(tmp_path / "before")


def test_a_run_from_before_the_width_came_in_has_the_width_1(run_folder, monkeypatch):
    flags = dataclasses.asdict(Args(seed=2))
    del flags["width"]
    folder = run_folder(flags=flags)
    monkeypatch.setattr(sys, "argv", ["dqn_atari.py", "--resume", str(folder), "--width", "1"])
    args = resolve_resume(parse_flags(Args), "dqn")
    assert (args.width, args.seed) == (1.0, 2)
    monkeypatch.setattr(sys, "argv", ["dqn_atari.py", "--resume", str(folder), "--width", "match"])
    with pytest.raises(UsageError, match=r"--width match contradicts the run in .* has 1\.0"):
        resolve_resume(parse_flags(Args), "dqn")
