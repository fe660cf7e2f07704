"""The entropy of each reverse step, and what bounds it (Sohl-Dickstein et al. 2015, Equation 24):

    H_q(x_t | x_{t-1}) + H_q(x_{t-1} | x_0) - H_q(x_t | x_0)  <=  H_q(x_{t-1} | x_t)
        <=  H_q(x_t | x_{t-1}) + E log pi(x_t) - E log pi(x_{t-1})

The lower bound is the posterior's entropy: knowing x_0 too reduces uncertainty. The upper one holds
since KL(q(x_t) || pi) falls with t. The paper takes its last two terms to cancel, as they do where
the data have pi's second moment; of other data H_q(x_t | x_{t-1}) alone need not be a bound.

Nats an element, model units: means over an example's elements.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.noise import Noise
from diffusion.process import Process


def step_bounds(process: Process, power: float, t: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and the upper bound on H_q(x_{t-1} | x_t), nats an element, float64 [B] each.

    Both are exact for all data of the given power: a Gaussian's entropies do not depend on x_0, a
    bit's are affine in it, and log pi is affine in x^2.

    Args:
        process: the forward process.
        power: mean of x_0^2 over data and elements, model units; for bits the share of ones.
        t: int64 [B], 1..T; for reals the lower bound of t = 1 is minus infinity.
    """
    one = torch.ones(len(t), 1, dtype=torch.float64, device=t.device)
    s, end = t - 1, process.power

    def mean(of: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
        """E of what is affine in x^2, from its values at x = 0 and 1."""
        at_0, at_1 = of(0 * one), of(one)
        # A Gaussian's entropy is the same at both, and at t = 0 infinite at both.
        return torch.where(at_0 == at_1, at_0, (1 - weight) * at_0 + weight * at_1)

    def power_at(step: Tensor) -> Tensor:
        """E x_t^2."""
        return power * process.alpha_bar[step] + end * (1 - process.alpha_bar[step])

    prior, start = process.prior((1,), len(t)), power_at(torch.zeros_like(t))
    forward = mean(lambda x: process.forward_kernel(x, t).entropy(), power_at(s))
    before = mean(lambda x: process.marginal(x, s).entropy(), start)
    after = mean(lambda x: process.marginal(x, t).entropy(), start)
    drift = mean(prior.log_prob, power_at(t)) - mean(prior.log_prob, power_at(s))
    return forward + before - after, forward + drift


def excess_entropy(model: DiffusionModel, x_0: Tensor, t: Tensor, noise: Noise) -> Tensor:
    """H(p(x_{t-1} | x_t)) - H(q(x_{t-1} | x_t, x_0)), x_t ~ q(x_t | x_0), nats an element, [B].

    Its mean is the excess of the model's kernel over the lower bound. For bits the two entropies
    vary together with x_t, so it takes far fewer draws than the kernel's entropy alone.

    Args:
        model: the model.
        x_0: [B, *event], model units.
        t: int64 [B], 2..T.
        noise: of the forward draw.
    """
    x_t = model.process.marginal(x_0, t).sample(noise)
    own = model.reverse_kernel(x_t, t, t - 1).entropy().double()
    x_0, x_t = x_0.double(), x_t.double()
    return (own - model.process.posterior(x_0, x_t, t, t - 1).entropy()) / model.space.dims
