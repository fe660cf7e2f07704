"""A tick of many steps: while nobody else waits, and no longer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduler import BURST_SECONDS, Scheduler
from tests.service.engine.ticks import chain, data


def test_a_lone_job_of_a_quick_model_advances_many_steps_a_tick() -> None:
    """For about BURST_SECONDS, to its end and not past it; company ends the burst."""
    scheduler = Scheduler("m", batch_size=4, slots=10)
    scheduler.add(chain(0, rows=4, units=100))
    lengths: list[int] = []
    for _ in range(3):
        tick = scheduler.next()
        assert tick is not None
        lengths.append(tick.length)
        scheduler.retire(tick, BURST_SECONDS / 30 * tick.length)
    assert lengths == [1, 31, 31]
    scheduler.add(chain(1, rows=1, units=5))
    tick = scheduler.next()
    assert tick is not None
    assert (tick.length, {entry.unit for entry in tick.chains}) == (1, {63, 0})
    scheduler.retire(tick)
    scheduler.remove(1)
    tick = scheduler.next()  # that was a slow one
    assert tick is not None
    assert tick.length == 1
    scheduler.retire(tick, BURST_SECONDS / 1000)
    tick = scheduler.next()  # its rows are no longer in step: it ends with the first that does
    assert tick is not None
    assert tick.length == 100 - 65
    assert [entry.unit for entry in tick.chains] == [65, 65, 65, 64]
    assert len(tick.ends) == 3
    scheduler.retire(tick)
    tick = scheduler.next()
    assert tick is not None
    assert [entry.unit for entry in tick.ends] == [99]
    scheduler.retire(tick)
    assert scheduler.next() is None


def test_where_others_wait_there_is_no_burst() -> None:
    """More rows than a batch holds, of one job or of two, or terms to evaluate."""
    for works in (
        [chain(0, rows=5, units=100)],
        [chain(0, rows=1, units=100), data(1, rows=1, units=1000)],
        [chain(0, rows=3, units=100), chain(1, rows=2, units=100)],
    ):
        scheduler = Scheduler("m", batch_size=4, slots=10)
        for work in works:
            scheduler.add(work)
        for _ in range(50):
            tick = scheduler.next()
            assert tick is not None
            assert tick.length == 1
            scheduler.retire(tick, 1e-6)


@pytest.mark.xfail(
    reason="a job that had no turn in a tick is moved on with those that had", strict=True
)
@given(jobs=st.integers(1, 12), units=st.integers(1, 40), batch_size=st.integers(1, 8))
def test_a_burst_moves_only_rows_that_are_in_it(jobs: int, units: int, batch_size: int) -> None:
    scheduler = Scheduler("m", batch_size, slots=64)
    for key in range(jobs):
        scheduler.add(chain(key, rows=1, units=units))
    done = [0] * jobs
    while (tick := scheduler.next()) is not None:
        for entry in tick.chains:
            assert entry.unit == done[entry.key]
            done[entry.key] += tick.length
        scheduler.retire(tick, BURST_SECONDS / 20 * tick.length)
    assert done == [units] * jobs
