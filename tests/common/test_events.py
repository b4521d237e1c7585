"""The reader of event files: against TensorBoard's own; damage is told, and what follows kept."""

import os
import random
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TIMEOUT
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from lab.common.events import (
    compute_checksums,
    find_event_files,
    list_losses,
    read_points,
    read_scalars,
)
from lab.training.board import Board


def test_scalars_are_those_that_tensorboard_reads(tmp_path, events):
    rng = np.random.default_rng(0)
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(200):
            writer.add_scalar("charts/episodic_return", rng.normal(), 10 * step)
            writer.add_scalar("losses/loss", rng.normal(), 10 * step)
        writer.add_text("text", "not a scalar")
        writer.add_histogram("weights", rng.normal(size=10), 5)
    (found, losses), log = read_scalars(tmp_path), events(tmp_path)
    assert losses == []
    assert set(found) == set(log.Tags()["scalars"])
    for tag, curve in found.items():
        expected = [(event.step, event.value) for event in log.Scalars(tag)]
        assert list(zip(*curve, strict=True)) == expected


def test_checksums_are_those_of_tensorboard():
    rng = random.Random(0)
    lengths = [*range(4, 70), 127, 128, 1000, *(rng.randrange(4, 3000) for _ in range(50))]
    records = [rng.randbytes(length) for length in lengths]
    assert compute_checksums(records).tolist() == [masked_crc32c(record) for record in records]
    assert compute_checksums([]).tolist() == []


def write_ten(folder):
    """One file with a point at each of the agent steps 0, 10 ... 90; its path."""
    board = Board(folder)
    for step in range(0, 100, 10):
        board.scalar("a", float(step), step)
    board.flush()
    return board.path


@pytest.mark.parametrize("length", [0, 1, 3, 8])
def test_a_record_that_is_too_short_for_an_event_is_damage(tmp_path, length):
    path = write_ten(tmp_path)
    header, data = struct.pack("<Q", length), b"x" * length
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (header, data)]
    path.write_bytes(path.read_bytes() + header + checksums[0] + data + checksums[1])
    curves, (loss,) = read_scalars(tmp_path)
    assert len(curves["a"].steps) == 10
    assert "is damaged" in loss


@pytest.mark.parametrize("cut", [1, 7, 15, 30])
def test_a_record_that_is_cut_off_is_told(tmp_path, cut):
    path = write_ten(tmp_path)
    whole = path.read_bytes()
    # Of another first byte than the one cut off, which it would make whole again.
    rubbish = struct.pack("<Q", 2**60 + (whole[-cut] ^ 1)) + b"rubbish" * 9
    for more in (b"", rubbish):
        path.write_bytes(whole[:-cut] + more)
        curves, (loss,) = read_scalars(tmp_path)
        assert curves["a"].steps.tolist() == list(range(0, 90, 10))
        assert curves["a"].values.tolist() == list(range(0, 90, 10))
        assert re.search(rf"{path.name} is damaged, .* after agent step 80 is lost", loss)


def test_every_flipped_bit_is_told_and_costs_one_point_at_most(tmp_path):
    """In each byte of the file one: length, checksums, content, anywhere."""
    path = write_ten(tmp_path)
    whole, rng = path.read_bytes(), random.Random(0)
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        curves, (loss,) = read_scalars(tmp_path)
        steps = curves["a"].steps.tolist()
        assert set(steps) <= set(range(0, 100, 10))
        assert curves["a"].values.tolist() == steps
        assert len(steps) >= 9
        missing = set(range(0, 100, 10)) - set(steps)
        for step in missing:
            before = rf"from agent step {step - 10} to" if step else "before agent step 10"
            after = rf"to {step + 10} is lost" if step < 90 else "after agent step 80 is lost"
            assert re.search(before, loss) or re.search(after, loss), (loss, step)
        assert loss.startswith(f"{path.name} is damaged, ")


def test_a_hole_of_many_records_is_one_loss(tmp_path):
    path = write_ten(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = random.Random(0).randbytes(
        len(content) // 2 - len(content) // 3
    )
    path.write_bytes(content)
    curves, losses = read_scalars(tmp_path)
    assert len(losses) == 1
    assert curves["a"].steps[-1] == 90


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"garbage" * 99), "holds no event that is whole"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "cannot be read .No such file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "cannot be read .it is no regular file"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read .it is no regular file"),
        (lambda path: path.unlink(), "the event file of the run's beginning is gone"),
    ],
)
def test_a_file_of_which_nothing_is_left_is_told(tmp_path, spoil, message):
    """Once, in a run that was resumed: what the other file has is there."""
    first = write_ten(tmp_path)
    second = Board(tmp_path, {first.name: first.stat().st_size}, purge_step=91)
    second.scalar("a", 100.0, 100)
    second.flush()
    assert read_scalars(tmp_path, [90])[1] == []
    spoil(first)
    curves, (loss,) = read_scalars(tmp_path, [90])
    assert re.search(message, loss)
    assert curves["a"].steps.tolist() == [100]


