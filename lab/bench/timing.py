"""What `lab.bench` times: emulator and kernels of each script alone, and whole processes.

Kernels are the scripts' own functions on data already in place; whole runs are the scripts
themselves. Rates are agent steps per second; one agent step is 4 emulator frames.
"""

import contextlib
import copy
import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.common import tags
from lab.common.cli import UsageError, describe_os
from lab.common.events import read_points
from lab.training.algorithms import load_script, make_network, script_path, value_head
from lab.training.atari import AtariEnvs
from lab.training.frames import OBS_SHAPE, channels_last
from lab.training.radam import RAdam
from lab.training.replay import ReplayBuffer

# Agent steps of a whole run before its speed is measured, so that it learns, and after.
WARMUP_STEPS = {"dqn": 2_000, "ppo": 2_048, "pqn": 4_096}
MEASURED_STEPS = {"dqn": 4_000, "ppo": 6_144, "pqn": 8_192}
SETTLE_STEPS = 250  # of all games: a game of Breakout at random takes 180
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


def make_kernels(algorithm: str, args, device: torch.device, num_actions: int = 4) -> Kernels:
    """Return the kernels of a script with these Args, on random observations."""
    torch.manual_seed(0)
    network = make_network(algorithm, num_actions, args)
    network.to(device, memory_format=torch.channels_last)
    if algorithm == "pqn":
        optimizer = RAdam(network.parameters(), lr=args.learning_rate)
    else:
        optimizer = torch.optim.Adam(network.parameters(), eps=args.adam_eps, fused=True)
    parts = {"network": network, "optimizer": optimizer}
    obs = make_random_obs(args.metrics_samples).to(device)
    make = make_dqn_kernels if algorithm == "dqn" else make_rollout_kernels
    script = load_script(algorithm)
    return Kernels(*make(script, args, parts, num_actions), parts, value_head(network), obs)


def make_random_obs(count: int) -> Tensor:
    """Return uint8 (count, 4, 84, 84), channels last in memory, as the scripts keep them."""
    return channels_last(torch.randint(256, (count, *OBS_SHAPE), dtype=torch.uint8))


def make_dqn_kernels(script, args, parts: dict, num_actions: int) -> tuple:
    """Return acting on one obs of each game, and an update on a batch that is already drawn."""
    network, optimizer = parts["network"], parts["optimizer"]
    parts["target_network"] = copy.deepcopy(network)
    memory = ReplayBuffer(4 * args.batch_size, 1, network.head.weight.device)
    memory.start(make_random_obs(1).numpy())
    for obs in make_random_obs(4 * args.batch_size).numpy()[:, None]:
        memory.add(obs, [0], [0.0], [False], np.array([False]))
    batch = memory.locate(torch.arange(args.batch_size))
    seen = np.random.default_rng(0).integers(256, size=(args.num_envs, *OBS_SHAPE), dtype=np.uint8)
    rng = np.random.default_rng(0)
    choose, learn = script.make_graphs(network, parts["target_network"], optimizer, memory, args)
    return (
        lambda: script.act(choose, seen, 0.0, num_actions, rng),
        args.num_envs,
        lambda: learn(*batch),
        args.train_frequency,
    )


def make_rollout_kernels(script, args, parts: dict, num_actions: int) -> tuple:
    """Return acting on every row of a rollout, actions on the host, and its update."""
    network, optimizer = parts["network"], parts["optimizer"]
    device = value_head(network).weight.device
    rollout = script.empty_rollout(args, device)
    rollout.obs.copy_(make_random_obs(args.num_steps * args.num_envs).view(rollout.obs.shape))
    rollout.actions.copy_(torch.randint(num_actions, rollout.actions.shape))
    rollout.dones.zero_()
    rollout.returns.copy_(torch.randn(rollout.returns.shape))
    generator = parts["sampling"] = torch.Generator().manual_seed(0)
    choose, learn = script.make_graphs(network, optimizer, args)
    seen = make_random_obs(args.num_envs).contiguous()  # as the games give them

    def draw() -> tuple[Tensor, ...]:
        if hasattr(script, "draw_exploration"):
            return script.draw_exploration(args.num_envs, num_actions, 0.0, generator)
        return (torch.ones(args.num_envs, num_actions),)  # PPO: clocks

    @torch.no_grad()
    def act():
        with network.autocast(device.type):
            for _ in range(args.num_steps):
                choose(seen, *draw())[1].cpu()

    steps = args.num_envs * args.num_steps
    return act, steps, functools.partial(script.update, learn, rollout, args, generator), steps


