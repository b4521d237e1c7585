"""One run: its flags checked, its folder, TensorBoard, progress line, signals and final weights.

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
import importlib.util
import io
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
import tyro
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from atari import game_title, resolve_game
from hadamard import ACTIVATIONS, COMBINES
from metrics import MEASURES, kde_figure, measure_representation

# A figure every so many measurements: it costs about as much as one, and 16 neurons change slowly.
FIGURE_EVERY = 10
# Seconds between two lines when the progress goes to a file instead of a terminal.
LINE_EVERY = 30.0


class UsageError(Exception):
    """Something a user can mend, told in one line: what is wrong and what would be right."""


def launch(main, args_class):
    """Parse the command line into `args_class`, run `main(args)` and exit with its status.

    A `UsageError` and a flag that does not parse end in one line on stderr and status 2.
    """
    try:
        sys.exit(main(parse_flags(args_class)))
    except UsageError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def parse_flags(args_class, argv=None):
    """The dataclass from the command line; tyro's boxed complaints become one `UsageError` line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(args_class, args=argv)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        # Sections between rules, of which the second says it; in plain ASCII where the terminal is.
        sections = [""]
        for line in complaint.getvalue().splitlines():
            if re.search("─{3}|-{3}", line):
                sections.append("")
            else:
                sections[-1] += " " + line.strip("│| ")
        text = sections[1].strip() if len(sections) > 1 else "the flags do not parse"
        words = complaint.getvalue().split()
        flags = [flag(field.name) for field in dataclasses.fields(args_class)]
        similar = [name for name in flags if name in words]
        hint = f" (did you mean {similar[0]}?)" if similar and "Unrecognized" in text else ""
        raise UsageError(f"{text}{hint}; --help lists the flags") from None


def say(text: str, file=None):
    """Print at once; a reader that has gone away (a closed pipe or terminal) ends no run."""
    with contextlib.suppress(OSError):
        print(text, file=file or sys.stdout, flush=True)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def require(args, condition: str, accept, *names: str):
    """UsageError for the first of these flags whose value `accept` refuses, or is NaN or vast."""
    for name in names:
        value = getattr(args, name)
        if not abs(value) < 1e18:
            raise UsageError(f"{flag(name)} must be {condition} and below 1e18, not {value}")
        if not accept(value):
            raise UsageError(f"{flag(name)} must be {condition}, not {value}")


def require_one_of(args, name: str, choices):
    if getattr(args, name) not in choices:
        choices = ", ".join(choices)
        raise UsageError(f"unknown {flag(name)} {getattr(args, name)!r}: choose one of {choices}")


def check_shared_flags(args):
    """UsageError for a bad value of any flag that all scripts share; nothing is touched."""
    try:
        resolve_game(args.env_id)
    except ValueError as error:
        raise UsageError(str(error)) from None
    require_one_of(args, "activation", ACTIVATIONS)
    require_one_of(args, "combine", COMBINES)
    require_one_of(args, "apply_to", ("last", "all"))
    require_one_of(args, "device", ("auto", "cpu", "cuda"))
    require_one_of(args, "precision", ("fp32", "bf16"))
    positive = ("total_timesteps", "branches", "latent_dim", "metrics_every")
    require(args, "at least 1", lambda value: value >= 1, *positive)
    # A game takes a tenth of a second to make, and some megabytes.
    require(args, "between 1 and 4096", lambda value: 1 <= value <= 4096, "num_envs")
    require(args, "at least 0", lambda value: value >= 0, "env_threads")
    seeds = 2**31 - 1 - args.num_envs
    require(args, f"between 0 and {seeds}", lambda value: 0 <= value <= seeds, "seed")
    require(args, "in [0, 1)", lambda value: 0 <= value < 1, "sticky_actions")
    smallest = max(512, args.latent_dim)
    require(
        args,
        f"at least {smallest} (a rank needs as many samples as there are features)",
        lambda value: value >= smallest,
        "metrics_samples",
    )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no CUDA device; use --device cpu or auto")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise UsageError("--track needs Weights & Biases: pip install wandb, or leave --track out")
    parent = Path(args.runs_dir).absolute()
    try:
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
    except OSError as error:
        raise UsageError(f"--runs-dir {args.runs_dir}: {error.strerror}") from None
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"--runs-dir {args.runs_dir}: {parent} is not a folder one can write to")


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


