"""The statistics of a group and their tables, on planted runs."""

import numpy as np
import pytest
from scipy import stats

from lab.common import tags
from lab.report.measures import DEAD, predict_dead
from lab.report.rows import (
    flatten_estimates,
    format_cell,
    list_flags,
    tabulate_group,
    tabulate_variants,
)
from lab.report.scores import GroupStatistics
from report.planted import ENDS, make_run, make_runs, read_group


@pytest.mark.parametrize(
    ("activation", "expected"), [("tanh", 0.12), ("sigmoid", 0.35), ("relu", 0.58)]
)
def test_predicted_deaths_by_counting_draws(activation, expected):
    """Branches dead with 0.3 and 0.4; dead at either end of their range with equal chance."""
    assert predict_dead(activation, (0.3, 0.4)) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    dead = rng.random((2, 400_000)) < np.array([[0.3], [0.4]])
    high = rng.random((2, 400_000)) < 0.5
    if activation == "tanh":
        product = dead.all(axis=0)
    else:  # dead at 0 kills the product; a sigmoid may also be dead at 1, which does not
        at_zero = dead & ~high if activation == "sigmoid" else dead
        product = dead.all(axis=0) | at_zero.any(axis=0)
    assert product.mean() == pytest.approx(expected, abs=0.005)


def test_only_what_the_paper_predicts_is_compared_with_a_prediction(tmp_path):
    make_runs(tmp_path, "dqn", {"silu-hr": 2.0}, dead={"silu-hr": (0.2, 0.3, 0.4)})
    group = read_group(tmp_path)
    assert GroupStatistics(group).predictions == []
    with pytest.raises(KeyError):
        predict_dead("silu", (0.3, 0.4))


@pytest.mark.parametrize(
    ("algorithm", "head", "column"),
    [
        ("pqn", "q_contribution", "dead part of Q, %"),
        ("ppo", "value_contribution", "dead part of the value, %"),
    ],
)
def test_tables_tell_the_dead_part_and_the_saturation_of_branches(
    tmp_path, algorithm, head, column
):
    """1 of 1 + 3 in one run and 2 of 2 + 2 in the other; the branches saturated by 10 and 20 %."""
    for seed, dead in ((1, 1.0), (2, 2.0)):
        planted = {f"{head}/dead_abs": dead, f"{head}/live_abs": 4 - dead}
        for branch in (0, 1):
            planted[f"representation/branch_{branch}/dead_kde"] = 0.5
            planted[f"representation/branch_{branch}/saturated"] = 0.1 * (branch + 1)
        measures = {tag: [(step, value) for step in ENDS] for tag, value in planted.items()}
        measures[DEAD] = [(40, 0.25), (900, 0.5)]
        named = {"algorithm": algorithm, "flags": {"seed": seed}}
        make_run(tmp_path / f"run{seed}", measures=measures, **named)
    group = read_group(tmp_path)
    (row,) = GroupStatistics(group).by_game
    # Student's interval of the two would go from -121 to 196 %: the two in its place.
    assert row[column].values == pytest.approx((25, 50))
    assert format_cell(row[column]) == "37.5 (25.0, 50.0)"
    (flat,) = flatten_estimates([row])
    assert (flat[column], flat[f"{column} low"]) == ("37.5", "nan")
    assert row["branches saturated, %"].value == pytest.approx(15)
    assert (row["dead at 40 steps, %"].value, row["dead, %"].value) == pytest.approx((25, 50))
    for row in GroupStatistics(group).predictions:
        assert row["branch 0 saturated, %"] == pytest.approx(10)
        assert row["branch 1 saturated, %"] == pytest.approx(20)


def test_dead_at_first_is_that_of_one_agent_step_in_all_runs(tmp_path):
    """One measured at 40, 200 and 900, one at 200 and 900 alone, and one never."""
    points = {1: [(40, 0.9), (195, 0.3), (900, 0.5)], 2: [(195, 0.1), (900, 0.5)]}
    for seed, own in points.items():
        make_run(tmp_path / f"run{seed}", measures={DEAD: own}, flags={"seed": seed})
    (row,) = GroupStatistics(read_group(tmp_path)).by_game
    assert row["dead at 200 steps, %"].value == pytest.approx(20)
    assert not any(name.startswith("dead at 40") for name in row)
    make_run(tmp_path / "run3", game="Pong")
    rows = GroupStatistics(read_group(tmp_path)).by_game
    assert np.isnan(rows[1]["dead at 200 steps, %"].value)
    assert rows[0]["dead at 200 steps, %"].value == pytest.approx(20)


