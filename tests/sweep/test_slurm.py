"""A sweep on a real Slurm: a cluster of one node, started here, with jobs that are preempted."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ENV, TIMEOUT
from interruptions import differences, start

import lab.sweep
import lab.sweep.__main__ as sweep
from lab.common.cli import UsageError
from lab.sweep import pool
from lab.sweep import slurm as cluster
from lab.training.signals import CAN_RESUME
from sweep.test_sweep import TINY, folders

MISSING = [
    name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None
]
needs_slurm = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0,
    reason="needs root and Slurm: apt-get install slurm-wlm munge",
)
TOTAL = 1280  # agent steps

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu,shard
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 Gres=gpu:1,shard:2
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=5 MaxTime=UNLIMITED
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=UNLIMITED
"""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Cluster:
    """Slurm of one node, below a folder of its own: a partition `low` that `high` preempts."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {**ENV, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons = []

    def start(self):
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        ports = {"controller_port": free_port(), "node_port": free_port()}
        (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, **ports))
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        os.mknod(folder / "gpu0", 0o20666, os.makedev(1, 3))  # a stand-in for a GPU
        (folder / "gres.conf").write_text(
            f"Name=gpu Count=1 File={folder}/gpu0\nName=shard Count=2 File={folder}/gpu0\n"
        )
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        own = {"key-file": key, "socket": folder / "munge.socket", "seed-file": folder / "seed"}
        own |= {"pid-file": folder / "munge.pid", "log-file": folder / "munge.log"}
        options = [f"--{name}={path}" for name, path in own.items()]
        self.daemon("munged", "--foreground", "--force", *options)
        self.until(lambda: (folder / "munge.socket").exists())
        self.daemon("slurmctld", "-D", "-i")
        self.daemon("slurmd", "-D", "-N", host)
        self.until(lambda: self.call("sinfo", "--noheader", "-o", "%T", "-p", "low") == "idle")

    def daemon(self, *command):
        log = (self.folder / f"{command[0]}.out").open("w")
        self.daemons.append(
            subprocess.Popen(command, env=self.env, stdout=log, stderr=subprocess.STDOUT)
        )

    def stop(self):
        """Jobs first, as long as the daemons can end them; then these, whatever they do."""
        with contextlib.suppress(subprocess.TimeoutExpired, AssertionError):
            self.call("scancel", "--full", "--signal=KILL", "--user=root")
            self.call("scancel", "--user=root")
            self.until(lambda: self.call("squeue", "--noheader") == "")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def call(self, *command):
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def until(self, condition):
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.05)

    def told(self):
        """What the daemons and the queue say, for a test that waits in vain."""
        logs = [f"{path}:\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log")]
        return "\n".join([self.call("scontrol", "show", "job"), *logs])

    def ask(self, job, field):
        """A field of a job, as scontrol has it: JobState, Restarts."""
        said = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(part.partition("=")[::2] for part in said).get(field)

    def release(self, job):
        """Slurm lets a job that was put back wait for a while: not here."""
        self.call("scontrol", "update", f"jobid={job}", "StartTime=now")


@pytest.fixture
def slurm(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def submit(slurm, cwd, *flags):
    named = ("--algorithms", "ppo", "--variants", "tanh-hr-z32", "--seeds", 1, 2, "--slurm", *flags)
    command = [sys.executable, "-m", "lab.sweep", *named, "--", "--total-timesteps", TOTAL, *TINY]
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=slurm.env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.long
@needs_slurm
def test_preempted_and_requeued_runs_are_those_without_a_break(slurm, tmp_path):
    """Both runs are preempted by a job of higher priority; then one of them is told that its time
    limit is near, as Slurm does it. Where a job must not get further meanwhile, it is held by
    SIGSTOP; Slurm itself sends SIGCONT when it preempts."""
    refused = submit(slurm, tmp_path, "--partition", "none")
    assert refused.returncode == 2
    assert "Slurm refuses the jobs" in refused.stderr
    assert "invalid partition" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

    tmp_path = tmp_path / "a folder"
    tmp_path.mkdir()
    done = submit(slurm, tmp_path, "--partition", "low", "--gres", "shard:1", "--cpus", 1)
    assert done.returncode == 0, done.stderr
    array = done.stdout.partition("as job ")[2].partition(":")[0]
    tasks = [f"{array}_0", f"{array}_1"]
    alone = [tmp_path / "alone1", tmp_path / "alone2"]  # meanwhile, the same without a break
    for folder in alone:
        folder.mkdir()
    own = ("--total-timesteps", TOTAL, *TINY, "--latent-dim", 32, "--checkpoint-every", 10)
    without_break = [start("ppo", ("--seed", s, *own), alone[s - 1]) for s in (1, 2)]

    stopped = set()

    def both_are_stopped():  # each as soon as it has two checkpoints
        for path in folders(tmp_path):
            task = tasks["__s2__" in path.name]
            if task not in stopped and (path / "previous.pt").exists():
                slurm.call("scancel", "--signal=STOP", task)
                stopped.add(task)
        return len(stopped) == 2

    slurm.until(both_are_stopped)
    wanted = ("--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    above = slurm.call("sbatch", "--parsable", *wanted)
    slurm.until(lambda: [slurm.ask(task, "Restarts") for task in tasks] == ["1", "1"])
    slurm.until(lambda: slurm.ask(above, "JobState") == "COMPLETED")

    logs = sorted((tmp_path / "runs/logs").glob("Breakout__ppo__tanh-hr-z32__s*.log"))
    for task in tasks:
        slurm.release(task)
    slurm.until(lambda: "resumed at" in logs[1].read_text())
    slurm.call("scancel", "--signal=STOP", tasks[1])
    for name in ("USR2", "CONT"):
        slurm.call("scancel", f"--signal={name}", tasks[1])
    slurm.until(lambda: slurm.ask(tasks[1], "Restarts") == "2")
    slurm.release(tasks[1])
    slurm.until(lambda: {slurm.ask(task, "JobState") for task in tasks} == {"COMPLETED"})

    for seed, process in zip((1, 2), without_break, strict=True):
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
        (whole,) = (alone[seed - 1] / "runs").iterdir()
        assert differences(whole, folders(tmp_path)[seed - 1]) == []
        assert logs[seed - 1].read_text().count("resumed at") == seed
        assert "SIGTERM: stopping before the next rollout" in logs[seed - 1].read_text()
    assert "SIGUSR2: stopping before the next rollout" in logs[1].read_text()
    again = submit(slurm, tmp_path, "--partition", "low")
    assert (again.returncode, again.stdout) == (0, "all runs have finished\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--partition", "gpu"], "--partition is for jobs of Slurm: add --slurm"),
        (["--cpus", "2"], "--cpus is for jobs of Slurm"),
        (["--slurm", "--per-gpu", "2"], "--per-gpu is for this machine"),
        (["--slurm", "--hours", "0"], "--hours must be at least 0.1, not 0"),
        (["--slurm", "--cpus", "0"], "--cpus must be at least 1, not 0"),
        (["--slurm", "--memory", "-1"], "--memory must be at least 0.1, not -1"),
        (["--slurm"], "--slurm: there is no sbatch here"),
    ],
)
def test_flags_of_slurm_that_cannot_work(flags, message, refused, monkeypatch):
    monkeypatch.setenv("PATH", "")
    refused(sweep, flags, message)


def test_a_folder_in_whose_name_slurm_would_put_a_number_is_refused(tmp_path):
    with pytest.raises(UsageError, match="in the place of % in the name of a folder; choose"):
        cluster.submit([("--jobs", "1")], tmp_path / "50%j" / "logs", cpus_per_task=1)
    assert list(tmp_path.iterdir()) == []


def test_without_submitit_the_sweep_says_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "lab.sweep.slurm", raising=False)
    monkeypatch.delattr(lab.sweep, "slurm", raising=False)
    refused(sweep, ["--slurm"], "--slurm needs submitit: pip install submitit==1.5.4")


class Runs:
    """What `make_pool` makes, with a run that a signal has stopped."""

    def __init__(self, *signals):
        self.stopped_by = set(signals)

    def run(self):
        return CAN_RESUME


@pytest.mark.parametrize(
    ("signals", "waits"),
    [
        ([signal.SIGUSR2], False),  # near the limit
        ([signal.SIGUSR2, signal.SIGTERM], False),  # and at it
        ([signal.SIGTERM], True),  # preempted or cancelled: Slurm ends it
    ],
)
def test_a_stopped_job_is_put_back_at_its_limit_and_waits_where_slurm_puts_it_back(
    signals, waits, monkeypatch
):
    told = []
    monkeypatch.setattr(pool, "make_pool", lambda planned, args: Runs(*signals))
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: told.append("waits"))
    before = signal.signal(signal.SIGUSR2, lambda number, frame: told.append("put back"))
    try:
        with pytest.raises(SystemExit) as exit_:
            cluster.ResumableRun(("--algorithms", "ppo"))()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert told == ["waits"] * waits + ["put back"]
    assert exit_.value.code == CAN_RESUME
