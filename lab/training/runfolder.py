"""A run folder from outside: what decides the run, who works on it, how it is taken up again."""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from lab.common.cli import UsageError, flag, parse_flags, say, variant_name
from lab.training.atari import game_title, resolve_game
from lab.training.checkpoint import (
    FORMAT,
    Footer,
    newest_footer,
    newest_whole,
    other_version,
    written_whole,
)

# Flags that do not decide what a run computes; --total-timesteps may only grow.
# The emulator's threads change its speed, and no bit of what it does.
FREE = ("resume", "total_timesteps", "checkpoint_every", "runs_dir", "track", "env_threads")


def provenance(args) -> dict:
    """What decides a result: flags, command, commit, machine, versions."""

    def git(*command):
        folder = Path(__file__).parents[2]
        with contextlib.suppress(OSError):
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True)
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    changes = git("status", "--porcelain", "--untracked-files=no")
    requirements = (Path(__file__).parents[2] / "requirements.txt").read_text()
    libraries = re.findall(r"^([\w-]+)==", requirements, flags=re.MULTILINE)
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return {
        "flags": dataclasses.asdict(args),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": git("rev-parse", "HEAD"),
        "git_has_changes": None if changes is None else bool(changes),
        "processor": f"{processor}, {os.cpu_count()} cores",
        "torch_threads": torch.get_num_threads(),  # sums depend on it in their last bits
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in libraries},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe(args, algorithm: str, num_parameters: int, device: torch.device) -> dict:
    """What decides a run, for `config.json`."""
    return {
        "algorithm": algorithm,
        "game": game_title(resolve_game(args.env_id)),
        "variant": variant_name(args),
        "num_parameters": num_parameters,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    } | provenance(args)


