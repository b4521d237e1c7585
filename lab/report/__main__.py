"""What many runs say: scores with intervals, figures, the paper's claims; tables and one page.

    python report.py runs                         everything below runs/, into report/
    python report.py runs/Break* --out other      these runs alone
    python report.py report                       again, from the tables of an earlier report

Runs of one algorithm that differ in other flags than game, seed and variant are not averaged: each
such setting is reported by itself. A score is a mean raw return of 100 games in training.
"""

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg

from flags import UsageError, check_folder, counted, launch, say, variant_flags
from lab.common.files import replacing
from lab.common.stats import BOOTSTRAP_SEEDS, reference_scores
from lab.common.tables import write_csv
from lab.report.figures import all_figures, improvements
from lab.report.groups import Group, group_runs, name_groups, name_settings
from lab.report.measures import is_counted
from lab.report.page import folded, paragraph, picture, svg, table, write_page
from lab.report.rows import (
    aggregate_rows,
    as_cells,
    as_columns,
    claim_rows,
    game_rows,
    prediction_rows,
    run_rows,
)
from lab.report.runs import (
    CURVES_CSV,
    RUNS_CSV,
    RunRecord,
    find_runs,
    has_tables,
    read_run,
    read_tables,
    table_rows,
)
from lab.report.verdicts import CONTRADICTED, OPEN, SUPPORTED, Finding, judge_all

CLASSES = {SUPPORTED: "supported", CONTRADICTED: "contradicted", OPEN: "open"}
CAPTIONS = {
    "curves": "Mean raw return of the newest 100 games; line: mean over seeds, band: 95 % interval "
    "(Student's t over seeds), with two seeds thin lines: each.",
    "representation": "z solid, its branches dotted; means over seeds, bands or seeds as above. "
    "dead: v1's density test; saturated: beyond 0.99 on 99 % of the samples.",
    "efficiency": "Interquartile mean over all runs and games.",
    "profiles": "Higher is better.",
    "improvement": "Averaged over games, ties count half. Right of the line: more often "
    "better than not, in these runs.",
    "prediction": "A point per run, means over its last tenth. On the line: as many dead products "
    "as if the branches died independently of one another.",
}
LEGEND = (
    "All are means over the seeds. Score: at the end of a run. The measures are of z, which the "
    "head sees, over the last tenth of a run. Dead: by v1's density test; at first: at the first "
    "hundredth of a run that has a measurement. Rank: effective rank. Saturated: beyond 0.99 on "
    "99 % of the samples; branches: the mean of the two. Dead part: of the magnitude that the head "
    "sums up, what dead neurons bring. Steps in finished games: those in others have no score yet. "
    "Curves before the first game has ended: its return."
)
WITHOUT = {
    "first": "no probabilities that one improves on another",
    "baseline": "no baseline-normalised scores",
}
KINDS = ("png", "svg", "csv")  # of files: figures twice, tables
TABLES = ("games", "over_games", "improvement", "prediction")


