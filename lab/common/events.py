"""Event files of TensorBoard, read and checked as fast as they allow.

What is damaged is left out and told, and what follows is kept. Points that a resumed run has
written anew replace those from before it. Nothing here needs a run to have finished, nor torch.
"""

import functools
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import CRC_TABLE, masked_crc32c

from lab.common.cli import describe_os
from lab.common.files import EVENT_FILE, read_regular

FIRST_SESSION = 0  # agent step from which a run that was not resumed writes


class Gap(NamedTuple):
    """A part of an event file, from byte `start` to `end`, in which no event is whole."""

    start: int
    end: int


class Point(NamedTuple):
    """One value of one tag, at an agent step and a time (seconds since 1970)."""

    step: int
    wall_time: float
    tag: str
    value: float


class Curve(NamedTuple):
    """The values of one tag: agent steps (points,), rising, and values (points,)."""

    steps: np.ndarray
    values: np.ndarray


def find_event_files(folder: Path) -> list[Path]:
    """Return the event files of a run folder, the oldest first."""
    return sorted(path for path in folder.iterdir() if EVENT_FILE.fullmatch(path.name))


def compute_checksums(records: Sequence[bytes]) -> np.ndarray:
    """Return the masked CRC-32C of each record (records,), which has 4 bytes or more.

    All of about one length at once, byte by byte: TensorBoard's own function, one record after the
    other, takes 15 times as long.
    """
    table, found = np.array(CRC_TABLE, np.uint32), np.zeros(len(records), np.uint32)
    by_length = defaultdict(list)
    for i, record in enumerate(records):
        by_length[len(record).bit_length()].append(i)
    for indices in by_length.values():
        lengths = np.array([len(records[i]) for i in indices])
        width = lengths.max()
        padded = bytearray(b"".join(records[i].rjust(width, b"\0") for i in indices))
        rows = np.frombuffer(padded, np.uint8).reshape(-1, width)
        # Zeros in front change nothing, as the register starts from 0: its usual start, all ones,
        # is the same as the first four bytes inverted.
        rows[np.arange(len(rows))[:, None], (width - lengths)[:, None] + np.arange(4)] ^= 255
        register = np.zeros(len(indices), np.uint32)
        for column in np.ascontiguousarray(rows.T):
            register = table[(register ^ column) & 0xFF] ^ (register >> 8)
        found[indices] = ~register
    return (found >> 15 | found << 17) + np.uint32(0xA282EAD8)


@functools.lru_cache(maxsize=10_000)
def _length_checksum(length: int) -> int:
    return masked_crc32c(struct.pack("<Q", length))


def _find_record(content: bytes, start: int) -> tuple[int, int] | None:
    """Return where the first record at or after `start` begins, and its length; None without."""
    at = start
    while at >= 0 and at + 12 <= len(content):
        length, checksum = struct.unpack_from("<QI", content, at)
        if checksum == _length_checksum(length):
            return at, length
        # No record has 4 GB: the upper half of its length is zeros.
        zeros = content.find(bytes(4), at + 5)
        at = zeros - 4 if zeros >= 0 else -1
    return None


def read_events(path: Path) -> Iterator[Event | Gap]:
    """Yield the events of a file, and a Gap in place of what is damaged. Raise OSError.

    A record is its length (uint64), a checksum of that (uint32), the event, and a checksum of it.
    """
    content = read_regular(path)
    spans, at = [], 0
    while (found := _find_record(content, at)) is not None:
        begin, length = found
        if begin > at:
            spans.append((at, begin, None))
        end = begin + 16 + length
        if end > len(content):
            at = begin
            break
        # An event has a time, of 9 bytes.
        spans.append((begin, end, content[begin + 12 : end - 4] if length > 8 else None))
        at = end
    if at < len(content):
        spans.append((at, len(content), None))
    records = [data for _, _, data in spans if data]
    checksums = iter(compute_checksums(records).tolist())
    for begin, end, data in spans:
        if data and next(checksums) == int.from_bytes(content[end - 4 : end], "little"):
            try:
                yield Event.FromString(data)
                continue
            except DecodeError:
                pass
        yield Gap(begin, end)


class _Loss(NamedTuple):
    """What is lost of an event file, and the agent step before it; None where there is none."""

    what: str
    after: int | None


