"""What a caller gets from the engine: the ticket of a job, its result, frames and previews.

A preview (`JobPreview`) is x_0hat of a job's first rows between two batches, taken only when a
caller asks. The engine's thread first receives the results that are still travelling, then takes a
snapshot on the device without waiting for it; the caller copies that to the host.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar, final

import torch
from torch import Tensor

from diffusion.likelihood.bound import BoundResult
from diffusion.posterior.smc import SMCResult


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


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job's caller gets when it has been done; `stats` is what it took."""

    stats: JobStats


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


@final
@dataclass(frozen=True, kw_only=True)
class PosteriorResult(JobResult):
    """`result`: what the systems found, on the CPU, in the order of their numbers."""

    result: SMCResult

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
        preview: "Callable[[int], Future[JobPreview | None]]",
        hold_bytes: Callable[[], Hold],
    ) -> None:
        self.cost = cost
        self.done = 0
        self.queue_seconds: float | None = None
        self.future = future
        self._preview, self._hold_bytes = preview, hold_bytes

    def cancel(self) -> bool:
        """Cancel the job: its rows leave at the next batch. False when it has already ended."""
        return self.future.cancel()

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait for the result; raises the problem that ended the job."""
        return self.future.result(timeout)

    def preview(self, rows: int) -> "Future[JobPreview | None]":
        """Ask for its first `rows` rows as they are; None where it has ended or draws none."""
        return self._preview(rows)

    def hold_bytes(self) -> Hold:
        """From now on the caller, not the job, frees the job's bytes.

        Call `release` when the answer has been sent.
        """
        return self._hold_bytes()

    def on_cancel(self, act: Callable[[], None]) -> None:
        """Call `act` (in the canceller's thread) should the job be cancelled."""
        self.future.add_done_callback(lambda future: act() if future.cancelled() else None)
