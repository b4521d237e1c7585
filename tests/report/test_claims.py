"""The paper's claims on planted runs: truths and their opposites are found, gaps are named."""

import pytest

from lab.report.claims import CLAIMS
from lab.report.measures import BRANCHES_DEAD, DEAD, RANK
from lab.report.verdicts import CONTRADICTED, OPEN, SUPPORTED, TESTS
from lab.sweep.flags import Args as SweepArgs
from lab.sweep.plan import plan_run
from report.planted import (
    ENDS,
    judge_folder,
    make_measured,
    make_run,
    make_runs,
    plant_measures,
)

RANKS = "The effective rank of tanh-hr is higher than that of tanh"
FEWER = (
    "Fewer products of Tanh (HR) are dead than of independent branches, as if one branch made up "
    "for the other"
)
BIAS = (
    "In Seaquest dead tanh neurons are a hidden bias: over a tenth (our bound) of the magnitude of "
    "the Q-values' parts"
)
LIVE = ("srank_live", "srank_live_share")
OF_LIVE = ("(effective rank) of the live neurons", "per live neuron")
DORMANT = "Tanh (HR) has fewer neurons that are dormant by their gradient than tanh"
HIGHER = "Tanh (HR) scores higher than Tanh"
MATCHED = f"{HIGHER} of as many parameters"
ALONE = "Tanh (HR) without LayerNorm scores higher than Tanh with LayerNorm"
INDEPENDENT = "Products of tanh-hr die as independent branches would, within 5 points: p^2"


def test_every_claim_is_of_variants_that_a_sweep_can_run():
    """By the names that its algorithm gives them: PQN calls tanh what DQN calls tanh-ln."""
    for claim in CLAIMS:
        assert claim.test in TESTS
        for variant in claim.variants:
            plan_run(1, "Breakout", variant, claim.algorithm, SweepArgs())
    named = [(claim.algorithm, claim.text) for claim in CLAIMS]
    assert len(named) == len(set(named))


def test_planted_truths_are_found(tmp_path):
    scores = {"relu": 20.0, "tanh": 10.0, "tanh-hr": 30.0, "relu-hr": 25.0}
    dead = {
        "relu": (0.62,),
        "tanh": (0.2,),
        "tanh-hr": (0.16, 0.4, 0.4),
        "relu-hr": (0.9, 0.6, 0.6),
    }
    make_runs(tmp_path, "dqn", scores, dead=dead)
    found = judge_folder(tmp_path)

    def of(claim):
        return found["DQN", claim].verdict

    assert of("Tanh (HR) scores higher than ReLU") == SUPPORTED
    assert of("Tanh (HR) scores higher than Tanh") == SUPPORTED
    assert of("ReLU scores higher than Tanh") == SUPPORTED
    assert of("ReLU (HR) scores lower than ReLU") == CONTRADICTED
    assert (
        of("Dead neurons in z of relu: within 10 points of the paper's share") == SUPPORTED
    )  # 62 % where the paper has about 60
    assert (
        of("Dead neurons in z of tanh: within 10 points of the paper's share") == CONTRADICTED
    )  # 20, not 40
    assert of("Tanh (HR) has fewer dead neurons than tanh") == SUPPORTED
    assert (
        of("Products of tanh-hr die as independent branches would, within 5 points: p^2")
        == SUPPORTED
    )
    assert (
        of("Products of relu-hr die as independent branches would, within 5 points: 2p - p^2")
        == CONTRADICTED
    )
    assert of("SELU is worse than Tanh (HR)") == OPEN
    assert found["DQN", "SELU is worse than Tanh (HR)"].why == (
        "no runs of selu: takes 3 seeds of tanh-hr and selu in a game"
    )
    assert of("The effective rank of tanh is higher than that of relu") == OPEN
    line = found["DQN", "Tanh (HR) scores higher than ReLU"]
    assert (line.games, line.seeds) == ("2", "3")
    assert line.ours.startswith("P(tanh-hr > relu) = 1.00: Breakout 1.00, Seaquest 1.00; p = 0.005")
    assert found["PPO", "Tanh (HR) scores higher than ReLU"].why == (
        "no complete runs: takes 3 seeds of tanh-hr and relu in a game"
    )


