"""Speed against the limit of this machine: what emulator and kernels allow, and what a run does.

    python benchmark.py                                 every algorithm, fp32 and bf16, plain and HR
    python benchmark.py --algorithms pqn --precisions bf16 --variants tanh-hr
    python benchmark.py --part scaling                  against games, threads, widths, branches,
                                                        runs; memory; one figure
    python benchmark.py --part compare --steps 2048 9216 --commands "A=... {steps}" "B=... {steps}"

Everything is measured in turn, several times over; medians and ranges are printed and, with
--output-dir, written. A rate is agent steps per second; one agent step is 4 emulator frames.
Nothing else should run on the machine meanwhile.
"""

import contextlib
import io
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.bench.scaling import measure_scaling, scaling_figure, scaling_table
from lab.bench.timing import (
    emulator_seconds,
    kernels,
    run_command,
    seconds_each,
    table,
    told,
    whole_run,
)
from lab.common.cli import (
    UsageError,
    check_folder,
    check_machine,
    launch,
    require,
    require_one_of,
    say,
)
from lab.common.device import pick_device
from lab.common.files import made_if_used, unwound_by_signals
from lab.sweep.plan import ALGORITHMS, script, script_args
from lab.training.atari import AtariEnvs
from lab.training.checkpoint import written_whole
from lab.training.replay import SEGMENT, RecentObs, ReplayBuffer
from lab.training.run import Run
from lab.training.runfolder import provenance, write_json

VARIANTS = {"relu": ("--activation", "relu", "--branches", "1"), "tanh-hr": ()}
Samples = dict[str, list[float]]  # what was measured -> once per repeat


@dataclass
class Args:
    """Speed against this machine's own limit, in agent steps per second. Run nothing else."""

    part: str = "bound"
    """bound: emulator, kernels, whole runs and what else takes time; scaling: against games,
    threads, widths, branches and runs side by side, and memory; compare: any commands with one
    another"""
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
    """that a measurement of emulator or kernels alone takes, at least; whole runs take what they
    take, a minute or so each"""
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
        if not getattr(args, name):
            raise UsageError(f"--{name} is empty: choose of {', '.join(choices)}")
        unknown = [value for value in getattr(args, name) if value not in choices]
        if unknown:
            raise UsageError(f"unknown --{name} {unknown[0]!r}: choose of {', '.join(choices)}")
    require(args, "at least 1", lambda value: value >= 1, "repeats")
    require(args, "at least 0", lambda value: value >= 0, "seconds")
    if args.part == "compare":
        if not args.commands:
            raise UsageError('--part compare needs --commands "NAME=COMMAND ... {steps}" ...')
        names = [command.partition("=")[0].strip() for command in args.commands]
        for name, command in zip(names, args.commands, strict=True):
            if not name or "=" not in command or "{steps}" not in command:
                raise UsageError(f"--commands {command!r}: it must be NAME=COMMAND with {{steps}}")
            try:
                shlex.split(command)
            except ValueError as error:
                raise UsageError(f"--commands {command!r}: {error}; close it") from None
            if names.count(name) > 1:
                raise UsageError(f"--commands: two are called {name!r}; give each its own name")
        if not 0 < args.steps[0] < args.steps[1]:
            raise UsageError(f"--steps {args.steps}: the first must be above 0, the second larger")
    if args.output_dir:
        check_folder(args, "output_dir")


def summary(values: list[float]) -> dict:
    """Median and range, and the values themselves, in the order in which they were measured."""
    middle = statistics.median(values)
    return {"median": middle, "min": min(values), "max": max(values), "all": values}


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


