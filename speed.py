"""What `benchmark.py` times: emulator and kernels of each script alone, and whole processes.

Kernels are the scripts' own functions on data already in place; whole runs are the scripts
themselves. Rates are agent steps per second; one agent step is 4 emulator frames.
"""

import importlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor

from atari import AtariEnvs
from flags import UsageError, parse_flags
from replay import FRAMES, Batch

ALGORITHMS = ("dqn", "ppo", "pqn")
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
    parts: dict  # of a checkpoint; a replay memory is "buffer"
    head: torch.nn.Linear
    obs: Tensor  # uint8 (samples, 4, 84, 84)


def script(algorithm: str) -> types.ModuleType:
    return importlib.import_module(f"{algorithm}_atari")


def script_args(algorithm: str, *flags: str):
    """The Args of a script, as its command line makes them."""
    return parse_flags(script(algorithm).Args, argv=list(flags))


def dqn_kernels(args, device: torch.device, num_actions: int) -> Kernels:
    module = script("dqn")
    networks = [
        module.QNetwork(num_actions, args).to(device, memory_format=torch.channels_last)
        for _ in range(2)
    ]
    optimizer = torch.optim.Adam(networks[0].parameters(), eps=args.adam_eps, fused=True)
    obs = torch.randint(256, (args.metrics_samples, *FRAMES), dtype=torch.uint8)
    actions = torch.randint(num_actions, (args.batch_size,), device=device)
    rewards = torch.zeros(args.batch_size, device=device)
    batch = Batch(*(x[: args.batch_size].to(device) for x in (obs, actions, rewards, obs, rewards)))
    seen, rng = obs[: args.num_envs].numpy(), np.random.default_rng(0)
    return Kernels(
        lambda: module.act(networks[0], seen, 0.0, device, rng),
        args.num_envs,
        lambda: module.update(*networks, optimizer, batch, args),
        args.train_frequency,
        {"q_network": networks[0], "target_network": networks[1], "optimizer": optimizer},
        networks[0].head,
        obs.to(device),
    )


def rollout_kernels(algorithm: str, args, device: torch.device, num_actions: int) -> Kernels:
    """Those of PPO and PQN."""
    module = script(algorithm)
    network = (module.Agent if algorithm == "ppo" else module.QNetwork)(num_actions, args)
    network = network.to(device, memory_format=torch.channels_last)
    if algorithm == "ppo":
        optimizer = torch.optim.Adam(network.parameters(), eps=args.adam_eps, fused=True)
    else:
        optimizer = module.RAdam(network.parameters(), lr=args.learning_rate)
    rollout = module.empty_rollout(args, device)
    for field in rollout[:1]:
        field.copy_(torch.randint(256, field.shape, dtype=field.dtype))
    rollout.actions.copy_(torch.randint(num_actions, rollout.actions.shape))
    rollout.dones.zero_()
    rollout.returns.copy_(torch.randn(rollout.returns.shape))
    generator = torch.Generator(device).manual_seed(0)

    @torch.no_grad()
    def act():
        with network.autocast(device.type):
            for obs in rollout.obs:
                network(obs)

    steps = args.num_envs * args.num_steps
    return Kernels(
        act,
        steps,
        lambda: module.update(network, optimizer, rollout, args, generator),
        steps,
        {"network": network, "optimizer": optimizer, "rollout": lambda: list(rollout)},
        network.critic if algorithm == "ppo" else network.head,
        torch.randint(256, (args.metrics_samples, *FRAMES), dtype=torch.uint8, device=device),
    )


def kernels(algorithm: str, args, device: torch.device, num_actions: int = 4) -> Kernels:
    torch.manual_seed(0)
    if algorithm == "dqn":
        return dqn_kernels(args, device, num_actions)
    return rollout_kernels(algorithm, args, device, num_actions)


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


def whole_run(algorithm: str, device: str, *flags: str, threads: int = 0) -> tuple[float, float]:
    """Rate of the script itself while it learns, and its peak memory in GB; its own process.

    The rate is that between two of its own points in TensorBoard: it holds all that is done in
    between, but no checkpoint and no measurement of the layer. `threads` of torch and of the
    emulator; 0: as many as it takes by itself.
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
        usage = run_command(command, {"OMP_NUM_THREADS": str(threads)} if threads else {})[1]
        folder = next(Path(folder).iterdir())
        return rate_after(warm, folder), usage.ru_maxrss / 1e6


def rate_after(warm: int, folder: Path) -> float:
    """Agent steps per second from the first point of a run at or after `warm` steps to its last."""
    points = sorted(
        (event.step, event.wall_time)
        for path in folder.glob("events*")
        for event in EventFileLoader(str(path)).Load()
        if any(value.tag == "charts/SPS" for value in event.summary.value)
    )
    (step, start), (last, end) = next(point for point in points if point[0] >= warm), points[-1]
    return (last - step) / (end - start)


def run_command(command: list[str], environment: dict[str, str] | None = None):
    """Seconds that a command took, and what it used of the machine. UsageError if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=Path(__file__).parent,
                env=os.environ | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise UsageError(f"{shlex.join(command)}: {error.strerror}") from None
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
        output.seek(0)
        complaint = output.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise UsageError(
            f"{shlex.join(command)} ended with {process.returncode}: {complaint[-400:]}"
        )
    return time.perf_counter() - start, usage
