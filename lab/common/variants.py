"""The names of the variants of a hidden layer, from the flags and back: tanh-hr, relu, tanh-3hr."""

import dataclasses
import re
from collections.abc import Collection

from lab.common.cli import UsageError

NAMED_VARIANTS = (
    *("relu", "tanh", "sigmoid", "selu", "tanh-hr", "sigmoid-hr", "relu-hr"),
    *("tanh-ln", "tanh-wide", "tanh-sum", "tanh-3hr", "tanh-match", "relu-match"),
    *("hadamax", "hadamax-plain"),  # of arXiv 2505.15345
)
# What Hadamax is besides its convolutions; its z is a plain layer of the same activation and norm.
HADAMAX_FLAGS = {"activation": "gelu_tanh", "layer_norm": True, "apply_to": "all"}
# Flags that a variant's name stands for.
VARIANT_FLAGS = ("activation", "branches", "combine", "latent_dim", "width", "layer_norm")
VARIANT_FLAGS += ("apply_to", "encoder")
# Flags that change no number that a run computes: the emulator's threads and CUDA graphs change its
# speed alone.
FREE_FLAGS = ("resume", "checkpoint_every", "runs_dir", "track", "env_threads", "cuda_graphs")

# Flags that came in later, and what the runs had that were made before.
ADDED_FLAGS = {"tag": ""}


def variant_name(args) -> str:
    """Return the paper's name for the hidden layers that the flags ask for: relu, tanh-hr, ...

    Settings beyond the paper's get names of the same pattern, e.g. silu-hr or tanh-hr-ln. Whether
    the norm and the layers that change are named depends on the script's own defaults: `tanh-hr` is
    what the paper does with that algorithm.
    """
    default = {field.name: field.default for field in dataclasses.fields(args)}
    is_hadamax = args.encoder == "hadamax"
    name = args.activation
    if is_hadamax:  # which has GELU and LayerNorm in all layers, and by itself two branches
        name = "hadamax-plain" if args.branches == 1 else "hadamax"
        default |= HADAMAX_FLAGS
    if args.branches > 1 and (args.branches, args.combine, is_hadamax) != (2, "product", True):
        count = "" if args.branches == 2 else str(args.branches)
        name += f"-{count}{'hr' if args.combine == 'product' else 'sum'}"
    if args.latent_dim != 512:
        name += "-wide" if args.latent_dim == 1024 else f"-z{args.latent_dim}"
    if args.width == "match":
        name += "-match"
    elif args.width != 1:
        name += f"-w{args.width}".removesuffix(".0")
    if args.layer_norm != default["layer_norm"]:
        name += "-ln" if args.layer_norm else "-noln"
    if args.apply_to != default["apply_to"]:
        name += f"-{args.apply_to}"
    return name


def variant_flags(name: str, activations: Collection[str]) -> list[str]:
    """Return the flags of a variant by its name, as `variant_name` gives it: silu-3sum-z256-ln.

    Raises UsageError for a name of another pattern or activation. Whether the algorithm calls it
    so, too, the caller sees by `variant_name`: PQN is layer-normalised, so what DQN calls tanh-ln
    is its tanh.
    """
    number = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
    parts = (r"(?:-(\d*)(hr|sum))?", r"(?:-(wide)|-z(\d+))?", f"(?:-(match)|-w({number}))?")
    parts += ("(?:-(ln|noln))?", "(?:-(last|all))?")
    pattern = f"(hadamax-plain|hadamax|{'|'.join(activations)}){''.join(parts)}"
    if (match := re.fullmatch(pattern, name)) is None:
        raise UsageError(
            f"unknown variant {name!r}: choose one of {', '.join(NAMED_VARIANTS)}, or "
            "one of their pattern, such as silu-3hr-z256-ln"
        )
    activation, count, combined, wide, latent_dim, matched, width, norm, apply_to = match.groups()
    branches = str(count or 2) if combined or activation == "hadamax" else "1"
    flags = ["--activation", activation, "--branches", branches]
    if activation.startswith("hadamax"):
        activation, apply_to = HADAMAX_FLAGS["activation"], apply_to or HADAMAX_FLAGS["apply_to"]
        flags = ["--encoder", "hadamax", "--activation", activation, "--branches", branches]
        norm = norm or "ln"
    if combined:
        flags += ["--combine", "product" if combined == "hr" else "sum"]
    if wide or latent_dim:
        flags += ["--latent-dim", latent_dim or "1024"]
    if matched or width:
        flags += ["--width", matched or width]
    if norm:
        flags += ["--layer-norm" if norm == "ln" else "--no-layer-norm"]
    if apply_to:
        flags += ["--apply-to", apply_to]
    return flags
