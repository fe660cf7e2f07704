"""Lanes: the jobs of one queue and kind in rotation, and the slots that their rows hold.

A lane deals out rows, a row a turn; `service.engine.scheduling.rows` has the policy that follows.

Chains and terms of one model in the same ticks: share(job) = min(what it can use, M / jobs).

There are two kinds of row: of a *chain* the units are steps and follow each other, one a tick at
most; of a *datum* they are terms of a bound, independent of each other, any number a tick. A row
holds a slot from its first unit to its last.

- Jobs of a kind take turns, a row a turn, until the tick is full, so each has an equal share of it
  and whoever cannot use all of its share leaves it to the others. A chain job of r rows by n steps
  among J jobs, in ticks with room for M rows of their kind, is done in n (r J / M + 1) + 1 ticks,
  however long the others are; of terms, whose order is free, in (r n + 1) J / M + 1.
- A job advances its oldest rows first and starts a new row only where its share exceeds the rows
  it has running, so slots are held by rows that move. The i-th oldest job never had more than an
  i-th of the batch, so J jobs hold no more than the sum over i of ceil(M / i) slots.
- A quarter of the slots is kept for first rows: a job that has a row gets no other out of it. So
  while there are no more jobs of a kind than that quarter has slots, a newcomer finds one at once
  and is in a tick within ceil(J / M) ticks, whatever runs. Beyond that, newcomers get the slots
  that rows leave, in the order they came, before any job gets a further row: the first of them
  within n ceil(slots / M) ticks, n the steps of the longest row.
- Chains go first and terms fill the batch. While chains alone could fill it, `term_share` of it is
  kept for terms.
- Without terms beside them a tick's chains advance several steps in it, for about as long as a
  burst may take: small networks take less time than a tick's bookkeeping, and whoever waits has
  his turn no later than that.

Pure Python: no tensors, no time, no threads.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import final

from service.engine.scheduling.batch import Entry, JobShape, Queue, Tick
from service.engine.scheduling.latency import Throughput


@dataclass(slots=True)
class Row:
    """A row with a slot, and the unit that is its next."""

    row: int
    slot: int
    unit: int = 0


@dataclass(slots=True)
class Progress:
    """A job on its way: `running` rows hold slots, oldest first; rows from `waiting` on do not."""

    key: int
    work: JobShape
    running: list[Row] = field(default_factory=list)
    waiting: int = 0
    tick: int = -1
    taken: int = 0

    @property
    def remaining(self) -> int:
        """Units that have not been handed out."""
        rows = self.work.rows - self.waiting
        return rows * self.work.units + sum(self.work.units - row.unit for row in self.running)

    def usable(self, most: int) -> int:
        """How many rows of a tick it could use, up to `most`."""
        if self.work.parallel:
            return min(most, self.remaining)
        return min(most, len(self.running) + self.work.rows - self.waiting)


class Lane:
    """The jobs of one kind in rotation, and the slots their rows hold."""

    def __init__(self, slots: int) -> None:
        self.free = list(range(slots - 1, -1, -1))
        self.kept = -(-slots // 4)
        self.rotation: deque[Progress] = deque()

    def take(self, room: int, tick: int) -> list[Entry]:
        """Up to `room` entries, a row a turn; the rotation goes on where it stopped."""
        entries: list[Entry] = []
        blocked: list[Progress] = []
        satisfied: list[Progress] = []
        while len(entries) < room and self.rotation:
            job = self.rotation.popleft()
            if job.tick != tick:
                job.tick, job.taken = tick, 0
            row = self._next_row(job)
            if row is not None:
                entries.append(Entry(job.key, row.row, row.slot, row.unit))
                row.unit += 1
                job.taken += 1
                self.rotation.append(job)
            elif job.taken:
                satisfied.append(job)
            else:
                blocked.append(job)
        # Who got nothing for want of a slot is the first to be asked again.
        self.rotation.extendleft(reversed(blocked))
        self.rotation.extend(satisfied)
        return entries

    def _next_row(self, job: Progress) -> Row | None:
        """The job's oldest row with a unit that may run in this tick; None where there is none."""
        work, running = job.work, job.running
        if work.parallel:
            if running and running[-1].unit < work.units:
                return running[-1]
        elif job.taken < len(running):
            return running[job.taken]
        # A first row may have any slot; further rows leave a quarter of them to those who come.
        if job.waiting == work.rows or len(self.free) <= (self.kept if running else 0):
            return None
        row = Row(job.waiting, self.free.pop())
        running.append(row)
        job.waiting += 1
        return row

    def settle(self, job: Progress) -> None:
        """Free the slots of rows whose last unit is done."""
        self.free.extend(row.slot for row in job.running if row.unit == job.work.units)
        job.running = [row for row in job.running if row.unit < job.work.units]

    def drop(self, job: Progress) -> None:
        """Take the job out, whatever it was doing."""
        self.free.extend(row.slot for row in job.running)
        self.rotation.remove(job)


