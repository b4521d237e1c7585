"""Event files of TensorBoard, read as fast as they allow, and as far as they are whole.

A record that is cut off or damaged ends its file without harm. Points that a resumed run has
written anew replace those from before it. Nothing here needs a run to have finished, nor torch.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

FILES = "events.out.tfevents.*"  # in a run folder; their names are in the order of their times


class CutOff(Exception):
    """An event file has a record that is not whole; what came before it has been given."""


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


def read_events(path: Path) -> Iterator[Event]:
    """Yield the records of an event file. Raise CutOff at the first that is cut off or damaged.

    A record is its length (uint64), a checksum of that (uint32), the event, and a checksum of it.
    The checksums are skipped: to compute them would take longer than all the rest.
    """
    content = memoryview(path.read_bytes())
    at = 0
    while at + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        if at + 16 + length > len(content):
            raise CutOff
        try:
            yield Event.FromString(content[at + 12 : at + 12 + length].tobytes())
        except DecodeError:
            raise CutOff from None
        at += 16 + length
    if at < len(content):
        raise CutOff


def read_points(folder: Path) -> tuple[list[Point], bool]:
    """Return every scalar point of a run folder as written, and whether all its files are whole."""
    points, whole = [], True
    for path in sorted(folder.glob(FILES)):
        try:
            for event in read_events(path):
                if event.session_log.status == SessionLog.START:
                    # A resumed run writes the points at and after this step anew.
                    points = [point for point in points if point.step < event.step]
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        time, number = event.wall_time, value.simple_value
                        points.append(Point(event.step, time, value.tag, number))
        except CutOff:
            whole = False
    return points, whole


def read_scalars(folder: Path) -> tuple[dict[str, Curve], bool]:
    """Return the curve of each tag of a run folder, and whether all its files are whole."""
    points, whole = read_points(folder)
    by_tag = defaultdict(list)
    for point in points:
        by_tag[point.tag].append(point)
    curves = {}
    for tag, own in by_tag.items():
        own.sort(key=lambda point: point.step)  # stable: games that end in one step stay in order
        steps = np.array([point.step for point in own])
        curves[tag] = Curve(steps, np.array([point.value for point in own]))
    return curves, whole
