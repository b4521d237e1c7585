"""Any commands against one another: rates by the difference of a long and a short run."""

import shlex
from collections import defaultdict
from collections.abc import Iterator

from lab.bench.bound import Samples
from lab.bench.timing import run_command
from lab.common.cli import UsageError, say
from lab.common.tables import format_range, markdown_table


def measure_commands(args) -> Iterator[dict]:
    """Measure the rates of commands, by the difference of a long and a short run, and ratios.

    Yields what there is after each repeat.
    """
    results = defaultdict(lambda: defaultdict(list))
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
            results[name]["rate"].append(rate)
            results[name]["ratio"].append(rate / results[first]["rate"][-1])
        yield results


def format_commands(results: dict[str, Samples]) -> str:
    """Format each command's rate, and its ratio to the first, repeat by repeat."""
    rows = [("command", "agent steps/s", f"ratio to {next(iter(results))}")]
    rows += [
        (name, format_range(of["rate"]), format_range(of["ratio"], 2))
        for name, of in results.items()
    ]
    return markdown_table(rows)
