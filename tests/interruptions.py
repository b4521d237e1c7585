"""Runs that are killed and resumed, and what has to be equal to a run that was not."""

import collections
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import torch
from conftest import ENV, TIMEOUT, command_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lab.training.checkpoint import Checkpoints, has_checkpoint, iterate_tensors, read_newest_footer
from lab.training.replay import ReplayBuffer
from lab.training.signals import CAN_RESUME

# What measures time, and so differs from run to run.
TIMED = ("charts/SPS",)


def start(algorithm, flags, cwd, threads=1):
    """The process of an algorithm's script, as a user would start it."""
    return start_script(f"{algorithm}_atari.py", flags, cwd, threads)


def start_script(name, flags, cwd, threads=1):
    """The same of any script or tool."""
    command = command_of(name, *flags)
    env = ENV | {"OMP_NUM_THREADS": str(threads)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, **pipes)


def run_through(algorithm, flags, cwd, threads=1) -> Path:
    """Run without a break: the run folder."""
    process = start(algorithm, flags, cwd, threads)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    (folder,) = (cwd / "runs").iterdir()
    return folder


def is_writing(folder):
    """Whether a checkpoint is being written in this moment."""
    return folder is not None and (any(folder.glob("*.tmp")) or any(folder.glob("replay/*.tmp")))


def run_with_breaks(algorithm, flags, cwd, breaks, seed, longest, threads=1, damage=False):
    """Break the run off and resume it each time: the folder, and a count of what was done.

    `breaks` are signals, sent at random moments in the first `longest` seconds of training, or
    "writing": SIGKILL as soon as a checkpoint is in the middle of being written. One in five comes
    earlier, while the process starts or plays its games back. With `damage` a bit of the newest
    checkpoint is flipped each time that there is one before it.
    """
    rng = random.Random(seed)
    counts = collections.Counter()
    resume, folder = (), None
    for kind in (*breaks, None):
        process = start(algorithm, (*flags, *resume), cwd, threads)
        if kind is not None:
            early = resume != () and rng.random() < 0.2
            while not early and process.poll() is None:  # until it trains
                line = process.stdout.readline()
                if line == "" or ("resumed at" if resume else "parameters on") in line:
                    break
            folder = folder or next((path for path in (cwd / "runs").glob("*")), None)
            deadline = time.monotonic() + rng.uniform(0, longest)
            while process.poll() is None:
                if time.monotonic() > deadline and (kind != "writing" or is_writing(folder)):
                    break
                time.sleep(0.0005)
            number = signal.SIGKILL if kind == "writing" else kind
            process.send_signal(number)
        _, err = process.communicate(timeout=TIMEOUT)
        (folder,) = (path.parent for path in (cwd / "runs").glob("*/config.json"))
        if process.returncode == 0 or kind is None:
            assert process.returncode == 0, err
            break
        # While it starts, and once it has ended, a signal does what it does to any process.
        ended = {-number, 128 + number} | ({CAN_RESUME} if number != signal.SIGKILL else set())
        assert process.returncode in ended, err
        counts[kind if kind == "writing" else signal.Signals(number).name] += 1
        if not has_checkpoint(folder):
            shutil.rmtree(folder)  # killed in its first moment: a new run starts anew
            resume, folder = (), None
            continue
        resume = ("--resume", folder if rng.random() < 0.5 else "auto")
        both = all((folder / name).exists() for name in ("previous.pt", "checkpoint.pt"))
        config = json.loads((folder / "config.json").read_text())
        if read_newest_footer(folder).step >= config["flags"]["total_timesteps"]:
            break  # it was killed when all was done
        if damage and both:
            content = bytearray((folder / "checkpoint.pt").read_bytes())
            # Not in the last line: where that is damaged, auto does not know the newest any more.
            content[rng.randrange(len(content) - 100)] ^= 1 << rng.randrange(8)
            (folder / "checkpoint.pt").write_bytes(content)
            counts["damaged"] += 1
    return folder, counts


def series(folder) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a run by tag: agent steps and values."""
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    return {
        tag: [(event.step, event.value) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
        if tag not in TIMED
    }


def final_state(folder, buffer_size=None, num_envs=None) -> dict[str, torch.Tensor]:
    """Every tensor that decides how the run would go on, by name."""
    memory = ReplayBuffer(buffer_size, num_envs) if buffer_size else None
    saved, problems = Checkpoints(folder).load(memory)
    assert problems == []
    saved.pop("run")
    seen = min(saved["recent"]["seen"], len(saved["recent"]["frames"])) if "recent" in saved else 0
    if "recent" in saved:  # rows that were never filled hold anything
        saved["recent"]["frames"] = saved["recent"]["frames"][:seen]
    state = dict(iterate_tensors(saved))
    state["plain"] = repr([value for value in flat(saved) if not isinstance(value, torch.Tensor)])
    if memory is not None:
        memory.load_state_dict(saved["buffer"])
        for name, part in memory.transitions(torch.arange(len(memory)))._asdict().items():
            state[f"memory.{name}"] = part
    return state


def flat(value):
    """The leaves of a nest of dicts and lists, with the keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    else:
        yield value


def differences(one: Path, other: Path, **memory) -> list[str]:
    """What differs between two finished runs, bit for bit; empty if nothing does."""
    found = []
    weights = [torch.load(folder / "model.pt", weights_only=True) for folder in (one, other)]
    curves = [series(folder) for folder in (one, other)]
    states = [final_state(folder, **memory) for folder in (one, other)]
    for what, (first, second) in (("weight", weights), ("curve", curves), ("state", states)):
        if first.keys() != second.keys():
            found.append(f"{what}s: {sorted(first.keys() ^ second.keys())} only in one")
            continue
        for name, value in first.items():
            is_tensor = isinstance(value, torch.Tensor)
            same = torch.equal(value, second[name]) if is_tensor else value == second[name]
            if not same:
                found.append(f"{what} {name}")
    return found
