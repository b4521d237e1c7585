"""Tables as text and as CSV."""

import csv
import io

from lab.common.tables import format_csv, format_number, format_table

ROWS = [{"name": "a", "value": 1.23456789, "count": 3}, {"name": "bcd", "value": 1e-9, "count": 40}]


def test_text_has_a_header_and_aligned_columns():
    assert format_table(ROWS).splitlines() == [
        "name  value  count",
        "a     1.235  3",
        "bcd   1e-09  40",
    ]


def test_csv_reads_back_with_names_and_line_ends_within_cells():
    rows = [{"name": "a, b", "value": 1.5}, {"name": "c\nd", "value": 2}]
    read = csv.DictReader(io.StringIO(format_csv(rows).decode(), newline=""))
    assert [(row["name"], float(row["value"])) for row in read] == [("a, b", 1.5), ("c\nd", 2.0)]


def test_numbers_have_six_digits():
    assert [format_number(x) for x in (1 / 3, 1234567.0, float("nan"))] == [
        "0.333333",
        "1.23457e+06",
        "nan",
    ]
