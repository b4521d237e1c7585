"""One training run: its folder, curves, checkpoints, progress line and stop; what a script calls.

The x axis of every curve is agent steps; one agent step is 4 emulator frames.
"""

import collections
import contextlib
import datetime
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lab.common import cli, tags
from lab.common.cli import UsageError, describe_os, say
from lab.common.events import list_losses
from lab.common.files import atomic_write, check_targets, write_json
from lab.common.limits import count_cores, describe_load
from lab.training.atari import AtariEnvs
from lab.training.board import Board, start_board
from lab.training.checkpoint import (
    Checkpoints,
    capture,
    find_memory,
    has_checkpoint,
    iterate_tensors,
)
from lab.training.checks import check_memory
from lab.training.flags import group_script_flags, translate_cleanrl
from lab.training.form import own_event_files
from lab.training.logger import Logger
from lab.training.measure import Measurer
from lab.training.progress import Progress
from lab.training.resume import add_resumption, load_parts, resolve_resume
from lab.training.runfolder import (
    describe,
    fresh_folder,
    lock,
    read_config,
    select_checkpoint_flags,
)
from lab.training.signals import CAN_RESUME, StopSignals
from lab.training.tracking import start_tracking


def launch(main: Callable, args_class: type, check: Callable, algorithm: str):
    """Run a training script: parse its flags, find the run to resume, refuse what cannot work.

    Then call `main(args)` and exit with its status; what is refused is one line and status 2.
    """

    def start(args) -> int:
        args = resolve_resume(args, algorithm)
        if args is None:  # that run has finished
            return 0
        check(args)
        check_memory(args)
        try:
            return main(args)
        except (MemoryError, RuntimeError) as error:
            # For host memory torch raises a plain RuntimeError: only its message tells.
            of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not of_memory and "can't allocate memory" not in str(error):
                raise
            raise UsageError(
                "the memory of this machine ran out: choose smaller batches or a smaller network"
            ) from None

    cli.launch(start, args_class, group_script_flags(args_class), translate_cleanrl)


def make_envs(args) -> tuple[AtariEnvs, np.ndarray]:
    """Make the games that the flags ask for; return them and their first obs.

    obs uint8 (num_envs, 4, 84, 84): zeros where a run is resumed, whose games are restored later.
    """
    if args.num_envs >= 16:
        most = 0.2 * args.num_envs  # seconds, for making and seeding
        say(f"making {args.num_envs} games: up to {most:.0f} s (Ctrl-C acts after half of it)")
    envs = AtariEnvs(
        args.env_id,
        args.num_envs,
        args.seed,
        sticky_actions=args.sticky_actions,
        num_threads=args.env_threads or min(count_cores(), args.num_envs),
    )
    if args.resume:
        return envs, np.zeros(envs.observation_space.shape, np.uint8)
    return envs, envs.reset()[0]


