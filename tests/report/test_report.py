"""A report: planted truths are found, missing data is named, and the page holds what it says."""

import base64
import csv
import html.parser
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from planted import ENDS, judge_folder, make_run, make_runs, plant_measures, read_group
from scipy import stats

import lab.report.__main__ as report
from flags import UsageError
from lab.report.__main__ import Args, main, read_all
from lab.report.figures import curves
from lab.report.measures import BRANCHES_DEAD, predict_dead
from lab.report.rows import game_rows, prediction_rows
from lab.report.runs import POINTS, SCORE
from lab.report.verdicts import CONTRADICTED, OPEN, SUPPORTED

DEAD, RANK = "representation/dead_kde", "representation/effective_rank"


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
    assert line.ours.startswith("P(tanh-hr > relu) = 1.00: Breakout 1.00, Seaquest 1.00; p = 0.0")
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
            assert "p = 0.1" in line.why
            assert "takes up to about 5 seeds" in line.why


class Page(html.parser.HTMLParser):
    """Texts by tag, images, and what the page loads from elsewhere."""

    def __init__(self, path):
        super().__init__()
        self.images, self.links, self.text, self.open = [], [], [], []
        self.roles = {}
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.roles.setdefault(tag, set()).add(attributes.get("role"))
        if tag == "img":
            self.images.append(attributes["src"])
            assert attributes["alt"]
        if tag == "a":
            self.links.append(attributes["href"])
        assert tag not in ("script", "link", "iframe")

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_all_and_needs_nothing_else(tmp_path, monkeypatch, capsys):
    """Two algorithms, a game without a human score, one that a variant lacks, an unfinished run."""
    monkeypatch.chdir(tmp_path)
    dead = {"relu": (0.6,), "tanh-hr": (0.2, 0.3, 0.4)}
    scores = {"relu": 20.0, "tanh-hr": 30.0}
    make_runs(tmp_path / "runs", "dqn", scores, games=("Breakout", "Adventure"), dead=dead)
    make_runs(tmp_path / "runs", "pqn", {"tanh": 5.0}, games=("Breakout",), seeds=1)
    make_run(
        tmp_path / "runs" / "half", last=400, algorithm="dqn", variant="relu", flags={"seed": 9}
    )
    make_run(
        tmp_path / "runs" / "pong",
        algorithm="dqn",
        variant="relu",
        game="Pong",
        flags={"env_id": "Pong"},
    )
    assert main(Args(("runs",))) == 0
    assert (
        "15 runs, of which 14 count (complete, with a score): report/index.html"
        in capsys.readouterr().out
    )
    out = tmp_path / "report"
    page = Page(out / "index.html")
    text = " ".join(page.text)
    for told in (
        "No complete run with a score of tanh-hr in Pong. What is told over games is of relu, ",
        "No human score is known for Adventure.",
        "no: not complete",
        "half",
        "Tanh (HR) scores higher than ReLU",
    ):
        assert told in text, told
    assert 'data-column="verdict"' in (out / "index.html").read_text()
    # A phone shows no table any more, so these would be lost if they were not told.
    roles = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup"}
    roles |= {"tr": "row", "th": "columnheader", "td": "cell"}
    assert {tag: page.roles[tag] for tag in roles} == {tag: {role} for tag, role in roles.items()}
    assert len(page.images) >= 7
    for source in page.images:
        assert source.startswith("data:image/svg+xml;base64,")
        ET.fromstring(base64.b64decode(source.partition(",")[2]))
    assert all(link.startswith("#") for link in page.links)
    assert "http" not in re.sub(r"data:[^\"]*", "", (out / "index.html").read_text())
    for name in (
        "dqn_curves",
        "dqn_representation",
        "dqn_prediction",
        "dqn_profiles",
        "pqn_curves",
    ):
        with Image.open(out / f"{name}.png") as image:
            assert image.size[0] > 300
        ET.parse(out / f"{name}.svg")
    with (out / "dqn_games.csv").open() as file:
        rows = {(row["game"], row["variant"]): row for row in csv.DictReader(file)}
    assert rows["Breakout", "relu"]["seeds"] == "3"
    low, high = stats.t.interval(0.95, 2, loc=20.1, scale=0.1 / np.sqrt(3))
    row = rows["Breakout", "relu"]
    for column, value in (("score", 20.1), ("score low", low), ("score high", high)):
        assert float(row[column]) == pytest.approx(value)
    assert float(row["dead, %"]) == pytest.approx(60.1)
    with (out / "dqn_over_games.csv").open() as file:
        over = list(csv.DictReader(file))
    human = next(r for r in over if (r["scale"], r["variant"]) == ("human-normalised", "tanh-hr"))
    assert float(human["mean"]) == pytest.approx((30.1 - 1.7) / (30.5 - 1.7))
    assert human["games"] == "1"
    base = next(r for r in over if (r["scale"], r["variant"]) == ("baseline-normalised", "tanh-hr"))
    # relu's curves go from 20 * 0.05 (its lowest seed's first point) to 20.2
    assert float(base["mean"]) == pytest.approx((30.1 - 1.0) / (20.2 - 1.0), rel=1e-4)


