"""Limits of containers and batch systems, in trees of files as Linux has them."""

import math
import os

import pytest
import torch

from lab.common import device as devices
from lab.common import limits
from lab.common.limits import cores_in_groups, count_cores, free_in_groups

NONE_1 = str(2**63 - 4096)  # "no limit" of version 1


@pytest.fixture
def tree(tmp_path):
    """Write files below a root, and the line of /proc/self/cgroup."""

    def make(groups, **files):
        files = {"proc/self/cgroup": groups, **files}
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(f"{content}\n")
        return tmp_path

    return make


def group(folder, **files):
    return {f"sys/fs/cgroup/{folder}{name}": value for name, value in files.items()}


def memory_1(folder, limit, used, cache):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    stat = f"cache 9\ntotal_inactive_file {cache}"
    return group(folder, **dict(zip(names, (limit, used, stat), strict=True)))


def memory_2(folder, limit, used, cache):
    names = ("memory.max", "memory.current", "memory.stat")
    return group(folder, **dict(zip(names, (limit, used, f"inactive_file {cache}"), strict=True)))


V1 = "12:pids:/a\n4:memory:/job/step\n3:cpu,cpuacct:/job/step\n1:name=systemd:/x\n0::/elsewhere"


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/job/step", memory_2("job/step/", 1000, 300, 50), 750),
        ("0::/job/step", memory_2("job/", 1000, 300, 50), 750),  # of a group above
        ("0::/job/step", memory_2("job/", 1000, 300, 50) | memory_2("", 500, 1, 0), 499),
        ("0::/job", memory_2("job/", "max", 300, 50), math.inf),
        ("0::/of/the/host", memory_2("", 1000, 300, 50), 750),  # in a container
        (V1, memory_1("memory/job/step/", 1000, 300, 50), 750),
        (V1, memory_1("memory/job/", 1000, 300, 50), 750),
        (V1, memory_1("memory/", 1000, 300, 50), 750),
        (V1, memory_1("memory/job/", NONE_1, 300, 50), math.inf),
        (V1, memory_1("memory/job/", 1000, 300, 50) | memory_2("elsewhere/", 400, 1, 0), 399),
        ("nonsense", memory_2("", 1000, 300, 50), math.inf),
        ("0::/", {}, math.inf),
    ],
)
def test_memory_is_what_the_smallest_limit_leaves(groups, files, free, tree):
    assert free_in_groups(tree(groups, **files)) == free


def quota_1(folder, quota, period=100_000):
    return group(folder, **{"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period})


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/job/step", group("job/step/", **{"cpu.max": "250000 100000"}), 2.5),
        ("0::/job/step", group("job/", **{"cpu.max": "50000 100000"}), 0.5),
        ("0::/job", group("job/", **{"cpu.max": "max 100000"}), math.inf),
        ("0::/of/the/host", group("", **{"cpu.max": "100000 100000"}), 1),
        (V1, quota_1("cpu,cpuacct/job/step/", 150_000), 1.5),
        (V1, quota_1("cpu/job/", 400_000, 200_000), 2),  # by the name that is a link elsewhere
        (V1, quota_1("cpu,cpuacct/job/", -1), math.inf),
        (V1, quota_1("cpu,cpuacct/", 100_000, 0), math.inf),
        ("0::/", {}, math.inf),
    ],
)
def test_cores_are_what_the_smallest_quota_gives(groups, files, cores, tree):
    assert cores_in_groups(tree(groups, **files)) == cores


@pytest.mark.parametrize(
    ("slurm", "quota", "cores"),
    [
        (None, "max 100000", 8),
        ("", "max 100000", 8),
        ("", "250000 100000", 3),
        (None, "10000 100000", 1),
        (None, "1000000 100000", 8),
        ("5", "250000 100000", 5),
        ("many", "250000 100000", 3),
    ],
)
def test_cores_of_a_job_a_quota_and_the_machine(slurm, quota, cores, tree, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    assert count_cores(tree("0::/job", **group("job/", **{"cpu.max": quota}))) == cores


def test_torch_takes_no_more_threads_than_the_quota_and_what_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(devices, "count_cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    devices.pick_device("cpu")
    assert asked == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    devices.pick_device("cpu")
    monkeypatch.setattr(devices, "count_cores", lambda: 64)
    devices.pick_device("cpu")
    assert asked == [3, 8]


def test_free_memory_knows_the_groups(monkeypatch):
    monkeypatch.setattr(limits, "free_in_groups", lambda: 12345.0)
    assert devices.free_memory(torch.device("cpu")) == 12345.0
    assert limits.free_in_groups() > 0  # of this machine, whatever it has


@pytest.mark.parametrize(
    ("threads", "busy", "hinted"),
    [(2, 0.3, False), (2, 1.0, True), (1, 9.0, False), (2, 5.0, True)],
)
def test_a_busy_machine_is_told_to_a_run_of_several_threads(threads, busy, hinted, monkeypatch):
    monkeypatch.setattr(limits, "count_cores", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (busy, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # of which a container has 2
    assert limits.describe_load(threads) == ""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    hint = limits.describe_load(threads)
    assert (hint != "") == hinted
    if hinted:
        assert f"{busy} of 2 cores busy" in hint
        assert "OMP_NUM_THREADS=1" in hint
