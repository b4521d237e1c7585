"""Which runs are compared with which, and what their groups are called."""

from lab.report.groups import group_runs, name_groups, name_letters, name_settings
from lab.report.inputs import read_all
from lab.report.runs import read_run
from report.planted import make_run, make_runs, read_group


def test_runs_with_other_flags_are_other_settings(tmp_path):
    named = {"seed": 5, "env_id": "Pong", "runs_dir": "elsewhere", "device": "cuda"}
    folders = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", flags=named),
        make_run(tmp_path / "c", flags={"gamma": 0.5}),
        make_run(tmp_path / "d", algorithm="dqn", flags={"gamma": 0.9}),
    ]
    runs = [read_run(folder) for folder in folders]
    name_settings(runs)
    assert [run.setting for run in runs] == ["gamma 0.99", "gamma 0.99", "gamma 0.5", ""]


def test_a_tag_is_a_setting_and_runs_from_before_there_were_any_have_none(tmp_path):
    folders = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", flags={"tag": ""}),
        make_run(tmp_path / "c", flags={"tag": "mine"}),
    ]
    runs = [read_run(folder) for folder in folders]
    name_settings(runs)
    assert [run.setting for run in runs] == ["no tag", "no tag", "tag mine"]
    name_settings(runs[:2])
    assert [run.setting for run in runs[:2]] == ["", ""]


def test_settings_are_called_by_letters_and_so_are_their_files(tmp_path):
    """However long they are; also beyond Z. One that no run of counts has a letter, too."""
    name = "a_flag_with_a_very_long_name_that_fills_the_name_of_a_file_by_itself"
    for i in range(28):
        make_run(tmp_path / str(i), flags={name: 1, "zeta": i + 10, f"{name}_{i}": 1})
    make_run(tmp_path / "half", last=10, flags={"zeta": 1})
    make_run(tmp_path / "only", algorithm="dqn")
    runs = read_all((str(tmp_path),))[0]
    groups = group_runs(runs)
    titles = [group.title for group in groups]
    assert titles[0] == "DQN"
    assert len(set(titles)) == len(set(name_groups(groups))) == 29
    assert name_groups(groups) == ["dqn", *(f"pqn-{group.letter.lower()}" for group in groups[1:])]
    assert sorted(letter for letter in name_letters(runs).values() if len(letter) == 2) == [
        "AA",
        "AB",
        "AC",
    ]
    for group in groups:
        assert name_letters(runs)[group.algorithm, group.setting] == group.letter


def test_algorithms_of_any_length_have_files_of_their_own(tmp_path):
    """Names that differ beyond what the name of a file holds, and those that are equal in part."""
    long = "long" * 2500
    for i, algorithm in enumerate((long, f"{long}a", f"{long}b", "dqn", "runs", "DQN", "dqn!")):
        make_run(tmp_path / f"run{i}", algorithm=algorithm)
        make_run(tmp_path / f"other{i}", algorithm=algorithm, flags={"gamma": 0.5})
    names = name_groups(group_runs(read_all((str(tmp_path),))[0]))
    assert len(set(names)) == len(names) == 14
    assert max(map(len, names)) < 70
    assert {"dqn-a", "dqn-b", "dqn-a-2", "dqn-a-3"} <= {*names}


def test_variants_are_in_the_order_of_the_paper_and_others_follow_by_name(tmp_path):
    scores = dict.fromkeys(("silu-hr", "relu-ln", "tanh-hr", "relu"), 1.0)
    make_runs(tmp_path, "dqn", scores, games=("Pong",), seeds=1)
    assert read_group(tmp_path).variants == ["relu", "tanh-hr", "relu-ln", "silu-hr"]