def measure_bound(args: Args, device: torch.device):
    """Per algorithm, precision and variant: the rates of the parts, the bounds and whole runs.

    Yields what there is after each repeat. `bound` is what the parts allow one after the other.
    `bound_overlapped` is what they would allow if nothing waited for anything: on a GPU games and
    kernels at the same time; on the CPU as many runs as cores, each with one thread and undisturbed
    by the others. One run cannot reach it, as an action waits for the game and the game for it.
    """
    found = defaultdict(lambda: defaultdict(list))
    threads, ready = torch.get_num_threads(), {}
    names = [(a, p, v) for a in args.algorithms for p in args.precisions for v in args.variants]
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
            parts = seconds_per_step(ready[name], ready[algorithm, 0], args.seconds, device)
            if device.type == "cpu":
                torch.set_num_threads(1)
                one = seconds_per_step(ready[name], ready[algorithm, 1], args.seconds, device)
                torch.set_num_threads(threads)
                overlapped = threads / sum(one.values())
            else:
                overlapped = 1 / max(parts["emulator"], parts["act"] + parts["learn"])
            whole = whole_run(algorithm, args.device, *flags)
            rates = {part: 1 / seconds for part, seconds in parts.items()}
            rates |= {"bound": 1 / sum(parts.values()), "bound_overlapped": overlapped}
            rates |= {"whole": whole.rate, "memory_gb": whole.memory_gb}
            rates |= {"ratio": whole.rate / rates["bound"]}
            rates |= {"ratio_overlapped": whole.rate / overlapped}
            for what, value in rates.items():
                found[name][what].append(value)
        yield found


def measure_costs(name: tuple[str, ...], args: Args, device: torch.device, rate: float) -> Samples:
    """Seconds that go to what is not training: one log, measurement of the layer, checkpoint.

    `name`: algorithm, precision, variant. The measurement is one without the picture that every
    tenth has. The checkpoint is one between two updates; of DQN's replay memory it holds what 10
    minutes bring at this rate.
    """
    algorithm, precision, variant = name
    found = defaultdict(list)
    # Beside the project, as runs are: the system's folder for such files may lie in memory.
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=Path(__file__).parents[2]) as folder:
        flags = (*VARIANTS[variant], "--precision", precision, "--env-id", args.env_id)
        # Measured after every step.
        flags += ("--metrics-every", "1")
        of_script = script_args(algorithm, "--runs-dir", folder, *flags)
        kernel, memory, segments = kernels(algorithm, of_script, device), None, range(0)
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
        losses = {f"losses/{i}": 0.0 for i in range(7)}
        network = next(iter(kernel.parts.values()))
        with quiet(), Run(of_script, algorithm, network, tuple(losses)) as run:
            for repeat in range(args.repeats + 1):
                for index in segments:
                    memory.dirty.add(index)
                    for part in memory.segment(index) if repeat == 0 else ():
                        part.zero_()  # the system gives the memory only now
                calls = (
                    ("logging", lambda: run.log(losses)),
                    ("metrics", lambda: run.measure(recent, kernel.head)),
                    ("checkpoint", lambda: run.checkpoint(parts, now=True)),
                )
                run.count_step({})
                for what, call in calls:
                    start = time.perf_counter()
                    call()
                    if repeat > 0:  # the first warms up, and draws the picture
                        found[what].append(time.perf_counter() - start)
                if run.stopped is not None:
                    sys.exit(128 + run.stopped)
                if run.checkpoints.step != run.step:
                    raise UsageError(f"no checkpoint could be written to {folder}")
        games.close()
    return found


def measure_commands(args: Args):
    """Rates of any commands, by the difference of a long and a short run, and their ratios.

    Yields what there is after each repeat.
    """
    found = defaultdict(lambda: defaultdict(list))
    first = args.commands[0].partition("=")[0]
    for repeat in range(args.repeats):
        for named in args.commands:
            name, _, command = named.partition("=")
            say(f"{repeat + 1} of {args.repeats}: {name}")
            short, long = (
                run_command(shlex.split(command.replace("{steps}", str(steps))))[0]
                for steps in args.steps
            )
            if long <= short:
                raise UsageError(
                    f"{name}: {args.steps[1]} steps took no longer than {args.steps[0]}: choose "
                    "--steps that lie further apart"
                )
            rate = (args.steps[1] - args.steps[0]) / (long - short)
            found[name]["rate"].append(rate)
            found[name]["ratio"].append(rate / found[first]["rate"][-1])
        yield found


