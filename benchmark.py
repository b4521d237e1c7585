"""Speed against the limit of this machine: what emulator and kernels allow, and what a run does.

    python benchmark.py                                 every algorithm, fp32 and bf16, plain and HR
    python benchmark.py --algorithms pqn --precisions bf16 --variants tanh-hr
    python benchmark.py --part scaling                  against games, threads, widths; one figure
    python benchmark.py --part compare --steps 2048 9216 --commands "A=... {steps}" "B=... {steps}"

Everything is measured in turn, several times over; medians and ranges are printed and, with
--output-dir, written. A rate is agent steps per second; one agent step is 4 emulator frames.
Nothing else should run on the machine meanwhile.
"""

import contextlib
import io
import shlex
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from atari import AtariEnvs
from checkpoint import written_whole
from device import pick_device
from experiment import Run
from flags import (
    UsageError,
    check_folder,
    check_machine,
    launch,
    require,
    require_one_of,
    say,
)
from replay import SEGMENT, ReplayBuffer
from runfolder import provenance, write_json
from scaling import measure_scaling, scaling_figure, scaling_table
from speed import (
    ALGORITHMS,
    emulator_seconds,
    kernels,
    run_command,
    script_args,
    seconds_each,
    whole_run,
)

VARIANTS = {"relu": ("--activation", "relu", "--branches", "1"), "tanh-hr": ()}
Samples = dict[str, list[float]]  # what was measured -> once per repeat


@dataclass
class Args:
    """Speed against this machine's own limit. Rates are agent steps per second."""

    part: str = "bound"
    """bound: emulator, kernels, whole runs and what else takes time; scaling: against games,
    threads and widths, and runs side by side; compare: any commands with one another"""
    algorithms: tuple[str, ...] = ALGORITHMS
    """of bound: dqn, ppo, pqn"""
    precisions: tuple[str, ...] = ("fp32", "bf16")
    """of bound: fp32, bf16"""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """of bound: relu (the plain network) and tanh-hr"""
    commands: tuple[str, ...] = ()
    """of compare: NAME=COMMAND, in which {steps} stands for the agent steps of the run; ratios are
    to the first"""
    steps: tuple[int, int] = (2_048, 9_216)
    """of compare: of a short and a long run; the rate is that of the difference"""
    repeats: int = 3
    """times that everything is measured, in turn"""
    seconds: float = 3.0
    """that a measurement of emulator or kernels alone takes, at least"""
    env_id: str = "Breakout"
    """the game, of bound"""
    device: str = "auto"
    """auto, cpu or cuda"""
    output_dir: str = ""
    """folder for JSON and figure; empty: they are only printed"""


def check(args: Args):
    """UsageError for a flag that cannot work, before anything is measured."""
    require_one_of(args, "part", ("bound", "scaling", "compare"))
    check_machine(args)
    for name, choices in (
        ("algorithms", ALGORITHMS),
        ("precisions", ("fp32", "bf16")),
        ("variants", VARIANTS),
    ):
        unknown = [value for value in getattr(args, name) if value not in choices]
        if unknown:
            raise UsageError(f"unknown --{name} {unknown[0]!r}: choose of {', '.join(choices)}")
    require(args, "at least 1", lambda value: value >= 1, "repeats")
    require(args, "at least 0", lambda value: value >= 0, "seconds")
    if args.part == "compare":
        if not args.commands:
            raise UsageError('--part compare needs --commands "NAME=COMMAND ... {steps}" ...')
        for command in args.commands:
            if "=" not in command or "{steps}" not in command:
                raise UsageError(f"--commands {command!r}: it must be NAME=COMMAND with {{steps}}")
        if not 0 < args.steps[0] < args.steps[1]:
            raise UsageError(f"--steps {args.steps}: the first must be above 0, the second larger")
    if args.output_dir:
        check_folder(args, "output_dir")


