"""Several engines behind one door: each job goes to the engine that owes the least work.

    owed = sum over lanes of evaluations pending * seconds of one,  at the rates of full batches

A job that would keep one engine for long is split by rows over several (`Job.part`), and their
results are joined. The noise of a row is a function of the seed and its number, so the answer does
not depend on where its rows were: bit for bit if the engines are batch invariant, else to rounding.

The engines are of one process, one a device; `Remote` are those of other processes.
"""

import itertools
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from typing import Any, final

from typing_extensions import override

from diffusion.model import DiffusionModel
from service.engine.engine import Engine
from service.engine.faults import describe
from service.engine.jobs import Job
from service.engine.queue import resolve
from service.engine.results import Hold, JobPreview, JobResult, Result_co, Ticket
from service.engine.scheduling.batch import ModelVersion
from service.engine.timeline import BatchSpan
from service.errors import InternalError, Problem

_log = logging.getLogger(__name__)

_NEWEST = 0.05  # weight of the newest job in the usual one
MIN_SECONDS = 0.25  # of work in a part: shorter ones cost more than they save


class Remote(ABC):
    """Engines of other processes, which take parts of this one's jobs."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many there are now."""

    @abstractmethod
    def submit(self, job: Job[Result_co], deadline: float | None) -> Ticket[Result_co]:
        """Have one of them do a job; a refusal is raised by the ticket."""


