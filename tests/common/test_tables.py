"""Tables as text and as CSV."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.common.tables import format_csv, format_number, format_table, read_csv

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


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\t=1", "\r=1", "=", "'=1", "''+x"]
)
def test_no_text_is_a_formula_in_a_spreadsheet(text):
    """Which takes a cell for one by its first character, and a ' before it for text."""
    content = format_csv([{text: text, "b": "'plain"}])
    for row in csv.reader(io.StringIO(content.decode(), newline="")):
        assert row[0] == f"'{text}"
        assert row[1] in ("b", "'plain")
    assert read_csv(content) == [{text: text, "b": "'plain"}]


@pytest.mark.parametrize("number", ["-1.5", "+2", "-inf", "-1e-09", -3, -0.5])
def test_numbers_stay_numbers_in_a_spreadsheet(number):
    assert format_csv([{"a": number}]).decode() == f"a\r\n{number}\r\n"


@given(st.lists(st.text(alphabet="'=+-@ax1\t\r\n,\"", min_size=1), min_size=1, max_size=9))
def test_every_text_reads_back(texts):
    rows = [{"name": text, "n": "1"} for text in texts]
    assert read_csv(format_csv(rows)) == rows


def test_a_cell_of_any_size_reads_back():
    """Beyond the limit of Python's csv, as where a run was made in many sessions."""
    rows = [{"name": "[" * 1_000_000}]
    assert read_csv(format_csv(rows)) == rows
