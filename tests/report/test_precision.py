"""fp32 against bf16: areas and their interval, from run folders with known curves."""

import csv
import json
import re
import resource

import pytest
from planted import make_run
from scipy import stats

import lab.report.precision as precision_script


@pytest.fixture
def precision(launched):
    """Call it with arguments: (status, what it printed, what it complained)."""

    def call(*arguments):
        done = launched(precision_script, arguments)
        return done.returncode, done.stdout, done.stderr

    return call


def runs_of(folder, precision, ends):
    """Scores that rise evenly to these ends: their mean over 100 points is 0.505 of the end."""
    made = []
    for seed, end in enumerate(ends):
        points = [(step, end * step / 1000) for step in range(10, 1001, 10)]
        flags = {"precision": precision, "seed": seed}
        measures = {"charts/mean_return_100": points}
        name = f"{precision}-{seed}"
        made.append(make_run(folder / name, [], flags=flags, measures=measures, git_commit="abc"))
    return made


def test_areas_and_their_difference(tmp_path, precision):
    fp32, bf16 = [10.0, 12.0, 11.0], [9.0, 13.0, 12.5]
    folders = runs_of(tmp_path, "fp32", fp32) + runs_of(tmp_path, "bf16", bf16)
    status, said, _ = precision("out", *folders)
    assert status == 0
    areas = [[0.505 * end for end in ends] for ends in (bf16, fp32)]
    low, high = stats.ttest_ind(*areas, equal_var=False).confidence_interval()
    difference = sum(areas[0]) / 3 - sum(areas[1]) / 3
    assert f"| {difference:+.2f} ({low:+.2f} to {high:+.2f}) |" in said
    assert "| pqn | 3 and 3 | 5.05 6.06 5.55 |" in said
    assert (tmp_path / "out.png").stat().st_size > 10_000
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 100
    # A table that it wrote counts like the runs in it, which are not counted twice.
    precision("half", *folders[1:5])
    assert precision("again", "half.csv", *folders[2:], folders[0]) == (0, said, "")
    lines = [(tmp_path / name).read_text().splitlines() for name in ("again.csv", "out.csv")]
    assert sorted(lines[0]) == sorted(lines[1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"last": 300, "flags": {"precision": "fp32"}}, "has not finished; finish it first"),
        ({"measures": {}, "flags": {"precision": "fp32"}}, "no game has ended yet"),
        ({"last": 1000, "flags": {"precision": "bf16"}}, "no run of pqn in fp32: it takes two"),
        ({"last": 1000, "flags": {"precision": "fp32"}}, "one run of pqn in fp32: it takes two"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(more, message, tmp_path, precision):
    measures = {"charts/mean_return_100": [(100, 1.0), (more.get("last", 300), 2.0)]}
    folder = make_run(tmp_path / "run", **({"measures": measures, "git_commit": "a"} | more))
    status, _, complaint = precision("out", folder)
    assert status == 2
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def changed(path, change):
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda t: t.splitlines()[0] + "\n", "holds no run, only a header"),
        (lambda t: t + "Breakout,pqn\n", "line 402: Breakout,pqn must be 8 cells"),
        (lambda t: t[:-2] + "much\n", "the seed and the last two numbers"),
        (lambda t: t + t.splitlines()[-1].rpartition(",")[0] + ",nan\n", "line 402: Breakout,pqn"),
        (lambda t: t.rstrip().rpartition("\n")[0] + "\n", "bf16, 1: it must have 100 points"),
        (
            lambda t: t.replace(",fp32,0,", ",fp61,0,"),
            "fp61, 0: its precision must be fp32 or",
        ),
        (lambda t: t.replace(",seed,", ",seeds,", 1), "its first line must be game,algorithm"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(broken, message, tmp_path, precision):
    precision("out", *runs_of(tmp_path, "fp32", [10, 9]), *runs_of(tmp_path, "bf16", [9, 8]))
    changed(tmp_path / "out.csv", broken)
    before = (tmp_path / "out.csv").read_bytes()
    status, _, complaint = precision("out", "out.csv")
    assert (status, complaint.count("\n")) == (2, 1)
    assert "out.csv" in complaint
    assert message in complaint
    assert (tmp_path / "out.csv").read_bytes() == before


@pytest.mark.parametrize(
    "config",
    [
        *("{}", "[]", "{", '{"flags": {}, "git_commit": "a"}'),
        '{"flags": {"seed": 1, "precision": "fp32", "total_timesteps": 1e999}}',
    ],
)
def test_a_folder_that_is_no_run_is_refused(config, tmp_path, precision):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config)
    status, _, complaint = precision("out", "run")
    assert (status, complaint.count("\n")) == (2, 1)
    assert re.search("run is no run folder that can be read|run/config.json is damaged", complaint)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("nowhere/out", "there is no folder nowhere; make it first"),
        ("taken/out", "out.png is a folder and in the way: remove it, or choose another stem"),
        ("taken/" + "long" * 100, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before(stem, message, tmp_path, precision):
    (tmp_path / "taken" / "out.png").mkdir(parents=True)
    status, said, complaint = precision(stem, "nothing.csv")  # not even looked at
    assert (status, said, complaint.count("\n")) == (2, "", 1)
    assert message in complaint
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["out.png"]


def test_a_folder_that_lets_nothing_in_is_told_in_a_line(tmp_path, precision):
    folders = runs_of(tmp_path, "fp32", [10, 9]) + runs_of(tmp_path, "bf16", [9, 8])
    status, _, complaint = precision("/proc/out", *folders)
    assert (status, complaint.count("\n")) == (2, 1)
    assert complaint.startswith("lab.report.precision: error: stem in /proc: ")


def test_table_and_picture_are_replaced_both_or_neither(tmp_path, precision):
    """Where there is room for the smaller one alone."""
    folders = runs_of(tmp_path, "fp32", [10, 9]) + runs_of(tmp_path, "bf16", [9, 8])
    others = runs_of(tmp_path / "o", "fp32", [5, 9]) + runs_of(tmp_path / "o", "bf16", [7, 8])
    paths = [tmp_path / "out.csv", tmp_path / "out.png"]
    precision("out", *folders)
    before = [path.read_bytes() for path in paths]
    room = sum(map(len, before)) // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        status, _, complaint = precision("out", *others)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "File too large" in complaint
    assert [path.read_bytes() for path in paths] == before
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("kept", [0, 5, 900])
@pytest.mark.parametrize("rubbish", [b"", b"rubbish" * 99])
def test_a_damaged_event_file_is_told_in_a_line(kept, rubbish, tmp_path, precision):
    folders = runs_of(tmp_path, "fp32", [10, 9])
    (log,) = folders[1].glob("events.*")
    log.write_bytes(log.read_bytes()[:kept] + rubbish)
    status, _, complaint = precision("out", *folders)
    assert (status, complaint.count("\n")) == (2, 1)
    assert f"{folders[1]}" in complaint
    assert "finish" in complaint


def test_runs_of_unequal_flags_are_not_compared(tmp_path, precision):
    folders = runs_of(tmp_path, "fp32", [10, 9]) + runs_of(tmp_path, "bf16", [9, 8])
    config = json.loads((folders[1] / "config.json").read_text())
    config["flags"]["gamma"] = 0.5
    (folders[1] / "config.json").write_text(json.dumps(config))
    (folders[0] / "config.json").write_text(
        json.dumps(config | {"flags": config["flags"] | {"gamma": 0.9, "seed": 0}})
    )
    status, _, complaint = precision("out", *folders)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "fp32-1 has gamma 0.5 and" in complaint
    assert "fp32-0 0.9: compare runs that differ in seed and precision alone" in complaint


@pytest.mark.parametrize("without", [0, 3])
def test_a_flag_that_a_run_lacks_is_unequal(without, tmp_path, precision):
    folders = runs_of(tmp_path, "fp32", [10, 9]) + runs_of(tmp_path, "bf16", [9, 8])
    config = json.loads((folders[without] / "config.json").read_text())
    del config["flags"]["gamma"]
    (folders[without] / "config.json").write_text(json.dumps(config))
    status, _, complaint = precision("out", *folders)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "has gamma None and" in complaint or "0 None: compare runs" in complaint


def test_uncommitted_changes_show_beside_the_commit(tmp_path, precision):
    folders = runs_of(tmp_path, "fp32", [10, 9]) + runs_of(tmp_path, "bf16", [9, 8])
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps(config | {"git_has_changes": True}))
    assert precision("out", *folders)[0] == 0
    with (tmp_path / "out.csv").open() as file:
        commits = {
            row["seed"]: row["commit"] for row in csv.DictReader(file) if row["precision"] == "fp32"
        }
    assert commits == {"0": "abc+ changes", "1": "abc"}


def test_runs_of_several_games_are_not_averaged(tmp_path, precision):
    folders = runs_of(tmp_path, "fp32", [10, 9]) + runs_of(tmp_path, "bf16", [9, 8])
    precision("out", *folders)
    before = (tmp_path / "out.csv").read_bytes()
    measures = {"charts/mean_return_100": [(1000, 2.0)]}
    flags = {"precision": "fp32"}
    pong = make_run(tmp_path / "p", [], flags=flags, measures=measures, game="Pong", git_commit="a")
    for more, message in (
        (pong, "runs of pqn that differ are not averaged: Breakout, tanh-hr, to 1000 and Pong,"),
        ("nowhere.csv", "nowhere.csv is no table of this script"),
    ):
        status, _, complaint = precision("out", "out.csv", more)
        assert status == 2
        assert message in complaint
        assert complaint.count("\n") == 1
        assert (tmp_path / "out.csv").read_bytes() == before
