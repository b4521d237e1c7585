"""Checkpoints: the whole state of a run on disk, so that a whole one is there at every moment.

`checkpoint.pt` is the newest, `previous.pt` the one before. Each is a torch archive of tensors and
plain values, followed by a line with its format, agent step and checksum. The replay memory, which
is large and of which little changes, lies beside in `replay/`, in segments that are never
overwritten: a checkpoint names those that belong to it. Nothing is deleted but what a checkpoint
has named, and what has the run's own mark in its name.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lab.common.cli import UsageError, describe_os
from lab.common.files import atomic_write, open_regular, read_regular, sync_folder
from lab.training.form import check_content, require_plain

# 4: all draws are made on the host, also where a GPU trains, so that a generator's state is one of
# the host. 3: a run stops between two rollouts, so that a checkpoint holds no part of one. A run of
# an older format is refused, with the commit to resume it with.
FORMAT = 4
FOOTER = re.compile(rb"(\nhadamard-checkpoint +(\d+) +(\d+) ([0-9a-f]{8}) )([0-9a-f]{8})\n")
FOOTER_BYTES = 59
NEWEST, PREVIOUS, DAMAGED = "checkpoint.pt", "previous.pt", "damaged.pt"


class Footer(NamedTuple):
    """The last line of a checkpoint file; it ends with a checksum of its own."""

    format: int
    step: int
    checksum: int  # of what stands before the line

    def __bytes__(self) -> bytes:
        line = f"\nhadamard-checkpoint {self.format:4d} {self.step:14d} {self.checksum:08x} "
        return f"{line}{zlib.crc32(line.encode()):08x}\n".encode()


class Damaged(Exception):
    """A file that is not what was written: torn, cut off, or with other bits."""


def to_plain(value):
    """Return a copy in which numpy arrays are tensors, which loads without running any code."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def find_memory(parts: dict):
    """Return the part whose content is kept in segments of its own, the replay memory, or None."""
    return next((part for part in parts.values() if hasattr(part, "segment")), None)


def capture(parts: dict) -> dict:
    """Return the state of each part: a module, an optimizer, a random generator, or the like.

    Nothing is copied: it is to be written before anything goes on.
    """
    return {name: _state(part) for name, part in parts.items()}


def _state(part):
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    return part.state_dict()


def restore(parts: dict, saved: dict):
    """Bring the parts back to their states."""
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            part.set_state(saved[name])
        elif isinstance(part, np.random.Generator):
            part.bit_generator.state = saved[name]
        else:
            part.load_state_dict(saved[name])


def iterate_tensors(value, name: str = ""):
    """Yield (name, tensor) in a nest of dicts and lists: "optimizer.state.0.exp_avg"."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from iterate_tensors(item, f"{name}.{key}" if name else str(key))


def read_footer(path: Path) -> Footer:
    """Read the last line of a checkpoint. Raise Damaged if it is not there."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - FOOTER_BYTES))
        match = FOOTER.fullmatch(file.read())
    if match is None or int(match[5], 16) != zlib.crc32(match[1]):
        raise Damaged(f"{path.name} is cut off or damaged at its end")
    return Footer(int(match[2]), int(match[3]), int(match[4], 16))


def read_newest_footer(folder: Path) -> Footer | None:
    """Return the footer of the newest checkpoint that has one, or None."""
    for name in (NEWEST, PREVIOUS):
        with contextlib.suppress(OSError, Damaged):
            return read_footer(folder / name)
    return None


