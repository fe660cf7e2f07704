"""What the engine answers, and what a caller holds until then."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar, final

from torch import Tensor

from diffusion.likelihood.bound import BoundResult
from diffusion.posterior.smc import SMCResult
from service.engine.frames import Film
from service.engine.peek import Peek


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
    """What chains found, on the CPU.

    Attributes:
        samples: x_0 of each, model units, float32 [rows, *event].
        film: their states on the way; None where no frames were asked for.
    """

    samples: Tensor
    film: Film | None = None


@final
@dataclass(frozen=True, kw_only=True)
class TermResult(Timing):
    """The bound of each datum, and the terms it was put together from.

    Attributes:
        bound: float64 [N] each, on the CPU.
        values: float64 [rows, units] nats, the terms in the order of the job's `steps`. A term of
            minus infinity is an answer: the model holds the datum to be impossible. NaN too: the
            datum is so far out that the network's arithmetic ends there.
    """

    bound: BoundResult
    values: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class SystemResult(Timing):
    """`cloud`: what the systems found, on the CPU, in the order of their numbers."""

    cloud: SMCResult

    @property
    def samples(self) -> Tensor:
        """x_0, model units, float32: the draws of each system in turn, [rows * draws, *event]."""
        return self.cloud.samples.flatten(0, 1)


Result_co = TypeVar("Result_co", bound=Timing, covariant=True)


class Hold:
    """Bytes that a caller holds: a job's until it has ended, its answer's until that is sent.

    Args:
        size: how many.
        change: counts so many bytes more, or fewer.
    """

    def __init__(self, size: int, change: Callable[[int], None]) -> None:
        self._size, self._change = size, change

    def resize(self, size: int) -> None:
        """From now on it is so many."""
        if size != self._size:
            self._change(size - self._size)
            self._size = size

    def release(self) -> None:
        """None any more; again it does nothing."""
        self.resize(0)

    @property
    def size(self) -> int:
        """How many."""
        return self._size


@final
class Ticket(Generic[Result_co]):
    """An accepted job.

    Attributes:
        cost: its network evaluations.
        done: those made so far.
        queue_seconds: from acceptance to the first network call with a row of it; None until then.
        future: its result, or the `service.errors.Problem` that ended it. Cancelling the future
            (also through `asyncio.wrap_future`) is cancelling the job.
    """

    def __init__(
        self,
        cost: int,
        future: "Future[Result_co]",
        peek: "Callable[[int], Future[Peek | None]]",
        keep: Callable[[], Hold],
    ) -> None:
        self.cost = cost
        self.done = 0
        self.queue_seconds: float | None = None
        self.future = future
        self._peek, self._keep = peek, keep

    def cancel(self) -> bool:
        """Give the job up: its rows leave at the next tick. False when it has already ended."""
        return self.future.cancel()

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait for the result; raises the problem that ended the job."""
        return self.future.result(timeout)

    def peek(self, rows: int) -> "Future[Peek | None]":
        """Ask how its first `rows` rows stand; None is the answer of terms, and once it is over."""
        return self._peek(rows)

    def keep(self) -> Hold:
        """What the job holds, for the caller to give back once it is sent; not at its end, then."""
        return self._keep()

    def on_cancel(self, act: Callable[[], None]) -> None:
        """Call `act` (in the canceller's thread) should the job be cancelled."""
        self.future.add_done_callback(lambda future: act() if future.cancelled() else None)