@final
class Router:
    """Engines that act as one; `submit` and the rest are as in `Engine`.

    Args:
        engines: at least one, with the same models.
        devices: where they are, all of one kind.
        remote: engines of other processes; None for none.

    Attributes:
        usual: seconds of work of a job that came of late, on average.
    """

    def __init__(
        self, engines: Sequence[Engine], devices: Sequence[str], remote: Remote | None = None
    ) -> None:
        self._engines, self._devices, self._remote = list(engines), list(devices), remote
        self._turn = itertools.count()
        self.usual = 0.0

    @property
    def alive(self) -> bool:
        """Whether every engine's thread runs."""
        return all(engine.alive for engine in self._engines)

    @property
    def ready(self) -> bool:
        """Whether all are warm and take new jobs."""
        return all(engine.ready for engine in self._engines)

    @property
    def refused(self) -> dict[str, str]:
        """Models that failed a warm-up, and why; complete once warm."""
        return {name: why for engine in self._engines for name, why in engine.refused.items()}

    @property
    def pending(self) -> int:
        """Network evaluations accepted and not yet done."""
        return sum(engine.pending for engine in self._engines)

    @property
    def owed(self) -> float:
        """Seconds of work that an engine owes, on average."""
        return sum(engine.owed for engine in self._engines) / len(self._engines)

    @property
    def busy_seconds(self) -> float:
        """Seconds that an engine has spent on batches so far, on average."""
        return sum(engine.busy_seconds for engine in self._engines) / len(self._engines)

    def seconds_of(self, job: Job[Any]) -> float:
        """Seconds of work that a job is, in full batches."""
        return self._engines[0].seconds_of(job)

    @property
    def held(self) -> int:
        """Bytes of bodies being read, of accepted jobs and of answers on their way."""
        return sum(engine.held for engine in self._engines)

    @property
    def accepted(self) -> int:
        """How many jobs, or parts of one, were accepted so far."""
        return sum(engine.accepted for engine in self._engines)

    @property
    def seconds_pending(self) -> float:
        """Seconds until the last of the pending evaluations is done, at the measured rates."""
        return max(engine.seconds_pending for engine in self._engines)

    def warm(self) -> None:
        """Start all engines, and wait until every model is warm on each.

        Raises:
            EngineDead: a thread ended instead.
        """
        for engine in self._engines:
            engine.start()
        for engine in self._engines:
            engine.warm()

    def reserve(self, size: int, *, background: bool = False) -> AbstractContextManager[None]:
        """Reserve bytes for a body; see `Engine.reserve`."""
        return self._least().reserve(size, background=background)

    def check(self, job: Job[Any]) -> int:
        """Return the bytes that a job would hold; see `Engine.check`."""
        return self._engines[0].check(job)

    def load(self, key: ModelVersion, model: DiffusionModel) -> "Future[None]":
        """Serve one more model on every device; see `Engine.load`."""
        first, *others = self._engines
        copies = [deepcopy(model).to(device) for device in self._devices[1:]]
        loads = [first.load(key, model)]
        loads += [engine.load(key, copy) for engine, copy in zip(others, copies, strict=True)]
        return _all_of(loads, lambda: self.retire(key))

    def retire(self, key: ModelVersion) -> "Future[None]":
        """Take no new jobs of a version on any device; see `Engine.retire`."""
        return _all_of([engine.retire(key) for engine in self._engines])

    def submit(
        self, job: Job[Result_co], deadline: float | None = None, *, background: bool = False
    ) -> Ticket[Result_co]:
        """Accept a job, whole or in parts; raises what `Engine.submit` does."""
        self.usual += _NEWEST * (self.seconds_of(job) - self.usual)
        if not job.movable:  # its own networks are on the first device
            return self._engines[0].submit(job, deadline, background=background)
        # Background work runs where there is no other, and may take its time: it stays whole.
        parts = [job] if background else self._split(job)
        if len(parts) == 1:
            return self.accept(job, deadline, background=background)
        others = 0 if self._remote is None else self._remote.count
        ours = max(1, len(parts) * len(self._engines) // (len(self._engines) + others))
        tickets: list[Ticket[Result_co]] = []
        try:
            for i, part in enumerate(parts):
                if i < ours or self._remote is None:
                    tickets.append(self.accept(part, deadline))
                else:
                    tickets.append(self._remote.submit(part, deadline))
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return JoinedTicket(tickets)

    def accept(
        self, job: Job[Result_co], deadline: float | None = None, *, background: bool = False
    ) -> Ticket[Result_co]:
        """Accept a job whole, on the engine of this process that owes the least."""
        return self._least().submit(job, deadline, background=background)

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new jobs, finish the accepted ones and stop; whether they were all finished."""
        with ThreadPoolExecutor(len(self._engines)) as pool:
            return all([*pool.map(lambda engine: engine.drain(timeout), self._engines)])

    def stop(self, timeout: float = 30.0) -> None:
        """End the threads after their batches; what is unfinished fails."""
        with ThreadPoolExecutor(len(self._engines)) as pool:
            [*pool.map(lambda engine: engine.stop(timeout), self._engines)]

    def _least(self) -> Engine:
        """The engine that owes the least, of those that live; equal ones take turns."""
        living = [engine for engine in self._engines if engine.alive] or self._engines
        turn = next(self._turn) % len(living)
        return min([*living[turn:], *living[:turn]], key=lambda engine: engine.owed)

    def _split(self, job: Job[Result_co]) -> list[Job[Result_co]]:
        """The job in equal parts of rows: one an engine, but none that is not worth it."""
        count = len(self._engines) + (0 if self._remote is None else self._remote.count)
        count = min(count, self._engines[0].parts_of(job, MIN_SECONDS)) if count > 1 else 1
        if count == 1:
            return [job]
        units = job.shape.rows // job.each
        edges = [job.each * (i * units // count) for i in range(count + 1)]
        return [job.part(first, last) for first, last in itertools.pairwise(edges)]


@final
class JoinedTicket(Ticket[Result_co]):
    """The ticket of a job that was accepted in parts: done when all are, failed when one is.

    Args:
        parts: their tickets, in the order of the job's rows.
    """

    def __init__(self, parts: Sequence[Ticket[Result_co]]) -> None:
        super().__init__(sum(part.cost for part in parts), Future())
        self._parts = parts
        self._left, self._lock = len(parts), threading.Lock()
        self.on_cancel(self._cancel_parts)
        for part in parts:
            part.future.add_done_callback(self._part_ended)

    @property
    @override
    def done(self) -> int:
        telling = [part for part in self._parts if part.tells or part.future.done()]
        silent = sum(part.cost for part in self._parts) - sum(part.cost for part in telling)
        done = sum(part.done for part in telling)
        # All began at once, and are about as long.
        return done + silent * done // max(1, sum(part.cost for part in telling))

    @property
    @override
    def queue_seconds(self) -> float | None:
        waited = [part.queue_seconds for part in self._parts]
        return min((seconds for seconds in waited if seconds is not None), default=None)

    @property
    @override
    def batches(self) -> Sequence[BatchSpan]:
        spans = [span for part in self._parts for span in part.batches]
        return sorted(spans, key=lambda span: span.begun)

    @override
    def preview(self, rows: int) -> "Future[JobPreview | None]":
        # The first part's rows are the job's first; a preview shows few.
        asked, found = self._parts[0].preview(rows), Future[JobPreview | None]()

        def answered(future: "Future[JobPreview | None]") -> None:
            seen = None if future.cancelled() else future.result()
            resolve(found, None if seen is None else replace(seen, done=self.done))

        asked.add_done_callback(answered)
        return found

    @override
    def hold_bytes(self) -> Hold:
        return _JoinedHold([part.hold_bytes() for part in self._parts])

    def _part_ended(self, future: "Future[Any]") -> None:
        if future.cancelled():
            return  # because the whole was, or another part has failed
        error = future.exception()
        with self._lock:
            self._left -= 1
            last = self._left == 0
            if error is not None:
                last, self._left = self._left >= 0, -1  # only the first failure tells
        if not last:
            return
        if error is not None:
            failure = error if isinstance(error, Problem) else InternalError(describe(error))
            resolve(self.future, failure)
            self._cancel_parts()
            return
        results = [part.future.result() for part in self._parts]
        try:
            outcome: JobResult | Problem = results[0].joined(results)
        except Exception as caught:  # its caller must not wait for ever
            _log.exception("joining the parts of a job failed")
            outcome = InternalError(describe(caught))
        resolve(self.future, outcome)

    def _cancel_parts(self) -> None:
        for part in self._parts:
            part.cancel()


def _all_of(
    futures: "Sequence[Future[None]]", undo: Callable[[], object] = lambda: None
) -> "Future[None]":
    """Resolve when all have; if one fails, undo what the others did, and fail with its error."""
    found: Future[None] = Future()
    left, lock = len(futures), threading.Lock()

    def ended(_: "Future[None]") -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        errors = [error for future in futures if (error := future.exception()) is not None]
        if not errors:
            found.set_result(None)
            return
        undo()
        found.set_exception(errors[0])

    for future in futures:
        future.add_done_callback(ended)
    return found


@final
class _JoinedHold(Hold):
    """The bytes of a job's parts, as one."""

    def __init__(self, parts: Sequence[Hold]) -> None:
        super().__init__(0, lambda _: None)
        self._first, *self._others = parts

    @override
    def resize(self, size: int) -> None:
        for other in self._others:
            other.release()
        self._first.resize(size)

    @property
    @override
    def size(self) -> int:
        return self._first.size + sum(other.size for other in self._others)
