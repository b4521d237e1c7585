"""RAdam through Adam's kernel: against the algorithm written out in float64, and torch's own."""

import math

import pytest
import torch

from lab.training.radam import RAdam


def written_out(gradients, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """Liu et al. 2020, Algorithm 2, on one number that starts at 0: its value after each step."""
    value, m, v = 0.0, 0.0, 0.0
    rho_inf = 2 / (1 - beta2) - 1
    for t, gradient in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        m_hat = m / (1 - beta1**t)
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            v_hat = math.sqrt(v / (1 - beta2**t))
            numerator = (rho - 4) * (rho - 2) * rho_inf
            r = math.sqrt(numerator / ((rho_inf - 4) * (rho_inf - 2) * rho))
            value -= lr * r * m_hat / (v_hat + eps)
        else:
            value -= lr * m_hat
        yield value


@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-4, 1e-7])
def test_it_is_the_algorithm(scale):
    """Also with gradients as small as epsilon, and through the first five steps, which differ."""
    generator = torch.Generator().manual_seed(0)
    gradients = scale * torch.randn(200, generator=generator)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = RAdam([weight], lr=0.01)
    expected = written_out(gradients.double().tolist(), lr=0.01)
    for gradient, value in zip(gradients, expected, strict=True):
        weight.grad = gradient.reshape(1)
        optimizer.step()
        assert weight.item() == pytest.approx(value, rel=1e-4, abs=1e-7 * scale)


def test_it_is_torchs_where_gradients_are_far_above_epsilon():
    torch.manual_seed(0)
    ours = [torch.randn(30, 20, requires_grad=True), torch.randn(7, requires_grad=True)]
    theirs = [weight.detach().clone().requires_grad_() for weight in ours]
    optimizers = RAdam(ours, lr=2.5e-4), torch.optim.RAdam(theirs, lr=2.5e-4)
    for step in range(100):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 2.5e-4 * (1 - step / 200)  # annealed from outside
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_it_goes_on_where_it_was_saved():
    """In the middle of the first steps and after them."""
    for saved_at in (3, 12):
        torch.manual_seed(0)
        gradients = torch.randn(20, 5)
        whole, first = (torch.ones(5, requires_grad=True) for _ in range(2))
        optimizer, other = RAdam([whole], lr=0.1), RAdam([first], lr=0.1)
        for i, gradient in enumerate(gradients):
            whole.grad, first.grad = gradient.clone(), gradient.clone()
            optimizer.step()
            other.step()
            if i == saved_at:
                state, values = other.state_dict(), first.detach().clone()
                first = values.requires_grad_()
                other = RAdam([first], lr=0.5)
                other.load_state_dict(state)
        assert torch.equal(whole, first)
        assert other.param_groups[0]["lr"] == 0.1
