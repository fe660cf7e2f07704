"""Weighted fair queueing: the lane with the earliest virtual time has the next batch.

    virtual time of a lane += seconds of its batch / how many batches its jobs could fill

A *lane* is the key of jobs that may share a batch: the chains and terms of a model, or its particle
systems. Each lane has a scheduler of its own: `scheduling.rows` or `scheduling.gangs`.

So small models do not wait for the long batches of large ones, nor samples for those of particle
systems: where neither could fill more than a batch, each has half of the time, whatever its steps
cost. A lane that was idle joins at the virtual time of now.

Background jobs have the batches that no other job could use: a lane that has only such jobs waits
while another has others, and within a lane its scheduler sees to it. So they delay a job that comes
by the batch that is under way.

Pure Python: no tensors, no threads. The caller passes how long a batch took.
"""

from collections import Counter

from service.engine.scheduling.batch import Batch, JobShape, Lane
from service.engine.scheduling.gangs import GangScheduler
from service.engine.scheduling.latency import Throughput
from service.engine.scheduling.rows import RowScheduler

MULTI_STEP_SECONDS = 0.02  # that a batch of several steps may take


class Scheduler:
    """Jobs in, batches out.

    Args:
        term_share: share of a batch kept for terms while chains could fill it.
    """

    def __init__(self, term_share: float = 0.125) -> None:
        self._schedulers: dict[Lane, RowScheduler | GangScheduler] = {}
        self._busy: dict[Lane, RowScheduler | GangScheduler] = {}  # those with jobs
        self._virtual_time: dict[Lane, float] = {}
        self._jobs: dict[int, tuple[Lane, bool]] = {}
        self._foreground: Counter[Lane] = (
            Counter()
        )  # lanes with jobs that are not in the background
        self._term_share = term_share
        self._now = 0.0

    def __len__(self) -> int:
        """How many jobs are not finished."""
        return len(self._jobs)

    @property
    def rows_running(self) -> int:
        """Rows that hold a slot, and systems on their way."""
        return sum(scheduler.running for scheduler in self._busy.values())

    @property
    def rows_waiting(self) -> int:
        """Rows that have not started."""
        return sum(scheduler.waiting for scheduler in self._busy.values())

    def serve(self, lane: Lane, throughput: Throughput, slots: int) -> None:
        """Take jobs of a lane from now on.

        Args:
            lane: which.
            throughput: most rows of a batch, and how long one takes.
            slots: most chains, and most examples, that hold a slot at once; of systems, particles.
        """
        self._virtual_time[lane] = 0.0
        if lane.systems:
            self._schedulers[lane] = GangScheduler(lane, slots, throughput)
        else:
            self._schedulers[lane] = RowScheduler(lane, slots, throughput, self._term_share)

    def idle(self, lane: Lane) -> bool:
        """Whether the lane has no jobs."""
        return lane not in self._busy

    def close(self, lane: Lane) -> None:
        """Forget a lane, which has no jobs and takes none."""
        self._schedulers.pop(lane, None)
        self._virtual_time.pop(lane, None)

    def add(self, key: int, work: JobShape, background: bool = False) -> None:
        """Take in a job; `key` names it, unique among those that are not finished."""
        lane = work.lane
        if lane not in (self._busy if background else self._foreground):
            # Time spent idle earns nothing: it joins the others where they are now.
            self._virtual_time[lane] = max(self._virtual_time[lane], self._now)
        self._busy[lane] = self._schedulers[lane]
        self._jobs[key] = lane, background
        if not background:
            self._foreground[lane] += 1
        self._busy[lane].add(key, work, background)

    def remove(self, key: int) -> int:
        """Drop a job (finished or not, known or not) and free what it holds.

        Returns:
            The network evaluations it had left.
        """
        found = self._jobs.pop(key, None)
        if found is None:
            return 0
        lane, background = found
        if not background:
            self._foreground[lane] -= 1
            if not self._foreground[lane]:
                del self._foreground[lane]
        left = self._busy[lane].remove(key)
        if not len(self._busy[lane]):
            del self._busy[lane]
        return left

    def slots_of(self, key: int) -> tuple[int, dict[int, int]]:
        """How many rows of a job have started, and the slots, by row, of those yet to end."""
        return self._busy[self._jobs[key][0]].slots_of(key)

    def next(self) -> Batch | None:
        """The next batch, or None when nothing is left to do. Call `retire` after it."""
        if not self._busy:
            return None
        background = not self._foreground
        lanes = self._busy if background else self._foreground
        lane = min(lanes, key=self._virtual_time.__getitem__)
        self._now = self._virtual_time[lane]
        return self._busy[lane].next(MULTI_STEP_SECONDS, background)

    def retire(self, batch: Batch, seconds: float = 1.0) -> None:
        """Free what the rows that ended in a batch held; charge its seconds to its lane."""
        scheduler = self._schedulers[batch.lane]
        self._virtual_time[batch.lane] += seconds / scheduler.demand(batch.background)
        for key in scheduler.retire(batch, seconds):
            self.remove(key)
