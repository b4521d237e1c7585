"""Hadamard layers: a hidden layer as the element-wise product of independent branches.

    z(x) = f(A_1 x + b_1) * f(A_2 x + b_2) * ...

with the same activation f in every branch and parameters of its own for each (Kooi, Hoogendoorn and
François-Lavet, arXiv 2406.09079: Eq. 2 of v1, where the layer is called LaN; HR from v2 on).
Nothing in here knows about reinforcement learning.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),  # flax's gelu
    "elu": F.elu,
    "silu": F.silu,
    "identity": lambda x: x,
}
COMBINES = ("product", "sum")
INITS = ("torch", "orthogonal", "he_normal", "xavier_normal", "gated")
# Of the biases that `gated` starts with. tanh(2) = 0.96, and 2 + u seldom changes its sign.
GATE_BIAS = 2.0

# The value of the PQN authors' code (flax's default); torch's own default is 1e-5.
LAYER_NORM_EPS = 1e-6


def init_parameters(weight: Tensor, bias: Tensor | None, init: str = "torch", gain: float = 2**0.5):
    """Initialise one weight (out, in, ...) and its bias (out,), if it has one, in place.

    `torch`: what nn.Linear and nn.Conv2d do, drawn in their order (DQN). `orthogonal`: orthogonal
    rows scaled by `gain`, bias 0 (PPO). `he_normal`: normal of variance gain^2 / fan_in, cut off at
    two standard deviations before scaling, bias 0 (PQN; flax's `he_normal`, and its `lecun_normal`
    where the gain is 1). `xavier_normal`: the same with fan_in + fan_out in place of fan_in, both
    with all pixels of a kernel (flax's at the default gain; the convolutions of the authors'
    Hadamax, arXiv 2505.15345). `gated`: as `orthogonal`; see `reset_parameters` of the layers.

    Raises ValueError for another name.
    """
    fan_in = weight[0].numel()
    if init == "torch":
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    elif init in ("orthogonal", "gated"):
        nn.init.orthogonal_(weight, gain)
    elif init in ("he_normal", "xavier_normal"):
        fan_out = weight[:, 0].numel() if init == "xavier_normal" else 0
        # A unit normal cut off at +-2 has standard deviation 0.8796: divide to restore it.
        std = gain / math.sqrt(fan_in + fan_out) / 0.87962566103423978
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        raise ValueError(f"unknown init {init!r}: choose one of {', '.join(INITS)}")
    if bias is not None and init == "torch":
        nn.init.uniform_(bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    elif bias is not None:
        nn.init.zeros_(bias)


def features(maps: Tensor) -> Tensor:
    """Flatten feature maps (batch, channels, height, width) to (batch, features).

    Pixel by pixel, each with all its channels: as maps in channels-last memory lie there, so
    nothing is copied on the way, nor on the way back.
    """
    return maps.movedim(1, -1).flatten(1)


def _is_orthogonal(matrix: Tensor) -> bool:
    """Return whether the rows, or the columns if they are fewer, are orthogonal and of one norm."""
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # Rounding leaves less. With 1e-3 in fp32, two columns of 1024 random numbers would pass once in
    # a thousand times.
    tolerance = 1e-3 if matrix.dtype in (torch.half, torch.bfloat16) else 1e-5
    rows = rows[:8].cpu().double()
    gram = rows @ rows.T
    norm = gram.trace() / len(gram)
    return torch.allclose(gram, norm * torch.eye(len(gram)).to(gram), rtol=0, atol=tolerance * norm)


class _HadamardLayer(nn.Module):
    """What the linear and the convolutional layer share: the fused parameters of all branches.

    The parameters of branch i are rows i * width to (i + 1) * width of `weight` and `bias`, so that
    one matrix product or convolution serves all branches.
    """

    _is_checked = False  # whether `_check_draw` has passed

    def __init__(self, plain, width, activation, branches, combine, layer_norm, device, dtype):
        """Make the parameters; `plain` is torch's layer of one branch, on the meta device."""
        super().__init__()
        is_function = callable(activation) and not isinstance(activation, type)
        if not is_function and activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}, or a "
                "function such as nn.LeakyReLU()"
            )
        if combine not in COMBINES:
            raise ValueError(f"unknown combine {combine!r}: choose one of {', '.join(COMBINES)}")
        if isinstance(branches, bool) or not isinstance(branches, int) or branches < 1:
            raise ValueError(f"branches must be an integer of at least 1, not {branches!r}")
        self.width, self.branches = width, branches
        self.activation, self.combine, self.layer_norm = activation, combine, layer_norm
        self._plain_repr = plain.extra_repr()

        def make(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight = make(branches * width, *plain.weight.shape[1:])
        self.register_parameter("bias", None if plain.bias is None else make(branches * width))
        if layer_norm:
            self.norm_weight = make(branches, width)
            self.norm_bias = make(branches, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, init: str = "torch", gain: float = 2**0.5):
        """Initialise each branch as if it were a layer alone; see `init_parameters`.

        `gated` then sets the biases of all branches but the first of a product to 2 (with
        `layer_norm` those of the norm): these start as nearly constant factors, which pass the
        first branch on, so that z and its gradient start nearly as large as in a plain layer. For
        products of tanh or sigmoid.

        Drawn branch by branch, so the branches equal separately built layers drawn in turn. A
        function of nn.init must be called likewise, on each of `weight.detach().split(width)`:
        over the whole `weight` it takes the branches for one layer of `branches * width` features.
        """
        no_bias = [None] * self.branches
        biases = no_bias if self.bias is None else self.bias.split(self.width)
        for weight, bias in zip(self.weight.split(self.width), biases, strict=True):
            init_parameters(weight, bias, init, gain)
        if self.layer_norm:
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)
        if init == "gated" and self.branches > 1 and self.combine == "product":
            bias = self.norm_bias.flatten() if self.layer_norm else self.bias
            if bias is None:
                raise ValueError('init "gated" needs a bias: choose bias=True or layer_norm=True')
            bias[self.width :] = GATE_BIAS

    def _check_draw(self):
        """Raise ValueError if nn.init.orthogonal_ drew all branches as one, not each by itself.

        That makes each branch smaller than a layer alone where the weight has more rows than
        columns, which nothing else would tell. Looked at once, in the first forward pass.
        """
        weight = self.weight
        # Nothing can be asked of weights without values, or swapped in by torch.func.
        if weight.is_meta or not isinstance(weight, nn.Parameter):
            return
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if weight.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        weight = weight.detach().flatten(1)
        drawn_as_one = weight.shape[0] > weight.shape[1] and _is_orthogonal(weight)
        if drawn_as_one and not _is_orthogonal(weight[: self.width]):
            raise ValueError(
                f"orthogonal_ drew the weights of all {self.branches} branches as one matrix, and "
                'each is too small: call layer.reset_parameters("orthogonal", gain) instead'
            )
        self._is_checked = True

    def _activate(self, branches: Tensor) -> Tensor:
        """Normalise the last axis of (..., branches, width), if asked for; apply the activation."""
        if not self._is_checked:
            self._check_draw()
        if self.layer_norm:
            normed = F.layer_norm(branches, (self.width,), eps=LAYER_NORM_EPS)
            branches = torch.addcmul(self.norm_bias, normed, self.norm_weight)
        if isinstance(self.activation, str):
            return ACTIVATIONS[self.activation](branches)
        return self.activation(branches)

    def _branches(self, x: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Return the branches one by one, taken off this axis."""
        activations = self._activations(x)
        # The gradient of unbind is a stack, a copy that one branch can do without.
        if self.branches == 1:
            return (activations.squeeze(axis),)
        return activations.unbind(axis)

    def combine_branches(self, branches) -> Tensor:
        """Multiply or add the branches, over the first axis of `branches`."""
        # Pairwise rather than torch.prod, whose backward pass is slower and treats zeros apart.
        z = branches[0]
        for branch in branches[1:]:
            z = z * branch if self.combine == "product" else z + branch
        return z

    def extra_repr(self) -> str:
        return (
            f"{self._plain_repr}, activation={self.activation}, branches={self.branches}, "
            f"combine={self.combine}, layer_norm={self.layer_norm}"
        )


class HadamardLinear(_HadamardLayer):
    """A fully connected hidden layer z = f(A_1 x + b_1) * ... * f(A_n x + b_n).

    `branches=1` is the plain layer, 2 the paper's HR, 3 its 2xHR; `combine="sum"` adds the branches
    instead. With `layer_norm` each branch is normalised over its features before its activation.
    `activation`: a name in ACTIVATIONS, or a function of a tensor that works element by element,
    such as nn.LeakyReLU(0.1); parameters of its own are shared by the branches. `bias`, `device`
    and `dtype` as in nn.Linear.

    `forward`: x (..., in_features) -> z (..., out_features).
    Raises ValueError for an unknown activation or combine and for fewer than 1 branch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        branches: int = 2,
        combine: str = "product",
        layer_norm: bool = False,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        plain = nn.Linear(in_features, out_features, bias, device="meta")
        layer = (activation, branches, combine, layer_norm, device, dtype)
        super().__init__(plain, out_features, *layer)
        self.in_features, self.out_features = in_features, out_features

    def _activations(self, x: Tensor) -> Tensor:
        branches = F.linear(x, self.weight, self.bias).unflatten(-1, (self.branches, self.width))
        return self._activate(branches)  # (..., branches, out_features)

    def branch_activations(self, x: Tensor) -> Tensor:
        """Return the factors of z (branches, ..., out_features), for x (..., in_features)."""
        return self._activations(x).movedim(-2, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine_branches(self._branches(x, -2))


class HadamardConv2d(_HadamardLayer):
    """A convolutional hidden layer whose feature maps are the product of those of its branches.

    Arguments as for `HadamardLinear`; those of the convolution as in nn.Conv2d, which pads with
    zeros. With `layer_norm` each branch is normalised over the channel axis of each pixel (as in
    the PQN authors' Atari network), before its activation.

    `forward`: x (batch, in_channels, height, width) -> z (batch, out_channels, height', width'),
    or both without batch. Raises ValueError as `HadamardLinear` and nn.Conv2d do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        branches: int = 2,
        combine: str = "product",
        layer_norm: bool = False,
        *,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        window = (kernel_size, stride, padding, dilation, groups, bias)
        plain = nn.Conv2d(in_channels, out_channels, *window, device="meta")
        layer = (activation, branches, combine, layer_norm, device, dtype)
        super().__init__(plain, out_channels, *layer)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = plain.kernel_size, plain.stride, plain.padding
        self.dilation, self.groups = plain.dilation, plain.groups

    def _activations(self, x: Tensor) -> Tensor:
        groups = self.groups
        if groups > 1 and self.branches > 1:
            # The rows of the weight lie branch by branch: each branch reads all groups.
            x = torch.cat([x] * self.branches, dim=-3)
            groups *= self.branches
        window = (self.stride, self.padding, self.dilation, groups)
        maps = F.conv2d(x, self.weight, self.bias, *window)
        if not self.layer_norm:
            return self._activate(maps).unflatten(-3, (self.branches, self.width))
        # Channels last for the norm: no copy where the maps lie in that memory format already.
        pixels = maps.movedim(-3, -1).unflatten(-1, (self.branches, self.width))
        return self._activate(pixels).movedim((-2, -1), (-4, -3))  # (..., branches, C, H, W)

    def branch_activations(self, x: Tensor) -> Tensor:
        """Return the factors of z (branches, batch, out_channels, H', W'), for maps x."""
        return self._activations(x).movedim(-4, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine_branches(self._branches(x, -4))
