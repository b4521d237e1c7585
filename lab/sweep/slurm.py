"""The runs of a sweep as one array of Slurm jobs, through submitit.

Each job is a sweep of one run, with its tries, its log and its lock. A job that reaches
its time limit writes a checkpoint and puts itself back into the queue; one that is preempted writes
a checkpoint and waits to be ended, as Slurm puts back only what it has ended itself. Either goes on
when its turn comes.
"""

import contextlib
import io
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission

# Modules that import torch are imported inside functions: a job unpickles this one before submitit
# installs its signal handlers, and torch takes seconds.

TIME_LIMIT_SIGNAL = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
CHECKPOINT_SECONDS = (
    180  # seconds, for a checkpoint (DQN's memory at a slow disk, and much to spare)
)
PREEMPTION_SECONDS = 1800  # seconds that a preempted job waits for it: more than any grace time
OTHER_JOB_SECONDS = (
    300  # seconds that a job waits for another with the same run: longer than a start
)


class ResumableRun:
    """Do what a job does: the run that `flags`, a command line of lab.sweep, plan alone."""

    def __init__(self, flags: tuple[str, ...]):
        self.flags = flags

    def __call__(self):
        from lab.common.cli import UsageError, parse_flags
        from lab.sweep.flags import Args
        from lab.sweep.plan import plan_runs
        from lab.sweep.pool import make_pool
        from lab.training.signals import CAN_RESUME

        try:
            args = parse_flags(Args, argv=list(self.flags))
            pool = make_pool(plan_runs(args), args)
        except UsageError as error:  # of this machine: it has no GPU
            sys.exit(f"lab.sweep: error: {error}")
        pool.patience = OTHER_JOB_SECONDS
        status = pool.run()
        if status == CAN_RESUME:
            if TIME_LIMIT_SIGNAL not in pool.stopped_by:  # preempted, or cancelled
                time.sleep(PREEMPTION_SECONDS)
            os.kill(os.getpid(), TIME_LIMIT_SIGNAL)  # to submitit, which calls `checkpoint` below
        if status:
            sys.exit(status)

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit puts back into the queue: the same again."""
        return DelayedSubmission(self)


def format_refusal(error: Exception) -> str:
    """Format what sbatch complains of as one line."""
    lines = [line for line in str(error).splitlines() if line.startswith("sbatch: error:")]
    said = "; ".join(line.removeprefix("sbatch: error:").strip() for line in lines)
    said = said or " ".join(str(error).split())
    if "fetch config" in said or "contact" in said:
        said += " (no cluster answers: start it where jobs are submitted, or set SLURM_CONF)"
    return said


def submit(commands: list[tuple[str, ...]], folder: Path, **parameters) -> str:
    """Submit an array with a job for each command line of lab.sweep; return its id.

    A new folder in `folder` gets what the jobs say beside the logs of the runs; `parameters` are
    submitit's. Raises UsageError where Slurm refuses it; nothing is left behind then.
    """
    from lab.common.cli import UsageError

    if "%" in str(folder.absolute()):
        raise UsageError(
            f"{folder.absolute()}: Slurm puts numbers in the place of % in the name of a folder; "
            "choose another --runs-dir"
        )
    here = shlex.quote(str(Path(__file__).parents[2]))
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    job_folder = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"  # submitit makes it
    try:
        executor = SlurmExecutor(job_folder, max_num_timeout=10_000)
        executor.update_parameters(
            setup=[f'export PYTHONPATH={here}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
            # srun does not take it over from sbatch
            srun_args=[f"--cpus-per-task={parameters['cpus_per_task']}"],
            signal_delay_s=CHECKPOINT_SECONDS,
            stderr_to_stdout=True,
            additional_parameters={"requeue": True},
            **parameters,
        )
        with contextlib.redirect_stderr(io.StringIO()):  # submitit shows what sbatch says, too
            jobs = executor.submit_array([ResumableRun(flags) for flags in commands])
    except (RuntimeError, OSError) as error:
        shutil.rmtree(job_folder, ignore_errors=True)
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise UsageError(f"Slurm refuses the jobs: {format_refusal(error)}") from None
    return jobs[0].job_id.partition("_")[0]
