"""A job's life in the engine: accepted or refused, run beside others, ended one way or another."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from torch.testing import assert_close

from diffusion.model import DiffusionModel
from diffusion.samplers import DDIM, Ancestral, sample
from service.engine import Engine
from service.errors import (
    DeadlineExceeded,
    Draining,
    NotReady,
    NumericalFailure,
    QueueFull,
    TooExpensive,
    UnknownModel,
)
from service.metrics import Metrics
from service.settings import Settings
from tests.service.engine.jobs import chains, terms


def test_chains_and_terms_share_a_network_call(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.gate.clear()
    mischief.entered.clear()
    blocker = engine.submit(chains(faulty, 1, sampler=Ancestral(steps=1)))
    assert mischief.entered.wait(120)
    mischief.sizes.clear()
    both = engine.submit(chains(faulty, 3)), engine.submit(terms(faulty, torch.zeros(2, 2)))
    mischief.gate.set()
    for ticket in (blocker, *both):
        ticket.result(120)
    needed = sum(ticket.cost for ticket in both)
    assert mischief.sizes[1] == 8
    assert len(mischief.sizes) - 1 <= max(-(-needed // 8), both[0].cost // 3) + 1


def test_a_short_job_overtakes_a_long_one(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    long = engine.submit(chains(gaussian, 300))
    short = engine.submit(chains(gaussian, 1, sampler=DDIM(steps=4)))
    short.result(120)
    assert not long.future.done()
    assert long.done < long.cost / 4
    long.cancel()


@pytest.mark.parametrize("through", ["ticket", "asyncio"])
def test_cancelling_frees_the_rows_and_the_queue(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    through: str,
) -> None:
    metrics = Metrics()
    engine = make_engine(metrics, g=faulty)
    mischief.gate.clear()
    mischief.entered.clear()
    ticket = engine.submit(chains(faulty, 20))
    assert mischief.entered.wait(120)
    if through == "ticket":
        assert ticket.cancel()
    else:

        async def leave() -> None:
            async with asyncio.timeout(0.01):
                await asyncio.wrap_future(ticket.future)

        with pytest.raises(TimeoutError):
            asyncio.run(leave())
    mischief.sizes.clear()
    mischief.gate.set()
    with pytest.raises(CancelledError):
        ticket.result(120)
    engine.submit(chains(faulty, 1, sampler=Ancestral(steps=1))).result(120)
    *under_way, last = mischief.sizes
    assert set(under_way) == {8}  # the batch that was under way, perhaps a burst: no row behind it
    assert len(under_way) <= faulty.T
    assert last == 1  # the next job's
    assert engine.pending == 0
    assert metrics.registry.get_sample_value("noneq_rows_running") == 0
    assert metrics.registry.get_sample_value("noneq_rows_waiting") == 0


def test_a_full_queue_says_when_to_come_back(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty, limits={"max_queue_cost": 100, "max_request_cost": 90})
    mischief.gate.clear()
    first = engine.submit(chains(faulty, 5))
    fits = engine.submit(chains(faulty, 2))  # 80 evaluations waited, and it adds 32
    with pytest.raises(QueueFull) as caught:
        engine.submit(chains(faulty, 1))
    assert caught.value.retry_after >= 1
    assert caught.value.headers["retry-after"] == str(caught.value.retry_after)
    mischief.gate.set()
    first.result(120), fits.result(120)
    assert engine.pending == 0
    engine.submit(chains(faulty, 2)).result(120)


def test_a_deadline_that_passes_frees_the_rows_of_running_and_waiting_jobs(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    metrics = Metrics()
    engine = make_engine(metrics, g=faulty)
    mischief.gate.clear()
    mischief.entered.clear()
    deadline = time.monotonic() + 3
    running = engine.submit(chains(faulty, 9, sampler=Ancestral(steps=2)), deadline)
    assert mischief.entered.wait(120)
    waiting = engine.submit(terms(faulty, torch.zeros(2, 2), count=6), deadline)
    patient = engine.submit(chains(faulty, 1, sampler=Ancestral(steps=1)), deadline + 1000)
    mischief.sizes.clear()
    while time.monotonic() < deadline:
        time.sleep(0.01)
    mischief.gate.set()
    for ticket in (running, waiting):
        with pytest.raises(DeadlineExceeded, match=r"of \d+ network"):
            ticket.result(120)
    patient.result(120)
    *under_way, last = mischief.sizes
    assert set(under_way) == {8}  # the batch that was under way, perhaps a burst of both steps
    assert last == 1  # and who has time
    assert engine.pending == 0
    assert metrics.registry.get_sample_value("noneq_rows_running") == 0
    assert metrics.registry.get_sample_value("noneq_rows_waiting") == 0
    assert metrics.registry.get_sample_value("noneq_queue_bytes") == 0


def test_what_can_be_done_in_time_is_done(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    ticket = engine.submit(chains(gaussian, 5), time.monotonic() + 1000)
    assert_close(ticket.result(120).samples, sample(gaussian, 5, seed=7), rtol=1e-4, atol=1e-5)


def test_too_dear_a_request_is_refused_at_once(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian, limits={"max_request_cost": 100})
    with pytest.raises(TooExpensive) as caught:
        engine.submit(chains(gaussian, 1000))
    assert caught.value.fields["received"] == 16_000
    assert engine.pending == 0


def test_an_unknown_model(gaussian: DiffusionModel, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(g=gaussian)
    with pytest.raises(UnknownModel) as caught:
        engine.submit(chains(gaussian, 1, name="h"))
    assert caught.value.fields["expected"] == ["g"]


def test_parts_that_do_not_fit(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    with pytest.raises(ValueError, match="`start` has shape"):
        engine.submit(chains(gaussian, 3, start=torch.zeros(2, 2)))
    with pytest.raises(ValueError, match="`x_0` has shape"):
        engine.submit(terms(gaussian, torch.zeros(2, 3)))
    seen = gaussian.process.nothing_seen((2,), 4)
    with pytest.raises(ValueError, match="`observation` has shape"):
        engine.submit(chains(gaussian, 3, observation=seen))


def test_draining_finishes_what_was_accepted(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    assert engine.ready
    tickets = [engine.submit(chains(gaussian, 10, seed)) for seed in range(3)]
    drained: list[bool] = []
    waiter = threading.Thread(target=lambda: drained.append(engine.drain(120)))
    waiter.start()
    while engine.ready:
        time.sleep(0.001)
    with pytest.raises(Draining):
        engine.submit(chains(gaussian, 1))
    waiter.join(120)
    assert drained == [True]
    assert all(ticket.future.done() and ticket.future.exception() is None for ticket in tickets)
    assert not engine.alive
    assert not engine.ready


def test_draining_gives_up_in_the_end(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.gate.clear()
    ticket = engine.submit(chains(faulty, 10))
    threading.Timer(0.2, mischief.gate.set).start()
    assert not engine.drain(0.01)
    with pytest.raises(Draining):
        ticket.result(120)


def test_an_engine_that_was_not_started(gaussian: DiffusionModel) -> None:
    engine = Engine({"g": gaussian}, Settings(batch_size=4, slots=4))
    assert not engine.alive
    with pytest.raises(NotReady):
        engine.submit(chains(gaussian, 1))
    engine.stop()


def test_many_threads_submit_and_cancel(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    expected = sample(gaussian, 3, seed=5)
    wrong: list[object] = []

    def client(number: int) -> None:
        for turn in range(4):
            ticket = engine.submit(chains(gaussian, 3, seed=5))
            if (number + turn) % 3 == 0:
                ticket.cancel()
                continue
            samples = ticket.result(60).samples
            if not torch.allclose(samples, expected, rtol=1e-4, atol=1e-5):
                wrong.append(samples)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
    assert not wrong
    assert engine.drain(120)
    assert engine.pending == 0


def test_metrics_count_what_was_done(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    metrics = Metrics()
    engine = make_engine(metrics, g=gaussian)
    engine.submit(chains(gaussian, 6)).result(120)
    engine.submit(terms(gaussian, torch.zeros(2, 2), count=6)).result(120)
    engine.drain(120)
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    assert {
        "noneq_requests",
        "noneq_rows_running",
        "noneq_rows_waiting",
        "noneq_queue_seconds",
        "noneq_compute_seconds",
        "noneq_batch_fill",
        "noneq_network_evaluations",
        "noneq_batches",
    } <= set(families)
    value = metrics.registry.get_sample_value
    assert value("noneq_network_evaluations_total", {"model": "g"}) == 6 * 16 + 2 * 6
    assert value("noneq_compute_seconds_count") == value("noneq_queue_seconds_count") == 2
    assert value("noneq_rows_running") == 0
    assert value("noneq_batches_total", {"model": "g"}) == value("noneq_batch_fill_count")


def test_a_start_that_is_not_finite(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    start = torch.zeros(3, 2)
    start[1, 0] = torch.nan
    with pytest.raises(NumericalFailure, match="sample 1"):
        engine.submit(chains(gaussian, 3, first=9, start=start)).result(120)
