"""Tables as files and as text; a row is a dict, column -> cell."""

import csv
import io
import re
import statistics

csv.field_size_limit(2**31 - 1)  # a cell is as large as what was written: a list of many sessions
# What a spreadsheet would take for a formula, perhaps behind marks that we have put there.
FORMULA = re.compile(r"'*[=+\-@\t\r]")


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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def format_csv(rows: list[dict]) -> bytes:
    """Format rows as CSV with a header; the first row names the columns of all.

    A text that a spreadsheet would take for a formula has a ' before it, which `read_csv` takes
    away; numbers stay as they are.
    """

    def protect(cell):
        is_formula = isinstance(cell, str) and FORMULA.match(cell) and not _is_number(cell)
        return f"'{cell}" if is_formula else cell

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(protect, rows[0]))
    for row in rows:
        writer.writerow([protect(row.get(column, "")) for column in rows[0]])
    return text.getvalue().encode()


def read_csv(content: bytes) -> list[dict[str, str]]:
    """Read rows as `format_csv` writes them. Raise ValueError or csv.Error if they are damaged."""

    def unprotect(cell):
        marked = isinstance(cell, str) and cell.startswith("'") and FORMULA.match(cell)
        return cell[1:] if marked else cell

    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return [{unprotect(name): unprotect(cell) for name, cell in row.items()} for row in rows]


def escape_bars(text: str) -> str:
    """Return a text for a cell of a table in Markdown, which a bar would end."""
    return text.replace("|", "&#124;")


def format_latex(rows: list[dict[str, str]]) -> bytes:
    """Format rows of text as a LaTeX table of the package booktabs."""
    special = {char: f"\\{char}" for char in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "\n": " "}
    lines = [list(rows[0]), *([*row.values()] for row in rows)]
    cells = [[str(cell).translate(str.maketrans(special)) for cell in line] for line in lines]
    head, *body = [" & ".join(line) + r" \\" for line in cells]
    start = rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}"
    text = [start, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(text).encode()


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
