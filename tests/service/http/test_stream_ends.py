"""How a stream ends before its result: the client left, the engine did, or time was up."""

import asyncio
from pathlib import Path

import pytest
from fastapi import FastAPI

from service.settings import Settings
from tests.service.http.caller import (
    MIXTURE,
    SHORT,
    Caller,
    held,
    network,
    starting,
    stepping,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("previews", [0, 4])
async def test_a_client_that_leaves_frees_its_rows(app: FastAPI, previews: int) -> None:
    backend = app.state.backend
    with held(app) as gate:
        accept = f"text/event-stream; previews={previews}"
        caller = Caller(app, MIXTURE | {"num_samples": 2000}, accept)
        await caller.next("progress")
        assert backend.engine.pending == 200_000
        await caller.leave()  # at once, though the engine is in the middle of a tick
        gate.set()
        await until(lambda: backend.engine.pending == 0)
    assert 'noneq_requests_total{outcome="client-left",route="/sample"}' in (
        backend.metrics.render().decode()
    )


@pytest.mark.usefixtures("hasty")
async def test_a_client_that_leaves_while_a_preview_is_awaited(app: FastAPI) -> None:
    backend = app.state.backend
    with stepping(app) as go:
        go.release()
        caller = Caller(app, MIXTURE | {"num_samples": 100}, "text/event-stream; previews=4")
        while (await caller.next("progress"))[1]["step"] == 0:
            pass
        await caller.leave()  # the second call is under way, and the preview waits for its end
    await until(lambda: backend.engine.pending == 0)
    assert backend.engine.ready


async def test_a_drain_lets_an_open_stream_finish(single: Path) -> None:
    async with starting(Settings(models=single, device="cpu", batch_size=8)) as app:
        backend = app.state.backend
        with held(app) as gate:
            caller = Caller(app, MIXTURE | SHORT, "text/event-stream; previews=1")
            await caller.next("progress")
            closing = asyncio.create_task(asyncio.to_thread(backend.close))
            await until(lambda: not backend.engine.ready)
            refused = Caller(app, MIXTURE, "text/event-stream")
            await asyncio.wait_for(refused.task, 60)
            assert (await refused.sent.get())["status"] == 503
            gate.set()
            await caller.next("result")
            await closing
        await asyncio.wait_for(caller.task, 60)


@pytest.mark.parametrize("fault", ["drained", "dead"])
async def test_when_the_engine_ends_first_the_stream_ends_in_its_problem(
    single: Path, fault: str
) -> None:
    settings = Settings(models=single, device="cpu", batch_size=8, drain_seconds=0.01)
    async with starting(settings) as app:
        backend = app.state.backend
        with held(app) as gate:
            caller = Caller(app, MIXTURE | {"num_samples": 64}, "text/event-stream; previews=1")
            await caller.next("progress")
            if fault == "dead":

                def die(*_: object) -> None:
                    raise SystemExit

                network(app).register_forward_hook(die)
                gate.set()
            else:
                closing = asyncio.create_task(asyncio.to_thread(backend.close))
                await asyncio.sleep(0.1)
                gate.set()
                await closing
            _, problem = await caller.next("error")
        slug = {"drained": "draining", "dead": "engine-dead"}[fault]
        assert problem["type"] == f"urn:noneq:problem:{slug}"
        await asyncio.wait_for(caller.task, 60)
