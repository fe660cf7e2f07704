"""Jobs for the scheduler, and its ticks run one after another."""

from collections.abc import Iterable
from typing import NamedTuple

from service.engine.scheduling.batch import Entry, JobShape, Queue, Tick
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
        self.throughput: dict[Queue, Throughput] = {}

    def serve(self, queue: Queue, throughput: Throughput, slots: int) -> None:
        self.throughput[queue] = throughput
        super().serve(queue, throughput, slots)

    def retire(self, tick: Tick, seconds: float = 1.0) -> None:
        self.throughput[tick.queue].measure(tick, seconds)
        super().retire(tick, seconds)


def scheduler_of(
    models: Iterable[str], batch_size: int, slots: int, term_share: float = 0.125
) -> Timed:
    """One that serves these, each with so much room, and has measured nothing yet."""
    scheduler = Timed(term_share)
    for name in models:
        scheduler.serve(Queue(name), Throughput(batch_size), slots)
    return scheduler


def chain(key: int, rows: int, units: int, model: str = "m") -> Job:
    return Job(key, JobShape(Queue(model), rows, units))


def data(key: int, rows: int, units: int, model: str = "m") -> Job:
    return Job(key, JobShape(Queue(model), rows, units, parallel=True))


def entries(tick: Tick) -> list[Entry]:
    return [*tick.chains, *tick.terms]


def run_until_done(scheduler: Scheduler, key: int, work: JobShape, limit: int = 10_000) -> int:
    """Ticks until every unit of a job is done."""
    left = work.cost
    for ticks in range(1, limit + 1):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        left -= tick.length * sum(entry.key == key for entry in entries(tick))
        if left == 0:
            return ticks
    raise AssertionError(f"job {key} has {left} units left after {limit} ticks")


def fill(scheduler: Scheduler, ticks: int) -> list[Tick]:
    """Run so many ticks, as long as there is work."""
    ran = []
    for _ in range(ticks):
        tick = scheduler.next()
        if tick is None:
            break
        scheduler.retire(tick)
        ran.append(tick)
    return ran


def ticks_until(scheduler: Scheduler, key: int, row: int = 0, unit: int = 0) -> int:
    """Ticks until one in which this row makes this unit."""
    for ticks in range(1, 100_000):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        if any((e.key, e.row, e.unit) == (key, row, unit) for e in entries(tick)):
            return ticks
    raise AssertionError(f"row {row} of job {key} never came to unit {unit}")
