"""Gang scheduling of one model's particle systems: one job per batch, the least served job first.

The particles of a system advance together, so a batch moves all of them by a step or none; and as
each job calls the network in its own way, a batch is of one job.

- A job's systems start in waves: as many as fill a batch, or one that fills it alone, start
  together, and the next wave when those have ended. So a job runs in the same way whatever other
  jobs there are.
- The job that has had the fewest network evaluations has the next batch; a new job starts at what
  the latest of them had then. So each of J jobs has 1 / J of the evaluations, to within one batch,
  however many evaluations a step of another job takes.
- A wave begins when its particles fit beside those that are held, or when none are held; until then
  the waves that have begun go on.
- Background jobs move only where no other can.
- A batch takes several steps, for about as long as the caller's budget; and a system that is wider
  than a batch makes a step in several batches, a piece of its particles in each, so that no other
  job waits for all of it.

Pure Python: no tensors, no time, no threads.
"""

import math
from dataclasses import dataclass
from typing import final

from service.engine.scheduling.batch import Batch, Entry, JobShape, Lane
from service.engine.scheduling.latency import Throughput


@dataclass(slots=True)
class _Gang:
    """A running job: `wave` systems from `first` on are at `position`, the others wait."""

    key: int
    work: JobShape
    service: int  # evaluations it has had, and those it joined at
    left: int  # evaluations not scheduled
    background: bool
    first: int = 0
    wave: int = 0
    position: int = 0
    pieces_done: int = 0  # particles of a single system that this position's pieces have moved
    # Of its own latest batch, as steps of two jobs differ by more than their network calls.
    seconds_per_call: float = math.inf


@final
class GangScheduler:
    """The systems of a model.

    Args:
        lane: whose batches these are.
        slots: most particles that are held at once, where it is more than one wave.
        throughput: most rows of a batch, where it is more than one system.
    """

    def __init__(self, lane: Lane, slots: int, throughput: Throughput) -> None:
        self._lane, self._slots, self._throughput = lane, slots, throughput
        self._jobs: dict[int, _Gang] = {}
        self._now = [0, 0]  # of those in the background apart

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

    def demand(self, background: bool) -> float:
        """How many batches its jobs could fill now, at least one: a batch is never less."""
        usable = sum(
            min(self._throughput.batch_size, (job.work.rows - job.first) * job.work.width)
            for job in self._jobs.values()
            if job.background == background
        )
        return max(1.0, usable / self._throughput.batch_size)

    def add(self, key: int, work: JobShape, background: bool) -> None:
        """Take in a job."""
        self._jobs[key] = _Gang(key, work, self._now[background], work.cost, background)

    def remove(self, key: int) -> int:
        """Drop a job; the evaluations that were not scheduled."""
        return self._jobs.pop(key).left

    def slots_of(self, key: int) -> tuple[int, dict[int, int]]:
        """How many systems of a job have started, and those yet to end; they have no slots."""
        job = self._jobs[key]
        return job.first + job.wave, dict.fromkeys(range(job.first, job.first + job.wave), 0)

    def next(self, budget: float, background: bool) -> Batch:
        """The next batch, which may take about `budget` seconds.

        Args:
            budget: seconds.
            background: whether it is of a background job; it is in any case where the particles of
                no other fit beside theirs.
        """
        movable = list(filter(self._movable, self._jobs.values()))
        wanted = [job for job in movable if job.background == background]
        job = min(wanted or movable, key=lambda job: job.service)
        work, self._now[job.background] = job.work, job.service
        job.wave = job.wave or self._wave(job)
        rows = range(job.first, job.first + job.wave)
        entries = [Entry(job.key, row, 0, job.position) for row in rows]
        each, calls = sum(work.costs[row] for row in rows), self._calls(job.wave * work.width)
        room, num_steps, piece = max(1, int(budget / job.seconds_per_call)), 1, None
        if job.wave == 1 and (job.pieces_done or room < calls):
            whole = each if job.position < work.positions - 1 else work.last
            piece = min(room * self._throughput.batch_size, work.width - job.pieces_done)
            # Its part of the whole step's cost, rounded so that the parts add up to it.
            before, job.pieces_done = job.pieces_done, job.pieces_done + piece
            cost = whole * job.pieces_done // work.width - whole * before // work.width
            if job.pieces_done == work.width:
                job.position, job.pieces_done = job.position + 1, 0
        else:
            num_steps = min(work.positions - job.position, max(1, room // calls))
            job.position += num_steps
            last = job.position == work.positions
            cost = (num_steps - last) * each + last * work.last * job.wave
        job.service += cost
        job.left -= cost
        ends = entries if job.position == work.positions else []
        shares, width = {job.key: cost}, work.width
        return Batch(self._lane, entries, [], ends, shares, num_steps, width, piece, job.background)

    def retire(self, batch: Batch, seconds: float) -> list[int]:
        """Take in that a batch is done; returns the jobs that are over."""
        (key,) = batch.shares
        job = self._jobs.get(key)
        if job is None:  # removed while the batch ran
            return []
        job.seconds_per_call = max(seconds, 1e-9) / (
            batch.num_steps * self._calls(batch.network_rows)
        )
        if job.position == job.work.positions:
            job.first, job.wave, job.position = job.first + job.wave, 0, 0
        return [key] if job.first == job.work.rows else []

    def _calls(self, rows: int) -> int:
        """How many network calls `rows` rows take."""
        return -(-rows // self._throughput.batch_size)

    def _movable(self, job: _Gang) -> bool:
        """Whether it has begun a wave, or may begin one."""
        held = sum(other.wave * other.work.width for other in self._jobs.values())
        return job.wave > 0 or held == 0 or held + self._wave(job) * job.work.width <= self._slots

    def _wave(self, job: _Gang) -> int:
        """How many systems it would begin with."""
        return min(job.work.rows - job.first, max(1, self._throughput.batch_size // job.work.width))
