"""The reader of event files: against TensorBoard's own; damage does no harm."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TIMEOUT
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from lab.common.events import FILES, read_points, read_scalars
from lab.training.board import Board


def test_scalars_are_those_that_tensorboard_reads(tmp_path, events):
    rng = np.random.default_rng(0)
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(200):
            writer.add_scalar("charts/episodic_return", rng.normal(), 10 * step)
            writer.add_scalar("losses/loss", rng.normal(), 10 * step)
        writer.add_text("text", "not a scalar")
        writer.add_histogram("weights", rng.normal(size=10), 5)
    (found, whole), log = read_scalars(tmp_path), events(tmp_path)
    assert whole
    assert set(found) == set(log.Tags()["scalars"])
    for tag, curve in found.items():
        expected = [(event.step, event.value) for event in log.Scalars(tag)]
        assert list(zip(*curve, strict=True)) == expected


@pytest.mark.parametrize("cut", [1, 7, 15, 30])
def test_a_record_that_is_cut_off_ends_the_file(tmp_path, cut):
    board = Board(tmp_path)
    for step in range(10):
        board.scalar("a", float(step), step)
    board.flush()
    whole = board.path.read_bytes()
    board.path.write_bytes(whole[:-cut])
    curves, is_whole = read_scalars(tmp_path)
    (curve,) = curves.values()
    assert not is_whole
    assert curve.steps.tolist() == list(range(9))
    assert curve.values.tolist() == list(range(9))
    board.path.write_bytes(whole[:-cut] + struct.pack("<Q", 2**60) + b"rubbish" * 9)
    assert read_scalars(tmp_path)[0]["a"].steps.tolist()[:9] == list(range(9))


def test_points_that_a_resumed_run_writes_anew_count_once(tmp_path):
    """Also where the first file was not cut back: as if the process had died in between."""
    first = Board(tmp_path)
    for step in range(10):
        first.scalar("a", 1.0, step)
        first.scalar("b", 1.0, step)
    first.flush()
    second = Board(tmp_path, purge_step=6)
    for step in range(6, 9):
        second.scalar("a", 2.0, step)
    second.flush()
    found, _ = read_scalars(tmp_path)
    assert found["a"].steps.tolist() == list(range(9))
    assert found["a"].values.tolist() == [1.0] * 6 + [2.0] * 3
    assert found["b"].steps.tolist() == list(range(6))


def test_points_have_their_times_and_are_in_the_order_in_which_they_were_written(tmp_path):
    """Two of them in one step, and the reader of TensorBoard to compare with."""
    board = Board(tmp_path)
    for tag, step, value in (("a", 10, 1.0), ("b", 5, 2.0), ("a", 10, 3.0)):
        board.scalar(tag, value, step)
    board.flush()
    points, whole = read_points(tmp_path)
    assert whole
    assert [(point.tag, point.step, point.value) for point in points] == [
        ("a", 10, 1.0),
        ("b", 5, 2.0),
        ("a", 10, 3.0),
    ]
    loaded = EventFileLoader(str(next(tmp_path.glob(FILES)))).Load()
    times = [event.wall_time for event in loaded if event.summary.value]
    assert [point.wall_time for point in points] == times
    assert read_scalars(tmp_path)[0]["a"].values.tolist() == [1.0, 3.0]


def test_the_reader_needs_no_torch():
    code = "import sys, lab.common.events; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=TIMEOUT).returncode == 0
