"""Whether there is room and time for one more: in the queue, in memory, before its deadline.

    owed < max_queue_cost,    held + size <= max_queue_bytes,    forecast <= deadline - now

What a job costs does not count at the door: near a full queue the short ones would always fit, and
the long ones never. So the last to be let in may go past the limit, by one job at the most.

Whoever is refused for want of room is told when there will be some for him, behind those that were
told before him and have not come back yet.

Not thread-safe: the intake holds its lock.
"""

import time
from collections import deque
from collections.abc import Iterable
from typing import final

from service.engine.company import Company
from service.engine.forecast import Forecast
from service.engine.jobs import Job
from service.engine.ledger import Ledger
from service.engine.record import whole_of
from service.engine.scheduling.batch import Queue, Tick
from service.errors import DeadlineExceeded, DeadlineUnmeetable, NoRoom, QueueFull
from service.settings import Settings

_LENIENCE = 1.25  # how far an estimate may be past a deadline before it is believed
_STALE = 0.1  # seconds for which the time that all needs is not worked out again
_PROMISES = 1000  # refusals that are remembered


@final
class Admission:
    """The limits that depend on what else is there, and the refusals that follow from them.

    Args:
        queues: whose jobs may come.
        settings: the queue's bounds and the scheduler's shares.

    Attributes:
        ledger: what is accepted and held.
        company: the jobs themselves.
    """

    def __init__(self, queues: Iterable[Queue], settings: Settings) -> None:
        self._limit, self._room = settings.max_queue_cost, settings.max_queue_bytes
        names = list(queues)
        self.ledger = Ledger(self._limit, self._room)
        self.company = Company(names)
        self._forecast = Forecast(names, settings.term_share)
        self._all = -_STALE, 0.0  # when it was worked out, and how long all takes from then
        self._promised: deque[tuple[float, float]] = deque(maxlen=_PROMISES)  # back when, for what

    def limit(self, queue: Queue, rows: int) -> None:
        """From now on a tick of `queue` has at most so many rows."""
        self._forecast.limit(queue, rows)

    def seed(self, queue: Queue, rows: int, seconds: float, *, terms: bool = False) -> None:
        """At start a step of so many rows, with terms or without, took so many seconds."""
        self._forecast.times(queue, terms=terms).seed(rows, seconds, time.monotonic())

    def measure(self, tick: Tick, seconds: float) -> None:
        """A tick took so many seconds."""
        steps, times = tick.length, self._forecast.times(tick.queue, terms=bool(tick.terms))
        times.measure(tick.evaluations // steps, seconds / steps, steps, time.monotonic())

    def seconds_until(self, share: float) -> float:
        """How long until such a share of what is owed is done."""
        if not self.ledger.owed:
            return 0.0
        now = time.monotonic()
        if now - self._all[0] >= _STALE:
            self._all = now, self._forecast.until_empty(self.company.loads(), now)
        return min(1.0, share) * self._all[1]

    def check_body(self, size: int) -> None:
        """Raise QueueFull or NoRoom where a body of so many bytes need not be read."""
        self._check_queue()
        self._check_room(size)

    def check_job(self, job: Job, size: int, deadline: float | None) -> None:
        """Raise QueueFull, NoRoom, DeadlineUnmeetable or DeadlineExceeded.

        Args:
            job: what is asked.
            size: bytes that it would hold.
            deadline: when its answer is of no more use, monotonic seconds.
        """
        self._check_queue()
        self._check_room(size)
        if deadline is not None:
            self._check_deadline(job, deadline - time.monotonic())

    def _check_queue(self) -> None:
        owed = self.ledger.owed
        if owed < self._limit:
            return
        # Whoever comes back then finds room for one like those that wait.
        usual = -(-owed // max(1, len(self.company)))
        raise QueueFull(
            f"{owed} network evaluations wait.",
            expected=f"fewer than {self._limit} waiting",
            retry_after=self._promise(self.ledger.excess(usual) / owed, usual / owed),
            fix="Send the same request again after `retry_after` seconds.",
        )

    def _check_room(self, size: int) -> None:
        lacking = self.ledger.overflow(size)
        if lacking:
            held = max(1, self.ledger.held)  # evaluations free it evenly
            raise NoRoom(
                f"The requests in hand hold {self.ledger.held} bytes, this would add {size}.",
                expected=f"at most {self._room} bytes",
                retry_after=self._promise(lacking / held, size / held),
                fix="Send the same request again after `retry_after` seconds, or a smaller one.",
            )

    def _promise(self, lacking: float, own: float) -> float:
        """When to come back, by shares of all that is there: of what has to go, and what comes."""
        now = time.monotonic()
        while self._promised and self._promised[0][0] <= now:
            self._promised.popleft()
        seconds = self.seconds_until(lacking + sum(share for _, share in self._promised))
        self._promised.append((now + max(1.0, seconds), own))
        return seconds

    def _check_deadline(self, job: Job, seconds: float) -> None:
        """Raise where the job cannot be done in so many seconds from now."""
        if seconds <= 0:
            raise DeadlineExceeded(
                "The deadline passed before the request had been read.",
                fix="Allow more time, or send less.",
            )
        load, others = whole_of(job), self.company.loads()
        now = time.monotonic()
        needed = self._forecast.seconds(job.queue, load, others, now)
        if needed <= _LENIENCE * seconds:
            return
        alone = self._forecast.seconds(job.queue, load, {}, now)
        later = alone <= _LENIENCE * seconds
        raise DeadlineUnmeetable(
            f"Among {len(self.company)} others this takes about {needed:.3g} seconds, "
            f"{alone:.3g} without them.",
            received=f"{seconds:.3g} seconds left",
            estimated_seconds=needed,
            retry_after=needed - seconds if later else None,
            fix="Send the same request again after `retry_after` seconds, or allow more time."
            if later
            else "Allow more time, or ask for fewer rows, steps or terms.",
        )
