"""Particles: weighted rows that follow a twist, exact as they grow many, unbiased in Z at once.

    w_s = w_t p(x_s | x_t) r_s(x_s) / (q(x_s | x_t, y) r_t(x_t)),     Z = E[prod of mean weights]

A system is P particles of one observation. They resample among themselves alone, systematically,
when their effective sample size falls below P / 2, and at the end, where p(x_0 | x_1) r(x_0) is
drawn from as it stands; what it is multiplied by beside that (`factors`) weighs the draws
once more. All noise is numbered by (seed, particle, step), so a system is the same alone and in any
batch.

Sources: Wu, Trippe, Naesseth, Blei and Cunningham 2023; Del Moral, Doucet and Jasra 2006 (weights
of any proposal, Z without bias); Kitagawa 1996 (systematic resampling).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.plan import Plan
from diffusion.posterior.proposal import Look
from diffusion.posterior.systems import Course, Systems
from diffusion.posterior.twist import Twist, last_look, look

LookAt = Callable[[Tensor, Tensor, Tensor, Observation], Look]

_TWIST = Twist()
_FAR = 1e6  # of x_t, whose noise is about 1: no chain of finite probability goes there


@final
@dataclass(frozen=True)
class Filter(Course):
    """Systems that follow a twist.

    Args:
        plan: an ancestral plan from T down to 0.
        particles: P.
        draws: samples of each system, at most P.
        twist: which r_t.
        look_at: another twist in its place: (x_t, t, s, observation) of B rows to a `Look`, for s
            above 0.

    Raises:
        ValueError: more draws than particles.
    """

    plan: Plan
    particles: int
    draws: int = 1
    twist: Twist = _TWIST
    look_at: LookAt | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= self.particles:
            raise ValueError(
                f"{self.particles} particles hold {self.particles} samples at most, came "
                f"{self.draws} to draw: raise the particles, or draw from more systems"
            )

    @override
    def __len__(self) -> int:
        return len(self.plan)

    @override
    def evaluations(self, model: DiffusionModel, count: Tensor) -> Tensor:
        return self.particles * self.twist.evaluations(model, count)

    @override
    def begin(
        self, model: DiffusionModel, observation: Observation, seed: int, number: Tensor
    ) -> Systems:
        row = number[:, None] * self.particles + torch.arange(self.particles, device=number.device)
        prior = model.process.prior(model.event, row.numel())
        x = prior.sample(counter_noise(seed, row.flatten(), model.T + 1))
        return Systems.begun(x, observation, seed, number)

    @override
    def step(
        self,
        model: DiffusionModel,
        systems: Systems,
        unit: int,
        together: int | None = None,
        piece: int | None = None,
    ) -> Systems:
        done = sum(len(here.log_r) for here in systems.looks)
        if piece is not None and done + piece < systems.log_w.numel():
            looks = self._looks(model, systems, unit, together, done + piece)
            return replace(systems, looks=(*systems.looks, *looks))
        kind = self.twist.exact(systems.observation.count[:: self.particles])
        parts = [place.nonzero()[:, 0] for place in (kind, ~kind)]
        if unit == len(self) - 1 or not all(map(len, parts)):
            return self._step(model, systems, unit, together)
        # Covariances that are worked out and those that are not: each system by its own way.
        moved = [self._step(model, systems.rows(part), unit, together) for part in parts]
        both = Systems.joined(moved).rows(torch.cat(parts).argsort())
        return replace(both, factors=systems.factors)

    def _step(
        self, model: DiffusionModel, systems: Systems, unit: int, together: int | None
    ) -> Systems:
        S, P = systems.log_w.shape
        device, last = systems.x.device, unit == len(self) - 1
        t = self.plan.t[unit : unit + 1].to(device)
        here = Look.joined([*systems.looks, *self._looks(model, systems, unit, together, S * P)])
        log_w, log_z = systems.log_w + here.log_r.reshape(S, P), systems.log_evidence
        log_w = torch.where(log_w < math.inf, log_w, -math.inf)  # a lost particle is worth nothing
        ess, origin, variance = effective(log_w), systems.origin, systems.variance
        choose = torch.ones_like(ess, dtype=torch.bool) if last else ess < P / 2
        place = torch.arange(P, device=device).expand(S, P)
        if bool(choose.any()):
            noise = counter_noise(systems.seed, systems.number, t.expand(S), Stream.RESAMPLING)
            u = noise.uniform((1,))[:, 0].double()
            final = drawn(log_w, u, self.draws)  # of the last step, before log_w is evened out
            place = torch.where(choose[:, None], systematic(log_w, u, P), place)
            log_z = torch.where(choose, log_z + log_mean(log_w), log_z)
            apart = variance + jackknife(log_w)
            told = spread(log_w, origin, apart) if last else apart
            variance = torch.where(choose, told, variance)
            log_w = torch.where(choose[:, None], 0.0, log_w)
            origin = origin.gather(1, place)
        row = systems.particle
        if last and here.left is None:
            place, row = final, row[:, : self.draws]
        rows = (torch.arange(S, device=device)[:, None] * P + place).flatten()
        proposal = here.proposal.rows(rows)
        x = proposal.sample(counter_noise(systems.seed, row.flatten(), t.expand(len(rows))))
        if last and here.left is not None:
            each = zip(x.split(together or len(x)), rows.split(together or len(x)), strict=True)
            log_w = torch.cat([here.left(*part) for part in each]).reshape(S, P)
            log_z = log_z + log_mean(log_w)
            variance = spread(log_w, origin, apart + jackknife(log_w))
            noise = counter_noise(systems.seed, systems.number, 0, Stream.RESAMPLING)
            u = noise.uniform((1,))[:, 0].double()
            origin = origin.gather(1, systematic(log_w, u, P))
            first = torch.arange(S, device=device)[:, None] * P
            picked = (first + drawn(log_w, u, self.draws)).flatten()
            x, rows = x[picked], rows[picked]
        moved = systems.moved
        if not last:
            ratio = proposal.log_ratio(x)
            moved = moved + ratio.reshape(S, P).nan_to_num(0.0, 0.0, 0.0).mean(1)
            # Where r_t was 0 nothing weighs anything, and what has been paid does not matter.
            paid = here.log_r[rows] + ratio
            paid = torch.where(torch.isneginf(here.log_r[rows]), 0.0, paid)
            log_w = log_w - paid.reshape(S, P)
            # A network sent far from its data may answer anything: such a particle is worth
            # nothing, and waits at 0 to be replaced.
            lost = ~(x.abs() <= _FAR).flatten(1).all(1) | ~(log_w < math.inf).flatten()
            log_w = torch.where(lost.reshape(S, P), -math.inf, log_w)
            x = torch.where(lost.reshape(-1, *[1] * (x.ndim - 1)), 0.0, x)
        return replace(
            systems,
            # Where all of a system are lost its evidence is 0, and what is drawn of it any number.
            x=x.nan_to_num(0.0).unflatten(0, (S, -1)),
            x_0=here.x_0[rows].nan_to_num(0.0).unflatten(0, (S, -1)),
            log_w=log_w,
            log_evidence=log_z,
            variance=variance,
            moved=moved,
            ess=torch.cat((systems.ess, ess[:, None]), 1),
            origin=origin,
            looks=(),
        )

    def _looks(
        self, model: DiffusionModel, systems: Systems, unit: int, together: int | None, end: int
    ) -> Iterator[Look]:
        """What is to be said of each particle not yet looked at, up to `end`; so many at once."""
        x, device = systems.x.flatten(0, 1), systems.x.device
        t, s = (part[unit : unit + 1].to(device) for part in (self.plan.t, self.plan.s))
        begin = sum(len(here.log_r) for here in systems.looks)
        for place in torch.arange(begin, end, device=device).split(together or len(x)):
            x_t, seen, factors = x, systems.observation, systems.factors
            if len(place) < len(x):
                x_t, seen = x[place], seen.rows(place)
                factors = tuple(factor.rows(place) for factor in factors)
            if unit == len(self) - 1:
                here = last_look(model, x_t, t, seen)
            elif self.look_at is not None:
                here = self.look_at(x_t, t, s, seen)
            else:
                here = look(model, x_t, t, s, seen, self.twist)
            for factor in factors:
                here = factor.look(here, x_t, t, s)
            yield here


def systematic(log_w: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Places drawn in proportion to weights: (i + u) / count through their cumulative sum.

    Of place j come floor or ceil of count w_j / sum(w), on average exactly that.

    Args:
        log_w: nats, float64 [S, P]; where all are -inf, all weigh the same.
        uniform: u, one for each system, float64 [S].
        count: how many places to draw.

    Returns:
        int64 [S, count], ascending.
    """
    ticks = torch.arange(count, dtype=torch.float64, device=log_w.device) + uniform[:, None]
    return _at(log_w, ticks / count)


