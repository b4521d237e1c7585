"""NVIDIA's MPS around a sweep: started, shared and ended, by a stand-in for its control program."""

import contextlib
import os
from pathlib import Path

import pytest

from lab.sweep import pool
from lab.sweep.mps import CONTROL, PIPES, share_gpus

CONTROL_PROGRAM = """#!/bin/sh
# Runs where the file `daemon` lies in the folder of its pipes.
daemon="${CUDA_MPS_PIPE_DIRECTORY:-FOLDER}/daemon"
if [ "$1" = -d ]; then
  BROKEN
  touch "$daemon"; echo "${CUDA_VISIBLE_DEVICES-all}" > FOLDER/seen; exit 0
fi
read -r command
echo "$command" >> FOLDER/asked
[ -e "$daemon" ] || { echo "Cannot find MPS control daemon process" >&2; exit 1; }
if [ "$command" = quit ]; then rm "$daemon"; fi
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that puts the stand-in on the PATH; it returns its folder."""
    monkeypatch.delenv(PIPES, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")

    def make(broken: str = "") -> Path:
        program = tmp_path / CONTROL
        program.write_text(
            CONTROL_PROGRAM.replace("FOLDER", str(tmp_path)).replace("BROKEN", broken)
        )
        program.chmod(0o755)
        return tmp_path

    return make


def test_it_runs_for_the_block_alone(install, capfd):
    install()
    with share_gpus(True) as environment:
        pipes = Path(environment[PIPES])
        assert (pipes / "daemon").exists()
    assert not pipes.exists()
    assert (install() / "asked").read_text().split() == ["get_server_list", "quit"]
    assert capfd.readouterr().out.count("\n") == 1


def test_it_sees_all_gpus_as_runs_are_given_theirs_by_number(install, monkeypatch):
    folder = install()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with share_gpus(True):
        assert (folder / "seen").read_text() == "all\n"


def test_it_ends_with_a_block_that_fails(install):
    folder = install()
    with pytest.raises(KeyboardInterrupt), share_gpus(True) as environment:
        raise KeyboardInterrupt
    assert not Path(environment[PIPES]).exists()
    assert (folder / "asked").read_text().split()[-1] == "quit"


def test_one_that_runs_already_is_left_alone(install, capfd):
    folder = install()
    (folder / "daemon").touch()
    with share_gpus(True) as environment:
        assert environment == {}
    assert (folder / "daemon").exists()
    assert capfd.readouterr() == ("", "")


def test_one_that_cannot_start_is_a_line(install, capfd):
    install("echo 'no permission to do so' >&2; exit 1")
    with share_gpus(True) as environment:
        assert environment == {}
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "MPS does not start: no permission to do so" in said.err


@pytest.mark.parametrize("wanted", [False, True])
def test_nothing_happens_where_it_is_not_wanted_or_not_installed(wanted, install, monkeypatch):
    folder = install()
    if wanted:
        monkeypatch.setenv("PATH", str(folder / "elsewhere"))
    with share_gpus(wanted) as environment:
        assert environment == {}
    assert not (folder / "asked").exists()


@pytest.mark.parametrize(
    ("gpus", "at_once", "wanted"), [(["0"], 2, True), (["0"], 1, False), (["0", "1"], 2, False)]
)
def test_a_sweep_wants_it_where_runs_share_a_gpu(gpus, at_once, wanted, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def share(is_wanted):
        asked.append(is_wanted)
        yield {PIPES: "here"}

    monkeypatch.setattr(pool, "share_gpus", share)
    made = pool.Pool([], at_once, gpus, 30.0)
    assert made.run() == 0
    assert (asked, made.environment) == ([wanted], {PIPES: "here"})
