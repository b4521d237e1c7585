"""The paper's theory, predicted against measured, in float64, on the layer of hadamard.py.

Theorem 4.1 (constant units act as a bias), the gradients of a product at saturation, the
probability that a product of branches is dead (v1 Table 1 and Fig. 13), and how large z and its
gradient start. Every prediction is a closed form; every measurement comes from a network or from
drawn units.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hadamard import GATE_BIAS, HadamardLinear

# Far enough out that tanh and ReLU are exactly constant in float64 and sigmoid is to 1e-25.
FAR_OUT = 60.0
CONSTANT = 1e-12  # a unit that varies by no more over the samples is constant
UNITS = 100_000  # drawn per probability
STANDARD_ERRORS = 5.0  # of sampling that a measured probability may be off
PAPER_RATES = {"tanh": 0.4, "sigmoid": 0.4, "relu": 0.6}  # of dead units in DQN, v1 Section 4.1
START_WIDTH = 512  # of the layers whose start is measured
START_TOLERANCE = 0.1  # of the prediction: that width is not infinite
LEVELS = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "relu": (0.0,)}  # where they saturate


class Check(NamedTuple):
    """One line of the table: it holds where measured is within tolerance of predicted."""

    part: str
    case: str
    quantity: str
    predicted: float
    measured: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Return whether measured is within tolerance of predicted."""
        return abs(self.measured - self.predicted) <= self.tolerance


def layer_name(activation: str, branches: int = 1, combine: str = "product") -> str:
    """Return a layer's name in the paper: Tanh, Tanh (HR), Tanh (2xHR), Tanh (+HR)."""
    name = {"relu": "ReLU"}.get(activation, activation.capitalize())
    if branches == 1:
        return name
    times = "" if branches == 2 else f"{branches - 1}x"
    return f"{name} ({'+' if combine == 'sum' else ''}{times}HR)"


