"""The door: what is let in, what is refused and why, and what is dropped."""

import random
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from diffusion.model import DiffusionModel
from diffusion.samplers import DDIM
from service.engine import SampleJob
from service.engine.admission import check_limits
from service.engine.queue import RequestQueue
from service.engine.scheduling.batch import Batch, Entry, Lane
from service.engine.scheduling.latency import Throughput
from service.errors import (
    DeadlineExceeded,
    DeadlineUnmeetable,
    Draining,
    NoRoom,
    QueueFull,
    TooExpensive,
)
from service.settings import Settings
from tests.service.engine.jobs import terms

MIB = 2**20


THROUGHPUT: dict[RequestQueue, Throughput] = {}  # of the model "g"


def intake(**settings: int) -> RequestQueue:
    given = {"batch_size": 8, "slots": 128, "max_body_bytes": MIB} | settings
    throughput = {Lane(name): Throughput(8) for name in "gh"}
    door = RequestQueue(throughput, Settings.model_validate(given))
    THROUGHPUT[door] = throughput[Lane("g")]
    return door


def chains(model: DiffusionModel, rows: int, steps: int = 10, name: str = "g") -> SampleJob:
    return SampleJob(name, rows, 7, DDIM(steps=steps).plan(model))


def measure(
    door: RequestQueue, seconds: float, rows: int = 8, batches: int = 20, steps: int = 1
) -> None:
    entries = [Entry(0, row, row, 0) for row in range(rows)]
    batch = Batch(Lane("g"), entries, [], [], {0: rows * steps}, steps)
    for _ in range(batches):
        THROUGHPUT[door].measure(batch, seconds)


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


def test_without_a_measurement_no_deadline_is_held_to_be_too_near(gaussian: DiffusionModel) -> None:
    door = intake()
    door.accept(chains(gaussian, 8000), deadline=soon(100))
    assert door.pending == 80_000


def test_what_cannot_be_done_in_time_is_refused_with_the_time_it_takes(
    gaussian: DiffusionModel,
) -> None:
    door = intake()
    measure(door, 1.0)
    door.accept(chains(gaussian, 8), deadline=soon(10))
    with pytest.raises(DeadlineUnmeetable) as caught:  # 20 seconds beside the first
        door.accept(chains(gaussian, 8), deadline=soon(11.5))
    assert caught.value.fields["estimated_seconds"] == pytest.approx(20, rel=0.01)
    assert caught.value.retry_after == 9
    assert caught.value.headers == {"retry-after": "9"}
    with pytest.raises(DeadlineUnmeetable) as caught:  # 50 alone: to wait is no help
        door.accept(chains(gaussian, 40), deadline=soon(10))
    assert caught.value.retry_after is None
    assert caught.value.headers == {}
    assert door.pending == 80
    door.accept(chains(gaussian, 8), deadline=soon(20))


def test_long_jobs_before_it_do_not_make_a_short_one_late(gaussian: DiffusionModel) -> None:
    door = intake()
    measure(door, 1.0)
    for _ in range(3):
        door.accept(chains(gaussian, 4000))
    door.accept(chains(gaussian, 2), deadline=soon(10))
    assert door.pending == 3 * 40_000 + 20


def test_asking_again_does_not_change_the_estimate(gaussian: DiffusionModel) -> None:
    door = intake()
    measure(door, 60.0)
    found = []
    for _ in range(9):
        with pytest.raises(DeadlineUnmeetable) as caught:
            door.accept(chains(gaussian, 8), deadline=soon(0.5))
        found.append(caught.value.fields["estimated_seconds"])
    assert found == [pytest.approx(600, rel=1e-3)] * 9


def test_a_new_server_knows_what_was_timed_at_start(gaussian: DiffusionModel) -> None:
    door = intake()
    for rows, seconds in ((1, 1.0), (8, 3.0)):
        THROUGHPUT[door].seed(rows, seconds)
    for rows, seconds in ((1, 10), (8, 30), (16, 60)):
        with pytest.raises(DeadlineUnmeetable) as caught:
            door.accept(chains(gaussian, rows), deadline=soon(0.5))
        assert caught.value.fields["estimated_seconds"] == pytest.approx(seconds, rel=1e-3)


def test_whoever_finds_the_queue_full_comes_back_when_there_is_room_for_him(
    gaussian: DiffusionModel,
) -> None:
    """Each behind those that were told before him, none later than all of it takes."""
    door = intake(max_queue_cost=240)
    measure(door, 1.0)
    for _ in range(3):
        door.accept(chains(gaussian, 8))  # ten seconds each
    told = []
    for _ in range(5):
        with pytest.raises(QueueFull) as caught:
            door.accept(chains(gaussian, 8))
        told.append(caught.value.retry_after)
    assert told == [10, 20, 30, 30, 30]


def test_a_batch_of_many_calls_tells_how_long_each_takes(gaussian: DiffusionModel) -> None:
    door = intake()
    measure(door, 50.0, steps=50)
    with pytest.raises(DeadlineUnmeetable) as caught:
        door.accept(chains(gaussian, 8), deadline=soon(5))
    assert caught.value.fields["estimated_seconds"] <= 10


def test_a_deadline_that_has_passed(gaussian: DiffusionModel) -> None:
    door = intake()
    with pytest.raises(DeadlineExceeded):
        door.accept(chains(gaussian, 1), deadline=time.monotonic())
    assert door.pending == door.held == 0


