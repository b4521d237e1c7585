"""Run folders whose scores and measures are known, and what a report finds in them."""

import json

from lab.common import tags
from lab.report.groups import Group, group_runs
from lab.report.inputs import read_all
from lab.report.measures import BRANCHES_DEAD, DEAD
from lab.report.verdicts import Finding, judge_all
from lab.training.board import Board

ENDS = (50, *range(100, 1001, 100))  # agent steps at which something is logged


def make_run(
    folder, returns=((100, 1.0), (900, 3.0)), total=1000, last=None, measures=None, **more
):
    """Make a run folder with scores, (agent step, return), and measures by tag, (step, value).

    `more` goes into its config.json, `flags` of it beside the others; it ends at step `last`.
    """
    flags = {"seed": 1, "total_timesteps": total, "gamma": 0.99, "env_id": "Breakout"}
    flags |= more.pop("flags", {})
    config = {"algorithm": "pqn", "game": "Breakout", "variant": "tanh-hr", "started": "2026"}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | {"flags": flags} | more))
    board = Board(folder)
    for step, value in returns:
        board.scalar(tags.RETURN, value, step)
    for tag, points in (measures or {}).items():
        for step, value in points:
            board.scalar(tag, value, step)
    board.scalar(tags.SPS, 1.0, total if last is None else last)
    board.flush()
    return folder


def make_runs(folder, algorithm, scores, games=("Breakout", "Seaquest"), seeds=3, dead=None):
    """Make runs: variant -> score at the end, where seeds differ by a tenth.

    dead: variant -> shares of z, branch 0 and 1; there seeds differ by a thousandth.
    """
    cells = [(variant, game, seed) for variant in scores for game in games for seed in range(seeds)]
    for variant, game, seed in cells:
        end = scores[variant] + 0.1 * seed
        # A score is a mean of 100 games: those at the end are as many.
        returns = [(step, end * step / 1000) for step in ENDS] + [(1000, end)] * 99
        shares = dict(zip((DEAD, *BRANCHES_DEAD), (dead or {}).get(variant, ()), strict=False))
        make_run(
            folder / f"{game}__{algorithm}__{variant}__s{seed}",
            returns,
            algorithm=algorithm,
            variant=variant,
            game=game,
            measures={
                tag: [(step, share + 0.001 * seed) for step in ENDS]
                for tag, share in shares.items()
            },
            flags={"seed": seed},
        )


def make_measured(folder, planted, algorithm="pqn", seeds=3):
    """Make runs with these measures, (variant, game) -> tag -> value.

    Seeds are 1, 1.001 and 1.002 times what is planted.
    """
    for (variant, game), values in planted.items():
        for seed in range(seeds):
            make_run(
                folder / f"{game}{variant}{seed}",
                algorithm=algorithm,
                variant=variant,
                game=game,
                measures={
                    tag: [(step, value * (1 + 0.001 * seed)) for step in ENDS]
                    for tag, value in values.items()
                },
                flags={"seed": seed},
            )


def plant_measures(folder, planted, algorithm="pqn", seeds=3) -> dict[str, Finding]:
    """Make runs as `make_measured` does; return claim -> finding."""
    make_measured(folder, planted, algorithm, seeds)
    return {
        claim: of for (own, claim), of in judge_folder(folder).items() if own == algorithm.upper()
    }


def judge_folder(folder) -> dict[tuple[str, str], Finding]:
    """Return (setting, claim) -> finding, of runs of which nothing is amiss."""
    runs, remarks = read_all((str(folder),))
    assert remarks == []
    return {(found.setting, found.claim): found for found in judge_all(group_runs(runs))}


def read_group(folder) -> Group:
    """Return the only group of the runs in a folder."""
    (group,) = group_runs(read_all((str(folder),))[0])
    return group
