"""Lanes: the jobs of one queue and kind in rotation, and the slots that their rows hold.

A lane deals out rows, a row a turn; `service.engine.scheduling.rows` has the policy that follows.
"""

from collections import deque
from dataclasses import dataclass, field

from service.engine.scheduling.batch import Entry, Work


@dataclass(slots=True)
class Row:
    """A row with a slot, and the unit that is its next."""

    row: int
    slot: int
    unit: int = 0


@dataclass(slots=True)
class Progress:
    """A job on its way: `running` rows hold slots, oldest first; rows from `waiting` on do not."""

    work: Work
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
                entries.append(Entry(job.work.key, row.row, row.slot, row.unit))
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