def test_a_report_again_from_its_own_tables_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dead = {"relu": (0.6,), "tanh-hr": (0.2, 0.3, 0.4)}
    make_runs(tmp_path / "runs", "ppo", {"relu": 2.0, "tanh-hr": 1.0}, dead=dead)
    assert main(Args(("runs",), out="one")) == 0
    assert main(Args(("one",), out="two")) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        if not name.endswith(".png"):
            assert (tmp_path / "one" / name).read_bytes() == (
                tmp_path / "two" / name
            ).read_bytes(), name


def test_a_single_run_has_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "only", [(100, 2.0)])
    assert main(Args(("runs/only",))) == 0
    text = " ".join(Page(tmp_path / "report" / "index.html").text)
    assert (
        "1 run. Those count that are complete, or have diverged, and in which a game has ended: 1."
        in text
    )


def test_runs_without_any_game_that_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "none", [])
    assert main(Args(("runs",))) == 0


def test_of_two_equal_runs_the_newest_complete_one_counts(tmp_path):
    make_run(tmp_path / "old", [(100, 1.0)], started="2025")
    make_run(tmp_path / "new", [(100, 2.0)], started="2026")
    make_run(tmp_path / "newest", [(100, 3.0)], started="2027", last=10)
    runs, remarks = read_all((str(tmp_path),))
    assert [run.name for run in runs] == ["new"]
    assert runs[0].measures[SCORE][POINTS - 1] == 2.0
    assert len(remarks) == 2


def test_a_broken_run_is_named_and_the_others_count(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "config.json").write_text("{")
    assert main(Args(("runs",))) == 0
    assert "runs/bad/config.json is damaged" in capsys.readouterr().out
    assert "runs/bad/config.json is damaged" in (tmp_path / "report" / "index.html").read_text()


def test_a_stray_run_takes_no_game_from_the_others(tmp_path, monkeypatch):
    """One of selu in a fifth game: over games there are still relu and tanh-hr in four."""
    monkeypatch.chdir(tmp_path)
    games = ("Breakout", "Seaquest", "Pong", "Qbert")
    make_runs(tmp_path / "runs", "dqn", {"relu": 2.0, "tanh-hr": 3.0}, games=games, seeds=1)
    make_runs(tmp_path / "runs", "dqn", {"selu": 2.0}, games=("Alien",), seeds=1)
    assert main(Args(("runs",))) == 0
    with (tmp_path / "report" / "dqn_over_games.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["variant"], row["games"]) for row in rows} == {("relu", "4"), ("tanh-hr", "4")}


def test_settings_that_begin_alike_have_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a_flag_with_a_very_long_name_that_fills_the_name_of_a_file_by_itself"
    for i in range(3):
        make_run(tmp_path / "runs" / str(i), flags={name: 1, "zeta": i, f"{name}_{i}": 1})
    assert main(Args(("runs",))) == 0
    assert len(list((tmp_path / "report").glob("*_curves.png"))) == 3


def test_two_folders_of_one_name_are_two_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a" / "run", flags={"seed": 1})
    make_run(tmp_path / "b" / "run", flags={"seed": 2})
    assert main(Args(("a", "b"), out="one")) == 0
    assert main(Args(("one",), out="two")) == 0
    one, two = (tmp_path / name / "runs.csv" for name in ("one", "two"))
    assert one.read_text() == two.read_text()
    assert one.read_text().count("\n") == 3


def test_only_what_the_paper_predicts_is_compared_with_a_prediction(tmp_path):
    make_runs(tmp_path, "dqn", {"silu-hr": 2.0}, dead={"silu-hr": (0.2, 0.3, 0.4)})
    group = read_group(tmp_path)
    assert prediction_rows(group) == []
    with pytest.raises(KeyError):
        predict_dead("silu", (0.3, 0.4))


def test_a_report_is_not_written_among_runs(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "one")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--out runs has run folders in it: name a folder of"):
        main(Args(("runs",), out="runs"))
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_event_files_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "runs" / "bad")
    (path,) = folder.glob("events*")
    path.write_bytes(path.read_bytes()[:-20])
    assert main(Args(("runs",))) == 0
    assert (
        "bad: an event file is cut off, so points are missing; the last point there is at agent "
        "step 900" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no runs: name their folders, such as runs"),
        (["nowhere"], "nowhere: no run folder there"),
        (["/", "--out", "/dev/null/x"], "--out /dev/null/x"),
        (["nowhere", "--baseline", "rleu"], "unknown variant 'rleu'"),
        (["--outt", "x"], "did you mean --out"),
    ],
)
def test_bad_input_is_refused(flags, message, refused):
    refused(report, flags, message)


