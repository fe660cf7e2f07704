"""Draws from the posterior p(x_0) r(x_0) / Z, by one of several methods, and how far to trust them.

    twisted   particles that follow a twist: the exact posterior as they grow, and Z
    matched   independent noise on everything is that of some step: the plain chain from there
    product   p(x_s | x_t) r(x_s), the 2015 paper's kernel with one r at every step; biased
    resample  RePaint's jumps; biased

`auto` takes the matched start where it holds and twisted elsewhere. All are exact at best up to the
model and the number of its steps.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.diagnostics import Diagnostics
from diffusion.distributions import Bernoulli, Normal
from diffusion.matched import MatchedStart, matched_start
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.operators import Mask
from diffusion.particles import Cloud, run, systematic
from diffusion.plan import DDIM, Ancestral, DPMSolver
from diffusion.process import BinomialProcess
from diffusion.repaint import repaint
from diffusion.sampling import sample
from diffusion.twist import Twist

__all__ = [
    "Auto",
    "Diagnostics",
    "Matched",
    "MatchedStart",
    "Method",
    "Observation",
    "Posterior",
    "Product",
    "Resample",
    "Twisted",
    "draw",
    "matched_start",
    "settle",
]

_ELEMENTS = 2**20  # of all the rows that go through the network at once


class _Method(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class Product(_Method):
    """The 2015 paper's (Section 2.5): r_t = r for every t, one row a sample, no weights."""

    name: Literal["product"] = "product"


@final
class Resample(_Method):
    """RePaint: `jump` steps back, each stretch made `times` times."""

    name: Literal["resample"] = "resample"
    jump: int = Field(10, ge=1)
    times: int = Field(10, ge=1)


@final
class Matched(_Method):
    """The plain chain from the step whose noise is the observation's."""

    name: Literal["matched"] = "matched"


@final
class Twisted(_Method):
    """Particles that follow a twist.

    Attributes:
        particles: of a system.
        systems: "independent", one for each sample; "weighted", the same, from which samples are
            drawn in proportion to their estimates of Z, some more than once: few particles that
            lost a mode say so in Z, and counted alike with the rest they bias; or "joint", one of
            all samples of a datum, which is cheaper, and whose samples share ancestors.
        twist: which r_t.
    """

    name: Literal["twisted"] = "twisted"
    particles: int = Field(8, ge=1)
    systems: Literal["independent", "weighted", "joint"] = "independent"
    twist: Twist = Twist()


@final
class Auto(_Method):
    """The matched start where everything was seen with the same independent noise, else twisted."""

    name: Literal["auto"] = "auto"
    twisted: Twisted = Twisted()


#: A method's configuration, told apart by `name`.
Method = Annotated[Product | Resample | Matched | Twisted | Auto, Field(discriminator="name")]


@final
@dataclass(frozen=True)
class Posterior:
    """Samples of N posteriors.

    Attributes:
        samples: [N, n, *event], model units.
        method: the one that answered.
        biased: whether it misses the posterior even of a perfect model with all its steps.
        diagnostics: of each datum.
        network_evaluations: of all, by the rule of `diffusion.twist`.
        start: where the chains began, by "matched".
    """

    samples: Tensor
    method: Product | Resample | Matched | Twisted
    biased: bool
    diagnostics: tuple[Diagnostics, ...]
    network_evaluations: int
    start: MatchedStart | None = None


def settle(
    model: DiffusionModel, observation: Observation, method: Method
) -> Product | Resample | Matched | Twisted:
    """What `auto` stands for here; any other method is itself."""
    if not isinstance(method, Auto):
        return method
    return method.twisted if _noise(model, observation) is None else Matched()


