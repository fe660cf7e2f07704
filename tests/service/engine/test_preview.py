"""Previews of a job between two batches: x_0hat as the offline loop has it, and no harm done."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from threading import Semaphore
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.estimator import choose_steps
from diffusion.model import DiffusionModel
from diffusion.samplers import Ancestral, sample
from service.engine import BoundJob, Engine, SampleJob
from service.engine.results import JobPreview
from service.errors import EngineDead

SAMPLER, SEED, ROWS = Ancestral(steps=4), 7, 6


class Steps:
    """In the place of the mischief's gate: one network call passes at a time."""

    def __init__(self) -> None:
        self.open = False
        self.arrivals, self.permits = Semaphore(0), Semaphore(0)

    def wait(self, timeout: float) -> bool:
        self.arrivals.release()
        return self.open or self.permits.acquire(timeout=timeout)

    def arrive(self) -> None:
        assert self.arrivals.acquire(timeout=60)

    def set(self) -> None:
        self.open = True
        self.permits.release(100)


@pytest.fixture(autouse=True)
def a_step_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network call is a batch of its own, and can be watched."""
    monkeypatch.setattr("service.engine.scheduling.scheduler.MULTI_STEP_SECONDS", 0.0)


@pytest.fixture
def steps() -> Iterator[Steps]:
    """Named last by a test, and so opened before its engine is stopped."""
    found = Steps()
    yield found
    found.set()


def chains(model: DiffusionModel, rows: int = ROWS) -> SampleJob:
    return SampleJob("g", rows, SEED, SAMPLER.plan(model))


def look(future: "Future[JobPreview | None]") -> tuple[int, list[bool], Tensor]:
    preview = future.result(60)
    assert preview is not None
    return preview.done, preview.finished, preview.x_0()


def test_a_look_after_each_batch(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    steps: Steps,
) -> None:
    hats: list[Tensor] = []
    samples = sample(
        faulty, ROWS, seed=SEED, sampler=SAMPLER, progress=lambda _, x_0: hats.append(x_0)
    )
    engine = make_engine(g=faulty, limits={"batch_size": 4, "slots": 6})
    mischief.gate = steps
    ticket = engine.submit(chains(faulty))
    seen = []
    for _ in range(7):
        steps.arrive()
        future = ticket.preview(100)
        steps.permits.release()
        seen.append(look(future))
    late = ticket.preview(100)
    steps.set()
    assert late.result(60) is None
    assert ticket.preview(100).result(60) is None  # and a call when it is over
    assert torch.equal(ticket.result(60).samples, engine.submit(chains(faulty)).result(60).samples)

    close = {"rtol": 1e-4, "atol": 1e-5}
    for batch, (done, finished, x_0) in enumerate(
        seen[:3]
    ):  # four rows on their way, two not begun
        assert (done, finished) == (4 * (batch + 1), [False] * 4)
        assert_close(x_0, hats[batch][:4], **close)
    done, finished, x_0 = seen[3]
    assert (done, finished) == (16, [True] * 4)
    assert_close(x_0, samples[:4], **close)
    for batch, (done, finished, x_0) in enumerate(seen[4:]):
        assert (done, finished) == (16 + 2 * (batch + 1), [True] * 4 + [False] * 2)
        assert_close(x_0, torch.cat((samples[:4], hats[batch][4:])), **close)


def test_a_look_at_the_first_rows_only_and_before_any_began(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    steps: Steps,
) -> None:
    engine = make_engine(g=faulty, limits={"batch_size": 4, "slots": 6})
    mischief.gate = steps
    first = engine.submit(chains(faulty, 4))
    steps.arrive()
    second = engine.submit(chains(faulty, 1))  # when every slot is taken
    futures = first.preview(2), second.preview(2)
    steps.permits.release()
    assert look(futures[0])[1] == [False, False]
    done, finished, x_0 = look(futures[1])  # no slot is free for it
    assert (done, finished, x_0.shape) == (0, [], (0, 2))
    steps.set()
    for ticket in (first, second):
        ticket.result(60)


def test_terms_have_nothing_to_show(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    steps: Steps,
) -> None:
    engine = make_engine(g=faulty)
    mischief.gate = steps
    x_0 = torch.zeros(3, 2)
    terms = choose_steps(faulty.T, torch.arange(3), SEED, "density")
    ticket = engine.submit(BoundJob("g", x_0, SEED, terms, "density"))
    future = ticket.preview(3)
    steps.set()
    assert future.result(60) is None
    ticket.result(60)


def test_a_look_that_is_given_up_or_fails_harms_nobody(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    steps: Steps,
) -> None:
    engine = make_engine(g=faulty)
    mischief.gate = steps
    ticket = engine.submit(chains(faulty))
    steps.arrive()
    assert ticket.preview(3).cancel()

    def fail(*_: object) -> JobPreview:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("service.engine.results.JobPreview.of", fail)
    future = ticket.preview(3)
    steps.set()
    assert future.result(60) is None
    expected = sample(faulty, ROWS, seed=SEED, sampler=SAMPLER)
    assert_close(ticket.result(60).samples, expected, rtol=1e-4, atol=1e-5)


def test_when_the_thread_dies_who_looks_is_told(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    steps: Steps,
) -> None:
    engine = make_engine(g=faulty)
    mischief.gate = steps

    def die(_out: Tensor, _marked: Tensor) -> Tensor:
        raise SystemExit

    mischief.on_marked = die
    start = torch.full((1, 2), 1000.0)
    ticket = engine.submit(SampleJob("g", 1, SEED, SAMPLER.plan(faulty), start=start))
    steps.arrive()
    future = ticket.preview(1)
    steps.set()
    assert future.result(60) is None
    assert ticket.preview(1).result(60) is None


def test_a_preview_that_loses_the_device_ends_the_engine_and_all_who_look_are_told(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    steps: Steps,
) -> None:
    engine = make_engine(g=faulty)
    mischief.gate = steps
    ticket = engine.submit(chains(faulty))
    steps.arrive()

    def lose(*_: object) -> JobPreview:
        raise torch.AcceleratorError("device lost")

    monkeypatch.setattr("service.engine.results.JobPreview.of", lose)
    futures = ticket.preview(3), ticket.preview(3)
    steps.set()
    assert [future.result(60) for future in futures] == [None, None]
    with pytest.raises(EngineDead, match="device lost"):
        ticket.result(60)
    assert not engine.alive


def test_a_ticket_says_how_long_it_waited(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    steps: Steps,
) -> None:
    engine = make_engine(g=faulty, limits={"batch_size": 4, "slots": 6})
    mischief.gate = steps
    first = engine.submit(chains(faulty, 4))
    steps.arrive()  # the engine is in the first batch, and stays there
    second = engine.submit(chains(faulty, 1))
    assert first.queue_seconds is not None
    assert second.queue_seconds is None
    assert engine.seconds_pending > 0
    steps.permits.release()
    steps.arrive()  # in the second, where a newcomer has its turn
    assert second.queue_seconds is not None
    told = first.queue_seconds, second.queue_seconds
    steps.set()
    results = first.result(60), second.result(60)
    assert tuple(result.stats.queue_seconds for result in results) == told
    assert engine.seconds_pending == 0
