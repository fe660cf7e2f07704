"""Systems of particles on their way from x_T to x_0: their state, and how a kernel moves them.

    state_T = begin,    state_s = step(state_t)

A system is P particles that see one observation and advance together. Its noise is numbered by its
seed, its number and its particles, so that it is the same alone and in any batch, and whatever
calls the steps: `run` in one loop, or a service in turns with other work.
"""

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
from diffusion.posterior.resampling import drawn, weigh


@final
@dataclass(frozen=True)
class Particles:
    """S systems of P particles at some t.

    Attributes:
        seed: of their noise.
        number: which systems of the seed they are, int64 [S].
        observation: what was seen, of each particle, [S P, *seen].
        x: x_t, [S, P, *event]; once at 0, the n draws of each system, [S, n, *event].
        x_0: what the network last took x_0 to be, as `x`.
        log_w: log-weights, without the r_t that the next step is to find, nats, float64 [S, P].
        log_evidence: log of the estimate of Z so far, nats, float64 [S].
        variance: of that log, as far as the weights of each resampling tell it, float64 [S].
        moved: nats by which proposals have left the model's own steps, float64 [S].
        ess: effective sample size before each step made, float64 [S, steps].
        ancestors: from which of the first particles each descends, int64 [S, P].
        factors: what else multiplies p(x_0), of each particle.
        evaluated: the twist at the first of the particles, where a step is made in pieces.
    """

    seed: int
    number: Tensor
    observation: Observation
    x: Tensor
    x_0: Tensor
    log_w: Tensor
    log_evidence: Tensor
    variance: Tensor
    moved: Tensor
    ess: Tensor
    ancestors: Tensor
    factors: tuple[Factor, ...] = ()
    evaluated: tuple[TwistValue, ...] = ()

    @classmethod
    def begun(cls, x: Tensor, observation: Observation, seed: int, number: Tensor) -> Self:
        """With equal weights, at x_T [S P, *event]; `observation` [S, *seen]."""
        S, device = len(number), x.device
        x = x.unflatten(0, (S, -1))
        P = x.shape[1]
        each = torch.arange(S, device=device).repeat_interleave(P)
        log_w = torch.zeros(S, P, dtype=torch.float64, device=device)
        ancestors = torch.arange(P, device=device).expand(S, P)
        seen = observation.rows(each)
        x_0, none = torch.zeros_like(x), log_w[:, 0]
        return cls(seed, number, seen, x, x_0, log_w, none, none, none, log_w[:, :0], ancestors)

    def multiplied(self, factors: Sequence[Factor]) -> Self:
        """With other factors of p(x_0), each of S systems."""
        S, P = self.log_w.shape
        each = torch.arange(S, device=self.x.device).repeat_interleave(P)
        return replace(self, factors=tuple(factor.rows(each) for factor in factors))

    @classmethod
    def joined(cls, parts: "Sequence[Particles]") -> Self:
        """Systems of one seed and as many particles, without other factors, side by side."""
        tensors = zip(*(part._tensors() for part in parts), strict=True)
        seen = Observation.joined([part.observation for part in parts])
        return cls._of(parts[0].seed, seen, [torch.cat(tensor) for tensor in tensors])

    def rows(self, index: Tensor) -> Self:
        """Some of the systems; int64 [s]."""
        P = self.log_w.shape[1]
        each = (index[:, None] * P + torch.arange(P, device=index.device)).flatten()
        seen = self.observation.rows(each)
        found = self._of(self.seed, seen, [tensor[index] for tensor in self._tensors()])
        return replace(found, factors=tuple(factor.rows(each) for factor in self.factors))

    @property
    def particle(self) -> Tensor:
        """The number of each particle in the seed's noise, int64 [S, P]."""
        P = self.log_w.shape[1]
        return self.number[:, None] * P + torch.arange(P, device=self.x.device)

    @classmethod
    def _of(cls, seed: int, observation: Observation, tensors: Sequence[Tensor]) -> Self:
        number, x, x_0, log_w, log_z, variance, moved, ess, ancestors = tensors
        told = log_z, variance, moved, ess, ancestors
        return cls(seed, number, observation, x, x_0, log_w, *told)

    def _tensors(self) -> list[Tensor]:
        held = (getattr(self, field.name) for field in fields(self))
        return [part for part in held if isinstance(part, Tensor)]