def fold_constant_units(weight: Tensor, bias: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Take the constant units out of z and add their weights to the bias: Theorem 4.1.

    A z + B = A_live z_live + (B + A_D c_D), where D are the units with z_i = c_i on all samples.
    weight A (out, features), bias B (out,), z (samples, features) of the layer that they read.
    Return which are constant (features,), and the bias (out,) of the layer that reads z_live alone.
    """
    constant = z.amax(0) - z.amin(0) <= CONSTANT
    return constant, bias + weight[:, constant] @ z[0, constant]


def train_stuck_network(activation: str, branches: int) -> tuple[HadamardLinear, nn.Linear, Tensor]:
    """Train a network (4 -> 64 -> 3), 200 steps of Adam; return layer, head and inputs (256, 4).

    Each branch of each unit starts saturated with probability 1/2, at either end; no gradient
    reaches its parameters, so it stays there, while the weights that read it are trained. Seeds
    torch's global generator.
    """
    torch.manual_seed(0)
    x = torch.rand(256, 4, dtype=torch.float64) * 2 - 1
    y = torch.sin(3 * x[:, :3]) * x[:, 1:]
    layer = HadamardLinear(4, 64, activation, branches).double()
    head = nn.Linear(64, 3).double()
    ends = torch.tensor([-FAR_OUT, FAR_OUT][: len(LEVELS[activation])], dtype=torch.float64)
    with torch.no_grad():
        end = ends[torch.randint(len(ends), layer.bias.shape)]
        layer.bias.copy_(torch.where(torch.rand(layer.bias.shape) < 0.5, end, layer.bias))
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(200):
        loss = (head(layer(x)) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss = (head(layer(x)) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()  # leaves the gradients that check_theorem compares
    return layer, head, x


def read_constants(layer: HadamardLinear) -> Tensor:
    """Return what each unit is stuck at (features,), read off its biases; NaN for a live one."""
    bias = layer.bias.detach().unflatten(0, (layer.branches, layer.width))
    levels = torch.tensor(LEVELS[layer.activation]).to(bias)
    stuck = torch.where(bias < 0, levels[0], levels[-1])
    stuck = torch.where(bias.abs() > FAR_OUT / 2, stuck, math.nan)
    # A live factor makes the product live, unless another factor is stuck at 0.
    return torch.where((stuck == 0).any(0), 0.0, stuck.prod(0))


@torch.no_grad()
def check_theorem() -> list[Check]:
    """Check Theorem 4.1 on trained layers: outputs, biases and gradients."""
    checks = []
    for activation, branches in [(a, n) for n in (1, 2) for a in LEVELS]:
        with torch.enable_grad():
            layer, head, x = train_stuck_network(activation, branches)
        z, c = layer(x), read_constants(layer)
        stuck = ~c.isnan()
        constant, bias = fold_constant_units(head.weight, head.bias, z)
        folded = z[:, ~constant] @ head.weight[:, ~constant].T + bias
        hidden_bias = (head.weight[:, stuck] @ c[stuck]).norm()
        gradient = torch.outer(head.bias.grad, c[stuck]) - head.weight.grad[:, stuck]
        # Units may die in training, too: those of ReLU do, at 0, so that A_D c_D stays what it was.
        name = f"{layer_name(activation, branches)}, {int(constant.sum())} of 64 units constant"
        rows = [
            ("largest change of the outputs by folding", 0.0, (folded - head(z)).abs().max()),
            ("change of the bias, |A_D c_D|", hidden_bias, (bias - head.bias).norm()),
            ("largest |dL/dA_i - c_i dL/dB|", 0.0, gradient.abs().max()),
        ]
        checks += [Check("Theorem 4.1", name, q, float(p), float(m), 1e-12) for q, p, m in rows]
    return checks


def gradient_factors(
    activation: str, at: float, branches: int = 2, combine: str = "product"
) -> tuple[float, float]:
    """Return what branch 1, held at pre-activation `at`, does to the gradients, by autograd.

    The first: dL/db_1 divided by the same with f' = 1. The second: dL/dA of the other branches,
    which are live, divided by its value in a layer of these alone. L is a random linear function of
    z. Seeds torch's global generator.
    """
    torch.manual_seed(0)
    width, inputs = 32, torch.randn(512, 8, dtype=torch.float64)
    layer = HadamardLinear(8, width, activation, branches, combine).double()
    with torch.no_grad():
        layer.weight[:width] = 0
        layer.bias[:width] = at
    upstream = torch.randn(512, width, dtype=torch.float64)
    (layer(inputs) * upstream).sum().backward()
    if branches == 1:
        return _ratio(layer.bias.grad, upstream.sum(0)), math.nan

    rest = HadamardLinear(8, width, activation, branches - 1, combine).double()
    with torch.no_grad():
        rest.weight.copy_(layer.weight[width:])
        rest.bias.copy_(layer.bias[width:])
    z = rest(inputs)
    (z * upstream).sum().backward()
    full = (upstream * z.detach() if combine == "product" else upstream).sum(0)
    return (
        _ratio(layer.bias.grad[:width], full),
        _ratio(layer.weight.grad[width:], rest.weight.grad),
    )


def _ratio(gradient: Tensor, reference: Tensor) -> float:
    """Return the factor k of gradient = k reference. Raise ValueError if there is none."""
    k = (gradient * reference).sum() / reference.square().sum()
    if (gradient - k * reference).abs().max() > 1e-9 * reference.abs().max():
        raise ValueError("the gradient is no multiple of the reference")
    return k.item()


def check_gradients() -> list[Check]:
    """Check what each branch of a product still learns if one is saturated (v1 Section 3).

    d(f(a_1) f(a_2)) = f'(a_1) f(a_2) da_1 + f(a_1) f'(a_2) da_2: the saturated branch itself gets
    f'(a_1), which is next to nothing, and the other f(a_1) times its own gradient, which is nothing
    only where f saturates at 0.
    """
    functions = {  # f and f', written out
        "tanh": (math.tanh, lambda a: 1 / math.cosh(a) ** 2),
        "sigmoid": (
            lambda a: 1 / (1 + math.exp(-a)),
            lambda a: math.exp(-a) / (1 + math.exp(-a)) ** 2,
        ),
        "relu": (lambda a: max(a, 0.0), lambda a: float(a > 0)),
    }
    cases = []
    for activation in functions:
        cases += [(activation, -FAR_OUT, 1, "product"), (activation, -FAR_OUT, 2, "product")]
        cases += [(activation, 3.0, 2, "product")]  # a ReLU has no upper end to saturate at
        if activation != "relu":
            cases.append((activation, FAR_OUT, 2, "product"))
    cases += [("tanh", -FAR_OUT, 3, "product"), ("tanh", -FAR_OUT, 2, "sum")]
    checks = []
    for activation, at, branches, combine in cases:
        f, derivative = functions[activation]
        own, other = gradient_factors(activation, at, branches, combine)
        name = f"{layer_name(activation, branches, combine)}, branch 1 at f({at:g}) = {f(at):.3g}"
        checks.append(Check("gradients", name, "gradient of branch 1", derivative(at), own, 1e-9))
        if branches > 1:
            expected = f(at) if combine == "product" else 1.0
            what = "gradient of the others" if branches > 2 else "gradient of the other"
            checks.append(Check("gradients", name, what, expected, other, 1e-9))
    for activation, levels in LEVELS.items():
        name = f"{layer_name(activation, 2)}, both branches at f({-FAR_OUT:g}) = {levels[0]:g}"
        largest = largest_gradient(activation)
        checks.append(Check("gradients", name, "largest gradient of either", 0.0, largest, 1e-9))
    return checks


def largest_gradient(activation: str) -> float:
    """Return the largest |dL/dA| of a product with both branches saturated at the lower end."""
    torch.manual_seed(0)
    layer = HadamardLinear(8, 32, activation, 2).double()
    with torch.no_grad():
        layer.bias.fill_(-FAR_OUT)
    layer(torch.randn(512, 8, dtype=torch.float64)).sum().backward()
    return layer.weight.grad.abs().max().item()


def dead_probability(activation: str, p: float, branches: int, correlation: float = 0) -> float:
    """Return the probability that a product is constant if each branch is dead with probability p.

    A dead tanh or sigmoid sits at either of its ends with probability 1/2 (v1 Section 3):
    tanh p^n, as all must be dead; sigmoid 1 - (1 - p/2)^n + (p/2)^n, as one at 0 or all at 1 will
    do (p for n = 2); ReLU 1 - (1 - p)^n, as one at 0 will do (2p - p^2 for n = 2). With
    `correlation` between the deaths of any two branches, 0 to 1, all share one fate with that
    probability and are independent otherwise: for two branches the only way there is, for three
    one of many. A single branch has p, so it pulls every formula linearly towards p.
    """
    independent = {
        "tanh": p**branches,
        "sigmoid": 1 - (1 - p / 2) ** branches + (p / 2) ** branches,
        "relu": 1 - (1 - p) ** branches,
    }[activation]
    return correlation * p + (1 - correlation) * independent


@torch.no_grad()
def dead_share(
    activation: str, p: float, branches: int, correlation: float, units: int, generator
) -> float:
    """Return the share of constant units of a HadamardLinear whose branches are killed at random.

    Each branch of each unit is driven far into saturation with probability p, at an end drawn
    evenly, all branches of a unit alike with probability `correlation`. Live branches are active on
    all inputs. (Live ReLU branches that are never active together are dead products, too; the
    paper's formula does not count them.)
    """

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    fate = uniform(branches, units)  # below p: dead, in the lower half of that at the lower end
    shared = uniform(units) < correlation
    fate = torch.where(shared, fate[0], fate)
    upper = FAR_OUT if len(LEVELS[activation]) == 2 else -FAR_OUT
    bias = torch.where(fate < p / 2, -FAR_OUT, torch.where(fate < p, upper, 0.0))
    layer = HadamardLinear(1, units, activation, branches).double()
    layer.weight.copy_(uniform(branches * units, 1) + 0.5)
    layer.bias.copy_(bias.flatten())
    z = layer(torch.tensor([[0.1], [0.5], [1.0]], dtype=torch.float64))
    return (z.amax(0) - z.amin(0) <= CONSTANT).double().mean().item()


def check_deaths(units: int = UNITS, seed: int = 0) -> list[Check]:
    """Check v1 Table 1, its n-branch forms and their correlated ones, within sampling error.

    p is the paper's rate of dead units for a plain layer.
    """
    generator = torch.Generator().manual_seed(seed)
    checks = []
    for activation, p in PAPER_RATES.items():
        cases = [(1, 0.0)] + [(n, rho) for n in (2, 3) for rho in (0.0, 0.5, 1.0)]
        for branches, rho in cases:
            predicted = dead_probability(activation, p, branches, rho)
            measured = dead_share(activation, p, branches, rho, units, generator)
            error = math.sqrt(predicted * (1 - predicted) / units)
            name = f"{layer_name(activation, branches)}, p = {p:g}"
            quantity = "dead" if branches == 1 else f"dead, correlation {rho:g}"
            checks.append(
                Check("dying", name, quantity, predicted, measured, STANDARD_ERRORS * error)
            )
    return checks


def predict_start(init: str, branches: int, inputs: float = 1.0) -> tuple[float, float]:
    """Return how large z and its gradient start in two wide layers of tanh, on E x² = `inputs`.

    The first: E z² of the second layer. With u normal of variance v = gain² E x² (gain² is 2, and
    1/3 for `torch`, whose biases add 1/3 of 1/width), it is q^n of one layer, q = E tanh(u)²; for
    `gated` it is q h^(n-1), h = E tanh(2 + u)². The second: E (dL/dx)² / E (dL/dz)², the product
    over both layers of gain² n d q^(n-1), d = E tanh'(u)²; for `gated` of gain² (d h^(n-1) + (n-1)
    q e h^(n-2)), e = E tanh'(2 + u)².
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    gain, centre = 1 / 3 if init == "torch" else 2.0, GATE_BIAS if init == "gated" else 0.0
    z, gradient = inputs, 1.0
    for _ in range(2):
        variance = gain * z + (gain / START_WIDTH if init == "torch" else 0.0)
        u = math.sqrt(variance) * nodes
        q, h = weights @ np.tanh(u) ** 2, weights @ np.tanh(centre + u) ** 2
        d, e = weights @ np.cosh(u) ** -4, weights @ np.cosh(centre + u) ** -4
        z = q * h ** (branches - 1)
        own, others = d * h ** (branches - 1), (branches - 1) * q * e * h ** (branches - 2)
        gradient *= gain * (own + others)
    return float(z), float(gradient)


def measure_start(init: str, branches: int, inputs: float = 1.0) -> tuple[float, float]:
    """Return what `predict_start` predicts, of a drawn network. Seeds torch's global generator."""
    torch.manual_seed(0)
    x = math.sqrt(inputs) * torch.randn(256, START_WIDTH, dtype=torch.float64)
    z = x.requires_grad_()
    for _ in range(2):
        layer = HadamardLinear(START_WIDTH, START_WIDTH, branches=branches, dtype=torch.float64)
        layer.reset_parameters(init)
        z = layer(z)
    upstream = torch.randn_like(z)
    (z * upstream).sum().backward()
    return z.square().mean().item(), (x.grad.square().mean() / upstream.square().mean()).item()


def check_start() -> list[Check]:
    """Check how large z and its gradient are before anything is learned, through two layers."""
    cases = [(init, n, 1.0) for init in ("torch", "orthogonal", "he_normal") for n in (1, 2, 3)]
    cases += [("gated", 2, 1.0), ("gated", 3, 1.0)]
    cases += [("orthogonal", 1, 0.1), ("orthogonal", 2, 0.1), ("gated", 2, 0.1)]
    checks = []
    for init, branches, inputs in cases:
        name = f"{layer_name('tanh', branches)} twice, init {init}, E x² = {inputs:g}"
        both = zip(
            ("E z²", "(dL/dx)² per (dL/dz)²"),
            predict_start(init, branches, inputs),
            measure_start(init, branches, inputs),
            strict=True,
        )
        for quantity, predicted, measured in both:
            tolerance = START_TOLERANCE * predicted
            checks.append(Check("start", name, quantity, predicted, measured, tolerance))
    return checks


def check_all() -> list[Check]:
    """Return all lines of the table."""
    return check_theorem() + check_gradients() + check_deaths() + check_start()
