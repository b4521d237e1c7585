"""The page of a report: headings, tables and figures in one HTML file that needs no other."""

import base64
import html
import io
from pathlib import Path

from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; --line: #d8d8d8; --quiet: #666; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 0 1rem 4rem;
  color: #1a1a1a; background: #fff; }
h1 { line-height: 1.2; margin: 2rem 0 0.5rem; }
h2 { margin: 3rem 0 0.5rem; border-top: 2px solid #1a1a1a; padding-top: 0.7rem; }
h3 { margin: 2rem 0 0.3rem; }
p { max-width: 46rem; }
nav a { margin-right: 1.2rem; white-space: nowrap; }
summary { cursor: pointer; margin: 0.5rem 0; }
.supported, .contradicted, .open { white-space: nowrap; }
.quiet { color: var(--quiet); font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; margin: 0.5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.7rem 0.3rem 0;
  border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: #fff; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: var(--quiet); font-size: 0.9rem; max-width: 46rem; }
.supported { color: #00663a; font-weight: 600; }
.contradicted { color: #a01c1c; font-weight: 600; }
.open { color: var(--quiet); }
td:last-child { white-space: nowrap; }
td:nth-last-child(2) { min-width: 6rem; }
@media (max-width: 40rem) {
  body { font-size: 15px; }
  figure img { max-width: none; width: 46rem; }
  /* Out of sight, not display: none, which would take them from a screen reader, too. */
  thead { position: absolute; left: -100rem; }
  table, tbody, tr, td { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: 0.4rem 0; }
  td, td:last-child { border: 0; padding: 0 0 0.1rem; white-space: normal; }
  td:not(:empty)::before { content: attr(data-column) ": "; color: var(--quiet); font-weight: 400; }
  td:empty { padding: 0; }
}
"""


def svg(figure: Figure) -> bytes:
    """Text stays text; the same figure gives the same bytes."""
    import matplotlib as mpl

    content = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hadamard"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def table(rows: list[dict], classes: dict[str, str] | None = None) -> str:
    """Rows as an HTML table; `classes`: cell text -> CSS class. It scrolls where it is too wide.

    On a screen as narrow as a phone's every cell that is not empty is a line, with the name of its
    column; the roles keep it a table for a screen reader there, too.
    """
    if not rows:
        return "<p class=quiet>None.</p>"
    names = [html.escape(str(name)) for name in rows[0]]
    head = "".join(f"<th role=columnheader>{name}</th>" for name in names)
    lines = []
    for row in rows:
        cells = []
        for name, cell in zip(names, row.values(), strict=True):
            text = str(cell)
            kind = (classes or {}).get(text)
            mark = f' class="{kind}"' if kind else ""
            cells.append(f'<td role=cell{mark} data-column="{name}">{html.escape(text)}</td>')
        lines.append(f"<tr role=row>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        "<div class=scroll><table role=table><thead role=rowgroup>"
        f"<tr role=row>{head}</tr></thead>\n<tbody role=rowgroup>{body}</tbody></table></div>"
    )


def picture(content: bytes, caption: str) -> str:
    """An SVG within the page."""
    coded = base64.b64encode(content).decode()
    text = html.escape(caption)
    return (
        f'<figure><div class=scroll><img alt="{text}" '
        f'src="data:image/svg+xml;base64,{coded}"></div><figcaption>{text}</figcaption></figure>'
    )


def folded(heading: str, part: str) -> str:
    """A part that opens at a click."""
    return f"<details><summary>{html.escape(heading)}</summary>\n{part}</details>"


def paragraph(text: str, quiet: bool = False) -> str:
    return f"<p{' class=quiet' * quiet}>{html.escape(text)}</p>"


def write_page(path: Path, title: str, sections: list[tuple[str, str, list[str]]]):
    """`sections`: (anchor, heading, parts in HTML); the first has no heading of its own."""
    links = "".join(
        f'<a href="#{anchor}">{html.escape(heading)}</a>' for anchor, heading, _ in sections[1:]
    )
    body = [f"<h1>{html.escape(title)}</h1>", *sections[0][2], f"<nav>{links}</nav>"]
    for anchor, heading, parts in sections[1:]:
        body += [f'<h2 id="{anchor}">{html.escape(heading)}</h2>', *parts]
    path.write_text(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n",
        encoding="utf-8",
    )
