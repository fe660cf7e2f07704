"""The request queue: jobs that were accepted and have not ended; all that threads share.

    accepted = answered + failed + cancelled + those that are here

Any thread may `reserve`, `accept`, cancel, or wait for the end; the engine's thread polls,
completes and ends. Everything is under one lock, held for a few assignments or, where a job has a
deadline, for one pass over the running jobs and the kinds of waiting ones.
"""

import heapq
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, final

from diffusion.model import DiffusionModel
from service.engine.admission import REQUEST_OVERHEAD, Admission
from service.engine.faults import describe
from service.engine.jobs import ActiveJob, Job
from service.engine.loading import LoadRequest, RetireRequest
from service.engine.results import (
    EngineTicket,
    Hold,
    JobPreview,
    JobResult,
    PreviewRequest,
    Result_co,
)
from service.engine.scheduling.batch import Lane, ModelVersion
from service.engine.scheduling.latency import Throughput
from service.engine.timeline import BatchLog
from service.errors import DeadlineExceeded, Draining, EngineDead, ModelRetired, Problem
from service.settings import Settings

_ENDED_DEADLINES = (
    64  # deadlines of ended jobs that may be kept, and as many more as there are jobs
)


class Polled(NamedTuple):
    """What came since the last poll: jobs, keys of cancelled ones, models to load and to close."""

    new: list[ActiveJob]
    cancelled: list[int]
    loads: list[LoadRequest]
    retired: list[RetireRequest]