def write_json(path: Path, value: dict):
    """The file whole, or as it was. Raises OSError."""
    with written_whole(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def lock(folder: Path):
    """Hold this run folder until the file that is returned is closed, or the process ends.

    UsageError if another process holds it, or it cannot be held.
    """
    try:
        file = (folder / "lock").open("a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"{folder} is in use by another process: wait for it to end, or stop it"
        ) from None
    except OSError as error:
        raise UsageError(f"{folder} cannot be locked: {error.strerror or error}") from None
    return file


def read_config(folder: Path, asked: str = "--resume ") -> dict:
    """The config.json of a run. UsageError, which starts with `asked`, if there is none."""
    try:
        if not folder.is_dir():
            what = "it is no folder" if folder.exists() else "there is no such folder"
            raise UsageError(f"{asked}{folder}: {what}; name one below runs/")
        config = json.loads((folder / "config.json").read_text())
        if not {"algorithm", "flags", "started"} <= config.keys():
            raise ValueError
        dict(**config["flags"])
        if not isinstance(config.get("finished", 0), int):
            raise ValueError
    except (OSError, ValueError, AttributeError, TypeError):
        raise UsageError(f"{asked}{folder}: it is no run, as it has no whole config.json") from None
    return config


def decisive(flags: dict) -> dict:
    """Those that decide what a run computes, step by step."""
    return {name: value for name, value in flags.items() if name not in FREE}


def saved_with(flags: dict) -> dict:
    """The flags that a checkpoint belongs to; the device may have been chosen by itself."""
    return {name: value for name, value in decisive(flags).items() if name != "device"}


@functools.lru_cache(maxsize=10_000)
def _unchanged_config(folder: Path, time_ns: int) -> dict:
    """`read_config`, once for each version of the file: a sweep asks for each of many runs."""
    return read_config(folder)


class Found(NamedTuple):
    """A run that is there: when it was started, its folder, the end of its newest checkpoint.

    And the agent step at which it finished, which stays where its checkpoints are taken away.
    """

    started: str
    folder: Path
    footer: Footer | None
    finished: int = 0

    def has_finished(self, args) -> bool:
        saved = 0 if self.footer is None else self.footer.step
        return max(saved, self.finished) >= args.total_timesteps


def runs_of(args, algorithm: str) -> list[Found]:
    """The runs of this algorithm and these flags below --runs-dir."""

    defaults = dataclasses.asdict(type(args)())  # for a flag that came in since

    def asked_for(flags: dict) -> dict:
        return decisive(defaults | flags) | {"total_timesteps": flags.get("total_timesteps")}

    wanted, found = asked_for(dataclasses.asdict(args)), []
    for path in Path(args.runs_dir).glob("*/config.json"):
        with contextlib.suppress(UsageError, OSError):
            config = _unchanged_config(path.parent, path.stat().st_mtime_ns)
            if config["algorithm"] == algorithm and asked_for(config["flags"]) == wanted:
                footer, finished = newest_footer(path.parent), config.get("finished", 0)
                found.append(Found(config["started"], path.parent, footer, finished))
    return found


def unfinished(args, algorithm: str) -> Path | None:
    """The newest run of the same algorithm and flags, below --runs-dir, that can go on.

    UsageError if one of them is in use by another process, which may not have a checkpoint yet.
    """
    found = []
    for run in runs_of(args, algorithm):
        if run.has_finished(args):
            continue
        if run.footer is not None and run.footer.format != FORMAT:
            say(f"{run.folder} is left alone: it was {other_version(run.footer)}")
            continue
        found.append((run.started, run.folder, run.footer is not None))
    for _, folder, _ in found:
        if in_use(folder):
            raise UsageError(
                f"{folder}, a run of these flags, is in use by another process: wait for it to "
                "end, or stop it"
            )
    return max((run[:2] for run in found if run[2]), default=(None, None))[1]


def in_use(folder: Path) -> bool:
    """Whether another process holds this run folder."""
    with contextlib.suppress(FileNotFoundError, PermissionError), (folder / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def same_game(one: str, other: str) -> bool:
    """Whether both are names of one game."""
    with contextlib.suppress(ValueError):
        return resolve_game(one) == resolve_game(other)
    return False


def saved_flags(args_class, folder: Path, config: dict, own: dict, asked: str = "--resume "):
    """The flags of a run. UsageError if they are not those of this version, or of another kind."""
    try:
        saved = args_class(**(config["flags"] | own))
    except TypeError as error:
        raise UsageError(
            f"{asked}{folder}: its flags are not those of this version ({error}); resume it with "
            f"commit {config.get('git_commit')}"
        ) from None
    for field in dataclasses.fields(args_class):
        value = getattr(saved, field.name)
        if not isinstance(value, (field.type, int) if field.type is float else field.type):
            raise UsageError(
                f"{asked}{folder}: config.json has {field.name} {value!r}, which is no "
                f"{getattr(field.type, '__name__', field.type)}: put it back"
            )
    return saved


def resolve_resume(args, algorithm: str):
    """The flags to run with: those given or, with --resume, those of that run.

    None if that run has finished. `--resume auto` takes the unfinished run of the same flags, or
    starts a new one. Besides it only --total-timesteps (more than before) and flags that decide no
    number may be given. UsageError, before anything is touched, for a path that is no run of this
    algorithm, has no checkpoint or comes from another version, and for a flag that contradicts.
    """
    if not args.resume:
        return args
    automatic = args.resume == "auto"
    folder = unfinished(args, algorithm) if automatic else Path(args.resume)
    if folder is None:
        return dataclasses.replace(args, resume="")
    config = read_config(folder)
    if config["algorithm"] != algorithm:
        raise UsageError(
            f"--resume {folder}: it is a run of {config['algorithm']}; resume it with "
            f"{config['algorithm']}_atari.py"
        )
    footer = newest_footer(folder)
    if footer is None and config.get("finished"):
        raise UsageError(
            f"--resume {folder}: it has finished ({config['finished']:,} agent steps), and the "
            "checkpoints are gone from which it could be made longer"
        )
    if footer is None:
        raise UsageError(f"--resume {folder}: it has no whole checkpoint.pt; start the run anew")
    if footer.format != FORMAT:
        raise UsageError(
            f"--resume {folder}: it was {other_version(footer)}; resume it with that one, commit "
            f"{config.get('git_commit')}"
        )
    own = {"resume": str(folder), "runs_dir": str(folder.parent)}
    if config["flags"].get("device") == "auto":  # as it was found then, also on another machine
        own["device"] = "cpu" if config.get("device", "cpu") == "cpu" else "cuda"
    saved = saved_flags(type(args), folder, config, own)
    if automatic:
        kept = ("checkpoint_every", "track", "env_threads")
        free = {name: getattr(args, name) for name in kept}
        given = dataclasses.replace(saved, **free)
    else:
        given = parse_flags(type(args), default=saved)
    own["env_id"] = saved.env_id  # as it was named, not as it may be named now
    contradicting = [
        f"{flag(name)} {value} contradicts the run in {folder}, which has {getattr(saved, name)}"
        for name, value in decisive(dataclasses.asdict(given)).items()
        if value not in (getattr(saved, name), config["flags"].get(name))
        and not (name == "env_id" and same_game(value, saved.env_id))
    ]
    if contradicting:
        raise UsageError("; ".join(contradicting) + ": leave it out, or start a new run")
    if given.total_timesteps < saved.total_timesteps:
        raise UsageError(
            f"--total-timesteps {given.total_timesteps} is less than the {saved.total_timesteps} "
            f"of the run in {folder}: it may only be raised"
        )
    if footer.step >= given.total_timesteps:
        say(
            f"{folder} has finished: {footer.step:,} agent steps; a larger --total-timesteps would "
            "go on"
        )
        return None
    newest_whole(folder, saved_with(config["flags"]))
    return dataclasses.replace(given, **own)


def resumed_config(folder: Path, now: dict, step: int) -> dict:
    """config.json of a run that goes on from this step; where and how is added to it.

    `now` describes the run as it goes on (`describe`).
    """
    config = read_config(folder)
    config["flags"]["total_timesteps"] = now["flags"]["total_timesteps"]
    config.pop("finished", None)
    kept = ("command", "git_commit", "git_has_changes", "device", "processor", "torch_threads")
    kept += ("versions", "started")
    config.setdefault("resumed", []).append({"step": step} | {name: now[name] for name in kept})
    return config
