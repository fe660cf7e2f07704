"""The scheduler, without tensors: nothing twice, nothing lost, slots that are given back."""

import random
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduling.batch import JobShape, Lane
from tests.service.engine.batches import Job, chain, entries, scheduler_of

WORKS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 12), st.integers(1, 6), st.booleans()),
    min_size=1,
    max_size=8,
)


@given(
    works=WORKS,
    batch_size=st.integers(1, 9),
    slots=st.integers(1, 12),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_every_position_once_in_order_within_its_own_slot(
    works: list[tuple[str, int, int, bool]], batch_size: int, slots: int, share: float, seed: int
) -> None:
    dice = random.Random(seed)
    scheduler = scheduler_of("ab", batch_size, slots, share)
    waiting = [Job(key, JobShape(Lane(work[0]), *work[1:])) for key, work in enumerate(works)]
    known = {work.key: work for work in waiting}
    done: dict[tuple[int, int], list[int]] = defaultdict(list)
    holder: dict[tuple[str, bool, int], tuple[int, int]] = {}
    cancelled: set[int] = set()
    for _ in range(10_000):
        while waiting and (len(scheduler) == 0 or dice.random() < 0.3):
            scheduler.add(*waiting.pop(0))
        if dice.random() < 0.02:
            key = dice.randrange(len(works))
            if key in known and all(key != work.key for work in waiting):
                scheduler.remove(key)
                cancelled.add(key)
                holder = {place: who for place, who in holder.items() if who[0] != key}
        batch = scheduler.next()
        if batch is None:
            if not waiting:
                break
            continue
        assert 1 <= len(batch) <= batch_size
        assert len(set(entries(batch))) == len(batch)
        for entry in entries(batch):
            work = known[entry.key]
            assert work.shape.lane == batch.lane
            assert (entry in batch.terms) == work.shape.parallel
            assert entry.key not in cancelled
            positions = done[entry.key, entry.row]
            assert entry.position == len(positions)
            positions.extend(range(entry.position, entry.position + batch.num_steps))
            place = (batch.lane.model, work.shape.parallel, entry.slot)
            assert 0 <= entry.slot < slots
            assert holder.setdefault(place, (entry.key, entry.row)) == (entry.key, entry.row)
            assert len(positions) <= work.shape.positions
            assert (entry in batch.ends) == (len(positions) == work.shape.positions)
        rows_of_chains = [(entry.key, entry.row) for entry in batch.chains]
        assert len(set(rows_of_chains)) == len(rows_of_chains)
        for entry in batch.ends:
            del holder[batch.lane.model, known[entry.key].shape.parallel, entry.slot]
        assert batch.num_steps == 1 or not batch.terms
        scheduler.retire(batch, dice.choice((1e-3, 0.01, 1.0)) * batch.num_steps)
        assert scheduler.rows_running == len(holder)
    assert len(scheduler) == scheduler.rows_running == scheduler.rows_waiting == 0
    for work in known.values():
        if work.key not in cancelled:
            for row in range(work.shape.rows):
                assert done[work.key, row] == list(range(work.shape.positions))


def test_a_job_holds_no_more_slots_than_it_can_move() -> None:
    scheduler = scheduler_of("m", batch_size=8, slots=100)
    scheduler.add(*chain(0, rows=90, positions=10))
    for _ in range(25):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
        assert scheduler.rows_running <= 8


def test_removing_frees_slots_and_says_what_was_left() -> None:
    scheduler = scheduler_of("m", batch_size=4, slots=4)
    scheduler.add(*chain(0, rows=10, positions=5))
    batch = scheduler.next()
    assert batch is not None
    assert scheduler.remove(0) == 10 * 5 - 3  # one of the slots is a newcomer's
    scheduler.retire(batch)
    assert scheduler.rows_running == 0
    assert scheduler.next() is None
    assert scheduler.remove(0) == 0
    for key in range(4):
        scheduler.add(*chain(key, rows=1, positions=1))
    batch = scheduler.next()
    assert batch is not None
    assert sorted(entry.slot for entry in batch.chains) == [0, 1, 2, 3]


def test_a_limit_holds_from_the_next_batch() -> None:
    scheduler = scheduler_of("m", batch_size=8, slots=8)
    scheduler.add(*chain(0, rows=8, positions=3))
    scheduler.throughput[Lane("m")].batch_size = 3
    batch = scheduler.next()
    assert batch is not None
    assert len(batch) == 3


def test_work_is_at_least_one_unit() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        chain(0, rows=0, positions=3)


def test_which_rows_have_begun_and_which_hold_slots() -> None:
    scheduler = scheduler_of("m", batch_size=2, slots=3)
    scheduler.add(*chain(0, rows=3, positions=2))
    assert scheduler.slots_of(0) == (0, {})
    begun = []
    for _ in range(3):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
        begun.append(scheduler.slots_of(0))
    assert begun[0][0] == 2
    assert set(begun[0][1]) == {0, 1}
    assert begun[1] == (2, {})
    assert begun[2][0] == 3
    assert set(begun[2][1]) == {2}
    assert {*begun[0][1].values()} == {0, 1}
