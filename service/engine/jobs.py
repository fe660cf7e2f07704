"""The three kinds of job that the engine does: chains, terms of bounds, and particle systems.

The steps of a chain follow each other, terms are independent, and the particles of a system advance
together. Handlers make jobs; the engine does not know which route a job came from. Admission and
the scheduler see a job's `shape` only, which tells its cost before any of it is done.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, Self, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.likelihood.estimator import Steps
from diffusion.likelihood.iwae import Trajectories
from diffusion.model import DiffusionModel
from diffusion.posterior import Observation
from diffusion.posterior.factors import Factor
from diffusion.posterior.smc import SMCKernel
from diffusion.samplers import Plan
from diffusion.space import Convention
from service.engine.results import (
    EngineTicket,
    Frames,
    JobStats,
    LoglikResult,
    PosteriorResult,
    Result_co,
    SampleResult,
)
from service.engine.scheduling.batch import JobShape, Lane, Load


class Job(ABC, Generic[Result_co]):
    """Work for one model, with a result of its kind; frozen once made.

    Attributes:
        model: name of the model.
        version: of that model, which may be loaded anew while the job waits.
    """

    model: str
    version: int

    @property
    def each(self) -> int:
        """Rows that stay together, as they are of one example; 1 where any may be apart."""
        return 1

    @property
    def movable(self) -> bool:
        """Whether another device may do it, or a part of it."""
        return True

    @property
    @abstractmethod
    def shape(self) -> JobShape:
        """The job in numbers."""

    @property
    def samples(self) -> int:
        """How many samples it draws."""
        return 0

    @abstractmethod
    def check(self, model: DiffusionModel) -> None:
        """Raise ValueError where a part does not fit the model or the others."""

    @abstractmethod
    def size(self, model: DiffusionModel) -> int:
        """Bytes of host memory that it holds from acceptance to its end."""

    @abstractmethod
    def part(self, first: int, last: int) -> Self:
        """Rows first..last - 1 of it, multiples of `each`, with the noise that they have in it.

        So the parts' results, joined (`JobResult.joined`), are the result of the whole.
        """

    @property
    def cost(self) -> int:
        """Network evaluations."""
        return self.shape.cost

    @property
    def lane(self) -> Lane:
        """Which jobs it may share a batch with."""
        return self.shape.lane


def _check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"`{name}` has shape {list(shape)}, came {list(tensor.shape)}")


def _check_told(observation: Observation, model: DiffusionModel) -> None:
    if observation.told is not None and not model.conditional:
        raise ValueError("this model's network cannot be told what was seen")


@final
@dataclass(frozen=True)
class SampleJob(Job[SampleResult]):
    """Draw `rows` times from p(x_0) r(x_0).

    Row i of the answer is row i of `diffusion.samplers.sample` with the same seed, plan, start and
    observation, whatever else the engine does.

    Args:
        model: name of the model.
        rows: how many chains.
        seed: of the noise, 0..2^63 - 1.
        plan: the steps of each chain.
        start: x_t [rows, *event] at the plan's first t, model units; None draws x_T.
        observation: what was seen, [rows, *event]; None where nothing was.
        frames: which of their states are kept; None for none.
        answer_bytes: of what its caller will write of these states.
        version: of the model.
        first: the number of its first row under the seed, where it is a part of another job.
    """

    model: str
    rows: int
    seed: int
    plan: Plan
    start: Tensor | None = None
    observation: Observation | None = None
    frames: Frames | None = None
    answer_bytes: int = 0
    version: int = 0
    first: int = 0

    @override
    def part(self, first: int, last: int) -> Self:
        of = slice(first, last)
        return replace(
            self,
            rows=last - first,
            start=None if self.start is None else self.start[of],
            observation=None if self.observation is None else self.observation.rows(of),
            answer_bytes=self.answer_bytes * (last - first) // self.rows,
            first=self.first + first,
        )

    @override
    def check(self, model: DiffusionModel) -> None:
        shape = (self.rows, *model.event)
        if self.start is not None:
            _check_shape("start", self.start, shape)
        if self.observation is not None:
            _check_shape("observation", self.observation.known, shape)
            _check_told(self.observation, model)
        if self.frames is not None and self.frames.positions[-1] != self.positions:
            last = self.frames.positions[-1]
            raise ValueError(f"the last of `frames` is behind step {self.positions}, came {last}")

    @property
    def positions(self) -> int:
        """Network evaluations per row."""
        return len(self.plan)

    @cached_property
    @override
    def shape(self) -> JobShape:
        return JobShape(Lane(self.model, False, self.version), self.rows, self.positions)

    @override
    def size(self, model: DiffusionModel) -> int:
        brought = [] if self.observation is None else list(self.observation.tensors)
        if self.start is not None:
            brought.append(self.start)
        answer = 4 * self.samples * math.prod(model.event)
        if self.frames is not None:
            answer += 2 * len(self.frames.positions) * answer + self.answer_bytes
        return sum(part.nbytes for part in brought) + answer

    @property
    @override
    def samples(self) -> int:
        return self.rows


@final
@dataclass(frozen=True)
class BoundJob(Job[LoglikResult]):
    """Bound log p(x_0) of N examples.

    The answer is that of `diffusion.likelihood.bound.bound` with the same seed, convention and
    choice; of trajectories, each of which is a row, that of `likelihood.iwae.trajectory_bound`.

    Args:
        model: name of the model.
        x_0: [N, *event], model units.
        seed: of the noise, 0..2^63 - 1.
        steps: which terms, `Choice.resolve(model, arange(N), seed, convention)`, or
            `diffusion.likelihood.iwae.Trajectories(S, T)`.
        convention: of the bound.
        observation: what the network is told, [N, *event]; None for nothing. The bound is then on
            log p(x_0 | y).
        answer_bytes: of what its caller will write of the terms.
        version: of the model.
        first: the number of its first example under the seed, where it is a part of another job.
    """

    model: str
    x_0: Tensor
    seed: int
    steps: Steps | Trajectories
    convention: Convention
    observation: Observation | None = None
    answer_bytes: int = 0
    version: int = 0
    first: int = 0

    @override
    def part(self, first: int, last: int) -> Self:
        of = slice(first // self.each, last // self.each)
        return replace(
            self,
            x_0=self.x_0[of],
            steps=self.steps if isinstance(self.steps, Trajectories) else self.steps.rows(of),
            observation=None if self.observation is None else self.observation.rows(of),
            answer_bytes=self.answer_bytes * (last - first) // self.rows,
            first=self.first + of.start,
        )

    @override
    def check(self, model: DiffusionModel) -> None:
        _check_shape("x_0", self.x_0, (len(self.x_0), *model.event))
        if not isinstance(self.steps, Trajectories):
            _check_shape("steps.t", self.steps.t, (self.rows, self.positions))
        elif self.steps.T != model.T:
            raise ValueError(f"`steps.T` is the model's {model.T}, came {self.steps.T}")
        if self.observation is not None:
            _check_shape("observation", self.observation.known, self.x_0.shape)
            _check_told(self.observation, model)
            if self.observation.told is None:
                raise ValueError(
                    "a bound takes what the network is told: `observation.to_network()`"
                )
            if isinstance(self.steps, Trajectories):
                raise ValueError(
                    "trajectories are of the unconditional chain: leave out what was seen"
                )

    @property
    @override
    def each(self) -> int:
        """Rows per example: row i is of example i // each."""
        return self.steps.each if isinstance(self.steps, Trajectories) else 1

    @property
    def rows(self) -> int:
        """How many examples, or trajectories of them."""
        return len(self.x_0) * self.each

    @property
    def positions(self) -> int:
        """Network evaluations per row."""
        return self.steps.count

    @cached_property
    @override
    def shape(self) -> JobShape:
        return JobShape(
            Lane(self.model, False, self.version), self.rows, self.positions, parallel=True
        )

    @override
    def size(self, model: DiffusionModel) -> int:
        seen = [] if self.observation is None else self.observation.tensors
        brought = self.x_0.nbytes + sum(part.nbytes for part in seen)
        return brought + self.steps.nbytes + 8 * self.cost + self.answer_bytes


