"""The estimate of a deadline, held against the scheduler itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.forecast import Forecast, Load, Loads, Shares
from service.engine.speed import Speed
from service.engine.ticks import Queue, Work
from tests.service.engine.ticks import scheduler_of

SHARE = 0.125


def ticks_taken(job: Load, others: list[Load], batch_size: int) -> int:
    """How many ticks the scheduler takes, all jobs there from the beginning."""
    scheduler = scheduler_of("m", batch_size, slots=32 * batch_size + 64, term_share=SHARE)
    for key, load in enumerate([*others, job]):
        units = load.evaluations // load.rows
        scheduler.add(Work(key, Queue("m"), load.rows, units, load.parallel))
    left = job.evaluations
    ticks = 0
    while left:
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        left -= sum(entry.key == len(others) for entry in (*tick.chains, *tick.terms))
        ticks += 1
    return ticks


def load(rows: int, units: int, parallel: bool = False) -> Load:
    return Load(rows, rows * units, parallel)


def each(*loads: Load) -> Loads:
    """One of each."""
    return [(load, 1) for load in loads]


LOADS = st.builds(load, st.integers(1, 20), st.integers(1, 30), st.booleans())


@given(job=LOADS, others=st.lists(LOADS, max_size=6), batch_size=st.integers(1, 16))
def test_no_job_is_done_much_before_its_estimate(
    job: Load, others: list[Load], batch_size: int
) -> None:
    span = Shares(batch_size, SHARE).until_done(job, each(*others))
    turn = (len(others) + 1) / batch_size
    assert span.ticks <= 1.25 * (ticks_taken(job, others, batch_size) + turn + 1)
    assert 0 < span.rows <= batch_size


@given(
    job=LOADS,
    others=st.lists(LOADS, max_size=6).map(lambda found: [x for x in found if not x.parallel]),
    batch_size=st.integers(1, 16),
)
def test_nor_long_after_it(job: Load, others: list[Load], batch_size: int) -> None:
    span = Shares(batch_size, SHARE).until_done(job, each(*others))
    least = job.evaluations / job.rows  # a chain's own steps, which the last row begins late
    turn = (len(others) + 1) / (SHARE * batch_size if job.parallel else batch_size)
    assert ticks_taken(job, others, batch_size) <= 1.25 * span.ticks + least + 2 * turn + 2


def test_a_short_job_does_not_wait_for_long_ones() -> None:
    shares = Shares(32, SHARE)
    long = [(load(4000, 1000), 3)]
    assert shares.until_done(load(1, 20), long).ticks == pytest.approx(20)
    assert shares.until_done(load(32, 20), long).ticks == pytest.approx(80)
    # A thousand jobs as short as itself are what it waits for.
    assert shares.until_done(load(1, 20), [(load(1, 20), 1000)]).ticks == pytest.approx(
        625, rel=0.01
    )
    # Who cannot use his share leaves it: ten chains of a row each.
    narrow = [(load(1, 1000), 10)]
    assert shares.until_done(load(32, 50), narrow).ticks == pytest.approx(1600 / 22)


def test_the_other_kind_counts_with_its_share() -> None:
    shares = Shares(32, SHARE)
    chains, terms = load(400, 1000), load(400, 1000, parallel=True)
    assert shares.until_done(load(28, 10), each(terms)).ticks == pytest.approx(10)
    assert shares.until_done(load(56, 10), each(terms)).ticks == pytest.approx(20)
    assert shares.until_done(load(4, 10, True), each(chains)).ticks == pytest.approx(10)
    assert shares.until_done(load(4, 10, True), each(load(2, 1000))).ticks == pytest.approx(40 / 30)


def measured(speed: Speed, rows: int, seconds: float, ticks: int = 20) -> None:
    for _ in range(ticks):
        speed.measure(rows, seconds)


def test_a_speed_bounds_the_sizes_that_were_not_measured() -> None:
    speed = Speed()
    assert speed.seconds(8) == 0.0
    measured(speed, 32, 0.064)
    assert speed.seconds(32) == pytest.approx(0.064)
    assert speed.seconds(1) == pytest.approx(0.002)  # no more a row than in a full tick
    assert speed.seconds(64) == pytest.approx(0.064)  # no less than a smaller tick
    measured(speed, 1, 0.02)
    assert speed.seconds(1) == pytest.approx(0.02)
    assert speed.seconds(8) == pytest.approx(0.02)
    assert speed.seconds(32) == pytest.approx(0.064)
    measured(speed, 32, 0.032, ticks=400)
    assert speed.seconds(32) == pytest.approx(0.032, rel=0.01)


def test_a_few_ticks_are_not_believed() -> None:
    speed = Speed()
    measured(speed, 8, 1.0, ticks=5)  # the first ones: caches are cold
    assert speed.seconds(8) == 0.0
    measured(speed, 8, 0.01, ticks=300)
    assert speed.seconds(8) == pytest.approx(0.01, rel=0.1)


def test_a_size_that_is_no_longer_measured_is_no_longer_known() -> None:
    speed = Speed()
    measured(speed, 32, 60.0, ticks=100)  # the machine was busy with something else just then
    measured(speed, 1, 0.01, ticks=100)
    assert speed.seconds(32) == pytest.approx(60.0)
    measured(speed, 1, 0.01, ticks=2000)
    assert speed.seconds(32) == pytest.approx(0.01)


A, B = Queue("a"), Queue("b")


def test_seconds_follow_the_ticks_and_the_other_models() -> None:
    forecast = Forecast((A, B), SHARE)
    forecast.limit(A, 10)
    forecast.limit(B, 10)
    job = load(10, 100)
    assert forecast.seconds(A, job, {}) == 0.0
    for _ in range(20):
        forecast.measure(A, 10, 0.1)
        forecast.measure(B, 10, 1.0)
    assert forecast.seconds(A, job, {}) == pytest.approx(10.0)
    assert forecast.seconds(A, job, {A: each(job)}) == pytest.approx(20.0)
    # The other model gets as much time as this one, or what it has left to do.
    assert forecast.seconds(A, job, {B: each(load(10, 1000))}) == pytest.approx(20.0)
    assert forecast.seconds(A, job, {B: each(load(10, 3))}) == pytest.approx(13.0)
    # One chain alone makes small ticks, and they are held to be no dearer a row.
    assert forecast.seconds(A, load(1, 100), {}) == pytest.approx(1.0)
    forecast.doubt(A)
    assert forecast.seconds(A, job, {}) == pytest.approx(5.0)


@given(
    job=LOADS,
    kinds=st.lists(st.tuples(LOADS, st.integers(1, 9)), max_size=4),
    batch_size=st.integers(1, 16),
)
def test_a_number_of_equal_jobs_is_as_many_copies(
    job: Load, kinds: list[tuple[Load, int]], batch_size: int
) -> None:
    shares = Shares(batch_size, SHARE)
    copies = each(*(kind for kind, count in kinds for _ in range(count)))
    assert shares.until_done(job, kinds) == pytest.approx(shares.until_done(job, copies))
    assert shares.demand(kinds) == pytest.approx(shares.demand(copies))
    forecast = Forecast((A, B), SHARE)
    forecast.limit(A, batch_size)
    forecast.limit(B, batch_size)
    for _ in range(20):
        forecast.measure(A, 8, 0.1)
        forecast.measure(B, 8, 1.0)
    together, apart = ({A: loads, B: loads} for loads in (kinds, copies))
    assert forecast.seconds(A, job, together) == pytest.approx(forecast.seconds(A, job, apart))


@given(others=st.lists(LOADS, max_size=6), job=LOADS, more=LOADS)
def test_more_company_never_helps(others: list[Load], job: Load, more: Load) -> None:
    shares = Shares(8, SHARE)
    before = shares.until_done(job, each(*others))
    after = shares.until_done(job, each(*others, more))
    assert after.ticks >= before.ticks * (1 - 1e-9)
    assert math.isfinite(after.ticks)
