"""make soak: every algorithm killed, stopped and damaged at random, and compared bit for bit.

For each algorithm, with a game of life losses and FIRE, sticky actions on and off, 1 and 2 threads,
fp32 and bf16: a run without a break, and one that is broken off `breaks` times (SIGKILL at random
moments, SIGKILL in the middle of a checkpoint's writing, SIGTERM, SIGINT, SIGUSR1, in turn) and
resumed each time, half of them with a flipped bit in the newest checkpoint after each break. Prints
a line per configuration and a summary; status 1 if anything differs.
"""

import collections
import itertools
import json
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from interruptions import differences, run_through, run_with_breaks  # noqa: E402

from flags import launch  # noqa: E402
from runfolder import provenance  # noqa: E402

ROLLOUTS = ("--total-timesteps", 3072, "--num-steps", 32, "--num-minibatches", 4)
RUNS = {
    "dqn": (
        *("--total-timesteps", 3000, "--learning-starts", 600, "--buffer-size", 2000),
        *("--target-network-frequency", 200),
    ),
    "ppo": (*ROLLOUTS, "--num-envs", 4),
    "pqn": (*ROLLOUTS, "--num-envs", 8),
}
COMMON = ("--latent-dim", 64, "--metrics-samples", 512, "--metrics-every", 500)
COMMON += ("--checkpoint-every", 0.02)
KINDS = [signal.SIGKILL, "writing", signal.SIGTERM, signal.SIGKILL, "writing", signal.SIGINT]
KINDS += [signal.SIGKILL, "writing", signal.SIGUSR1]


def configurations():
    """Algorithm, flags, threads and whether to damage; every pair of choices comes up."""
    for algorithm, (sticky, precision) in itertools.product(
        RUNS, itertools.product((0.0, 0.25), ("fp32", "bf16"))
    ):
        for threads in (1, 2):
            game = "Breakout" if (sticky > 0) == (threads == 1) else "Seaquest"
            flags = ("--env-id", game, "--sticky-actions", sticky, "--precision", precision)
            flags += ("--env-threads", threads)
            yield algorithm, flags, threads, (precision == "bf16") == (threads == 2)


@dataclass
class Args:
    breaks: int = 6
    """per configuration, of which there are 24"""
    seed: int = 1
    """of the moments"""
    output: str = ""
    """also write a summary to this JSON file"""


def main(args: Args) -> int:
    totals, found, lines = collections.Counter(), [], []
    for number, (algorithm, flags, threads, damage) in enumerate(configurations()):
        kinds = [KINDS[(number + i) % len(KINDS)] for i in range(args.breaks)]
        given = (*RUNS[algorithm], *COMMON, *flags)
        with tempfile.TemporaryDirectory() as folder:
            through, broken = Path(folder) / "through", Path(folder) / "broken"
            through.mkdir()
            broken.mkdir()
            start = time.monotonic()
            one = run_through(algorithm, given, through, threads)
            longest = time.monotonic() - start
            other, counts = run_with_breaks(
                *(algorithm, given, broken, kinds, args.seed + number, longest, threads, damage)
            )
            memory = {"buffer_size": 2000, "num_envs": 4} if algorithm == "dqn" else {}
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
        Path(args.output).write_text(json.dumps(provenance(args) | summary, indent=2) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    launch(main, Args)
