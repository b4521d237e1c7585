"""Which runs a report is of, and whether it may take the place of one that is there."""

from pathlib import Path

from lab.common.cli import UsageError, escape_controls, plural
from lab.report.groups import name_settings
from lab.report.runs import RunRecord, find_runs, has_tables, read_run, read_tables


def identify(run: RunRecord) -> tuple:
    """Return what two copies of a run have in common, once `name_settings` has told runs apart."""
    return run.algorithm, run.setting, run.variant, run.game, run.seed


def rate_copy(run: RunRecord) -> tuple:
    """Return how good a copy of a run is: of two the one with the higher rate counts."""
    return run.complete, run.whole, run.started, run.last_step


def rate_progress(run: RunRecord) -> tuple:
    """Return how much a copy of a run holds: one that holds less may not take its place."""
    if run.complete:
        return True, run.whole, 0, 0
    # One that was killed and resumed begins again from its checkpoint, a little further back.
    return False, run.whole, len(run.provenance.get("resumed") or ()), run.last_step


def read_all(paths: tuple[str, ...]) -> tuple[list[RunRecord], list[str]]:
    """Return the runs at these paths, and remarks on what is missing.

    Of two copies the complete one counts, then the whole, the newer, the further, the first named.
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
        other = chosen.setdefault(identify(run), run)
        worse, better = (run, other) if rate_copy(run) <= rate_copy(other) else (other, run)
        chosen[identify(run)] = better
        if worse.name != better.name:
            remarks.append(
                f"{worse.name} is left out: {better.name} is the same run, and as good or better"
            )
    found = sorted(chosen.values(), key=lambda run: run.name)
    names, given = {run.name for run in found}, set()
    for run in found:
        stem, number = run.name, 1
        # Folders of one name at two places: in the tables a name is one run.
        while run.name in given or (number > 1 and run.name in names):
            number += 1
            run.name = f"{stem}-{number}"
        given.add(run.name)
        if not run.whole:
            why = "; ".join(run.losses) or "an event file is damaged or gone"
            remarks.append(
                f"{run.name}: {why}, so points are missing; the last point there is at agent step "
                f"{run.last_step:,}"
            )
        if run.diverged is not None:
            then = "it went on" if run.reached_total else "it counts with what it had"
            remarks.append(f"{run.name} has diverged at agent step {run.diverged:,}: {then}")
    found.sort(key=lambda run: run.name)  # as from its tables
    return found, [escape_controls(remark) for remark in remarks]


def read_earlier(folder: Path, runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs of the report in a folder that one of `runs` is to replace; none without.

    Raise UsageError if the folder holds anything else, or a report with a run that is not among
    `runs`, or has got less far there: its tables may be all that is left of that run.
    """
    if not folder.is_dir():
        return []
    # What a report that was killed in the middle of writing leaves does not count.
    if not any(not path.name.startswith(".new-") for path in folder.iterdir()):
        return []
    if not has_tables(folder):
        raise UsageError(
            f"--out {folder} is not empty and holds no report: name a new folder, or an empty one"
        )
    try:
        before = read_tables(folder)
    except UsageError as error:
        raise UsageError(
            f"--out {error}; what they still hold would be lost: choose another --out, or remove "
            "them"
        ) from None
    name_settings(before + runs)
    now = {identify(run): rate_progress(run) for run in runs}
    lost = [run for run in before if rate_progress(run) > now.get(identify(run), ())]
    # Back again: a setting is named by the flags in which the runs of one report differ.
    name_settings(before)
    name_settings(runs)
    if lost:
        raise UsageError(
            f"--out {folder} has the tables of {plural(len(lost), 'run')} not among those named, "
            f"or not as far there (such as {lost[0].name}): name {folder} as input, too, or "
            "another --out"
        )
    return before