class _Reader:
    """Read the event files of a run folder, one after the other."""

    def __init__(self):
        self.points: list[Point] = []
        self.losses: list[_Loss] = []
        self.sessions: list[int | None] = []  # the agent steps from which the files go on

    def read(self, path: Path):
        """Take the points of a file; what an unreadable one has lost is told."""
        self.sessions.append(None)
        try:
            self._read(path)
        except OSError as error:
            self.losses.append(_Loss(f"{path.name} cannot be read ({describe_os(error)})", None))

    def _read(self, path: Path):
        newest, gap, is_empty = None, None, True
        for event in read_events(path):
            is_empty = False
            if isinstance(event, Gap):
                gap = gap._replace(end=event.end) if gap else event
                continue
            if event.HasField("file_version"):
                continue
            if gap is not None:
                self._lose(path, gap, newest, event.step)
            if event.session_log.status == SessionLog.START:
                self.sessions[-1] = event.step
                self._begin_anew(event.step)
            elif newest is None and gap is None:
                self.sessions[-1] = FIRST_SESSION
            elif newest is None:  # what said so may be lost
                self._begin_anew(event.step)
            newest, gap = event.step, None
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    time, number = event.wall_time, value.simple_value
                    self.points.append(Point(event.step, time, value.tag, number))
        if is_empty:
            self.losses.append(_Loss(f"{path.name} is empty", None))
        elif gap is not None:
            self._lose(path, gap, newest, None)

    def _begin_anew(self, step: int):
        """Forget what came at and after this step: a resumed run writes it anew."""
        self.points = [point for point in self.points if point.step < step]
        self.losses = [loss for loss in self.losses if loss.after is None or loss.after < step]

    def _lose(self, path: Path, gap: Gap, after: int | None, before: int | None):
        if after is None and before is None:
            self.losses.append(_Loss(f"{path.name} holds no event that is whole", None))
            return
        if before is None:
            lost = f"what was logged after agent step {after:,}"
        elif after is None:
            lost = f"what was logged before agent step {before:,}"
        else:
            lost = f"what was logged from agent step {after:,} to {before:,}"
        size = gap.end - gap.start
        what = f"{path.name} is damaged, {size:,} bytes from {gap.start:,} on: {lost} is lost"
        self.losses.append(_Loss(what, after))

    def find_missing(self, resumed: Sequence[int] | None) -> list[str]:
        """Return which sessions have no file, of a run that went on from these agent steps."""
        if resumed is None:
            return []
        expected = [FIRST_SESSION, *(step + 1 for step in resumed)]
        missing = [
            start
            for i, start in enumerate(expected)
            if start not in self.sessions and all(later > start for later in expected[i + 1 :])
        ]
        # A file of which no beginning is left, and which has been told, may be any of them.
        return [
            "the event file of the run's beginning is gone"
            if start == FIRST_SESSION
            else f"the event file of what followed agent step {start - 1:,} is gone"
            for start in missing[self.sessions.count(None) :]
        ]


def list_losses(folder: Path, sizes: dict[str, int], resumed: Sequence[int]) -> list[str]:
    """Return what the event files of a run folder have lost, a line each.

    `sizes` are those that the files had at least, by name; for `resumed` see `read_points`.
    """
    losses = []
    for name, size in sizes.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            losses.append(f"{name} is gone")
            continue
        if found < size:
            losses.append(f"{name} is cut off: {found:,} of {size:,} bytes are left")
    return losses + read_points(folder, None if losses else resumed)[1]


def read_points(folder: Path, resumed: Sequence[int] | None = ()) -> tuple[list[Point], list[str]]:
    """Return every scalar point of a run folder as written, and what is lost, a line each.

    `resumed` has the agent steps from which the run went on, each in a file of its own; with None,
    no file is missed.
    """
    reader = _Reader()
    for path in find_event_files(folder):
        reader.read(path)
    losses = [loss.what for loss in reader.losses]
    return reader.points, losses + reader.find_missing(resumed)


def read_scalars(folder: Path, resumed: Sequence[int] = ()) -> tuple[dict[str, Curve], list[str]]:
    """Return the curve of each tag of a run folder, and what is lost; see `read_points`."""
    points, losses = read_points(folder, resumed)
    by_tag = defaultdict(list)
    for point in points:
        by_tag[point.tag].append(point)
    curves = {}
    for tag, own in by_tag.items():
        own.sort(key=lambda point: point.step)  # stable: games that end in one step stay in order
        steps = np.array([point.step for point in own])
        curves[tag] = Curve(steps, np.array([point.value for point in own]))
    return curves, losses
