"""Draws from the posterior p(x_0) r(x_0) / Z, by one of several methods, and how far to trust them.

    twisted   particles that follow a twist: the exact posterior as they grow, and Z
    matched   independent noise on everything is that of some step: the plain chain from there
    product   p(x_s | x_t) r(x_s), the 2015 paper's kernel with one r at every step; biased
    resample  RePaint's jumps; biased

`auto` takes the matched start where it holds and twisted elsewhere. All are exact at best up to the
model and the number of its steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.diagnostics import Diagnostics
from diffusion.distributions import Bernoulli, Normal
from diffusion.factors import Expert, Factor, Label
from diffusion.matched import MatchedStart, matched_start
from diffusion.methods import Auto, Matched, Method, Product, Resample, Settled, Twisted
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.operators import Mask
from diffusion.particles import Filter, shares, systematic
from diffusion.plan import DDIM, Ancestral, DPMSolver
from diffusion.process import BinomialProcess
from diffusion.product import Constant
from diffusion.repaint import Repaint, check_repaint
from diffusion.sampling import sample
from diffusion.systems import Cloud, Course, walk
from diffusion.tilt import TIED

__all__ = [
    "Auto",
    "Diagnostics",
    "Expert",
    "Factor",
    "Label",
    "Matched",
    "MatchedStart",
    "Method",
    "Observation",
    "Posterior",
    "Product",
    "Resample",
    "Settled",
    "Twisted",
    "biased",
    "course_of",
    "diagnose",
    "draw",
    "gather",
    "matched_start",
    "settle",
    "start_of",
]

_ELEMENTS = 2**20  # of all the rows that go through the network at once


@final
@dataclass(frozen=True)
class Posterior:
    """Samples of N posteriors.

    Attributes:
        samples: [N, n, *event], model units.
        weights: [N, n], float64, each datum's summing to 1. Samples of independent systems weigh as
            their estimates of Z: averages with these weights have no bias but that of a ratio.
            Equal ones elsewhere.
        method: the one that answered.
        biased: whether it misses the posterior even of a perfect model with all its steps.
        diagnostics: of each datum.
        network_evaluations: of all, by the rule of `diffusion.twist`.
        start: where the chains began, by "matched".
    """

    samples: Tensor
    weights: Tensor
    method: Settled
    biased: bool
    diagnostics: tuple[Diagnostics, ...]
    network_evaluations: int
    start: MatchedStart | None = None


def settle(
    model: DiffusionModel,
    observation: Observation,
    method: Method,
    factors: Sequence[Factor] = (),
) -> Settled:
    """What `auto` stands for here; any other method is itself.

    Raises:
        ValueError: factors that do not fit, or that the method does not know; a product of models
            beside what ties elements together.
    """
    for factor in factors:
        factor.check(model, len(observation))
    if isinstance(method, Auto):
        plain = not factors and _noise(model, observation) is not None
        method = Matched() if plain else method.twisted
    if factors and not isinstance(method, Twisted):
        raise ValueError(
            f"method '{method.name}' knows what was seen and no other factor: use 'twisted' for "
            "labels and products of models"
        )
    product = any(isinstance(factor, Expert) for factor in factors)
    if product and isinstance(method, Twisted) and method.twist.ties(observation):
        raise ValueError(TIED)
    return method


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


def course_of(
    model: DiffusionModel,
    observation: Observation,
    method: Settled,
    samples: int,
    sampler: Ancestral | DDIM | DPMSolver,
) -> Course | None:
    """What systems of particles do for a method; None where plain chains do.

    Args:
        model: the model.
        observation: what was seen.
        method: how; never `auto`, which `settle` settles.
        samples: of each datum.
        sampler: the steps.

    Raises:
        ValueError: a sampler or an observation that the method cannot have, or more samples of a
            joint system than it has particles.
    """
    if isinstance(method, Twisted):
        plan = _ancestral(sampler, method).plan(model)
        draws = samples // method.each(samples)
        return Filter(plan, method.particles, draws, method.twist)
    if isinstance(method, Resample):
        check_repaint(observation)
        return Repaint(_ancestral(sampler, method).plan(model), method.jump, method.times)
    if isinstance(method, Product) and not isinstance(observation.operator, Mask):
        return Constant(sampler.plan(model))
    return None


def start_of(model: DiffusionModel, observation: Observation) -> MatchedStart:
    """Where the plain chains begin that are method `matched`.

    Raises:
        ValueError: not everything was seen with the same independent noise.
    """
    noise = _noise(model, observation)
    if noise is None:
        raise ValueError(
            "a matched start needs the same independent noise on every element (of bits, base "
            "rate 1/2): use 'twisted'"
        )
    return matched_start(model, _values(observation), noise)


def biased(method: Settled) -> bool:
    """Whether a method misses the posterior even of a perfect model with all its steps."""
    return isinstance(method, Product | Resample) or (
        isinstance(method, Twisted) and method.particles == 1
    )


def diagnose(method: Settled, cloud: Cloud, count: int, most_steps: int) -> tuple[Diagnostics, ...]:
    """What the systems of each of `count` data say of themselves, of a model of `most_steps`."""
    if not isinstance(method, Twisted):
        return (Diagnostics(),) * count
    each = len(cloud.log_evidence) // count
    stretches = (slice(i * each, (i + 1) * each) for i in range(count))
    return tuple(Diagnostics.of(cloud.rows(part), most_steps) for part in stretches)


def gather(method: Settled, cloud: Cloud, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The samples of `count` data, [N, n, *event], and their weights, float64 [N, n]."""
    x, log_z = cloud.samples.unflatten(0, (count, -1)), cloud.log_evidence.reshape(count, -1)
    draws = x.shape[2]
    x, weights = x.flatten(1, 2), (shares(log_z) / draws).repeat_interleave(draws, 1)
    if not (isinstance(method, Twisted) and method.systems == "weighted"):
        return x, weights
    datum = torch.arange(count, device=x.device)
    noise = counter_noise(seed, datum, 0, Stream.RESAMPLING).uniform((1,))[:, 0].double()
    picked = systematic(log_z, noise, log_z.shape[1])
    return x[datum[:, None], picked], torch.full_like(weights, 1 / weights.shape[1])


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
    together = max(1, _ELEMENTS // (course.particles * math.prod(model.event)))
    cloud = Cloud.joined(
        [
            walk(
                model,
                course,
                observation.rows(number // each),
                seed,
                number,
                [factor.rows(number // each) for factor in factors],
            )
            for number in torch.arange(N * each, device=model.device).split(together)
        ]
    )
    return Posterior(
        *gather(method, cloud, N, seed),
        method,
        biased=biased(method),
        diagnostics=diagnose(method, cloud, N, model.T),
        network_evaluations=int(cloud.evaluations.sum()),
    )


def _ancestral(sampler: Ancestral | DDIM | DPMSolver, method: Settled) -> Ancestral:
    """The sampler, if it draws from the model's own kernel."""
    if not isinstance(sampler, Ancestral):
        raise ValueError(
            f"method '{method.name}' follows the model's own kernel p(x_s | x_t), "
            f"which sampler '{sampler.name}' replaces: use 'ancestral', with fewer steps if need be"
        )
    return sampler


def _values(observation: Observation) -> Tensor:
    """y where all of it was seen through noise: reals, or bits."""
    factor = observation.factor
    if isinstance(factor, Normal):
        return factor.mean
    assert isinstance(factor, Bernoulli)  # there are two families
    return (factor.logits > 0).to(factor.logits.dtype)


def _noise(model: DiffusionModel, observation: Observation) -> float | None:
    """The one noise of all elements, as `matched_start` wants it; None where there is none."""
    factor = observation.factor
    if not isinstance(observation.operator, Mask) or not bool(observation.known.all()):
        return None
    if isinstance(factor, Normal):
        noise = factor.var.sqrt()
    else:
        assert isinstance(factor, Bernoulli)
        if not isinstance(model.process, BinomialProcess) or model.process.base_rate != 0.5:
            return None
        noise = (-factor.logits.abs()).sigmoid()
    first = float(noise.flatten()[0])
    return first if first > 0 and bool((noise == first).all()) else None
