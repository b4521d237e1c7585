"""The figures of a report show the statistics that they are given."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from lab.common import tags
from lab.report.figures import draw_alone, draw_together, list_all, render
from lab.report.measures import DEAD
from lab.report.runs import SCORE
from lab.report.scores import GroupStatistics
from report.planted import ENDS, make_run, make_runs, read_group


def draw(scores, name):
    """The axes of the panels of a figure."""
    panels = list_all(scores)[name]
    return [draw_alone(panel).axes[0] for panel in panels]


@pytest.mark.parametrize(("seeds", "lines", "bands"), [(1, 1, 0), (2, 3, 0), (4, 5, 0), (5, 1, 1)])
def test_of_few_seeds_each_is_drawn_and_of_more_their_interval(tmp_path, seeds, lines, bands):
    make_runs(tmp_path, "pqn", {"tanh": 5.0}, games=("Pong",), seeds=seeds)
    (axes,) = draw(GroupStatistics(read_group(tmp_path)), "curves")
    assert (len(axes.lines), len(axes.collections)) == (lines, bands)


def test_figures_draw_what_was_computed(tmp_path):
    dead = {"tanh-hr": (0.2, 0.3, 0.4)}
    make_runs(tmp_path, "dqn", {"tanh": 5.0, "tanh-hr": 9.0}, games=("Pong",), dead=dead)
    scores = GroupStatistics(read_group(tmp_path))
    (axes,) = draw(scores, "curves")
    band = scores.curve("tanh-hr", "Pong", SCORE)
    line = next(line for line in axes.lines if line.get_label() == "tanh-hr")
    assert np.array_equal(line.get_ydata(), band.value)
    (axes,) = draw(scores, "prediction")
    (points, diagonal) = axes.lines
    assert points.get_xdata() == pytest.approx([12.0, 30.1 * 0.401, 30.2 * 0.402])
    assert points.get_ydata() == pytest.approx([20.0, 20.1, 20.2])
    assert list(diagonal.get_xdata()) == pytest.approx([0, 20.2])  # as far as the data go
    names = {"curves", "hours", "representation", "efficiency", "profiles", "improvement"}
    assert set(list_all(scores)) == names | {"prediction"}


def test_a_figure_of_all_panels_has_those_of_the_page(tmp_path):
    """In rows of three, and one legend for all."""
    make_runs(tmp_path, "dqn", {"tanh": 5.0, "relu": 9.0}, games=("Pong", "Qbert", "Alien", "Hero"))
    panels = list_all(GroupStatistics(read_group(tmp_path)))["curves"]
    whole = draw_together(panels, columns=3)
    assert [axes.get_title() for axes in whole.axes[:4]] == ["Alien", "Hero", "Pong", "Qbert"]
    assert {text.get_text() for text in whole.legends[0].texts} == {"relu", "tanh"}
    for axes, panel in zip(whole.axes, panels, strict=False):
        alone = draw_alone(panel).axes[0]
        for line, other in zip(axes.lines, alone.lines, strict=True):
            assert np.array_equal(line.get_ydata(), other.get_ydata(), equal_nan=True)


def test_a_score_is_drawn_once_a_game_has_ended(tmp_path):
    """At 300 of 1,000; what the table has before is the score of that game."""
    measures = {tags.LENGTH: [(300, 250), (900, 500)]}
    make_run(tmp_path / "run", [(300, 4.0), (900, 6.0)], measures=measures)
    scores = GroupStatistics(read_group(tmp_path))
    (axes,) = draw(scores, "curves")
    drawn = axes.lines[0].get_ydata()
    assert np.isnan(drawn[:29]).all()
    assert drawn[29:] == pytest.approx([4.0] * 60 + [5.0] * 11)
    (run,) = scores.group.runs
    assert run.measures[SCORE][0] == 4.0


def test_scores_are_drawn_against_the_hours_of_the_runs(tmp_path):
    """2 and 4 agent steps an hour up to step 500, where 250 and 125 hours have passed."""
    for seed, rate in ((1, 2 / 3600), (2, 4 / 3600)):
        speed = {tags.SPS: [(step, rate) for step in ENDS if step <= 500]}
        returns = [(step, float(step)) for step in ENDS]
        make_run(tmp_path / f"run{seed}", returns, measures=speed, flags={"seed": seed})
    (axes,) = draw(GroupStatistics(read_group(tmp_path)), "hours")
    mean, *seeds = axes.lines
    assert mean.get_xdata()[49] == pytest.approx(187.5)
    assert [line.get_xdata()[49] for line in seeds] == pytest.approx([250, 125])
    assert mean.get_ydata()[49] == pytest.approx(np.mean([50, 100, 200, 300, 400, 500]), rel=1e-5)


@pytest.mark.parametrize("share", [0.02, 0.97])
def test_axes_end_where_shares_do_and_where_the_data_do(tmp_path, share):
    points = [(step, share + 0.02 * (step % 200 == 0)) for step in ENDS]
    for seed in range(6):
        name = {"flags": {"seed": seed}}
        make_run(tmp_path / f"run{seed}", measures={DEAD: points}, **name)
    dead, rank, _ = draw(GroupStatistics(read_group(tmp_path)), "representation")
    low, high = dead.get_ylim()
    assert low == 0
    assert share < high < min(1.03, 3 * share)
    assert rank.get_title() == "Breakout: srank (effective rank)"


def test_losses_have_a_panel_each(tmp_path):
    losses = {tag: [(step, 1 / step) for step in ENDS] for tag in ("losses/a_loss", "losses/b")}
    make_run(tmp_path / "run", measures=losses)
    drawn = draw(GroupStatistics(read_group(tmp_path)), "losses")
    assert [axes.get_title() for axes in drawn] == ["Breakout: a_loss", "Breakout: b"]
    assert drawn[0].lines[0].get_ydata()[-1] == pytest.approx(1 / 1000)


@pytest.mark.parametrize(
    ("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_same_figure_is_the_same_file(kind, start):
    def one():
        figure = Figure()
        figure.subplots().plot([1, 2], label="a")
        return render(figure, kind)

    assert one() == one()
    assert io.BytesIO(one()).read(len(start)) == start
