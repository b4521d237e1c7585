"""Speed against the limit of this machine: what emulator and kernels allow, and what a run does.

    python -m lab.bench                                 every algorithm, fp32 and bf16, plain and HR
    python -m lab.bench --algorithms pqn --precisions bf16 --variants tanh-hr
    python -m lab.bench --part scaling                  against games, threads, widths, branches,
                                                        runs; memory; one figure
    python -m lab.bench --part compare --steps 2048 9216 --commands "A=... {steps}" "B=... {steps}"

Everything is measured in turn, several times over; medians and ranges are printed and, with
--output-dir, written. A rate is agent steps per second; one agent step is 4 emulator frames.
Nothing else should run on the machine meanwhile.
"""

import contextlib
import signal
import statistics
import sys
from pathlib import Path

import torch

from lab.bench.bound import format_bound, format_costs, measure_bound, measure_costs
from lab.bench.compare import format_commands, measure_commands
from lab.bench.flags import Args, check
from lab.bench.scaling import draw_scaling, format_scaling, measure_scaling
from lab.common.cli import UsageError, describe_os, launch, say
from lab.common.device import pick_device
from lab.common.drawing import own_style
from lab.common.files import atomic_write, write_json
from lab.common.provenance import record_provenance


def summarise(samples: dict) -> dict:
    """Return medians, ranges and the values themselves, in their order, with names for JSON."""
    summary = {}
    for name, values_of in samples.items():
        joined = " ".join(map(str, name)) if isinstance(name, tuple) else name
        summary[joined] = {
            what: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "all": values,
            }
            for what, values in values_of.items()
        }
    return summary


class Results:
    """Keep what was measured in a folder, also of a benchmark that is broken off."""

    def __init__(self, args: Args, device: torch.device):
        self.folder = Path(args.output_dir) if args.output_dir else None
        self.part = args.part
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.content = {"device": self.device} | record_provenance(args)
        self.problem = ""  # of the newest attempt to write
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"--output-dir {self.folder}: {describe_os(error)}") from None

    def keep(self, name: str, samples: dict):
        """Write what was measured so far, under this name."""
        self.content[name] = summarise(samples)
        if self.folder is None:
            return
        try:
            write_json(self.folder / f"{self.part}.json", self.content)
            if self.part == "scaling":
                title = f"{self.content['processor']}, {self.device}: Breakout, Tanh (HR)"
                with atomic_write(self.folder / "scaling.png") as file, own_style():
                    draw_scaling(samples, title).savefig(file, format="png", dpi=80)
            self.problem = ""
        except OSError as error:
            self.problem = describe_os(error)


@contextlib.contextmanager
def end_by_signals():
    """End the block at SIGTERM and SIGHUP as an exception does; not where they are ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(args: Args) -> int:
    """Measure what --part asks for, print it and keep it."""
    check(args)
    device = pick_device(args.device)
    results = Results(args, device)
    with end_by_signals():  # the timed command ends, too; runs side by side are waited for
        measure(args, device, results)
    if results.problem:
        raise UsageError(
            f"--output-dir {results.folder}: {results.problem}; the tables above are not kept"
        )
    return 0


def measure(args: Args, device: torch.device, results: Results):
    """Measure one part, print its tables and keep what was measured."""
    if args.part == "bound":
        for samples in measure_bound(args, device):
            results.keep("bound", samples)
        say(format_bound(samples))
        costly = (
            args.precisions[0],
            args.variants[-1],
        )  # one setting: the first, and the last variant
        rates = {
            (algorithm, *costly): statistics.median(samples[algorithm, *costly]["whole"])
            for algorithm in args.algorithms
        }
        costs = {}
        for name, rate in rates.items():
            costs[name] = measure_costs(name, args, device, rate)
            results.keep("costs_seconds", costs)
        say(format_costs(costs, rates))
    elif args.part == "scaling":
        for samples in measure_scaling(args.repeats, args.seconds, args.device):
            results.keep("scaling", samples)
        say(format_scaling(samples))
    else:
        for samples in measure_commands(args):
            results.keep("commands", samples)
        say(format_commands(samples))


if __name__ == "__main__":
    launch(main, Args)
