"""The newest observations of a run, and steps taken out of a rollout."""

import torch

from lab.training.frames import RecentObs, empty_obs, sample_steps, take_steps
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


def test_taken_steps_are_the_rows_in_the_layout_of_the_networks():
    """What minibatches hold equals plain indexing; obs are laid out as the convolutions want."""
    torch.manual_seed(0)
    obs = empty_obs(3, 5)
    obs.copy_(torch.randint(256, (3, 5, 4, 84, 84), dtype=torch.uint8))
    fields = (obs, torch.randint(9, (3, 5)), torch.zeros(3, 5), torch.rand(3, 5) > 0.5)
    rollout = Rollout(*fields, values=torch.randn(3, 5), returns=torch.randn(3, 5))
    steps = Rollout(*(field.flatten(0, 1) for field in rollout))
    index = torch.tensor([14, 0, 7, 7])
    taken = take_steps(steps, index)
    assert isinstance(taken, Rollout)
    for whole, part in zip(steps, taken, strict=True):
        assert torch.equal(part, whole[index])
    assert taken.obs.is_contiguous(memory_format=torch.channels_last)
