"""Measures of a hidden layer: dead, dormant and saturated neurons, ranks, norms, contributions.

Most functions take `z`, the activations of a layer as a tensor (samples, features) of any float
dtype on any device. They compute in float64: the results do not depend on dtype or device. Each
raises ValueError, naming the shape, for NaN or inf, fewer than 2 samples or a wrong number of dims.
"""

import functools
import math

import torch
from torch import Tensor

# Of a layer's activations, its gradient and its weights; see `measure_layer`, `measure_weights`.
MEASURES = ("dead_kde", "dead_std", "dormant_0", "dormant_0.1", "saturated")
MEASURES += ("effective_rank", "srank_live", "srank_live_share", "stable_rank", "pca_rank")
MEASURES += ("entropy_rank", "feature_norm", "grad_dormant_0.01", "grad_dormant_0.1", "weight_norm")

NOISE_VARIANCE = 1e-5  # of what v1's test adds to the values of a neuron
# Grid points per kernel bandwidth when the peak of a density is searched for. Linear binning onto
# this grid errs by at most (1 / 16)^2 / 8 = 5e-4 of the peak; the peak itself is then exact.
BINS_PER_BANDWIDTH = 16
# Elements of an intermediate tensor, or those of z if it has more: bounds the extra memory.
CHUNK_ELEMENTS = 2**20


def _checked(
    x: Tensor, name: str = "z", rows: str = "samples", columns: str = "features", fewest: int = 2
) -> Tensor:
    """Return x (rows, columns) in float64. Raise ValueError that says what is wrong with it."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor ({rows}, {columns}), not a {type(x).__name__}")
    shape = tuple(x.shape)
    if x.dim() != 2:
        raise ValueError(f"{name} must be ({rows}, {columns}): got {x.dim()} dims, shape {shape}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be of a float dtype: got {x.dtype}, shape {shape}")
    if shape[0] < fewest or shape[1] < 1:
        what = f"{name} ({rows}, {columns})"
        raise ValueError(f"{what} needs at least {fewest} rows and 1 column: got shape {shape}")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or inf: shape {shape}")
    return x.detach().to(torch.float64)


@functools.lru_cache(maxsize=4)
def _same_noise(samples: int, features: int) -> tuple[Tensor, Tensor]:
    """Return what is added without a generator, and its deviations: drawn once for each shape."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(samples, features, dtype=torch.float64, generator=generator)
    return noise, noise.std(dim=0)


