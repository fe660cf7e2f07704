"""Jobs for the scheduler, and its ticks run one after another."""

from collections.abc import Iterable

from service.engine.scheduling.batch import Entry, Queue, Tick, Work
from service.engine.scheduling.scheduler import Scheduler


def scheduler_of(
    models: Iterable[str], batch_size: int, slots: int, term_share: float = 0.125
) -> Scheduler:
    """One that serves these, each with so much room, and knows nothing of their pace."""
    scheduler = Scheduler(term_share)
    for name in models:
        scheduler.serve(Queue(name), batch_size, slots)
    return scheduler


def chain(key: int, rows: int, units: int, model: str = "m") -> Work:
    return Work(key, Queue(model), rows, units, parallel=False)


def data(key: int, rows: int, units: int, model: str = "m") -> Work:
    return Work(key, Queue(model), rows, units, parallel=True)


def entries(tick: Tick) -> list[Entry]:
    return [*tick.chains, *tick.terms]


def run_until_done(scheduler: Scheduler, key: int, work: Work, limit: int = 10_000) -> int:
    """Ticks until every unit of a job is done."""
    left = work.rows * work.units
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