def describe_version(footer: Footer) -> str:
    """Describe a checkpoint whose format is not the one of this version."""
    age = "a newer" if footer.format > FORMAT else "an older"
    return f"written by {age} version (format {footer.format}, here {FORMAT})"


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is a checkpoint, whole or not."""
    return any((folder / name).exists() for name in (NEWEST, PREVIOUS))


def _load_plain(path: Path, content: bytes):
    """Load what is in a file. Raise UsageError unless it is tensors and plain values."""
    try:
        require_plain(content)
        with warnings.catch_warnings(action="ignore"):  # torch says it in many lines
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a crafted file can make them raise anything
        raise UsageError(
            f"{path} is cut off, or holds more than tensors and numbers, which could run code: it "
            "is not loaded"
        ) from None


def read_weights(path: Path) -> dict:
    """Read the weights in a model.pt, by name, in fp32, also where the file holds fp16.

    Raises UsageError where it cannot be read, and for anything but tensors and plain values.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {describe_os(error)}") from None
    weights = _load_plain(path, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.testzip() is not None:  # torch itself does not look
            raise UsageError(f"{path} is damaged: it is not loaded")
    if not isinstance(weights, dict):
        raise UsageError(f"{path} holds no weights by name: it is not loaded")
    for name, tensor in iterate_tensors(weights):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UsageError(f"{path}: {name} is larger than what is stored: it is not loaded")
    return {
        name: of.float() if isinstance(of, torch.Tensor) and of.dtype == torch.half else of
        for name, of in weights.items()
    }


def read_state(path: Path) -> dict:
    """Read the state in a checkpoint file.

    Raises Damaged, and UsageError for a format other than that of this version and for anything
    but tensors and plain values, which could run code when loaded.
    """
    footer = read_footer(path)
    if footer.format != FORMAT:
        raise UsageError(f"{path} was {describe_version(footer)}: resume it with that one")
    content = read_regular(path)[:-FOOTER_BYTES]
    if zlib.crc32(content) != footer.checksum:
        raise Damaged(f"{path.name} does not have its checksum")
    saved = _load_plain(path, content)
    try:
        check_content(saved)
    except ValueError as error:
        raise UsageError(f"{path} is no checkpoint of a run ({error}): it is not loaded") from None
    return saved


def find_newest_whole(
    folder: Path, flags: dict, use: Callable[[dict], None] = lambda content: None
) -> tuple[Path, dict, list[str]]:
    """Find the newest checkpoint that is whole and of which `use` can read the rest.

    Returns its path, its content, and what is damaged of a newer one; changes nothing. Raises
    UsageError if there is none, or if it belongs to other flags.
    """
    problems = []
    for path in (folder / NEWEST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            content = read_state(path)
            require_flags(folder, content, flags)
            use(content)
        except Damaged as problem:
            problems.append(str(problem))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {describe_os(error)}") from None
        else:
            return path, content, problems
    damage = "; ".join(problems) or "there is none"
    raise UsageError(f"no whole checkpoint in {folder}: {damage}; start the run anew")


def require_flags(folder: Path, content: dict, flags: dict):
    """Raise UsageError if the run was saved with other flags: config.json is not what it was.

    A flag that came into the scripts since then is not in its checkpoint.
    """
    saved = content.get("flags", {})
    for name in flags.keys() & saved.keys():
        if saved[name] != flags[name]:
            raise UsageError(
                f"{folder}/config.json has {name} {flags[name]!r}, its checkpoint "
                f"{saved[name]!r}: put it back"
            )


class Checkpoints:
    """The checkpoints of one run folder.

    `memory`, the replay memory, has the segments that changed in `dirty`, a set of indices, and
    `segment(index)`, its tensors in that segment, whose first axes are slices of the whole. `flags`
    are those that decide what the run computes: a checkpoint belongs to them.
    """

    def __init__(self, folder: Path, flags: dict | None = None):
        self.folder, self.replay, self.flags = folder, folder / "replay", flags or {}
        self.number = 0
        self.mark = secrets.token_hex(4)  # in the names of all files of this run's checkpoints
        self.step: int | None = None  # of the newest one
        self.segments: dict[int, list] = {}  # index -> [file name, checksum] in the newest one
        self.named: set[str] = set()  # segments that were named so far, and may be there

    def save(self, step: int, state: dict, memory=None):
        """Write a checkpoint; the one before is kept as previous.pt.

        Raises OSError, and then everything is as it was before.
        """
        self.number += 1  # also if it fails: a name is never used twice
        segments, new = dict(self.segments), []
        try:
            if memory is not None:
                self._save_segments(memory, segments, new)
            content = {"number": self.number, "mark": self.mark, "flags": self.flags}
            content |= {"segments": segments, "state": to_plain(state)}
            fresh = self.folder / f"fresh-{self.mark}.pt"
            with atomic_write(fresh) as file:
                torch.save(content, file)
                file.file.write(bytes(Footer(FORMAT, step, file.checksum)))
        except BaseException:
            for path in new:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        # Killed between these two, previous.pt is the newest, and whole.
        if (self.folder / NEWEST).exists():
            os.replace(self.folder / NEWEST, self.folder / PREVIOUS)
        os.replace(fresh, self.folder / NEWEST)
        needed = {name for name, _ in (*segments.values(), *self.segments.values())}
        self.segments, self.step = segments, step
        sync_folder(self.folder)
        if memory is not None:
            memory.dirty.clear()
        self._remove_unneeded(needed)

    def _remove_unneeded(self, needed: set[str]):
        """Remove segments that no checkpoint needs, and what a save that was killed has left."""
        unneeded = [self.replay / name for name in self.named - needed]
        for folder in (self.folder, self.replay):
            unneeded += folder.glob(f"*-{self.mark}.*")
        self.named = needed
        for path in unneeded:
            if path.name not in needed and not self.replay.is_symlink():
                with contextlib.suppress(OSError):
                    path.unlink()

    def _save_segments(self, memory, segments: dict[int, list], new: list[Path]):
        """Write changed segments; add their names and checksums to `segments`, paths to `new`.

        Also those that are not there any more as they were written.
        """
        self._require_own_replay()
        self.replay.mkdir(exist_ok=True)
        lost = {i for i, (name, _) in segments.items() if not self._is_there(name, memory, i)}
        for index in sorted(memory.dirty | lost):
            path = self.replay / f"{index:05d}-{self.number}-{self.mark}.bin"
            new.append(path)
            with atomic_write(path) as file:
                for part in memory.segment(index):
                    file.write(memoryview(part.cpu().numpy()).cast("B"))
            segments[index] = [path.name, file.checksum]
        if new:
            sync_folder(self.replay)

    def _is_there(self, name: str, memory, index: int) -> bool:
        """Return whether a segment has a file of its size; its content is not read."""
        with contextlib.suppress(OSError):
            size = sum(part.nbytes for part in memory.segment(index))
            return (self.replay / name).stat().st_size == size
        return False

    def _require_own_replay(self):
        """Raise OSError if replay/ is a link: what it leads to may belong to another run."""
        if self.replay.is_symlink():
            raise OSError(
                errno.ELOOP,
                "replay/ is a link, and its folder may not be the run's own: move the folder here, "
                "or link the whole run folder",
                str(self.replay),
            )

    def load(self, memory=None) -> tuple[dict, list[str]]:
        """Load the newest whole state; return it and what was damaged of a newer one.

        The replay memory is filled into `memory`. A damaged newest checkpoint is set aside as
        damaged.pt. Raises UsageError if none is whole.
        """

        def fill(content: dict):
            self._load_segments(content["segments"], memory)

        path, content, problems = find_newest_whole(self.folder, self.flags, fill)
        if problems:  # else the next checkpoint would take the place of the whole one
            os.replace(self.folder / NEWEST, self.folder / DAMAGED)
        self.number, self.segments = content["number"], content["segments"]
        self.mark = content.get("mark", self.mark)
        self.named = {name for name, _ in self.segments.values()}
        if "mark" not in content:  # an older one, whose segments are known by name alone
            with contextlib.suppress(OSError, Damaged, UsageError):
                before = read_state(self.folder / PREVIOUS)["segments"]
                self.named |= {name for name, _ in before.values()}
        self.step = read_footer(path).step
        return content["state"], problems

    def _load_segments(self, segments: dict[int, list], memory):
        if segments:
            self._require_own_replay()
        for index, (name, checksum) in segments.items():
            if memory is None or not memory.segment(index)[0].numel():
                raise UsageError(
                    f"{self.folder}/{NEWEST} names a segment {index} of a replay memory that has "
                    "none: it is not loaded"
                )
            if not (self.replay / name).exists():
                raise Damaged(f"replay/{name} is missing")
            with open_regular(self.replay / name) as file:
                actual = 0
                for part in memory.segment(index):
                    target = (
                        part if part.device.type == "cpu" else torch.empty_like(part, device="cpu")
                    )
                    view = memoryview(target.numpy()).cast("B")
                    if file.readinto(view) != len(view):
                        raise Damaged(f"replay/{name} is cut off")
                    actual = zlib.crc32(view, actual)
                    if target is not part:
                        part.copy_(target)
            if actual != checksum:
                raise Damaged(f"replay/{name} does not have its checksum")
        if memory is not None:
            memory.dirty.clear()
