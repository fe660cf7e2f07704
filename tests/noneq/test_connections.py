"""Over real sockets: what breaks or is refused is the right exception, or is asked again."""

import json
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anyio
import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from noneq import (
    AsyncClient,
    BadRequest,
    Busy,
    Client,
    ConnectionFailed,
    ConnectionLost,
    DeadlineMissed,
    NoneqError,
    Patience,
    Samples,
    TimedOut,
    TooLarge,
    Unauthorized,
    UnknownModel,
    UnreadableAnswer,
    requests,
)
from noneq.codec import EVENTS, Body, encode
from service.app import create_app
from service.errors import QueueFull
from service.settings import Settings
from tests.noneq.conftest import ONCE, on_a_socket
from tests.noneq.scripted import CUT, CUT_STREAM, cutting, response, scripted
from tests.service.http.caller import held, starting, until

GOOD = response(
    "200 OK",
    encode(Body({"model": "m", "seed": 3}, {"samples": np.zeros((1, 2), np.float32)}), "answer")[0],
    content_type="application/octet-stream",
)
FULL = response(
    "503 Service Unavailable",
    json.dumps(QueueFull("The queue is full.", retry_after=4).to_document()).encode(),
    content_type="application/problem+json",
    retry_after="4",
)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clients waited, without waiting."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("noneq.client.time", SimpleNamespace(sleep=found.append))
    monkeypatch.setattr("noneq.client.anyio", SimpleNamespace(sleep=sleep))
    return found


@pytest.mark.parametrize(
    ("answer", "listens", "kind", "told"),
    [
        (CUT, False, ConnectionLost, "before the answer was complete"),
        (CUT_STREAM, True, ConnectionLost, "before the answer was complete"),
        (b"\x00", False, ConnectionLost, "before the answer was complete"),
        (response("200 OK", b"<html>", content_type="text/html"), False, UnreadableAnswer, "html"),
        (response("302 Found", b"", location="/x"), False, UnreadableAnswer, "302"),
        (response("502 Bad Gateway", b"<html>nginx</html>"), False, Busy, "nginx"),
        (response("404 Not Found", b"no such page"), False, BadRequest, "no such page"),
        (
            response("200 OK", b": hello\n\n", content_type=EVENTS),
            True,
            ConnectionLost,
            "before its result",
        ),
        (
            response("200 OK", b"event: error\ndata: nonsense\n\n", content_type=EVENTS),
            True,
            UnreadableAnswer,
            "nonsense",
        ),
    ],
)
def test_a_broken_answer_is_the_right_exception(
    answer: bytes, listens: bool, kind: type[NoneqError], told: str
) -> None:
    listener = (lambda _: None) if listens else None
    with scripted([answer]) as (url, _), Client(url, patience=ONCE) as client:
        with pytest.raises(NoneqError, match=told) as raised:
            client.sample(1, seed=3, progress=listener)
        assert type(raised.value) is kind


def test_where_nobody_listens_it_is_said_how_to_start_a_service(pauses: list[float]) -> None:
    """At once, in a sentence, without httpx's trace-backs; a notebook shows no other line."""
    with scripted([]) as (url, _):
        pass
    with Client(url) as client, pytest.raises(ConnectionFailed, match="noneq serve") as raised:
        client.models()
    assert type(raised.value) is ConnectionFailed
    assert pauses == []
    told = traceback.format_exception(raised.value)
    assert "httpx" not in "".join(told)
    assert len(told) <= 8
    (shown,) = raised.value._render_traceback_()
    assert shown == f"ConnectionFailed: {raised.value}"
    with Client("nonsense://x") as client, pytest.raises(ConnectionFailed):
        client.models()


def test_a_restart_is_waited_for_where_that_is_wanted(pauses: list[float]) -> None:
    with scripted([]) as (url, _):
        pass
    with (
        Client(url, patience=Patience(retries=2, restarts=True)) as client,
        pytest.raises(ConnectionFailed),
    ):
        client.models()
    assert pauses == [0.5, 1.0]


