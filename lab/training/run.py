"""One run: device and memory, folder, TensorBoard, progress line, signals and final weights.

A run folder holds `config.json` (everything that decides the run: flags, versions, git commit,
device), the TensorBoard event files and, at the end, `model.pt`. The x axis of every curve is agent
steps; one agent step is 4 emulator frames.
"""

import collections
import contextlib
import datetime
import math
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lab.common import cli as flags
from lab.common.cli import UsageError, say
from lab.common.device import require_memory
from lab.training.atari import AtariEnvs
from lab.training.board import Board, describe_run
from lab.training.checkpoint import (
    Checkpoints,
    capture,
    has_checkpoint,
    replay_memory,
    restore,
    tensors,
    written_whole,
)
from lab.training.encoder import hidden_layers
from lab.training.replay import FRAMES, TRANSITION_BYTES
from lab.training.runfolder import (
    describe,
    lock,
    read_config,
    resolve_resume,
    resumed_config,
    saved_with,
    write_json,
)
from metrics import MEASURES, kde_figure, measure_representation

# A figure every so many measurements: it costs about as much as one, and 16 neurons change slowly.
FIGURE_EVERY = 10
# Seconds between two lines when the progress goes to a file instead of a terminal.
LINE_EVERY = 30.0
# Exit status of a run that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h.
RESUME_ME = 75
# SIGUSR1 and SIGUSR2: what Slurm is usually asked to send before a time limit.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def launch(main, args_class, check, algorithm: str):
    """Run a training script: parse its flags, find the run to resume, refuse what cannot work.

    Then call `main(args)` and exit with what it returns. What is refused ends in one line on stderr
    and exit status 2.
    """

    def start(args) -> int:
        args = resolve_resume(args, algorithm)
        if args is None:  # that run has finished
            return 0
        check(args)
        check_memory(args)
        try:
            return main(args)
        except (MemoryError, torch.OutOfMemoryError):
            raise UsageError(
                "the memory of this machine ran out: choose smaller batches or a smaller network"
            ) from None

    flags.launch(start, args_class)


def check_memory(args):
    """Raise UsageError if the device has not the memory that these flags ask for."""
    on_gpu = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu else "cpu")
    # Weights, gradients, two moments and, in DQN, a target network, all fp32.
    unit = 5 * 4 * (64 * 7 * 7 + 1)
    if args.branches > 8:
        require_memory(f"--branches {args.branches}", args.branches, unit * args.latent_dim, device)
    else:
        bytes_each = unit * args.branches
        require_memory(f"--latent-dim {args.latent_dim}", args.latent_dim, bytes_each, device)
    # Of each sample the obs in fp32 and the activations of four layers, three times over.
    sample = 4 * math.prod(FRAMES) + 12 * args.branches * (12_800 + 5_184 + 3_136 + args.latent_dim)
    if hasattr(args, "buffer_size"):
        what = f"--buffer-size {args.buffer_size}"
        require_memory(what, args.buffer_size + 4 * args.num_envs, TRANSITION_BYTES, device)
        require_memory(f"--batch-size {args.batch_size}", args.batch_size, sample, device)
        return
    steps = args.num_envs * args.num_steps
    what = f"--num-envs {args.num_envs} times --num-steps {args.num_steps}, {steps} observations,"
    require_memory(what, steps, math.prod(FRAMES), device)
    minibatch = steps // args.num_minibatches
    what = f"--num-minibatches {args.num_minibatches}: a minibatch of {minibatch}"
    require_memory(what, minibatch, sample, device)
    what = f"--metrics-samples {args.metrics_samples}"
    require_memory(what, 2 * args.metrics_samples, math.prod(FRAMES), device)


def make_envs(args) -> tuple[AtariEnvs, np.ndarray]:
    """The games that the flags ask for, and their first obs (num_envs, 4, 84, 84).

    Where a run is resumed these are zeros: its games come from the checkpoint.
    """
    if args.num_envs >= 16:
        most = 0.2 * args.num_envs  # seconds, for making and seeding
        say(f"making {args.num_envs} games: up to {most:.0f} s, of which Ctrl-C waits for half")
    envs = AtariEnvs(
        args.env_id,
        args.num_envs,
        args.seed,
        sticky_actions=args.sticky_actions,
        num_threads=args.env_threads,
    )
    if args.resume:
        return envs, np.zeros(envs.observation_space.shape, np.uint8)
    return envs, envs.reset()[0]


