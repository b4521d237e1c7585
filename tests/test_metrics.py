"""The measures against scipy, numpy and closed forms."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

import metrics
from hadamard import HadamardLinear
from metrics import (
    MEASURES,
    churn,
    dead_neurons,
    dormant_neurons,
    effective_rank,
    entropy_rank,
    grad_dormant_neurons,
    kernel_density,
    live_rank,
    measure_layer,
    measure_weights,
    pca_rank,
    q_contribution,
    saturated_neurons,
    scale_to_layer,
)

ALL = {
    "dead_neurons": dead_neurons,
    "dormant_neurons": dormant_neurons,
    "saturated_neurons": saturated_neurons,
    "effective_rank": effective_rank,
    "entropy_rank": entropy_rank,
    "pca_rank": pca_rank,
    "live_rank": lambda z: live_rank(z, torch.zeros(3, dtype=torch.bool)),
    "scale_to_layer": scale_to_layer,
    "measure_layer": measure_layer,
    "kernel_density": lambda z: kernel_density(z, torch.zeros(3)),
}


def columns_of_every_kind(n, seed):
    """name -> (n,): the shapes that hidden neurons take, over many scales."""
    rng = np.random.default_rng(seed)
    columns = {f"constant {c}": np.full(n, c) for c in (0.0, 1.0, -1.0, 1e-20, 1e4)}
    for scale in np.geomspace(1e-9, 1e9, 37):
        columns[f"normal {scale:.2g}"] = scale * rng.normal(size=n)
    for gap in (1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 0.1, 1.0, 1e6):
        columns[f"two values {gap}"] = gap * rng.integers(0, 2, n)
        columns[f"almost constant {gap}"] = 1.0 - gap * (rng.random(n) < 0.01)
    for outliers in (1, 3, 30):
        for size in (1e-2, 0.1, 1.0, 10.0, 1e5):
            sparse = np.zeros(n)
            sparse[rng.integers(0, n, outliers)] = size * rng.random(outliers)
            columns[f"sparse {outliers} {size}"] = sparse
    for gain in (0.1, 1.0, 5.0, 30.0):
        columns[f"tanh {gain}"] = np.tanh(gain * rng.normal(size=n))
        columns[f"shifted tanh {gain}"] = np.tanh(gain * (rng.normal(size=n) + 2))
    return columns


def scipy_density(column, noise, points):
    """v1 App. B.1 with scipy: a scalar bw_method is a factor of the standard deviation."""
    return stats.gaussian_kde(column + noise, bw_method=len(column) ** -0.2)(points)


def the_noise(n, features):
    """What `dead_neurons` adds without a generator: documented as the same at every call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, features, dtype=torch.float64, generator=generator)
    return noise.numpy() * math.sqrt(1e-5)