@final
class Shared:
    """The two lanes of a model.

    Args:
        queue: whose ticks these are.
        slots: most chains, and most data, that hold a slot at once.
        throughput: most rows of a batch, and how long it takes.
        term_share: share of a batch kept for terms while chains could fill it.
    """

    def __init__(self, queue: Queue, slots: int, throughput: Throughput, term_share: float) -> None:
        self._queue, self._term_share = queue, term_share
        self._chains, self._terms = Lane(slots), Lane(slots)
        self._jobs: dict[int, Progress] = {}
        self._throughput = throughput
        self._term_credit = 0.0

    def __len__(self) -> int:
        """How many jobs are not finished."""
        return len(self._jobs)

    @property
    def running(self) -> int:
        """Rows that hold a slot."""
        return sum(len(job.running) for job in self._jobs.values())

    @property
    def waiting(self) -> int:
        """Rows that have not started."""
        return sum(job.work.rows - job.waiting for job in self._jobs.values())

    def demand(self) -> float:
        """How many batches its jobs could fill now, at least one: a tick is never less."""
        usable = sum(job.usable(self._throughput.batch_size) for job in self._jobs.values())
        return max(1.0, usable / self._throughput.batch_size)

    def add(self, key: int, work: JobShape) -> None:
        """Take in a job, behind those that came before."""
        job = self._jobs[key] = Progress(key, work)
        self._lane(work).rotation.append(job)

    def remove(self, key: int) -> int:
        """Drop a job and free its slots; the evaluations that were not handed out."""
        job = self._jobs.pop(key)
        self._lane(job.work).drop(job)
        return job.remaining

    def held(self, key: int) -> tuple[int, dict[int, int]]:
        """How many rows of a job have started, and the slots, by row, of those yet to end."""
        job = self._jobs[key]
        return job.waiting, {row.row: row.slot for row in job.running}

    def next(self, number: int, burst: float) -> Tick:
        """The rows of the next tick, which may take about `burst` seconds if it has no terms."""
        chains, terms = self._fill(number)
        length = self._length(number, burst)
        units = {key: self._jobs[key].work.units for key in {e.key for e in (*chains, *terms)}}
        ends = [entry for entry in (*chains, *terms) if entry.unit + length == units[entry.key]]
        entries = Counter(entry.key for entry in (*chains, *terms))
        shares = {key: count * length for key, count in entries.items()}
        return Tick(self._queue, chains, terms, ends, shares, length)

    def retire(self, tick: Tick, seconds: float) -> list[int]:
        """The tick is done: slots of rows that ended are free again. Which jobs are over."""
        del seconds  # `latency.Throughput` is told by the engine
        over = []
        for key in {entry.key for entry in tick.ends}:
            job = self._jobs.get(key)
            if job is None:  # removed while the tick ran
                continue
            self._lane(job.work).settle(job)
            if not job.running and job.waiting == job.work.rows:
                over.append(key)
        return over

    def _lane(self, work: JobShape) -> Lane:
        return self._terms if work.parallel else self._chains

    def _length(self, number: int, burst: float) -> int:
        """How many units the entries just chosen advance; their rows are moved on accordingly."""
        if self._terms.rotation:
            return 1
        taken = [job for job in self._chains.rotation if job.tick == number]
        rows = [(job, row) for job in taken for row in job.running[: job.taken]]
        left = min(job.work.units - row.unit for job, row in rows)
        seconds = self._throughput.seconds(len(rows))
        more = min(left, int(burst / seconds)) if seconds else 0
        for _, row in rows:
            row.unit += more
        return 1 + more

    def _fill(self, number: int) -> tuple[list[Entry], list[Entry]]:
        room = self._throughput.batch_size
        kept = 0
        if self._chains.rotation and self._terms.rotation:
            # A share below one row adds up over ticks, so it holds for batches of any size.
            self._term_credit += self._term_share * room
            kept = int(self._term_credit)
            self._term_credit -= kept
        chains = self._chains.take(room - kept, number)
        terms = self._terms.take(room - len(chains), number)
        chains += self._chains.take(room - len(chains) - len(terms), number)
        return chains, terms
