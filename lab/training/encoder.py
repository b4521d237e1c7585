"""The encoder that all scripts share: the Nature network of Hadamard layers, below the heads."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hadamard import HadamardConv2d, HadamardLinear, features

CHANNELS = (32, 64, 64)  # of the three convolutions, before --width
KERNELS, STRIDES = (8, 4, 3), (4, 2, 1)
SIDES = (20, 9, 7)  # of their maps, in pixels, for obs of 84 x 84
TWIN_BRANCHES = 2  # of the HR network that --width match is as large as


class Widths(NamedTuple):
    """The features of one branch of each hidden layer."""

    channels: tuple[int, ...]  # of the convolutions
    z: int


def resolve_widths(args) -> Widths:
    """Return the widths that --width, --latent-dim and --apply-to ask for."""
    return _match(args) if args.width == "match" else _scale(args, args.width)


def count_hidden_parameters(args, widths: Widths, branches: int) -> int:
    """Return the parameters of the hidden layers, without the heads, of all branches."""
    read = (4, *widths.channels)  # maps
    sides = (*KERNELS, SIDES[-1])  # of what is read of each, in pixels: z reads all
    features = (*widths.channels, widths.z)
    changed = (*(args.apply_to == "all" for _ in widths.channels), True)
    total = 0
    for maps, side, width, is_changed in zip(read, sides, features, changed, strict=True):
        each = maps * side**2 + 1  # weights and a bias of a feature
        total += branches * width * (each + 2 * args.layer_norm) if is_changed else width * each
    return total


def _scale(args, factor: float) -> Widths:
    """Return the widths of the layers that --apply-to names times a factor, rounded."""
    channels = CHANNELS
    if args.apply_to == "all":
        channels = tuple(round(factor * count) for count in CHANNELS)
    return Widths(channels, round(factor * args.latent_dim))


def _match(args) -> Widths:
    """Return the widths at which a plain network is as large as its HR twin of the same flags.

    The twin has the width 1. The heads, which differ from game to game, do not count: so a variant
    is the same network in every game.
    """
    twin = count_hidden_parameters(args, _scale(args, 1), TWIN_BRANCHES)
    # Between two layers that are widened the weights grow with the square of the width.
    widths = _scale(args, math.sqrt(TWIN_BRANCHES))
    without, one = (count_hidden_parameters(args, widths._replace(z=z), 1) for z in (0, 1))
    return widths._replace(z=round((twin - without) / (one - without)))


class NatureEncoder(nn.Module):
    """Encode obs uint8 (batch, 4, 84, 84) as z (batch, features), the last hidden layer.

    Three convolutions and a linear layer (Mnih et al. 2015). Those that --apply-to names have the
    activation, branches and norm of the flags; the others are plain ReLU layers. A script's network
    inherits from this one, adds its heads, which read `latent.out_features`, and calls
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
        channels, width = resolve_widths(args)
        shapes = zip((4, *channels), channels, KERNELS, STRIDES, strict=False)
        self.convolutions = nn.ModuleList(HadamardConv2d(*shape, **below) for shape in shapes)
        self.latent = HadamardLinear(channels[-1] * SIDES[-1] ** 2, width, **hadamard)
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
        for convolution, side in zip(self.convolutions, SIDES, strict=True):
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
        """Return the maps of the three convolutions, each (batch, channels, height, width).

        obs uint8 (batch, 4, 84, 84); `dtype` is that of the input of the first convolution.
        """
        # Channels last: the layout in which the convolutions are fastest, 1.3 to 2 times on a CPU.
        maps = [obs.to(dtype).contiguous(memory_format=torch.channels_last).div_(255.0)]
        for convolution in self.convolutions:
            maps.append(convolution(maps[-1]))
        return maps[1:]

    def encode(self, obs: Tensor) -> Tensor:
        """Return z (batch, features) in fp32, computed in the precision of the flags."""
        with self.autocast(obs.device.type):
            return self.latent(features(self.feature_maps(obs, self.dtype)[-1])).float()