@final
@dataclass(frozen=True)
class SMCJob(Job[PosteriorResult]):
    """Draw from p(x_0) r(x_0) by systems of particles, `each` for every example.

    System i of the answer is what `smc.run` makes of it with the same seed, kernel,
    observation and factors, whatever else the engine does.

    Args:
        model: name of the model.
        seed: of the noise, 0..2^63 - 1.
        kernel: what the systems do.
        observation: what was seen, [N, *seen].
        repeats: systems of an example: system i is of example i // repeats.
        costs: network evaluations of each system by every position but its last; see `of`.
        factors: what else p(x_0) is multiplied by, each of N examples; their networks are on the
            model's device, and a method's `resolve` has checked them.
        version: of the model.
        first: the number of its first system under the seed, where it is a part of another job.
    """

    model: str
    seed: int
    kernel: SMCKernel
    observation: Observation
    repeats: int
    costs: tuple[int, ...]
    factors: tuple[Factor, ...] = ()
    version: int = 0
    first: int = 0

    @property
    @override
    def movable(self) -> bool:
        """Whether it has no networks of its own, which are on one device."""
        return not self.factors

    @override
    def part(self, first: int, last: int) -> Self:
        number = torch.arange(first, last)
        return replace(
            self,
            observation=self.observation.rows(number // self.repeats),
            repeats=1,
            costs=self.costs[first:last],
            factors=tuple(factor.rows(number // self.repeats) for factor in self.factors),
            first=self.first + first,
        )

    @classmethod
    def of(
        cls,
        name: str,
        model: DiffusionModel,
        seed: int,
        kernel: SMCKernel,
        observation: Observation,
        repeats: int,
        factors: Sequence[Factor] = (),
        version: int = 0,
    ) -> "SMCJob":
        """The job, with what it costs worked out."""
        others = kernel.particles * sum(factor.evaluations for factor in factors)
        spent = (kernel.evaluations(model, observation.count) + others).repeat_interleave(repeats)
        costs = tuple(spent.tolist())
        return cls(name, seed, kernel, observation, repeats, costs, tuple(factors), version)

    @override
    def check(self, model: DiffusionModel) -> None:
        seen = self.observation.operator.seen(model.event)
        _check_shape("observation", self.observation.known, (len(self.observation), *seen))
        if len(self.costs) != self.rows:
            raise ValueError(f"`costs` are of {self.rows} systems, came {len(self.costs)}")

    @property
    def rows(self) -> int:
        """How many systems."""
        return len(self.observation) * self.repeats

    @property
    def positions(self) -> int:
        """Steps of each system."""
        return len(self.kernel)

    @property
    def width(self) -> int:
        """Particles of a system."""
        return self.kernel.particles

    @property
    def last(self) -> int:
        """Network evaluations of each system by its last position."""
        return self.width * (1 + sum(factor.evaluations for factor in self.factors))

    @cached_property
    @override
    def shape(self) -> JobShape:
        lane = Lane(self.model, True, self.version)
        costs, last = self.costs, self.last
        return JobShape(lane, self.rows, self.positions, False, self.width, costs, last)

    @override
    def size(self, model: DiffusionModel) -> int:
        brought = sum(part.nbytes for part in self.observation.tensors)
        ess = 8 * self.rows * self.positions
        return brought + 4 * self.samples * math.prod(model.event) + ess

    @property
    @override
    def samples(self) -> int:
        return self.rows * self.kernel.draws


@final
@dataclass(eq=False)
class ActiveJob:
    """A job from its acceptance to its end.

    Attributes:
        key: its number within the engine.
        job: what was asked.
        ticket: what its caller holds.
        rows_left: rows whose result is outstanding.
        accepted: when it came, monotonic seconds.
        size: bytes that it holds.
        background: whether it waits while there are others.
    """

    key: int
    job: Job[Any]
    ticket: EngineTicket[Any]
    rows_left: int
    accepted: float
    size: int
    background: bool = False

    @property
    def started(self) -> bool:
        """Whether a row of it has been in a batch."""
        return self.ticket.queue_seconds is not None

    def stats(self, batch_invariant: bool) -> JobStats:
        """What it took; it ends now."""
        waited = self.ticket.queue_seconds or 0.0
        return JobStats(
            queue_seconds=waited,
            compute_seconds=time.monotonic() - self.accepted - waited,
            network_evaluations=self.job.cost,
            batch_invariant=batch_invariant,
        )

    @property
    def left(self) -> Load:
        """What is left of it; other threads may read it a batch late."""
        whole, ticket = self.job.shape.load, self.ticket
        rows = max(1, self.rows_left * self.job.shape.width)
        return whole._replace(network_rows=rows, evaluations=max(1, ticket.cost - ticket.done))
