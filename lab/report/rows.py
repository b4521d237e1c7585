"""The tables of a report: statistics or findings in, a row for each line out."""

import math

import numpy as np

from lab.common.stats import Estimate
from lab.common.tables import format_number
from lab.common.variants import VARIANT_FLAGS
from lab.report.groups import NAMED_OR_FREE, Group, name_letters
from lab.report.measures import final_value, is_counted
from lab.report.runs import HOURS, SCORE, RunRecord
from lab.report.scores import EachSeed, GroupStatistics
from lab.report.verdicts import OPEN, Finding


def tabulate_group(scores: GroupStatistics) -> dict[str, list[dict]]:
    """Return the tables of a group by name; those without rows are left out."""
    tables = {
        "games": scores.by_game,
        "variants": tabulate_variants(scores.group),
        "over_games": scores.over_games,
        "improvement": [
            {"of": scores.first, "over": other, "probability of improvement": found}
            for other, found in scores.improvements.items()
        ],
        "prediction": scores.predictions,
        "representation": scores.representation,
        "measures": scores.by_layer,
    }
    return {name: rows for name, rows in tables.items() if rows}


def format_flag(value) -> str:
    """Format the value of a flag: on or off, words, numbers."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def format_span(numbers: set[int]) -> str:
    """Format whole numbers that may differ, as those of games with few and many actions do."""
    return " to ".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)}))


def tabulate_variants(group: Group) -> list[dict]:
    """Return a row per variant: the flags in which variants differ, size, hours, machines.

    What no run tells has no column.
    """
    flags = [
        name for name in VARIANT_FLAGS if len({repr(run.flags.get(name)) for run in group.runs}) > 1
    ]
    rows = []
    for variant in group.variants:
        own = [run for run in group.runs if run.variant == variant]
        row = {"variant": variant}
        for name in flags:
            values = {format_flag(run.flags.get(name)) for run in own}
            row[name.replace("_", " ")] = ", ".join(sorted(values))
        for column, name in (("parameters", "num_parameters"), ("multiply-adds", "multiply_adds")):
            sizes = {run.provenance.get(name) for run in own} - {None}
            row[column] = format_span(sizes) if sizes else ""
        hours = [run.measures[HOURS][-1] for run in own if HOURS in run.measures]
        row["hours a run"] = f"{np.mean(hours):.2f}" if hours else ""
        row["on"] = ", ".join(sorted({machine for run in own for machine in run.machines}))
        rows.append(row)
    return drop_empty_columns(rows)


def list_flags(group: Group) -> dict[str, str]:
    """Return the flags that are told of a group: none of its variants, and none without effect."""
    names = sorted({name for run in group.runs for name in run.flags} - NAMED_OR_FREE)
    return {
        name.replace("_", "-"): ", ".join(
            sorted({format_flag(run.flags.get(name)) for run in group.runs})
        )
        for name in names
    }


def list_settings(runs: list[RunRecord]) -> list[dict]:
    """Return a row per setting that has a letter: what it is called, and its flags."""
    return [
        {"setting": f"{algorithm.upper()} {letter}", "flags": setting}
        for (algorithm, setting), letter in name_letters(runs).items()
        if letter
    ]


def list_runs(runs: list[RunRecord]) -> list[dict]:
    """Return a row per run: how far it came, and whether it counts."""
    rows, letters = [], name_letters(runs)
    for run in runs:
        counted = is_counted(run)
        incomplete = "no: no score" if run.complete else "no: not complete"
        rows.append(
            {
                "run": run.name,
                "setting": letters[run.algorithm, run.setting],
                "agent steps": f"{run.last_step:,} of {run.total:,}",
                "counts": "yes" if counted else incomplete,
                "score at the end": f"{final_value(run, SCORE):.1f}" if counted else "",
                "commit": run.commit,
            }
        )
    return rows


def list_claims(findings: list[Finding]) -> list[dict]:
    """Return a row per finding: decided ones first, then those with something to show."""
    return [
        {
            "claim": f.claim,
            "verdict": f.verdict,
            "here": f.ours,
            "the paper's number": f.paper,
            "of": f.setting,
            "games": f.games,
            "seeds": f.seeds,
            "why": f.why,
            "source": f.source,
        }
        for f in sorted(findings, key=lambda f: (f.verdict == OPEN, f.ours == ""))
    ]


def format_cell(value) -> str:
    """Format a cell: numbers to a digit or two, intervals in words, nothing for nan."""
    number = value.value if isinstance(value, (Estimate, EachSeed)) else value
    if isinstance(number, float) and math.isnan(number):
        return ""
    digits = 1 if isinstance(number, float) and abs(number) >= 10 else 2
    if isinstance(value, Estimate):
        return value.format(digits)
    if isinstance(value, EachSeed):
        each = ", ".join(f"{of:.{digits}f}" for of in value.values)
        return f"{number:.{digits}f}" + (f" ({each})" if len(value.values) > 1 else "")
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def format_all(rows: list[dict]) -> list[dict]:
    """Return rows whose cells are text, as on the page."""
    return [{name: format_cell(value) for name, value in row.items()} for row in rows]


def drop_empty_columns(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return rows of text without the columns in which no row says anything."""
    told = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    return [{name: row[name] for name in told} for row in rows]


def flatten_estimates(rows: list[dict]) -> list[dict]:
    """Return rows for CSV: an interval as three columns, numbers to six digits."""
    flat = []
    for row in rows:
        cells = {}
        for name, value in row.items():
            if isinstance(value, (Estimate, EachSeed)):
                low, high = value[1:] if isinstance(value, Estimate) else (math.nan, math.nan)
                cells |= {name: value.value, f"{name} low": low, f"{name} high": high}
            else:
                cells[name] = value
        flat.append(
            {
                name: format_number(value) if isinstance(value, float) else value
                for name, value in cells.items()
            }
        )
    return flat
