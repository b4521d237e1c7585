"""The flags of a benchmark."""

import shlex
from dataclasses import dataclass

from lab.bench.bound import VARIANTS
from lab.common.cli import UsageError, at_least, check_folder, one_of
from lab.training.algorithms import ALGORITHMS
from lab.training.checks import PRECISIONS, check_machine


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
    """of bound: fp32, bf16, tf32 (on a GPU)"""
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
    """Raise UsageError for a flag that cannot work, before anything is measured."""
    one_of(args, ("bound", "scaling", "compare"), "part")
    check_machine(args)
    known = {"algorithms": ALGORITHMS, "precisions": PRECISIONS, "variants": VARIANTS}
    for name, choices in known.items():
        if not getattr(args, name):
            raise UsageError(f"--{name} is empty: choose of {', '.join(choices)}")
        unknown = [value for value in getattr(args, name) if value not in choices]
        if unknown:
            raise UsageError(f"unknown --{name} {unknown[0]!r}: choose of {', '.join(choices)}")
    at_least(args, 1, "repeats")
    at_least(args, 0, "seconds")
    if args.part == "compare":
        check_commands(args)
    if args.output_dir:
        check_folder(args, "output_dir")


def check_commands(args: Args):
    """Raise UsageError unless the commands of compare have names, and room for their steps."""
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
