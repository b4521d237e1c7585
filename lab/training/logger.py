"""Where the numbers of a run go: TensorBoard, Weights & Biases if asked for, and a last report."""

import contextlib
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from lab.common.cli import UsageError, describe_os, say
from lab.common.files import atomic_write, write_json
from lab.training.board import Board
from lab.training.tracking import Tracker


class Means:
    """Collect values between two logs, for their means; a part of a checkpoint."""

    def __init__(self, device: torch.device):
        self.device = device
        self.values: dict[str, list[Tensor]] = {}

    def add(self, values: dict[str, Tensor]):
        """Take scalars by tag; on a GPU nothing waits for them."""
        for tag, value in values.items():
            self.values.setdefault(tag, []).append(value)

    def pop(self) -> dict[str, float]:
        """Return the mean of each tag since the last call; empty if nothing was added."""
        means = {tag: torch.stack(values).mean().item() for tag, values in self.values.items()}
        self.values = {}
        return means

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps; nothing is copied."""
        return self.values

    def load_state_dict(self, state: dict):
        """Go on from a checkpoint."""
        self.values = {
            tag: [value.to(self.device) for value in values] for tag, values in state.items()
        }


class Logger:
    """Write scalars of a run, at agent steps; refuse numbers that are not finite.

    `board` is None until a resumed run goes on; `tracked` comes from `start_tracking`.
    """

    def __init__(
        self,
        folder: Path,
        board: Board | None,
        network: nn.Module,
        tracked: Tracker | None = None,
    ):
        self.folder, self.board, self.network, self.tracked = folder, board, network, tracked
        self.warned = False  # whether the newest attempt to write something has failed
        self._newest: dict[str, float] = {}  # of every tag, for the report of a divergence

    def write(self, values: dict[str, float], step: int):
        """Write scalars by tag to TensorBoard and, with --track, to Weights & Biases."""
        for tag, value in values.items():
            self.board.scalar(tag, value, step)
        if self.tracked is not None:
            self.tracked.send(values, step)

    def write_finite(self, values: dict[str, float], step: int):
        """Write scalars by tag. Raise UsageError if one of them, or a weight, is not finite."""
        self.write(values, step)
        self.require_finite_values(values, step)
        # The losses were computed before the last step of the optimizer, which may break a weight.
        self.require_finite(self.network.named_parameters(), step)

    def require_finite_values(self, values: dict[str, float], step: int):
        """Raise UsageError if one of these scalars by tag is not finite."""
        self._newest |= values
        for tag, value in values.items():
            if not math.isfinite(value):
                self._report_divergence(f"{tag} is {value}", step)

    def require_finite(self, named: Iterable[tuple[str, Tensor]], step: int):
        """Raise UsageError for the first of these (name, tensor) that holds NaN or inf."""
        for name, tensor in named:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                self._report_divergence(f"{name} has NaN or inf", step)

    def _report_divergence(self, what: str, step: int):
        """Write diverged.json and diverged.pt, and raise UsageError."""
        report = {
            "step": step,
            "what": what,
            "last_values": self._newest,
            "weights": {
                name: {
                    "shape": list(weight.shape),
                    "not_finite": int((~torch.isfinite(weight)).sum()),
                    "largest": weight.nan_to_num(0, 0, 0).abs().max().item(),
                }
                for name, weight in self.network.named_parameters()
            },
        }
        with contextlib.suppress(OSError):
            write_json(self.folder / "diverged.json", report)
            with atomic_write(self.folder / "diverged.pt") as file:
                torch.save(self.network.state_dict(), file)
        raise UsageError(
            f"the run has diverged: at {step:,} agent steps {what}; a smaller --learning-rate may "
            f"help; values and weights are in {self.folder}/diverged.json and .pt"
        )

    def warn(self, text: str, step: int):
        """Say that something could not be written, and write that to TensorBoard."""
        self.warned = True
        say(f"warning: {text}; training goes on, writing is tried again", sys.stderr)
        self.board.text("warnings", text, step)  # once there is room

    def warn_if_full(self, step: int):
        """Warn once if the curves cannot be written."""
        self.warn_if_removed(step)
        if self.board.problem is not None and not self.warned:
            self.warn(f"the curves cannot be written: {describe_os(self.board.problem)}", step)

    def warn_if_removed(self, step: int):
        """Warn if somebody has removed the curves so far."""
        if self.board.removed:
            say(f"warning: {self.board.removed}; training goes on", sys.stderr)
            self.board.text("warnings", self.board.removed, step)
            self.board.removed = ""

    def close(self, failed: bool):
        """Write what is pending, and end the run of Weights & Biases."""
        if self.board is not None:
            self.board.flush()
        if self.tracked is not None:
            self.tracked.finish(failed)
