"""Systems of particles of one model: a job a tick, the one that has had the fewest evaluations.

A system's particles advance together, so it is a system or nothing that a tick moves by a step; and
as the network is called another way for each job, a tick is of one.

- A job's systems go in waves: as many as fill a tick start together, or one where that alone does,
  and the next of them when those have ended. So the same job goes the same way in any company.
- The job that has had the fewest network evaluations has the next tick; who comes joins at what
  the latest had then. So while J jobs are there each has 1 / J of the evaluations, to within one
  tick, however many particles or products of the other jobs a step takes.
- A wave begins where its particles find room among those that are held, or nothing is held; until
  then those that have begun go on.
- A tick goes on for several steps, for about as long as a burst may take; and a system that is
  wider than a tick makes a step in several, a piece of its particles in each, so that nobody waits
  for all of it.

Pure Python: no tensors, no time, no threads.
"""

import math
from dataclasses import dataclass
from typing import final

from service.engine.scheduling.batch import Entry, JobShape, Queue, Tick
from service.engine.scheduling.latency import Throughput


@dataclass(slots=True)
class _Turn:
    """A job on its way: systems from `first` on, `wave` of them at `unit`, the others behind."""

    key: int
    work: JobShape
    had: int  # evaluations, and what it joined at
    left: int  # evaluations not handed out
    first: int = 0
    wave: int = 0
    unit: int = 0
    seen: int = 0  # particles of a single system that this unit's pieces have had
    # Of its own latest batch, as steps of two jobs differ by more than their network calls.
    seconds_per_call: float = math.inf


@final
class Waves:
    """The systems of a model.

    Args:
        queue: whose ticks these are.
        slots: most particles that are held at once, where it is more than one wave.
        throughput: most rows of a batch, where it is more than one system.
    """

    def __init__(self, queue: Queue, slots: int, throughput: Throughput) -> None:
        self._queue, self._slots, self._throughput = queue, slots, throughput
        self._jobs: dict[int, _Turn] = {}
        self._now = 0

    def __len__(self) -> int:
        """How many jobs are not finished."""
        return len(self._jobs)

    @property
    def running(self) -> int:
        """Systems that are on their way."""
        return sum(job.wave for job in self._jobs.values())

    @property
    def waiting(self) -> int:
        """Systems that have not started."""
        return sum(job.work.rows - job.first - job.wave for job in self._jobs.values())

    def demand(self) -> float:
        """How many batches its jobs could fill now, at least one: a tick is never less."""
        usable = sum(
            min(self._throughput.batch_size, (job.work.rows - job.first) * job.work.width)
            for job in self._jobs.values()
        )
        return max(1.0, usable / self._throughput.batch_size)

    def add(self, key: int, work: JobShape) -> None:
        """Take in a job."""
        self._jobs[key] = _Turn(key, work, self._now, work.cost)

    def remove(self, key: int) -> int:
        """Drop a job; the evaluations that were not handed out."""
        return self._jobs.pop(key).left

    def held(self, key: int) -> tuple[int, dict[int, int]]:
        """How many systems of a job have started, and those yet to end; they have no slots."""
        job = self._jobs[key]
        return job.first + job.wave, dict.fromkeys(range(job.first, job.first + job.wave), 0)

    def next(self, number: int, burst: float) -> Tick:
        """The systems of the next tick, which may take about `burst` seconds."""
        del number  # of lanes alone
        job = min(filter(self._movable, self._jobs.values()), key=lambda job: job.had)
        work, self._now = job.work, job.had
        job.wave = job.wave or self._wave(job)
        rows = range(job.first, job.first + job.wave)
        entries = [Entry(job.key, row, 0, job.unit) for row in rows]
        each, calls = sum(work.costs[row] for row in rows), self._calls(job.wave * work.width)
        room, length, piece = max(1, int(burst / job.seconds_per_call)), 1, None
        if job.wave == 1 and (job.seen or room < calls):
            whole = each if job.unit < work.units - 1 else work.last
            piece = min(room * self._throughput.batch_size, work.width - job.seen)
            # Shares of the whole, rounded so that they add up to it.
            had, job.seen = job.seen, job.seen + piece
            cost = whole * job.seen // work.width - whole * had // work.width
            if job.seen == work.width:
                job.unit, job.seen = job.unit + 1, 0
        else:
            length = min(work.units - job.unit, max(1, room // calls))
            job.unit += length
            last = job.unit == work.units
            cost = (length - last) * each + last * work.last * job.wave
        job.had += cost
        job.left -= cost
        ends = entries if job.unit == work.units else []
        return Tick(self._queue, entries, [], ends, {job.key: cost}, length, work.width, piece)

    def retire(self, tick: Tick, seconds: float) -> list[int]:
        """The tick is done. Which jobs are over."""
        (key,) = tick.shares
        job = self._jobs.get(key)
        if job is None:  # removed while the tick ran
            return []
        job.seconds_per_call = max(seconds, 1e-9) / (tick.length * self._calls(tick.rows))
        if job.unit == job.work.units:
            job.first, job.wave, job.unit = job.first + job.wave, 0, 0
        return [key] if job.first == job.work.rows else []

    def _calls(self, rows: int) -> int:
        """Network calls of so many rows."""
        return -(-rows // self._throughput.batch_size)

    def _movable(self, job: _Turn) -> bool:
        """Whether it has begun a wave, or may begin one."""
        held = sum(other.wave * other.work.width for other in self._jobs.values())
        return job.wave > 0 or held == 0 or held + self._wave(job) * job.work.width <= self._slots

    def _wave(self, job: _Turn) -> int:
        """How many systems it would begin with."""
        return min(job.work.rows - job.first, max(1, self._throughput.batch_size // job.work.width))