class Means:
    """Collects values between two logs, for their means; a part of a checkpoint."""

    def __init__(self, device: torch.device):
        self.device = device
        self.values: dict[str, list[torch.Tensor]] = {}

    def add(self, values: dict[str, torch.Tensor]):
        """Take scalars by tag; on a GPU nothing waits for them."""
        for tag, value in values.items():
            self.values.setdefault(tag, []).append(value)

    def pop(self) -> dict[str, float]:
        """Return the mean of each tag since the last call; empty if nothing was added."""
        means = {tag: torch.stack(values).mean().item() for tag, values in self.values.items()}
        self.values = {}
        return means

    def state_dict(self) -> dict:
        return self.values

    def load_state_dict(self, state: dict):
        self.values = {
            tag: [value.to(self.device) for value in values] for tag, values in state.items()
        }


def measurement_due(args, previous: int, step: int) -> bool:
    """Whether the layer is to be measured after the agent steps in (previous, step].

    Where a multiple of --metrics-every lies in them, and when --metrics-samples observations are
    there for the first time: near what the network starts from. A run that is shorter than
    --metrics-every measures nothing.
    """
    if args.metrics_every > args.total_timesteps:
        return False
    first = previous < args.metrics_samples <= step
    return first or step // args.metrics_every > previous // args.metrics_every


