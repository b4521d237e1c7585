"""Many runs by name, on this machine or on Slurm: algorithms x variants x games x seeds.

    python sweep.py --algorithms pqn --variants relu tanh tanh-hr --seeds 1 2 3
    python sweep.py --games Breakout Pong --dry-run -- --total-timesteps 1000000 --precision bf16
    python sweep.py -- --total-timesteps 1000000 dqn: --buffer-size 200000 pqn: --num-steps 64

What follows `--` is passed on to every run, what follows `dqn:` there to those of DQN alone. As
many runs as --jobs go at once, each with its share of the cores and one GPU. Ctrl-C stops all of
them at a safe point; the same command goes on: it skips what has finished and takes up what has
not. There is no other state than the run folders.
With --slurm each run is a job of one array instead, and this command ends at once.
"""

import contextlib
import datetime
import fcntl
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from lab.common.cli import UsageError, check_folder, counted, flag, launch, require, say
from lab.sweep.plan import ALGORITHMS, Planned, part_of, plan
from lab.training.run import RESUME_ME, STOPS
from lab.training.runfolder import in_use

LOOK_EVERY = 0.5  # seconds
ON_SLURM = ("partition", "hours", "gres", "cpus", "memory")  # flags that only --slurm knows
TRIES = 3  # without a new checkpoint in between
STARTED = "---"  # begins the line that the sweep itself writes into a log
GIVEN_UP = 1  # exit status where a run was given up


@dataclass
class Args:
    """Many runs by name. What follows -- is passed on to every run."""

    algorithms: tuple[str, ...] = ALGORITHMS
    """dqn, ppo, pqn"""
    variants: tuple[str, ...] = ("relu", "tanh", "tanh-hr")
    """of the hidden layers, by their names in the README: relu, tanh, tanh-hr, tanh-ln, ..."""
    games: tuple[str, ...] = ("Breakout",)
    """as --env-id takes them"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """of each"""
    runs_dir: str = "runs"
    """where the run folders are made; the output of each run goes to logs/ there"""
    jobs: int = 0
    """runs at a time; 0: --per-gpu on every GPU, or without one as many as CPU cores"""
    per_gpu: int = 1
    """runs at a time on one GPU"""
    stalled_after: float = 30.0
    """minutes without a word after which a run is taken for stuck, and killed"""
    dry_run: bool = False
    """only print what would be run, and what is there of it"""
    slurm: bool = False
    """submit the runs to Slurm, as one array of --jobs at a time; needs submitit"""
    partition: str = ""
    """with --slurm: the partition; empty: the cluster's default"""
    hours: float = 24.0
    """with --slurm: time limit of a job, which then goes on as often as its run needs it"""
    gres: str = ""
    """with --slurm: what each run needs, such as gpu:1, or shard:1 where GPUs are shared"""
    cpus: int = 4
    """with --slurm: cores of each run"""
    memory: float = 0.0
    """with --slurm: GB of memory for each run; 0: the cluster's default"""
    flags: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """flags of the scripts, after --; after a word dqn:, ppo: or pqn: those of one algorithm"""


def check(args: Args):
    """UsageError for a flag that cannot work, before anything is made."""
    for name in ("algorithms", "variants", "games", "seeds"):
        if not getattr(args, name):
            raise UsageError(f"--{name} is empty: name at least one")
    require(args, "at least 0", lambda value: value >= 0, "jobs")
    require(args, "at least 1", lambda value: value >= 1, "per_gpu")
    require(args, "above 0", lambda value: value > 0, "stalled_after")
    check_folder(args, "runs_dir")
    for name in ON_SLURM:
        if not args.slurm and getattr(args, name) != getattr(Args, name):
            raise UsageError(f"{flag(name)} is for jobs of Slurm: add --slurm, or leave it out")
    if args.slurm and args.per_gpu != Args.per_gpu:
        raise UsageError(
            "--per-gpu is for this machine: on Slurm runs share a GPU by --gres shard:1"
        )
    require(args, "at least 0.1", lambda value: value >= 0.1, "hours")
    require(args, "at least 1", lambda value: value >= 1, "cpus")
    require(args, "0 or at least 0.1", lambda value: value == 0 or value >= 0.1, "memory")


