"""The figure that a run writes to TensorBoard: densities of single neurons."""

import functools
import sys

import numpy as np
import torch
from torch import Tensor

from lab.common.cli import say
from lab.common.drawing import own_style
from metrics import NOISE_VARIANCE, dead_neurons, kernel_density

NEURONS = 16  # of each layer


def try_draw_kde(layers: dict[str, Tensor]) -> np.ndarray | None:
    """Return the picture of `draw_kde`, or None, with a warning, where it cannot be drawn."""
    try:
        return draw_kde(layers)
    except Exception as error:  # of whatever kind: no picture is worth a run
        warn_once(f"{error}".split("\n")[0] or type(error).__name__)
        return None


@functools.cache
def warn_once(why: str):
    """Say that there is no picture, once for each reason."""
    say(f"warning: no picture of single neurons: {why}; training goes on", sys.stderr)


@own_style()
def draw_kde(layers: dict[str, Tensor]) -> np.ndarray:
    """Draw the densities of 16 fixed neurons of each layer (v1 Fig. 4 and 10).

    layers: title -> (samples, features). Returns RGB uint8 (height, width, 3). One panel per
    neuron, each over the range of its layer and scaled to its own peak, whose height stands in it;
    a dead neuron is framed in red.
    """
    # Not before: what is wrong with matplotlib here is no reason that nothing can be trained.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # One below the other, 350 pixels wide: at this width TensorBoard shows a picture.
    figure = Figure(figsize=(3.5, 3.6 * len(layers)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    rows = figure.subplots(len(layers), squeeze=False)[:, 0]
    for axes, (title, z) in zip(rows, layers.items(), strict=True):
        neurons = torch.linspace(0, z.shape[1] - 1, min(NEURONS, z.shape[1])).long()
        z = z[:, neurons].double().cpu()
        low, high = z.min().item(), z.max().item()
        pad = max(0.05 * (high - low), 4 * NOISE_VARIANCE**0.5)
        low, high = low - pad, high + pad
        # The grid shows the shape, the quantiles find spikes that fall between its points.
        grid = torch.linspace(low, high, 200, dtype=z.dtype).unsqueeze(1).expand(-1, z.shape[1])
        points = torch.cat([grid, z.quantile(torch.linspace(0, 1, 101, dtype=z.dtype), dim=0)])
        points = points.sort(dim=0).values
        density, dead = kernel_density(z, points), dead_neurons(z)
        # All 16 panels in one pair of axes: an axes object each would cost a second per figure.
        for i, neuron in enumerate(neurons.tolist()):
            x0, y0 = i % 4, 3 - i // 4
            x = x0 + 0.05 + 0.9 * (points[:, i].numpy() - low) / (high - low)
            peak = density[:, i].max().item()
            color = "tab:red" if dead[i] else "tab:blue"
            axes.fill_between(
                x, y0 + 0.05, y0 + 0.05 + 0.72 * density[:, i].numpy() / peak, color=color, lw=0
            )
            frame = [x0 + 0.03, x0 + 0.97], [y0 + 0.03, y0 + 0.97]
            axes.plot(
                [frame[0][j] for j in (0, 1, 1, 0, 0)],
                [frame[1][j] for j in (0, 0, 1, 1, 0)],
                color=color if dead[i] else "0.75",
                lw=1.2,
            )
            axes.text(x0 + 0.07, y0 + 0.84, f"{neuron}  peak {peak:.3g}", fontsize=7)
        axes.set_title(f"{title}: values from {low + pad:.2g} to {high - pad:.2g}", fontsize=9)
        axes.set(xlim=(0, 4), ylim=(0, 4))
        axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
