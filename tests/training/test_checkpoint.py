"""Checkpoints: what is saved comes back, one is always whole, and loading runs no code."""

import errno
import os
import pickle
import shutil
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.common import files
from lab.common.cli import UsageError
from lab.common.files import ChecksumFile, atomic_write
from lab.training import checkpoint, replay
from lab.training.board import Board
from lab.training.checkpoint import (
    Checkpoints,
    Damaged,
    Footer,
    capture,
    find_newest_whole,
    iterate_tensors,
    read_newest_footer,
    restore,
)
from lab.training.replay import ReplayBuffer

NUM_ENVS = 2


def step_of(number):
    """The arrays of one step of the games, all a function of its number."""
    rng = np.random.default_rng(number)
    obs = rng.integers(0, 255, (NUM_ENVS, 4, 84, 84), dtype=np.uint8)
    final = np.full(NUM_ENVS, None, dtype=object)
    if number % 7 == 0:
        final[number % NUM_ENVS] = obs[0]
    return {
        "next_obs": obs,
        "actions": rng.integers(0, 4, NUM_ENVS),
        "rewards": rng.normal(size=NUM_ENVS).astype(np.float32),
        "terminations": rng.random(NUM_ENVS) < 0.3,
        "game_over": rng.random(NUM_ENVS) < 0.2,
        "final_obs": final if number % 7 == 0 else None,
    }


def filled(steps, capacity=30):
    buffer = ReplayBuffer(capacity, NUM_ENVS)
    buffer.start(step_of(0)["next_obs"])
    for number in range(1, steps + 1):
        buffer.add(**step_of(number))
    return buffer


def same_memory(one, other):
    every = torch.arange(len(one))
    return len(one) == len(other) and all(
        torch.equal(first, second)
        for first, second in zip(one.transitions(every), other.transitions(every), strict=True)
    )


def reloaded(folder, capacity=30):
    buffer = ReplayBuffer(capacity, NUM_ENVS)
    state, problems = Checkpoints(folder).load(buffer)
    buffer.load_state_dict(state["buffer"])
    return buffer, state, problems


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(replay, "SEGMENT", 8)  # transitions, so 4 rows


