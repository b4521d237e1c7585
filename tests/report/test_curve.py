"""The curves of one run as a table and a picture: every point there, or one line and nothing."""

import csv

import pytest
from PIL import Image

import lab.report.curve as curve_script
from report.planted import make_run


@pytest.fixture
def curve(launched):
    """Call it with arguments: (status, what it printed, what it complained)."""

    def call(*arguments):
        done = launched(curve_script, arguments)
        return done.returncode, done.stdout, done.stderr

    return call


def test_every_point_is_in_the_table(tmp_path, curve):
    measures = {
        "representation/dead_kde": [(100, 0.5), (500, 0.25)],
        "losses/td_loss": [(100, 0.125)],
        "hparams/other": [(100, 1.0)],
    }
    run = make_run(tmp_path / "run", [(50, 1.0), (900, 3.5)], measures=measures)
    assert curve(run, "out") == (0, "", "")
    with (tmp_path / "out.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert sorted(rows) == [
        ("charts/episodic_return", "50", "1"),
        ("charts/episodic_return", "900", "3.5"),
        ("losses/td_loss", "100", "0.125"),
        ("representation/dead_kde", "100", "0.5"),
        ("representation/dead_kde", "500", "0.25"),
    ]
    with Image.open(tmp_path / "out.png") as image:
        assert image.size[0] > 1000


def test_what_cannot_be_drawn_is_told_and_nothing_is_written(tmp_path, curve):
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "new", [])
    (tmp_path / "taken.png").mkdir()
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        ((run,), "give a run folder and a stem"),
        (("nowhere", "out"), "nowhere is no run folder that can be read"),
        (("new", "out"), "no game has ended in new"),
        ((run, "absent/out"), "absent/out: there is no folder absent; make it first"),
        ((run, "taken"), "taken.png is a folder and in the way"),
        ((run, "."), ". is a folder: add a name, such as curves"),
        ((run, "out", "1"), "Unrecognized options: 1"),
    ):
        status, said, complaint = curve(*arguments)
        assert (status, said, complaint.count("\n")) == (2, "", 1)
        assert f"lab.report.curve: error: {message}" in complaint
    assert sorted(tmp_path.iterdir()) == before
