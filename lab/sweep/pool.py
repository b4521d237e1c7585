"""The runs of a sweep in a pool of processes on this machine."""

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

import torch

from lab.common.cli import UsageError, describe_os, plural, say
from lab.common.files import open_regular
from lab.common.limits import count_cores
from lab.sweep.flags import Args
from lab.sweep.mps import share_gpus
from lab.sweep.plan import PlannedRun
from lab.training.runfolder import in_use
from lab.training.signals import CAN_RESUME, describe_leaving, list_stops

LOOK_EVERY = 0.5  # seconds
TRIES = 3  # without a new checkpoint in between
STARTED = "---"  # begins the line that the sweep itself writes into a log
GIVEN_UP = 1  # exit status where a run was given up


def list_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    named = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in named]


def _open_log(path: str, flags: int) -> int:
    # Not through a link, nor into a pipe that nobody reads, which would be waited for.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


@dataclass
class Job:
    """A run of the sweep, and what has become of it."""

    planned: PlannedRun
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
        """Return the newest line that the run has said."""
        with contextlib.suppress(OSError), open_regular(self.log) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return "starting" if said.startswith(STARTED) else said
        return ""

    def silent_for(self, now: float) -> float:
        """Return the seconds since the run last said something, at `now` of the monotonic clock.

        A full disk, which a run survives, does not count as silence, nor does a log that somebody
        has taken away: it says nothing of the run.
        """
        try:
            size = self.log.stat().st_size
            if size != self.heard[0] or shutil.disk_usage(self.log).free == 0:
                self.heard = (size, now)
        except OSError:
            self.heard = (-1, now)
        return now - self.heard[1]

    def checkpoint_step(self) -> int:
        """Return the agent step of the furthest checkpoint of these flags; -1 without one."""
        steps = [run.footer.step for run in self.planned.runs() if run.footer is not None]
        return max(steps, default=-1)

    def is_elsewhere(self) -> bool:
        """Return whether another process has a run of these flags under way."""
        return any(in_use(run.folder) for run in self.planned.runs())


class Pool:
    """Work through the jobs, as many at a time as there is room for, each in its own process."""

    def __init__(self, jobs: list[Job], at_once: int, devices: list[str], stalled_after: float):
        self.jobs, self.at_once, self.devices = jobs, at_once, devices
        self.stalled_after = 60 * stalled_after  # seconds
        self.threads = max(1, count_cores() // at_once)
        self.environment: dict[str, str] = {}  # of every run, beside this process's own
        self.stops = 0  # how often somebody asked for it
        self.stopped_by: set[int] = set()  # the signals that asked
        self.patience = math.inf  # seconds that a run of another process is waited for
        self.stops_done = 0
        self.started = time.monotonic()
        self.table = Table()

    def list_running(self) -> list[Job]:
        """Return the jobs that are under way."""
        return [job for job in self.jobs if job.state == "running"]

    def start(self, job: Job):
        """Start a job in a process of its own, which Ctrl-C in this terminal does not reach.

        Raises OSError if that is not possible: on a full disk there is no room for its log.
        """
        job.step, job.killed, job.heard = job.checkpoint_step(), False, (-1, time.monotonic())
        own = ("--env-threads", str(self.threads))
        given = () if job.planned.args.env_threads else own
        environment = {"OMP_NUM_THREADS": str(self.threads)} | os.environ | self.environment
        if self.devices:
            runs_on = Counter(other.gpu for other in self.list_running())
            job.gpu = min(self.devices, key=lambda name: runs_on[name])
            environment["CUDA_VISIBLE_DEVICES"] = job.gpu
        with open(job.log, "ab", buffering=0, opener=_open_log) as log:
            # Held by the process, too, as its output: a second sweep sees it from the first moment.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.wait_for(job)
                return
            log.write(f"{STARTED} {datetime.datetime.now().astimezone():%F %T %z}\n".encode())
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
        """Wait for another process that has it under way, for as long as there is patience."""
        if job.state != "elsewhere":
            self.table.event(f"{job.planned.name} is under way in another process")
            job.waits_since = time.monotonic()
        job.state = "elsewhere"
        if time.monotonic() - job.waits_since > self.patience:
            job.state = "given up"
            self.table.event(f"{job.planned.name} is left to that process, or to the next sweep")

    def take_in(self, job: Job):
        """Decide what becomes of a job whose process has ended."""
        status = job.process.returncode
        # A child left behind would keep the log locked.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
        job.process = None
        if job.planned.has_finished():
            job.state = "done"
            self.table.event(f"done: {job.planned.name}")
            return
        job.state = "to come"
        if self.stops and status in (CAN_RESUME, -signal.SIGTERM, -signal.SIGKILL):
            return  # as it was told to
        how = f"status {status}"
        if status < 0:
            how = signal.strsignal(-status) or f"signal {-status}"
        if job.killed:
            how = f"silent for {self.stalled_after / 60:g} minutes, killed"
        self.count_failure(job, f"ended: {how}", f"; its last line: {job.last_line()}")

    def count_failure(self, job: Job, how: str, more: str = ""):
        """Give a job up that has failed several times in a row, or let it be tried again."""
        job.tries = 1 if job.checkpoint_step() > job.step else job.tries + 1
        job.state = "to come"
        if job.tries >= TRIES:
            job.state = "given up"
            how += f", {job.tries} times without getting further: given up, see {job.log}"
        self.table.event(f"{job.planned.name} {how}{more}")

    def step(self):
        """Take in what has ended, and start what there is room for."""
        for job in self.list_running():
            if job.process.poll() is not None:
                self.take_in(job)
            elif job.silent_for(time.monotonic()) > self.stalled_after:
                job.killed = True
                os.killpg(job.process.pid, signal.SIGKILL)
        for job in self.jobs:
            if self.stops or len(self.list_running()) >= self.at_once:
                break
            if job.state not in ("to come", "elsewhere"):
                continue
            if job.is_elsewhere():
                self.wait_for(job)
            elif job.planned.has_finished():
                job.state = "done"
            else:
                try:
                    self.start(job)
                except OSError as error:
                    self.count_failure(job, f"cannot be started: {describe_os(error)}")

    def wait(self):
        """Wait until it is time to look again."""
        time.sleep(LOOK_EVERY)

    def stop(self, number, frame):
        """Handle a signal that asks to stop."""
        # A cluster sends several signals in a row, and all mean the same: only Ctrl-C counts twice.
        if self.stops == 0 or number == signal.SIGINT:
            self.stops += 1
        self.stopped_by.add(number)

    def pass_on_stop(self):
        """Stop all runs before their next rollouts; the second time at once."""
        self.stops_done = self.stops
        if self.stops == 1:
            number, how = signal.SIGTERM, f"before the next rollout{describe_leaving()}"
        else:
            number, how = signal.SIGKILL, "at once"
        self.table.event(f"stopping {plural(len(self.list_running()), 'run')} {how}")
        for job in self.list_running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, number)

    def run(self) -> int:
        """Run until all is done, given up or stopped; return the exit status."""
        with share_gpus(0 < len(self.devices) < self.at_once) as self.environment:
            return self._run()

    def _run(self) -> int:
        before = {number: signal.signal(number, self.stop) for number in list_stops()}
        try:
            while True:
                if self.stops > self.stops_done:
                    self.pass_on_stop()
                self.step()
                open_ones = any(job.state in ("to come", "elsewhere") for job in self.jobs)
                if not self.list_running() and (self.stops or not open_ones):
                    break
                self.table.show(self.jobs, time.monotonic() - self.started)
                self.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.table.show(self.jobs, time.monotonic() - self.started, last=True)
        if self.stops and any(job.state != "done" for job in self.jobs):
            say("stopped; the same command goes on")
            return CAN_RESUME
        return GIVEN_UP if any(job.state == "given up" for job in self.jobs) else 0


