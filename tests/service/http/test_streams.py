"""A stream tells the truth on its way and ends in the plain route's answer, or its problem."""

import asyncio
import json
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from torch import Tensor

from service.api import streams
from tests.service.http.caller import (
    MIXTURE,
    SHORT,
    Caller,
    Event,
    held,
    network,
    parse,
    stepping,
)

pytestmark = pytest.mark.anyio

EVENTS = {"accept": "text/event-stream"}
BITS: dict[str, Any] = {"model": "bit-patterns", "seed": 7}
QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("/sample", MIXTURE | {"num_samples": 5}),
    ("/sample", {"model": "grey", "seed": 7, "num_samples": 2}),
    ("/loglik", MIXTURE | {"data": [[0.5, -1.0], [9.0, 9.0]], "per_step": True}),
    ("/inpaint", MIXTURE | {"observed": [[0.5, 0.0]], "known": [1, 0], "num_samples": 3}),
    ("/denoise", MIXTURE | {"observed": [[0.5, -1.0]], "noise_std": 0.5, "num_samples": 3}),
    ("/denoise", BITS | {"observed": [[1, 0, 0, 0]], "flip_probability": 0.1}),
]


def assert_progress(events: list[Event], total: int) -> None:
    """It goes up, the last is all of it and has the timings."""
    told = [json.loads(data) for name, data in events if name == "progress"]
    steps = [progress["step"] for progress in told]
    assert steps == sorted(steps)
    assert {progress["total"] for progress in told} == {total}
    last = told[-1]
    assert (last["state"], last["step"], last["seconds_left"]) == ("done", total, 0.0)
    assert last["queue_seconds"] >= 0
    assert last["compute_seconds"] > 0
    assert all(progress["state"] != "done" for progress in told[:-1])


@pytest.mark.parametrize(("path", "asked"), QUESTIONS)
async def test_a_stream_ends_in_the_plain_answer(
    client: httpx.AsyncClient, path: str, asked: dict[str, Any]
) -> None:
    plain = await client.post(path, json=asked)
    assert plain.status_code == 200
    response = await client.post(path, json=asked, headers=EVENTS)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert "x-request-id" in response.headers
    assert "x-compute-time" not in response.headers  # none that is true
    events = parse(response.text)
    assert events[0][0] == "progress"
    assert events[-1] == ("result", plain.text)
    assert_progress(events, plain.json()["network_evaluations"])


@pytest.mark.usefixtures("hasty")
async def test_progress_is_told_on_the_way(app: FastAPI) -> None:
    asked = MIXTURE | {"num_samples": 6, "sampler": {"name": "ancestral", "steps": 20}}
    with stepping(app) as go:
        caller = Caller(app, asked, "text/event-stream", go=go)
        events = [await caller.event()]
        while events[-1][0] != "result":
            events.append(await caller.event())
    await asyncio.wait_for(caller.task, 60)
    assert_progress(events, 120)
    running = [json.loads(data) for name, data in events[:-1] if name == "progress"][1:-1]
    assert len(running) > 10
    assert all(progress["state"] == "running" for progress in running if progress["step"])
    assert all(progress["seconds_left"] >= 0 for progress in running if progress["step"])


async def test_while_others_are_served_first_the_time_of_all_is_told(app: FastAPI) -> None:
    with held(app) as gate:
        first = Caller(app, MIXTURE | SHORT | {"num_samples": 4}, "text/event-stream")
        _, alone = await first.next("progress")
        assert (alone["state"], alone["step"], alone["seconds_left"]) == ("waiting", 0, None)
        second = Caller(app, MIXTURE | SHORT | {"num_samples": 1}, "text/event-stream")
        _, behind = await second.next("progress")
        assert behind["state"] == "waiting"
        assert behind["seconds_left"] is not None
        gate.set()
        for caller in (first, second):
            await caller.next("result")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"model": "nobody"}, 404),
        (MIXTURE | {"num_samples": 0}, 422),
        (MIXTURE | {"num_samples": 10**9}, 422),
    ],
)
async def test_what_is_refused_is_no_stream(
    client: httpx.AsyncClient, asked: dict[str, Any], status: int
) -> None:
    response = await client.post("/sample", json=asked, headers=EVENTS)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.usefixtures("hasty")
async def test_what_fails_on_the_way_ends_in_the_plain_problem(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = MIXTURE | {"num_samples": 3}
    calls = 0

    def spoil(_module: object, _given: object, out: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return out * torch.nan if calls % 10 == 0 else out

    monkeypatch.setattr(
        "service.engine.scheduling.scheduler.MULTI_STEP_SECONDS", 0.0
    )  # each call is a tick
    hook = network(app).register_forward_hook(spoil)
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://noneq") as client:
            plain = await client.post("/sample", json=asked)
            response = await client.post("/sample", json=asked, headers=EVENTS)
            exposition = (await client.get("/metrics")).text
    finally:
        hook.remove()
    assert plain.status_code == 500
    assert response.status_code == 200  # it had begun
    events = parse(response.text)
    assert [name for name, _ in events].count("error") == 1
    name, data = events[-1]
    document = json.loads(data)
    assert document["request_id"] == response.headers["x-request-id"]
    assert name == "error"
    assert document | {"request_id": 0} == plain.json() | {"request_id": 0}
    assert 'noneq_requests_total{outcome="numerical-failure",route="/sample"} 2.0' in exposition


async def test_an_unforeseen_failure_tells_no_secrets(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("service.handlers.sample.SampleWork.answer", fail)
    asked = MIXTURE | {"sampler": {"name": "ddim", "steps": 1}}
    response = await client.post("/sample", json=asked, headers=EVENTS)
    name, data = parse(response.text)[-1]
    assert (name, json.loads(data)["type"]) == ("error", "urn:noneq:problem:internal-error")
    assert "secret" not in response.text


@pytest.mark.usefixtures("hasty")
async def test_silence_is_broken_by_comments(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.01)
    with held(app) as gate:
        caller = Caller(app, MIXTURE | SHORT, "text/event-stream")
        names = [(await caller.event())[0] for _ in range(4)]
        assert names[0] == "progress"
        assert names.count("") >= 2  # the first tick may begin in between, which is news once
        gate.set()
        await caller.next("result")