def test_doubling_is_judged_on_human_normalised_scores(tmp_path):
    """Breakout: random play scores 1.7. 9 is less than twice 5, but 7.3 more than twice 3.3."""
    claim = "Tanh (HR) more than doubles the median human-normalised score of Tanh"
    for seeds, expected, why in (
        (3, OPEN, "fewer than 5 seeds: takes 5 in each game"),
        (5, SUPPORTED, ""),
    ):
        folder = tmp_path / str(seeds)
        make_runs(folder, "pqn", {"tanh": 5.0, "tanh-hr": 9.0}, games=("Breakout",), seeds=seeds)
        line = judge_folder(folder)["PQN", claim]
        middle = 0.1 * (seeds // 2)  # make_runs adds a tenth per seed
        ratio = (9 + middle - 1.7) / (5 + middle - 1.7)
        assert (line.verdict, line.why) == (expected, why)
        shown = f"ratio {ratio:.2f}" + (" (" if seeds == 5 else ": tanh-hr 0.2")
        assert line.ours.startswith(shown)


def test_a_claim_that_no_game_of_the_runs_can_decide_says_so(tmp_path):
    make_runs(tmp_path, "pqn", {"tanh": 5.0, "tanh-hr": 9.0}, games=("Adventure",), seeds=5)
    found = judge_folder(tmp_path)
    doubling = "Tanh (HR) more than doubles the median human-normalised score of Tanh"
    assert found["PQN", doubling].why.startswith("no game with a human score: takes 5 seeds")
    assert found["PQN", BIAS].why.startswith("no runs in Seaquest: takes 3 seeds")


@pytest.mark.parametrize(
    ("dead", "expected"),
    [
        ((0.01, 0.1, 0.1), OPEN),
        ((0.99, 0.99, 0.99), OPEN),
        ((0.01, 0.3, 0.3), CONTRADICTED),
        ((0.6, 0.1, 0.1), CONTRADICTED),
    ],
)
def test_where_hardly_or_nearly_every_branch_dies_nothing_is_said_of_independence(
    tmp_path, dead, expected
):
    make_runs(tmp_path, "pqn", {"tanh-hr": 5.0}, dead={"tanh-hr": dead})
    claim = "Products of tanh-hr die as independent branches would, within 5 points: p^2"
    line = judge_folder(tmp_path)["PQN", claim]
    assert line.verdict == expected
    assert ("neuron died, so nothing is told apart" in line.why) == (expected == OPEN)


def test_few_seeds_decide_nothing(tmp_path):
    make_runs(tmp_path, "dqn", {"relu": 20.0, "tanh-hr": 30.0}, seeds=2)
    line = judge_folder(tmp_path)["DQN", "Tanh (HR) scores higher than ReLU"]
    assert line.verdict == OPEN
    assert line.why == "fewer than 3 seeds: takes 3 in each game"


def test_equal_runs_decide_nothing(tmp_path):
    make_runs(
        tmp_path,
        "dqn",
        {"relu": 9.0, "tanh-hr": 9.0},
        dead=dict.fromkeys(("relu", "tanh-hr"), (0.0,)),
    )
    found = judge_folder(tmp_path)
    assert found["DQN", "Tanh (HR) scores higher than ReLU"].verdict == OPEN
    assert found["DQN", "Tanh (HR) has fewer dead neurons than relu"].verdict == OPEN


def test_one_game_with_three_seeds_decides_no_score(tmp_path):
    """The best possible order of 3 and 3 runs has a p of 0.1, that of 5 and 5 one of 0.008."""
    for seeds, expected in ((3, OPEN), (5, SUPPORTED)):
        folder = tmp_path / str(seeds)
        scores = {"relu": 1.0, "tanh-hr": 9.0}
        make_runs(folder, "dqn", scores, games=("Breakout",), seeds=seeds)
        line = judge_folder(folder)["DQN", "Tanh (HR) scores higher than ReLU"]
        assert line.verdict == expected
        if expected == OPEN:
            assert line.ours.endswith("p = 0.100")
            assert line.why == (
                "undecidable: so few runs cannot give a p below 0.10: takes 4 seeds of each in a "
                "game, or more games"
            )


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [(300, 200, SUPPORTED), (200, 300, CONTRADICTED)]
)
def test_the_higher_rank_is_told(tmp_path, ours, theirs, expected):
    planted = {("tanh-hr", "Pong"): {RANK: ours}, ("tanh", "Pong"): {RANK: theirs}}
    assert plant_measures(tmp_path, planted)[RANKS].verdict == expected