@dataclass
class Args:
    """Many runs into figures, tables and one page."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """run folders, folders of such, or folders of earlier reports"""
    out: str = "report"
    """folder for page, figures and tables; those of an earlier report are replaced"""
    baseline: str = "relu"
    """variant whose runs give the range for the baseline-normalised scores (v1 D.1)"""
    first: str = "tanh-hr"
    """variant that is compared with all others"""


def identity(run: RunRecord) -> tuple:
    """What two copies of a run have in common; settings as `name_settings` has told them apart."""
    return run.algorithm, run.setting, run.variant, run.game, run.seed


def preference(run: RunRecord) -> tuple:
    """Of two runs of the same flags the one with the higher counts."""
    return run.complete, run.whole, run.started, run.last_step


def read_all(paths: tuple[str, ...]) -> tuple[list[RunRecord], list[str]]:
    """The runs, and what is missing, in words.

    Of two of the same the complete one, then the whole, the newer, the further, the first named.
    """
    runs, remarks = [], []
    for folder in find_runs(list(paths)):
        try:
            runs += read_tables(folder) if has_tables(folder) else [read_run(folder)]
        except UsageError as error:
            remarks.append(str(error))
    name_settings(runs)
    chosen = {}
    for run in runs:
        key = identity(run)
        worse, kept = sorted((run, chosen.get(key, run)), key=preference)
        if worse.name != kept.name:
            remarks.append(
                f"{worse.name} is left out: {kept.name} is the same run, and as good or better"
            )
        chosen[key] = kept
    found, seen = sorted(chosen.values(), key=lambda run: run.name), Counter()
    for run in found:  # folders of one name at two places: a name is one run in the tables
        seen[run.name] += 1
        run.name += f"-{seen[run.name]}" if seen[run.name] > 1 else ""
        if not run.whole:
            told = f"the last point there is at agent step {run.last_step:,}"
            remarks.append(f"{run.name}: an event file is cut off, so points are missing; {told}")
        if run.diverged is not None:
            then = "it went on" if run.reached_total else "it counts with what it had"
            remarks.append(f"{run.name} has diverged at agent step {run.diverged:,}: {then}")
    return found, remarks


def earlier(folder: Path) -> list[RunRecord]:
    """The runs in the tables of a report that is there.

    UsageError if they cannot be read, as they may be all that is left of these runs.
    """
    try:
        found = read_tables(folder) if has_tables(folder) else []
    except UsageError as error:
        raise UsageError(
            f"--out {error}; what they still hold would be lost: choose another --out, or remove "
            "them"
        ) from None
    name_settings(found)
    return found


def refuse_to_lose(folder: Path, before: list[RunRecord], runs: list[RunRecord]):
    """UsageError if the report in this folder has runs, `before`, that are not among `runs`.

    Or are there, but not complete or not whole. Its tables may be all that is left of them.
    """
    name_settings(before + runs)  # what tells apart those of both
    named = {identity(run): preference(run)[:2] for run in runs}
    if lost := [run for run in before if preference(run)[:2] > named.get(identity(run), ())]:
        raise UsageError(
            f"--out {folder} has the tables of {counted(len(lost), 'run')} not among those named, "
            "or not as far there "
            f"(such as {lost[0].name}): name {folder} as input, too, or another --out"
        )


def compared(runs: list[RunRecord], args: Args) -> list[str]:
    """What is left out for want of runs of --first and --baseline that count, in words.

    UsageError where that is not a default.
    """
    variants = sorted({run.variant for run in runs if is_counted(run)})
    remarks = []
    for name, without in WITHOUT.items():
        variant = getattr(args, name)
        if variant in variants:
            continue
        if variant != getattr(Args, name):
            there = ", ".join(variants) or "no runs that count"
            raise UsageError(f"--{name} {variant}: no run of it that counts; there are {there}")
        remarks.append(f"{without}: no run of {variant} (--{name}) that counts")
    return remarks


def remarks_on(group: Group) -> list[str]:
    """What a reader has to know of the runs of a group."""
    found = []
    missing = [
        f"{variant} in {game}"
        for game in group.games
        for variant in group.variants
        if (variant, game) not in group.cells
    ]
    if missing:
        variants, games = group.comparable()
        found.append(
            f"No complete run with a score of {', '.join(missing)}. What is told over games is of "
            f"{', '.join(variants)} in {', '.join(games)}."
        )
    commits = sorted({commit for run in group.runs for commit in run.commits})
    if len(commits) > 1:
        found.append(f"Runs of several commits: {', '.join(commits)}.")
    machines = sorted({machine for run in group.runs for machine in run.machines})
    if machines:
        found.append(f"Run on {' and '.join(machines)}.")
    torches = sorted({torch for run in group.runs for torch in run.torches})
    if len(torches) > 1:
        found.append(f"Runs of several versions of torch: {', '.join(torches)}.")
    unknown = [game for game in group.games if game not in reference_scores()]
    if unknown:
        found.append(f"No human score is known for {', '.join(unknown)}.")
    return found


def group_section(
    group: Group, name: str, drawn: dict[str, bytes], rows: dict[str, list[dict]], baseline: str
) -> tuple:
    """(anchor, heading, parts) of the page; drawn: figures as SVG; rows: those of its tables."""
    parts = [
        paragraph(
            f"{counted(len(group.runs), 'run')} of {group.total:,} agent steps, "
            f"{counted(len(group.games), 'game')}, variants "
            f"{', '.join(group.variants)}. Intervals are 95 %: of one game Student's t over "
            "seeds, over games the stratified bootstrap, which is too narrow with few seeds: none "
            f"is given with fewer than {BOOTSTRAP_SEEDS} in a game."
        )
    ]
    parts += [paragraph(remark) for remark in remarks_on(group)]

    def show(which: str):
        if which in drawn:
            parts.append(picture(drawn[which], CAPTIONS[which]))

    parts.append("<h3>Scores</h3>")
    show("curves")
    parts += [table(as_cells(rows["games"])), paragraph(LEGEND, quiet=True)]
    if rows["over_games"]:
        parts += ["<h3>Over games</h3>", table(as_cells(rows["over_games"]))]
        parts.append(
            paragraph(
                "Human-normalised: (score - random) / (human - random). Baseline-normalised: the "
                f"same with the lowest and the highest point of the curves of {baseline}, per "
                "game (v1 D.1).",
                quiet=True,
            )
        )
    for which in ("efficiency", "profiles", "improvement"):
        show(which)
    if "representation" in drawn:
        parts.append("<h3>Representation</h3>")
        show("representation")
    if rows["prediction"]:
        parts.append("<h3>Dead products, predicted and measured</h3>")
        show("prediction")
        parts.append(table(as_cells(rows["prediction"])))
    return name, group.title, parts


def write_report(folder: Path, runs: list[RunRecord], remarks: list[str], args: Args):
    """Everything, into `folder`."""
    groups = group_runs(runs)
    findings = judge_all(groups)
    tables = dict(zip((RUNS_CSV, CURVES_CSV), table_rows(runs), strict=True))
    tables["claims.csv"] = claim_rows(findings)
    sections = [("top", "", summary(runs, groups, remarks))]
    sections.append(("claims", "The paper's claims", claims_part(findings)))
    for name, group in zip(name_groups(groups), groups, strict=True):
        found = improvements(group, args.first)
        drawn = {}
        for which, figure in all_figures(group, args.first, found).items():
            FigureCanvasAgg(figure)
            figure.savefig(folder / f"{name}_{which}.png", dpi=110)
            drawn[which] = svg(figure)
            (folder / f"{name}_{which}.svg").write_bytes(drawn[which])
        improved = [
            {"of": args.first, "over": other, "probability of improvement": value}
            for other, value in found.items()
        ]
        over_games = aggregate_rows(group, args.baseline)
        found_rows = (game_rows(group), over_games, improved, prediction_rows(group))
        rows = dict(zip(TABLES, found_rows, strict=True))
        tables |= {f"{name}_{which}.csv": as_columns(of) for which, of in rows.items() if of}
        sections.append(group_section(group, name, drawn, rows, args.baseline))
    sections.append(("runs", "Runs", [table(run_rows(runs))]))
    for name, rows in tables.items():
        write_csv(folder / name, rows)
    write_page(folder / "index.html", "Hadamard representations: what the runs say", sections)


def summary(runs: list[RunRecord], groups: list[Group], remarks: list[str]) -> list[str]:
    counting = sum(len(group.runs) for group in groups)
    parts = [
        paragraph(
            f"{counted(len(runs), 'run')}. Those count that are complete, or have diverged, and in "
            f"which a game has ended: {counting}. A score is the mean raw return of the newest "
            "100 games in training, not a greedy evaluation; one agent step is 4 emulator frames."
        )
    ]
    if remarks:
        parts.append(paragraph("Left out or not whole:"))
        parts.append(table([{"what": remark} for remark in remarks]))
    return parts


def claims_part(findings: list[Finding]) -> list[str]:
    measured = [finding for finding in findings if finding.ours]
    others = [finding for finding in findings if not finding.ours]
    verdicts = {name: sum(f.verdict == name for f in findings) for name in CLASSES}
    told_counts = ", ".join(f"{count} {name}" for name, count in verdicts.items())
    parts = [
        paragraph(
            f"{told_counts}. A claim is supported or contradicted where the 95 % interval of what "
            "was measured (Student's t over seeds) lies wholly on one side. P(a > b), the chance "
            "that a run of a scores higher than one of b in the same game, is decided by a "
            "permutation test at 5 %. With fewer than 3 seeds in any game nothing is concluded, "
            "nor with fewer than 5 where a bootstrap gives the interval (a ratio of medians, and "
            "that two score alike)."
        ),
        paragraph(
            "Nothing is corrected for the number of claims, so of 20 that are not true about one "
            "will seem decided. Where the source is of DQN and the runs are "
            "of PQN, which is layer-normalised throughout, a verdict is of PQN alone. A median "
            "over few games is decided by those in which few points part human from random "
            "scores, such as Breakout. The paper's runs have 10,000,000 agent steps, 8 games, 5 "
            "seeds."
        ),
        table(claim_rows(measured), CLASSES),
    ]
    if others:
        heading = f"{counted(len(others), 'claim')} of which there is nothing to measure yet"
        parts.append(folded(heading, table(claim_rows(others), CLASSES)))
    return parts


def main(args: Args) -> int:
    if not args.runs:
        raise UsageError("no runs: name their folders, such as runs")
    check_folder(args, "out")
    if any(Path(args.out).glob("**/config.json")):
        raise UsageError(
            f"--out {args.out} has run folders in it: name a folder of the report's own"
        )
    for name in (args.baseline, args.first):
        variant_flags(name)
    runs, remarks = read_all(args.runs)
    if not runs:
        raise UsageError(f"none of these runs can be read: {'; '.join(remarks)}")
    remarks += compared(runs, args)
    folder = Path(args.out)
    before = earlier(folder)
    outdated = itertools.product(name_groups(group_runs(before)), (*CAPTIONS, *TABLES), KINDS)
    refuse_to_lose(folder, before, runs)
    names = ("index.html", RUNS_CSV, CURVES_CSV, "claims.csv")
    of_groups = tuple(f"{name}_{which}.{kind}" for name, which, kind in outdated)
    with replacing(folder, names, "--out", of_groups) as staged:
        write_report(staged, runs, remarks, args)
    counting = sum(map(is_counted, runs))
    say(
        f"{counted(len(runs), 'run')}, of which {counting} count (complete, with a score): "
        f"{folder / 'index.html'}"
    )
    for remark in remarks:
        say(remark)
    return 0


if __name__ == "__main__":
    launch(main, Args)
