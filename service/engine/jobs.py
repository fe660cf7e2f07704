"""What the engine is asked: cost = network evaluations, which are known before any is made.

Three kinds of work and no more: chains, whose steps follow each other; terms of bounds, which are
independent; and systems of particles, whose particles advance together. Every route is one of the
three; the engine does not know which route a job came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from diffusion.likelihood.estimator import Steps
from diffusion.likelihood.iwae import Trajectories
from diffusion.model import DiffusionModel
from diffusion.plan import Plan
from diffusion.posterior import Observation
from diffusion.posterior.factors import Factor
from diffusion.posterior.smc import SMCKernel
from diffusion.space import Convention
from service.engine.frames import Frames
from service.engine.scheduling.batch import Queue


@final
@dataclass(frozen=True)
class ChainJob:
    """Draw `rows` times from p(x_0) r(x_0).

    Row i of the answer is row i of `diffusion.sampling.sample` with the same seed, plan, start and
    observation, whatever else the engine does.

    Args:
        model: name of the model.
        rows: how many chains.
        seed: of the noise, 0..2^63 - 1.
        plan: the steps of each chain.
        start: x_t [rows, *event] at the plan's first t, model units; None draws x_T.
        observation: what was seen, [rows, *event]; None where nothing was.
        frames: which of their states are kept; None for none.
        answer_bytes: what its caller will write of these states, for it counts too.
    """

    parallel: ClassVar[bool] = False
    width: ClassVar[int] = 1
    costs: ClassVar[tuple[int, ...]] = ()
    last: ClassVar[int] = 1

    model: str
    rows: int
    seed: int
    plan: Plan
    start: Tensor | None = None
    observation: Observation | None = None
    frames: Frames | None = None
    answer_bytes: int = 0

    def check(self, model: DiffusionModel) -> None:
        """Raise ValueError where a part does not fit the model or the others."""
        shape = (self.rows, *model.event)
        if self.start is not None and tuple(self.start.shape) != shape:
            raise ValueError(f"`start` has shape {list(shape)}, came {list(self.start.shape)}")
        if self.observation is not None:
            seen = tuple(self.observation.known.shape)
            if seen != shape:
                raise ValueError(f"`observation` has shape {list(shape)}, came {list(seen)}")
        if self.rows < 1 or self.units < 1:
            raise ValueError(f"at least one row of one step, came {self.rows} rows of {self.units}")
        if self.frames is not None and self.frames.units[-1] != self.units:
            last = self.frames.units[-1]
            raise ValueError(f"the last of `frames` is behind step {self.units}, came {last}")

    @property
    def units(self) -> int:
        """Network evaluations a row."""
        return len(self.plan)

    @property
    def cost(self) -> int:
        """Rows times network evaluations."""
        return self.rows * self.units

    @property
    def queue(self) -> Queue:
        """Whom it may share a tick with."""
        return Queue(self.model)

    @property
    def samples(self) -> int:
        """How many samples it draws."""
        return self.rows


@final
@dataclass(frozen=True)
class TermJob:
    """Bound log p(x_0) of N data.

    The answer is that of `diffusion.likelihood.bound.bound` with the same seed, convention and
    choice; of trajectories, whose every one is a row, that of `likelihood.iwae.trajectory_bound`.

    Args:
        model: name of the model.
        x_0: [N, *event], model units.
        seed: of the noise, 0..2^63 - 1.
        steps: which terms, `Choice.settle(model, arange(N), seed, convention)`, or
            `diffusion.likelihood.iwae.Trajectories(S, T)`.
        convention: of the bound.
        answer_bytes: what its caller will write of the terms, for it counts too.
    """

    parallel: ClassVar[bool] = True
    width: ClassVar[int] = 1
    costs: ClassVar[tuple[int, ...]] = ()
    last: ClassVar[int] = 1

    model: str
    x_0: Tensor
    seed: int
    steps: Steps | Trajectories
    convention: Convention
    answer_bytes: int = 0

    def check(self, model: DiffusionModel) -> None:
        """Raise ValueError where a part does not fit the model or the others."""
        shape = (len(self.x_0), *model.event)
        if tuple(self.x_0.shape) != shape:
            raise ValueError(f"`x_0` has shape {list(shape)}, came {list(self.x_0.shape)}")
        if isinstance(self.steps, Trajectories):
            if self.steps.T != model.T:
                raise ValueError(f"`steps.T` is the model's {model.T}, came {self.steps.T}")
        elif tuple(self.steps.t.shape) != (self.rows, self.units):
            wanted = [self.rows, self.units]
            raise ValueError(f"`steps.t` has shape {wanted}, came {list(self.steps.t.shape)}")
        if self.rows < 1 or self.units < 1:
            raise ValueError(f"at least one datum with one term, came {self.rows} by {self.units}")

    @property
    def each(self) -> int:
        """Rows a datum: row i is of datum i // each."""
        return self.steps.each if isinstance(self.steps, Trajectories) else 1

    @property
    def rows(self) -> int:
        """How many data, or trajectories of them."""
        return len(self.x_0) * self.each

    @property
    def units(self) -> int:
        """Network evaluations a row."""
        return self.steps.count

    @property
    def cost(self) -> int:
        """Rows times network evaluations."""
        return self.rows * self.units

    @property
    def queue(self) -> Queue:
        """Whom it may share a tick with."""
        return Queue(self.model)

    @property
    def samples(self) -> int:
        """How many samples it draws."""
        return 0


