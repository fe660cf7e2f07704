"""Draws samples of N posteriors, by plain chains or by systems of particles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from diffusion.posterior.diagnostics import Diagnostics
from diffusion.posterior.factors import Factor
from diffusion.posterior.methods import Auto, MatchedStart, PosteriorMethod
from diffusion.posterior.smc import SMCKernel, SMCResult, run
from diffusion.samplers import Ancestral, Sampler, sample

_ELEMENTS = 2**20  # elements that go through the network at once, over all rows


@final
@dataclass(frozen=True)
class Posterior:
    """Samples of N posteriors.

    Attributes:
        samples: [N, n, *event], model units.
        weights: each sample's weight in averages, float64 [N, n], summing to 1 per posterior
            (`smc.weigh`). Equal unless samples come from independent systems.
        method: the method that was used.
        biased: whether it is biased even with a perfect model and all its steps.
        diagnostics: one per posterior.
        network_evaluations: the total, by the rule of `diffusion.posterior.twist`.
        start: where the chains began, for "matched".
    """

    samples: Tensor
    weights: Tensor
    method: PosteriorMethod
    biased: bool
    diagnostics: tuple[Diagnostics, ...]
    network_evaluations: int
    start: MatchedStart | None = None


def sample_posterior(
    model: DiffusionModel,
    observation: Observation,
    samples: int,
    *,
    seed: int,
    method: PosteriorMethod | None = None,
    sampler: Sampler | None = None,
    factors: Sequence[Factor] = (),
) -> Posterior:
    """Draw from N posteriors.

    Args:
        model: the model.
        observation: what was seen, [N, *seen].
        samples: n, the samples per posterior.
        seed: the seed of the noise; sample j of posterior i is numbered i n + j.
        method: the method (default `Auto()`).
        sampler: the chain's sampler (default: ancestral at all T steps).
        factors: further factors of p(x_0), labels or other models; only for "twisted".

    Raises:
        ValueError: the method does not suit the observation, the factors or the sampler, or a
            factor has another process or space.
    """
    resolved = (Auto() if method is None else method).resolve(model, observation, factors)
    start, sampler = resolved.start(model, observation), sampler or Ancestral()
    kernel = resolved.kernel(model, observation, samples, sampler)
    if kernel is not None:
        return _by_particles(model, observation, samples, seed, resolved, kernel, factors)
    count = len(observation) * samples
    each = torch.arange(len(observation), device=model.device).repeat_interleave(samples)
    x = sample(
        model,
        count,
        seed=seed,
        sampler=sampler,
        observation=None if start else resolved.told(observation).rows(each),
        start=(start.t, start.x_t.repeat_interleave(samples, 0)) if start else None,
    )
    steps = len(sampler.plan(model, start.t if start else None))
    return Posterior(
        x.unflatten(0, (-1, samples)),
        torch.full((len(observation), samples), 1 / samples, dtype=torch.float64),
        resolved,
        biased=resolved.biased,
        diagnostics=resolved.diagnose_chains(model, observation, steps),
        network_evaluations=steps * count,
        start=start,
    )


def _by_particles(
    model: DiffusionModel,
    observation: Observation,
    samples: int,
    seed: int,
    method: PosteriorMethod,
    kernel: SMCKernel,
    factors: Sequence[Factor],
) -> Posterior:
    """Run `sample_posterior` with systems of particles, as many at once as memory allows."""
    N, each = len(observation), samples // kernel.draws
    most = max(1, _ELEMENTS // math.prod(model.event))
    result = SMCResult.joined(
        [
            run(
                model,
                kernel,
                observation.rows(number // each),
                seed,
                number,
                [factor.rows(number // each) for factor in factors],
                together=most,
            )
            for number in torch.arange(N * each, device=model.device).split(
                max(1, most // kernel.particles)
            )
        ]
    )
    return Posterior(
        *method.gather(result, N, seed),
        method,
        biased=method.biased,
        diagnostics=method.diagnose(result, N, model.T),
        network_evaluations=int(result.evaluations.sum()),
    )
