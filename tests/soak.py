"""make soak: every algorithm killed, stopped and damaged at random, and compared bit for bit.

For each algorithm, with games of life losses and FIRE, sticky actions on and off, 1 and 2 threads,
fp32 and bf16: a run without a break, and one that is broken off up to `breaks` times (SIGKILL at
random moments and in the middle of a checkpoint's writing, and signals that ask it to stop) and
resumed each time, half of them with a flipped bit in the newest checkpoint after each break. Prints
a line per configuration and a summary; status 1 if anything differs or if fewer than 100 kills came
together.
"""

import collections
import itertools
import json
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from interruptions import differences, run_through, run_with_breaks  # noqa: E402

from lab.common.cli import launch  # noqa: E402
from lab.common.provenance import record_provenance  # noqa: E402

ROLLOUTS = ("--total-timesteps", 6144, "--num-steps", 32, "--num-minibatches", 4)
RUNS = {
    "dqn": (
        # More than the memory holds: it wraps, and so do its segments of 1,024 transitions.
        *("--total-timesteps", 6000, "--learning-starts", 3000, "--buffer-size", 4000),
        *("--target-network-frequency", 200),
    ),
    "ppo": (*ROLLOUTS, "--num-envs", 4),
    "pqn": (*ROLLOUTS, "--num-envs", 8),
}
WANTED = 100  # kills, in all
COMMON = ("--latent-dim", 64, "--metrics-samples", 512, "--metrics-every", 500)
COMMON += ("--checkpoint-every", 0.02)
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LONGEST = 2.0  # seconds of training between two breaks, so that many fit into a run of ten


def configurations(algorithms):
    """Algorithm, flags, threads and whether to damage; every pair of choices comes up."""
    for algorithm, (sticky, precision) in itertools.product(
        algorithms, itertools.product((0.0, 0.25), ("fp32", "bf16"))
    ):
        for threads in (1, 2):
            game = "Breakout" if (sticky > 0) == (threads == 1) else "Seaquest"
            flags = ("--env-id", game, "--sticky-actions", sticky, "--precision", precision)
            flags += ("--env-threads", threads)
            yield algorithm, flags, threads, (precision == "bf16") == (threads == 2)


@dataclass
class Args:
    breaks: int = 6
    """per configuration, of which there are 8 for each algorithm"""
    algorithms: tuple[Literal["dqn", "ppo", "pqn"], ...] = ("dqn", "ppo", "pqn")
    """to run"""
    seed: int = 1
    """of the moments"""
    output: str = ""
    """also write a summary to this JSON file"""


def main(args: Args) -> int:
    # Under nohup, or in a script's background, some are ignored, and children inherit that. They
    # inherit no handler: with one here they hear the signal, and this process does not end by it.
    for ignored in STOPS:
        if signal.getsignal(ignored) == signal.SIG_IGN:
            signal.signal(ignored, lambda number, frame: None)
    totals, found, lines = collections.Counter(), [], []
    for number, (algorithm, flags, threads, damage) in enumerate(configurations(args.algorithms)):
        kinds = [signal.SIGKILL if i % 2 == 0 else "writing" for i in range(args.breaks)]
        kinds[number % 3 :: 6] = [STOPS[number % 4]] * len(kinds[number % 3 :: 6])
        given = (*RUNS[algorithm], *COMMON, *flags)
        with tempfile.TemporaryDirectory() as folder:
            through, broken = Path(folder) / "through", Path(folder) / "broken"
            through.mkdir()
            broken.mkdir()
            one = run_through(algorithm, given, through, threads)
            other, counts = run_with_breaks(
                *(algorithm, given, broken, kinds, args.seed + number, LONGEST, threads, damage)
            )
            memory = {"buffer_size": 4000, "num_envs": 4} if algorithm == "dqn" else {}
            wrong = differences(one, other, **memory)
        totals += counts
        found += [f"{algorithm} {flags}: {difference}" for difference in wrong]
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        lines.append(f"{algorithm} {' '.join(map(str, flags))}, {threads} threads: {what}")
        print(f"{lines[-1]}: {len(wrong)} differences", flush=True)
    breaks = {kind: count for kind, count in totals.items() if kind != "damaged"}
    summary = {
        "configurations": len(lines),
        "runs": 2 * len(lines),
        "breaks": sum(breaks.values()),
        "by_kind": breaks,
        "kills": breaks.get("SIGKILL", 0) + breaks.get("writing", 0),
        "damaged_checkpoints": totals["damaged"],
        "differences": found,
        "lines": lines,
    }
    print(json.dumps({key: summary[key] for key in list(summary)[:-1]}, indent=2))
    if args.output:
        Path(args.output).write_text(json.dumps(record_provenance(args) | summary, indent=2) + "\n")
    if summary["kills"] < WANTED:
        print(
            f"only {summary['kills']} kills of the {WANTED} wanted: raise --breaks, "
            "or add a soak of another --seed"
        )
    return 1 if found or summary["kills"] < WANTED else 0


if __name__ == "__main__":
    launch(main, Args)
