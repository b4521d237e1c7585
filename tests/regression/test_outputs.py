"""What the demo leaves in TensorBoard."""

import csv

import numpy as np
from matplotlib.figure import Figure

from lab.regression.outputs import write_summary

ROWS = [{"name": "a", "value": 1.23456789, "count": 3}, {"name": "bcd", "value": 1e-9, "count": 40}]


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
