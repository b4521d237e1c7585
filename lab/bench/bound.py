"""What emulator and kernels allow on this machine, and what a whole run gets of it."""

import contextlib
import io
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from lab.bench.timing import make_kernels, settle, time_call, time_emulator, time_whole_run
from lab.common import tags
from lab.common.cli import UsageError, say
from lab.common.device import pick_device
from lab.common.tables import format_range, markdown_table
from lab.training.algorithms import load_script, script_args
from lab.training.atari import AtariEnvs
from lab.training.checkpoint import read_newest_footer
from lab.training.frames import RecentObs
from lab.training.measure import PROBES
from lab.training.replay import SEGMENT, ReplayBuffer
from lab.training.run import Run

VARIANTS = {"relu": ("--activation", "relu", "--branches", "1"), "tanh-hr": ()}
Samples = dict[str, list[float]]  # what was measured -> once per repeat


@contextlib.contextmanager
def hide_output():
    """Hide what a run prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def time_parts(kernel, emulator, at_least: float, device, clock=time.perf_counter) -> dict:
    """Time the three parts alone, each with the whole machine."""
    return {
        "emulator": time_emulator(emulator, at_least, clock),
        "act": time_call(kernel.act, at_least, device, clock) / kernel.steps_per_act,
        "learn": time_call(kernel.learn, at_least, device, clock) / kernel.steps_per_learn,
    }


def measure_bound(args, device: torch.device) -> Iterator[dict]:
    """Measure parts, bounds and whole runs of each algorithm, precision and variant.

    Yields what there is after each repeat. `bound` is what the parts allow one after the other.
    `bound_overlapped` is what they would allow if nothing waited for anything: on a GPU games and
    kernels at the same time; on the CPU as many runs as cores, each with one thread and undisturbed
    by the others. One run cannot reach it, as an action waits for the game and the game for it.
    """
    results = defaultdict(lambda: defaultdict(list))
    threads, ready = torch.get_num_threads(), {}
    names = [(a, p, v) for a in args.algorithms for p in args.precisions for v in args.variants]
    for repeat in range(args.repeats):
        for name in names:
            say(f"{repeat + 1} of {args.repeats}: {' '.join(name)}")
            algorithm, precision, variant = name
            flags = (*VARIANTS[variant], "--precision", precision, "--env-id", args.env_id)
            of_script = script_args(algorithm, *flags)
            pick_device(args.device, precision)
            if name not in ready:
                ready[name] = make_kernels(algorithm, of_script, device)
            for count in (0, 1):
                if (algorithm, count) not in ready:
                    games = AtariEnvs(args.env_id, of_script.num_envs, 1, num_threads=count)
                    settle(games)
                    ready[algorithm, count] = games
            parts = time_parts(ready[name], ready[algorithm, 0], args.seconds, device)
            if device.type == "cpu":
                torch.set_num_threads(1)
                one = time_parts(ready[name], ready[algorithm, 1], args.seconds, device)
                torch.set_num_threads(threads)
                overlapped = threads / sum(one.values())
            else:
                overlapped = 1 / max(parts["emulator"], parts["act"] + parts["learn"])
            whole = time_whole_run(algorithm, args.device, *flags)
            rates = {part: 1 / seconds for part, seconds in parts.items()}
            rates |= {"bound": 1 / sum(parts.values()), "bound_overlapped": overlapped}
            rates |= {"whole": whole.rate, "memory_gb": whole.memory_gb}
            rates |= {"ratio": whole.rate / rates["bound"]}
            rates |= {"ratio_overlapped": whole.rate / overlapped}
            for what, value in rates.items():
                results[name][what].append(value)
        yield results


def mean_output(network: torch.nn.Module, recent: RecentObs) -> torch.Tensor:
    """Return a loss over PROBES observations: one forward pass (DQN's own has two)."""
    outputs = network(recent.frames[:PROBES])
    return (outputs[1] if isinstance(outputs, tuple) else outputs).mean()


def measure_now(run: Run, recent: RecentObs, head: torch.nn.Linear):
    """Measure the network, and wait for it, as a run on a GPU does not."""
    run.watch_update(recent, head)
    run.measure(recent, head, lambda network: mean_output(network, recent))
    run.write_measurement()


def measure_costs(name: tuple[str, ...], args, device: torch.device, rate: float) -> Samples:
    """Measure the seconds of what is not training: a log, a measurement of z, a checkpoint.

    `name`: algorithm, precision, variant. The measurement is one without the picture that every
    tenth has. The checkpoint is one between two updates; of DQN's replay memory it holds what 10
    minutes bring at this rate.
    """
    algorithm, precision, variant = name
    pick_device(args.device, precision)
    results = defaultdict(list)
    # In the working directory, as run folders are: /tmp may lie in memory, where writing is free.
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=".") as folder:
        flags = (*VARIANTS[variant], "--precision", precision, "--env-id", args.env_id)
        flags += ("--metrics-every", "1")  # so that each call of `measure` measures
        of_script = script_args(algorithm, "--runs-dir", folder, *flags)
        kernel, memory, segments = make_kernels(algorithm, of_script, device), None, []
        games = AtariEnvs(args.env_id, of_script.num_envs, 1)
        games.reset()
        parts = kernel.parts | {"games": games}
        if algorithm == "dqn":
            memory = ReplayBuffer(of_script.buffer_size, of_script.num_envs, device)
            parts["buffer"] = memory
            segments = range(min(int(600 * rate), of_script.buffer_size) // SEGMENT)
        recent = RecentObs(of_script.metrics_samples, device)
        recent.add(kernel.obs.unsqueeze(0))
        if algorithm != "dqn":
            parts["recent"] = recent
        names = tuple(map(str, range(7)))
        losses = {tags.LOSSES + name: 0.0 for name in names}
        network = kernel.parts["network"]
        with hide_output(), Run(of_script, algorithm, network, names) as run:
            for repeat in range(args.repeats + 1):
                for index in segments:
                    memory.dirty.add(index)
                    if repeat == 0:
                        for part in memory.segment(index):
                            part.zero_()  # touch the pages, which the system allocates only now
                calls = (
                    ("logging", lambda: run.log(losses)),
                    ("metrics", lambda: measure_now(run, recent, kernel.head)),
                    ("checkpoint", lambda: run.checkpoint(parts, now=True)),
                )
                run.count_step()
                for what, call in calls:
                    start = time.perf_counter()
                    call()
                    if repeat > 0:  # the first warms up, and draws the picture
                        results[what].append(time.perf_counter() - start)
                if run.stopped is not None:
                    sys.exit(128 + run.stopped)
                footer = read_newest_footer(run.folder)
                if footer is None or footer.step != run.step:
                    raise UsageError(f"no checkpoint could be written to {folder}")
        games.close()
    return results


def format_bound(results: dict[tuple[str, ...], Samples]) -> str:
    """Format rates in agent steps per second, each as median (min to max)."""
    columns = ("emulator", "act", "learn", "bound", "bound_overlapped", "whole")
    rows = [("algorithm", "precision", "variant", *columns, "whole / bound", "memory, GB")]
    for name, samples in results.items():
        rates = [format_range(samples[column]) for column in columns]
        rows.append(
            (
                *name,
                *rates,
                format_range(samples["ratio"], 2),
                format_range(samples["memory_gb"], 2),
            )
        )
    return markdown_table(rows)


def format_costs(
    results: dict[tuple[str, ...], Samples], rates: dict[tuple[str, ...], float]
) -> str:
    """Format what logging, measurements and checkpoints take at the default intervals."""
    rows = [("algorithm", "precision", "variant", "of", "seconds each", "share of the time, %")]
    for name, samples in results.items():
        args = script_args(name[0])
        logged = (
            load_script("dqn").LOG_EVERY if name[0] == "dqn" else args.num_envs * args.num_steps
        )
        every = {
            "logging": logged / rates[name],
            "metrics": args.metrics_every / rates[name],
            "checkpoint": 60 * args.checkpoint_every,
        }
        for what, values in samples.items():
            shares = [100 * value / every[what] for value in values]
            rows.append((*name, what, format_range(values, 3), format_range(shares, 2)))
    return markdown_table(rows)
