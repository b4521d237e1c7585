"""What `benchmark.py` times: emulator and kernels of each script alone, and whole processes.

Kernels are the scripts' own functions on data already in place; whole runs are the scripts
themselves. Rates are agent steps per second; one agent step is 4 emulator frames.
"""

import contextlib
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor

from lab.common.cli import UsageError
from lab.sweep.plan import script
from lab.training.atari import AtariEnvs
from lab.training.replay import FRAMES, Batch, channels_last

# Agent steps of a whole run before its speed is measured, so that it learns, and after.
WARM = {"dqn": 2_000, "ppo": 2_048, "pqn": 4_096}
MEASURED = {"dqn": 4_000, "ppo": 6_144, "pqn": 8_192}
NEVER = 10**9  # agent steps, or minutes, that no measured run reaches


class Kernels(NamedTuple):
    """Acting and learning alone, by the script's own functions, on data already in place."""

    act: Callable[[], object]
    steps_per_act: int  # agent steps that a call serves
    learn: Callable[[], object]
    steps_per_learn: int
    parts: dict  # of a checkpoint, as far as they are here
    head: torch.nn.Linear
    obs: Tensor  # uint8 (samples, 4, 84, 84)


def kernels(algorithm: str, args, device: torch.device, num_actions: int = 4) -> Kernels:
    """Those of a script with these Args, on random observations."""
    torch.manual_seed(0)
    make = dqn_kernels if algorithm == "dqn" else rollout_kernels
    return make(script(algorithm), args, device, num_actions)


def random_obs(count: int) -> Tensor:
    """uint8 (count, 4, 84, 84), channels last in memory, as the scripts keep them."""
    return channels_last(torch.randint(256, (count, *FRAMES), dtype=torch.uint8))


def dqn_kernels(module, args, device: torch.device, num_actions: int) -> Kernels:
    """Acting on one obs of each game; one update on a batch that is already drawn."""
    networks = [
        module.QNetwork(num_actions, args).to(device, memory_format=torch.channels_last)
        for _ in range(2)
    ]
    optimizer = torch.optim.Adam(networks[0].parameters(), eps=args.adam_eps, fused=True)
    obs, next_obs = (random_obs(args.batch_size).to(device) for _ in range(2))
    actions = torch.randint(num_actions, (args.batch_size,), device=device)
    zeros = torch.zeros(args.batch_size, device=device)
    batch = Batch(obs, actions, zeros, next_obs, zeros)
    seen = np.random.default_rng(0).integers(256, size=(args.num_envs, *FRAMES), dtype=np.uint8)
    rng = np.random.default_rng(0)
    return Kernels(
        lambda: module.act(networks[0], seen, 0.0, device, rng),
        args.num_envs,
        lambda: module.update(*networks, optimizer, batch, args),
        args.train_frequency,
        {"q_network": networks[0], "target_network": networks[1], "optimizer": optimizer},
        networks[0].head,
        random_obs(args.metrics_samples).to(device),
    )


def rollout_kernels(module, args, device: torch.device, num_actions: int) -> Kernels:
    """PPO and PQN: acting on every row of a rollout, actions handed to the host; one update."""
    is_ppo = hasattr(module, "Agent")
    network = (module.Agent if is_ppo else module.QNetwork)(num_actions, args)
    network = network.to(device, memory_format=torch.channels_last)
    if is_ppo:
        optimizer = torch.optim.Adam(network.parameters(), eps=args.adam_eps, fused=True)
    else:
        optimizer = module.RAdam(network.parameters(), lr=args.learning_rate)
    rollout = module.empty_rollout(args, device)
    rollout.obs.copy_(random_obs(args.num_steps * args.num_envs).view(rollout.obs.shape))
    rollout.actions.copy_(torch.randint(num_actions, rollout.actions.shape))
    rollout.dones.zero_()
    rollout.returns.copy_(torch.randn(rollout.returns.shape))
    generator = torch.Generator(device).manual_seed(0)

    @torch.no_grad()
    def act():
        with network.autocast(device.type):
            for obs in rollout.obs:
                out = network(obs)
                if is_ppo:
                    module.draw(out[0].log_softmax(dim=1), generator).cpu()
                else:
                    module.act(out, 0.0, generator).cpu()

    steps = args.num_envs * args.num_steps
    return Kernels(
        act,
        steps,
        lambda: module.update(network, optimizer, rollout, args, generator),
        steps,
        {"network": network, "optimizer": optimizer, "sampling": generator},
        network.critic if is_ppo else network.head,
        random_obs(args.metrics_samples).to(device),
    )


