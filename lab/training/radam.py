"""RAdam (Liu et al. 2020, arXiv 1908.03265) in the one pass over memory of torch's fused Adam.

torch.optim.RAdam makes a dozen passes over weights, gradient and moments, which on a CPU took a
tenth of a PQN update. RAdam is Adam with a learning rate that depends on the step, so the fused
kernel of Adam serves it.
"""

import contextlib

import torch

# Before its sixth step RAdam divides by 1, not by the root of the second moment. Beside an epsilon
# as large as this the root vanishes from Adam's denominator in fp32.
HUGE_EPS = 1e10


def rectification(step: int, beta2: float) -> float | None:
    """Return r_t of step t = 1, 2, ... (Liu et al., Algorithm 2); None while it is undefined.

    It is undefined while rho_t <= 5, as the PQN authors' optimizer (optax) and torch have it.
    """
    decay = beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * decay / (1 - decay)
    if rho <= 5:
        return None
    return ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5


class RAdam(torch.optim.Adam):
    """RAdam; epsilon is added to the root of the bias-corrected second moment, as in optax.

    (torch.optim.RAdam adds it before the correction, which for an epsilon of 1e-8 only shows where
    gradients are about as small.) `lr` may be changed between steps, in `param_groups`.
    """

    def __init__(self, params, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        for group in self.param_groups:
            group["steps"] = 0  # a plain number: a GPU is not waited for
        self._counted = False

    @contextlib.contextmanager
    def count_step(self):
        """Count a step, and put what its number makes of rate and epsilon into `param_groups`.

        `graphs.Graphed` enters this around a step that is replayed and so runs no line of `step`.
        """
        plain = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            group["steps"] += 1
            rectified = rectification(group["steps"], group["betas"][1])
            if rectified is None:
                group["lr"], group["eps"] = HUGE_EPS * group["lr"], HUGE_EPS
            else:
                group["lr"] *= rectified
        self._counted = True
        try:
            yield
        finally:
            self._counted = False
            for group, (lr, eps) in zip(self.param_groups, plain, strict=True):
                group["lr"], group["eps"] = lr, eps

    def step(self) -> None:
        """Take one step, with the gradients that are there."""
        with contextlib.nullcontext() if self._counted else self.count_step():
            super().step()
