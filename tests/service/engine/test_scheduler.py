"""The policy, without tensors: nothing twice, nothing lost, nobody starved."""

import math
import random
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduler import BURST_SECONDS, Entry, Scheduler, Tick, Work


def chain(key: int, rows: int, units: int, model: str = "m") -> Work:
    return Work(key, model, rows, units, parallel=False)


def data(key: int, rows: int, units: int, model: str = "m") -> Work:
    return Work(key, model, rows, units, parallel=True)


def entries(tick: Tick) -> list[Entry]:
    return [*tick.chains, *tick.terms]


def run_until_done(scheduler: Scheduler, key: int, work: Work, limit: int = 10_000) -> int:
    """Ticks until every unit of a job is done."""
    left = work.rows * work.units
    for ticks in range(1, limit + 1):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        left -= tick.length * sum(entry.key == key for entry in entries(tick))
        if left == 0:
            return ticks
    raise AssertionError(f"job {key} has {left} units left after {limit} ticks")


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
def test_every_unit_once_in_order_within_its_own_slot(
    works: list[tuple[str, int, int, bool]], batch_size: int, slots: int, share: float, seed: int
) -> None:
    dice = random.Random(seed)
    scheduler = Scheduler("ab", batch_size, slots, share)
    waiting = [Work(key, *work) for key, work in enumerate(works)]
    known = {work.key: work for work in waiting}
    done: dict[tuple[int, int], list[int]] = defaultdict(list)
    holder: dict[tuple[str, bool, int], tuple[int, int]] = {}
    cancelled: set[int] = set()
    for _ in range(10_000):
        while waiting and (len(scheduler) == 0 or dice.random() < 0.3):
            scheduler.add(waiting.pop(0))
        if dice.random() < 0.02:
            key = dice.randrange(len(works))
            if key in known and all(key != work.key for work in waiting):
                scheduler.remove(key)
                cancelled.add(key)
                holder = {place: who for place, who in holder.items() if who[0] != key}
        tick = scheduler.next()
        if tick is None:
            if not waiting:
                break
            continue
        assert 1 <= len(tick) <= batch_size
        assert len(set(entries(tick))) == len(tick)
        for entry in entries(tick):
            work = known[entry.key]
            assert work.model == tick.model
            assert (entry in tick.terms) == work.parallel
            assert entry.key not in cancelled
            units = done[entry.key, entry.row]
            assert entry.unit == len(units)
            units.extend(range(entry.unit, entry.unit + tick.length))
            place = (tick.model, work.parallel, entry.slot)
            assert 0 <= entry.slot < slots
            assert holder.setdefault(place, (entry.key, entry.row)) == (entry.key, entry.row)
            assert len(units) <= work.units
            assert (entry in tick.ends) == (len(units) == work.units)
        rows_of_chains = [(entry.key, entry.row) for entry in tick.chains]
        assert len(set(rows_of_chains)) == len(rows_of_chains)
        for entry in tick.ends:
            del holder[tick.model, known[entry.key].parallel, entry.slot]
        assert tick.length == 1 or not tick.terms
        scheduler.retire(tick, dice.choice((1e-3, 0.01, 1.0)) * tick.length)
        assert scheduler.rows_running == len(holder)
    assert len(scheduler) == scheduler.rows_running == scheduler.rows_waiting == 0
    for work in known.values():
        if work.key not in cancelled:
            for row in range(work.rows):
                assert done[work.key, row] == list(range(work.units))


@pytest.mark.parametrize("long_jobs", [1, 3, 12])
@pytest.mark.parametrize(("rows", "units"), [(1, 20), (4, 20), (16, 5)])
def test_a_short_job_behind_long_ones_finishes_in_bounded_ticks(
    long_jobs: int, rows: int, units: int
) -> None:
    batch_size = 8
    scheduler = Scheduler("m", batch_size, slots=64)
    for key in range(long_jobs):
        scheduler.add(chain(key, rows=100, units=1000))
        for _ in range(3):  # they come one by one, and each takes what there is
            tick = scheduler.next()
            assert tick is not None
            scheduler.retire(tick)
    short = chain(99, rows, units)
    scheduler.add(short)
    share = batch_size / (long_jobs + 1)
    bound = units * math.ceil(rows / max(1, math.floor(share))) * math.ceil(1 / min(1, share))
    assert run_until_done(scheduler, 99, short) <= bound + 1