def test_the_environment_names_the_service(
    serve: Callable[..., AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(api_keys="k1") as url:
        monkeypatch.setenv("NONEQ_URL", url.removeprefix("http://"))
        monkeypatch.setenv("NONEQ_API_KEY", "k1")
        with Client() as client:
            assert client.url == url
            assert len(client.models()) == 3
        for key in ("k2", ""):  # what is given comes first; "" is no key
            with Client(api_key=key) as client, pytest.raises(Unauthorized):
                client.models()
        assert Client("https://elsewhere").url == "https://elsewhere"
    monkeypatch.delenv("NONEQ_URL")
    assert Client().url == "http://localhost:8000"


def test_silence_ends_in_a_timeout_and_is_not_asked_again() -> None:
    with scripted([b""]) as (url, asked), Client(url, timeout=0.1) as client:
        with pytest.raises(TimedOut, match="timeout"):
            client.sample(1)
        assert len(asked) == 1


@pytest.mark.parametrize("seed", [None, 11])
def test_what_is_asked_again_is_the_same_question(pauses: list[float], seed: int | None) -> None:
    with scripted([FULL, CUT, GOOD]) as (url, asked), Client(url) as client:
        found = client.sample(2, seed=seed)
    assert isinstance(found, Samples)
    assert pauses == [4.0, 1.0]  # what Retry-After said; then the second of 1/2, 1, 2, ...
    bodies = [one.partition(b"\r\n\r\n")[2] for one in asked]
    assert len(set(bodies)) == 1
    assert json.loads(bodies[0])["seed"] == seed or seed is None
    assert "seed" in json.loads(bodies[0])


@pytest.mark.anyio
async def test_coroutines_ask_again_likewise(pauses: list[float]) -> None:
    with scripted([CUT, FULL, GOOD]) as (url, asked):
        async with AsyncClient(url) as client:
            found = await client.sample(2)
    assert found.samples.shape == (1, 2)
    assert pauses == [0.5, 4.0]
    assert len({one.partition(b"\r\n\r\n")[2] for one in asked}) == 1


@pytest.mark.parametrize(
    ("patience", "attempts"), [(Patience(retries=2), 3), (Patience(seconds=7.0), 2)]
)
def test_patience_ends(pauses: list[float], patience: Patience, attempts: int) -> None:
    with scripted([FULL] * attempts) as (url, asked), Client(url, patience=patience) as client:
        with pytest.raises(Busy) as raised:
            client.sample(1)
        assert raised.value.retry_after == 4
        assert len(asked) == attempts
    assert pauses == [4.0] * (attempts - 1)


def test_a_bad_request_is_asked_once(url: str, pauses: list[float]) -> None:
    with Client(url) as client:
        with pytest.raises(BadRequest) as raised:
            client.sample(0, model="grey")
        assert raised.value.status == 422
        assert raised.value.problem["location"] == "num_samples"
        with pytest.raises(UnknownModel, match="bit-patterns"):
            client.sample(1, model="nobody")
        with pytest.raises(UnknownModel):
            client.model("nobody")
        with pytest.raises(TooLarge):
            client.sample(10**6, model="grey")
        with pytest.raises(BadRequest, match="not have the shape"):
            client.loglik([[1.0, 2.0, 3.0]], model="gaussian-mixture")
        with pytest.raises(DeadlineMissed):
            client.sample(4000, model="gaussian-mixture", deadline=0.001)
    assert pauses == []


def test_a_stream_that_is_refused_is_the_same_exception(url: str) -> None:
    with Client(url) as client, pytest.raises(UnknownModel):
        client.sample(1, model="nobody", progress=lambda _: None)


def test_threads_share_a_client(url: str) -> None:
    with Client(url) as client, ThreadPoolExecutor(4) as pool:
        seeds = [1, 2, 3, 4] * 2
        found = list(
            pool.map(lambda seed: client.sample(2, model="grey", steps=2, seed=seed), seeds)
        )
    assert [one.seed for one in found] == seeds
    for one, again in zip(found[:4], found[4:], strict=True):
        assert np.allclose(one.numpy(), again.numpy(), atol=1)  # a level, by float32's rounding


def test_the_key_is_sent_and_a_wrong_one_refused(
    serve: Callable[..., AbstractContextManager[str]],
) -> None:
    with serve(api_keys="k1, k2") as url:
        with Client(url, api_key="k2") as client:
            assert len(client.models().models) == 3
        for key in ("k3", None):
            with Client(url, api_key=key) as client, pytest.raises(Unauthorized, match="key"):
                client.models()


@pytest.mark.anyio
@pytest.mark.parametrize("listens", [False, True])
async def test_a_wrong_key_is_refused_in_process_too(folder: Path, listens: bool) -> None:
    settings = Settings(models=folder, device="cpu", batch_size=8, api_keys="k1")
    listener = (lambda _: None) if listens else None
    async with starting(settings) as app:
        line = httpx.ASGITransport(app)
        async with AsyncClient(transport=line, api_key="k1", patience=ONCE) as client:
            assert len((await client.models()).models) == 3
        async with AsyncClient(transport=line, api_key="k2") as client:
            with pytest.raises(Unauthorized, match="key"):
                await client.sample(1, model="grey", progress=listener)


@pytest.mark.parametrize("streams", [False, True])
def test_a_line_that_breaks_in_mid_answer(url: str, streams: bool) -> None:
    """The service's own answer, cut: an exception, or with patience the whole all the same."""
    request = requests.sample(40, model="gaussian-mixture", seed=5, steps=3)
    asked = replace(request, streamed=streams)
    with Client(url) as client:
        whole = client.send(asked)
    for after in (1, 30, 700):  # in the status line, the headers, the body
        with cutting(url, after) as (broken, passed), Client(broken, patience=ONCE) as client:
            with pytest.raises(ConnectionLost, match="same seed"):
                client.send(asked)
            assert len(passed[0]) == after
        with cutting(url, after) as (broken, passed), Client(broken) as client:
            again = client.send(asked)
        assert len(passed) == 2
        assert np.allclose(again.numpy(), whole.numpy(), atol=1e-5)


@pytest.mark.anyio
async def test_a_line_that_breaks_on_coroutines(url: str) -> None:
    with cutting(url, 700, cuts=3) as (broken, passed):
        async with AsyncClient(broken, patience=ONCE) as client:
            with pytest.raises(ConnectionLost, match="same seed"):
                await client.sample(40, model="gaussian-mixture", steps=3)
        async with AsyncClient(broken) as client:
            found = await client.sample(40, model="gaussian-mixture", steps=3)
    assert found.samples.shape == (40, 2)
    assert len(passed) == 4


def test_a_full_queue_over_a_socket_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with its Retry-After, until there is room: then the answer comes."""
    settings = Settings(models=folder, device="cpu", batch_size=8, slots=512, max_queue_cost=5000)
    app, waits = create_app(settings), list[float]()
    with (
        on_a_socket(app) as url,
        Client(url) as client,
        ThreadPoolExecutor(1) as pool,
        held(app) as gate,
    ):
        first = pool.submit(client.sample, 51, model="gaussian-mixture", seed=1)
        while app.state.backend.engine.pending == 0:
            time.sleep(0.005)

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            gate.set()
            first.result(60)

        monkeypatch.setattr("noneq.client.time", SimpleNamespace(sleep=sleep))
        found = client.sample(1, model="gaussian-mixture", seed=2)
    assert found.samples.shape == (1, 2)
    assert len(waits) == 1
    assert waits[0] >= 1


@pytest.mark.anyio
async def test_a_full_queue_is_busy_and_says_for_how_long(app: FastAPI) -> None:
    line = httpx.ASGITransport(app)
    answers: list[Samples] = []
    async with AsyncClient(transport=line, patience=ONCE) as client:
        with held(app) as gate:

            async def first() -> None:
                answers.append(await client.sample(51, model="gaussian-mixture", seed=1))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first)
                await until(lambda: app.state.backend.engine.pending > 0)
                with pytest.raises(Busy, match="queue is full") as raised:
                    await client.sample(1, model="gaussian-mixture")
                assert raised.value.retry_after is not None
                assert raised.value.retry_after >= 1
                gate.set()
        assert answers[0].samples.shape == (51, 2)


def test_the_body_is_sent_as_bytes(url: str) -> None:
    """A thousand numbers go as safetensors, four bytes each."""
    sent: list[int] = []
    data = np.random.default_rng(0).normal(size=(500, 2))
    with Client(url) as client:
        client._http.event_hooks["request"] = [lambda r: sent.append(len(r.content))]
        found = client.loglik(data, model="gaussian-mixture", terms=4, seed=1)
    assert found.bound.shape == (500,)
    assert sent[0] < 500 * 2 * 4 + 1000
