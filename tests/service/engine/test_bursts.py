"""A tick of many steps."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduling.batch import Queue
from service.engine.scheduling.scheduler import BURST_SECONDS
from tests.service.engine.ticks import chain, data, scheduler_of


def test_a_lone_job_of_a_quick_model_advances_many_steps_a_tick() -> None:
    """For about BURST_SECONDS, to the first row's end and not past it."""
    scheduler = scheduler_of("m", batch_size=4, slots=10)
    scheduler.add(*chain(0, rows=4, units=100))
    lengths: list[int] = []
    for _ in range(3):
        tick = scheduler.next()
        assert tick is not None
        lengths.append(tick.length)
        scheduler.retire(tick, BURST_SECONDS / 30.5 * tick.length)
    assert lengths == [1, 31, 31]
    scheduler.add(*chain(1, rows=1, units=5))
    tick = scheduler.next()
    assert tick is not None
    assert (tick.length, [entry.unit for entry in tick.chains]) == (5, [63, 0, 63, 63])
    scheduler.retire(tick)
    tick = scheduler.next()  # that was a slow one
    assert tick is not None
    assert tick.length == 1
    for _ in range(10):  # and these are quick
        scheduler.throughput[tick.queue].measure(replace(tick, length=100, shares={0: 400}), 1e-9)
    scheduler.retire(tick, 1e-9)
    tick = scheduler.next()  # its rows are no longer in step: it ends with the first that does
    assert tick is not None
    assert tick.length == 100 - 69
    assert [entry.unit for entry in tick.chains] == [69, 69, 69, 64]
    assert len(tick.ends) == 3
    scheduler.retire(tick, 1e-9)
    tick = scheduler.next()
    assert tick is not None
    assert [(entry.unit, tick.length) for entry in tick.ends] == [(95, 5)]
    scheduler.retire(tick)
    assert scheduler.next() is None


def test_a_model_that_was_timed_at_start_bursts_at_once() -> None:
    """As long as that allows; of more rows than were timed, as if each took its share."""
    scheduler = scheduler_of("m", batch_size=8, slots=32)
    scheduler.throughput[Queue("m")].seed(2, BURST_SECONDS / 40.5)
    scheduler.add(*chain(0, rows=2, units=100))
    tick = scheduler.next()
    assert tick is not None
    assert tick.length == 41
    scheduler.retire(tick, BURST_SECONDS / 40.5 * tick.length)
    scheduler.add(*chain(1, rows=6, units=100))
    tick = scheduler.next()
    assert tick is not None
    assert (len(tick), tick.length) == (8, 11)


def test_beside_terms_there_is_no_burst() -> None:
    scheduler = scheduler_of("m", batch_size=4, slots=10)
    for work in (chain(0, rows=1, units=100), data(1, rows=1, units=1000)):
        scheduler.add(*work)
    for _ in range(50):
        tick = scheduler.next()
        assert tick is not None
        assert tick.length == 1
        scheduler.retire(tick, 1e-6)


@given(
    jobs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40)), min_size=1, max_size=12),
    batch_size=st.integers(1, 8),
)
def test_a_burst_moves_only_rows_that_are_in_it(
    jobs: list[tuple[int, int]], batch_size: int
) -> None:
    """And each of them to its end, however many wait for a turn."""
    scheduler = scheduler_of("m", batch_size, slots=64)
    for key, (rows, units) in enumerate(jobs):
        scheduler.add(*chain(key, rows, units))
    done = {(key, row): 0 for key, (rows, _) in enumerate(jobs) for row in range(rows)}
    while (tick := scheduler.next()) is not None:
        for entry in tick.chains:
            assert entry.unit == done[entry.key, entry.row]
            done[entry.key, entry.row] += tick.length
        ended = {(entry.key, entry.row) for entry in tick.ends}
        assert ended == {
            (e.key, e.row) for e in tick.chains if done[e.key, e.row] == jobs[e.key][1]
        }
        scheduler.retire(tick, BURST_SECONDS / 20 * tick.length)
    assert all(units == jobs[key][1] for (key, _), units in done.items())