def summary(values: list[float]) -> dict:
    """Median and range, and the values themselves, in the order in which they were measured."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": values,
    }


def told(values: list[float], digits: int = 0) -> str:
    """median (min to max)"""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, its columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


@contextlib.contextmanager
def quiet():
    """Without what a run prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def seconds_per_step(kernel, emulator: AtariEnvs, at_least: float, device) -> dict[str, float]:
    """Of the three parts alone, each with the whole machine."""
    return {
        "emulator": emulator_seconds(emulator, at_least),
        "act": seconds_each(kernel.act, at_least, device) / kernel.steps_per_act,
        "learn": seconds_each(kernel.learn, at_least, device) / kernel.steps_per_learn,
    }


def measure_bound(args: Args, device: torch.device) -> dict[tuple[str, ...], Samples]:
    """Per algorithm, precision and variant: the rates of the parts, the bounds and whole runs.

    `bound` is what the parts allow one after the other. `bound_overlapped` is what they allow where
    nothing waits: on a GPU games and kernels at the same time, on the CPU every core busy with
    parts that run on one thread each.
    """
    found = defaultdict(lambda: defaultdict(list))
    names = [
        (algorithm, precision, variant)
        for algorithm in args.algorithms
        for precision in args.precisions
        for variant in args.variants
    ]
    threads, ready = torch.get_num_threads(), {}
    for repeat in range(args.repeats):
        for name in names:
            say(f"{repeat + 1} of {args.repeats}: {' '.join(name)}")
            algorithm, precision, variant = name
            flags = (*VARIANTS[variant], "--precision", precision, "--env-id", args.env_id)
            of_script = script_args(algorithm, *flags)
            if name not in ready:
                ready[name] = kernels(algorithm, of_script, device)
            for count in (0, 1):
                if (algorithm, count) not in ready:
                    games = AtariEnvs(args.env_id, of_script.num_envs, 1, num_threads=count)
                    games.reset()
                    ready[algorithm, count] = games
            samples = found[name]
            all_cores = seconds_per_step(ready[name], ready[algorithm, 0], args.seconds, device)
            for part, seconds in all_cores.items():
                samples[part].append(1 / seconds)
            samples["bound"].append(1 / sum(all_cores.values()))
            if device.type == "cpu":
                torch.set_num_threads(1)
                one = seconds_per_step(ready[name], ready[algorithm, 1], args.seconds, device)
                torch.set_num_threads(threads)
                samples["bound_overlapped"].append(threads / sum(one.values()))
            else:
                slower = max(all_cores["emulator"], all_cores["act"] + all_cores["learn"])
                samples["bound_overlapped"].append(1 / slower)
            rate, memory = whole_run(algorithm, args.device, *flags)
            samples["whole"].append(rate)
            samples["memory_gb"].append(memory)
            samples["ratio"].append(rate / samples["bound"][-1])
            samples["ratio_overlapped"].append(rate / samples["bound_overlapped"][-1])
    return found


