"""Refusals of flags that cannot work, before anything is made: what all scripts share."""

import importlib.util
import math
import re

from hadamard import ACTIVATIONS, COMBINES, INITS
from lab.common.cli import UsageError, above, at_least, below, between, check_folder, one_of
from lab.common.device import check_device, require_memory, resolve_device
from lab.common.variants import HADAMAX_FLAGS
from lab.training.atari import resolve_game
from lab.training.encoder import (
    ENCODERS,
    branches_of_z,
    count_hidden_parameters,
    map_sides,
    resolve_widths,
)
from lab.training.frames import OBS_SHAPE
from lab.training.replay import TRANSITION_BYTES

PRECISIONS = ("fp32", "bf16", "tf32")


def check_shared_flags(args):
    """Raise UsageError for a bad value of any flag that all scripts share; nothing is touched."""
    check_machine(args)
    one_of(args, ACTIVATIONS, "activation")
    one_of(args, COMBINES, "combine")
    one_of(args, INITS, "init")
    one_of(args, ("last", "all"), "apply_to")
    one_of(args, PRECISIONS, "precision")
    if args.precision == "tf32" and resolve_device(args.device).type == "cpu":
        raise UsageError("--precision tf32 needs a CUDA device: use fp32 or bf16 on the CPU")
    at_least(args, 1, "total_timesteps", "branches", "latent_dim", "metrics_every")
    # A game takes a tenth of a second to make, and some megabytes.
    between(args, 1, 4096, "num_envs")
    between(args, 0, 1024, "env_threads")
    between(args, 0, 2**31 - 1 - args.num_envs, "seed")
    at_least(args, 0, "sticky_actions", "checkpoint_every")
    below(args, 1, "sticky_actions")
    check_encoder(args)
    check_width(args)
    smallest = max(512, resolve_widths(args).z)
    if args.metrics_samples < smallest:
        raise UsageError(
            f"--metrics-samples must be at least {smallest} (a rank needs as many samples as z has "
            f"features), not {args.metrics_samples}: choose more, or a smaller --latent-dim"
        )
    if args.track and importlib.util.find_spec("wandb") is None:
        raise UsageError("--track needs Weights & Biases: pip install wandb, or leave --track out")
    if not re.fullmatch(r"(?!.*__)[\w.+-]{0,40}", args.tag, re.ASCII) or args.tag[:1] in (".", "-"):
        raise UsageError(
            f"--tag {args.tag!r} must be at most 40 letters, digits and .+-_, such as lr-warmup, "
            "without two _ in a row"
        )
    if not args.resume:
        check_folder(args, "runs_dir")


def check_encoder(args):
    """Raise UsageError for an unknown --encoder, or flags that make it another network."""
    one_of(args, ENCODERS, "encoder")
    if args.encoder == "hadamax":
        for name, value in HADAMAX_FLAGS.items():
            if getattr(args, name) != value:
                raise UsageError(
                    "--encoder hadamax has GELU and LayerNorm in all layers: it needs --activation "
                    "gelu_tanh --layer-norm --apply-to all"
                )


def check_width(args):
    """Raise UsageError for a --width that is none, or leaves a layer without features."""
    if args.width == "match":
        if args.branches != 1:
            raise UsageError(
                "--width match makes the plain network as large as its twin of two branches: it "
                f"needs --branches 1, not {args.branches}"
            )
    elif isinstance(args.width, str):
        raise UsageError(f"--width must be a number above 0 or match, not {args.width!r}")
    else:
        above(args, 0, "width")
    widths = resolve_widths(args)
    if min(*widths.channels, widths.z) < 1:
        channels = ", ".join(map(str, widths.channels))
        raise UsageError(
            f"--width {args.width} leaves {channels} channels and {widths.z} features in z: it "
            "must be large enough for one of each"
        )


def check_machine(args):
    """Raise UsageError for a game or a device that is not there."""
    try:
        resolve_game(args.env_id)
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_device(args)


def check_rollout_flags(args):
    """Raise UsageError unless rollouts divide into minibatches and fit into the run."""
    at_least(args, 1, "num_steps", "num_minibatches", "update_epochs")
    batch_size = args.num_envs * args.num_steps
    rollout = f"--num-envs {args.num_envs} times --num-steps {args.num_steps} is {batch_size} steps"
    if batch_size > args.total_timesteps:
        raise UsageError(
            f"{rollout} per rollout: more than --total-timesteps {args.total_timesteps}; it must "
            "be at most that"
        )
    if batch_size % args.num_minibatches:
        # The nearest that does; 10,000 on either side are enough for any real batch.
        start = min(args.num_minibatches, batch_size)
        near = (start + sign * k for k in range(10_000) for sign in (-1, 1))
        closest = next((n for n in near if n > 0 and batch_size % n == 0), 1)
        raise UsageError(
            f"{rollout}, which --num-minibatches {args.num_minibatches} does not divide: {closest} "
            "would"
        )


def check_memory(args):
    """Raise UsageError if the device has not the memory that these flags ask for."""
    device = resolve_device(args.device)
    widths = resolve_widths(args)
    # Weights, gradients, two moments and a target network (DQN), fp32. Of the flags that multiply
    # them the unusual one is named.
    hidden = 5 * 4 * count_hidden_parameters(args, widths, args.branches)
    if args.width != 1:
        what = f"--width {args.width} with --latent-dim {args.latent_dim} and "
        require_memory(f"{what}--branches {args.branches}", 1, hidden, device)
    elif args.branches > 8:
        each = hidden // args.branches
        require_memory(f"--branches {args.branches}", args.branches, each, device)
    else:
        each = hidden // args.latent_dim
        require_memory(f"--latent-dim {args.latent_dim}", args.latent_dim, each, device)
    obs = math.prod(OBS_SHAPE)
    # Of the convolutions, for one observation.
    maps = zip(widths.channels, map_sides(args)[0], strict=True)
    activations = sum(channels * side**2 for channels, side in maps)
    if args.apply_to == "all":
        activations *= args.branches
    activations += widths.z * branches_of_z(args, args.branches)
    # fp32: the observation, and each activation with its pre-activation and its gradient.
    sample = 4 * obs + 12 * activations
    if hasattr(args, "buffer_size"):
        what = f"--buffer-size {args.buffer_size}"
        require_memory(what, args.buffer_size + 4 * args.num_envs, TRANSITION_BYTES, device)
        require_memory(f"--batch-size {args.batch_size}", args.batch_size, sample, device)
        # They are gathered as whole transitions: five frames each, copied into obs and next_obs.
        newest = 2 * obs + 5 * obs // 4
        what = f"--metrics-samples {args.metrics_samples}"
        require_memory(what, args.metrics_samples, newest, device)
        return
    steps = args.num_envs * args.num_steps
    what = f"--num-envs {args.num_envs} times --num-steps {args.num_steps}, {steps} observations,"
    require_memory(what, steps, obs, device)
    minibatch = steps // args.num_minibatches
    what = f"--num-minibatches {args.num_minibatches}: a minibatch of {minibatch}"
    require_memory(what, minibatch, sample, device)
    what = f"--metrics-samples {args.metrics_samples}"
    require_memory(what, 2 * args.metrics_samples, obs, device)
