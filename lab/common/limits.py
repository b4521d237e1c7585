"""What a container or a batch system lets this process have: memory, and cores by its quota.

Control groups say it, in version 2 (one tree) or 1 (a tree for each kind of limit); both may be
there at once. `root` is the folder in which proc and sys lie.
"""

import contextlib
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
VAST = 2**60  # bytes: version 1 says no limit by a number near 2**63


def find_groups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield the folders of this process's group and of those above it, of both versions.

    `controller` is the kind of limit, "memory" or "cpu".
    """
    mounts = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, names, group = line.split(":", 2)
            if names == "":
                folder = mounts
            elif controller in names.split(","):
                folder = mounts / names  # of several controllers, such as cpu,cpuacct
                folder = folder if folder.is_dir() else mounts / controller
            else:
                continue
            # In a container the group's own path may not be there: its limits are then at the top.
            inner = folder / group.strip("/")
            yield from (level for level in (inner, *inner.parents) if level.is_relative_to(folder))


def free_in_groups(root: Path = ROOT) -> float:
    """Return the bytes that the limits on memory leave to this process; inf without one."""
    free = math.inf
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for level in find_groups("memory", root):
        for limit_file, used_file, cache in names:
            with contextlib.suppress(OSError, ValueError, KeyError):  # ValueError: no limit, "max"
                limit = int((level / limit_file).read_text())
                counts = dict(line.split() for line in (level / "memory.stat").open())
                used = int((level / used_file).read_text())
                if limit < VAST:
                    # Page cache counts as used, though the system drops it when memory is short.
                    free = min(free, limit - used + int(counts[cache]))
    return free


def free_host_memory() -> float:
    """Return the bytes of memory that this process can get; inf where the system does not tell."""
    free = math.inf
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        free = int(available.split()[1]) * 1024
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free = min(free, limit - pages * resource.getpagesize())
    return min(free, free_in_groups())


def cores_in_groups(root: Path = ROOT) -> float:
    """Return the cores' worth of time that quotas give this process; inf without one."""
    cores = math.inf
    for level in find_groups("cpu", root):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (level / "cpu.max").read_text().split()
            cores = min(cores, int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota = int((level / "cpu.cfs_quota_us").read_text())
            if quota > 0:  # -1: none
                cores = min(cores, quota / int((level / "cpu.cfs_period_us").read_text()))
    return cores


def count_cores(root: Path = ROOT) -> int:
    """Return the cores that this process may use: of its job on Slurm, or of the machine.

    A quota of 1.5 cores counts as 2.
    """
    with contextlib.suppress(ValueError):  # not set, or empty
        return max(1, int(os.environ.get("SLURM_CPUS_PER_TASK", "")))
    return max(1, min(len(os.sched_getaffinity(0)), math.ceil(min(cores_in_groups(root), 2**20))))


def describe_load(threads: int) -> str:
    """Return a hint where other work takes the cores on which these threads would wait, or "".

    Threads of a CPU run wait for one another hundreds of times a second, without sleeping: beside
    other work a run of two threads can be several times as slow as one of a single thread.
    """
    cores, busy = count_cores(), os.getloadavg()[0]
    if cores < (os.cpu_count() or 1):  # the load is that of the machine, of which we have a part
        return ""
    if threads == 1 or threads + busy < cores + 1:
        return ""
    return (
        f"hint: other work keeps {busy:.1f} of {cores} cores busy, and {threads} threads would "
        "wait for one another: OMP_NUM_THREADS=1 is faster then"
    )
