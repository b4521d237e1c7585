"""The statistics of a group and their tables, on planted runs."""

import numpy as np
import pytest
from scipy import stats

from lab.common import tags
from lab.report.headers import CHURN_HEADERS, HEADERS
from lab.report.measures import DEAD, predict_dead
from lab.report.rows import (
    flatten_estimates,
    format_cell,
    list_flags,
    tabulate_group,
    tabulate_variants,
)
from lab.report.scores import GroupStatistics
from metrics import MEASURES
from report.planted import ENDS, make_measured, make_run, make_runs, read_group


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


SHARES = ("dead_kde", "dead_std", "dormant_0", "dormant_0.1", "saturated", "srank_live_share")
SHARES += ("grad_dormant_0.01", "grad_dormant_0.1")
NUMBERS = ("effective_rank", "srank_live", "stable_rank", "pca_rank", "entropy_rank")
NUMBERS += ("feature_norm", "weight_norm")
CHURN = ("total", "encoder", "head")


def plant_all(layers, churn=True):
    """Every measure of these layers and churn by tag, no two of them alike."""
    planted = {}
    for i, layer in enumerate(layers):
        below = "" if layer == "z" else f"{layer}/"
        for j, measure in enumerate(SHARES):
            planted[f"representation/{below}{measure}"] = 0.1 * i + 0.01 * (j + 1)
        for j, measure in enumerate(NUMBERS):
            planted[f"representation/{below}{measure}"] = 100.0 * i + 10 * (j + 1)
    return planted | {f"churn/{of}": 0.02 * (i + 1) for i, of in enumerate(CHURN) if churn}


def interval(value, is_share):
    """Student's, of seeds that are 1, 1.001 and 1.002 times a value; shares in percent."""
    seeds = np.array([1, 1.001, 1.002]) * value * (100 if is_share else 1)
    spread = seeds.std(ddof=1) / np.sqrt(3)
    return (seeds.mean(), *stats.t.interval(0.95, 2, loc=seeds.mean(), scale=spread))


def test_every_measure_that_a_run_takes_has_a_column():
    assert set(MEASURES) <= HEADERS.keys() == {*SHARES, *NUMBERS}
    for measure, header in HEADERS.items():
        assert header.endswith("%") == (measure in SHARES)
    assert len({*HEADERS.values(), *CHURN_HEADERS.values()}) == len(HEADERS) + len(CHURN)


def test_tables_tell_every_measure_of_every_layer_and_churn(tmp_path):
    """HR with two branches and a convolution beside a plain layer without."""
    layers = {"tanh-hr": ("z", "branch_0", "branch_1", "conv_1"), "tanh": ("z",)}
    planted = {(variant, "Pong"): plant_all(own) for variant, own in layers.items()}
    make_measured(tmp_path, planted)
    tables = tabulate_group(GroupStatistics(read_group(tmp_path)))
    found = {}
    for row in tables["measures"]:
        assert list(row) == ["game", "variant", "measure", "z", "branch 0", "branch 1", "conv 1"]
        for layer in ("z", "branch 0", "branch 1", "conv 1"):
            found[row["variant"], layer, row["measure"]] = row[layer]
    assert len(found) == 2 * 4 * len(HEADERS)
    for (variant, layer, header), estimate in found.items():
        (measure,) = (name for name, own in HEADERS.items() if own == header)
        below = "" if layer == "z" else f"{layer.replace(' ', '_')}/"
        value = planted[variant, "Pong"].get(f"representation/{below}{measure}")
        if value is None:
            assert format_cell(estimate) == ""
        else:
            assert estimate == pytest.approx(interval(value, measure in SHARES), rel=1e-4)
    rows = {row["variant"]: row for row in tables["representation"]}
    for variant in layers:
        for i, of in enumerate(("churn, %", "churn by the encoder, %", "churn by the head, %")):
            assert rows[variant][of] == pytest.approx(interval(0.02 * (i + 1), True), rel=1e-4)
        for header in rows[variant].keys() & HEADERS.values():
            assert rows[variant][header] == found[variant, "z", header]
    scores = {row["variant"]: row for row in tables["games"]}
    rank = scores["tanh"]["srank (effective rank)"]
    assert rank == pytest.approx(
        interval(planted["tanh", "Pong"]["representation/effective_rank"], False), rel=1e-4
    )
    # What claims ask of is told before anything is unfolded.
    claimed = {HEADERS[name] for name in ("dead_kde", "grad_dormant_0.01", "srank_live_share")}
    assert claimed | {HEADERS["srank_live"]} <= rows["tanh"].keys() | scores["tanh"].keys()


OLDER = ("dead_kde", "dormant_0", "dormant_0.1", "saturated", "effective_rank", "entropy_rank")


def test_of_runs_that_lack_the_newer_measures_the_tables_are_as_before(tmp_path):
    tags_of = {f"representation/{name}": 0.5 for name in OLDER}
    make_measured(tmp_path, {("tanh", "Pong"): tags_of, ("tanh-hr", "Pong"): tags_of})
    tables = tabulate_group(GroupStatistics(read_group(tmp_path)))
    assert list(tables) == ["games", "variants", "over_games", "improvement"]


def test_where_one_variant_lacks_the_newer_measures_its_cells_are_empty(tmp_path):
    old = {f"representation/{name}": 0.5 for name in OLDER}
    make_measured(tmp_path, {("tanh", "Pong"): old, ("tanh-hr", "Pong"): plant_all(("z",))})
    tables = tabulate_group(GroupStatistics(read_group(tmp_path)))
    tanh, ours = tables["representation"]
    assert (tanh["variant"], ours["variant"]) == ("tanh", "tanh-hr")
    for name in tanh.keys() - {"game", "variant", "seeds"}:
        assert (format_cell(tanh[name]), bool(format_cell(ours[name]))) == ("", True)
    cells = {(row["variant"], row["measure"]): format_cell(row["z"]) for row in tables["measures"]}
    assert all(cells.values())
    own = {name for variant, name in cells if variant == "tanh"}
    assert own == {HEADERS[measure] for measure in OLDER}
    assert {name for variant, name in cells if variant == "tanh-hr"} == {*HEADERS.values()}


def test_a_cell_in_which_a_run_lacks_a_measure_is_empty_rather_than_of_the_others(tmp_path):
    make_measured(tmp_path, {("tanh", "Pong"): plant_all(("z",))})
    make_run(tmp_path / "old", variant="tanh", game="Pong", flags={"seed": 9})
    (row,) = tabulate_group(GroupStatistics(read_group(tmp_path)))["representation"]
    assert row["seeds"] == 4
    assert {format_cell(value) for name, value in row.items() if name.endswith("%")} == {""}
