"""Runs read back, from folders and tables: against slow loops; damage is refused in a line."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.common.cli import UsageError
from lab.common.events import Curve
from lab.common.tables import format_csv
from lab.report.__main__ import Args, main
from lab.report.runs import (
    CURVES_CSV,
    HOURS,
    IN_FINISHED_GAMES,
    POINTS,
    RUNS_CSV,
    SCORE,
    find_runs,
    newest_values,
    read_run,
    read_tables,
    tabulate_runs,
    trailing_return,
)
from report.planted import make_run


def test_games_that_end_in_one_step_all_count(tmp_path):
    run = read_run(make_run(tmp_path / "run", [(500, 1.0), (500, 3.0), (500, 8.0)]))
    assert run.measures[SCORE][-1] == 4.0


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(-5, 50)), min_size=1, max_size=300),
    st.lists(st.integers(0, 1200), min_size=1, max_size=10),
)
def test_trailing_return_is_the_mean_of_the_newest_100_games(games, steps):
    games = sorted(games, key=lambda game: game[0])
    curve = Curve(*np.array(games, dtype=float).T)
    found = trailing_return(curve, np.array(steps))
    for step, value in zip(steps, found, strict=True):
        until = [score for ended, score in games if ended <= step][-100:] or [games[0][1]]
        assert value == pytest.approx(np.mean(until))


def test_newest_value():
    curve = Curve(np.array([10, 20]), np.array([1.0, 2.0]))
    found = newest_values(curve, np.array([5, 10, 19, 20, 99]))
    assert np.isnan(found[0])
    assert found[1:].tolist() == [1, 1, 2, 2]


def test_what_a_run_has_not_reached_is_not_there(tmp_path):
    measures = {"representation/dead_kde": [(100, 0.5), (500, 0.25)]}
    run = read_run(make_run(tmp_path / "run", [(100, 1.0)], last=600, measures=measures))
    assert not run.complete
    assert len(run.steps) == POINTS
    assert run.steps[-1] == 1000
    dead = run.measures["representation/dead_kde"]
    assert np.isnan(dead[:9]).all()
    assert (dead[9:49] == 0.5).all()
    assert (dead[49:61] == 0.25).all()
    assert np.isnan(dead[61:]).all()
    assert read_run(make_run(tmp_path / "other", last=995)).complete
    assert not read_run(make_run(tmp_path / "short", last=985)).complete


def test_tables_bring_back_the_runs(tmp_path):
    measures = {"representation/dead_kde": [(100, 0.5), (500, 0.25)]}
    flags = {"seed": 2, "runs_dir": "somewhere"}
    config = {"git_commit": "f" * 40, "processor": "A", "versions": {"torch": "2"}}
    config["resumed"] = [{"step": 9, "command": "python x.py", "git_commit": "e" * 40}]
    made = [
        make_run(tmp_path / "a", measures=measures, flags=flags, command="python y.py", **config),
        make_run(tmp_path / "b", [], last=300, variant="relu"),
    ]
    (made[1] / "diverged.json").write_text('{"step": 300}')
    cut_off = next(made[1].glob("events*"))
    cut_off.write_bytes(cut_off.read_bytes()[:-1])
    runs = [read_run(folder) for folder in made]
    out = tmp_path / "out"
    out.mkdir()
    for name, rows in zip((RUNS_CSV, CURVES_CSV), tabulate_runs(runs), strict=True):
        (out / name).write_bytes(format_csv(rows))
    assert find_runs([str(out)]) == [out]
    again = read_tables(out)
    for before, after in zip(runs, again, strict=True):
        assert {**before.flags, "runs_dir": 0} == {**after.flags, "runs_dir": 0}
        assert (before.provenance, before.whole, before.diverged) == (
            after.provenance,
            after.whole,
            after.diverged,
        )
        assert (before.name, before.seed, before.last_step) == (
            after.name,
            after.seed,
            after.last_step,
        )
        assert before.complete == after.complete
        assert before.measures.keys() == after.measures.keys()
        for name, values in before.measures.items():
            assert np.allclose(values, after.measures[name], rtol=1e-5, equal_nan=True)
    assert again[0].commit == "f" * 10
    assert again[0].commits == ["e" * 10, "f" * 10]
    config["resumed"][0].pop("command")
    assert again[0].provenance == config
    text = (out / RUNS_CSV).read_text()
    assert not [word for word in ("somewhere", "x.py", "y.py") if word in text]


def test_where_a_run_was_made(tmp_path):
    begun = {"device": "cpu", "processor": "A", "versions": {"torch": "2.13.0+cpu"}}
    resumed = [{"processor": "B"}, {"device": "NVIDIA X", "versions": {"torch": "2.11.0+cu130"}}]
    run = read_run(make_run(tmp_path / "a", **begun, resumed=resumed))
    assert run.machines == ["A", "B", "NVIDIA X"]
    assert run.torches == ["2.11.0+cu130", "2.13.0+cpu"]
    nothing_known = read_run(make_run(tmp_path / "c"))
    assert (nothing_known.machines, nothing_known.torches) == ([], [])


def test_a_run_that_diverged_counts_with_what_it_had(tmp_path):
    measures = {"representation/dead_kde": [(100, 0.25), (500, math.nan)]}
    folder = make_run(tmp_path / "run", [(100, 1.0), (300, 5.0)], last=500, measures=measures)
    assert not read_run(folder).complete
    (folder / "diverged.json").write_text('{"step": 500, "what": "a loss is nan"}')
    run = read_run(folder)
    assert (run.complete, run.reached_total, run.diverged) == (True, False, 500)
    assert run.measures[SCORE][-1] == 3.0
    assert run.measures["representation/dead_kde"][-1] == 0.25


def test_the_last_point_is_the_end_also_where_the_last_rollout_goes_beyond_the_total(tmp_path):
    run = read_run(make_run(tmp_path / "run", [(500, 1.0), (1004, 5.0)], last=1004))
    assert run.measures[SCORE][-2:].tolist() == [1.0, 3.0]
    assert run.steps[-1] == 1000


def test_share_of_the_steps_in_games_that_have_ended(tmp_path):
    """Two of 100 steps by step 500, one of 600 at 900: 200 of 500, 800 of 1,000."""
    lengths = {"charts/episodic_length": [(300, 100), (500, 100), (900, 600)]}
    run = read_run(make_run(tmp_path / "run", measures=lengths))
    found = run.measures[IN_FINISHED_GAMES]
    assert [found[i] for i in (0, 49, 99)] == [0, 0.4, 0.8]


def test_a_table_that_is_cut_off_is_refused(tmp_path):
    run = read_run(make_run(tmp_path / "a"))
    for name, rows in zip((RUNS_CSV, CURVES_CSV), tabulate_runs([run]), strict=True):
        (tmp_path / name).write_bytes(format_csv(rows))
    assert len(read_tables(tmp_path)) == 1
    whole = (tmp_path / CURVES_CSV).read_text().splitlines()
    (tmp_path / CURVES_CSV).write_text("\n".join(whole[:-30]))
    with pytest.raises(UsageError, match="has 70 points, not 100"):
        read_tables(tmp_path)


# Measures, and what is none of their values: beside what is too large, for all of them.
IMPOSSIBLE = {
    SCORE: (),
    "losses/td_loss": (),
    "q_contribution/dead": (),
    "representation/dead_kde": ("1.5", "-0.1"),
    "representation/conv_2/saturated": ("1.00001", "-1e-09"),
    "representation/branch_1/srank_live_share": ("100",),
    "churn/encoder": ("2", "-1"),
    IN_FINISHED_GAMES: ("1.1", "-0.1"),
    "representation/effective_rank": ("-3",),
    "representation/branch_0/stable_rank": ("-0.5",),
    "representation/conv_1/feature_norm": ("-1",),
    "representation/weight_norm": ("-1e-05",),
    HOURS: ("-1",),
}


@pytest.mark.parametrize(
    ("table", "column", "cell", "message"),
    [
        *(
            (0, "made", made, "of run, made is not as a report writes it")
            for made in (
                "[]",
                '{"resumed": 4}',
                '{"versions": 3}',
                '{"resumed": [{"versions": 3}]}',
            )
        ),
        *(
            (0, "diverged", cell, "diverged of run must be a whole number, at least 0")
            for cell in ("-1", "2.5", "true", '"x"', "[]", "{}", str(2**53))
        ),
        *((0, "whole", cell, "whole of run must be true or false") for cell in ("null", "1", "[]")),
        *((0, "flag_gamma", cell, "flags: gamma must be text or a num") for cell in ("[1]", "{}")),
        *(
            (0, column, cell, f"{column} is no JSON")
            for column in ("flag_gamma", "whole", "diverged", "made", "seed", "total", "last_step")
            for cell in ("", "x", "1_000", "\N{DEVANAGARI DIGIT TWO}", "[", "1" * 5000)
        ),
        *(
            (0, column, text * 100_000, f"{column} is nested too deeply")
            for column in ("flag_gamma", "whole", "diverged", "made", "seed")
            for text in ("[", '{"x":')
        ),
        *(
            (0, column, cell, f"{column} of run must be a whole number")
            for column in ("seed", "total", "last_step")
            for cell in ("-1", "1.5", "true", "null", '"1"', "1" * 19)
        ),
        (0, "total", "0", "total of run must be a whole number, at least 1"),
        (0, "name", "other", "other has 0 points, not 100"),
        *(
            (1, measure, cell, f"{measure} of run cannot be {float(cell):g}")
            for measure, cells in IMPOSSIBLE.items()
            for cell in (*cells, "1e30", "-1e30", "inf", "-inf", "1e999")
        ),
        *(
            (1, column, cell, f"{column} must be a number, not ")
            for column in ("agent_step", SCORE)
            for cell in ("", " 1", "1_0", "0x1", "1f", "infinity", "\N{DEVANAGARI DIGIT TWO}")
        ),
        *(
            (1, "agent_step", cell, "the agent steps of run do not rise to its 1000")
            for cell in ("-10", "999", "nan", "inf", "-inf", "10.5", "1e308", "-1e308")
        ),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_cell_that_no_report_writes_is_refused(tmp_path, table, column, cell, message):
    tags = [tag for tag in IMPOSSIBLE if "/" in tag]
    measures = {tag: [(10, 0.5)] for tag in (*tags, "charts/episodic_length")}
    tables = tabulate_runs([read_run(make_run(tmp_path / "run", measures=measures))])
    assert column in tables[table][0]
    tables[table][0][column] = cell
    for name, rows in zip((RUNS_CSV, CURVES_CSV), tables, strict=True):
        (tmp_path / name).write_bytes(format_csv(rows))
    with pytest.raises(UsageError, match=message.replace("+", r"\+")) as refused:
        read_tables(tmp_path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("name", [RUNS_CSV, CURVES_CSV])
@pytest.mark.parametrize("change", [lambda line: f"{line},5", lambda line: line.rpartition(",")[0]])
def test_a_row_with_a_cell_more_or_fewer_is_refused(tmp_path, name, change):
    """Also where the last column is a text, of which None is no value."""
    for table, rows in zip(
        (RUNS_CSV, CURVES_CSV), tabulate_runs([read_run(make_run(tmp_path / "run"))]), strict=True
    ):
        rows = [dict(reversed(row.items())) for row in rows]
        (tmp_path / table).write_bytes(format_csv(rows))
    *lines, last = (tmp_path / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join([*lines, change(last)]))
    with pytest.raises(UsageError, match=f"{name} has a row with more or fewer cells"):
        read_tables(tmp_path)


def test_texts_of_flags_and_of_where_a_run_was_made_are_escaped_in_tables_too(
    tmp_path, monkeypatch
):
    """JSON can hold halves of characters and what steers a terminal, in letters that are plain."""
    monkeypatch.chdir(tmp_path)
    odd = {"processor": "a\ud800", "versions": {"torch": "\x1b[2J"}}
    make_run(tmp_path / "run", flags={"gamma": "\udfff\u202e"}, **odd)
    assert main(Args(("run",), out="one", figures=False)) == 0
    escaped = (tmp_path / "one" / RUNS_CSV).read_text()
    raw = re.sub(r"\\\\(u[0-9a-f]{4}|x1b)", lambda m: "\\" + m[1].replace("x", "u00"), escaped)
    assert raw != escaped
    (tmp_path / "one" / RUNS_CSV).write_text(raw)
    assert main(Args(("one",), out="two", figures=False)) == 0
    assert (tmp_path / "two" / RUNS_CSV).read_text() == escaped


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38, -3e38, 1.5, -0.5])
@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_a_report_writes_can_be_read_again(tmp_path, monkeypatch, value, ended):
    """Whatever an event file holds, of a run that counts and of one that does not."""
    monkeypatch.chdir(tmp_path)
    tags = [tag for tag in IMPOSSIBLE if "/" in tag]
    tags += ["charts/episodic_length", "charts/SPS"]
    for tag in tags:
        measures = {tag: [(100, 0.5), (500, value)]}
        make_run(tmp_path / "runs" / tag.replace("/", "-"), measures=measures, flags={"odd": tag})
    games = [(100, 1.0), (500, value), *([(1000, 2.0)] if ended else [])]
    make_run(tmp_path / "runs" / "score", games, flags={"odd": "score"})
    for source, out in (("runs", "one"), ("one", "two")):
        assert main(Args((source,), out=out, figures=False)) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


ODD = (None, 3, 2.5, True, "text", [1], ["x"], {"x": 1}, {}, [], [None], [[]], [{"x": []}])


@pytest.mark.parametrize(
    "key",
    [
        *("algorithm", "game", "variant", "started", "flags", "device", "processor", "versions"),
        *("git_commit", "git_has_changes", "num_parameters", "torch_threads", "resumed"),
        *("flags seed", "flags total_timesteps", "flags gamma", "flags env_id"),
        *("resumed step", "resumed device", "resumed versions", "resumed git_commit"),
    ],
)
def test_an_entry_of_another_kind_is_named_or_unknown(tmp_path, monkeypatch, key):
    """In config.json, whatever is there: a report, or one line with the file and the entry."""
    monkeypatch.chdir(tmp_path)
    for i, value in enumerate(ODD):
        folder = make_run(tmp_path / f"run{i}", resumed=[{"step": 0}])
        config = json.loads((folder / "config.json").read_text())
        owner, _, name = key.rpartition(" ")
        place = {"": config, "flags": config["flags"], "resumed": config["resumed"][0]}[owner]
        place[name] = value
        (folder / "config.json").write_text(json.dumps(config))
        problem = None
        try:
            read_run(folder)
        except UsageError as error:
            problem = str(error)
        if problem is None:
            for source, out in ((folder, "one"), (tmp_path / "one", "two")):
                assert main(Args((str(source),), out=out, figures=False)) == 0
                shutil.rmtree(tmp_path / "two", ignore_errors=True)
            shutil.rmtree(tmp_path / "one")
        else:
            assert (
                re.search(rf"run{i}/config.json is damaged \(.*{name}", problem) or name == "flags"
            )
            assert "\n" not in problem


@pytest.mark.parametrize("depth", [100, 900, 100_000])
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"x": ', "}")])
@pytest.mark.parametrize("where", ["extra", "flags", "resumed", "diverged.json"])
def test_what_is_nested_is_read_or_refused_in_a_line(tmp_path, monkeypatch, depth, brackets, where):
    monkeypatch.chdir(tmp_path)
    odd = {"flags": {"odd": 5}, "resumed": [{"step": 0, "odd": 5}], "extra": {"odd": 5}}
    folder = make_run(tmp_path / "run", **{name: odd[name] for name in odd if name == where})
    file = folder / ("diverged.json" if where == "diverged.json" else "config.json")
    if where == "diverged.json":
        file.write_text('{"step": 300, "odd": 5}')
    before, found, after = file.read_text().partition('"odd": 5')
    nested = brackets[0] * depth + "0" + brackets[1] * depth
    file.write_text(f"{before}{found[:-1]}{nested}{after}")
    if depth > 100 or where == "flags":
        with pytest.raises(UsageError, match=rf"run/{file.name} is damaged") as refused:
            read_run(folder)
        assert "\n" not in str(refused.value)
    else:
        for source, out in (("run", "one"), ("one", "two")):
            assert main(Args((source,), out=out, figures=False)) == 0


def test_curves_of_a_run_that_is_not_listed_are_refused(tmp_path):
    runs = [read_run(make_run(tmp_path / name)) for name in ("a", "b")]
    listed, points = tabulate_runs(runs)
    (tmp_path / RUNS_CSV).write_bytes(format_csv(listed[:1]))
    (tmp_path / CURVES_CSV).write_bytes(format_csv(points))
    with pytest.raises(UsageError, match=r"curves.csv has a run that runs.csv lacks, b"):
        read_tables(tmp_path)


def test_the_logs_of_a_sweep_may_stand_among_its_runs(tmp_path):
    """As in `runs/*`; alone they are refused."""
    run, logs = make_run(tmp_path / "run"), tmp_path / "logs"
    logs.mkdir()
    assert find_runs([str(logs), str(run)]) == [run]
    with pytest.raises(UsageError, match="no run folder there"):
        find_runs([str(logs)])
    with pytest.raises(UsageError, match="logs alone are no runs"):
        find_runs([str(logs), str(logs)])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no run folder there"):
        find_runs([str(tmp_path)])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"algorithm": "dqn"')
    with pytest.raises(UsageError, match=r"broken/config.json is damaged .*leave that run out"):
        read_run(tmp_path / "broken")
    good = make_run(tmp_path / "good")
    (good / "diverged.json").write_text("")
    with pytest.raises(UsageError, match=r"good/diverged.json is damaged"):
        read_run(good)
    assert find_runs([str(tmp_path), str(good)]) == [tmp_path / "broken", good]
    (tmp_path / RUNS_CSV).write_text("name\nx\n")
    (tmp_path / CURVES_CSV).write_text("name,agent_step\n")
    with pytest.raises(UsageError, match="its tables of runs cannot be read"):
        read_tables(tmp_path)