def test_of_many_deadlines_those_that_passed_are_told(gaussian: DiffusionModel) -> None:
    """In any order of arrival, each once; those of jobs that ended are not kept for ever."""
    door, dice = intake(), random.Random(0)
    late = [dice.random() < 0.3 for _ in range(500)]
    for passes in late:
        door.accept(chains(gaussian, 1), deadline=soon(1.5 if passes else 1000 + dice.random()))
    taken = door.poll(wait=False)
    assert taken is not None
    time.sleep(1.6)
    found = door.overdue()
    wanted = {record.key for record, passes in zip(taken[0], late, strict=True) if passes}
    assert found.keys() == wanted
    assert not door.overdue()
    for record in taken[0]:
        door.end(record, 10, found.get(record.key))
    assert len(door._deadlines) < 100


def test_the_overdue_are_told_once_the_engine_has_them(gaussian: DiffusionModel) -> None:
    door = intake()
    first = door.accept(chains(gaussian, 1), deadline=soon(0.2))
    door.accept(chains(gaussian, 1), deadline=soon(1000))
    time.sleep(0.25)
    assert door.overdue() == {}  # the engine does not know it yet
    taken = door.poll(wait=False)
    assert taken is not None
    assert list(door.overdue()) == [taken[0][0].key]
    door.end(taken[0][0], 10, DeadlineExceeded("late"))
    assert isinstance(first.future.exception(0), DeadlineExceeded)
    assert door.overdue() == {}
    assert door.pending == 10


def test_a_full_queue_reads_nothing_more(gaussian: DiffusionModel) -> None:
    door = intake(max_queue_cost=100, max_request_cost=100)
    measure(door, 1.0)
    door.accept(chains(gaussian, 9))
    with door.reserve(1000):
        door.accept(chains(gaussian, 1))
    with pytest.raises(QueueFull) as caught, door.reserve(1000):
        raise AssertionError("the body would be read")
    # Capacity for one like those that wait, 50 evaluations, at 8 a second.
    assert caught.value.retry_after == 7


def test_a_queue_takes_the_next_be_it_long_or_short(gaussian: DiffusionModel) -> None:
    """Else short ones would fill whatever comes free, and a long one would never be let in."""
    door = intake(max_queue_cost=100)
    door.accept(chains(gaussian, 9, steps=11))
    door.accept(chains(gaussian, 90))
    for rows in (1, 90):
        with pytest.raises(QueueFull):
            door.accept(chains(gaussian, rows))


def test_bodies_and_jobs_share_the_room_and_give_it_back(gaussian: DiffusionModel) -> None:
    door = intake(max_queue_bytes=4 * MIB)
    with door.reserve(MIB), door.reserve(MIB):
        assert 2 * MIB < door.held < 3 * MIB
        door.accept(chains(gaussian, 1), size=MIB)
        with pytest.raises(NoRoom) as caught, door.reserve(MIB):
            raise AssertionError("the body would be read")
        assert caught.value.retry_after >= 1
        with pytest.raises(NoRoom):
            door.accept(chains(gaussian, 1), size=MIB)
        door.accept(chains(gaussian, 1), size=MIB // 2)
    taken = door.poll(wait=False)
    assert taken is not None
    for record in taken[0]:
        door.end(record, 10, None)
    assert door.pending == door.held == 0


def test_whatever_the_limits_let_through_is_let_in_when_nobody_else_is_there(
    gaussian: DiffusionModel,
) -> None:
    settings = Settings(max_queue_bytes=4 * MIB, max_body_bytes=MIB)

    def fits(rows: int) -> bool:
        try:
            check_limits(chains(gaussian, rows, steps=1), gaussian, settings)
        except TooExpensive:
            return False
        return True

    largest = max(rows for rows in range(10_000, 1_000_000, 10_000) if fits(rows))
    job = chains(gaussian, largest, steps=1)
    door = RequestQueue({Lane("g"): Throughput()}, settings)
    with door.reserve(settings.max_body_bytes):
        door.accept(job, check_limits(job, gaussian, settings))
    assert door.pending == job.cost


def test_any_number_of_small_bodies_takes_room_too() -> None:
    door = intake(max_queue_bytes=2 * MIB)
    with ExitStack() as stack:
        while door.held < 2 * MIB:
            stack.enter_context(door.reserve(0))
        with pytest.raises(NoRoom):
            stack.enter_context(door.reserve(0))
    assert door.held == 0


def test_a_draining_service_reads_nothing() -> None:
    door = intake()
    door.stop()
    with pytest.raises(Draining), door.reserve(10):
        raise AssertionError("the body would be read")


def test_a_job_is_as_large_as_what_it_brings_and_what_it_answers(gaussian: DiffusionModel) -> None:
    job = chains(gaussian, 100)
    assert job.size(gaussian) == 100 * 2 * 4
    given = {"max_queue_bytes": MIB, "max_body_bytes": 2048}
    settings = Settings.model_validate(given)
    assert check_limits(job, gaussian, settings) == 800
    with pytest.raises(TooExpensive):
        check_limits(chains(gaussian, 200_000), gaussian, settings)


def test_terms_that_are_told_one_by_one_count_as_they_are_written(gaussian: DiffusionModel) -> None:
    job = terms(gaussian, torch.zeros(3, 2), count=8)
    told = replace(job, answer_bytes=1000)
    assert told.size(gaussian) == job.size(gaussian) + 1000
