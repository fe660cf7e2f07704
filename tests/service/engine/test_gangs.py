"""Systems' turns, without tensors: equal evaluations, whole waves, room, time beside chains."""

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduling.batch import Entry, JobShape, Lane
from service.engine.scheduling.latency import GangPolicy, Throughput
from tests.service.engine.batches import Job, Timed, chain, data, scheduler_of

SYSTEMS = Lane("m", systems=True)


def systems(key: int, rows: int, positions: int, width: int = 2, cost: int | None = None) -> Job:
    """Every system's position costs `cost`, or a particle one evaluation."""
    each = width if cost is None else cost
    return Job(key, JobShape(SYSTEMS, rows, positions, False, width, (each,) * rows, width))


def scheduler(batch_size: int = 8, slots: int = 64) -> Timed:
    found = scheduler_of("m", batch_size, slots)
    found.serve(SYSTEMS, Throughput(batch_size), slots)
    return found


WORKS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40)
@given(works=WORKS, batch_size=st.integers(1, 9), slots=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_position_once_in_order_in_whole_waves(
    works: list[tuple[int, int, int, int]], batch_size: int, slots: int, seed: int
) -> None:
    dice = random.Random(seed)
    turns = scheduler(batch_size, slots)
    known = {key: systems(key, *work) for key, work in enumerate(works)}
    waiting, cancelled = list(known.values()), set[int]()
    owed = {
        key: work.shape.rows * ((work.shape.positions - 1) * work.shape.costs[0] + work.shape.width)
        for key, work in known.items()
    }
    done: dict[tuple[int, int], list[int]] = defaultdict(list)
    on_the_way: dict[int, set[int]] = defaultdict(set)
    pieces = Counter[int]()
    for _ in range(10_000):
        while waiting and (len(turns) == 0 or dice.random() < 0.3):
            turns.add(*waiting.pop(0))
        if dice.random() < 0.02:
            key = dice.randrange(len(works))
            if key not in cancelled and known[key] not in waiting and owed[key]:
                assert turns.remove(key) == owed[key]
                cancelled.add(key)
                on_the_way.pop(key, None)
        batch = turns.next()
        if batch is None:
            if not waiting:
                break
            continue
        ((key, cost),) = batch.shares.items()
        work, rows = known[key], {entry.row for entry in batch.chains}
        assert (batch.lane, batch.terms, batch.width) == (SYSTEMS, [], work.shape.width)
        assert key not in cancelled
        assert len(rows) == len(batch) == min(len(rows), max(1, batch_size // work.shape.width))
        assert on_the_way[key] in (set(), rows)  # nobody leaves a wave, nobody joins it
        on_the_way[key] = rows
        held = sum(len(wave) * known[other].shape.width for other, wave in on_the_way.items())
        assert held <= slots or len([wave for wave in on_the_way.values() if wave]) == 1
        spent = 0
        if batch.piece is not None:  # of one system alone, and it has so many more particles
            assert len(rows) == 1
            assert 0 < batch.piece == batch.network_rows
            (entry,) = batch.chains
            position = (
                work.shape.width
                if entry.position == work.shape.positions - 1
                else work.shape.costs[0]
            )
            spent = -(position * pieces[key] // work.shape.width)
            pieces[key] += batch.piece
            spent += position * pieces[key] // work.shape.width
            assert pieces[key] <= work.shape.width
        over = batch.piece is None or pieces[key] == work.shape.width
        for entry in batch.chains:
            positions = done[key, entry.row]
            assert entry == Entry(key, entry.row, 0, len(positions))
            positions.extend(
                range(entry.position, entry.position + batch.num_steps) if over else ()
            )
            last = len(positions) == work.shape.positions
            if batch.piece is None:
                spent += (batch.num_steps - last) * work.shape.costs[0] + last * work.shape.width
            assert (entry in batch.ends) == last
        if over:
            pieces[key] = 0
        assert spent == cost == batch.evaluations
        owed[key] -= cost
        if batch.ends:
            on_the_way[key] = set()
        turns.retire(batch, dice.choice((1e-3, 0.01, 1.0)) * batch.num_steps)
    assert len(turns) == turns.rows_running == turns.rows_waiting == 0
    for key, work in known.items():
        if key not in cancelled:
            assert owed[key] == 0
            assert all(
                done[key, row] == list(range(work.shape.positions))
                for row in range(work.shape.rows)
            )


@settings(max_examples=20)
@given(
    costs=st.lists(st.integers(2, 90), min_size=2, max_size=5),
    late=st.integers(0, 100),
    seed=st.integers(0, 99),
)
def test_jobs_have_equal_evaluations_whatever_their_steps_cost(
    costs: list[int], late: int, seed: int
) -> None:
    """Any two that were there all the while, to within a batch of either; also who came late."""
    dice = random.Random(seed)
    turns = scheduler()
    for key, cost in enumerate(costs):
        turns.add(*systems(key, 1, 10_000, cost=cost))
    had, most = Counter[int](), Counter[int]()
    for i in range(300):
        if i == late:
            turns.add(*systems(99, 4, 10_000, cost=7))
            joined = Counter(had)
        batch = turns.next()
        assert batch is not None
        ((key, cost),) = batch.shares.items()
        had[key] += cost
        most[key] = max(most[key], cost)
        turns.retire(batch, dice.choice((0.004, 0.3)) * batch.num_steps)
    for keys, since in ((range(len(costs)), Counter[int]()), ((*range(len(costs)), 99), joined)):
        for a in keys:
            for b in keys:
                apart = (had[a] - since[a]) - (had[b] - since[b])
                assert abs(apart) <= 2 * (most[a] + most[b])


@pytest.mark.parametrize("other", [chain(1, 1, 100_000), data(1, 3, 100_000)])
def test_beside_systems_others_have_their_share_of_the_time(other: Job) -> None:
    """Half of it, to within a batch, though a batch of systems takes a hundred times as long."""
    turns = scheduler()
    turns.add(*systems(0, 4, 100_000, cost=20))
    turns.add(*other)
    spent: Counter[bool] = Counter()
    for _ in range(1000):
        batch = turns.next()
        assert batch is not None
        seconds = 0.5 if batch.lane.systems else 0.005 * batch.num_steps
        spent[batch.lane.systems] += seconds
        turns.retire(batch, seconds)
    assert abs(spent[True] - spent[False]) <= 1.0


def test_who_asks_for_more_batches_has_more_of_the_time() -> None:
    """Chains that could fill three batches at once, beside systems that could fill one."""
    turns = scheduler(batch_size=8)
    turns.add(*systems(0, 4, 100_000))
    for key in (1, 2, 3):
        turns.add(*chain(key, 8, 100_000))
    spent: Counter[bool] = Counter()
    for _ in range(1000):
        batch = turns.next()
        assert batch is not None
        spent[batch.lane.systems] += 0.1
        turns.retire(batch, 0.1)
    assert spent[False] / spent[True] == pytest.approx(3, rel=0.02)


def test_a_system_wider_than_a_batch_goes_alone_in_pieces() -> None:
    """Two positions of 20 particles by 8: others have turns in between."""
    turns = scheduler(batch_size=8)
    turns.add(*systems(0, 1, 2, width=20, cost=60))
    turns.add(*chain(1, 1, 1000))
    pieces, ends, between = [], [], []
    for _ in range(12):
        batch = turns.next()
        assert batch is not None
        if batch.lane.systems:
            pieces.append((batch.chains[0].position, batch.piece, batch.evaluations))
            ends.append(bool(batch.ends))
        else:
            between.append(len(pieces))
        turns.retire(batch)
    last = [(1, 8, 8), (1, 8, 8), (1, 4, 4)]
    assert pieces == [(0, 8, 24), (0, 8, 24), (0, 4, 12), *last]
    assert ends == [False] * 5 + [True]
    assert set(range(1, 6)) <= set(between)


def test_pieces_are_larger_where_the_network_is_quick() -> None:
    """The first call takes 4 ms: five of them, or whole positions, fit into a burst of 20 ms."""
    turns = scheduler(batch_size=8)
    turns.add(*systems(0, 1, 100, width=70))
    pieces = []
    for _ in range(4):
        batch = turns.next()
        assert batch is not None
        pieces.append(batch.piece)
        turns.retire(batch, 0.0039 * -(-batch.network_rows // 8))
    assert pieces == [8, 40, 22, 40]
    batch = turns.next()
    assert batch is not None
    turns.retire(batch, 1e-4)
    batch = turns.next()
    assert batch is not None
    assert (batch.piece, batch.num_steps, batch.network_rows) == (None, 88, 70)


def test_a_step_begun_in_pieces_ends_in_them_when_memory_changes() -> None:
    """A wider batch takes all that are left, a narrower one fewer; the shares add up."""
    turns = scheduler(batch_size=8)
    turns.add(*systems(0, 1, 2, width=20, cost=50))
    found = []
    for rows in (8, 5, 64, 64):
        turns.throughput[SYSTEMS].batch_size = rows
        batch = turns.next()
        assert batch is not None
        found.append((batch.piece, batch.evaluations))
        turns.retire(batch)
    assert found == [(8, 20), (5, 12), (7, 18), (None, 20)]
    assert turns.next() is None


def test_a_burst_lasts_no_longer_than_a_batch_may() -> None:
    """The first tells the pace; those after it go on for about 20 ms."""
    turns = scheduler()
    turns.add(*systems(0, 1, 1000))
    lengths = []
    for _ in range(4):
        batch = turns.next()
        assert batch is not None
        lengths.append(batch.num_steps)
        turns.retire(batch, 0.0045 * batch.num_steps)
    assert lengths == [1, 4, 4, 4]


def test_removed_while_its_batch_runs() -> None:
    turns = scheduler()
    turns.add(*systems(0, 4, 10))
    batch = turns.next()
    assert batch is not None
    assert turns.remove(0) == 4 * 2 * 10 - batch.evaluations
    turns.retire(batch)
    assert turns.next() is None


@settings(max_examples=40)
@given(works=WORKS, own=WORKS, batch_size=st.integers(1, 9))
def test_the_forecast_is_when_a_job_is_done_to_within_everybodys_batch(
    works: list[tuple[int, int, int, int]], own: list[tuple[int, int, int, int]], batch_size: int
) -> None:
    """All there from the start: evaluations until the job's last are those of the forecast."""
    turns = scheduler(batch_size, slots=10_000)
    jobs = [systems(key, *work) for key, work in enumerate([own[0], *works])]
    for work in jobs:
        turns.add(*work)
    loads = [job.shape.load._replace(step=0) for job in jobs]
    spans = GangPolicy(batch_size).until_done(loads[0], [(load, 1) for load in loads[1:]])
    made, left, most = 0, loads[0].evaluations, Counter[int]()
    while left:
        batch = turns.next()
        assert batch is not None
        ((key, cost),) = batch.shares.items()
        turns.retire(batch, 1.0 * batch.num_steps)
        made += cost
        most[key] = max(most[key], cost)
        left -= cost if key == 0 else 0
    # Who is one batch behind may have his turn first, or not before the job is done.
    slack = sum(most.values()) + most[0] * len(jobs)
    assert abs(made - sum(span.batches * span.rows for span in spans)) <= slack
