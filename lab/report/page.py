"""The page of a report, rendered from page.html: one file that needs no other."""

import base64
import math
from pathlib import Path

import jinja2

from lab.common.cli import plural
from lab.common.stats import BOOTSTRAP_SEEDS, Estimate, reference_scores
from lab.report.verdicts import CONTRADICTED, OPEN, SUPPORTED


def format_cell(value) -> str:
    """Format a cell: numbers to a digit or two, intervals in words, nothing for nan."""
    number = value.value if isinstance(value, Estimate) else value
    if isinstance(number, float) and math.isnan(number):
        return ""
    if isinstance(value, Estimate):
        return value.format(digits=1 if abs(number) >= 10 else 2)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


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
        "cell": format_cell,
        "base64": lambda content: base64.b64encode(content).decode(),
        "plural": plural,
    }
    environment.globals |= {"bootstrap_seeds": BOOTSTRAP_SEEDS, "known": reference_scores()}
    environment.globals["verdicts"] = (SUPPORTED, CONTRADICTED, OPEN)
    return environment.get_template("page.html").render(context)
