"""Draws from the posteriors of N data, by plain chains or by systems of particles, gathered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.plan import DDIM, Ancestral, DPMSolver
from diffusion.posterior.diagnostics import Diagnostics
from diffusion.posterior.factors import Factor
from diffusion.posterior.matched import MatchedStart
from diffusion.posterior.methods import Auto, Matched, Method, Settled, Twisted
from diffusion.posterior.settle import biased, course_of, settle, start_of
from diffusion.posterior.smc import drawn, effective, shares
from diffusion.posterior.systems import Cloud, Course, walk
from diffusion.sampling import sample

_ELEMENTS = 2**20  # of all the rows that go through the network at once


@final
@dataclass(frozen=True)
class Posterior:
    """Samples of N posteriors.

    Attributes:
        samples: [N, n, *event], model units.
        weights: what each sample counts in averages, [N, n], float64, each datum's summing to 1:
            those of `weigh`. Equal ones where samples are not of independent systems.
        method: the one that answered.
        biased: whether it misses the posterior even of a perfect model with all its steps.
        diagnostics: of each datum.
        network_evaluations: of all, by the rule of `diffusion.posterior.twist`.
        start: where the chains began, by "matched".
    """

    samples: Tensor
    weights: Tensor
    method: Settled
    biased: bool
    diagnostics: tuple[Diagnostics, ...]
    network_evaluations: int
    start: MatchedStart | None = None


def draw(
    model: DiffusionModel,
    observation: Observation,
    samples: int,
    *,
    seed: int,
    method: Method | None = None,
    sampler: Ancestral | DDIM | DPMSolver | None = None,
    factors: Sequence[Factor] = (),
) -> Posterior:
    """Draw from the posteriors of N data.

    Args:
        model: the model.
        observation: what was seen, [N, *seen].
        samples: n, of each datum.
        seed: of the noise; sample j of datum i is numbered i n + j.
        method: how; `Auto()` where it is not given.
        sampler: the chain's steps; ancestral at all T where it is not given.
        factors: what else p(x_0) is multiplied by, by "twisted" alone: labels, other models.

    Raises:
        ValueError: a method that the observation or the factors cannot have, or a sampler that it
            cannot; a factor of another process or space.
    """
    settled = settle(model, observation, Auto() if method is None else method, factors)
    sampler = sampler or Ancestral()
    course = course_of(model, observation, settled, samples, sampler)
    if course is not None:
        return _walked(model, observation, samples, seed, settled, course, factors)
    count = len(observation) * samples
    if isinstance(settled, Matched):
        start = start_of(model, observation)
        at = start.t, start.x_t.repeat_interleave(samples, 0)
        x = sample(model, count, seed=seed, sampler=sampler, start=at)
        each = len(sampler.plan(model, start.t))
    else:
        datum = torch.arange(len(observation), device=model.device).repeat_interleave(samples)
        start, each = None, len(sampler.plan(model))
        x = sample(model, count, seed=seed, sampler=sampler, observation=observation.rows(datum))
    return Posterior(
        x.unflatten(0, (-1, samples)),
        torch.full((len(observation), samples), 1 / samples, dtype=torch.float64),
        settled,
        biased=biased(settled),
        diagnostics=(Diagnostics(),) * len(observation),
        network_evaluations=each * count,
        start=start,
    )


def diagnose(method: Settled, cloud: Cloud, count: int, most_steps: int) -> tuple[Diagnostics, ...]:
    """What the systems of each of `count` data say of themselves, of a model of `most_steps`."""
    if not isinstance(method, Twisted):
        return (Diagnostics(),) * count
    each = len(cloud.log_evidence) // count
    stretches = (slice(i * each, (i + 1) * each) for i in range(count))
    return tuple(Diagnostics.of(cloud.rows(part), most_steps) for part in stretches)


def gather(method: Settled, cloud: Cloud, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The samples of `count` data, [N, n, *event], and what each counts, float64 [N, n]."""
    x, log_z = cloud.samples.unflatten(0, (count, -1)), cloud.log_evidence.reshape(count, -1)
    draws = x.shape[2]
    each = weigh(log_z)
    x, weights = x.flatten(1, 2), (each / draws).repeat_interleave(draws, 1)
    if not (isinstance(method, Twisted) and method.systems == "weighted"):
        return x, weights
    datum = torch.arange(count, device=x.device)
    noise = counter_noise(seed, datum, 0, Stream.RESAMPLING).uniform((1,))[:, 0].double()
    picked = drawn(each.log(), noise, each.shape[1])
    return x[datum[:, None], picked], torch.full_like(weights, 1 / weights.shape[1])


def weigh(log_z: Tensor) -> Tensor:
    """What each of K independent systems counts, float64 [N, K], summing to 1.

    Z_k / sum Z, by which averages have no bias but that of a ratio, as long as that leaves more
    than half of the systems: an effective number of (K + 1) / 2. So few that lost a mode are made
    up for. Where most are to be given up (much was seen by few particles), the weights say more of
    the noise in Z_k than of the posterior, one system would stand for all, and they count alike.

    Args:
        log_z: of each system, nats, float64 [N, K].
    """
    firm = effective(log_z) >= (log_z.shape[1] + 1) / 2 - 1e-9
    return torch.where(firm[:, None], shares(log_z), 1 / log_z.shape[1])


def _walked(
    model: DiffusionModel,
    observation: Observation,
    samples: int,
    seed: int,
    method: Settled,
    course: Course,
    factors: Sequence[Factor],
) -> Posterior:
    """`draw` by systems of particles, as many at once as memory allows."""
    N, each = len(observation), samples // course.draws
    most = max(1, _ELEMENTS // math.prod(model.event))
    cloud = Cloud.joined(
        [
            walk(
                model,
                course,
                observation.rows(number // each),
                seed,
                number,
                [factor.rows(number // each) for factor in factors],
                together=most,
            )
            for number in torch.arange(N * each, device=model.device).split(
                max(1, most // course.particles)
            )
        ]
    )
    return Posterior(
        *gather(method, cloud, N, seed),
        method,
        biased=biased(method),
        diagnostics=diagnose(method, cloud, N, model.T),
        network_evaluations=int(cloud.evaluations.sum()),
    )
