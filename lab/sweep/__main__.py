"""Many runs by name, on this machine or on Slurm: algorithms x variants x games x seeds.

    python -m lab.sweep --algorithms pqn --variants relu tanh tanh-hr --seeds 1 2 3
    python -m lab.sweep --games Breakout Pong --dry-run -- --total-timesteps 1000000
    python -m lab.sweep -- --total-timesteps 1000000 dqn: --buffer-size 200000 pqn: --num-steps 64

What follows `--` is passed on to every run, what follows `dqn:` there to those of DQN alone. As
many runs as --jobs go at once, each with its share of the cores and one GPU. Ctrl-C stops all of
them before their next rollouts; the same command goes on: it skips what has finished and resumes
what has not. There is no other state than the run folders. With --slurm each run is a job of one
array instead, and this command ends at once.
"""

import shutil
from pathlib import Path

from lab.common.cli import UsageError, launch, plural, say
from lab.sweep.estimate import describe_effort
from lab.sweep.flags import GROUPS, Args, explain_flag
from lab.sweep.plan import PlannedRun, plan_runs, select_flags
from lab.sweep.pool import count_at_once, make_pool


def print_plan(planned: list[PlannedRun], args: Args):
    """Print every run, its command and what is there of it, and what all of them will take."""
    for run in planned:
        newest = run.pick()
        there = "new"
        if newest is not None:
            step = 0 if newest.footer is None else newest.footer.step
            there = f"at {step:,}" if not newest.has_finished(run.args) else "done"
        say(f"{there:>14}  {run.algorithm}_atari.py {' '.join(run.flags)}")
    print_summary(planned, args)


def print_summary(planned: list[PlannedRun], args: Args):
    """Print how many runs there are, their agent steps, and how long they will take."""
    total = sum(run.args.total_timesteps for run in planned)
    say(f"{plural(len(planned), 'run')}, {total:,} agent steps in all")
    at_once = count_at_once(planned, args)[0]
    if args.slurm:
        at_once = min(args.jobs or len(planned), len(planned))
    if effort := describe_effort(planned, at_once, Path(args.runs_dir)):
        say(effort)


def build_single_run_flags(run: PlannedRun, args: Args) -> tuple[str, ...]:
    """Return the command line of a sweep that has this run alone."""
    named = ("--algorithms", run.algorithm, "--variants", run.variant, "--games", run.game)
    named += ("--seeds", str(run.seed), f"--runs-dir={args.runs_dir}", "--jobs", "1")
    named += ("--stalled-after", str(args.stalled_after))
    return (*named, "--", *select_flags(run.algorithm, args.flags))


def submit_to_slurm(planned: list[PlannedRun], args: Args) -> int:
    """Submit those runs that have not finished, as one array of jobs."""
    left = [run for run in planned if not run.has_finished()]
    try:
        from lab.sweep import slurm  # submitit is an optional requirement
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
    job = slurm.submit([build_single_run_flags(run, args) for run in left], logs / "slurm", **given)
    say(
        f"submitted {plural(len(left), 'run')} as job {job}: squeue --job {job} shows them, "
        f"{logs}/ has their output, scancel {job} ends them; --dry-run shows their progress"
    )
    return 0


def main(args: Args) -> int:
    """Run, submit or only print what the flags name; return the exit status."""
    planned = plan_runs(args)
    if args.dry_run:
        print_plan(planned, args)
        return 0
    if args.slurm:
        return submit_to_slurm(planned, args)
    pool = make_pool(planned, args)
    if any(job.state != "done" for job in pool.jobs):
        print_summary(planned, args)
    return pool.run()


def run():
    """Run the command line, as `hr-sweep` and `python -m lab.sweep` do."""
    launch(main, Args, GROUPS, explain_flag)


if __name__ == "__main__":
    run()