class Run:
    """One training run from outside; a context manager that leaves its files complete.

    Counts the agent steps (`step`), writes curves and checkpoints, and says when to stop. Makes the
    folder `{runs_dir}/{Game}__{algorithm}__{variant}__s{seed}__{time}`, a --tag before the seed, or
    goes on in the one of --resume. `losses` are the tags below losses/ that the script will write,
    for the charts. `parts` below are all that a run remembers, by name: modules, optimizers, random
    generators, anything with `state_dict` and `load_state_dict`.

    Raises UsageError if the folder cannot be written or another process works on it.
    """

    def __init__(self, args, algorithm: str, network: nn.Module, losses: tuple[str, ...]):
        self.args, self.network = args, network
        self.step = 0  # agent steps so far
        self.returns = collections.deque(maxlen=100)  # of the newest games
        self._previous = 0  # the agent step before the newest step of the games
        self._elapsed, self._start = 0.0, time.monotonic()  # earlier sessions; this one
        self._next_checkpoint = 0.0  # a run can be resumed from its first step on

        device = next(network.parameters()).device
        self._measurer = Measurer(args, network, algorithm)
        self.config = self._on_disk = describe(args, algorithm, network)
        if args.resume:
            self.folder = Path(args.resume)
            check_targets(self.folder, ("model.pt",), "--resume")
            self._lock, board = lock(self.folder), None  # the curves go on in `resume`
            tracked = start_tracking(self.folder, self.config)
        else:
            with fresh_folder(args, self.config) as self.folder:
                self._lock = lock(self.folder)
                write_json(self.folder / "config.json", self.config)
                board = start_board(self.folder, self.config, losses)
                tracked = start_tracking(self.folder, self.config)
        self._logger = Logger(self.folder, board, network, tracked)
        self._checkpoints = Checkpoints(self.folder, select_checkpoint_flags(self.config["flags"]))
        graphs = " with CUDA graphs" if self.config["cuda_graphs"] else ""
        say(
            f"{self.config['game']}, {algorithm}, {self.config['variant']}, seed {args.seed}: "
            f"{self.config['num_parameters']:,} parameters on {device}{graphs}, "
            f"{self.config['multiply_adds']:,} multiply-adds per observation, {self.folder}"
        )
        if device.type == "cpu" and (hint := describe_load(torch.get_num_threads())):
            say(hint, sys.stderr)
        self._progress = Progress(args.total_timesteps)
        self._stop = StopSignals(self._progress.say_stopping)

    @property
    def _resume_command(self) -> str:
        """Return the command that goes on with this run."""
        script = f"{self.config['algorithm']}_atari.py"
        return shlex.join(["python", script, "--resume", str(self.folder)])

    @property
    def stopped(self) -> int | None:
        """Return the signal that asked the run to stop, or None."""
        return self._stop.received

    def goes_on(self) -> bool:
        """Return whether there are steps left to take and nobody has asked the run to stop."""
        self._progress.start_round()
        return self.step < self.args.total_timesteps and self.stopped is None

    def count_step(self):
        """Count a step of all games."""
        self._previous, self.step = self.step, self.step + self.args.num_envs
        if self.stopped is not None:
            self._progress.keep_saying_stopping(self.step)

    def log_episodes(self, infos: dict):
        """Write the raw return and length of the games that the newest step ended."""
        if "episode" in infos:
            episode = infos["episode"]
            for i in np.flatnonzero(episode["_r"]):
                self.returns.append(float(episode["r"][i]))
                ended = {tags.RETURN: self.returns[-1], tags.LENGTH: float(episode["l"][i])}
                self._logger.write(ended, self.step)

    def times_due(self, every: int, after: int = 0) -> int:
        """Return how many multiples of `every`, above `after`, the newest step has reached."""
        since = max(self._previous, after)
        return max(self.step // every - since // every, 0)

    def log(self, values: dict[str, float]):
        """Write scalars by tag, and show how far the run is.

        Raises UsageError if one of them, or a weight of the network, is NaN or inf: the run has
        diverged.
        """
        self.write_measurement(wait=False)
        self._logger.write_finite(values, self.step)
        rate = self._progress.show(self.step, self.returns)
        shown = {tags.SPS: rate}
        if self.returns:
            shown[tags.MEAN_RETURN] = float(np.mean(self.returns))
        self._logger.write(shown, self.step)
        self._logger.warn_if_full(self.step)

    def watch_update(self, recent, policy_head: nn.Linear):
        """Remember the network before the coming update, if `measure` will be due after it.

        `recent` as for `measure`; the largest output of `policy_head` is the greedy action.
        """
        self._measurer.watch_update(recent, policy_head, self.step)

    def measure(self, recent, head: nn.Linear, loss: Callable[[nn.Module], torch.Tensor]):
        """Measure the network and its newest update over the newest observations, where it is time.

        `recent.newest(count)` gives observations (count, 4, 84, 84) or None. `head` reads Q-values
        or the value off z, and `loss(network)` is the algorithm's loss over 128 of the steps that
        it learns from. With --apply-to all the convolutions are measured, too.
        """
        obs = self._measurer.find_due(recent, self.step)
        self._measurer.last_considered = self.step
        if obs is None:
            return
        self.write_measurement()  # the one before
        self._measurer.start(obs, head, loss, self.step, self._logger.require_finite)
        self.write_measurement(wait=False)

    def write_measurement(self, wait: bool = True):
        """Write what was measured, by the step at which it was asked for, if there is any."""
        measured = self._measurer.collect(wait)
        if measured is None:
            return
        self._logger.write(measured.values, measured.step)
        self._logger.require_finite_values(measured.values, measured.step)
        dead, rank = measured.values[tags.dead()], measured.values[tags.rank()]
        is_untrained = measured.step <= getattr(self.args, "learning_starts", 0)
        state = "untrained: " if is_untrained else ""
        self._progress.layer = f"  {state}dead {dead:.0%}  rank {rank}"
        if measured.picture is not None:
            self._logger.board.image(tags.of_layer("kde"), measured.picture, measured.step)
        self._logger.board.flush()

    def resume(self, parts: dict) -> bool:
        """Bring the parts back to the newest checkpoint where --resume asks for it.

        Returns False where it does not. Raises UsageError if no checkpoint is whole.
        """
        if not self.args.resume:
            return False
        # Nothing is to be saved yet: a signal ends the process.
        self._stop.leave_at_once = f"{self.folder} has not gone on"
        if self._stop.received is not None:
            sys.exit(CAN_RESUME)
        threads = read_config(self.folder).get("torch_threads")
        if threads is not None and threads != torch.get_num_threads():
            say(
                f"this run had {threads} threads and has {torch.get_num_threads()} now: sums may "
                f"differ in their last bits; OMP_NUM_THREADS={threads} keeps them the same",
                sys.stderr,
            )
        say("restoring the run: its games are played back")
        saved, problems = load_parts(self._checkpoints, parts)
        run_state, self.step = saved["run"], saved["step"]
        self._stop.leave_at_once = ""
        for problem in problems:
            say(f"{problem}: going on from the checkpoint before it", sys.stderr)
        self._previous = self._measurer.last_considered = self.step
        self.returns.extend(run_state["returns"])
        self._measurer.count, self._progress.layer = run_state["measurements"], run_state["layer"]
        self._elapsed = run_state["elapsed"]
        sizes = own_event_files(run_state["events"])
        self._logger.board = Board(self.folder, sizes, purge_step=self.step + 1)
        self._say_losses(sizes)
        self._progress.start_from(self.step)
        self._next_checkpoint = time.monotonic() + 60 * self.args.checkpoint_every
        try:
            self._on_disk = add_resumption(self.folder, self.config, self.step)
            write_json(self.folder / "config.json", self._on_disk)
        except OSError as error:
            self._logger.warn(f"config.json stays as it was: {describe_os(error)}", self.step)
        say(f"resumed at {self.step:,} agent steps")
        return True

    def _say_losses(self, sizes: dict[str, int]):
        """Say which points from before this session are lost; `sizes` of the files by name."""
        earlier = read_config(self.folder).get("resumed", [])
        resumed = [session["step"] for session in earlier if "step" in session]
        for loss in list_losses(self.folder, sizes, [*resumed, self.step]):
            say(f"warning: {loss}; the run goes on, its curves are not whole", sys.stderr)

    def checkpoint(self, parts: dict, now: bool = False):
        """Save the parts and the run itself, if it is time for it or `now`.

        Where it cannot be written, training goes on; it is tried again at the next time. Raises
        UsageError if anything in it is NaN or inf: the run has diverged, and the last checkpoint
        stays.
        """
        if not now and time.monotonic() < self._next_checkpoint:
            return
        self._next_checkpoint = time.monotonic() + 60 * self.args.checkpoint_every
        self.write_measurement()
        content = capture(parts)
        self._logger.require_finite(iterate_tensors(content), self.step)
        try:
            run_state = {
                "returns": list(self.returns),
                "measurements": self._measurer.count,
                "layer": self._progress.layer,
                "elapsed": self._elapsed + time.monotonic() - self._start,
                "events": self._logger.board.sync(),
            }
            content |= {"step": self.step, "run": run_state}
            self._logger.warn_if_removed(self.step)
            if not (self.folder / "config.json").exists():  # somebody removed it, or the folder
                write_json(self.folder / "config.json", self._on_disk)
            self._checkpoints.save(self.step, content, find_memory(parts))
        except OSError as error:
            text = f"no checkpoint at {self.step:,} agent steps: {describe_os(error)}"
            self._logger.warn(text, self.step)
        else:
            self._logger.warned = False

    def finish(self, parts: dict) -> int:
        """Save the weights, `model.pt`, and the last checkpoint; return the exit status.

        Raises UsageError if they cannot be written.
        """
        self.write_measurement()
        self._progress.close()
        self._logger.require_finite(self.network.named_parameters(), self.step)
        problem = None
        try:
            # First: once the last checkpoint is there, the run has finished.
            with atomic_write(self.folder / "model.pt") as file:
                torch.save(self.network.state_dict(), file)
        except OSError as error:
            problem = describe_os(error)
        if problem is None:
            self.checkpoint(parts, now=True)
            if self._logger.warned:
                problem = "the checkpoint could not be written"
        has_finished = self.step >= self.args.total_timesteps
        if problem is not None:
            message = f"cannot save the run in {self.folder}: {problem}"
            if has_finished or not has_checkpoint(self.folder):
                raise UsageError(message)
            say(f"{message}; its last checkpoint is whole", sys.stderr)
        elif has_finished:
            with contextlib.suppress(OSError, UsageError):  # the checkpoint says so, too
                config = read_config(self.folder) | {"finished": self.step}
                write_json(self.folder / "config.json", config)
        if has_finished:
            seconds = self._elapsed + time.monotonic() - self._start
            spent = datetime.timedelta(seconds=int(seconds))
            memory = ""
            if self.config["device"] != "cpu":
                memory = f" with {torch.cuda.max_memory_reserved() / 1e9:.1f} GB of the GPU"
            say(f"done: {self.step:,} agent steps in {spent}{memory}, {self.folder}")
            return 0
        saved = self._checkpoints.step
        origin = "" if saved == self.step else f" from {saved:,}"
        say(f"stopped at {self.step:,} agent steps; to go on{origin}: {self._resume_command}")
        return CAN_RESUME

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.ExitStack() as closing:  # whatever is interrupted, the others are closed
            closing.callback(self._lock.close)
            closing.callback(self._logger.close, failed=exception[0] is not None)
            closing.callback(self._progress.close)
            closing.callback(self._stop.close)
            closing.callback(self._measurer.close)
        if exception[0] is KeyboardInterrupt and has_checkpoint(self.folder):
            say(f"ended at once; to go on: {self._resume_command}", sys.stderr)
