"""How speed and memory depend on the number of games, threads, widths, branches and runs.

Whole runs of the scripts, as `time_whole_run` measures them, with Tanh (HR) in fp32; of games and
threads the emulator alone, too; of memory a process that fills a replay memory.
"""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from lab.bench.timing import run_command, settle, time_emulator, time_whole_run
from lab.common.cli import UsageError, plural, say
from lab.common.device import free_memory
from lab.common.limits import count_cores
from lab.common.tables import format_range, markdown_table
from lab.training.algorithms import ALGORITHMS
from lab.training.atari import AtariEnvs

GAMES = (1, 4, 16, 64, 256)  # of whole runs
EMULATED = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of the emulator alone
WIDTHS = (128, 512, 1024, 2048)
BRANCHES = (1, 2, 3, 4)
BYTES_EACH = 8_000  # a transition in the replay memory takes 7,064
BUFFERS = (10_000, 100_000, 300_000, 1_000_000)
ROLLOUT = {"ppo": 1_024, "pqn": 4_096}  # agent steps between two updates, whatever the games

FILL = """
from lab.training.replay import ReplayBuffer
memory = ReplayBuffer({size}, 4)
memory.store.fill_(1)
for part in (memory.actions, memory.rewards, memory.terminations, memory.history):
    part.fill(1)
"""


def measure_scaling(repeats: int, seconds: float, device: str) -> Iterator[dict]:
    """Measure (group, series, x) -> agent steps per second, or memory in GB, once per repeat.

    Yields what there is after each repeat.
    """
    results = defaultdict(lambda: defaultdict(list))
    cores = count_cores()

    def add_rate(repeat: int, group: str, algorithm: str, x: int, *flags: str):
        say(f"{repeat + 1} of {repeats}: {group} {algorithm} {x}")
        whole = time_whole_run(algorithm, device, *flags)
        results[group, algorithm, x]["rate"].append(whole.rate)

    for repeat in range(repeats):
        for count in EMULATED:
            for threads in sorted({1, cores}):
                games = AtariEnvs("Breakout", count, 1, num_threads=threads)
                settle(games)
                series = f"emulator, {plural(threads, 'thread')}"
                alone = 1 / time_emulator(games, seconds)
                results["games", series, count]["rate"].append(alone)
                games.close()
        for algorithm in ALGORITHMS:
            for count in GAMES:
                flags = ["--num-envs", str(count)]
                if algorithm in ROLLOUT:
                    flags += ["--num-steps", str(ROLLOUT[algorithm] // count)]
                add_rate(repeat, "games", algorithm, count, *flags)
            for width in WIDTHS:
                add_rate(repeat, "width of z", algorithm, width, "--latent-dim", str(width))
            for branches in BRANCHES:
                add_rate(repeat, "branches", algorithm, branches, "--branches", str(branches))
            add_rate(repeat, "runs at once", algorithm, 1)
            if cores > 1:
                say(f"{repeat + 1} of {repeats}: {cores} runs of {algorithm} at once")
                together = measure_together(algorithm, device, cores)
                results["runs at once", algorithm, cores]["rate"].append(together)
        for size in BUFFERS:
            if size * BYTES_EACH < free_memory(torch.device("cpu")):
                memory = run_command([sys.executable, "-c", FILL.format(size=size)])[1]
                results["memory", "replay memory", size]["memory_gb"].append(memory)
        yield results


def measure_together(algorithm: str, device: str, count: int) -> float:
    """Return the rate of several runs side by side, one thread each, while all of them learn."""
    with ThreadPoolExecutor(count) as pool:
        runs = [pool.submit(time_whole_run, algorithm, device, threads=1) for _ in range(count)]
        points = [np.array(run.result().points).T for run in runs]
    start, end = max(times[0] for _, times in points), min(times[-1] for _, times in points)
    if end <= start:
        raise UsageError(f"{count} runs of {algorithm} at once never learned at the same time")
    steps = sum(np.interp(end, t, s) - np.interp(start, t, s) for s, t in points)
    return float(steps / (end - start))


def format_scaling(results: dict[tuple, dict[str, list]]) -> str:
    """Return a row for each point, as median (min to max)."""
    rows = [("against", "what", "x", "agent steps/s or GB")]
    for (group, series, x), samples in results.items():
        for what, values in samples.items():
            rows.append((group, series, f"{x:,}", format_range(values, 0 if what == "rate" else 2)))
    return markdown_table(rows)


def draw_scaling(results: dict[tuple, dict[str, list]], title: str):
    """Return a figure, a panel per group: medians, with ranges where there are several repeats."""
    from matplotlib.figure import Figure  # not before `own_style`

    groups = list(dict.fromkeys(group for group, *_ in results))
    rows = math.ceil(len(groups) / 3)
    figure = Figure(figsize=(12, 3.4 * rows), layout="constrained")
    for place, group in enumerate(groups, start=1):
        axes = figure.add_subplot(rows, 3, place)
        for series in dict.fromkeys(series for g, series, _ in results if g == group):
            points = sorted(
                (x, next(iter(samples.values())))
                for (g, s, x), samples in results.items()
                if (g, s) == (group, series)
            )
            xs = [x for x, _ in points]
            middle = [statistics.median(values) for _, values in points]
            low = [m - min(values) for m, (_, values) in zip(middle, points, strict=True)]
            high = [max(values) - m for m, (_, values) in zip(middle, points, strict=True)]
            axes.errorbar(
                xs, middle, (low, high), marker="o", markersize=4, capsize=3, label=series
            )
        axes.set_xlabel({"memory": "transitions in the replay memory"}.get(group, group))
        axes.set_ylabel("peak memory, GB" if group == "memory" else "agent steps per second")
        if xs[-1] / xs[0] > 4:
            axes.set_xscale("log", base=10 if group == "memory" else 2)
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        axes.minorticks_off()
        if group == "games":  # the emulator alone is ten times as fast
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title)
    return figure
