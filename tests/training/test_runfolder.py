"""Run folders: their names."""

from dqn_atari import Args, QNetwork
from lab.training.runfolder import describe, fresh_folder


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    args = Args(runs_dir=str(tmp_path / "a" / "runs"))
    config = describe(args, "dqn", QNetwork(4, args))
    config["started"] = "2026-01-01T00:00:00+00:00"
    names = []
    for _ in range(3):
        with fresh_folder(args, config) as folder:
            names.append(folder.name)
    stem = "Breakout__dqn__tanh-hr__s1__20260101-000000"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
