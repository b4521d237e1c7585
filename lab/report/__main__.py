"""What many runs say: scores with intervals, figures, the paper's claims; tables and one page.

    python -m lab.report runs                       everything below runs/, into report/
    python -m lab.report runs/Break* --out other    these runs alone
    python -m lab.report report                     again, from the tables of an earlier report

Runs of one algorithm that differ in other flags than game, seed and variant (--device and flags
that change no number aside) are not averaged: each such setting is reported by itself. A score is a
mean raw return of 100 games in training.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from lab.common.cli import UsageError, check_folder, launch, plural, say
from lab.common.drawing import own_style
from lab.common.files import check_targets, write_files
from lab.common.tables import format_csv, format_latex
from lab.report.groups import Group, group_runs, name_groups
from lab.report.inputs import read_all, read_earlier
from lab.report.measures import is_counted
from lab.report.page import render_page
from lab.report.rows import (
    drop_empty_columns,
    flatten_estimates,
    format_all,
    list_claims,
    list_flags,
    list_runs,
    list_settings,
    tabulate_group,
)
from lab.report.runs import CURVES_CSV, RUNS_CSV, RunRecord, tabulate_runs
from lab.report.scores import GroupStatistics
from lab.report.verdicts import judge_all

FIGURES = ("curves", "hours", "representation", "losses", "efficiency", "profiles", "improvement")
FIGURES += ("prediction",)
TABLES = ("games", "variants", "over_games", "improvement", "prediction", "representation")
TABLES += ("measures",)
MOST_NAMED = 5  # of the runs that do not count, after a report


@dataclass
class Args:
    """Many runs into figures, tables and one page."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
    """run folders, folders of such, or folders of earlier reports"""
    out: str = "report"
    """folder for page, figures and tables: new, empty, or an earlier report of these runs"""
    baseline: str = "relu"
    """variant whose runs give the range for the baseline-normalised scores (v1 D.1)"""
    first: str = "tanh-hr"
    """variant that is compared with all others"""
    figures: bool = True
    """draw the figures, which takes most of the time; without, those of an earlier report go"""


class Figures(NamedTuple):
    """The figures of a group."""

    files: dict[str, bytes]  # by their names without that of the group: curves.png
    shown: dict[str, list[tuple[str, bytes]]]  # name -> title and SVG of each panel, for the page
    colors: dict[str, str]  # variant -> #rrggbb


def check_variants(runs: list[RunRecord], args: Args) -> list[str]:
    """Return remarks on what is left out for want of runs of --first and --baseline.

    Raise UsageError for one that was asked for, and of which there is no run that counts.
    """
    variants = sorted({run.variant for run in runs if is_counted(run)})
    remarks = []
    for name, without in (
        ("first", "no probabilities that one improves on another"),
        ("baseline", "no baseline-normalised scores"),
    ):
        variant = getattr(args, name)
        if variant in variants:
            continue
        if variant != getattr(Args, name):
            there = ", ".join(variants) or "no runs that count"
            raise UsageError(f"--{name} {variant}: no run of it that counts; there are {there}")
        remarks.append(f"{without}: no run of {variant} (--{name}) that counts")
    return remarks


def list_group_files(groups: list[Group]) -> list[str]:
    """Return the names of all files of their own that a report of these groups may have."""
    parts = [f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg", "pdf")]
    parts += [f"{name}.{kind}" for name in TABLES for kind in ("csv", "tex")]
    return [f"{name}_{part}" for name, part in itertools.product(name_groups(groups), parts)]


@own_style()
def draw_figures(scores: GroupStatistics) -> Figures:
    """Return the figures of a group, and the colours of its variants."""
    from lab.report.figures import draw_alone, draw_together, list_all, pick_color, render

    files, shown = {}, {}
    for name, panels in list_all(scores).items():
        whole = draw_together(panels, 3 if name == "representation" else 4)
        for kind, options in (("png", {"dpi": 110}), ("svg", {}), ("pdf", {})):
            files[f"{name}.{kind}"] = render(whole, kind, **options)
        shown[name] = [(panel.title, render(draw_alone(panel), "svg")) for panel in panels]
    variants = scores.group.variants
    return Figures(files, shown, {name: pick_color(name, scores.group) for name in variants})


def make_report(runs: list[RunRecord], remarks: list[str], args: Args) -> dict[str, bytes]:
    """Return the files of a report by name: page, tables and figures."""
    groups = group_runs(runs)
    claims = list_claims(judge_all(groups))
    files, sections = {}, []
    for name, group in zip(name_groups(groups), groups, strict=True):
        scores = GroupStatistics(group, args.first, args.baseline)
        tables = tabulate_group(scores)
        for which, rows in tables.items():
            files[f"{name}_{which}.csv"] = format_csv(flatten_estimates(rows))
            files[f"{name}_{which}.tex"] = format_latex(drop_empty_columns(format_all(rows)))
        figures = draw_figures(scores) if args.figures else Figures({}, {}, {})
        files |= {f"{name}_{which}": content for which, content in figures.files.items()}
        sections.append(
            {
                "name": name,
                "scores": scores,
                "tables": tables,
                "figures": figures.shown,
                "colors": figures.colors,
                "flags": list_flags(group),
            }
        )
    for name, rows in zip((RUNS_CSV, CURVES_CSV), tabulate_runs(runs), strict=True):
        files[name] = format_csv(rows)
    settings = list_settings(runs)
    long = {row["setting"]: f"{row['setting']}: {row['flags']}" for row in settings}
    files["claims.csv"] = format_csv(
        [row | {"of": long.get(row["of"], row["of"])} for row in claims]
    )
    page = render_page(
        settings=settings,
        runs=list_runs(runs),
        counting=sum(len(group.runs) for group in groups),
        remarks=remarks,
        claims=claims,
        groups=sections,
    )
    return files | {"index.html": page.encode()}


def main(args: Args) -> int:
    """Make a report. Raise UsageError where that is not possible."""
    if not args.runs:
        raise UsageError("no runs: name their folders, such as runs")
    check_folder(args, "out")
    runs, remarks = read_all(args.runs)
    if not runs:
        raise UsageError(f"none of these runs can be read: {'; '.join(remarks)}")
    remarks += check_variants(runs, args)
    folder = Path(args.out)
    check_targets(folder, ("index.html", RUNS_CSV, CURVES_CSV, "claims.csv"), "--out")
    outdated = list_group_files(group_runs(read_earlier(folder, runs)))
    write_files(folder, make_report(runs, remarks, args), "--out", outdated)
    left_out = [row for row in list_runs(runs) if row["counts"] != "yes"]
    counting = len(runs) - len(left_out)
    say(
        f"{plural(len(runs), 'run')}, of which {counting} count (complete, with a score): "
        f"{folder / 'index.html'}"
    )
    for row in left_out[:MOST_NAMED]:
        why = row["counts"].removeprefix("no: ")
        say(f"not counted: {row['run']}, {why}, {row['agent steps']} agent steps")
    if more := left_out[MOST_NAMED:]:
        say(f"not counted: {plural(len(more), 'more run')}, on the page")
    for remark in remarks:
        say(remark)
    return 0


def run():
    """Run the command line, as `hr-report` and `python -m lab.report` do."""
    launch(main, Args)


if __name__ == "__main__":
    run()
