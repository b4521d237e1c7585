"""Outputs of a comparison: all of them or none, and what was there before is replaced."""

import csv

import numpy as np
import pytest
from matplotlib.figure import Figure

from flags import UsageError
from lab.common.files import replacing, write_summary
from lab.common.tables import format_table

ROWS = [{"name": "a", "value": 1.23456789, "count": 3}, {"name": "bcd", "value": 1e-9, "count": 40}]


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
    with replacing(tmp_path, ()) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "old").write_text("new")
        (folder / "more").write_text("more")
        assert (tmp_path / "sub" / "old").read_text() == "old"
    assert files(tmp_path) == {"sub/old": b"new", "kept": b"kept", "more": b"more"}


def test_event_files_are_replaced_whatever_their_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "events.out.tfevents.1.host").write_text("old")
    with replacing(tmp_path, ()) as folder:
        (folder / "a").mkdir()
        (folder / "a" / "events.out.tfevents.2.host").write_text("new")
    assert sorted(files(tmp_path)) == [
        "a/events.out.tfevents.2.host",
        "b/events.out.tfevents.1.host",  # of something else
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
        with pytest.raises(wanted), replacing(folder, ()) as staged:
            fail_after_writing(staged / "file", problem)
    assert files(tmp_path) == {"there/file": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_text_has_a_header_and_aligned_columns():
    assert format_table(ROWS).splitlines() == [
        "name  value  count",
        "a     1.235  3",
        "bcd   1e-09  40",
    ]


def test_summary_holds_pictures_and_tables(tmp_path, events):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    write_summary(tmp_path, "all", {"line": figure}, {"rows": ROWS})
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "rows.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(row["name"], float(row["value"]), int(row["count"])) for row in read] == [
        tuple(row.values()) for row in ROWS
    ]
    log = events(tmp_path / "tensorboard" / "all")
    image = log.Images("line")[0]
    assert (image.width, image.height) == tuple(np.array(figure.get_size_inches() * 100, int))
    text = log.Tensors("rows/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[0] == "name|value|count"
    assert text.splitlines()[2].startswith("a|1.23456789|")
    write_summary(tmp_path / "bars", "all", {}, {"bars": [{"one": "|x|", "two": 2}]})
    log = events(tmp_path / "bars" / "tensorboard" / "all")
    text = log.Tensors("bars/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[2].count("|") == 1  # a bar in a cell would begin another
