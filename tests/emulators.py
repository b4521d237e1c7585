"""Agent steps/s of the games here, of ale-py's vector environment alone, and of EnvPool.

    pip install envpool==1.2.5
    python tests/emulators.py

Random play of Breakout with as many threads as cores, the emulators in turn, each measured
`REPEATS` times.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import envpool
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab.training.atari import AtariEnvs, make_emulator

REPEATS, SECONDS = 5, 4.0


def measure(step, num_envs: int) -> float:
    """Return the agent steps per second of `step(actions)`, over SECONDS after a warm-up."""
    rng = np.random.default_rng(0)
    actions = rng.integers(4, size=(64, num_envs))
    for chosen in actions:
        step(chosen)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        step(actions[count % 64])
        count += 1
    return count * num_envs / (time.perf_counter() - start)


def make_all(num_envs: int, threads: int) -> dict:
    """Return what steps each kind of games, by name."""
    ours = AtariEnvs("Breakout", num_envs, 1, num_threads=threads)
    ours.reset()
    alone = make_emulator("breakout", num_envs, threads, 0.0)
    alone.reset(seed=1)
    other = envpool.make_gymnasium(
        "Breakout-v5", num_envs=num_envs, seed=1, num_threads=threads, use_fire_reset=True
    )
    other.reset()
    return {"AtariEnvs": ours.step, "ale-py": alone.step, "EnvPool": other.step}


if __name__ == "__main__":
    for num_envs in (8, 128):
        games = make_all(num_envs, len(os.sched_getaffinity(0)))
        rates = {name: [] for name in games}
        for _ in range(REPEATS):
            for name, step in games.items():
                rates[name].append(measure(step, num_envs))
        base = statistics.median(rates["EnvPool"])
        for name, values in rates.items():
            middle = statistics.median(values)
            spread = f"({min(values):,.0f} to {max(values):,.0f})"
            print(f"{num_envs:4} games  {name:10} {middle:7,.0f} {spread}  {middle / base:.2f}")