def seconds_each(call: Callable[[], object], at_least: float, device: torch.device) -> float:
    """Mean seconds of a call, over as many as fill `at_least` seconds, after one to warm up."""

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    wait()
    count, start = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < at_least:
        call()
        count += 1
        wait()
    return (time.perf_counter() - start) / count


def emulator_seconds(envs: AtariEnvs, at_least: float) -> float:
    """Mean seconds per agent step of the games alone, played at random."""
    rng = np.random.default_rng(0)
    actions = rng.integers(envs.single_action_space.n, size=(1024, envs.num_envs))
    count, start = 0, time.perf_counter()
    while count < 20 or time.perf_counter() - start < at_least:
        envs.step(actions[count % len(actions)])
        count += 1
    return (time.perf_counter() - start) / count / envs.num_envs


class Whole(NamedTuple):
    """A whole run: its points (agent step, wall time in s) once it learns; peak memory in GB."""

    points: list[tuple[int, float]]
    memory_gb: float

    @property
    def rate(self) -> float:
        (step, start), (last, end) = self.points[0], self.points[-1]
        return (last - step) / (end - start)


def whole_run(algorithm: str, device: str, *flags: str, threads: int = 0) -> Whole:
    """The script itself, in a process of its own, while it learns.

    Between its points in TensorBoard lies all that it does, but no checkpoint and no measurement
    of the layer. `threads` of torch and of the emulator; 0: as many as it takes by itself. The
    memory is that of the process, in which DQN's replay memory is as full as it gets in that time.
    """
    warm, measured = WARM[algorithm], MEASURED[algorithm]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, f"{algorithm}_atari.py", "--runs-dir", folder]
        command += ["--device", device, "--total-timesteps", str(warm + measured)]
        command += ["--metrics-every", str(NEVER), "--checkpoint-every", str(NEVER)]
        if algorithm != "ppo":
            command += ["--start-e", "0.01", "--end-e", "0.01"]
        if algorithm == "dqn":
            command += ["--learning-starts", str(warm - 1_000)]
        command += ["--env-threads", str(threads), *flags]
        environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        _, memory_gb = run_command(command, environment)
        return Whole(points_after(warm, next(Path(folder).iterdir())), memory_gb)


def points_after(warm: int, folder: Path) -> list[tuple[int, float]]:
    """(agent step, wall time in s) of a run's points of speed at and after `warm` agent steps."""
    return sorted(
        (event.step, event.wall_time)
        for path in folder.glob("events*")
        for event in EventFileLoader(str(path)).Load()
        if event.step >= warm and any(value.tag == "charts/SPS" for value in event.summary.value)
    )


def run_command(command: list[str], environment: dict[str, str] | None = None):
    """(seconds, peak memory in GB) of a command in the project's folder. UsageError if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[2],
                env=os.environ | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{shlex.join(command)}: {error.strerror}") from None
        peak = 0.0
        try:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                peak = max(peak, peak_memory_gb(process.pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what the command has started
        output.seek(0)
        complaint = output.read().decode(errors="replace").strip()[-400:]
    if process.returncode != 0:
        raise UsageError(f"{shlex.join(command)} ended with {process.returncode}: {complaint}")
    return time.perf_counter() - start, peak


def peak_memory_gb(pid: int) -> float:
    """So far; 0 once the process has ended.

    Not getrusage's, which of a new process starts from the memory of the one that made it.
    """
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 / 1e9 if found else 0.0
    return 0.0


def told(values: list[float], digits: int = 0) -> str:
    """median (min to max)"""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, its columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
