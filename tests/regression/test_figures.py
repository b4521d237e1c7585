"""The regression's figures show what the claims and the theory say."""

import numpy as np

from lab.regression.claims import CLAIMS, Setting, judge
from lab.regression.figures import draw_dying, draw_sweep


def test_the_heat_map_shows_every_margin():
    names = {name for claim in CLAIMS for name in (claim.first, claim.second)}
    rng = np.random.default_rng(0)
    cells = {
        Setting(x_range, optimizer, rate, steps): {
            name: {"mse": rng.uniform(1, 2, 3), "rank": rng.uniform(1, 9, 3)} for name in names
        }
        for x_range in ("[0, 1]", "[-1, 1]")
        for optimizer, rate in (("adam", 0.1), ("sgd", 0.1), ("sgd", 0.2))
        for steps in (1, 2)
    }
    figure = draw_sweep(cells)
    for claim, axes in zip(CLAIMS, figure.axes, strict=False):
        shown = axes.images[0].get_array()
        assert shown.shape == (3, 4)
        # second optimizer and rate, second range with its first number of steps
        cell = cells[Setting("[-1, 1]", "sgd", 0.1, 1)]
        verdict = judge(claim, cell[claim.first][claim.measure], cell[claim.second][claim.measure])
        assert shown[1, 2] == verdict.margin
        dots = {(int(dot.get_ydata()[0]), int(dot.get_xdata()[0])) for dot in axes.lines}
        assert ((1, 2) in dots) != verdict.clear
        assert axes.get_title().startswith(claim.text)


def test_the_figure_has_the_paper_and_the_correlated_panels():
    figure = draw_dying()
    assert len(figure.axes) == 6
    for axes in figure.axes:
        curves, points = axes.lines[::2], axes.lines[1::2]
        assert len(curves) == len(points) == 3
        for curve, dots in zip(curves, points, strict=True):
            expected = curve.get_ydata()[::8]
            error = 5 * (expected * (1 - expected) / 10_000) ** 0.5
            assert (abs(dots.get_ydata() - expected) <= error + 1e-12).all()