def test_scores_over_games_are_normalised_by_humans_and_by_the_baseline(tmp_path):
    """Of Breakout alone, as no human score is known for Adventure and tanh-hr lacks Pong."""
    games = ("Breakout", "Adventure")
    make_runs(tmp_path, "dqn", {"relu": 20.0, "tanh-hr": 30.0}, games=games)
    make_run(tmp_path / "pong", algorithm="dqn", variant="relu", game="Pong")
    scores = GroupStatistics(read_group(tmp_path))
    rows = {(row["game"], row["variant"]): row for row in flatten_estimates(scores.by_game)}
    low, high = stats.t.interval(0.95, 2, loc=20.1, scale=0.1 / np.sqrt(3))
    row = rows["Breakout", "relu"]
    assert row["seeds"] == 3
    for column, value in (("score", 20.1), ("score low", low), ("score high", high)):
        assert float(row[column]) == pytest.approx(value)
    over = {(row["scale"], row["variant"]): row for row in scores.over_games}
    human = over["human-normalised", "tanh-hr"]
    assert human["mean"].value == pytest.approx((30.1 - 1.7) / (30.5 - 1.7))
    assert human["games"] == 1
    # relu's curves go from 20 * 0.05 (its lowest seed's first point) to 20.2, in both games
    base = over["baseline-normalised", "tanh-hr"]
    assert base["mean"].value == pytest.approx((30.1 - 1.0) / (20.2 - 1.0), rel=1e-4)
    assert base["games"] == 2


def test_a_stray_run_takes_no_game_from_the_others(tmp_path):
    """One of selu in a fifth game: over games there are still relu and tanh-hr in four."""
    games = ("Breakout", "Seaquest", "Pong", "Qbert")
    make_runs(tmp_path, "dqn", {"relu": 2.0, "tanh-hr": 3.0}, games=games, seeds=1)
    make_runs(tmp_path, "dqn", {"selu": 2.0}, games=("Alien",), seeds=1)
    rows = GroupStatistics(read_group(tmp_path)).over_games
    assert {(row["variant"], row["games"]) for row in rows} == {("relu", 4), ("tanh-hr", 4)}


def test_the_variant_that_is_compared_stays_where_it_has_fewer_games(tmp_path):
    """relu and selu in two games, tanh-hr in one of them: all three, in the game they share."""
    make_runs(tmp_path, "dqn", {"relu": 2.0, "selu": 4.0}, games=("Breakout", "Pong"), seeds=1)
    make_runs(tmp_path, "dqn", {"tanh-hr": 3.0}, games=("Pong",), seeds=1)
    group = read_group(tmp_path)
    rows = GroupStatistics(group, first="tanh-hr").over_games
    assert {(row["variant"], row["games"]) for row in rows} == {
        (variant, 1) for variant in ("relu", "selu", "tanh-hr")
    }
    rows = GroupStatistics(group, first="selu").over_games
    assert {(row["variant"], row["games"]) for row in rows} == {("relu", 2), ("selu", 2)}


def test_tables_without_a_row_are_left_out(tmp_path):
    make_runs(tmp_path, "dqn", {"selu": 2.0}, games=("Adventure",))
    assert list(tabulate_group(GroupStatistics(read_group(tmp_path)))) == ["games", "variants"]


def test_the_interval_of_a_share_ends_at_0_and_at_100(tmp_path):
    """Of 0, 5 and 90 % Student's would go from -95 to 159 %; a score may be negative."""
    for seed, share in ((1, 0.0), (2, 0.05), (3, 0.9)):
        measures = {DEAD: [(step, share) for step in ENDS]}
        returns = [(step, 100 * share) for step in ENDS]
        make_run(tmp_path / f"run{seed}", returns, measures=measures, flags={"seed": seed})
    (row,) = GroupStatistics(read_group(tmp_path)).by_game
    assert row["dead, %"] == pytest.approx((95 / 3, 0, 100))
    assert row["score"].low < 0


def test_the_table_of_variants_tells_flags_sizes_hours_and_machines(tmp_path):
    for variant, branches, size in (("tanh", 1, 100), ("tanh-hr", 2, 2000)):
        for game, more in (("Pong", 0), ("Qbert", 5)):
            make_run(
                tmp_path / f"{variant}{game}",
                variant=variant,
                game=game,
                flags={"branches": branches, "activation": "tanh", "learning_rate": 0.1},
                measures={tags.SPS: [(500, 1 / 3600), (999, 499 / 3600)]},
                num_parameters=size + more,
                processor="AMD, 2 cores",
            )
    group = read_group(tmp_path)
    tanh, hr = tabulate_variants(group)
    assert tanh == {
        "variant": "tanh",
        "branches": "1",
        "parameters": "100 to 105",
        "hours a run": "501.00",
        "on": "AMD, 2 cores",
    }
    assert (hr["branches"], hr["parameters"]) == ("2", "2,000 to 2,005")
    shared = list_flags(group)
    assert (shared["learning-rate"], shared["gamma"]) == ("0.1", "0.99")
    assert not {"branches", "activation", "seed", "env-id"} & shared.keys()
