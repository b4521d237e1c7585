"""What decides a result beside the code: flags, command, commit, machine, versions."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
DISTRIBUTION = "hadamard-rl"


def record_provenance(args) -> dict:
    """Return flags, command, commit, machine and versions, as plain values for JSON."""
    changes = run_git("status", "--porcelain", "--untracked-files=no")
    return {
        "flags": dataclasses.asdict(args),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": run_git("rev-parse", "HEAD"),
        "git_has_changes": None if changes is None else bool(changes),
        "processor": f"{processor_name()}, {os.cpu_count()} cores",
        "torch_threads": torch.get_num_threads(),  # sums depend on it in their last bits
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in required_libraries()},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def run_git(*command: str) -> str | None:
    """Return what git says of this project's own repository; None where there is none."""
    # Named, not searched for: what lies around an installed or unpacked copy is another repository,
    # and so is what a caller's GIT_DIR and the like name. Nor does git then ask who owns it.
    named = (f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", "--no-optional-locks")
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    with contextlib.suppress(OSError):
        done = subprocess.run(
            ["git", *named, *command], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None
    return None


def required_libraries() -> list[str]:
    """Return the names of the pinned libraries, from requirements.txt or the installed package."""
    path = ROOT / "requirements.txt"
    if path.exists():
        lines = path.read_text().splitlines()
    else:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    return [match[1] for line in lines if (match := re.match(r"([\w-]+)==[^;]*$", line))]


def processor_name() -> str:
    """Return the model of the processor, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