def drawn(log_w: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Places drawn, each of them j with probability w_j / sum(w): (u + i / count) mod 1.

    All together they are as even as those of `systematic`, whose first place is always a low one:
    taken alone, or few, its places are no draws by the weights.

    Args:
        log_w: and what follows: as `systematic` takes them.
        uniform: u, one for each system, float64 [S].
        count: how many places to draw.

    Returns:
        int64 [S, count].
    """
    ticks = torch.arange(count, dtype=torch.float64, device=log_w.device) / count
    return _at(log_w, (ticks + uniform[:, None]) % 1)


def _at(log_w: Tensor, ticks: Tensor) -> Tensor:
    """Where the shares of the weights, laid end to end, reach ticks of 0 to 1, [S, count]."""
    edges = shares(log_w).cumsum(1)
    found = torch.searchsorted(edges / edges[:, -1:], ticks.contiguous(), right=True)
    return found.clamp(max=log_w.shape[1] - 1)


def effective(log_w: Tensor) -> Tensor:
    """The effective sample size (sum w)^2 / sum w^2, 1 to P, float64 [S]."""
    return 1 / shares(log_w).square().sum(1)


def log_mean(log_w: Tensor) -> Tensor:
    """log of the mean weight, [S]; -inf where all are."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def spread(log_w: Tensor, origin: Tensor, apart: Tensor) -> Tensor:
    """Variance of a system's log of Z, by the system alone, float64 [S].

        V = 1 - P / (P - 1) (1 - sum over ancestors a of (sum of the weights from a)^2)

    estimates the variance of Z / E[Z] (Lee and Whiteley 2018, Equation 4, with the factor of one
    resampling: the systematic one adds little), so -log(1 - V) that of its logarithm. It is never
    more than 1 and says nothing once all descend from one: then what the resamplings tell, one by
    one, stands in, and at least 1. Of one particle nothing is known: infinite.

    Args:
        log_w: last, nats, float64 [S, P].
        origin: from which of the first particles each descends, int64 [S, P].
        apart: sum of `jackknife` over the resamplings, float64 [S].
    """
    P = log_w.shape[1]
    if P == 1:
        return torch.full_like(apart, math.inf)
    families = torch.zeros_like(log_w).scatter_add(1, origin, shares(log_w))
    single = (origin == origin[:, :1]).all(1)
    V = 1 - P / (P - 1) * (1 - families.square().sum(1))
    return torch.where(single, apart.clamp_min(1.0), -torch.log1p(-V.clamp(0.0, 1 - 1e-9)))


def jackknife(log_w: Tensor) -> Tensor:
    """Variance of `log_mean` by leaving out one weight at a time (Tukey 1958), float64 [S]."""
    P = log_w.shape[1]
    left = torch.log1p(-shares(log_w).clamp(max=1 - 1e-15))
    return left.var(1, correction=0) * (P - 1)


def shares(log_w: Tensor) -> Tensor:
    """Weights that sum to 1, [S, P]; equal ones where nothing weighs anything."""
    none = torch.isneginf(log_w).all(1, keepdim=True)
    return torch.where(none, 0.0, log_w).softmax(1)
