"""Of several copies of a run the best counts, and others are named."""

import shutil

import pytest

from lab.report.inputs import read_all
from lab.report.runs import POINTS, SCORE
from report.planted import make_run


def test_of_two_equal_runs_the_newest_complete_one_counts(tmp_path):
    make_run(tmp_path / "old", [(100, 1.0)], started="2025")
    make_run(tmp_path / "new", [(100, 2.0)], started="2026")
    make_run(tmp_path / "newest", [(100, 3.0)], started="2027", last=10)
    runs, remarks = read_all((str(tmp_path),))
    assert [run.name for run in runs] == ["new"]
    assert runs[0].measures[SCORE][POINTS - 1] == 2.0
    assert len(remarks) == 2


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_a_damaged_copy_does_not_displace_the_whole_run(tmp_path, order):
    good = make_run(tmp_path / "good", [(100, 1.0), (900, 9.0)])
    shutil.copytree(good, tmp_path / "bad")
    events = next((tmp_path / "bad").glob("events*"))
    events.write_bytes(events.read_bytes()[:-1])
    (run,), remarks = read_all(tuple(str(tmp_path / name) for name in order))
    assert run.name == "good"
    assert remarks == ["bad is left out: good is the same run, and as good or better"]


def test_of_two_equal_copies_the_first_named_stays(tmp_path):
    shutil.copytree(make_run(tmp_path / "b"), tmp_path / "a")
    assert read_all((str(tmp_path / "b"), str(tmp_path / "a")))[0][0].name == "b"
