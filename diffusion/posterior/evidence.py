"""The evidence log p(y) of what a network was told, as a difference of two bounds.

    log p(y) = log p(x) + log r(x) - log p(x | y)   for every x,
             ~ mean over draws x of p(x | y) of  K(x) + log r(x) - K(x | y)

K(x | y) is the bound of the chain whose network is told y, over the elements that y leaves open;
r(x) counts what was seen with noise. Both bounds take the same x_t, so much of their noise cancels.

Each is a lower bound: with their gaps g, and the told chain's distribution p^(x | y), draws of p^
have the expected value

    log p(y) - KL(p^(x | y) || p(x | y)) - E g(x) + E g(x | y)

So a told network that is wrong for the model, and the gap of K(x), make it too low, and the gap of
K(x | y) makes it too high. Fewer elements have a smaller gap, so it is usually too low. The
standard error counts none of this.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.likelihood.bound import check_convention, combine, draw_terms, prior_part
from diffusion.likelihood.estimator import Choice
from diffusion.likelihood.uncertainty import quantile
from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from diffusion.operators import Mask
from diffusion.space import Convention


@final
@dataclass(frozen=True)
class Evidence:
    """Estimates of log p(y) of N observations, nats, float64 [N] each.

    Attributes:
        log_evidence: the estimate. Exact elements count as in the bound's convention, as
            probabilities of levels or densities in data units; noisy ones as densities in data
            units; bits as probabilities.
        standard_error: from the spread between draws, which includes that of the terms; not the
            bounds' gaps.
        freedom: its degrees of freedom, n - 1.
    """

    log_evidence: Tensor
    standard_error: Tensor
    freedom: Tensor

    @property
    def interval(self) -> Tensor:
        """The 95% confidence interval of the expected estimate, by Student's t, nats [N, 2]."""
        half = quantile(self.freedom) * self.standard_error
        return torch.stack((self.log_evidence - half, self.log_evidence + half), 1)


def evidence(
    model: DiffusionModel,
    observation: Observation,
    samples: Tensor,
    *,
    seed: int,
    terms: int | None = None,
    choice: Choice | None = None,
    convention: Convention | None = None,
    batch: int = 64,
) -> Evidence:
    """Estimate log p(y), by 2 network evaluations for each term of each draw.

    Args:
        model: a model whose network can be told what was seen.
        observation: y, [N, *event], elements with or without noise.
        samples: draws of method "learned", [N, n, *event], model units; n at least 2.
        seed: of the terms' noise.
        terms: terms of each bound, per draw; None for all steps.
        choice: the choice of terms, instead of `terms`.
        convention: of the bounds (default: the data's own).
        batch: rows per network call.

    Raises:
        ValueError: the network cannot be told this, there is one draw, or the convention has no
            conditional bound.
    """
    N, n = samples.shape[:2]
    if not model.conditional or not isinstance(observation.operator, Mask):
        raise ValueError(
            "this evidence is of elements that the network is told of: 'twisted' estimates others"
        )
    if n < 2:
        raise ValueError(f"an error needs 2 draws of each posterior or more, came {n}")
    convention = convention or model.space.default_convention
    check_convention(model, convention, told=True)
    rows = torch.arange(N * n)
    told = observation.to_network().rows(rows.to(samples.device) // n)
    x_0 = samples.flatten(0, 1)
    if convention == "discretised":  # the bound is of a level, so the draw is one
        x_0 = model.space.to_model(model.space.to_data(x_0))
    x_0 = torch.where(told.certain, told.values, x_0)
    steps = (choice or Choice(terms=terms)).resolve(model, rows, seed, convention)
    without, given = (
        combine(
            steps,
            draw_terms(
                model,
                x_0,
                steps,
                seed=seed,
                convention=convention,
                observation=seen,
                batch=batch,
            ),
            prior_part(model, x_0, convention, seen).cpu(),
            None,
        ).bound
        for seen in (None, told)
    )
    noisy = told.known & ~told.certain
    log_r = told.factor.log_prob(x_0, noisy) + model.space.log_jacobian_of(x_0, noisy)
    each = (without + log_r.cpu() - given).view(N, n)
    error = each.std(1) / n**0.5
    return Evidence(each.mean(1), error, torch.full_like(error, n - 1))
