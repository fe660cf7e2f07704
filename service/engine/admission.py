"""What one request may ask for, whatever else is there: its cost and its bytes.

Accepted work, by what bounds it: evaluations that are not made yet, and bytes that are held.

Not thread-safe: the engine holds its lock.

What is left of the jobs that are there: of those that wait by kinds, of those that run singly.

Jobs that wait have all of it left, so that equal requests are one kind with a number: thirty
thousand of them cost a forecast as much as one. Those that run differ, and are no more than there
are slots. Not thread-safe: the intake holds its lock.

Whether there is room and time for one more: in the queue, in memory, before its deadline.

    owed < max_queue_cost,    held + size <= max_queue_bytes,    forecast <= deadline - now

What a job costs does not count at the door: near a full queue the short ones would always fit, and
the long ones never. So the last to be let in may go past the limit, by one job at the most.

Whoever is refused for want of room is told when there will be some for him, behind those that were
told before him and have not come back yet.

Not thread-safe: the intake holds its lock.
"""

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import final

from diffusion.model import DiffusionModel
from service.engine.jobs import Job, Record, SystemJob, TermJob, whole_of
from service.engine.scheduling.batch import Queue, Tick
from service.engine.scheduling.latency import Forecast, Load, Loads
from service.errors import DeadlineExceeded, DeadlineUnmeetable, NoRoom, QueueFull, TooExpensive
from service.settings import Settings

APIECE = 2**16  # bytes that a request holds beside its data: connection, plan, records


def check_cost(cost: int, settings: Settings) -> None:
    """Raise TooExpensive beyond `max_request_cost`."""
    if cost > settings.max_request_cost:
        raise TooExpensive(
            "The request needs more network evaluations than one request may.",
            received=cost,
            expected=f"at most {settings.max_request_cost}",
            fix="Ask for fewer samples or data, for fewer steps (`sampler.steps`) or `terms`, or "
            "split it; the operator sets the limit (NONEQ_MAX_REQUEST_COST).",
        )


def check_limits(job: Job, model: DiffusionModel, settings: Settings) -> int:
    """The bytes that the job holds from acceptance to its end.

    Raises:
        TooExpensive: its cost, or its bytes, are more than one request may have.
    """
    check_cost(job.cost, settings)
    size = size_of(job, model)
    # Its body is still held when it is accepted: beside that it must fit, or it never would.
    room = settings.max_queue_bytes - settings.max_body_bytes - 2 * APIECE
    if size > room:
        raise TooExpensive(
            "The request's data and answer would hold more memory than one request may.",
            expected=f"at most {room} bytes",
            received=size,
            fix="Part it into several requests; the operator sets NONEQ_MAX_QUEUE_BYTES.",
        )
    return size


def size_of(job: Job, model: DiffusionModel) -> int:
    """Bytes of host memory that a job holds from acceptance to its end: what came, its answer."""
    if isinstance(job, TermJob):
        answer = 8 * job.cost + job.answer_bytes
        return job.x_0.nbytes + job.steps.nbytes + answer
    brought = [] if job.observation is None else list(job.observation.tensors)
    answer = 4 * job.samples * math.prod(model.event)
    if isinstance(job, SystemJob):
        answer += 8 * job.rows * job.units  # the effective sample size by step
        return sum(part.nbytes for part in brought) + answer
    if job.frames is not None:
        answer += 2 * len(job.frames.units) * answer + job.answer_bytes
    if job.start is not None:
        brought.append(job.start)
    return sum(part.nbytes for part in brought) + answer


@final
class Ledger:
    """What is accepted and not yet done.

    Args:
        limit: most network evaluations accepted and not yet done.
        room: most bytes held at once, of bodies being read and of accepted jobs.
    """

    def __init__(self, limit: int, room: int = sys.maxsize) -> None:
        self._limit, self._room = limit, room
        self._held = self._owed = 0

    @property
    def owed(self) -> int:
        """Network evaluations accepted and not yet done."""
        return self._owed

    def excess(self, cost: int) -> int:
        """By how many evaluations a job of this cost would overrun the limit; 0 where it fits."""
        return max(0, self.owed + cost - self._limit)

    @property
    def held(self) -> int:
        """Bytes of bodies being read and of accepted jobs."""
        return self._held

    def overflow(self, size: int) -> int:
        """By how many bytes this would overrun the room; 0 where it fits."""
        return max(0, self._held + size - self._room)

    def hold(self, size: int) -> None:
        """So many bytes are taken; fewer than none are given back."""
        self._held += size

    def release(self, size: int) -> None:
        """So many bytes are given back."""
        self._held -= size

    def accept(self, cost: int) -> None:
        """A job has been accepted."""
        self._owed += cost

    def settle(self, evaluations: int) -> None:
        """So many evaluations are done, or no longer wanted."""
        self._owed -= evaluations


@final
class Company:
    """The jobs that have been accepted and have not ended.

    Args:
        queues: whose they are.
    """

    def __init__(self, queues: Iterable[Queue]) -> None:
        self._waiting: dict[Queue, Counter[Load]] = {name: Counter() for name in queues}
        self._running: dict[Queue, dict[int, Record]] = {name: {} for name in self._waiting}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, record: Record) -> None:
        """A job waits."""
        self._waiting[record.job.queue][whole_of(record.job)] += 1
        self._size += 1

    def start(self, record: Record) -> None:
        """It runs."""
        self._forget(record)
        self._running[record.job.queue][record.key] = record

    def remove(self, record: Record) -> None:
        """It has ended, whether it ran or not."""
        if self._running[record.job.queue].pop(record.key, None) is None:
            self._forget(record)
        self._size -= 1

    def loads(self) -> dict[Queue, Loads]:
        """What is left of all, by queue; only of queues that have some."""
        found: dict[Queue, Loads] = {}
        for name, waiting in self._waiting.items():
            running = [(record.left, 1) for record in self._running[name].values()]
            if waiting or running:
                found[name] = [*waiting.items(), *running]
        return found

    def _forget(self, record: Record) -> None:
        waiting, load = self._waiting[record.job.queue], whole_of(record.job)
        waiting[load] -= 1
        if not waiting[load]:
            del waiting[load]


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