def test_games_that_point_apart_are_told_beside_their_mean(tmp_path):
    """Seeds are 1, 1.001 and 1.002 times what is planted."""
    dead = {("tanh", "Pong"): 0.1, ("tanh-hr", "Pong"): 0.3}
    dead |= {("tanh", "Qbert"): 0.8, ("tanh-hr", "Qbert"): 0.2}
    planted = {cell: {DEAD: share, RANK: 1000 * share} for cell, share in dead.items()}
    found = plant_measures(tmp_path, planted)
    gap = found["Tanh (HR) has fewer dead neurons than tanh"]
    assert gap.verdict == SUPPORTED  # of the mean
    assert gap.ours.endswith("points: Pong -20.02, Qbert 60.06")
    assert found[RANKS].ours.endswith(": Pong 200.20, Qbert -600.60")
    share = found["Dead neurons in z of tanh: within 10 points of the paper's share"]
    assert share.ours.endswith(" %: Pong 10.01, Qbert 80.08")


def test_scores_are_told_per_game_where_there_is_more_than_one(tmp_path):
    """Won in Pong, lost in Qbert."""
    ours, theirs = {"Pong": 9.0, "Qbert": 3.0}, {"Pong": 2.0, "Qbert": 8.0}
    for game in ours:
        scores = {"tanh-hr": ours[game], "tanh": theirs[game]}
        make_runs(tmp_path / "both", "pqn", scores, games=(game,))
        make_runs(tmp_path / game, "pqn", scores, games=(game,))
    claim = "PQN", "Tanh (HR) scores higher than Tanh"
    one = judge_folder(tmp_path / "Pong")[claim].ours
    assert one == "P(tanh-hr > tanh) = 1.00; p = 0.100"  # 1 of 20 orders, twice
    both = judge_folder(tmp_path / "both")[claim].ours
    assert both.startswith("P(tanh-hr > tanh) = 0.50: Pong 1.00, Qbert 0.00; p = ")


@pytest.mark.parametrize(
    ("dead", "seaquest", "breakout", "expected", "why"),
    [
        (0.07, 0.2, 0.0, SUPPORTED, ""),  # in Breakout, of which the paper does not say it, not
        (0.07, 0.05, 0.9, CONTRADICTED, ""),
        (0.0, 0.0, 0.9, OPEN, "hardly a neuron died: takes runs in which at least 1 % do"),
    ],
)
def test_a_hidden_bias_is_judged_in_the_game_of_the_paper(
    tmp_path, dead, seaquest, breakout, expected, why
):
    def tags(part):
        return {DEAD: dead, "q_contribution/dead_abs": part, "q_contribution/live_abs": 1 - part}

    planted = {("tanh", "Seaquest"): tags(seaquest), ("tanh", "Breakout"): tags(breakout)}
    line = plant_measures(tmp_path, planted)[BIAS]
    assert (line.verdict, line.why, line.games) == (expected, why, "1")


