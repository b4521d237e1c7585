"""The committed numbers that no tool of today makes again are what their data say."""

import csv
from collections import defaultdict

import numpy as np
from conftest import ROOT
from scipy import stats


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
