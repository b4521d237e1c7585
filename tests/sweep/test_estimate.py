"""What a dry run says of hours and disk, by runs whose speed and size are known."""

import dataclasses
import json

import pytest

from lab.common import tags
from lab.sweep.estimate import describe_effort, read_example
from lab.training.board import Board
from sweep.test_sweep import plan

FLAGS = ("--total-timesteps", "3600000")


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """A run of planned flags that was as fast as this between these agent steps."""
    monkeypatch.chdir(tmp_path)

    def make(name, run, rates, size, started="2026", **flags):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        own = dataclasses.asdict(run.args) | flags
        config = {"algorithm": run.algorithm, "variant": run.variant, "started": started}
        (folder / "config.json").write_text(json.dumps(config | {"flags": own}))
        board = Board(folder)
        for step, rate in rates:
            board.scalar(tags.SPS, rate, step)
        board.flush()
        with (folder / "large").open("wb") as file:
            file.truncate(size - sum(path.stat().st_size for path in folder.iterdir()))
        return folder

    return make


def test_speed_and_size_of_a_run(make_run, tmp_path):
    """1,000 steps at 100/s, 4,000 at 200/s: 5,000 in 30 s."""
    (run,) = plan(("ppo",), ("relu",), ("Pong",), (1,))
    example = read_example(make_run("a", run, [(1000, 100.0), (5000, 200.0)], 10**7))
    assert (example.step, example.size) == (5000, 10**7)
    assert example.rate == pytest.approx(5000 / 30)
    assert read_example(make_run("b", run, [], 10**6)) is None
    assert read_example(make_run("c", run, [(1000, 0.0)], 10**6)) is None
    assert read_example(tmp_path / "nowhere") is None


def test_hours_are_shared_by_the_runs_at_a_time_and_no_less_than_the_longest(make_run, tmp_path):
    """3.6M steps at 1,000/s are an hour, at 500/s two."""
    runs = plan(("ppo",), ("relu", "tanh"), ("Pong",), (1, 2), *FLAGS)
    make_run("a", runs[0], [(4000, 1000.0)], 10**9, seed=7, env_id="Breakout", tag="x")
    make_run("b", runs[1], [(4000, 500.0)], 2 * 10**9, seed=7, total_timesteps=9)
    for at_once, hours in ((1, 6), (2, 3), (3, 2), (4, 2)):
        assert describe_effort(runs, at_once, tmp_path / "runs").startswith(
            f"about {hours}.0 hours, {at_once} at a time, and 6.00 GB of disk, by 2 runs of such"
        )


def test_the_same_flags_are_better_than_the_same_variant(make_run, tmp_path):
    (run,) = plan(("ppo",), ("relu",), ("Pong",), (1,), *FLAGS)
    make_run("other", run, [(4000, 100.0)], 10**9, seed=7, num_envs=99)
    assert "about 10.0 hours" in describe_effort([run], 1, tmp_path / "runs")
    make_run("same", run, [(4000, 1000.0)], 10**9, seed=8)
    assert "about 1.0 hours" in describe_effort([run], 1, tmp_path / "runs")


def test_what_is_there_of_a_run_is_not_counted_again(make_run, tmp_path):
    """A run that has finished takes nothing; of another kind nothing is known."""
    done, left = plan(("ppo",), ("relu", "tanh"), ("Pong",), (1,), *FLAGS)
    folder = make_run("done", done, [(3600000, 1000.0)], 10**9)
    config = json.loads((folder / "config.json").read_text()) | {"finished": 3600000}
    (folder / "config.json").write_text(json.dumps(config))
    assert describe_effort([done], 1, tmp_path / "runs") == ""
    said = describe_effort([done, left], 1, tmp_path / "runs")
    assert said.startswith("nothing is known of ppo tanh: no such run is in ")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.json").write_text("{")
    assert describe_effort([done, left], 1, tmp_path / "runs") == said