@final
class RequestQueue:
    """Accepted jobs, and the bytes that they and their bodies hold.

    Args:
        throughput: of every lane.
        settings: the limits, and the scheduler's share of terms.

    Attributes:
        accepted: how many jobs were accepted so far.
    """

    def __init__(self, throughput: Mapping[Lane, Throughput], settings: Settings) -> None:
        self.accepted = 0
        self._wake = threading.Condition()  # and the lock of everything here
        self._throughput = throughput
        self._recording = settings.traced
        self._admission = Admission(throughput, settings)
        self._backlog = self._admission.backlog
        self._deadlines: list[tuple[float, int]] = []  # a heap; some are of jobs that have ended
        self._records: dict[int, ActiveJob] = {}
        self._new: list[ActiveJob] = []
        self._cancelled: list[int] = []
        self._previews: list[PreviewRequest] = []
        self._loads: list[LoadRequest] = []
        self._retired: list[RetireRequest] = []
        self._oldest: dict[str, int] = {}  # by model, the first version that is not retired
        self._draining = self._stopping = self._closed = False
        self._error: BaseException | None = None

    @property
    def draining(self) -> bool:
        """Whether new jobs are refused."""
        return self._draining

    @property
    def closed(self) -> bool:
        """Whether the engine's thread is over."""
        return self._closed

    @property
    def pending(self) -> int:
        """Network evaluations accepted and not yet done."""
        with self._wake:
            return self._backlog.pending

    @property
    def seconds_pending(self) -> float:
        """Seconds that the pending evaluations take, at the measured rates."""
        with self._wake:
            return self._admission.seconds_until(1.0)

    @property
    def owed(self) -> float:
        """Seconds of work that the pending evaluations are, in full batches."""
        with self._wake:
            lanes = list(self._backlog.by_lane.items())
        return sum(count * self._throughput[lane].evaluation for lane, count in lanes if count)

    @property
    def held(self) -> int:
        """Bytes of bodies being read and of accepted jobs."""
        with self._wake:
            return self._backlog.held

    @contextmanager
    def reserve(self, size: int, *, background: bool = False) -> Iterator[None]:
        """Bytes for a body, until it has been read and its job accepted.

        Raises:
            QueueFull, NoRoom, Draining, EngineDead: the job would be refused, so do not read it.
        """
        size += REQUEST_OVERHEAD
        with self._wake:
            self._check_open()
            self._admission.check_body(size, background)
            self._backlog.held += size
        try:
            yield
        finally:
            with self._wake:
                self._backlog.held -= size

    def accept(
        self,
        job: Job[Result_co],
        size: int = 0,
        deadline: float | None = None,
        *,
        background: bool = False,
    ) -> EngineTicket[Result_co]:
        """Take a job in, which holds `size` bytes until its end; raises as `Engine.submit` does."""
        size += REQUEST_OVERHEAD
        with self._wake:
            self._check_open()
            self._check_version(job)
            self._admission.check_job(job, size, deadline, background)
            key = self.accepted
            ticket: EngineTicket[Result_co] = EngineTicket(
                job.cost,
                Future(),
                partial(self._preview, key),
                partial(self._hold_bytes, key, size),
            )
            accepted = time.monotonic()
            if self._recording:
                ticket.log = BatchLog()
            record = ActiveJob(key, job, ticket, job.shape.rows, accepted, size, background)
            self.accepted += 1
            self._records[key] = record
            self._backlog.add(record)
            self._new.append(record)
            if deadline is not None:
                heapq.heappush(self._deadlines, (deadline, key))
            self._wake.notify_all()
        ticket.on_cancel(lambda: self._cancel(key))
        return ticket

    def load(self, key: ModelVersion, model: DiffusionModel) -> "Future[None]":
        """Have a model warmed up; the future raises the problem if that fails."""
        request = LoadRequest(key, model, Future())
        with self._wake:
            self._check_open()
            self._loads.append(request)
            self._wake.notify_all()
        return request.future

    def retire(self, key: ModelVersion) -> "Future[None]":
        """Accept no more jobs of a version; the future is resolved once the others have ended."""
        request = RetireRequest(key, Future())
        with self._wake:
            self._check_open()
            self._oldest[key.model] = key.version + 1
            self._retired.append(request)
            self._wake.notify_all()
        return request.future

    def poll(self, *, wait: bool) -> Polled | None:
        """What came since the last poll; None when it is time to stop.

        Args:
            wait: sleep until there is something.
        """
        with self._wake:
            if wait:
                self._wake.wait_for(
                    lambda: (
                        self._new
                        or self._cancelled
                        or self._previews
                        or self._loads
                        or self._retired
                        or self._stopping
                    )
                )
            if self._stopping:
                return None
            polled = Polled(self._new, self._cancelled, self._loads, self._retired)
            self._new, self._cancelled, self._loads, self._retired = [], [], [], []
            return polled

    def overdue(self) -> dict[int, DeadlineExceeded]:
        """The polled jobs whose deadline has passed, and the problems of their callers."""
        now, records = time.monotonic(), []
        with self._wake:
            unpolled = {record.key for record in self._new}  # their turn is at the next batch
            early: list[tuple[float, int]] = []
            while self._deadlines and self._deadlines[0][0] <= now:
                deadline, key = heapq.heappop(self._deadlines)
                if key in unpolled:
                    early.append((deadline, key))
                elif key in self._records:
                    records.append(self._records[key])
            for entry in early:
                heapq.heappush(self._deadlines, entry)
        fix = "Allow more time, or ask for fewer rows, steps or terms."
        return {
            record.key: DeadlineExceeded(
                f"The deadline passed after {record.ticket.done} of {record.ticket.cost} network "
                "evaluations.",
                fix=fix,
            )
            for record in records
        }

    def poll_previews(self) -> list[PreviewRequest]:
        """The requested previews; each must be answered."""
        if not self._previews:  # without the lock: one that comes now is seen before the next batch
            return []
        with self._wake:
            previews, self._previews = self._previews, []
            return previews

    def complete(self, lane: Lane, evaluations: int) -> None:
        """Subtract `evaluations` from the lane's pending ones."""
        with self._wake:
            self._backlog.complete(lane, evaluations)

    def start(self, record: ActiveJob, now: float) -> float:
        """Count a job as running from `now`, its first batch; return the seconds it waited."""
        waited = record.ticket.queue_seconds = now - record.accepted
        with self._wake:
            self._backlog.start(record)
        return waited

    def end(self, record: ActiveJob, unspent: int, outcome: JobResult | Problem | None) -> None:
        """Forget a job and tell its caller the outcome (None: cancelled).

        Its `unspent` evaluations were not made.
        """
        with self._wake:
            del self._records[record.key]
            self._backlog.remove(record, unspent)
            if len(self._deadlines) > 2 * len(self._records) + _ENDED_DEADLINES:
                self._deadlines = [entry for entry in self._deadlines if entry[1] in self._records]
                heapq.heapify(self._deadlines)
            self._wake.notify_all()
        resolve(record.ticket.future, outcome)

    def drain(self, timeout: float) -> bool:
        """Refuse new jobs and wait until the accepted ones have ended; whether they all did.

        Background jobs are cancelled: who submitted them submits them again after a restart.
        """
        with self._wake:
            self._draining = True
            waiting = [record.ticket for record in self._records.values() if record.background]
        for ticket in waiting:
            ticket.cancel()
        with self._wake:
            self._wake.wait_for(lambda: not self._records or self._closed, timeout)
            return not self._records and self._error is None

    def stop(self) -> None:
        """Tell the engine's thread to stop."""
        with self._wake:
            self._draining = self._stopping = True
            self._wake.notify_all()

    def close(self, error: BaseException | None) -> None:
        """Accept nothing more, as the engine's thread has ended, and fail what is left."""
        with self._wake:
            self._closed, self._error = True, error
            left = list(self._records.values())
            self._records.clear()
            previews, self._previews = self._previews, []
            changes = [load.future for load in self._loads]
            changes += [request.future for request in self._retired]
            self._wake.notify_all()
        for record in left:
            resolve(record.ticket.future, self.obituary())
        for change in changes:
            change.set_exception(self.obituary())
        for request in previews:
            resolve(request.future, None)

    def obituary(self) -> Problem:
        """Why nothing more is done, once closed."""
        if self._error is None:
            return Draining("The service stopped before this was finished.")
        return EngineDead(
            f"The engine ended by an error: {describe(self._error)}",
            fix="The service must be restarted; its log has the rest.",
        )

    def _check_version(self, job: Job[Any]) -> None:
        if job.version < self._oldest.get(job.model, 0):
            raise ModelRetired("The model has been replaced or unloaded.", received=job.model)

    def _check_open(self) -> None:
        if self._closed:
            raise self.obituary()
        if self._draining:
            raise Draining("The service finishes what it accepted and takes nothing new.")

    def _preview(self, key: int, rows: int) -> "Future[JobPreview | None]":
        request = PreviewRequest(key, rows, Future())
        with self._wake:
            if key in self._records:
                self._previews.append(request)
                self._wake.notify_all()
                return request.future
        request.future.set_result(None)
        return request.future

    def _hold_bytes(self, key: int, size: int) -> Hold:
        with self._wake:
            record = self._records.get(key)
            if record is None:  # it has ended already and been given back
                self._backlog.held += size
            else:
                record.size = 0
        return Hold(size, self._change)

    def _change(self, size: int) -> None:
        with self._wake:
            self._backlog.held += size

    def _cancel(self, key: int) -> None:
        with self._wake:
            self._cancelled.append(key)
            self._wake.notify_all()


def resolve(future: "Future[Any]", outcome: JobResult | JobPreview | Problem | None) -> None:
    """Set the outcome, unless the future has been cancelled in the meantime.

    The future counts as running only from here on, as one that runs can no longer be cancelled.
    """
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Problem):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
