"""Files of a result, written whole or not at all."""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from lab.common.cli import UsageError, explain_unwritable, require_writable
from lab.common.limits import free_host_memory

# Time, host and process, as TensorBoard's writers name them: a copy called .bak is none.
EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.[^/]+\.\d+")


class ChecksumFile:
    """A file to write to that counts the CRC-32 of what it gets."""

    def __init__(self, file):
        self.file, self.checksum, self.problem = file, 0, None

    def write(self, data) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        try:
            self.file.write(data)
        except BaseException as error:  # an OSError, or a second Ctrl-C
            self.problem = error  # torch.save hides it
            raise
        return len(data)

    def flush(self):
        self.file.flush()


def sync(descriptor: int):
    """Put an open file or folder on the disk, as far as its file system knows how to.

    Raises OSError if that fails.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Not every file system, of a network or a container, syncs folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def sync_folder(folder: Path):
    """Put the names in a folder on the disk, too; see `sync`."""
    with contextlib.suppress(PermissionError):  # it can be written to, and not be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> IO[bytes]:
    """Open a file for bytes, to read unless the flags of `os.open` say otherwise.

    Raise OSError for what is no regular file: a pipe would be waited for, a device has no end.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "r+b")


def read_regular(path: Path) -> bytes:
    """Read a file whole. Raise OSError for one that memory does not hold, or that is none."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > free_host_memory() / 2:
            raise OSError(errno.EFBIG, "it is larger than half of the free memory", str(path))
        return file.read()


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object. Raise OSError, or ValueError if it is damaged."""
    content = read_regular(path)
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no object")
    return value


@contextlib.contextmanager
def atomic_write(path: Path):
    """Open a `ChecksumFile` that takes its place at `path` if the block ends well.

    Then it is on the disk; if the block raises, what was at `path` before stays. Its temporary name
    is drawn and must be free: nothing is written over, nor through a link or into a pipe.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    file = temporary.open("xb")
    summed = ChecksumFile(file)
    try:
        with file:
            yield summed
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and summed.problem is not None:
            raise summed.problem from None
        raise


def write_json(path: Path, value: dict):
    """Write a JSON file whole, or leave it as it was. Raise OSError if it cannot be written."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def check_targets(folder: Path, names: Iterable[str], flag: str):
    """Raise UsageError if these names cannot be written into a folder, before any work.

    Where nothing can be written, or a folder is in the way of a file or the reverse. `names` of
    folders end with a slash; `flag` is the one that named the folder.
    """
    require_writable(folder, flag)
    for name in names:
        target = folder / name
        try:
            is_folder = stat.S_ISDIR(target.stat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as problem:
            raise explain_unwritable(folder, flag, problem) from None
        if is_folder != name.endswith("/"):
            kind = "folder" if is_folder else "file"
            raise UsageError(
                f"{target} is a {kind} and in the way: remove it, or choose another {flag}"
            )


def check_stem(stem: Path) -> tuple[str, str]:
    """Return the names of STEM.csv and STEM.png. Raise UsageError if they cannot be written."""
    if stem.name in ("", ".."):
        raise UsageError(f"{stem} is a folder: add a name, such as {stem / 'curves'}")
    if not stem.parent.is_dir():
        raise UsageError(f"{stem}: there is no folder {stem.parent}; make it first")
    names = f"{stem.name}.csv", f"{stem.name}.png"
    check_targets(stem.parent, names, "STEM")
    return names


@contextlib.contextmanager
def replace_files(folder: Path, flag: str, outdated: Iterable[str] = ()):
    """Give a new folder, whose files take their places in `folder` if the block ends well.

    TensorBoard's files, whose names hold the time, replace those beside them. Files that are
    `outdated` and not written anew are removed. If the block does not end well, nothing there has
    changed. Raise UsageError if something cannot be written; `flag` is the one that named the
    folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as name:
            staged = Path(name)
            yield staged
            written = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
            check_targets(folder, {*outdated, *map(str, written)}, flag)
            for path in written:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if EVENT_FILE.fullmatch(path.name):
                    for old in target.parent.iterdir():
                        if EVENT_FILE.fullmatch(old.name):
                            old.unlink()
                (staged / path).replace(target)
            for old in {*outdated} - {*map(str, written)}:
                (folder / old).unlink(missing_ok=True)
    except OSError as problem:
        raise explain_unwritable(folder, flag, problem) from None


def write_files(folder: Path, contents: dict[str, bytes], flag: str, outdated: Iterable[str] = ()):
    """Write files by name, each whole, and none if one cannot be written; see `replace_files`."""
    with replace_files(folder, flag, outdated) as staged:
        for name, content in contents.items():
            (staged / name).write_bytes(content)
