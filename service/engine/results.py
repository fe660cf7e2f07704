"""What a caller gets from the engine: the ticket of a job, its result, frames and previews.

A preview (`JobPreview`) is x_0hat of a job's first rows between two batches, taken only when a
caller asks. The engine's thread first receives the results that are still travelling, then takes a
snapshot on the device without waiting for it; the caller copies that to the host.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Generic, Literal, NamedTuple, Self, TypeVar, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.likelihood.bound import BoundResult
from diffusion.posterior.smc import SMCResult
from service.engine.timeline import BatchLog, BatchSpan


@final
@dataclass(frozen=True)
class Frames:
    """Which states of a chain of n steps are kept.

    Attributes:
        positions: u_0 = 0 < u_1 < ... < u_k = n: the states before these steps, and the last.
    """

    positions: tuple[int, ...]

    @classmethod
    def spread(cls, count: int, steps: int) -> "Frames":
        """The start and k = min(count, steps) others, as evenly as whole steps allow."""
        k = min(count, steps)
        return cls(tuple(i * steps // k for i in range(k + 1)))


class FrameRows(NamedTuple):
    """Rows of a job at one of its frames: x_t or x_0hat from it; and their places in a batch."""

    key: int
    frame: int
    of: Literal["x", "x_0"]
    rows: list[int]
    places: list[int]


@final
@dataclass(frozen=True)
class FrameStates:
    """The frames of a job's chains, on the CPU, model units.

    Attributes:
        frames: which states.
        x: x_t, [k + 1, rows, *event].
        x_0: the network's estimate from each, [k + 1, rows, *event]; of the last, x itself.
    """

    frames: Frames
    x: Tensor
    x_0: Tensor

    @classmethod
    def blank(cls, frames: Frames, rows: int, event: Sequence[int]) -> "FrameStates":
        """Zeros, for chains that have not begun."""
        x = torch.zeros(len(frames.positions), rows, *event)
        return cls(frames, x, torch.zeros_like(x))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The frames of a job's parts, in order, as those of its rows."""
        x, x_0 = (torch.cat(each, 1) for each in zip(*((p.x, p.x_0) for p in parts), strict=True))
        return cls(parts[0].frames, x, x_0)

    def keep(self, rows: FrameRows, states: Tensor) -> None:
        """Write the states of some rows, [len(rows), *event]."""
        whole = self.x if rows.of == "x" else self.x_0
        whole[rows.frame, rows.rows] = states.to(whole.dtype)

    def end(self, start: Tensor, samples: Tensor) -> None:
        """Write the first state of all rows, and the last, [rows, *event]."""
        self.x[0], self.x[-1], self.x_0[-1] = start, samples, samples


@final
@dataclass(frozen=True)
class JobPreview:
    """The first rows of a chain job, those of them that have started.

    Attributes:
        done: network evaluations made so far, by all rows.
        finished: for each row from the first, whether it has ended.
        samples: x_0 [rows, *event] on the CPU, model units, of the rows that have ended.
        estimates: x_0hat of the rows that have not ended, in order, on the model's device.
        taken: when a GPU has taken the snapshot; None on the CPU.
    """

    done: int
    finished: list[bool]
    samples: Tensor
    estimates: Tensor
    taken: torch.cuda.Event | None

    @classmethod
    def of(
        cls, done: int, finished: list[bool], samples: Tensor, estimates: Tensor
    ) -> "JobPreview":
        """A preview of tensors that nothing else writes to."""
        taken = None
        if estimates.is_cuda:
            taken = torch.cuda.Event()
            taken.record(torch.cuda.current_stream(estimates.device))
        return cls(done, finished, samples, estimates, taken)

    def x_0(self) -> Tensor:
        """Samples of the rows that ended, x_0hat of the others: [rows, *event], model units.

        It waits for the device, so not on the event loop.
        """
        if self.taken is not None:
            self.taken.synchronize()
        running = ~torch.tensor(self.finished, dtype=torch.bool)
        x_0 = self.samples.clone()
        x_0[running] = self.estimates.cpu()
        return x_0


class PreviewRequest(NamedTuple):
    """A caller wants the first `rows` rows of job `key`; the answer is None once it is over."""

    key: int
    rows: int
    future: "Future[JobPreview | None]"


@dataclass(frozen=True, kw_only=True)
class JobStats:
    """What a job took, and whether its bits can be had again.

    Attributes:
        queue_seconds: from acceptance to the first network call with a row of it.
        compute_seconds: from there to the result.
        network_evaluations: rows put through the network for it.
        batch_invariant: whether the same job gives the same bits whatever else is computed with it.
    """

    queue_seconds: float
    compute_seconds: float
    network_evaluations: int
    batch_invariant: bool

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """What parts of a job took that began at the same time."""
        waited = min(part.queue_seconds for part in parts)
        ended = max(part.queue_seconds + part.compute_seconds for part in parts)
        return cls(
            queue_seconds=waited,
            compute_seconds=ended - waited,
            network_evaluations=sum(part.network_evaluations for part in parts),
            batch_invariant=all(part.batch_invariant for part in parts),
        )


