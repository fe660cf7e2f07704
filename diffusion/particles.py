"""Particles: weighted rows that follow a twist, exact as they grow many, unbiased in Z at once.

    w_s = w_t p(x_s | x_t) r_s(x_s) / (q(x_s | x_t, y) r_t(x_t)),     Z = E[prod of mean weights]

A system is P particles of one observation. They resample among themselves alone, systematically,
when their effective sample size falls below P / 2, and at the end, where p(x_0 | x_1) r(x_0) is
drawn from as it stands; what it is multiplied by beside that (`diffusion.factors`) weighs the draws
once more. All noise is numbered by (seed, particle, step), so a system is the same
alone and in any batch.

Sources: Wu, Trippe, Naesseth, Blei and Cunningham 2023; Del Moral, Doucet and Jasra 2006 (weights
of any proposal, Z without bias); Kitagawa 1996 (systematic resampling).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.factors import Factor
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.plan import Plan
from diffusion.twist import Look, Twist, last_look, look


@final
@dataclass(frozen=True)
class Cloud:
    """What S systems of P particles found.

    Attributes:
        particles: P.
        samples: [S, n, *event], model units; n draws of each system's weighted particles.
        log_evidence: log of the estimate of Z = p(y), nats, float64 [S]; exp of it has no bias.
        ess: effective sample size before each step, float64 [S, steps].
        ancestors: from how many of the P first particles the last ones descend, int64 [S].
        evaluations: network evaluations of each system, int64 [S].
    """

    particles: int
    samples: Tensor
    log_evidence: Tensor
    ess: Tensor
    ancestors: Tensor
    evaluations: Tensor

    @classmethod
    def joined(cls, parts: "Sequence[Cloud]") -> "Cloud":
        """Systems of equal particles, side by side."""
        tensors = zip(*(part._tensors() for part in parts), strict=True)
        return cls(parts[0].particles, *(torch.cat(tensor) for tensor in tensors))

    def rows(self, index: slice | Tensor) -> "Cloud":
        """Some of the systems."""
        return Cloud(self.particles, *(tensor[index] for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.samples, self.log_evidence, self.ess, self.ancestors, self.evaluations


LookAt = Callable[[Tensor, Tensor, Tensor, Observation], Look]


@torch.no_grad()
def run(
    model: DiffusionModel,
    observation: Observation,
    plan: Plan,
    *,
    seed: int,
    system: Tensor,
    particles: int,
    draws: int = 1,
    twist: Twist | None = None,
    look_at: LookAt | None = None,
    factors: Sequence[Factor] = (),
) -> Cloud:
    """S systems of particles, from x_T to x_0.

    Args:
        model: the model.
        observation: what was seen of each system, [S, *seen]. If it is linear with the full
            covariance, all systems have few enough numbers for `Twist.exact`, or none.
        plan: an ancestral plan from T down to 0.
        seed: of the noise.
        system: which systems of the seed these are, int64 [S].
        particles: P.
        draws: samples of each system, at most P.
        twist: which r_t.
        look_at: another twist in its place: (x_t, t, s, observation) of B rows to a `Look`, for s
            above 0.
        factors: what else multiplies p(x_0) of each system, N = S.

    Raises:
        ValueError: more draws than particles.
    """
    if not 1 <= draws <= particles:
        raise ValueError(
            f"{particles} particles hold {particles} samples at most, came {draws} to draw: raise "
            "the particles, or draw from more systems"
        )
    twist = Twist() if twist is None else twist
    at = look_at or (lambda x, t, s, seen: look(model, x, t, s, seen, twist))
    S, P, device = len(system), particles, model.device
    row = (system.to(device)[:, None] * P + torch.arange(P, device=device)).flatten()
    each = torch.arange(S, device=device).repeat_interleave(P)
    seen = observation.rows(each)
    others = [factor.rows(each) for factor in factors]
    x = model.process.prior(model.event, S * P).sample(counter_noise(seed, row, model.T + 1))
    log_w = torch.zeros(S, P, dtype=torch.float64, device=device)
    log_z = torch.zeros(S, dtype=torch.float64, device=device)
    origin = torch.arange(P, device=device).expand(S, P)
    spent = torch.zeros(S, P, dtype=torch.float64, device=device)  # log q r_t / p of the last draw
    ess: list[Tensor] = []
    for t, s in zip(plan.t.to(device).split(1), plan.s.to(device).split(1), strict=True):
        last = int(s) == 0
        here = last_look(model, x, t, seen) if last else at(x, t, s, seen)
        for factor in others:
            here = factor.look(here, x, t, s)
        log_w = log_w + here.log_r.reshape(S, P) - spent
        ess.append(effective(log_w))
        choose = torch.ones_like(ess[-1], dtype=torch.bool) if last else ess[-1] < P / 2
        place = torch.arange(P, device=device).expand(S, P)
        if bool(choose.any()):
            noise = counter_noise(seed, system.to(device), t.expand(S), Stream.RESAMPLING)
            place = torch.where(
                choose[:, None], systematic(log_w, noise.uniform((1,))[:, 0].double(), P), place
            )
            log_z = torch.where(choose, log_z + log_mean(log_w), log_z)
            log_w = torch.where(choose[:, None], 0.0, log_w)
            origin = origin.gather(1, place)
        if last and here.left is None:
            picked = systematic(torch.zeros_like(log_w), torch.full_like(log_z, 0.5), draws)
            place, row = place.gather(1, picked), row.reshape(S, P)[:, :draws].flatten()
        rows = (torch.arange(S, device=device)[:, None] * P + place).flatten()
        proposal = here.proposal.rows(rows)
        x = proposal.sample(counter_noise(seed, row, t.expand(len(row))))
        if last and here.left is not None:
            log_w = here.left(x, rows).reshape(S, P)
            log_z = log_z + log_mean(log_w)
            noise = counter_noise(seed, system.to(device), 0, Stream.RESAMPLING)
            u = noise.uniform((1,))[:, 0].double()
            picked, origin = systematic(log_w, u, draws), origin.gather(1, systematic(log_w, u, P))
            x = x[(torch.arange(S, device=device)[:, None] * P + picked).flatten()]
        if not last:
            # Where r_t was 0 nothing weighs anything, and what has been paid does not matter.
            paid = torch.where(torch.isneginf(here.log_r), 0.0, here.log_r)[rows]
            spent = (paid + proposal.log_ratio(x)).reshape(S, P)
    count = observation.known.flatten(1).sum(1)
    steps = (len(plan) - 1) * twist.evaluations(model, count) + 1
    steps = steps + len(plan) * sum(factor.evaluations for factor in factors)
    ancestors = origin.sort(1).values.diff(dim=1).ne(0).sum(1) + 1
    x = x.unflatten(0, (S, draws))
    return Cloud(P, x, log_z, torch.stack(ess, 1), ancestors, steps * P)


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
    edges = shares(log_w).cumsum(1)
    ticks = torch.arange(count, dtype=torch.float64, device=log_w.device) + uniform[:, None]
    found = torch.searchsorted(edges / edges[:, -1:], ticks / count, right=True)
    return found.clamp(max=log_w.shape[1] - 1)


def effective(log_w: Tensor) -> Tensor:
    """The effective sample size (sum w)^2 / sum w^2, 1 to P, float64 [S]."""
    return 1 / shares(log_w).square().sum(1)


def log_mean(log_w: Tensor) -> Tensor:
    """log of the mean weight, [S]; -inf where all are."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def shares(log_w: Tensor) -> Tensor:
    """Weights that sum to 1, [S, P]; equal ones where nothing weighs anything."""
    none = torch.isneginf(log_w).all(1, keepdim=True)
    return torch.where(none, 0.0, log_w).softmax(1)
