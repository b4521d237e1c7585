"""The flags of a sweep."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import tyro

from lab.common.cli import UsageError, above, at_least, check_folder, flag
from lab.training.algorithms import ALGORITHMS, load_script
from lab.training.flags import translate_cleanrl

GROUPS = {  # of --help
    "runs": ("algorithms", "variants", "games", "seeds", "runs_dir", "dry_run"),
    "this machine": ("jobs", "per_gpu", "stalled_after"),
    "slurm": ("slurm", "partition", "hours", "gres", "cpus", "memory"),
}
SLURM_FLAGS = ("partition", "hours", "gres", "cpus", "memory")  # that only --slurm knows


@dataclass
class Args:
    """Many runs by name. What follows -- is passed on to every run."""

    algorithms: tuple[str, ...] = ALGORITHMS
    """dqn, ppo, pqn"""
    variants: tuple[str, ...] = ("relu", "tanh", "tanh-hr")
    """of the hidden layers, as docs/flags.md names them: relu, tanh, tanh-hr, tanh-ln, ..."""
    games: tuple[str, ...] = ("Breakout",)
    """as --env-id takes them"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """of each"""
    runs_dir: str = "runs"
    """where the run folders are made; the output of each run goes to logs/ there"""
    jobs: int = 0
    """runs at a time; 0: --per-gpu on every GPU, or without one as many as CPU cores"""
    per_gpu: int = 1
    """runs at a time on one GPU; more than 1 share it by NVIDIA's MPS, if that is installed"""
    stalled_after: float = 30.0
    """minutes without a word after which a run is taken for stuck, and killed"""
    dry_run: bool = False
    """only print what would be run, and what is there of it"""
    slurm: bool = False
    """submit the runs to Slurm, as one array of --jobs at a time; needs submitit"""
    partition: str = ""
    """with --slurm: the partition; empty: the cluster's default"""
    hours: float = 24.0
    """with --slurm: time limit of a job, which then goes on as often as its run needs it"""
    gres: str = ""
    """with --slurm: what each run needs, such as gpu:1, or shard:1 where GPUs are shared"""
    cpus: int = 4
    """with --slurm: cores of each run"""
    memory: float = 0.0
    """with --slurm: GB of memory for each run; 0: the cluster's default"""
    flags: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """flags of the scripts, after --; after a word dqn:, ppo: or pqn: those of one algorithm"""


def explain_flag(unknown: str) -> str:
    """Return where a flag of the scripts is typed, or nothing for what is none of theirs."""
    known = {
        flag(field.name)
        for algorithm in ALGORITHMS
        for field in dataclasses.fields(load_script(algorithm).Args)
    }
    plain = unknown.replace("_", "-").replace("--no-", "--")
    if plain in known:
        return f"a flag of the runs: it follows --, as in -- {unknown} ..."
    return translate_cleanrl(unknown)


def check(args: Args):
    """Raise UsageError for a flag that cannot work, before anything is made."""
    for name in ("algorithms", "variants", "games", "seeds"):
        if not getattr(args, name):
            raise UsageError(f"--{name} is empty: name at least one")
    at_least(args, 0, "jobs")
    at_least(args, 1, "per_gpu", "cpus")
    above(args, 0, "stalled_after")
    at_least(args, 0.1, "hours")
    if args.memory != 0:
        at_least(args, 0.1, "memory")
    check_folder(args, "runs_dir")
    for name in SLURM_FLAGS:
        if not args.slurm and getattr(args, name) != getattr(Args, name):
            raise UsageError(f"{flag(name)} is for jobs of Slurm: add --slurm, or leave it out")
    if args.slurm and args.per_gpu != Args.per_gpu:
        raise UsageError(
            "--per-gpu is for this machine: on Slurm runs share a GPU by --gres shard:1"
        )
