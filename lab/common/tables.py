"""Tables as files and as text; a row is a dict, column -> cell."""

import csv
import io


def format_number(value: float) -> str:
    """Format to six significant digits, as in the CSV tables.

    A report made from runs and one made from the tables of these runs agree for that reason.
    """
    return f"{value:.6g}"


def format_table(rows: list[dict]) -> str:
    """Format rows for a terminal: a header, aligned columns, numbers to four digits."""
    lines = [list(rows[0])]
    for row in rows:
        lines.append([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_csv(rows: list[dict]) -> bytes:
    """Format rows as CSV with a header; the first row names the columns of all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
