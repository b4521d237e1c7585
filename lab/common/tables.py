"""Tables as files and as text; a row is a dict, column -> cell."""

import csv
import io
import statistics


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


def markdown_table(rows: list[tuple[str, ...]]) -> str:
    """Format rows as an aligned Markdown table; the first row names the columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def format_range(values: list[float], digits: int = 0) -> str:
    """Format measured values as median (min to max)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
