"""The newest observations of a run."""

import torch

from lab.training.frames import RecentObs


def test_recent_observations_are_the_newest_in_order():
    obs = torch.arange(7 * 3, dtype=torch.uint8).view(7, 3, 1, 1, 1).expand(-1, -1, 4, 84, 84)
    for count in (4, 6, 21):  # more, as much and less than what comes at once
        recent = RecentObs(count, torch.device("cpu"))
        assert recent.newest(count) is None
        for part in (obs[:2], obs[2:4], obs[4:5], obs[5:]):
            recent.add(part)
        assert recent.newest(count)[:, 0, 0, 0].tolist() == list(range(21 - count, 21))
