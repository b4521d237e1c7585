"""The tables of a report: statistics or findings in, a row for each line out."""

from lab.common.stats import Estimate
from lab.common.tables import format_number
from lab.report.measures import final_value, is_counted
from lab.report.runs import SCORE, RunRecord
from lab.report.scores import GroupStatistics
from lab.report.verdicts import OPEN, Finding


def tabulate_group(scores: GroupStatistics) -> dict[str, list[dict]]:
    """Return the tables of a group by name; those without rows are left out."""
    tables = {
        "games": scores.by_game,
        "over_games": scores.over_games,
        "improvement": [
            {"of": scores.first, "over": other, "probability of improvement": found}
            for other, found in scores.improvements.items()
        ],
        "prediction": scores.predictions,
    }
    return {name: rows for name, rows in tables.items() if rows}


def list_runs(runs: list[RunRecord]) -> list[dict]:
    """Return a row per run: how far it came, and whether it counts."""
    rows = []
    for run in runs:
        counted = is_counted(run)
        incomplete = "no score" if run.complete else "no: not complete"
        rows.append(
            {
                "run": run.name,
                "setting": run.setting,
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


def flatten_estimates(rows: list[dict]) -> list[dict]:
    """Return rows for CSV: an interval as three columns, numbers to six digits."""
    flat = []
    for row in rows:
        cells = {}
        for name, value in row.items():
            if isinstance(value, Estimate):
                cells |= {name: value.value, f"{name} low": value.low, f"{name} high": value.high}
            else:
                cells[name] = value
        flat.append(
            {
                name: format_number(value) if isinstance(value, float) else value
                for name, value in cells.items()
            }
        )
    return flat