class SMCKernel(ABC):
    """How systems of one kind go from x_T to x_0, in so many units of work.

    Attributes:
        particles: P.
        draws: samples of each system, at most P.
    """

    particles: int
    draws: int

    @abstractmethod
    def __len__(self) -> int:
        """How many units there are."""

    @abstractmethod
    def begin(
        self, model: DiffusionModel, observation: Observation, seed: int, number: Tensor
    ) -> Particles:
        """At x_T.

        Args:
            model: the model.
            observation: what was seen, [S, *seen].
            seed: of the noise.
            number: which systems of the seed, int64 [S].
        """

    @abstractmethod
    def step(
        self,
        model: DiffusionModel,
        systems: Particles,
        unit: int,
        together: int | None = None,
        piece: int | None = None,
    ) -> Particles:
        """After the next unit, or a piece of it.

        Args:
            model: the model.
            systems: as `begin`, or the unit or piece before this one, left them.
            unit: which, 0 up to the kernel's length.
            together: most rows that go through the network at once; all where it is not given.
            piece: of a single system, how many more particles are looked at; all that are left
                where it is not given. The unit is over when there are none left.
        """

    @abstractmethod
    def evaluations(self, model: DiffusionModel, count: Tensor) -> Tensor:
        """Network evaluations of a system by each unit but the last, which takes `particles`.

        Args:
            model: the model.
            count: of how many numbers each system has seen, int64 [S].

        Returns:
            int64 [S].
        """

    def total(self, model: DiffusionModel, count: Tensor, factors: Sequence[Factor] = ()) -> Tensor:
        """Network evaluations of each system, int64 [S]."""
        others = len(self) * self.particles * sum(factor.evaluations for factor in factors)
        return (len(self) - 1) * self.evaluations(model, count) + self.particles + others


class SingleParticle(SMCKernel):
    """A kernel of one particle a system, without weights: one network evaluation a unit."""

    particles = 1
    draws = 1

    @override
    def evaluations(self, model: DiffusionModel, count: Tensor) -> Tensor:
        return torch.ones_like(count)


@final
@dataclass(frozen=True)
class SMCResult:
    """What S systems of P particles found.

    Attributes:
        particles: P.
        samples: [S, n, *event], model units; n draws of each system's weighted particles.
        log_evidence: log of the estimate of Z = p(y), nats, float64 [S]; exp of it has no bias.
        variance: of that log, each by its own weights (`resampling.spread`), float64 [S].
        moved: nats by which proposals left the model's own steps, float64 [S].
        ess: effective sample size before each step, float64 [S, steps].
        ancestors: from how many of the P first particles the last ones descend, int64 [S].
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
        """Of systems that are at x_0."""
        ancestors = systems.ancestors.sort(1).values.diff(dim=1).ne(0).sum(1) + 1
        count = systems.observation.count[:: kernel.particles]
        spent = kernel.total(model, count, systems.factors)
        log_z, variance, moved = systems.log_evidence, systems.variance, systems.moved
        found = systems.x, log_z, variance, moved, systems.ess, ancestors, spent
        return cls(kernel.particles, *found)

    @classmethod
    def joined(cls, parts: "Sequence[SMCResult]") -> Self:
        """Systems of as many particles, side by side."""
        tensors = zip(*(part.tensors() for part in parts), strict=True)
        return cls(parts[0].particles, *(torch.cat(tensor) for tensor in tensors))

    def rows(self, index: slice | Tensor) -> Self:
        """Some of the systems."""
        return type(self)(self.particles, *(tensor[index] for tensor in self.tensors()))

    def weighted(self, count: int) -> tuple[Tensor, Tensor]:
        """The samples of `count` posteriors, [N, n, *event], and their weights, float64 [N, n].

        Weights are those of `resampling.weigh`; samples of one system share its weight.
        """
        x = self.samples.unflatten(0, (count, -1))
        weights = weigh(self.log_evidence.reshape(count, -1)) / x.shape[2]
        return x.flatten(1, 2), weights.repeat_interleave(x.shape[2], 1)

    def redrawn(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """The same drawn again by their systems' weights, so that all have equal ones."""
        x, weights = self.weighted(count)
        posterior = torch.arange(count, device=x.device)
        noise = counter_noise(seed, posterior, 0, Stream.RESAMPLING).uniform((1,))[:, 0].double()
        each = weigh(self.log_evidence.reshape(count, -1))
        picked = drawn(each.log(), noise, each.shape[1])
        return x[posterior[:, None], picked], torch.full_like(weights, 1 / weights.shape[1])

    def tensors(self) -> tuple[Tensor, ...]:
        """All but the number of particles, in order; a row a system."""
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
    """Move systems from x_T to x_0.

    Args:
        model: the model.
        kernel: what moves them.
        observation: and what follows: as `SMCKernel.begin` takes them.
        seed: of the noise.
        number: which systems of the seed, int64 [S].
        factors: what else multiplies p(x_0) of each system, if the kernel is a `ParticleFilter`.
        together: most rows that go through a network at once; all where it is not given.
    """
    systems = kernel.begin(model, observation, seed, number.to(model.device)).multiplied(factors)
    for unit in range(len(kernel)):
        systems = kernel.step(model, systems, unit, together)
    return SMCResult.of(model, kernel, systems)
