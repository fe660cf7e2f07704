"""Sequential Monte Carlo: the state of particle systems, their kernels, and resampling.

    state_T = begin,    state_s = step(state_t)

A system is P particles that share one observation and advance together. Its noise is numbered by
seed, system and particle, so it is the same alone and in any batch, whether `run` makes the steps
in one loop or a service makes them between other work.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.posterior.factors import Factor
from diffusion.posterior.proposal import TwistValue
from diffusion.rows import Rows


@final
@dataclass(frozen=True)
class Particles:
    """S systems of P particles at some t.

    Attributes:
        seed: the seed of their noise.
        number: each system's number under the seed, int64 [S].
        observation: each particle's observation, [S P, *seen].
        x: x_t, [S, P, *event]; at t = 0 the n draws of each system, [S, n, *event].
        x_0: the network's last estimate, shaped like `x`.
        log_w: log-weights, without the next step's r_t, nats, float64 [S, P].
        log_path: log p / q of each particle's path so far, nats, float64 [S, P].
        log_evidence: log of the estimate of Z so far, nats, float64 [S].
        variance: variance of `log_evidence`, estimated at each resampling, float64 [S].
        moved: nats by which proposals have left the model's own steps, float64 [S].
        ess: effective sample size before each step made, float64 [S, steps].
        ancestors: the first particle that each descends from, int64 [S, P].
        factors: each particle's further factors of p(x_0).
        evaluated: the twist at the leading particles, if a step is made in pieces.
    """

    seed: int
    number: Tensor
    observation: Observation
    x: Tensor
    x_0: Tensor
    log_w: Tensor
    log_path: Tensor
    log_evidence: Tensor
    variance: Tensor
    moved: Tensor
    ess: Tensor
    ancestors: Tensor
    factors: tuple[Factor, ...] = ()
    evaluated: tuple[TwistValue, ...] = ()

    @classmethod
    def begun(cls, x: Tensor, observation: Observation, seed: int, number: Tensor) -> Self:
        """Start with equal weights at x_T [S P, *event]; `observation` [S, *seen]."""
        S, device = len(number), x.device
        x = x.unflatten(0, (S, -1))
        P = x.shape[1]
        each = torch.arange(S, device=device).repeat_interleave(P)
        log_w = torch.zeros(S, P, dtype=torch.float64, device=device)
        ancestors = torch.arange(P, device=device).expand(S, P)
        seen = observation.rows(each)
        x_0, none = torch.zeros_like(x), log_w[:, 0]
        told = log_w, log_w, none, none, none, log_w[:, :0], ancestors
        return cls(seed, number, seen, x, x_0, *told)

    def multiplied(self, factors: Sequence[Factor]) -> Self:
        """Return the systems with factors of p(x_0), each of S rows."""
        S, P = self.log_w.shape
        each = torch.arange(S, device=self.x.device).repeat_interleave(P)
        return replace(self, factors=tuple(factor.rows(each) for factor in factors))

    @classmethod
    def joined(cls, parts: "Sequence[Particles]") -> Self:
        """Concatenate systems with the same seed and P, and without factors."""
        tensors = zip(*(part._tensors() for part in parts), strict=True)
        seen = Observation.joined([part.observation for part in parts])
        return cls._of(parts[0].seed, seen, [torch.cat(tensor) for tensor in tensors])

    def rows(self, index: Tensor) -> Self:
        """Select systems; int64 [s]."""
        P = self.log_w.shape[1]
        each = (index[:, None] * P + torch.arange(P, device=index.device)).flatten()
        seen = self.observation.rows(each)
        found = self._of(self.seed, seen, [tensor[index] for tensor in self._tensors()])
        return replace(found, factors=tuple(factor.rows(each) for factor in self.factors))

    @property
    def particle(self) -> Tensor:
        """Each particle's number in the seed's noise, int64 [S, P]."""
        P = self.log_w.shape[1]
        return self.number[:, None] * P + torch.arange(P, device=self.x.device)

    @classmethod
    def _of(cls, seed: int, observation: Observation, tensors: Sequence[Tensor]) -> Self:
        number, x, x_0, log_w, log_path, *rest = tensors
        log_z, variance, moved, ess, ancestors = rest
        told = log_w, log_path, log_z, variance, moved, ess, ancestors
        return cls(seed, number, observation, x, x_0, *told)

    def _tensors(self) -> list[Tensor]:
        held = (getattr(self, field.name) for field in fields(self))
        return [part for part in held if isinstance(part, Tensor)]


class SMCKernel(ABC):
    """A kernel that moves systems from x_T to x_0, position by position.

    Attributes:
        particles: P.
        draws: samples per system, at most P.
    """

    particles: int
    draws: int

    @abstractmethod
    def __len__(self) -> int:
        """The number of positions."""

    @abstractmethod
    def begin(
        self, model: DiffusionModel, observation: Observation, seed: int, number: Tensor
    ) -> Particles:
        """Start systems at x_T.

        Args:
            model: the model.
            observation: [S, *seen].
            seed: the seed of the noise.
            number: each system's number under the seed, int64 [S].
        """

    @abstractmethod
    def step(
        self,
        model: DiffusionModel,
        systems: Particles,
        position: int,
        together: int | None = None,
        piece: int | None = None,
    ) -> Particles:
        """Advance the systems by one position, or by a piece of it.

        Args:
            model: the model.
            systems: from `begin`, or from the position or piece before this one.
            position: the position, from 0.
            together: most rows per network call (default all).
            piece: for a single system, how many more particles to evaluate (default all that are
                left). The position ends when none are left.
        """

    @abstractmethod
    def evaluations(self, model: DiffusionModel, count: Tensor) -> Tensor:
        """Count network evaluations per position, int64 [S]; the last always takes `particles`.

        Args:
            model: the model.
            count: how many numbers each system has observed, int64 [S].
        """

    def total(self, model: DiffusionModel, count: Tensor, factors: Sequence[Factor] = ()) -> Tensor:
        """Count the network evaluations of each system, int64 [S]."""
        others = len(self) * self.particles * sum(factor.evaluations for factor in factors)
        return (len(self) - 1) * self.evaluations(model, count) + self.particles + others


class SingleParticle(SMCKernel):
    """Systems of one particle, without weights: one network evaluation per position."""

    particles = 1
    draws = 1

    @override
    def evaluations(self, model: DiffusionModel, count: Tensor) -> Tensor:
        return torch.ones_like(count)


@final
@dataclass(frozen=True)
class SMCResult(Rows):
    """The draws and statistics of S systems of P particles.

    Attributes:
        particles: P.
        samples: [S, n, *event], model units; n draws from each system's weighted particles.
        log_evidence: log of an unbiased estimate of Z = p(y), nats, float64 [S].
        variance: variance of `log_evidence`, by each system's own weights (`spread`), float64 [S].
        moved: nats by which proposals left the model's own steps, float64 [S].
        ess: effective sample size before each step, float64 [S, steps].
        ancestors: how many of the P first particles have descendants, int64 [S].
        evaluations: network evaluations of each system, int64 [S].
    """

    particles: int
    samples: Tensor
    log_evidence: Tensor
    variance: Tensor
    moved: Tensor
    ess: Tensor
    ancestors: Tensor
    evaluations: Tensor

    @classmethod
    def of(cls, model: DiffusionModel, kernel: SMCKernel, systems: Particles) -> Self:
        """Collect the result of systems at x_0."""
        ancestors = systems.ancestors.sort(1).values.diff(dim=1).ne(0).sum(1) + 1
        count = systems.observation.count[:: kernel.particles]
        spent = kernel.total(model, count, systems.factors)
        log_z, variance, moved = systems.log_evidence, systems.variance, systems.moved
        found = systems.x, log_z, variance, moved, systems.ess, ancestors, spent
        return cls(kernel.particles, *found)

    def weighted(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the samples of `count` posteriors, [N, n, *event], and weights, float64 [N, n].

        Weights come from `weigh`; the samples of a system share its weight equally.
        """
        x = self.samples.unflatten(0, (count, -1))
        weights = weigh(self.log_evidence.reshape(count, -1)) / x.shape[2]
        return x.flatten(1, 2), weights.repeat_interleave(x.shape[2], 1)

    def redrawn(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Resample `weighted` by the systems' weights, so that all weights are equal."""
        x, weights = self.weighted(count)
        posterior = torch.arange(count, device=x.device)
        noise = counter_noise(seed, posterior, 0, Stream.RESAMPLING).uniform((1,))[:, 0].double()
        each = weigh(self.log_evidence.reshape(count, -1))
        picked = drawn(each.log(), noise, each.shape[1])
        return x[posterior[:, None], picked], torch.full_like(weights, 1 / weights.shape[1])

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensor fields in order, one row per system."""
        held = (getattr(self, field.name) for field in fields(self))
        return tuple(part for part in held if isinstance(part, Tensor))


@torch.no_grad()
def run(
    model: DiffusionModel,
    kernel: SMCKernel,
    observation: Observation,
    seed: int,
    number: Tensor,
    factors: Sequence[Factor] = (),
    together: int | None = None,
) -> SMCResult:
    """Move systems from x_T to x_0; see `SMCKernel.begin` and `step` for the arguments.

    `factors` multiply p(x_0) of each system if the kernel is a `ParticleFilter`.
    """
    systems = kernel.begin(model, observation, seed, number.to(model.device)).multiplied(factors)
    for position in range(len(kernel)):
        systems = kernel.step(model, systems, position, together)
    return SMCResult.of(model, kernel, systems)


# ------------------------------------------------------------------------------------- resampling
# Each function takes the log-weights of S systems of P particles, nats, float64 [S, P].


def systematic(log_w: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Resample systematically, at (i + u) / count of the cumulative weights (Kitagawa 1996).

    Place j is drawn floor or ceil of count w_j / sum(w) times, and exactly that on average.

    Args:
        log_w: nats, float64 [S, P]; equal weights if all are -inf.
        uniform: u, one per system, float64 [S].
        count: how many places to draw.

    Returns:
        int64 [S, count], ascending.
    """
    ticks = torch.arange(count, dtype=torch.float64, device=log_w.device) + uniform[:, None]
    return _at(log_w, ticks / count)


def drawn(log_w: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Resample at (u + i / count) mod 1, so that each place on its own is a draw by the weights.

    Places from `systematic` ascend, so its first few are biased low.
    """
    ticks = torch.arange(count, dtype=torch.float64, device=log_w.device) / count
    return _at(log_w, (ticks + uniform[:, None]) % 1)


def _at(log_w: Tensor, ticks: Tensor) -> Tensor:
    """Find where the cumulative weights reach the ticks, 0 to 1, [S, count]."""
    edges = normalise(log_w).cumsum(1)
    found = torch.searchsorted(edges / edges[:, -1:], ticks.contiguous(), right=True)
    return found.clamp(max=log_w.shape[1] - 1)


def ess(log_w: Tensor) -> Tensor:
    """Return the effective sample size (sum w)^2 / sum w^2, 1 to P, float64 [S]."""
    return 1 / normalise(log_w).square().sum(1)


def log_mean(log_w: Tensor) -> Tensor:
    """Return the log of the mean weight, [S]; -inf if all weights are 0."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def spread(log_w: Tensor, ancestors: Tensor, apart: Tensor) -> Tensor:
    """Estimate the variance of log Z from a single system, float64 [S].

        V = 1 - P / (P - 1) (1 - sum over ancestors a of (sum of the weights from a)^2)

    estimates the variance of Z / E[Z] (Lee and Whiteley 2018, Equation 4, with the factor of one
    resampling, as systematic resampling adds little), and -log(1 - V) that of log Z. V is at most
    1, and meaningless once all particles descend from one; the sum over resamplings, at least 1,
    then replaces it. With one particle the result is infinite: unknown.

    Args:
        log_w: the last log-weights, nats, float64 [S, P].
        ancestors: the first particle that each descends from, int64 [S, P].
        apart: the sum of `jackknife` over the resamplings, float64 [S].
    """
    P = log_w.shape[1]
    if P == 1:
        return torch.full_like(apart, math.inf)
    families = torch.zeros_like(log_w).scatter_add(1, ancestors, normalise(log_w))
    single = (ancestors == ancestors[:, :1]).all(1)
    V = 1 - P / (P - 1) * (1 - families.square().sum(1))
    return torch.where(single, apart.clamp_min(1.0), -torch.log1p(-V.clamp(0.0, 1 - 1e-9)))


def jackknife(log_w: Tensor) -> Tensor:
    """Estimate the variance of `log_mean` by the jackknife (Tukey 1958), float64 [S]."""
    P = log_w.shape[1]
    left = torch.log1p(-normalise(log_w).clamp(max=1 - 1e-15))
    return left.var(1, correction=0) * (P - 1)


def normalise(log_w: Tensor) -> Tensor:
    """Return weights that sum to 1, [S, P]; equal ones if all are 0."""
    none = torch.isneginf(log_w).all(1, keepdim=True)
    return torch.where(none, 0.0, log_w).softmax(1)


def weigh(log_z: Tensor) -> Tensor:
    """Return the weights of K independent systems in averages, float64 [N, K], summing to 1.

    They are Z_k / sum Z, whose averages have only the bias of a ratio, if the effective sample size
    is at least (K + 1) / 2; this corrects for a few systems that lost a mode. If it is less (few
    particles for a large observation), the weights mostly show the noise in Z_k and one system
    would replace all others, so they are equal instead.

    Args:
        log_z: log Z of each system, nats, float64 [N, K].
    """
    firm = ess(log_z) >= (log_z.shape[1] + 1) / 2 - 1e-9
    return torch.where(firm[:, None], normalise(log_z), 1 / log_z.shape[1])
