"""The committed numbers that no tool of today makes again are what their data say."""

import csv
import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats

from lab import evaluate


def test_the_table_of_precision_is_that_of_its_curves():
    """Areas are means over agent steps; their difference has Welch's interval, here by scipy."""
    curves = defaultdict(list)
    with (ROOT / "results" / "precision.csv").open() as file:
        for row in csv.DictReader(file):
            score = float(row["charts/mean_return_100"])
            curves[row["algorithm"], row["precision"], row["seed"]].append(score)
    areas = defaultdict(list)
    for (algorithm, precision, _), scores in sorted(curves.items()):
        assert len(scores) == 100
        areas[algorithm, precision].append(np.mean(scores))
    page = (ROOT / "docs" / "precision.md").read_text()
    for algorithm in ("dqn", "ppo", "pqn"):
        fp32, bf16 = areas[algorithm, "fp32"], areas[algorithm, "bf16"]
        low, high = stats.ttest_ind(bf16, fp32, equal_var=False).confidence_interval()
        cells = [algorithm, "3 and 3", *(" ".join(f"{a:.2f}" for a in of) for of in (fp32, bf16))]
        cells.append(f"{np.mean(bf16) - np.mean(fp32):+.2f} ({low:+.2f} to {high:+.2f})")
        assert f"| {' | '.join(cells)} |" in page


def read_scores():
    """The scores of results/layers.csv by task, variant, learning rate and steps."""
    scores = defaultdict(list)
    with (ROOT / "results" / "layers.csv").open() as file:
        for row in csv.DictReader(file):
            run = (row["task"], row["variant"], float(row["learning_rate"]), int(row["steps"]))
            scores[run].append(float(row["score"]))
    assert all(len(of) == 5 for of in scores.values())
    return scores


def returns_cell(scores):
    return f"{np.mean(scores):.0f} ({min(scores):.0f} to {max(scores):.0f})"


def test_the_tables_of_what_the_layer_needs_are_those_of_its_scores():
    scores, page = read_scores(), (ROOT / "docs" / "starting.md").read_text()
    for variant in {run[1] for run in scores}:
        errors = scores["fit", variant, 0.01, 1000]
        cells = [variant, returns_cell(scores["cartpole", variant, 2.5e-4, 25_000])]
        cells.append(f"{stats.gmean(errors):.2g} ({min(errors):.2g} to {max(errors):.2g})")
        assert f"| {' | '.join(cells)} |" in page
    for rate, steps in ((2.5e-4, 25_000), (2.5e-4, 100_000), (1e-3, 25_000), (2.5e-3, 25_000)):
        cells = [f"{rate:g}, {steps:,}"]
        for variant in ("tanh", "HR, torch", "HR, orthogonal", "HR, gated (2)"):
            cells.append(returns_cell(scores["cartpole", variant, rate, steps]))
        assert f"| {' | '.join(cells)} |" in page


def test_the_table_of_how_large_z_starts_is_that_of_the_theory():
    lines = defaultdict(list)
    with (ROOT / "results" / "regression" / "theory.csv").open() as file:
        for row in csv.DictReader(file):
            if row["part"] == "start":
                lines[row["case"]].append(float(row["predicted"]))
                assert abs(float(row["measured"]) / float(row["predicted"]) - 1) < 0.05
    page = (ROOT / "docs" / "starting.md").read_text()
    for branches, name in enumerate(("Tanh", "Tanh (HR)", "Tanh (2xHR)"), start=1):
        for inputs, init in itertools.product(("1", "0.1"), ("torch", "orthogonal", "gated")):
            predicted = lines.get(f"{name} twice, init {init}, E x² = {inputs}")
            if predicted is not None:
                numbers = [f"{number:.2g}" for number in predicted]
                assert f"| {' | '.join([inputs, init, str(branches), *numbers])} |" in page


@pytest.mark.parametrize(("name", "random_play"), [("roadrunner", 11.5), ("breakout", 1.7)])
def test_the_small_checkpoints_play(name, random_play):
    """Within 4 MB each, and far above random play (Mnih et al. 2015) in one game."""
    folder = ROOT / "results" / "checkpoints" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
    args = evaluate.Args(str(folder), games=2, epsilon=0.01)
    player = evaluate.load(folder, torch.device("cpu"))
    played = evaluate.play(player, evaluate.Chooser(player, args, torch.device("cpu")), args)
    assert played.scores.mean() > 2 * random_play
