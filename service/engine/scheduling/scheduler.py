"""Which rows have the next turn of the device: the earliest clock's, seconds / batches asked for.

Every job is so many rows of so many units of work. A *tick* is of one queue: the chains and terms
of a model, which share it (`scheduling.rows`), or its systems of particles, which have ticks of
their own (`scheduling.gangs`).

Queues take turns in proportion: each tick's seconds, divided by how many batches the queue's jobs
could fill, advance the queue's clock, and the earliest clock goes next. So tiny models are not held
up by the long ticks of large ones, nor samples by those of systems: beside one job that fills no
more than a batch, systems that fill none either have half of the time, whatever their steps cost.

Pure Python: no tensors, no time, no threads. The caller says how long a tick took.
"""

from service.engine.scheduling.batch import JobShape, Queue, Tick
from service.engine.scheduling.gangs import Waves
from service.engine.scheduling.latency import Throughput
from service.engine.scheduling.rows import Shared

BURST_SECONDS = 0.02  # of a tick that goes on for several units


class Scheduler:
    """Jobs in, ticks out.

    Args:
        term_share: share of a batch kept for terms while chains could fill it.
    """

    def __init__(self, term_share: float = 0.125) -> None:
        self._queues: dict[Queue, Shared | Waves] = {}
        self._clocks: dict[Queue, float] = {}
        self._jobs: dict[int, Queue] = {}
        self._term_share = term_share
        self._now = 0.0
        self._tick = 0

    def __len__(self) -> int:
        """How many jobs are not finished."""
        return len(self._jobs)

    @property
    def rows_running(self) -> int:
        """Rows that hold a slot, and systems on their way."""
        return sum(queue.running for queue in self._queues.values())

    @property
    def rows_waiting(self) -> int:
        """Rows that have not started."""
        return sum(queue.waiting for queue in self._queues.values())

    def serve(self, queue: Queue, throughput: Throughput, slots: int) -> None:
        """Take in jobs of a queue, with this room of its own.

        Args:
            queue: its name.
            throughput: most rows of a batch, and how long one takes.
            slots: most chains, and most examples, that hold a slot at once; of systems, particles.
        """
        self._clocks[queue] = 0.0
        if queue.systems:
            self._queues[queue] = Waves(queue, slots, throughput)
        else:
            self._queues[queue] = Shared(queue, slots, throughput, self._term_share)

    def add(self, key: int, work: JobShape) -> None:
        """Take in a job; `key` names it, unique among those that are not finished."""
        queue = self._queues[work.queue]
        if not len(queue):
            # Time spent idle earns nothing: it joins the others where they are now.
            self._clocks[work.queue] = max(self._clocks[work.queue], self._now)
        self._jobs[key] = work.queue
        queue.add(key, work)

    def remove(self, key: int) -> int:
        """Drop a job (finished or not, known or not) and free what it holds.

        Returns:
            The network evaluations it had left.
        """
        name = self._jobs.pop(key, None)
        return 0 if name is None else self._queues[name].remove(key)

    def held(self, key: int) -> tuple[int, dict[int, int]]:
        """How many rows of a job have started, and the slots, by row, of those yet to end."""
        return self._queues[self._jobs[key]].held(key)

    def next(self) -> Tick | None:
        """The rows of the next tick, or None when nothing is left to do. Call `retire` after it."""
        asked = [name for name, queue in self._queues.items() if len(queue)]
        if not asked:
            return None
        name = min(asked, key=self._clocks.__getitem__)
        self._now = self._clocks[name]
        self._tick += 1
        return self._queues[name].next(self._tick, BURST_SECONDS)

    def retire(self, tick: Tick, seconds: float = 1.0) -> None:
        """The tick is done, in so many seconds: what rows that ended held is free again."""
        queue = self._queues[tick.queue]
        self._clocks[tick.queue] += seconds / queue.demand()
        for key in queue.retire(tick, seconds):
            self.remove(key)
