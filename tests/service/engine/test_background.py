"""Background jobs: they take what others leave, delay none, and are the first to go."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.model import DiffusionModel
from diffusion.samplers import DDIM
from service.engine import Engine
from service.engine.scheduling.batch import JobShape, Lane
from service.engine.scheduling.latency import Throughput
from service.errors import DeadlineExceeded, QueueFull
from tests.service.engine.batches import Timed, scheduler_of
from tests.service.engine.jobs import chains

SHAPES = st.tuples(
    st.sampled_from("ab"),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from("cts"),
    st.booleans(),
)


def serving(batch_size: int, slots: int) -> Timed:
    """Two models with chains, terms and systems."""
    scheduler = scheduler_of("ab", batch_size, slots)
    for model in "ab":
        scheduler.serve(Lane(model, True), Throughput(batch_size), slots)
    return scheduler


def shape(model: str, rows: int, positions: int, kind: str) -> JobShape:
    if kind == "s":
        return JobShape(Lane(model, True), rows, positions, False, 2, (2,) * rows, 2)
    return JobShape(Lane(model), rows, positions, kind == "t")


@given(
    works=st.lists(SHAPES, min_size=1, max_size=8), slots=st.integers(1, 9), every=st.integers(1, 4)
)
def test_all_jobs_end_and_a_batch_is_of_one_sort(
    works: list[tuple[str, int, int, str, bool]], slots: int, every: int
) -> None:
    scheduler = serving(4, slots)
    sorts: dict[int, bool] = {}
    owed: dict[int, int] = {}
    waiting = list(enumerate(works))
    for turn in range(10_000):
        if waiting and (not len(scheduler) or turn % every == 0):
            key, (*numbers, background) = waiting.pop(0)
            made = shape(*numbers)
            scheduler.add(key, made, background)
            sorts[key], owed[key] = background, made.cost
        batch = scheduler.next()
        if batch is None:
            if waiting:
                continue
            break
        assert {sorts[key] for key in batch.shares} == {batch.background}
        for key, count in batch.shares.items():
            owed[key] -= count
        scheduler.retire(batch)
    assert set(owed.values()) == {0}
    assert len(owed) == len(works)


def test_it_waits_while_there_are_others_in_any_lane_and_goes_on_where_it_was() -> None:
    scheduler = serving(4, 64)
    scheduler.add(0, JobShape(Lane("a"), 8, 3), background=True)
    first = scheduler.next()
    assert first is not None
    assert first.background
    scheduler.retire(first)
    scheduler.add(1, JobShape(Lane("b"), 1, 5))
    scheduler.add(2, JobShape(Lane("a", True), 1, 2, False, 2, (2,), 2))
    scheduler.add(3, JobShape(Lane("a"), 2, 4))
    seen = set()
    while len(scheduler) > 1:
        batch = scheduler.next()
        assert batch is not None
        assert not batch.background
        seen |= set(batch.shares)
        scheduler.retire(batch)
    assert seen == {1, 2, 3}
    again = scheduler.next()
    assert again is not None
    assert {entry.row: entry.position for entry in again.chains} != {}
    assert all(
        entry.position > 0 for entry in again.chains if entry.row in {e.row for e in first.chains}
    )


def test_a_lane_of_the_background_earns_nothing_for_the_jobs_that_come() -> None:
    scheduler = serving(4, 64)
    scheduler.add(0, JobShape(Lane("b"), 4, 1000), background=True)
    scheduler.add(1, JobShape(Lane("a"), 4, 1000))
    for _ in range(20):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch, 1.0)
    scheduler.add(2, JobShape(Lane("b"), 4, 1000))
    turns = []
    for _ in range(8):
        batch = scheduler.next()
        assert batch is not None
        turns.append(batch.lane.model)
        scheduler.retire(batch, 1.0)
    assert turns.count("a") == turns.count("b") == 4


def test_slots_are_kept_for_the_others() -> None:
    scheduler = serving(8, 8)
    for key in range(9):
        scheduler.add(key, JobShape(Lane("a"), 4, 100), background=True)
    batch = scheduler.next()
    assert batch is not None
    assert len(batch) == 6  # a quarter of the slots is free
    scheduler.retire(batch)
    scheduler.add(9, JobShape(Lane("a"), 2, 3))
    batch = scheduler.next()
    assert batch is not None
    assert list(batch.shares) == [9]


def test_it_is_accepted_where_the_queue_is_full_and_counts_for_nobody(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(limits={"max_queue_cost": 20}, g=faulty)
    mischief.gate.clear()
    behind = engine.submit(chains(faulty, 3), background=True)
    assert engine.pending == 0
    ahead = engine.submit(chains(faulty, 2, sampler=DDIM(steps=10)))
    with pytest.raises(QueueFull):
        engine.submit(chains(faulty, 1))
    with pytest.raises(QueueFull), engine.reserve(1):
        pass
    with engine.reserve(1, background=True):
        more = engine.submit(chains(faulty, 1), background=True)
    assert engine.pending == 20
    mischief.gate.set()
    for ticket in (ahead, behind, more):
        ticket.result(120)
    assert (engine.pending, engine.held) == (0, 0)
    with pytest.raises(DeadlineExceeded):
        engine.submit(chains(faulty, 1), deadline=0.0, background=True).result(120)


def test_draining_drops_it_and_finishes_the_others(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.gate.clear()
    mischief.entered.clear()
    behind = engine.submit(chains(faulty, 3), background=True)
    assert mischief.entered.wait(120)
    ahead = engine.submit(chains(faulty, 2))
    drained: list[bool] = []
    closing = threading.Thread(target=lambda: drained.append(engine.drain(120)))
    closing.start()
    with pytest.raises(CancelledError):
        behind.result(120)
    mischief.gate.set()
    ahead.result(120)
    closing.join(120)
    assert drained == [True]