@contextlib.contextmanager
def taking_memory(what: str):
    """UsageError for an allocation in this block that the system refuses."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error) + type(error).__name__:
            raise
        raise UsageError(f"not enough memory for {what} (the system refused it)") from None


def variant_name(args) -> str:
    """The paper's name for the hidden layer that the flags ask for, e.g. relu, tanh-hr, tanh-sum.

    Settings beyond the paper's get names of the same pattern, e.g. silu-hr or tanh-hr-ln.
    """
    name = args.activation
    if args.branches > 1:
        count = "" if args.branches == 2 else str(args.branches)
        name += f"-{count}{'hr' if args.combine == 'product' else 'sum'}"
    if args.latent_dim != 512:
        name += "-wide" if args.latent_dim == 1024 else f"-z{args.latent_dim}"
    if args.layer_norm:
        name += "-ln"
    return name + ("-all" if args.apply_to == "all" else "")


def describe(args, algorithm: str, num_parameters: int, device: torch.device) -> dict:
    """What decides a run, for `config.json`."""

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
        "algorithm": algorithm,
        "game": game_title(resolve_game(args.env_id)),
        "variant": variant_name(args),
        "num_parameters": num_parameters,
        "flags": dataclasses.asdict(args),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": git("rev-parse", "HEAD"),
        "git_has_changes": None if changes is None else bool(changes),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": f"{processor}, {os.cpu_count()} cores",
        "torch_threads": torch.get_num_threads(),  # sums depend on it in their last bits
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in libraries},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class Run:
    """The outside of one training run; a context manager that leaves its files complete.

    Makes the folder `{runs_dir}/{Game}__{algorithm}__{variant}__s{seed}__{time}`. SIGINT,
    SIGTERM and SIGHUP only set `stopped`, for the loop to end at a safe point; a second SIGINT ends
    at once.

    Raises UsageError if the folder cannot be written.
    """

    def __init__(self, args, algorithm: str, num_parameters: int, device: torch.device):
        self.args = args
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
            self._write_hyperparameters()
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

    def _write_hyperparameters(self):
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
            "losses": ["losses/td_loss", "losses/q_values"],
        }
        layout = {
            group: {tag.split("/")[-1].strip(")?$"): ["Multiline", [tag]] for tag in tags}
            for group, tags in layout.items()
        }
        self.writer.add_custom_scalars(layout)

    def _request_stop(self, number, frame):
        self.stopped = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say(f"\n{signal.Signals(number).name}: stopping", sys.stderr)

    def scalars(self, step: int, values: dict[str, float]):
        """Write these tags at this agent step. UsageError for NaN or inf: the run has diverged."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
            if not math.isfinite(value):
                raise UsageError(
                    f"diverged: {tag} is {value} at step {step}; try a smaller --learning-rate"
                )

    def episodes(self, step: int, infos: dict):
        """Write the raw return and the length (agent steps) of every game that ended."""
        if "episode" not in infos:
            return
        episode = infos["episode"]
        for i in np.flatnonzero(episode["_r"]):
            self.returns.append(float(episode["r"][i]))
            self.writer.add_scalar("charts/episodic_return", episode["r"][i], step)
            self.writer.add_scalar("charts/episodic_length", episode["l"][i], step)

    def representation(self, step: int, layers: dict[str, torch.Tensor], head: torch.nn.Linear):
        """Measure z and its branches and the head that reads z: see `measure_representation`."""
        values = measure_representation(layers, head.weight, head.bias)
        self.scalars(step, values)
        self._state = f"  dead {values['representation/dead_kde']:.0%}"
        self._state += f"  rank {values['representation/effective_rank']}"
        if self._measurements % FIGURE_EVERY == 0:
            image = kde_figure(layers)
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

    def finish(self, step: int, network: torch.nn.Module) -> int:
        """Save the weights as `model.pt`; the status for the process to exit with."""
        with contextlib.suppress(OSError):  # the terminal may have gone away
            self.bar.close()
        temporary = self.folder / "model.pt.tmp"
        try:
            torch.save(network.state_dict(), temporary)
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