@pytest.mark.parametrize(
    ("seaquest", "breakout", "independent", "fewer"),
    [
        (0.05, 0.06, CONTRADICTED, SUPPORTED),  # 16 % of independent branches
        (0.15, 0.14, SUPPORTED, SUPPORTED),
        (0.30, 0.32, CONTRADICTED, CONTRADICTED),
        (0.08, 0.24, OPEN, OPEN),  # by 8 points less and more: 0 in the mean
    ],
)
def test_dead_products_against_those_of_independent_branches(
    tmp_path, seaquest, breakout, independent, fewer
):
    def tags(share):
        return {DEAD: share} | dict.fromkeys(BRANCHES_DEAD, 0.4)

    planted = {("tanh-hr", "Seaquest"): tags(seaquest), ("tanh-hr", "Breakout"): tags(breakout)}
    found = plant_measures(tmp_path, planted)
    assert (found[INDEPENDENT].verdict, found[FEWER].verdict) == (independent, fewer)
    assert f"Breakout {100.1 * breakout:.1f} and 16.0 %" in found[FEWER].ours
    if independent == OPEN:
        assert found[INDEPENDENT].why == "the games disagree: takes more games"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((5.0, 5.0), SUPPORTED), ((9.0, 5.0), CONTRADICTED), ((5.0, 9.0), CONTRADICTED)],
)
def test_two_that_score_alike(tmp_path, scores, expected):
    """20 seeds in each of 2 games, of which every score occurs in both variants, or is above."""
    three, two = scores
    make_runs(tmp_path, "dqn", {"tanh-3hr": three, "tanh-hr": two}, seeds=20)
    claim = "The product of three scores like that of two (wins 35 to 65 % of the pairs)"
    assert judge_folder(tmp_path)["DQN", claim].verdict == expected


def test_more_live_neurons_and_a_higher_rank_of_each_are_told_apart(tmp_path):
    """Tanh: rank 100 of 200 live. HR in Pong: 150 of 400; in Qbert 240 of 400."""
    dead, rank, share = (f"representation/{name}" for name in ("dead_kde", *LIVE))
    plain = {dead: 1 - 200 / 512, rank: 100.0, share: 0.5}
    claims = [f"The srank {of} of tanh-hr is higher than that of tanh" for of in OF_LIVE]
    for game, high, expected in (("Pong", 150, CONTRADICTED), ("Qbert", 240, SUPPORTED)):
        planted = {("tanh", game): plain}
        planted["tanh-hr", game] = {dead: 1 - 400 / 512, rank: float(high), share: high / 400}
        for algorithm in ("dqn", "ppo", "pqn"):
            found = plant_measures(tmp_path / game / algorithm, planted, algorithm)
            assert [found[claim].verdict for claim in claims] == [SUPPORTED, expected]
            # Seeds are 1, 1.001 and 1.002 times what is planted.
            assert f"tanh-hr - tanh = {1.001 * (high - 100):.2f} (" in found[claims[0]].ours
            points = 100.1 * (high / 400 - 0.5)
            assert found[claims[1]].ours.startswith(f"tanh-hr - tanh = {points:.2f} (")
            assert found[claims[1]].ours.endswith(") points")


def test_of_the_rank_of_hardly_a_live_neuron_nothing_is_said(tmp_path):
    """In one game of two: as DQN's z, small from the start, counts as dead by its scale."""
    dead, rank, share = (f"representation/{name}" for name in ("dead_kde", *LIVE))
    planted = {}
    for game, alive in (("Pong", 0.0), ("Qbert", 0.5)):
        planted["tanh", game] = {dead: 0.2, rank: 300.0, share: 0.7}
        planted["tanh-hr", game] = {dead: (1 - alive) / 1.002, rank: 400 * alive, share: alive}
    found = plant_measures(tmp_path, planted)
    for of in OF_LIVE:
        line = found[f"The srank {of} of tanh-hr is higher than that of tanh"]
        assert line.verdict == OPEN
        assert line.why == (
            "hardly a neuron of tanh-hr in Pong lives: takes runs in which at least 5 % do"
        )


