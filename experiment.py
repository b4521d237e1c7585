"""One run: device and memory, folder, TensorBoard, progress line, signals and final weights.

A run folder holds `config.json` (everything that decides the run: flags, versions, git commit,
device), the TensorBoard event files and, at the end, `model.pt`. The x axis of every curve is agent
steps; one agent step is 4 emulator frames.
"""

import collections
import contextlib
import ctypes
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from atari import game_title, resolve_game
from flags import UsageError, variant_name
from metrics import MEASURES, kde_figure, measure_representation

FRAMES = (4, 84, 84)  # of an observation
# A figure every so many measurements: it costs about as much as one, and 16 neurons change slowly.
FIGURE_EVERY = 10
# Seconds between two lines when the progress goes to a file instead of a terminal.
LINE_EVERY = 30.0


def say(text: str, file=None):
    """Print at once; a reader that has gone away (a closed pipe or terminal) ends no run."""
    with contextlib.suppress(OSError):
        print(text, file=file or sys.stdout, flush=True)


def announce_games(num_envs: int):
    """Say that many games are being made and seeded, which takes up to 0.2 s each."""
    if num_envs >= 16:
        say(
            f"making {num_envs} games: up to {0.2 * num_envs:.0f} s, of which Ctrl-C waits for half"
        )


