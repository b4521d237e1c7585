"""Verdicts against scipy, and their counts against cells whose answers are known."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lab.regression.claims import (
    Claim,
    Setting,
    count_claims,
    geometric_mean,
    judge,
    judge_tuned,
)

ERROR = Claim("a fits better than b", "", "a", "b")
RANK = Claim("a has a higher rank than b", "", "a", "b", "rank")
LIKE = Claim("a fits like b", "", "a", "b", like=True)

values = st.lists(st.floats(0.01, 1000), min_size=2, max_size=12).map(np.array)


@given(first=values, second=values)
def test_verdicts_are_welchs_interval(first, second):
    assume(np.ptp(first) > 0.01 and np.ptp(second) > 0.01)
    for claim, sides in (
        (RANK, (first, second)),
        (ERROR, (np.log10(second), np.log10(first))),  # a lower error is a better fit
    ):
        verdict = judge(claim, first, second)
        interval = stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
        assert verdict.margin - verdict.half_width == pytest.approx(interval.low, abs=1e-9)
        assert verdict.margin + verdict.half_width == pytest.approx(interval.high, abs=1e-9)
        assert verdict.holds == (np.mean(sides[0]) > np.mean(sides[1]))
        assert verdict.clear == (interval.low > 0 or interval.high < 0)


@pytest.mark.parametrize(
    ("first", "second", "holds", "clear"),
    [
        ([1.0, 1.1, 0.9], [1.0, 1.05, 0.95], True, True),
        ([1.0, 1.1, 0.9], [3.0, 3.1, 2.9], False, True),
        ([0.03, 0.032, 0.028], [1.0, 1.1, 0.9], False, True),
        ([0.1, 1.0, 10.0], [1.0, 1.05, 0.95], True, False),  # who knows
    ],
)
def test_alike_means_within_a_factor_of_two(first, second, holds, clear):
    verdict = judge(LIKE, np.array(first), np.array(second))
    assert (verdict.holds, verdict.clear) == (holds, clear)


def test_no_two_errors_are_more_alike_than_equal():
    row = judge(LIKE, np.array([0.1, 1.0, 10.0]), np.array([1.0, 1.1, 0.9])).row(LIKE)
    assert row["high"] == math.log10(2)
    assert row["verdict"] == "open"


def test_seeds_that_agree_exactly_leave_no_doubt_and_a_tie_does_not_hold():
    assert judge(RANK, np.full(5, 7.0), np.full(5, 6.0)) == (1.0, 0.0)
    assert judge(RANK, np.full(5, 7.0), np.full(5, 6.0)).clear
    tie = judge(ERROR, np.full(5, 1e4), np.full(5, 1e4))  # both diverged
    assert not tie.holds
    assert not tie.clear


def cells_where(errors):
    """Cells with these errors (geometric means) of a and b, spread evenly by 1 % around them."""
    return {
        Setting("[0, 1]", "adam", rate, 100): {
            name: {"mse": error * np.array([0.99, 1 / 0.99]), "rank": np.array([rank, rank])}
            for name, error, rank in (("a", a, 5.0), ("b", b, 4.0))
        }
        for rate, a, b in errors
    }


def test_counts_by_hand(monkeypatch):
    monkeypatch.setattr("lab.regression.claims.CLAIMS", (ERROR, RANK))
    cells = cells_where([(0.1, 1.0, 2.0), (0.2, 50.0, 40.0), (0.3, 0.3, 0.3), (0.4, 3.0, 0.2)])
    error, rank = count_claims(cells, {"[0, 1]": 100.0})
    assert error == {
        "claim": "a fits better than b",
        "source": "",
        "settings": 4,
        "holds": 1,
        "clearly": 1,
        "clearly_not": 2,  # 50 to 40 and 3 to 0.2; 0.3 to 0.3 is neither
        "where_one_fits": 3,  # below a tenth of 100
        "holds_there": 1,
        "tuned": 1,
        "holds_tuned": 0,  # a at best 0.3, b 0.2
    }
    assert (rank["holds"], rank["clearly"], rank["holds_tuned"]) == (4, 4, 1)


def test_tuned_takes_each_at_its_own_best_rate():
    cells = cells_where([(0.1, 1.0, 9.0), (0.2, 7.0, 2.0)])
    (verdict,) = judge_tuned(ERROR, cells)
    assert verdict.margin == pytest.approx(math.log10(2.0 / 1.0))
    other_steps = {setting._replace(steps=200): cell for setting, cell in cells.items()}
    assert len(judge_tuned(ERROR, cells | other_steps)) == 2


@given(values)
def test_geometric_mean_is_the_root_of_the_product(values):
    assert geometric_mean(values) == pytest.approx(math.prod(values.tolist()) ** (1 / len(values)))