@pytest.mark.parametrize("content", ["", "a,b\n", None])
def test_tables_without_a_run_are_told_and_the_others_count(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "one")
    assert main(Args(("runs",), out="runs-report")) == 0
    empty = tmp_path / "empty"
    shutil.copytree(tmp_path / "runs-report", empty)
    header = (empty / "runs.csv").read_text().splitlines()[0] + "\n"
    (empty / "runs.csv").write_text(header if content is None else content)
    assert main(Args(("runs", "empty"))) == 0
    assert "empty: its tables hold no run" in capsys.readouterr().out
    with pytest.raises(UsageError, match="none of these runs can be read: empty: its tables hold"):
        main(Args(("empty",), out="other"))


def test_a_group_tells_where_and_from_what_its_runs_were_made(tmp_path):
    first = {"device": "cpu", "processor": "AMD, 2 cores", "versions": {"torch": "2.13.0"}}
    first["git_commit"] = "a" * 40
    make_run(tmp_path / "one", **first)
    group = read_group(tmp_path)
    assert report.remarks_on(group) == ["Run on AMD, 2 cores."]
    resumed = [{"step": 500, "processor": "Intel, 4 cores", "git_commit": "b" * 40}]
    versions = {"torch": "2.14.0"}
    make_run(tmp_path / "two", **first | {"resumed": resumed, "versions": versions, "game": "Pong"})
    group = read_group(tmp_path)
    told = report.remarks_on(group)
    assert "Runs of several commits: aaaaaaaaaa, bbbbbbbbbb." in told
    assert "Run on AMD, 2 cores and Intel, 4 cores." in told
    assert "Runs of several versions of torch: 2.13.0, 2.14.0." in told


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
        tags = {f"{head}/dead_abs": dead, f"{head}/live_abs": 4 - dead}
        for branch in (0, 1):
            tags[f"representation/branch_{branch}/dead_kde"] = 0.5
            tags[f"representation/branch_{branch}/saturated"] = 0.1 * (branch + 1)
        measures = {tag: [(step, value) for step in ENDS] for tag, value in tags.items()}
        measures[DEAD] = [(40, 0.25), (900, 0.5)]
        named = {"algorithm": algorithm, "flags": {"seed": seed}}
        make_run(tmp_path / f"run{seed}", measures=measures, **named)
    group = read_group(tmp_path)
    (row,) = game_rows(group)
    assert row[column] == pytest.approx((37.5, *stats.t.interval(0.95, 1, loc=37.5, scale=12.5)))
    assert row["branches saturated, %"] == pytest.approx((15, 15, 15))
    assert (row["dead at first, %"].value, row["dead, %"].value) == pytest.approx((25, 50))
    for row in prediction_rows(group):
        assert row["branch 0 saturated, %"] == pytest.approx(10)
        assert row["branch 1 saturated, %"] == pytest.approx(20)


RANKS = "The effective rank of tanh-hr is higher than that of tanh"
FEWER = (
    "Fewer products of Tanh (HR) are dead than of independent branches, as if one branch made up "
    "for the other"
)
BIAS = (
    "In Seaquest dead tanh neurons are a hidden bias: over a tenth (our bound) of the magnitude of "
    "the Q-values' parts"
)
INDEPENDENT = "Products of tanh-hr die as independent branches would, within 5 points: p^2"


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
    assert re.fullmatch(r"P\(tanh-hr > tanh\) = 1.00; p = 0.1\d\d", one)  # 1 of 20 orders, twice
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
    """16 seeds in each of 2 games, of which every score occurs in both variants, or is above."""
    three, two = scores
    make_runs(tmp_path, "dqn", {"tanh-3hr": three, "tanh-hr": two}, seeds=16)
    claim = "The product of three scores like that of two (wins 35 to 65 % of the pairs)"
    assert judge_folder(tmp_path)["DQN", claim].verdict == expected