def pick_device(name: str) -> torch.device:
    """The device for auto, cpu or cuda; on the CPU, freed memory is kept for the next update."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and platform.libc_ver()[0] == "glibc":
        # By default glibc returns buffers above 128 kB to the system when they are freed and pays
        # for fresh pages at the next update: up to half the time of a training step.
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # names and values from malloc.h
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    return torch.device(name)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be taken on the device; inf where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = math.inf
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        free = int(available.split()[1]) * 1024
    # Containers and batch systems limit a job's control group or one above it.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next(line[3:] for line in lines if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup") / group.strip("/")
        for level in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError, KeyError):  # ValueError: no limit, "max"
                limit = int((level / "memory.max").read_text())
                counts = dict(line.split() for line in (level / "memory.stat").open())
                used = int((level / "memory.current").read_text())
                # Page cache counts as used, though the system drops it when memory is short.
                free = min(free, limit - used + int(counts["inactive_file"]))
    return free


def require_memory(what: str, count: int, bytes_each: int, device: torch.device):
    """UsageError, before any is taken, if the device has not the memory for `count` of something.

    `what` names it, with the flag that asks for that many.
    """
    needed, free = count * bytes_each, free_memory(device)
    if needed > 0.95 * free:
        raise UsageError(
            f"{what} needs {needed / 1e9:.1f} GB of memory on {device} and {free / 1e9:.1f} GB are "
            f"free: choose at most {int(0.9 * free / bytes_each)}"
        )


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
        branches = network.latent.branch_activations(maps[-1].flatten(1))
        parts["z"].append(network.latent.combine_branches(branches))
        for i, branch in enumerate(branches if len(branches) > 1 else ()):
            parts[f"branch_{i}"].append(branch)
        for i, layer in enumerate(maps if convolutions else (), start=1):
            pixel = torch.randint(layer[0, 0].numel(), (len(part),), generator=generator)
            sample = torch.arange(len(part))
            parts[f"conv_{i}"].append(layer.flatten(2)[sample, :, pixel])
    return {name: torch.cat(layer) for name, layer in parts.items()}


class RecentObs:
    """The newest observations of rollouts, uint8 (count, 4, 84, 84), for the measures.

    Raises UsageError, before any is taken, if the free memory of the device cannot hold them.
    """

    def __init__(self, count: int, device: torch.device):
        require_memory(f"--metrics-samples {count}", 2 * count, math.prod(FRAMES), device)
        self.frames = torch.empty(count, *FRAMES, dtype=torch.uint8, device=device)
        self.seen = 0

    def add(self, obs: torch.Tensor):
        """Take the observations (steps, envs, 4, 84, 84) of a rollout."""
        count = len(self.frames)
        newest = obs.flatten(0, 1)[-count:]
        self.seen += obs.shape[0] * obs.shape[1]
        rows = torch.arange(self.seen - len(newest), self.seen, device=obs.device) % count
        self.frames[rows] = newest

    def newest(self) -> torch.Tensor | None:
        """All of them, oldest first; None until there are as many."""
        count = len(self.frames)
        return self.frames.roll(-(self.seen % count), 0) if self.seen >= count else None


def diverged(what: str, step: int) -> UsageError:
    """The error of a run of which `what`, a weight or what came of them, is not finite."""
    return UsageError(f"diverged: {what} at step {step}; try a smaller --learning-rate")


def provenance(args) -> dict:
    """What decides a result: flags, command, commit, machine, versions."""

    def git(*command):
        folder = Path(__file__).parent
        with contextlib.suppress(OSError):
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True)
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    changes = git("status", "--porcelain", "--untracked-files=no")
    requirements = (Path(__file__).parent / "requirements.txt").read_text()
    libraries = re.findall(r"^([\w-]+)==", requirements, flags=re.MULTILINE)
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return {
        "flags": dataclasses.asdict(args),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": git("rev-parse", "HEAD"),
        "git_has_changes": None if changes is None else bool(changes),
        "processor": f"{processor}, {os.cpu_count()} cores",
        "torch_threads": torch.get_num_threads(),  # sums depend on it in their last bits
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in libraries},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe(args, algorithm: str, num_parameters: int, device: torch.device) -> dict:
    """What decides a run, for `config.json`."""
    return {
        "algorithm": algorithm,
        "game": game_title(resolve_game(args.env_id)),
        "variant": variant_name(args),
        "num_parameters": num_parameters,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    } | provenance(args)


class Run:
    """The outside of one training run; a context manager that leaves its files complete.

    Makes the folder `{runs_dir}/{Game}__{algorithm}__{variant}__s{seed}__{time}`. `losses` are the
    tags below losses/ that the script will write, for the layout of the charts. SIGINT, SIGTERM and
    SIGHUP only set `stopped`, for the loop to end at a safe point; a second SIGINT ends at once.

    Raises UsageError if the folder cannot be written.
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
        self._rates = collections.deque([(time.perf_counter(), 0)], maxlen=200)
        self._next_line = 0.0

        if args.track:
            import wandb  # optional: only who asks for it needs it

        with self._folder_or_nothing() as self.folder:
            (self.folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
            if args.track:
                wandb.init(
                    project="hadamard-rl",
                    name=self.folder.name,
                    config=self.config,
                    sync_tensorboard=True,
                )
            self.writer = SummaryWriter(str(self.folder))
            self._write_hyperparameters(losses)
            self._handlers = {
                number: signal.signal(number, self._request_stop)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            }
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

    def _write_hyperparameters(self, losses: tuple[str, ...]):
        rows = "\n".join(f"|{key}|{value}|" for key, value in self.config["flags"].items())
        self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        # Written into this run itself: SummaryWriter.add_hparams would open a second run folder.
        columns = self.config["flags"] | {
            key: self.config[key] for key in ("game", "algorithm", "variant")
        }
        tags = ["charts/mean_return_100", *(f"representation/{name}" for name in MEASURES)]
        for summary in hparams(columns, dict.fromkeys(tags, 0.0)):
            self.writer.file_writer.add_summary(summary)
        layout = {
            "score": [f"charts/{name}" for name in ("mean_return_100", "episodic_return")],
            # z and its branches in one chart
            "representation": [f"representation/(branch_[0-9]+/)?{name}$" for name in MEASURES],
            "losses": [f"losses/{name}" for name in losses],
        }
        if self.args.apply_to == "all":
            layout["every layer"] = [f"representation/(conv_[0-9]+/)?{name}$" for name in MEASURES]
        layout = {
            group: {tag.split("/")[-1].strip(")?$"): ["Multiline", [tag]] for tag in tags}
            for group, tags in layout.items()
        }
        self.writer.add_custom_scalars(layout)

    def _request_stop(self, number, frame):
        self.stopped = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say(
            f"\n{signal.Signals(number).name}: stopping at the next safe point "
            "(Ctrl-C ends the run at once)",
            sys.stderr,
        )

    def scalars(self, step: int, values: dict[str, float]):
        """Write these tags at this agent step.

        UsageError if one of them, or a weight of the network, is NaN or inf: the run has diverged.
        """
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        wrong = [f"{tag} is {value}" for tag, value in values.items() if not math.isfinite(value)]
        # The losses were computed before the last step of the optimizer, which may break a weight.
        weights = self.network.named_parameters()
        wrong += [f"{name} has NaN or inf" for name, w in weights if not torch.isfinite(w).all()]
        if wrong:
            raise diverged(wrong[0], step)

    def episodes(self, step: int, infos: dict):
        """Write the raw return and the length (agent steps) of every game that ended."""
        if "episode" not in infos:
            return
        episode = infos["episode"]
        for i in np.flatnonzero(episode["_r"]):
            self.returns.append(float(episode["r"][i]))
            self.writer.add_scalar("charts/episodic_return", episode["r"][i], step)
            self.writer.add_scalar("charts/episodic_length", episode["l"][i], step)

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
        for name, layer in layers.items():
            if not torch.isfinite(layer).all():
                raise diverged(f"{name} has NaN or inf", step)
        values = measure_representation(layers, head.weight, head.bias, contribution)
        self.scalars(step, values)
        self._state = f"  dead {values['representation/dead_kde']:.0%}"
        self._state += f"  rank {values['representation/effective_rank']}"
        if self._measurements % FIGURE_EVERY == 0:
            shown = {name: layer for name, layer in layers.items() if "conv" not in name}
            image = kde_figure(shown)
            self.writer.add_image("representation/kde", image, step, dataformats="HWC")
        self._measurements += 1
        self.writer.flush()

    def progress(self, step: int, now: float | None = None):
        """Show steps, speed over the last seconds, time left, score and state of the layer."""
        now = time.perf_counter() if now is None else now
        while len(self._rates) > 2 and now - self._rates[0][0] > 10:
            self._rates.popleft()
        then, step_then = self._rates[0]
        self._rates.append((now, step))
        rate = (step - step_then) / max(now - then, 1e-9)
        self.writer.add_scalar("charts/SPS", rate, step)
        if self.returns:
            self.writer.add_scalar("charts/mean_return_100", np.mean(self.returns), step)
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
        left = max(self.args.total_timesteps - step, 0) / max(rate, 1e-9)
        eta = datetime.timedelta(seconds=int(min(left, 3e9)))
        steps = f"{step:,}/{self.args.total_timesteps:,}" + ("" if brief else " steps")
        status = f"{steps}  {rate:,.0f}/s  ETA {eta}"
        if self.returns:
            status += f"  return {np.mean(self.returns):.1f}"
            status += "" if brief else f" (last {len(self.returns)} games)"
        return status + self._state

    def finish(self, step: int) -> int:
        """Save the weights as `model.pt`; the status for the process to exit with."""
        with contextlib.suppress(OSError):  # the terminal may have gone away
            self.bar.close()
        temporary = self.folder / "model.pt.tmp"
        try:
            torch.save(self.network.state_dict(), temporary)
            temporary.replace(self.folder / "model.pt")
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            reason = str(error).split("\n")[0]
            raise UsageError(f"cannot save the weights in {self.folder}: {reason}") from None
        if self.stopped is None:
            say(f"done: {step:,} agent steps, {self.folder}")
            return 0
        say(f"stopped at {step:,} agent steps, {self.folder}")
        return 128 + self.stopped

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):
            self.bar.close()
        self.writer.close()
        if self.args.track:
            import wandb

            wandb.finish(exit_code=int(exception[0] is not None))
