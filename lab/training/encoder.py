"""The encoder that all scripts share: the Nature network of Hadamard layers, below the heads."""

import torch
from torch import Tensor, nn

from hadamard import HadamardConv2d, HadamardLinear, features


class NatureEncoder(nn.Module):
    """Encode obs uint8 (batch, 4, 84, 84) as z (batch, latent_dim), the last hidden layer.

    Three convolutions and a linear layer (Mnih et al. 2015). Those that --apply-to names have the
    activation, branches and norm of the flags; the others are plain ReLU layers. A script's network
    inherits from this one, adds its heads and calls `reset_hidden` after it has made them.
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
        self.convolutions = nn.ModuleList(
            [
                HadamardConv2d(4, 32, 8, stride=4, **below),
                HadamardConv2d(32, 64, 4, stride=2, **below),
                HadamardConv2d(64, 64, 3, stride=1, **below),
            ]
        )
        self.latent = HadamardLinear(64 * 7 * 7, args.latent_dim, **hadamard)
        self.dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32

    def reset_hidden(self, init: str):
        """Initialise the hidden layers; see `hadamard.init_parameters`."""
        for layer in (*self.convolutions, self.latent):
            layer.reset_parameters(init)

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
        """Return z (batch, latent_dim) in fp32, computed in the precision of the flags."""
        with self.autocast(obs.device.type):
            return self.latent(features(self.feature_maps(obs, self.dtype)[-1])).float()
