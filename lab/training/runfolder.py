"""A run folder: its name, what decides the run, who works on it, which runs are there."""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import nn

from lab.common.cli import UsageError, describe_os
from lab.common.files import open_regular
from lab.common.provenance import record_provenance
from lab.common.runconfig import read_run_config
from lab.common.variants import FREE_FLAGS, variant_name
from lab.training.atari import game_title, resolve_game
from lab.training.checkpoint import Footer, read_newest_footer


def describe(args, algorithm: str, network: nn.Module) -> dict:
    """Return what decides a run, for `config.json`; the network has the encoder of the flags."""
    device = next(network.parameters()).device
    return {
        "algorithm": algorithm,
        "game": game_title(resolve_game(args.env_id)),
        "variant": variant_name(args),
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "multiply_adds": network.count_multiply_adds(),  # forward pass of one observation
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda_graphs": device.type == "cuda" and args.cuda_graphs,
    } | record_provenance(args)


@contextlib.contextmanager
def fresh_folder(args, config: dict) -> Iterator[Path]:
    """Make a folder for a new run; take it away again if the block raises.

    Raises UsageError if it, or what the block writes, cannot be written.
    """
    runs_dir = Path(args.runs_dir)
    when = datetime.datetime.fromisoformat(config["started"]).strftime("%Y%m%d-%H%M%S")
    stem = [config["game"], config["algorithm"], config["variant"], args.tag, f"s{args.seed}", when]
    name = "__".join(filter(None, stem))
    missing = [folder for folder in (runs_dir, *runs_dir.parents) if not folder.exists()]
    folder, attempt, is_made = runs_dir / name, 1, False
    try:
        while not is_made:
            try:
                folder.mkdir(parents=True)
                is_made = True
            except FileExistsError:
                if not runs_dir.is_dir():
                    raise
                attempt += 1
                folder = runs_dir / f"{name}-{attempt}"
        yield folder
    except BaseException as error:
        if is_made:  # else the name may be that of another run
            shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise UsageError(f"--runs-dir {runs_dir}: {describe_os(error)}") from None
        raise


def lock(folder: Path) -> IO:
    """Hold this run folder until the file that is returned is closed, or the process ends.

    Raises UsageError if another process holds it, or it cannot be held.
    """
    try:
        file = open_regular(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"{folder} is in use by another process: wait for it to end, or stop it"
        ) from None
    except OSError as error:
        raise UsageError(f"{folder} cannot be locked: {describe_os(error)}") from None
    return file


def in_use(folder: Path) -> bool:
    """Return whether another process holds this run folder."""
    with contextlib.suppress(OSError), open_regular(folder / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_config(folder: Path, asked: str = "--resume ") -> dict:
    """Read the config.json of a run. Raise UsageError, begun with `asked`, if there is none."""
    try:
        if not folder.is_dir():
            what = "it is no folder" if folder.exists() else "there is no such folder"
            raise UsageError(f"{asked}{folder}: {what}; name one below runs/")
        return read_run_config(folder / "config.json")
    except (OSError, ValueError) as error:
        what = describe_os(error) if isinstance(error, OSError) else error
        raise UsageError(
            f"{asked}{folder}: it is no run, as it has no whole config.json ({what})"
        ) from None


@functools.lru_cache(maxsize=10_000)
def _read_unchanged_config(folder: Path, time_ns: int) -> dict:
    """Read each version of a config.json once: a sweep asks for each of many runs."""
    return read_config(folder)


def select_deciding_flags(flags: dict) -> dict:
    """Return those of the flags that decide what a run computes, step by step."""
    # --total-timesteps decides only where a run ends: it may grow.
    free = (*FREE_FLAGS, "total_timesteps")
    return {name: value for name, value in flags.items() if name not in free}


def select_identifying_flags(flags: dict) -> dict:
    """Return the flags by which a run is told from others: those that decide it, and its length."""
    return select_deciding_flags(flags) | {"total_timesteps": flags.get("total_timesteps")}


def select_checkpoint_flags(flags: dict) -> dict:
    """Return the flags that a checkpoint belongs to; the device may have been chosen by itself."""
    return {name: value for name, value in select_deciding_flags(flags).items() if name != "device"}


class RunOnDisk(NamedTuple):
    """A run that is there: when it was started, its folder, the end of its newest checkpoint.

    And the agent step at which it finished, which stays where its checkpoints are taken away.
    """

    started: str
    folder: Path
    footer: Footer | None
    finished: int = 0

    def has_finished(self, args) -> bool:
        """Return whether the run has taken as many steps as these flags ask for."""
        saved = 0 if self.footer is None else self.footer.step
        return max(saved, self.finished) >= args.total_timesteps


def find_runs_of(args, algorithm: str) -> list[RunOnDisk]:
    """Return the runs of this algorithm and these flags below --runs-dir."""
    # For a flag that came in since. A length is no such flag: where there is none, none is meant.
    defaults = dataclasses.asdict(type(args)()) | {"total_timesteps": None}
    wanted, runs = select_identifying_flags(dataclasses.asdict(args)), []
    for path in Path(args.runs_dir).glob("*/config.json"):
        with contextlib.suppress(UsageError, OSError):
            config = _read_unchanged_config(path.parent, path.stat().st_mtime_ns)
            if config["algorithm"] == algorithm and wanted == (
                select_identifying_flags(defaults | config["flags"])
            ):
                footer, finished = read_newest_footer(path.parent), config.get("finished", 0)
                runs.append(RunOnDisk(config["started"], path.parent, footer, finished))
    return runs
