"""NVIDIA's Multi-Process Service: with it the runs on one GPU compute at the same time."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from lab.common.cli import say

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
PATIENCE = 20  # seconds that it may take to answer


def ask_mps(command: str, environment: dict | None = None) -> bool:
    """Send a command to the service; return whether there is one that understood it."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(
            [CONTROL],
            input=command + "\n",
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return asked.returncode == 0
    return False


@contextlib.contextmanager
def share_gpus(wanted: bool) -> Iterator[dict[str, str]]:
    """Start the service for the block if it is wanted, installed and not running; end it after.

    Yields what the environment of the runs needs to find it: nothing where it was not started. A
    service that cannot start is told in one line; runs then take turns on the GPU.
    """
    if not wanted or shutil.which(CONTROL) is None or ask_mps("get_server_list"):
        yield {}
        return
    folder, environment = "", {}
    try:
        folder = tempfile.mkdtemp(prefix="mps-")  # short, as a socket's path has to be
    except OSError as error:
        say(f"warning: runs take turns on a GPU, as MPS does not start: {error}", sys.stderr)
        yield {}
        return
    environment = {PIPES: folder, LOGS: folder}
    why = None  # it did not start; not known if that was broken off
    try:
        why = start_mps(environment)
        if why:
            say(f"warning: runs take turns on a GPU, as MPS does not start: {why}", sys.stderr)
            yield {}
        else:
            say("started NVIDIA's MPS: the runs on a GPU compute at the same time")
            yield environment
    finally:
        if not why:
            ask_mps("quit", environment)
        shutil.rmtree(folder, ignore_errors=True)


def start_mps(environment: dict[str, str]) -> str:
    """Start the service in the background; return why it did not, or an empty string."""
    # It sees all GPUs: it would number those of CUDA_VISIBLE_DEVICES anew, and not as runs do.
    own = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        started = subprocess.run(
            [CONTROL, "-d"],
            env=own | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return started.stderr.strip().split("\n")[-1] if started.returncode else ""