def time_call(call: Callable, at_least: float, device, clock=time.perf_counter) -> float:
    """Return the mean seconds of a call, over `at_least` seconds, after some to warm up."""

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    # On a GPU the first calls are recorded as graphs and compared.
    for _ in range(1 if device.type == "cpu" else 12):
        call()
    wait()
    count, start = 0, clock()
    while count < 2 or clock() - start < at_least:
        call()
        count += 1
        wait()
    return (clock() - start) / count


def settle(envs: AtariEnvs):
    """Reset the games and play them at random until they no longer end at the same time.

    The step in which a game of Breakout ends takes 16 times as long as another, and all games wait
    for it: before the first games end, the rate is one that no run gets.
    """
    envs.reset()
    rng = np.random.default_rng(1)
    for _ in range(SETTLE_STEPS):
        envs.step(rng.integers(envs.single_action_space.n, size=envs.num_envs))


def time_emulator(envs: AtariEnvs, at_least: float, clock=time.perf_counter) -> float:
    """Return the mean seconds per agent step of the games alone, played at random; see `settle`."""
    rng = np.random.default_rng(0)
    actions = rng.integers(envs.single_action_space.n, size=(1024, envs.num_envs))
    count, start = 0, clock()
    while count < 20 or clock() - start < at_least:
        envs.step(actions[count % len(actions)])
        count += 1
    return (clock() - start) / count / envs.num_envs


class WholeRun(NamedTuple):
    """A whole run: its points (agent step, wall time in s) once it learns; peak memory in GB."""

    points: list[tuple[int, float]]
    memory_gb: float

    @property
    def rate(self) -> float:
        """Return agent steps per second between the first and the last point."""
        (step, start), (last, end) = self.points[0], self.points[-1]
        return (last - step) / (end - start)


def time_whole_run(algorithm: str, device: str, *flags: str, threads: int = 0) -> WholeRun:
    """Time the script itself, in a process of its own, while it learns.

    Between its points in TensorBoard lies all that it does, but no checkpoint and no measurement
    of the layer. `threads` of torch and of the emulator; 0: as many as it takes by itself. The
    memory is that of the process, in which DQN's replay memory is as full as it gets in that time.
    """
    warm, measured = WARMUP_STEPS[algorithm], MEASURED_STEPS[algorithm]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script_path(algorithm)), "--runs-dir", folder]
        command += ["--device", device, "--total-timesteps", str(warm + measured)]
        command += ["--metrics-every", str(NEVER), "--checkpoint-every", str(NEVER)]
        if algorithm != "ppo":
            command += ["--start-e", "0.01", "--end-e", "0.01"]
        if algorithm == "dqn":
            command += ["--learning-starts", str(warm - 1_000)]
        command += ["--env-threads", str(threads), *flags]
        environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        _, memory_gb = run_command(command, environment)
        return WholeRun(read_speed_points(warm, next(Path(folder).iterdir())), memory_gb)


def read_speed_points(warm: int, folder: Path) -> list[tuple[int, float]]:
    """Return (agent step, wall time in s) of a run's points of speed from `warm` agent steps on."""
    points, _ = read_points(folder)
    return sorted((p.step, p.wall_time) for p in points if p.tag == tags.SPS and p.step >= warm)


def run_command(command: list[str], environment: dict | None = None) -> tuple[float, float]:
    """Run a command; return its seconds and its peak memory in GB. Raise UsageError if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                env=os.environ | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{shlex.join(command)}: {describe_os(error)}") from None
        peak = 0.0
        try:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                peak = max(peak, read_peak_memory(process.pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what the command has started
        output.seek(0)
        complaint = output.read().decode(errors="replace").strip()[-400:]
    if process.returncode != 0:
        raise UsageError(f"{shlex.join(command)} ended with {process.returncode}: {complaint}")
    return time.perf_counter() - start, peak


def read_peak_memory(pid: int) -> float:
    """Return the peak resident memory in GB so far, or 0 if the process has ended."""
    # Not getrusage's, which of a new process starts from the memory of the one that made it.
    with contextlib.suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(match[1]) * 1024 / 1e9 if match else 0.0
    return 0.0