class Run:
    """The outside of one training run; a context manager that leaves its files complete.

    Makes the folder `{runs_dir}/{Game}__{algorithm}__{variant}__s{seed}__{time}`, or takes up the
    one that --resume names. `losses` are the tags below losses/ that the script will write, for the
    layout of the charts. The signals in STOPS only set `stopped`, for the loop to end at a
    safe point; a second SIGINT ends at once.

    Raises UsageError if the folder cannot be written or another process works on it.
    """

    def __init__(self, args, algorithm: str, network: torch.nn.Module, losses: tuple[str, ...]):
        self.args, self.network = args, network
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        device = next(network.parameters()).device
        self.config = describe(args, algorithm, num_parameters, device)
        self.step = 0  # agent steps so far
        self._previous = self._looked = 0  # the step before that; when a measurement was last due
        self.stopped: int | None = None  # the signal that asked for it
        self.returns = collections.deque(maxlen=100)
        self._state = ""  # of the layer, when last measured
        self._measurements = 0
        self._last_values = {}  # of every tag, for the report of a divergence
        self._elapsed, self._start = 0.0, time.monotonic()  # earlier sessions; this one
        self._rates = collections.deque([(time.perf_counter(), 0)], maxlen=200)
        self._round_started, self._round_seconds = None, 0.0  # between two looks at goes_on
        self._next_line = 0.0
        self._next_checkpoint = 0.0  # a run can be taken up from its first step on
        self._warned = self._restoring = False

        self.board: Board | None = None
        if args.resume:
            self.folder = Path(args.resume)
            self._lock = lock(self.folder)
            self._tracked = self._track()
        else:
            with self._folder_or_nothing() as self.folder:
                self._lock = lock(self.folder)
                self._begin(losses)
                self._tracked = self._track()
        self.checkpoints = Checkpoints(self.folder, saved_with(self.config["flags"]))
        self._handlers = {number: signal.signal(number, self._request_stop) for number in STOPS}
        say(
            f"{self.config['game']}, {algorithm}, {self.config['variant']}, seed {args.seed}: "
            f"{num_parameters:,} parameters on {device}, {self.folder}"
        )
        self.bar = tqdm(
            total=args.total_timesteps,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f}% {desc} {bar}",  # the bar takes what is left of the line
            dynamic_ncols=True,
        )

    @contextlib.contextmanager
    def _folder_or_nothing(self):
        """A new folder for this run, which is gone again if the block does not end well."""
        config, runs_dir = self.config, Path(self.args.runs_dir)
        when = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        stem = [config["game"], config["algorithm"], config["variant"], f"s{self.args.seed}", when]
        name = "__".join(stem)
        missing = [folder for folder in (runs_dir, *runs_dir.parents) if not folder.exists()]
        folder, attempt, made = runs_dir / name, 1, False
        try:
            while not made:
                try:
                    folder.mkdir(parents=True)
                    made = True
                except FileExistsError:
                    if not runs_dir.is_dir():
                        raise
                    attempt += 1
                    folder = runs_dir / f"{name}-{attempt}"
            yield folder
        except BaseException as error:
            if made:  # else the name may be that of another run
                shutil.rmtree(folder, ignore_errors=True)
            for parent in missing:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            if isinstance(error, OSError):
                raise UsageError(f"--runs-dir {runs_dir}: {error.strerror or error}") from None
            raise

    def _begin(self, losses: tuple[str, ...]):
        """config.json, and an event file with the flags and the layout of the charts."""
        write_json(self.folder / "config.json", self.config)
        self.board = Board(self.folder)
        if self.board.problem is not None:
            raise self.board.problem
        columns = self.config["flags"] | {
            key: self.config[key] for key in ("game", "algorithm", "variant")
        }
        layout = {
            "score": [f"charts/{name}" for name in ("mean_return_100", "episodic_return")],
            # z and its branches in one chart
            "representation": [f"representation/(branch_[0-9]+/)?{name}$" for name in MEASURES],
            "losses": [f"losses/{name}" for name in losses],
        }
        if self.args.apply_to == "all":
            layout["every layer"] = [f"representation/(conv_[0-9]+/)?{name}$" for name in MEASURES]
        tags = ["charts/mean_return_100", *(f"representation/{name}" for name in MEASURES)]
        describe_run(self.board, columns, tags, layout)

    def _track(self):
        """The run of Weights & Biases that --track asks for, over agent steps; None without."""
        if not self.args.track:
            return None
        import wandb  # optional: only who asks for it needs it

        name = self.folder.name
        try:
            tracked = wandb.init(
                project="hadamard-rl", name=name, id=name, config=self.config, resume="allow"
            )
            tracked.define_metric("global_step")
            tracked.define_metric("*", step_metric="global_step")
        except Exception as error:  # of many kinds, and no fault of the run
            raise UsageError(
                f"--track: Weights & Biases does not take the run ({error}); log in, set "
                "WANDB_MODE=offline, or leave --track out"
            ) from None
        return tracked

    def _write(self, values: dict[str, float]):
        """Scalars to TensorBoard and, with --track, in one call to Weights & Biases."""
        for tag, value in values.items():
            self.board.scalar(tag, value, self.step)
        if self._tracked is not None:
            self._tracked.log(values | {"global_step": self.step})

    def _request_stop(self, number, frame):
        if self._restoring:  # nothing to save yet, and the emulator is not waited for
            say(f"\n{signal.Signals(number).name}: {self.folder} has not gone on", sys.stderr)
            os._exit(RESUME_ME)
        self.stopped = number
        self._next_line = time.perf_counter() + LINE_EVERY
        signal.signal(signal.SIGINT, signal.default_int_handler)
        within = f", in {self._round_seconds:.0f} s or less" if self._round_seconds > 1 else ""
        say(
            f"\n{signal.Signals(number).name}: stopping before the next rollout{within} "
            "(Ctrl-C ends the run at once)",
            sys.stderr,
        )

    def goes_on(self) -> bool:
        """Whether the run has steps left to take and nobody has asked it to stop."""
        now = time.perf_counter()
        if self._round_started is not None:
            self._round_seconds = now - self._round_started
        self._round_started = now
        return self.step < self.args.total_timesteps and self.stopped is None

    def count_step(self, infos: dict):
        """Count a step of all games, and write the scores of those that ended in it."""
        self._previous, self.step = self.step, self.step + self.args.num_envs
        self._write_episodes(infos)
        if self.stopped is not None and time.perf_counter() > self._next_line:
            self._next_line = time.perf_counter() + LINE_EVERY
            say(f"stopping: {self.step:,} agent steps, in the last rollout", sys.stderr)

    def times_due(self, every: int, after: int = 0) -> int:
        """Return how many multiples of `every`, above `after`, the newest step has reached."""
        since = max(self._previous, after)
        return max(self.step // every - since // every, 0)

    def resume(self, parts: dict) -> bool:
        """Bring the parts back to the newest checkpoint where --resume asks for it; else False.

        Raises UsageError if no checkpoint is whole.
        """
        if not self.args.resume:
            return False
        self._restoring = True
        if self.stopped is not None:
            sys.exit(RESUME_ME)
        threads = read_config(self.folder).get("torch_threads")
        if threads != torch.get_num_threads():
            say(
                f"this run had {threads} threads and has {torch.get_num_threads()} now: sums may "
                f"differ in their last bits; OMP_NUM_THREADS={threads} keeps them the same",
                sys.stderr,
            )
        say("bringing memory and games back")
        saved, problems = self.checkpoints.load(replay_memory(parts))
        try:
            # In a thread: the emulator's calls can take long, and signals come to this one.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(restore, parts, saved).result()
            own, self.step = saved["run"], saved["step"]
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UsageError(
                f"--resume {self.folder}: its checkpoint does not fit: {error}"
            ) from None
        self._restoring = False
        for problem in problems:
            say(f"{problem}: going on from the checkpoint before it", sys.stderr)
        self._previous = self._looked = self.step
        self.returns.extend(own["returns"])
        self._measurements, self._state = own["measurements"], own["layer"]
        self._elapsed = own["elapsed"]
        self.board = Board(self.folder, own["events"], purge_step=self.step + 1)
        self._rates[0] = (time.perf_counter(), self.step)
        self._next_checkpoint = time.monotonic() + 60 * self.args.checkpoint_every
        try:
            config = resumed_config(self.folder, self.config, self.step)
            write_json(self.folder / "config.json", config)
        except OSError as error:
            self._warn(f"config.json stays as it was: {error.strerror or error}")
        say(f"resumed at {self.step:,} agent steps")
        return True

    def checkpoint(self, parts: dict, now: bool = False):
        """Save these parts, by name, and the run itself, if it is time for it or `now`.

        Where it cannot be written, training goes on; it is tried again at the next time.
        UsageError if anything in it is NaN or inf: the run has diverged, and the last checkpoint
        stays.
        """
        if not now and time.monotonic() < self._next_checkpoint:
            return
        self._next_checkpoint = time.monotonic() + 60 * self.args.checkpoint_every
        content = capture(parts)
        self._require_finite(tensors(content))
        try:
            own = {
                "returns": list(self.returns),
                "measurements": self._measurements,
                "layer": self._state,
                "elapsed": self._elapsed + time.monotonic() - self._start,
                "events": self.board.sync(),
            }
            content |= {"step": self.step, "run": own}
            self.checkpoints.save(self.step, content, replay_memory(parts))
        except OSError as error:
            self._warn(f"no checkpoint at {self.step:,} agent steps: {error.strerror or error}")
        else:
            self._warned = False

    def _warn(self, text: str):
        self._warned = True
        say(f"warning: {text}; training goes on, it is tried again", sys.stderr)
        self.board.text("warnings", text, self.step)  # once there is room

    def _require_finite(self, named):
        """UsageError for the first of these (name, tensor) that has NaN or inf; see `diverged`."""
        for name, tensor in named:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                self.diverged(f"{name} has NaN or inf")

    def diverged(self, what: str):
        """UsageError, after a report of where a number left the finite ones: `diverged.json`."""
        report = {
            "step": self.step,
            "what": what,
            "last_values": self._last_values,
            "weights": {
                name: {
                    "shape": list(weight.shape),
                    "not_finite": int((~torch.isfinite(weight)).sum()),
                    "largest": weight.nan_to_num(0, 0, 0).abs().max().item(),
                }
                for name, weight in self.network.named_parameters()
            },
        }
        with contextlib.suppress(OSError):
            write_json(self.folder / "diverged.json", report)
            with written_whole(self.folder / "diverged.pt") as file:
                torch.save(self.network.state_dict(), file)
        raise UsageError(
            f"the run has diverged: at {self.step:,} agent steps {what}; a smaller --learning-rate "
            f"may help; values and weights are in {self.folder}/diverged.json and .pt"
        )

    def log(self, values: dict[str, float]):
        """Write these tags at the agent step of now, and show how far the run is.

        Raises UsageError if one of them, or a weight of the network, is NaN or inf: the run has
        diverged.
        """
        self._write_finite(values)
        self._show_progress()

    def _write_finite(self, values: dict[str, float]):
        self._write(values)
        self._last_values |= values
        for tag, value in values.items():
            if not math.isfinite(value):
                self.diverged(f"{tag} is {value}")
        # The losses were computed before the last step of the optimizer, which may break a weight.
        self._require_finite(self.network.named_parameters())

    def _write_episodes(self, infos: dict):
        """The raw return and the length (agent steps) of every game that ended."""
        if "episode" not in infos:
            return
        episode = infos["episode"]
        for i in np.flatnonzero(episode["_r"]):
            score, length = float(episode["r"][i]), float(episode["l"][i])
            self.returns.append(score)
            self._write({"charts/episodic_return": score, "charts/episodic_length": length})

    def measure(self, recent, head: torch.nn.Linear, contribution: str = "q_contribution"):
        """Measure z, its branches and its head over the newest observations, where it is time.

        `recent.newest(count)` gives observations (count, 4, 84, 84) or None. With --apply-to all
        the convolutions are measured, too. `contribution` is the tag of what live and dead neurons
        bring into the outputs of `head`: see `measure_representation`.
        """
        due = measurement_due(self.args, self._looked, self.step)
        self._looked = self.step
        obs = recent.newest(self.args.metrics_samples) if due else None
        if obs is None:
            return
        layers = hidden_layers(self.network, obs, self.args.apply_to == "all")
        self._require_finite(layers.items())
        values = measure_representation(layers, head.weight, head.bias, contribution)
        self._write_finite(values)
        self._state = f"  dead {values['representation/dead_kde']:.0%}"
        self._state += f"  rank {values['representation/effective_rank']}"
        if self._measurements % FIGURE_EVERY == 0:
            shown = {name: layer for name, layer in layers.items() if "conv" not in name}
            image = kde_figure(shown)
            self.board.image("representation/kde", image, self.step)
        self._measurements += 1
        self.board.flush()

    def _show_progress(self):
        """Steps, speed over the last seconds, time left, score and state of the layer."""
        now = time.perf_counter()
        while len(self._rates) > 2 and now - self._rates[0][0] > 10:
            self._rates.popleft()
        then, step_then = self._rates[0]
        self._rates.append((now, self.step))
        rate = (self.step - step_then) / max(now - then, 1e-9)
        self._write({"charts/SPS": rate})
        if self.board.problem is not None and not self._warned:
            self._warn(f"the curves cannot be written: {self.board.problem.strerror}")
        if self.returns:
            self._write({"charts/mean_return_100": float(np.mean(self.returns))})
        total = self.args.total_timesteps
        if sys.stderr.isatty():
            self.bar.n = min(self.step, total)
            with contextlib.suppress(OSError):
                self.bar.set_description_str(self._status(rate, brief=True))
        elif now >= self._next_line or self.step >= total:
            self._next_line = now + LINE_EVERY
            say(f"{min(self.step / total, 1.0):4.0%}  {self._status(rate)}", sys.stderr)

    def _status(self, rate: float, brief: bool = False) -> str:
        """One line; the brief one fits a terminal of 80 columns."""
        total = self.args.total_timesteps
        eta = datetime.timedelta(seconds=int(min(max(total - self.step, 0) / rate, 3e9)))
        status = f"{self.step:,}/{total:,}" + ("" if brief else " steps")
        status += f"  {rate:,.0f}/s  ETA {eta}"
        if self.returns:
            status += f"  return {np.mean(self.returns):.1f}"
            status += "" if brief else f" (last {len(self.returns)} games)"
        return status + self._state

    def finish(self, parts: dict) -> int:
        """Save the checkpoint and the weights, `model.pt`; the status for the process to exit with.

        UsageError if they cannot be written.
        """
        with contextlib.suppress(OSError):  # the terminal may have gone away
            self.bar.close()
        self._require_finite(self.network.named_parameters())
        problem = None
        try:
            # First: once the last checkpoint is there, the run has finished.
            with written_whole(self.folder / "model.pt") as file:
                torch.save(self.network.state_dict(), file)
        except OSError as error:
            problem = error.strerror or error
        if problem is None:
            self.checkpoint(parts, now=True)
            problem = "the checkpoint could not be written" if self._warned else None
        if problem is not None:
            going_on = self.stopped is not None and has_checkpoint(self.folder)
            message = f"cannot save the run in {self.folder}: {problem}"
            if not going_on:
                raise UsageError(message)
            say(f"{message}; its last checkpoint is whole", sys.stderr)
        finished = self.step >= self.args.total_timesteps
        if problem is None and finished:
            with contextlib.suppress(OSError, UsageError):  # the checkpoint says so, too
                config = read_config(self.folder) | {"finished": self.step}
                write_json(self.folder / "config.json", config)
        if finished:
            seconds = self._elapsed + time.monotonic() - self._start
            spent = datetime.timedelta(seconds=int(seconds))
            say(f"done: {self.step:,} agent steps in {spent}, {self.folder}")
            return 0
        saved = self.checkpoints.step
        at = "" if saved == self.step else f" from {saved:,}"
        say(f"stopped at {self.step:,} agent steps; to go on{at}: --resume {self.folder}")
        return RESUME_ME

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):
            self.bar.close()
        if self.board is not None:
            self.board.flush()
        self._lock.close()
        if self._tracked is not None:
            self._tracked.finish(exit_code=int(exception[0] is not None))
