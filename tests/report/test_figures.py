"""The figures of a report show the statistics that they are given."""

import numpy as np
import pytest

from lab.report.figures import draw_all, draw_curves, draw_prediction
from lab.report.runs import SCORE
from lab.report.scores import GroupStatistics
from report.planted import make_runs, read_group


@pytest.mark.parametrize(("seeds", "lines", "bands"), [(1, 1, 0), (2, 3, 0), (3, 1, 1)])
def test_of_few_seeds_each_is_drawn_and_of_more_their_interval(tmp_path, seeds, lines, bands):
    make_runs(tmp_path, "pqn", {"tanh": 5.0}, games=("Pong",), seeds=seeds)
    (axes,) = draw_curves(GroupStatistics(read_group(tmp_path))).axes
    assert (len(axes.lines), len(axes.collections)) == (lines, bands)


def test_figures_draw_what_was_computed(tmp_path):
    dead = {"tanh-hr": (0.2, 0.3, 0.4)}
    make_runs(tmp_path, "dqn", {"tanh": 5.0, "tanh-hr": 9.0}, games=("Pong",), dead=dead)
    scores = GroupStatistics(read_group(tmp_path))
    (axes,) = draw_curves(scores).axes
    band = scores.curve("tanh-hr", "Pong", SCORE)
    line = next(line for line in axes.lines if line.get_label() == "tanh-hr")
    assert np.array_equal(line.get_ydata(), band.value)
    (points, diagonal) = draw_prediction(scores).axes[0].lines
    assert points.get_xdata() == pytest.approx([12.0, 30.1 * 0.401, 30.2 * 0.402])
    assert points.get_ydata() == pytest.approx([20.0, 20.1, 20.2])
    assert list(diagonal.get_xdata()) == [0, 100]
    names = {"curves", "representation", "efficiency", "profiles", "improvement", "prediction"}
    assert set(draw_all(scores)) == names