def test_jobs_share_a_full_batch_equally_and_leave_what_they_cannot_use() -> None:
    scheduler = Scheduler("m", batch_size=12, slots=100)
    for key, rows in enumerate([100, 2, 100]):
        scheduler.add(chain(key, rows, units=50))
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
    scheduler = Scheduler("m", batch_size=4, slots=100)
    for key in range(10):
        scheduler.add(chain(key, rows=3, units=1000))
    got = [0] * 10
    for _ in range(50):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        for entry in tick.chains:
            got[entry.key] += 1
    assert got == [20] * 10


def test_terms_fill_what_chains_leave() -> None:
    scheduler = Scheduler("m", batch_size=8, slots=20)
    scheduler.add(chain(0, rows=3, units=5))
    scheduler.add(data(1, rows=2, units=100))
    tick = scheduler.next()
    assert tick is not None
    assert (len(tick.chains), len(tick.terms)) == (3, 5)


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_terms_keep_their_share_beside_saturating_chains(batch_size: int) -> None:
    scheduler = Scheduler("m", batch_size, slots=100, term_share=0.125)
    scheduler.add(chain(0, rows=100, units=1000))
    scheduler.add(data(1, rows=100, units=1000))
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
    scheduler = Scheduler("m", batch_size=8, slots=100, term_share=0.5)
    scheduler.add(chain(0, rows=100, units=1000))
    scheduler.add(data(1, rows=1, units=2))
    tick = scheduler.next()
    assert tick is not None
    assert (len(tick.chains), len(tick.terms)) == (6, 2)


def test_models_share_the_time_not_the_ticks() -> None:
    scheduler = Scheduler(["slow", "quick"], batch_size=4, slots=10)
    scheduler.add(chain(0, rows=4, units=10_000, model="slow"))
    scheduler.add(chain(1, rows=4, units=10_000, model="quick"))
    spent = {"slow": 0.0, "quick": 0.0}
    cost = {"slow": 0.1, "quick": 0.001}
    while sum(spent.values()) < 20:
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick, cost[tick.model] * tick.length)
        spent[tick.model] += cost[tick.model] * tick.length
    assert spent["slow"] == pytest.approx(spent["quick"], abs=0.2)


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


def test_a_model_asked_for_more_gets_more() -> None:
    scheduler = Scheduler("ab", batch_size=4, slots=100)
    for key in range(3):
        scheduler.add(chain(key, rows=4, units=1000, model="a"))
    scheduler.add(chain(3, rows=4, units=1000, model="b"))
    ticks = {"a": 0, "b": 0}
    for _ in range(400):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        ticks[tick.model] += 1
    assert ticks["a"] == pytest.approx(300, abs=2)


def test_an_idle_model_saves_no_time_up() -> None:
    scheduler = Scheduler("ab", batch_size=4, slots=100)
    scheduler.add(chain(0, rows=4, units=1000, model="a"))
    for _ in range(500):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
    scheduler.add(chain(1, rows=4, units=1000, model="b"))
    models = []
    for _ in range(20):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        models.append(tick.model)
    assert models.count("a") == pytest.approx(10, abs=1)


def test_a_job_holds_no_more_slots_than_it_can_move() -> None:
    scheduler = Scheduler("m", batch_size=8, slots=100)
    scheduler.add(chain(0, rows=90, units=10))
    for _ in range(25):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        assert scheduler.rows_running <= 8


def fill(scheduler: Scheduler, ticks: int) -> list[Tick]:
    """Run so many ticks, as long as there is work."""
    ran = []
    for _ in range(ticks):
        tick = scheduler.next()
        if tick is None:
            break
        scheduler.retire(tick)
        ran.append(tick)
    return ran


def ticks_until(scheduler: Scheduler, key: int, row: int = 0, unit: int = 0) -> int:
    """Ticks until one in which this row makes this unit."""
    for ticks in range(1, 100_000):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        if any((e.key, e.row, e.unit) == (key, row, unit) for e in entries(tick)):
            return ticks
    raise AssertionError(f"row {row} of job {key} never came to unit {unit}")


