"""What the demo writes, as files and into TensorBoard."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lab.common import tags
from lab.common.tables import escape_bars, format_csv
from lab.regression.claims import geometric_mean
from lab.regression.fitting import Fits


def write_summary(
    folder: Path, run: str, figures: dict[str, Figure], tables: dict[str, list[dict]]
):
    """Write figures as PNG, tables as CSV, and both into the TensorBoard run `run`."""
    with SummaryWriter(str(folder / "tensorboard" / run)) as writer:
        for name, figure in figures.items():
            canvas = FigureCanvasAgg(figure)
            canvas.print_png(folder / f"{name}.png")
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            writer.add_image(name, pixels, dataformats="HWC")
        for name, rows in tables.items():
            (folder / f"{name}.csv").write_bytes(format_csv(rows))
            lines = ["|".join(rows[0]), "|".join("-" for _ in rows[0])]
            for row in rows:
                lines.append("|".join(escape_bars(str(cell)) for cell in row.values()))
            writer.add_text(name, "\n".join(lines))


def write_curves(folder: Path, all_fits: dict[str, Fits]):
    """Write one TensorBoard run per architecture, so that its charts lie over one another."""
    for name, fits in all_fits.items():
        with SummaryWriter(str(folder / "tensorboard" / name)) as writer:
            losses = fits.mean_losses()
            for step in range(0, len(losses), max(1, len(losses) // 200)):
                writer.add_scalar(f"{tags.LOSSES}mse", losses[step], step)
            for at, step in enumerate(fits.steps):
                writer.add_scalar("fit/mse", geometric_mean(fits.cell(at)["mse"]), step)
                writer.add_scalar(tags.rank(), fits.rank[at].mean(), step)