def bound_table(found: dict[tuple[str, ...], Samples]) -> str:
    """Rates in agent steps per second, each as median (min to max)."""
    columns = ("emulator", "act", "learn", "bound", "bound_overlapped", "whole")
    rows = [("algorithm", "precision", "variant", *columns, "whole / bound", "memory, GB")]
    for name, samples in found.items():
        rates = [told(samples[column]) for column in columns]
        rows.append((*name, *rates, told(samples["ratio"], 2), told(samples["memory_gb"], 2)))
    return table(rows)


def costs_table(found: dict[tuple[str, ...], Samples], rates: dict[tuple[str, ...], float]) -> str:
    """What logging, measurements and checkpoints take at the default intervals."""
    rows = [("algorithm", "precision", "variant", "of", "seconds each", "share of the time, %")]
    for name, samples in found.items():
        args = script_args(name[0])
        logged = script("dqn").LOG_EVERY if name[0] == "dqn" else args.num_envs * args.num_steps
        every = {
            "logging": logged / rates[name],
            "metrics": args.metrics_every / rates[name],
            "checkpoint": 60 * args.checkpoint_every,
        }
        for what, values in samples.items():
            shares = [100 * value / every[what] for value in values]
            rows.append((*name, what, told(values, 3), told(shares, 2)))
    return table(rows)


def commands_table(found: dict[str, Samples]) -> str:
    """Each command's rate, and its ratio to the first, repeat by repeat."""
    rows = [("command", "agent steps/s", f"ratio to {next(iter(found))}")]
    rows += [(name, told(of["rate"]), told(of["ratio"], 2)) for name, of in found.items()]
    return table(rows)


def with_summaries(found: dict) -> dict:
    """For JSON: names joined, medians and ranges beside the values."""
    return {
        " ".join(map(str, name)) if isinstance(name, tuple) else name: {
            what: summary(values) for what, values in samples.items()
        }
        for name, samples in found.items()
    }


def main(args: Args) -> int:
    check(args)
    folder = Path(args.output_dir) if args.output_dir else None
    with unwound_by_signals(), made_if_used(folder) if folder else contextlib.nullcontext():
        return measure(args, folder)


def measure(args: Args, folder: Path | None) -> int:
    """What --part asks for: measured, printed, and kept in the folder."""
    problem = None  # of the last attempt to write into it
    device = pick_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result = {"device": name} | provenance(args)

    def keep(**found):
        """Also of a benchmark that is broken off, there is what was measured."""
        nonlocal problem
        result.update({what: with_summaries(samples) for what, samples in found.items()})
        if folder is None:
            return
        try:
            write_json(folder / f"{args.part}.json", result)
            if args.part == "scaling":
                title = f"{result['processor']}, {name}: Breakout, Tanh (HR)"
                with written_whole(folder / "scaling.png") as file:
                    scaling_figure(found["scaling"], title).savefig(file, dpi=80)
            problem = None
        except OSError as error:
            problem = error.strerror or error

    if args.part == "bound":
        for found in measure_bound(args, device):
            keep(bound=found)
        say(bound_table(found))
        costly = (args.precisions[0], args.variants[-1])  # in a full benchmark, the defaults
        rates = {
            (algorithm, *costly): statistics.median(found[algorithm, *costly]["whole"])
            for algorithm in args.algorithms
        }
        costs = {}
        for which, rate in rates.items():
            costs[which] = measure_costs(which, args, device, rate)
            keep(costs_seconds=costs)
        say(costs_table(costs, rates))
    elif args.part == "scaling":
        for found in measure_scaling(args.repeats, args.seconds, args.device):
            keep(scaling=found)
        say(scaling_table(found))
    else:
        for found in measure_commands(args):
            keep(commands=found)
        say(commands_table(found))
    if problem is not None:
        raise UsageError(f"--output-dir {folder}: {problem}; the tables above are not kept")
    return 0


if __name__ == "__main__":
    launch(main, Args)