@pytest.mark.parametrize("n", [128, 2048])
def test_dead_neurons_and_density_agree_with_scipy(n):
    columns = columns_of_every_kind(n, seed=n)
    z = torch.tensor(np.stack(list(columns.values()), axis=1))
    noise = the_noise(*z.shape)
    dead = dead_neurons(z)
    # A grid over the range, and the samples themselves: no peak lies far from the samples.
    jittered = z.numpy() + noise
    grid = np.linspace(jittered.min(axis=0), jittered.max(axis=0), 1000)
    points = np.concatenate([grid, jittered[:: n // 128]])
    density = kernel_density(z, torch.tensor(points)).numpy()
    verdicts = set()
    for i, name in enumerate(columns):
        expected = scipy_density(z[:, i].numpy(), noise[:, i], points[:, i])
        assert np.abs(density[:, i] - expected).max() <= 1e-3 * expected.max(), name
        assert dead[i] == (expected.max() >= 20), name
        verdicts.add(bool(dead[i]))
    assert verdicts == {True, False}


@settings(deadline=None, max_examples=150)
@given(
    st.integers(2, 300),
    st.integers(0, 2**32 - 1),
    st.floats(-8, 8),
    st.sampled_from(["normal", "two", "sparse", "tanh", "uniform", "cauchy"]),
    st.floats(0.1, 1000),
)
def test_dead_neurons_agree_with_scipy_at_any_threshold(n, seed, log_scale, kind, threshold):
    rng = np.random.default_rng(seed)
    x = {
        "normal": rng.normal(size=n),
        "two": rng.integers(0, 2, n).astype(float),
        "sparse": rng.normal(size=n) * (rng.random(n) < 0.02),
        "tanh": np.tanh(5 * rng.normal(size=n)),
        "uniform": rng.random(n),
        "cauchy": rng.standard_cauchy(n),
    }[kind] * 10**log_scale
    noise = the_noise(n, 1)[:, 0]
    jittered = np.sort(x + noise)
    # scipy's peak, on points a fraction of a bandwidth apart wherever there are samples
    bandwidth = n**-0.2 * jittered.std(ddof=1)
    points = (jittered[:, None] + bandwidth * np.linspace(-1, 1, 21)).ravel()
    peak = scipy_density(x, noise, points).max()
    if abs(peak - threshold) > 1e-3 * peak:
        dead = dead_neurons(torch.tensor(x)[:, None], threshold=threshold)
        assert dead.item() == (peak >= threshold)


def test_consequences_of_the_definition():
    """FACTS that follow from v1 App. B.1: peaks of constants, and the narrowest live Gaussian."""
    for n, peak in ((128, 118), (10_000, 125)):
        points = torch.linspace(-0.01, 0.01, 2001)
        measured = kernel_density(torch.zeros(n, 1), points).max().item()
        assert measured == pytest.approx(peak, rel=0.12)  # sampling noise of n draws
    quantiles = torch.tensor(stats.norm.ppf((np.arange(2048) + 0.5) / 2048))
    assert dead_neurons((0.017 * quantiles)[:, None]).item()
    assert not dead_neurons((0.021 * quantiles)[:, None]).item()
    flips = torch.ones(2048, 1)
    flips[::2] = -1
    assert not dead_neurons(flips).item()


def test_a_constant_is_dead_however_large():
    z = torch.tensor([[0.0, 1.0, 1e8, -1e30, 1e-30]]).expand(500, -1)
    assert dead_neurons(z).all()
    # One of 500 samples at four times the value: std 0.13 c, so the density peaks at 10 / c.
    z = z.clone()
    z[0] *= 4
    assert dead_neurons(z).tolist() == [True, False, False, False, True]


def test_without_noise_a_constant_has_infinite_density():
    z = torch.ones(100, 2)
    z[:, 1] = torch.linspace(0, 1, 100)
    assert dead_neurons(z, noise_variance=0).tolist() == [True, False]
    density = kernel_density(z, torch.tensor([1.0, 0.5]), noise_variance=0)
    assert density[0, 0] == math.inf
    assert density[1, 0] == 0
    expected = scipy_density(z[:, 1].numpy(), 0, [1.0, 0.5])
    np.testing.assert_allclose(density[:, 1], expected, rtol=1e-6)


def test_measuring_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    z = torch.tanh(torch.linspace(-3, 3, 600).reshape(200, 3))
    first = measure_layer(z)
    assert torch.equal(torch.get_rng_state(), before)
    assert measure_layer(z) == first
    seeded = [dead_neurons(z, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*seeded)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.floats(0, 0.9),
    st.integers(0, 40),
)
def test_ranks_against_numpy(n, features, seed, delta, rank):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, min(rank, n))) @ rng.normal(size=(min(rank, n), features))
    s = np.linalg.svd(z, compute_uv=False)
    if rank == 0:
        for zero in (effective_rank, entropy_rank, pca_rank):
            assert zero(torch.tensor(z)) == 0
        assert measure_layer(torch.tensor(z))["stable_rank"] == 0
        return
    share, k = 0.0, 0
    while share < 1 - delta - 1e-9 and k < len(s):
        share += s[k] / s.sum()
        k += 1
    assert effective_rank(torch.tensor(z), delta) == max(k, 1)
    assert measure_layer(torch.tensor(z))["stable_rank"] == pytest.approx((z**2).sum() / s[0] ** 2)
    p = s[s > 0] / s.sum()
    assert entropy_rank(torch.tensor(z)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_ranks_in_closed_form():
    eye = torch.eye(100)
    assert effective_rank(eye) == 99  # 99 of 100 equal singular values hold exactly 99 %
    assert effective_rank(eye, delta=0.0) == 100
    assert effective_rank(eye, delta=0.5) == 50
    assert entropy_rank(eye) == pytest.approx(100)
    assert effective_rank(torch.ones(50, 20)) == 1
    assert entropy_rank(torch.ones(50, 20)) == pytest.approx(1)
    # Singular values 98, 1, 1: two of them hold 99 %
    assert effective_rank(torch.diag(torch.tensor([1.0, 98.0, 1.0]))) == 2
    # Not centred: a constant column counts
    assert effective_rank(torch.full((10, 3), 7.0)) == 1


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_pca_rank_against_the_variance_that_components_leave(n, features, seed, share):
    """So many components, not one fewer, leave at most 1 - share of the variance."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, features)) * rng.exponential(size=features) + 5 * rng.normal()
    centred = z - z.mean(axis=0)
    directions = np.linalg.svd(centred)[2]
    k = pca_rank(torch.tensor(z), share)

    def left(count):
        kept = directions[:count]
        return ((centred - centred @ kept.T @ kept) ** 2).sum() / (centred**2).sum()

    assert left(k) <= 1 - share + 1e-8
    assert left(k - 1) >= 1 - share - 1e-8


def test_pca_rank_is_of_what_varies():
    assert pca_rank(torch.full((50, 20), 7.3)) == 0  # where the effective rank is 1
    z = torch.full((100, 20), 7.3)
    z[:, 4] += torch.linspace(0, 1, 100)
    assert pca_rank(z) == 1
    assert pca_rank(torch.eye(100) + 1e4) == 99  # centring takes one direction


@pytest.mark.parametrize(("live", "dead"), [(100, 0), (100, 28), (7, 121), (0, 64)])
def test_rank_of_the_live_among_orthogonal_neurons(live, dead):
    """Live neurons that are orthogonal and equally strong: k of n hold k/n of the sum."""
    hadamard = torch.tensor(linalg.hadamard(256), dtype=torch.float64)
    z = torch.cat([hadamard[:, 1 : live + 1], torch.full((256, dead), 0.8)], dim=1)
    assert dead_neurons(z).tolist() == [False] * live + [True] * dead
    expected = math.ceil(0.99 * live)
    assert live_rank(z, dead_neurons(z)) == expected
    measured = measure_layer(z)
    assert measured["srank_live"] == expected
    assert measured["srank_live_share"] == pytest.approx(expected / live if live else 0)
    if dead == 0:
        assert measured["effective_rank"] == expected
        assert measured["stable_rank"] == pytest.approx(live)


def test_the_scaled_test_is_of_the_shape_of_a_layer_alone():
    """A fresh network of tiny values is dead by its scale; a constant neuron is dead at any."""
    torch.manual_seed(0)
    z = 0.5 * torch.randn(2048, 40, dtype=torch.float64)
    z[:, :10] = 0.4
    expected = [True] * 10 + [False] * 30
    for scale in (1e-6, 1e-3, 1.0, 1e3):
        assert dead_neurons(scale_to_layer(scale * z)).tolist() == expected
        assert measure_layer(scale * z)["dead_std"] == 0.25
    assert measure_layer(1e-3 * z)["dead_kde"] == 1
    assert measure_layer(z)["dead_kde"] == 0.25
    # Against scipy: the test of v1 on z over the root mean square of the whole layer.
    z = torch.randn(500, 30, dtype=torch.float64) * torch.logspace(-4, 1, 30)
    scaled = z.numpy() / np.sqrt((z.numpy() ** 2).mean())
    noise = the_noise(*z.shape)
    points = np.linspace(scaled.min(axis=0) - 0.01, scaled.max(axis=0) + 0.01, 4000)
    peaks = [
        scipy_density(scaled[:, i], noise[:, i], points[:, i]).max() for i in range(z.shape[1])
    ]
    assert min(abs(peak - 20) for peak in peaks) > 0.1
    dead = dead_neurons(scale_to_layer(z))
    assert dead.tolist() == [peak >= 20 for peak in peaks]
    assert 0 < dead.sum() < 30
    assert measure_layer(torch.zeros(100, 3))["dead_std"] == 1


def test_gradient_dormancy_against_a_loop():
    torch.manual_seed(0)
    gradient = torch.randn(30, 7) * torch.logspace(-4, 1, 30)[:, None]
    gradient[3] = 0
    scores = [sum(abs(g) for g in row) / 7 for row in gradient.tolist()]
    for tau in (0.0, 0.01, 0.1, 1.0):
        expected = [score / (sum(scores) / 30) <= tau for score in scores]
        assert grad_dormant_neurons(gradient, tau).tolist() == expected
        assert grad_dormant_neurons(1e-6 * gradient, tau).tolist() == expected
    measured = measure_weights(torch.full((2, 8), 0.5), torch.eye(2, 8))
    assert measured == {"grad_dormant_0.01": 0, "grad_dormant_0.1": 0, "weight_norm": 2.0}
    assert grad_dormant_neurons(torch.zeros(4, 3)).all()


def test_values_and_gradients_disagree_on_who_is_dead():
    """A tanh that flips between -1 and 1 is alive and learns nothing; a constant one may learn."""
    torch.manual_seed(0)
    x = torch.randn(2048, 20)
    layer = HadamardLinear(20, 3, "tanh", branches=1)
    with torch.no_grad():
        layer.weight[0] *= 1e4  # saturated on both sides
        layer.weight[1] = 0  # constant at tanh(0.3)
        layer.bias[1] = 0.3
    z = layer(x)
    (torch.randn(2048, 3) * z).mean().backward()
    assert dead_neurons(z).tolist() == [False, True, False]
    assert grad_dormant_neurons(layer.weight.grad, 0.01).tolist() == [True, False, False]
    assert not dormant_neurons(z, 0.1).any()


def test_churn_against_a_loop():
    torch.manual_seed(0)
    before, after = torch.randn(50, 4), torch.randn(50, 4)
    changed = [
        max(range(4), key=a.__getitem__) != max(range(4), key=b.__getitem__)
        for a, b in zip(before.tolist(), after.tolist(), strict=True)
    ]
    assert churn(before, after) == sum(changed) / 50
    assert 0 < sum(changed) < 50
    assert churn(before, 3 * before + 1) == 0
    assert churn(before, -before) == 1
    with pytest.raises(ValueError, match=r"before, \(50, 4\): got \(50, 3\)"):
        churn(before, after[:, :3])
    with pytest.raises(ValueError, match="after holds NaN"):
        churn(before, after * math.nan)


def test_every_measure_has_a_name_and_a_number():
    z, weight = torch.rand(64, 5), torch.rand(5, 3)
    assert set(measure_layer(z) | measure_weights(weight, weight)) == set(MEASURES)
    assert len(set(MEASURES)) == len(MEASURES)
    z[:, 0], z[:, 1] = 0, 0.01
    for tau in (0, 0.1):
        share = dormant_neurons(z, tau).double().mean()
        assert measure_layer(z)[f"dormant_{tau}"] == share == (0.4 if tau else 0.2)
    norms = [sum(value**2 for value in row) ** 0.5 for row in z.tolist()]
    assert measure_layer(z)["feature_norm"] == pytest.approx(sum(norms) / 64)


def test_dormant_against_the_formula():
    z = torch.tensor([[0.0, 1.0, -1.0, 0.01], [0.0, -3.0, 1.0, 0.01]])
    # E|h|: 0, 2, 1, 0.01, whose mean is 0.7525; scores 0, 2.66, 1.33, 0.0133
    assert dormant_neurons(z).tolist() == [True, False, False, False]
    assert dormant_neurons(z, 0.1).tolist() == [True, False, False, True]
    assert dormant_neurons(z, 1.4).tolist() == [True, False, True, True]
    assert dormant_neurons(torch.zeros(4, 3)).all()
    saturated = torch.ones(4, 3)
    assert not dormant_neurons(saturated, 0.1).any()


def test_saturated_counts_samples():
    z = torch.zeros(100, 4)
    z[:, 0] = 0.995
    z[:99, 1] = -1.0  # exactly 99 %
    z[:98, 2] = 1.0
    z[:, 3] = 0.985  # below the level
    assert saturated_neurons(z).tolist() == [True, True, False, False]
    assert saturated_neurons(z, level=0.98, share=0.5).tolist() == [True, True, True, True]
    flips = torch.ones(10, 1)
    flips[::2] = -1
    assert saturated_neurons(flips).item()


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 20), st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_q_contribution_splits_the_q_values(n, features, actions, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, features, generator=generator, dtype=torch.float64)
    weight = torch.randn(actions, features, generator=generator, dtype=torch.float64)
    bias = torch.randn(actions, generator=generator, dtype=torch.float64)
    dead = torch.rand(features, generator=generator) < 0.5
    live, dead_part = q_contribution(z, dead, weight, bias)
    torch.testing.assert_close(live + dead_part + bias, z @ weight.T + bias)
    for a in range(actions):
        loop = sum(weight[a, i] * z[:, i] for i in range(features) if dead[i])
        torch.testing.assert_close(dead_part[:, a], loop + torch.zeros(n, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_do_not_depend_on_the_dtype(dtype):
    torch.manual_seed(0)
    z = torch.tanh(torch.randn(600, 30) * torch.logspace(-3, 2, 30)).to(dtype)
    assert measure_layer(z) == measure_layer(z.double())
    assert torch.equal(dead_neurons(z), dead_neurons(z.double()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_results_do_not_depend_on_the_device():
    torch.manual_seed(0)
    z = torch.tanh(torch.randn(2048, 256) * torch.logspace(-3, 2, 256))
    on_gpu, on_cpu = measure_layer(z.cuda()), measure_layer(z)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-6)  # roots of eigenvalues near rounding


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.tensor([[0.0], [math.nan]]), r"NaN or inf.*\(2, 1\)"),
        (torch.tensor([[0.0, 1.0], [math.inf, 1.0]]), r"NaN or inf.*\(2, 2\)"),
        (torch.zeros(1, 5), r"\(samples, features\) needs at least 2 rows.*\(1, 5\)"),
        (torch.zeros(5), r"\(samples, features\).*1 dims.*\(5,\)"),
        (torch.zeros(2, 3, 4), r"\(samples, features\).*3 dims.*\(2, 3, 4\)"),
        (torch.zeros(3, 4, dtype=torch.int64), r"float dtype.*int64"),
        (torch.zeros(3, 0), r"at least .* 1 column.*\(3, 0\)"),
        (np.zeros((3, 4)), "tensor.*ndarray"),
    ],
)
def test_bad_input_is_named(name, z, message):
    with pytest.raises(ValueError, match=message):
        ALL[name](z)


def test_bad_arguments_are_named():
    z = torch.randn(5, 3)
    for threshold in (0, -1, math.nan):
        with pytest.raises(ValueError, match="threshold must be above 0"):
            dead_neurons(z, threshold)
    with pytest.raises(ValueError, match="delta"):
        effective_rank(z, 1.0)
    with pytest.raises(ValueError, match="tau"):
        dormant_neurons(z, -0.1)
    with pytest.raises(ValueError, match="share"):
        saturated_neurons(z, share=1.5)
    with pytest.raises(ValueError, match="tau"):
        grad_dormant_neurons(z, math.nan)
    with pytest.raises(ValueError, match=r"gradient must be \(neurons, incoming weights\)"):
        grad_dormant_neurons(z[0], 0.1)
    with pytest.raises(ValueError, match="share"):
        pca_rank(z, 0.0)
    with pytest.raises(ValueError, match="dead must be bool"):
        live_rank(z, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="noise_variance"):
        dead_neurons(z, noise_variance=-1)
    with pytest.raises(ValueError, match=r"points must be .*3.*\(7, 2\)"):
        kernel_density(z, torch.zeros(7, 2))
    weight, bias = torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(ValueError, match="dead must be bool"):
        q_contribution(z, torch.zeros(4, dtype=torch.bool), weight, bias)
    with pytest.raises(ValueError, match="weight must be"):
        q_contribution(z, torch.zeros(3, dtype=torch.bool), torch.zeros(2, 4), bias)


def test_extra_memory_stays_below_300_mb():
    """512 neurons x 2048 samples, with single outliers: the longest grids there are."""
    program = """
import pathlib, torch, metrics
def peak():  # in kB, of this process alone
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
z = torch.zeros(2048, 512)
z[0] = 1
metrics.dead_neurons(z[:, :2])
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = peak()
metrics.dead_neurons(z)
print((peak() - before) / 1024)
"""
    root = Path(metrics.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert 8 < float(done.stdout) < 300  # z alone takes 8 MB in float64
