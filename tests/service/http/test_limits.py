"""Deadlines over HTTP, and bodies that are not read, or not for ever."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import save

from service.settings import Settings

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
MIXTURE: dict[str, Any] = {"model": "gaussian-mixture"}
MIB = 2**20


def app_of(client: httpx.AsyncClient) -> FastAPI:
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    assert isinstance(transport.app, FastAPI)
    return transport.app


def assert_problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document: dict[str, Any] = response.json()
    assert document["type"] == f"urn:noneq:problem:{slug}"
    assert document["fix"]
    return document


@pytest.mark.parametrize("given", ["soon", "", "-1", "0", "0.0", "nan", "inf", "1e3", "1,2"])
async def test_a_deadline_is_a_number_of_seconds(client: httpx.AsyncClient, given: str) -> None:
    response = await client.post("/sample", json=MIXTURE, headers={"x-deadline": given})
    document = assert_problem(response, 422, "invalid-request")
    assert document["location"] == "x-deadline"
    assert document["received"] == given


async def test_one_deadline_and_no_more(client: httpx.AsyncClient) -> None:
    headers = [("x-deadline", "5"), ("x-deadline", "6")]
    response = await client.post("/sample", json=MIXTURE, headers=headers)
    assert_problem(response, 422, "invalid-request")


async def test_an_answer_within_its_deadline(client: httpx.AsyncClient) -> None:
    response = await client.post("/sample", json=MIXTURE, headers={"x-deadline": "600.5"})
    assert response.status_code == 200


async def test_a_deadline_that_cannot_be_met_is_refused_and_told_what_could(
    client: httpx.AsyncClient,
) -> None:
    engine = app_of(client).state.backend.engine
    asked = MIXTURE | {"num_samples": 4000}
    first = await client.post("/sample", json=MIXTURE | {"num_samples": 256})
    assert first.status_code == 200  # a hundred ticks, measured
    response = await client.post("/sample", json=asked, headers={"x-deadline": "0.1"})
    document = assert_problem(response, 503, "deadline-unmeetable")
    assert document["estimated_seconds"] > 0.1
    assert "seconds left" in document["received"]
    assert "retry-after" not in response.headers  # nobody is before it
    assert engine.pending == 0
    exposition = (await client.get("/metrics")).text
    assert 'noneq_refused_total{cause="deadline-unmeetable"} 1.0' in exposition


async def test_what_is_not_done_by_its_deadline_is_dropped(
    single: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.admission._LENIENCE", math.inf)  # or it were refused
    settings = Settings(models=single, device="cpu", batch_size=1, deadline_seconds=0.3)
    async with serve(settings) as client:
        engine = app_of(client).state.backend.engine
        asked = MIXTURE | {"num_samples": 4000}
        response = await client.post("/sample", json=asked, headers={"x-deadline": "1000"})
        assert_problem(response, 504, "deadline-exceeded")
        assert engine.pending == 0


async def test_a_full_queue_reads_no_body(single: Path, serve: Serve) -> None:
    settings = Settings(
        models=single, device="cpu", batch_size=8, max_queue_cost=100, max_request_cost=100
    )
    read = False

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield json.dumps(MIXTURE).encode()

    async with serve(settings) as client:
        backlog = app_of(client).state.backend.engine._queue._backlog
        backlog.pending += 100
        assert_problem(await client.post("/sample", content=pieces()), 503, "queue-full")
        assert not read
        backlog.pending -= 100
        assert (await client.post("/sample", content=pieces())).status_code == 200


async def test_a_burst_of_large_bodies_is_read_as_far_as_there_is_room(
    single: Path, serve: Serve
) -> None:
    settings = Settings(
        models=single,
        device="cpu",
        batch_size=8,
        max_body_bytes=MIB,
        max_queue_bytes=8 * MIB,
        body_seconds=30,
    )
    body = json.dumps(MIXTURE | {"sampler": {"name": "ddim", "steps": 1}}).ljust(MIB).encode()
    held = []

    async with serve(settings) as client:
        intake = app_of(client).state.backend.engine._queue

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, MIB, MIB // 4):
                held.append(intake.held)
                yield body[start : start + MIB // 4]
                await asyncio.sleep(0.01)

        asked = [client.post("/sample", content=pieces()) for _ in range(40)]
        responses = await asyncio.gather(*asked)
        answered = [response for response in responses if response.status_code == 200]
        refused = [response for response in responses if response.status_code != 200]
        assert answered
        assert refused
        assert max(held) <= 8 * MIB
        for response in refused:
            assert_problem(response, 503, "no-room")
            assert int(response.headers["retry-after"]) >= 1
        assert intake.held == 0
        assert (await client.post("/sample", content=body)).status_code == 200


@pytest.mark.parametrize(
    ("body_seconds", "headers", "status", "slug"),
    [
        (0.2, {}, 408, "body-timeout"),
        (0.2, {"x-deadline": "1000"}, 408, "body-timeout"),
        (1000.0, {"x-deadline": "0.2"}, 504, "deadline-exceeded"),
    ],
)
async def test_a_body_that_stops_halfway_keeps_nobody_out(
    single: Path,
    serve: Serve,
    body_seconds: float,
    headers: dict[str, str],
    status: int,
    slug: str,
) -> None:
    settings = Settings(
        models=single,
        device="cpu",
        batch_size=8,
        max_body_bytes=MIB,
        max_queue_bytes=2 * MIB,
        body_seconds=body_seconds,
    )

    async def stopping() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.Event().wait()

    async with serve(settings) as client:
        asked = client.post("/sample", content=stopping(), headers=headers)
        late = await asyncio.wait_for(asked, 60)
        assert_problem(late, status, slug)
        assert app_of(client).state.backend.engine._queue.held == 0
        assert (await client.post("/sample", json=MIXTURE)).status_code == 200


def chunked(body: bytes) -> AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    return pieces()


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_json_has_a_limit_of_its_own_and_tensors_have_not(
    single: Path, serve: Serve, in_pieces: bool
) -> None:
    settings = Settings(
        models=single, device="cpu", batch_size=8, max_json_bytes=4096, max_body_bytes=MIB
    )
    asked = MIXTURE | {"terms": 4, "data": [[0.0, 0.0]] * 900}
    tensors = {"data": torch.zeros(900, 2)}
    words = {"request": json.dumps(MIXTURE | {"terms": 4})}
    binary = {"content-type": "application/octet-stream"}

    def sent(body: bytes) -> bytes | AsyncIterator[bytes]:
        return chunked(body) if in_pieces else body

    async with serve(settings) as client:
        body = json.dumps(asked).encode()
        for headers in ({}, {"content-type": "application/json"}, {"content-type": "text/plain"}):
            response = await client.post("/loglik", content=sent(body), headers=headers)
            document = assert_problem(response, 413, "body-too-large")
            assert document["expected"] == "at most 4096 bytes of JSON, or 1048576 of safetensors"
            assert "application/octet-stream" in document["fix"]
            came = int(document["received"].removeprefix("at least ").removesuffix(" bytes"))
            assert 4096 < came <= len(body)
            assert in_pieces or came == len(body)
        file = save(tensors, words)
        assert len(file) > 4096
        response = await client.post("/loglik", content=sent(file), headers=binary)
        assert response.status_code == 200
        # JSON is no cheaper to decode where a safetensors file holds it.
        file = save(tensors, {"request": body.decode()})
        response = await client.post("/loglik", content=sent(file), headers=binary)
        assert_problem(response, 413, "body-too-large")
        assert app_of(client).state.backend.engine._queue.held == 0


async def test_json_that_is_too_long_is_not_read(single: Path, serve: Serve) -> None:
    settings = Settings(models=single, device="cpu", batch_size=8, max_json_bytes=4096)
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1000
            yield b" " * 1000

    async with serve(settings) as client:
        declared = {"content-length": "100000"}
        response = await client.post("/sample", content=pieces(), headers=declared)
        assert_problem(response, 413, "body-too-large")
        assert read == 0
        assert_problem(await client.post("/sample", content=pieces()), 413, "body-too-large")
        assert read == 5000


async def test_a_body_that_is_no_request_gives_its_room_back(client: httpx.AsyncClient) -> None:
    assert (await client.post("/loglik", content=b"{")).status_code == 400
    assert app_of(client).state.backend.engine._queue.held == 0


async def test_the_header_is_documented_on_every_question(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for name in ("sample", "loglik", "inpaint", "denoise"):
        operation = paths[f"/{name}"]["post"]
        names = [given["name"] for given in operation["parameters"]]
        assert names == ["x-deadline", "Prefer", "Idempotency-Key"]
        assert {"408", "503", "504"} <= set(operation["responses"])
