"""The particle filter: weighted rows that follow a twist; exact in the limit, unbiased in Z.

    w_s = w_t p(x_s | x_t) r_s(x_s) / (q(x_s | x_t, y) r_t(x_t)),     Z = E[prod of mean weights]

A proposal may know more than r_t (`twist.Told`). On the way its paths then follow q (p r_t / q)^u
with a power u below 1, the twist's `trust`, and p r at the end (a bridge of powers: Neal 2001).

A system is P particles of one observation. It resamples systematically, on its own, when its
effective sample size falls below P / 2, and at the end. The last step draws from
p(x_0 | x_1) r(x_0) exactly, and any `factors` then weigh the draws once more. All noise is numbered
by (seed, particle, step), so a system is the same alone and in any batch.

Sources: Wu, Trippe, Naesseth, Blei and Cunningham 2023; Del Moral, Doucet and Jasra 2006 (weights
of any proposal and powers, Z without bias); Kitagawa 1996 (systematic resampling).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.posterior.proposal import TwistValue
from diffusion.posterior.smc import (
    Particles,
    SMCKernel,
    drawn,
    ess,
    jackknife,
    log_mean,
    spread,
    systematic,
)
from diffusion.posterior.twist import Twist, evaluate_last_twist
from diffusion.samplers import Plan

_TWIST = Twist()
_FAR = 1e6  # limit of |x_t|, whose noise is about 1: only a broken chain goes there


@final
@dataclass(frozen=True)
class ParticleFilter(SMCKernel):
    """The kernel of particles that follow a twist.

    Args:
        plan: an ancestral plan from T down to 0.
        particles: P.
        draws: samples per system, at most P.
        twist: the twist r_t.

    Raises:
        ValueError: there are more draws than particles.
    """

    plan: Plan
    particles: int
    draws: int = 1
    twist: Twist = _TWIST

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
    ) -> Particles:
        row = number[:, None] * self.particles + torch.arange(self.particles, device=number.device)
        prior = model.process.prior(model.event, row.numel())
        x = prior.sample(counter_noise(seed, row.flatten(), model.T + 1))
        return Particles.begun(x, observation, seed, number)

    @override
    def step(
        self,
        model: DiffusionModel,
        systems: Particles,
        position: int,
        together: int | None = None,
        piece: int | None = None,
    ) -> Particles:
        done = sum(len(here.log_r) for here in systems.evaluated)
        if piece is not None and done + piece < systems.log_w.numel():
            values = self._evaluate(model, systems, position, together, done + piece)
            return replace(systems, evaluated=(*systems.evaluated, *values))
        kind = self.twist.exact(systems.observation.count[:: self.particles])
        parts = [place.nonzero()[:, 0] for place in (kind, ~kind)]
        if position == len(self) - 1 or not all(map(len, parts)):
            return self._step(model, systems, position, together)
        # Step systems with and without an exact covariance separately.
        moved = [self._step(model, systems.rows(part), position, together) for part in parts]
        both = Particles.joined(moved).rows(torch.cat(parts).argsort())
        return replace(both, factors=systems.factors)

    def _step(
        self, model: DiffusionModel, systems: Particles, position: int, together: int | None
    ) -> Particles:
        S, P = systems.log_w.shape
        device, last = systems.x.device, position == len(self) - 1
        t = self.plan.t[position : position + 1].to(device)
        here = TwistValue.joined(
            [*systems.evaluated, *self._evaluate(model, systems, position, together, S * P)]
        )
        trust, log_z = 1.0 if last else self.twist.trust, systems.log_evidence
        log_r = here.log_r.reshape(S, P)
        log_w = systems.log_w + trust * (systems.log_path + log_r)
        log_w = torch.where(log_w < math.inf, log_w, -math.inf)  # a lost particle has no weight
        size, ancestors, variance = ess(log_w), systems.ancestors, systems.variance
        choose = torch.ones_like(size, dtype=torch.bool) if last else size < P / 2
        place = torch.arange(P, device=device).expand(S, P)
        if bool(choose.any()):
            noise = counter_noise(systems.seed, systems.number, t.expand(S), Stream.RESAMPLING)
            u = noise.uniform((1,))[:, 0].double()
            final = drawn(log_w, u, self.draws)  # before log_w is reset
            place = torch.where(choose[:, None], systematic(log_w, u, P), place)
            log_z = torch.where(choose, log_z + log_mean(log_w), log_z)
            apart = variance + jackknife(log_w)
            told = spread(log_w, ancestors, apart) if last else apart
            variance = torch.where(choose, told, variance)
            log_w = torch.where(choose[:, None], 0.0, log_w)
            ancestors = ancestors.gather(1, place)
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
            variance = spread(log_w, ancestors, apart + jackknife(log_w))
            noise = counter_noise(systems.seed, systems.number, 0, Stream.RESAMPLING)
            u = noise.uniform((1,))[:, 0].double()
            ancestors = ancestors.gather(1, systematic(log_w, u, P))
            first = torch.arange(S, device=device)[:, None] * P
            picked = (first + drawn(log_w, u, self.draws)).flatten()
            x, rows = x[picked], rows[picked]
        moved, log_path = systems.moved, systems.log_path
        if not last:
            ratio = proposal.log_ratio(x).reshape(S, P)
            moved = moved + ratio.nan_to_num(0.0, 0.0, 0.0).mean(1)
            log_path = log_path.gather(1, place)
            # The next step weighs the whole path again. Where r_t was 0 the weight is 0 already.
            paid = trust * (log_path + here.log_r[rows].reshape(S, P))
            log_w = log_w - torch.where(torch.isneginf(paid), 0.0, paid)
            log_path = log_path - ratio
            # Far from its data a network may return anything: give such a particle no weight
            # and park it at 0 until it is replaced.
            near = (x.abs() <= _FAR).flatten(1).all(1)
            lost = ~near | ~((log_w < math.inf) & (log_path < math.inf)).flatten()
            log_w = torch.where(lost.reshape(S, P), -math.inf, log_w)
            log_path = torch.where(lost.reshape(S, P), 0.0, log_path)
            x = torch.where(lost.reshape(-1, *[1] * (x.ndim - 1)), 0.0, x)
        return replace(
            systems,
            # If all of a system is lost its evidence is 0, and its draws may be anything.
            x=x.nan_to_num(0.0).unflatten(0, (S, -1)),
            x_0=here.x_0[rows].nan_to_num(0.0).unflatten(0, (S, -1)),
            log_w=log_w,
            log_path=log_path,
            log_evidence=log_z,
            variance=variance,
            moved=moved,
            ess=torch.cat((systems.ess, size[:, None]), 1),
            ancestors=ancestors,
            evaluated=(),
        )

    def _evaluate(
        self,
        model: DiffusionModel,
        systems: Particles,
        position: int,
        together: int | None,
        end: int,
    ) -> Iterator[TwistValue]:
        """Yield the twist at particles not yet evaluated, up to `end`, `together` at a time."""
        x, device = systems.x.flatten(0, 1), systems.x.device
        t, s = (part[position : position + 1].to(device) for part in (self.plan.t, self.plan.s))
        begin = sum(len(here.log_r) for here in systems.evaluated)
        for place in torch.arange(begin, end, device=device).split(together or len(x)):
            x_t, seen, factors = x, systems.observation, systems.factors
            if len(place) < len(x):
                x_t, seen = x[place], seen.rows(place)
                factors = tuple(factor.rows(place) for factor in factors)
            if position == len(self) - 1:
                here = evaluate_last_twist(model, x_t, t, seen)
            else:
                here = self.twist.evaluate(model, x_t, t, s, seen)
            for factor in factors:
                here = factor.multiply(here, x_t, t, s)
            yield here