def measure_costs(algorithm: str, args: Args, device: torch.device, rate: float) -> Samples:
    """Seconds that go to what is not training: one log, measurement of the layer, checkpoint.

    A checkpoint holds, of DQN's replay memory, what 10 minutes bring at this rate.
    """
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        of_script = script_args(algorithm, "--runs-dir", folder, "--env-id", args.env_id)
        kernel = kernels(algorithm, of_script, device)
        network, memory, parts = next(iter(kernel.parts.values())), None, dict(kernel.parts)
        if algorithm == "dqn":
            memory = ReplayBuffer(of_script.buffer_size, of_script.num_envs, device)
            parts["buffer"] = memory
        losses = {f"losses/{i}": 0.0 for i in range(7)}
        with quiet(), Run(of_script, algorithm, network, tuple(losses)) as run:
            calls = {
                "logging": lambda: (run.scalars(0, losses), run.progress(0)),
                "metrics": lambda: run.representation(0, kernel.obs, kernel.head),
                "checkpoint": lambda: run.checkpoint(0, parts, memory, now=True),
            }
            for repeat in range(args.repeats + 1):
                if memory is not None:
                    memory.dirty.update(range(int(600 * rate) // SEGMENT))
                for index in memory.dirty if memory is not None and repeat == 0 else ():
                    for part in memory.segment(index):
                        part.zero_()  # the system gives the memory only now
                for what, call in calls.items():
                    start = time.perf_counter()
                    call()
                    if repeat > 0:  # the first warms up, and draws a picture
                        found[what].append(time.perf_counter() - start)
    return found


def measure_commands(args: Args) -> dict[str, Samples]:
    """Rates of any commands, by the difference of a long and a short run, and their ratios."""
    found = defaultdict(lambda: defaultdict(list))
    for repeat in range(args.repeats):
        for named in args.commands:
            name, _, command = named.partition("=")
            say(f"{repeat + 1} of {args.repeats}: {name}")
            short, long = (
                run_command(shlex.split(command.replace("{steps}", str(steps))))[0]
                for steps in args.steps
            )
            rate = (args.steps[1] - args.steps[0]) / (long - short)
            found[name]["rate"].append(rate)
            first = args.commands[0].partition("=")[0]
            found[name]["ratio"].append(rate / found[first]["rate"][-1])
    return found


def bound_table(found: dict[tuple[str, ...], Samples]) -> str:
    columns = ("emulator", "act", "learn", "bound", "bound_overlapped", "whole")
    rows = [("algorithm", "precision", "variant", *columns, "whole / bound", "memory, GB")]
    for name, samples in found.items():
        rates = [told(samples[column]) for column in columns]
        rows.append((*name, *rates, told(samples["ratio"], 2), told(samples["memory_gb"], 2)))
    return table(rows)


def costs_table(found: dict[str, Samples], rates: dict[str, float]) -> str:
    """What logging, measurements and checkpoints take at the default intervals."""
    rows = [("algorithm", "seconds of", "each", "share of the time, %")]
    for algorithm, samples in found.items():
        args = script_args(algorithm)
        update = 1_000 if algorithm == "dqn" else args.num_envs * args.num_steps
        every = {
            "logging": update / rates[algorithm],
            "metrics": args.metrics_every / rates[algorithm],
            "checkpoint": 60 * args.checkpoint_every,
        }
        for what, values in samples.items():
            shares = [100 * value / every[what] for value in values]
            rows.append((algorithm, what, told(values, 3), told(shares, 2)))
    return table(rows)


def commands_table(found: dict[str, Samples]) -> str:
    rows = [("command", "agent steps/s", f"ratio to {next(iter(found))}")]
    rows += [(name, told(of["rate"]), told(of["ratio"], 2)) for name, of in found.items()]
    return table(rows)


def with_summaries(found: dict) -> dict:
    """For JSON: names joined, medians and ranges beside the values."""
    return {
        " ".join(name) if isinstance(name, tuple) else str(name): {
            what: summary(values) for what, values in samples.items()
        }
        for name, samples in found.items()
    }


def main(args: Args) -> int:
    check(args)
    folder = Path(args.output_dir) if args.output_dir else None
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output-dir {folder}: {error.strerror}") from None
    device = pick_device(args.device)
    result = {"machine": provenance(args)}
    if args.part == "bound":
        found = measure_bound(args, device)
        say(bound_table(found))
        configuration = (args.precisions[0], args.variants[-1])  # the defaults of the scripts
        rates = {
            algorithm: statistics.median(found[algorithm, *configuration]["whole"])
            for algorithm in args.algorithms
        }
        costs = {name: measure_costs(name, args, device, rate) for name, rate in rates.items()}
        say(costs_table(costs, rates))
        result |= {"bound": with_summaries(found), "costs_seconds": with_summaries(costs)}
    elif args.part == "scaling":
        found = measure_scaling(args.repeats, args.seconds, args.device)
        say(scaling_table(found, told, table))
        result |= {"scaling": with_summaries(found)}
    else:
        found = measure_commands(args)
        say(commands_table(found))
        result |= {"commands": with_summaries(found)}
    if folder is not None:
        write_json(folder / f"{args.part}.json", result)
        if args.part == "scaling":
            figure = scaling_figure(found, f"{result['machine']['processor']}, Breakout, Tanh (HR)")
            with written_whole(folder / "scaling.png") as file:
                figure.savefig(file, dpi=110)
    return 0


if __name__ == "__main__":
    launch(main, Args)
