"""Each fault, injected under a running service: whom it concerns is told, others are answered."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from torch import Tensor

from service.settings import Settings
from tests.service.http.caller import MIXTURE, connect, held, network, parse, starting, until

pytestmark = pytest.mark.anyio

EVENTS = {"accept": "text/event-stream"}
PLAIN: dict[str, str] = {}
HEALTHY = MIXTURE | {"num_samples": 5, "sampler": {"name": "ancestral", "steps": 8}}
# What was seen is far out, and so is every state of its chains: that marks their rows.
MARKED = MIXTURE | {"observed": [[1000.0, 0.0]], "known": [1, 0], "num_samples": 2}
MARKED |= {"method": "product"}

Fault = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
async def app(single: Path) -> AsyncIterator[FastAPI]:
    """One for each test: some faults are the end of it."""
    settings = Settings(models=single, device="cpu", batch_size=4, slots=64, drain_seconds=1)
    async with starting(settings) as found:
        yield found


@contextmanager
def spoilt(app: FastAPI, fault: Fault) -> Iterator[None]:
    """Network calls in which `fault` does something to marked rows: (output, marked) -> output."""

    def act(_module: object, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        marked = given[0][:, 0].abs() > 100
        return fault(out, marked) if bool(marked.any()) else out

    hook = network(app).register_forward_hook(act)
    try:
        yield
    finally:
        hook.remove()


def raising(error: BaseException) -> Fault:
    def act(_out: Tensor, _marked: Tensor) -> Tensor:
        raise error

    return act


async def ask(
    client: httpx.AsyncClient, path: str, asked: dict[str, Any], headers: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    """The status and the answer or problem that it came to; a stream's status is its problem's."""
    response = await client.post(path, json=asked, headers=headers)
    if not response.headers["content-type"].startswith("text/event-stream"):
        return response.status_code, response.json()
    name, data = parse(response.text)[-1]
    assert name in ("result", "error")
    found = json.loads(data)
    return 200 if name == "result" else found["status"], found


async def all_at_once(
    app: FastAPI, client: httpx.AsyncClient, asked: list[tuple[str, dict[str, Any]]]
) -> list[list[tuple[int, dict[str, Any]]]]:
    """How plain routes and streams end, of requests that have all been accepted before a tick."""
    backend = app.state.backend
    with held(app) as gate:
        waiting = [
            asyncio.ensure_future(ask(client, path, body, headers))
            for path, body in asked
            for headers in (PLAIN, EVENTS)
        ]
        records = backend.engine._queue._records
        await until(lambda: len(records) == len(waiting))
        gate.set()
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*waiting)
    return [ends[i : i + 2] for i in range(0, len(ends), 2)]


def assert_left_nothing(app: FastAPI) -> None:
    value = app.state.backend.metrics.registry.get_sample_value
    for name in ("queue_cost", "queue_bytes", "rows_running", "rows_waiting"):
        assert value(f"noneq_{name}") == 0, name


@pytest.mark.parametrize(
    ("fault", "slug"),
    [
        (lambda out, marked: out.masked_fill(marked[:, None], torch.nan), "numerical-failure"),
        (raising(torch.OutOfMemoryError("no room")), "out-of-memory"),
        (raising(RuntimeError("a broken kernel")), "internal-error"),
    ],
    ids=["a row that is not finite", "out of memory", "an exception"],
)
async def test_a_fault_ends_the_request_it_concerns_and_no_other(
    app: FastAPI, fault: Fault, slug: str
) -> None:
    async with connect(app) as client:
        _, expected = await ask(client, "/sample", HEALTHY, PLAIN)
        with spoilt(app, fault):
            asked = [("/sample", HEALTHY), ("/inpaint", MARKED), ("/sample", HEALTHY)]
            before, bad, after = await all_at_once(app, client, asked)
        for status, answer in (*before, *after):
            assert status == 200
            for ours, theirs in zip(answer["samples"], expected["samples"], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        for status, problem in bad:
            assert (status, problem["type"]) == (500, f"urn:noneq:problem:{slug}")
        assert_left_nothing(app)
        status, _ = await ask(client, "/inpaint", MARKED, EVENTS)  # the fault has passed
        assert status == 200
        exposition = (await client.get("/metrics")).text
        assert f'noneq_requests_total{{outcome="{slug}",route="/inpaint"}} 2.0' in exposition


async def test_memory_that_holds_half_a_batch_loses_nothing(app: FastAPI) -> None:
    sizes: list[int] = []

    def limit(_module: object, given: tuple[Tensor, ...]) -> None:
        sizes.append(len(given[0]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no room")

    async with connect(app) as client:
        _, expected = await ask(client, "/sample", HEALTHY, PLAIN)
        hook = network(app).register_forward_pre_hook(limit)
        try:
            ends = await all_at_once(app, client, [("/sample", HEALTHY)] * 3)
        finally:
            hook.remove()
        for status, answer in (end for pair in ends for end in pair):
            assert status == 200
            for ours, theirs in zip(answer["samples"], expected["samples"], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        # Once, and now and then whether there is room again.
        assert 1 <= sum(size > 2 for size in sizes) <= 1 + len(sizes) // 100
        assert_left_nothing(app)


@pytest.mark.parametrize("error", [SystemExit("gone"), torch.AcceleratorError("device lost")])
async def test_when_the_engine_dies_everybody_is_told_and_nobody_waits(
    app: FastAPI, error: BaseException
) -> None:
    async with connect(app) as client:
        with spoilt(app, raising(error)):
            asked = [("/sample", HEALTHY), ("/inpaint", MARKED)]
            ends = await all_at_once(app, client, asked)
            told = [end for pair in ends for end in pair]
        # The healthy ones may have been done before the marked rows came to their second step.
        dead = [problem for status, problem in told if status != 200]
        assert len(dead) >= 2
        for problem in dead:
            assert problem["type"] == "urn:noneq:problem:engine-dead"
        for path in ("/health/live", "/health/ready"):
            assert (await client.get(path)).json()["type"] == "urn:noneq:problem:engine-dead"
        for headers in (PLAIN, EVENTS):
            status, problem = await ask(client, "/sample", HEALTHY, headers)
            assert (status, problem["type"]) == (500, "urn:noneq:problem:engine-dead")
        assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize("headers", [PLAIN, EVENTS], ids=["plain", "stream"])
async def test_a_deadline_that_passes_on_the_way_is_told(
    app: FastAPI, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.admission._LENIENCE", math.inf)  # or it were refused
    async with connect(app) as client:
        with held(app) as gate:
            asked = MIXTURE | {"num_samples": 50}
            late = asyncio.ensure_future(
                ask(client, "/sample", asked, headers | {"x-deadline": "0.2"})
            )
            patient = asyncio.ensure_future(ask(client, "/sample", HEALTHY, headers))
            intake = app.state.backend.engine._queue
            await until(lambda: len(intake._records) == 2)
            await asyncio.sleep(0.25)  # the deadline is one of the clock's
            gate.set()
            status, problem = await asyncio.wait_for(late, 60)
            assert (status, problem["type"]) == (504, "urn:noneq:problem:deadline-exceeded")
            assert (await asyncio.wait_for(patient, 60))[0] == 200
        assert_left_nothing(app)


async def test_a_full_queue_is_no_stream(single: Path) -> None:
    asked = MIXTURE | {"num_samples": 1}
    settings = Settings(
        models=single, device="cpu", batch_size=8, max_queue_cost=100, max_request_cost=100
    )
    async with starting(settings) as app, connect(app) as client:
        with held(app) as gate:
            first = asyncio.ensure_future(ask(client, "/sample", asked, EVENTS))
            await until(lambda: app.state.backend.engine.pending == 100)
            refused = await client.post("/sample", json=asked, headers=EVENTS)
            gate.set()
            assert (await asyncio.wait_for(first, 60))[0] == 200
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:noneq:problem:queue-full"
        assert int(refused.headers["retry-after"]) >= 1
