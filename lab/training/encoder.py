"""The encoders of the scripts: convolutional networks of Hadamard layers, below the heads."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadamard import HadamardConv2d, HadamardLinear, features

SIDE = 84  # of an observation, in pixels
TWIN_BRANCHES = 2  # of the HR network that --width match is as large as


class Stage(NamedTuple):
    """A convolution of an encoder, before --width, and the max-pooling behind it."""

    channels: int
    kernel: int
    stride: int
    pool: tuple[int, int] | None = None  # window and stride; convolution and pooling pad as `pad`

    def convolved(self, side: int) -> int:
        """Return the side of the maps of the convolution for maps of this side."""
        if self.pool is None:
            return (side - self.kernel) // self.stride + 1
        return -(-side // self.stride)

    def pooled(self, side: int) -> int:
        """Return the side of the convolution's maps after the pooling."""
        return side if self.pool is None else -(-side // self.pool[1])


# Mnih et al. 2015, and Kooi et al. 2025 (arXiv 2505.15345).
ENCODERS = {
    "nature": (Stage(32, 8, 4), Stage(64, 4, 2), Stage(64, 3, 1)),
    "hadamax": (
        Stage(32, 8, 1, pool=(4, 4)),
        Stage(64, 4, 1, pool=(2, 2)),
        Stage(64, 3, 1, pool=(3, 1)),
    ),
}


def map_sides(args) -> tuple[list[int], list[int]]:
    """Return the sides of the maps of each convolution, in pixels: as convolved, and as pooled."""
    convolved, pooled = [], [SIDE]
    for stage in ENCODERS[args.encoder]:
        convolved.append(stage.convolved(pooled[-1]))
        pooled.append(stage.pooled(convolved[-1]))
    return convolved, pooled[1:]


class Widths(NamedTuple):
    """The features of one branch of each hidden layer."""

    channels: tuple[int, ...]  # of the convolutions
    z: int


def resolve_widths(args) -> Widths:
    """Return the widths that --width, --latent-dim and --apply-to ask for."""
    return _match(args) if args.width == "match" else _scale(args, args.width)


def count_hidden_parameters(args, widths: Widths, branches: int) -> int:
    """Return the parameters of the hidden layers, without the heads, of all branches."""
    stages, (_, sides) = ENCODERS[args.encoder], map_sides(args)
    in_all = args.apply_to == "all"
    total, read = 0, 4
    for width, stage in zip(widths.channels, stages, strict=True):
        each = read * stage.kernel**2 + 1  # weights and a bias of a channel
        total += branches * width * (each + 2 * args.layer_norm) if in_all else width * each
        read = width
    each = read * sides[-1] ** 2 + 1
    return total + branches_of_z(args, branches) * widths.z * (each + 2 * args.layer_norm)


def branches_of_z(args, branches: int) -> int:
    """Return the branches of z in a network of so many; that of Hadamax is a plain layer."""
    return 1 if args.encoder == "hadamax" else branches


def _scale(args, factor: float) -> Widths:
    """Return the widths of the layers that --apply-to names times a factor, rounded."""
    channels = tuple(stage.channels for stage in ENCODERS[args.encoder])
    if args.apply_to == "all":
        channels = tuple(round(factor * count) for count in channels)
    return Widths(channels, round(factor * args.latent_dim))


def _match(args) -> Widths:
    """Return the widths at which a plain network is as large as its HR twin of the same flags.

    The twin has the width 1. The heads, which differ from game to game, do not count: so a variant
    is the same network in every game.
    """
    twin = count_hidden_parameters(args, _scale(args, 1), TWIN_BRANCHES)
    # Between two layers that are widened the weights grow with the square of the width.
    widths = _scale(args, math.sqrt(TWIN_BRANCHES))
    base = count_hidden_parameters(args, widths._replace(z=0), 1)
    per_unit = count_hidden_parameters(args, widths._replace(z=1), 1) - base
    return widths._replace(z=round((twin - base) / per_unit))


def pad(maps: Tensor, window: int, stride: int, value: float) -> Tensor:
    """Pad maps (..., height, width) so that ceil(side / stride) windows fit; flax's "SAME".

    Half of what is missing comes before them, and a pixel more after them if it is odd.
    """
    side = maps.shape[-1]
    missing = max((-(-side // stride) - 1) * stride + window - side, 0)
    low, high = missing // 2, missing - missing // 2
    return F.pad(maps, (low, high, low, high), value=value) if missing else maps


def max_pool(maps: Tensor, window: int, stride: int) -> Tensor:
    """Return the maxima over windows of maps (..., height, width), padded by `pad`."""
    return F.max_pool2d(pad(maps, window, stride, -math.inf), window, stride)


class Encoder(nn.Module):
    """Encode obs uint8 (batch, 4, 84, 84) as z (batch, features), the last hidden layer.

    Three convolutions, as --encoder has them, and a linear layer. Those that --apply-to names have
    the activation, branches and norm of the flags; the others are plain ReLU layers. A script's
    network inherits from this one, adds its heads, which read `latent.out_features`, and calls
    `reset_hidden` after it has made them.
    """

    def __init__(self, args):
        super().__init__()
        hadamard = {
            "activation": args.activation,
            "branches": args.branches,
            "combine": args.combine,
            "layer_norm": args.layer_norm,
        }
        below = hadamard if args.apply_to == "all" else {"activation": "relu", "branches": 1}
        self.stages, (self.sides, pooled) = ENCODERS[args.encoder], map_sides(args)
        channels, width = resolve_widths(args)
        self.convolutions = nn.ModuleList()
        for read, count, stage in zip((4, *channels), channels, self.stages, strict=False):
            self.convolutions.append(
                HadamardConv2d(read, count, stage.kernel, stage.stride, **below)
            )
        hadamard["branches"] = branches_of_z(args, args.branches)
        self.latent = HadamardLinear(channels[-1] * pooled[-1] ** 2, width, **hadamard)
        self.dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32

    def reset_hidden(self, init: str):
        """Initialise the hidden layers; see `hadamard.init_parameters`."""
        for layer in (*self.convolutions, self.latent):
            layer.reset_parameters(init)

    def count_multiply_adds(self) -> int:
        """Return how often a forward pass of one observation multiplies by a weight, and adds.

        Of all branches and the heads. The rest is not counted: biases, norms, activations and the
        product of the branches, some operations per neuron.
        """
        total = 0
        for convolution, side in zip(self.convolutions, self.sides, strict=True):
            total += convolution.weight.numel() * side**2
        for layer in self.modules():
            if isinstance(layer, (HadamardLinear, nn.Linear)):
                total += layer.weight.numel()
        return total

    def autocast(self, device_type: str) -> torch.autocast:
        """Return a context in which the hidden layers compute in the precision of the flags.

        Around several forward passes without gradients, each weight is cast only once.
        """
        return torch.autocast(device_type, self.dtype, enabled=self.dtype != torch.float32)

    def feature_maps(self, obs: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return the maps of the three convolutions, pooled, each (batch, channels, height, width).

        obs uint8 (batch, 4, 84, 84); `dtype` is that of the input of the first convolution.
        """
        # Channels last: the layout in which the convolutions are fastest, 1.3 to 2 times on a CPU.
        maps = [obs.to(dtype).contiguous(memory_format=torch.channels_last).div_(255.0)]
        for convolution, stage in zip(self.convolutions, self.stages, strict=True):
            if stage.pool is None:
                maps.append(convolution(maps[-1]))
            else:
                padded = pad(maps[-1], stage.kernel, stage.stride, 0.0)
                maps.append(max_pool(convolution(padded), *stage.pool))
        return maps[1:]

    def encode(self, obs: Tensor) -> Tensor:
        """Return z (batch, features) in fp32, computed in the precision of the flags."""
        with self.autocast(obs.device.type):
            return self.latent(features(self.feature_maps(obs, self.dtype)[-1])).float()
