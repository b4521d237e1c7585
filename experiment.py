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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from atari import AtariEnvs
from board import Board, describe_run
from checkpoint import (
    Checkpoints,
    capture,
    copied,
    has_checkpoint,
    restore,
    tensors,
    written_whole,
)
from flags import UsageError, say
from hadamard import features
from metrics import MEASURES, kde_figure, measure_representation
from runfolder import describe, lock, read_config, resumed_config, saved_with, write_json

# A figure every so many measurements: it costs about as much as one, and 16 neurons change slowly.
FIGURE_EVERY = 10
# Seconds between two lines when the progress goes to a file instead of a terminal.
LINE_EVERY = 30.0
# Exit status of a run that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h.
RESUME_ME = 75
# SIGUSR1 and SIGUSR2: what Slurm is usually asked to send before a time limit.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def make_games(args) -> tuple[AtariEnvs, np.ndarray]:
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


@torch.no_grad()
def hidden_layers(network, obs: torch.Tensor, convolutions: bool) -> dict[str, torch.Tensor]:
    """What the hidden layers of a script's network say to obs, in fp32 whatever the precision.

    obs uint8 (samples, 4, 84, 84) -> activations (samples, features) of "z", of its "branch_0" ...
    where it has several, and with `convolutions` of "conv_1" ... A feature map counts as one
    neuron there, seen at one pixel per sample, drawn from a fixed seed: so the number of samples,
    on which the KDE test depends, is the same for every layer.
    """
    generator = torch.Generator().manual_seed(0)
    parts = collections.defaultdict(list)
    for part in obs.split(256):
        maps = network.encode(part)
        branches = network.latent.branch_activations(features(maps[-1]))
        parts["z"].append(network.latent.combine_branches(branches))
        for i, branch in enumerate(branches if len(branches) > 1 else ()):
            parts[f"branch_{i}"].append(branch)
        for i, layer in enumerate(maps if convolutions else (), start=1):
            pixel = torch.randint(layer[0, 0].numel(), (len(part),), generator=generator)
            sample = torch.arange(len(part))
            parts[f"conv_{i}"].append(layer.flatten(2)[sample, :, pixel])
    return {name: torch.cat(layer) for name, layer in parts.items()}


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
        self.stopped: int | None = None  # the signal that asked for it
        self.returns = collections.deque(maxlen=100)
        self._state = ""  # of the layer, when last measured
        self._measurements = 0
        self._last_values = {}  # of every tag, for the report of a divergence
        self._elapsed, self._start = 0.0, time.monotonic()  # earlier sessions; this one
        self._rates = collections.deque([(time.perf_counter(), 0)], maxlen=200)
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

    def _log(self, values: dict[str, float], step: int):
        """Scalars to TensorBoard and, with --track, in one call to Weights & Biases."""
        for tag, value in values.items():
            self.board.scalar(tag, value, step)
        if self._tracked is not None:
            self._tracked.log(values | {"global_step": step})

    def _request_stop(self, number, frame):
        if self._restoring:  # nothing to save yet, and the emulator is not waited for
            say(f"\n{signal.Signals(number).name}: {self.folder} has not gone on", sys.stderr)
            os._exit(RESUME_ME)
        self.stopped = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say(
            f"\n{signal.Signals(number).name}: stopping at the next safe point "
            "(Ctrl-C ends the run at once)",
            sys.stderr,
        )

    def resume(self, parts: dict, memory=None) -> dict | None:
        """What `checkpoint` saved, by name, where --resume asked for it; else None.

        Brings the parts back to it and fills `memory`, the replay memory. UsageError if no
        checkpoint is whole.
        """
        if not self.args.resume:
            return None
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
        saved, problems = self.checkpoints.load(memory)
        try:
            # In a thread: the emulator's calls can take long, and signals come to this one.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(restore, parts, saved).result()
            own, step = saved["run"], saved["step"]
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UsageError(
                f"--resume {self.folder}: its checkpoint does not fit: {error}"
            ) from None
        self._restoring = False
        for problem in problems:
            say(f"{problem}: going on from the checkpoint before it", sys.stderr)
        self.returns.extend(own["returns"])
        self._measurements, self._state = own["measurements"], own["layer"]
        self._elapsed = own["elapsed"]
        self.board = Board(self.folder, own["events"], purge_step=step + 1)
        self._rates[0] = (time.perf_counter(), step)
        self._next_checkpoint = time.monotonic() + 60 * self.args.checkpoint_every
        try:
            write_json(self.folder / "config.json", resumed_config(self.folder, self.config, step))
        except OSError as error:
            self._warn(f"config.json stays as it was: {error.strerror or error}", step)
        say(f"resumed at {step:,} agent steps")
        return saved

    def checkpoint(self, step: int, parts: dict, memory=None, now: bool = False):
        """Save these parts, by name, and the run itself, if it is time for it or `now`.

        Where it cannot be written, training goes on; it is tried again at the next time.
        UsageError if anything in it is NaN or inf: the run has diverged, and the last checkpoint
        stays.
        """
        if not now and time.monotonic() < self._next_checkpoint:
            return
        self._next_checkpoint = time.monotonic() + 60 * self.args.checkpoint_every
        content = capture(parts)
        self._require_finite(step, tensors(content))
        try:
            own = {
                "returns": list(self.returns),
                "measurements": self._measurements,
                "layer": self._state,
                "elapsed": self._elapsed + time.monotonic() - self._start,
                "events": self.board.sync(),
            }
            self.checkpoints.save(step, content | {"step": step, "run": own}, memory)
        except OSError as error:
            self._warn(f"no checkpoint at {step:,} agent steps: {error.strerror or error}", step)
        else:
            self._warned = False

    def whole(self, parts: dict, update: Callable, step: int) -> dict | None:
        """What `update(self)` returns, which learns from a whole rollout and changes these parts.

        None, and they are as before, if it broke off as the run has to stop: it is done as a whole
        once the run goes on. The last update of a run is not broken off: nothing would go on.
        """
        if step >= self.args.total_timesteps:
            return update(None)
        before = copied(parts)
        values = update(self)
        if values is None:
            restore(parts, before)
        return values

    def _warn(self, text: str, step: int):
        self._warned = True
        say(f"warning: {text}; training goes on, it is tried again", sys.stderr)
        self.board.text("warnings", text, step)  # once there is room

    def _require_finite(self, step: int, named):
        """UsageError for the first of these (name, tensor) that has NaN or inf; see `diverged`."""
        for name, tensor in named:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                self.diverged(f"{name} has NaN or inf", step)

    def diverged(self, what: str, step: int):
        """UsageError, after a report of where a number left the finite ones: `diverged.json`."""
        report = {
            "step": step,
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
            f"the run has diverged: at {step:,} agent steps {what}; a smaller --learning-rate may "
            f"help; values and weights are in {self.folder}/diverged.json and .pt"
        )

    def scalars(self, step: int, values: dict[str, float]):
        """Write these tags at this agent step.

        UsageError if one of them, or a weight of the network, is NaN or inf: the run has diverged.
        """
        self._log(values, step)
        self._last_values |= values
        for tag, value in values.items():
            if not math.isfinite(value):
                self.diverged(f"{tag} is {value}", step)
        # The losses were computed before the last step of the optimizer, which may break a weight.
        self._require_finite(step, self.network.named_parameters())

    def episodes(self, step: int, infos: dict):
        """Write the raw return and the length (agent steps) of every game that ended."""
        if "episode" not in infos:
            return
        episode = infos["episode"]
        for i in np.flatnonzero(episode["_r"]):
            score, length = float(episode["r"][i]), float(episode["l"][i])
            self.returns.append(score)
            self._log({"charts/episodic_return": score, "charts/episodic_length": length}, step)

    def representation(
        self,
        step: int,
        obs: torch.Tensor,
        head: torch.nn.Linear,
        contribution: str = "q_contribution",
    ):
        """Measure z, its branches and its head over the observations obs (samples, 4, 84, 84).

        With --apply-to all the convolutions, too. `contribution` is the tag of what live and dead
        neurons bring into the outputs of `head`: see `measure_representation`.
        """
        layers = hidden_layers(self.network, obs, self.args.apply_to == "all")
        self._require_finite(step, layers.items())
        values = measure_representation(layers, head.weight, head.bias, contribution)
        self.scalars(step, values)
        self._state = f"  dead {values['representation/dead_kde']:.0%}"
        self._state += f"  rank {values['representation/effective_rank']}"
        if self._measurements % FIGURE_EVERY == 0:
            shown = {name: layer for name, layer in layers.items() if "conv" not in name}
            image = kde_figure(shown)
            self.board.image("representation/kde", image, step)
        self._measurements += 1
        self.board.flush()

    def progress(self, step: int, now: float | None = None):
        """Show steps, speed over the last seconds, time left, score and state of the layer."""
        now = time.perf_counter() if now is None else now
        while len(self._rates) > 2 and now - self._rates[0][0] > 10:
            self._rates.popleft()
        then, step_then = self._rates[0]
        self._rates.append((now, step))
        rate = (step - step_then) / max(now - then, 1e-9)
        if rate > 0:  # none yet where a run goes on with the update that its stop had undone
            self._log({"charts/SPS": rate}, step)
        if self.board.problem is not None and not self._warned:
            self._warn(f"the curves cannot be written: {self.board.problem.strerror}", step)
        if self.returns:
            self._log({"charts/mean_return_100": float(np.mean(self.returns))}, step)
        if sys.stderr.isatty():
            self.bar.n = min(step, self.args.total_timesteps)
            with contextlib.suppress(OSError):
                self.bar.set_description_str(self._status(step, rate, brief=True))
        elif now >= self._next_line or step >= self.args.total_timesteps:
            self._next_line = now + LINE_EVERY
            share = min(step / self.args.total_timesteps, 1.0)
            say(f"{share:4.0%}  {self._status(step, rate)}", sys.stderr)

    def _status(self, step: int, rate: float, brief: bool = False) -> str:
        """One line; the brief one fits a terminal of 80 columns."""
        status = f"{step:,}/{self.args.total_timesteps:,}" + ("" if brief else " steps")
        if rate > 0:
            left = max(self.args.total_timesteps - step, 0) / rate
            eta = datetime.timedelta(seconds=int(min(left, 3e9)))
            status += f"  {rate:,.0f}/s  ETA {eta}"
        if self.returns:
            status += f"  return {np.mean(self.returns):.1f}"
            status += "" if brief else f" (last {len(self.returns)} games)"
        return status + self._state

    def finish(self, step: int, parts: dict, memory=None) -> int:
        """Save the checkpoint and the weights, `model.pt`; the status for the process to exit with.

        UsageError if they cannot be written.
        """
        with contextlib.suppress(OSError):  # the terminal may have gone away
            self.bar.close()
        self._require_finite(step, self.network.named_parameters())
        problem = None
        try:
            # First: once the last checkpoint is there, the run has finished.
            with written_whole(self.folder / "model.pt") as file:
                torch.save(self.network.state_dict(), file)
        except OSError as error:
            problem = error.strerror or error
        if problem is None:
            self.checkpoint(step, parts, memory, now=True)
            problem = "the checkpoint could not be written" if self._warned else None
        if problem is not None:
            going_on = self.stopped is not None and has_checkpoint(self.folder)
            message = f"cannot save the run in {self.folder}: {problem}"
            if not going_on:
                raise UsageError(message)
            say(f"{message}; its last checkpoint is whole", sys.stderr)
        if problem is None and step >= self.args.total_timesteps:
            with contextlib.suppress(OSError, UsageError):  # the checkpoint says so, too
                config = read_config(self.folder) | {"finished": step}
                write_json(self.folder / "config.json", config)
        if self.stopped is None:
            seconds = self._elapsed + time.monotonic() - self._start
            spent = datetime.timedelta(seconds=int(seconds))
            say(f"done: {step:,} agent steps in {spent}, {self.folder}")
            return 0
        saved = self.checkpoints.step
        at = "" if saved == step else f" from {saved:,}"
        say(f"stopped at {step:,} agent steps; to go on{at}: --resume {self.folder}")
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
