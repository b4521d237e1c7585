"""Learning curves of a run as a CSV and a picture: python results/curve.py RUN_FOLDER OUT_STEM

Writes OUT_STEM.csv (every score and every measure: tag, agent step, value) and OUT_STEM.png.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KEPT = (
    *("charts/episodic", "charts/epsilon", "charts/learning_rate", "losses/", "representation/"),
    *("q_contribution/", "value_contribution/"),
)
MEASURES = {  # panel -> (tag, what it is called, factor)
    "dead and saturated neurons (%)": [
        ("representation/dead_kde", "z, dead by the KDE test", 100),
        ("representation/branch_0/dead_kde", "branch 0, dead by the KDE test", 100),
        ("representation/branch_1/dead_kde", "branch 1, dead by the KDE test", 100),
        *(
            (f"representation/conv_{i}/dead_kde", f"conv {i}, dead by the KDE test", 100)
            for i in (1, 2, 3)
        ),
        ("representation/dormant_0.1", "z, dormant at 0.1", 100),
        ("representation/branch_0/saturated", "branch 0, saturated", 100),
    ],
    "effective rank": [
        ("representation/effective_rank", "z", 1),
        ("representation/branch_0/effective_rank", "branch 0", 1),
        ("representation/branch_1/effective_rank", "branch 1", 1),
    ],
}


def main(run: Path, stem: Path):
    log = EventAccumulator(str(run), size_guidance={"scalars": 0})
    log.Reload()
    curves = {
        tag: np.array([(event.step, event.value) for event in log.Scalars(tag)])
        for tag in sorted(log.Tags()["scalars"])
        if tag.startswith(KEPT)
    }
    if "charts/episodic_return" not in curves:
        print(f"curve.py: error: no game has ended in {run}", file=sys.stderr)
        sys.exit(2)
    with open(f"{stem}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag", "agent_step", "value"])
        for tag, points in curves.items():
            writer.writerows((tag, int(step), f"{value:.6g}") for step, value in points)

    config = json.loads((run / "config.json").read_text())
    figure = Figure(figsize=(14, 4), layout="constrained")
    FigureCanvasAgg(figure)
    score, *others = figure.subplots(1, 1 + len(MEASURES))
    steps, returns = curves["charts/episodic_return"].T
    score.plot(steps, returns, ".", ms=2, color="0.7", label="each game")
    if len(returns) >= 100:
        means = np.convolve(returns, np.ones(100) / 100, mode="valid")
        score.plot(steps[99:], means, color="tab:blue", label="mean of the last 100 games")
    score.set_title("episodic return (raw score, in training)")
    for axes, (title, lines) in zip(others, MEASURES.items(), strict=True):
        axes.set_title(title)
        for tag, label, factor in lines:
            if tag in curves:
                axes.plot(curves[tag][:, 0], factor * curves[tag][:, 1], label=label)
    for axes in (score, *others):
        axes.set_xlabel("agent steps")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.legend(fontsize=7, framealpha=0.6)
        axes.grid(alpha=0.3)
    name = f"{config['game']}, {config['algorithm']}, {config['variant']}"
    commit = (config["git_commit"] or "unknown")[:10] + "+ changes" * bool(
        config["git_has_changes"]
    )
    figure.suptitle(f"{name}, seed {config['flags']['seed']}, commit {commit}")
    figure.savefig(f"{stem}.png", dpi=90)


if __name__ == "__main__":
    problem = ""
    if len(sys.argv) != 3:
        problem = "give a run folder and a stem: curve.py runs/NAME results/NAME"
    elif not (Path(sys.argv[1]) / "config.json").is_file():
        problem = f"{sys.argv[1]} is no run folder: it has no config.json"
    elif not Path(sys.argv[2]).parent.is_dir():
        problem = f"there is no folder {Path(sys.argv[2]).parent} to write to"
    if problem:
        print(f"curve.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