@final
@dataclass(frozen=True)
class SystemJob:
    """Draw from p(x_0) r(x_0) by systems of particles, `each` for every datum.

    System i of the answer is what `smc.run` makes of it with the same seed, course,
    observation and factors, whatever else the engine does.

    Args:
        model: name of the model.
        seed: of the noise, 0..2^63 - 1.
        course: what the systems do.
        observation: what was seen, [N, *seen].
        each: systems of a datum.
        costs: network evaluations of each system by every unit but its last; see `of`.
        factors: what else p(x_0) is multiplied by, each of N data; their networks on the model's
            device, and such as a method's `resolve` lets pass.
    """

    parallel: ClassVar[bool] = False

    model: str
    seed: int
    course: SMCKernel
    observation: Observation
    each: int
    costs: tuple[int, ...]
    factors: tuple[Factor, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        model: DiffusionModel,
        seed: int,
        course: SMCKernel,
        observation: Observation,
        each: int,
        factors: Sequence[Factor] = (),
    ) -> "SystemJob":
        """The job, with what it costs worked out."""
        others = course.particles * sum(factor.evaluations for factor in factors)
        spent = (course.evaluations(model, observation.count) + others).repeat_interleave(each)
        costs = tuple(spent.tolist())
        return cls(name, seed, course, observation, each, costs, tuple(factors))

    def check(self, model: DiffusionModel) -> None:
        """Raise ValueError where a part does not fit the model or the others."""
        wanted = self.observation.operator.seen(model.event)
        if tuple(self.observation.known.shape[1:]) != wanted:
            seen = list(self.observation.known.shape[1:])
            raise ValueError(f"`observation` is of shape {list(wanted)} a datum, came {seen}")
        if self.rows < 1 or self.units < 1:
            raise ValueError(f"at least one system of one unit, came {self.rows} of {self.units}")
        if len(self.costs) != self.rows:
            raise ValueError(f"`costs` are of {self.rows} systems, came {len(self.costs)}")

    @property
    def rows(self) -> int:
        """How many systems."""
        return len(self.observation) * self.each

    @property
    def units(self) -> int:
        """Of each system."""
        return len(self.course)

    @property
    def width(self) -> int:
        """Particles of a system."""
        return self.course.particles

    @property
    def cost(self) -> int:
        """Network evaluations."""
        return (self.units - 1) * sum(self.costs) + self.rows * self.last

    @property
    def last(self) -> int:
        """Network evaluations of each system by its last unit."""
        return self.width * (1 + sum(factor.evaluations for factor in self.factors))

    @property
    def queue(self) -> Queue:
        """Whom it may share a tick with."""
        return Queue(self.model, systems=True)

    @property
    def samples(self) -> int:
        """How many samples it draws."""
        return self.rows * self.course.draws


Job = ChainJob | TermJob | SystemJob
