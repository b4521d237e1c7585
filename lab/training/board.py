"""TensorBoard files, written so that none of a run's points is lost or doubled.

Points are kept until they are on the disk: while it is full they stay in memory and are written
once there is room. A resumed run cuts the files back to where its checkpoint was taken.
"""

import io
import os
import re
import socket
import time
from pathlib import Path

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from lab.common import tags
from lab.common.events import FILES
from lab.common.files import sync
from metrics import MEASURES

FLUSH_EVERY = 10.0  # seconds after which a point is on the disk, if there is room


class Board:
    """One event file in `folder`; agent steps on the x axis.

    `sizes` are those of `sync` at a checkpoint: what was written after it is cut off, and from
    `purge_step` on TensorBoard forgets what it has already shown. Nothing is raised while the disk
    is full: `problem` says what is wrong until everything has been written.
    """

    def __init__(
        self, folder: Path, sizes: dict[str, int] | None = None, purge_step: int | None = None
    ):
        self.folder, self.problem = folder, None
        if sizes is not None:
            for path in folder.glob(FILES):
                if path.name not in sizes:
                    path.unlink()
                elif path.stat().st_size > sizes[path.name]:
                    os.truncate(path, sizes[path.name])
        # Readers take files in the order of their names: this one must come after earlier ones.
        times = [int(re.search(r"tfevents\.(\d+)", path.name)[1]) for path in folder.glob(FILES)]
        now = max([int(time.time()), *(earlier + 1 for earlier in times)])
        name = f"events.out.tfevents.{now:010d}.{socket.gethostname()}.{os.getpid()}"
        self.path, self.size = folder / name, 0
        self.pending = bytearray()
        self._next_flush = time.monotonic() + FLUSH_EVERY
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._header = bytes(self.pending)
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=time.time(), step=purge_step, session_log=start))
        self.flush()

    def _add(self, event: Event):
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self.pending += record.getvalue()

    def add(self, content: Summary, step: int = 0):
        """Add any summary that torch.utils.tensorboard.summary makes."""
        self._add(Event(wall_time=time.time(), step=step, summary=content))
        if time.monotonic() >= self._next_flush:
            self.flush()

    def scalar(self, tag: str, value: float, step: int):
        """Add one value at an agent step."""
        self.add(summary.scalar(tag, value), step)

    def image(self, tag: str, pixels, step: int):
        """Add a picture; pixels uint8 (height, width, 3)."""
        self.add(summary.image(tag, torch.as_tensor(pixels), dataformats="HWC"), step)

    def text(self, tag: str, content: str, step: int = 0):
        """Add a text in Markdown."""
        self.add(summary.text(tag, content), step)

    def flush(self) -> bool:
        """Write what is pending; return whether it could be written."""
        self._next_flush = time.monotonic() + FLUSH_EVERY
        try:
            if self.size > 0 and self.folder.is_dir() and not self.path.exists():
                self.size = 0  # somebody removed the file: begin it again with its header
                self.pending[:0] = self._header
            if self.size > 0 or self.path.exists():
                os.truncate(self.path, self.size)  # half a record, of an earlier failure
            with self.path.open("ab") as file:
                file.write(self.pending)
        except OSError as error:
            self.problem = error
            return False
        self.size += len(self.pending)
        self.pending.clear()
        self.problem = None
        return True

    def sync(self) -> dict[str, int]:
        """Put everything on the disk; return the size of each event file of the folder, by name.

        Raises OSError where that fails.
        """
        if not self.flush():
            raise self.problem
        with self.path.open("rb") as file:
            sync(file.fileno())
        return {path.name: path.stat().st_size for path in self.folder.glob(FILES)}


def start_board(folder: Path, config: dict, losses: tuple[str, ...]) -> Board:
    """Begin the curves of a new run: its flags as text and HParams, and charts that lie together.

    `losses` are the tags below losses/ that the run will write. Raises OSError if the folder cannot
    be written.
    """
    board = Board(folder)
    if board.problem is not None:
        raise board.problem
    columns = config["flags"] | {key: config[key] for key in ("game", "algorithm", "variant")}
    rows = "\n".join(f"|{key}|{value}|" for key, value in columns.items())
    board.text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
    # Written into this run itself: SummaryWriter.add_hparams would open a second run folder.
    # Without the list of columns: TensorBoard would take that of one run for all, and so takes what
    # any run has. Bools in words, as it cannot sort them out beside strings.
    shown = {
        key: ("on" if value else "off") if isinstance(value, bool) else value
        for key, value in columns.items()
    }
    _columns, *session = summary.hparams(shown, {})
    for part in session:
        board.add(part)
    # Title -> tag, or a pattern of tags: z and its branches lie in one chart.
    charts = {
        "score": {tag.split("/")[1]: tag for tag in (tags.MEAN_RETURN, tags.RETURN)},
        "representation": {
            name: f"{tags.REPRESENTATION}(branch_[0-9]+/)?{name}$" for name in MEASURES
        },
        "losses": {name: tags.LOSSES + name for name in losses},
    }
    if config["flags"]["apply_to"] == "all":
        charts["every layer"] = {
            name: f"{tags.REPRESENTATION}(conv_[0-9]+/)?{name}$" for name in MEASURES
        }
    layout = {
        group: {title: ["Multiline", [tag]] for title, tag in of_group.items()}
        for group, of_group in charts.items()
    }
    board.add(summary.custom_scalars(layout))
    return board
