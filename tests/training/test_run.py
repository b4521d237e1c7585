"""Run: the agent step, what is due, what is logged and measured, and a folder or none."""

import functools
import shutil
import signal
import threading

import pytest
import torch
from algorithms import SHORT, parse
from interruptions import differences

import pqn_atari
from dqn_atari import Args, QNetwork
from lab.common.cli import UsageError
from lab.training import board
from lab.training import measure as measuring
from lab.training import run as training
from lab.training.frames import RecentObs
from lab.training.progress import Progress
from lab.training.run import Run


@pytest.fixture
def make_run(tmp_path):
    def make(**flags):
        args = Args(runs_dir=str(tmp_path / "a" / "runs"), **flags)
        network = QNetwork(4, Args(latent_dim=8, branches=args.branches, apply_to=args.apply_to))
        return Run(args, "dqn", network, ("td_loss",))

    return make


def test_steps_due_are_those_of_a_loop_over_single_steps(make_run):
    """What a vector step brings is what the original loop of one game would have done."""
    for num_envs in range(1, 13):
        with make_run(num_envs=num_envs) as run:
            for _ in range(3):
                since = run.step
                run.count_step()
                steps = range(since + 1, run.step + 1)
                for every in range(1, 6):
                    for after in (0, 7, 100):
                        expected = sum(t > after and t % every == 0 for t in steps)
                        assert run.times_due(every, after) == expected


def test_a_run_that_is_asked_to_stop_says_until_when_it_goes_on(make_run, capsys, monkeypatch):
    """At once, and for a rollout that takes long every half minute; then it goes on no more."""
    now = [100.0]
    own = functools.partial(Progress, clock=lambda: now[0])
    monkeypatch.setattr(training, "Progress", own)
    with make_run() as run:
        assert run.goes_on()
        now[0] += 95.0
        assert run.goes_on()
        signal.raise_signal(signal.SIGTERM)
        for _ in range(9):
            now[0] += 10.0
            run.count_step()
        assert not run.goes_on()
    said = capsys.readouterr().err.strip().split("\n")
    assert "SIGTERM: stopping before the next rollout, in about 95 s" in said[0]
    expected = [f"stopping: {step} agent steps, in the last rollout" for step in (16, 32)]
    assert said[1:] == expected


def mean_output(recent):
    """A loss for networks that are measured, over some of the newest observations."""
    return lambda network: network(recent.newest(512)[:64]).mean()


def test_scores_are_means_over_the_last_100_games(make_run, events):
    with make_run() as run:
        for game in range(150):
            episode = {"_r": [False, True], "r": [99.0, float(game)], "l": [0, 10]}
            run.count_step()
            run.log_episodes({"episode": episode})
        run.log({})
    (score,) = events(run.folder).Scalars("charts/mean_return_100")
    assert score.value == sum(range(50, 150)) / 100


@pytest.mark.parametrize("apply_to", ["last", "all"])
@pytest.mark.parametrize("branches", [1, 3])
def test_what_is_measured_of_a_network(branches, apply_to, make_run, events):
    recent = RecentObs(512, torch.device("cpu"))
    recent.add(torch.randint(0, 255, (1, 512, 4, 84, 84), dtype=torch.uint8))
    flags = {"metrics_samples": 512, "metrics_every": 1, "num_envs": 512}
    with make_run(apply_to=apply_to, branches=branches, **flags) as run:
        run.count_step()
        run.measure(recent, run.network.head, mean_output(recent))
    tags = set(events(run.folder).Tags()["scalars"])
    assert "representation/effective_rank" in tags
    for i in range(4):
        assert (f"representation/branch_{i}/effective_rank" in tags) == (1 < branches > i)
        assert (f"representation/conv_{i}/dead_kde" in tags) == (apply_to == "all" and i > 0)


