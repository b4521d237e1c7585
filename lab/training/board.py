"""TensorBoard files, written so that none of a run's points is lost or doubled.

Points are kept until they are on the disk: while it is full they stay in memory and are written
once there is room. A resumed run cuts its files back to where its checkpoint was taken; files that
the checkpoint does not name are left alone, and readers forget points that are written anew.
"""

import contextlib
import io
import os
import socket
import stat
import time
from pathlib import Path

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from lab.common import tags
from lab.common.events import find_event_files
from lab.common.files import EVENT_FILE, open_regular, sync
from lab.common.tables import escape_bars
from metrics import MEASURES

FLUSH_EVERY = 10.0  # seconds after which a point is on the disk, if there is room


def _size_of_own(path: Path) -> int | None:
    """Return the size of a file; None of a link, of a file with a second name, or without any."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return found.st_size
    return None


class Board:
    """One event file in `folder`; agent steps on the x axis.

    `sizes` are those of `sync` at a checkpoint: what was written after it is cut off, and from
    `purge_step` on TensorBoard forgets what it has already shown. Nothing is raised while the disk
    is full: `problem` says what is wrong until everything has been written. `removed` says so if
    somebody removed the file while it was written.
    """

    def __init__(
        self, folder: Path, sizes: dict[str, int] | None = None, purge_step: int | None = None
    ):
        self.folder, self.problem, self.removed = folder, None, ""
        self.earlier = list(sizes or {})  # names
        for name, size in (sizes or {}).items():
            if (_size_of_own(folder / name) or 0) > size:
                os.truncate(folder / name, size)
        # Readers take files in the order of their names: this one must come after earlier ones. Of
        # those that are gone, too, so that it is not taken for one of them.
        names = {*self.earlier, *(path.name for path in find_event_files(folder))}
        times = [int(match[1]) for name in names if (match := EVENT_FILE.fullmatch(name))]
        now = max([int(time.time()), *(earlier + 1 for earlier in times)])
        name = f"events.out.tfevents.{now:010d}.{socket.gethostname()}.{os.getpid()}"
        self.path, self.size = folder / name, 0
        self.pending = bytearray()
        self.newest = 0  # the agent step of the newest event
        self._flushed = 0  # that of the newest one in the file
        self._next_flush = time.monotonic() + FLUSH_EVERY
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._header = bytes(self.pending)
        if purge_step is not None:
            self._start_session(purge_step)
        self.flush()

    def _start_session(self, step: int):
        """Have readers forget what earlier files have at this agent step and later."""
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=step, session_log=start))

    def _add(self, event: Event):
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self.pending += record.getvalue()
        self.newest = event.step

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
                self._begin_again()
            # A link or a pipe of that name is refused; what is there beyond our own size is half a
            # record, of an earlier failure.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            with open_regular(self.path, flags) as file:
                file.truncate(self.size)
                file.seek(self.size)
                file.write(self.pending)
        except OSError as error:
            self.problem = error
            return False
        self.size += len(self.pending)
        self.pending.clear()
        self.problem = None
        self._flushed = self.newest
        return True

    def _begin_again(self):
        """Begin a file that somebody removed, with its header and what is pending."""
        self.removed = (
            f"{self.path.name} was removed: its points up to agent step {self._flushed:,} are gone"
        )
        pending, self.pending, self.size = self.pending, bytearray(self._header), 0
        self._start_session(self._flushed + 1)  # a reader sees that it does not begin at 0
        self.pending += pending

    def sync(self) -> dict[str, int]:
        """Put everything on the disk; return the size of each event file of the folder, by name.

        Raises OSError where that fails.
        """
        if not self.flush():
            raise self.problem
        with self.path.open("rb") as file:
            sync(file.fileno())
        sizes = {name: _size_of_own(self.folder / name) for name in (*self.earlier, self.path.name)}
        return {name: size for name, size in sizes.items() if size is not None}


def start_board(folder: Path, config: dict, losses: tuple[str, ...]) -> Board:
    """Begin the curves of a new run: its flags as text and HParams, and charts that lie together.

    `losses` are the tags below losses/ that the run will write. Raises OSError if the folder cannot
    be written.
    """
    board = Board(folder)
    if board.problem is not None:
        raise board.problem
    columns = config["flags"] | {key: config[key] for key in ("game", "algorithm", "variant")}
    rows = "\n".join(f"|{key}|{escape_bars(str(value))}|" for key, value in columns.items())
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
        "churn": {part: tags.churn(part) for part in ("total", "encoder", "head")},
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
