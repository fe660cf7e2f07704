"""A batch of many steps."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduling.batch import Lane
from service.engine.scheduling.scheduler import MULTI_STEP_SECONDS
from tests.service.engine.batches import chain, data, scheduler_of


def test_a_lone_job_of_a_quick_model_advances_many_steps_a_batch() -> None:
    """For about MULTI_STEP_SECONDS, to the first row's end and not past it."""
    scheduler = scheduler_of("m", batch_size=4, slots=10)
    scheduler.add(*chain(0, rows=4, positions=100))
    lengths: list[int] = []
    for _ in range(3):
        batch = scheduler.next()
        assert batch is not None
        lengths.append(batch.num_steps)
        scheduler.retire(batch, MULTI_STEP_SECONDS / 30.5 * batch.num_steps)
    assert lengths == [1, 31, 31]
    scheduler.add(*chain(1, rows=1, positions=5))
    batch = scheduler.next()
    assert batch is not None
    assert (batch.num_steps, [entry.position for entry in batch.chains]) == (5, [63, 0, 63, 63])
    scheduler.retire(batch)
    batch = scheduler.next()  # that was a slow one
    assert batch is not None
    assert batch.num_steps == 1
    for _ in range(10):  # and these are quick
        scheduler.throughput[batch.lane].measure(
            replace(batch, num_steps=100, shares={0: 400}), 1e-9
        )
    scheduler.retire(batch, 1e-9)
    batch = scheduler.next()  # its rows are no longer in step: it ends with the first that does
    assert batch is not None
    assert batch.num_steps == 100 - 69
    assert [entry.position for entry in batch.chains] == [69, 69, 69, 64]
    assert len(batch.ends) == 3
    scheduler.retire(batch, 1e-9)
    batch = scheduler.next()
    assert batch is not None
    assert [(entry.position, batch.num_steps) for entry in batch.ends] == [(95, 5)]
    scheduler.retire(batch)
    assert scheduler.next() is None


def test_a_model_that_was_timed_at_start_bursts_at_once() -> None:
    """As long as that allows; of more rows than were timed, as if each took its share."""
    scheduler = scheduler_of("m", batch_size=8, slots=32)
    scheduler.throughput[Lane("m")].seed(2, MULTI_STEP_SECONDS / 40.5)
    scheduler.add(*chain(0, rows=2, positions=100))
    batch = scheduler.next()
    assert batch is not None
    assert batch.num_steps == 41
    scheduler.retire(batch, MULTI_STEP_SECONDS / 40.5 * batch.num_steps)
    scheduler.add(*chain(1, rows=6, positions=100))
    batch = scheduler.next()
    assert batch is not None
    assert (len(batch), batch.num_steps) == (8, 11)


def test_beside_terms_there_is_no_burst() -> None:
    scheduler = scheduler_of("m", batch_size=4, slots=10)
    for work in (chain(0, rows=1, positions=100), data(1, rows=1, positions=1000)):
        scheduler.add(*work)
    for _ in range(50):
        batch = scheduler.next()
        assert batch is not None
        assert batch.num_steps == 1
        scheduler.retire(batch, 1e-6)


@given(
    jobs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40)), min_size=1, max_size=12),
    batch_size=st.integers(1, 8),
)
def test_a_burst_moves_only_rows_that_are_in_it(
    jobs: list[tuple[int, int]], batch_size: int
) -> None:
    """And each of them to its end, however many wait for a turn."""
    scheduler = scheduler_of("m", batch_size, slots=64)
    for key, (rows, positions) in enumerate(jobs):
        scheduler.add(*chain(key, rows, positions))
    done = {(key, row): 0 for key, (rows, _) in enumerate(jobs) for row in range(rows)}
    while (batch := scheduler.next()) is not None:
        for entry in batch.chains:
            assert entry.position == done[entry.key, entry.row]
            done[entry.key, entry.row] += batch.num_steps
        ended = {(entry.key, entry.row) for entry in batch.ends}
        assert ended == {
            (e.key, e.row) for e in batch.chains if done[e.key, e.row] == jobs[e.key][1]
        }
        scheduler.retire(batch, MULTI_STEP_SECONDS / 20 * batch.num_steps)
    assert all(positions == jobs[key][1] for (key, _), positions in done.items())