@pytest.mark.parametrize(("seeds", "lines", "bands"), [(1, 1, 0), (2, 3, 0), (3, 1, 1)])
def test_of_few_seeds_each_is_drawn_and_of_more_their_interval(tmp_path, seeds, lines, bands):
    make_runs(tmp_path, "pqn", {"tanh": 5.0}, games=("Pong",), seeds=seeds)
    (axes,) = curves(read_group(tmp_path)).axes
    assert (len(axes.lines), len(axes.collections)) == (lines, bands)


def test_a_run_that_diverged_counts_and_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "runs" / "one", [(100, 7.0)], last=300)
    (folder / "diverged.json").write_text('{"step": 300}')
    for source in ("runs", "report"):
        assert main(Args((source,))) == 0
        told = capsys.readouterr().out
        assert "1 run, of which 1 count" in told
        assert "one has diverged at agent step 300: it counts with what it had" in told


def test_the_runs_in_a_report_are_not_lost_to_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "runs", "dqn", {"relu": 2.0}, games=("Pong",))
    make_run(tmp_path / "one", variant="tanh")
    assert main(Args(("runs",), out="all")) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    with pytest.raises(UsageError, match="--out all has the tables of 3 runs not among those"):
        main(Args(("one",), out="all"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()} == before
    assert main(Args(("all", "one"), out="all")) == 0
    assert len(read_all(("all",))[0]) == 4


def test_a_run_that_differs_in_gamma_alone_is_not_lost_to_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for gamma in (0.9, 0.99):
        make_run(tmp_path / f"gamma{gamma}", flags={"gamma": gamma})
    assert main(Args(("gamma0.9",))) == 0
    with pytest.raises(UsageError, match=r"the tables of 1 run .*such as gamma0.9\)"):
        main(Args(("gamma0.99",)))
    assert main(Args(("gamma0.9",))) == 0


@pytest.mark.parametrize("others", [(), ("more",)])
def test_tables_that_cannot_be_read_are_not_written_over(tmp_path, monkeypatch, others):
    """Named as input or not: what they still hold may be there and nowhere else."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one")
    make_run(tmp_path / "more", flags={"seed": 2})
    assert main(Args(("one",))) == 0
    table = tmp_path / "report" / "curves.csv"
    table.write_text(table.read_text()[:1000])
    before = {path: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    for named in (("one", *others), ("report", *others)):
        with pytest.raises(UsageError, match="report: its tables of runs cannot be read"):
            main(Args(named))
    assert {path: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before


def test_of_groups_that_are_gone_nothing_stays(tmp_path, monkeypatch):
    """Such as one setting whose name is another when it is the only one."""
    monkeypatch.chdir(tmp_path)
    for gamma in (0.9, 0.99):
        make_run(tmp_path / "runs" / f"gamma{gamma}", flags={"gamma": gamma})
    assert main(Args(("runs/gamma0.9",))) == 0
    assert (tmp_path / "report" / "pqn_curves.png").exists()
    (tmp_path / "report" / "pqn_mine_curves.png").write_text("mine")
    assert main(Args(("runs",))) == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert "pqn-gamma-0.9_games.csv" in names
    assert [name for name in names if name.startswith("pqn_")] == ["pqn_mine_curves.png"]


def test_a_complete_run_is_not_lost_to_one_cut_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "one")
    assert main(Args(("one",))) == 0
    events = next(folder.glob("events*"))
    events.write_bytes(events.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"tables of 1 run .* not as far there \(such as one\)"):
        main(Args(("one",)))
    assert main(Args(("one", "report"))) == 0


@pytest.mark.parametrize("name", ["first", "baseline"])
def test_a_variant_to_compare_with_is_there_or_missed(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one", variant="tanh")
    with pytest.raises(
        UsageError, match=f"--{name} selu: no run of it that counts; there are tanh"
    ):
        main(Args(("one",), **{name: "selu"}))
    assert not (tmp_path / "report").exists()
    assert main(Args(("one",))) == 0
    assert f"no run of {getattr(Args, name)} (--{name})" in capsys.readouterr().out


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_a_damaged_copy_does_not_displace_the_whole_run(tmp_path, order):
    good = make_run(tmp_path / "good", [(100, 1.0), (900, 9.0)])
    shutil.copytree(good, tmp_path / "bad")
    events = next((tmp_path / "bad").glob("events*"))
    events.write_bytes(events.read_bytes()[:-1])
    (run,), remarks = read_all(tuple(str(tmp_path / name) for name in order))
    assert run.name == "good"
    assert remarks == ["bad is left out: good is the same run, and as good or better"]


def test_of_two_equal_copies_the_first_named_stays(tmp_path):
    shutil.copytree(make_run(tmp_path / "b"), tmp_path / "a")
    assert read_all((str(tmp_path / "b"), str(tmp_path / "a")))[0][0].name == "b"