def cores() -> int:
    """Those this process may use: of its job on Slurm, or of the machine."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) or len(os.sched_getaffinity(0))


def gpus() -> list[str]:
    """Those this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    named = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in named]


@dataclass
class Job:
    """A run of the sweep, and what has become of it."""

    planned: Planned
    log: Path
    state: str = "to come"  # running, elsewhere, done, given up
    tries: int = 0  # in a row that came no further
    step: int = -1  # of the newest checkpoint when it was last started; -1: none
    gpu: str | None = None
    process: subprocess.Popen | None = field(default=None, repr=False)
    killed: bool = False  # by us, as it was stuck
    waits_since: float = 0.0  # for another process that has it under way
    heard: tuple[int, float] = (-1, 0.0)  # size of the log, and when it last had another

    def last_line(self) -> str:
        """The newest that the run has said."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return "starting" if said.startswith(STARTED) else said
        return ""

    def silent_for(self) -> float:
        """Seconds since the run has last said something; a full disk, which it survives, counts."""
        with contextlib.suppress(OSError):
            size = self.log.stat().st_size
            if size != self.heard[0] or shutil.disk_usage(self.log).free == 0:
                self.heard = (size, time.monotonic())
        return time.monotonic() - self.heard[1]

    def checkpoint_step(self) -> int:
        """Of the furthest checkpoint of these flags; -1 without one."""
        steps = [run.footer.step for run in self.planned.runs() if run.footer is not None]
        return max(steps, default=-1)

    def is_elsewhere(self) -> bool:
        """Whether another process has a run of these flags under way."""
        return any(in_use(run.folder) for run in self.planned.runs())


class Sweep:
    """A pool of processes that works through the jobs; see the module's docstring."""

    def __init__(self, jobs: list[Job], at_once: int, devices: list[str], stalled_after: float):
        self.jobs, self.at_once, self.devices = jobs, at_once, devices
        self.stalled_after = 60 * stalled_after  # seconds
        self.threads = max(1, cores() // at_once)
        self.stops = 0  # how often somebody asked for it
        self.stopped_by: set[int] = set()  # the signals that asked
        self.patience = math.inf  # seconds that a run of another process is waited for
        self.stops_done = 0
        self.started = time.monotonic()
        self.table = Table()

    def running(self) -> list[Job]:
        return [job for job in self.jobs if job.state == "running"]

    def start(self, job: Job):
        """A process of its own, which Ctrl-C in this terminal does not reach."""
        job.step, job.killed, job.heard = job.checkpoint_step(), False, (-1, time.monotonic())
        own = ("--env-threads", str(self.threads))
        given = () if job.planned.args.env_threads else own
        environment = {"OMP_NUM_THREADS": str(self.threads)} | os.environ
        if self.devices:
            taken = Counter(other.gpu for other in self.running())
            job.gpu = min(self.devices, key=lambda name: taken[name])
            environment["CUDA_VISIBLE_DEVICES"] = job.gpu
        with job.log.open("ab") as log:
            # Held by the process, too, as its output: a second sweep sees it from the first moment.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.wait_for(job)
                return
            log.write(f"{STARTED} {datetime.datetime.now().astimezone():%F %T %z}\n".encode())
            log.flush()
            job.process = subprocess.Popen(
                [sys.executable, *job.planned.command(*given)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        job.state = "running"

    def wait_for(self, job: Job):
        """For another process that has it under way, for as long as there is patience."""
        if job.state != "elsewhere":
            self.table.event(f"{job.planned.name} is under way in another process")
            job.waits_since = time.monotonic()
        job.state = "elsewhere"
        if time.monotonic() - job.waits_since > self.patience:
            job.state = "given up"
            self.table.event(f"{job.planned.name} is left to that process, or to the next sweep")

    def ended(self, job: Job):
        """What becomes of a job whose process has ended."""
        status, job.process = job.process.returncode, None
        if job.planned.has_finished():
            job.state = "done"
            self.table.event(f"done: {job.planned.name}")
            return
        job.state = "to come"
        if self.stops and status in (RESUME_ME, -signal.SIGTERM, -signal.SIGKILL):
            return  # as it was told to
        job.tries = 1 if job.checkpoint_step() > job.step else job.tries + 1
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        if job.killed:
            how = f"silent for {self.stalled_after / 60:g} minutes, killed"
        if job.tries >= TRIES:
            job.state = "given up"
            how += f", {job.tries} times without getting further: given up, see {job.log}"
        self.table.event(f"{job.planned.name} ended: {how}; its last line: {job.last_line()}")

    def step(self):
        """Take in what has ended, and start what there is room for."""
        for job in self.running():
            if job.process.poll() is not None:
                self.ended(job)
            elif job.silent_for() > self.stalled_after:
                job.killed = True
                os.killpg(job.process.pid, signal.SIGKILL)
        for job in self.jobs:
            if self.stops or len(self.running()) >= self.at_once:
                break
            if job.state not in ("to come", "elsewhere"):
                continue
            if job.is_elsewhere():
                self.wait_for(job)
            elif job.planned.has_finished():
                job.state = "done"
            else:
                self.start(job)

    def stop(self, number, frame):
        # A cluster sends several signals in a row, and all mean the same.
        self.stops += self.stops == 0 or number == signal.SIGINT
        self.stopped_by.add(number)

    def pass_on_stop(self):
        """All runs end at their next safe point; the second time at once."""
        self.stops_done, number = self.stops, signal.SIGTERM if self.stops == 1 else signal.SIGKILL
        how = "at their next safe point (Ctrl-C: at once)" if self.stops == 1 else "at once"
        self.table.event(f"stopping {counted(len(self.running()), 'run')} {how}")
        for job in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, number)

    def run(self) -> int:
        """Until all is done, given up or stopped; the status for the process to exit with."""
        before = {number: signal.signal(number, self.stop) for number in STOPS}
        try:
            while True:
                if self.stops > self.stops_done:
                    self.pass_on_stop()
                self.step()
                open_ones = any(job.state in ("to come", "elsewhere") for job in self.jobs)
                if not self.running() and (self.stops or not open_ones):
                    break
                self.table.show(self.jobs, time.monotonic() - self.started)
                time.sleep(LOOK_EVERY)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.table.show(self.jobs, time.monotonic() - self.started, last=True)
        if self.stops and any(job.state != "done" for job in self.jobs):
            say("stopped; the same command goes on")
            return RESUME_ME
        return GIVEN_UP if any(job.state == "given up" for job in self.jobs) else 0


class Table:
    """The state of all runs: redrawn in a terminal; elsewhere a line now and then."""

    SUMMARY_EVERY = 60.0  # seconds, where there is no terminal

    def __init__(self):
        self.lines = 0  # on the screen
        self.next_line = 0.0
        self.live = sys.stdout.isatty()

    def event(self, text: str):
        self._clear()
        say(text)

    def _clear(self):
        if self.lines:
            with contextlib.suppress(OSError):
                print(f"\x1b[{self.lines}A\x1b[J", end="", flush=True)
            self.lines = 0

    def show(self, jobs: list[Job], seconds: float, last: bool = False):
        if not self.live and not last and seconds < self.next_line:
            return
        self.next_line = seconds + self.SUMMARY_EVERY
        counts = Counter(job.state for job in jobs)
        order = ("done", "running", "elsewhere", "to come", "given up")
        summary = ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
        lasting = datetime.timedelta(seconds=int(seconds))
        lines = [f"{counted(len(jobs), 'run')}: {summary}; for {lasting}"]
        width, height = shutil.get_terminal_size()
        shown = [job for job in jobs if job.state in ("running", "given up")]
        longest = max((len(job.planned.name) for job in shown), default=0)
        for job in shown[: height - 3] if self.live else shown:
            said = job.last_line() if job.state == "running" else f"given up, see {job.log}"
            lines.append(f"  {job.planned.name:{longest}}  {said}")
        self._clear()
        for line in lines:
            say(line[: width - 1] if self.live else line)
        self.lines = len(lines) if self.live and not last else 0


def print_plan(planned: list[Planned]):
    """Every run: its command and what is there of it."""
    for run in planned:
        found = run.found()
        there = "new"
        if found is not None:
            step = 0 if found.footer is None else found.footer.step
            there = f"at {step:,}" if not found.has_finished(run.args) else "done"
        say(f"{there:>14}  {run.algorithm}_atari.py {' '.join(run.flags)}")
    say(counted(len(planned), "run"))


def planned_runs(args: Args) -> list[Planned]:
    """What `args` name. UsageError, before anything is made, for what cannot work."""
    check(args)
    named = (args.algorithms, args.variants, args.games, args.seeds)
    return plan(*named, args.runs_dir, args.flags, elsewhere=args.slurm)


def pool(args: Args) -> Sweep:
    """All runs of `args`, to be run here. UsageError, before anything is made, as above."""
    planned = planned_runs(args)
    devices = [] if all(run.args.device == "cpu" for run in planned) else gpus()
    at_once = args.jobs or len(devices) * args.per_gpu or cores()
    logs = Path(args.runs_dir) / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--runs-dir {args.runs_dir}: {error.strerror}") from None
    jobs = [Job(run, logs / f"{run.name}.log") for run in planned]
    for job in jobs:
        job.state = "done" if job.planned.has_finished() else "to come"
    return Sweep(jobs, min(at_once, len(jobs)), devices, args.stalled_after)


def alone(run: Planned, args: Args) -> tuple[str, ...]:
    """The command line of a sweep that has this run alone."""
    named = ("--algorithms", run.algorithm, "--variants", run.variant, "--games", run.game)
    named += ("--seeds", str(run.seed), "--runs-dir", args.runs_dir, "--jobs", "1")
    named += ("--stalled-after", str(args.stalled_after))
    return (*named, "--", *part_of(run.algorithm, args.flags))


def submit_to_slurm(args: Args) -> int:
    """One array of those runs that have not finished."""
    left = [run for run in planned_runs(args) if not run.has_finished()]
    try:
        import cluster  # submitit is an optional requirement
    except ImportError as error:
        raise UsageError(f"--slurm needs submitit: pip install submitit==1.5.4 ({error})") from None
    for name in ("sbatch", "srun"):
        if shutil.which(name) is None:
            raise UsageError(f"--slurm: there is no {name} here: start it where jobs are submitted")
    if not left:
        say("all runs have finished")
        return 0
    parameters = {
        "job_name": "sweep",
        "partition": args.partition or None,
        "time": round(60 * args.hours),
        "gres": args.gres or None,
        "cpus_per_task": args.cpus,
        "mem": f"{round(1024 * args.memory)}M" if args.memory else None,
        "array_parallelism": args.jobs or len(left),
    }
    logs = Path(args.runs_dir) / "logs"
    given = {name: value for name, value in parameters.items() if value is not None}
    job = cluster.submit([alone(run, args) for run in left], logs / "slurm", **given)
    say(
        f"submitted {counted(len(left), 'run')} as job {job}: squeue --job {job} shows them, "
        f"{logs}/ has what they say, scancel {job} ends them; --dry-run tells how far they are"
    )
    return 0


def main(args: Args) -> int:
    if args.dry_run:
        print_plan(planned_runs(args))
        return 0
    return submit_to_slurm(args) if args.slurm else pool(args).run()


if __name__ == "__main__":
    launch(main, Args)