@pytest.mark.parametrize("slots", [8, 12, 32])
def test_a_large_job_does_not_lock_a_newcomer_out(slots: int) -> None:
    scheduler = Scheduler("m", batch_size=8, slots=slots)
    scheduler.add(chain(0, rows=600, units=1000))
    fill(scheduler, 50)
    scheduler.add(chain(1, rows=1, units=20))
    assert ticks_until(scheduler, 1) == 1
    assert ticks_until(scheduler, 1, unit=19) == 19


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
    scheduler = Scheduler("m", batch_size, slots, share)
    kinds: dict[int, bool] = {}
    left: dict[int, int] = {}
    for key, (count, units, kind, pause) in enumerate(jobs):
        alive = [kinds[other] for other, units_left in left.items() if units_left]
        if alive.count(kind) < -(-slots // 4) - 1:
            kinds[key], left[key] = kind, count * units
            scheduler.add(Work(key, "m", count, units, kind))
        for tick in fill(scheduler, pause):
            for entry in entries(tick):
                left[entry.key] -= 1
    scheduler.add(Work(999, "m", rows, 5, parallel))
    alive = [kinds[other] for other, units_left in left.items() if units_left]
    others, alone = alive.count(parallel), (not parallel) not in alive
    room = batch_size if alone else batch_size * (share if parallel else 1 - share)
    assert ticks_until(scheduler, 999) <= math.ceil((others + 1 + (not alone)) / room)


@given(
    longer=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=60),
    batch_size=st.integers(1, 8),
    slots=st.integers(1, 12),
    units=st.integers(1, 20),
)
def test_without_a_slot_newcomers_come_in_order_and_within_bounded_ticks(
    longer: list[tuple[int, int]], batch_size: int, slots: int, units: int
) -> None:
    scheduler = Scheduler("m", batch_size, slots)
    for key, (rows, pause) in enumerate(longer):
        scheduler.add(chain(key, rows, units))
        fill(scheduler, pause)
    begun: list[int] = []
    quiet = 0
    while (tick := scheduler.next()) is not None:
        scheduler.retire(tick)
        new = [entry.key for entry in tick.chains if (entry.row, entry.unit) == (0, 0)]
        begun += new
        quiet = 0 if new or tick.ends else quiet + 1
        assert quiet <= units * math.ceil(slots / batch_size)
    assert begun == sorted(begun)


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
    scheduler = Scheduler("m", batch_size, slots=16 * batch_size + 64)
    for key, (count, length) in enumerate(others):
        scheduler.add(Work(key, "m", count, 10 * length, parallel))
        fill(scheduler, ticks)
    work = Work(99, "m", rows, units, parallel)
    scheduler.add(work)
    turns = (len(others) + 1) / batch_size
    bound = (rows * units + 1) * turns if parallel else units * (rows * turns + 1)
    assert run_until_done(scheduler, 99, work) <= bound + 1


def test_removing_frees_slots_and_says_what_was_left() -> None:
    scheduler = Scheduler("m", batch_size=4, slots=4)
    scheduler.add(chain(0, rows=10, units=5))
    tick = scheduler.next()
    assert tick is not None
    assert scheduler.remove(0) == 10 * 5 - 3  # one of the slots is a newcomer's
    scheduler.retire(tick)
    assert scheduler.rows_running == 0
    assert scheduler.next() is None
    assert scheduler.remove(0) == 0
    for key in range(4):
        scheduler.add(chain(key, rows=1, units=1))
    tick = scheduler.next()
    assert tick is not None
    assert sorted(entry.slot for entry in tick.chains) == [0, 1, 2, 3]


def test_a_limit_holds_from_the_next_tick() -> None:
    scheduler = Scheduler("m", batch_size=8, slots=8)
    scheduler.add(chain(0, rows=8, units=3))
    scheduler.limit("m", 3)
    tick = scheduler.next()
    assert tick is not None
    assert len(tick) == 3


def test_work_is_at_least_one_unit() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        chain(0, rows=0, units=3)


def test_which_rows_have_begun_and_which_hold_slots() -> None:
    scheduler = Scheduler("m", batch_size=2, slots=3)
    scheduler.add(chain(0, rows=3, units=2))
    assert scheduler.held(0) == (0, {})
    begun = []
    for _ in range(3):
        tick = scheduler.next()
        assert tick is not None
        scheduler.retire(tick)
        begun.append(scheduler.held(0))
    assert begun[0][0] == 2
    assert set(begun[0][1]) == {0, 1}
    assert begun[1] == (2, {})
    assert begun[2][0] == 3
    assert set(begun[2][1]) == {2}
    assert {*begun[0][1].values()} == {0, 1}
