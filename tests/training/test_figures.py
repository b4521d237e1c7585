"""The picture of single neurons: what it shows, and what it marks."""

import numpy as np
import torch

from lab.training.figures import draw_kde


def test_figure_shows_densities_of_values_smaller_than_the_noise():
    """The noise makes them wider than the values: a bell in each panel, and not a solid block."""
    torch.manual_seed(0)
    image = draw_kde({"z": 1e-4 * torch.randn(500, 16)}).astype(int)
    panel = image[60:140, 12:82]  # one of the 16
    filled = (panel[..., 0] > panel[..., 2] + 80).mean(axis=0)  # of each column
    assert filled[len(filled) // 2] > 0.5
    assert filled[5:12].max() < 0.2 > filled[-12:-5].max()


def test_figure_shows_each_layer_and_marks_the_dead():
    torch.manual_seed(0)
    alive = torch.tanh(torch.randn(500, 64))
    image = draw_kde({"z": alive, "branch_0": torch.ones(500, 64)})
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    # One below the other, as wide as TensorBoard shows a picture.
    assert image.shape[1] == 350
    upper, lower = np.array_split(image.astype(int), 2)

    def reddish(part):
        return (part[..., 0] > part[..., 2] + 80).sum()

    assert reddish(lower) > 1000  # constants: dead, framed in red
    assert reddish(upper) == 0
