"""Bounds on the entropy of each reverse step (Sohl-Dickstein et al. 2015, Equation 24).

    H_q(x_t | x_{t-1}) + H_q(x_{t-1} | x_0) - H_q(x_t | x_0)  <=  H_q(x_{t-1} | x_t)
        <=  H_q(x_t | x_{t-1}) + E log pi(x_t) - E log pi(x_{t-1})

The lower bound is the entropy of the posterior, which also knows x_0. The upper bound holds because
KL(q(x_t) || pi) decreases with t. The paper assumes that its last two terms cancel, which is true
if the data have pi's second moment; otherwise H_q(x_t | x_{t-1}) alone need not be a bound.

All values are in nats per element (means over an example's elements), in model units.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.noise import Noise
from diffusion.process import Process


def step_bounds(process: Process, power: float, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and upper bounds on H_q(x_{t-1} | x_t), nats per element, float64 [B] each.

    They depend on the data only through the given power: a Gaussian's entropies do not depend on
    x_0, a bit's are affine in it, and log pi is affine in x^2.

    Args:
        process: the forward process.
        power: mean of x_0^2 over data and elements, model units; for bits the fraction of ones.
        t: int64 [B], 1..T; for reals the lower bound at t = 1 is minus infinity.
    """
    one = torch.ones(len(t), 1, dtype=torch.float64, device=t.device)
    s, end = t - 1, process.power

    def mean(of: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
        """Return the expectation of a function affine in x^2, from its values at x = 0 and 1."""
        at_0, at_1 = of(0 * one), of(one)
        # A Gaussian's entropy is the same at both; at t = 0 both are infinite.
        return torch.where(at_0 == at_1, at_0, (1 - weight) * at_0 + weight * at_1)

    def power_at(step: Tensor) -> Tensor:
        """Return E x_t^2."""
        return power * process.alpha_bar[step] + end * (1 - process.alpha_bar[step])

    prior, start = process.prior((1,), len(t)), power_at(torch.zeros_like(t))
    forward = mean(lambda x: process.forward_kernel(x, t).entropy(), power_at(s))
    before = mean(lambda x: process.marginal(x, s).entropy(), start)
    after = mean(lambda x: process.marginal(x, t).entropy(), start)
    drift = mean(prior.log_prob, power_at(t)) - mean(prior.log_prob, power_at(s))
    return forward + before - after, forward + drift


def excess_entropy(model: DiffusionModel, x_0: Tensor, t: Tensor, noise: Noise) -> Tensor:
    """Draw H(p(x_{t-1} | x_t)) - H(q(x_{t-1} | x_t, x_0)), x_t ~ q(x_t | x_0), [B].

    In nats per element. Its mean is the excess of the model kernel's entropy over the lower bound.
    For bits the two entropies are correlated through x_t, so the difference needs far fewer draws
    than the kernel's entropy alone.

    Args:
        model: the model.
        x_0: [B, *event], model units.
        t: int64 [B], 2..T.
        noise: for the draw of x_t.
    """
    x_t = model.process.marginal(x_0, t).sample(noise)
    own = model.reverse_kernel(x_t, t, t - 1).entropy().double()
    x_0, x_t = x_0.double(), x_t.double()
    return (own - model.process.posterior(x_0, x_t, t, t - 1).entropy()) / model.space.dims
