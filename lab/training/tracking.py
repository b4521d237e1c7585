"""Weights & Biases, for who asks for it by --track."""

import contextlib
import os
from pathlib import Path

from lab.common.cli import UsageError

SENT = "tracked_until.txt"  # in the run folder: the agent step of what was sent last
# What `wandb.init` is given, unless the user's environment says it.
VARIABLES = {
    "project": "WANDB_PROJECT",
    "name": "WANDB_NAME",
    "id": "WANDB_RUN_ID",
    "resume": "WANDB_RESUME",
}


class Tracker:
    """Send the scalars of one run; after a kill, go on behind what was sent already.

    `run` is what `wandb.init` returns. A resumed run plays the steps since its checkpoint again:
    they were sent, and Weights & Biases would show them twice.
    """

    def __init__(self, run, folder: Path):
        self.run, self._file, self._newest = run, None, -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self._file = os.open(folder / SENT, flags, 0o666)
            self._newest = int(os.pread(self._file, 32, 0))
        except (OSError, ValueError):  # nothing in it yet, or a disk that is full
            pass
        self._sent_before = self._newest

    def send(self, values: dict[str, float], step: int):
        """Send scalars by tag, unless those of this agent step were sent by an earlier process."""
        if step <= self._sent_before:
            return
        if step > self._newest:
            self._note(step)
        self.run.log(values | {"global_step": step})

    def _note(self, step: int):
        """Write down, before it is sent, up to where that is; a kill leaves the whole number."""
        self._newest = step
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: after a kill some are sent twice
                os.pwrite(self._file, b"%020d\n" % step, 0)

    def finish(self, failed: bool):
        """End the run there."""
        self.run.finish(exit_code=int(failed))
        if self._file is not None:
            os.close(self._file)
            self._file = None


def start_tracking(folder: Path, config: dict) -> Tracker | None:
    """Start a run of Weights & Biases, if --track asks for it; return what sends to it, or None.

    Project, name, id and resumption are those of its environment variables, or else ours. Raises
    UsageError if it does not take the run.
    """
    if not config["flags"]["track"]:
        return None
    import wandb  # optional: only who asks for it needs it

    ours = {"project": "hadamard-rl", "name": folder.name, "id": folder.name, "resume": "allow"}
    given = {key: value for key, value in ours.items() if not os.environ.get(VARIABLES[key])}
    try:
        run = wandb.init(config=config, **given)
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
    except Exception as error:  # of many kinds, and no fault of the run
        raise UsageError(
            f"--track: Weights & Biases does not take the run ({error}); log in, set "
            "WANDB_MODE=offline, or leave --track out"
        ) from None
    return Tracker(run, folder)