def draw(
    model: DiffusionModel,
    observation: Observation,
    samples: int,
    *,
    seed: int,
    method: Method | None = None,
    sampler: Ancestral | DDIM | DPMSolver | None = None,
) -> Posterior:
    """Draw from the posteriors of N data.

    Args:
        model: the model.
        observation: what was seen, [N, *seen].
        samples: n, of each datum.
        seed: of the noise; sample j of datum i is numbered i n + j.
        method: how; `Auto()` where it is not given.
        sampler: the chain's steps; ancestral at all T where it is not given.

    Raises:
        ValueError: a method that the observation cannot have, or a sampler that it cannot.
    """
    settled = settle(model, observation, Auto() if method is None else method)
    sampler = sampler or Ancestral()
    if isinstance(settled, Twisted):
        return _twisted(model, observation, samples, seed, settled, _ancestral(sampler, settled))
    seen = observation.rows(
        torch.arange(len(observation), device=model.device).repeat_interleave(samples)
    )
    start, count = None, len(seen)
    if isinstance(settled, Resample):
        plan = _ancestral(sampler, settled).plan(model)
        x, each = repaint(model, seen, plan, seed=seed, jump=settled.jump, times=settled.times)
    elif isinstance(settled, Matched):
        noise = _noise(model, observation)
        if noise is None:
            raise ValueError(
                "a matched start needs the same independent noise on every element (of bits, base "
                "rate 1/2): use 'twisted'"
            )
        start = matched_start(model, _values(observation), noise)
        at = start.t, start.x_t.repeat_interleave(samples, 0)
        x = sample(model, count, seed=seed, sampler=sampler, start=at)
        each = len(sampler.plan(model, start.t))
    else:
        x = sample(model, count, seed=seed, sampler=sampler, observation=seen)
        each = len(sampler.plan(model))
    return Posterior(
        x.unflatten(0, (-1, samples)),
        settled,
        biased=not isinstance(settled, Matched),
        diagnostics=(Diagnostics(),) * len(observation),
        network_evaluations=each * count,
        start=start,
    )


def _twisted(
    model: DiffusionModel,
    observation: Observation,
    samples: int,
    seed: int,
    method: Twisted,
    sampler: Ancestral,
) -> Posterior:
    """`draw` by particles; all systems of a batch are of one kind, exact or iterated."""
    plan, N, device = sampler.plan(model), len(observation), model.device
    joint = method.systems == "joint"
    each, draws = (1, samples) if joint else (samples, 1)
    system = torch.arange(N * each, device=device)
    count = observation.known.flatten(1).sum(1)[system // each]
    kinds = method.twist.exact(count)
    together = max(1, _ELEMENTS // (method.particles * math.prod(model.event)))
    places = [
        place for kind in (kinds, ~kinds) for place in system[kind].split(together) if len(place)
    ]
    parts = [
        run(
            model,
            observation.rows(place // each),
            plan,
            seed=seed,
            system=place,
            particles=method.particles,
            draws=draws,
            twist=method.twist,
        )
        for place in places
    ]
    cloud = Cloud.joined(parts).rows(torch.cat(places).argsort())
    x = cloud.samples.reshape(N, samples, *model.event)
    if method.systems == "weighted":
        log_z = cloud.log_evidence.reshape(N, samples)
        datum = torch.arange(N, device=device)
        uniform = counter_noise(seed, datum, 0, Stream.RESAMPLING).uniform((1,))[:, 0].double()
        x = x[datum[:, None], systematic(log_z, uniform, samples)]
    found = [Diagnostics.of(cloud.rows(part), model.T) for part in _stretches(N, each)]
    return Posterior(
        x,
        method,
        biased=method.particles == 1,
        diagnostics=tuple(found),
        network_evaluations=int(cloud.evaluations.sum()),
    )


def _stretches(count: int, length: int) -> list[slice]:
    """The places of each datum's systems."""
    return [slice(i * length, (i + 1) * length) for i in range(count)]


def _ancestral(sampler: Ancestral | DDIM | DPMSolver, method: _Method) -> Ancestral:
    """The sampler, if it draws from the model's own kernel."""
    if not isinstance(sampler, Ancestral):
        raise ValueError(
            f"method '{getattr(method, 'name', '')}' follows the model's own kernel p(x_s | x_t), "
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
