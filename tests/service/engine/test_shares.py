"""Equal shares: of jobs, of kinds, of models; who cannot use his leaves it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduling.batch import JobShape, Lane
from tests.service.engine.batches import Job, chain, data, fill, run_until_done, scheduler_of


def test_jobs_share_a_full_batch_equally_and_leave_what_they_cannot_use() -> None:
    scheduler = scheduler_of("m", batch_size=12, slots=100)
    for key, rows in enumerate([100, 2, 100]):
        scheduler.add(*chain(key, rows, positions=50))
    got = [0, 0, 0]
    for _ in range(40):
        batch = scheduler.next()
        assert batch is not None
        assert len(batch) == 12
        scheduler.retire(batch)
        for entry in batch.chains:
            got[entry.key] += 1
    assert got == [200, 80, 200]


def test_many_jobs_take_turns() -> None:
    scheduler = scheduler_of("m", batch_size=4, slots=100)
    for key in range(10):
        scheduler.add(*chain(key, rows=3, positions=1000))
    got = [0] * 10
    for _ in range(50):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
        for entry in batch.chains:
            got[entry.key] += 1
    assert got == [20] * 10


@pytest.mark.parametrize("long_jobs", [1, 3, 12])
@pytest.mark.parametrize(("rows", "positions"), [(1, 20), (4, 20), (16, 5)])
def test_a_short_job_behind_long_ones_finishes_in_bounded_batches(
    long_jobs: int, rows: int, positions: int
) -> None:
    batch_size = 8
    scheduler = scheduler_of("m", batch_size, slots=64)
    for key in range(long_jobs):
        scheduler.add(*chain(key, rows=100, positions=1000))
        for _ in range(3):  # they come one by one, and each takes what there is
            batch = scheduler.next()
            assert batch is not None
            scheduler.retire(batch)
    short = chain(99, rows, positions)
    scheduler.add(*short)
    share = batch_size / (long_jobs + 1)
    bound = positions * math.ceil(rows / max(1, math.floor(share))) * math.ceil(1 / min(1, share))
    assert run_until_done(scheduler, 99, short.shape) <= bound + 1


@given(
    others=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 200)), max_size=12),
    batch_size=st.integers(1, 16),
    rows=st.integers(1, 40),
    positions=st.integers(1, 30),
    parallel=st.booleans(),
    batches=st.integers(0, 20),
)
def test_a_job_is_done_within_its_bound_however_long_the_others_are(
    others: list[tuple[int, int]],
    batch_size: int,
    rows: int,
    positions: int,
    parallel: bool,
    batches: int,
) -> None:
    scheduler = scheduler_of("m", batch_size, slots=16 * batch_size + 64)
    for key, (count, length) in enumerate(others):
        scheduler.add(key, JobShape(Lane("m"), count, 10 * length, parallel))
        fill(scheduler, batches)
    work = Job(99, JobShape(Lane("m"), rows, positions, parallel))
    scheduler.add(*work)
    turns = (len(others) + 1) / batch_size
    bound = (rows * positions + 1) * turns if parallel else positions * (rows * turns + 1)
    assert run_until_done(scheduler, 99, work.shape) <= bound + 1


def test_terms_fill_what_chains_leave() -> None:
    scheduler = scheduler_of("m", batch_size=8, slots=20)
    scheduler.add(*chain(0, rows=3, positions=5))
    scheduler.add(*data(1, rows=2, positions=100))
    batch = scheduler.next()
    assert batch is not None
    assert (len(batch.chains), len(batch.terms)) == (3, 5)


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_terms_keep_their_share_beside_saturating_chains(batch_size: int) -> None:
    scheduler = scheduler_of("m", batch_size, slots=100, term_share=0.125)
    scheduler.add(*chain(0, rows=100, positions=1000))
    scheduler.add(*data(1, rows=100, positions=1000))
    terms = total = 0
    for _ in range(80):
        batch = scheduler.next()
        assert batch is not None
        assert len(batch) == batch_size
        scheduler.retire(batch)
        terms += len(batch.terms)
        total += len(batch)
    assert terms == pytest.approx(total / 8, abs=1)


def test_chains_take_a_share_that_terms_do_not_use() -> None:
    scheduler = scheduler_of("m", batch_size=8, slots=100, term_share=0.5)
    scheduler.add(*chain(0, rows=100, positions=1000))
    scheduler.add(*data(1, rows=1, positions=2))
    batch = scheduler.next()
    assert batch is not None
    assert (len(batch.chains), len(batch.terms)) == (6, 2)


def test_models_share_the_time_not_the_batches() -> None:
    scheduler = scheduler_of(["slow", "quick"], batch_size=4, slots=10)
    scheduler.add(*chain(0, rows=4, positions=10_000, model="slow"))
    scheduler.add(*chain(1, rows=4, positions=10_000, model="quick"))
    spent = {"slow": 0.0, "quick": 0.0}
    cost = {"slow": 0.1, "quick": 0.001}
    while sum(spent.values()) < 20:
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch, cost[batch.lane.model] * batch.num_steps)
        spent[batch.lane.model] += cost[batch.lane.model] * batch.num_steps
    assert spent["slow"] == pytest.approx(spent["quick"], abs=0.2)


def test_a_model_asked_for_more_gets_more() -> None:
    scheduler = scheduler_of("ab", batch_size=4, slots=100)
    for key in range(3):
        scheduler.add(*chain(key, rows=4, positions=1000, model="a"))
    scheduler.add(*chain(3, rows=4, positions=1000, model="b"))
    batches = {"a": 0, "b": 0}
    for _ in range(400):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
        batches[batch.lane.model] += 1
    assert batches["a"] == pytest.approx(300, abs=2)


def test_an_idle_model_saves_no_time_up() -> None:
    scheduler = scheduler_of("ab", batch_size=4, slots=100)
    scheduler.add(*chain(0, rows=4, positions=1000, model="a"))
    for _ in range(500):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
    scheduler.add(*chain(1, rows=4, positions=1000, model="b"))
    models = []
    for _ in range(20):
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
        models.append(batch.lane.model)
    assert models.count("a") == pytest.approx(10, abs=1)
