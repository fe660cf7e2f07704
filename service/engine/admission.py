"""Whether one more job is accepted: its own limits, and what is already there.

    pending < max_queue_cost,    held + size <= max_queue_bytes,    forecast <= deadline - now

The cost of the job itself does not count, or short jobs would always fit into a nearly full queue
and long ones never. So the last one may go past the limit.

Background jobs wait while there are others, so that only their bytes count.

A caller who is refused because the queue is full gets a `retry_after`: the time until there is room
behind those who were refused before and have not come back yet.

Nothing here is thread-safe: callers hold the queue's lock.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from typing import Any, final

from diffusion.model import DiffusionModel
from service.engine.jobs import ActiveJob, Job
from service.engine.scheduling.batch import Lane, Load, Loads
from service.engine.scheduling.latency import Forecast, Throughput
from service.errors import DeadlineExceeded, DeadlineUnmeetable, NoRoom, QueueFull, TooExpensive
from service.settings import Settings

_LENIENCE = 1.25  # a job is refused where its estimate is this many times the time that it has
_REFRESH = 0.1  # seconds for which the time that all jobs need is not worked out again
_PROMISES = 1000  # refusals that are remembered
REQUEST_OVERHEAD = 2**16  # bytes that a request holds beside its data: connection, plan, records


def check_cost(cost: int, settings: Settings) -> None:
    """Raise TooExpensive beyond `max_request_cost`."""
    if cost > settings.max_request_cost:
        raise TooExpensive(
            "The request needs more network evaluations than one request may.",
            received=cost,
            expected=f"at most {settings.max_request_cost}",
            fix="Ask for fewer samples or examples, or fewer steps (`sampler.steps`) or `terms`, "
            "or split it; the operator sets the limit (NONEQ_MAX_REQUEST_COST).",
        )


def check_limits(job: Job[Any], model: DiffusionModel, settings: Settings) -> int:
    """The bytes that the job holds from acceptance to its end.

    Raises:
        TooExpensive: its cost, or its size in bytes, is more than one request may have.
    """
    check_cost(job.cost, settings)
    size = job.size(model)
    # Its body is still held when it is accepted: beside that it must fit, or it never would.
    room = settings.max_queue_bytes - settings.max_body_bytes - 2 * REQUEST_OVERHEAD
    if size > room:
        raise TooExpensive(
            "The request's data and answer would hold more memory than one request may.",
            expected=f"at most {room} bytes",
            received=size,
            fix="Split it into several requests; the operator sets NONEQ_MAX_QUEUE_BYTES.",
        )
    return size


@final
class Backlog:
    """The accepted jobs that have not ended: evaluations pending, bytes held, what is left of each.

    Equal jobs that wait are one kind with a number, so thirty thousand of them cost a forecast as
    much as one. Those that run differ, and there are no more of them than slots.

    Of background jobs only the bytes count.

    Attributes:
        pending: network evaluations accepted and not yet done.
        by_lane: the same, by lane.
        held: bytes of bodies being read, of accepted jobs and of answers on their way.
    """

    def __init__(self) -> None:
        self.pending = self.held = 0
        self._waiting: defaultdict[Lane, Counter[Load]] = defaultdict(Counter)
        self._running: defaultdict[Lane, dict[int, ActiveJob]] = defaultdict(dict)
        self.by_lane: Counter[Lane] = Counter()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def complete(self, lane: Lane, evaluations: int) -> None:
        """Count evaluations of a lane as done, or as not wanted any more."""
        self.pending -= evaluations
        self.by_lane[lane] -= evaluations
        if not self.by_lane[lane]:
            del self.by_lane[lane]  # lanes come and go

    def add(self, record: ActiveJob) -> None:
        """Count a new job as waiting."""
        self.held += record.size
        if record.background:
            return
        self._waiting[record.job.lane][record.job.shape.load] += 1
        self._size += 1
        self.pending += record.job.cost
        self.by_lane[record.job.lane] += record.job.cost

    def start(self, record: ActiveJob) -> None:
        """Move it from waiting to running."""
        if record.background:
            return
        self._leave_waiting(record)
        self._running[record.job.lane][record.key] = record

    def remove(self, record: ActiveJob, unspent: int) -> None:
        """Forget an ended job; `unspent` evaluations were not made."""
        self.held -= record.size
        if record.background:
            return
        lane = record.job.lane
        if self._running[lane].pop(record.key, None) is None:
            self._leave_waiting(record)
        if not self._running[lane]:
            del self._running[lane]
        self._size -= 1
        self.complete(lane, unspent)

    def loads(self) -> dict[Lane, Loads]:
        """What is left of all, by lane; only of lanes that have some."""
        found: dict[Lane, Loads] = {}
        for name in self._waiting.keys() | self._running.keys():
            running = [(record.left, 1) for record in self._running.get(name, {}).values()]
            found[name] = [*self._waiting.get(name, {}).items(), *running]
        return found

    def _leave_waiting(self, record: ActiveJob) -> None:
        waiting, load = self._waiting[record.job.lane], record.job.shape.load
        waiting[load] -= 1
        if not waiting[load]:
            del waiting[load]
        if not waiting:
            del self._waiting[record.job.lane]


@final
class Admission:
    """The limits that depend on what else is there, and the refusals that follow from them.

    Args:
        throughput: of every lane.
        settings: the limits, and the scheduler's share of terms.

    Attributes:
        backlog: what is accepted and held.
    """

    def __init__(self, throughput: Mapping[Lane, Throughput], settings: Settings) -> None:
        self._limit, self._room = settings.max_queue_cost, settings.max_queue_bytes
        self.backlog = Backlog()
        self._forecast = Forecast(throughput, settings.term_share)
        self._until_empty = -_REFRESH, 0.0  # when it was worked out, and the seconds from then
        # Callers who were refused: when each comes back, and the share of the backlog it brings.
        self._promised: deque[tuple[float, float]] = deque(maxlen=_PROMISES)

    def seconds_until(self, share: float) -> float:
        """Seconds until this share of the pending evaluations is done."""
        if not self.backlog.pending:
            return 0.0
        now = time.monotonic()
        if now - self._until_empty[0] >= _REFRESH:
            self._until_empty = now, self._forecast.until_empty(self.backlog.loads())
        return min(1.0, share) * self._until_empty[1]

    def check_body(self, size: int, background: bool) -> None:
        """Raise QueueFull or NoRoom where a job with a body of `size` bytes would be refused."""
        if not background:
            self._check_queue()
        self._check_room(size)

    def check_job(self, job: Job[Any], size: int, deadline: float | None, background: bool) -> None:
        """Raise QueueFull, NoRoom, DeadlineUnmeetable or DeadlineExceeded.

        Args:
            job: what would be accepted.
            size: bytes that it would hold.
            deadline: when its result is no longer wanted, monotonic seconds.
            background: whether it waits while there are others; then only bytes count.
        """
        self.check_body(size, background)
        if deadline is not None and not background:
            self._check_deadline(job, deadline - time.monotonic())

    def _check_queue(self) -> None:
        pending = self.backlog.pending
        if pending < self._limit:
            return
        # After that time there is room for a job like those that wait.
        usual = -(-pending // max(1, len(self.backlog)))
        raise QueueFull(
            f"{pending} network evaluations wait.",
            expected=f"fewer than {self._limit} waiting",
            retry_after=self._retry_after(
                max(0, pending + usual - self._limit) / pending, usual / pending
            ),
            fix="Send the same request again after `retry_after` seconds.",
        )

    def _check_room(self, size: int) -> None:
        lacking = self.backlog.held + size - self._room
        if lacking > 0:
            held = max(1, self.backlog.held)  # evaluations free it evenly
            raise NoRoom(
                f"The accepted requests hold {self.backlog.held} bytes, this one would add {size}.",
                expected=f"at most {self._room} bytes",
                retry_after=self._retry_after(lacking / held, size / held),
                fix="Send the same request again after `retry_after` seconds, or a smaller one.",
            )

    def _retry_after(self, lacking: float, own: float) -> float:
        """Seconds until a share `lacking` of the backlog is done, behind earlier refusals.

        It remembers that this caller will come back then with a share `own`.
        """
        now = time.monotonic()
        while self._promised and self._promised[0][0] <= now:
            self._promised.popleft()
        seconds = self.seconds_until(lacking + sum(share for _, share in self._promised))
        self._promised.append((now + max(1.0, seconds), own))
        return seconds

    def _check_deadline(self, job: Job[Any], seconds: float) -> None:
        """Raise where the job cannot be done within `seconds` from now."""
        if seconds <= 0:
            raise DeadlineExceeded(
                "The deadline passed before the request had been read.",
                fix="Allow more time, or send less.",
            )
        load, others = job.shape.load, self.backlog.loads()
        needed = self._forecast.seconds(job.lane, load, others)
        if needed <= _LENIENCE * seconds:
            return
        alone = self._forecast.seconds(job.lane, load, {})
        later = alone <= _LENIENCE * seconds
        raise DeadlineUnmeetable(
            f"Among {len(self.backlog)} others this takes about {needed:.3g} seconds, "
            f"{alone:.3g} without them.",
            received=f"{seconds:.3g} seconds left",
            estimated_seconds=needed,
            retry_after=needed - seconds if later else None,
            fix="Send the same request again after `retry_after` seconds, or allow more time."
            if later
            else "Allow more time, or ask for fewer rows, steps or terms.",
        )
