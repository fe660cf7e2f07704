"""Continuous batching of a model's chains and terms: share(job) = min(what it can use, M / jobs).

There are two kinds of row. The positions of a *chain* are its sampling steps, which follow each
other: at most one in a single-step batch. Those of an *example* are terms of its bound, which are
independent: any number in a batch. A row holds a slot from its first position to its last.

- Jobs of a kind take turns, a row per turn, until the batch is full, so each has an equal share of
  it and a job that cannot use all of its share leaves it to the others. A chain job of r rows by n
  steps among J jobs, in batches with room for M rows of their kind, is done in
  n (r J / M + 1) + 1 batches, however long the others are; of terms, whose order is free, in
  (r n + 1) J / M + 1.
- A job advances its oldest rows first and starts a new row only where its share exceeds the rows
  it has running, so slots are held by rows that move. The i-th oldest job never had more than an
  i-th of the batch, so J jobs hold no more than the sum over i of ceil(M / i) slots.
- A quarter of the slots is kept for the first rows of jobs. While a kind has no more jobs than
  that quarter has slots, a new job finds one at once and is in a batch within ceil(J / M) batches,
  whatever runs. Beyond that, new jobs get the slots that rows leave, in the order they came, before
  any job gets a further row: the first of them within n ceil(slots / M) batches, where n is the
  steps of the longest row.
- Chains go first and terms fill the batch. While chains alone could fill it, `term_share` of it is
  kept for terms.
- Background jobs are in a batch only where no other job has a row in it. The slots that their rows
  hold are theirs meanwhile; they take none of the quarter that is kept for first rows.
- Where no terms wait, the chains of a batch advance several steps (a multi-step batch), for about
  as long as the caller's budget: the bookkeeping of a batch takes longer than a small network, and
  a job that waits is delayed by no more than the budget.

Pure Python: no tensors, no threads.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import final

from service.engine.scheduling.batch import Batch, Entry, JobShape, Lane
from service.engine.scheduling.latency import Throughput


@dataclass(slots=True)
class Row:
    """A row with a slot, and the position that is its next."""

    row: int
    slot: int
    position: int = 0


@dataclass(slots=True)
class Progress:
    """A job on its way: `running` rows hold slots, oldest first; rows from `waiting` on do not."""

    key: int
    work: JobShape
    background: bool = False
    running: list[Row] = field(default_factory=list)
    waiting: int = 0
    batch: int = -1
    taken: int = 0

    @property
    def remaining(self) -> int:
        """Positions that have not been scheduled."""
        rows = self.work.rows - self.waiting
        return rows * self.work.positions + sum(
            self.work.positions - row.position for row in self.running
        )

    def usable(self, most: int) -> int:
        """How many rows of a batch it could use, up to `most`."""
        if self.work.parallel:
            return min(most, self.remaining)
        return min(most, len(self.running) + self.work.rows - self.waiting)


class Rotation:
    """The jobs of one kind, which take turns, and the slots that their rows hold."""

    def __init__(self, slots: int) -> None:
        self.free = list(range(slots - 1, -1, -1))
        self.slots, self.kept = slots, -(-slots // 4)
        self._jobs: tuple[deque[Progress], deque[Progress]] = deque(), deque()

    def jobs(self, background: bool) -> deque[Progress]:
        """The jobs that are in the background, or those that are not."""
        return self._jobs[background]

    def take(self, room: int, batch: int, background: bool) -> list[Entry]:
        """Up to `room` entries, a row per turn; the next batch goes on where this one stopped."""
        jobs = self._jobs[background]
        entries: list[Entry] = []
        blocked: list[Progress] = []
        satisfied: list[Progress] = []
        while len(entries) < room and jobs:
            job = jobs.popleft()
            if job.batch != batch:
                job.batch, job.taken = batch, 0
            row = self._next_row(job)
            if row is not None:
                entries.append(Entry(job.key, row.row, row.slot, row.position))
                row.position += 1
                job.taken += 1
                jobs.append(job)
            elif job.taken:
                satisfied.append(job)
            else:
                blocked.append(job)
        # A job that got nothing because no slot was free has the first turn in the next batch.
        jobs.extendleft(reversed(blocked))
        jobs.extend(satisfied)
        return entries

    def _next_row(self, job: Progress) -> Row | None:
        """The job's oldest row that may have an entry in this batch; None where there is none."""
        work, running = job.work, job.running
        if work.parallel:
            if running and running[-1].position < work.positions:
                return running[-1]
        elif job.taken < len(running):
            return running[job.taken]
        # A first row may have any slot; further rows leave a quarter of them to new jobs, and so do
        # those in the background, but for one that is alone.
        further = running or (job.background and len(self.free) < self.slots)
        if job.waiting == work.rows or len(self.free) <= (self.kept if further else 0):
            return None
        row = Row(job.waiting, self.free.pop())
        running.append(row)
        job.waiting += 1
        return row

    def complete(self, job: Progress) -> None:
        """Free the slots of rows whose last position is done."""
        self.free.extend(row.slot for row in job.running if row.position == job.work.positions)
        job.running = [row for row in job.running if row.position < job.work.positions]

    def drop(self, job: Progress) -> None:
        """Take the job out, whatever it was doing."""
        self.free.extend(row.slot for row in job.running)
        self._jobs[job.background].remove(job)