@dataclass(frozen=True, kw_only=True)
class JobResult(ABC):
    """What a job's caller gets when it has been done; `stats` is what it took."""

    stats: JobStats

    @classmethod
    @abstractmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The result of a job from those of its parts (`Job.part`), in order."""


@final
@dataclass(frozen=True, kw_only=True)
class SampleResult(JobResult):
    """What chains found, on the CPU.

    Attributes:
        samples: x_0 of each, model units, float32 [rows, *event].
        frame_states: their states on the way; None where no frames were asked for.
    """

    samples: Tensor
    frame_states: FrameStates | None = None

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        frames = [part.frame_states for part in parts if part.frame_states is not None]
        return cls(
            samples=torch.cat([part.samples for part in parts]),
            frame_states=FrameStates.joined(frames) if frames else None,
            stats=JobStats.joined([part.stats for part in parts]),
        )


@final
@dataclass(frozen=True, kw_only=True)
class LoglikResult(JobResult):
    """The bound of each example, and the terms that it is the sum of.

    Attributes:
        bound: float64 [N] each, on the CPU.
        values: float64 [rows, positions] nats, the terms in the order of the job's `steps`. A term
            of minus infinity is an answer: the example is impossible under the model. NaN too: the
            example is so far out that the network's arithmetic ends there.
        columns: the bound's part of each column of a table, float64 [N, J] nats; None for other
            data, for trajectories, and by "paper".
    """

    bound: BoundResult
    values: Tensor
    columns: Tensor | None = None

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        names = [field.name for field in fields(BoundResult)]
        each = [[getattr(part.bound, name) for part in parts] for name in names]
        columns = [part.columns for part in parts if part.columns is not None]
        return cls(
            bound=BoundResult(*map(torch.cat, each)),
            values=torch.cat([part.values for part in parts]),
            columns=torch.cat(columns) if columns else None,
            stats=JobStats.joined([part.stats for part in parts]),
        )


@final
@dataclass(frozen=True, kw_only=True)
class PosteriorResult(JobResult):
    """`result`: what the systems found, on the CPU, in the order of their numbers."""

    result: SMCResult

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(
            result=SMCResult.joined([part.result for part in parts]),
            stats=JobStats.joined([part.stats for part in parts]),
        )

    @property
    def samples(self) -> Tensor:
        """x_0, model units, float32: the draws of each system in turn, [rows * draws, *event]."""
        return self.result.samples.flatten(0, 1)


Result_co = TypeVar("Result_co", bound=JobResult, covariant=True)


class Hold:
    """Bytes that a caller holds: a job's, and then its answer's until that is sent.

    Args:
        size: how many.
        change: adds its argument to the bytes held in all.
    """

    def __init__(self, size: int, change: Callable[[int], None]) -> None:
        self._size, self._change = size, change

    def resize(self, size: int) -> None:
        """Hold `size` bytes from now on."""
        if size != self._size:
            self._change(size - self._size)
            self._size = size

    def release(self) -> None:
        """Hold none any more; a second call does nothing."""
        self.resize(0)

    @property
    def size(self) -> int:
        """How many."""
        return self._size


class Ticket(ABC, Generic[Result_co]):
    """An accepted job.

    Args:
        cost: its network evaluations.
        future: see below.

    Attributes:
        cost: its network evaluations.
        future: its result, or the `service.errors.Problem` that ended it. Cancelling the future
            (also through `asyncio.wrap_future`) is cancelling the job.
        tells: whether `done` is known before the end.
    """

    tells = True

    def __init__(self, cost: int, future: "Future[Result_co]") -> None:
        self.cost, self.future = cost, future

    @property
    @abstractmethod
    def done(self) -> int:
        """Network evaluations made so far."""

    @property
    @abstractmethod
    def queue_seconds(self) -> float | None:
        """From acceptance to the first network call with a row of it; None until then."""

    @property
    def batches(self) -> Sequence[BatchSpan]:
        """The batches that it was in so far; none where they are not recorded."""
        return ()

    @abstractmethod
    def preview(self, rows: int) -> "Future[JobPreview | None]":
        """Ask for its first `rows` rows as they are; None where it has ended or draws none."""

    @abstractmethod
    def hold_bytes(self) -> Hold:
        """From now on the caller, not the job, frees the job's bytes.

        Call `release` when the answer has been sent.
        """

    def cancel(self) -> bool:
        """Cancel the job: its rows leave at the next batch. False when it has already ended."""
        return self.future.cancel()

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait for the result; raises the problem that ended the job."""
        return self.future.result(timeout)

    def on_cancel(self, act: Callable[[], None]) -> None:
        """Call `act` (in the canceller's thread) should the job be cancelled."""
        self.future.add_done_callback(lambda future: act() if future.cancelled() else None)


@final
class EngineTicket(Ticket[Result_co]):
    """The ticket of a job that one engine does."""

    done: int = 0
    queue_seconds: float | None = None
    log: BatchLog | None = None  # where batches are recorded

    def __init__(
        self,
        cost: int,
        future: "Future[Result_co]",
        preview: "Callable[[int], Future[JobPreview | None]]",
        hold_bytes: Callable[[], Hold],
    ) -> None:
        super().__init__(cost, future)
        self._preview, self._hold_bytes = preview, hold_bytes

    @property
    @override
    def batches(self) -> Sequence[BatchSpan]:
        return () if self.log is None else self.log.spans

    @override
    def preview(self, rows: int) -> "Future[JobPreview | None]":
        return self._preview(rows)

    @override
    def hold_bytes(self) -> Hold:
        return self._hold_bytes()