@settings(max_examples=40)
@given(pauses=st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_the_memory_comes_back_at_every_checkpoint_of_a_ring(tmp_path_factory, pauses):
    folder = tmp_path_factory.mktemp("run")
    store, buffer, done = Checkpoints(folder), filled(0), 0
    for pause in pauses:
        for _ in range(pause):
            done += 1
            buffer.add(**step_of(done))
        store.save(done, {"buffer": buffer.state_dict()}, buffer)
        again, _, problems = reloaded(folder)
        assert problems == []
        assert same_memory(buffer, again)
    # Whether it goes on from the memory or from the disk makes no difference.
    for number in range(done + 1, done + 40):
        buffer.add(**step_of(number))
        again.add(**step_of(number))
    assert same_memory(buffer, again)


def test_only_what_changed_is_written_again(tmp_path):
    store, buffer = Checkpoints(tmp_path), filled(12)
    store.save(12, {"buffer": buffer.state_dict()}, buffer)
    first = {path.name for path in (tmp_path / "replay").iterdir()}
    assert len(first) == 4  # rows 0 to 12, 4 each
    buffer.add(**step_of(13))
    store.save(13, {"buffer": buffer.state_dict()}, buffer)
    new = {path.name for path in (tmp_path / "replay").iterdir()} - first
    assert len(new) == 1  # rows 12 and 13 lie in one segment
    store.save(13, {"buffer": buffer.state_dict()}, buffer)
    names = {path.name for path in (tmp_path / "replay").iterdir()}
    assert names == {name for name, _ in store.segments.values()}  # nothing piles up


class Extra:
    """Any object with a state."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


def test_what_is_saved_comes_back_as_plain_values(tmp_path):
    rng = np.random.default_rng(3)
    rng.random(5)
    generator = torch.Generator().manual_seed(4)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, fused=True)
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    extra = Extra([np.arange(3), {"a": (1, 2.5, None, True, "x")}])
    parts = {"rng": rng, "generator": generator, "network": network, "optimizer": optimizer}
    Checkpoints(tmp_path).save(7, capture(parts | {"extra": extra}))
    expected = (rng.random(), torch.rand(1, generator=generator), network.weight.clone())

    saved, _ = Checkpoints(tmp_path).load()
    assert saved["extra"][1] == {"a": [1, 2.5, None, True, "x"]}
    assert saved["extra"][0].tolist() == [0, 1, 2]
    rng, generator = np.random.default_rng(9), torch.Generator()
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.5, fused=True)
    restore({"rng": rng, "generator": generator, "network": network, "optimizer": optimizer}, saved)
    assert rng.random() == expected[0]
    assert torch.equal(torch.rand(1, generator=generator), expected[1])
    assert torch.equal(network.weight, expected[2])
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert read_newest_footer(tmp_path).step == 7


def test_names_of_tensors_say_where_they_are():
    nest = {"a": [torch.zeros(1), {"b": torch.ones(1)}], "c": 3}
    assert [name for name, _ in iterate_tensors(nest)] == ["a.0", "a.1.b"]


def folder_with_two(folder):
    """A folder with the checkpoints of steps 20 and 33; the memory of each."""
    store, buffer = Checkpoints(folder), filled(20)
    store.save(20, {"buffer": buffer.state_dict(), "at": 20}, buffer)
    for number in range(21, 34):
        buffer.add(**step_of(number))
    store.save(33, {"buffer": buffer.state_dict(), "at": 33}, buffer)
    return store


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_any_cut_and_any_flipped_bit_is_recognised(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    store = folder_with_two(whole)
    newest = {name for name, _ in store.segments.values()}
    before = checkpoint.read_state(whole / checkpoint.PREVIOUS)["segments"].values()
    of_both = newest & {name for name, _ in before}
    rng = np.random.default_rng(0)
    for path in files_of(whole):
        if path.parent.name == "replay" and path.name not in newest:
            continue  # of the one before
        size = path.stat().st_size
        for _ in range(6):
            broken = tmp_path / "broken"
            shutil.copytree(whole, broken)
            victim, at = broken / path.relative_to(whole), int(rng.integers(size))
            if rng.random() < 0.5:
                os.truncate(victim, at)
            else:
                content = bytearray(victim.read_bytes())
                content[at] ^= 1 << rng.integers(8)
                victim.write_bytes(content)
            if path.name in of_both:  # none is whole, and that is said
                with pytest.raises(UsageError, match="no whole checkpoint"):
                    reloaded(broken)
            else:
                buffer, state, problems = reloaded(broken)
                expected = 33 if path.name == checkpoint.PREVIOUS else 20
                assert state["at"] == expected
                assert bool(problems) == (expected == 20)
                assert same_memory(buffer, filled(expected))
                assert (broken / checkpoint.DAMAGED).exists() == (expected == 20)
            shutil.rmtree(broken)


def test_after_a_damaged_checkpoint_the_next_save_keeps_the_whole_one(tmp_path):
    folder_with_two(tmp_path)
    os.truncate(tmp_path / checkpoint.NEWEST, 1000)
    store, buffer = Checkpoints(tmp_path), ReplayBuffer(30, NUM_ENVS)
    state, _ = store.load(buffer)
    buffer.load_state_dict(state["buffer"])
    assert state["at"] == 20
    buffer.add(**step_of(21))
    store.save(21, {"buffer": buffer.state_dict(), "at": 21}, buffer)
    assert reloaded(tmp_path)[1]["at"] == 21
    os.remove(tmp_path / checkpoint.NEWEST)
    buffer, state, _ = reloaded(tmp_path)
    assert state["at"] == 20
    assert same_memory(buffer, filled(20))


@pytest.mark.parametrize("moment", range(40))
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch, moment):
    """The save is broken off before its n-th change on disk, for every n; nothing tidies up."""
    folder = tmp_path / "run"
    folder.mkdir()
    folder_with_two(folder)
    store, buffer = Checkpoints(folder), ReplayBuffer(30, NUM_ENVS)
    buffer.load_state_dict(store.load(buffer)[0]["buffer"])
    for number in range(34, 40):
        buffer.add(**step_of(number))
    left = [moment]

    class Killed(BaseException):
        pass

    def counted(real):
        def call(*args, **kwargs):
            if left[0] == 0:
                shutil.copytree(folder, tmp_path / "killed", dirs_exist_ok=True)
                left[0] = -1
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    for name in ("replace", "unlink", "mkdir", "open"):
        method = getattr(checkpoint.Path, name)
        monkeypatch.setattr(checkpoint.Path, name, counted(method))
    try:
        store.save(39, {"buffer": buffer.state_dict(), "at": 39}, buffer)
    except Killed:
        killed = tmp_path / "killed"
    else:
        killed = folder
    monkeypatch.undo()
    monkeypatch.setattr(replay, "SEGMENT", 8)
    again, state, problems = reloaded(killed)
    assert problems == []
    assert state["at"] in (33, 39)
    assert same_memory(again, filled(state["at"]))
    if killed is folder:
        assert moment > 10  # else this test would try nothing
        assert state["at"] == 39


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_save_that_fails_leaves_all_as_it_was(tmp_path, monkeypatch, number):
    store, buffer = folder_with_two(tmp_path), filled(35)
    before = {path: path.read_bytes() for path in files_of(tmp_path)}

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    dirty = set(buffer.dirty)
    with pytest.raises(OSError, match=os.strerror(number)):
        store.save(35, {"buffer": buffer.state_dict(), "at": 35}, buffer)
    assert {path: path.read_bytes() for path in files_of(tmp_path)} == before
    assert buffer.dirty == dirty
    monkeypatch.undo()
    monkeypatch.setattr(replay, "SEGMENT", 8)
    store.save(35, {"buffer": buffer.state_dict(), "at": 35}, buffer)
    assert same_memory(reloaded(tmp_path)[0], filled(35))


def plant_others(folder):
    """Put what a user may have beside a run's files, also under names like those of a run."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("mine")
    (folder / "replay").mkdir(exist_ok=True)
    for name in ("notes.txt", "00000-1.bin", "00000-99.bin", "00000-1.bin.tmp", "fresh.pt.tmp"):
        (folder / "replay" / name).write_text("mine")
        (folder / name).write_text("mine")
    (folder / "replay" / "results").mkdir()
    (folder / "replay" / "results" / "00000-1.bin").write_text("mine")
    for name in ("checkpoint.pt.tmp", "replay/00001-2.bin.tmp", "config.json.tmp", "model.pt.tmp"):
        (folder / name).symlink_to(elsewhere / "notes.txt")
    os.mkfifo(folder / "previous.pt.tmp")
    return lambda: sorted(
        (str(path), path.lstat().st_ino, path.is_file() and path.read_text() == "mine")
        for path in (*folder.rglob("*"), *elsewhere.rglob("*"))
        if path.is_symlink() or not path.is_file() or path.read_bytes() == b"mine"
    )


def test_nothing_is_deleted_or_written_over_that_is_not_the_checkpoints_own(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    list_others = plant_others(folder)
    before = list_others()
    assert len(before) > 15
    store = folder_with_two(folder)
    buffer = ReplayBuffer(30, NUM_ENVS)
    for _ in range(3):
        store = Checkpoints(folder)
        buffer.load_state_dict(store.load(buffer)[0]["buffer"])
        for number in range(34, 47):
            buffer.add(**step_of(number))
            store.save(number, {"buffer": buffer.state_dict(), "at": number}, buffer)
    assert list_others() == before
    own = {path.name for path in (folder / "replay").glob(f"*-{store.mark}.bin")}
    previous = checkpoint.read_state(folder / checkpoint.PREVIOUS)["segments"].values()
    assert own == {name for name, _ in (*store.segments.values(), *previous)}  # nothing piles up


def test_what_a_killed_save_has_left_goes_with_the_next(tmp_path, monkeypatch):
    store, buffer = folder_with_two(tmp_path), filled(33)
    names = {path.name for path in files_of(tmp_path)}

    class Killed(BaseException):
        pass

    def kill(*arguments, **options):
        raise Killed

    for moment in ("replace", "fsync"):
        for number in range(34, 37):
            buffer.add(**step_of(number))
        with monkeypatch.context() as broken:
            broken.setattr(os, moment, kill)
            broken.setattr(checkpoint.Path, "unlink", kill)  # nor does it tidy up
            with pytest.raises(Killed):
                store.save(36, {"buffer": buffer.state_dict(), "at": 36}, buffer)
        assert {path.name for path in files_of(tmp_path)} > names
        store, buffer = Checkpoints(tmp_path), ReplayBuffer(30, NUM_ENVS)
        buffer.load_state_dict(store.load(buffer)[0]["buffer"])
        store.save(33, {"buffer": buffer.state_dict(), "at": 33}, buffer)
        needed = {name for name, _ in store.segments.values()}
        assert needed == {path.name for path in (tmp_path / "replay").iterdir()}
        assert {path.name for path in tmp_path.iterdir()} == {
            "checkpoint.pt",
            "previous.pt",
            "replay",
        }
        names = {path.name for path in files_of(tmp_path)}


def test_segments_of_a_run_from_before_the_mark_go_when_they_are_needed_no_more(tmp_path):
    """They are known by the names in its two checkpoints alone."""
    folder_with_two(tmp_path)
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        content = checkpoint.read_state(tmp_path / name)
        step = checkpoint.read_footer(tmp_path / name)
        mark = content.pop("mark")
        for segment in content["segments"].values():
            path = tmp_path / "replay" / segment[0]
            segment[0] = segment[0].replace(f"-{mark}", "")
            if path.exists():
                path.rename(path.with_name(segment[0]))
        with (tmp_path / name).open("wb") as file:
            summed = ChecksumFile(file)
            torch.save(content, summed)
            file.write(bytes(Footer(step.format, step.step, summed.checksum)))
    buffer = ReplayBuffer(30, NUM_ENVS)
    store = Checkpoints(tmp_path)
    buffer.load_state_dict(store.load(buffer)[0]["buffer"])
    assert same_memory(buffer, filled(33))
    for number in range(34, 80):
        buffer.add(**step_of(number))
        store.save(number, {"buffer": buffer.state_dict()}, buffer)
    assert all(store.mark in path.name for path in (tmp_path / "replay").iterdir())


def test_a_replay_folder_that_is_a_link_is_refused_and_stays(tmp_path):
    """As two runs may share it, whose files nobody could tell apart."""
    scratch = tmp_path / "scratch"
    folder_with_two(tmp_path)
    (tmp_path / "replay").rename(scratch)
    (scratch / "notes.txt").write_text("mine")
    (tmp_path / "replay").symlink_to(scratch)
    before = {path: path.read_bytes() for path in files_of(scratch)}
    checkpoints = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    with pytest.raises(UsageError, match=r"replay/ is a link.* move the folder here"):
        reloaded(tmp_path)
    buffer = filled(40)
    with pytest.raises(OSError, match="replay/ is a link"):
        Checkpoints(tmp_path).save(40, {"buffer": buffer.state_dict()}, buffer)
    assert {path: path.read_bytes() for path in files_of(scratch)} == before
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == checkpoints
    (tmp_path / "replay").unlink()
    scratch.rename(tmp_path / "replay")
    assert same_memory(reloaded(tmp_path)[0], filled(33))


@pytest.mark.parametrize("lose", ["folder", "segment", "half a segment"])
def test_segments_that_are_gone_are_written_again(tmp_path, lose):
    """All is in memory while the run goes on, also what has not changed for long."""
    store, buffer = Checkpoints(tmp_path), filled(20)
    store.save(20, {"buffer": buffer.state_dict(), "at": 20}, buffer)
    victim = sorted((tmp_path / "replay").iterdir())[0]
    if lose == "folder":
        shutil.rmtree(tmp_path / "replay")
    elif lose == "segment":
        victim.unlink()
    else:
        os.truncate(victim, 100)
    buffer.add(**step_of(21))
    store.save(21, {"buffer": buffer.state_dict(), "at": 21}, buffer)
    again, state, problems = reloaded(tmp_path)
    assert (state["at"], problems) == (21, [])
    assert same_memory(again, buffer)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def write_by_hand(folder, content: bytes, version=checkpoint.FORMAT):
    footer = bytes(Footer(version, 5, zlib.crc32(content)))
    (folder / checkpoint.NEWEST).write_bytes(content + footer)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    for name, write in (("pickle", pickle.dump), ("torch", torch.save)):
        folder, trace = tmp_path / name, tmp_path / f"{name}-ran"
        folder.mkdir()
        with (folder / "file").open("wb") as file:
            write({"state": Payload(trace)}, file)
        write_by_hand(folder, (folder / "file").read_bytes())
        with pytest.raises(UsageError, match="could run code: it is not loaded"):
            Checkpoints(folder).load()
        assert not trace.exists()
        assert (folder / checkpoint.NEWEST).exists()


@pytest.mark.parametrize(("other", "age"), [(1, "a newer"), (-1, "an older")])
def test_another_format_is_refused_and_stays(other, age, tmp_path):
    version = checkpoint.FORMAT + other
    write_by_hand(tmp_path, b"whatever it is", version=version)
    with pytest.raises(UsageError, match=f"by {age} version .format {version}, here"):
        Checkpoints(tmp_path).load()
    assert read_newest_footer(tmp_path).format == version


def test_a_file_with_something_else_in_it_is_refused(tmp_path):
    for number, content in enumerate(([1, 2], {"state": 1}, None)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if content is not None:
            torch.save(content, folder / "file")
        write_by_hand(folder, (folder / "file").read_bytes() if content is not None else b"")
        with pytest.raises(UsageError, match="it is not loaded"):
            Checkpoints(folder).load()
        assert (folder / checkpoint.NEWEST).exists()


def test_a_checkpoint_belongs_to_its_flags(tmp_path):
    """Where config.json was changed by hand, nothing is taken for damaged, and nothing is lost."""
    store = Checkpoints(tmp_path, {"buffer_size": 6000, "seed": 1})
    for step in (1, 2):
        store.save(step, {"x": torch.zeros(3)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {"buffer_size": 3000, "seed": 1}
    message = "config.json has buffer_size 3000, its checkpoint 6000: put it back"
    for call in (Checkpoints(tmp_path, changed).load, lambda: find_newest_whole(tmp_path, changed)):
        with pytest.raises(UsageError, match=message):
            call()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    find_newest_whole(tmp_path, {"buffer_size": 6000, "seed": 1})


def test_a_missing_segment_is_damage_that_is_told(tmp_path):
    store, buffer = Checkpoints(tmp_path), filled(20)
    store.save(1, {}, buffer)
    next((tmp_path / "replay").iterdir()).unlink()
    with pytest.raises(UsageError, match=r"no whole checkpoint in .*: replay/.* is missing"):
        Checkpoints(tmp_path).load(filled(0))


def test_an_interrupt_in_the_middle_of_writing_stays_one(tmp_path):
    """torch hides what a file raises behind an error of its own."""
    with atomic_write(tmp_path / "file.pt") as file:
        torch.save({"x": torch.ones(10)}, file)
    before = (tmp_path / "file.pt").read_bytes()

    class Interrupted:
        def write(self, data):
            raise KeyboardInterrupt

    def save():
        with atomic_write(tmp_path / "file.pt") as file:
            file.file = Interrupted()
            torch.save({"x": torch.ones(10)}, file)

    with pytest.raises(KeyboardInterrupt):
        save()
    assert (tmp_path / "file.pt").read_bytes() == before
    assert not (tmp_path / "file.pt.tmp").exists()


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    assert read_newest_footer(tmp_path) is None
    with pytest.raises(UsageError, match="there is none; start the run anew"):
        Checkpoints(tmp_path).load()


@given(st.integers(0, 9999), st.integers(0, 10**14 - 1), st.integers(0, 2**32 - 1))
def test_footers_have_one_length_and_come_back(tmp_path_factory, version, step, checksum):
    footer = Footer(version, step, checksum)
    assert len(bytes(footer)) == checkpoint.FOOTER_BYTES
    path = tmp_path_factory.getbasetemp() / "footer"
    path.write_bytes(b"something" + bytes(footer))
    assert checkpoint.read_footer(path) == footer
    whole = bytes(footer)
    for line in (whole[:-1], whole[:30] + bytes([whole[30] ^ 1]) + whole[31:]):
        path.write_bytes(line)
        with pytest.raises(Damaged, match="cut off or damaged"):
            checkpoint.read_footer(path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_a_file_system_that_does_not_sync_is_no_failure(number, tmp_path, monkeypatch):
    """Of folders or of anything, as some of networks and containers; a broken disk is one."""

    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints = Checkpoints(tmp_path)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            checkpoints.save(1, {"a": 2})
        assert list(tmp_path.iterdir()) == []
        return
    checkpoints.save(1, {"a": 2})
    assert Checkpoints(tmp_path).load() == ({"a": 2}, [])
    board = Board(tmp_path)
    assert list(board.sync()) == [board.path.name]


def test_a_folder_that_cannot_be_opened_is_no_failure(tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(files.os, "open", refuse)
    checkpoints.save(1, {"a": 2})
    monkeypatch.undo()
    assert Checkpoints(tmp_path).load() == ({"a": 2}, [])