class Table:
    """Show the state of all runs: redrawn in a terminal; elsewhere a line now and then."""

    SUMMARY_EVERY = 60.0  # seconds, where there is no terminal

    def __init__(self):
        self.lines = 0  # on the screen
        self.next_line = 0.0
        self.live = sys.stdout.isatty()

    def event(self, text: str):
        """Print a line above the table."""
        self._clear()
        say(text)

    def _clear(self):
        if self.lines:
            with contextlib.suppress(OSError):
                # From the first column: a terminal shows ^C, behind which the cursor stands.
                print(f"\r\x1b[{self.lines}A\x1b[J", end="", flush=True)
            self.lines = 0

    def show(self, jobs: list[Job], seconds: float, last: bool = False):
        """Show the jobs after these many seconds; without a terminal, if it is time for it."""
        if not self.live and not last and seconds < self.next_line:
            return
        self.next_line = seconds + self.SUMMARY_EVERY
        counts = Counter(job.state for job in jobs)
        order = ("done", "running", "elsewhere", "to come", "given up")
        summary = ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
        lasting = datetime.timedelta(seconds=int(seconds))
        lines = [f"{plural(len(jobs), 'run')}: {summary}; for {lasting}"]
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


def count_at_once(planned: list[PlannedRun], args: Args) -> tuple[int, list[str]]:
    """Return how many of these runs go at a time, and on which GPUs."""
    devices = [] if all(run.args.device == "cpu" for run in planned) else list_gpus()
    at_once = args.jobs or len(devices) * args.per_gpu or count_cores()
    return min(at_once, len(planned)), devices


def make_pool(planned: list[PlannedRun], args: Args) -> Pool:
    """Return a pool of these runs. Raise UsageError if their logs have no place."""
    at_once, devices = count_at_once(planned, args)
    logs = Path(args.runs_dir) / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--runs-dir {args.runs_dir}: {describe_os(error)}") from None
    jobs = [Job(run, logs / run.log_name) for run in planned]
    for job in jobs:
        job.state = "done" if job.planned.has_finished() else "to come"
    return Pool(jobs, at_once, devices, args.stalled_after)
