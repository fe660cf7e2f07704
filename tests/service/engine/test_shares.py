"""Equal shares: of jobs, of kinds, of models; who cannot use his leaves it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduling.batch import JobShape, Queue
from tests.service.engine.ticks import Job, chain, data, fill, run_until_done, scheduler_of


def test_jobs_share_a_full_batch_equally_and_leave_what_they_cannot_use() -> None:
    scheduler = scheduler_of("m", batch_size=12, slots=100)
    for key, rows in enumerate([100, 2, 100]):
        scheduler.add(*chain(key, rows, units=50))
    got = [0, 0, 0]
    for _ in range(40):
        tick = scheduler.next()
        assert tick is not None
        assert len(tick) == 12
        scheduler.retire(tick)
        for entry in tick.chains:
            got[entry.key] += 1
    assert got == [200, 80, 200]


def test_many_jobs_take_turns() -> None:
    scheduler = scheduler_of("m", batch_size=4, slots=100)
    for key in range(10):
        scheduler.add(*chain(key, rows=3, units=1000))
    got = [0] * 10
    for _ in range(50):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        for entry in tick.chains:
            got[entry.key] += 1
    assert got == [20] * 10


@pytest.mark.parametrize("long_jobs", [1, 3, 12])
@pytest.mark.parametrize(("rows", "units"), [(1, 20), (4, 20), (16, 5)])
def test_a_short_job_behind_long_ones_finishes_in_bounded_ticks(
    long_jobs: int, rows: int, units: int
) -> None:
    batch_size = 8
    scheduler = scheduler_of("m", batch_size, slots=64)
    for key in range(long_jobs):
        scheduler.add(*chain(key, rows=100, units=1000))
        for _ in range(3):  # they come one by one, and each takes what there is
            tick = scheduler.next()
            assert tick is not None
            scheduler.retire(tick)
    short = chain(99, rows, units)
    scheduler.add(*short)
    share = batch_size / (long_jobs + 1)
    bound = units * math.ceil(rows / max(1, math.floor(share))) * math.ceil(1 / min(1, share))
    assert run_until_done(scheduler, 99, short.shape) <= bound + 1


@given(
    others=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 200)), max_size=12),
    batch_size=st.integers(1, 16),
    rows=st.integers(1, 40),
    units=st.integers(1, 30),
    parallel=st.booleans(),
    ticks=st.integers(0, 20),
)
def test_a_job_is_done_within_its_bound_however_long_the_others_are(
    others: list[tuple[int, int]],
    batch_size: int,
    rows: int,
    units: int,
    parallel: bool,
    ticks: int,
) -> None:
    scheduler = scheduler_of("m", batch_size, slots=16 * batch_size + 64)
    for key, (count, length) in enumerate(others):
        scheduler.add(key, JobShape(Queue("m"), count, 10 * length, parallel))
        fill(scheduler, ticks)
    work = Job(99, JobShape(Queue("m"), rows, units, parallel))
    scheduler.add(*work)
    turns = (len(others) + 1) / batch_size
    bound = (rows * units + 1) * turns if parallel else units * (rows * turns + 1)
    assert run_until_done(scheduler, 99, work.shape) <= bound + 1


def test_terms_fill_what_chains_leave() -> None:
    scheduler = scheduler_of("m", batch_size=8, slots=20)
    scheduler.add(*chain(0, rows=3, units=5))
    scheduler.add(*data(1, rows=2, units=100))
    tick = scheduler.next()
    assert tick is not None
    assert (len(tick.chains), len(tick.terms)) == (3, 5)


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_terms_keep_their_share_beside_saturating_chains(batch_size: int) -> None:
    scheduler = scheduler_of("m", batch_size, slots=100, term_share=0.125)
    scheduler.add(*chain(0, rows=100, units=1000))
    scheduler.add(*data(1, rows=100, units=1000))
    terms = total = 0
    for _ in range(80):
        tick = scheduler.next()
        assert tick is not None
        assert len(tick) == batch_size
        scheduler.retire(tick)
        terms += len(tick.terms)
        total += len(tick)
    assert terms == pytest.approx(total / 8, abs=1)


def test_chains_take_a_share_that_terms_do_not_use() -> None:
    scheduler = scheduler_of("m", batch_size=8, slots=100, term_share=0.5)
    scheduler.add(*chain(0, rows=100, units=1000))
    scheduler.add(*data(1, rows=1, units=2))
    tick = scheduler.next()
    assert tick is not None
    assert (len(tick.chains), len(tick.terms)) == (6, 2)


def test_models_share_the_time_not_the_ticks() -> None:
    scheduler = scheduler_of(["slow", "quick"], batch_size=4, slots=10)
    scheduler.add(*chain(0, rows=4, units=10_000, model="slow"))
    scheduler.add(*chain(1, rows=4, units=10_000, model="quick"))
    spent = {"slow": 0.0, "quick": 0.0}
    cost = {"slow": 0.1, "quick": 0.001}
    while sum(spent.values()) < 20:
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick, cost[tick.queue.model] * tick.length)
        spent[tick.queue.model] += cost[tick.queue.model] * tick.length
    assert spent["slow"] == pytest.approx(spent["quick"], abs=0.2)


def test_a_model_asked_for_more_gets_more() -> None:
    scheduler = scheduler_of("ab", batch_size=4, slots=100)
    for key in range(3):
        scheduler.add(*chain(key, rows=4, units=1000, model="a"))
    scheduler.add(*chain(3, rows=4, units=1000, model="b"))
    ticks = {"a": 0, "b": 0}
    for _ in range(400):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        ticks[tick.queue.model] += 1
    assert ticks["a"] == pytest.approx(300, abs=2)


def test_an_idle_model_saves_no_time_up() -> None:
    scheduler = scheduler_of("ab", batch_size=4, slots=100)
    scheduler.add(*chain(0, rows=4, units=1000, model="a"))
    for _ in range(500):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
    scheduler.add(*chain(1, rows=4, units=1000, model="b"))
    models = []
    for _ in range(20):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        models.append(tick.queue.model)
    assert models.count("a") == pytest.approx(10, abs=1)