@pytest.mark.parametrize("algorithm", ["dqn", "ppo", "pqn"])
@pytest.mark.parametrize(
    ("plain", "ours", "expected"),
    [(0.3, 0.1, SUPPORTED), (0.1, 0.3, CONTRADICTED), (0.0, 0.0, OPEN)],
)
def test_neurons_that_are_dormant_by_their_gradient(tmp_path, algorithm, plain, ours, expected):
    tag = "representation/grad_dormant_0.01"
    planted = {("tanh", "Pong"): {tag: plain}, ("tanh-hr", "Pong"): {tag: ours}}
    line = plant_measures(tmp_path, planted, algorithm)[DORMANT]
    assert line.verdict == expected
    assert line.ours.startswith(f"tanh - tanh-hr = {100.1 * (plain - ours):.2f} (")
    assert line.ours.endswith(") points")
    assert line.source.startswith("v5 abstract")


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("algorithm", "claim", "better", "other"),
    [
        *((of, MATCHED, "tanh-hr", "tanh-match") for of in ("dqn", "ppo", "pqn")),
        ("dqn", f"{HIGHER} where both have LayerNorm", "tanh-hr-ln", "tanh-ln"),
        ("ppo", f"{HIGHER} where both have LayerNorm", "tanh-hr-ln", "tanh-ln"),
        ("pqn", f"{HIGHER} where neither has LayerNorm", "tanh-hr-noln", "tanh-noln"),
        ("dqn", ALONE, "tanh-hr", "tanh-ln"),
        ("ppo", ALONE, "tanh-hr", "tanh-ln"),
        ("pqn", ALONE, "tanh-hr-noln", "tanh"),
    ],
)
def test_rivals_of_the_product_are_judged_by_score(
    tmp_path, algorithm, claim, better, other, seeds
):
    """In one game: all runs ahead are p = 0.1 with 3 seeds and 1 in 126 with 5."""
    for name, scores in (("holds", (9.0, 5.0)), ("not", (5.0, 9.0))):
        planted = dict(zip((better, other), scores, strict=True))
        make_runs(tmp_path / name, algorithm, planted, games=("Pong",), seeds=seeds)
        line = judge_folder(tmp_path / name)[algorithm.upper(), claim]
        decided = {"holds": SUPPORTED, "not": CONTRADICTED}[name]
        assert line.verdict == (decided if seeds == 5 else OPEN)
        assert line.ours.startswith(f"P({better} > {other}) = {float(name == 'holds'):.2f}")
    # Without the other, what it would take.
    make_runs(tmp_path / "alone", algorithm, {better: 9.0}, games=("Pong",), seeds=seeds)
    line = judge_folder(tmp_path / "alone")[algorithm.upper(), claim]
    takes = f"takes 3 seeds of {better} and {other} in a game"
    assert (line.verdict, line.why) == (OPEN, f"no runs of {other}: {takes}")


def test_a_control_that_was_superseded_stays_and_says_so():
    (line,) = (claim for claim in CLAIMS if "tanh-wide" in claim.variants)
    assert line.source == "v1 Fig. 5, superseded by v5's parameter-matched control"
    matched = {claim.algorithm for claim in CLAIMS if "tanh-match" in claim.variants}
    assert matched == {"dqn", "ppo", "pqn"}


def test_runs_of_which_some_lack_a_measure_say_what_it_takes(tmp_path):
    """An older run of tanh among them: the measure that all have is judged, the newer is not."""
    dead, rank, share = (f"representation/{name}" for name in ("dead_kde", *LIVE))
    for variant, alive in (("tanh", 0.6), ("tanh-hr", 0.8)):
        make_measured(tmp_path, {(variant, "Pong"): {dead: 1 - alive, rank: 200.0, share: 0.5}})
    older = {"variant": "tanh", "game": "Pong", "flags": {"seed": 3}}
    make_run(tmp_path / "older", measures={dead: [(step, 0.4) for step in ENDS]}, **older)
    found = {claim: of for (own, claim), of in judge_folder(tmp_path).items() if own == "PQN"}
    assert found["Tanh (HR) has fewer dead neurons than tanh"].verdict == SUPPORTED
    line = found["The srank per live neuron of tanh-hr is higher than that of tanh"]
    assert (line.verdict, line.ours) == (OPEN, "")
    assert line.why == (
        "a run has not measured representation/srank_live_share: takes runs that have, or a report "
        "without it"
    )