def _draw_noise(
    z: Tensor, noise_variance: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return N(0, noise_variance) of the shape of z (samples, features), and its std (features,).

    Drawn on the CPU, so that it is the same for every device, and from a generator of its own, so
    that measuring leaves a training run unmoved.
    """
    if noise_variance < 0:
        raise ValueError(f"noise_variance must be at least 0, not {noise_variance}")
    if generator is None:
        noise, spread = _same_noise(*z.shape)
    else:
        noise = torch.randn(z.shape, dtype=z.dtype, generator=generator, device=generator.device)
        spread = noise.std(dim=0)
    scale = math.sqrt(noise_variance)
    return scale * noise.to(z.device), scale * spread.to(z.device)


def _jitter(z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the neurons as rows, a' = a + noise, less their first value, and that (features, 1).

    The shift makes the density of a constant neuron independent of how large the constant is, where
    a' itself would swallow the noise.
    """
    a = z.T.contiguous()
    shift = a[:, :1].clone()
    a -= shift
    a += noise.T
    return a, shift


def _bandwidths(a: Tensor) -> Tensor:
    """Return n^(-1/5) std(a') (Scott's rule) of a (features, samples); 0 without spread."""
    return a.std(dim=1, keepdim=True) * a.shape[1] ** -0.2


def _density(a: Tensor, bandwidth: Tensor, points: Tensor) -> Tensor:
    """Return f(x) = 1/(n bw) sum_j K((x - a'_j) / bw), the sum written out: (features, points)."""
    features, samples = a.shape
    density = torch.empty(features, points.shape[1], dtype=a.dtype, device=a.device)
    step = max(1, CHUNK_ELEMENTS // (features * samples))
    for start in range(0, points.shape[1], step):
        chunk = points[:, start : start + step]
        u = (chunk.unsqueeze(2) - a.unsqueeze(1)) / bandwidth.unsqueeze(2)
        density[:, start : start + step] = torch.exp(-0.5 * u * u).mean(dim=2)
    return density / (bandwidth * math.sqrt(2 * math.pi))


def _peak_position(a: Tensor, bandwidth: Tensor) -> Tensor:
    """Find where the density of each neuron is highest, (features, 1), by a binned convolution."""
    low = a.amin(dim=1, keepdim=True)
    u = (a - low) * (BINS_PER_BANDWIDTH / bandwidth)  # in bins
    left = u.floor()
    right_share = u - left
    margin = 6 * BINS_PER_BANDWIDTH
    # The neuron with the longest range decides; see `dead_neurons` for how long it can be.
    bins = int(left.max()) + 2
    length = bins + 2 * margin
    rows = torch.arange(a.shape[0], device=a.device).unsqueeze(1) * length
    index = (left.long() + rows).flatten()
    total = a.shape[0] * length
    histogram = torch.bincount(index, (1 - right_share).flatten(), total)
    histogram += torch.bincount(index + 1, right_share.flatten(), total)
    histogram = histogram.view(a.shape[0], length)
    offsets = torch.arange(length, device=a.device, dtype=a.dtype)
    offsets = torch.minimum(offsets, length - offsets) / BINS_PER_BANDWIDTH
    kernel = torch.fft.rfft(torch.exp(-0.5 * offsets * offsets))
    density = torch.fft.irfft(torch.fft.rfft(histogram) * kernel, n=length)[:, :bins]
    # A parabola through the highest bin and its neighbours finds the peak between the bins.
    top = density.argmax(dim=1, keepdim=True)
    inner = top.clamp(1, max(bins - 2, 1))
    before, at, after = (density.gather(1, (inner + i).clamp(max=bins - 1)) for i in (-1, 0, 1))
    curvature = before - 2 * at + after
    offset = torch.where(curvature < 0, 0.5 * (before - after) / curvature, 0.0).clamp(-1, 1)
    position = torch.where(top == inner, inner + offset, top.to(a.dtype))
    return low + position * (bandwidth / BINS_PER_BANDWIDTH)


def kernel_density(
    z: Tensor,
    points: Tensor,
    noise_variance: float = NOISE_VARIANCE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the Gaussian kernel density of each neuron (v1 App. B.1), with that test's noise.

    z (samples, features); points (points,) for all neurons or (points, features), one column each.
    Returns densities (points, features), float64. A neuron without any spread (noise_variance 0)
    has density inf at its value and 0 elsewhere.
    """
    z = _checked(z)
    points = points.to(z)
    if points.dim() == 1:
        points = points.unsqueeze(1).expand(-1, z.shape[1])
    if points.dim() != 2 or points.shape[1] != z.shape[1]:
        raise ValueError(
            f"points must be (points,) or (points, {z.shape[1]}): got shape {tuple(points.shape)}"
        )
    a, shift = _jitter(z, _draw_noise(z, noise_variance, generator)[0])
    points = points.T - shift
    bandwidth = _bandwidths(a)
    density = _density(a, torch.where(bandwidth > 0, bandwidth, 1.0), points)
    spike = torch.where(points == a[:, :1], math.inf, 0.0)
    return torch.where(bandwidth > 0, density, spike).T


def dead_neurons(
    z: Tensor,
    threshold: float = 20.0,
    noise_variance: float = NOISE_VARIANCE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Test which neurons are dead (v1 App. B.1): bool (features,).

    a' = a + N(0, noise_variance); bandwidth n^(-1/5) std(a'); dead if the highest value of the
    Gaussian kernel density of a' is at least `threshold`. `generator` draws the noise; without one
    it is the same noise at every call.

    With the defaults a constant neuron peaks at about 120, and a Gaussian one counts as dead below
    a standard deviation of about 0.02. The test depends on the number of samples, which should be
    the same wherever it is compared, and on the scale: a live neuron with small values counts as
    dead. A tanh neuron that switches between -1 and 1 is alive.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, not {threshold}")
    z = _checked(z)
    samples, features = z.shape
    noise, spread = _draw_noise(z, noise_variance, generator)
    # No density is above K(0) / bandwidth, that of samples which are all the same. Where even the
    # noise cannot make the bandwidth small enough, the neuron is alive, and need not be looked at.
    narrowest = (z.std(dim=0) - spread) * samples**-0.2
    may_be_dead = narrowest * (1 - 1e-9) <= 1 / (threshold * math.sqrt(2 * math.pi))
    dead = torch.zeros(features, dtype=torch.bool, device=z.device)
    # The longest range there can be is sqrt(2) n^0.7 bandwidths, of two opposite outliers among n
    # samples; the margins of 6 bandwidths on either side come on top.
    longest = int(2**0.5 * samples**0.7 + 13) * BINS_PER_BANDWIDTH
    step = max(1, CHUNK_ELEMENTS // max(longest, samples))
    undecided = may_be_dead.nonzero().flatten()
    for start in range(0, len(undecided), step):
        neurons = undecided[start : start + step]
        a, _ = _jitter(z[:, neurons], noise[:, neurons])
        bandwidth = _bandwidths(a)
        dead[neurons] = (bandwidth == 0).flatten()
        varies = ~dead[neurons]
        if varies.any():
            a, bandwidth = a[varies], bandwidth[varies]
            peak = _density(a, bandwidth, _peak_position(a, bandwidth))
            dead[neurons[varies]] = peak.flatten() >= threshold
    return dead


def scale_to_layer(z: Tensor) -> Tensor:
    """Return z (samples, features) over the root mean square of all its values, float64.

    For `dead_neurons` of neurons whose scale is that of the layer: the test is then of the shape of
    z alone. A z of zeros stays as it is.
    """
    z = _checked(z)
    scale = z.square().mean().sqrt()
    return z / scale if scale > 0 else z


def _gram(z: Tensor) -> Tensor:
    """Return the products of all neurons, or of all samples if these are fewer."""
    return z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T


def _singular_values(gram: Tensor) -> Tensor:
    """Return the singular values of z, largest first, of its `_gram`: faster than of z itself.

    Those below 3e-7 of the largest are lost in rounding and count as 0.
    """
    squares = torch.linalg.eigvalsh(gram).flip(0)
    return torch.where(squares > 1e-13 * squares[0], squares, 0.0).sqrt()


def _count_until(parts: Tensor, share: float) -> int:
    """Return how many of the largest parts, in falling order, have this share; 0 of zeros."""
    if parts[0] == 0:
        return 0
    # 1e-9: equal parts reach the share exactly on paper, not in floating point.
    return min(int((parts.cumsum(0) / parts.sum() < share - 1e-9).sum()) + 1, len(parts))


def effective_rank(z: Tensor, delta: float = 0.01) -> int:
    """Return the smallest k whose k largest singular values of z sum to a share >= 1 - delta.

    Kumar et al. 2021 (srank). z (samples, features), not centred; it should have at least as many
    samples as features. Singular values below 3e-7 of the largest count as 0; 0 for a z of zeros.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be at least 0 and below 1, not {delta}")
    return _count_until(_singular_values(_gram(_checked(z))), 1 - delta)


def live_rank(z: Tensor, dead: Tensor) -> int:
    """Return the effective rank over the neurons that are not dead; 0 if all are.

    z (samples, features), dead bool (features,). It grows with the number of live neurons: of n
    that are orthogonal and equally strong it is ceil(0.99 n).
    """
    z = _checked(z)
    live = ~_checked_dead(dead, z)
    return effective_rank(z[:, live]) if live.any() else 0


def pca_rank(z: Tensor, share: float = 0.99) -> int:
    """Return how many principal components have this share of the variance of z, centred.

    z (samples, features); 0 where nothing varies.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    z = _checked(z)
    variances = _singular_values(_gram(z - z.mean(dim=0))).square()
    constant = variances.sum() <= 1e-24 * z.square().sum()  # what is left is rounding
    return 0 if constant else _count_until(variances, share)


def entropy_rank(z: Tensor) -> float:
    """Return exp of the entropy of the singular values over their sum (Roy and Vetterli 2007).

    z (samples, features). Between 1 and the number of features; 0 for a z of zeros. Singular values
    below 3e-7 of the largest count as 0.
    """
    return _entropy_rank(_singular_values(_gram(_checked(z))))


def _entropy_rank(s: Tensor) -> float:
    return 0.0 if s[0] == 0 else float(torch.special.entr(s / s.sum()).sum().exp())


def dormant_neurons(z: Tensor, tau: float = 0.0) -> Tensor:
    """Test E|h_i| / mean_k E|h_k| <= tau (Sokar et al. 2023, Eq. 1): bool (features,).

    z (samples, features). It cannot see a saturated tanh neuron, whose |h| is 1. In a layer of
    zeros every neuron is dormant.
    """
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, not {tau}")
    return _is_dormant(_checked(z).abs().mean(dim=0), tau)


def _is_dormant(score: Tensor, tau: float) -> Tensor:
    return score <= tau * score.mean()


def saturated_neurons(z: Tensor, level: float = 0.99, share: float = 0.99) -> Tensor:
    """Test |z_i| > level on at least a `share` of the samples: bool (features,).

    Made for tanh, whose saturation it sees even where a neuron switches between -1 and 1. It does
    not see a sigmoid saturated at 0, and for unbounded activations the level means little.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    return (_checked(z).abs() > level).double().mean(dim=0) >= share - 1e-12


def grad_dormant_neurons(gradient: Tensor, tau: float = 0.0) -> Tensor:
    """Test E|g_i| / mean_k E|g_k| <= tau (GraMa, arXiv 2505.24061): bool (neurons,).

    gradient (neurons, incoming weights): that of a mean loss, of which E|g_i| is the mean over the
    weights of a neuron; samples that pull in opposite directions cancel. It sees a saturated tanh
    neuron and does not depend on the scale of the layer. In a layer without any gradient every
    neuron is dormant.
    """
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, not {tau}")
    return _is_dormant(_gradient_score(gradient), tau)


def _gradient_score(gradient: Tensor) -> Tensor:
    return _checked(gradient, "gradient", "neurons", "incoming weights", fewest=1).abs().mean(dim=1)


def churn(before: Tensor, after: Tensor) -> float:
    """Return the share of observations whose greedy action is another one (arXiv 2206.00730).

    before, after: Q-values or logits (samples, actions) of the same observations.
    """
    before, after = (
        _checked(values, name, columns="actions", fewest=1)
        for name, values in (("before", before), ("after", after))
    )
    if before.shape != after.shape:
        raise ValueError(
            f"after must be of the shape of before, {tuple(before.shape)}: got {tuple(after.shape)}"
        )
    return (before.argmax(dim=1) != after.argmax(dim=1)).double().mean().item()


def _checked_dead(dead: Tensor, z: Tensor) -> Tensor:
    """Return dead on the device of z. Raise ValueError unless it is bool (features,)."""
    if dead.shape != z.shape[1:] or dead.dtype != torch.bool:
        raise ValueError(
            f"dead must be bool ({z.shape[1]},): got {dead.dtype}, shape {tuple(dead.shape)}"
        )
    return dead.to(z.device)


def q_contribution(z: Tensor, dead: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Split the Q-values into what live and dead neurons bring (v4 Fig. 4, Theorem 4.1).

    Q_a = sum_live W_ai z_i + sum_dead W_ai z_i + b_a. z (samples, features), dead bool (features,),
    weight (actions, features), bias (actions,). Returns (live, dead_part), each (samples, actions),
    float64, so that live + dead_part + bias = z @ weight.T + bias. A dead neuron hardly changes, so
    dead_part acts as a hidden bias.
    """
    z = _checked(z)
    dead = _checked_dead(dead, z)
    if weight.dim() != 2 or weight.shape[1] != z.shape[1] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"weight must be (actions, {z.shape[1]}) and bias (actions,): got shapes "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    weight = weight.detach().to(z)
    return (z * ~dead) @ weight.T, (z * dead) @ weight.T


def measure_layer(z: Tensor, dead: Tensor | None = None) -> dict[str, float]:
    """Return those MEASURES that are of activations, z (samples, features).

    Shares of neurons in [0, 1], ranks, norm. dead, bool (features,), are its `dead_neurons` where
    they are known. The norm is the mean of |z| over samples.
    """
    z = _checked(z)
    s = _singular_values(_gram(z))
    dead = dead_neurons(z) if dead is None else dead
    rank, live = _count_until(s, 0.99), int((~dead).sum())
    of_live = live_rank(z, dead) if dead.any() else rank
    score = z.abs().mean(dim=0)  # of `dormant_neurons`
    return {
        "dead_kde": _share(dead),
        "dead_std": _share(dead_neurons(scale_to_layer(z))),
        "dormant_0": _share(_is_dormant(score, 0.0)),
        "dormant_0.1": _share(_is_dormant(score, 0.1)),
        "saturated": _share(saturated_neurons(z)),
        "effective_rank": rank,
        "srank_live": of_live,
        "srank_live_share": of_live / max(live, 1),
        "stable_rank": float((s / s[0]).square().sum()) if s[0] > 0 else 0.0,
        "pca_rank": pca_rank(z),
        "entropy_rank": _entropy_rank(s),
        "feature_norm": z.norm(dim=1).mean().item(),
    }


def measure_weights(weight: Tensor, gradient: Tensor) -> dict[str, float]:
    """Return those MEASURES that are of a layer's weight and its gradient.

    Both are (neurons, incoming weights). The norm is the root of the sum of squares over the layer.
    """
    score = _gradient_score(gradient)
    return {
        "grad_dormant_0.01": _share(_is_dormant(score, 0.01)),
        "grad_dormant_0.1": _share(_is_dormant(score, 0.1)),
        "weight_norm": weight.detach().double().norm().item(),
    }


def _share(neurons: Tensor) -> float:
    return neurons.double().mean().item()