@pytest.mark.parametrize("learning_starts", [256, 512])
def test_what_is_dead_before_anything_was_learnt_is_said_to_be_untrained(
    learning_starts, make_run, capsys
):
    recent = RecentObs(512, torch.device("cpu"))
    recent.add(torch.randint(0, 255, (1, 512, 4, 84, 84), dtype=torch.uint8))
    flags = {"metrics_samples": 512, "metrics_every": 1, "num_envs": 512}
    with make_run(learning_starts=learning_starts, total_timesteps=512, **flags) as run:
        run.count_step()
        run.measure(recent, run.network.head, mean_output(recent))
        run.log({})
    expected = "  untrained: dead " if learning_starts == 512 else "/s  ETA 0:00:00  dead "
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_that_is_ended_at_once_says_how_to_go_on(saved, make_run, capsys):
    def leave(run):
        with run:
            if saved:
                run.checkpoint({"network": run.network}, now=True)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    run = make_run()
    with pytest.raises(KeyboardInterrupt):
        leave(run)
    said = f"ended at once; to go on: python dqn_atari.py --resume {run.folder}"
    assert (said in capsys.readouterr().err) == saved


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_filled_leaves_nothing(error, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(board, "Board", full)
    expected = UsageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is UsageError else None):
        Run(Args(runs_dir=str(tmp_path / "a" / "runs")), "dqn", QNetwork(4, Args()), ())
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_of_the_weights_is_told_before_a_run_goes_on(tmp_path):
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(UsageError, match=r"model\.pt is a folder and in the way: remove it"):
        Run(Args(resume=str(tmp_path)), "dqn", QNetwork(4, Args()), ())
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.fixture
def aside(monkeypatch):
    """Layers are measured in a thread, as on a GPU."""

    def enter(run):
        run._measurer.aside = True
        return run

    monkeypatch.setattr(Run, "__enter__", enter)


def test_a_run_goes_on_while_its_layer_is_measured(make_run, aside, events, monkeypatch):
    """The values are those of the network and the step at which they were asked for."""
    recent = RecentObs(512, torch.device("cpu"))
    recent.add(torch.randint(0, 255, (1, 512, 4, 84, 84), dtype=torch.uint8))
    may_end, measure = threading.Event(), measuring.measure

    def slow(*given):
        assert may_end.wait(60)
        return measure(*given)

    flags = {"metrics_samples": 512, "metrics_every": 1, "num_envs": 512}
    with make_run(**flags) as run:
        obs, head = recent.newest(512), run.network.head
        layers = measuring.hidden_layers(run.network, obs)
        pairs = measuring.loss_gradients(run.network, mean_output(recent))
        weights = {name: measuring.measure_gradient(*pair) for name, pair in pairs.items()}
        snapshot = measuring.Snapshot(0, layers, weights, head, {})
        expected = measure(snapshot, "dqn", False).values
        monkeypatch.setattr(measuring, "measure", slow)
        run.count_step()
        run.measure(recent, run.network.head, mean_output(recent))
        with torch.no_grad():
            for weight in run.network.parameters():
                weight.zero_()
        run.count_step()
        run.log({"losses/td_loss": 1.0})
        assert not run._measurer._under_way.done()
        may_end.set()
        run.checkpoint({"network": run.network}, now=True)
        assert run._measurer._under_way is None
    log = events(run.folder)
    for tag, value in expected.items():
        (point,) = log.Scalars(tag)
        assert (point.step, point.value) == (512, pytest.approx(value, rel=1e-6))


def test_a_run_killed_while_it_measures_goes_on_to_the_same_curves(aside, tmp_path, monkeypatch):
    """Its folder as it lies on the disk while a measurement is under way."""
    flags = (*SHORT["pqn"], "--latent-dim", 32, "--metrics-every", 128, "--checkpoint-every", 0)
    flags += ("--total-timesteps", 768, "--device", "cpu")
    assert pqn_atari.main(parse("pqn", *flags, "--runs-dir", tmp_path / "whole")) == 0
    (whole,) = (tmp_path / "whole").iterdir()

    killed, measure, take = tmp_path / "killed", Run.measure, Run.write_measurement

    def snapshot(run, *given):
        measure(run, *given)
        if run._measurer._under_way is not None and run.step >= 512 and not killed.exists():
            run._logger.board.flush()
            shutil.copytree(run.folder, killed)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "measure", snapshot)
        # Nothing is taken before it has to be: as if each measurement took long.
        patch.setattr(
            Run, "write_measurement", lambda run, wait=True: take(run, wait) if wait else None
        )
        assert pqn_atari.main(parse("pqn", *flags, "--runs-dir", tmp_path / "other")) == 0
    assert killed.exists()
    assert pqn_atari.main(parse("pqn", *flags, "--resume", killed)) == 0
    assert differences(whole, killed) == []