def test_a_session_without_a_file_is_told(tmp_path):
    """But not one that was killed before its first checkpoint, which another has taken over."""
    board = Board(tmp_path)
    for step in (10, 10, 20):
        sizes = board.sync()
        board = Board(tmp_path, sizes, purge_step=step + 1)
    assert read_points(tmp_path, [10, 10, 20])[1] == []
    assert read_points(tmp_path, [10, 15, 10, 20])[1] == []
    assert read_points(tmp_path, [10, 10, 15, 20])[1] == [
        "the event file of what followed agent step 15 is gone"
    ]
    board.path.unlink()
    assert read_points(tmp_path, [10, 10, 20])[1] == [
        "the event file of what followed agent step 20 is gone"
    ]


def test_half_a_record_of_points_that_were_written_anew_is_no_loss(tmp_path):
    """A process that was killed while it wrote; its successor has written the same again."""
    first = write_ten(tmp_path)
    killed = Board(tmp_path, {first.name: first.stat().st_size}, purge_step=91)
    killed.scalar("a", 100.0, 100)
    killed.flush()
    killed.path.write_bytes(killed.path.read_bytes()[:-3])
    again = Board(tmp_path, {first.name: first.stat().st_size}, purge_step=91)
    again.scalar("a", 100.0, 100)
    again.flush()
    curves, losses = read_scalars(tmp_path, [90, 90])
    assert losses == []
    assert curves["a"].steps.tolist() == list(range(0, 101, 10))


def test_a_damaged_beginning_of_a_session_doubles_no_point(tmp_path):
    """Where a file says from which step on it replaces what was there before."""
    first = write_ten(tmp_path)
    second = Board(tmp_path, purge_step=51)
    for step in range(60, 100, 10):
        second.scalar("a", -1.0, step)
    second.flush()
    content = bytearray(second.path.read_bytes())
    content[len(second._header) + 14] ^= 1
    second.path.write_bytes(content)
    curves, losses = read_scalars(tmp_path, [50])
    assert curves["a"].steps.tolist() == list(range(0, 100, 10))
    assert curves["a"].values.tolist() == [0, 10, 20, 30, 40, 50, -1, -1, -1, -1]
    assert len(losses) == 1
    assert "before agent step 60 is lost" in losses[0]
    assert first.exists()


def test_copies_and_other_files_are_not_read(tmp_path):
    path = write_ten(tmp_path)
    for name in (f"{path.name}.bak", "events.out.tfevents.bak", "copy-of-" + path.name):
        shutil.copy(path, tmp_path / name)
    (curve,) = read_scalars(tmp_path)[0].values()
    assert len(curve.steps) == 10


def test_files_that_a_checkpoint_names_are_there_and_as_long(tmp_path):
    path = write_ten(tmp_path)
    size = path.stat().st_size
    assert list_losses(tmp_path, {path.name: size}, []) == []
    cut = f"{path.name} is cut off: {size - 10:,} of {size:,} bytes are left"
    path.write_bytes(path.read_bytes()[:-10])
    assert list_losses(tmp_path, {path.name: size}, [])[0] == cut
    path.unlink()
    assert list_losses(tmp_path, {path.name: size}, []) == [f"{path.name} is gone"]


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
    points, losses = read_points(tmp_path)
    assert losses == []
    assert [(point.tag, point.step, point.value) for point in points] == [
        ("a", 10, 1.0),
        ("b", 5, 2.0),
        ("a", 10, 3.0),
    ]
    loaded = EventFileLoader(str(find_event_files(tmp_path)[0])).Load()
    times = [event.wall_time for event in loaded if event.summary.value]
    assert [point.wall_time for point in points] == times
    assert read_scalars(tmp_path)[0]["a"].values.tolist() == [1.0, 3.0]


def test_the_reader_needs_no_torch():
    code = "import sys, lab.common.events; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=TIMEOUT).returncode == 0
