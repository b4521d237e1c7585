"""Run folders: their names."""

import json
import os

import pytest

from dqn_atari import Args, QNetwork
from lab.common.cli import UsageError
from lab.training.runfolder import describe, find_runs_of, fresh_folder, in_use, lock, read_config


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    args = Args(runs_dir=str(tmp_path / "a" / "runs"))
    config = describe(args, "dqn", QNetwork(4, args))
    config["started"] = "2026-01-01T00:00:00+00:00"
    names = []
    for _ in range(3):
        with fresh_folder(args, config) as folder:
            names.append(folder.name)
    stem = "Breakout__dqn__tanh-hr__s1__20260101-000000"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_a_lock_that_is_no_file_is_refused(tmp_path, kind):
    """A pipe would be waited for; through a link somebody else's file would be made or held."""
    folder = tmp_path / "run"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "lock")
    elif kind == "link":
        (folder / "lock").symlink_to(tmp_path / "elsewhere")
    else:
        (folder / "lock").mkdir()
    with pytest.raises(UsageError, match="cannot be locked"):
        lock(folder)
    assert not in_use(folder)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_config_that_is_no_file_is_refused_and_not_read(tmp_path, kind):
    folder = tmp_path / "run"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "config.json")
    else:
        (folder / "config.json").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"no whole config.json .it is no regular file"):
        read_config(folder)
    assert find_runs_of(Args(runs_dir=str(tmp_path)), "dqn") == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"started": 3}, "started must be text, not 3"),
        ({"algorithm": ["dqn"]}, "algorithm must be text"),
        ({"flags": [1]}, "flags must be an object"),
        ({"flags": {"seed": [1]}}, "flags: seed must be text or a number"),
        ({"finished": "yes"}, "finished must be a whole number"),
        ({"resumed": {"step": 3}}, "resumed must be a list"),
        ({"resumed": [3]}, "resumed: entry 0 must be an object, not 3"),
        ({"resumed": [{"step": "3"}]}, "resumed, entry 0: step must be a whole number"),
        ({"torch_threads": [2]}, "torch_threads must be a whole number"),
        *(
            (entry, f"{name} must be a whole number, at least 0 and below")
            for number in (-1, 2**53, 10**400)
            for name, entry in (
                ("finished", {"finished": number}),
                ("num_parameters", {"num_parameters": number}),
                ("multiply_adds", {"multiply_adds": number}),
                ("torch_threads", {"torch_threads": number}),
                ("resumed, entry 1: step", {"resumed": [{"step": 0}, {"step": number}]}),
            )
        ),
        ({"device": 5}, "device must be text"),
        ({"versions": {"torch": 2}}, "versions: torch must be text"),
        ({"versions": {"versions": 2}}, "versions: versions must be text"),
        ({"git_commit": {"a": "x" * 999}}, "git_commit must be text, not .{50,70}…"),
    ],
)
def test_an_entry_of_another_kind_is_named(tmp_path, entry, message):
    config = {"algorithm": "dqn", "flags": {"seed": 1}, "started": "2026"}
    (tmp_path / "config.json").write_text(json.dumps(config | entry))
    with pytest.raises(UsageError, match=message):
        read_config(tmp_path)
    # Null is what was not known of where it ran; of what it did there is nothing of the kind.
    null = config | dict.fromkeys(entry.keys() - config)
    (tmp_path / "config.json").write_text(json.dumps(null))
    if entry.keys() & {"finished", "resumed", "num_parameters", "multiply_adds"}:
        with pytest.raises(UsageError, match=r"must be .*, not None"):
            read_config(tmp_path)
    else:
        assert read_config(tmp_path)["algorithm"] == "dqn"


def test_entries_that_are_odd_and_right_are_read(tmp_path):
    """The largest number there may be, and a library that is called versions."""
    config = {"algorithm": "dqn", "flags": {"seed": 1}, "started": "2026"}
    config |= {"finished": 2**53 - 1, "resumed": [{"step": 0}], "versions": {"versions": "2"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path) == config
