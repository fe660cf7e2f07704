"""The door between threads: what was accepted and has not ended.

    accepted = answered + failed + cancelled,    and nothing is accepted past `limit` evaluations

Any thread may come in by `accept`, cancel, or wait for the end; the engine's thread takes, settles
and ends. Everything here is under one lock that nobody holds for longer than a few assignments.
"""

import itertools
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from service.engine.faults import describe
from service.engine.jobs import Job, Ticket, Timing
from service.engine.ledger import Ledger
from service.engine.peek import Peek, PeekRequest
from service.problems import Draining, EngineDead, Problem, QueueFull


@dataclass(eq=False)
class Record:
    """An accepted job that has not ended.

    Attributes:
        key: its name within the engine.
        job: what was asked.
        ticket: what its caller holds.
        rows_left: rows whose result is outstanding.
        accepted: when it came, monotonic seconds.
        started: when a row of it was first in a tick; None until then.
    """

    key: int
    job: Job
    ticket: Ticket[Any]
    rows_left: int
    accepted: float
    started: float | None = None


@final
class Intake:
    """Accepted jobs, on their way to the engine's thread and back.

    Args:
        models: names of the models.
        limit: most network evaluations accepted and not yet done.
    """

    def __init__(self, models: Iterable[str], limit: int) -> None:
        self._limit = limit
        self._keys = itertools.count()
        self._wake = threading.Condition()
        self._ledger = Ledger(models, limit)
        self._records: dict[int, Record] = {}
        self._new: list[Record] = []
        self._cancelled: list[int] = []
        self._peeks: list[PeekRequest] = []
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
    def owed(self) -> int:
        """Network evaluations accepted and not yet done."""
        with self._wake:
            return self._ledger.owed

    @property
    def seconds_owed(self) -> float:
        """How long the accepted work takes, at the measured rates."""
        with self._wake:
            return self._ledger.seconds_until(self._ledger.owed)

    def accept(self, job: Job) -> Ticket[Any]:
        """Take a job in, or raise QueueFull, Draining or EngineDead."""
        with self._wake:
            if self._closed:
                raise self.obituary()
            if self._draining:
                raise Draining("The service finishes what it accepted and takes nothing new.")
            excess = self._ledger.excess(job.cost)
            if excess:
                raise QueueFull(
                    f"{self._ledger.owed} network evaluations wait, this would add {job.cost}.",
                    expected=f"at most {self._limit} waiting",
                    retry_after=self._ledger.seconds_until(excess),
                    fix="Send the same request again after `retry_after` seconds.",
                )
            key = next(self._keys)
            ticket: Ticket[Any] = Ticket(job.cost, Future(), partial(self._peek, key))
            record = Record(key, job, ticket, job.rows, time.monotonic())
            self._ledger.accept(job.model, job.cost)
            self._records[key] = record
            self._new.append(record)
            self._wake.notify_all()
        ticket.on_cancel(lambda: self._cancel(key))
        return ticket

    def take(self, *, wait: bool) -> tuple[list[Record], list[int]] | None:
        """What is new and what was cancelled since; None when it is time to stop.

        Args:
            wait: sleep until there is something to say.
        """
        with self._wake:
            if wait:
                self._wake.wait_for(
                    lambda: self._new or self._cancelled or self._peeks or self._stopping
                )
            if self._stopping:
                return None
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
            return new, cancelled

    def take_peeks(self) -> list[PeekRequest]:
        """Who wants to look at a job; whoever is here must be answered."""
        if not self._peeks:  # without the lock: what comes now is seen before the next tick
            return []
        with self._wake:
            peeks, self._peeks = self._peeks, []
            return peeks

    def measure(self, model: str, evaluations: int, seconds: float) -> None:
        """So many evaluations took so many seconds."""
        with self._wake:
            self._ledger.measure(model, evaluations, seconds)

    def settle(self, model: str, evaluations: int) -> None:
        """So many of the accepted evaluations have been made."""
        with self._wake:
            self._ledger.settle(model, evaluations)

    def end(self, record: Record, unspent: int, outcome: Timing | Problem | None) -> None:
        """A job is over (None: cancelled), with so many evaluations that were not made."""
        with self._wake:
            del self._records[record.key]
            self._ledger.settle(record.job.model, unspent)
            self._wake.notify_all()
        resolve(record.ticket.future, outcome)

    def drain(self, timeout: float) -> bool:
        """Refuse new jobs and wait until the accepted ones have ended; whether they all did."""
        with self._wake:
            self._draining = True
            self._wake.wait_for(lambda: not self._records or self._closed, timeout)
            return not self._records and self._error is None

    def stop(self) -> None:
        """Tell the engine's thread to stop."""
        with self._wake:
            self._draining = self._stopping = True
            self._wake.notify_all()

    def close(self, error: BaseException | None) -> None:
        """The engine's thread is over: nobody is let in, and whoever is left is told."""
        with self._wake:
            self._closed, self._error = True, error
            left = list(self._records.values())
            self._records.clear()
            peeks, self._peeks = self._peeks, []
            self._wake.notify_all()
        for record in left:
            resolve(record.ticket.future, self.obituary())
        for peek in peeks:
            resolve(peek.future, None)

    def obituary(self) -> Problem:
        """Why nothing more is done, once closed."""
        if self._error is None:
            return Draining("The service stopped before this was finished.")
        return EngineDead(
            f"The engine ended by an error: {describe(self._error)}",
            fix="The service must be restarted; its log has the rest.",
        )

    def _peek(self, key: int, rows: int) -> "Future[Peek | None]":
        peek = PeekRequest(key, rows, Future())
        with self._wake:
            if key in self._records:
                self._peeks.append(peek)
                self._wake.notify_all()
                return peek.future
        peek.future.set_result(None)
        return peek.future

    def _cancel(self, key: int) -> None:
        with self._wake:
            self._cancelled.append(key)
            self._wake.notify_all()


def resolve(future: "Future[Any]", outcome: Timing | Peek | Problem | None) -> None:
    """Set the outcome, unless the future has been cancelled in the meantime."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Problem):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
