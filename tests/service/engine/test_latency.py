"""The estimate of a deadline, held against the scheduler itself."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduling.batch import JobShape, Lane
from service.engine.scheduling.latency import (
    Forecast,
    GangPolicy,
    Load,
    Loads,
    RowPolicy,
    Span,
    StepTimes,
    Throughput,
    demand,
)
from tests.service.engine.batches import scheduler_of

SHARE = 0.125


def batches_taken(job: Load, others: list[Load], batch_size: int) -> int:
    """How many batches the scheduler takes, all jobs there from the beginning."""
    scheduler = scheduler_of("m", batch_size, slots=32 * batch_size + 64, term_share=SHARE)
    for key, load in enumerate([*others, job]):
        positions = load.evaluations // load.network_rows
        scheduler.add(key, JobShape(Lane("m"), load.network_rows, positions, load.parallel))
    left = job.evaluations
    batches = 0
    while left:
        batch = scheduler.next()
        assert batch is not None
        scheduler.retire(batch)
        left -= sum(entry.key == len(others) for entry in (*batch.chains, *batch.terms))
        batches += 1
    return batches


def load(rows: int, positions: int, parallel: bool = False) -> Load:
    return Load(rows, rows * positions, parallel)


def each(*loads: Load) -> Loads:
    """One of each."""
    return [(load, 1) for load in loads]


LOADS = st.builds(load, st.integers(1, 20), st.integers(1, 30), st.booleans())


@given(job=LOADS, others=st.lists(LOADS, max_size=6), batch_size=st.integers(1, 16))
def test_no_job_is_done_much_before_its_estimate(
    job: Load, others: list[Load], batch_size: int
) -> None:
    (span,) = RowPolicy(batch_size, SHARE).until_done(job, each(*others))
    turn = (len(others) + 1) / batch_size
    assert span.batches <= 1.25 * (batches_taken(job, others, batch_size) + turn + 1)
    assert 0 < span.rows <= batch_size


@given(
    job=LOADS,
    others=st.lists(LOADS, max_size=6).map(lambda found: [x for x in found if not x.parallel]),
    batch_size=st.integers(1, 16),
)
def test_nor_long_after_it(job: Load, others: list[Load], batch_size: int) -> None:
    (span,) = RowPolicy(batch_size, SHARE).until_done(job, each(*others))
    least = (
        job.evaluations / job.network_rows
    )  # a chain's own steps, which the last row begins late
    turn = (len(others) + 1) / (SHARE * batch_size if job.parallel else batch_size)
    assert batches_taken(job, others, batch_size) <= 1.25 * span.batches + least + 2 * turn + 2


def batches(batch_size: int) -> Callable[..., float]:
    return lambda job, others: RowPolicy(batch_size, SHARE).until_done(job, others)[0].batches


def test_a_short_job_does_not_wait_for_long_ones() -> None:
    until_done = batches(32)
    long = [(load(4000, 1000), 3)]
    assert until_done(load(1, 20), long) == pytest.approx(20)
    assert until_done(load(32, 20), long) == pytest.approx(80)
    # A thousand jobs as short as itself are what it waits for.
    assert until_done(load(1, 20), [(load(1, 20), 1000)]) == pytest.approx(625, rel=0.01)
    # Who cannot use his share leaves it: ten chains of a row each.
    narrow = [(load(1, 1000), 10)]
    assert until_done(load(32, 50), narrow) == pytest.approx(1600 / 22)


def test_the_other_kind_counts_with_its_share() -> None:
    until_done = batches(32)
    chains, terms = load(400, 1000), load(400, 1000, parallel=True)
    assert until_done(load(28, 10), each(terms)) == pytest.approx(10)
    assert until_done(load(56, 10), each(terms)) == pytest.approx(20)
    assert until_done(load(4, 10, True), each(chains)) == pytest.approx(10)
    assert until_done(load(4, 10, True), each(load(2, 1000))) == pytest.approx(40 / 30)


def measured(
    times: StepTimes, rows: int, seconds: float, batches: int = 20, now: float = 0
) -> None:
    for _ in range(batches):
        times.measure(rows, seconds, 1, now)


def test_between_the_sizes_that_were_measured_times_are_interpolated() -> None:
    times = StepTimes()
    assert times.seconds(8, 0) == 0.0
    measured(times, 32, 0.064)
    assert times.seconds(32, 0) == pytest.approx(0.064)
    assert times.seconds(64, 0) == pytest.approx(0.128)
    measured(times, 2, 0.02)
    assert times.seconds(1, 0) == pytest.approx(0.02)
    assert times.seconds(17, 0) == pytest.approx(0.042)
    measured(times, 32, 0.032, batches=400)
    assert times.seconds(32, 0) == pytest.approx(0.032, rel=0.01)


def test_what_was_timed_at_start_is_known_at_once_and_gives_way_to_what_is_measured() -> None:
    times = StepTimes()
    times.seed(8, 0.01)
    assert times.seconds(8, 0) == pytest.approx(0.01)
    measured(times, 8, 0.02, batches=1)
    assert times.seconds(8, 0) == pytest.approx(0.011, rel=0.02)
    measured(times, 8, 0.02, batches=300)
    assert times.seconds(8, 0) == pytest.approx(0.02, rel=0.01)


def test_a_burst_counts_as_its_steps() -> None:
    burst, single = StepTimes(), StepTimes()
    for times in (burst, single):
        times.seed(8, 0.01)
    burst.measure(8, 0.03, 25, 0)
    measured(single, 8, 0.03, batches=25)
    assert burst.seconds(8, 0) == pytest.approx(single.seconds(8, 0))


def test_a_slow_moment_passes_with_time_and_not_by_asking() -> None:
    times = StepTimes()
    times.seed(32, 0.05)
    measured(times, 32, 60.0, batches=400, now=10)  # the machine was busy with something else
    assert [times.seconds(32, 10) for _ in range(9)] == [pytest.approx(60, rel=0.01)] * 9
    assert times.seconds(32, 70) == pytest.approx(30, rel=0.01)
    assert times.seconds(32, 10 + 1800) == pytest.approx(0.05, rel=0.01)


def test_systems_have_batches_of_their_own_size() -> None:
    narrow, wide = Load(4, 400, False, 8), Load(64, 6400, False, 128)
    assert GangPolicy(32).until_done(narrow, each(wide)) == [Span(50, 8), Span(12.5, 32)]
    assert GangPolicy(32).until_empty(each(narrow, wide)) == [Span(50, 8), Span(200, 32)]


A, B = Lane("a"), Lane("b")


def throughput(batch_size: int) -> dict[Lane, Throughput]:
    return {lane: Throughput(batch_size) for lane in (A, B)}


def timed(throughput: dict[Lane, Throughput], a: float, b: float) -> None:
    for lane, seconds in ((A, a), (B, b)):
        for terms in (False, True):
            throughput[lane].seed(10, seconds, terms=terms)


def test_seconds_follow_the_batches_and_the_other_models() -> None:
    known = throughput(10)
    forecast = Forecast(known, SHARE)
    job = load(10, 100)
    assert forecast.seconds(A, job, {}) == 0.0
    timed(known, 0.1, 1.0)
    assert forecast.seconds(A, job, {}) == pytest.approx(10.0)
    assert forecast.seconds(A, job, {A: each(job)}) == pytest.approx(20.0)
    # The other model gets as much time as this one, or what it has left to do.
    assert forecast.seconds(A, job, {B: each(load(10, 1000))}) == pytest.approx(20.0)
    assert forecast.seconds(A, job, {B: each(load(10, 3))}) == pytest.approx(13.0)
    assert forecast.until_empty({A: each(job), B: each(load(10, 3))}) == pytest.approx(13.0)
    # A long chain alone keeps the queue as long as it has steps.
    assert forecast.until_empty({A: each(load(1, 100), load(2, 1))}) == pytest.approx(10.0)
    # Asking changes nothing.
    assert len({forecast.seconds(A, job, {}) for _ in range(9)}) == 1


@given(
    job=LOADS,
    kinds=st.lists(st.tuples(LOADS, st.integers(1, 9)), max_size=4),
    batch_size=st.integers(1, 16),
)
def test_a_number_of_equal_jobs_is_as_many_copies(
    job: Load, kinds: list[tuple[Load, int]], batch_size: int
) -> None:
    shares = RowPolicy(batch_size, SHARE)
    copies = each(*(kind for kind, count in kinds for _ in range(count)))
    (of_kinds,), (of_copies,) = (shares.until_done(job, loads) for loads in (kinds, copies))
    assert of_kinds == pytest.approx(of_copies)
    assert demand(kinds, batch_size) == pytest.approx(demand(copies, batch_size))
    known = throughput(batch_size)
    forecast = Forecast(known, SHARE)
    timed(known, 0.1, 1.0)
    together, apart = ({A: loads, B: loads} for loads in (kinds, copies))
    assert forecast.seconds(A, job, together) == pytest.approx(forecast.seconds(A, job, apart))


@given(others=st.lists(LOADS, max_size=6), job=LOADS, more=LOADS)
def test_more_company_never_helps(others: list[Load], job: Load, more: Load) -> None:
    before = batches(8)(job, each(*others))
    after = batches(8)(job, each(*others, more))
    assert after >= before * (1 - 1e-9)
    assert math.isfinite(after)


def test_after_memory_ran_out_batches_shrink_at_once_and_grow_by_and_by() -> None:
    throughput = Throughput(32)
    assert not throughput.grow(32, 10_000)
    throughput.shrink(12)
    assert not throughput.grow(11, 10_000)  # calls with fewer rows tell nothing
    full = (throughput.batch_size for _ in range(1000))
    assert [throughput.batch_size for rows in full if throughput.grow(rows, 1)] == [24, 32]
