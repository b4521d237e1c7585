"""The newest observations of a run."""

import torch

from lab.training.frames import RecentObs, empty_obs, sample_steps
from pqn_atari import Rollout


def test_recent_observations_are_the_newest_in_order():
    obs = torch.arange(7 * 3, dtype=torch.uint8).view(7, 3, 1, 1, 1).expand(-1, -1, 4, 84, 84)
    for count in (4, 6, 21):  # more, as much and less than what comes at once
        recent = RecentObs(count, torch.device("cpu"))
        assert recent.newest(count) is None
        for part in (obs[:2], obs[2:4], obs[4:5], obs[5:]):
            recent.add(part)
        assert recent.newest(count)[:, 0, 0, 0].tolist() == list(range(21 - count, 21))


def test_sampled_steps_are_whole_and_the_same_at_every_call():
    """Each once, from all games and times, with all its fields; all of them if there are few."""
    numbers = torch.arange(6 * 5).view(6, 5)
    obs = empty_obs(6, 5)
    obs[:] = numbers.view(6, 5, 1, 1, 1)
    rollout = Rollout(obs, *(numbers + i for i in range(5)))
    few, again = sample_steps(rollout, 12), sample_steps(rollout, 12)
    chosen = few.actions.tolist()
    assert len(set(chosen)) == 12
    assert len({number // 5 for number in chosen}) > 3
    assert len({number % 5 for number in chosen}) == 5
    assert again.actions.tolist() == chosen
    assert few.obs[:, 3, 7, 80].tolist() == chosen
    assert few.returns.tolist() == [number + 4 for number in chosen]
    assert sorted(sample_steps(rollout, 100).actions.tolist()) == list(range(30))
