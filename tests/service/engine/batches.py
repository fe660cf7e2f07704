"""Jobs for the scheduler, and its batches run one after another."""

from collections.abc import Iterable
from typing import NamedTuple

from service.engine.scheduling.batch import Batch, Entry, JobShape, Lane
from service.engine.scheduling.latency import Throughput
from service.engine.scheduling.scheduler import Scheduler


class Job(NamedTuple):
    """A job's key and shape, as the scheduler is given them."""

    key: int
    shape: JobShape


class Timed(Scheduler):
    """A scheduler whose measured batches are fed to its queues' clocks, as the engine does."""

    def __init__(self, term_share: float = 0.125) -> None:
        super().__init__(term_share)
        self.throughput: dict[Lane, Throughput] = {}

    def serve(self, lane: Lane, throughput: Throughput, slots: int) -> None:
        self.throughput[lane] = throughput
        super().serve(lane, throughput, slots)

    def retire(self, batch: Batch, seconds: float = 1.0) -> None:
        self.throughput[batch.lane].measure(batch, seconds)
        super().retire(batch, seconds)


def scheduler_of(
    models: Iterable[str], batch_size: int, slots: int, term_share: float = 0.125
) -> Timed:
    """One that serves these, each with so much room, and has measured nothing yet."""
    scheduler = Timed(term_share)
    for name in models:
        scheduler.serve(Lane(name), Throughput(batch_size), slots)
    return scheduler


def chain(key: int, rows: int, positions: int, model: str = "m") -> Job:
    return Job(key, JobShape(Lane(model), rows, positions))


def data(key: int, rows: int, positions: int, model: str = "m") -> Job:
    return Job(key, JobShape(Lane(model), rows, positions, parallel=True))


def entries(batch: Batch) -> list[Entry]:
    return [*batch.chains, *batch.terms]


def run_until_done(scheduler: Scheduler, key: int, work: JobShape, limit: int = 10_000) -> int:
    """Batches until every position of a job is done."""
    left = work.cost
    for batches in range(1, limit + 1):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
        left -= batch.num_steps * sum(entry.key == key for entry in entries(batch))
        if left == 0:
            return batches
    raise AssertionError(f"job {key} has {left} positions left after {limit} batches")


def fill(scheduler: Scheduler, batches: int) -> list[Batch]:
    """Run so many batches, as long as there is work."""
    ran = []
    for _ in range(batches):
        batch = scheduler.next()
        if batch is None:
            break
        scheduler.retire(batch)
        ran.append(batch)
    return ran


def batches_until(scheduler: Scheduler, key: int, row: int = 0, position: int = 0) -> int:
    """Batches until one in which this row makes this position."""
    for batches in range(1, 100_000):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
        if any((e.key, e.row, e.position) == (key, row, position) for e in entries(batch)):
            return batches
    raise AssertionError(f"row {row} of job {key} never came to position {position}")
