"""What the engine is asked, and what it answers: cost = rows * network evaluations a row.

Two kinds of work and no more: chains, whose steps follow each other, and terms of bounds, which are
independent. Every route is one of the two; the engine does not know which route a job came from.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar, final

from torch import Tensor

from diffusion.bound import BoundResult
from diffusion.distributions import Bernoulli, Normal
from diffusion.model import DiffusionModel
from diffusion.plan import Plan
from diffusion.posterior import Observation
from diffusion.space import Convention
from diffusion.strata import Steps
from diffusion.trajectory import Trajectories
from service.engine.peek import Peek


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
    """

    model: str
    rows: int
    seed: int
    plan: Plan
    start: Tensor | None = None
    observation: Observation | None = None

    def check(self, model: DiffusionModel) -> None:
        """Raise ValueError where a part does not fit the model or the others."""
        shape = (self.rows, *model.event)
        if self.start is not None and tuple(self.start.shape) != shape:
            raise ValueError(f"`start` has shape {list(shape)}, came {list(self.start.shape)}")
        if self.observation is not None:
            seen = tuple(parts_of(self.observation)[0].shape)
            if seen != shape:
                raise ValueError(f"`observation` has shape {list(shape)}, came {list(seen)}")
        if self.rows < 1 or self.units < 1:
            raise ValueError(f"at least one row of one step, came {self.rows} rows of {self.units}")

    @property
    def units(self) -> int:
        """Network evaluations a row."""
        return len(self.plan)

    @property
    def cost(self) -> int:
        """Rows times network evaluations."""
        return self.rows * self.units


@final
@dataclass(frozen=True)
class TermJob:
    """Bound log p(x_0) of N data.

    The answer is that of `diffusion.bound.bound` with the same seed, convention and choice; of
    trajectories, whose every one is a row, that of `diffusion.trajectory.trajectory_bound`.

    Args:
        model: name of the model.
        x_0: [N, *event], model units.
        seed: of the noise, 0..2^63 - 1.
        steps: which terms, `Choice.settle(model, arange(N), seed, convention)`, or
            `diffusion.trajectory.Trajectories(S, T)`.
        convention: of the bound.
        answer_bytes: what its caller will write of the terms, for it counts too.
    """

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


Job = ChainJob | TermJob


def parts_of(observation: Observation) -> tuple[Tensor, ...]:
    """An observation's tensors, [N, *event] each: mean and variance, or logits."""
    factor = observation.factor
    if isinstance(factor, Normal):
        return factor.mean, factor.var.expand_as(factor.mean)
    assert isinstance(factor, Bernoulli)  # there are two families
    return (factor.logits,)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a job took.

    Attributes:
        queue_seconds: from acceptance to the first network call with a row of it.
        compute_seconds: from there to the result.
        network_evaluations: rows put through the network for it.
        exact: whether the same job gives the same bits alone and in any company.
    """

    queue_seconds: float
    compute_seconds: float
    network_evaluations: int
    exact: bool


@final
@dataclass(frozen=True, kw_only=True)
class ChainResult(Timing):
    """`samples`: x_0 of each chain, model units, float32 [rows, *event] on the CPU."""

    samples: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class TermResult(Timing):
    """The bound of each datum, and the terms it was put together from.

    Attributes:
        bound: float64 [N] each, on the CPU.
        values: float64 [rows, units] nats, the terms in the order of the job's `steps`. A term of
            minus infinity is an answer: the model holds the datum to be impossible.
    """

    bound: BoundResult
    values: Tensor


Result_co = TypeVar("Result_co", bound=Timing, covariant=True)


@final
class Ticket(Generic[Result_co]):
    """An accepted job.

    Attributes:
        cost: its network evaluations.
        done: those made so far.
        queue_seconds: from acceptance to the first network call with a row of it; None until then.
        future: its result, or the `service.problems.Problem` that ended it. Cancelling the future
            (also through `asyncio.wrap_future`) is cancelling the job.
    """

    def __init__(
        self,
        cost: int,
        future: "Future[Result_co]",
        peek: "Callable[[int], Future[Peek | None]]",
    ) -> None:
        self.cost = cost
        self.done = 0
        self.queue_seconds: float | None = None
        self.future = future
        self._peek = peek

    def cancel(self) -> bool:
        """Give the job up: its rows leave at the next tick. False when it has already ended."""
        return self.future.cancel()

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait for the result; raises the problem that ended the job."""
        return self.future.result(timeout)

    def peek(self, rows: int) -> "Future[Peek | None]":
        """Ask how its first `rows` rows stand; None is the answer of terms, and once it is over."""
        return self._peek(rows)

    def on_cancel(self, act: Callable[[], None]) -> None:
        """Call `act` (in the canceller's thread) should the job be cancelled."""
        self.future.add_done_callback(lambda future: act() if future.cancelled() else None)
