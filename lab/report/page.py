"""The page of a report, rendered from page.html: one file that needs no other."""

import base64
from pathlib import Path

import jinja2

from lab.common.cli import plural
from lab.common.stats import BOOTSTRAP_SEEDS, reference_scores
from lab.report.claims import MIN_SEEDS
from lab.report.rows import drop_empty_columns, format_all
from lab.report.verdicts import CONTRADICTED, OPEN, SUPPORTED


def render_page(**context) -> str:
    """Return the page in HTML; page.html says what is in the context."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "told": lambda rows: drop_empty_columns(format_all(rows)),
        "base64": lambda content: base64.b64encode(content).decode(),
        "plural": plural,
    }
    environment.globals |= {"bootstrap_seeds": BOOTSTRAP_SEEDS, "min_seeds": MIN_SEEDS}
    environment.globals["known"] = reference_scores()
    environment.globals["verdicts"] = (SUPPORTED, CONTRADICTED, OPEN)
    return environment.get_template("page.html").render(context)