@final
class RowScheduler:
    """The chains and terms of a model.

    Args:
        lane: whose batches these are.
        slots: most chains, and most examples, that hold a slot at once.
        throughput: most rows of a batch, and how long it takes.
        term_share: share of a batch kept for terms while chains could fill it.
    """

    def __init__(self, lane: Lane, slots: int, throughput: Throughput, term_share: float) -> None:
        self._lane, self._term_share = lane, term_share
        self._chains, self._terms = Rotation(slots), Rotation(slots)
        self._jobs: dict[int, Progress] = {}
        self._throughput = throughput
        self._term_credit = 0.0
        self._number = 0  # of the batch

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

    def demand(self, background: bool) -> float:
        """How many batches its jobs could fill now, at least one: a batch is never less."""
        jobs = (job for job in self._jobs.values() if job.background == background)
        usable = sum(job.usable(self._throughput.batch_size) for job in jobs)
        return max(1.0, usable / self._throughput.batch_size)

    def add(self, key: int, work: JobShape, background: bool) -> None:
        """Take in a job, behind those that came before."""
        job = self._jobs[key] = Progress(key, work, background)
        self._rotation(work).jobs(background).append(job)

    def remove(self, key: int) -> int:
        """Drop a job and free its slots; the evaluations that were not scheduled."""
        job = self._jobs.pop(key)
        self._rotation(job.work).drop(job)
        return job.remaining

    def slots_of(self, key: int) -> tuple[int, dict[int, int]]:
        """How many rows of a job have started, and the slots, by row, of those yet to end."""
        job = self._jobs[key]
        return job.waiting, {row.row: row.slot for row in job.running}

    def next(self, budget: float, background: bool) -> Batch:
        """The next batch, which may take about `budget` seconds if it has no terms.

        Args:
            budget: seconds.
            background: whether it is of background jobs; it is in any case where all others wait
                for slots that these hold.
        """
        self._number += 1
        chains, terms = self._fill(background)
        if not (chains or terms):
            background = True
            chains, terms = self._fill(background)
        num_steps = self._extend(budget, background)
        entries = [*chains, *terms]
        counts = Counter(entry.key for entry in entries)
        positions = {key: self._jobs[key].work.positions for key in counts}
        ends = [entry for entry in entries if entry.position + num_steps == positions[entry.key]]
        shares = {key: count * num_steps for key, count in counts.items()}
        return Batch(self._lane, chains, terms, ends, shares, num_steps, background=background)

    def retire(self, batch: Batch, seconds: float) -> list[int]:
        """Free the slots of rows that ended in a batch; returns the jobs that are over."""
        del seconds  # `Throughput` has them
        over = []
        for key in {entry.key for entry in batch.ends}:
            job = self._jobs.get(key)
            if job is None:  # removed while the batch ran
                continue
            self._rotation(job.work).complete(job)
            if not job.running and job.waiting == job.work.rows:
                over.append(key)
        return over

    def _rotation(self, work: JobShape) -> Rotation:
        return self._terms if work.parallel else self._chains

    def _extend(self, budget: float, background: bool) -> int:
        """Advance the chosen rows further within this batch; returns its number of steps."""
        if self._terms.jobs(background):
            return 1
        taken = [job for job in self._chains.jobs(background) if job.batch == self._number]
        rows = [(job, row) for job in taken for row in job.running[: job.taken]]
        left = min(job.work.positions - row.position for job, row in rows)
        seconds = self._throughput.seconds(len(rows))
        more = min(left, int(budget / seconds)) if seconds else 0
        for _, row in rows:
            row.position += more
        return 1 + more

    def _fill(self, background: bool) -> tuple[list[Entry], list[Entry]]:
        room = self._throughput.batch_size
        kept = 0
        if self._chains.jobs(background) and self._terms.jobs(background):
            # A share below one row adds up over batches, so it holds for batches of any size.
            self._term_credit += self._term_share * room
            kept = int(self._term_credit)
            self._term_credit -= kept
        chains = self._chains.take(room - kept, self._number, background)
        terms = self._terms.take(room - len(chains), self._number, background)
        left = room - len(chains) - len(terms)
        chains += self._chains.take(left, self._number, background)
        return chains, terms
