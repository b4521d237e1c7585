"""Outputs of a comparison: all of them or none, and what was there before is replaced."""

import os
from pathlib import Path

import pytest

from lab.common.cli import UsageError
from lab.common.files import (
    check_targets,
    read_json,
    read_regular,
    replace_files,
    write_files,
    write_json,
)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_new_files_take_the_place_of_old_ones_and_leave_others_alone(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old").write_text("old")
    (tmp_path / "kept").write_text("kept")
    with replace_files(tmp_path, "--out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "old").write_text("new")
        (folder / "more").write_text("more")
        assert (tmp_path / "sub" / "old").read_text() == "old"
    assert files(tmp_path) == {"sub/old": b"new", "kept": b"kept", "more": b"more"}


def test_event_files_are_replaced_whatever_their_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "events.out.tfevents.1.host.9").write_text("old")
    (tmp_path / "a" / "events.out.tfevents.1.host.9.bak").write_text("mine")
    with replace_files(tmp_path, "--out") as folder:
        (folder / "a").mkdir()
        (folder / "a" / "events.out.tfevents.2.host.9").write_text("new")
    assert sorted(files(tmp_path)) == [
        "a/events.out.tfevents.1.host.9.bak",
        "a/events.out.tfevents.2.host.9",
        "b/events.out.tfevents.1.host.9",  # of something else
    ]


def fail_after_writing(path, problem):
    path.write_text("new")
    raise problem("as it happens")


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_block_that_fails_changes_nothing(tmp_path, problem):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    for folder in (tmp_path / "there", tmp_path / "new" / "folder"):
        wanted = UsageError if problem is OSError else problem
        with pytest.raises(wanted), replace_files(folder, "--out") as staged:
            fail_after_writing(staged / "file", problem)
    assert files(tmp_path) == {"there/file": b"old"}


def test_a_folder_in_the_way_of_one_file_keeps_all_others_as_they_were(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(UsageError, match="b is a folder and in the way: remove it, or choose"):
        write_files(tmp_path, {"a": b"new", "b": b"new", "c": b"new"}, "--out")
    assert files(tmp_path) == {"a": b"old"}


def test_what_is_outdated_goes_unless_it_is_written_anew(tmp_path):
    for name in ("old", "again", "mine"):
        (tmp_path / name).write_text("old")
    write_files(tmp_path, {"again": b"new"}, "--out", outdated=("old", "again", "never"))
    assert files(tmp_path) == {"again": b"new", "mine": b"old"}


def test_targets_are_checked_before_any_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    check_targets(tmp_path, ("folder/", "file", "neither", "nor/"), "--out")
    for name, message in (("folder", "is a folder"), ("file/", "is a file"), ("x" * 300, "long")):
        with pytest.raises(UsageError, match=message):
            check_targets(tmp_path, (name,), "--out")


def test_a_temporary_file_is_written_over_nothing(tmp_path, monkeypatch):
    """Whatever lies at its name, even if somebody knows it: it stays, and so does the target."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    monkeypatch.setattr("lab.common.files.secrets.token_hex", lambda size: "known")
    (tmp_path / "out.json").write_text("old")
    temporary = tmp_path / "out.json.known.tmp"
    for put in (
        lambda: temporary.symlink_to(elsewhere),
        lambda: temporary.symlink_to("nowhere"),
        lambda: os.mkfifo(temporary),
        lambda: temporary.write_text("mine"),
        lambda: os.link(elsewhere, temporary),
    ):
        put()
        before = temporary.lstat()
        with pytest.raises(FileExistsError):
            write_json(tmp_path / "out.json", {"a": 1})
        assert temporary.lstat() == before
        assert elsewhere.read_text() == "mine"
        assert (tmp_path / "out.json").read_text() == "old"
        assert not (tmp_path / "nowhere").exists()
        temporary.unlink()
    write_json(tmp_path / "out.json", {"a": 1})
    assert files(tmp_path) == {"elsewhere": b"mine", "out.json": b'{\n  "a": 1\n}\n'}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a device"])
def test_what_is_no_regular_file_is_refused_and_not_read(tmp_path, kind):
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is no regular file"):
        read_json(path)


@pytest.mark.parametrize("content", ["", "[]", "3", "null", "{", "[" * 100_000, '{"a": ' * 100_000])
def test_json_without_an_object_is_damaged(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"(?i)expecting|object|nested"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("read", [read_regular, read_json])
def test_a_file_that_memory_does_not_hold_is_refused_and_not_read(read, tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(2 * 10**11)  # holes, which take no room
    with pytest.raises(OSError, match="larger than half of the free memory"):
        read(path)


def test_a_folder_in_place_of_an_outdated_file_is_told_before_anything_is_written(tmp_path):
    (tmp_path / "old.png").mkdir()
    with pytest.raises(UsageError, match=r"old\.png is a folder and in the way"):
        write_files(tmp_path, {"new.csv": b"new"}, "--out", outdated=("old.png",))
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
