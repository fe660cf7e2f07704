"""Runs the stored jobs, in the background of the engine, and keeps their answers.

One thread takes the waiting jobs, prepares each from its stored request as its route does, and
submits it as a background job: it runs while there are no other requests, and several run at once,
so that their rows fill batches. When a job has ended the thread renders its answer in every form
that the route offers, because the model may be another, or gone, when somebody reads it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

from service.codecs.json import BINARY, EVENTS, JSON, PNG
from service.codecs.rows import CSV
from service.engine.results import Hold, JobResult, Ticket
from service.errors import (
    BudgetExceeded,
    Draining,
    EngineDead,
    InternalError,
    NoRoom,
    Problem,
    Unavailable,
)
from service.handlers.base import Work
from service.jobs.record import Outcome
from service.jobs.store import JobStore, StoredJob
from service.keys import Keys
from service.state import Backend

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 16  # jobs in the engine
_SHARE: Final = 4  # they hold at most this part of the requests' bytes, or are one
_TICK: Final = 1.0  # seconds between looks at what has expired
_FILES: Final = {
    JSON: "answer.json",
    PNG: "answer.png",
    BINARY: "answer.safetensors",
    CSV: "answer.csv",
}

Prepare = Callable[[StoredJob], Work[Any]]


class _Run(NamedTuple):
    work: Work[Any]
    ticket: Ticket[Any]
    hold: Hold


@final
class JobRunner:
    """Runs what the store has.

    Args:
        backend: the engine, the settings, and whether requests are accepted.
        keys: whose budgets the jobs are at the expense of.
        prepare: makes the work of a stored request.

    Attributes:
        store: the jobs.
    """

    def __init__(self, backend: Backend, keys: Keys, prepare: Prepare) -> None:
        self.store = JobStore(backend.settings, self._notify)
        self._backend, self._keys, self._prepare = backend, keys, prepare
        self._woken = threading.Event()
        self._closing = self._opened = False
        self._runs: dict[StoredJob, _Run] = {}
        self._next: tuple[StoredJob, Work[Any]] | None = None  # prepared, but has no room yet
        self._ended: deque[StoredJob] = deque()
        self._thread = threading.Thread(target=self._main, name="noneq-jobs", daemon=True)
        settings, store = backend.settings, self.store
        backend.metrics.watch_jobs(
            store.count, lambda: store.used, settings.max_jobs, settings.max_jobs_bytes
        )

    def start(self) -> None:
        """Read the jobs of an earlier process, and run what waits from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what has not ended waits for the next start."""
        self._closing = True
        self._notify()
        self._thread.join()
        for job, run in self._runs.items():
            run.ticket.cancel()
            self.store.put_back(job)
        self.store.close()

    def _notify(self) -> None:
        self._woken.set()

    def _main(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except Exception:
                _log.exception("a turn of the jobs failed")
            self._woken.wait(_TICK)
            self._woken.clear()

    def _turn(self) -> None:
        if not self._opened:
            self._opened = self._open()
        self.store.expire()
        while self._ended and not self._closing:
            self._end(self._ended.popleft())
        while not self._closing and self._backend.state() is None and self._start_one():
            pass

    def _open(self) -> bool:
        try:
            opened = self.store.open()
        except OSError as error:
            _log.error("the folder of jobs cannot be read: %s", error)
            return False
        if not opened:
            _log.warning("another process has the folder of jobs: waiting until it has stopped")
        return opened

    def _start_one(self) -> bool:
        """Start the next job; False where there is none, or no room for it."""
        if len(self._runs) >= _AT_ONCE:
            return False
        job, work = self._next or (self.store.take(), None)
        self._next = None
        if job is None:
            return False
        try:
            if work is None:
                self.store.start(job)
                work = self._prepare(job)
            if job.forgotten:
                return True
            if not self._fits(work):
                self._next = job, work
                return False
            self._submit(job, work)
        except NoRoom:
            assert work is not None
            self._next = job, work
            return False
        except BudgetExceeded as refused:
            self.store.put_back(job, seconds=refused.retry_after)
        except Unavailable:  # as it stops, or the model has just been replaced
            self.store.put_back(job)
            return False
        except EngineDead:
            self.store.put_back(job, counted=True)
            return False
        except Problem as problem:
            self._fail(job, problem)
        except Exception:
            _log.exception("job %s failed", job.record.id)
            self._fail(job, _unforeseen())
        return True

    def _fits(self, work: Work[Any]) -> bool:
        """Whether there is room for it beside those that run, which others need more."""
        size, held = (
            self._backend.engine.check(work.job),
            sum(run.hold.size for run in self._runs.values()),
        )
        return not held or held + size <= self._backend.settings.max_queue_bytes // _SHARE

    def _submit(self, job: StoredJob, work: Work[Any]) -> None:
        deadline = job.record.deadline
        if deadline is not None:
            deadline += time.monotonic() - time.time()
        holder = self._keys.owner(job.record.owner)
        ticket = self._backend.submit(work.job, deadline, holder, background=True)
        self._runs[job] = _Run(work, ticket, ticket.hold_bytes())
        job.submitted, job.ticket = time.monotonic(), ticket

        def ended(_: object) -> None:
            self._ended.append(job)
            self._notify()

        ticket.future.add_done_callback(ended)
        if job.forgotten:  # cancelled while it was prepared
            ticket.cancel()

    def _end(self, job: StoredJob) -> None:
        """Keep how a run ended."""
        work, ticket, hold = self._runs.pop(job)
        try:
            if job.forgotten:
                return
            if ticket.future.cancelled():  # as the service is stopping
                self.store.put_back(job)
                return
            error = ticket.future.exception()
            if isinstance(error, Draining):
                self.store.put_back(job)
            elif isinstance(error, EngineDead):
                self.store.put_back(job, counted=True)
            elif isinstance(error, Problem):
                self._fail(job, error)
            else:
                self._keep(job, work, ticket.result())
        except Problem as problem:
            self._fail(job, problem)
        except Exception:
            _log.exception("job %s failed", job.record.id)
            self._fail(job, _unforeseen())
        finally:
            hold.release()

    def _keep(self, job: StoredJob, work: Work[Any], result: JobResult) -> None:
        """Render the answer in all forms, and keep them.

        Raises:
            Problem: it has no answer, as for an observation without probability.
        """
        forms: dict[str, str | dict[str, Any]] = {}
        files = {}
        for form in (JSON, *(form for form in work.offers if form not in (JSON, EVENTS))):
            try:
                work.check(form)
                files[_FILES[form]] = work.render(result, form)
            except Problem as problem:
                if form == JSON:
                    raise
                forms[form] = problem.to_document()
            else:
                forms[form] = _FILES[form]
        ended, computed = time.time(), result.stats.compute_seconds
        waited = max(0.0, ended - job.record.created - computed)
        outcome = Outcome(ended=ended, queue_seconds=waited, compute_seconds=computed, forms=forms)
        self.store.finish(job, outcome, files)
        self._backend.metrics.jobs_ended.labels("ok").inc()

    def _fail(self, job: StoredJob, problem: Problem) -> None:
        self.store.fail(job, problem)
        self._backend.metrics.jobs_ended.labels(problem.slug).inc()


def _unforeseen() -> InternalError:
    return InternalError("The service failed unexpectedly.", fix="Tell the operator the job's id.")
