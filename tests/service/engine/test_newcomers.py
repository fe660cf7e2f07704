"""Who comes last finds a slot, whatever those hold who came before."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduling.batch import JobShape, Lane
from tests.service.engine.batches import batches_until, chain, entries, fill, scheduler_of


@pytest.mark.parametrize("slots", [8, 12, 32])
def test_a_large_job_does_not_lock_a_newcomer_out(slots: int) -> None:
    scheduler = scheduler_of("m", batch_size=8, slots=slots)
    scheduler.add(*chain(0, rows=600, positions=1000))
    fill(scheduler, 50)
    scheduler.add(*chain(1, rows=1, positions=20))
    assert batches_until(scheduler, 1) == 1
    assert batches_until(scheduler, 1, position=19) == 19


JOBS = st.tuples(st.integers(1, 40), st.integers(1, 30), st.booleans(), st.integers(0, 3))


@given(
    jobs=st.lists(JOBS, max_size=40),
    batch_size=st.integers(1, 9),
    slots=st.integers(1, 60),
    share=st.sampled_from([0.125, 0.5]),
    rows=st.integers(1, 9),
    parallel=st.booleans(),
)
def test_a_newcomer_is_served_at_once_while_its_kind_has_no_more_jobs_than_slots_kept(
    jobs: list[tuple[int, int, bool, int]],
    batch_size: int,
    slots: int,
    share: float,
    rows: int,
    parallel: bool,
) -> None:
    scheduler = scheduler_of("m", batch_size, slots, share)
    kinds: dict[int, bool] = {}
    left: dict[int, int] = {}
    for key, (count, positions, kind, pause) in enumerate(jobs):
        alive = [kinds[other] for other, units_left in left.items() if units_left]
        if alive.count(kind) < -(-slots // 4) - 1:
            kinds[key], left[key] = kind, count * positions
            scheduler.add(key, JobShape(Lane("m"), count, positions, kind))
        for batch in fill(scheduler, pause):
            for entry in entries(batch):
                left[entry.key] -= 1
    scheduler.add(999, JobShape(Lane("m"), rows, 5, parallel))
    alive = [kinds[other] for other, units_left in left.items() if units_left]
    others, alone = alive.count(parallel), (not parallel) not in alive
    room = batch_size if alone else batch_size * (share if parallel else 1 - share)
    assert batches_until(scheduler, 999) <= math.ceil((others + 1 + (not alone)) / room)


@given(
    longer=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=60),
    batch_size=st.integers(1, 8),
    slots=st.integers(1, 12),
    positions=st.integers(1, 20),
)
def test_without_a_slot_newcomers_come_in_order_and_within_bounded_batches(
    longer: list[tuple[int, int]], batch_size: int, slots: int, positions: int
) -> None:
    scheduler = scheduler_of("m", batch_size, slots)
    for key, (rows, pause) in enumerate(longer):
        scheduler.add(*chain(key, rows, positions))
        fill(scheduler, pause)
    begun: list[int] = []
    quiet = 0
    while (batch := scheduler.next()) is not None:
        scheduler.retire(batch)
        new = [entry.key for entry in batch.chains if (entry.row, entry.position) == (0, 0)]
        begun += new
        quiet = 0 if new or batch.ends else quiet + 1
        assert quiet <= positions * math.ceil(slots / batch_size)
    assert begun == sorted(begun)
