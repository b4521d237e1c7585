"""What a comparison leaves behind: pictures, tables and TensorBoard, whole or not at all."""

import contextlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from flags import UsageError
from lab.common.tables import write_csv


def write_summary(
    folder: Path, run: str, figures: dict[str, Figure], tables: dict[str, list[dict]]
):
    """Pictures as PNG, tables as CSV, and both in the TensorBoard run `run`."""
    with SummaryWriter(str(folder / "tensorboard" / run)) as writer:
        for name, figure in figures.items():
            canvas = FigureCanvasAgg(figure)
            canvas.print_png(folder / f"{name}.png")
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            writer.add_image(name, pixels, dataformats="HWC")
        for name, rows in tables.items():
            write_csv(folder / f"{name}.csv", rows)
            # A bar would end a cell of the table.
            lines = [
                "|".join(str(cell).replace("|", "&#124;") for cell in row.values()) for row in rows
            ]
            head = "|".join(rows[0]) + "\n" + "|".join("-" * len(rows[0]))
            writer.add_text(name, head + "\n" + "\n".join(lines))


@contextlib.contextmanager
def unwound_by_signals():
    """SIGTERM and SIGHUP end the block as an exception does: what it has made is taken away.

    Not one that is ignored, as SIGHUP is under nohup.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def made_if_used(folder: Path, flag: str = "--output-dir"):
    """The folder is there in the block, and gone after it if it is new and empty.

    UsageError if it cannot be made; `flag` is the one that named it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise unwritable(folder, flag, problem) from None
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()  # refused unless it is empty


def unwritable(folder: Path, flag: str, problem: OSError) -> UsageError:
    reason = problem.strerror or problem
    return UsageError(f"{flag} {folder}: {reason}; choose a folder one can write to")


@contextlib.contextmanager
def replacing(
    folder: Path,
    names: tuple[str, ...],
    flag: str = "--output-dir",
    outdated: tuple[str, ...] = (),
):
    """A new folder, whose files take their places in `folder` if the block ends well.

    `names` are the files and, with a slash at the end, the folders that will be written. They are
    replaced each at once, and TensorBoard files beside new ones, whose names hold the time; those
    that are `outdated` and not written anew are taken away. If the block does not end well, also by
    SIGTERM or SIGHUP, nothing has changed. UsageError, at the start where it can be known there, if
    something cannot be written; `flag` is the one that named the folder.
    """
    with unwound_by_signals(), made_if_used(folder, flag):
        staged = None
        try:
            staged = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
            for name in names:
                target = folder / name
                if target.exists() and target.is_dir() != name.endswith("/"):
                    kind = "file" if target.is_file() else "folder"
                    raise UsageError(
                        f"{target} is a {kind} and in the way: remove it, or choose another {flag}"
                    )
            yield staged
            written = [path for path in staged.rglob("*") if path.is_file()]
            for new in written:
                target = folder / new.relative_to(staged)
                target.parent.mkdir(parents=True, exist_ok=True)
                if new.name.startswith("events.out.tfevents"):
                    for old in target.parent.glob("events.out.tfevents*"):
                        old.unlink()
                new.replace(target)
            for name in {*outdated} - {str(new.relative_to(staged)) for new in written}:
                if (folder / name).is_file():
                    (folder / name).unlink()
        except OSError as problem:
            raise unwritable(folder, flag, problem) from None
        finally:
            if staged is not None:
                shutil.rmtree(staged, ignore_errors=True)
