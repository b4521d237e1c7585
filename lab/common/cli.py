"""The command line of a script: flags parsed and checked, refusals in one line, the variant's name.

Bad input ends in one line that says what is wrong and what would be right, and exit status 2.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import os
import re
import signal
import sys
from pathlib import Path

import torch
import tyro

from hadamard import ACTIVATIONS, COMBINES, INITS
from lab.training.atari import resolve_game

PAPER_VARIANTS = (
    *("relu", "tanh", "sigmoid", "selu", "tanh-hr", "sigmoid-hr", "relu-hr"),
    *("tanh-ln", "tanh-wide", "tanh-sum", "tanh-3hr"),
)


class UsageError(Exception):
    """Something a user can mend, told in one line: what is wrong and what would be right."""


def say(text: str, file=None):
    """Print at once; a reader that has gone away (a closed pipe or terminal) ends no run."""
    # RuntimeError: a signal came in the middle of another print.
    with contextlib.suppress(OSError, RuntimeError):
        print(text, file=file or sys.stdout, flush=True)


def counted(number: int, noun: str) -> str:
    """1 run, 2 runs, 1,000 runs."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def launch(main, args_class):
    """Parse the command line into `args_class`, run `main(args)` and exit with what it returns.

    A `UsageError` and a flag that does not parse end in one line on stderr and status 2.
    """
    for stream in (sys.stdout, sys.stderr):  # where the terminal knows only ASCII
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        sys.exit(main(parse_flags(args_class)))
    except UsageError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def parse_flags(args_class, argv=None, default=None):
    """The dataclass from the command line; tyro's boxed complaints become one `UsageError` line.

    `default`, an instance, has the values of the flags that are not given.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(args_class, args=argv, default=default)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        # Sections between rules, of which the second says it; in plain ASCII where the terminal is.
        sections = [""]
        for line in complaint.getvalue().splitlines():
            if re.search("─{3}|-{3}", line):
                sections.append("")
            else:
                sections[-1] += " " + line.strip("│| ")
        text = sections[1].strip() if len(sections) > 1 else "the flags do not parse"
        raise UsageError(f"{_plain(text, args_class)}; --help lists the flags") from None


def _plain(complaint: str, args_class) -> str:
    """What tyro says of a flag, in the words of its user."""
    types = {flag(field.name): str(field.type) for field in dataclasses.fields(args_class)}
    if parsing := re.match(r"Error parsing (--[\w-]+):.*'(.*)'", complaint):
        name, value = parsing.groups()
        whole = "int" in types.get(name, "") and "float" not in types.get(name, "")
        wanted = "a whole number, such as 1000" if whole else "a number, such as 0.001"
        return f"{name} must be {wanted}, not {value!r}"
    if not complaint.startswith("Unrecognized"):
        return complaint
    for unknown in complaint.partition(": ")[2].split(", "):
        similar = difflib.get_close_matches(unknown.split("=")[0], types, n=1, cutoff=0.85)
        if similar:
            return f"{complaint} (did you mean {similar[0]}?)"
        if unknown.lower() in ("true", "false", "yes", "no", "on", "off", "0", "1"):
            switches = [name for name, kind in types.items() if kind in ("bool", str(bool))]
            return f"{complaint} ({switches[0]} and the like take no value)"
    return complaint


def flag(name: str) -> str:
    """A field of Args as it is typed: num_envs -> --num-envs."""
    return "--" + name.replace("_", "-")


def require(args, condition: str, accept, *names: str):
    """UsageError for the first of these flags whose value is NaN or vast, or not accept(value).

    `condition` says in words what `accept` asks for.
    """
    for name in names:
        value = getattr(args, name)
        if not abs(value) < 1e18:
            raise UsageError(f"{flag(name)} must be {condition} and below 1e18, not {value}")
        if not accept(value):
            raise UsageError(f"{flag(name)} must be {condition}, not {value}")


def require_one_of(args, name: str, choices):
    """UsageError, with the choices, for a flag whose value is none of them."""
    if getattr(args, name) not in choices:
        choices = ", ".join(choices)
        raise UsageError(f"unknown {flag(name)} {getattr(args, name)!r}: choose one of {choices}")


def check_shared_flags(args):
    """UsageError for a bad value of any flag that all scripts share; nothing is touched."""
    check_machine(args)
    require_one_of(args, "activation", ACTIVATIONS)
    require_one_of(args, "combine", COMBINES)
    require_one_of(args, "init", INITS)
    require_one_of(args, "apply_to", ("last", "all"))
    require_one_of(args, "precision", ("fp32", "bf16"))
    positive = ("total_timesteps", "branches", "latent_dim", "metrics_every")
    require(args, "at least 1", lambda value: value >= 1, *positive)
    # A game takes a tenth of a second to make, and some megabytes.
    require(args, "between 1 and 4096", lambda value: 1 <= value <= 4096, "num_envs")
    require(args, "between 0 and 1024", lambda value: 0 <= value <= 1024, "env_threads")
    seeds = 2**31 - 1 - args.num_envs
    require(args, f"between 0 and {seeds}", lambda value: 0 <= value <= seeds, "seed")
    require(args, "in [0, 1)", lambda value: 0 <= value < 1, "sticky_actions")
    require(args, "at least 0", lambda value: value >= 0, "checkpoint_every")
    smallest = max(512, args.latent_dim)
    require(
        args,
        f"at least {smallest} (a rank needs as many samples as there are features)",
        lambda value: value >= smallest,
        "metrics_samples",
    )
    if args.track and importlib.util.find_spec("wandb") is None:
        raise UsageError("--track needs Weights & Biases: pip install wandb, or leave --track out")
    if not args.resume:
        check_folder(args, "runs_dir")


def check_machine(args):
    """UsageError for a game or a device that is not there."""
    try:
        resolve_game(args.env_id)
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_device(args)


def check_device(args):
    """UsageError for a device that is not there."""
    require_one_of(args, "device", ("auto", "cpu", "cuda"))
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no CUDA device; use --device cpu or auto")


def check_folder(args, name: str):
    """UsageError for a flag that names no folder that is there or can be made; none is made."""
    value = getattr(args, name)
    if not value.isprintable():
        raise UsageError(f"{flag(name)} {value!r} is no name that can be written in UTF-8")
    if not value:
        raise UsageError(f"{flag(name)} is empty: it must be a folder, such as runs")
    parent = Path(value).absolute()
    try:
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
    except OSError as error:
        raise UsageError(f"{flag(name)} {value}: {error.strerror}") from None
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{flag(name)} {value}: {parent} is not a folder one can write to")


def check_rollout_flags(args):
    """UsageError for rollouts that do not divide into minibatches or do not fit into the run."""
    counts = ("num_steps", "num_minibatches", "update_epochs")
    require(args, "at least 1", lambda value: value >= 1, *counts)
    batch_size = args.num_envs * args.num_steps
    rollout = f"--num-envs {args.num_envs} times --num-steps {args.num_steps} is {batch_size} steps"
    if batch_size > args.total_timesteps:
        raise UsageError(
            f"{rollout} per rollout: more than --total-timesteps {args.total_timesteps}; it must "
            "be at most that"
        )
    if batch_size % args.num_minibatches:
        # The nearest that does; 10,000 on either side are enough for any real batch.
        start = min(args.num_minibatches, batch_size)
        near = (start + sign * k for k in range(10_000) for sign in (-1, 1))
        closest = next((n for n in near if n > 0 and batch_size % n == 0), 1)
        raise UsageError(
            f"{rollout}, which --num-minibatches {args.num_minibatches} does not divide: {closest} "
            "would"
        )


def variant_name(args) -> str:
    """The paper's name for the hidden layers that the flags ask for, e.g. relu, tanh-hr, tanh-sum.

    Settings beyond the paper's get names of the same pattern, e.g. silu-hr or tanh-hr-ln. Whether
    the norm and the layers that change are named depends on the script's own defaults: `tanh-hr` is
    what the paper does with that algorithm.
    """
    default = {field.name: field.default for field in dataclasses.fields(args)}
    name = args.activation
    if args.branches > 1:
        count = "" if args.branches == 2 else str(args.branches)
        name += f"-{count}{'hr' if args.combine == 'product' else 'sum'}"
    if args.latent_dim != 512:
        name += "-wide" if args.latent_dim == 1024 else f"-z{args.latent_dim}"
    if args.layer_norm != default["layer_norm"]:
        name += "-ln" if args.layer_norm else "-noln"
    return name + (f"-{args.apply_to}" if args.apply_to != default["apply_to"] else "")


def variant_flags(name: str) -> list[str]:
    """The flags of a variant by its name, as `variant_name` gives it: tanh-hr, silu-3sum-z256-ln.

    UsageError for a name of another pattern. Whether the algorithm calls it so, too, the caller
    sees by `variant_name`: PQN is layer-normalised, so what DQN calls tanh-ln is its tanh.
    """
    parts = (r"(?:-(\d*)(hr|sum))?", r"(?:-(wide)|-z(\d+))?", "(?:-(ln|noln))?", "(?:-(last|all))?")
    pattern = f"({'|'.join(ACTIVATIONS)}){''.join(parts)}"
    if (match := re.fullmatch(pattern, name)) is None:
        raise UsageError(
            f"unknown variant {name!r}: choose one of the paper's ({', '.join(PAPER_VARIANTS)}) or "
            "one of their pattern, such as silu-3hr-z256-ln"
        )
    activation, count, combined, wide, width, norm, apply_to = match.groups()
    flags = ["--activation", activation, "--branches", str((count or 2) if combined else 1)]
    if combined:
        flags += ["--combine", "product" if combined == "hr" else "sum"]
    if wide or width:
        flags += ["--latent-dim", width or "1024"]
    if norm:
        flags += ["--layer-norm" if norm == "ln" else "--no-layer-norm"]
    if apply_to:
        flags += ["--apply-to", apply_to]
    return flags
